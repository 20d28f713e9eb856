// Package policytest holds what the proofs of internal/policy share: a slow reference written from the semantics alone,
// a generator of random policies, workloads and packets, a model of the kernel's tables that applies deltas and judges
// packets by the compiled cells, and numbers with limits. The kernel's own differential test uses the same.
//
// It is for tests only; nothing that ships imports it.
package policytest

import (
	"fmt"

	"tendril.io/tendril/bpf"
	"tendril.io/tendril/internal/policy"
)

// Numbers gives out numbers in memory. A released number is reused only after Complete, and its digest finds it again
// until then.
type Numbers struct {
	Room     map[policy.Kind]uint32 // numbers of a kind there may be; absent: plenty
	held     map[name]span
	released map[name]struct{}
	used     map[policy.Kind]map[uint32]bool
	low      map[policy.Kind]uint32 // below it none is free
}

type name struct {
	kind   policy.Kind
	digest policy.Digest
}

type span struct {
	first, count uint32
}

// NewNumbers returns numbers of which none is taken.
func NewNumbers() *Numbers {
	return &Numbers{
		Room: map[policy.Kind]uint32{}, held: map[name]span{}, released: map[name]struct{}{},
		used: map[policy.Kind]map[uint32]bool{}, low: map[policy.Kind]uint32{},
	}
}

// first is the lowest number of a kind that means nothing else.
func first(kind policy.Kind) uint32 {
	switch kind {
	case policy.KindPeer:
		return uint32(bpf.PeerFirstFree)
	case policy.KindRule:
		return uint32(bpf.RuleFirstFree)
	case policy.KindSelector:
		return 0
	}
	return 1
}

// Assign implements policy.Numbers.
func (n *Numbers) Assign(kind policy.Kind, digest policy.Digest, count uint32) (uint32, error) {
	key := name{kind, digest}
	if s, ok := n.held[key]; ok {
		if s.count != count {
			return 0, fmt.Errorf("assign kind %d: digest %x has %d numbers, asked for %d", kind, digest, s.count, count)
		}
		delete(n.released, key)
		return s.first, nil
	}
	room, limited := n.Room[kind]
	if !limited {
		room = plenty(kind)
	}
	if n.used[kind] == nil {
		n.used[kind] = map[uint32]bool{}
	}
	at := n.gap(kind, count)
	if at+count > first(kind)+room {
		return 0, &policy.Shortage{
			Kind: kind, Has: room, Asked: count, Largest: n.largest(kind, room), Remedy: "give the test more room",
		}
	}
	for i := range count {
		n.used[kind][at+i] = true
	}
	n.held[key] = span{at, count}
	return at, nil
}

// largest is the longest row that is free.
func (n *Numbers) largest(kind policy.Kind, room uint32) (most uint32) {
	run := uint32(0)
	for i := range room {
		if run++; n.used[kind][first(kind)+i] {
			run = 0
		}
		most = max(most, run)
	}
	return most
}

// plenty is the room where a test sets none.
func plenty(kind policy.Kind) uint32 {
	if kind == policy.KindSelector {
		return uint32(bpf.CapSelectors)
	}
	return 1 << 20
}

// gap finds count free numbers in a row.
func (n *Numbers) gap(kind policy.Kind, count uint32) uint32 {
	at := max(first(kind), n.low[kind])
	for i := uint32(0); i < count; i++ {
		if n.used[kind][at+i] {
			at += i + 1
			i = ^uint32(0) // begin again
		}
	}
	if count == 1 {
		n.low[kind] = at
	}
	return at
}

// Release implements policy.Numbers.
func (n *Numbers) Release(kind policy.Kind, digest policy.Digest) {
	n.released[name{kind, digest}] = struct{}{}
}

// Complete says that the current publication is complete: what was released is free.
func (n *Numbers) Complete() {
	for key := range n.released {
		s := n.held[key]
		for i := range s.count {
			delete(n.used[key.kind], s.first+i)
			n.low[key.kind] = min(n.low[key.kind], s.first)
		}
		delete(n.held, key)
	}
	clear(n.released)
}

// Held counts the assignments of a kind.
func (n *Numbers) Held(kind policy.Kind) int {
	count := 0
	for key := range n.held {
		if key.kind == kind {
			count++
		}
	}
	return count
}
