package table

import "net/netip"

// Route is a route of the node, from the kernel.
type Route struct {
	Prefix netip.Prefix
	Via    netip.Addr // invalid: directly on the device
	Source netip.Addr // preferred source, invalid if none
	Device string
	Table  uint32 // the kernel's routing table, 254 being main
	MTU    uint32 // 0: the device's
}

// RouteWanted is a route that the node should have; netlink makes the kernel's equal to it.
type RouteWanted Route

// Selector is a distinct selector of the node's policies and the bit that stands for it.
type Selector struct {
	Bit   uint32
	Text  string // canonical form
	Peers int    // that match it
}

// Class is a distinct set of selectors that match some peer.
type Class struct {
	Class uint32
	Bits  []uint32 // of the selectors in it, ascending
	Peers int      // in the class
}

// Peer is what policy tells apart about an address, under a node-local number.
type Peer struct {
	Peer      uint32
	Class     uint32
	Identity  string // label-set hash in hex, or reserved:world and the like
	Namespace string
	CIDRs     []netip.Prefix // of CIDR selectors that contain its addresses
	Addresses int            // that have it
}

// Address is what the datapath is told about an address or a prefix.
type Address struct {
	Prefix   netip.Prefix // full length for an exact address; IPv4 unmapped
	Peer     uint32
	Node     uint32 // index into the node map
	Endpoint uint32 // index into the endpoint map, if local
	Flags    uint32 // enum address_flag
}

// Program is a compiled policy of one direction, shared by endpoints that are alike.
type Program struct {
	Program   uint32
	Direction string // ingress or egress
	Subjects  int    // endpoints judged by it
	Segments  int    // disjoint (protocol, port range) segments
	Entries   int
	Default   string // allow, or deny where a policy isolates the subjects
}

// Frontend is a service's address, port and protocol, and the slots of its backends.
type Frontend struct {
	Addr     netip.Addr
	Port     uint16
	Protocol uint8  // IP protocol number
	Service  string // namespace/name
	Type     string // ClusterIP, NodePort, ExternalIP, LoadBalancer
	Base     uint32 // first slot
	Count    uint32 // slots
	Flags    uint32
	Problem  string // why it cannot be served, empty if it is
}

// Slot is one place of a frontend's range and the backend that stands in it.
type Slot struct {
	Slot    uint32
	Backend uint32 // index into the backend map
	Target  netip.AddrPort
	Service string // namespace/name
}
