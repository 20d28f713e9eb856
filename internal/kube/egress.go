package kube

import (
	"fmt"
	"net/netip"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/validation/field"

	storev1 "tendril.io/tendril/api/store/v1"
	"tendril.io/tendril/api/tendril"
)

// maxEgressRanges bounds the ranges of an egress gateway: what they come to is compared pairwise.
const maxEgressRanges = 512

// egressRecord translates an egress gateway.
func egressRecord(g *tendril.EgressGateway) (*storev1.EgressGateway, field.ErrorList) {
	at := field.NewPath("spec")
	out := &storev1.EgressGateway{}
	var errs, wrong field.ErrorList
	out.PodSelector, wrong = conditions(g.Spec.PodSelector, podKey, at.Child("podSelector"))
	errs = append(errs, wrong...)
	out.NamespaceSelector, wrong = conditions(g.Spec.NamespaceSelector, namespaceKey, at.Child("namespaceSelector"))
	errs = append(errs, wrong...)
	if len(g.Spec.DestinationCIDRs) == 0 {
		errs = append(errs, field.Required(at.Child("destinationCIDRs"), "list at least one range of addresses outside the cluster, e.g. 203.0.113.0/24"))
	}
	destinations, wrong := egressRanges(g.Spec.DestinationCIDRs, at.Child("destinationCIDRs"))
	errs = append(errs, wrong...)
	exceptions, wrong := egressRanges(g.Spec.ExceptCIDRs, at.Child("exceptCIDRs"))
	errs = append(errs, wrong...)
	for i, exception := range exceptions {
		if exception.IsValid() && !within(exception, destinations) {
			errs = append(errs, field.Invalid(at.Child("exceptCIDRs").Index(i), g.Spec.ExceptCIDRs[i], "is in none of destinationCIDRs, so it excepts nothing; remove it or correct it"))
		}
	}
	out.Destinations, out.Exceptions = rangeTexts(destinations), rangeTexts(exceptions)
	if len(g.Spec.Gateways) == 0 {
		errs = append(errs, field.Required(at.Child("gateways"), "name at least one node, by node or by nodeSelector"))
	}
	for i := range g.Spec.Gateways {
		nodes, wrong := egressNodes(&g.Spec.Gateways[i], at.Child("gateways").Index(i))
		out.Nodes, errs = append(out.Nodes, nodes), append(errs, wrong...)
	}
	return out, errs
}

// egressRanges reads ranges; one that is wrong is the zero prefix in the result.
func egressRanges(list []string, at *field.Path) ([]netip.Prefix, field.ErrorList) {
	var errs field.ErrorList
	if len(list) > maxEgressRanges {
		return nil, field.ErrorList{field.TooMany(at, len(list), maxEgressRanges)}
	}
	ranges := make([]netip.Prefix, len(list))
	for i, text := range list {
		p, wrong := prefixOrAddress(text, at.Index(i))
		if errs = append(errs, wrong...); len(wrong) == 0 {
			ranges[i] = p
		}
	}
	return ranges, errs
}

// within says whether a range lies in one of others.
func within(inner netip.Prefix, ranges []netip.Prefix) bool {
	for _, outer := range ranges {
		if outer.IsValid() && outer.Bits() <= inner.Bits() && outer.Contains(inner.Addr()) {
			return true
		}
	}
	return false
}

func rangeTexts(ranges []netip.Prefix) []string {
	var all []string
	for _, r := range ranges {
		all = append(all, r.String())
	}
	return all
}

// egressNodes reads one entry of the list of gateways.
func egressNodes(n *tendril.EgressGatewayNodes, at *field.Path) (*storev1.EgressNodes, field.ErrorList) {
	out := &storev1.EgressNodes{Node: n.Node}
	var errs, wrong field.ErrorList
	switch {
	case n.Node == "" && n.NodeSelector == nil:
		errs = append(errs, field.Required(at, "give node or nodeSelector"))
	case n.Node != "" && n.NodeSelector != nil:
		errs = append(errs, field.Forbidden(at.Child("nodeSelector"), "node names the node already; remove one of the two"))
	case n.NodeSelector != nil && len(n.Addresses) > 0:
		errs = append(errs, field.Forbidden(at.Child("addresses"), "an address is on one node; name that with node, or leave addresses out to use those of each node's uplink"))
	}
	if n.NodeSelector != nil {
		if isEmpty(n.NodeSelector) {
			errs = append(errs, field.Required(at.Child("nodeSelector"), "selects every node; give it a label that only gateways have"))
		}
		out.NodeSelector, wrong = conditions(n.NodeSelector, nodeKey, at.Child("nodeSelector"))
		errs = append(errs, wrong...)
	}
	seen := map[int]bool{}
	for i, text := range n.Addresses {
		here := at.Child("addresses").Index(i)
		addr, wrong := address(text, here)
		if errs = append(errs, wrong...); len(wrong) > 0 {
			continue
		}
		if parsed, _ := netip.AddrFromSlice(addr); unservable(netip.PrefixFrom(parsed, parsed.BitLen())) != "" {
			errs = append(errs, field.Invalid(here, text, "nobody outside can answer to it; write an address of a device of the node"))
		}
		if seen[len(addr)] {
			errs = append(errs, field.Invalid(here, text, fmt.Sprintf("a second IPv%d address; give at most one a family", map[int]int{4: 4, 16: 6}[len(addr)])))
		}
		seen[len(addr)] = true
		out.Addresses = append(out.Addresses, addr)
	}
	return out, errs
}

func isEmpty(s *metav1.LabelSelector) bool { return len(s.MatchLabels)+len(s.MatchExpressions) == 0 }
