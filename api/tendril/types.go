package tendril

import metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

// APIVersion is what manifests of these kinds name.
const APIVersion = "tendril.io/v1alpha1"

// KindLoadBalancerPool is the kind of LoadBalancerPool.
const KindLoadBalancerPool = "LoadBalancerPool"

// LoadBalancerPool is a set of addresses for services of type LoadBalancer. It belongs to no namespace.
type LoadBalancerPool struct {
	metav1.TypeMeta   `json:",inline"`
	metav1.ObjectMeta `json:"metadata,omitempty"`

	Spec LoadBalancerPoolSpec `json:"spec"`
}

// LoadBalancerPoolSpec says which addresses there are, and for whom.
type LoadBalancerPoolSpec struct {
	// CIDRs are ranges, or single addresses, of either family.
	CIDRs []string `json:"cidrs"`
	// ServiceSelector selects services by their labels; absent: all.
	ServiceSelector *metav1.LabelSelector `json:"serviceSelector,omitempty"`
	// NamespaceSelector selects services by the labels of their namespaces; absent: all.
	NamespaceSelector *metav1.LabelSelector `json:"namespaceSelector,omitempty"`
}

// KindEgressGateway is the kind of EgressGateway.
const KindEgressGateway = "EgressGateway"

// EgressGateway has pods reach destinations outside the cluster through chosen nodes, under a known address. It belongs to no
// namespace.
type EgressGateway struct {
	metav1.TypeMeta   `json:",inline"`
	metav1.ObjectMeta `json:"metadata,omitempty"`

	Spec EgressGatewaySpec `json:"spec"`
}

// EgressGatewaySpec says who reaches what by which nodes.
type EgressGatewaySpec struct {
	// PodSelector selects pods by their labels; absent: all.
	PodSelector *metav1.LabelSelector `json:"podSelector,omitempty"`
	// NamespaceSelector selects pods by the labels of their namespaces; absent: all.
	NamespaceSelector *metav1.LabelSelector `json:"namespaceSelector,omitempty"`
	// DestinationCIDRs are ranges, or single addresses, of either family. Addresses of the cluster are never meant.
	DestinationCIDRs []string `json:"destinationCIDRs"`
	// ExceptCIDRs are parts of them that pods reach as if there were no gateway.
	ExceptCIDRs []string `json:"exceptCIDRs,omitempty"`
	// Gateways are the nodes. Those of them that are alive share the flows.
	Gateways []EgressGatewayNodes `json:"gateways"`
}

// EgressGatewayNodes is one node by name, or every node that a selector finds.
type EgressGatewayNodes struct {
	// Node is a node's name.
	Node string `json:"node,omitempty"`
	// NodeSelector selects nodes by their labels.
	NodeSelector *metav1.LabelSelector `json:"nodeSelector,omitempty"`
	// Addresses are what outside sees, at most one a family, each on a device of the node; only with Node. Absent: the addresses
	// of the node's uplink.
	Addresses []string `json:"addresses,omitempty"`
}

// KindIdentity is the kind of Identity.
const KindIdentity = "Identity"

// Identity is who pods of a namespace are to policies: those with one service account and one set of labels. Its name is the hash of
// that, of 32 hexadecimal digits. The operator writes one for each that pods have, and nobody else does: it is for people to read.
type Identity struct {
	metav1.TypeMeta   `json:",inline"`
	metav1.ObjectMeta `json:"metadata,omitempty"`

	Spec IdentitySpec `json:"spec"`
}

// IdentitySpec is what the name is the hash of, beside the namespace.
type IdentitySpec struct {
	// Cluster is the name of the cluster, by the operator's configuration.
	Cluster string `json:"cluster"`
	// ServiceAccount is the pods' service account.
	ServiceAccount string `json:"serviceAccount"`
	// Labels are the pods' labels; absent: they have none.
	Labels map[string]string `json:"labels,omitempty"`
}
