package lab

import (
	"context"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"syscall"
	"testing"
	"text/template"
	"time"

	agentv1 "tendril.io/tendril/api/agent/v1"
	"tendril.io/tendril/internal/cni"
	"tendril.io/tendril/internal/lab"
)

func TestServicesServeEveryClientWithNativeRouting(t *testing.T) { testServices(t, lab.ModeNative) }

func TestServicesServeEveryClientInVXLAN(t *testing.T) { testServices(t, lab.ModeVXLAN) }

// testServices goes through the kinds of service, the places of clients and both families in a lab of two nodes.
func testServices(t *testing.T, mode lab.Mode) {
	c := up(t, lab.Config{Mode: mode, Nodes: 2})
	c.add(t, "node1", "web-1", "web")
	c.add(t, "node2", "web-2", "web")
	c.add(t, "node1", "client", "client")
	c.add(t, "node2", "far", "client")
	c.serve(t, "web-1")
	c.serve(t, "web-2")
	for _, step := range []struct {
		name string
		run  func(*cluster, *testing.T)
	}{
		{"a node port answers everywhere", (*cluster).testNodePort},
		{"externalTrafficPolicy Local keeps the client's address", (*cluster).testLocalPolicy},
		{"a load balancer's address is for its source ranges", (*cluster).testSourceRanges},
		{"a link that floods breaks no connection", (*cluster).testFloodingLink},
		{"a client keeps its backend", (*cluster).testAffinity},
		{"node ports answer at addresses that the node gets later", (*cluster).testLaterAddresses},
		{"clients of a backend that goes are reset", (*cluster).testReset},
		{"a host port leads to its pod", (*cluster).testHostPort},
		{"no answer of a name server is lost", (*cluster).testPairs},
		{"the kernel has no rule and tracks no connection", (*cluster).testNoRules},
	} {
		t.Run(step.name, func(t *testing.T) { step.run(c, t) })
	}
}

// served is a service over some pods of the lab.
type served struct {
	Name     string
	Way      string // of answers to clients outside: the annotation
	Spec     string // what of the spec is not the same for all
	Status   string
	NodePort uint16
	Last     byte // of the cluster addresses
	Pods     []*lab.Pod
	Drains   string // name of a pod that terminates
}

var servedTemplate = template.Must(template.New("").Parse(`
apiVersion: v1
kind: Service
metadata: {name: {{.Name}}, namespace: shop{{if .Way}}, annotations: {service.tendril.io/forwarding: {{.Way}}}{{end}}}
spec:
  clusterIPs: ["10.96.1.{{.Last}}", "fd96::1:{{.Last}}"]
  clusterIP: 10.96.1.{{.Last}}
  ports: [{name: http, port: 80{{if .NodePort}}, nodePort: {{.NodePort}}{{end}}}]
  {{.Spec}}
{{.Status}}
{{range $i, $family := .Families}}---
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {name: {{$.Name}}-{{$i}}, namespace: shop, labels: {kubernetes.io/service-name: {{$.Name}}}}
addressType: {{if $i}}IPv6{{else}}IPv4{{end}}
ports: [{name: http, port: 80}]
endpoints:
{{range $family}}  - {{.}}
{{else}}  []
{{end}}{{end}}`))

// Families lists the endpoints of each family.
func (s served) Families() [2][]string {
	var families [2][]string
	for i, family := range []int{4, 6} {
		for _, pod := range s.Pods {
			conditions := "{ready: true}"
			if pod.Name == s.Drains {
				conditions = "{ready: false, serving: true, terminating: true}"
			}
			families[i] = append(families[i], fmt.Sprintf(`{addresses: ["%s"], nodeName: %s, conditions: %s}`,
				pod.Addr(family), pod.Node, conditions))
		}
	}
	return families
}

// offer applies the service's manifest and waits until every node has it.
func (c *cluster) offer(t *testing.T, s served) {
	t.Helper()
	var text strings.Builder
	if err := servedTemplate.Execute(&text, s); err != nil {
		t.Fatal(err)
	}
	c.apply(t, manifest(t, text.String()))
}

// nodeAddrs are a node's own addresses on the fabric.
func (c *cluster) nodeAddrs(t *testing.T, node string) []netip.Addr {
	t.Helper()
	status, err := c.Status(t.Context(), node)
	if err != nil {
		t.Fatal(err)
	}
	var addrs []netip.Addr
	for _, text := range status.Addresses {
		addrs = append(addrs, netip.MustParseAddr(text))
	}
	return addrs
}

// stray is a pod whose processes are not in the node's cgroup: translated per packet, not at the socket.
func (c *cluster) stray(pod string) lab.Place {
	place := c.pods[pod].Place
	place.Name, place.Cgroup = pod+" outside the node's cgroup", c.Outside().Cgroup
	return place
}

// hosts are places of the nodes' own processes.
func (c *cluster) hosts(t *testing.T) []lab.Place {
	t.Helper()
	var places []lab.Place
	for _, node := range c.NodeNames() {
		place, err := c.Node(node)
		if err != nil {
			t.Fatal(err)
		}
		places = append(places, place)
	}
	return places
}

// edgePort is the node port of the service "edge", which stays.
const edgePort = 30080

func (c *cluster) testNodePort(t *testing.T) {
	const port = edgePort
	c.offer(t, served{Name: "edge", Spec: "type: NodePort", NodePort: port, Last: 1, Pods: []*lab.Pod{c.pods["web-1"], c.pods["web-2"]}})
	clients := append(c.hosts(t), c.Outside(), c.pods["client"].Place, c.stray("client"), c.pods["far"].Place, c.stray("far"))
	for _, place := range clients {
		for _, addr := range c.nodeAddrs(t, "node1") {
			counts, err := place.FetchMany(t.Context(), addr, port, 40) // one of two by chance: all to one in 2^-39 of the runs
			if err != nil || len(counts) != 2 {
				t.Errorf("%s: 40 connections to %s port %d: %v, %v, want both servers", place.Name, addr, port, counts, err)
			}
		}
	}
	for _, place := range c.hosts(t) {
		for _, loopback := range []string{"127.0.0.1", "::1"} {
			if _, err := place.Fetch(t.Context(), netip.MustParseAddr(loopback), port); err != nil {
				t.Errorf("%s: %s: %v", place.Name, loopback, err)
			}
		}
	}
	if answer, err := c.pods["client"].Place.Fetch(t.Context(), netip.MustParseAddr("127.0.0.1"), port); err == nil {
		t.Errorf("a pod's own loopback has the node's ports: %+v", answer)
	}
}

// seen is whom a server saw, for each address that a client asked.
func (c *cluster) seen(t *testing.T, place lab.Place, addrs []netip.Addr, port uint16, name string) (seen []netip.Addr) {
	t.Helper()
	for _, addr := range addrs {
		answer, err := place.Fetch(t.Context(), addr, port)
		if err != nil || answer.Name != name {
			t.Errorf("%s: %s port %d: %+v, %v, want %s", place.Name, addr, port, answer, err, name)
			continue
		}
		seen = append(seen, answer.Sees)
	}
	return seen
}

func (c *cluster) testLocalPolicy(t *testing.T) {
	const port, health = 30081, 30181
	c.offer(t, served{Name: "near", NodePort: port, Last: 2, Pods: []*lab.Pod{c.pods["web-1"]},
		Spec: fmt.Sprintf("type: LoadBalancer\n  externalTrafficPolicy: Local\n  healthCheckNodePort: %d", health)})
	outside, err := c.OutsideExec(t.Context(), "ip", "-o", "addr", "show", "scope", "global")
	if err != nil {
		t.Fatal(err)
	}
	for _, addr := range c.seen(t, c.Outside(), c.nodeAddrs(t, "node1"), port, "web-1") {
		if !strings.Contains(outside, " "+addr.String()+"/") {
			t.Errorf("the server sees %s, want the client itself", addr)
		}
	}
	for _, addr := range c.nodeAddrs(t, "node2") { // has no backend
		if answer, err := c.Outside().Fetch(t.Context(), addr, port); err == nil {
			t.Errorf("node2 has no backend and answers: %+v", answer)
		}
	}
	c.seen(t, c.stray("far"), c.nodeAddrs(t, "node2"), port, "web-1") // its own clients do not come from outside
	for i, want := range []string{"200", "503"} {
		url := fmt.Sprintf("http://%s:%d/", c.nodeAddrs(t, c.NodeNames()[i])[0], health)
		got, err := c.OutsideExec(t.Context(), "curl", "-s", "-m", "2", "-o", "/dev/null", "-w", "%{http_code}", url)
		if err != nil || got != want {
			t.Errorf("health check of node%d: %s, %v, want %s", i+1, got, err, want)
		}
	}
}

func (c *cluster) testSourceRanges(t *testing.T) {
	balanced := []netip.Addr{netip.MustParseAddr("203.0.113.10"), netip.MustParseAddr("2001:db8:aaaa::10")}
	client := c.nodeAddrs(t, "node1")
	for _, addr := range balanced { // outside has a route to the addresses, as an announcement would give it
		via := client[slices.IndexFunc(client, func(a netip.Addr) bool { return a.Is4() == addr.Is4() })]
		if _, err := c.OutsideExec(t.Context(), "ip", "route", "replace", addr.String(), "via", via.String()); err != nil {
			t.Fatal(err)
		}
	}
	service := served{Name: "far", Last: 3, Pods: []*lab.Pod{c.pods["web-2"]},
		Status: "status: {loadBalancer: {ingress: [{ip: 203.0.113.10}, {ip: \"2001:db8:aaaa::10\"}]}}"}
	service.Spec = "type: LoadBalancer\n  loadBalancerSourceRanges: [0.0.0.0/0, \"::/0\"]"
	c.offer(t, service)
	for _, place := range []lab.Place{c.Outside(), c.stray("client"), c.pods["client"].Place} {
		c.seen(t, place, balanced, 80, "web-2")
	}
	service.Spec = "type: LoadBalancer\n  loadBalancerSourceRanges: [192.0.2.0/24, \"2001:db8:bbbb::/48\"]"
	c.offer(t, service)
	for _, place := range []lab.Place{c.Outside(), c.stray("client"), c.pods["client"].Place} {
		for _, addr := range balanced {
			if answer, err := place.Fetch(t.Context(), addr, 80); err == nil {
				t.Errorf("%s is in no source range and reaches %s: %+v", place.Name, addr, answer)
			}
		}
	}
}

// testFloodingLink has the fabric bring every frame to every node: who is not meant must not serve it, too.
func (c *cluster) testFloodingLink(t *testing.T) {
	c.offer(t, served{Name: "heard", Last: 6, Spec: "type: LoadBalancer", Pods: []*lab.Pod{c.pods["web-1"], c.pods["web-2"]},
		Status: "status: {loadBalancer: {ingress: [{ip: 203.0.113.20}, {ip: \"2001:db8:aaaa::20\"}]}}"})
	if err := c.Flood(true); err != nil {
		t.Fatal(err)
	}
	for i, addr := range []netip.Addr{netip.MustParseAddr("203.0.113.20"), netip.MustParseAddr("2001:db8:aaaa::20")} {
		if _, err := c.OutsideExec(t.Context(), "ip", "route", "replace", addr.String(), "via", c.nodeAddrs(t, "node1")[i].String()); err != nil {
			t.Fatal(err)
		}
		counts, err := c.Outside().FetchMany(t.Context(), addr, 80, 40)
		if err != nil || len(counts) != 2 {
			t.Errorf("40 connections to %s: %v, %v, want both servers", addr, counts, err)
		}
	}
	if err := c.Flood(false); err != nil {
		t.Fatal(err)
	}
}

func (c *cluster) testLaterAddresses(t *testing.T) {
	const port = 30085
	c.offer(t, served{Name: "later", NodePort: port, Last: 5, Spec: "type: NodePort", Pods: []*lab.Pod{c.pods["web-2"]}})
	node, err := c.Node("node1")
	if err != nil {
		t.Fatal(err)
	}
	later := []netip.Addr{netip.MustParseAddr("172.30.0.77"), netip.MustParseAddr("fd30::4d")}
	for _, addr := range later {
		if _, err := node.Exec(t.Context(), "ip", "addr", "add", addr.String(), "dev", "eth0"); err != nil {
			t.Fatal(err)
		}
		if _, err := c.OutsideExec(t.Context(), "ip", "route", "replace", addr.String(), "dev", "eth0"); err != nil {
			t.Fatal(err)
		}
		eventually(t, "node port at "+addr.String(), 5*time.Second, func(ctx context.Context) error {
			_, err := c.Outside().Fetch(ctx, addr, port)
			return err
		})
	}
	for _, place := range []lab.Place{c.Outside(), c.pods["client"].Place, c.stray("client"), node} {
		c.seen(t, place, later, port, "web-2")
	}
	for _, addr := range later {
		if _, err := node.Exec(t.Context(), "ip", "addr", "del", addr.String(), "dev", "eth0"); err != nil {
			t.Fatal(err)
		}
	}
}

func (c *cluster) testAffinity(t *testing.T) {
	c.offer(t, served{Name: "kept", Last: 4, Spec: "sessionAffinity: ClientIP", NodePort: 0, Pods: []*lab.Pod{c.pods["web-1"], c.pods["web-2"]}})
	for _, text := range []string{"10.96.1.4", "fd96::1:4"} {
		addr := netip.MustParseAddr(text)
		total := map[string]int{}
		for _, place := range []lab.Place{c.pods["client"].Place, c.stray("client")} { // one client, at the socket and per packet
			counts, err := place.FetchMany(t.Context(), addr, 80, 12)
			if err != nil {
				t.Errorf("%s: %v", place.Name, err)
			}
			for name, n := range counts {
				total[name] += n
			}
		}
		if len(total) != 1 {
			t.Errorf("24 connections of one client to %s: %v, want one server", addr, total)
		}
	}
	agent, err := c.Agent("node1")
	if err != nil {
		t.Fatal(err)
	}
	list, err := agent.ListFrontends(t.Context(), &agentv1.ListFrontendsRequest{Ip: "10.96.1.4"})
	if err != nil || len(list.Frontends) != 1 || len(list.Frontends[0].Inside) != 2 || list.Frontends[0].AffinitySeconds == 0 {
		t.Errorf("the kernel's frontend: %v, %v", list, err)
	}
	flushed, err := agent.FlushAffinities(t.Context(), &agentv1.FlushAffinitiesRequest{Ip: c.pods["client"].Addr(6).String()})
	if err != nil || flushed.Removed != 1 {
		t.Errorf("affinities of the client: %v, %v, want one removed", flushed, err)
	}
}

// testReset has kept connections from every place to both servers. One server drains, which disturbs nobody, and then goes:
// its clients must hear of it at once, the other server's must not, and nor must those who came by a service that keeps it.
func (c *cluster) testReset(t *testing.T) {
	const port = 30082
	service := served{Name: "going", Spec: "type: NodePort", NodePort: port, Last: 5, Pods: []*lab.Pod{c.pods["web-1"], c.pods["web-2"]}}
	c.offer(t, service)
	cluster := []netip.Addr{netip.MustParseAddr("10.96.1.5"), netip.MustParseAddr("fd96::1:5")}
	keeping := []netip.Addr{netip.MustParseAddr("10.96.1.1"), netip.MustParseAddr("fd96::1:1")} // of "edge", with the same servers
	host := c.hosts(t)[0]
	var kept, undisturbed []*lab.Process
	for i := range 4 { // of so many, one server has all once in 32768
		family := i % 2
		for place, target := range map[*lab.Place]netip.AddrPort{
			&host:                       netip.AddrPortFrom(cluster[family], 80),
			ptr(c.pods["client"].Place): netip.AddrPortFrom(cluster[family], 80),
			ptr(c.stray("client")):      netip.AddrPortFrom(cluster[family], 80),
			ptr(c.Outside()):            netip.AddrPortFrom(c.nodeAddrs(t, "node1")[family], port),
		} {
			process, err := c.StartProbe(t.Context(), *place, lab.ProbeHTTP, target, 20*time.Millisecond)
			if err != nil {
				t.Fatal(err)
			}
			kept = append(kept, process)
		}
		for place, target := range map[*lab.Place]netip.AddrPort{
			ptr(c.pods["client"].Place): netip.AddrPortFrom(keeping[family], 80),
			ptr(c.stray("client")):      netip.AddrPortFrom(keeping[family], 80),
			ptr(c.Outside()):            netip.AddrPortFrom(c.nodeAddrs(t, "node1")[family], edgePort),
		} {
			process, err := c.StartProbe(t.Context(), *place, lab.ProbeHTTP, target, 20*time.Millisecond)
			if err != nil {
				t.Fatal(err)
			}
			undisturbed = append(undisturbed, process)
		}
	}
	service.Drains = "web-2"
	c.offer(t, service)
	time.Sleep(300 * time.Millisecond)
	service.Drains, service.Pods = "", service.Pods[:1]
	c.offer(t, service)
	time.Sleep(500 * time.Millisecond)
	resets := 0
	for _, process := range kept {
		result, err := lab.EndProbe(t.Context(), process)
		if err != nil {
			t.Fatal(err)
		}
		switch {
		case result.By["web-1"] > 0 && !result.Clean():
			t.Errorf("%s: a connection to the server that stays: %+v", process.Name, result)
		case result.By["web-2"] > 0 && (result.Reset == 0 || result.By["web-2"] < 10):
			t.Errorf("%s: a connection to the server that drained and went: %+v, want answers first and then a reset", process.Name, result)
		case result.By["web-2"] > 0:
			resets++
		}
	}
	if resets == 0 {
		t.Errorf("of %d connections none was at the server that went", len(kept))
	}
	at := map[string]int{}
	for _, process := range undisturbed {
		result, err := lab.EndProbe(t.Context(), process)
		if err != nil || !result.Clean() {
			t.Errorf("%s: a connection by a service that keeps its server: %+v, %v", process.Name, result, err)
		}
		for name := range result.By {
			at[name]++
		}
	}
	if at["web-2"] == 0 {
		t.Errorf("of the connections by the other service none was at the server that it keeps: %v", at)
	}
}

// testHostPort has a pod with host ports, which all clients reach at its node, with and without an agent, until the pod goes.
func (c *cluster) testHostPort(t *testing.T) {
	spec := lab.PodSpec{Node: "node1", Namespace: namespace, Name: "exposed", HostPorts: []cni.PortMapping{
		{HostPort: 8088, ContainerPort: 80, Protocol: "tcp"}, {HostPort: 5300, ContainerPort: 53, Protocol: "udp"},
		{HostPort: 8089, ContainerPort: 80, Protocol: "tcp", HostIP: "127.0.0.1"}, {HostPort: 8089, ContainerPort: 80, Protocol: "tcp", HostIP: "::1"},
	}}
	pod, err := c.AddPod(t.Context(), spec)
	if err != nil {
		t.Fatal(err)
	}
	c.pods["exposed"] = pod
	c.serve(t, "exposed")
	if _, err := c.StartDNS(t.Context(), pod.Place, "web.shop=10.96.0.80,fd96::80"); err != nil {
		t.Fatal(err)
	}
	addrs := c.nodeAddrs(t, "node1") // asked of the agent, which is not always there
	clients := []lab.Place{c.hosts(t)[0], c.hosts(t)[1], c.Outside(), c.pods["client"].Place, c.stray("client"), c.stray("far"), pod.Place}
	reach := func(when string) {
		t.Helper()
		for _, place := range clients {
			for _, addr := range addrs {
				if answer, err := place.Fetch(t.Context(), addr, 8088); err != nil || answer.Name != "exposed" {
					t.Errorf("%s: %s: %s: %+v, %v", when, place.Name, addr, answer, err)
				}
				out, err := place.Exec(t.Context(), "dig", "+short", "+time=2", "+tries=1", "-p", "5300", "@"+addr.String(), "web.shop", "AAAA")
				if err != nil || strings.TrimSpace(out) != "fd96::80" {
					t.Errorf("%s: %s: dig @%s: %q, %v", when, place.Name, addr, out, err)
				}
			}
		}
	}
	reach("at first")
	for _, loopback := range []netip.Addr{netip.MustParseAddr("127.0.0.1"), netip.IPv6Loopback()} {
		if answer, err := c.hosts(t)[0].Fetch(t.Context(), loopback, 8089); err != nil || answer.Name != "exposed" {
			t.Errorf("the node at its %s: %+v, %v", loopback, answer, err)
		}
		for _, place := range []lab.Place{c.hosts(t)[1], c.pods["client"].Place} { // theirs is another
			if answer, err := place.Fetch(t.Context(), loopback, 8089); err == nil {
				t.Errorf("%s has the node's port at its own %s: %+v", place.Name, loopback, answer)
			}
		}
	}
	for _, addr := range addrs {
		if answer, err := c.hosts(t)[0].Fetch(t.Context(), addr, 8089); err == nil {
			t.Errorf("the port of loopback at %s: %+v", addr, answer)
		}
	}
	if err := c.KillAgent(t.Context(), "node1", syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	reach("without an agent")
	if err := c.StartAgent(t.Context(), "node1"); err != nil {
		t.Fatal(err)
	}
	if err := c.WaitConverged(t.Context(), 10*time.Second); err != nil {
		t.Fatal(err)
	}
	reach("with another agent")
	spec.Name = "second"
	if second, err := c.AddPod(t.Context(), spec); err == nil || !strings.Contains(err.Error(), namespace+"/second") || !strings.Contains(err.Error(), namespace+"/exposed") {
		t.Errorf("a second pod with the host port: %v, %v, want an error that names both", second, err)
	}
	if err := c.RemovePod(t.Context(), pod); err != nil {
		t.Fatal(err)
	}
	delete(c.pods, "exposed")
	for _, addr := range addrs {
		if answer, err := c.Outside().Fetch(t.Context(), addr, 8088); err == nil {
			t.Errorf("the pod has gone and answers: %+v", answer)
		}
	}
}

func ptr(place lab.Place) *lab.Place { return &place }
