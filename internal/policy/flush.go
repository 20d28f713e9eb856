package policy

import (
	"cmp"
	"errors"
	"maps"
	"net/netip"
	"slices"
	"strings"

	"tendril.io/tendril/internal/identity"
	"tendril.io/tendril/internal/label"
)

// Flush takes in what is staged and returns what the kernel must learn. A policy that does not fit is refused (see
// Refused, room.go) and the rest goes on; where the lack of room is nobody's policy, Flush fails, nothing has changed, and the
// inputs stay staged.
//
// The stages of a flush are the methods of this file, in order.
func (e *Engine) Flush() (Delta, error) {
	before := e.givenPolicies()
	e.tryAgain()
	var now []Key // refused in this flush
	for {
		err := e.apply()
		if err == nil {
			break
		}
		e.rollback()
		var room *RoomError
		if !errors.As(err, &room) || !e.refuse(room) {
			e.staged.policies, e.refused = before()
			return Delta{}, err
		}
		now = append(now, room.Policy)
	}
	// The loop ends: each round refuses a policy that the round before had.
	//
	e.retry = e.worthAnother(now)
	e.staged.reset()
	e.started = true
	return e.commit(), nil
}

// givenPolicies remembers the policies that are staged and refused; of none, as in most flushes, at no cost.
func (e *Engine) givenPolicies() (again func() (map[Key]*policyInput, map[Key]refusal)) {
	if len(e.staged.policies)+len(e.refused) == 0 {
		return func() (map[Key]*policyInput, map[Key]refusal) { return map[Key]*policyInput{}, map[Key]refusal{} }
	}
	staged, refused := maps.Clone(e.staged.policies), maps.Clone(e.refused)
	return func() (map[Key]*policyInput, map[Key]refusal) { return staged, refused }
}

// worthAnother picks, of the policies refused in this flush, those that the next one tries again. What a refused policy
// had taken is free only after the next publication, so that one refusal may have caused another: all but the first
// are tried once more, as long as some of those that were tried again did fit.
func (e *Engine) worthAnother(refused []Key) []Key {
	fits := func(key Key) bool { return !slices.Contains(refused, key) }
	if len(e.retry) > 0 && !slices.ContainsFunc(e.retry, fits) {
		return nil
	}
	return refused[min(1, len(refused)):]
}

// tryAgain stages refused policies once more if something that was changed or let go may have made room: a pod that
// comes makes none.
func (e *Engine) tryAgain() {
	if len(e.refused) == 0 {
		return
	}
	moved := len(e.staged.policies)+len(e.idle) > 0
	for endpoint := range e.staged.subjects {
		moved = moved || e.subjects[endpoint] != nil
	}
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
	idle := sortedKeys(e.idle, func(a, b *selector) int { return compareDigests(a.digest, b.digest) })
	byDigest := func(a, b *group) int { return compareDigests(a.digest, b.digest) }
	emptied, ended := sortedKeys(e.emptied, byDigest), sortedKeys(e.ended, byDigest)
	// Namespaces first, since policies select by their labels; subjects last, since a new group asks the policies.
	e.applyDenyLocalHost()
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
	none := &class{digest: bitset{}.digest()}
	put(e.plan, e.classes, none.digest, none)
	e.plan.delta.Classes = append(e.plan.delta.Classes, ClassRow{})
	for _, r := range identity.AllReserved() {
		p := newPeer(&AddressFact{Reserved: r, Flags: addressCluster})
		p.number, p.refs = uint32(r), 1
		p.digest = p.meaning()
		put(e.plan, e.reserved, r, p)
		put(e.plan, e.peers, p.digest, p)
		p.bits, _ = e.selectors.matching(p)
		e.plan.peers.put(p, struct{}{})
	}
	for _, prefix := range worldPrefixes() {
		e.setFact(prefix, nil)
	}
	return nil
}

// applyDenyLocalHost has every pod's programs compiled again if the node is to reach pods by another rule.
func (e *Engine) applyDenyLocalHost() {
	if e.staged.denyLocalHost == nil {
		return
	}
	set(e.plan, &e.config.DenyLocalHost, *e.staged.denyLocalHost)
	for _, g := range e.groups {
		e.plan.groups.put(g, struct{}{})
	}
}

func (e *Engine) applyNamespaces() {
	for _, name := range sortedKeys(e.staged.namespaces, strings.Compare) {
		labels := label.Set{}
		if given := e.staged.namespaces[name]; given != nil {
			labels = *given
		}
		e.relabel(name, labels)
	}
}

// applyPolicies exchanges the staged policies, and looks at every group once, whatever their number.
func (e *Engine) applyPolicies() {
	if len(e.staged.policies) == 0 {
		return
	}
	fresh, gone := specIndex{newIndex[*specState]()}, map[*policyState]struct{}{}
	for _, key := range sortedKeys(e.staged.policies, Key.Compare) {
		old, next := e.policies[key], newPolicyState(e.staged.policies[key])
		if old != nil {
			gone[old] = struct{}{}
		}
		if next == nil {
			drop(e.plan, e.policies, key)
		} else {
			put(e.plan, e.policies, key, next)
		}
		e.indexSpecs(old, next)
		next.eachSpec(fresh.addSpec)
	}
	for _, g := range e.groups {
		e.replaceSpecs(g, gone, &fresh)
	}
}

// indexSpecs makes new groups find the specs of a policy instead of those of another.
func (e *Engine) indexSpecs(old, next *policyState) {
	old.eachSpec(e.specs.removeSpec)
	next.eachSpec(e.specs.addSpec)
	e.plan.undo = append(e.plan.undo, func() {
		next.eachSpec(e.specs.removeSpec)
		old.eachSpec(e.specs.addSpec)
	})
}

func (s *policyState) eachSpec(do func(*specState)) {
	if s == nil {
		return
	}
	for _, spec := range s.specs {
		do(spec)
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

// selecting appends the specs of an index that select a group.
func (g *group) selecting(specs []*specState, of *specIndex) []*specState {
	of.candidates(g, func(some map[*specState]struct{}) {
		for s := range some {
			if selects(&s.spec.Subject, g) {
				specs = append(specs, s)
			}
		}
	})
	return specs
}

// replaceSpecs exchanges policies for others in a group, which is marked if any of them selects it.
func (e *Engine) replaceSpecs(g *group, gone map[*policyState]struct{}, fresh *specIndex) {
	isGone := func(s *specState) bool { _, is := gone[s.policy]; return is }
	added := g.selecting(nil, fresh)
	if len(added) == 0 && !slices.ContainsFunc(g.specs, isGone) {
		return
	}
	specs := append(slices.DeleteFunc(slices.Clone(g.specs), isGone), added...)
	slices.SortFunc(specs, compareSpecs)
	set(e.plan, &g.specs, specs)
	e.plan.groups.put(g, struct{}{})
}

// selectAgain finds the specs that select a group from nothing.
func (e *Engine) selectAgain(g *group) {
	specs := g.selecting(nil, &e.specs)
	slices.SortFunc(specs, compareSpecs)
	if !slices.Equal(specs, g.specs) {
		set(e.plan, &g.specs, specs)
		e.plan.groups.put(g, struct{}{})
	}
}

func (e *Engine) applyAddresses() {
	e.staged.addresses.sort(netip.Prefix.Compare)
	for _, given := range e.staged.addresses.entries {
		e.setFact(given.key, given.value)
	}
}

func (e *Engine) applySubjects() error {
	for _, endpoint := range sortedKeys(e.staged.subjects, cmp.Compare) {
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
	e.plan.subjects.put(s, struct{}{})
	return nil
}

// groupOf returns the group of a workload, made if it is new. It is not among those whose programs exist yet.
func (e *Engine) groupOf(w *Workload) *group {
	digest := w.digest("group", nil)
	if known := e.groups[digest]; known != nil {
		if len(known.subjects) == 0 {
			e.plan.groups.put(known, struct{}{}) // its programs were not kept up to date
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
	e.plan.groups.put(g, struct{}{})
	return g
}

// settle computes until nothing is marked any more. Programs need selectors, which move addresses to other peers,
// which may give new numbers to named ports, which programs resolve; no step brings back an earlier one's cause.
func (e *Engine) settle() error {
	p := e.plan
	for {
		var err error
		switch {
		case p.groups.len() > 0:
			err = e.settleGroups()
		case len(p.selectors) > 0:
			e.evaluateSelectors()
		case p.rows.len() > 0:
			err = e.settleRows()
		case p.spent.len() > 0:
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
	for _, mark := range e.plan.spaces.entries {
		if space := mark.key; space.labels.Len() == 0 && len(space.peers) == 0 && len(space.groups) == 0 {
			drop(e.plan, e.namespaces, space.name)
		}
	}
}

// collect gathers the delta from what the stages left behind.
func (e *Engine) collect() {
	p := e.plan
	for _, fresh := range p.fresh.entries {
		p.delta.Contents = append(p.delta.Contents, ContentRow{FirstCell: fresh.value.first, Cells: fresh.value.cells})
	}
	for _, changed := range p.programs.entries {
		p.delta.Programs = append(p.delta.Programs, ProgramRow{Program: changed.key, Descriptor: changed.value.descriptor()})
		p.delta.Changed = true
	}
	e.collectRows()
	for _, mark := range p.subjects.entries {
		e.collectSubject(mark.key)
	}
	for _, mark := range p.recomputed.entries {
		p.delta.Work.SubjectsRecomputed += len(mark.key.subjects)
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
