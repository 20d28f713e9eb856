package service

import (
	"fmt"
	"net/netip"
	"slices"
	"testing"

	"pgregory.net/rapid"
)

// Nodes agree whatever the order in which they know each other, and a node that goes takes only its own addresses along.
func TestAnAddressChangesHandsOnlyWithItsNode(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		var nodes []Candidate
		for i := range rapid.IntRange(1, 20).Draw(t, "nodes") {
			nodes = append(nodes, NewCandidate(fmt.Sprintf("node%d", i)))
		}
		gone := rapid.IntRange(0, len(nodes)-1).Draw(t, "gone")
		rest := slices.Delete(slices.Clone(nodes), gone, gone+1)
		slices.Reverse(rest)
		for i := range 50 {
			addr := netip.AddrFrom4([4]byte{192, 0, 2, byte(i)})
			before, after := Announcer(addr, nodes, nil), Announcer(addr, rest, nil)
			if before != nodes[gone].Name && after != before {
				t.Fatalf("%s: %s has it, and %q when %s is gone", addr, before, after, nodes[gone].Name)
			}
			barred := Announcer(addr, nodes, func(node string) bool { return node != nodes[gone].Name })
			if barred != after {
				t.Fatalf("%s: %q while %s may not, %q when it is gone", addr, barred, nodes[gone].Name, after)
			}
		}
	})
}

func TestAddressesAreSharedOut(t *testing.T) {
	const nodes, addrs = 10, 10000
	var all []Candidate
	for i := range nodes {
		all = append(all, NewCandidate(fmt.Sprintf("node%d", i)))
	}
	shares := map[string]int{}
	for i := range addrs {
		shares[Announcer(netip.AddrFrom4([4]byte{10, 0, byte(i >> 8), byte(i)}), all, nil)]++
	}
	for _, node := range all {
		// 1000 is the mean, 30 a standard deviation.
		if got := shares[node.Name]; got < 850 || got > 1150 {
			t.Errorf("%s has %d of %d", node.Name, got, addrs)
		}
	}
}
