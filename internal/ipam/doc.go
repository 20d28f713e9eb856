// Package ipam decides which address a pod gets, and knows whose every address of the node is.
//
// A Book has a pool for each pod CIDR of the node. An address is free, used, or released:
//
//	free -> used -> released (withdrawn from the cluster's records, not yet confirmed) -> cooling -> free
//
// Other nodes learn late that an address changed hands, so an address is given out again only when 60 s have passed
// since its release was committed to the store; while the store is away nothing is committed, and so only addresses
// that were never used, or had cooled before, are given out. Among those, never-used ones go first, in rising order,
// then those that were released longest ago.
//
// Claim notes addresses that somebody else chooses, in a pool or in none; they do not rest, for whoever chooses them would not know.
//
// The package is pure: it keeps no file, reads no clock, and is not safe for concurrent use. Time comes in as a value.
// It is not for routes or devices, and does not tell the store: internal/endpoint does, and keeps the journal from
// which Restore makes the book anew.
//
// Traps: Restore must have seen every address of the journal before the first Allocate, or one is given out twice;
// Forget is only for addresses that certainly nobody heard of; Release and Committed go by address, so a caller that
// repeats them late may hit the next owner.
package ipam
