package node

import (
	"errors"
	"log/slog"
	"net/netip"
	"testing"

	"github.com/google/go-cmp/cmp"

	"tendril.io/tendril/bpf"
	"tendril.io/tendril/internal/egress"
	"tendril.io/tendril/internal/policy"
	"tendril.io/tendril/internal/table"
)

// egressFake is a kernel that remembers, and nodes that answer or not.
type egressFake struct {
	pods     map[netip.Addr]uint32
	gateways map[uint32]bpf.Gateway
	fails    error
	silent   map[netip.Addr]bool
	asked    []netip.Addr
}

func (f *egressFake) GatewaySets(pods map[netip.Addr]uint32, _ []egress.Route, _ bool) error {
	for addr, set := range pods {
		if f.fails == nil {
			f.pods[addr] = set
		}
	}
	return f.fails
}

func (f *egressFake) SetGateways(rows map[uint32]bpf.Gateway, gone []uint32) error {
	for number, row := range rows {
		f.gateways[number] = row
	}
	for _, number := range gone {
		delete(f.gateways, number)
	}
	return nil
}

func (f *egressFake) PruneGateways(map[netip.Addr]uint32, map[uint32]bool) error { return nil }

func (f *egressFake) Ask(addr netip.Addr) error {
	f.asked = append(f.asked, addr)
	return nil
}

func (f *egressFake) Answered() (answers []netip.Addr) {
	for _, addr := range f.asked {
		if !f.silent[addr] {
			answers = append(answers, addr)
		}
	}
	f.asked = nil
	return answers
}

// newEgress is node n1 with a pod that the object x selects, whose gateways are n2, n3 and n1 itself.
func newEgress(t *testing.T) (*egressGateways, *egressFake) {
	t.Helper()
	fake := &egressFake{pods: map[netip.Addr]uint32{}, gateways: map[uint32]bpf.Gateway{}, silent: map[netip.Addr]bool{}}
	e := &egressGateways{
		self: "n1", kernel: fake, ping: fake, log: slog.New(slog.DiscardHandler), plan: egress.New(),
		number: func(node string) uint32 { return uint32(node[1] - '0') },
		health: map[string]*egressHealth{}, rows: map[uint32]bpf.Gateway{},
	}
	e.objectChanged(&table.EgressGateway{Name: "x", Destinations: []netip.Prefix{netip.MustParsePrefix("203.0.113.0/24")}}, false)
	e.setPod(netip.MustParsePrefix("10.1.0.2/32"), policy.AddressFact{
		Workload: &policy.Workload{Namespace: "shop"}, Flags: uint32(bpf.AddressFlagLocalPod),
	}, true)
	e.nodes = map[string][]egressNode{"x": {
		{name: "n2", probe: netip.MustParseAddr("192.0.2.2"), alive: true, addr4: netip.MustParseAddr("192.0.2.2")},
		{name: "n3", probe: netip.MustParseAddr("192.0.2.3"), alive: true, addr4: netip.MustParseAddr("192.0.2.3"), addr6: netip.MustParseAddr("2001:db8::3")},
	}}
	if err := e.publish(); err != nil {
		t.Fatal(err)
	}
	return e, fake
}

// shares counts the slots of each node of x in a family.
func (f *egressFake) shares(e *egressGateways, is4 bool) map[uint32]int {
	row, shares := f.gateways[e.plan.Gateway("x", is4)], map[uint32]int{}
	for _, node := range row.Slots[:row.Count] {
		shares[node]++
	}
	return shares
}

// rounds probes and writes n times.
func rounds(t *testing.T, e *egressGateways, n int) {
	t.Helper()
	for range n {
		e.probe()
		if err := e.write(); err != nil {
			t.Fatal(err)
		}
	}
}

func TestAGatewayIsLeftAfterThreeQuestionsAndBackWhenItsAgentIs(t *testing.T) {
	e, fake := newEgress(t)
	want := func(when string, wanted4, wanted6 map[uint32]int) {
		t.Helper()
		if diff := cmp.Diff([]map[uint32]int{wanted4, wanted6}, []map[uint32]int{fake.shares(e, true), fake.shares(e, false)}); diff != "" {
			t.Errorf("%s: slots of IPv4 and IPv6 (-want +got):\n%s", when, diff)
		}
	}
	rounds(t, e, 2)
	want("both answer, one has no IPv6", map[uint32]int{2: 32, 3: 32}, map[uint32]int{3: 64})
	fake.silent[netip.MustParseAddr("192.0.2.3")] = true
	rounds(t, e, egressMissed-1)
	want("two questions missed", map[uint32]int{2: 32, 3: 32}, map[uint32]int{3: 64})
	rounds(t, e, 1)
	want("three missed", map[uint32]int{2: 64}, map[uint32]int{})
	e.nodes["x"][1].alive = false
	fake.silent = map[netip.Addr]bool{}
	rounds(t, e, 2)
	want("it answers, but its agent has no lease", map[uint32]int{2: 64}, map[uint32]int{})
	e.nodes["x"][1].alive = true
	rounds(t, e, 1)
	want("it is back", map[uint32]int{2: 32, 3: 32}, map[uint32]int{3: 64})
	e.nodes["x"][1].alive = false
	rounds(t, e, 5)
	want("its agent is away, its kernel answers", map[uint32]int{2: 32, 3: 32}, map[uint32]int{3: 64})
}

func TestANodeAsksNobodyWithoutSelectedPods(t *testing.T) {
	e, fake := newEgress(t)
	if !e.probe() || len(fake.asked) != 2 {
		t.Errorf("with a selected pod %v are asked, want both gateways", fake.asked)
	}
	e.setPod(netip.MustParsePrefix("10.1.0.2/32"), policy.AddressFact{}, false)
	if err := e.publish(); err != nil {
		t.Fatal(err)
	}
	fake.asked = nil
	if e.probe() || len(fake.asked) != 0 {
		t.Errorf("without one %v are asked", fake.asked)
	}
}

func TestWhatCouldNotBeWrittenIsWrittenTheNextTime(t *testing.T) {
	e, fake := newEgress(t)
	late := netip.MustParseAddr("10.1.0.3")
	fake.fails = errors.New("no room")
	e.setPod(netip.PrefixFrom(late, 32), policy.AddressFact{Workload: &policy.Workload{Namespace: "shop"}}, true)
	if err := e.publish(); err == nil || fake.pods[late] != 0 {
		t.Errorf("%v, pod's set %d: want the error, and nothing written", err, fake.pods[late])
	}
	fake.fails = nil
	if err := e.publish(); err != nil || fake.pods[late] == 0 {
		t.Errorf("%v, pod's set %d: want it written", err, fake.pods[late])
	}
	e.setPod(netip.PrefixFrom(late, 32), policy.AddressFact{}, false)
	fake.fails = errors.New("no")
	if err := e.publish(); err == nil {
		t.Error("the removal that failed was not told")
	}
	fake.fails = nil
	if err := e.publish(); err != nil || fake.pods[late] != 0 {
		t.Errorf("%v, pod's set %d: want it gone", err, fake.pods[late])
	}
}
