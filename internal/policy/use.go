package policy

import (
	"maps"
	"slices"
)

// Use is what a policy in force does on this node.
type Use struct {
	Staged    bool
	Rules     int
	Endpoints []uint32 // that it selects
	Programs  []uint32 // that hold its rules, or its isolation
	Selectors []string // of peers, that its rules name
}

// Use says what a policy does; false: no version of it is in force.
func (e *Engine) Use(key Key) (Use, bool) {
	state := e.policies[key]
	if state == nil {
		return Use{}, false
	}
	use := Use{Staged: state.policy.Staged}
	named := map[string]struct{}{}
	for _, spec := range state.specs {
		use.Rules += len(spec.spec.Rules)
		for i := range spec.spec.Rules {
			for _, s := range selectorsOf(spec.spec.Rules[i].Peers) {
				named[s.text] = struct{}{}
			}
		}
	}
	use.Selectors = slices.Sorted(maps.Keys(named))
	for _, g := range e.groups {
		g.use(state, &use)
	}
	slices.Sort(use.Endpoints)
	slices.Sort(use.Programs)
	return use, true
}

// use adds what a policy does in a group.
func (g *group) use(state *policyState, use *Use) {
	directions := [2]bool{}
	selected := false
	for _, s := range g.specs {
		if s.policy != state {
			continue
		}
		selected = true
		for d, isolates := range s.spec.Isolates {
			directions[d] = directions[d] || isolates
		}
		for i := range s.spec.Rules {
			directions[s.spec.Rules[i].Direction] = true
		}
	}
	if !selected {
		return
	}
	use.Endpoints = slices.AppendSeq(use.Endpoints, maps.Keys(g.subjects))
	for d, here := range directions {
		if here && g.programs[d] != nil {
			use.Programs = append(use.Programs, g.programs[d].number)
		}
	}
}
