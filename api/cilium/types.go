package cilium

import (
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/intstr"
)

// APIVersion is the group and version of the kinds of this package.
const APIVersion = "cilium.io/v2"

// APIVersionAlpha is where CiliumCIDRGroup was before, in the same shape.
const APIVersionAlpha = "cilium.io/v2alpha1"

// The kinds.
const (
	KindNetworkPolicy            = "CiliumNetworkPolicy"
	KindClusterwideNetworkPolicy = "CiliumClusterwideNetworkPolicy"
	KindCIDRGroup                = "CiliumCIDRGroup"
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
	ToServices  []Service              `json:"toServices,omitempty"`
	ToNodes     []metav1.LabelSelector `json:"toNodes,omitempty"`
	ToGroups    []any                  `json:"toGroups,omitempty"`
	ToFQDNs     []FQDNSelector         `json:"toFQDNs,omitempty"`
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

// Service is a service by name, or those that a selector selects. Exactly one of the two is set.
type Service struct {
	K8sService         *ServiceName     `json:"k8sService,omitempty"`
	K8sServiceSelector *ServiceSelector `json:"k8sServiceSelector,omitempty"`
}

// ServiceName names a service; without a namespace, one of that name in any.
type ServiceName struct {
	ServiceName string `json:"serviceName,omitempty"`
	Namespace   string `json:"namespace,omitempty"`
}

// ServiceSelector selects services by their own labels; without a namespace, in any.
type ServiceSelector struct {
	Selector  metav1.LabelSelector `json:"selector"`
	Namespace string               `json:"namespace,omitempty"`
}

// FQDNSelector is a name in DNS, or a pattern of names. Exactly one of the two is set.
type FQDNSelector struct {
	MatchName    string `json:"matchName,omitempty"`
	MatchPattern string `json:"matchPattern,omitempty"`
}

// PortRule is a list of ports and what is asked of the traffic on them beyond L4.
type PortRule struct {
	Ports          []PortProtocol `json:"ports,omitempty"`
	TerminatingTLS any            `json:"terminatingTLS,omitempty"`
	OriginatingTLS any            `json:"originatingTLS,omitempty"`
	ServerNames    []string       `json:"serverNames,omitempty"`
	Listener       any            `json:"listener,omitempty"`
	Rules          *L7Rules       `json:"rules,omitempty"`
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

// L7Rules is what is asked of requests: one of the rules of one protocol must hold.
type L7Rules struct {
	HTTP    []HTTPRule          `json:"http,omitempty"`
	Kafka   []KafkaRule         `json:"kafka,omitempty"`
	DNS     []FQDNSelector      `json:"dns,omitempty"`
	L7Proto string              `json:"l7proto,omitempty"` // parser that L7 is for
	L7      []map[string]string `json:"l7,omitempty"`
}

// HTTPRule describes requests; what is empty matches all. Method, Path and Host are regular expressions.
type HTTPRule struct {
	Path          string        `json:"path,omitempty"`
	Method        string        `json:"method,omitempty"`
	Host          string        `json:"host,omitempty"`
	Headers       []string      `json:"headers,omitempty"` // "Name: value", or a name that must be there
	HeaderMatches []HeaderMatch `json:"headerMatches,omitempty"`
}

// HeaderMatch asks for a header, and says what to do with a request that lacks it.
type HeaderMatch struct {
	Name     string `json:"name"`
	Value    string `json:"value,omitempty"`
	Mismatch string `json:"mismatch,omitempty"` // LOG, ADD, DELETE or REPLACE; empty: the rule does not hold
	Secret   any    `json:"secret,omitempty"`
}

// KafkaRule describes requests; what is empty matches all.
type KafkaRule struct {
	Role       string `json:"role,omitempty"` // produce or consume; not with APIKey
	APIKey     string `json:"apiKey,omitempty"`
	APIVersion string `json:"apiVersion,omitempty"`
	ClientID   string `json:"clientID,omitempty"`
	Topic      string `json:"topic,omitempty"`
}

// CIDRGroup is a CiliumCIDRGroup: ranges of addresses outside the cluster, under a name.
type CIDRGroup struct {
	metav1.TypeMeta   `json:",inline"`
	metav1.ObjectMeta `json:"metadata,omitempty"`

	Spec CIDRGroupSpec `json:"spec"`
}

// CIDRGroupSpec lists the ranges.
type CIDRGroupSpec struct {
	ExternalCIDRs []string `json:"externalCIDRs"`
}
