package policy

import "tendril.io/tendril/internal/label"

// index finds things by their label selectors: for a workload, those whose selectors may hold it. A selector is found by
// one value that a workload must have, so that others are never looked at.
type index[T comparable] struct {
	plain   map[T]struct{}                          // their selectors require no value
	byValue map[label.Key]map[string]map[T]struct{} // by one requirement's key and value
}

func newIndex[T comparable]() index[T] {
	return index[T]{plain: map[T]struct{}{}, byValue: map[label.Key]map[string]map[T]struct{}{}}
}

// handle returns the requirement by which a selector is found: an In of few values, of the pod rather than of its
// namespace.
func handle(s *label.Selector) *label.Requirement {
	var best *label.Requirement
	requirements := s.Requirements()
	for i := range requirements {
		r := &requirements[i]
		if r.Operator == label.In && (best == nil || len(r.Values) < len(best.Values)) {
			best = r
		}
	}
	return best
}

func (x *index[T]) add(s *label.Selector, thing T) {
	h := handle(s)
	if h == nil {
		x.plain[thing] = struct{}{}
		return
	}
	values := x.byValue[h.Key]
	if values == nil {
		values = map[string]map[T]struct{}{}
		x.byValue[h.Key] = values
	}
	for _, v := range h.Values {
		insert(values, v, thing)
	}
}

func (x *index[T]) remove(s *label.Selector, thing T) {
	h := handle(s)
	if h == nil {
		delete(x.plain, thing)
		return
	}
	values := x.byValue[h.Key]
	for _, v := range h.Values {
		extract(values, v, thing)
	}
	if len(values) == 0 {
		delete(x.byValue, h.Key)
	}
}

// candidates calls try with the sets of things whose selectors may hold a workload.
func (x *index[T]) candidates(w label.Attributes, try func(map[T]struct{})) {
	try(x.plain)
	for key, values := range x.byValue {
		if value, ok := w.Attribute(key); ok {
			try(values[value])
		}
	}
}

// insert adds a thing to the set at k.
func insert[K, T comparable](sets map[K]map[T]struct{}, k K, thing T) {
	if sets[k] == nil {
		sets[k] = map[T]struct{}{}
	}
	sets[k][thing] = struct{}{}
}

// extract takes a thing out of the set at k.
func extract[K, T comparable](sets map[K]map[T]struct{}, k K, thing T) {
	if delete(sets[k], thing); len(sets[k]) == 0 {
		delete(sets, k)
	}
}

// specIndex finds the specs that may select a group.
type specIndex struct{ index[*specState] }

func (x *specIndex) addSpec(s *specState) { x.add(&s.spec.Subject, s) }

func (x *specIndex) removeSpec(s *specState) { x.remove(&s.spec.Subject, s) }
