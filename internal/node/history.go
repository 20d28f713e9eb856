package node

import (
	"cmp"
	"context"
	"maps"
	"net/netip"
	"slices"

	"google.golang.org/grpc/status"

	"tendril.io/tendril/bpf"
	"tendril.io/tendril/internal/flow"
	"tendril.io/tendril/internal/ipproto"
	"tendril.io/tendril/internal/policy"
)

// history is what the flow records tell of connections: each once, by who opened it, to whom and to which port.
type history struct {
	since                   int64
	records, lost, unjudged uint64
	oldest                  int64
	opened                  map[connection]*pastFlow // of records about flows
	dropped                 map[connection]*pastFlow // of packets, which may be answers
	acknowledging           map[connection]bool      // dropped, and in the middle of a connection
}

// connection is both ends of a packet.
type connection struct {
	source, destination netip.AddrPort
	protocol            uint8
}

// pastFlow stands for all connections of equal addresses, protocol and destination port.
type pastFlow struct {
	source, destination                 netip.Addr
	protocol                            uint8
	port                                uint16
	sourcePeer, destinationPeer         uint32
	sourceEndpoint, destinationEndpoint uint32
	count, ended                        uint64
	first, last                         int64
}

func newHistory(since int64) *history {
	return &history{
		since: since, opened: map[connection]*pastFlow{}, dropped: map[connection]*pastFlow{}, acknowledging: map[connection]bool{},
	}
}

// read takes in all records that are kept now.
func (h *history) read(ctx context.Context, ring *flow.Ring, boot int64) error {
	if ring == nil {
		return nil
	}
	stored, _ := ring.Totals()
	follower := ring.Follow(false)
	var buf [256]bpf.Event
	for left := min(stored, uint64(ring.Len())); left > 0 && ctx.Err() == nil; {
		n, lost := follower.Read(buf[:min(left, uint64(len(buf)))])
		if n == 0 {
			break
		}
		left -= uint64(n)
		h.lost += lost
		for i := range buf[:n] {
			h.add(&buf[i], boot+int64(buf[i].Time))
		}
	}
	if ctx.Err() != nil {
		return status.FromContextError(ctx.Err()).Err()
	}
	return nil
}

// add takes in one record.
func (h *history) add(e *bpf.Event, at int64) {
	if at < h.since {
		return
	}
	if h.records++; h.oldest == 0 {
		h.oldest = at
	}
	if !isJudged(e) || e.Source.IsZero() || e.Destination.IsZero() {
		h.unjudged++
		return
	}
	c := connection{
		netip.AddrPortFrom(e.Source.Addr(), bpf.Port(e.SourcePort)), netip.AddrPortFrom(e.Destination.Addr(), bpf.Port(e.DestinationPort)), e.Protocol,
	}
	into := h.opened
	if e.Kind == bpf.EventDrop {
		into = h.dropped
		h.acknowledging[c] = h.acknowledging[c] || e.TCPFlags&tcpACK != 0
	}
	f := into[c]
	if f == nil {
		f = &pastFlow{
			source: c.source.Addr(), destination: c.destination.Addr(), protocol: e.Protocol, first: at,
			port: flow.PolicyPort(e.Protocol, c.destination.Port()),
		}
		into[c] = f
	}
	f.sourcePeer, f.destinationPeer = e.SourcePeer, e.DestinationPeer
	f.sourceEndpoint, f.destinationEndpoint = e.SourceEndpoint, e.DestinationEndpoint
	f.last = at
	switch e.Kind {
	case bpf.EventFlowNew, bpf.EventDrop:
		f.count++
	case bpf.EventFlowEnd:
		f.ended++
	}
}

// tcpACK is the flag that every segment of a connection bears but the first (RFC 9293, 3.1).
const tcpACK = 0x10

// isJudged says whether a policy of this node had a say: not every drop is policy's, and what a pod sends to itself
// is nobody's business.
func isJudged(e *bpf.Event) bool {
	for _, rule := range []uint32{e.EgressRule, e.IngressRule} {
		switch bpf.BuiltinRule(rule) {
		case bpf.RuleNone, bpf.RuleOutsideScope, bpf.RuleSelf, bpf.RuleReply, bpf.RuleICMPRelated:
		default:
			return true
		}
	}
	return false
}

// flows lists what was opened, or was not allowed to be, the latest first. A drop of an answer tells no more than the
// record of its connection does; one in the middle of a connection that nobody recorded has no known direction.
func (h *history) flows() []*pastFlow {
	distinct := map[connection]*pastFlow{}
	for _, f := range h.opened {
		f.count = max(f.count, f.ended, 1)
		f.into(distinct)
	}
	for c, f := range h.dropped {
		_, answer := h.opened[connection{c.destination, c.source, c.protocol}]
		_, known := h.opened[c]
		switch {
		case answer:
		case h.acknowledging[c] && !known && c.protocol == ipproto.TCP:
			h.unjudged += f.count
		default:
			f.into(distinct)
		}
	}
	return slices.SortedFunc(maps.Values(distinct), func(a, b *pastFlow) int {
		return cmp.Or(cmp.Compare(b.last, a.last), a.source.Compare(b.source), a.destination.Compare(b.destination),
			cmp.Compare(a.protocol, b.protocol), cmp.Compare(a.port, b.port))
	})
}

// into adds a connection to those that policy cannot tell from it.
func (f *pastFlow) into(distinct map[connection]*pastFlow) {
	key := connection{netip.AddrPortFrom(f.source, 0), netip.AddrPortFrom(f.destination, f.port), f.protocol}
	known := distinct[key]
	if known == nil {
		distinct[key] = f
		return
	}
	first, count := min(known.first, f.first), known.count+f.count
	if f.last > known.last {
		*known = *f
	}
	known.first, known.count = first, count
}

// isDeparted says whether an end of a flow is no longer who it was.
func (f *pastFlow) isDeparted(ends [2]policy.Party) bool {
	moved := func(was uint32, is policy.Party) bool {
		return was != 0 && was != is.Endpoint || is.Workload == nil && is.Reserved == 0
	}
	return moved(f.sourceEndpoint, ends[0]) || moved(f.destinationEndpoint, ends[1])
}
