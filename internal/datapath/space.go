package datapath

import (
	"cmp"
	"fmt"
	"slices"
)

// span is a run of free numbers.
type span struct {
	first, count uint32
}

func (s span) end() uint32 { return s.first + s.count }

// space is the free numbers of one kind: disjoint spans in rising order that never touch each other.
type space struct {
	capacity uint32
	free     []span
}

// newSpace has the numbers from reserved up to, not including, capacity.
func newSpace(reserved, capacity uint32) *space {
	s := &space{capacity: capacity}
	if reserved < capacity {
		s.free = []span{{reserved, capacity - reserved}}
	}
	return s
}

// take removes the first n consecutive free numbers; false: there are none.
func (s *space) take(n uint32) (uint32, bool) {
	i := slices.IndexFunc(s.free, func(f span) bool { return f.count >= n })
	if i < 0 {
		return 0, false
	}
	first := s.free[i].first
	s.shrink(i, first, n)
	return first, true
}

// claim removes n given numbers, which must all be free.
func (s *space) claim(first, n uint32) error {
	i, found := slices.BinarySearchFunc(s.free, first, func(f span, first uint32) int { return cmp.Compare(f.first, first) })
	if !found {
		i--
	}
	if i < 0 || n > s.capacity || first > s.capacity-n || s.free[i].end() < first+n {
		return fmt.Errorf("numbers %d..%d are taken or out of range (capacity %d)", first, uint64(first)+uint64(n)-1, s.capacity)
	}
	s.shrink(i, first, n)
	return nil
}

// shrink cuts n numbers from first on out of span i.
func (s *space) shrink(i int, first, n uint32) {
	left := span{s.free[i].first, first - s.free[i].first}
	right := span{first + n, s.free[i].end() - first - n}
	switch {
	case left.count == 0 && right.count == 0:
		s.free = slices.Delete(s.free, i, i+1)
	case left.count == 0:
		s.free[i] = right
	case right.count == 0:
		s.free[i] = left
	default:
		s.free[i] = left
		s.free = slices.Insert(s.free, i+1, right)
	}
}

// give puts n numbers back, joining them with free neighbours. They must have been taken.
func (s *space) give(first, n uint32) {
	i, _ := slices.BinarySearchFunc(s.free, first, func(f span, first uint32) int { return cmp.Compare(f.first, first) })
	joinsLeft := i > 0 && s.free[i-1].end() == first
	joinsRight := i < len(s.free) && s.free[i].first == first+n
	switch {
	case joinsLeft && joinsRight:
		s.free[i-1].count += n + s.free[i].count
		s.free = slices.Delete(s.free, i, i+1)
	case joinsLeft:
		s.free[i-1].count += n
	case joinsRight:
		s.free[i] = span{first, n + s.free[i].count}
	default:
		s.free = slices.Insert(s.free, i, span{first, n})
	}
}

// room is how many numbers are free, and how many of them are consecutive at most.
func (s *space) room() (total, largest uint32) {
	for _, f := range s.free {
		total += f.count
		largest = max(largest, f.count)
	}
	return total, largest
}
