package service

import (
	"cmp"
	"net/netip"

	"tendril.io/tendril/bpf"
	"tendril.io/tendril/internal/policy"
)

// Numbers gives out node-local numbers and ranges of them. It has the shape of policy.Numbers, so that one allocator
// serves every brain: Assign returns what the digest had before if it has anything, and Release gives it back once the
// current publication is complete. The kinds asked for are KindService, KindBackend and KindSlots.
type Numbers interface {
	Assign(kind policy.Kind, digest policy.Digest, n uint32) (first uint32, err error)
	Release(kind policy.Kind, digest policy.Digest)
}

// Delta is what the kernel must learn, in the order of its fields: content before what refers to it. Applying a delta
// twice is harmless, and at no instant in between does a slot that a frontend refers to lead to a backend that gets
// nothing new. Slices are sorted by number or address so that two equal deltas print alike.
type Delta struct {
	Backends  []BackendRow  // backends that are new or changed, but for the retired
	Slots     []SlotRange   // content of slot ranges that no frontend refers to yet
	Guards    []GuardRow    // source ranges that are new
	Frontends []FrontendRow // the instant at which a frontend changes
	Removed   []FrontendKey // frontends that are no more
	Unguarded []GuardRow    // source ranges that are no more
	Retired   []BackendRow  // backends that get nothing new any more; those with State BackendGone: reset their clients
	Work      Work
}

// Empty says that there is nothing to write.
func (d *Delta) Empty() bool {
	return len(d.Backends)+len(d.Slots)+len(d.Guards)+len(d.Frontends)+len(d.Removed)+len(d.Unguarded)+len(d.Retired) == 0
}

// BackendRow is a row of the backends map.
type BackendRow struct {
	Index uint32
	Addr  netip.Addr // IPv4 unmapped
	Port  uint16
	Proto uint8            // IP protocol number
	State bpf.BackendState // Terminating: serves what it has, gets nothing new; such are not ready or on their way out
	Node  uint32           // number of its node; 0: unknown
}

// SlotRange is the content of consecutive slots: backend indexes.
type SlotRange struct {
	First    uint32
	Backends []uint32
}

// FrontendKey is what a client addresses.
type FrontendKey struct {
	Addr  netip.Addr // IPv4 unmapped; unspecified: every address of the node
	Port  uint16
	Proto uint8 // IP protocol number
}

// Compare orders keys by address, port and protocol.
func (k FrontendKey) Compare(other FrontendKey) int {
	return cmp.Or(k.Addr.Compare(other.Addr), cmp.Compare(k.Port, other.Port), cmp.Compare(k.Proto, other.Proto))
}

// FrontendRow is an entry of the frontends map.
type FrontendRow struct {
	FrontendKey
	Inside          bpf.SlotRange // for clients of this node; Count 0: connections are refused with DROP_NO_BACKEND
	Outside         bpf.SlotRange // for packets that arrive; only with FRONTEND_EXTERNAL
	Service         uint32        // number of the service, for records and source ranges
	Flags           bpf.FrontendFlag
	AffinitySeconds uint32 // 0: none
}

// GuardRow is an entry of the guards map: clients that the guarded frontends of a service admit.
type GuardRow struct {
	Service uint32 // number of the service
	Prefix  netip.Prefix
}

// compare orders rows by service and prefix.
func (r GuardRow) compare(other GuardRow) int {
	return cmp.Or(cmp.Compare(r.Service, other.Service), r.Prefix.Compare(other.Prefix))
}

// Work counts what a delta cost to compute, for the promise that cost is local.
type Work struct {
	ServicesRecomputed int
	SlotsComputed      int
	KernelWrites       int // rows and slots
}
