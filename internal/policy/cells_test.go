package policy

import (
	"errors"
	"fmt"
	"math"
	"slices"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"

	"tendril.io/tendril/bpf"
	"tendril.io/tendril/internal/label"
)

func TestOverlappingRangesBecomeDisjointSegments(t *testing.T) {
	type cut struct {
		first, last uint16
		entries     []int32
	}
	for sentence, test := range map[string]struct {
		spans []portSpan
		want  []cut
	}{
		"nothing gives nothing":          {nil, nil},
		"one range stays":                {[]portSpan{{80, 90, 0}}, []cut{{80, 90, []int32{0}}}},
		"a gap stays a gap":              {[]portSpan{{1, 2, 0}, {4, 5, 1}}, []cut{{1, 2, []int32{0}}, {4, 5, []int32{1}}}},
		"touching ranges of one entry":   {[]portSpan{{1, 2, 0}, {3, 5, 0}}, []cut{{1, 5, []int32{0}}}},
		"touching ranges of two entries": {[]portSpan{{1, 2, 0}, {3, 5, 1}}, []cut{{1, 2, []int32{0}}, {3, 5, []int32{1}}}},
		"an inner range cuts the outer": {[]portSpan{{1, 9, 1}, {4, 5, 0}},
			[]cut{{1, 3, []int32{1}}, {4, 5, []int32{0, 1}}, {6, 9, []int32{1}}}},
		"the last port has no successor": {[]portSpan{{65535, 65535, 0}, {65000, 65535, 1}},
			[]cut{{65000, 65534, []int32{1}}, {65535, 65535, []int32{0, 1}}}},
		"port 0 is a port": {[]portSpan{{0, 0, 0}}, []cut{{0, 0, []int32{0}}}},
	} {
		t.Run(sentence, func(t *testing.T) {
			l := &lists{known: map[uint64][]int{}}
			var got []cut
			for _, s := range l.segmentsOf(6, test.spans) {
				got = append(got, cut{s.first, s.last, l.all[s.list].entries})
			}
			if diff := cmp.Diff(test.want, got, cmp.AllowUnexported(cut{})); diff != "" {
				t.Errorf("segments (-want +got):\n%s", diff)
			}
		})
	}
}

func TestPortOfAnyProtocolMeansThoseThatHavePorts(t *testing.T) {
	want := []portRange{{6, 80, 80}, {17, 80, 80}, {132, 80, 80}}
	if got := rangesOf(Port{First: 80, Last: 80}); !slices.Equal(got, want) {
		t.Errorf("got %v, want %v", got, want)
	}
	if got := rangesOf(Port{Last: math.MaxUint16}); !slices.Equal(got, []portRange{{0, 0, math.MaxUint16}}) {
		t.Errorf("any port of any protocol: got %v", got)
	}
}

func TestMergedRangesDoNotTouch(t *testing.T) {
	got := mergeRanges([]portRange{{17, 1, 5}, {6, 4, 9}, {6, 1, 3}, {6, 20, 65535}, {6, 65535, 65535}})
	if want := []portRange{{6, 1, 9}, {6, 20, 65535}, {17, 1, 5}}; !slices.Equal(got, want) {
		t.Errorf("got %v, want %v", got, want)
	}
	if got := mergeRanges([]portRange{{6, 1, 2}, {0, 0, 65535}}); !slices.Equal(got, []portRange{{0, 0, 65535}}) {
		t.Errorf("got %v, want any protocol to swallow the rest", got)
	}
}

func TestEqualListsOfEntriesAreWrittenOnce(t *testing.T) {
	b := &builder{header: bpf.PolicyHeader{DefaultAction: bpf.ActionDeny, DefaultRule: 2}}
	for i := range 10 {
		b.add(bpf.PolicyEntry{Selector: uint16(i), Action: bpf.ActionAllow}, TierNormal, []portRange{{6, 80, 80}, {6, 443, 443}, {17, 53, 53}})
	}
	cells, err := b.layout()
	if err != nil {
		t.Fatal(err)
	}
	if got, want := len(cells), 1+3+2+10; got != want {
		t.Errorf("got %d cells, want %d: a header, three segments, one list of two cells of selectors and ten entries", got, want)
	}
	if b.header.Segments != 3 || b.header.Protocols != 0 || b.header.AnyCount != 0 {
		t.Errorf("got header %+v, want 3 segments and nothing else", b.header)
	}
}

func TestPassGoesToTheFirstEntryOfALaterTier(t *testing.T) {
	b := &builder{}
	any := []portRange{{0, 0, math.MaxUint16}}
	b.add(bpf.PolicyEntry{Action: bpf.ActionPass}, TierAdmin, any)
	b.add(bpf.PolicyEntry{Action: bpf.ActionAllow}, TierAdmin, any)
	b.add(bpf.PolicyEntry{Action: bpf.ActionDeny}, TierNormal, any)
	b.add(bpf.PolicyEntry{Action: bpf.ActionPass}, TierBaseline, any)
	b.aimPasses()
	if got := []uint32{b.entries[0].Argument, b.entries[3].Argument}; !slices.Equal(got, []uint32{2, 4}) {
		t.Errorf("got passes to %v, want 2 and, behind the last entry, 4", got)
	}
}

func TestBitsetIsCanonical(t *testing.T) {
	of := func(bits ...uint32) (out bitset) {
		for _, bit := range bits {
			out.add(bit)
		}
		return out
	}
	b := of(200, 3, 64)
	if !b.has(64) || b.has(65) || b.has(100000) {
		t.Errorf("got %v, want 3, 64 and 200", b)
	}
	if got := b.without(of(200, 64)); !got.equal(of(3)) || len(got) != 1 {
		t.Errorf("got %v, want the words behind 3 gone", got)
	}
	if got := b.without(of(9)); &got[0] != &b[0] {
		t.Error("taking away what is not there should change nothing")
	}
	if got, want := slices.Collect(b.all()), []uint32{3, 64, 200}; !slices.Equal(got, want) {
		t.Errorf("got the bits %v, want %v", got, want)
	}
	if b.digest() != of(3, 200, 64).digest() || b.digest() == of(3, 200).digest() {
		t.Error("equal sets should have equal digests, and other sets others")
	}
}

// Matching a selector against a peer is on the path of every address that appears.
func TestMatchingAPeerDoesNotAllocate(t *testing.T) {
	w := Workload{Cluster: "lab", Namespace: "shop", Labels: label.SetOf(map[string]string{"app": "web"}), NamedPorts: []NamedPort{{"http", 6, 80}}}.canonical()
	p := newPeer(&AddressFact{Workload: &w})
	p.space = &namespace{}
	s := label.MustSelector(label.Equals("app", "web"), label.NamespaceEquals(label.MetadataName, "shop"))
	pods := selectorOf(Peer{Selector: &s})
	for _, s := range []*selector{pods, withPort(pods, NamedPort{"http", 6, 80}), selectorOf(Peer{Any: true}), selectorOf(Peer{Entity: EntityCluster})} {
		if n := testing.AllocsPerRun(100, func() {
			if !s.matches(p) {
				t.Fatalf("%s does not match", s.text)
			}
		}); n != 0 {
			t.Errorf("%s: got %v allocations, want 0", s.text, n)
		}
	}
}

func TestSelectorsThatMeanTheSameAreOne(t *testing.T) {
	for a, b := range map[*selector]*selector{
		selectorOf(Peer{Entity: EntityWorldIPv4}):                 selectorOf(Peer{CIDR: &CIDR{Prefix: worldPrefixes()[0], OutsideOnly: true}}),
		selectorOf(Peer{CIDR: &CIDR{Prefix: worldPrefixes()[1]}}): selectorOf(Peer{CIDR: &CIDR{Prefix: worldPrefixes()[1]}}),
	} {
		if a.digest != b.digest {
			t.Errorf("%s and %s should be one selector", a.text, b.text)
		}
	}
	if selectorOf(Peer{Entity: EntityNobody}) != nil {
		t.Error("nobody should need no selector")
	}
	if got := fmt.Sprint(len(selectorsOf([]Peer{{Entity: EntityWorld}, {Any: true}, {Entity: EntityHost}}))); got != "1" {
		t.Errorf("got %s selectors of a rule that names everybody, want 1", got)
	}
}

// A program's need is known exactly, whether it fits or not: a brute count over ports comes to the same.
func TestNeedIsExact(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		b := &builder{}
		lists, cells := map[string]bool{}, 1
		count := func(list []int) {
			if key := fmt.Sprint(list); len(list) > 0 && !lists[key] {
				lists[key] = true
				cells += len(list) + (len(list)+7)/8 // the selectors stand eight a cell
			}
		}
		n := rapid.IntRange(1, 350).Draw(t, "entries")
		step := rapid.IntRange(1, 3).Draw(t, "step")
		for i := range n {
			b.add(bpf.PolicyEntry{}, TierNormal, []portRange{{6, uint16(i), uint16(2000 - i*step)}})
		}
		var before []int
		for port := range 2002 {
			var list []int
			for i := range n {
				if i <= port && port <= 2000-i*step {
					list = append(list, i)
				}
			}
			if !slices.Equal(before, list) && len(list) > 0 {
				cells++
			}
			before = list
			count(list)
		}
		got, err := b.layout()
		if large, ok := errors.AsType[*programTooLarge](err); ok {
			if cells <= maxCells || large.needs != cells {
				t.Fatalf("got a need of %d cells, want %d", large.needs, cells)
			}
		} else if err != nil || len(got) != cells {
			t.Fatalf("got %d cells, %v, want %d", len(got), err, cells)
		}
	})
}

// Ranges that all overlap are counted in the time of their number, not of its square.
func TestHugeProgramIsCountedQuickly(t *testing.T) {
	b := &builder{}
	for i := range 30000 {
		b.add(bpf.PolicyEntry{}, TierNormal, []portRange{{6, uint16(i + 1), uint16(65534 - i)}})
	}
	begun := time.Now()
	_, err := b.layout()
	large, ok := errors.AsType[*programTooLarge](err)
	// Of 59,999 segments the lists grow to 30,000 entries and shrink again; each but the longest stands there twice and is one.
	if want := 1 + 59999 + 30000*30001/2 + 8*3750*3751/2; !ok || large.needs != want {
		t.Errorf("got %v, want a need of %d cells", err, want)
	}
	if took := time.Since(begun); took > 5*time.Second {
		t.Errorf("took %v", took)
	}
}
