package policy

import (
	"maps"
	"net/netip"
	"slices"
)

// plan is one attempt to take in what is staged. Every change of the engine's state goes through put, drop, set and
// the few other methods here, which remember how to undo it, so that an attempt that does not fit leaves no trace.
type plan struct {
	delta     Delta
	undo      []func()
	assigned  scratch[number, uint32] // how many, to give back if the attempt fails
	released  scratch[number, uint32] // to give back if it succeeds
	taken     [kinds]uint32           // how many of a kind it asked for, whether there were any or not
	short     []shortage              // kinds of which there were none, the first first
	compiling compiling               // what it is at

	before     scratch[netip.Prefix, published] // rows that the plan changed, as they were
	after      scratch[netip.Prefix, published] // and as they will be
	spaces     marks[*namespace]                // namespaces that may have lost their last member
	rows       marks[*place]                    // whose row must be computed again
	groups     marks[*group]                    // whose programs must be compiled again
	peers      marks[*peer]                     // whose bits changed or that are new
	selectors  []*selector                      // new ones, not yet evaluated
	spent      marks[*peer]                     // peers that may have lost their last reference
	classes    marks[*class]                    // classes that may have
	contents   marks[*content]                  // contents that may have
	fresh      scratch[Digest, *content]        // contents that the kernel does not have
	programs   scratch[uint32, *program]        // whose descriptor changes; nil: goes
	recomputed marks[*group]                    // compiled at least once
	subjects   marks[*subject]                  // new ones, or of another group
	rules      marks[*ruleState]                // rules that may have
}

// number is one assignment.
type number struct {
	kind   Kind
	digest Digest
}

// reset empties the plan for the next flush, which uses its memory again.
func (p *plan) reset() {
	p.delta, p.undo, p.taken, p.short, p.compiling = Delta{}, emptied(p.undo), [kinds]uint32{}, nil, compiling{}
	p.assigned.reset()
	p.released.reset()
	p.before.reset()
	p.after.reset()
	p.spaces.reset()
	p.rows.reset()
	p.groups.reset()
	p.peers.reset()
	p.selectors = emptied(p.selectors)
	p.spent.reset()
	p.classes.reset()
	p.contents.reset()
	p.fresh.reset()
	p.programs.reset()
	p.recomputed.reset()
	p.subjects.reset()
	p.rules.reset()
}

// put sets m[k] for as long as the plan holds.
func put[K comparable, V any](p *plan, m map[K]V, k K, v V) {
	old, had := m[k]
	p.undo = append(p.undo, func() {
		if had {
			m[k] = old
		} else {
			delete(m, k)
		}
	})
	m[k] = v
}

// drop deletes m[k] for as long as the plan holds.
func drop[K comparable, V any](p *plan, m map[K]V, k K) {
	if old, had := m[k]; had {
		p.undo = append(p.undo, func() { m[k] = old })
		delete(m, k)
	}
}

// set stores v at where for as long as the plan holds.
func set[T any](p *plan, where *T, v T) {
	old := *where
	p.undo = append(p.undo, func() { *where = old })
	*where = v
}

// rollback undoes everything, the last change first.
func (e *Engine) rollback() {
	p := e.plan
	for i := len(p.undo) - 1; i >= 0; i-- {
		p.undo[i]()
	}
	for _, n := range p.assigned.entries {
		e.numbers.Release(n.key.kind, n.key.digest)
	}
	p.reset()
}

// commit makes the changes final and returns what the kernel must learn.
func (e *Engine) commit() Delta {
	p := e.plan
	for kind, n := range p.taken {
		e.held[kind] += n
	}
	for _, n := range p.released.entries {
		e.numbers.Release(n.key.kind, n.key.digest)
		e.held[n.key.kind] -= n.value
	}
	delta := p.delta
	p.reset()
	delta.sort()
	return delta
}

// sortedKeys lists the keys of a map in order; of an empty one, as most are in a flush, at no cost.
func sortedKeys[K comparable, V any](m map[K]V, compare func(a, b K) int) []K {
	if len(m) == 0 {
		return nil
	}
	return slices.SortedFunc(maps.Keys(m), compare)
}
