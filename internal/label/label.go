// Package label is the vocabulary in which policies select workloads: attributes, sets of them, and selectors.
//
// A workload has attributes in scopes: its own labels, the labels of its namespace, and facts that Kubernetes keeps
// elsewhere (namespace name, service account, cluster). A selector is a conjunction of requirements over attributes,
// so that podSelector, namespaceSelector and Cilium's pseudo-labels are one mechanism with one matcher.
//
// The package is pure and knows nothing of Kubernetes' types.
package label

import "strings"

// Scope says whose attribute a key names.
type Scope uint8

// The scopes, in the order in which canonical forms list them.
const (
	ScopePod       Scope = iota // a label of the workload itself
	ScopeNamespace              // a label of its namespace
	ScopeFact                   // one of the Fact keys below
	ScopeNode                   // a label of a node; only nodes (FactReserved host, remote-node) have any
)

// Keys of ScopeFact.
const (
	FactNamespace      = "namespace"
	FactServiceAccount = "service-account"
	FactCluster        = "cluster"
	FactReserved       = "reserved"   // value: host, world, remote-node, ...; absent on pods
	FactAPIServer      = "api-server" // value: true; absent where no API server answers
)

// MetadataName is the label that Kubernetes gives every namespace: its own name. Attributes of workloads answer it
// even where nobody wrote it.
const MetadataName = "kubernetes.io/metadata.name"

// Key names an attribute.
type Key struct {
	Scope Scope
	Name  string
}

// Attributes answers what a workload's attributes are. The second result is false where it has none of that key.
type Attributes interface {
	Attribute(Key) (string, bool)
}

// String prints a key as selectors print it: app, namespace:team, @service-account. The marks cannot occur in a
// valid name, so that two keys never print alike.
func (k Key) String() string {
	switch k.Scope {
	case ScopeNamespace:
		return "namespace:" + k.Name
	case ScopeFact:
		return "@" + k.Name
	case ScopeNode:
		return "node:" + k.Name
	}
	return k.Name
}

// compare orders keys by scope, then name.
func (k Key) compare(other Key) int {
	if k.Scope != other.Scope {
		return int(k.Scope) - int(other.Scope)
	}
	return strings.Compare(k.Name, other.Name)
}
