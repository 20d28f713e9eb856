package flow

import (
	"fmt"
	"strconv"
	"strings"
)

// IP protocol numbers that have names here (IANA, Assigned Internet Protocol Numbers).
const (
	protocolICMP   = 1
	protocolTCP    = 6
	protocolUDP    = 17
	protocolICMPv6 = 58
	protocolSCTP   = 132
)

// ProtocolName is the name of an IP protocol in lower case, or its number.
func ProtocolName(protocol uint32) string {
	switch protocol {
	case protocolICMP:
		return "icmp"
	case protocolTCP:
		return "tcp"
	case protocolUDP:
		return "udp"
	case protocolICMPv6:
		return "icmpv6"
	case protocolSCTP:
		return "sctp"
	}
	return strconv.FormatUint(uint64(protocol), 10)
}

// ParseProtocol is the number of a protocol given by name or number; 0 for the empty string, which means any.
func ParseProtocol(text string) (uint8, error) {
	switch strings.ToLower(text) {
	case "":
		return 0, nil
	case "icmp":
		return protocolICMP, nil
	case "tcp":
		return protocolTCP, nil
	case "udp":
		return protocolUDP, nil
	case "icmpv6", "icmp6", "ipv6-icmp":
		return protocolICMPv6, nil
	case "sctp":
		return protocolSCTP, nil
	}
	number, err := strconv.ParseUint(text, 10, 8)
	if err != nil || number == 0 {
		return 0, fmt.Errorf("protocol %q: must be tcp, udp, sctp, icmp, icmpv6 or a number from 1 to 255", text)
	}
	return uint8(number), nil
}

// hasPorts says that a protocol's port fields are ports; of ICMP echo they are the id, of others 0.
func hasPorts(protocol uint32) bool {
	return protocol == protocolTCP || protocol == protocolUDP || protocol == protocolSCTP
}
