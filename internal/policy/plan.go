package policy

import (
	"net/netip"
)

// plan is one attempt to take in what is staged. Every change of the engine's state goes through put, drop, set and
// the few other methods here, which remember how to undo it, so that an attempt that does not fit leaves no trace.
type plan struct {
	delta     Delta
	undo      []func()
	assigned  map[number]uint32 // how many, to give back if the attempt fails
	released  map[number]uint32 // to give back if it succeeds
	taken     map[Kind]uint32   // how many of a kind it asked for, whether there were any or not
	short     []shortage        // kinds of which there were none, the first first
	compiling compiling         // what it is at

	before     map[netip.Prefix]published // rows that the plan changed, as they were
	after      map[netip.Prefix]published // and as they will be
	spaces     map[string]*namespace      // namespaces that may have lost their last member
	rows       map[*place]struct{}        // whose row must be computed again
	groups     map[*group]struct{}        // whose programs must be compiled again
	peers      map[*peer]struct{}         // whose bits changed or that are new
	selectors  []*selector                // new ones, not yet evaluated
	spent      map[*peer]struct{}         // peers that may have lost their last reference
	classes    map[*class]struct{}        // classes that may have
	contents   map[*content]struct{}      // contents that may have
	fresh      map[Digest]*content        // contents that the kernel does not have
	programs   map[uint32]*program        // whose descriptor changes; nil: goes
	recomputed map[*group]struct{}        // compiled at least once
	subjects   map[*subject]struct{}      // new ones, or of another group
	rules      map[*ruleState]struct{}    // rules that may have
}

// number is one assignment.
type number struct {
	kind   Kind
	digest Digest
}

func newPlan() *plan {
	return &plan{
		assigned:   map[number]uint32{},
		released:   map[number]uint32{},
		taken:      map[Kind]uint32{},
		before:     map[netip.Prefix]published{},
		after:      map[netip.Prefix]published{},
		spaces:     map[string]*namespace{},
		rows:       map[*place]struct{}{},
		groups:     map[*group]struct{}{},
		peers:      map[*peer]struct{}{},
		spent:      map[*peer]struct{}{},
		classes:    map[*class]struct{}{},
		contents:   map[*content]struct{}{},
		fresh:      map[Digest]*content{},
		programs:   map[uint32]*program{},
		recomputed: map[*group]struct{}{},
		subjects:   map[*subject]struct{}{},
		rules:      map[*ruleState]struct{}{},
	}
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
	for n := range p.assigned {
		e.numbers.Release(n.kind, n.digest)
	}
	e.plan = nil
}

// commit makes the changes final and returns what the kernel must learn.
func (e *Engine) commit() Delta {
	p := e.plan
	for kind, n := range p.taken {
		e.held[kind] += n
	}
	for name, n := range p.released {
		e.numbers.Release(name.kind, name.digest)
		e.held[name.kind] -= n
	}
	e.plan = nil
	p.delta.sort()
	return p.delta
}
