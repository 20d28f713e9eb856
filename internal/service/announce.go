package service

import (
	"hash/fnv"
	"net/netip"
)

// Candidate is a node that may answer for addresses of load balancers.
type Candidate struct {
	Name string
	hash uint64
}

// NewCandidate prepares a node's name.
func NewCandidate(name string) Candidate {
	sum := fnv.New64a()
	_, _ = sum.Write([]byte(name)) // cannot fail
	return Candidate{name, sum.Sum64()}
}

// Announcer chooses the node that answers for an address, the same on every node that knows the same candidates; "" without any. When
// a node comes or goes, only addresses that become its own, or were, change hands: rendezvous hashing (Thaler and Ravishankar,
// "Using name-based mappings to increase hit rates", 1998).
func Announcer(addr netip.Addr, candidates []Candidate, may func(node string) bool) string {
	bytes := addr.As16()
	sum := fnv.New64a()
	_, _ = sum.Write(bytes[:])
	at := sum.Sum64()
	best, highest := "", uint64(0)
	for _, c := range candidates {
		score := mixed(c.hash ^ at)
		if (best == "" || score > highest || score == highest && c.Name < best) && (may == nil || may(c.Name)) {
			best, highest = c.Name, score
		}
	}
	return best
}

// mixed spreads a word's bits: the finalizer of MurmurHash3 (Austin Appleby, public domain).
func mixed(word uint64) uint64 {
	word = (word ^ word>>33) * 0xff51afd7ed558ccd
	word = (word ^ word>>33) * 0xc4ceb9fe1a85ec53
	return word ^ word>>33
}
