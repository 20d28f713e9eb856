package node

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	agentv1 "tendril.io/tendril/api/agent/v1"
	"tendril.io/tendril/bpf"
	"tendril.io/tendril/internal/flow"
	"tendril.io/tendril/internal/table"
)

// street is web on this node, whom role=client may ask, and three pods of another node that ask it.
func street(t *testing.T) (*node1, *api) {
	t.Helper()
	n := startWeb(t)
	insert(n, n.tables.Nodes, &table.Node{Name: "node2", Addresses: addrs("172.30.0.2"), PodCIDRs: []netip.Prefix{netip.MustParsePrefix("10.244.2.0/24")}})
	for i, pod := range []string{"client", "stranger", "visitor"} {
		n.labelled(pod, "node2", map[string]string{"role": pod})
		insert(n, n.tables.IPs, &table.IP{Node: "node2", Addr: netip.AddrFrom4([4]byte{10, 244, 2, byte(9 + i)}), PodUID: "uid-" + pod, Namespace: "shop", Pod: pod})
	}
	eventually(t, "all addresses are known", func() bool {
		known := false
		n.datapath.with(func() { _, known = n.datapath.kernel.Rows[netip.MustParsePrefix("10.244.2.11/32")] })
		return known
	})
	s := apiOf(t, n)
	s.a.flows = flow.NewRing(64)
	return n, s
}

// packet is an event of TCP from one end to the other; edit says what is unusual.
func packet(source, destination string, edit func(*bpf.Event)) bpf.Event {
	from, to := netip.MustParseAddrPort(source), netip.MustParseAddrPort(destination)
	e := bpf.Event{
		Source: bpf.AddressOf(from.Addr()), SourcePort: bpf.NetPort(from.Port()), Destination: bpf.AddressOf(to.Addr()),
		DestinationPort: bpf.NetPort(to.Port()), Protocol: 6, Kind: bpf.EventFlowNew, Reason: bpf.ReasonForwarded, TCPFlags: 2,
		EgressRule: uint32(bpf.RuleOutsideScope), IngressRule: 64, EgressAction: bpf.ActionAllow, IngressAction: bpf.ActionAllow, SourcePeer: 100, DestinationPeer: 101,
	}
	if edit != nil {
		edit(&e)
	}
	return e
}

func dropped(e *bpf.Event) {
	e.Kind, e.Reason, e.IngressAction, e.IngressRule = bpf.EventDrop, bpf.DropPolicyDefault, bpf.ActionDeny, uint32(bpf.RuleDefaultDeny)
}

// toStrangers is the policy web for strangers instead of clients.
var toStrangers = &agentv1.PolicyChange{Kind: "NetworkPolicy", Namespace: "shop", Name: "web", Object: []byte(strings.ReplaceAll(allowClients, "client", "stranger")), Source: "new.yaml"}

func TestRecordedFlowsThatAPolicyWouldChangeAreListed(t *testing.T) {
	_, s := street(t)
	for i, e := range []bpf.Event{
		packet("10.244.2.9:40000", "10.244.1.5:80", nil),
		packet("10.244.2.9:40001", "10.244.1.5:80", nil),
		packet("10.244.2.9:40001", "10.244.1.5:80", func(e *bpf.Event) { e.Kind = bpf.EventFlowEnd }),
		packet("10.244.2.10:40000", "10.244.1.5:80", dropped),
		packet("10.244.2.11:40000", "10.244.1.5:80", dropped),
		packet("10.244.2.10:40000", "10.244.1.5:81", dropped),
		// An answer that is dropped is no flow of its own; one of a connection that nobody knows has no direction.
		packet("10.244.1.5:80", "10.244.2.9:40000", func(e *bpf.Event) { dropped(e); e.TCPFlags = 16 }),
		packet("10.244.1.5:80", "10.244.2.11:5", func(e *bpf.Event) { dropped(e); e.TCPFlags = 16 }),
		// Policy had no say in these.
		packet("10.244.2.9:40000", "10.244.1.5:80", func(e *bpf.Event) { e.Kind, e.Reason, e.IngressRule = bpf.EventDrop, bpf.DropSpoofedSource, 0 }),
		packet("10.244.1.5:7", "10.244.1.5:80", func(e *bpf.Event) { e.EgressRule, e.IngressRule = uint32(bpf.RuleSelf), uint32(bpf.RuleSelf) }),
		// The node has an endpoint in records, whether or not policies judge it.
		packet("172.30.0.1:7", "10.244.1.5:80", func(e *bpf.Event) {
			e.SourceEndpoint, e.IngressRule = uint32(bpf.EndpointHost), uint32(bpf.RuleLocalHost)
		}),
		// Nobody is there any more.
		packet("10.244.2.99:7", "10.244.1.5:80", nil),
		packet("10.244.2.9:7", "10.244.1.5:90", func(e *bpf.Event) { e.DestinationEndpoint = 77 }),
	} {
		e.Time = uint64(i + 1)
		s.a.flows.Store([]bpf.Event{e})
	}
	request := &agentv1.SimulateRequest{Changes: []*agentv1.PolicyChange{toStrangers}}
	reply, err := s.Simulate(t.Context(), request)
	if err != nil {
		t.Fatal(err)
	}
	want := []string{
		"shop/stranger -> shop/web 80 x1: denied by builtin/default-deny, then allowed by NetworkPolicy/shop/web spec.ingress[0] new.yaml",
		"shop/client -> shop/web 80 x2: allowed by NetworkPolicy/shop/web spec.ingress[0], then denied by builtin/default-deny",
	}
	if diff := cmp.Diff(want, sentences(reply)); diff != "" {
		t.Errorf("(-want +got)\n%s", diff)
	}
	got := []uint64{reply.GetRecords(), reply.GetReplayed(), reply.GetChanged(), reply.GetDeparted(), reply.GetUnjudged(), reply.GetLost()}
	if want := []uint64{13, 5, 2, 2, 3, 0}; !slices.Equal(got, want) {
		t.Errorf("records, replayed, changed, departed, unjudged, lost: %v, want %v", got, want)
	}
	if p := reply.GetPolicies()[0]; p.GetChange() != "replaced" || p.GetEndpoints() != 1 {
		t.Errorf("policy: %v, want replaced, of one endpoint", p)
	}
	request.Unchanged = true
	if reply, err = s.Simulate(t.Context(), request); err != nil || len(reply.GetFlows()) != 5 {
		t.Errorf("%v, %v: want the flows that stay as well", reply.GetFlows(), err)
	}
	request.SinceUnixNano = s.a.decoder().BootUnixNano + 1e15
	if reply, err = s.Simulate(t.Context(), request); err != nil || reply.GetRecords() != 0 || len(reply.GetFlows()) != 0 {
		t.Errorf("%v, %v: want no record", reply, err)
	}
}

// sentences says what would change.
func sentences(reply *agentv1.SimulateResponse) (out []string) {
	by := func(v *agentv1.SimulatedVerdict) string {
		return strings.TrimSpace(v.GetVerdict() + " by " + v.GetIngress().GetRuleName() + " " + strings.TrimSpace(v.GetIngress().GetPlace()+" "+v.GetIngress().GetSource()))
	}
	for _, f := range reply.GetFlows() {
		out = append(out, fmt.Sprintf("%s/%s -> %s/%s %d x%d: %s, then %s", f.GetSource().GetNamespace(), f.GetSource().GetPod(),
			f.GetDestination().GetNamespace(), f.GetDestination().GetPod(), f.GetDestination().GetPort(), f.GetCount(), by(f.GetNow()), by(f.GetThen())))
	}
	return out
}

func TestASimulationTouchesNeitherEngineNorKernel(t *testing.T) {
	n, s := street(t)
	s.a.flows.Store([]bpf.Event{packet("10.244.2.10:40000", "10.244.1.5:80", dropped)})
	published := 0
	n.datapath.with(func() { published = n.datapath.published })
	for _, allPairs := range []bool{false, true} {
		if _, err := s.Simulate(t.Context(), &agentv1.SimulateRequest{Changes: []*agentv1.PolicyChange{toStrangers}, AllPairs: allPairs}); err != nil {
			t.Fatal(err)
		}
	}
	if got := n.datapath.judge(1, "10.244.2.10", 80); got != bpf.ActionDeny {
		t.Errorf("the stranger: %v, want still denied", got)
	}
	n.datapath.with(func() {
		if n.datapath.published != published {
			t.Errorf("%d deltas were published", n.datapath.published-published)
		}
	})
}

func TestWhatWouldBeRefusedIsNotSimulated(t *testing.T) {
	_, s := street(t)
	wrong := &agentv1.PolicyChange{Kind: "NetworkPolicy", Namespace: "shop", Name: "a", Object: []byte(`{"apiVersion":"networking.k8s.io/v1","kind":"NetworkPolicy","metadata":{"namespace":"shop","name":"a"},"spec":{"podSelector":{},"ingress":[{"ports":[{"port":99999}]}]}}`)}
	other := &agentv1.PolicyChange{Kind: "NetworkPolicy", Namespace: "shop", Name: "b", Object: toStrangers.Object}
	for _, allPairs := range []bool{false, true} {
		_, err := s.Simulate(t.Context(), &agentv1.SimulateRequest{Changes: []*agentv1.PolicyChange{wrong, other}, AllPairs: allPairs})
		if status.Code(err) != codes.InvalidArgument {
			t.Errorf("%v, want a refusal", err)
		}
		for _, want := range []string{"node node1: nothing was simulated", "spec.ingress[0].ports[0].port", "NetworkPolicy/shop/b: the object calls itself NetworkPolicy/shop/web"} {
			if err == nil || !strings.Contains(err.Error(), want) {
				t.Errorf("%v, want %q among it", err, want)
			}
		}
		_, err = s.Simulate(t.Context(), &agentv1.SimulateRequest{Changes: []*agentv1.PolicyChange{{Kind: "NetworkPolicy", Namespace: "shop", Name: "none"}}, AllPairs: allPairs})
		if status.Code(err) != codes.InvalidArgument || !strings.Contains(err.Error(), "there is none to delete") {
			t.Errorf("%v, want a refusal to delete what is not there", err)
		}
	}
}

// All pods of the cluster are asked about, also those of other nodes among each other.
func TestPairsAreThoseOfTheWholeCluster(t *testing.T) {
	n, s := street(t)
	n.labelled("far-web", "node2", map[string]string{"app": "web"})
	insert(n, n.tables.IPs, &table.IP{Node: "node2", Addr: netip.MustParseAddr("10.244.2.20"), PodUID: "uid-far-web", Namespace: "shop", Pod: "far-web"})
	reply, err := s.Simulate(t.Context(), &agentv1.SimulateRequest{Changes: []*agentv1.PolicyChange{toStrangers}, AllPairs: true})
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	for _, p := range reply.GetPairs() {
		got = append(got, fmt.Sprintf("%v -> %v at %s: %s, then %s", reply.GetCrowds()[p.GetFrom()].GetMembers(), reply.GetCrowds()[p.GetTo()].GetMembers(),
			p.GetPortsText(), p.GetNow().GetVerdict(), p.GetThen().GetVerdict()))
	}
	want := []string{
		"[shop/client] -> [shop/far-web shop/web] at 80/TCP: allowed, then denied",
		"[shop/stranger] -> [shop/far-web shop/web] at 80/TCP: denied, then allowed",
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("(-want +got)\n%s", diff)
	}
	if reply.GetChanged() != 4 || reply.GetPods() != 5 {
		t.Errorf("%d pairs of %d pods, want 4 of 5", reply.GetChanged(), reply.GetPods())
	}
	kinds := map[string]int{}
	for _, c := range reply.GetCrowds() {
		kinds[c.GetKind()] += len(c.GetMembers())
	}
	if want := map[string]int{"pods": 5, "own node": 2, "other nodes": 2, "world": 2}; !cmp.Equal(kinds, want) {
		t.Errorf("crowds %v, want %v", kinds, want)
	}
}
