package reference

import (
	"net/netip"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// attribute answers the value of a label.
type attribute func(key string) (string, bool)

func of(labels map[string]string) attribute {
	return func(key string) (string, bool) { v, ok := labels[key]; return v, ok }
}

// holds is the meaning of a label selector; nil selects nothing, empty everything.
func holds(s *metav1.LabelSelector, have attribute) bool {
	if s == nil {
		return false
	}
	for key, want := range s.MatchLabels {
		if got, ok := have(key); !ok || got != want {
			return false
		}
	}
	for _, e := range s.MatchExpressions {
		got, ok := have(e.Key)
		in := ok && slices.Contains(e.Values, got)
		if !map[metav1.LabelSelectorOperator]bool{
			metav1.LabelSelectorOpIn: in, metav1.LabelSelectorOpNotIn: !in, metav1.LabelSelectorOpExists: ok, metav1.LabelSelectorOpDoesNotExist: !ok,
		}[e.Operator] {
			return false
		}
	}
	return true
}

// namespace is the labels of a namespace; each has its own name as one.
func (w *World) namespace(name string) map[string]string {
	labels := map[string]string{}
	for _, n := range w.Namespaces {
		if n.Name == name {
			for k, v := range n.Labels {
				labels[k] = v
			}
		}
	}
	labels["kubernetes.io/metadata.name"] = name
	return labels
}

// isPod says whether a pod with an address of its own is in a namespace and is selected; without a selector, any is.
func (w *World) isPod(p party, namespaces, pods *metav1.LabelSelector) bool {
	return p.pod != nil && holds(namespaces, of(w.namespace(p.pod.Namespace))) && (pods == nil || holds(pods, of(p.pod.Labels)))
}

func (p *party) isNode(s *metav1.LabelSelector) bool {
	return p.node != nil && holds(s, of(p.node.Labels))
}

// inside says whether an address is in a range and in none of its exceptions. Nobody's address is in no range.
func (p *party) inside(cidr string, except ...string) bool {
	in := func(text string) bool {
		prefix, err := netip.ParsePrefix(text)
		return err == nil && prefix.Contains(p.addr) || text == p.addr.String()
	}
	return !p.nobody && in(cidr) && !slices.ContainsFunc(except, in)
}

// endpoint answers a pod's labels, or those of what is none, by the names that cilium.io gives them: an optional source
// before a colon, and keys for what Kubernetes keeps elsewhere.
func (w *World) endpoint(p party) attribute {
	return func(key string) (string, bool) {
		source, name, found := strings.Cut(key, ":")
		if !found {
			source, name = "any", key
		}
		if source == "reserved" || p.pod == nil {
			is := map[string]bool{
				"host": w.isHost(p), "remote-node": p.node != nil && !w.isHost(p), "world": p.outside(), "kube-apiserver": p.server,
			}
			return "", (source == "reserved" || source == "any") && is[name]
		}
		label, ofNamespace := strings.CutPrefix(name, "io.cilium.k8s.namespace.labels.")
		switch {
		case source != "k8s" && source != "any":
			return "", false
		case ofNamespace:
			v, ok := w.namespace(p.pod.Namespace)[label]
			return v, ok
		case name == "io.kubernetes.pod.namespace":
			return p.pod.Namespace, true
		case name == "io.cilium.k8s.policy.serviceaccount":
			return p.pod.Spec.ServiceAccountName, true
		case name == "io.cilium.k8s.policy.cluster":
			return w.Cluster, true
		}
		v, ok := p.pod.Labels[name]
		return v, ok
	}
}

// named says whether the packet goes to a port of this name, of a protocol if one is given, on the pod it is sent to.
func (q *question) named(name string, protocol uint8) bool {
	to := q.peer
	if q.ingress {
		to = q.subject
	}
	if to.pod == nil || protocol != 0 && protocol != q.packet.Protocol {
		return false
	}
	for _, c := range to.pod.Spec.Containers {
		for _, port := range c.Ports {
			if port.Name == name && number(port.Protocol) == q.packet.Protocol && port.ContainerPort == int32(q.packet.Port) {
				return true
			}
		}
	}
	return false
}

// number is the IP protocol number of a name; TCP is the default.
func number(protocol corev1.Protocol) uint8 {
	if protocol == "" {
		return 6
	}
	return map[corev1.Protocol]uint8{"TCP": 6, "UDP": 17, "SCTP": 132, "ICMP": 1, "ICMPV6": 58, "IGMP": 2, "VRRP": 112}[corev1.Protocol(strings.ToUpper(string(protocol)))]
}

// at says whether the packet is of a protocol and goes to a port between two, both included.
func (q *question) at(protocol uint8, first, last int32) bool {
	return q.packet.Protocol == protocol && first <= int32(q.packet.Port) && int32(q.packet.Port) <= last
}
