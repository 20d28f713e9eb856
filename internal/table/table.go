// Package table defines the rows that the agent's parts exchange, and the tables that hold them.
//
// Sources (the store, the CNI plugin, the kernel) write them; only routes_wanted is derived. What policy and services come to
// is not here: the brains hold it, and print it in the same form.
//
// A row is immutable once inserted: change a copy. Every row prints itself as cells, so that `tendril db show` and tests see
// the same text.
package table

import (
	"net/netip"
	"time"

	"tendril.io/tendril/internal/label"
)

// Node is a node of the cluster, from nodes/<node>.
type Node struct {
	Name                   string
	Addresses              []netip.Addr   // on the fabric, IPv4 first
	PodCIDRs               []netip.Prefix // at most one a family
	Tunnel                 netip.Addr     // outer address of its tunnel
	Routers                []netip.Addr   // pods' gateways on that node
	Healths                []netip.Addr
	Zone                   string
	BootID                 string
	MinVersion, MaxVersion uint32
}

// Pod is a pod of any node, from pods/<node>/<namespace>/<name>.
type Pod struct {
	Node, Namespace, Name string
	UID                   string
	Labels                [16]byte // key of its label set
	NamedPorts            []NamedPort
	HostNetwork           bool
}

// NamedPort is a container port with a name.
type NamedPort struct {
	Name     string
	Port     uint16
	Protocol uint8 // IP protocol number
}

// HostPort is a port of the node that leads to a pod of it.
type HostPort struct {
	Addr     netip.Addr // of the node; invalid: all of them
	Port     uint16     // of the node
	Target   uint16     // of the pod
	Protocol uint8      // IP protocol number
}

// IP is an address given to a pod by its node's agent, from ips/<node>/<ip>.
type IP struct {
	Node      string
	Addr      netip.Addr
	PodUID    string
	Sandbox   string
	Namespace string
	Pod       string
}

// LabelSet is what a pod's identity is the hash of, from labels/<hash>.
type LabelSet struct {
	Hash           [16]byte
	Cluster        string
	Namespace      string
	ServiceAccount string
	Labels         map[string]string
}

// Namespace is a Kubernetes namespace's labels, from namespaces/<namespace>.
type Namespace struct {
	Name   string
	Labels map[string]string
}

// NodeLabels is what policies select a node by, from nodelabels/<node>.
type NodeLabels struct {
	Node   string
	Labels map[string]string
}

// Alive is the sign of life of a node's agent, from alive/<node>; gone when its lease is.
type Alive struct {
	Node    string
	BootID  string
	Started int64 // of the agent, seconds since 1970
}

// CIDRGroup is a list of address ranges that policies name, from cidrgroups/<name>.
type CIDRGroup struct {
	Name     string
	Prefixes []netip.Prefix
	Labels   map[string]string
}

// EgressGateway says which pods leave the cluster by which nodes, from egressgateways/<name>.
type EgressGateway struct {
	Name         string
	Pods         label.Selector // of the pods' labels
	Namespaces   label.Selector // of their namespaces' labels
	Destinations []netip.Prefix // outside the cluster
	Exceptions   []netip.Prefix // parts of them that are reached as ever
	Nodes        []EgressNodes
}

// EgressNodes is a node of an egress gateway by name, or those that a selector finds.
type EgressNodes struct {
	Node     string         // empty: Selector counts
	Selector label.Selector // of the nodes' labels
	Addrs    []netip.Addr   // that outside sees, at most one a family; none: those of the node's uplink
}

// Service is a service's frontends and options, from services/<namespace>/<name>.
type Service struct {
	Namespace, Name     string
	Type                string // ClusterIP, NodePort, LoadBalancer, ExternalName
	ClusterIPs          []netip.Addr
	Ports               []ServicePort
	AffinitySeconds     uint32
	InternalLocal       bool
	ExternalLocal       bool
	ExternalIPs         []netip.Addr
	LoadBalancerIPs     []netip.Addr // given by a pool or by somebody else's controller
	Shortfalls          []Shortfall  // why it has no address of a family that it asks for
	SourceRanges        []netip.Prefix
	HealthCheckNodePort uint16
	TrafficDistribution string
	PublishNotReady     bool
	Algorithm           string // random or maglev
	Forwarding          string // dsr, snat, or empty: as the node has it
	Labels              map[string]string
}

// Shortfall is why a service goes without an address that it asks for.
type Shortfall struct{ Message, Remedy string }

// ServicePort is one port of a service.
type ServicePort struct {
	Name     string
	Protocol uint8
	Port     uint16
	NodePort uint16
}

// Backends is one endpoint slice, from endpoints/<namespace>/<service>/<slice>.
type Backends struct {
	Namespace, Service, Slice string
	Ports                     []NamedPort
	Backends                  []Backend
	Weight                    uint32 // of each backend, beside those of the service's other slices: 1 to MaxWeight; 0: 1
}

// MaxWeight bounds the weight of a backend: one in a hundred is as fine a share as rollouts ask for, and a weight costs
// slots.
const MaxWeight = 100

// Backend is one endpoint of a slice.
type Backend struct {
	Addrs       []netip.Addr
	Node        string
	Zone        string
	Pod         string   // namespace/name if it is one
	HintZones   []string // whose clients it is for, as the slice's controller says; none: no hint
	Ready       bool
	Serving     bool
	Terminating bool
}

// Counter is the highest revision that the store gave to a change of a kind of record, removals included, from
// counters/<kind>. It changes in one transaction with what it counts.
type Counter struct {
	Kind     string // of the key: policies
	Revision uint64
}

// Policy is a policy as written, from policies/<kind>/<namespace>/<name>.
type Policy struct {
	Kind, Namespace, Name string
	Object                []byte // JSON
	Revision              uint64
	Source                string // file it was applied from, if known
}

// Endpoint is a pod of this node, made by the CNI plugin.
type Endpoint struct {
	ID         uint32 // index into the endpoints map
	Generation uint32
	Namespace  string
	Pod        string
	PodUID     string
	Sandbox    string // container id given by the runtime
	IfName     string // device inside the pod
	Device     string // device on the host
	IfIndex    uint32 // of Device
	PodMAC     [6]byte
	HostMAC    [6]byte
	Addrs      []netip.Addr
	MTU        uint32
	// NetnsCookie is the number by which programs know the pod's network namespace; 0: not known.
	NetnsCookie uint64
	NetnsPath   string
	Created     time.Time
	State       EndpointState
	Peer        uint32 // set once judged
	Ingress     uint32
	Egress      uint32
	// Labels given by the CNI arguments where there is no operator (the lab); nil otherwise.
	ArgLabels *LabelSet
	ArgPorts  []NamedPort // the same for named ports
	HostPorts []HostPort  // ports of the node that lead to the pod
	// Chained: another plugin made the device and gave the addresses.
	Chained bool
	// Notes say what was asked for the pod and does not hold.
	Notes []string
}

// EndpointState is where an endpoint is in its life.
type EndpointState string

// The states, in order.
const (
	EndpointAttaching EndpointState = "attaching" // device made, default-deny stub on it
	EndpointInit      EndpointState = "init"      // judged as reserved:init: its labels have not arrived
	EndpointReady     EndpointState = "ready"     // its own policy is in force
	EndpointLeaving   EndpointState = "leaving"
)

// Device is a network device of the node, from the kernel.
type Device struct {
	Index uint32
	Name  string
	Type  string // veth, vxlan, bridge, device, ...
	MTU   uint32
	MAC   [6]byte
	Up    bool
	Addrs []netip.Prefix
}
