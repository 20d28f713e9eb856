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
// Sources: the API reference of NetworkPolicySpec (k8s.io/api/networking/v1, types.go), and the page "Network Policies" of
// the Kubernetes documentation. What they settle here:
//
//   - Policies add up. No rule denies, so their order does not matter; a pod that no policy selects is open.
//   - An empty podSelector selects every pod of the policy's namespace, never of others.
//   - Isolation is a matter of each direction: a connection passes if the egress of its source and the ingress of its
//     destination both let it; answers need no rule (conntrack in the datapath sees to that).
//   - What happens to traffic of the node itself is left to the implementation; ours is builtin/local-host of
//     internal/policy, which lets the node reach its own pods, as kubelet's probes must.
func networkPolicySpecs(np *networkingv1.NetworkPolicy, namespace string) ([]policy.Spec, field.ErrorList) {
	at := field.NewPath("spec")
	// The namespace is a condition like the labels, so that a policy cannot reach beyond it however its selector is written.
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
// The field is younger than the object: before Kubernetes 1.8 there was no egress, and policies from then must not begin
// to isolate it. So the default looks at the rules, and a policy that isolates egress without any rule has to say so.
func policyTypes(spec *networkingv1.NetworkPolicySpec, at *field.Path) (isolates [2]bool, errs field.ErrorList) {
	if len(spec.PolicyTypes) == 0 {
		// An empty list is the same as none: JSON as the API server stores it (omitempty) cannot tell them apart. "egress: []"
		// is no rule either, and leaves egress open.
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
// Here an empty list is as good as none: NetworkPolicyIngressRule says of from, and of ports, that "empty or missing"
// matches all. cilium.io differs, see ciliumRule.peers. The peers of a list are alternatives, and so are its ports;
// a packet must match one of each.
func networkPolicyRule(peers []networkingv1.NetworkPolicyPeer, ports []networkingv1.NetworkPolicyPort, namespace string,
	at *field.Path, peerField string) (policy.Rule, field.ErrorList) {
	rule := policy.Rule{Place: at.String(), Action: policy.Allow}
	var errs field.ErrorList
	if len(peers) == 0 {
		// Anyone, not every pod: nodes and the outside, too.
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
// The three fields of NetworkPolicyPeer are pointers because there is a difference between a selector that is absent and
// one that is empty, which matches all:
//
//	podSelector  namespaceSelector  means pods
//	given        absent             of the policy's own namespace that match
//	absent       given              all of the namespaces that match
//	given        given              that match, of the namespaces that match
//
// An ipBlock is compared with the address as the pod sees it. It is meant for what is outside the cluster, since pods'
// addresses come and go, but nothing in the API keeps it from matching pods and nodes, and here it does: whoever has the
// address is meant. The cilium dialect differs.
func networkPolicyPeer(p *networkingv1.NetworkPolicyPeer, namespace string, at *field.Path) (policy.Peer, field.ErrorList) {
	if p.IPBlock != nil {
		if p.PodSelector != nil || p.NamespaceSelector != nil {
			return policy.Peer{}, field.ErrorList{field.Forbidden(at, "ipBlock stands alone; write the selectors as a peer of their own")}
		}
		// Exceptions are cut out of this range alone: another peer of the rule may well contain them.
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
		// Absent is not empty: without the field the peer stays at home.
		reqs = append(reqs, label.FactIs(label.FactNamespace, namespace))
	} else {
		more, wrong := requirements(p.NamespaceSelector, namespaceKey, at.Child("namespaceSelector"))
		reqs, errs = append(append(reqs, more...), inAnyNamespace()), append(errs, wrong...)
	}
	selector, errs := selectorOf(reqs, errs)
	return policy.Peer{Selector: &selector}, errs
}

// networkPolicyPort translates a port: number, range, name, or all of the protocol.
// By NetworkPolicyPort's reference the protocol is TCP if absent, endPort goes with a number only and is not below port,
// and a port without number or name is every port of its protocol. A name is looked up at the pod that is spoken to: the
// subject on ingress, each peer on egress, where the same name may stand for different numbers. Nobody's name is
// nobody's port: it opens nothing and is no mistake, since the pod that has it may come later.
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
		// For portRange 0 is an absent end; here the author has written it.
		wrong = field.ErrorList{field.Invalid(at.Child("endPort"), 0, "a port is a number from 1 to 65535")}
	case p.EndPort != nil:
		port, wrong = portRange(protocol, p.Port.IntVal, *p.EndPort, at)
	default:
		port, wrong = portRange(protocol, p.Port.IntVal, 0, at)
	}
	return port, append(errs, wrong...)
}

// kubeProtocol gives the number of a protocol that core/v1 knows.
// They are exactly those of core/v1 Protocol; NetworkPolicy cannot speak of ICMP, which an isolating policy therefore
// drops unless a rule has no ports at all. Names are upper case: the API server refuses "tcp".
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
