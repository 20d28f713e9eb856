package policy

import (
	"slices"

	"tendril.io/tendril/internal/identity"
	"tendril.io/tendril/internal/label"
)

// Judged says, by direction, whether a policy in force has a say in what a local endpoint gets and sends. The node itself
// is judged only in a direction in which one has: it is no pod, and its traffic is otherwise nobody's business.
func (e *Engine) Judged(endpoint uint32) (directions [2]bool) {
	s := e.subjects[endpoint]
	if s == nil {
		return directions
	}
	for d := range directions {
		directions[d] = slices.ContainsFunc(s.group.specs, func(selecting *specState) bool {
			return !selecting.isStaged() && selecting.spec.speaksOf(Direction(d))
		})
	}
	return directions
}

// JudgedBy lists the policies in force that select a local endpoint, by key.
func (e *Engine) JudgedBy(endpoint uint32) (keys []Key) {
	s := e.subjects[endpoint]
	if s == nil {
		return nil
	}
	for _, spec := range s.group.specs {
		if key := spec.policy.policy.Key; !spec.isStaged() && !slices.Contains(keys, key) {
			keys = append(keys, key)
		}
	}
	slices.SortFunc(keys, Key.Compare)
	return keys
}

// SelectsNodes says whether a spec is about nodes, not about pods.
func (s *Spec) SelectsNodes() bool {
	return slices.ContainsFunc(s.Subject.Requirements(), func(r label.Requirement) bool {
		return r.Key == reservedKey && r.Operator == label.In && slices.Contains(r.Values, identity.Host.Name())
	})
}
