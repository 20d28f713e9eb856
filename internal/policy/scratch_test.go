package policy

import (
	"cmp"
	"maps"
	"slices"
	"testing"

	"pgregory.net/rapid"
)

// A scratch is a map, whatever its size and whatever it was used for before.
func TestScratchIsAMap(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		var got scratch[int, int]
		for range rapid.IntRange(1, 3).Draw(t, "flushes") {
			want := map[int]int{}
			for range rapid.IntRange(0, 3*scratchList).Draw(t, "changes") {
				key := rapid.IntRange(0, 2*scratchList).Draw(t, "key")
				switch rapid.IntRange(0, 3).Draw(t, "change") {
				case 0:
					got.drop(key)
					delete(want, key)
				case 1:
					got.sort(cmp.Compare)
				default:
					got.put(key, len(want))
					want[key] = len(want)
				}
			}
			for key := range 2 * scratchList {
				g, has := got.get(key)
				if w, wanted := want[key]; g != w || has != wanted {
					t.Fatalf("get(%d): got %d, %v, want %d, %v", key, g, has, w, wanted)
				}
			}
			if got.len() != len(want) {
				t.Fatalf("got %d entries, want %d", got.len(), len(want))
			}
			got.sort(cmp.Compare)
			var keys []int
			for _, e := range got.take() {
				keys = append(keys, e.key)
				got.put(-e.key, 0) // as long as taken entries are looked at, new ones may come
			}
			if sorted := slices.Sorted(maps.Keys(want)); !slices.Equal(keys, sorted) {
				t.Fatalf("got the keys %v, want %v", keys, sorted)
			}
			got.reset()
		}
	})
}

// What a large flush needed is not kept, nor cleared by each small one after it.
func TestScratchKeepsNoMoreMemoryThanAFewEntriesNeed(t *testing.T) {
	var s marks[int]
	for i := range 100_000 {
		s.put(i, struct{}{})
	}
	s.take()
	s.reset()
	if got := cap(s.entries) + cap(s.taken); got > scratchKept || s.index != nil {
		t.Errorf("got room for %d entries, index %v, want at most %d and none", got, s.index != nil, scratchKept)
	}
	if n := testing.AllocsPerRun(100, func() {
		for i := range scratchList {
			s.put(i, struct{}{})
		}
		s.take()
		s.reset()
	}); n > 0 {
		t.Errorf("got %v allocations for %d entries, want none", n, scratchList)
	}
}
