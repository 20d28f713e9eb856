package kube

import (
	"fmt"
	"math"

	"k8s.io/apimachinery/pkg/util/intstr"
	"k8s.io/apimachinery/pkg/util/validation/field"

	"tendril.io/tendril/api/cilium"
	"tendril.io/tendril/internal/ipproto"
	"tendril.io/tendril/internal/policy"
)

// icmpTypes4 gives ICMP's types by the names of IANA's registry "ICMP Type Numbers", without blanks.
func icmpTypes4() map[string]uint16 {
	return map[string]uint16{
		"EchoReply": 0, "DestinationUnreachable": 3, "Redirect": 5, "Echo": 8, "EchoRequest": 8,
		"RouterAdvertisement": 9, "RouterSelection": 10, "TimeExceeded": 11, "ParameterProblem": 12,
		"Timestamp": 13, "TimestampReply": 14, "Photuris": 40, "ExtendedEchoRequest": 42, "ExtendedEchoReply": 43,
	}
}

// icmpTypes6 gives ICMPv6's types by the names of IANA's registry "ICMPv6 type Numbers", without blanks.
func icmpTypes6() map[string]uint16 {
	return map[string]uint16{
		"DestinationUnreachable": 1, "PacketTooBig": 2, "TimeExceeded": 3, "ParameterProblem": 4,
		"EchoRequest": 128, "EchoReply": 129, "MulticastListenerQuery": 130, "MulticastListenerReport": 131,
		"MulticastListenerDone": 132, "RouterSolicitation": 133, "RouterAdvertisement": 134,
		"NeighborSolicitation": 135, "NeighborAdvertisement": 136, "RedirectMessage": 137, "RouterRenumbering": 138,
	}
}

// ciliumICMP translates an ICMP type, which stands for the port.
// Source: api.ICMPField of Cilium. The family is IPv4 unless said, and the numbers of the two families have nothing to
// do with each other: a rule for ping over both needs two fields. Codes cannot be named; a type means all of its codes.
func ciliumICMP(f *cilium.ICMPField, at *field.Path) (policy.Port, field.ErrorList) {
	protocol, names := uint8(ipproto.ICMP), icmpTypes4()
	switch f.Family {
	case "", "IPv4":
	case "IPv6":
		protocol, names = ipproto.ICMPv6, icmpTypes6()
	default:
		return policy.Port{}, field.ErrorList{field.NotSupported(at.Child("family"), f.Family, []string{"IPv4", "IPv6"})}
	}
	if f.Type == nil {
		return policy.Port{}, field.ErrorList{field.Required(at.Child("type"), "give the ICMP type, a number or a name")}
	}
	number := f.Type.IntVal
	if f.Type.Type == intstr.String {
		known, ok := names[f.Type.StrVal]
		if !ok {
			return policy.Port{}, field.ErrorList{field.NotSupported(at.Child("type"), f.Type.StrVal, keys(names))}
		}
		number = int32(known)
	}
	if number < 0 || number > math.MaxUint8 {
		return policy.Port{}, field.ErrorList{field.Invalid(at.Child("type"), number, fmt.Sprintf("an ICMP type is a number from 0 to %d", math.MaxUint8))}
	}
	return policy.Port{Protocol: protocol, First: uint16(number), Last: uint16(number)}, nil
}

// keys lists a map's keys, sorted.
func keys[V any](m map[string]V) []string {
	var names []string
	for name := range sorted(m) {
		names = append(names, name)
	}
	return names
}
