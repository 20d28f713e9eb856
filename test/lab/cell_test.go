package lab

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sync/errgroup"

	agentv1 "tendril.io/tendril/api/agent/v1"
	"tendril.io/tendril/internal/cni"
	"tendril.io/tendril/internal/kube"
	"tendril.io/tendril/internal/lab"
)

// Every cell of (kind of service x family x protocol x client's place x traffic policies x way of the answers x node that the client
// comes by) is an exchange with the one backend, which says whom it saw; or it must fail, for a reason that is named. Of the node that
// leads a client to the backend it is known whether it has seen the answer.
//
// The backend is a pod of node1, or a process of node1 itself, so node2 is the node without one. What is expected is in
// (*cellTable).want.

func TestEveryCellOfServicesWithNativeRouting(t *testing.T) {
	testCells(t, lab.Config{Mode: lab.ModeNative}, "tcp", "udp", "udp-connected")
}

func TestEveryCellOfServicesInVXLAN(t *testing.T) {
	testCells(t, lab.Config{Mode: lab.ModeVXLAN, LBMode: "dsr"}, "tcp", "udp", "udp-connected")
}

// cellPlace is where clients are.
type cellPlace struct {
	lab.Place
	node    string // "": outside the cluster
	perHop  bool   // packets are translated, not sockets
	itself  bool   // it is the backend
	host    bool   // processes of the node itself
	sources []netip.Addr
}

// cellPolicy is one setting of both traffic policies, with one way of the answers; each has a service, with all kinds of frontends.
type cellPolicy struct {
	internalLocal, externalLocal bool
	hostNetwork                  bool   // the backend is a process of the node
	way                          string // of answers to clients outside: snat or dsr
}

func cellPolicies() (all []cellPolicy) {
	for _, way := range []string{"snat", "dsr"} {
		all = append(all, cellPolicy{way: way}, cellPolicy{way: way, internalLocal: true}, cellPolicy{way: way, externalLocal: true},
			cellPolicy{way: way, internalLocal: true, externalLocal: true}, cellPolicy{way: way, hostNetwork: true})
	}
	return all
}

// backend is the name under which the backend answers.
func (p cellPolicy) backend() string {
	if p.hostNetwork {
		return "node1"
	}
	return "web"
}

// cell is one exchange and what must become of it.
type cell struct {
	kind   string
	policy cellPolicy
	by     string // node whose address is asked, or by which the client comes from outside; "": none in particular
	exchange
	outcome
}

// outcome is what must become of an exchange.
type outcome struct {
	sees    []netip.Addr // one of these; none: it must fail
	through string       // node in between that the answer comes back by; "": there is none
	past    string       // node in between that the question comes by, and the answer does not
	reason  string       // why it must fail; "": nobody is there
	at      string       // node that says so
}

// String names the cell.
func (c *cell) String() string {
	policy := map[bool]string{true: "Local", false: "Cluster"}
	return fmt.Sprintf("%s internal=%s external=%s of %s, %s, %s %s by %q", c.kind, policy[c.policy.internalLocal], policy[c.policy.externalLocal],
		c.policy.backend(), c.policy.way, c.Protocol, c.Target, c.by)
}

// cellHostPort is the backend's own host port.
const cellHostPort = 31100

// cellFirstPort is the first of the clients' ports, of which none is the kernel's to give away.
const cellFirstPort = 20000

// cellPatience is for exchanges that must succeed: no machine is so slow.
const cellPatience = time.Minute

// cellTable is the lab of one routing mode.
type cellTable struct {
	*cluster
	protocols []string                // ways to ask, see exchange
	nodes     map[string][]netip.Addr // addresses of nodes on the fabric
	places    []cellPlace
}

// testCells has a lab for all services: lb_mode is the one way, and their annotation is the other.
func testCells(t *testing.T, config lab.Config, protocols ...string) *cellTable {
	config.Nodes = 2
	c := &cellTable{cluster: up(t, config), protocols: protocols, nodes: map[string][]netip.Addr{}}
	pod, err := c.AddPod(t.Context(), lab.PodSpec{Node: "node1", Namespace: namespace, Name: "web", HostPorts: []cni.PortMapping{
		{HostPort: cellHostPort, ContainerPort: witnessPort, Protocol: "tcp"}, {HostPort: cellHostPort, ContainerPort: witnessPort, Protocol: "udp"},
		{HostPort: cellHostPort, ContainerPort: witnessPort, Protocol: "sctp"},
	}})
	if err != nil {
		t.Fatal(err)
	}
	c.pods["web"] = pod
	c.add(t, "node1", "near", "client")
	c.add(t, "node2", "far", "client")
	c.witness(t, pod.Place, "web", pod.Addrs)
	node1 := c.nodeAddrs(t, "node1")
	c.witness(t, c.hosts(t)[0], "node1", node1)
	for i, policy := range cellPolicies() {
		backends := pod.Addrs
		if policy.hostNetwork {
			backends = node1
		}
		annotation := kube.AnnotationForwarding + ": " + policy.way
		if policy.way == cmp.Or(c.LBMode, "snat") {
			annotation = ""
		}
		c.apply(t, manifest(t, cellManifest(i, policy, annotation, backends)))
	}
	c.lay(t)
	refused := c.refusals(t)
	results := make([][]cell, len(c.places))
	group, ctx := errgroup.WithContext(t.Context())
	for i, place := range c.places {
		group.Go(func() (err error) {
			results[i], err = c.play(ctx, place, cellFirstPort+i*1000)
			return err
		})
	}
	if err := group.Wait(); err != nil {
		t.Fatal(err)
	}
	count := 0
	for i, place := range c.places {
		t.Run(place.Name, func(t *testing.T) { c.judge(t, place, results[i]) })
		count += len(results[i])
	}
	c.judgeRefusals(t, refused, results)
	c.judgeWays(t, slices.Concat(results...))
	t.Logf("%d cells", count)
	return c
}

// cellManifest is a service with every kind of address but a host port. Its addresses end in the policy's number, those that clients
// outside reach by node2 in 100 more.
func cellManifest(i int, policy cellPolicy, annotation string, backends []netip.Addr) string {
	name := map[bool]string{true: "Local", false: "Cluster"}
	text := fmt.Sprintf(`
apiVersion: v1
kind: Service
metadata: {name: cell-%[1]d, namespace: shop, annotations: {%[4]s}}
spec:
  type: LoadBalancer
  internalTrafficPolicy: %[2]s
  externalTrafficPolicy: %[3]s
  clusterIPs: ["10.96.2.%[1]d", "fd96::2:%[1]d"]
  clusterIP: 10.96.2.%[1]d
  externalIPs: ["203.0.113.%[1]d", "203.0.113.10%[1]d", "2001:db8:e::%[1]d", "2001:db8:e::10%[1]d"]
  ports: [{name: tcp, port: 80, nodePort: 3100%[1]d}, {name: udp, port: 80, nodePort: 3100%[1]d, protocol: UDP},
    {name: sctp, port: 80, nodePort: 3100%[1]d, protocol: SCTP}]
status: {loadBalancer: {ingress: [{ip: 192.0.2.%[1]d}, {ip: 192.0.2.10%[1]d}, {ip: "2001:db8:f::%[1]d"}, {ip: "2001:db8:f::10%[1]d"}]}}
`, i, name[policy.internalLocal], name[policy.externalLocal], annotation)
	for _, backend := range backends {
		family := familyOf(backend)
		text += fmt.Sprintf(`---
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {name: cell-%d-v%d, namespace: shop, labels: {kubernetes.io/service-name: cell-%d}}
addressType: IPv%d
ports: [{name: tcp, port: %d}, {name: udp, port: %d, protocol: UDP}, {name: sctp, port: %d, protocol: SCTP}]
endpoints: [{addresses: ["%s"], nodeName: node1}]
`, i, family, i, family, witnessPort, witnessPort, witnessPort, backend)
	}
	return text
}

// lay finds the places, and gives outside its routes: as an announcement would, and to cluster addresses by mistake.
func (c *cellTable) lay(t *testing.T) {
	for _, node := range c.NodeNames() {
		c.nodes[node] = c.nodeAddrs(t, node)
	}
	for i := range cellPolicies() {
		for text, node := range map[string]string{
			"10.96.2.%d": "node1", "fd96::2:%d": "node1", "203.0.113.%d": "node1", "2001:db8:e::%d": "node1", "192.0.2.%d": "node1", "2001:db8:f::%d": "node1",
			"203.0.113.10%d": "node2", "2001:db8:e::10%d": "node2", "192.0.2.10%d": "node2", "2001:db8:f::10%d": "node2",
		} {
			addr := netip.MustParseAddr(fmt.Sprintf(text, i))
			if _, err := c.OutsideExec(t.Context(), "ip", "route", "replace", addr.String(), "via", c.nodeAddr(node, familyOf(addr)).String()); err != nil {
				t.Fatal(err)
			}
		}
	}
	hosts := c.hosts(t)
	c.places = []cellPlace{
		{Place: c.pods["web"].Place, node: "node1", itself: true}, {Place: c.stray("web"), node: "node1", itself: true, perHop: true},
		{Place: c.pods["near"].Place, node: "node1"}, {Place: c.stray("near"), node: "node1", perHop: true},
		{Place: c.pods["far"].Place, node: "node2"}, {Place: c.stray("far"), node: "node2", perHop: true},
		{Place: hosts[0], node: "node1", host: true, itself: true}, {Place: hosts[1], node: "node2", host: true}, {Place: c.Outside()},
	}
	if slices.Contains(c.protocols, "sctp") { // is translated per packet everywhere
		c.places = slices.DeleteFunc(c.places, func(p cellPlace) bool { return p.perHop })
		for i := range c.places {
			c.places[i].perHop = true
		}
	}
	for _, host := range hosts { // the first packet to another node waits for its link address, and must not go elsewhere then
		if _, err := host.Exec(t.Context(), "ip", "neigh", "flush", "dev", "eth0"); err != nil {
			t.Fatal(err)
		}
	}
	for i := range c.places {
		c.places[i].sources = c.addrsAt(t, c.places[i].Place)
	}
}

// nodeAddr is a node's address of a family on the fabric.
func (c *cellTable) nodeAddr(node string, family int) netip.Addr {
	for _, addr := range c.nodes[node] {
		if familyOf(addr) == family {
			return addr
		}
	}
	return netip.Addr{}
}

// addrsAt lists the addresses that the kernel has in a place.
func (c *cellTable) addrsAt(t *testing.T, place lab.Place) (addrs []netip.Addr) {
	t.Helper()
	out, err := place.Exec(t.Context(), "ip", "-o", "addr", "show", "scope", "global")
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(out) {
		if fields := strings.Fields(line); len(fields) > 3 {
			if prefix, err := netip.ParsePrefix(fields[3]); err == nil {
				addrs = append(addrs, prefix.Addr())
			}
		}
	}
	return addrs
}

// cells lists what a place asks for.
func (c *cellTable) cells(place cellPlace) (cells []cell) {
	add := func(kind string, policy cellPolicy, by string, target netip.AddrPort) {
		for _, protocol := range c.protocols {
			one := cell{kind: kind, policy: policy, by: by, exchange: exchange{Protocol: protocol, Target: target}}
			one.outcome = c.want(place, &one)
			cells = append(cells, one)
		}
	}
	at := func(text string, i int) netip.AddrPort {
		return netip.AddrPortFrom(netip.MustParseAddr(fmt.Sprintf(text, i)), 80)
	}
	for i, policy := range cellPolicies() {
		for _, text := range []string{"10.96.2.%d", "fd96::2:%d"} {
			add("ClusterIP", policy, "", at(text, i))
		}
		for node, texts := range map[string][]string{
			"node1": {"203.0.113.%d", "2001:db8:e::%d", "192.0.2.%d", "2001:db8:f::%d"},
			"node2": {"203.0.113.10%d", "2001:db8:e::10%d", "192.0.2.10%d", "2001:db8:f::10%d"},
		} {
			for j, text := range texts {
				add([]string{"ExternalIP", "LoadBalancer"}[j/2], policy, node, at(text, i))
			}
			for _, family := range []int{4, 6} {
				add("NodePort", policy, node, netip.AddrPortFrom(c.nodeAddr(node, family), uint16(31000+i)))
			}
		}
	}
	for _, node := range c.NodeNames() {
		for _, family := range []int{4, 6} {
			add("HostPort", cellPolicy{}, node, netip.AddrPortFrom(c.nodeAddr(node, family), cellHostPort))
		}
	}
	return cells
}

// want says what must become of an exchange.
func (c *cellTable) want(place cellPlace, one *cell) outcome {
	outside := place.node == ""
	switch {
	case outside && one.kind == "ClusterIP":
		return outcome{} // a cluster's address is not for outside
	case one.kind == "HostPort" && one.by == "node2":
		return outcome{} // the pod is of the other node
	case outside || (one.by != place.node && (one.kind == "NodePort" || one.kind == "HostPort")):
		return c.wantByWire(place, one)
	case one.kind == "ClusterIP" && one.policy.internalLocal && place.node == "node2":
		return outcome{reason: "no-backend", at: "node2"}
	case place.itself && place.perHop && !place.host && !one.policy.hostNetwork: // a pod that is translated per packet cannot answer itself under its own name
		return outcome{sees: []netip.Addr{netip.MustParseAddr("169.254.7.71"), netip.MustParseAddr("fd74:656e:6472:696c::71")}}
	}
	return outcome{sees: place.sources}
}

// wantByWire is what becomes of what comes to the node that was asked by the wire: externalTrafficPolicy holds, and only a node that must send
// it on puts its own name on it, unless the backend's node is to answer a client outside itself. That can be of TCP and UDP, for pods.
func (c *cellTable) wantByWire(place cellPlace, one *cell) outcome {
	switch {
	case one.by == "node1":
		return outcome{sees: place.sources}
	case one.policy.externalLocal:
		return outcome{reason: "no-backend", at: "node2"}
	case one.policy.way == "dsr" && place.node == "" && !one.policy.hostNetwork && one.Protocol != "sctp":
		return outcome{sees: place.sources, past: "node2"}
	}
	return outcome{sees: []netip.Addr{c.nodeAddr("node2", familyOf(one.Target.Addr()))}, through: "node2"}
}

// play makes all exchanges of one place, from ports that count on from first: two connections of one port to two services would be
// one to their common backend.
func (c *cellTable) play(ctx context.Context, place cellPlace, first int) ([]cell, error) {
	cells := c.cells(place)
	asked := make([]exchange, len(cells))
	for i := range cells {
		cells[i].Port = first + i
		if len(cells[i].sees) > 0 {
			cells[i].Patience = cellPatience
		}
		asked[i] = cells[i].exchange
	}
	made, err := exchanges(ctx, place.Place, asked)
	for i := range made {
		cells[i].exchange = made[i]
	}
	return cells, err
}

// judge compares what became of a place's exchanges with what must.
func (c *cellTable) judge(t *testing.T, place cellPlace, cells []cell) {
	for i := range cells {
		one := &cells[i]
		switch {
		case len(one.sees) == 0 && one.Failed == "":
			t.Errorf("%s: %s answers, and sees %s; want no answer", one, one.Name, one.Sees)
		case len(one.sees) == 0 && one.reason != "" && (place.node != one.at || place.perHop):
			c.judgeDrop(t, place, one)
		case len(one.sees) == 0:
		case one.Failed != "" || one.Name != one.policy.backend():
			t.Errorf("%s: %s, %q answers, want the backend", one, one.Failed, one.Name)
		case !slices.Contains(one.sees, one.Sees.Addr()):
			t.Errorf("%s: the backend sees %s, want one of %s", one, one.Sees, one.sees)
		case one.From != one.Target:
			t.Errorf("%s: the answer comes from %s", one, one.From)
		}
	}
}

// judgeDrop wants a record of the packet's loss, with its reason. On a slow machine the first one may not have been sent in time: it is asked again.
func (c *cellTable) judgeDrop(t *testing.T, place cellPlace, one *cell) {
	protocol, _, _ := strings.Cut(one.Protocol, "-")
	request := &agentv1.ObserveRequest{Verdict: "dropped", Ip: one.Target.Addr().String(), Port: uint32(one.Target.Port()), Protocol: protocol}
	named := func(flow *agentv1.Flow) bool { return flow.GetReason() == one.reason }
	err := lab.Wait(t.Context(), "a record of a loss", cellPatience, func(ctx context.Context) error {
		flows, err := c.Flows(ctx, one.at, request)
		if err != nil || slices.ContainsFunc(flows, named) {
			return err
		}
		_, err = exchanges(ctx, place.Place, []exchange{one.exchange})
		return errors.Join(err, fmt.Errorf("%s is none of %d", one.reason, len(flows)))
	})
	if err != nil {
		t.Errorf("%s: %v", one, err)
	}
}

// judgeWays wants each node in between to have counted the answers that come back by it, and none of those that do not. Every client has a
// port of its own, by which its flow is known.
func (c *cellTable) judgeWays(t *testing.T, cells []cell) {
	for _, node := range c.NodeNames() {
		ends := c.flowEnds(t, node, cells)
		for i := range cells {
			one := &cells[i]
			if one.through != node && one.past != node || one.Failed != "" {
				continue
			}
			if flow := ends[uint32(one.Port)]; flow.GetForwardPackets() == 0 || (flow.GetReversePackets() > 0) != (one.through == node) {
				t.Errorf("%s: %s has seen %d packets and %d answers; want answers: %v", one, node, flow.GetForwardPackets(), flow.GetReversePackets(),
					one.through == node)
			}
		}
	}
}

// flowEnds ends the flows of a node, and reads the last record of each by its client's port: all that cells expect.
func (c *cellTable) flowEnds(t *testing.T, node string, cells []cell) map[uint32]*agentv1.Flow {
	t.Helper()
	agent, err := c.Agent(node)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := agent.FlushFlows(t.Context(), &agentv1.FlushFlowsRequest{}); err != nil {
		t.Fatal(err)
	}
	ends := map[uint32]*agentv1.Flow{}
	eventually(t, "the records of flows that have ended on "+node, time.Minute, func(ctx context.Context) error {
		flows, err := c.Flows(ctx, node, &agentv1.ObserveRequest{Kind: "end"})
		for _, flow := range flows {
			ends[flow.GetSource().GetPort()] = flow
		}
		for i := range cells {
			if one := &cells[i]; (one.through == node || one.past == node) && one.Failed == "" && ends[uint32(one.Port)] == nil {
				return errors.Join(err, fmt.Errorf("none of %d is that of %s", len(ends), one))
			}
		}
		return err
	})
	return ends
}

// refusals counts what sockets of each node were refused for want of a backend.
func (c *cellTable) refusals(t *testing.T) map[string]uint64 {
	t.Helper()
	counts := map[string]uint64{}
	for _, node := range c.NodeNames() {
		counts[node] = c.counted(t, node, func(counter *agentv1.CountersResponse_Counter) bool {
			return counter.GetReason() == "no-backend" && !strings.Contains(counter.GetHook(), "_")
		})
	}
	return counts
}

// judgeRefusals wants every socket's call that had no backend to be counted as such.
func (c *cellTable) judgeRefusals(t *testing.T, before map[string]uint64, results [][]cell) {
	want := map[string]uint64{}
	for i, place := range c.places {
		for j := range results[i] {
			if one := &results[i][j]; one.reason != "" && place.node == one.at && !place.perHop {
				want[one.at]++
			}
		}
	}
	after := c.refusals(t)
	for node, count := range want {
		if got := after[node] - before[node]; got < count {
			t.Errorf("%s counted %d calls of sockets without a backend, want at least %d", node, got, count)
		}
	}
}

// The table is what the file says it is: every cell once for each place, and each way in which it must fail among them.
func TestTheTableOfCellsIsWhole(t *testing.T) {
	c := &cellTable{cluster: &cluster{Lab: &lab.Lab{Config: lab.Config{Nodes: 2}}}, protocols: []string{"tcp", "udp", "udp-connected"}, nodes: map[string][]netip.Addr{
		"node1": {netip.MustParseAddr("172.30.0.1"), netip.MustParseAddr("fd30::1")},
		"node2": {netip.MustParseAddr("172.30.0.2"), netip.MustParseAddr("fd30::2")},
	}}
	seen := map[string]bool{}
	reasons, ways := map[string]int{}, map[string]int{}
	for _, one := range c.cells(cellPlace{}) {
		if seen[one.String()] {
			t.Errorf("%s is there twice", &one)
		}
		seen[one.String()] = true
		ways["through "+one.through]++
		ways["past "+one.past]++
		if len(one.sees) == 0 {
			reasons[one.reason]++
		}
	}
	// Three ways to ask, in two families: one cluster address, two of each other kind for each of ten services, two host ports.
	if got, want := len(seen), 3*2*(10*(1+3*2)+2); got != want {
		t.Errorf("%d cells, want %d", got, want)
	}
	if reasons["no-backend"] != 3*2*3*4 {
		t.Errorf("cells that fail, by reason: %v", reasons)
	}
	if ways["through node2"] != 3*2*3*(3+1) || ways["past node2"] != 3*2*3*2 {
		t.Errorf("cells that another node leads to the backend: %v", ways)
	}
}
