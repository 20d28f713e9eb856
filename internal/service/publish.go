package service

import (
	"cmp"
	"net/netip"
	"slices"

	"tendril.io/tendril/bpf"
	"tendril.io/tendril/internal/policy"
	"tendril.io/tendril/internal/table"
)

// publication is what the kernel has of a service.
type publication struct {
	live      bool   // it has frontends, and so a number
	number    uint32 // of the service
	members   []member
	ranges    []slotRange
	guards    []netip.Prefix
	frontends []FrontendKey
}

// guardRows are the source ranges of a publication, as the kernel has them.
func (p *publication) guardRows() []GuardRow {
	var rows []GuardRow
	for _, prefix := range p.guards {
		rows = append(rows, GuardRow{p.number, prefix})
	}
	return rows
}

// member is a backend that a service lists.
type member struct {
	backend *backendState
	active  bool // it is in one of the service's sets
}

// slotRange is a range of slots that a service holds.
type slotRange struct {
	digest   policy.Digest
	first    uint32
	backends []uint32 // content; empty: the range is none
}

// slots is where the range stands.
func (r slotRange) slots() bpf.SlotRange {
	return bpf.SlotRange{First: r.first, Count: uint32(len(r.backends))}
}

// frontendState is a frontend in the kernel and the service that put it there.
type frontendState struct {
	row   FrontendRow
	owner serviceKey
}

// backendState is a backend with a number.
type backendState struct {
	name      backendName
	index     uint32
	members   int32 // publications of its service that list it: one, in the midst of a change two
	active    int32 // of those, how many send it new connections
	node      string
	published BackendRow // State BackendGone: the kernel has not heard of it
	touched   bool
}

// change gathers what one Flush touches.
type change struct {
	slots     []SlotRange
	guards    []GuardRow
	unguarded []GuardRow
	frontends map[FrontendKey]FrontendRow // as they were before; zero Addr: there was none
	backends  []*backendState
	work      Work
}

// Flush computes what changed since the last one. A service that there is no room for keeps in the kernel what it had,
// is named by Problems, and is tried again by the next flush after something was released: call Flush until it is empty.
func (b *Brain) Flush() Delta {
	b.change = change{frontends: make(map[FrontendKey]FrontendRow)}
	b.touchLate()
	released := b.released
	keys := b.dirty
	b.dirty = nil
	slices.SortFunc(keys, serviceKey.compare)
	for _, key := range keys {
		r := b.services[key]
		r.dirty = false
		if !b.publish(key, r) {
			b.stuck[key] = struct{}{}
			b.stuckAt = released
			continue
		}
		delete(b.stuck, key)
		if r.service == nil && len(r.slices) == 0 {
			delete(b.services, key)
		}
	}
	return b.delta()
}

// touchLate marks what inputs alone do not: services without room when there may be some now, services and backends
// that a node's zone or number concerns.
func (b *Brain) touchLate() {
	if len(b.stuck) > 0 && (b.released != b.stuckAt || len(b.dirty) == 0) {
		for key := range b.stuck {
			b.touch(key, b.services[key])
		}
	}
	if b.zonesDirty {
		for key, r := range b.services {
			if r.service != nil && (r.service.TrafficDistribution != "" || r.hasHints()) {
				b.touch(key, r)
			}
		}
	}
	if b.nodesDirty {
		for _, state := range b.backends {
			if state.published.Node != b.nodes[state.node].number {
				b.touchBackend(state)
			}
		}
	}
	b.touchMoved()
	b.zonesDirty, b.nodesDirty = false, false
}

// publish makes one service's publication what its plan says. If there is no room it leaves the publication as it is
// and notes the problem.
func (b *Brain) publish(key serviceKey, r *record) bool {
	b.change.work.ServicesRecomputed++
	// Three steps: what it should be, in names; the numbers for it, which may run out; and only then the change.
	p := b.plan(key, r)
	next, fresh, err := b.number(key, r, &p)
	if err != nil {
		r.problems = append(p.problems, noRoom(key, err))
		b.rollBack(key, r, &next)
		return false
	}
	r.problems = p.problems
	b.change.slots = append(b.change.slots, fresh...)
	b.commit(key, r, &p, next)
	return true
}

// number assigns everything that a plan needs. On error the result holds what was assigned so far.
func (b *Brain) number(key serviceKey, r *record, p *plan) (next publication, fresh []SlotRange, err error) {
	if len(p.frontends) == 0 {
		return next, nil, nil
	}
	if next.number = r.published.number; !r.published.live {
		if next.number, err = b.numbers.Assign(policy.KindService, key.digest(), 1); err != nil {
			return next, nil, err
		}
	}
	next.live, next.guards = true, p.guards
	// Members first: the slots of a set are written in their numbers.
	next.members = make([]member, 0, len(p.members))
	for _, e := range p.members {
		state, err := b.backend(backendName{key, e.key}, e.node)
		if err != nil {
			return next, nil, err
		}
		next.members = append(next.members, member{backend: state})
	}
	for i := range p.sets {
		held, isFresh, err := b.numberSet(key, r, &next, p, p.sets[i].chosen())
		if err != nil {
			return next, nil, err
		}
		next.ranges = append(next.ranges, held)
		if isFresh {
			fresh = append(fresh, SlotRange{held.first, held.backends})
		}
	}
	return next, fresh, nil
}

// backend returns the state of a backend, with a number of its own if it is new.
func (b *Brain) backend(name backendName, node string) (*backendState, error) {
	if state, ok := b.backends[name]; ok {
		return state, nil
	}
	index, err := b.numbers.Assign(policy.KindBackend, name.digest(), 1)
	if err != nil {
		return nil, err
	}
	state := &backendState{name: name, index: index, node: node}
	b.backends[name] = state
	b.touchBackend(state)
	return state, nil
}

// numberSet gives a set its range of slots: one that the service holds already if the content is the same, else a fresh
// one that has to be written. Ranges stand in next in the order of the plan's sets.
func (b *Brain) numberSet(key serviceKey, r *record, next *publication, p *plan, set backendSet) (held slotRange, fresh bool, err error) {
	slots, err := slotOrder(set, r.service.Algorithm, b.config.MaglevSize)
	if err != nil || len(slots) == 0 {
		return slotRange{}, false, err
	}
	b.change.work.SlotsComputed += len(slots)
	// Members are sorted, and every endpoint of a set is one of them.
	indexes := make([]uint32, len(set))
	for i, e := range set {
		at, _ := slices.BinarySearchFunc(p.members, e.key, func(m endpoint, k backendKey) int { return m.key.compare(k) })
		next.members[at].active = true
		indexes[i] = next.members[at].backend.index
	}
	for i, at := range slots {
		slots[i] = indexes[at]
	}
	// Ranges are found by content: frontends of one service share one, and what did not change is not written again.
	digest := slotsDigest(key, slots)
	for _, ranges := range [][]slotRange{next.ranges, r.published.ranges} {
		for _, held := range ranges {
			if held.digest == digest && len(held.backends) > 0 {
				return held, false, nil
			}
		}
	}
	first, err := b.numbers.Assign(policy.KindSlots, digest, uint32(len(slots)))
	return slotRange{digest, first, slots}, true, err
}

// rollBack gives back what number assigned and the service does not hold. New backends that nobody lists go at the end
// of the flush.
func (b *Brain) rollBack(key serviceKey, r *record, next *publication) {
	if next.live && !r.published.live {
		b.release(policy.KindService, key.digest())
	}
	b.releaseRanges(next.ranges, r.published.ranges)
}

// releaseRanges releases the ranges in old that are not in kept.
func (b *Brain) releaseRanges(old, kept []slotRange) {
	var done []policy.Digest
	for _, held := range old {
		stays := slices.ContainsFunc(kept, func(k slotRange) bool { return k.digest == held.digest })
		if len(held.backends) > 0 && !stays && !slices.Contains(done, held.digest) {
			done = append(done, held.digest)
			b.release(policy.KindSlots, held.digest)
		}
	}
}

// release gives a number back.
func (b *Brain) release(kind policy.Kind, digest policy.Digest) {
	b.numbers.Release(kind, digest)
	b.released++
}

// commit replaces a service's publication.
func (b *Brain) commit(key serviceKey, r *record, p *plan, next publication) {
	// Count the new members before the old ones: a backend in both must not touch zero, or it would lose its number.
	old := r.published
	for i, m := range next.members {
		b.count(m, +1)
		if node := p.members[i].node; m.backend.node != node {
			m.backend.node = node
			b.touchBackend(m.backend)
		}
	}
	for _, m := range old.members {
		b.count(m, -1)
	}
	for _, f := range p.frontends {
		next.frontends = append(next.frontends, f.key)
		b.touchFrontend(f.key)
		b.frontends[f.key] = frontendState{b.frontendRow(f, r.service, &next), key}
	}
	slices.SortFunc(next.frontends, FrontendKey.Compare)
	// A frontend that another service has taken over in the meantime is not ours to remove.
	for _, gone := range old.frontends {
		_, stays := slices.BinarySearchFunc(next.frontends, gone, FrontendKey.Compare)
		if b.frontends[gone].owner == key && !stays {
			b.touchFrontend(gone)
			delete(b.frontends, gone)
		}
	}
	b.change.guards = append(b.change.guards, without(next.guardRows(), old.guardRows())...)
	b.change.unguarded = append(b.change.unguarded, without(old.guardRows(), next.guardRows())...)
	b.releaseRanges(old.ranges, next.ranges)
	if old.live && !next.live {
		b.release(policy.KindService, key.digest())
	}
	if p.health != nil {
		b.health[key] = *p.health
	} else {
		delete(b.health, key)
	}
	r.published = next
}

// without returns the rows that are not among others.
func without(rows, others []GuardRow) []GuardRow {
	return slices.DeleteFunc(rows, func(row GuardRow) bool { return slices.Contains(others, row) })
}

// frontendRow is what the kernel should have of a frontend.
func (b *Brain) frontendRow(f frontendPlan, service *table.Service, p *publication) FrontendRow {
	row := FrontendRow{
		FrontendKey: f.key, Inside: p.ranges[f.inside].slots(), Service: p.number, AffinitySeconds: service.AffinitySeconds,
	}
	if f.key.Addr.IsLoopback() {
		row.Flags |= bpf.FrontendLoopback
	}
	if f.place.external {
		row.Flags |= bpf.FrontendExternal
		row.Outside = p.ranges[f.outside].slots()
	}
	if f.place.external && (service.Forwarding == ForwardingDSR || b.config.DSR && service.Forwarding == "") {
		row.Flags |= bpf.FrontendDSR
	}
	if f.place.guarded {
		row.Flags |= bpf.FrontendGuarded
	}
	if service.Algorithm == AlgorithmMaglev {
		row.Flags |= bpf.FrontendHash
	}
	return row
}

// count adds a member to its backend's counts, or takes it away.
func (b *Brain) count(m member, by int32) {
	m.backend.members += by
	if m.active {
		m.backend.active += by
	}
	b.touchBackend(m.backend)
}

// touchBackend has the end of the flush look at a backend.
func (b *Brain) touchBackend(state *backendState) {
	if !state.touched {
		state.touched = true
		b.change.backends = append(b.change.backends, state)
	}
}

// touchFrontend remembers a frontend as it was before this flush.
func (b *Brain) touchFrontend(key FrontendKey) {
	if _, ok := b.change.frontends[key]; !ok {
		b.change.frontends[key] = b.frontends[key].row
	}
}

// row is what the kernel should have of a backend.
func (b *Brain) row(s *backendState) BackendRow {
	state := bpf.BackendGone
	switch {
	case s.active > 0:
		state = bpf.BackendActive
	case s.members > 0:
		state = bpf.BackendTerminating
	}
	at := s.name.key
	return BackendRow{s.index, at.addr, at.port, at.proto, state, b.nodes[s.node].number}
}

// delta turns what was touched into what differs.
func (b *Brain) delta() Delta {
	d := Delta{Slots: b.change.slots, Guards: b.change.guards, Unguarded: b.change.unguarded, Work: b.change.work}
	for _, state := range b.change.backends {
		// Counts may have gone up and down within the flush: only what they are now matters.
		state.touched = false
		was, is := state.published, b.row(state)
		state.published = is
		switch {
		case is.State == bpf.BackendGone:
			delete(b.backends, state.name)
			b.release(policy.KindBackend, state.name.digest())
			if was.State != bpf.BackendGone {
				d.Retired = append(d.Retired, is)
			}
		case was.State == bpf.BackendActive && is.State != bpf.BackendActive:
			d.Retired = append(d.Retired, is)
		case is != was:
			d.Backends = append(d.Backends, is)
		}
	}
	for key, was := range b.change.frontends {
		// A frontend that changed hands was touched twice; the kernel sees one row.
		now, ok := b.frontends[key]
		switch {
		case !ok && was.Addr.IsValid():
			d.Removed = append(d.Removed, key)
		case ok && now.row != was:
			d.Frontends = append(d.Frontends, now.row)
		}
	}
	d.sort()
	return d
}

// Snapshot returns everything that is published, as a delta to a kernel that has nothing: for pruning what a former
// agent left.
func (b *Brain) Snapshot() Delta {
	var d Delta
	for _, state := range b.backends {
		d.Backends = append(d.Backends, state.published)
	}
	for _, f := range b.frontends {
		d.Frontends = append(d.Frontends, f.row)
	}
	for _, r := range b.services {
		for _, held := range r.published.ranges {
			if len(held.backends) > 0 {
				d.Slots = append(d.Slots, SlotRange{held.first, held.backends})
			}
		}
		d.Guards = append(d.Guards, r.published.guardRows()...)
	}
	d.sort()
	d.Slots = slices.CompactFunc(d.Slots, func(x, y SlotRange) bool { return x.First == y.First })
	return d
}

// sort puts rows into the order that Delta promises, and counts them.
func (d *Delta) sort() {
	byIndex := func(x, y BackendRow) int { return cmp.Compare(x.Index, y.Index) }
	slices.SortFunc(d.Backends, byIndex)
	slices.SortFunc(d.Retired, byIndex)
	slices.SortFunc(d.Slots, func(x, y SlotRange) int { return cmp.Compare(x.First, y.First) })
	slices.SortFunc(d.Guards, GuardRow.compare)
	slices.SortFunc(d.Unguarded, GuardRow.compare)
	slices.SortFunc(d.Frontends, func(x, y FrontendRow) int { return x.Compare(y.FrontendKey) })
	slices.SortFunc(d.Removed, FrontendKey.Compare)
	d.Work.KernelWrites = len(d.Backends) + len(d.Retired) + len(d.Frontends) + len(d.Removed) + len(d.Guards) + len(d.Unguarded)
	for _, r := range d.Slots {
		d.Work.KernelWrites += len(r.Backends)
	}
}
