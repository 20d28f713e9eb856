package kube

import (
	"cmp"
	"slices"
	"strconv"
	"strings"

	"k8s.io/apimachinery/pkg/util/validation/field"

	"tendril.io/tendril/api/cilium"
	"tendril.io/tendril/internal/ipproto"
	"tendril.io/tendril/internal/policy"
)

// portGroup is ports of a rule of which the same is asked beyond L4.
type portGroup struct {
	place string
	ports []policy.Port // none: any port of any protocol
	l7    *policy.L7
}

// portGroups translates toPorts or icmps; without either there is one group of everything.
// The several lists of toPorts are alternatives like the ports within one; the split matters only where something is asked
// beyond L4: such a list is a group of its own, with a place of its own. ICMP types travel as ports, so a rule has either.
func (r *ciliumRule) portGroups() ([]portGroup, field.ErrorList) {
	if len(r.ports) > 0 && len(r.icmps) > 0 {
		return nil, field.ErrorList{field.Forbidden(r.at.Child("icmps"), "toPorts and icmps cannot be combined in one rule; write a rule for each")}
	}
	plain := portGroup{place: r.at.String()}
	var groups []portGroup
	var errs field.ErrorList
	for i := range r.ports {
		at := r.at.Child("toPorts").Index(i)
		ports, wrong := ciliumPorts(r.ports[i].Ports, at.Child("ports"))
		errs = append(errs, wrong...)
		l7, wrong := r.beyondL4(&r.ports[i], ports, at)
		errs = append(errs, wrong...)
		if l7 != nil {
			groups = append(groups, portGroup{at.String(), ports, l7})
			continue
		}
		plain.ports = append(plain.ports, ports...)
	}
	for i, rule := range r.icmps {
		ports, wrong := ciliumICMPs(rule.Fields, r.at.Child("icmps").Index(i).Child("fields"))
		plain.ports, errs = append(plain.ports, ports...), append(errs, wrong...)
	}
	// Without ports the group is everything: only where nothing was asked for.
	if len(plain.ports) > 0 || len(r.ports)+len(r.icmps) == 0 {
		groups = append(groups, plain)
	}
	return groups, errs
}

// ciliumPorts translates a list of ports, which must not be empty: to Cilium that is any port, and to most readers none.
func ciliumPorts(list []cilium.PortProtocol, at *field.Path) ([]policy.Port, field.ErrorList) {
	if len(list) == 0 {
		return nil, field.ErrorList{field.Required(at, `list at least one port; "0" is any port`)}
	}
	var ports []policy.Port
	var errs field.ErrorList
	for i := range list {
		more, wrong := ciliumPort(&list[i], at.Index(i))
		ports, errs = append(ports, more...), append(errs, wrong...)
	}
	return ports, errs
}

// ciliumICMPs translates a list of ICMP types.
func ciliumICMPs(list []cilium.ICMPField, at *field.Path) ([]policy.Port, field.ErrorList) {
	if len(list) == 0 {
		return nil, field.ErrorList{field.Required(at, "list at least one ICMP type")}
	}
	var ports []policy.Port
	var errs field.ErrorList
	for i := range list {
		port, wrong := ciliumICMP(&list[i], at.Index(i))
		ports, errs = append(ports, port), append(errs, wrong...)
	}
	return ports, errs
}

// ciliumPort translates a port. Protocol ANY means each protocol that has ports.
// In this dialect a port is a string, number or name. "0" is any port (api.PortProtocol), the only port that protocols
// without ports can have; an absent port is accepted for those. A range cannot begin at a name.
func ciliumPort(p *cilium.PortProtocol, at *field.Path) ([]policy.Port, field.ErrorList) {
	protocols, errs := ciliumProtocols(p.Protocol, at.Child("protocol"))
	// 32 bits and a sign, so that 99999 and -1 are ports out of range, not names of ports.
	number, err := strconv.ParseInt(p.Port, 10, 32)
	named := err != nil
	switch {
	case p.Port == "" && p.EndPort != 0, named && p.EndPort != 0:
		errs = append(errs, field.Forbidden(at.Child("endPort"), "a range starts at a number; set port to it or remove endPort"))
	case !named && (number < 0 || number > 65535):
		errs = append(errs, field.Invalid(at.Child("port"), number, "a port is a number from 1 to 65535 or a name"))
	case p.Port == "" && !slices.ContainsFunc(protocols, hasNoPorts):
		errs = append(errs, field.Required(at.Child("port"), `give a number or a name; "0" is any port`))
	case p.Port != "" && (named || number != 0) && slices.ContainsFunc(protocols, hasNoPorts):
		errs = append(errs, field.Forbidden(at.Child("port"), "protocol "+p.Protocol+` has no ports; write "0" or use icmps`))
	}
	if len(errs) > 0 {
		return nil, errs
	}
	var ports []policy.Port
	for _, protocol := range protocols {
		var port policy.Port
		var wrong field.ErrorList
		switch {
		case p.Port == "" || !named && number == 0 && p.EndPort == 0:
			port = anyPort(protocol)
		case named:
			port, wrong = namedPort(protocol, p.Port, at.Child("port"))
		default:
			port, wrong = portRange(protocol, int32(number), p.EndPort, at)
		}
		if len(wrong) > 0 {
			return nil, wrong
		}
		ports = append(ports, port)
	}
	return ports, nil
}

// hasNoPorts says that a port of the protocol cannot be named.
func hasNoPorts(protocol uint8) bool { return !ipproto.HasPorts(protocol) }

// ciliumProtocols gives the numbers that a protocol's name stands for.
// ANY is not every IP protocol: in Cilium it stands for those that have ports. Names are read whatever their case.
func ciliumProtocols(name string, at *field.Path) ([]uint8, field.ErrorList) {
	switch strings.ToUpper(cmp.Or(name, "ANY")) {
	case "ANY":
		return []uint8{ipproto.TCP, ipproto.UDP, ipproto.SCTP}, nil
	case "TCP":
		return []uint8{ipproto.TCP}, nil
	case "UDP":
		return []uint8{ipproto.UDP}, nil
	case "SCTP":
		return []uint8{ipproto.SCTP}, nil
	case "ICMP":
		return []uint8{ipproto.ICMP}, nil
	case "ICMPV6":
		return []uint8{ipproto.ICMPv6}, nil
	case "VRRP":
		return []uint8{ipproto.VRRP}, nil
	case "IGMP":
		return []uint8{ipproto.IGMP}, nil
	}
	return nil, field.ErrorList{field.NotSupported(at, name, []string{"TCP", "UDP", "SCTP", "ICMP", "ICMPv6", "VRRP", "IGMP", "ANY"})}
}
