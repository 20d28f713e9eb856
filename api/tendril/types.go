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
