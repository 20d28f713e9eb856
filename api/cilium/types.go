package cilium

import (
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/intstr"
)

// APIVersion is the group and version of the kinds of this package.
const APIVersion = "cilium.io/v2"

// The kinds.
const (
	KindNetworkPolicy            = "CiliumNetworkPolicy"
	KindClusterwideNetworkPolicy = "CiliumClusterwideNetworkPolicy"
)

// NetworkPolicy is a CiliumNetworkPolicy or, without a namespace, a CiliumClusterwideNetworkPolicy.
type NetworkPolicy struct {
	metav1.TypeMeta   `json:",inline"`
	metav1.ObjectMeta `json:"metadata,omitempty"`

	Spec   *Rule  `json:"spec,omitempty"`
	Specs  []Rule `json:"specs,omitempty"`
	Status any    `json:"status,omitempty"`
}

// Rule is a selection of endpoints and what they may do. Exactly one of the two selectors is set.
type Rule struct {
	EndpointSelector  *metav1.LabelSelector `json:"endpointSelector,omitempty"`
	NodeSelector      *metav1.LabelSelector `json:"nodeSelector,omitempty"`
	Ingress           []IngressRule         `json:"ingress,omitempty"`
	IngressDeny       []IngressDenyRule     `json:"ingressDeny,omitempty"`
	Egress            []EgressRule          `json:"egress,omitempty"`
	EgressDeny        []EgressDenyRule      `json:"egressDeny,omitempty"`
	EnableDefaultDeny DefaultDeny           `json:"enableDefaultDeny,omitempty"`
	Labels            []Label               `json:"labels,omitempty"`
	Description       string                `json:"description,omitempty"`
	Log               *Log                  `json:"log,omitempty"`
}

// DefaultDeny says whether the rule isolates what it selects; a nil field is true where the direction has rules.
type DefaultDeny struct {
	Ingress *bool `json:"ingress,omitempty"`
	Egress  *bool `json:"egress,omitempty"`
}

// Label is a label of the rule itself; it has no effect on verdicts.
type Label struct {
	Key    string `json:"key"`
	Value  string `json:"value,omitempty"`
	Source string `json:"source,omitempty"`
}

// Log is a text that the author wants beside the rule's flow records.
type Log struct {
	Value string `json:"value,omitempty"`
}

// From lists who may be the source. At most one of its lists may be used in a rule; none means anyone if the rule
// names ports, and nobody otherwise.
type From struct {
	FromEndpoints []metav1.LabelSelector `json:"fromEndpoints,omitempty"`
	FromCIDR      []string               `json:"fromCIDR,omitempty"`
	FromCIDRSet   []CIDRRule             `json:"fromCIDRSet,omitempty"`
	FromEntities  []string               `json:"fromEntities,omitempty"`
	FromNodes     []metav1.LabelSelector `json:"fromNodes,omitempty"`
	FromGroups    []any                  `json:"fromGroups,omitempty"`
	FromRequires  []metav1.LabelSelector `json:"fromRequires,omitempty"`
}

// To lists who may be the destination, as From does.
type To struct {
	ToEndpoints []metav1.LabelSelector `json:"toEndpoints,omitempty"`
	ToCIDR      []string               `json:"toCIDR,omitempty"`
	ToCIDRSet   []CIDRRule             `json:"toCIDRSet,omitempty"`
	ToEntities  []string               `json:"toEntities,omitempty"`
	ToServices  []any                  `json:"toServices,omitempty"`
	ToNodes     []metav1.LabelSelector `json:"toNodes,omitempty"`
	ToGroups    []any                  `json:"toGroups,omitempty"`
	ToFQDNs     []any                  `json:"toFQDNs,omitempty"`
	ToRequires  []metav1.LabelSelector `json:"toRequires,omitempty"`
}

// IngressRule allows what comes from its sources to its ports.
type IngressRule struct {
	From           `json:",inline"`
	ToPorts        []PortRule      `json:"toPorts,omitempty"`
	ICMPs          []ICMPRule      `json:"icmps,omitempty"`
	Authentication *Authentication `json:"authentication,omitempty"`
}

// IngressDenyRule denies, ahead of every allow.
type IngressDenyRule struct {
	From    `json:",inline"`
	ToPorts []PortRule `json:"toPorts,omitempty"`
	ICMPs   []ICMPRule `json:"icmps,omitempty"`
}

// EgressRule allows what goes to its destinations at its ports.
type EgressRule struct {
	To             `json:",inline"`
	ToPorts        []PortRule      `json:"toPorts,omitempty"`
	ICMPs          []ICMPRule      `json:"icmps,omitempty"`
	Authentication *Authentication `json:"authentication,omitempty"`
}

// EgressDenyRule denies, ahead of every allow.
type EgressDenyRule struct {
	To      `json:",inline"`
	ToPorts []PortRule `json:"toPorts,omitempty"`
	ICMPs   []ICMPRule `json:"icmps,omitempty"`
}

// Authentication is mutual authentication asked of a connection: disabled, required or test-always-fail.
type Authentication struct {
	Mode string `json:"mode"`
}

// CIDRRule is a range of addresses outside the cluster, less its exceptions.
type CIDRRule struct {
	CIDR              string                `json:"cidr,omitempty"`
	CIDRGroupRef      string                `json:"cidrGroupRef,omitempty"`
	CIDRGroupSelector *metav1.LabelSelector `json:"cidrGroupSelector,omitempty"`
	Except            []string              `json:"except,omitempty"`
}

// PortRule is a list of ports and what is asked of the traffic on them beyond L4.
type PortRule struct {
	Ports          []PortProtocol `json:"ports,omitempty"`
	TerminatingTLS any            `json:"terminatingTLS,omitempty"`
	OriginatingTLS any            `json:"originatingTLS,omitempty"`
	ServerNames    []string       `json:"serverNames,omitempty"`
	Listener       any            `json:"listener,omitempty"`
	Rules          any            `json:"rules,omitempty"`
}

// PortProtocol is a port, a range of ports or a named port of a protocol.
type PortProtocol struct {
	Port     string `json:"port,omitempty"`     // number or name; "0": any port
	EndPort  int32  `json:"endPort,omitempty"`  // last port of a range, inclusive; 0: no range
	Protocol string `json:"protocol,omitempty"` // TCP, UDP, SCTP, ICMP, ICMPv6, VRRP, IGMP or ANY; empty: ANY
}

// ICMPRule is a list of ICMP types.
type ICMPRule struct {
	Fields []ICMPField `json:"fields,omitempty"`
}

// ICMPField is a type of ICMP message.
type ICMPField struct {
	Family string              `json:"family,omitempty"` // IPv4 or IPv6; empty: IPv4
	Type   *intstr.IntOrString `json:"type"`             // number, or the name that IANA gives it without blanks
}
