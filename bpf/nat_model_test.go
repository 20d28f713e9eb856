package bpf

import (
	"net/netip"
	"slices"
)

// The reference of SNAT, written from RFC 4787 (UDP), RFC 5382 (TCP) and RFC 5508 (ICMP): a table of who has which outside tuple.

// tuple is one flow as one side of the translation sees it: the near end is the translated one. Of an ICMP echo the near
// port is the id, and the far port 0.
type tuple struct {
	protocol  string
	near, far netip.AddrPort
}

// translation is what is remembered of a flow.
type translation struct {
	outside tuple
	service netip.AddrPort // by what name the one behind it knows the far end; invalid: by its own
}

// translator is the table. No method of it chooses: it says what may be chosen, and then hears what was.
type translator struct {
	first, last uint16                                          // ports to fall back on
	reserved    func(protocol string, near netip.AddrPort) bool // a socket or a service of the node has it
	flows       map[tuple]translation
	holders     map[tuple]tuple // outside tuple -> flow
}

func newTranslator(first, last uint16, reserved func(string, netip.AddrPort) bool) *translator {
	return &translator{first: first, last: last, reserved: reserved, flows: map[tuple]translation{}, holders: map[tuple]tuple{}}
}

// choices are the ports that a new flow may get: its own while nobody has that towards the same far end (port preservation,
// RFC 4787 4.2.1), else any free one of the range; none: it must be refused.
func (r *translator) choices(flow tuple, node netip.Addr) []uint16 {
	free := func(port uint16) bool {
		near := netip.AddrPortFrom(node, port)
		_, held := r.holders[tuple{flow.protocol, near, flow.far}]
		return !held && !r.reserved(flow.protocol, near)
	}
	if free(flow.near.Port()) {
		return []uint16{flow.near.Port()}
	}
	var ports []uint16
	for port := r.first; port <= r.last; port++ {
		if free(port) {
			ports = append(ports, port)
		}
	}
	return ports
}

// learn notes a choice. It returns whether it was one that the flow had.
func (r *translator) learn(flow tuple, near, service netip.AddrPort) bool {
	if !slices.Contains(r.choices(flow, near.Addr()), near.Port()) {
		return false
	}
	outside := tuple{flow.protocol, near, flow.far}
	r.flows[flow] = translation{outside, service}
	r.holders[outside] = flow
	return true
}

// forget ends a flow.
func (r *translator) forget(flow tuple) {
	delete(r.holders, r.flows[flow].outside)
	delete(r.flows, flow)
}
