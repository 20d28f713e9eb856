package flow

import (
	"math"
	"strconv"

	"tendril.io/tendril/internal/ipproto"
)

// ProtocolName is the name of a record's protocol in lower case, or its number.
func ProtocolName(protocol uint32) string {
	if protocol > math.MaxUint8 { // records carry 32 bits, and may come from elsewhere
		return strconv.FormatUint(uint64(protocol), 10)
	}
	return ipproto.Name(uint8(protocol))
}

// ParseProtocol is the number of a protocol given by name or number; 0 for the empty string, which means any.
func ParseProtocol(text string) (uint8, error) {
	if text == "" {
		return 0, nil
	}
	return ipproto.Parse(text)
}

// hasPorts says that a protocol's port fields are ports; of ICMP echo they are the id, of others 0.
func hasPorts(protocol uint32) bool {
	return protocol <= math.MaxUint8 && ipproto.HasPorts(uint8(protocol))
}

// PolicyPort is the port that policy is asked for: of ICMP the type, which records do not have. All ICMP but errors,
// which follow their flow, is taken for echo (RFC 792; RFC 4443, 4.1).
func PolicyPort(protocol uint8, port uint16) uint16 {
	const echo, echo6 = 8, 128
	switch protocol {
	case ipproto.ICMP:
		return echo
	case ipproto.ICMPv6:
		return echo6
	}
	return port
}
