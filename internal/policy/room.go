package policy

import (
	"cmp"
	"errors"
	"fmt"
	"iter"
	"maps"
	"slices"
	"strconv"

	"tendril.io/tendril/internal/label"
)

// Shortage is the error of Numbers.Assign where a kind has no room.
type Shortage struct {
	Kind    Kind
	Has     uint32 // numbers there are, taken or not
	Asked   uint32 // in a row
	Largest uint32 // row that is free
	Remedy  string
}

// Error names kind, need and room.
func (s *Shortage) Error() string {
	return fmt.Sprintf("assign %s numbers: need %d in a row, at most %d in a row are free of %d: %s", s.Kind, s.Asked, s.Largest, s.Has, s.Remedy)
}

// RoomError says that a policy, or a fact, does not fit. Nothing of it is in force.
type RoomError struct {
	Policy     Key    // zero: not a policy's doing
	What       string // what is too large: the node, or a program and for how many endpoints
	Unit       string // what is counted
	Needs, Has uint64 // of that, with everything that was to be in force
	Remedy     string
}

// Error names the policy and the lack.
func (r *RoomError) Error() string {
	who := "policy engine: "
	if r.Policy != (Key{}) {
		who = fmt.Sprintf("policy %s: does not fit: ", r.Policy)
	}
	return fmt.Sprintf("%s%s needs %s %s, have %s: %s", who, r.What, thousands(r.Needs), r.Unit, thousands(r.Has), r.Remedy)
}

// thousands prints a number as 71,203.
func thousands(n uint64) string {
	text := strconv.FormatUint(n, 10)
	for i := len(text) - 3; i > 0; i -= 3 {
		text = text[:i] + "," + text[i:]
	}
	return text
}

// shortage is the first lack of numbers in a plan. The plan goes on with numbers that nobody has, to learn how many it
// needs in all, and fails in the end.
type shortage struct {
	lack      *Shortage
	compiling compiling
}

// compiling says which program a plan is at; the zero value: at none.
type compiling struct {
	group  *group
	staged bool
}

// number asks for n consecutive numbers, to be given back if the plan fails.
func (e *Engine) number(kind Kind, digest Digest, n uint32) (uint32, error) {
	p, name := e.plan, number{kind, digest}
	_, ours := p.released.get(name) // all the time
	if p.isShort(kind) && !ours {
		return p.pretend(kind, n), nil
	}
	first, err := e.numbers.Assign(kind, digest, n)
	if lack, short := errors.AsType[*Shortage](err); short {
		return e.short(lack), nil
	}
	if err != nil {
		return 0, err
	}
	if ours {
		p.released.drop(name)
		return first, nil
	}
	p.assigned.put(name, n)
	p.taken[kind] += n
	return first, nil
}

// short notes a lack of numbers and stands in for those that were asked for.
func (e *Engine) short(lack *Shortage) uint32 {
	p := e.plan
	p.short = append(p.short, shortage{lack, p.compiling})
	return p.pretend(lack.Kind, lack.Asked)
}

func (p *plan) isShort(kind Kind) bool { return p.shortageOf(kind) >= 0 }

func (p *plan) shortageOf(kind Kind) int {
	return slices.IndexFunc(p.short, func(s shortage) bool { return s.lack.Kind == kind })
}

// pretend counts numbers that there is no room for. What it returns is nobody's; of selectors it is near the others, since
// it becomes a bit.
func (p *plan) pretend(kind Kind, n uint32) uint32 {
	p.taken[kind] += n
	if kind == KindSelector {
		return p.short[p.shortageOf(kind)].lack.Has + p.taken[kind]
	}
	return 1<<24 + p.taken[kind]
}

// release gives numbers back once the plan is carried out.
func (e *Engine) release(kind Kind, digest Digest, n uint32) {
	e.plan.released.put(number{kind, digest}, n)
}

// room says whether a plan that is complete fits.
func (e *Engine) room() error {
	if len(e.plan.short) == 0 {
		return nil
	}
	s := e.plan.short[0]
	err := &RoomError{
		What: "the node", Unit: s.lack.Kind.plural(), Needs: uint64(e.held[s.lack.Kind] + e.plan.taken[s.lack.Kind]), Has: uint64(s.lack.Has),
		Remedy: s.lack.Remedy,
	}
	if err.Needs <= err.Has { // others have them, or they are not in a row
		err.Needs, err.Has, err.Unit = uint64(s.lack.Asked), uint64(s.lack.Largest), "free "+err.Unit+" in a row"
	}
	err.Policy = e.blameForNode(s.compiling)
	return err
}

// programTooLarge is the error of a program that has more cells than their numbers reach.
type programTooLarge struct{ needs int }

func (p *programTooLarge) Error() string { return fmt.Sprintf("program needs %d cells", p.needs) }

// tooLarge blames a policy for a program that does not fit.
func (e *Engine) tooLarge(c compiling, p *programTooLarge) error {
	endpoints := "1 endpoint"
	if n := len(c.group.subjects); n != 1 {
		endpoints = fmt.Sprint(n, " endpoints")
	}
	what := "its program for " + endpoints
	if c.staged {
		what = "its staged program for " + endpoints
	}
	return &RoomError{
		Policy: e.blameForProgram(c), What: what, Unit: "cells", Needs: uint64(p.needs), Has: maxCells, Remedy: "merge port ranges or peers",
	}
}

// blameForProgram finds the policy that made a program too large: of those that select the group, the largest that is new
// in this flush, or else the largest that is in force. A staged program is the staged policies' doing.
func (e *Engine) blameForProgram(c compiling) Key {
	eligible := func(p *Policy) bool {
		return p.Staged == c.staged && slices.ContainsFunc(c.group.specs, func(s *specState) bool { return s.policy.policy.Key == p.Key })
	}
	return cmp.Or(largest(e.fresh(), eligible), largest(e.inForce(), eligible))
}

// blameForNode finds the policy that made numbers short: a staged one, if there is any, since it must not be in the way
// of what is enforced; else the largest that is new in this flush, if possible of those that select the group whose
// program was compiled when the lack showed.
func (e *Engine) blameForNode(c compiling) Key {
	isStaged := func(p *Policy) bool { return p.Staged }
	selects := func(p *Policy) bool {
		return c.group != nil && slices.ContainsFunc(c.group.specs, func(s *specState) bool { return s.policy.policy.Key == p.Key })
	}
	return cmp.Or(
		largest(e.fresh(), isStaged), largest(e.inForce(), isStaged),
		largest(e.fresh(), selects), largest(e.fresh(), func(*Policy) bool { return true }),
	)
}

// fresh yields the policies that are new in this flush.
func (e *Engine) fresh() iter.Seq[*Policy] {
	return func(yield func(*Policy) bool) {
		for _, in := range e.staged.policies {
			if in != nil && !in.standIn && !yield(&in.policy) {
				return
			}
		}
	}
}

// inForce yields the policies in force, as far as a plan has come.
func (e *Engine) inForce() iter.Seq[*Policy] {
	return func(yield func(*Policy) bool) {
		for _, p := range e.policies {
			if !p.standIn && !yield(&p.policy) {
				return
			}
		}
	}
}

// largest returns the key of the largest policy that is eligible; of equals, the last.
func largest(policies iter.Seq[*Policy], eligible func(*Policy) bool) (key Key) {
	most := -1
	for p := range policies {
		if !eligible(p) {
			continue
		}
		if size := p.size(); size > most || size == most && p.Key.Compare(key) > 0 {
			most, key = size, p.Key
		}
	}
	return key
}

// size is about how many entries a policy needs.
func (p *Policy) size() int {
	size := 0
	for i := range p.Specs {
		for _, r := range p.Specs[i].Rules {
			size += len(r.Peers) * max(1, len(r.Ports))
		}
	}
	return size
}

// refusal is a policy that is not in force as given.
type refusal struct {
	policy  Policy
	reason  error
	invalid bool // never to be tried again; otherwise it may fit later
}

// RefusePolicy stages that a policy is there and cannot be read: of p only Key, Revision, Source and Staged count. The
// version in force stays. Where there is none, as after a restart, nobody can say whom it isolated, and leaving it out
// would open pods that were closed: it then isolates every pod of its namespace until it can be read. What other policies
// allow goes on, and so do the node's own probes.
func (e *Engine) RefusePolicy(p Policy, reason error) {
	e.refused[p.Key] = refusal{policy: p, reason: reason, invalid: true}
	in, given := e.staged.policies[p.Key]
	earlier := e.policies[p.Key]
	switch {
	case given && in != nil && !in.standIn, !given && earlier != nil && !earlier.standIn:
	case p.Staged:
		e.staged.policies[p.Key] = nil
	default:
		e.staged.policies[p.Key] = &policyInput{isolation(p), true}
	}
}

// refuse takes a policy that does not fit out of what is to be in force. The version before it stays; where there is none,
// something that is surely closed stands in for it, but for a staged policy, which closes nothing. It says whether there
// was anything to refuse.
func (e *Engine) refuse(room *RoomError) bool {
	key := room.Policy
	in, state := e.staged.policies[key], e.policies[key]
	var p Policy
	switch {
	case in != nil && state != nil && !state.standIn:
		p = in.policy
		delete(e.staged.policies, key)
	case in != nil:
		p = in.policy
		e.staged.policies[key] = closed(p)
	case state != nil:
		p = state.policy
		e.staged.policies[key] = closed(p)
	default:
		return false
	}
	e.refused[key] = refusal{policy: p, reason: room}
	return true
}

// closed is what is in force instead of a policy that does not fit.
func closed(p Policy) *policyInput {
	if p.Staged {
		return nil
	}
	return &policyInput{standIn(p), true}
}

// isolation stands in for a policy that cannot be read: it selects every pod that the policy may have meant, and allows
// nothing. A key without a namespace may have meant any.
func isolation(p Policy) Policy {
	s := Spec{Place: "unreadable", Tier: TierNormal, Isolates: [2]bool{true, true}}
	if p.Key.Namespace != "" {
		// The error is of a namespace that cannot be, where no pod is; the selector of everything is then safe, too.
		s.Subject, _ = label.NewSelector(label.FactIs(label.FactNamespace, p.Key.Namespace))
	}
	return Policy{Key: p.Key, Revision: p.Revision, Source: p.Source, Specs: []Spec{s}}
}

// standIn stands in for a policy that does not fit: it isolates what the policy isolates and allows nothing of what it
// allows, and where the policy denies, redirects or passes on, it denies everything.
func standIn(p Policy) Policy {
	out := Policy{Key: p.Key, Revision: p.Revision, Source: p.Source}
	for _, s := range p.Specs {
		rules := s.Rules
		s.Rules = nil
		for _, d := range []Direction{Ingress, Egress} {
			if slices.ContainsFunc(rules, func(r Rule) bool { return r.Direction == d && r.Action != Allow }) {
				s.Rules = append(s.Rules, Rule{Place: s.Place, Name: "refused", Direction: d, Action: Deny, Peers: []Peer{{Any: true}}})
			}
		}
		out.Specs = append(out.Specs, s)
	}
	return out
}

// Refused lists the policies that are not in force as last given, by key.
func (e *Engine) Refused() []Refusal {
	var out []Refusal
	for _, key := range slices.SortedFunc(maps.Keys(e.refused), Key.Compare) {
		r, state := e.refused[key], e.policies[key]
		out = append(out, Refusal{Key: key, Revision: r.policy.Revision, Reason: r.reason, Isolates: state != nil && state.standIn})
	}
	return out
}
