package policy

// Judged says, by direction, whether a policy in force has a say in what a local endpoint gets and sends. The node itself
// is judged only in a direction in which one has: it is no pod, and its traffic is otherwise nobody's business.
func (e *Engine) Judged(endpoint uint32) (directions [2]bool) {
	s := e.subjects[endpoint]
	if s == nil {
		return directions
	}
	for _, selecting := range s.group.specs {
		if selecting.policy.policy.Staged {
			continue
		}
		for d := range directions {
			directions[d] = directions[d] || selecting.spec.Isolates[d]
		}
		for i := range selecting.spec.Rules {
			directions[selecting.spec.Rules[i].Direction] = true
		}
	}
	return directions
}
