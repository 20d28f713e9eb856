package lab

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"tendril.io/tendril/internal/lab"
)

// chain is the plugin before ours: what it is called in a list, and which addresses it gives.
type chain struct {
	plugin  map[string]any
	ranges  []map[string]string // one a family
	master  string              // the bridge, if there is one
	gateway []netip.Addr
}

// bridged has a network of its own, which no node's pod CIDR covers.
func bridged() chain {
	return chain{
		plugin: map[string]any{"type": "bridge", "bridge": "te-cni0", "isGateway": true},
		ranges: []map[string]string{{"subnet": "10.22.0.0/24"}, {"subnet": "fd22::/64"}}, master: "te-cni0",
		gateway: []netip.Addr{netip.MustParseAddr("10.22.0.1"), netip.MustParseAddr("fd22::1")},
	}
}

// pointToPoint takes the upper part of node1's pod CIDRs, as a cluster does whose nodes were routed before tendril came.
func pointToPoint() chain {
	return chain{
		plugin: map[string]any{"type": "ptp"},
		ranges: []map[string]string{
			{"subnet": "10.244.1.0/24", "rangeStart": "10.244.1.100"}, {"subnet": "fd44:0:0:1::/64", "rangeStart": "fd44:0:0:1::100"},
		},
		gateway: []netip.Addr{netip.MustParseAddr("10.244.1.1"), netip.MustParseAddr("fd44:0:0:1::1")},
	}
}

// plugins is the list: the plugin before, with an ipam that keeps its files in folder, and what stands behind it.
func (w chain) plugins(folder string, behind ...any) []any {
	first := map[string]any{"ipam": map[string]any{
		"type": "host-local", "dataDir": folder, "ranges": [][]map[string]string{{w.ranges[0]}, {w.ranges[1]}},
		"routes": []map[string]string{{"dst": "0.0.0.0/0"}, {"dst": "::/0"}},
	}}
	for key, value := range w.plugin {
		first[key] = value
	}
	return append([]any{first}, behind...)
}

// chainedCluster is a lab with a network whose devices another plugin makes.
type chainedCluster struct {
	*cluster
	chain
	network
	leases string // folder of host-local
}

func TestPodsOfTheBridgePluginAreJudged(t *testing.T) { testChained(t, lab.ModeNative, bridged()) }

func TestPodsOfThePointToPointPluginAreJudged(t *testing.T) {
	testChained(t, lab.ModeVXLAN, pointToPoint())
}

// testChained goes through what a pod can ask of the network, for pods whose devices and addresses are another plugin's.
func testChained(t *testing.T, mode lab.Mode, before chain) {
	buildPlugins(t)
	c := &chainedCluster{cluster: up(t, lab.Config{Mode: mode, Nodes: 2}), chain: before, leases: t.TempDir()}
	c.network = c.writeNetwork(t, "1.1.0", before.plugins(c.leases, c.tendrilPlugin(t, map[string]any{"capabilities": map[string]bool{"tendril": true}}))...)
	c.add(t, "node1", "near", "client")
	c.add(t, "node1", "stranger", "stranger")
	c.add(t, "node2", "far", "client")
	c.add(t, "node2", "far-stranger", "stranger")
	c.add(t, "node2", "web-2", "web")
	for name, app := range map[string]string{"web": "web", "peer": "client", "loner": "stranger"} {
		c.chained(t, name, app)
	}
	c.serve(t, "web")
	c.serve(t, "web-2")
	if _, err := c.StartNginx(t.Context(), c.Outside(), "outside", 80); err != nil {
		t.Fatal(err)
	}
	for _, step := range []struct {
		name string
		run  func(*chainedCluster, *testing.T)
	}{
		{"everybody reaches everybody", (*chainedCluster).testReach},
		{"policies allow some and deny others", (*chainedCluster).testPolicies},
		{"who is on the link without us is judged", (*chainedCluster).testUnmanaged},
		{"services lead to chained pods, and from them", (*chainedCluster).testServices},
		{"flows are recorded with names", (*chainedCluster).testRecords},
		{"a restart loses nothing and mends what was taken away", (*chainedCluster).testRestart},
		{"DEL leaves nothing", (*chainedCluster).testRemoval},
	} {
		t.Run(step.name, func(t *testing.T) { step.run(c, t) })
	}
}

// chained makes a container of the network, and its record as an operator would.
func (c *chainedCluster) chained(t *testing.T, name, app string) {
	t.Helper()
	place := c.container(t, name)
	c.apply(t, manifest(t, fmt.Sprintf("apiVersion: v1\nkind: Pod\nmetadata: {name: %s, namespace: %s, labels: {app: %s}}\nspec: {nodeName: node1, containers: [{name: main, image: none}]}\n",
		filepath.Base(place.Netns), namespace, app)))
	pod := &lab.Pod{PodSpec: lab.PodSpec{Node: "node1", Namespace: namespace, Name: filepath.Base(place.Netns)}, Place: place}
	pod.Addrs = resultAddrs(t, c.mustCNI(t, c.network, "add", place.Netns))
	c.mustCNI(t, c.network, "check", place.Netns)
	if e := c.endpoint(t, pod.Name); !slices.Equal(addrsOf(t, e), pod.Addrs) || len(pod.Addrs) != 2 || !strings.HasPrefix(e.GetDevice(), "veth") || !e.GetChained() {
		t.Errorf("the agent has %v, the runtime was told %v", e, pod.Addrs)
	}
	c.pods[name] = pod
}

func (c *chainedCluster) testReach(t *testing.T) {
	for _, from := range []string{"near", "peer", "loner", "far"} {
		eventually(t, from+" to know the way", time.Minute, func(ctx context.Context) error { // the store tells node2
			_, err := c.pods[from].Place.Fetch(ctx, c.pods["web"].Addr(4), 80)
			return err
		})
		c.answers(t, from, "web")
	}
	c.answers(t, "peer", "web-2")
	for _, addr := range lab.OutsideAddrs() {
		if answer, err := c.pods["peer"].Place.Fetch(t.Context(), addr, 80); err != nil || !slices.Contains(c.nodeAddrs(t, "node1"), answer.Sees) {
			t.Errorf("peer asks outside: %+v, %v; want it to see the node", answer, err)
		}
	}
	node := c.hosts(t)[0]
	if _, err := c.StartNginx(t.Context(), node, "node1", 8080); err != nil {
		t.Fatal(err)
	}
	for i, addr := range c.pods["web"].Addrs {
		eventually(t, "the node to ask web", time.Minute, func(ctx context.Context) error { // a new bridge's addresses are tentative at first
			_, err := node.Fetch(ctx, addr, 80)
			return err
		})
		for _, at := range []netip.Addr{c.gateway[i], c.nodeAddrs(t, "node1")[i]} {
			if answer, err := c.pods["peer"].Place.Fetch(t.Context(), at, 8080); err != nil || answer.Sees != c.pods["peer"].Addrs[i] {
				t.Errorf("peer asks the node at %s: %+v, %v", at, answer, err)
			}
		}
	}
}

func (c *chainedCluster) testPolicies(t *testing.T) {
	c.apply(t, example("web-from-client.yaml"))
	for _, from := range []string{"near", "peer", "far"} {
		c.answers(t, from, "web")
	}
	c.refuseAll(t, [][2]string{{"stranger", "web"}, {"loner", "web"}, {"far-stranger", "web"}, {"loner", "web-2"}})
	c.answers(t, "peer", "web-2")
	// The other direction, of a chained pod alone.
	lone := manifest(t, "apiVersion: networking.k8s.io/v1\nkind: NetworkPolicy\nmetadata: {name: peer-sends-nothing, namespace: shop}\n"+
		"spec: {podSelector: {matchLabels: {app: client}}, policyTypes: [Egress], egress: []}\n")
	c.apply(t, lone)
	c.refuseAll(t, [][2]string{{"peer", "web"}, {"peer", "web-2"}})
	if _, err := c.Delete(t.Context(), lone); err != nil {
		t.Fatal(err)
	}
	c.answers(t, "peer", "web")
}

// refuseAll wants no answer on any of the ways. They are waited for together: a denial shows in that nothing comes.
func (c *chainedCluster) refuseAll(t *testing.T, ways [][2]string) {
	t.Helper()
	var waiting sync.WaitGroup
	for _, way := range ways {
		waiting.Go(func() { c.refuses(t, way[0], way[1]) })
	}
	waiting.Wait()
}

// testUnmanaged has a container on the same bridge which our plugin never heard of, so that its packets come to pods over the bridge alone.
func (c *chainedCluster) testUnmanaged(t *testing.T) {
	if c.master == "" {
		return // nobody else is on a link of two ends
	}
	upper := c.chain // host-local keeps its books by the network's name
	upper.ranges = []map[string]string{{"subnet": "10.22.0.0/24", "rangeStart": "10.22.0.100"}, {"subnet": "fd22::/64", "rangeStart": "fd22::100"}}
	n := c.writeNetworkNamed(t, "bare", "1.1.0", upper.plugins(c.leases)...)
	place := c.container(t, "bare")
	addrs := resultAddrs(t, c.mustCNI(t, n, "add", place.Netns))
	defer c.mustCNI(t, n, "del", place.Netns)
	if _, err := c.StartNginx(t.Context(), place, "bare", 80); err != nil {
		t.Fatal(err)
	}
	for i, addr := range c.pods["web"].Addrs {
		if answer, err := place.Fetch(t.Context(), addr, 80); err == nil {
			t.Errorf("the container asks web at %s and is answered: %+v", addr, answer)
		}
		// peer is open: nothing selects its ingress, and it may send.
		if _, err := place.Exec(t.Context(), "ping", "-c", "1", "-W", "5", c.pods["peer"].Addrs[i].String()); err != nil {
			t.Errorf("the container asks peer: %v", err)
		}
		if answer, err := c.pods["peer"].Place.Fetch(t.Context(), addrs[i], 80); err != nil || answer.Sees != c.pods["peer"].Addrs[i] {
			t.Errorf("peer asks the container: %+v, %v", answer, err)
		}
	}
}

func (c *chainedCluster) testServices(t *testing.T) {
	c.offer(t, served{Name: "chained", Spec: "type: NodePort", NodePort: edgePort, Last: 7, Pods: []*lab.Pod{c.pods["web"]}})
	c.offer(t, served{Name: "other", Last: 8, Pods: []*lab.Pod{c.pods["web-2"]}})
	for i, addrs := range [][]string{{"10.96.1.7", "10.96.1.8"}, {"fd96::1:7", "fd96::1:8"}} {
		for _, client := range []lab.Place{c.pods["near"].Place, c.pods["peer"].Place, c.stray("peer"), c.pods["far"].Place, c.stray("far")} {
			for j, want := range []string{"web", "web-2"} {
				eventually(t, client.Name+" to ask "+addrs[j], time.Minute, func(ctx context.Context) error {
					answer, err := client.Fetch(ctx, netip.MustParseAddr(addrs[j]), 80)
					if err == nil && answer.Name != want {
						err = fmt.Errorf("%s answers", answer.Name)
					}
					return err
				})
			}
		}
		// Policy does not allow clients outside.
		if answer, err := c.Outside().Fetch(t.Context(), c.nodeAddrs(t, "node1")[i], edgePort); err == nil {
			t.Errorf("outside asks the node port and is answered: %+v", answer)
		}
	}
}

func (c *chainedCluster) testRecords(t *testing.T) {
	for verdict, from := range map[string]string{"dropped": c.pods["loner"].Name, "allowed": c.pods["peer"].Name} {
		out, err := c.CLI(t.Context(), "--node", "node1", "observe", "--verdict", verdict, "--from-pod", namespace+"/"+from)
		if err != nil || !strings.Contains(out, c.pods["web"].Name) || !strings.Contains(out, "web-from-client") && verdict == "allowed" {
			t.Errorf("%s flows of %s: %v\n%s", verdict, from, err, out)
		}
	}
	out, err := c.CLI(t.Context(), "ipam", "list", "--node", "node1")
	if err != nil || !strings.Contains(out, c.pods["web"].Addr(4).String()) || !strings.Contains(out, c.pods["web"].Addr(6).String()) {
		t.Errorf("addresses: %v\n%s", err, out)
	}
}

func (c *chainedCluster) testRestart(t *testing.T) {
	end := c.probe(t, c.pods["peer"].Place, lab.ProbeHTTP, netip.AddrPortFrom(c.pods["web"].Addr(6), 80))
	device := c.endpoint(t, c.pods["loner"].Name).GetDevice()
	node := c.hosts(t)[0]
	if _, err := node.Exec(t.Context(), "tc", "filter", "del", "dev", device, "egress"); err != nil {
		t.Fatal(err)
	}
	if _, err := c.cnitool(t.Context(), c.network, "check", c.pods["loner"].Place.Netns); err == nil || !strings.Contains(err.Error(), "lacks a program") {
		t.Errorf("CHECK without a program: %v", err)
	}
	if err := c.KillAgent(t.Context(), "node1", syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	if err := c.StartAgent(t.Context(), "node1"); err != nil {
		t.Fatal(err)
	}
	end()
	for _, name := range []string{"web", "peer", "loner"} {
		c.mustCNI(t, c.network, "check", c.pods[name].Place.Netns)
	}
	c.answers(t, "far", "web")
	c.answers(t, "peer", "web")
	c.refuses(t, "loner", "web")
}

func (c *chainedCluster) testRemoval(t *testing.T) {
	for _, name := range []string{"web", "peer", "loner"} {
		pod := c.pods[name]
		device := c.endpoint(t, pod.Name).GetDevice()
		c.mustCNI(t, c.network, "del", pod.Place.Netns)
		c.mustCNI(t, c.network, "del", pod.Place.Netns)
		if e := c.endpoint(t, pod.Name); e != nil {
			t.Errorf("after DEL the agent has %v", e)
		}
		if out, err := c.NodeExec(t.Context(), "node1", "ip", "link", "show", device); err == nil {
			t.Errorf("after DEL there is %s", out)
		}
	}
	leases, err := os.ReadDir(filepath.Join(c.leases, c.network.name))
	if err != nil {
		t.Fatal(err)
	}
	for _, lease := range leases {
		if _, err := netip.ParseAddr(lease.Name()); err == nil {
			t.Errorf("after DEL address %s is still given", lease.Name())
		}
	}
	if cached := c.cached(t); len(cached) > 0 {
		t.Errorf("after DEL there are %v", cached)
	}
	eventually(t, "the store to take note of the addresses' end", time.Minute, func(ctx context.Context) error {
		out, err := c.CLI(ctx, "ipam", "list", "--node", "node1")
		if err == nil && strings.Contains(out, "tendril-"+c.Name) && strings.Contains(out, "10.22.0.") {
			err = errors.New(out)
		}
		return err
	})
}

// A pod that was judged does not go on unjudged: not when its ADD fails behind the plugin before, and not when tendril leaves the node.
func TestChainedPodIsClosedWhereItCannotBeJudged(t *testing.T) {
	buildPlugins(t)
	w := bridged()
	w.ranges[0] = map[string]string{"subnet": "10.244.1.0/24", "rangeStart": "10.244.1.2", "rangeEnd": "10.244.1.2"} // the node's health address
	c := &chainedCluster{cluster: up(t, lab.Config{Nodes: 1}), chain: w, leases: t.TempDir()}
	c.network = c.writeNetwork(t, "1.1.0", w.plugins(c.leases, c.tendrilPlugin(t, nil))...)
	pod := c.container(t, "pod")
	_, err := c.cnitool(t.Context(), c.network, "add", pod.Netns)
	if err == nil || !strings.Contains(err.Error(), "10.244.1.2") || !strings.Contains(err.Error(), "used by health") {
		t.Errorf("ADD with the node's own address: %v", err)
	}
	c.mustCNI(t, c.network, "del", pod.Netns)

	other := &chainedCluster{cluster: c.cluster, chain: bridged(), leases: t.TempDir()}
	other.plugin["bridge"] = "te-cni1"
	other.network = c.writeNetworkNamed(t, "other", "1.1.0", other.plugins(other.leases, c.tendrilPlugin(t, nil))...)
	other.chained(t, "left", "web")
	left := c.pods["left"]
	node := c.hosts(t)[0]
	ping := func(ctx context.Context) error {
		_, err := node.Exec(ctx, "ping", "-c", "1", "-W", "2", left.Addr(4).String())
		return err
	}
	eventually(t, "the node to reach the pod", time.Minute, ping)
	device := c.endpoint(t, left.Name).GetDevice()
	if err := c.KillAgent(t.Context(), "node1", syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	file := filepath.Join("/run/tendril-lab", c.Name, "node1", "agent.json")
	if _, err := node.Exec(t.Context(), filepath.Join(c.BinDir, "tendril-agent"), "remove", "--config", file); err != nil {
		t.Fatal(err)
	}
	filters, err := node.Exec(t.Context(), "sh", "-c", "tc filter show dev "+device+" ingress; tc filter show dev "+device+" egress")
	if err != nil || strings.TrimSpace(filters) != "" {
		t.Errorf("programs left on %s: %s %v", device, filters, err)
	}
	if err := ping(t.Context()); err == nil {
		t.Error("a pod that was judged is reached without tendril")
	}
}
