package policy

import (
	"cmp"
	"fmt"
	"maps"
	"math"
	"net/netip"
	"slices"
	"strings"

	"tendril.io/tendril/internal/identity"
)

// Resident is somebody of the cluster that pairs are asked about.
type Resident struct {
	Name     string // as people call it
	Workload Workload
	Addrs    []netip.Addr
	// APIServer: an API server answers there as well.
	APIServer bool
	Serves    []NamedPort // where something is known to answer: a name is the container's, or the service's
}

// Crowd is residents that no policy of a simulation can tell apart, neither as subjects nor as peers; or, where there
// are no residents, addresses outside the cluster.
type Crowd struct {
	Kind    CrowdKind
	Members []string // names of residents, or prefixes of the outside; sorted
	Text    string   // what they have in common
	Serves  []NamedPort

	number   int
	subject  uint32 // 0: nobody judges them
	families byte   // bit 0: IPv4, bit 1: IPv6
	party    Party
	peers    [2]*peer // now, then
	changed  [2]bool  // by Direction: the rules that judge them are not the same
}

// CrowdKind says what a crowd is.
type CrowdKind string

// The kinds of crowds. A node is one thing to its own pods and another to those of the other nodes.
const (
	CrowdPods       CrowdKind = "pods"
	CrowdOwnNode    CrowdKind = "own node"
	CrowdOtherNodes CrowdKind = "other nodes"
	CrowdWorld      CrowdKind = "world"
)

// PairChange is ports at which packets from one crowd to another would fare differently.
type PairChange struct {
	From, To  *Crowd
	Ports     PortSet
	Now, Then [2]Judgement // egress of From, ingress of To
}

// Count is how many pairs of members that is, at some port.
func (c *PairChange) Count() uint64 {
	from, to := uint64(len(c.From.Members)), uint64(len(c.To.Members))
	switch {
	case c.From.Kind == CrowdWorld:
		from = 1
	case c.To.Kind == CrowdWorld:
		to = 1
	case c.From == c.To:
		to--
	}
	return from * to
}

// PortSet is ports of some protocols, or all but those.
type PortSet struct {
	AllBut bool
	Ports  []Port // sorted, none touches another; without names
}

// ClusterSimulation begins a simulation whose subjects are all residents of the cluster, wherever they run.
func (e *Engine) ClusterSimulation(residents []Resident) *Simulation {
	s := &Simulation{residents: residents, subjects: make([]uint32, len(residents))}
	subjects, known := map[uint32]Workload{}, map[Digest]uint32{}
	for i, r := range residents {
		w := r.Workload.canonical()
		if w.Reserved == identity.RemoteNode {
			w.Reserved = identity.Host // to itself
		}
		digest := w.digest("group", nil)
		if known[digest] == 0 {
			known[digest] = uint32(len(known) + 1)
			subjects[known[digest]] = w
		}
		s.subjects[i] = known[digest]
	}
	config := e.config
	config.ClassWords = (math.MaxUint16 + 1) / 64 // all pods' policies at once: more than a node ever has
	s.now, s.then = e.fork(config, subjects, nil), e.fork(config, subjects, nil)
	return s
}

// Crowds lists the crowds, by kind and name; Changes speaks of them.
func (s *Simulation) Crowds() []*Crowd { return s.crowds }

// gather puts the residents, and the world, into crowds.
func (s *Simulation) gather() {
	found := map[string]*Crowd{}
	for i, r := range s.residents {
		kinds := []CrowdKind{CrowdPods}
		if r.Workload.Reserved == identity.RemoteNode || r.Workload.Reserved == identity.Host {
			kinds = []CrowdKind{CrowdOwnNode, CrowdOtherNodes}
		}
		for _, kind := range kinds {
			for _, addr := range r.Addrs {
				s.join(found, kind, r, s.subjects[i], addr)
			}
		}
	}
	for _, prefix := range s.borders() {
		if addr, ok := s.ownAddress(prefix); ok {
			s.join(found, CrowdWorld, Resident{Name: prefix.String()}, 0, addr)
		}
	}
	order := []CrowdKind{CrowdPods, CrowdOwnNode, CrowdOtherNodes, CrowdWorld}
	for _, c := range found {
		slices.Sort(c.Members)
		c.Members = slices.Compact(c.Members)
		slices.SortFunc(c.Serves, comparePorts)
		c.Serves = slices.Compact(c.Serves)
	}
	s.crowds = slices.SortedFunc(maps.Values(found), func(a, b *Crowd) int {
		return cmp.Or(slices.Index(order, a.Kind)-slices.Index(order, b.Kind), slices.Compare(a.Members, b.Members), int(a.families)-int(b.families))
	})
	for i, c := range s.crowds {
		c.number = i
		for d := range c.changed {
			c.changed[d] = c.subject != 0 && !sameProgram(s.program(s.now, c, Direction(d)), s.program(s.then, c, Direction(d)))
		}
	}
}

// join puts one address of a resident into its crowd, which is made if there is none.
func (s *Simulation) join(found map[string]*Crowd, kind CrowdKind, r Resident, subject uint32, addr netip.Addr) {
	addr = addr.Unmap()
	party := Party{Address: addr, Flags: addressCluster, APIServer: r.APIServer}
	switch w := r.Workload; kind {
	case CrowdWorld:
		party.Reserved, party.Flags = identity.World, 0
	case CrowdOwnNode:
		w.Reserved = identity.Host
		party.Workload = &w
	case CrowdOtherNodes:
		w.Reserved = identity.RemoteNode
		party.Workload = &w
	default:
		party.Workload = &w
	}
	peers := [2]*peer{s.now.candidate(party), s.then.candidate(party)}
	key := fmt.Sprint(kind, subject, r.APIServer)
	for i, e := range []*Engine{s.now, s.then} {
		for _, r := range e.rangesAround(netip.PrefixFrom(addr, addr.BitLen()), peers[i].outside) {
			key += string(r.digest[:])
		}
	}
	c := found[key]
	if c == nil {
		c = &Crowd{Kind: kind, Text: party.describe(), subject: subject, party: party, peers: peers}
		found[key] = c
	}
	c.families |= family(addr)
	c.Members = append(c.Members, r.Name)
	c.Serves = append(c.Serves, r.Serves...)
}

func family(addr netip.Addr) byte {
	if addr.Is4() {
		return 1
	}
	return 2
}

// borders lists the prefixes at which the outside may begin to be another peer, in order.
func (s *Simulation) borders() []netip.Prefix {
	out := worldPrefixes()
	for _, e := range []*Engine{s.now, s.then} {
		for _, world := range worldPrefixes() {
			for p := range e.places.within(world) {
				out = append(out, p.prefix)
			}
		}
	}
	slices.SortFunc(out, netip.Prefix.Compare)
	return slices.Compact(out)
}

// ownAddress finds an address of a prefix that no narrower border holds, if there is one: the prefix's first, or the
// first behind one of those.
func (s *Simulation) ownAddress(prefix netip.Prefix) (netip.Addr, bool) {
	addr := prefix.Addr()
	for prefix.Contains(addr) {
		inner := prefix
		for _, e := range []*Engine{s.now, s.then} {
			for p := range e.places.covering(netip.PrefixFrom(addr, addr.BitLen())) {
				if p.prefix.Bits() > inner.Bits() {
					inner = p.prefix
				}
			}
		}
		if inner == prefix {
			return addr, true
		}
		addr = behind(inner)
	}
	return netip.Addr{}, false
}

// behind is the first address after a prefix; invalid after the last.
func behind(prefix netip.Prefix) netip.Addr {
	raw := prefix.Masked().Addr().AsSlice()
	for i := range raw {
		host := max(0, min(8, 8*(i+1)-prefix.Bits()))
		raw[i] |= byte(1<<host - 1)
	}
	last, _ := netip.AddrFromSlice(raw)
	return last.Next()
}

// program is what judges a crowd.
func (s *Simulation) program(e *Engine, c *Crowd, d Direction) *program {
	return e.subjects[c.subject].group.programs[d]
}

// sameProgram says whether two programs have the same rules in the same order, and the same default.
func sameProgram(a, b *program) bool {
	return (len(a.isolators) > 0) == (len(b.isolators) > 0) && slices.EqualFunc(a.lines, b.lines, sameLine)
}

func sameLine(a, b line) bool {
	x, y := a.rule, b.rule
	return a.spec.policy.policy.Key == b.spec.policy.policy.Key && a.spec.spec.Tier == b.spec.spec.Tier &&
		x.Place == y.Place && x.Action == y.Action && slices.Equal(x.Ports, y.Ports) &&
		slices.EqualFunc(a.selectors, b.selectors, func(s, t *selector) bool { return s.digest == t.digest })
}

// Changes lists what would change for packets from one crowd to each of the others, and among its own members, in the
// order of Crowds. With rules it also lists where only the rules that decide would be others.
func (s *Simulation) Changes(from *Crowd, rules bool) []PairChange {
	var out []PairChange
	for _, to := range s.crowds {
		alone := from == to && len(from.Members) == 1 && from.Kind != CrowdWorld // what one sends to oneself is not judged
		if alone || from.families&to.families == 0 || !from.changed[Egress] && !to.changed[Ingress] || from.isNode() && to.isNode() {
			continue
		}
		out = append(out, s.pair(from, to, rules)...)
	}
	return out
}

// isNode tells nodes, whose traffic with each other is not asked about.
func (c *Crowd) isNode() bool { return c.Kind == CrowdOwnNode || c.Kind == CrowdOtherNodes }

// hearing is one side of a pair in one engine: the rules that hold the peer, whatever the port.
type hearing struct {
	engine    *Engine
	group     *group
	program   program
	peer      *peer
	direction Direction
}

// hear prepares a side's judgement; nil: nobody judges it.
func (s *Simulation) hear(which int, d Direction, subject, other *Crowd) *hearing {
	e := []*Engine{s.now, s.then}[which]
	if subject.subject == 0 {
		return nil
	}
	p := s.program(e, subject, d)
	h := &hearing{engine: e, group: e.subjects[subject.subject].group, peer: other.peers[which], direction: d}
	h.program.isolators = p.isolators
	for _, l := range p.lines {
		if slices.ContainsFunc(l.selectors, func(x *selector) bool { return x.matches(h.peer) }) {
			h.program.lines = append(h.program.lines, l)
		}
	}
	return h
}

func (h *hearing) judge(d Direction, protocol uint8, port uint16) Judgement {
	if h == nil {
		return Judgement{Direction: d}
	}
	action, rule := h.engine.walk(h.group, &h.program, &packet{peer: h.peer, protocol: protocol, port: port}, nil)
	return Judgement{Direction: d, Judged: true, Action: action, Rule: rule}
}

// pair compares all ports between two crowds. Between two edges of what the rules name, all ports fare alike.
func (s *Simulation) pair(from, to *Crowd, rules bool) []PairChange {
	var sides [2][2]*hearing // now and then; by Direction
	for which := range sides {
		sides[which][Egress] = s.hear(which, Egress, from, to)
		sides[which][Ingress] = s.hear(which, Ingress, to, from)
	}
	if same(sides[0][Egress], sides[1][Egress]) && same(sides[0][Ingress], sides[1][Ingress]) {
		return nil
	}
	spans, other := spansOf(sides, to)
	var out []PairChange
	for _, span := range spans {
		protocol := cmp.Or(span.Protocol, other)
		now := [2]Judgement{sides[0][Egress].judge(Egress, protocol, span.First), sides[0][Ingress].judge(Ingress, protocol, span.First)}
		then := [2]Judgement{sides[1][Egress].judge(Egress, protocol, span.First), sides[1][Ingress].judge(Ingress, protocol, span.First)}
		if !Differ(now, then, rules) {
			continue
		}
		at := slices.IndexFunc(out, func(c PairChange) bool { return alike(c.Now, now) && alike(c.Then, then) })
		if at < 0 {
			at = len(out)
			out = append(out, PairChange{From: from, To: to, Now: now, Then: then})
		}
		out[at].Ports.Ports = append(out[at].Ports.Ports, span)
	}
	for i := range out {
		out[i].Ports = portSetOf(out[i].Ports.Ports, spans)
	}
	return out
}

// same says whether two hearings must come to the same verdicts.
func same(a, b *hearing) bool {
	return a == nil && b == nil || a != nil && b != nil && sameProgram(&a.program, &b.program)
}

// Differ says whether a packet would fare differently, or with rules, also whether another rule would decide.
func Differ(now, then [2]Judgement, rules bool) bool {
	before, _ := Decide(now)
	after, _ := Decide(then)
	return before != after || rules && !alike(now, then)
}

// alike says whether two pairs of judgements name the same verdicts and rules; the rules' numbers do not count.
func alike(a, b [2]Judgement) bool {
	for i := range a {
		if a[i].Judged != b[i].Judged || a[i].Action != b[i].Action || a[i].Rule.Name != b[i].Rule.Name || a[i].Rule.Place != b[i].Rule.Place {
			return false
		}
	}
	return true
}

// spansOf cuts all ports of all protocols at the edges of what the rules name. Protocol 0 of the last span stands for
// every protocol that no other span has; other is one of those.
func spansOf(sides [2][2]*hearing, to *Crowd) (spans []Port, other uint8) {
	cuts := map[uint8][]int{}
	for _, sides := range sides {
		for _, h := range sides {
			if h == nil {
				continue
			}
			for _, l := range h.program.lines {
				for _, p := range l.rule.Ports {
					cut(cuts, p, to.peers[0].ports)
				}
			}
		}
	}
	for _, protocol := range slices.Sorted(maps.Keys(cuts)) {
		edges := append(cuts[protocol], 0, math.MaxUint16+1)
		slices.Sort(edges)
		edges = slices.Compact(edges)
		for i := range edges[1:] {
			spans = append(spans, Port{Protocol: protocol, First: uint16(edges[i]), Last: uint16(edges[i+1] - 1)})
		}
	}
	other = math.MaxUint8
	for cuts[other] != nil {
		other--
	}
	return append(spans, Port{First: 0, Last: math.MaxUint16}), other
}

// cut notes the edges of one port of a rule. A name is the destination's.
func cut(cuts map[uint8][]int, p Port, named []NamedPort) {
	note := func(protocol uint8, first, last uint16) {
		cuts[protocol] = append(cuts[protocol], int(first), int(last)+1)
	}
	if p.Name == "" {
		for _, r := range rangesOf(p) {
			if r.protocol != 0 {
				note(r.protocol, r.first, r.last)
			}
		}
		return
	}
	for _, n := range named {
		if n.Name == p.Name {
			note(n.Protocol, n.Port, n.Port)
		}
	}
}

// portSetOf says in the fewest words which of all spans the given ones are. Both are in order.
func portSetOf(given, all []Port) PortSet {
	set := PortSet{Ports: given}
	if given[len(given)-1].Protocol == 0 {
		set.AllBut = true
		set.Ports = slices.DeleteFunc(slices.Clone(all), func(p Port) bool { return slices.Contains(given, p) })
	}
	var merged []Port
	for _, p := range set.Ports {
		if n := len(merged); n > 0 && merged[n-1].Protocol == p.Protocol && int(merged[n-1].Last)+1 == int(p.First) {
			merged[n-1].Last = p.Last
			continue
		}
		merged = append(merged, p)
	}
	set.Ports = merged
	return set
}

// Contains says whether a port of a protocol is in the set.
func (s PortSet) Contains(protocol uint8, port uint16) bool {
	in := slices.ContainsFunc(s.Ports, func(p Port) bool { return p.Protocol == protocol && p.First <= port && port <= p.Last })
	return in != s.AllBut
}

// String prints the set, for example "80/TCP, 8000-8100/TCP", "any port but 53/UDP" or "any port".
func (s PortSet) String() string {
	var text []string
	for _, p := range s.Ports {
		text = append(text, p.String())
	}
	switch {
	case s.AllBut && len(text) == 0:
		return "any port"
	case s.AllBut:
		return "any port but " + strings.Join(text, ", ")
	}
	return strings.Join(text, ", ")
}
