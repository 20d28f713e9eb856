package datapath

import (
	"errors"
	"maps"
	"testing"

	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"

	"tendril.io/tendril/bpf"
	"tendril.io/tendril/internal/policy"
)

// memoryLedger is a ledger that a test can read and break.
type memoryLedger struct {
	rows map[bpf.AssignmentKey]bpf.Assignment
	fail error
}

func (l *memoryLedger) put(key bpf.AssignmentKey, value bpf.Assignment) error {
	if l.fail == nil {
		l.rows[key] = value
	}
	return l.fail
}

func (l *memoryLedger) drop(keys []bpf.AssignmentKey) error {
	if l.fail != nil {
		return l.fail
	}
	for _, key := range keys {
		delete(l.rows, key)
	}
	return nil
}

func newLedger() *memoryLedger { return &memoryLedger{rows: map[bpf.AssignmentKey]bpf.Assignment{}} }

// testSizes give every kind a small room.
func testSizes() map[string]uint32 {
	return map[string]uint32{
		"peer_class": 24, "class_bits": 16, "policy_programs": 8, "policy_cells": 32, "nodes": 8, "endpoints": 8, "backends": 8, "slots": 16,
	}
}

// testNumbers starts with one word of selectors a class.
func testNumbers(t testing.TB, l *memoryLedger) *Numbers {
	t.Helper()
	n, err := newNumbers(1, testSizes(), l, maps.Clone(l.rows))
	if err != nil {
		t.Fatal(err)
	}
	return n
}

func digest(b byte) policy.Digest { return policy.Digest{b} }

// finish completes a publication and its grace period.
func finish(t testing.TB, n *Numbers, group publication) {
	t.Helper()
	list := n.releasedOf(group)
	n.retire(group, list)
	if err := n.free(list); err != nil {
		t.Fatal(err)
	}
}

func TestSameDigestHasTheSameNumber(t *testing.T) {
	n := testNumbers(t, newLedger())
	first := must(n.Assign(policy.KindPeer, digest(1), 1))
	second := must(n.Assign(policy.KindPeer, digest(2), 1))
	if first == second {
		t.Errorf("two digests share number %d", first)
	}
	if again := must(n.Assign(policy.KindPeer, digest(1), 1)); again != first {
		t.Errorf("digest has %d, then %d", first, again)
	}
}

func TestReservedNumbersAreNeverGivenOut(t *testing.T) {
	for kind, lowest := range map[policy.Kind]uint32{
		policy.KindPeer: uint32(bpf.PeerFirstFree), policy.KindRule: uint32(bpf.RuleFirstFree), policy.KindClass: 1, policy.KindProgram: 1,
		policy.KindCells: 1, policy.KindNode: 1, policy.KindEndpoint: 1, policy.KindBackend: 1, policy.KindService: 1,
		policy.KindSelector: 0, policy.KindSlots: 0,
	} {
		if got := must(testNumbers(t, newLedger()).Assign(kind, digest(1), 1)); got != lowest {
			t.Errorf("first number of kind %d is %d, want %d", kind, got, lowest)
		}
	}
}

func TestNoRoomNamesKindNeedAndRoomAndChangesNothing(t *testing.T) {
	l := newLedger()
	n := testNumbers(t, l)
	must(n.Assign(policy.KindCells, digest(1), 20))
	before := maps.Clone(l.rows)
	_, err := n.Assign(policy.KindCells, digest(2), 12)
	var room *policy.Shortage
	if !errors.As(err, &room) {
		t.Fatalf("got %v, want a Shortage", err)
	}
	want := &policy.Shortage{Kind: policy.KindCells, Has: 31, Asked: 12, Largest: 11, Remedy: "enlarge map policy_cells"}
	if diff := cmp.Diff(want, room); diff != "" {
		t.Errorf("error (-want +got):\n%s", diff)
	}
	if diff := cmp.Diff("assign policy cell numbers: need 12 in a row, at most 11 in a row are free of 31: enlarge map policy_cells", err.Error()); diff != "" {
		t.Errorf("message (-want +got):\n%s", diff)
	}
	if diff := cmp.Diff(before, l.rows); diff != "" {
		t.Errorf("the ledger changed (-want +got):\n%s", diff)
	}
	must(n.Assign(policy.KindCells, digest(3), 11)) // the room that was named is really there
}

func TestReleasedNumberIsFreeOnlyAfterPublicationAndGrace(t *testing.T) {
	l := newLedger()
	n := testNumbers(t, l)
	number := must(n.Assign(policy.KindClass, digest(1), 1))
	n.Release(policy.KindClass, digest(1))
	if got := must(n.Assign(policy.KindClass, digest(2), 1)); got == number {
		t.Fatal("reused before the publication")
	}
	list := n.releasedOf(publicationPolicy)
	n.retire(publicationPolicy, list)
	if got := must(n.Assign(policy.KindClass, digest(3), 1)); got == number {
		t.Fatal("reused before the grace period")
	}
	if err := n.free(list); err != nil {
		t.Fatal(err)
	}
	if got := must(n.Assign(policy.KindClass, digest(4), 1)); got != number {
		t.Errorf("number %d is not reused after the grace period: got %d", number, got)
	}
}

func TestOtherPublicationDoesNotFree(t *testing.T) {
	n := testNumbers(t, newLedger())
	number := must(n.Assign(policy.KindClass, digest(1), 1))
	n.Release(policy.KindClass, digest(1))
	finish(t, n, publicationServices)
	if got := must(n.Assign(policy.KindClass, digest(2), 1)); got == number {
		t.Error("a publication of services freed a class")
	}
}

func TestAssignedAgainDuringGraceSurvivesIt(t *testing.T) {
	n := testNumbers(t, newLedger())
	number := must(n.Assign(policy.KindClass, digest(1), 1))
	n.Release(policy.KindClass, digest(1))
	list := n.releasedOf(publicationPolicy)
	n.retire(publicationPolicy, list)
	if got := must(n.Assign(policy.KindClass, digest(1), 1)); got != number {
		t.Fatalf("the same digest got %d, had %d", got, number)
	}
	if err := n.free(list); err != nil {
		t.Fatal(err)
	}
	if got := must(n.Assign(policy.KindClass, digest(2), 1)); got == number {
		t.Error("the number was freed though its digest has it again")
	}
}

func TestOldGracePeriodDoesNotEndANewerWait(t *testing.T) {
	n := testNumbers(t, newLedger())
	number := must(n.Assign(policy.KindClass, digest(1), 1))
	var lists [2][]retired
	for i := range lists {
		must(n.Assign(policy.KindClass, digest(1), 1))
		n.Release(policy.KindClass, digest(1))
		lists[i] = n.releasedOf(publicationPolicy)
		n.retire(publicationPolicy, lists[i])
	}
	if err := n.free(lists[0]); err != nil {
		t.Fatal(err)
	}
	if got := must(n.Assign(policy.KindClass, digest(2), 1)); got == number {
		t.Error("the first grace period freed what was retired again after it")
	}
	if err := n.free(lists[1]); err != nil {
		t.Fatal(err)
	}
	if got := must(n.Assign(policy.KindClass, digest(3), 1)); got != number {
		t.Errorf("got %d, want %d, freed by the second grace period", got, number)
	}
}

func TestRuleIsNotReusedWhileAConnectionNamesIt(t *testing.T) {
	n := testNumbers(t, newLedger())
	rule := must(n.Assign(policy.KindRule, digest(1), 1))
	n.Release(policy.KindRule, digest(1))
	finish(t, n, publicationPolicy)
	if got := must(n.Assign(policy.KindRule, digest(2), 1)); got == rule {
		t.Fatal("reused after the grace period alone")
	}
	if diff := cmp.Diff(map[uint32]bool{rule: true}, n.quarantined()); diff != "" {
		t.Errorf("quarantine (-want +got):\n%s", diff)
	}
	if err := n.releaseRules(map[uint32]bool{rule: true}); err != nil {
		t.Fatal(err)
	}
	if got := must(n.Assign(policy.KindRule, digest(3), 1)); got != rule {
		t.Errorf("got %d, want %d, which no connection names", got, rule)
	}
}

func TestRuleWantedAgainLeavesQuarantine(t *testing.T) {
	n := testNumbers(t, newLedger())
	rule := must(n.Assign(policy.KindRule, digest(1), 1))
	n.Release(policy.KindRule, digest(1))
	finish(t, n, publicationPolicy)
	walk := n.quarantined() // a sweep begins
	if got := must(n.Assign(policy.KindRule, digest(1), 1)); got != rule {
		t.Fatalf("the same rule got %d, had %d", got, rule)
	}
	if err := n.releaseRules(walk); err != nil { // and ends
		t.Fatal(err)
	}
	if got := must(n.Assign(policy.KindRule, digest(2), 1)); got == rule {
		t.Error("a sweep freed a rule that is in use again")
	}
}

func TestRestartAdoptsAndPrunesWhatNobodyClaims(t *testing.T) {
	l := newLedger()
	before := testNumbers(t, l)
	kept := must(before.Assign(policy.KindCells, digest(1), 5))
	lost := must(before.Assign(policy.KindCells, digest(2), 3))
	after := testNumbers(t, l)
	if got := must(after.Assign(policy.KindCells, digest(1), 5)); got != kept {
		t.Errorf("renumbered from %d to %d", kept, got)
	}
	if got := must(after.Assign(policy.KindCells, digest(3), 3)); got == lost {
		t.Error("reused what an earlier agent may have in force")
	}
	if got := after.PruneUnclaimed(); got != 1 {
		t.Errorf("%d unclaimed, want 1", got)
	}
	finish(t, after, publicationPolicy)
	if got := must(after.Assign(policy.KindCells, digest(4), 3)); got != lost {
		t.Errorf("got %d, want %d, which nobody claimed", got, lost)
	}
}

func TestLedgerThatCannotWriteGivesNothingOut(t *testing.T) {
	l := newLedger()
	n := testNumbers(t, l)
	l.fail = errors.New("disk on fire")
	if _, err := n.Assign(policy.KindPeer, digest(1), 1); !errors.Is(err, l.fail) {
		t.Errorf("got %v", err)
	}
	l.fail = nil
	if got := must(n.Assign(policy.KindPeer, digest(2), 1)); got != uint32(bpf.PeerFirstFree) {
		t.Errorf("the failed assignment kept number %d", bpf.PeerFirstFree)
	}
}

func TestAdoptRefusesTwoNamesForOneNumber(t *testing.T) {
	rows := map[bpf.AssignmentKey]bpf.Assignment{
		{Digest: digest(1), Kind: uint32(policy.KindCells)}: {First: 4, Count: 4},
		{Digest: digest(2), Kind: uint32(policy.KindCells)}: {First: 7, Count: 1},
	}
	if _, err := newNumbers(1, testSizes(), newLedger(), rows); err == nil {
		t.Error("two assignments share cell 7 and were adopted")
	}
}

func TestAdoptForgetsWhatASmallerMapCannotHold(t *testing.T) {
	l := newLedger()
	tooFar := bpf.AssignmentKey{Digest: digest(1), Kind: uint32(policy.KindNode)}
	l.rows[tooFar] = bpf.Assignment{First: 8, Count: 1}
	l.rows[bpf.AssignmentKey{Digest: digest(2), Kind: 99}] = bpf.Assignment{First: 1, Count: 1}
	testNumbers(t, l)
	if len(l.rows) != 0 {
		t.Errorf("still there: %v", l.rows)
	}
}

func TestWrongCountsAreRefused(t *testing.T) {
	n := testNumbers(t, newLedger())
	must(n.Assign(policy.KindCells, digest(1), 3))
	for _, c := range []struct {
		name  string
		kind  policy.Kind
		count uint32
	}{
		{"another count for the same digest", policy.KindCells, 4},
		{"nothing", policy.KindPeer, 0},
		{"unknown kind", 99, 1},
	} {
		if _, err := n.Assign(c.kind, digest(1), c.count); err == nil {
			t.Errorf("%s was accepted", c.name)
		}
	}
}

func must[T any](v T, err error) T {
	if err != nil {
		panic(err)
	}
	return v
}

// modelSpace is a space as a set of numbers.
type modelSpace map[uint32]bool

func (m modelSpace) take(n, capacity uint32) (uint32, bool) {
	for first := uint32(0); first+n <= capacity; first++ {
		fits := true
		for i := first; i < first+n; i++ {
			fits = fits && m[i]
		}
		if fits {
			m.set(first, n, false)
			return first, true
		}
	}
	return 0, false
}

func (m modelSpace) set(first, n uint32, free bool) {
	for i := first; i < first+n; i++ {
		if m[i] = free; !free {
			delete(m, i)
		}
	}
}

func TestSpaceIsFirstFitLikeTheModel(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		reserved, capacity := rapid.Uint32Range(0, 4).Draw(t, "reserved"), rapid.Uint32Range(4, 60).Draw(t, "capacity")
		s, model := newSpace(reserved, capacity), modelSpace{}
		model.set(reserved, capacity-min(reserved, capacity), true)
		var taken []span
		t.Repeat(map[string]func(*rapid.T){
			"take": func(t *rapid.T) {
				n := rapid.Uint32Range(1, 12).Draw(t, "n")
				got, gotOK := s.take(n)
				want, wantOK := model.take(n, capacity)
				if got != want || gotOK != wantOK {
					t.Fatalf("take(%d) = %d %v, want %d %v", n, got, gotOK, want, wantOK)
				}
				if gotOK {
					taken = append(taken, span{got, n})
				}
			},
			"claim": func(t *rapid.T) {
				first, n := rapid.Uint32Range(0, capacity).Draw(t, "first"), rapid.Uint32Range(1, 8).Draw(t, "n")
				free := true
				for i := first; i < first+n; i++ {
					free = free && model[i]
				}
				if err := s.claim(first, n); (err == nil) != free {
					t.Fatalf("claim(%d, %d): %v, want free %v", first, n, err, free)
				}
				if free {
					model.set(first, n, false)
					taken = append(taken, span{first, n})
				}
			},
			"give": func(t *rapid.T) {
				if len(taken) == 0 {
					t.Skip("nothing is taken")
				}
				i := rapid.IntRange(0, len(taken)-1).Draw(t, "which")
				s.give(taken[i].first, taken[i].count)
				model.set(taken[i].first, taken[i].count, true)
				taken = append(taken[:i], taken[i+1:]...)
			},
			"": func(t *rapid.T) { checkSpace(t, s, model) },
		})
	})
}

// checkSpace compares free numbers, and that spans are ordered and do not touch.
func checkSpace(t *rapid.T, s *space, model modelSpace) {
	got := modelSpace{}
	for i, f := range s.free {
		if f.count == 0 || i > 0 && s.free[i-1].end() >= f.first {
			t.Fatalf("spans %v are empty, unordered or touch", s.free)
		}
		got.set(f.first, f.count, true)
	}
	if diff := cmp.Diff(model, got); diff != "" {
		t.Fatalf("free numbers (-want +got):\n%s", diff)
	}
	if total, _ := s.room(); int(total) != len(model) {
		t.Fatalf("room %d, want %d", total, len(model))
	}
}

// modelNumbers are assignments in plain maps. A number is busy from its assignment to the end of its grace period.
type modelNumbers struct {
	held map[byte]uint32 // claimed
	busy map[uint32]byte // by number: whose it is or was
}

func TestNumbersLikeTheModelInAnyOrderWithRestarts(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		l := newLedger()
		n := testNumbers(t, l)
		model := modelNumbers{map[byte]uint32{}, map[uint32]byte{}}
		var queue [][]retired
		rt.Repeat(map[string]func(*rapid.T){
			"assign": func(rt *rapid.T) {
				d := rapid.ByteRange(0, 9).Draw(rt, "digest")
				number, err := n.Assign(policy.KindProgram, digest(d), 1)
				if err != nil {
					if len(model.busy) < 7 {
						rt.Fatalf("no room with %d of 7 busy: %v", len(model.busy), err)
					}
					return
				}
				if owner, busy := model.busy[number]; busy && owner != d {
					rt.Fatalf("number %d of digest %d was given to %d", number, owner, d)
				}
				if before, ok := model.held[d]; ok && before != number {
					rt.Fatalf("digest %d renumbered from %d to %d", d, before, number)
				}
				model.held[d], model.busy[number] = number, d
			},
			"release": func(rt *rapid.T) {
				d := rapid.ByteRange(0, 9).Draw(rt, "digest")
				n.Release(policy.KindProgram, digest(d))
				delete(model.held, d)
			},
			"publish": func(*rapid.T) {
				list := n.releasedOf(publicationPolicy)
				n.retire(publicationPolicy, list)
				queue = append(queue, list)
			},
			"grace": func(rt *rapid.T) {
				if len(queue) == 0 {
					rt.Skip("nothing waits")
				}
				if err := n.free(queue[0]); err != nil {
					rt.Fatal(err)
				}
				queue = queue[1:]
				model.busy = map[uint32]byte{}
				for key, row := range l.rows {
					model.busy[row.First] = key.Digest[0]
				}
				for d, number := range model.held {
					if owner, ok := model.busy[number]; !ok || owner != d {
						rt.Fatalf("number %d of digest %d was freed while it is held", number, d)
					}
				}
			},
			"restart": func(rt *rapid.T) {
				n, queue = testNumbers(t, l), nil
				for d, number := range model.held {
					if got := must(n.Assign(policy.KindProgram, digest(d), 1)); got != number {
						rt.Fatalf("restart renumbered %d from %d to %d", d, number, got)
					}
				}
				n.PruneUnclaimed()
			},
		})
	})
}
