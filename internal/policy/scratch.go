package policy

import "slices"

// scratch is a map that lives for a flush and keeps its memory for the next one. A few entries are a list, since most
// flushes have no more; beyond that an index finds them. They stand in the order in which they came, unless sorted.
type scratch[K comparable, V any] struct {
	entries []entry[K, V]
	taken   []entry[K, V] // what take returned last
	index   map[K]int     // of entries; nil for a few
}

type entry[K comparable, V any] struct {
	key   K
	value V
}

// marks is a set of things to look at again.
type marks[K comparable] = scratch[K, struct{}]

const (
	scratchList = 16  // entries that need no index
	scratchKept = 256 // and whose memory is kept
)

func (s *scratch[K, V]) len() int { return len(s.entries) }

func (s *scratch[K, V]) find(key K) int {
	if s.index != nil {
		if i, ok := s.index[key]; ok {
			return i
		}
		return -1
	}
	for i := range s.entries {
		if s.entries[i].key == key {
			return i
		}
	}
	return -1
}

func (s *scratch[K, V]) get(key K) (value V, ok bool) {
	if i := s.find(key); i >= 0 {
		return s.entries[i].value, true
	}
	return value, false
}

func (s *scratch[K, V]) put(key K, value V) {
	if i := s.find(key); i >= 0 {
		s.entries[i].value = value
		return
	}
	s.entries = append(s.entries, entry[K, V]{key, value})
	switch {
	case s.index != nil:
		s.index[key] = len(s.entries) - 1
	case len(s.entries) > scratchList:
		s.reindex()
	}
}

// reindex finds the entries where they stand now.
func (s *scratch[K, V]) reindex() {
	s.index = make(map[K]int, 2*len(s.entries))
	for i := range s.entries {
		s.index[s.entries[i].key] = i
	}
}

func (s *scratch[K, V]) drop(key K) {
	i := s.find(key)
	if i < 0 {
		return
	}
	last := len(s.entries) - 1
	s.entries[i] = s.entries[last]
	if s.index != nil {
		s.index[s.entries[i].key] = i
		delete(s.index, key)
	}
	clear(s.entries[last:])
	s.entries = s.entries[:last]
}

// sort orders the entries by their keys.
func (s *scratch[K, V]) sort(compare func(a, b K) int) {
	if len(s.entries) < 2 {
		return
	}
	slices.SortFunc(s.entries, func(a, b entry[K, V]) int { return compare(a.key, b.key) })
	if s.index != nil {
		s.reindex()
	}
}

// take returns the entries and empties the scratch, which may be filled again meanwhile. They hold until it is taken again.
func (s *scratch[K, V]) take() []entry[K, V] {
	s.entries, s.taken, s.index = emptied(s.taken), s.entries, nil
	return s.taken
}

func (s *scratch[K, V]) reset() {
	s.entries, s.taken, s.index = emptied(s.entries), emptied(s.taken), nil
}

// emptied returns a list without entries, which keeps no more memory than a flush of a few changes needs.
func emptied[T any](list []T) []T {
	if cap(list) > scratchKept {
		return nil
	}
	clear(list)
	return list[:0]
}
