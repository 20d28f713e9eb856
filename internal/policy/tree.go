package policy

import (
	"iter"
	"math/bits"
	"net/netip"
)

// tree maps prefixes to values and answers which of them cover a prefix and which lie within it. It is a binary trie
// without single-child chains, one root a family, so that ::/0 never covers an IPv4 address.
type tree[V any] struct {
	roots [2]*treeNode[V]
}

// treeNode is a prefix; value is nil where two subtrees merely part.
type treeNode[V any] struct {
	prefix   netip.Prefix // masked
	value    *V
	children [2]*treeNode[V] // by the first bit behind prefix
}

func (t *tree[V]) root(p netip.Prefix) **treeNode[V] {
	if p.Addr().Is4() {
		return &t.roots[0]
	}
	return &t.roots[1]
}

// get returns the value of exactly p, or nil.
func (t *tree[V]) get(p netip.Prefix) *V {
	for n := *t.root(p); n != nil && n.prefix.Bits() <= p.Bits(); n = n.children[bitAt(p.Addr(), n.prefix.Bits())] {
		if n.prefix == p {
			return n.value
		}
		if n.prefix.Bits() == p.Bits() || !n.prefix.Contains(p.Addr()) {
			return nil
		}
	}
	return nil
}

// covering yields the values of all prefixes that hold the whole of p, the widest first, p's own included.
func (t *tree[V]) covering(p netip.Prefix) iter.Seq[*V] {
	return func(yield func(*V) bool) {
		for n := *t.root(p); n != nil && n.prefix.Bits() <= p.Bits() && n.prefix.Contains(p.Addr()); {
			if n.value != nil && !yield(n.value) {
				return
			}
			if n.prefix.Bits() == p.Bits() {
				return
			}
			n = n.children[bitAt(p.Addr(), n.prefix.Bits())]
		}
	}
}

// within yields the values of all prefixes inside p, p's own included. The tree must not change meanwhile.
func (t *tree[V]) within(p netip.Prefix) iter.Seq[*V] {
	return func(yield func(*V) bool) {
		n := *t.root(p)
		for n != nil && n.prefix.Bits() < p.Bits() {
			n = n.children[bitAt(p.Addr(), n.prefix.Bits())]
		}
		if n != nil && p.Contains(n.prefix.Addr()) {
			n.walk(yield)
		}
	}
}

func (n *treeNode[V]) walk(yield func(*V) bool) bool {
	if n == nil {
		return true
	}
	if n.value != nil && !yield(n.value) {
		return false
	}
	return n.children[0].walk(yield) && n.children[1].walk(yield)
}

// put sets the value of p, which must be masked.
func (t *tree[V]) put(p netip.Prefix, value *V) {
	at := t.root(p)
	for {
		n := *at
		if n == nil {
			*at = &treeNode[V]{prefix: p, value: value}
			return
		}
		common := commonBits(n.prefix, p)
		switch {
		case common == n.prefix.Bits() && common == p.Bits():
			n.value = value
			return
		case common == n.prefix.Bits():
			at = &n.children[bitAt(p.Addr(), common)]
		case common == p.Bits():
			above := &treeNode[V]{prefix: p, value: value}
			above.children[bitAt(n.prefix.Addr(), common)] = n
			*at = above
			return
		default:
			fork := &treeNode[V]{prefix: netip.PrefixFrom(p.Addr(), common).Masked()}
			fork.children[bitAt(n.prefix.Addr(), common)] = n
			fork.children[bitAt(p.Addr(), common)] = &treeNode[V]{prefix: p, value: value}
			*at = fork
			return
		}
	}
}

// remove forgets p.
func (t *tree[V]) remove(p netip.Prefix) {
	at := t.root(p)
	*at = (*at).without(p)
}

// without returns the subtree less p, closing up nodes that no longer part anything.
func (n *treeNode[V]) without(p netip.Prefix) *treeNode[V] {
	if n == nil || n.prefix.Bits() > p.Bits() {
		return n
	}
	if n.prefix == p {
		n.value = nil
	} else if n.prefix.Bits() < p.Bits() {
		child := &n.children[bitAt(p.Addr(), n.prefix.Bits())]
		*child = (*child).without(p)
	}
	switch {
	case n.value != nil:
		return n
	case n.children[0] == nil:
		return n.children[1]
	case n.children[1] == nil:
		return n.children[0]
	}
	return n
}

// commonBits is the number of leading bits that both prefixes share, at most the length of the shorter.
func commonBits(a, b netip.Prefix) int {
	limit := min(a.Bits(), b.Bits())
	if a.Addr().Is4() {
		x, y := a.Addr().As4(), b.Addr().As4()
		return min(limit, commonBytes(x[:], y[:]))
	}
	x, y := a.Addr().As16(), b.Addr().As16()
	return min(limit, commonBytes(x[:], y[:]))
}

func commonBytes(x, y []byte) int {
	for i := range x {
		if d := x[i] ^ y[i]; d != 0 {
			return 8*i + bits.LeadingZeros8(d)
		}
	}
	return 8 * len(x)
}

// bitAt is bit i of the address, counted from the first on the wire; 0 behind the last.
func bitAt(a netip.Addr, i int) int {
	if i >= a.BitLen() {
		return 0
	}
	if a.Is4() {
		b := a.As4()
		return int(b[i/8]>>(7-i%8)) & 1
	}
	b := a.As16()
	return int(b[i/8]>>(7-i%8)) & 1
}
