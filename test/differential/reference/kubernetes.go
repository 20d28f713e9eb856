package reference

import (
	"fmt"
	"slices"

	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/intstr"
)

// networkPolicies adds the rules of NetworkPolicy that match, and says whether one isolates the subject.
func (q *question) networkPolicies(claims *[]claim) (isolated bool) {
	for _, o := range q.NetworkPolicies {
		pod, types := q.subject.pod, o.Spec.PolicyTypes
		if len(types) == 0 { // Ingress always, Egress if there are rules for it
			types = []networkingv1.PolicyType{networkingv1.PolicyTypeIngress, networkingv1.PolicyTypeEgress}[:1+min(1, len(o.Spec.Egress))]
		}
		rules, list, way := o.Spec.Ingress, "ingress", networkingv1.PolicyTypeIngress
		if !q.ingress {
			rules, list, way = nil, "egress", networkingv1.PolicyTypeEgress
			for _, r := range o.Spec.Egress {
				rules = append(rules, networkingv1.NetworkPolicyIngressRule{From: r.To, Ports: r.Ports})
			}
		}
		if staged(o.ObjectMeta) || pod == nil || pod.Namespace != o.Namespace || !holds(&o.Spec.PodSelector, of(pod.Labels)) || !slices.Contains(types, way) {
			continue
		}
		isolated = true
		for i, r := range rules {
			peer := func(p networkingv1.NetworkPolicyPeer) bool { return q.networkPeer(o.Namespace, p) }
			if !q.peer.nobody && (len(r.From) == 0 || slices.ContainsFunc(r.From, peer)) && (len(r.Ports) == 0 || slices.ContainsFunc(r.Ports, q.networkPort)) {
				*claims = append(*claims, claim{normal, 0, allow, "NetworkPolicy", o.ObjectMeta, i, fmt.Sprintf("spec.%s[%d]", list, i)})
			}
		}
	}
	return isolated
}

func (q *question) networkPeer(namespace string, p networkingv1.NetworkPolicyPeer) bool {
	switch {
	case p.IPBlock != nil:
		return q.peer.inside(p.IPBlock.CIDR, p.IPBlock.Except...)
	case p.NamespaceSelector == nil:
		return q.peer.pod != nil && q.peer.pod.Namespace == namespace && holds(p.PodSelector, of(q.peer.pod.Labels))
	}
	return q.isPod(q.peer, p.NamespaceSelector, p.PodSelector)
}

func (q *question) networkPort(p networkingv1.NetworkPolicyPort) bool {
	protocol := uint8(6)
	if p.Protocol != nil {
		protocol = number(*p.Protocol)
	}
	switch {
	case p.Port == nil:
		return q.at(protocol, 0, 65535)
	case p.Port.Type == intstr.String:
		return q.named(p.Port.StrVal, protocol)
	case p.EndPort != nil:
		return q.at(protocol, p.Port.IntVal, *p.EndPort)
	}
	return q.at(protocol, p.Port.IntVal, p.Port.IntVal)
}

// AdminPolicy is a ClusterNetworkPolicy, AdminNetworkPolicy or BaselineAdminNetworkPolicy: the fields of all three.
type AdminPolicy struct {
	metav1.TypeMeta   `json:",inline"`
	metav1.ObjectMeta `json:"metadata,omitempty"`
	Spec              struct {
		Tier     string      `json:"tier,omitempty"` // of ClusterNetworkPolicy: Admin or Baseline
		Priority int32       `json:"priority"`
		Subject  AdminPeer   `json:"subject"`
		Ingress  []AdminRule `json:"ingress,omitempty"`
		Egress   []AdminRule `json:"egress,omitempty"`
	} `json:"spec"`
}

// AdminRule is a rule of either direction.
type AdminRule struct {
	Name      string      `json:"name,omitempty"`
	Action    string      `json:"action"` // Accept or Allow, Deny, Pass
	From      []AdminPeer `json:"from,omitempty"`
	To        []AdminPeer `json:"to,omitempty"`
	Protocols []AdminPort `json:"protocols,omitempty"` // of ClusterNetworkPolicy
	Ports     []AdminPort `json:"ports,omitempty"`     // of the others
}

// AdminPeer names pods, nodes or addresses in one of four ways.
type AdminPeer struct {
	Namespaces *metav1.LabelSelector `json:"namespaces,omitempty"`
	Pods       *struct {
		NamespaceSelector metav1.LabelSelector `json:"namespaceSelector"`
		PodSelector       metav1.LabelSelector `json:"podSelector"`
	} `json:"pods,omitempty"`
	Nodes    *metav1.LabelSelector `json:"nodes,omitempty"`
	Networks []string              `json:"networks,omitempty"`
}

// AdminPort names ports in one of the seven ways of ClusterNetworkPolicy and its predecessors.
type AdminPort struct {
	TCP, UDP, SCTP       *struct{ DestinationPort *AdminRange }
	DestinationNamedPort string      `json:"destinationNamedPort,omitempty"`
	PortNumber           *AdminRange `json:"portNumber,omitempty"`
	PortRange            *AdminRange `json:"portRange,omitempty"`
	NamedPort            string      `json:"namedPort,omitempty"`
}

// AdminRange is a port or a range of them.
type AdminRange struct {
	Protocol     corev1.Protocol
	Number, Port int32
	Start, End   int32
	Range        *AdminRange
}

// adminPolicies adds the rules of the cluster's administrators that match. The one BaselineAdminNetworkPolicy that there
// may be stands behind every ClusterNetworkPolicy of its tier.
func (q *question) adminPolicies(claims *[]claim) {
	for _, o := range q.AdminPolicies {
		tier, priority := admin, o.Spec.Priority
		if o.Kind == "BaselineAdminNetworkPolicy" {
			tier, priority = baseline, 1001
		} else if o.Spec.Tier == "Baseline" {
			tier = baseline
		}
		rules, list := o.Spec.Ingress, "ingress"
		if !q.ingress {
			rules, list = o.Spec.Egress, "egress"
		}
		if staged(o.ObjectMeta) || !q.adminPeer(q.subject, o.Spec.Subject) {
			continue
		}
		for i, r := range rules {
			peer := func(p AdminPeer) bool { return q.adminPeer(q.peer, p) }
			ports := slices.Concat(r.Protocols, r.Ports)
			if slices.ContainsFunc(slices.Concat(r.From, r.To), peer) && (len(ports) == 0 || slices.ContainsFunc(ports, q.adminPort)) {
				action := map[string]string{"Accept": allow, "Allow": allow, "Deny": deny, "Pass": pass}[r.Action]
				*claims = append(*claims, claim{tier, priority, action, o.Kind, o.ObjectMeta, i, fmt.Sprintf("spec.%s[%d]", list, i)})
			}
		}
	}
}

func (q *question) adminPeer(who party, p AdminPeer) bool {
	return who.pod != nil && holds(p.Namespaces, of(q.namespace(who.pod.Namespace))) || p.Pods != nil && q.isPod(who, &p.Pods.NamespaceSelector, &p.Pods.PodSelector) ||
		who.isNode(p.Nodes) || slices.ContainsFunc(p.Networks, func(cidr string) bool { return who.inside(cidr) })
}

func (q *question) adminPort(p AdminPort) bool {
	for protocol, where := range map[uint8]*struct{ DestinationPort *AdminRange }{6: p.TCP, 17: p.UDP, 132: p.SCTP} {
		switch {
		case where == nil:
		case where.DestinationPort == nil:
			return q.at(protocol, 0, 65535)
		case where.DestinationPort.Range != nil:
			return q.at(protocol, where.DestinationPort.Range.Start, where.DestinationPort.Range.End)
		default:
			return q.at(protocol, where.DestinationPort.Number, where.DestinationPort.Number)
		}
	}
	switch {
	case p.PortNumber != nil:
		return q.at(number(p.PortNumber.Protocol), p.PortNumber.Port, p.PortNumber.Port)
	case p.PortRange != nil:
		return q.at(number(p.PortRange.Protocol), p.PortRange.Start, p.PortRange.End)
	}
	return q.named(p.DestinationNamedPort+p.NamedPort, 0)
}
