package bpf

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
)

// listedEntry is an entry of a program that a test makes up: its rule's number is its rank and 100.
type listedEntry struct {
	ports    string
	rank     uint32
	selector int
	pass     uint32 // rank to go on from; 0: an allow
}

// drawEntries makes n entries in the three lists that concern a packet to port 80, in rising rank, and a few passes.
func drawEntries(random *rand.Rand, n int, lists []string) []listedEntry {
	out := make([]listedEntry, n)
	for i := range out {
		out[i] = listedEntry{lists[random.IntN(len(lists))], uint32(i) + 1, random.IntN(128), 0}
	}
	for range random.IntN(int(PassRounds)) {
		at := random.IntN(n)
		out[at].pass = uint32(at) + 2 + uint32(random.IntN(n))
	}
	return out
}

// winner is the rule that decides: the first match, after as many passes as match before it.
func winner(entries []listedEntry, bits []int) uint32 {
	floor := uint32(0)
	for _, e := range entries {
		switch {
		case e.rank < floor || !slices.Contains(bits, e.selector):
		case e.pass != 0:
			floor = e.pass
		default:
			return e.rank + 100
		}
	}
	return uint32(RuleDefaultAllow)
}

// Lists end at, before and behind the borders of cells of selectors and of what is looked at without a loop: each match
// is found, wherever it stands, and what fills the last cell matches nobody.
func TestTheFirstMatchOfListsOfAnyLengthWins(t *testing.T) {
	needRoot(t)
	s := newStage(t)
	do := func(format string, args ...any) string {
		out, err := s.do(fmt.Sprintf(format, args...))
		if err != nil {
			t.Fatal(err)
		}
		return out
	}
	do("program 1 allow")
	do("endpoint 1 10.1.0.2 fd01::2 peer=20 egress=1 ingress=1")
	do("endpoint 2 10.1.0.3 fd01::3 peer=21 egress=1 ingress=2")
	random := rand.New(rand.NewPCG(5, 6))
	one, three := []string{"tcp/80"}, []string{"tcp/80", "tcp", "any"}
	lengths := []int{1, 7, 8, 9, 15, 16, 17, 63, 64, 65, 71, 72, 73, 128, 200}
	for i := range 40 * len(lengths) {
		lists := one
		if i%2 == 1 {
			lists = three
		}
		entries := drawEntries(random, lengths[i%len(lengths)], lists)
		program := "program 2 allow"
		for _, e := range entries {
			action := "allow"
			if e.pass != 0 {
				action = "pass"
			}
			program += fmt.Sprintf("; %s %s selector=%d rank=%d rule=%d argument=%d", action, e.ports, e.selector, e.rank, e.rank+100, e.pass)
		}
		bits := random.Perm(128)[:random.IntN(6)]
		do("%s", program)
		do("peer 20 class=1 bits=%s", strings.Trim(strings.ReplaceAll(fmt.Sprint(bits), " ", ","), "[]"))
		do("from_pod 1 tcp 10.1.0.2:1234 > 10.1.0.3:80 syn")
		if want := fmt.Sprintf("ingress=allow/%d ", winner(entries, bits)); !strings.Contains(do("flows")+" ", want) {
			t.Fatalf("bits %v, entries %+v\ngot flows %s\nwant %s", bits, entries, do("flows"), want)
		}
		s.dropFlows(t)
		s.nextCell = 2 // program 1 keeps its only one
	}
}

// empty takes everything out of a hash table.
func (s *stage) empty(t testing.TB, name string) {
	key := make([]byte, s.maps[name].KeySize())
	for s.maps[name].NextKey(nil, key) == nil {
		if err := s.maps[name].Delete(key); err != nil {
			t.Fatal(err)
		}
	}
}

// dropFlows empties the table of flows, and the quota of half-open ones.
func (s *stage) dropFlows(t *testing.T) {
	s.empty(t, "flows")
	if err := s.maps["endpoint_uses"].Put(uint32(1), EndpointUse{}); err != nil {
		t.Fatal(err)
	}
}
