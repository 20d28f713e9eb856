package policy

import (
	"net/netip"
	"slices"

	"tendril.io/tendril/bpf"
	"tendril.io/tendril/internal/identity"
)

const addressCluster = uint32(bpf.AddressFlagCluster)

// place is a prefix that something is said about: a fact, a border of a range that some selector names, or both. It
// is a row of addresses (full length) or prefixes, except where nobody's address stays nobody's.
type place struct {
	prefix   netip.Prefix
	fact     *AddressFact // nil: what the next wider place with a fact says
	includes []*selector  // ranges that begin here
	excepts  []*selector  // ranges that leave this out
	peer     *peer        // of the row
	published
}

// published is what the kernel holds for a prefix.
type published struct {
	row   AddressRow
	shown bool
}

// worldFacts are what holds where nobody said anything: the outside, for each family.
func worldPrefixes() []netip.Prefix {
	return []netip.Prefix{netip.PrefixFrom(netip.IPv4Unspecified(), 0), netip.PrefixFrom(netip.IPv6Unspecified(), 0)}
}

func worldFact() *AddressFact { return &AddressFact{Reserved: identity.World} }

// placeAt returns the place of a prefix, which is made when somebody first asks, and marks it.
func (e *Engine) placeAt(prefix netip.Prefix) *place {
	p := e.places.get(prefix)
	if p == nil {
		p = &place{prefix: prefix}
		e.places.put(prefix, p)
		e.plan.undo = append(e.plan.undo, func() { e.places.remove(prefix) })
	}
	e.plan.rows.put(p, struct{}{})
	return p
}

// setFact says what is known of a prefix; nil: nothing any more.
func (e *Engine) setFact(prefix netip.Prefix, fact *AddressFact) {
	if fact == nil && prefix.Bits() == 0 {
		fact = worldFact()
	}
	p := e.places.get(prefix)
	if p == nil && fact == nil || p != nil && p.fact.equal(fact) {
		return
	}
	p = e.placeAt(prefix)
	set(e.plan, &p.fact, fact)
	e.plan.delta.Changed = true
	if !prefix.IsSingleIP() {
		e.markWithin(prefix)
	}
}

// equal says whether two facts say the same. Workloads are canonical.
func (f *AddressFact) equal(other *AddressFact) bool {
	if f == nil || other == nil {
		return f == other
	}
	same := f.Reserved == other.Reserved && f.APIServer == other.APIServer && f.Node == other.Node && f.Endpoint == other.Endpoint && f.Flags == other.Flags
	if f.Workload == nil || other.Workload == nil {
		return same && f.Workload == other.Workload
	}
	return same && f.Workload.equal(other.Workload)
}

func (w *Workload) equal(other *Workload) bool {
	return w.Reserved == other.Reserved && w.Identity == other.Identity && w.Namespace == other.Namespace &&
		slices.Equal(w.NamedPorts, other.NamedPorts)
}

// markWithin marks every place inside a prefix.
func (e *Engine) markWithin(prefix netip.Prefix) {
	for p := range e.places.within(prefix) {
		e.plan.rows.put(p, struct{}{})
	}
}

// addRange puts the borders of a selector of addresses into the tree and marks what lies inside.
func (e *Engine) addRange(s *selector) {
	for _, except := range s.exceptions() {
		p := e.placeAt(except)
		set(e.plan, &p.excepts, append(slices.Clip(p.excepts), s))
	}
	if s.cidr != nil {
		e.include(s, s.cidr.Prefix)
	} else {
		e.fillGroup(s)
	}
}

// removeRange is the opposite.
func (e *Engine) removeRange(s *selector) {
	for _, except := range s.exceptions() {
		p := e.placeAt(except)
		set(e.plan, &p.excepts, without(p.excepts, s))
	}
	if s.cidr != nil {
		e.exclude(s, s.cidr.Prefix)
		return
	}
	for prefix := range s.group.members {
		e.exclude(s, prefix)
	}
}

// include says that a range of a selector begins at a prefix.
func (e *Engine) include(s *selector, prefix netip.Prefix) {
	p := e.placeAt(prefix)
	set(e.plan, &p.includes, append(slices.Clip(p.includes), s))
	e.markWithin(prefix)
	e.plan.delta.Changed = true
}

// exclude is the opposite.
func (e *Engine) exclude(s *selector, prefix netip.Prefix) {
	p := e.placeAt(prefix)
	set(e.plan, &p.includes, without(p.includes, s))
	e.markWithin(prefix)
}

func without(list []*selector, s *selector) []*selector {
	return slices.DeleteFunc(slices.Clone(list), func(x *selector) bool { return x == s })
}

// settleRows computes the marked rows again, in the order of their prefixes so that a lack of room always shows at
// the same place.
func (e *Engine) settleRows() error {
	e.plan.rows.sort(func(a, b *place) int { return a.prefix.Compare(b.prefix) })
	for _, marked := range e.plan.rows.take() {
		if err := e.settleRow(marked.key); err != nil {
			return err
		}
	}
	return nil
}

func (e *Engine) settleRow(p *place) error {
	e.plan.delta.Work.AddressesEvaluated++
	if p.fact == nil && len(p.includes) == 0 && len(p.excepts) == 0 {
		e.hide(p)
		if e.places.get(p.prefix) == p {
			e.places.remove(p.prefix)
			e.plan.undo = append(e.plan.undo, func() { e.places.put(p.prefix, p) })
		}
		return nil
	}
	fact, cidrs := e.surroundings(p.prefix)
	if p.fact == nil && fact.isUnknown() {
		e.hide(p) // the wider row says all there is to say
		return nil
	}
	next, err := e.peerOf(fact, cidrs)
	if err != nil {
		return err
	}
	// The new peer is referred to before the old one is released, since both may be one.
	if p.peer != nil {
		e.releasePeer(p.peer)
	}
	set(e.plan, &p.peer, next)
	row := AddressRow{Prefix: p.prefix, Peer: next.number, Node: fact.Node, Endpoint: fact.Endpoint, Flags: fact.Flags}
	e.show(p, published{row, true})
	return nil
}

// surroundings returns what is known of a prefix and the ranges that hold it.
func (e *Engine) surroundings(prefix netip.Prefix) (*AddressFact, []*selector) {
	var fact *AddressFact
	for p := range e.places.covering(prefix) {
		if p.fact != nil {
			fact = p.fact
		}
	}
	if fact.isUnknown() {
		return fact, nil
	}
	return fact, e.rangesAround(prefix, fact.isOutside())
}

// rangesAround lists the ranges that hold a prefix whose owner is, or is not, outside the cluster, by digest.
func (e *Engine) rangesAround(prefix netip.Prefix, outside bool) []*selector {
	var in, out []*selector
	for p := range e.places.covering(prefix) {
		in = append(in, p.includes...)
		out = append(out, p.excepts...)
	}
	in = slices.DeleteFunc(in, func(s *selector) bool {
		return s.outsideOnly() && !outside || slices.Contains(out, s)
	})
	slices.SortFunc(in, func(a, b *selector) int { return compareDigests(a.digest, b.digest) })
	return slices.Compact(in) // a group may have a prefix inside another
}

func (f *AddressFact) isUnknown() bool { return f.Workload == nil && f.Reserved == identity.Unknown }

// show makes a row what the kernel is to hold.
func (e *Engine) show(p *place, next published) {
	if p.published == next {
		return
	}
	if _, was := e.plan.before.get(p.prefix); !was {
		e.plan.before.put(p.prefix, p.published)
	}
	set(e.plan, &p.published, next)
	e.plan.after.put(p.prefix, next)
}

func (e *Engine) hide(p *place) {
	if p.peer != nil {
		e.releasePeer(p.peer)
		set(e.plan, &p.peer, nil)
	}
	e.show(p, published{})
}

// collectRows puts the rows that differ from what is published into the delta.
func (e *Engine) collectRows() {
	for _, changed := range e.plan.after.entries {
		before, _ := e.plan.before.get(changed.key)
		switch now := changed.value; {
		case now == before:
		case now.shown:
			e.plan.delta.Set = append(e.plan.delta.Set, now.row)
		default:
			e.plan.delta.Unset = append(e.plan.delta.Unset, changed.key)
		}
	}
}
