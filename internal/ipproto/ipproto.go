// Package ipproto knows the IP protocols that tendril speaks of, by number and by name (IANA, "Assigned Internet
// Protocol Numbers"). It is the one place that turns one into the other.
//
// There are two spellings: people and flow records write tcp, manifests and policy texts TCP. Names of either spelling
// are read in any case. A protocol without a name here is written as its number, so that nothing is ever called by
// another's name.
package ipproto

import (
	"fmt"
	"strconv"
	"strings"
)

// The protocols that have names.
const (
	ICMP   = 1
	IGMP   = 2
	TCP    = 6
	UDP    = 17
	ICMPv6 = 58
	VRRP   = 112
	SCTP   = 132
)

// ManifestName is a protocol as manifests spell it, or its number.
func ManifestName(number uint8) string {
	switch number {
	case ICMP:
		return "ICMP"
	case IGMP:
		return "IGMP"
	case TCP:
		return "TCP"
	case UDP:
		return "UDP"
	case ICMPv6:
		return "ICMPv6"
	case VRRP:
		return "VRRP"
	case SCTP:
		return "SCTP"
	}
	return strconv.Itoa(int(number))
}

// Name is a protocol in lower case, or its number.
func Name(number uint8) string { return strings.ToLower(ManifestName(number)) }

// Parse reads a name, in any case, or a number from 1 to 255.
func Parse(text string) (uint8, error) {
	switch strings.ToLower(text) {
	case "icmp":
		return ICMP, nil
	case "igmp":
		return IGMP, nil
	case "tcp":
		return TCP, nil
	case "udp":
		return UDP, nil
	case "icmpv6", "icmp6", "ipv6-icmp": // the last is IANA's keyword
		return ICMPv6, nil
	case "vrrp":
		return VRRP, nil
	case "sctp":
		return SCTP, nil
	}
	number, err := strconv.ParseUint(text, 10, 8)
	if err != nil || number == 0 { // 0 is IPv6's hop-by-hop options, and means any protocol everywhere in tendril
		return 0, fmt.Errorf("protocol %q: must be tcp, udp, sctp, icmp, icmpv6 or a number from 1 to 255", text)
	}
	return uint8(number), nil
}

// HasPorts says that the protocol's packets have port numbers. ICMP's type and id stand in their place in some keys.
func HasPorts(number uint8) bool { return number == TCP || number == UDP || number == SCTP }
