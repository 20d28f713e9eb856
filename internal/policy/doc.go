// Package policy is the policy core: one ordered model for every dialect, compiled to selector bits and programs.
//
// Inputs are facts about workloads, addresses and policies (input.go, model.go), staged in any order (engine.go). Flush
// takes them in at once and returns a Delta (delta.go), which internal/datapath publishes. Its stages, in the order of
// flush.go:
//
//  1. policies select groups, the local endpoints that no policy can tell apart (program.go), found by a value that a
//     policy's subjects must have (index.go); staged policies get programs of their own, which only records ask;
//  2. a marked group's rules become lines in order of precedence, and those entries in cells (program.go, cells.go);
//  3. the selectors that entries name get bits (selector.go); ranges, and groups of addresses that change by themselves
//     (addressgroup.go), go into a tree of places (place.go, tree.go); a named port of an egress rule asks its peers for
//     numbers (view.go);
//  4. places get peers, what policies can tell apart among addresses, and peers with equal bits share a class (peer.go,
//     bitset.go);
//  5. what is no longer used goes: a selector's bit one flush later than its last program, since that program judges
//     until this delta is in force.
//
// Every change goes through a plan (plan.go), which is undone whole when something does not fit; the policy that does
// not fit is refused, something closed stands in for it where no earlier version is in force, and the rest goes on
// (room.go). A plan's memory serves the next one (scratch.go): an identity that appears costs the same few allocations
// on every node.
//
// judge.go walks the lines of a program for one packet, explain.go says why; simulate.go and pairs.go compare what is in
// force with what would be; use.go, host.go, rows.go and addresses.go tell what is there.
//
// It is pure: no I/O, clock, log or goroutine, and not safe for concurrent use. It knows nothing of how dialects spell
// things (internal/kube) nor of how rows reach the kernel.
//
// Traps: identity.Unknown is nobody's address and matches nothing, not even everybody's selector; index 0 of classes is
// the empty set; a group without subjects keeps programs that nobody keeps up to date; a change made past the plan
// survives a flush that failed.
package policy
