package bpf

import (
	"encoding/binary"
	"math/bits"
	"net/netip"
)

// AddressOf is the datapath's form of an address: 16 bytes, IPv4 as ::ffff:a.b.c.d. The zero Addr gives the zero
// Address, which means none.
func AddressOf(addr netip.Addr) Address {
	if !addr.IsValid() {
		return Address{}
	}
	return addr.As16()
}

// Addr is the address, IPv4 unmapped; invalid if there is none.
func (a Address) Addr() netip.Addr {
	if a.IsZero() {
		return netip.Addr{}
	}
	return netip.AddrFrom16(a).Unmap()
}

// IsZero says that there is no address.
func (a Address) IsZero() bool { return a == Address{} }

// String is the address as people write it, or "-" for none.
func (a Address) String() string {
	if a.IsZero() {
		return "-"
	}
	return a.Addr().String()
}

// PrefixOf is the datapath's form of a prefix: IPv4 prefixes are 96 bits longer than written.
func PrefixOf(prefix netip.Prefix) Prefix {
	length := prefix.Bits()
	if prefix.Addr().Is4() {
		length += 96
	}
	return Prefix{Length: uint32(length), Address: prefix.Masked().Addr().As16()}
}

// GuardOf is the key of a source range of a service: the service's 32 bits count to the prefix's length.
func GuardOf(service uint32, prefix netip.Prefix) Guard {
	p := PrefixOf(prefix)
	return Guard{Length: 32 + p.Length, Service: service, Address: p.Address}
}

// GatewayRouteOf is the key of a destination of egress gateways: the set's 32 bits count to the prefix's length.
func GatewayRouteOf(set uint32, prefix netip.Prefix) GatewayRoute {
	p := PrefixOf(prefix)
	return GatewayRoute{Length: 32 + p.Length, Set: set, Address: p.Address}
}

// Port is the number of a port that lies in memory in network byte order, as the __be16 fields of the structs do.
func Port(memory uint16) uint16 { return swap(memory) }

// NetPort is a port number in network byte order, for the __be16 fields of the structs.
func NetPort(port uint16) uint16 { return swap(port) }

// swap exchanges network and host byte order, which is its own inverse.
func swap(v uint16) uint16 {
	if binary.NativeEndian.Uint16([]byte{0, 1}) == 1 {
		return v
	}
	return bits.ReverseBytes16(v)
}
