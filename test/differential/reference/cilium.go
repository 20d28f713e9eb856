package reference

import (
	"cmp"
	"fmt"
	"reflect"
	"slices"
	"strconv"
	"strings"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/intstr"

	"tendril.io/tendril/api/cilium"
)

// rule is one of the four kinds of rule of cilium.io, which differ in the names of their lists.
type rule struct {
	list, action string
	from         cilium.From
	to           cilium.To
	ports        []cilium.PortRule
	icmps        []cilium.ICMPRule
}

// rules lists those of a direction, and says whether they isolate.
func rules(s *cilium.Rule, ingress bool) (out []rule, isolates bool) {
	asked := s.EnableDefaultDeny.Egress
	if ingress {
		asked = s.EnableDefaultDeny.Ingress
		for _, r := range s.IngressDeny {
			out = append(out, rule{"ingressDeny", deny, r.From, cilium.To{}, r.ToPorts, r.ICMPs})
		}
		for _, r := range s.Ingress {
			out = append(out, rule{"ingress", allow, r.From, cilium.To{}, r.ToPorts, r.ICMPs})
		}
	} else {
		for _, r := range s.EgressDeny {
			out = append(out, rule{"egressDeny", deny, cilium.From{}, r.To, r.ToPorts, r.ICMPs})
		}
		for _, r := range s.Egress {
			out = append(out, rule{"egress", allow, cilium.From{}, r.To, r.ToPorts, r.ICMPs})
		}
	}
	if asked != nil {
		return out, *asked
	}
	return out, len(out) > 0
}

// ciliumPolicies adds the rules of cilium.io that match, and says whether one isolates the subject.
func (q *question) ciliumPolicies(claims *[]claim) (isolated bool) {
	for _, o := range q.CiliumPolicies {
		kind := "CiliumNetworkPolicy"
		if o.Namespace == "" {
			kind = "CiliumClusterwideNetworkPolicy"
		}
		specs, places := o.Specs, []string{}
		for i := range specs {
			places = append(places, fmt.Sprintf("specs[%d]", i))
		}
		if o.Spec != nil {
			specs, places = append([]cilium.Rule{*o.Spec}, specs...), append([]string{"spec"}, places...)
		}
		for n := range specs {
			list, isolates := rules(&specs[n], q.ingress)
			if staged(o.ObjectMeta) || !q.isSubject(&o, &specs[n]) {
				continue
			}
			isolated = isolated || isolates
			count := map[string]int{}
			for _, r := range list {
				place := fmt.Sprintf("%s.%s[%d]", places[n], r.list, count[r.list])
				if list, met := q.requirements(o.Namespace, r); !met && q.peer.pod != nil {
					*claims = append(*claims, claim{normal, 0, deny, kind, o.ObjectMeta, len(*claims), place + "." + list})
				}
				if q.ciliumPeer(o.Namespace, r) && q.ciliumPort(r) {
					*claims = append(*claims, claim{normal, 0, r.action, kind, o.ObjectMeta, len(*claims), place})
				}
				count[r.list]++
			}
		}
	}
	return isolated
}

// isSubject says whether a spec is about the subject: pods of the policy's namespace, or of all; or the node itself.
func (q *question) isSubject(o *cilium.NetworkPolicy, s *cilium.Rule) bool {
	if s.NodeSelector != nil {
		return q.subject.isNode(s.NodeSelector)
	}
	pod := q.subject.pod
	return pod != nil && (o.Namespace == "" || pod.Namespace == o.Namespace) && holds(s.EndpointSelector, q.endpoint(q.subject))
}

// isEndpoint is the meaning of a selector of peers: in a namespaced policy pods of its namespace, unless the selector asks
// for a namespace itself; in a clusterwide one all pods; those that ask for reserved labels, whoever has them.
func (q *question) isEndpoint(namespace string, s *metav1.LabelSelector) bool {
	var keys []string
	for key := range s.MatchLabels {
		keys = append(keys, key)
	}
	for _, e := range s.MatchExpressions {
		keys = append(keys, e.Key)
	}
	asks := func(what string) bool {
		return slices.ContainsFunc(keys, func(key string) bool { return strings.Contains(key, what) })
	}
	if !holds(s, q.endpoint(q.peer)) {
		return false
	}
	if asks("reserved:") {
		return !q.peer.nobody
	}
	pod := q.peer.pod
	return pod != nil && (namespace == "" || pod.Namespace == namespace || asks("io.kubernetes.pod.namespace") || asks("io.cilium.k8s.namespace.labels."))
}

// ciliumPeer says whether the other side is one that a rule names. A rule with ports and without any list is for anyone;
// one without both is for nobody. Ranges mean hosts outside the cluster.
func (q *question) ciliumPeer(namespace string, r rule) bool {
	if len(r.from.FromRequires)+len(r.to.ToRequires) == 0 {
		r.from.FromRequires, r.to.ToRequires = nil, nil // empty: as good as absent
	}
	if reflect.ValueOf(r.from).IsZero() && reflect.ValueOf(r.to).IsZero() {
		return !q.peer.nobody && (len(r.ports) > 0 || len(r.icmps) > 0)
	}
	_, met := q.requirements(namespace, r)
	endpoint := func(s metav1.LabelSelector) bool { return met && q.isEndpoint(namespace, &s) }
	node := func(s metav1.LabelSelector) bool { return q.peer.isNode(&s) }
	address := func(cidr string) bool { return q.peer.outside() && q.peer.inside(cidr) }
	backend := func(s cilium.Service) bool { return q.isBackend(s) }
	return slices.ContainsFunc(slices.Concat(r.from.FromEndpoints, r.to.ToEndpoints), endpoint) ||
		slices.ContainsFunc(slices.Concat(r.from.FromNodes, r.to.ToNodes), node) ||
		slices.ContainsFunc(slices.Concat(r.from.FromCIDR, r.to.ToCIDR), address) ||
		slices.ContainsFunc(slices.Concat(r.from.FromEntities, r.to.ToEntities), q.isEntity) ||
		slices.ContainsFunc(slices.Concat(r.from.FromCIDRSet, r.to.ToCIDRSet), q.inSet) || slices.ContainsFunc(r.to.ToServices, backend)
}

// requirements says whether the peer meets what fromRequires or toRequires asks of every pod that is to be reachable; they
// allow nothing by themselves.
func (q *question) requirements(namespace string, r rule) (list string, met bool) {
	list = map[bool]string{true: "fromRequires", false: "toRequires"}[q.ingress]
	return list, !slices.ContainsFunc(slices.Concat(r.from.FromRequires, r.to.ToRequires), func(s metav1.LabelSelector) bool { return !q.isEndpoint(namespace, &s) })
}

func (q *question) isEntity(name string) bool {
	p := &q.peer
	return !p.nobody && map[string]bool{
		"all": true, "world": p.outside(), "world-ipv4": p.outside() && p.addr.Is4(), "world-ipv6": p.outside() && p.addr.Is6(),
		"cluster": !p.outside(), "host": q.isHost(*p), "remote-node": p.node != nil && !q.isHost(*p), "kube-apiserver": p.server,
	}[name]
}

func (q *question) inSet(s cilium.CIDRRule) bool {
	cidrs := []string{s.CIDR}
	if s.CIDR == "" {
		cidrs = nil
		for _, g := range q.CIDRGroups {
			if g.Name == s.CIDRGroupRef || s.CIDRGroupSelector != nil && holds(s.CIDRGroupSelector, of(g.Labels)) {
				cidrs = append(cidrs, g.Spec.ExternalCIDRs...)
			}
		}
	}
	return q.peer.outside() && slices.ContainsFunc(cidrs, func(c string) bool { return q.peer.inside(c, s.Except...) })
}

// isBackend says whether the peer's address is a backend of a service that an entry of toServices names. Without a
// namespace of its own, an entry means services of any.
func (q *question) isBackend(ref cilium.Service) bool {
	for _, s := range q.Services {
		is, in := false, ""
		if ref.K8sService != nil {
			is, in = s.Name == ref.K8sService.ServiceName, ref.K8sService.Namespace
		} else if ref.K8sServiceSelector != nil {
			is, in = holds(&ref.K8sServiceSelector.Selector, of(s.Labels)), ref.K8sServiceSelector.Namespace
		}
		in = cmp.Or(in, s.Namespace)
		if is && s.Namespace == in && slices.ContainsFunc(q.Slices, func(e discoveryv1.EndpointSlice) bool {
			return e.Namespace == in && e.Labels[discoveryv1.LabelServiceName] == s.Name && slices.ContainsFunc(e.Endpoints, func(b discoveryv1.Endpoint) bool {
				return slices.Contains(b.Addresses, q.peer.addr.String())
			})
		}) {
			return true
		}
	}
	return false
}

// ciliumPort says whether the packet is one of those that a rule names beyond its peers; no ports and no ICMP types are
// all of every protocol.
func (q *question) ciliumPort(r rule) bool {
	if len(r.ports) == 0 && len(r.icmps) == 0 {
		return true
	}
	for _, rule := range r.ports {
		for _, p := range rule.Ports {
			protocols := []uint8{number(corev1.Protocol(p.Protocol))}
			if p.Protocol == "" || p.Protocol == "ANY" {
				protocols = []uint8{6, 17, 132}
			}
			if slices.Contains(protocols, q.packet.Protocol) && q.numbered(p) {
				return true
			}
		}
	}
	for _, rule := range r.icmps {
		for _, f := range rule.Fields {
			if q.icmp(f) {
				return true
			}
		}
	}
	return false
}

// numbered says whether the packet goes to a port by its number, range or name, of its own protocol.
func (q *question) numbered(p cilium.PortProtocol) bool {
	first, err := strconv.Atoi(p.Port)
	switch {
	case p.Port == "" || err == nil && first == 0:
		return true
	case err != nil:
		return q.named(p.Port, q.packet.Protocol)
	}
	return q.at(q.packet.Protocol, int32(first), max(int32(first), p.EndPort))
}

func (q *question) icmp(f cilium.ICMPField) bool {
	protocol, names := uint8(1), map[string]int32{"EchoReply": 0, "DestinationUnreachable": 3, "EchoRequest": 8, "TimeExceeded": 11}
	if f.Family == "IPv6" {
		protocol, names = 58, map[string]int32{"DestinationUnreachable": 1, "PacketTooBig": 2, "EchoRequest": 128, "EchoReply": 129}
	}
	kind := f.Type.IntVal
	if f.Type.Type == intstr.String {
		kind = names[f.Type.StrVal]
	}
	return q.at(protocol, kind, kind)
}
