package kube

import (
	"iter"
	"maps"
	"slices"

	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	"k8s.io/apimachinery/pkg/util/intstr"
	"k8s.io/apimachinery/pkg/util/validation/field"

	"tendril.io/tendril/internal/ipproto"
	"tendril.io/tendril/internal/label"
	"tendril.io/tendril/internal/policy"
)

// networkPolicySpecs translates networking.k8s.io/v1 NetworkPolicy: what it selects is isolated in the directions of
// policyTypes, and its rules only ever allow.
func networkPolicySpecs(np *networkingv1.NetworkPolicy, namespace string) ([]policy.Spec, field.ErrorList) {
	at := field.NewPath("spec")
	reqs, errs := requirements(&np.Spec.PodSelector, podKey, at.Child("podSelector"))
	spec := policy.Spec{Place: at.String(), Tier: policy.TierNormal}
	spec.Subject, errs = selectorOf(append(reqs, label.FactIs(label.FactNamespace, namespace)), errs)
	var wrong field.ErrorList
	spec.Isolates, wrong = policyTypes(&np.Spec, at.Child("policyTypes"))
	errs = append(errs, wrong...)
	for i, rule := range np.Spec.Ingress {
		r, wrong := networkPolicyRule(rule.From, rule.Ports, namespace, at.Child("ingress").Index(i), "from")
		errs = append(errs, wrong...)
		r.Direction = policy.Ingress
		spec.Rules = append(spec.Rules, r)
	}
	for i, rule := range np.Spec.Egress {
		r, wrong := networkPolicyRule(rule.To, rule.Ports, namespace, at.Child("egress").Index(i), "to")
		errs = append(errs, wrong...)
		r.Direction = policy.Egress
		spec.Rules = append(spec.Rules, r)
	}
	// Rules of a direction that policyTypes leaves out have no effect: they must not even stand in the model.
	spec.Rules = slices.DeleteFunc(spec.Rules, func(r policy.Rule) bool { return !spec.Isolates[r.Direction] })
	return []policy.Spec{spec}, errs
}

// policyTypes applies the default: ingress always, egress if there are egress rules.
func policyTypes(spec *networkingv1.NetworkPolicySpec, at *field.Path) (isolates [2]bool, errs field.ErrorList) {
	if len(spec.PolicyTypes) == 0 {
		return [2]bool{policy.Ingress: true, policy.Egress: len(spec.Egress) > 0}, nil
	}
	for i, typ := range spec.PolicyTypes {
		switch typ {
		case networkingv1.PolicyTypeIngress:
			isolates[policy.Ingress] = true
		case networkingv1.PolicyTypeEgress:
			isolates[policy.Egress] = true
		default:
			errs = append(errs, field.NotSupported(at.Index(i), typ, []string{"Ingress", "Egress"}))
		}
	}
	return isolates, errs
}

// networkPolicyRule translates a rule of either direction; no peers means anyone, no ports means any.
func networkPolicyRule(peers []networkingv1.NetworkPolicyPeer, ports []networkingv1.NetworkPolicyPort, namespace string,
	at *field.Path, peerField string) (policy.Rule, field.ErrorList) {
	rule := policy.Rule{Place: at.String(), Action: policy.Allow}
	var errs field.ErrorList
	if len(peers) == 0 {
		rule.Peers = []policy.Peer{{Any: true}}
	}
	for i := range peers {
		peer, wrong := networkPolicyPeer(&peers[i], namespace, at.Child(peerField).Index(i))
		errs = append(errs, wrong...)
		rule.Peers = append(rule.Peers, peer)
	}
	for i := range ports {
		port, wrong := networkPolicyPort(&ports[i], at.Child("ports").Index(i))
		errs = append(errs, wrong...)
		rule.Ports = append(rule.Ports, port)
	}
	return rule, errs
}

// networkPolicyPeer translates a peer: a range of addresses, whoever has them, or pods by their own and their namespace's labels.
func networkPolicyPeer(p *networkingv1.NetworkPolicyPeer, namespace string, at *field.Path) (policy.Peer, field.ErrorList) {
	if p.IPBlock != nil {
		if p.PodSelector != nil || p.NamespaceSelector != nil {
			return policy.Peer{}, field.ErrorList{field.Forbidden(at, "ipBlock stands alone; write the selectors as a peer of their own")}
		}
		cidr, errs := rangeOf(p.IPBlock.CIDR, p.IPBlock.Except, false, at.Child("ipBlock"))
		return policy.Peer{CIDR: cidr}, errs
	}
	if p.PodSelector == nil && p.NamespaceSelector == nil {
		return policy.Peer{}, field.ErrorList{field.Required(at, "an empty peer matches nobody; give podSelector, namespaceSelector or ipBlock")}
	}
	var reqs []label.Requirement
	var errs field.ErrorList
	if p.PodSelector != nil {
		reqs, errs = requirements(p.PodSelector, podKey, at.Child("podSelector"))
	}
	if p.NamespaceSelector == nil {
		reqs = append(reqs, label.FactIs(label.FactNamespace, namespace))
	} else {
		more, wrong := requirements(p.NamespaceSelector, namespaceKey, at.Child("namespaceSelector"))
		reqs, errs = append(append(reqs, more...), inAnyNamespace()), append(errs, wrong...)
	}
	selector, errs := selectorOf(reqs, errs)
	return policy.Peer{Selector: &selector}, errs
}

// networkPolicyPort translates a port: number, range, name, or all of the protocol.
func networkPolicyPort(p *networkingv1.NetworkPolicyPort, at *field.Path) (policy.Port, field.ErrorList) {
	name := corev1.ProtocolTCP
	if p.Protocol != nil {
		name = *p.Protocol
	}
	protocol, errs := kubeProtocol(name, at.Child("protocol"))
	if p.EndPort != nil && p.Port == nil {
		return policy.Port{}, append(errs, field.Required(at.Child("port"), "a range starts at a number; give it or remove endPort"))
	}
	if p.EndPort != nil && p.Port.Type == intstr.String {
		return policy.Port{}, append(errs, field.Forbidden(at.Child("endPort"), "a range starts at a number; set port to it or remove endPort"))
	}
	var port policy.Port
	var wrong field.ErrorList
	switch {
	case p.Port == nil:
		port = anyPort(protocol)
	case p.Port.Type == intstr.String:
		port, wrong = namedPort(protocol, p.Port.StrVal, at.Child("port"))
	case p.EndPort != nil && *p.EndPort == 0:
		wrong = field.ErrorList{field.Invalid(at.Child("endPort"), 0, "a port is a number from 1 to 65535")}
	case p.EndPort != nil:
		port, wrong = portRange(protocol, p.Port.IntVal, *p.EndPort, at)
	default:
		port, wrong = portRange(protocol, p.Port.IntVal, 0, at)
	}
	return port, append(errs, wrong...)
}

// kubeProtocol gives the number of a protocol that core/v1 knows.
func kubeProtocol(name corev1.Protocol, at *field.Path) (uint8, field.ErrorList) {
	switch name {
	case corev1.ProtocolTCP:
		return ipproto.TCP, nil
	case corev1.ProtocolUDP:
		return ipproto.UDP, nil
	case corev1.ProtocolSCTP:
		return ipproto.SCTP, nil
	}
	return 0, field.ErrorList{field.NotSupported(at, name, []string{"TCP", "UDP", "SCTP"})}
}

// sorted walks a map in the order of its keys, so that equal objects give equal policies and messages.
func sorted[V any](m map[string]V) iter.Seq2[string, V] {
	return func(yield func(string, V) bool) {
		for _, key := range slices.Sorted(maps.Keys(m)) {
			if !yield(key, m[key]) {
				return
			}
		}
	}
}
