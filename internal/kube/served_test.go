package kube

import (
	"slices"
	"strings"
	"testing"
)

// Keys whose beginning is not named would be taken for gone while their kind cannot be read.
func TestEveryKindNamesWhatItsKeysBeginWith(t *testing.T) {
	objects, err := Decode("all", []byte(`
{apiVersion: v1, kind: Namespace, metadata: {name: shop}}
---
{apiVersion: v1, kind: Node, metadata: {name: n1}}
---
{apiVersion: v1, kind: Pod, metadata: {name: a, namespace: shop, uid: u}, spec: {nodeName: n1, containers: [{name: c}]}}
---
{apiVersion: tendril.io/v1alpha1, kind: LoadBalancerPool, metadata: {name: p}, spec: {cidrs: [192.0.2.0/24]}}
---
{apiVersion: v1, kind: Service, metadata: {name: web, namespace: shop}, spec: {clusterIP: 10.96.0.9, ports: [{port: 80}]}}
---
{apiVersion: discovery.k8s.io/v1, kind: EndpointSlice, metadata: {name: web-1, namespace: shop, labels: {kubernetes.io/service-name: web}}, addressType: IPv4, endpoints: []}
---
{apiVersion: tendril.io/v1alpha1, kind: EgressGateway, metadata: {name: g}, spec: {podSelector: {}, destinationCIDRs: [203.0.113.0/24], gateways: [{node: n1}]}}
---
{apiVersion: cilium.io/v2, kind: CiliumCIDRGroup, metadata: {name: g}, spec: {externalCIDRs: [192.0.2.0/24]}}
---
{apiVersion: networking.k8s.io/v1, kind: NetworkPolicy, metadata: {name: p, namespace: shop}, spec: {podSelector: {}}}
---
{apiVersion: cilium.io/v2, kind: CiliumNetworkPolicy, metadata: {name: p, namespace: shop}, spec: {endpointSelector: {}, ingress: [{}]}}
---
{apiVersion: cilium.io/v2, kind: CiliumClusterwideNetworkPolicy, metadata: {name: p}, spec: {endpointSelector: {}, ingress: [{}]}}
---
{apiVersion: policy.networking.k8s.io/v1alpha2, kind: ClusterNetworkPolicy, metadata: {name: p}, spec: {tier: Admin, priority: 1, subject: {namespaces: {}}}}
---
{apiVersion: policy.networking.k8s.io/v1alpha1, kind: AdminNetworkPolicy, metadata: {name: p}, spec: {priority: 1, subject: {namespaces: {}}}}
---
{apiVersion: policy.networking.k8s.io/v1alpha1, kind: BaselineAdminNetworkPolicy, metadata: {name: default}, spec: {subject: {namespaces: {}}}}
`))
	if err != nil {
		t.Fatal(err)
	}
	records, err := Records(objects, "c")
	if err != nil {
		t.Fatal(err)
	}
	seen := map[string]bool{}
	for _, record := range records {
		seen[record.Object.Kind] = true
		begins := func(prefix string) bool { return strings.HasPrefix(record.Key, prefix) }
		if !slices.ContainsFunc(KeysOf(record.Object.Kind), begins) {
			t.Errorf("%s: key %s begins with none of %q", record.Object.Kind, record.Key, KeysOf(record.Object.Kind))
		}
	}
	for _, kind := range Kinds() {
		if !seen[kind.Kind] {
			t.Errorf("no example of %s", kind.Kind)
		}
	}
}
