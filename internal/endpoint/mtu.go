package endpoint

// Encryption is how packets between nodes are hidden.
type Encryption string

// The kinds of encryption. The zero value is none.
const (
	EncryptNone      Encryption = ""
	EncryptIPsec     Encryption = "ipsec"     // ESP, AES-GCM with a 128-bit tag
	EncryptWireGuard Encryption = "wireguard" // a tunnel of its own
)

// Underlay is what MTUs follow from.
type Underlay struct {
	DeviceMTU  uint32 // bytes of IP packet that the uplink carries
	Tunnel     bool   // pods of other nodes are reached by VXLAN
	IPv6       bool   // nodes talk to each other over IPv6
	Encryption Encryption
}

// MTUs are bytes of IP packet.
type MTUs struct {
	Device uint32 // of pods' devices: as large as the uplink, since pods of one node need no encapsulation
	Route  uint32 // of pods' default routes: what fits whichever way a packet goes
	Tunnel uint32 // of the overlay device: inner packet; 0 without tunnel
}

// Bytes that wrapping adds in front of, and behind, an inner IP packet.
const (
	ipv4Header = 20
	ipv6Header = 40
	// VXLAN (RFC 7348): outer UDP, VXLAN, inner Ethernet.
	vxlanOverhead = 8 + 8 + 14
	// ESP in tunnel mode (RFC 4303, RFC 4106): SPI and sequence number, IV, 2 bytes of trailer, 16 of tag, and up to 3
	// bytes of padding to 4.
	espOverhead = 8 + 8 + 2 + 16 + 3
	// WireGuard: outer UDP, type and receiver, counter, tag. Padding to 16 never exceeds the device's MTU.
	wireguardOverhead = 8 + 4 + 4 + 8 + 16
)

// MTU is the one place where MTUs are computed. The wrappings nest: an inner packet first goes into VXLAN, the result
// is encrypted. A family's minimum (RFC 8200: 1280) is not enforced here: a device too small is the caller's to refuse,
// see Fits.
func MTU(u Underlay) MTUs {
	outer := uint32(ipv4Header)
	if u.IPv6 {
		outer = ipv6Header
	}
	left := u.DeviceMTU
	switch u.Encryption {
	case EncryptIPsec:
		left = less(left, outer+espOverhead)
	case EncryptWireGuard:
		left = less(left, outer+wireguardOverhead)
	}
	mtus := MTUs{Device: u.DeviceMTU, Route: left}
	if u.Tunnel {
		mtus.Tunnel = less(left, outer+vxlanOverhead)
		mtus.Route = mtus.Tunnel
	}
	return mtus
}

// Fits says whether pods can use both families: IPv6 wants 1280 bytes on every way (RFC 8200, section 5).
func (m MTUs) Fits() bool {
	const minimum = 1280
	return m.Route >= minimum
}

// less subtracts, but not below zero.
func less(from, what uint32) uint32 { return from - min(from, what) }
