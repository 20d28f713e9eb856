package policy

import (
	"errors"
	"fmt"

	"tendril.io/tendril/bpf"
)

// Simulation is two engines over the same facts: what is in force, and what would be. Neither has an outlet to the
// kernel, and their numbers mean nothing to anybody else.
//
// Begin one with Simulation or ClusterSimulation, which only copy; Run does the work and does not need the engine it was
// copied from. After that it is only read.
type Simulation struct {
	now, then *Engine
	residents []Resident // of a cluster's simulation
	subjects  []uint32   // what each is judged as, in both engines
	crowds    []*Crowd
}

// Change is the policies that are put in place of, or beside, those in force, and those that go.
type Change struct {
	Set    []Policy
	Delete []Key
}

// Simulation begins one whose subjects are those of this engine.
func (e *Engine) Simulation() *Simulation {
	subjects := make(map[uint32]Workload, len(e.subjects))
	for endpoint, s := range e.subjects {
		subjects[endpoint] = s.workload
	}
	// What would not fit into this node's cells would be refused.
	room := map[Kind]uint32{KindCells: uint32(bpf.CapPolicyCells) - 1}
	return &Simulation{now: e.fork(e.config, subjects, nil), then: e.fork(e.config, subjects, room)}
}

// fork returns an engine that is about to take in this one's namespaces, groups of addresses and policies, but other subjects and no
// addresses: a party that is asked about brings its own.
func (e *Engine) fork(config Config, subjects map[uint32]Workload, room map[Kind]uint32) *Engine {
	f := New(config, &throwaway{room: room, next: map[Kind]uint32{}, held: map[throwawayKey]uint32{}})
	for name, space := range e.namespaces {
		labels := space.labels
		f.staged.namespaces[name] = &labels
	}
	for key, g := range e.addressGroups {
		f.staged.addressGroups[key] = g
	}
	for key, state := range e.policies {
		in := state.policyInput
		f.staged.policies[key] = &in
	}
	for endpoint, w := range subjects {
		f.SetSubject(endpoint, w)
	}
	return f
}

// Run makes both engines. The error holds every policy of the change that would be refused, and why; then nothing can
// be asked.
func (s *Simulation) Run(change Change) error {
	var wrong []error
	for _, key := range change.Delete {
		if s.then.staged.policies[key] == nil {
			wrong = append(wrong, fmt.Errorf("policy %s: there is none to delete", key))
		}
		s.then.DeletePolicy(key)
	}
	for _, p := range change.Set {
		if err := s.then.SetPolicy(p); err != nil {
			wrong = append(wrong, err)
		}
	}
	if len(wrong) > 0 {
		return errors.Join(wrong...)
	}
	for _, e := range []*Engine{s.now, s.then} {
		if _, err := e.Flush(); err != nil {
			return err
		}
		for _, r := range e.Refused() {
			wrong = append(wrong, fmt.Errorf("would be refused: %w", r.Reason)) // which names the policy
		}
	}
	if len(wrong) == 0 && s.residents != nil {
		s.gather()
	}
	return errors.Join(wrong...)
}

// Judge gives the verdicts on a packet now and then, as Engine.Judge does.
func (s *Simulation) Judge(from, to Party, protocol uint8, port uint16) (now, then [2]Judgement) {
	return s.now.Judge(from, to, protocol, port), s.then.Judge(from, to, protocol, port)
}

// Selected says how many of the subjects a policy selects now, and how many it would select.
func (s *Simulation) Selected(key Key) (now, then int) {
	return s.now.Selected(key), s.then.Selected(key)
}

// Decide says what becomes of a packet that both sides judge, egress first, and which side decides: one denial is
// enough, and the packet meets the source's first; else one redirect is; else all who judge allow it.
func Decide(sides [2]Judgement) (Action, string) {
	for _, action := range []Action{Deny, Redirect} {
		for _, side := range sides {
			if side.Judged && side.Action == action {
				return action, side.Direction.String()
			}
		}
	}
	switch {
	case sides[0].Judged && sides[1].Judged:
		return Allow, "both"
	case sides[0].Judged:
		return Allow, sides[0].Direction.String()
	case sides[1].Judged:
		return Allow, sides[1].Direction.String()
	}
	return Allow, "none"
}

// throwaway gives out numbers that are forgotten with the simulation.
type throwaway struct {
	room map[Kind]uint32 // numbers of a kind there may be; absent: all
	next map[Kind]uint32
	held map[throwawayKey]uint32
}

type throwawayKey struct {
	kind   Kind
	digest Digest
}

// Assign implements Numbers. The first number of a kind means nothing special in a simulation, apart from the peers that
// are reserved, and the rules.
func (t *throwaway) Assign(kind Kind, digest Digest, n uint32) (uint32, error) {
	key := throwawayKey{kind, digest}
	if first, ok := t.held[key]; ok {
		return first, nil
	}
	first := t.next[kind]
	if room, limited := t.room[kind]; limited && first+n > room {
		return 0, &Shortage{Kind: kind, Has: room, Asked: n, Largest: room - first, Remedy: "merge port ranges or peers"}
	}
	t.next[kind] = first + n
	switch kind {
	case KindPeer:
		first += uint32(bpf.PeerFirstFree)
	case KindRule:
		first += uint32(bpf.RuleFirstFree)
	case KindClass, KindProgram, KindCells:
		first++
	}
	t.held[key] = first
	return first, nil
}

// Release implements Numbers: a simulation ends before it would use a number again.
func (t *throwaway) Release(Kind, Digest) {}
