package label

import (
	"fmt"
	"iter"
	"maps"
	"slices"
	"strings"
)

// Set is an immutable set of labels, sorted by key. The zero value is empty. Copies share memory.
type Set struct {
	pairs []pair
}

type pair struct {
	key, value string
}

// NewSet returns the set of the labels in m, which must be valid (see Validate).
func NewSet(m map[string]string) (Set, error) {
	for _, key := range slices.Sorted(maps.Keys(m)) {
		if err := Validate(key, m[key]); err != nil {
			return Set{}, err
		}
	}
	return SetOf(m), nil
}

// SetOf is NewSet for labels that somebody has already validated, such as an API server or the store.
func SetOf(m map[string]string) Set {
	if len(m) == 0 {
		return Set{}
	}
	pairs := make([]pair, 0, len(m))
	for key, value := range m {
		pairs = append(pairs, pair{key, value})
	}
	slices.SortFunc(pairs, func(a, b pair) int { return strings.Compare(a.key, b.key) })
	return Set{pairs}
}

// ParseSet reads "key=value,key=value", the form that String prints.
func ParseSet(text string) (Set, error) {
	m := make(map[string]string)
	for part := range strings.SplitSeq(text, ",") {
		if part == "" && text == "" {
			break
		}
		key, value, ok := strings.Cut(part, "=")
		if !ok {
			return Set{}, fmt.Errorf("label %q: want key=value", part)
		}
		if _, twice := m[key]; twice {
			return Set{}, fmt.Errorf("label %q: given twice", key)
		}
		m[key] = value
	}
	return NewSet(m)
}

// Len is the number of labels.
func (s Set) Len() int { return len(s.pairs) }

// Get returns the value of key, and whether the set has it. It does not allocate.
func (s Set) Get(key string) (string, bool) {
	// Sets are small: a linear search beats a binary one up to about sixteen labels, and few sets have more.
	for i := range s.pairs {
		if s.pairs[i].key == key {
			return s.pairs[i].value, true
		}
	}
	return "", false
}

// All yields the labels in the order of their keys.
func (s Set) All() iter.Seq2[string, string] {
	return func(yield func(string, string) bool) {
		for _, p := range s.pairs {
			if !yield(p.key, p.value) {
				return
			}
		}
	}
}

// Map returns the labels as a new map.
func (s Set) Map() map[string]string { return maps.Collect(s.All()) }

// Equal says whether both sets hold the same labels.
func (s Set) Equal(other Set) bool { return slices.Equal(s.pairs, other.pairs) }

// Strings returns the labels as key=value, sorted by key.
func (s Set) Strings() []string {
	out := make([]string, 0, len(s.pairs))
	for _, p := range s.pairs {
		out = append(out, p.key+"="+p.value)
	}
	return out
}

// String prints the set as key=value,key=value; empty for the empty set.
func (s Set) String() string { return strings.Join(s.Strings(), ",") }
