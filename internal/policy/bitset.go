package policy

import (
	"crypto/sha256"
	"encoding/binary"
	"iter"
	"math/bits"
	"slices"
)

// bitset is a set of selector numbers. It is immutable, and its last word is never 0, so that equal sets are equal slices.
type bitset []uint64

func (b bitset) has(bit uint32) bool {
	return int(bit/64) < len(b) && b[bit/64]&(1<<(bit%64)) != 0
}

// all yields the bits in rising order.
func (b bitset) all() iter.Seq[uint32] {
	return func(yield func(uint32) bool) {
		for i, word := range b {
			for ; word != 0; word &= word - 1 {
				if !yield(uint32(64*i + bits.TrailingZeros64(word))) {
					return
				}
			}
		}
	}
}

// without allocates only where it must.
func (b bitset) without(other bitset) bitset {
	both := false
	for i := range min(len(b), len(other)) {
		both = both || b[i]&other[i] != 0
	}
	if !both {
		return b
	}
	out := slices.Clone(b)
	for i := range min(len(b), len(other)) {
		out[i] &^= other[i]
	}
	for len(out) > 0 && out[len(out)-1] == 0 {
		out = out[:len(out)-1]
	}
	return out
}

// union allocates only where it must.
func (b bitset) union(other bitset) bitset {
	if len(other) == 0 {
		return b
	}
	out := make(bitset, max(len(b), len(other)))
	copy(out, b)
	for i, word := range other {
		out[i] |= word
	}
	return out
}

func (b bitset) equal(other bitset) bool { return slices.Equal(b, other) }

// add changes a set that nobody else has seen.
func (b *bitset) add(bit uint32) {
	if n := int(bit/64) + 1; n > len(*b) {
		*b = append(*b, make(bitset, n-len(*b))...)
	}
	(*b)[bit/64] |= 1 << (bit % 64)
}

// digest is the set's meaning as a class.
func (b bitset) digest() Digest {
	var buffer [1024]byte // a row of default size fits
	out := append(buffer[:0], "policy.class/2 "...)
	for _, word := range b {
		out = binary.LittleEndian.AppendUint64(out, word)
	}
	sum := sha256.Sum256(out)
	return Digest(sum[:16])
}
