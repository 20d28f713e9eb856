package service

import (
	"cmp"
	"crypto/sha256"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"tendril.io/tendril/bpf"
	"tendril.io/tendril/internal/policy"
	"tendril.io/tendril/internal/table"
)

// ledger is an allocator with room for so many numbers of a kind. What is released is free only after settle, as in
// the agent, where packets that saw a number may still be on their way.
type ledger struct {
	t        testing.TB
	room     map[policy.Kind]uint32
	next     map[policy.Kind]uint32
	held     map[assignment]span
	released map[assignment]span
	used     map[policy.Kind]uint32
}

type assignment struct {
	kind   policy.Kind
	digest policy.Digest
}

type span struct{ first, n uint32 }

func newLedger(t testing.TB) *ledger {
	return &ledger{
		t:    t,
		room: map[policy.Kind]uint32{policy.KindService: 1 << 20, policy.KindBackend: 1 << 20, policy.KindSlots: 1 << 24},
		next: map[policy.Kind]uint32{policy.KindService: 1, policy.KindBackend: 1, policy.KindSlots: 0},
		held: map[assignment]span{}, released: map[assignment]span{}, used: map[policy.Kind]uint32{},
	}
}

func (l *ledger) Assign(kind policy.Kind, digest policy.Digest, n uint32) (uint32, error) {
	a := assignment{kind, digest}
	if _, ok := l.held[a]; ok {
		l.t.Errorf("kind %d: assigned twice without a release", kind)
	}
	if l.used[kind]+n > l.room[kind] {
		return 0, fmt.Errorf("kind %d: need %d, have room for %d of %d", kind, n, l.room[kind]-l.used[kind], l.room[kind])
	}
	s := span{l.next[kind], n}
	l.next[kind] += n
	l.used[kind] += n
	l.held[a] = s
	return s.first, nil
}

func (l *ledger) Release(kind policy.Kind, digest policy.Digest) {
	a := assignment{kind, digest}
	s, ok := l.held[a]
	if !ok {
		l.t.Errorf("kind %d: released what is not held", kind)
	}
	delete(l.held, a)
	l.released[a] = s
}

// settle is the end of a publication.
func (l *ledger) settle() {
	for a, s := range l.released {
		l.used[a.kind] -= s.n
	}
	clear(l.released)
}

// kernel is what the maps would hold after every delta so far, and a judge of the deltas.
type kernel struct {
	t         testing.TB
	backends  map[uint32]BackendRow
	slots     map[uint32]uint32
	frontends map[FrontendKey]FrontendRow
	guards    map[GuardRow]bool
}

func newKernel(t testing.TB) *kernel {
	return &kernel{t, map[uint32]BackendRow{}, map[uint32]uint32{}, map[FrontendKey]FrontendRow{}, map[GuardRow]bool{}}
}

// apply writes a delta in the order of its fields. No slot may be written that a frontend refers to at that moment, and
// at no moment may a frontend lead to a backend that gets nothing new.
func (k *kernel) apply(d Delta) {
	k.t.Helper()
	for _, b := range d.Backends {
		k.backends[b.Index] = b
	}
	k.check("backends")
	for _, r := range d.Slots {
		for _, f := range k.frontends {
			for _, used := range []bpf.SlotRange{f.Inside, f.Outside} {
				if used.Count > 0 && used.First < r.First+uint32(len(r.Backends)) && r.First < used.First+used.Count {
					k.t.Errorf("slots %d+%d are written while frontend %v uses %+v", r.First, len(r.Backends), f.FrontendKey, used)
				}
			}
		}
		for i, b := range r.Backends {
			k.slots[r.First+uint32(i)] = b
		}
	}
	for _, g := range d.Guards {
		k.guards[g] = true
	}
	for _, f := range d.Frontends {
		k.frontends[f.FrontendKey] = f
	}
	k.check("frontends")
	for _, key := range d.Removed {
		if _, ok := k.frontends[key]; !ok {
			k.t.Errorf("frontend %v removed but it was not there", key)
		}
		delete(k.frontends, key)
	}
	for _, g := range d.Unguarded {
		if !k.guards[g] {
			k.t.Errorf("source range %v removed but it was not there", g)
		}
		delete(k.guards, g)
	}
	for _, b := range d.Retired {
		k.backends[b.Index] = b
		if b.State == bpf.BackendGone {
			delete(k.backends, b.Index)
		}
	}
	k.check("retired")
}

// check follows every frontend to its backends.
func (k *kernel) check(step string) {
	k.t.Helper()
	for key, f := range k.frontends {
		for _, used := range []bpf.SlotRange{f.Inside, f.Outside} {
			for slot := used.First; slot < used.First+used.Count; slot++ {
				if b := k.backends[k.slots[slot]]; b.State != bpf.BackendActive {
					k.t.Fatalf("after step %s frontend %v leads to backend %d, which is %v", step, key, k.slots[slot], b.State)
				}
			}
		}
	}
}

// slotsOf lists the backends that clients of this node are led to, by address, in slot order; nil: there is no frontend.
func (k *kernel) slotsOf(key FrontendKey) []string {
	k.t.Helper()
	f, ok := k.frontends[key]
	if !ok {
		return nil
	}
	return k.named(f.Inside)
}

// outsideOf is the same for clients of elsewhere; nil: they have no frontend there.
func (k *kernel) outsideOf(key FrontendKey) []string {
	k.t.Helper()
	f := k.frontends[key]
	if f.Flags&bpf.FrontendExternal == 0 {
		return nil
	}
	return k.named(f.Outside)
}

// named lists what stands in a range of slots.
func (k *kernel) named(slots bpf.SlotRange) []string {
	k.t.Helper()
	names := []string{}
	for i := range slots.Count {
		b, ok := k.backends[k.slots[slots.First+i]]
		if !ok || b.State != bpf.BackendActive {
			k.t.Errorf("slot %d leads to backend %d, which is not active", i, k.slots[slots.First+i])
		}
		names = append(names, netip.AddrPortFrom(b.Addr, b.Port).String())
	}
	return names
}

// state describes the whole kernel without numbers, so that two histories can be compared.
func (k *kernel) state() []string {
	var lines []string
	for key, f := range k.frontends {
		line := fmt.Sprintf("%v flags %d affinity %d: %v %v", key, f.Flags, f.AffinitySeconds, k.slotsOf(key), k.outsideOf(key))
		if f.Flags&bpf.FrontendGuarded != 0 {
			line += " for" + k.guardsOf(f.Service)
		}
		lines = append(lines, line)
	}
	for _, b := range k.backends {
		lines = append(lines, fmt.Sprintf("backend %v:%d/%d %v node %d", b.Addr, b.Port, b.Proto, b.State, b.Node))
	}
	slices.Sort(lines)
	return lines
}

// guardsOf lists the source ranges of a service.
func (k *kernel) guardsOf(service uint32) string {
	var ranges []string
	for g := range k.guards {
		if g.Service == service {
			ranges = append(ranges, " "+g.Prefix.String())
		}
	}
	slices.Sort(ranges)
	return strings.Join(ranges, "")
}

// testNode is a brain with its allocator and kernel.
type testNode struct {
	*Brain
	ledger *ledger
	kernel *kernel
}

func newTestNode(t testing.TB, config Config) *testNode {
	t.Helper()
	l := newLedger(t)
	b, err := New(config, l)
	if err != nil {
		t.Fatal(err)
	}
	return &testNode{b, l, newKernel(t)}
}

// flush publishes once and returns the delta.
func (n *testNode) flush() Delta {
	n.kernel.t.Helper()
	d := n.Flush()
	n.kernel.apply(d)
	n.ledger.settle()
	return d
}

// Short forms of rows, for tests.

func addrs(text ...string) []netip.Addr {
	var out []netip.Addr
	for _, s := range text {
		out = append(out, netip.MustParseAddr(s))
	}
	return out
}

func tcp(text string) FrontendKey { return frontend(text, 6) }

func frontend(text string, proto uint8) FrontendKey {
	ap := netip.MustParseAddrPort(text)
	return FrontendKey{ap.Addr(), ap.Port(), proto}
}

// web is a service on TCP port 80, named http.
func web(name string, clusterIPs ...string) table.Service {
	return table.Service{
		Namespace: "default", Name: name, Type: "ClusterIP", ClusterIPs: addrs(clusterIPs...),
		Ports: []table.ServicePort{{Name: "http", Protocol: 6, Port: 80}},
	}
}

// behind is the slice "a" of a service whose backends answer on port 8080.
func behind(service string, backends ...table.Backend) table.Backends {
	return table.Backends{
		Namespace: "default", Service: service, Slice: "a",
		Ports:    []table.NamedPort{{Name: "http", Port: 8080, Protocol: 6}},
		Backends: backends,
	}
}

func ready(addresses ...string) table.Backend {
	return table.Backend{Addrs: addrs(addresses...), Ready: true, Serving: true}
}

func draining(address string) table.Backend {
	return table.Backend{Addrs: addrs(address), Serving: true, Terminating: true}
}

func starting(address string) table.Backend { return table.Backend{Addrs: addrs(address)} }

func on(node, zone string, b table.Backend) table.Backend {
	b.Node, b.Zone = node, zone
	return b
}

// slow is the obvious version of the brain: it derives the kernel's whole state from all rows at once.
type slow struct {
	config   Config
	services map[serviceKey]table.Service
	slices   map[serviceKey]map[string]table.Backends
	nodes    map[string]node
}

func newSlow(config Config) *slow {
	config.MaglevSize = cmp.Or(config.MaglevSize, DefaultMaglevSize)
	return &slow{config, map[serviceKey]table.Service{}, map[serviceKey]map[string]table.Backends{}, map[string]node{}}
}

// state is kernel.state for what the rows ask for.
func (s *slow) state() []string {
	var lines []string
	served := map[FrontendKey]bool{}
	listed := map[backendName]string{}
	active := map[backendName]bool{}
	for _, key := range slices.SortedFunc(maps.Keys(s.services), serviceKey.compare) {
		service := s.services[key]
		mine := map[FrontendKey]bool{}
		for _, port := range service.Ports {
			for _, at := range places(&service, &port) {
				f := FrontendKey{at.addr, at.port, port.Protocol}
				if served[f] || mine[f] {
					continue
				}
				mine[f] = true
				lines = append(lines, s.frontend(key, service, port, f, at, listed, active))
			}
		}
		if health, asked := healthFrontend(&service); asked {
			mine[health] = true
		}
		maps.Copy(served, mine)
	}
	for name, nodeName := range listed {
		b := name.key
		state := bpf.BackendTerminating
		if active[name] {
			state = bpf.BackendActive
		}
		lines = append(lines, fmt.Sprintf("backend %v:%d/%d %v node %d", b.addr, b.port, b.proto, state, s.nodes[nodeName].number))
	}
	slices.Sort(lines)
	return lines
}

// frontend describes one frontend and notes the backends behind it.
func (s *slow) frontend(key serviceKey, service table.Service, port table.ServicePort, f FrontendKey, at place, listed map[backendName]string, active map[backendName]bool) string {
	flags := bpf.FrontendFlag(0)
	if service.Algorithm == AlgorithmMaglev {
		flags |= bpf.FrontendHash
	}
	if f.Addr.IsLoopback() {
		flags |= bpf.FrontendLoopback
	}
	inside := s.slots(key, service, port, f, service.InternalLocal && !at.external, listed, active)
	var outside []string
	if at.external {
		flags |= bpf.FrontendExternal
		if map[string]bool{"dsr": true, "snat": false, "": s.config.DSR}[service.Forwarding] {
			flags |= bpf.FrontendDSR
		}
		outside = s.slots(key, service, port, f, service.ExternalLocal, listed, active)
	}
	if !at.guarded {
		return fmt.Sprintf("%v flags %d affinity %d: %v %v", f, flags, service.AffinitySeconds, inside, outside)
	}
	var ranges []string
	for _, prefix := range service.SourceRanges {
		ranges = append(ranges, " "+prefix.String())
	}
	slices.Sort(ranges)
	return fmt.Sprintf("%v flags %d affinity %d: %v %v for%s", f, flags|bpf.FrontendGuarded, service.AffinitySeconds, inside, outside,
		strings.Join(slices.Compact(ranges), ""))
}

// slots lists what should stand in the slots behind a frontend, and notes the backends.
func (s *slow) slots(key serviceKey, service table.Service, port table.ServicePort, f FrontendKey, local bool, listed map[backendName]string, active map[backendName]bool) []string {
	type candidate struct {
		row    table.Backend
		rank   int
		weight uint32
	}
	best := map[backendKey]candidate{}
	for _, slice := range s.slices[key] {
		for _, np := range slice.Ports {
			for _, row := range slice.Backends {
				if np.Name != port.Name || np.Protocol != port.Protocol {
					continue
				}
				for _, addr := range row.Addrs {
					c := candidate{row, 0, max(slice.Weight, 1)}
					if row.Serving && row.Terminating {
						c.rank = 1
					}
					if row.Ready || service.PublishNotReady {
						c.rank = 2
					}
					k := backendKey{addr, np.Port, np.Protocol}
					if old, ok := best[k]; addr.Is4() == f.Addr.Is4() && (!ok || old.rank < c.rank || old.rank == c.rank && old.weight < c.weight) {
						best[k] = c
					}
				}
			}
		}
	}
	var chosen []backendKey
	for _, rank := range []int{2, 1} {
		for k, c := range best {
			listed[backendName{key, k}] = c.row.Node
			if c.rank == rank && (!local || c.row.Node == s.config.NodeName) {
				chosen = append(chosen, k)
			}
		}
		if len(chosen) > 0 {
			break
		}
	}
	slices.SortFunc(chosen, backendKey.compare)
	for _, k := range chosen {
		active[backendName{key, k}] = true
	}
	weights := map[backendKey]int{}
	for _, k := range chosen {
		weights[k] = int(best[k].weight)
	}
	if service.Algorithm == AlgorithmMaglev {
		chosen = slowMaglev(chosen, weights, int(s.config.MaglevSize))
	} else {
		chosen = slowRandom(chosen, weights)
	}
	names := []string{}
	for _, k := range chosen {
		names = append(names, netip.AddrPortFrom(k.addr, k.port).String())
	}
	return names
}

// slowRandom has each backend as often as it weighs, over the largest number that divides all weights.
func slowRandom(backends []backendKey, weights map[backendKey]int) []backendKey {
	var out []backendKey
	for divisor := table.MaxWeight; divisor > 0 && len(out) == 0; divisor-- {
		if slices.ContainsFunc(backends, func(k backendKey) bool { return weights[k]%divisor != 0 }) {
			continue
		}
		for _, k := range backends {
			out = append(out, slices.Repeat([]backendKey{k}, weights[k]/divisor)...)
		}
	}
	return out
}

// slowMaglev is the paper's pseudocode: whole permutations, then turns. In round n a backend has had as many turns as n
// times its share of the heaviest weight, rounded down. Offset and skip are two hashes of the backend, as bytes that are
// the same on every node: here the halves of a digest, read byte by byte.
func slowMaglev(backends []backendKey, weights map[backendKey]int, size int) []backendKey {
	if len(backends) == 0 {
		return nil
	}
	permutations := make([][]int, len(backends))
	for i, k := range backends {
		addr := k.addr.As16()
		name := append([]byte("backend:"), addr[:]...)
		sum := sha256.Sum256(append(name, byte(k.port>>8), byte(k.port), k.proto, 0))
		remainder := func(bytes []byte, modulus int) (rest int) {
			for _, b := range slices.Backward(bytes) {
				rest = (rest*256 + int(b)) % modulus
			}
			return rest
		}
		offset, skip := remainder(sum[:8], size), remainder(sum[8:16], size-1)+1
		for j := range size {
			permutations[i] = append(permutations[i], (offset+j*skip)%size)
		}
	}
	table := make([]int, size)
	for i := range table {
		table[i] = -1
	}
	heaviest := 0
	for _, k := range backends {
		heaviest = max(heaviest, weights[k])
	}
	next := make([]int, len(backends))
	for round, filled := 1, 0; filled < size; round++ {
		for i, k := range backends {
			if round*weights[k]/heaviest == (round-1)*weights[k]/heaviest {
				continue
			}
			at := permutations[i][next[i]]
			for table[at] >= 0 {
				next[i]++
				at = permutations[i][next[i]]
			}
			table[at] = i
			next[i]++
			if filled++; filled == size {
				break
			}
		}
	}
	var out []backendKey
	for _, i := range table {
		out = append(out, backends[i])
	}
	return out
}
