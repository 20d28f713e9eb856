// Package reference says what Kubernetes policy objects mean for a packet, by reading every object for every question.
//
// It is the judge of the translation (internal/kube), the compiler (internal/policy) and the datapath (bpf), so it shares
// nothing with them: it works on API objects, and is written from their documents alone:
//
//   - NetworkPolicy: the doc comments of k8s.io/api/networking/v1;
//   - ClusterNetworkPolicy, AdminNetworkPolicy, BaselineAdminNetworkPolicy: the doc comments of
//     sigs.k8s.io/network-policy-api/apis, v1alpha2 and v1alpha1 (v0.2.0);
//   - CiliumNetworkPolicy, CiliumClusterwideNetworkPolicy: the pages "Layer 3 Examples", "Layer 4 Examples", "Deny
//     Policies", "Host Policies" and "Endpoint selectors" of Cilium's documentation, on the shape in api/cilium.
//
// Where those leave the order open, it is tendril's: Admin, Normal, Baseline; within a tier the lower priority, then in
// Normal deny before allow, then the object by kind, namespace and name, then the rule's place. Whatever isolates a pod in
// Normal denies what no rule there allows, and Baseline is not asked.
//
// It expects objects that the API server has taken: it validates nothing. It knows no pods without labels (reserved:init)
// and no names in DNS.
package reference
