package kube

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/validation/field"

	storev1 "tendril.io/tendril/api/store/v1"
	"tendril.io/tendril/api/tendril"
)

// AnnotationAddresses is a service's wish for addresses of a pool, at most one a family, separated by commas. It says in
// both families what the field loadBalancerIP says in one.
const AnnotationAddresses = "service.tendril.io/load-balancer-ips"

// LoadBalancerClass is the class of services that ask our pools; those without a class do, too.
const LoadBalancerClass = "tendril.io/pool"

// poolRecord translates a pool of addresses.
func poolRecord(p *tendril.LoadBalancerPool) (*storev1.LoadBalancerPool, field.ErrorList) {
	at := field.NewPath("spec")
	ranges, errs := poolRanges(p.Spec.CIDRs, at.Child("cidrs"))
	out := &storev1.LoadBalancerPool{}
	for _, r := range ranges {
		out.Prefixes = append(out.Prefixes, r.String())
	}
	var wrong field.ErrorList
	out.ServiceSelector, wrong = conditions(p.Spec.ServiceSelector, podKey, at.Child("serviceSelector"))
	errs = append(errs, wrong...)
	out.NamespaceSelector, wrong = conditions(p.Spec.NamespaceSelector, namespaceKey, at.Child("namespaceSelector"))
	return out, append(errs, wrong...)
}

// poolRanges reads a pool's ranges. Bits behind the length are a mistake here: whoever writes 192.0.2.10/24 has either a
// single address in mind or a whole network, and the second may be that of his machines.
func poolRanges(texts []string, at *field.Path) ([]netip.Prefix, field.ErrorList) {
	var ranges []netip.Prefix
	var errs field.ErrorList
	if len(texts) == 0 {
		errs = append(errs, field.Required(at, "list at least one range of addresses, e.g. 192.0.2.64/26"))
	}
	for i, text := range texts {
		here := at.Index(i)
		p, wrong := prefixOrAddress(text, here)
		errs = append(errs, wrong...)
		if len(wrong) > 0 {
			continue
		}
		if written, err := netip.ParsePrefix(text); err == nil && written != p {
			errs = append(errs, field.Invalid(here, text, fmt.Sprintf("has bits behind its length; write %s for the range, or %s for the one address", p, written.Addr())))
		}
		if reason := unservable(p); reason != "" {
			errs = append(errs, field.Invalid(here, text, reason))
		}
		for _, other := range ranges {
			if other.Overlaps(p) {
				errs = append(errs, field.Invalid(here, text, "overlaps "+other.String()+" of the same pool; write each address once"))
			}
		}
		ranges = append(ranges, p)
	}
	return ranges, errs
}

// unservable says why no service can be reached at the addresses of a range, if so.
func unservable(p netip.Prefix) string {
	for _, special := range []struct{ prefix, what string }{
		{"0.0.0.0/8", "this network (RFC 791)"}, {"127.0.0.0/8", "loopback"}, {"169.254.0.0/16", "link-local"},
		{"224.0.0.0/4", "multicast"}, {"240.0.0.0/4", "reserved (RFC 1112)"}, {"::/127", "loopback"}, {"fe80::/10", "link-local"}, {"ff00::/8", "multicast"},
	} {
		if prefix := netip.MustParsePrefix(special.prefix); prefix.Overlaps(p) {
			return fmt.Sprintf("reaches into %s, which is %s; no service can be reached there", prefix, special.what)
		}
	}
	return ""
}

// conditions translates a selector for a record.
func conditions(s *metav1.LabelSelector, keyOf keyFunc, at *field.Path) ([]*storev1.Requirement, field.ErrorList) {
	if s == nil {
		return nil, nil
	}
	reqs, errs := requirements(s, keyOf, at)
	var all []*storev1.Requirement
	for _, r := range reqs {
		all = append(all, &storev1.Requirement{Key: r.Key.Name, Operator: r.Operator.String(), Values: r.Values})
	}
	return all, errs
}

// setPools reads what a service asks of the pools. One whose status has addresses is another controller's, and so is one of
// another class.
func setPools(out *storev1.Service, s *corev1.Service, at *field.Path) field.ErrorList {
	families, prefer, errs := addressFamilies(s, at)
	wishes, wrong := wishedAddresses(s, families, at)
	errs = append(errs, wrong...)
	class := s.Spec.LoadBalancerClass
	if out.Type != storev1.Service_LOAD_BALANCER || len(s.Status.LoadBalancer.Ingress) > 0 || (class != nil && *class != LoadBalancerClass) {
		return errs
	}
	errs = append(errs, checkLabels(s.Labels)...)
	out.LoadBalancer = &storev1.LoadBalancer{Families: families, Prefer: prefer, Wishes: wishes, Labels: s.Labels}
	return errs
}

// addressFamilies lists the families in which a service asks for addresses, 4 and 6. As with the API server, ipFamilies are
// those of the cluster addresses where it does not say; two families want a policy that says so.
func addressFamilies(s *corev1.Service, at *field.Path) (families []uint32, prefer bool, errs field.ErrorList) {
	here, known := at.Child("ipFamilies"), map[corev1.IPFamily]uint32{corev1.IPv4Protocol: 4, corev1.IPv6Protocol: 6}
	for i, family := range s.Spec.IPFamilies {
		switch number := known[family]; {
		case number == 0:
			errs = append(errs, field.NotSupported(here.Index(i), family, []string{"IPv4", "IPv6"}))
		case slices.Contains(families, number):
			errs = append(errs, field.Duplicate(here.Index(i), family))
		default:
			families = append(families, number)
		}
	}
	if len(s.Spec.IPFamilies) == 0 {
		families = clusterFamilies(s)
	}
	policy := corev1.IPFamilyPolicyRequireDualStack
	if len(families) == 1 {
		policy = corev1.IPFamilyPolicySingleStack
	}
	if s.Spec.IPFamilyPolicy != nil {
		policy = *s.Spec.IPFamilyPolicy
	}
	switch policy {
	case corev1.IPFamilyPolicySingleStack:
		if len(families) > 1 {
			errs = append(errs, field.Invalid(at.Child("ipFamilyPolicy"), policy, "the service has two families; give PreferDualStack or RequireDualStack, or one family"))
		}
	case corev1.IPFamilyPolicyPreferDualStack, corev1.IPFamilyPolicyRequireDualStack:
		if len(families) == 1 {
			families = append(families, 4+6-families[0])
		}
	default:
		errs = append(errs, field.NotSupported(at.Child("ipFamilyPolicy"), policy, []string{"SingleStack", "PreferDualStack", "RequireDualStack"}))
	}
	return families, policy == corev1.IPFamilyPolicyPreferDualStack, errs
}

// clusterFamilies lists the families of a service's cluster addresses; IPv4 where it has none.
func clusterFamilies(s *corev1.Service) []uint32 {
	var families []uint32
	for _, text := range append(slices.Clone(s.Spec.ClusterIPs), s.Spec.ClusterIP) {
		addr, err := netip.ParseAddr(text)
		if err != nil {
			continue // reported where it stands, or None
		}
		family := uint32(4)
		if addr.Is6() {
			family = 6
		}
		if !slices.Contains(families, family) {
			families = append(families, family)
		}
	}
	if len(families) == 0 {
		return []uint32{4}
	}
	return families
}

// wishedAddresses reads the addresses that a service wants and no others. The field is the older form (deprecated in
// Kubernetes 1.24, for it has one family); where both are given they must agree.
func wishedAddresses(s *corev1.Service, families []uint32, at *field.Path) (wishes [][]byte, errs field.ErrorList) {
	here, text := field.NewPath("metadata", "annotations").Key(AnnotationAddresses), s.Annotations[AnnotationAddresses]
	if s.Spec.LoadBalancerIP != "" {
		if text != "" && !slices.Contains(splitList(text), s.Spec.LoadBalancerIP) {
			return nil, field.ErrorList{field.Invalid(at.Child("loadBalancerIP"), s.Spec.LoadBalancerIP, "is not in the annotation "+AnnotationAddresses+"; remove one of the two")}
		}
		if text == "" {
			here, text = at.Child("loadBalancerIP"), s.Spec.LoadBalancerIP
		}
	}
	seen := map[uint32]bool{}
	for _, part := range splitList(text) {
		addr, wrong := address(part, here)
		if errs = append(errs, wrong...); len(wrong) > 0 {
			continue
		}
		family := uint32(4)
		if len(addr) == 16 {
			family = 6
		}
		switch {
		case !slices.Contains(families, family):
			errs = append(errs, field.Invalid(here, part, fmt.Sprintf("the service asks for no IPv%d address; add the family to ipFamilies or set ipFamilyPolicy", family)))
		case seen[family]:
			errs = append(errs, field.Invalid(here, part, fmt.Sprintf("a second IPv%d address; wish for at most one a family", family)))
		}
		seen[family] = true
		wishes = append(wishes, addr)
	}
	return wishes, errs
}

// splitList reads a list with commas.
func splitList(text string) []string {
	if text == "" {
		return nil
	}
	parts := strings.Split(text, ",")
	for i := range parts {
		parts[i] = strings.TrimSpace(parts[i])
	}
	return parts
}
