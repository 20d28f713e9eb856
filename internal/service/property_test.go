package service

import (
	"fmt"
	"maps"
	"math"
	"math/rand/v2"
	"net/netip"
	"slices"
	"testing"

	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"

	"tendril.io/tendril/internal/policy"
	"tendril.io/tendril/internal/table"
	"tendril.io/tendril/internal/testkit"
)

func prefix(text string) netip.Prefix { return netip.MustParsePrefix(text) }

func sameRow(x, y BackendRow) bool { return x == y }

// drawService draws a service out of few names and addresses, so that services meet.
func drawService(t *rapid.T) table.Service {
	pick := func(label string, from ...string) []netip.Addr {
		return addrs(rapid.SliceOfNDistinct(rapid.SampledFrom(from), 0, len(from), rapid.ID).Draw(t, label)...)
	}
	s := table.Service{
		Namespace: "default", Name: rapid.SampledFrom([]string{"a", "b", "c"}).Draw(t, "name"),
		Type:            rapid.SampledFrom([]string{"ClusterIP", "ClusterIP", "ExternalName"}).Draw(t, "type"),
		ClusterIPs:      pick("clusterIPs", "10.96.0.1", "10.96.0.2", "fd00:96::1"),
		ExternalIPs:     pick("externalIPs", "192.0.2.1", "10.96.0.2"),
		AffinitySeconds: rapid.SampledFrom([]uint32{0, 60}).Draw(t, "affinity"),
		InternalLocal:   rapid.Bool().Draw(t, "internalLocal"), ExternalLocal: rapid.Bool().Draw(t, "externalLocal"),
		PublishNotReady: rapid.Bool().Draw(t, "publishNotReady"),
		Algorithm:       rapid.SampledFrom([]string{"random", AlgorithmMaglev}).Draw(t, "algorithm"),
		Forwarding:      rapid.SampledFrom([]string{"", "dsr", "snat"}).Draw(t, "forwarding"),
		LoadBalancerIPs: pick("loadBalancerIPs", "192.0.2.1", "192.0.2.2", "2001:db8::2"),
	}
	for _, text := range rapid.SliceOfN(rapid.SampledFrom([]string{"198.51.100.0/24", "0.0.0.0/0", "2001:db8::/32"}), 0, 2).Draw(t, "ranges") {
		s.SourceRanges = append(s.SourceRanges, prefix(text))
	}
	for range rapid.IntRange(0, 3).Draw(t, "ports") {
		s.Ports = append(s.Ports, table.ServicePort{
			Name:     rapid.SampledFrom([]string{"", "http"}).Draw(t, "port"),
			Protocol: rapid.SampledFrom([]uint8{6, 17}).Draw(t, "protocol"),
			Port:     rapid.SampledFrom([]uint16{80, 443}).Draw(t, "number"),
			NodePort: rapid.SampledFrom([]uint16{0, 30080, 30443}).Draw(t, "nodePort"),
		})
	}
	if rapid.Bool().Draw(t, "asked") {
		s.Type, s.HealthCheckNodePort = "LoadBalancer", rapid.SampledFrom([]uint16{30080, 30081}).Draw(t, "healthCheckNodePort")
	}
	return s
}

// drawBackends draws an endpoint slice. An address always belongs to the same node.
func drawBackends(t *rapid.T) table.Backends {
	s := table.Backends{
		Namespace: "default", Service: rapid.SampledFrom([]string{"a", "b", "c"}).Draw(t, "service"),
		Slice:  rapid.SampledFrom([]string{"s1", "s2"}).Draw(t, "slice"),
		Weight: rapid.SampledFrom([]uint32{0, 0, 1, 2, 4, 6}).Draw(t, "weight"),
	}
	for range rapid.IntRange(0, 2).Draw(t, "ports") {
		s.Ports = append(s.Ports, table.NamedPort{
			Name:     rapid.SampledFrom([]string{"", "http"}).Draw(t, "port"),
			Protocol: rapid.SampledFrom([]uint8{6, 17}).Draw(t, "protocol"),
			Port:     rapid.SampledFrom([]uint16{8080, 8443}).Draw(t, "number"),
		})
	}
	for _, i := range rapid.SliceOfNDistinct(rapid.IntRange(1, 6), 0, 6, rapid.ID).Draw(t, "backends") {
		b := table.Backend{
			Addrs: addrs(fmt.Sprintf("10.0.0.%d", i)), Node: fmt.Sprintf("n%d", i%3),
			Ready: rapid.Bool().Draw(t, "ready"), Serving: rapid.Bool().Draw(t, "serving"), Terminating: rapid.Bool().Draw(t, "terminating"),
		}
		if i%2 == 0 {
			b.Addrs = append(b.Addrs, netip.MustParseAddr(fmt.Sprintf("fd00::%d", i)))
		}
		s.Backends = append(s.Backends, b)
	}
	return s
}

// After any history, with flushes anywhere and room or none, the kernel has what the obvious version derives from the rows at the end;
// nothing is leaked; and a second brain that hears only the end agrees.
func TestAnyHistoryEndsAsTheReferenceSays(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		config := Config{NodeName: "n1", MaglevSize: 13, DSR: rapid.Bool().Draw(rt, "DSR")}
		n := newTestNode(t, config)
		want := newSlow(config)
		scarce := rapid.Bool().Draw(rt, "scarce")
		if scarce {
			n.ledger.room[policy.KindSlots] = rapid.Uint32Range(0, 40).Draw(rt, "slots")
			n.ledger.room[policy.KindBackend] = rapid.Uint32Range(0, 20).Draw(rt, "backends")
			n.ledger.room[policy.KindService] = rapid.Uint32Range(0, 2).Draw(rt, "services")
		}
		for range rapid.IntRange(1, 25).Draw(rt, "events") {
			switch rapid.SampledFrom([]string{"service", "backends", "backends", "delete service", "delete backends", "node", "configure", "flush"}).Draw(rt, "event") {
			case "service":
				s := drawService(rt)
				n.SetService(s)
				want.services[serviceKey{s.Namespace, s.Name}] = s
			case "backends":
				s := drawBackends(rt)
				n.SetBackends(s)
				key := serviceKey{s.Namespace, s.Service}
				if want.slices[key] == nil {
					want.slices[key] = map[string]table.Backends{}
				}
				want.slices[key][s.Slice] = s
			case "delete service":
				name := rapid.SampledFrom([]string{"a", "b", "c"}).Draw(rt, "name")
				n.DeleteService("default", name)
				delete(want.services, serviceKey{"default", name})
			case "delete backends":
				name := rapid.SampledFrom([]string{"a", "b", "c"}).Draw(rt, "name")
				n.DeleteBackends("default", name, "s1")
				delete(want.slices[serviceKey{"default", name}], "s1")
			case "node":
				i := rapid.IntRange(0, 2).Draw(rt, "node")
				number := rapid.Uint32Range(0, 3).Draw(rt, "number")
				n.SetNode(fmt.Sprintf("n%d", i), number, "")
				want.nodes[fmt.Sprintf("n%d", i)] = node{number: number}
			case "configure":
				config.DSR = rapid.Bool().Draw(rt, "DSR")
				n.Configure("", config.DSR)
				want.config.DSR = config.DSR
			case "flush":
				n.flush()
			}
		}
		n.flush()
		viewsAgree(rt, n)
		if scarce {
			n.ledger.room = newLedger(t).room // now there is room for what found none
			n.flush()
			n.flush()
			viewsAgree(rt, n)
		}
		if diff := cmp.Diff(want.state(), n.kernel.state()); diff != "" {
			rt.Fatalf("kernel (-reference +got):\n%s", diff)
		}
		if d := n.flush(); !d.Empty() {
			rt.Fatalf("a flush without a change is not empty: %+v", d)
		}
		agreeFromScratch(rt, t, config, n, want)
	})
}

// viewsAgree compares the backends that views call chosen with the kernel's slots, as sets.
func viewsAgree(rt *rapid.T, n *testNode) {
	set := func(names []string) []string { return slices.Compact(slices.Sorted(slices.Values(names))) }
	for _, view := range n.Views("") {
		if !view.Frontend.IsValid() {
			continue
		}
		var inside, outside []string
		for _, b := range view.Backends {
			if b.Inside == Chosen {
				inside = append(inside, b.Addr.String())
			}
			if b.Outside == Chosen {
				outside = append(outside, b.Addr.String())
			}
		}
		key := FrontendKey{view.Frontend.Addr(), view.Frontend.Port(), view.Proto}
		if diff := cmp.Diff([][]string{set(n.kernel.slotsOf(key)), set(n.kernel.outsideOf(key))}, [][]string{set(inside), set(outside)}); diff != "" {
			rt.Fatalf("backends of %v, inside and outside (-kernel +view):\n%s", key, diff)
		}
	}
}

// agreeFromScratch compares the kernel after a history with one that a new brain fills from the last rows, and with
// the history's own snapshot.
func agreeFromScratch(rt *rapid.T, t *testing.T, config Config, n *testNode, rows *slow) {
	fresh := newTestNode(t, config)
	for _, slices := range rows.slices {
		for _, s := range slices {
			fresh.SetBackends(s)
		}
	}
	for name, v := range rows.nodes {
		fresh.SetNode(name, v.number, v.zone)
	}
	for _, s := range rows.services {
		fresh.SetService(s)
	}
	fresh.flush()
	if diff := cmp.Diff(fresh.kernel.state(), n.kernel.state()); diff != "" {
		rt.Fatalf("kernel after the history (-from scratch +got):\n%s", diff)
	}
	if got, want := len(n.ledger.held), len(fresh.ledger.held); got != want {
		rt.Fatalf("%d assignments held after the history, want %d as from scratch", got, want)
	}
	copied := newKernel(t)
	copied.apply(n.Snapshot())
	if diff := cmp.Diff(n.kernel.state(), copied.state()); diff != "" {
		rt.Fatalf("snapshot (-kernel +snapshot):\n%s", diff)
	}
}

func TestMaglevIsThePapersTable(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		size := rapid.SampledFrom([]int{2, 3, 13, 251}).Draw(rt, "size")
		var set backendSet
		var keys []backendKey
		weights := map[backendKey]int{}
		for i := range rapid.IntRange(0, size).Draw(rt, "backends") {
			key := backendKey{netip.AddrFrom4([4]byte{10, byte(rapid.IntRange(0, 255).Draw(rt, "net")), 0, byte(i)}), 80, 6}
			weights[key] = rapid.SampledFrom([]int{1, 1, 1, 2, 3, table.MaxWeight}).Draw(rt, "weight")
			set, keys = append(set, endpoint{key: key, weight: uint32(weights[key])}), append(keys, key)
		}
		order, err := slotOrder(set, AlgorithmMaglev, uint32(size))
		if err != nil {
			rt.Fatal(err)
		}
		var got []backendKey
		for _, i := range order {
			got = append(got, keys[i])
		}
		if !slices.Equal(slowMaglev(keys, weights, size), got) {
			rt.Fatalf("table differs from the paper's for %d backends in %d slots", len(set), size)
		}
	})
}

func TestMaglevRefusesMoreBackendsThanSlots(t *testing.T) {
	if _, err := slotOrder(setOf(14), AlgorithmMaglev, 13); err == nil {
		t.Error("14 backends went into 13 slots")
	}
}

// A range is found by its digest, so contents that differ anywhere must not share one.
func TestUnequalSlotsHaveUnequalDigests(t *testing.T) {
	key := serviceKey{"default", "web"}
	seen := map[policy.Digest]string{}
	for _, slots := range [][]uint32{{1, 2}, {2, 1}, {1}, {257, 2}, {1, 2 + 1<<16}, {1, 2 + 1<<24}, {1, 2, 0}} {
		d := slotsDigest(key, slots)
		if other, ok := seen[d]; ok {
			t.Errorf("slots %v share the digest of %s", slots, other)
		}
		seen[d] = fmt.Sprint(slots)
	}
	if _, ok := seen[slotsDigest(serviceKey{"default", "shop"}, []uint32{1, 2})]; ok {
		t.Error("two services share a digest")
	}
}

// setOf is n backends.
func setOf(n int) backendSet {
	var set backendSet
	for i := range n {
		set = append(set, endpoint{key: backendKey{netip.AddrFrom4([4]byte{10, 0, byte(i >> 8), byte(i)}), 80, 6}, weight: 1})
	}
	return set
}

// Shares follow weights: in a Maglev table within the few slots by which the last round is cut short, in random slots exactly.
func TestSharesFollowWeights(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		set := setOf(rapid.IntRange(1, 20).Draw(rt, "backends"))
		sum := 0.0
		for i := range set {
			set[i].weight = rapid.Uint32Range(1, table.MaxWeight).Draw(rt, "weight")
			sum += float64(set[i].weight)
		}
		for algorithm, slack := range map[string]float64{"random": 1e-9, AlgorithmMaglev: 2 + float64(len(set))} {
			order, err := slotOrder(set, algorithm, DefaultMaglevSize)
			if err != nil {
				rt.Fatal(err)
			}
			share := make([]float64, len(set))
			for _, i := range order {
				share[i]++
			}
			for i, e := range set {
				if want := float64(len(order)) * float64(e.weight) / sum; math.Abs(share[i]-want) > slack {
					rt.Errorf("%s: weight %d of %v has %v of %d slots, want %.1f", algorithm, e.weight, sum, share[i], len(order), want)
				}
			}
		}
	})
}

// A backend that goes takes its own slots with it and leaves nearly all others as they were; shares stay even.
func TestMaglevIsFairAndContinuous(t *testing.T) {
	const size = DefaultMaglevSize
	set := setOf(10)
	before, err := slotOrder(set, AlgorithmMaglev, size)
	if err != nil {
		t.Fatal(err)
	}
	share := make([]int, len(set))
	for _, i := range before {
		share[i]++
	}
	if low, high := slices.Min(share), slices.Max(share); high-low > 1 {
		t.Errorf("shares between %d and %d of %d slots, want at most one apart", low, high, size)
	}
	for gone := range set {
		rest := slices.Delete(slices.Clone(set), gone, gone+1)
		after, err := slotOrder(rest, AlgorithmMaglev, size)
		if err != nil {
			t.Fatal(err)
		}
		moved, kept := 0, 0
		for slot := range before {
			switch {
			case int(before[slot]) == gone:
			case set[before[slot]].key == rest[after[slot]].key:
				kept++
			default:
				moved++
			}
		}
		// The paper's figure 10 has a few per cent; every other way of balancing by modulo moves nine tenths.
		if share := float64(moved) / float64(moved+kept); share > 0.05 {
			t.Errorf("without backend %d, %.1f %% of the others' slots moved, want at most 5 %%", gone, 100*share)
		}
	}
}

// 100k connections after 100 random changes of backends are spread as by fair dice (chi-square, p > 0.01).
func TestConnectionsAreSpreadFairlyAfterManyChanges(t *testing.T) {
	for _, algorithm := range []string{"random", AlgorithmMaglev} {
		t.Run(algorithm, func(t *testing.T) {
			random := rand.New(rand.NewPCG(1, 2))
			n := newTestNode(t, Config{MaglevSize: 16381})
			s := web("web", "10.96.0.1")
			s.Algorithm = algorithm
			n.SetService(s)
			in := map[int]bool{0: true, 1: true, 2: true}
			for range 100 {
				i := random.IntN(20)
				in[i] = !in[i]
				var rows []table.Backend
				for i, member := range in {
					if member {
						rows = append(rows, ready(fmt.Sprintf("10.0.0.%d", i+1)))
					}
				}
				n.SetBackends(behind("web", rows...))
				n.flush()
			}
			slots := n.kernel.slotsOf(tcp("10.96.0.1:80"))
			hits := map[string]int{}
			const connections = 100_000
			for range connections {
				hits[slots[random.IntN(len(slots))]]++
			}
			if sum, limit := testkit.ChiSquare(slices.Collect(maps.Values(hits))); sum > limit {
				t.Errorf("chi-square %.1f over %d backends, want at most %.1f", sum, len(hits), limit)
			}
		})
	}
}

// A backend that goes changes nothing about its siblings: same numbers, no row written, each still in one slot.
func TestABackendThatGoesLeavesItsSiblingsAlone(t *testing.T) {
	n := newTestNode(t, Config{})
	n.SetService(web("web", "10.96.0.1"))
	var rows []table.Backend
	for i := range 10 {
		rows = append(rows, ready(fmt.Sprintf("10.0.0.%d", i+1)))
	}
	n.SetBackends(behind("web", rows...))
	n.flush()
	before := n.kernel.slotsOf(tcp("10.96.0.1:80"))
	n.SetBackends(behind("web", slices.Delete(slices.Clone(rows), 4, 5)...))
	d := n.flush()
	if len(d.Backends) != 0 || len(d.Retired) != 1 {
		t.Errorf("%d backends written and %d retired, want 0 and 1", len(d.Backends), len(d.Retired))
	}
	want := slices.Delete(slices.Clone(before), 4, 5)
	if diff := cmp.Diff(want, n.kernel.slotsOf(tcp("10.96.0.1:80"))); diff != "" {
		t.Errorf("slots (-want +got):\n%s", diff)
	}
}
