package policy

import (
	"net/netip"
)

// Kind says what a node-local number counts. Numbers survive a restart (see Numbers).
type Kind uint32

// The kinds.
const (
	KindPeer Kind = 1 + iota
	KindClass
	KindSelector
	KindProgram
	KindCells // ranges of policy cells
	KindRule
	KindNode
	KindService
	KindBackend
	KindSlots // ranges of slots
	KindEndpoint

	kinds // how many there are, and one
)

// String is the name of one number, as people read it.
func (k Kind) String() string {
	names := map[Kind]string{
		KindPeer: "peer", KindClass: "class", KindSelector: "selector", KindProgram: "program", KindCells: "policy cell", KindRule: "rule",
		KindNode: "node", KindService: "service", KindBackend: "backend", KindSlots: "slot", KindEndpoint: "endpoint",
	}
	return names[k]
}

// plural is the name of several.
func (k Kind) plural() string {
	if k == KindClass {
		return "classes"
	}
	return k.String() + "s"
}

// Digest is what a number stands for: a hash of its meaning.
type Digest [16]byte

// Numbers gives out node-local numbers and ranges of them. The agent's implementation keeps assignments in a pinned
// map and reuses a number only after every packet that could have seen it has gone. The brains only ask.
type Numbers interface {
	// Assign returns the first of n consecutive numbers for what digest stands for: the same as before if it has
	// them, new ones otherwise. It fails with a *Shortage when the kind has no room.
	Assign(kind Kind, digest Digest, n uint32) (first uint32, err error)
	// Release gives the numbers back. They become free once the current publication is complete.
	Release(kind Kind, digest Digest)
}

// Delta is what the kernel must learn, in the order of its fields: content before what refers to it. An address moves
// to a peer that a new selector holds before the program that names the selector is in force. Applying a delta twice is
// harmless. Slices are sorted by number or address so that two equal deltas print alike.
//
// Set comes with narrower prefixes before the wider ones around them, Unset the other way round: whatever the row that a
// packet finds, before and after each write, it is the one that was right for it or the one that will be.
type Delta struct {
	Classes  []ClassRow     // selector bits of new classes
	Peers    []PeerRow      // peers that are new or changed class
	Set      []AddressRow   // addresses and prefixes to write
	Contents []ContentRow   // policy content in fresh cells
	Programs []ProgramRow   // descriptors: the instant at which a program changes
	Subjects []SubjectRow   // local endpoints whose peer or programs changed
	Unset    []netip.Prefix // addresses and prefixes to remove
	Changed  bool           // some verdict may differ from before: the verdict epoch must rise
	Work     Work
}

// ClassRow is one row of class_bits.
type ClassRow struct {
	Class uint32
	Bits  []uint64 // selector n is bit n%64 of word n/64; shorter than a row: the rest is 0
}

// PeerRow is one word of peer_class.
type PeerRow struct {
	Peer, Class uint32
}

// ContentRow is the content of a program in cells nobody refers to yet.
type ContentRow struct {
	FirstCell uint32
	Cells     [][16]byte // union policy_cell, in the machine's byte order
}

// ProgramRow is a descriptor of policy_programs.
type ProgramRow struct {
	Program    uint32
	Descriptor uint64 // 0: not in use
}

// AddressRow is an entry of addresses (full length) or prefixes.
type AddressRow struct {
	Prefix   netip.Prefix // IPv4 unmapped
	Peer     uint32
	Node     uint32
	Endpoint uint32
	Flags    uint32 // enum address_flag
}

// SubjectRow says what a local endpoint is judged by. Peer is that of its labels and named ports alone: which ranges
// hold an address is known only per address, so a source is judged by the peer of its address.
type SubjectRow struct {
	Endpoint        uint32
	Peer            uint32
	Ingress, Egress uint32 // program numbers
	// StagedIngress and StagedEgress are programs that hold the staged policies as well, to be asked for the record
	// only; 0: no staged policy selects the endpoint in that direction.
	StagedIngress, StagedEgress uint32
}

// Work counts what a delta cost to compute, for the promise that cost is local.
type Work struct {
	SubjectsRecomputed int
	ProgramsCompiled   int
	SelectorsEvaluated int // (selector, peer) pairs
	AddressesEvaluated int // rows of addresses and prefixes that were looked at again
	KernelWrites       int
}
