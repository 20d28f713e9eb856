// Package datapath owns what the agent keeps in the kernel's BPF: maps, programs and links under one bpffs folder.
//
// Its parts, in the order in which a node comes up:
//
//  1. [Open] locks the folder, opens or makes the pinned maps (maps.go), adopts the numbers given out before
//     (numbers.go) and puts a version of the programs in force (version.go).
//  2. [Datapath.AttachUplink], [Datapath.AttachOverlay], [Datapath.AttachLoopback] and [Datapath.AttachSockets] keep pinned links (attach.go);
//     [Datapath.LoadStub] makes the small program that a pod's device carries (stub.go).
//  3. [Datapath.Publish] and [Datapath.PublishServices] carry deltas of the brains to the kernel (publish.go): content
//     first, then the one store that makes it visible, and the freeing of what it replaced only after a grace period
//     (grace.go).
//  4. [Datapath.Prune] removes what nobody wants any more, once the agent's state is known to be complete.
//  5. [Datapath.Run] frees, sweeps connections and forgets; [Datapath.Events] reads what programs saw.
//
// Everything is pinned, so an agent may die between any two instructions and the kernel goes on alone. The next agent
// finds the same numbers under the same names and writes only differences. [Teardown] is the one thing that removes it all.
//
// The package decides nothing: which addresses, rules or backends there are is the brains' business. Attaching with
// clsact is netlink's. A version that cannot be had in full is not put in force at all.
//
// Traps: an array whose values are 4 bytes has a stride of 8 in memory; a prog array is emptied when its last user-space
// reference goes, so every one is pinned; names under bpffs must not hold dots.
package datapath
