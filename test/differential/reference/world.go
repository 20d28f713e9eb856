package reference

import (
	"cmp"
	"net/netip"
	"slices"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	networkingv1 "k8s.io/api/networking/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"tendril.io/tendril/api/cilium"
)

// World is all that a cluster says.
type World struct {
	Cluster    string         // its name
	Local      string         // the node that is asked: "host" means this one
	PodRanges  []netip.Prefix // an address in them that no pod has is nobody's
	APIServers []netip.Addr

	Namespaces []corev1.Namespace
	Nodes      []corev1.Node
	Pods       []corev1.Pod
	Services   []corev1.Service
	Slices     []discoveryv1.EndpointSlice
	CIDRGroups []CIDRGroup

	NetworkPolicies []networkingv1.NetworkPolicy
	CiliumPolicies  []cilium.NetworkPolicy // without a namespace: clusterwide
	AdminPolicies   []AdminPolicy
}

// CIDRGroup is a CiliumCIDRGroup.
type CIDRGroup struct {
	metav1.ObjectMeta `json:"metadata,omitempty"`
	Spec              struct {
		ExternalCIDRs []string `json:"externalCIDRs"`
	} `json:"spec"`
}

// Packet is the first of a flow.
type Packet struct {
	Source, Destination netip.Addr
	Protocol            uint8
	Port                uint16 // of the destination; ICMP: the type
}

// Verdict is what one side says to a packet, and why: a rule of an object, or one that is built in.
type Verdict struct {
	Allow                 bool
	Kind, Namespace, Name string
	Place                 string // field path of the rule, or builtin/...
}

// party is one end of a packet.
type party struct {
	addr   netip.Addr
	pod    *corev1.Pod  // one with an address of its own
	node   *corev1.Node // a node, or a pod on its network
	nobody bool
	server bool // an API server answers there
}

func (p *party) outside() bool { return p.pod == nil && p.node == nil && !p.nobody }

// question is a packet seen from one of its ends.
type question struct {
	*World
	ingress       bool
	subject, peer party
	packet        Packet
}

// The tiers, and what a rule does.
const (
	admin = iota
	normal
	baseline

	deny  = "deny"
	allow = "allow"
	pass  = "pass"
)

// claim is a rule that matches.
type claim struct {
	tier     int
	priority int32
	action   string
	kind     string
	object   metav1.ObjectMeta
	index    int // of the rule among those of its object
	place    string
}

func (a *claim) compare(b *claim) int {
	byAction := 0
	if a.tier == normal {
		byAction = -cmp.Compare(a.action, b.action) // deny, allow
	}
	return cmp.Or(cmp.Compare(a.tier, b.tier), cmp.Compare(a.priority, b.priority), byAction, cmp.Compare(a.kind, b.kind),
		cmp.Compare(a.object.Namespace, b.object.Namespace), cmp.Compare(a.object.Name, b.object.Name), cmp.Compare(a.index, b.index))
}

// Judge asks both ends. An end that no policy can be about (the outside, another node) says nothing: nil.
func (w *World) Judge(p Packet) (egress, ingress *Verdict) {
	from, to := w.party(p.Source), w.party(p.Destination)
	return w.ask(question{w, false, from, to, p}), w.ask(question{w, true, to, from, p})
}

// party finds who has an address.
func (w *World) party(addr netip.Addr) party {
	p := party{addr: addr, server: slices.Contains(w.APIServers, addr)}
	for i := range w.Pods {
		for _, ip := range w.Pods[i].Status.PodIPs {
			if ip.IP == addr.String() && !w.Pods[i].Spec.HostNetwork {
				p.pod = &w.Pods[i]
				return p
			}
		}
	}
	for i := range w.Nodes {
		for _, a := range w.Nodes[i].Status.Addresses {
			if a.Address == addr.String() {
				p.node = &w.Nodes[i]
				return p
			}
		}
	}
	p.nobody = slices.ContainsFunc(w.PodRanges, func(r netip.Prefix) bool { return r.Contains(addr) })
	return p
}

func (w *World) isHost(p party) bool { return p.node != nil && p.node.Name == w.Local }

// ask lets all objects speak and takes the first word.
func (w *World) ask(q question) *Verdict {
	if q.subject.pod == nil && !w.isHost(q.subject) {
		return nil
	}
	if q.ingress && q.subject.pod != nil && w.isHost(q.peer) {
		return &Verdict{Allow: true, Place: "builtin/local-host"}
	}
	var claims []claim
	isolated := q.networkPolicies(&claims)
	isolated = q.ciliumPolicies(&claims) || isolated
	q.adminPolicies(&claims)
	slices.SortFunc(claims, func(a, b claim) int { return a.compare(&b) })
	tier := admin
	for _, c := range claims {
		switch {
		case c.tier < tier || c.tier == baseline && isolated:
		case c.action == pass:
			tier = c.tier + 1
		default:
			return &Verdict{c.action == allow, c.kind, c.object.Namespace, c.object.Name, c.place}
		}
	}
	if isolated {
		return &Verdict{Place: "builtin/default-deny"}
	}
	return &Verdict{Allow: true, Place: "builtin/default-allow"}
}

// staged objects have no effect.
func staged(o metav1.ObjectMeta) bool { return o.Annotations["tendril.io/stage"] == "true" }
