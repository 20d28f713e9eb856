package policy

import (
	"net/netip"

	"tendril.io/tendril/internal/label"
)

// Key names a policy object.
type Key struct {
	Kind      string // NetworkPolicy, CiliumNetworkPolicy, ...
	Namespace string // empty for cluster-wide kinds
	Name      string
}

// Tier orders kinds of policy. A lower tier is looked at first; within a tier, a lower priority.
type Tier uint8

// The tiers. ClusterNetworkPolicy owns Admin and Baseline; everything else is Normal. In those two the rules of a policy
// are looked at in the order in which they stand there; in Normal, by their actions.
const (
	TierBuiltin  Tier = 0
	TierAdmin    Tier = 1
	TierNormal   Tier = 2
	TierBaseline Tier = 3
)

// Direction is seen from the endpoint that a policy selects.
type Direction uint8

// The directions.
const (
	Ingress Direction = iota
	Egress
)

// Action is what a rule does. In TierNormal its order is the order of precedence within equal priority.
type Action uint8

// The actions.
const (
	Deny Action = iota
	Allow
	Redirect
	Pass // to the next tier
)

// Policy is a policy object in the one ordered model that all dialects are translated to.
type Policy struct {
	Key      Key
	Revision uint64
	Source   string // file or object it came from, for explain
	Specs    []Spec // an object can hold several (CiliumNetworkPolicy.specs)
	// Staged: flow records say what the verdict would be if it were in force, and it has no other effect.
	Staged bool
}

// Spec is a selection of endpoints and what holds for them.
type Spec struct {
	Place    string // field path of the spec inside the object, e.g. "spec" or "specs[1]"
	Tier     Tier
	Priority uint32
	Subject  label.Selector // the endpoints it applies to; one that asks for FactReserved host means nodes (ScopeNode: by their labels)
	Isolates [2]bool        // by Direction: endpoints deny in that direction what no rule allows
	Rules    []Rule
}

// Rule is one entry of a spec: who, at which ports, gets which action.
type Rule struct {
	Place     string // field path inside the object, e.g. spec.ingress[0]
	Name      string // optional name given by the author
	Direction Direction
	Action    Action
	Peers     []Peer // one must match; empty: no peer matches (a dialect's "all" is said with Peer{Any: true})
	Ports     []Port // one must match; empty: any protocol and port
	ProxyPort uint16 // of Redirect
	L7        *L7    // what is asked beyond L4; nil: nothing. Only a proxy can answer it (see NeedsProxy)
}

// Peer is one alternative for the other side of a rule. Exactly one of the fields is set.
type Peer struct {
	Any      bool            // every peer, inside or outside the cluster
	Selector *label.Selector // pods
	Entity   Entity          // reserved identities
	CIDR     *CIDR
	Group    *GroupRef // addresses that are known by the name of a service or of a list
	FQDN     *FQDN     // addresses that DNS gives a name; only a proxy can know them (see NeedsProxy)
}

// GroupKind says what a group of addresses is.
type GroupKind string

// The kinds of group.
const (
	GroupService GroupKind = "service" // the addresses of a service's backends
	GroupCIDR    GroupKind = "cidr"    // a CiliumCIDRGroup
)

// GroupRef names one group of addresses, or all of a kind that its labels select. A group that is not known is empty.
type GroupRef struct {
	Kind        GroupKind
	Namespace   string          // of services; empty: of any namespace
	Name        string          // empty: those that Labels selects
	Labels      *label.Selector // over the group's own labels (ScopePod); only without Name
	Except      []netip.Prefix  // addresses that are left out, whichever group has them
	OutsideOnly bool            // as in CIDR
}

// FQDN is a set of names in DNS. Exactly one of the fields is set.
type FQDN struct {
	Name string // lower case, without the last dot
	// The same with *, which stands for any characters of one label; alone, for any name. ** as the first label stands for
	// one label or more.
	Pattern string
}

// Entity is a named group of peers.
type Entity string

// The entities. EntityCluster is all pods, nodes and unmanaged endpoints of the cluster; EntityWorld everything outside.
const (
	EntityNone          Entity = ""
	EntityWorld         Entity = "world"
	EntityWorldIPv4     Entity = "world-ipv4"
	EntityWorldIPv6     Entity = "world-ipv6"
	EntityCluster       Entity = "cluster"
	EntityHost          Entity = "host"
	EntityRemoteNode    Entity = "remote-node"
	EntityKubeAPIServer Entity = "kube-apiserver"
	EntityHealth        Entity = "health"
	EntityInit          Entity = "init"
	EntityUnmanaged     Entity = "unmanaged"
	EntityIngress       Entity = "ingress"
	EntityNobody        Entity = "none" // matches nothing
)

// CIDR is an address range, less the ranges in Except.
type CIDR struct {
	Prefix netip.Prefix
	Except []netip.Prefix
	// OutsideOnly: the range means hosts outside the cluster (cilium.io); otherwise any address, pods and nodes
	// included (NetworkPolicy ipBlock).
	OutsideOnly bool
}

// Port is a range of ports of one protocol, or a named port.
type Port struct {
	Protocol uint8  // IP protocol number; 0: any protocol, or with a port range TCP, UDP and SCTP
	First    uint16 // ICMP: the type
	Last     uint16 // inclusive; First 0 and Last 65535: any port
	Name     string // resolved on the destination's pod, in the rule's protocol; First and Last are then 0
}
