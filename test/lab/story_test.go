package lab

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sync/errgroup"

	agentv1 "tendril.io/tendril/api/agent/v1"
	"tendril.io/tendril/internal/lab"
)

func TestTheStoryHoldsWithNativeRouting(t *testing.T) { tellStory(t, lab.ModeNative) }

func TestTheStoryHoldsWithVXLAN(t *testing.T) { tellStory(t, lab.ModeVXLAN) }

// tellStory goes through the steps of the demo, each in both families. The order matters: policies of one step are in
// force in the next.
func tellStory(t *testing.T, mode lab.Mode) {
	c := up(t, lab.Config{Mode: mode})
	for _, pod := range []struct{ node, name, app string }{
		{"node1", "web-1", "web"}, {"node2", "web-2", "web"}, {"node3", "web-3", "web"}, {"node2", "dns", "dns"},
		{"node1", "client", "client"}, {"node1", "stranger", "stranger"}, {"node1", "visitor", "visitor"},
		{"node2", "server", "server"},
	} {
		c.add(t, pod.node, pod.name, pod.app)
	}
	for _, name := range []string{"web-1", "web-2", "web-3"} {
		c.serve(t, name)
	}
	if _, err := c.StartNginx(t.Context(), c.Outside(), "outside", 80); err != nil {
		t.Fatal(err)
	}
	for _, step := range []struct {
		name string
		run  func(*cluster, *testing.T)
	}{
		{"pods reach each other", (*cluster).testReach},
		{"large transfers find no black hole", (*cluster).testBulk},
		{"policies allow one client and deny others", (*cluster).testPolicies},
		{"explain agrees with what happens", (*cluster).testExplain},
		{"a policy change ends an established connection", (*cluster).testEstablished},
		{"a service spreads over its backends", (*cluster).testService},
		{"UDP through a service", (*cluster).testUDPService},
		{"a removed backend disturbs nobody else", (*cluster).testRemovedBackend},
		{"outside sees the node", (*cluster).testMasquerade},
		{"the kernel has no rule and tracks no connection", (*cluster).testNoRules},
		{"killed agents lose nothing", (*cluster).testKill},
		{"a reload loses nothing", (*cluster).testReload},
		{"pods are instances of one template", (*cluster).testTemplates},
		{"bad input changes nothing", (*cluster).testBadInput},
	} {
		t.Run(step.name, func(t *testing.T) { step.run(c, t) })
	}
}

func (c *cluster) testReach(t *testing.T) {
	c.answers(t, "client", "web-1")
	c.answers(t, "client", "web-2")
	c.answers(t, "visitor", "web-3")
	c.answers(t, "client", "web-3")
	for _, node := range []string{"node1", "node2"} { // the node's own processes reach its pods and others'
		place, err := c.Node(node)
		if err != nil {
			t.Fatal(err)
		}
		for _, addr := range c.pods["web-2"].Addrs {
			if answer, err := place.Fetch(t.Context(), addr, 80); err != nil || answer.Name != "web-2" {
				t.Errorf("%s asks web-2 at %s: %+v, %v", node, addr, answer, err)
			}
		}
	}
}

// testBulk sends 50 MB of TCP each way and the largest datagrams that need no fragment, to another node.
func (c *cluster) testBulk(t *testing.T) {
	server := c.pods["server"]
	if _, err := c.StartIperf(t.Context(), server.Place); err != nil {
		t.Fatal(err)
	}
	status, err := c.Status(t.Context(), "node1")
	if err != nil {
		t.Fatal(err)
	}
	for _, addr := range server.Addrs {
		for _, direction := range [][]string{nil, {"-R"}} {
			report := c.iperf(t, append([]string{"-c", addr.String(), "-n", "50M"}, direction...)...)
			// The receiver's count misses what is under way when the sender is done.
			if report.End.Received.Bytes < 25e6 {
				t.Errorf("50 MB of TCP to %s %v: %.0f bytes arrived", addr, direction, report.End.Received.Bytes)
			}
		}
		headers := map[int]int{4: 28, 6: 48}[familyOf(addr)]
		size := fmt.Sprint(int(status.Mtu) - headers)
		before := c.fullBuffers(t, "server", familyOf(addr))
		report := c.iperf(t, "-u", "-c", addr.String(), "-l", size, "-b", "5M", "-t", "1")
		// A server that the machine did not let run for long has them in front of it: no network lost those.
		full := c.fullBuffers(t, "server", familyOf(addr)) - before
		if sum := report.End.Sum; sum.Lost > full || sum.Packets == 0 {
			t.Errorf("datagrams of %s bytes to %s: %d of %d lost, %d of them for the server's full buffer", size, addr, sum.Lost, sum.Packets, full)
		}
	}
}

// fullBuffers counts the datagrams that a pod's kernel dropped since its sockets' buffers were full.
func (c *cluster) fullBuffers(t *testing.T, pod string, family int) int {
	t.Helper()
	name := map[int]string{4: "UdpRcvbufErrors", 6: "Udp6RcvbufErrors"}[family]
	out, err := c.pods[pod].Exec(t.Context(), "nstat", "-asz", "--json", name)
	var report struct {
		Kernel map[string]int `json:"kernel"`
	}
	if parse := json.Unmarshal([]byte(out), &report); err != nil || parse != nil || len(report.Kernel) != 1 {
		t.Fatalf("nstat %s: %v, %v: %s", name, err, parse, out)
	}
	return report.Kernel[name]
}

// iperfReport is the part of iperf3's JSON that the tests look at.
type iperfReport struct {
	Error string `json:"error"`
	End   struct {
		Sum struct {
			Packets int `json:"packets"`
			Lost    int `json:"lost_packets"`
		} `json:"sum"`
		Received struct {
			Bytes float64 `json:"bytes"`
		} `json:"sum_received"`
	} `json:"end"`
}

// iperf runs an iperf3 client in the pod client, again while the server still is busy with the one before.
func (c *cluster) iperf(t *testing.T, args ...string) (report iperfReport) {
	t.Helper()
	eventually(t, "iperf3 "+strings.Join(args, " "), 20*time.Second, func(ctx context.Context) error {
		report = iperfReport{}
		out, err := c.pods["client"].Exec(ctx, append([]string{"iperf3", "-J", "--connect-timeout", "2000"}, args...)...)
		if parse := json.Unmarshal([]byte(out), &report); parse != nil {
			return errors.Join(err, parse)
		}
		if strings.Contains(report.Error, "busy") {
			return errors.New(report.Error)
		}
		if report.Error != "" || err != nil {
			t.Errorf("iperf3 %v: %s %v", args, report.Error, err)
		}
		return nil
	})
	return report
}

func (c *cluster) testPolicies(t *testing.T) {
	c.apply(t, example("web-from-client.yaml"), example("web-guard.yaml"))
	for _, web := range []string{"web-1", "web-2"} {
		c.answers(t, "client", web)
		c.refuses(t, "stranger", web)
		c.refuses(t, "visitor", web)
	}
	for _, want := range []struct{ from, verdict, rule string }{
		{"client", "forwarded", "NetworkPolicy/shop/web-from-client"},
		{"stranger", "dropped", "CiliumNetworkPolicy/shop/web-guard"},
		{"visitor", "dropped", "default-deny"},
	} {
		for _, addr := range c.pods[want.from].Addrs {
			request := &agentv1.ObserveRequest{FromPod: namespace + "/" + want.from, ToPod: namespace + "/web-2", Ip: addr.String()}
			err := c.WaitFlow(t.Context(), "node2", request, func(flow *agentv1.Flow) bool {
				return flow.Verdict == want.verdict && strings.Contains(flow.GetIngress().GetRuleName(), want.rule)
			})
			if err != nil {
				t.Errorf("%s to web-2 from %s, %s by %s: %v", want.from, addr, want.verdict, want.rule, err)
			}
		}
	}
}

func (c *cluster) testExplain(t *testing.T) {
	client, err := c.Agent("node2")
	if err != nil {
		t.Fatal(err)
	}
	for _, flow := range []struct {
		from, want, rule string
		port             uint32
	}{
		{"client", "allowed", "web-from-client", 80},
		{"client", "denied", "default-deny", 81},
		{"stranger", "denied", "web-guard", 80},
		{"visitor", "denied", "default-deny", 80},
	} {
		answer, err := client.Explain(t.Context(), &agentv1.ExplainRequest{
			From: namespace + "/" + flow.from, To: namespace + "/web-2", Port: flow.port, Protocol: 6})
		if err != nil {
			t.Fatal(err)
		}
		if answer.Verdict != flow.want || !strings.Contains(answer.String(), flow.rule) {
			t.Errorf("%s to web-2 port %d: %s, want %s by %s\n%s", flow.from, flow.port, answer.Verdict, flow.want, flow.rule, answer)
		}
	}
}

// testEstablished has a connection that one policy allows and a second one forbids.
func (c *cluster) testEstablished(t *testing.T) {
	deny := manifest(t, `
apiVersion: cilium.io/v2
kind: CiliumNetworkPolicy
metadata: {name: no-more-clients, namespace: shop}
spec:
  endpointSelector: {matchLabels: {app: web}}
  ingressDeny:
    - fromEndpoints: [{matchLabels: {app: client}}]
`)
	for _, addr := range c.pods["web-2"].Addrs {
		process, err := c.StartProbe(t.Context(), c.pods["client"].Place, lab.ProbeHTTP, netip.AddrPortFrom(addr, 80), 5*time.Millisecond)
		if err != nil {
			t.Fatal(err)
		}
		time.Sleep(300 * time.Millisecond)
		c.apply(t, deny)
		time.Sleep(300 * time.Millisecond)
		result, err := lab.EndProbe(t.Context(), process)
		if err != nil {
			t.Fatal(err)
		}
		if result.Answered == 0 || result.Lost < 20 {
			t.Errorf("a connection to %s that a policy forbids half-way: %+v, want answers first and losses then", addr, result)
		}
		if _, err := c.Delete(t.Context(), deny); err != nil {
			t.Fatal(err)
		}
	}
	c.answers(t, "client", "web-2")
}

// serviceAddrs are those of the example manifests.
func serviceAddrs(name string) []netip.Addr {
	return map[string][]netip.Addr{
		"web": {netip.MustParseAddr("10.96.0.80"), netip.MustParseAddr("fd96::80")},
		"dns": {netip.MustParseAddr("10.96.0.53"), netip.MustParseAddr("fd96::53")},
	}[name]
}

func (c *cluster) testService(t *testing.T) {
	c.apply(t, example("web-service.yaml"), example("dns-service.yaml"))
	node, err := c.Node("node1")
	if err != nil {
		t.Fatal(err)
	}
	stray := c.pods["client"].Place // its cgroup is not the node's: translated per packet, not at the socket
	stray.Name, stray.Cgroup = "client outside the node's cgroup", c.Outside().Cgroup
	for _, place := range []lab.Place{c.pods["client"].Place, node, stray} {
		for _, addr := range serviceAddrs("web") {
			counts, err := place.FetchMany(t.Context(), addr, 80, 40)
			if err != nil {
				t.Errorf("%s: %v", place.Name, err)
			} else if len(counts) != 3 {
				t.Errorf("%s: 40 connections to %s were answered by %v, want three servers", place.Name, addr, counts)
			}
		}
	}
	for _, addr := range serviceAddrs("web") {
		if answer, err := c.pods["stranger"].Place.Fetch(t.Context(), addr, 80); err == nil {
			t.Errorf("a service lets a stranger past the policy: %+v", answer)
		}
	}
}

func (c *cluster) testUDPService(t *testing.T) {
	if _, err := c.StartDNS(t.Context(), c.pods["dns"].Place, "web.shop=10.96.0.80,fd96::80"); err != nil {
		t.Fatal(err)
	}
	stray := c.pods["client"].Place
	stray.Name, stray.Cgroup = "client outside the node's cgroup", c.Outside().Cgroup
	for _, place := range []lab.Place{c.pods["client"].Place, c.pods["web-2"].Place, stray} {
		for _, addr := range serviceAddrs("dns") {
			out, err := place.Exec(t.Context(), "dig", "+short", "+time=2", "+tries=1", "@"+addr.String(), "web.shop", "AAAA")
			if err != nil || strings.TrimSpace(out) != "fd96::80" {
				t.Errorf("%s: dig @%s: %q, %v", place.Name, addr, out, err)
			}
		}
	}
}

func (c *cluster) testRemovedBackend(t *testing.T) {
	var kept []*lab.Process
	for i := range 10 {
		target := netip.AddrPortFrom(serviceAddrs("web")[i%2], 80)
		process, err := c.StartProbe(t.Context(), c.pods["client"].Place, lab.ProbeHTTP, target, 10*time.Millisecond)
		if err != nil {
			t.Fatal(err)
		}
		kept = append(kept, process)
	}
	time.Sleep(500 * time.Millisecond)
	c.apply(t, example(filepath.Join("next", "web-two-backends.yaml")))
	for _, addr := range serviceAddrs("web") {
		counts, err := c.pods["client"].Place.FetchMany(t.Context(), addr, 80, 30)
		if err != nil || counts["web-3"] > 0 || len(counts) != 2 {
			t.Errorf("new connections to %s: %v, %v, want none at web-3", addr, counts, err)
		}
	}
	siblings := 0
	for _, process := range kept {
		result, err := lab.EndProbe(t.Context(), process)
		if err != nil {
			t.Fatal(err)
		}
		if result.By["web-3"] > 0 {
			continue
		}
		siblings++
		if !result.Clean() {
			t.Errorf("a kept connection to a sibling: %+v, want nothing lost", result)
		}
	}
	if siblings == 0 {
		t.Error("all ten kept connections were at web-3")
	}
}

func (c *cluster) testMasquerade(t *testing.T) {
	status, err := c.Status(t.Context(), "node1")
	if err != nil {
		t.Fatal(err)
	}
	client, err := c.Agent("node1")
	if err != nil {
		t.Fatal(err)
	}
	for _, addr := range lab.OutsideAddrs() {
		end := c.probe(t, c.pods["client"].Place, lab.ProbeHTTP, netip.AddrPortFrom(addr, 80))
		answer, err := c.pods["client"].Place.Fetch(t.Context(), addr, 80)
		if err != nil || answer.Name != "outside" || !slices.Contains(status.Addresses, answer.Sees.String()) {
			t.Errorf("client asks %s: %+v, %v, want it to see one of %v", addr, answer, err, status.Addresses)
		}
		eventually(t, "the mapping", 3*time.Second, func(ctx context.Context) error {
			list, err := client.ListMappings(ctx, &agentv1.ListMappingsRequest{})
			for _, mapping := range list.GetMappings() {
				if mapping.RemoteIp == addr.String() && mapping.PodIp == c.pods["client"].Addr(familyOf(addr)).String() {
					return nil
				}
			}
			return errors.Join(err, fmt.Errorf("not among %v", list.GetMappings()))
		})
		end()
	}
	for _, addr := range c.pods["web-2"].Addrs { // between pods nothing is masqueraded
		answer, err := c.pods["client"].Place.Fetch(t.Context(), addr, 80)
		if err != nil || answer.Sees != c.pods["client"].Addr(familyOf(addr)) {
			t.Errorf("client asks web-2: %+v, %v, want the pod's own address seen", answer, err)
		}
	}
}

// underLoad disturbs while probes run in both families, kept and new connections, near and far and through the service.
func (c *cluster) underLoad(t *testing.T, disturb func(node string) error) {
	t.Helper()
	client := c.pods["client"].Place
	var ends []func()
	for _, addr := range c.pods["server"].Addrs {
		for _, kind := range []lab.ProbeKind{lab.ProbeUDP, lab.ProbeTCP, lab.ProbeConnect} {
			ends = append(ends, c.probe(t, client, kind, netip.AddrPortFrom(addr, 7)))
		}
	}
	ends = append(ends, c.probe(t, client, lab.ProbeHTTP, netip.AddrPortFrom(serviceAddrs("web")[0], 80)))
	ends = append(ends, c.probe(t, client, lab.ProbeHTTP, netip.AddrPortFrom(lab.OutsideAddrs()[0], 80)))
	time.Sleep(300 * time.Millisecond)
	var group errgroup.Group
	for _, node := range []string{"node1", "node2"} {
		group.Go(func() error { return disturb(node) })
	}
	if err := group.Wait(); err != nil {
		t.Error(err)
	}
	time.Sleep(300 * time.Millisecond)
	for _, end := range ends {
		end()
	}
}

func (c *cluster) testKill(t *testing.T) {
	if _, err := c.StartEcho(t.Context(), c.pods["server"].Place, 7); err != nil {
		t.Fatal(err)
	}
	c.underLoad(t, func(node string) error {
		for _, signal := range []syscall.Signal{syscall.SIGKILL, syscall.SIGTERM} {
			if err := c.KillAgent(t.Context(), node, signal); err != nil {
				return err
			}
			time.Sleep(300 * time.Millisecond)
			if err := c.StartAgent(t.Context(), node); err != nil {
				return err
			}
		}
		return nil
	})
	if err := c.WaitConverged(t.Context(), 10*time.Second); err != nil {
		t.Fatal(err)
	}
	c.answers(t, "client", "web-2") // policies are still in force, in both directions
	c.refuses(t, "stranger", "web-2")
}

func (c *cluster) testReload(t *testing.T) {
	c.underLoad(t, func(node string) error {
		client, err := c.Agent(node)
		if err != nil {
			return err
		}
		var last uint32
		for range 3 {
			answer, err := client.Reload(t.Context(), &agentv1.ReloadRequest{})
			if err != nil {
				return err
			}
			if answer.DatapathVersion <= last {
				return fmt.Errorf("%s: datapath version %d after %d", node, answer.DatapathVersion, last)
			}
			last = answer.DatapathVersion
		}
		return nil
	})
	c.refuses(t, "stranger", "web-2")
}

func (c *cluster) testTemplates(t *testing.T) {
	const pods = 20
	var group errgroup.Group
	made := make([]*lab.Pod, pods)
	for i := range pods {
		group.Go(func() (err error) {
			made[i], err = c.AddPod(t.Context(), lab.PodSpec{Node: "node3", Namespace: namespace, Name: fmt.Sprintf("many-%d", i)})
			return err
		})
	}
	if err := group.Wait(); err != nil {
		t.Fatal(err)
	}
	count := func(ctx context.Context) int {
		client, err := c.Agent("node3")
		if err != nil {
			t.Fatal(err)
		}
		list, err := client.ListTemplates(ctx, &agentv1.ListTemplatesRequest{})
		if err != nil {
			t.Fatal(err)
		}
		most := 0
		for _, template := range list.Templates {
			most = max(most, len(template.Instances))
		}
		return most
	}
	if got := count(t.Context()); got < pods {
		t.Errorf("the largest template has %d instances, want %d pods and more", got, pods)
	}
	if answer, err := made[pods-1].Place.Fetch(t.Context(), lab.OutsideAddrs()[0], 80); err != nil {
		t.Errorf("the last of the pods asks outside: %+v, %v", answer, err)
	}
	before := count(t.Context())
	for _, pod := range made {
		group.Go(func() error { return c.RemovePod(t.Context(), pod) })
	}
	if err := group.Wait(); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the instances to go with their pods", 5*time.Second, func(ctx context.Context) error {
		if got := count(ctx); got != before-pods {
			return fmt.Errorf("after %d pods were removed the template has %d instances, had %d", pods, got, before)
		}
		return nil
	})
}

// testBadInput wants errors that name the object and the field, and a cluster that goes on as before.
func (c *cluster) testBadInput(t *testing.T) {
	before, err := c.Status(t.Context(), "node1")
	if err != nil {
		t.Fatal(err)
	}
	for text, want := range map[string]string{
		"{":                              "manifest.yaml",
		"apiVersion: v1\nkind: Nonsense": "Nonsense",
		"apiVersion: networking.k8s.io/v1\nkind: NetworkPolicy\nmetadata: {name: a, namespace: shop}\nspec: {podSelectr: {}}":                     "podSelectr",
		"apiVersion: cilium.io/v2\nkind: CiliumNetworkPolicy\nmetadata: {name: a, namespace: shop}\nspec: {ingress: [{fromCIDR: [10.0.0.0/33]}]}": "10.0.0.0/33",
	} {
		if _, err := c.Apply(t.Context(), manifest(t, text)); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("apply %q: %v, want an error about %s", text, err, want)
		}
	}
	after, err := c.Status(t.Context(), "node1")
	if err != nil || after.PolicyRevisionWanted != before.PolicyRevisionWanted {
		t.Errorf("bad manifests changed the policy revision from %d to %d, %v", before.PolicyRevisionWanted, after.GetPolicyRevisionWanted(), err)
	}
	for config, want := range map[string]string{"{": "JSON", `{"node":"x","mode":"ipsec"}`: "ipsec", `{"nodee":"x"}`: "nodee"} {
		out, err := exec.Command(filepath.Join(c.BinDir, "tendril-agent"), "--config", manifest(t, config)).CombinedOutput()
		if err == nil || !strings.Contains(string(out), want) && !strings.Contains(string(out), "configuration") {
			t.Errorf("agent with configuration %q: %v, %q, want an error about %s", config, err, out, want)
		}
	}
	c.answers(t, "client", "web-2")
	c.refuses(t, "stranger", "web-2")
}
