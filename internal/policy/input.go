package policy

import (
	"net/netip"

	"tendril.io/tendril/internal/identity"
	"tendril.io/tendril/internal/label"
)

// Workload is what policies can know of a pod, or of what stands in for one.
type Workload struct {
	Identity       identity.ID // of the four fields below; zero: the engine computes it
	Cluster        string
	Namespace      string
	ServiceAccount string
	Labels         label.Set
	NamedPorts     []NamedPort
	// Reserved is identity.Init for a pod whose labels have not arrived yet, another reserved identity for what is no
	// pod; zero for a pod with labels. With Reserved set the fields above count for nothing, but for Labels where it is
	// Host or RemoteNode: they are then the node's own (ScopeNode).
	Reserved identity.Reserved
}

// NamedPort is a container port with a name.
type NamedPort struct {
	Name     string
	Protocol uint8 // IP protocol number
	Port     uint16
}

// AddressFact is what is known of an address, or of a prefix.
type AddressFact struct {
	Workload *Workload         // the pod that owns the address; nil: Reserved says who does
	Reserved identity.Reserved // only without Workload; the zero value is identity.Unknown
	Node     uint32            // index into the datapath's nodes; 0: not of a node
	Endpoint uint32            // index into the datapath's endpoints if it is a pod of this node
	Flags    uint32            // enum address_flag
	// APIServer: an API server answers at the address, whoever else it is: EntityKubeAPIServer holds it as well.
	APIServer bool
}

// Group is a set of addresses that policies name and that changes by itself.
type Group struct {
	Kind      GroupKind
	Namespace string // empty for GroupCIDR
	Name      string
	Labels    label.Set
	Prefixes  []netip.Prefix
}

// Config limits and configures an engine. The zero value is the default.
type Config struct {
	// DenyLocalHost takes away builtin/local-host, the first ingress rule of every pod, which lets the node reach
	// its own pods (kubelet's probes).
	DenyLocalHost bool
	// ClassWords is the number of 64-bit words in a row of class_bits, node_config.class_words; 0: 64, that is 4096 selectors.
	ClassWords int
}

// RuleInfo says what a rule id stands for.
type RuleInfo struct {
	Rule   uint32
	Key    Key    // of the policy; zero for builtin rules
	Place  string // field path inside the object
	Name   string // as people read it: Kind/namespace/name and the rule's own name or place, or builtin/...
	Action Action
	Source string // file or object the policy came from
	Staged bool   // the policy is staged: the rule decides nothing but what records say
}

// Refusal is a policy that is not in force as it was last given, and why. An earlier version of it may be in force.
type Refusal struct {
	Key      Key
	Revision uint64
	Reason   error // a *RoomError if it does not fit
	// Isolates: no earlier version is in force, and until this one is, what it selects is closed.
	Isolates bool
}

// Party is one side of a flow to explain.
type Party struct {
	Address  netip.Addr        // decides which CIDR selectors hold it; may be left out
	Endpoint uint32            // number of the local endpoint; 0: not a pod of this node
	Workload *Workload         // nil: Reserved says who it is
	Reserved identity.Reserved // only without Workload
	Flags    uint32            // enum address_flag; only ADDRESS_CLUSTER of an API server counts
	// APIServer: an API server answers at the address.
	APIServer bool
	Name      string // how to call it; empty: the engine describes it
}

// Proof is the reasoning behind one direction's verdict.
type Proof struct {
	Direction Direction
	Endpoint  string // the side whose policy is asked
	Peer      string // the other side
	Judged    bool   // false: the side is not an endpoint of this node and nothing is claimed
	Action    Action // Deny, Allow or Redirect
	Rule      RuleInfo
	Isolators []Key  // policies that make the default a deny
	Steps     []Step // rules in the order in which they were looked at, up to the winner
	Nearest   string // the rule that came nearest to matching, and the field that differs; empty if a rule matched
	// Staged is what the verdict would be with the staged policies in force; nil: none speaks of the direction.
	Staged *Judgement
}

// Step is one rule that was looked at.
type Step struct {
	Rank     uint32
	Rule     RuleInfo
	Selector string // the peers it names
	Ports    string // the ports it names
	Action   Action
	Matched  bool
	Why      string // why not, in one line
}
