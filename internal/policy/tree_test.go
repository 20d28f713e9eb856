package policy

import (
	"maps"
	"net/netip"
	"slices"
	"testing"

	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"
)

// obvious is a tree that looks at every prefix each time.
type obvious map[netip.Prefix]int

func (o obvious) list(holds func(netip.Prefix) bool) []int {
	var out []int
	for _, p := range slices.SortedFunc(maps.Keys(o), netip.Prefix.Compare) {
		if holds(p) {
			out = append(out, o[p])
		}
	}
	return out
}

// inside says whether a lies in b.
func inside(a, b netip.Prefix) bool { return b.Bits() <= a.Bits() && b.Contains(a.Addr()) }

func drawPrefix(t *rapid.T) netip.Prefix {
	if rapid.Bool().Draw(t, "IPv6") {
		var b [16]byte
		b[0], b[15] = rapid.SampledFrom([]byte{0, 0x20, 0xfd}).Draw(t, "first"), rapid.SampledFrom([]byte{0, 1, 255}).Draw(t, "last")
		return netip.PrefixFrom(netip.AddrFrom16(b), rapid.SampledFrom([]int{0, 1, 3, 8, 120, 127, 128}).Draw(t, "bits")).Masked()
	}
	b := [4]byte{rapid.SampledFrom([]byte{0, 10, 11, 192}).Draw(t, "first"), 0, 0, rapid.SampledFrom([]byte{0, 1, 2, 255}).Draw(t, "last")}
	return netip.PrefixFrom(netip.AddrFrom4(b), rapid.SampledFrom([]int{0, 1, 7, 8, 24, 30, 31, 32}).Draw(t, "bits")).Masked()
}

// The tree answers as a list of all prefixes would, after any puts and removals, and keeps no empty branch.
func TestTreeAgreesWithALookAtEveryPrefix(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		var tree tree[int]
		model := obvious{}
		for i := range rapid.IntRange(1, 30).Draw(t, "steps") {
			p := drawPrefix(t)
			if rapid.IntRange(0, 2).Draw(t, "remove") == 0 {
				tree.remove(p)
				delete(model, p)
			} else {
				value := i
				tree.put(p, &value)
				model[p] = value
			}
			asked := drawPrefix(t)
			compareTrees(t, &tree, model, asked)
			compareTrees(t, &tree, model, p)
		}
		for p := range model {
			tree.remove(p)
		}
		if tree.roots[0] != nil || tree.roots[1] != nil {
			t.Fatalf("an empty tree keeps nodes: %+v", tree.roots)
		}
	})
}

func compareTrees(t *rapid.T, tree *tree[int], model obvious, asked netip.Prefix) {
	values := func(seq func(func(*int) bool)) []int {
		var out []int
		for v := range seq {
			out = append(out, *v)
		}
		return out
	}
	want, known := model[asked]
	if got := tree.get(asked); (got != nil) != known || known && *got != want {
		t.Fatalf("get %s: got %v, want %v, %v", asked, got, want, known)
	}
	covering := model.list(func(p netip.Prefix) bool { return inside(asked, p) })
	slices.Sort(covering)
	got := values(tree.covering(asked))
	widest := slices.Clone(got)
	slices.Sort(got)
	if diff := cmp.Diff(covering, got); diff != "" {
		t.Fatalf("covering %s (-want +got):\n%s", asked, diff)
	}
	bits := map[int]int{}
	for p, v := range model {
		bits[v] = p.Bits()
	}
	if !slices.IsSortedFunc(widest, func(a, b int) int { return bits[a] - bits[b] }) {
		t.Fatalf("covering %s: %v is not the widest first", asked, widest)
	}
	within := model.list(func(p netip.Prefix) bool { return inside(p, asked) })
	slices.Sort(within)
	got = values(tree.within(asked))
	slices.Sort(got)
	if diff := cmp.Diff(within, got); diff != "" {
		t.Fatalf("within %s (-want +got):\n%s", asked, diff)
	}
}
