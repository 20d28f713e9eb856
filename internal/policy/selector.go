package policy

import (
	"crypto/sha256"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strconv"
	"strings"

	"tendril.io/tendril/internal/ipproto"
	"tendril.io/tendril/internal/label"
)

// selector is a set of peers that some program names, and so a bit of class_bits. Equal sets, written alike in
// canonical form, are one selector. What it means never changes; only whether somebody uses it.
type selector struct {
	digest Digest
	text   string // canonical and printable
	bit    uint32
	refs   int // programs, port selectors and views that use it

	// Exactly one of these says which peers match.
	any    bool
	labels *label.Selector
	entity Entity
	cidr   *CIDR
	group  *groupSelector
	port   *portSelector
}

// portSelector narrows another selector to peers that call a port by a name: how a named port of an egress rule finds
// its number, which every peer may choose differently.
type portSelector struct {
	base *selector
	port NamedPort
}

var (
	reservedKey  = label.Key{Scope: label.ScopeFact, Name: label.FactReserved}
	apiServerKey = label.Key{Scope: label.ScopeFact, Name: label.FactAPIServer}
)

// selectorOf returns the selector of a rule's peer, not yet interned, or nil if it matches nothing.
func selectorOf(p Peer) *selector {
	switch {
	case p.Any:
		return named(&selector{any: true, text: "any peer"})
	case p.Selector != nil:
		what := "pods "
		if asksForReserved(p.Selector) {
			what = "peers "
		}
		return named(&selector{labels: p.Selector, text: what + p.Selector.String()})
	case p.CIDR != nil:
		c := p.CIDR.canonical()
		return named(&selector{cidr: &c, text: c.String()})
	case p.Group != nil:
		r := p.Group.canonical()
		return named(&selector{group: &groupSelector{ref: r}, text: r.String()})
	}
	switch p.Entity {
	case EntityNone, EntityNobody:
		return nil
	case EntityWorldIPv4:
		return selectorOf(Peer{CIDR: &CIDR{Prefix: netip.PrefixFrom(netip.IPv4Unspecified(), 0), OutsideOnly: true}})
	case EntityWorldIPv6:
		return selectorOf(Peer{CIDR: &CIDR{Prefix: netip.PrefixFrom(netip.IPv6Unspecified(), 0), OutsideOnly: true}})
	}
	return named(&selector{entity: p.Entity, text: "entity " + string(p.Entity)})
}

func withPort(base *selector, port NamedPort) *selector {
	text := fmt.Sprintf("%s, with port %s=%d/%s", base.text, port.Name, port.Port, protocolName(port.Protocol))
	return named(&selector{port: &portSelector{base, port}, text: text})
}

// named gives a selector the digest of its text, which is injective: kinds begin differently.
func named(s *selector) *selector {
	s.digest = digestOf("policy.selector/1", s.text)
	return s
}

// canonical returns the range with its prefixes masked, sorted and without repetition.
func (c CIDR) canonical() CIDR {
	except := make([]netip.Prefix, 0, len(c.Except))
	for _, x := range c.Except {
		except = append(except, x.Masked())
	}
	slices.SortFunc(except, netip.Prefix.Compare)
	return CIDR{Prefix: c.Prefix.Masked(), Except: slices.Compact(except), OutsideOnly: c.OutsideOnly}
}

// String prints the range, for example "10.0.0.0/8 except 10.1.0.0/16, outside the cluster".
func (c CIDR) String() string {
	var b strings.Builder
	b.WriteString(c.Prefix.String())
	writeExceptions(&b, c.Except, c.OutsideOnly)
	return b.String()
}

func writeExceptions(b *strings.Builder, except []netip.Prefix, outsideOnly bool) {
	for i, x := range except {
		b.WriteString([]string{" except ", " and "}[min(i, 1)] + x.String())
	}
	if outsideOnly {
		b.WriteString(", outside the cluster")
	}
}

// isRange says whether a selector is of addresses: its borders are in the tree of places.
func (s *selector) isRange() bool { return s.cidr != nil || s.group != nil }

// outsideOnly says whether a selector of addresses leaves out those of the cluster.
func (s *selector) outsideOnly() bool {
	if s.cidr != nil {
		return s.cidr.OutsideOnly
	}
	return s.group.ref.OutsideOnly
}

// exceptions are the prefixes that a selector of addresses leaves out.
func (s *selector) exceptions() []netip.Prefix {
	if s.cidr != nil {
		return s.cidr.Except
	}
	return s.group.ref.Except
}

// matches says whether the selector holds a peer. It does not allocate.
func (s *selector) matches(p *peer) bool {
	switch {
	case p.isUnknown():
		return false // nobody's address is nobody's peer
	case s.any:
		return true
	case s.labels != nil:
		return selects(s.labels, p)
	case s.isRange():
		return slices.ContainsFunc(p.cidrs, func(x *selector) bool { return x.digest == s.digest })
	case s.port != nil:
		return s.port.base.matches(p) && slices.Contains(p.ports, s.port.port)
	}
	return s.entity.holds(p)
}

// selects is a label selector's answer on workloads: it means pods only, unless it asks for what others can be.
func selects(s *label.Selector, w facts) bool {
	if w.isReserved() && !asksForReserved(s) {
		return false
	}
	return s.Matches(w)
}

// asksForReserved says whether a selector speaks of more than pods: of reserved identities, or of API servers, which
// may be nodes or outside the cluster.
func asksForReserved(s *label.Selector) bool {
	return s.Mentions(reservedKey) || s.Mentions(apiServerKey)
}

// facts is what a label selector can ask of a peer or a subject.
type facts interface {
	label.Attributes
	isReserved() bool
}

// holds says whether a peer belongs to an entity.
func (t Entity) holds(p *peer) bool {
	switch t {
	case EntityWorld:
		return p.outside
	case EntityCluster:
		return !p.outside
	case EntityKubeAPIServer:
		return p.isAPIServer()
	}
	return p.isReserved() && p.workload.Reserved.Name() == string(t)
}

// valid says whether a policy may name the entity.
func (t Entity) valid() bool {
	switch t {
	case EntityWorld, EntityWorldIPv4, EntityWorldIPv6, EntityCluster, EntityHost, EntityRemoteNode, EntityKubeAPIServer,
		EntityHealth, EntityInit, EntityUnmanaged, EntityIngress, EntityNobody:
		return true
	}
	return false
}

// registry holds the selectors in use. Label selectors are found by one value that a peer must have, those of named ports
// by the port, and those of addresses by the places that the peer stands for, so that a new peer is compared with the
// few that may match it and not with all.
type registry struct {
	byDigest map[Digest]*selector
	byLabels index[*selector]
	others   map[*selector]struct{} // everybody's, and entities: must be tried on every peer
	byPort   map[NamedPort]map[*selector]struct{}
	byGroup  map[groupKey]map[*selector]struct{} // those of groups, by what they name
	found    bitset                              // what find finds, while it does
}

func newRegistry() registry {
	return registry{
		byDigest: map[Digest]*selector{},
		byLabels: newIndex[*selector](),
		others:   map[*selector]struct{}{},
		byPort:   map[NamedPort]map[*selector]struct{}{},
		byGroup:  map[groupKey]map[*selector]struct{}{},
	}
}

func (r *registry) add(s *selector) {
	r.byDigest[s.digest] = s
	switch {
	case s.cidr != nil: // found by place
	case s.group != nil:
		insert(r.byGroup, s.group.ref.key(), s)
	case s.port != nil:
		insert(r.byPort, s.port.port, s)
	case s.labels != nil:
		r.byLabels.add(s.labels, s)
	default:
		r.others[s] = struct{}{}
	}
}

func (r *registry) remove(s *selector) {
	delete(r.byDigest, s.digest)
	switch {
	case s.cidr != nil:
	case s.group != nil:
		extract(r.byGroup, s.group.ref.key(), s)
	case s.port != nil:
		extract(r.byPort, s.port.port, s)
	case s.labels != nil:
		r.byLabels.remove(s.labels, s)
	default:
		delete(r.others, s)
	}
}

// matching returns the bits of all selectors that hold a peer, and how many were tried.
func (r *registry) matching(p *peer) (found bitset, tried int) {
	tried = r.find(p)
	for _, s := range p.cidrs {
		tried++
		r.found.add(s.bit)
	}
	return slices.Clone(r.found), tried
}

// find is matching for what is no range. What it finds holds until the next time.
func (r *registry) find(p *peer) (tried int) {
	r.found = r.found[:0]
	try := func(some map[*selector]struct{}) {
		for s := range some {
			if tried++; s.matches(p) {
				r.found.add(s.bit)
			}
		}
	}
	try(r.others)
	for i := range p.ports {
		if i == 0 || p.ports[i] != p.ports[i-1] {
			try(r.byPort[p.ports[i]])
		}
	}
	r.byLabels.candidates(p, try)
	return tried
}

// intern returns the selector that means the same as s, with one more reference.
func (e *Engine) intern(s *selector) (*selector, error) {
	if known := e.selectors.byDigest[s.digest]; known != nil {
		set(e.plan, &known.refs, known.refs+1)
		return known, nil
	}
	if s.port != nil {
		base, err := e.intern(s.port.base)
		if err != nil {
			return nil, err
		}
		s = withPort(base, s.port.port)
	}
	bit, err := e.number(KindSelector, s.digest, 1)
	if err != nil {
		return nil, err
	}
	if room := uint32(e.words()) * 64; bit >= room && !e.plan.isShort(KindSelector) {
		return nil, fmt.Errorf("selector %s: got bit %d, rows of classes have %d: class_words is not that of the kernel", s.text, bit, room)
	}
	own := *s // s is a rule's, which other groups and later flushes ask again
	s = &own
	if s.group != nil {
		s.group = &groupSelector{ref: s.group.ref, members: map[netip.Prefix]int{}}
	}
	s.bit, s.refs = bit, 1
	e.selectors.add(s)
	e.plan.undo = append(e.plan.undo, func() { e.selectors.remove(s) })
	e.plan.selectors = append(e.plan.selectors, s)
	return s, nil
}

// unref takes a reference away. The bit stays until the Flush after the one that left the selector unused: programs
// that still name it are judging packets until that one is published.
func (e *Engine) unref(s *selector) {
	set(e.plan, &s.refs, s.refs-1)
	if s.refs == 0 {
		put(e.plan, e.idle, s, struct{}{})
	}
}

// evaluateSelectors sets the bits of new selectors on the peers that match, and marks places that a new range touches.
func (e *Engine) evaluateSelectors() {
	fresh := e.plan.selectors
	e.plan.selectors = nil
	search, some := newRegistry(), false
	for _, s := range fresh {
		if s.isRange() {
			e.addRange(s)
		} else {
			search.add(s)
			some = true
		}
	}
	if !some {
		return
	}
	for p := range maps.Values(e.peers) {
		e.plan.delta.Work.SelectorsEvaluated += search.find(p)
		if bits := p.bits.union(search.found); !bits.equal(p.bits) {
			e.setBits(p, bits)
		}
	}
}

// retire takes back the bits of selectors that no published program names.
func (e *Engine) retire(before []*selector) {
	var gone []*selector
	for _, s := range before {
		if s.refs == 0 {
			gone = append(gone, s)
		}
	}
	if len(gone) == 0 {
		return
	}
	var mask bitset
	for _, s := range gone {
		drop(e.plan, e.idle, s)
		e.selectors.remove(s)
		e.plan.undo = append(e.plan.undo, func() { e.selectors.add(s) })
		e.release(KindSelector, s.digest, 1)
		mask.add(s.bit)
		if s.isRange() {
			e.removeRange(s)
		}
		if s.port != nil {
			e.unref(s.port.base)
		}
	}
	// Peers that may match are those of the classes that have a bit, and those whose class is not decided yet.
	for bit := range mask.all() {
		for c := range e.holders[bit] {
			for p := c.first; p != nil; p = p.next {
				e.strip(p, mask)
			}
		}
	}
	for _, mark := range e.plan.peers.entries {
		e.strip(mark.key, mask)
	}
}

// strip takes the bits of selectors that go away from a peer.
func (e *Engine) strip(p *peer, mask bitset) {
	e.plan.delta.Work.SelectorsEvaluated++
	if bits := p.bits.without(mask); !bits.equal(p.bits) {
		e.setBits(p, bits)
	}
}

// digestOf hashes strings so that no two lists of them give one input.
func digestOf(parts ...string) Digest {
	var buffer [512]byte // most lists fit, so that no memory is asked for
	b := buffer[:0]
	for _, part := range parts {
		b = append(strconv.AppendInt(b, int64(len(part)), 10), ':')
		b = append(b, part...)
	}
	sum := sha256.Sum256(b)
	return Digest(sum[:16])
}

// protocolName is the name of an IP protocol as policies write it, or its number; 0 is any protocol.
func protocolName(protocol uint8) string {
	if protocol == 0 {
		return "any"
	}
	return ipproto.ManifestName(protocol)
}
