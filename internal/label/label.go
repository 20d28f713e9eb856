// Package label is the vocabulary in which policies select workloads: attributes, sets of them, and selectors.
//
// A workload has attributes in scopes: its own labels, the labels of its namespace, and facts that Kubernetes keeps
// elsewhere (namespace name, service account, cluster). A selector is a conjunction of requirements over attributes,
// so that podSelector, namespaceSelector and Cilium's pseudo-labels are one mechanism with one matcher.
//
// The package is pure and knows nothing of Kubernetes' types.
package label

// Scope says whose attribute a key names.
type Scope uint8

// The scopes, in the order in which canonical forms list them.
const (
	ScopePod       Scope = iota // a label of the workload itself
	ScopeNamespace              // a label of its namespace
	ScopeFact                   // one of the Fact keys below
)

// Keys of ScopeFact.
const (
	FactNamespace      = "namespace"
	FactServiceAccount = "service-account"
	FactCluster        = "cluster"
	FactReserved       = "reserved" // value: host, world, remote-node, ...; absent on pods
)

// Key names an attribute.
type Key struct {
	Scope Scope
	Name  string
}

// Operator is how a requirement compares. The semantics are those of Kubernetes' label selectors: NotIn also
// matches where the key is absent.
type Operator uint8

// The operators.
const (
	In Operator = iota
	NotIn
	Exists
	DoesNotExist
)

// Requirement is one condition of a selector. Values are sorted and distinct.
type Requirement struct {
	Key      Key
	Operator Operator
	Values   []string
}
