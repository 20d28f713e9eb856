package policy

import (
	"cmp"
	"errors"
	"maps"
	"net/netip"
	"slices"

	"tendril.io/tendril/internal/identity"
	"tendril.io/tendril/internal/label"
)

// Flush takes in what is staged and returns what the kernel must learn. A policy that does not fit is refused (see
// Refused, room.go) and the rest goes on; where the lack of room is nobody's policy, Flush fails, nothing has changed, and the
// inputs stay staged.
//
// The stages of a flush are the methods of this file, in order.
func (e *Engine) Flush() (Delta, error) {
	staged, refused := maps.Clone(e.staged.policies), maps.Clone(e.refused)
	e.tryAgain()
	var now []Key // refused in this flush
	for {
		e.plan = newPlan()
		err := e.apply()
		if err == nil {
			break
		}
		e.rollback()
		var room *RoomError
		if !errors.As(err, &room) || !e.refuse(room) {
			e.staged.policies, e.refused = staged, refused
			return Delta{}, err
		}
		now = append(now, room.Policy)
	}
	// The loop ends: each round refuses a policy that the round before had.
	//
	// What a refused policy had taken is free only after the next publication, so that one refusal may have caused
	// another: all but the first are tried once more then.
	e.retry = now[min(1, len(now)):]
	e.staged, e.started = newStaged(), true
	return e.commit(), nil
}

// tryAgain stages refused policies once more if something that was changed or let go may have made room.
func (e *Engine) tryAgain() {
	moved := len(e.staged.policies)+len(e.idle)+len(e.staged.subjects) > 0
	for key, r := range e.refused {
		if _, newer := e.staged.policies[key]; r.invalid || newer || !moved && !slices.Contains(e.retry, key) {
			continue
		}
		e.staged.policies[key] = &policyInput{policy: r.policy}
		delete(e.refused, key)
	}
}

// apply carries out the plan in the engine's own tables, or fails halfway; the caller then rolls back.
func (e *Engine) apply() error {
	if err := e.start(); err != nil {
		return err
	}
	idle := slices.SortedFunc(maps.Keys(e.idle), func(a, b *selector) int { return compareDigests(a.digest, b.digest) })
	emptied, ended := slices.Collect(maps.Keys(e.emptied)), slices.Collect(maps.Keys(e.ended))
	// Namespaces first, since policies select by their labels; subjects last, since a new group asks the policies.
	e.applyNamespaces()
	e.applyPolicies()
	e.applyAddressGroups()
	e.applyAddresses()
	if err := e.applySubjects(); err != nil {
		return err
	}
	for _, g := range ended {
		e.removeEnded(g)
	}
	for _, g := range emptied {
		drop(e.plan, e.emptied, g)
		if len(g.subjects) == 0 {
			e.removeGroup(g)
		}
	}
	if err := e.settle(); err != nil {
		return err
	}
	// Only selectors that were idle before this flush may go; one of them may have found a program again.
	for _, s := range idle {
		if s.refs > 0 {
			drop(e.plan, e.idle, s)
		}
	}
	e.retire(idle)
	if err := e.settle(); err != nil {
		return err
	}
	if err := e.settlePeers(); err != nil {
		return err
	}
	if err := e.room(); err != nil {
		return err
	}
	e.sweepContents()
	e.sweepNamespaces()
	e.collect()
	return nil
}

// start makes the reserved peers and the two worlds, once.
func (e *Engine) start() error {
	if e.started {
		return nil
	}
	// Everybody's selector comes first and stays, so that it is bit 0 wherever numbers begin at 0.
	if _, err := e.intern(selectorOf(Peer{Any: true})); err != nil {
		return err
	}
	none := &class{refs: 1}
	put(e.plan, e.classes, none.bits.key(), none)
	e.plan.delta.Classes = append(e.plan.delta.Classes, ClassRow{})
	for _, r := range identity.AllReserved() {
		p := newPeer(&AddressFact{Reserved: r, Flags: addressCluster})
		p.number, p.refs = uint32(r), 1
		p.digest = p.workload.digest("peer", []byte{0})
		put(e.plan, e.reserved, r, p)
		put(e.plan, e.peers, p.digest, p)
		p.bits, _ = e.selectors.matching(p)
		e.plan.peers[p] = struct{}{}
	}
	for _, prefix := range worldPrefixes() {
		e.setFact(prefix, nil)
	}
	return nil
}

func (e *Engine) applyNamespaces() {
	for _, name := range slices.Sorted(maps.Keys(e.staged.namespaces)) {
		labels := label.Set{}
		if given := e.staged.namespaces[name]; given != nil {
			labels = *given
		}
		e.relabel(name, labels)
	}
}

func (e *Engine) applyPolicies() {
	for _, key := range slices.SortedFunc(maps.Keys(e.staged.policies), Key.Compare) {
		next := newPolicyState(e.staged.policies[key])
		for _, g := range e.groups {
			e.replaceSpecs(g, e.policies[key], next)
		}
		if next == nil {
			drop(e.plan, e.policies, key)
		} else {
			put(e.plan, e.policies, key, next)
		}
	}
}

func newPolicyState(in *policyInput) *policyState {
	if in == nil {
		return nil
	}
	s := &policyState{policyInput: *in}
	for i := range s.policy.Specs {
		s.specs = append(s.specs, &specState{policy: s, index: i, spec: &s.policy.Specs[i]})
	}
	return s
}

// selecting returns the specs of a policy that select a group.
func (s *policyState) selecting(g *group) []*specState {
	if s == nil {
		return nil
	}
	var out []*specState
	for _, spec := range s.specs {
		if selects(&spec.spec.Subject, g) {
			out = append(out, spec)
		}
	}
	return out
}

// replaceSpecs exchanges one policy for another in a group, which is marked if either selects it.
func (e *Engine) replaceSpecs(g *group, old, next *policyState) {
	fresh := next.selecting(g)
	isOld := func(s *specState) bool { return s.policy == old }
	if len(fresh) == 0 && (old == nil || !slices.ContainsFunc(g.specs, isOld)) {
		return
	}
	specs := slices.DeleteFunc(slices.Clone(g.specs), isOld)
	specs = append(specs, fresh...)
	slices.SortFunc(specs, compareSpecs)
	set(e.plan, &g.specs, specs)
	e.plan.groups[g] = struct{}{}
}

// selectAgain finds the specs that select a group from nothing.
func (e *Engine) selectAgain(g *group) {
	var specs []*specState
	for _, p := range e.policies {
		specs = append(specs, p.selecting(g)...)
	}
	slices.SortFunc(specs, compareSpecs)
	if !slices.Equal(specs, g.specs) {
		set(e.plan, &g.specs, specs)
		e.plan.groups[g] = struct{}{}
	}
}

func (e *Engine) applyAddresses() {
	for _, prefix := range slices.SortedFunc(maps.Keys(e.staged.addresses), netip.Prefix.Compare) {
		e.setFact(prefix, e.staged.addresses[prefix])
	}
}

func (e *Engine) applySubjects() error {
	for _, endpoint := range slices.Sorted(maps.Keys(e.staged.subjects)) {
		if err := e.setSubject(endpoint, e.staged.subjects[endpoint]); err != nil {
			return err
		}
	}
	return nil
}

// setSubject puts an endpoint into the group of its workload; nil takes it away.
func (e *Engine) setSubject(endpoint uint32, w *Workload) error {
	old := e.subjects[endpoint]
	if old != nil && w != nil && old.workload.equal(w) || old == nil && w == nil {
		return nil
	}
	e.plan.delta.Changed = true
	if old != nil {
		drop(e.plan, old.group.subjects, endpoint)
		drop(e.plan, e.subjects, endpoint)
		if len(old.group.subjects) == 0 {
			// Its programs stay until the next flush: the endpoint is judged by them until it has its new ones.
			put(e.plan, e.emptied, old.group, struct{}{})
		}
		e.releasePeer(old.peer)
	}
	if w == nil {
		return nil
	}
	p, err := e.peerOf(&AddressFact{Workload: w, Flags: addressCluster}, nil)
	if err != nil {
		return err
	}
	s := &subject{endpoint: endpoint, workload: *w, peer: p, group: e.groupOf(w)}
	if old != nil {
		s.row = old.row
	}
	put(e.plan, e.subjects, endpoint, s)
	put(e.plan, s.group.subjects, endpoint, s)
	drop(e.plan, e.emptied, s.group) // or the flush in which it is left again would end its programs at once
	e.plan.subjects[s] = struct{}{}
	return nil
}

// groupOf returns the group of a workload, made if it is new. It is not among those whose programs exist yet.
func (e *Engine) groupOf(w *Workload) *group {
	digest := w.digest("group")
	if known := e.groups[digest]; known != nil {
		if len(known.subjects) == 0 {
			e.plan.groups[known] = struct{}{} // its programs were not kept up to date
		}
		return known
	}
	g := &group{digest: digest, workload: *w, subjects: map[uint32]*subject{}}
	if !g.isReserved() {
		g.space = e.namespace(w.Namespace)
		put(e.plan, g.space.groups, g, struct{}{})
	}
	put(e.plan, e.groups, digest, g)
	e.selectAgain(g)
	e.plan.groups[g] = struct{}{}
	return g
}

// settle computes until nothing is marked any more. Programs need selectors, which move addresses to other peers,
// which may give new numbers to named ports, which programs resolve; no step brings back an earlier one's cause.
func (e *Engine) settle() error {
	p := e.plan
	for {
		var err error
		switch {
		case len(p.groups) > 0:
			err = e.settleGroups()
		case len(p.selectors) > 0:
			e.evaluateSelectors()
		case len(p.rows) > 0:
			err = e.settleRows()
		case len(p.spent) > 0:
			e.sweepPeers()
		default:
			return nil
		}
		if err != nil {
			return err
		}
	}
}

// sweepNamespaces forgets namespaces without labels that nobody is in.
func (e *Engine) sweepNamespaces() {
	for name, space := range e.plan.spaces {
		if space.labels.Len() == 0 && len(space.peers) == 0 && len(space.groups) == 0 {
			drop(e.plan, e.namespaces, name)
		}
	}
}

// collect gathers the delta from what the stages left behind.
func (e *Engine) collect() {
	p := e.plan
	for _, c := range p.fresh {
		p.delta.Contents = append(p.delta.Contents, ContentRow{FirstCell: c.first, Cells: c.cells})
	}
	for number, program := range p.programs {
		p.delta.Programs = append(p.delta.Programs, ProgramRow{Program: number, Descriptor: program.descriptor()})
		p.delta.Changed = true
	}
	e.collectRows()
	for s := range p.subjects {
		e.collectSubject(s)
	}
	for g := range p.recomputed {
		p.delta.Work.SubjectsRecomputed += len(g.subjects)
	}
	p.delta.Work.KernelWrites = p.delta.writes()
}

func (e *Engine) collectSubject(s *subject) {
	row := SubjectRow{
		Endpoint: s.endpoint, Peer: s.peer.number,
		Ingress: s.group.programs[Ingress].number, Egress: s.group.programs[Egress].number,
		StagedIngress: s.group.staged[Ingress].publishedNumber(), StagedEgress: s.group.staged[Egress].publishedNumber(),
	}
	if e.subjects[s.endpoint] == s && row != s.row {
		e.plan.delta.Changed = true // also where only the record is to say what a staged policy would do
		set(e.plan, &s.row, row)
		e.plan.delta.Subjects = append(e.plan.delta.Subjects, row)
	}
}

// sort gives the rows an order that does not depend on maps.
func (d *Delta) sort() {
	slices.SortFunc(d.Classes, func(a, b ClassRow) int { return cmp.Compare(a.Class, b.Class) })
	slices.SortFunc(d.Peers, func(a, b PeerRow) int { return cmp.Compare(a.Peer, b.Peer) })
	slices.SortFunc(d.Contents, func(a, b ContentRow) int { return cmp.Compare(a.FirstCell, b.FirstCell) })
	slices.SortFunc(d.Programs, func(a, b ProgramRow) int { return cmp.Compare(a.Program, b.Program) })
	slices.SortFunc(d.Set, func(a, b AddressRow) int { return b.Prefix.Compare(a.Prefix) })
	slices.SortFunc(d.Unset, netip.Prefix.Compare)
	slices.SortFunc(d.Subjects, func(a, b SubjectRow) int { return cmp.Compare(a.Endpoint, b.Endpoint) })
}

// writes counts map entries and array runs that the delta writes.
func (d *Delta) writes() int {
	return len(d.Classes) + len(d.Peers) + len(d.Contents) + len(d.Programs) + len(d.Set) + len(d.Unset) + len(d.Subjects)
}

// Empty says whether the kernel has nothing to learn.
func (d *Delta) Empty() bool { return d.writes() == 0 }
