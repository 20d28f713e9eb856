package kube

import (
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// TestAWrongFieldDoesNotHideOtherMistakes: what a decoder would stop at is reported together with what only the
// meaning of the rest shows, and nothing is reported that only follows from the first.
func TestAWrongFieldDoesNotHideOtherMistakes(t *testing.T) {
	tests := []struct{ sentence, manifest, want string }{
		{"an unknown field, a range of addresses and a port", `
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: web, namespace: shop}
spec:
  podSelektor: {}
  ingress:
  - from: [{ipBlock: {cidr: 10.0.0.0/33}}]
    ports: [{port: 99999}]
`, `
x.yaml document 1, NetworkPolicy shop/web: spec.podSelektor: Forbidden: unknown field; did you mean "podSelector"?
x.yaml document 1, NetworkPolicy shop/web: spec.ingress[0].from[0].ipBlock.cidr: Invalid value: "10.0.0.0/33": not an address range; write one like 10.1.0.0/16 or fd00:1::/32
x.yaml document 1, NetworkPolicy shop/web: spec.ingress[0].ports[0].port: Invalid value: 99999: a port is a number from 1 to 65535 or a name
`},
		{"a peer that is empty only without its misspelt field is no mistake of its own, another is", `
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: web, namespace: shop}
spec:
  podSelector: {}
  ingress:
  - from: [{podSelektor: {}}, {labels: {a: b}}, {}]
`, `
x.yaml document 1, NetworkPolicy shop/web: spec.ingress[0].from[0].podSelektor: Forbidden: unknown field; did you mean "podSelector"?
x.yaml document 1, NetworkPolicy shop/web: spec.ingress[0].from[1].labels: Forbidden: unknown field; the fields here are ipBlock, namespaceSelector, podSelector
x.yaml document 1, NetworkPolicy shop/web: spec.ingress[0].from[2]: Required value: an empty peer matches nobody; give podSelector, namespaceSelector or ipBlock
`},
		{"the end of a range does not lack its start where that is misspelt or of the wrong type", `
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: web, namespace: shop}
spec:
  podSelector: {}
  ingress:
  - ports: [{prot: 80, endPort: 90}, {port: 1.5, endPort: 90}, {endPort: 90}]
`, `
x.yaml document 1, NetworkPolicy shop/web: spec.ingress[0].ports[0].prot: Forbidden: unknown field; did you mean "port"?
x.yaml document 1, NetworkPolicy shop/web: spec.ingress[0].ports[1].port: Invalid value: 1.5: want a whole number or a name
x.yaml document 1, NetworkPolicy shop/web: spec.ingress[0].ports[2].port: Required value: a range starts at a number; give it or remove endPort
`},
		{"a misspelt operator is not also an unsupported one", `
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: web, namespace: shop}
spec:
  podSelector: {matchExpressions: [{key: a, opertor: In, values: [b]}, {key: a, operator: Is}]}
`, `
x.yaml document 1, NetworkPolicy shop/web: spec.podSelector.matchExpressions[0].opertor: Forbidden: unknown field; did you mean "operator"?
x.yaml document 1, NetworkPolicy shop/web: spec.podSelector.matchExpressions[1].operator: Unsupported value: "Is": supported values: "In", "NotIn", "Exists", "DoesNotExist"
`},
		{"a member of the wrong type does not move the members behind it", `
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: web, namespace: shop}
spec:
  podSelector: {}
  egress:
  - to: [all, {ipBlock: {cidr: 10.0.0.0/8, except: [11, 11.0.0.0/16]}}]
`, `
x.yaml document 1, NetworkPolicy shop/web: spec.egress[0].to[0]: Invalid value: "all": want a map of fields
x.yaml document 1, NetworkPolicy shop/web: spec.egress[0].to[1].ipBlock.except[0]: Invalid value: 11: want a string; put the value in quotes
x.yaml document 1, NetworkPolicy shop/web: spec.egress[0].to[1].ipBlock.except[1]: Invalid value: "11.0.0.0/16": not a part of 10.0.0.0/8; an exception is smaller than its range and inside it
`},
		{"a cilium rule does not lack the selector or the ports that are misspelt", `
apiVersion: cilium.io/v2
kind: CiliumNetworkPolicy
metadata: {name: web, namespace: shop}
specs:
- endpointSelectr: {}
  ingress: [{toPorts: [{port: [{port: "80"}]}], fromEntities: [wurld]}]
- endpointSelector: {}
  ingres: [{}]
- ingress: all
`, `
x.yaml document 1, CiliumNetworkPolicy shop/web: specs[0].endpointSelectr: Forbidden: unknown field; did you mean "endpointSelector"?
x.yaml document 1, CiliumNetworkPolicy shop/web: specs[0].ingress[0].toPorts[0].port: Forbidden: unknown field; did you mean "ports"?
x.yaml document 1, CiliumNetworkPolicy shop/web: specs[1].ingres: Forbidden: unknown field; did you mean "ingress"?
x.yaml document 1, CiliumNetworkPolicy shop/web: specs[2].ingress: Invalid value: "all": want a list
x.yaml document 1, CiliumNetworkPolicy shop/web: specs[0].ingress[0].fromEntities[0]: Unsupported value: "wurld": supported values: "all", "cluster", "health", "host", "ingress", "init", "kube-apiserver", "none", "remote-node", "unmanaged", "world", "world-ipv4", "world-ipv6"
`},
		{"a cilium policy does not lack a spec that is misspelt or of the wrong type", `
apiVersion: cilium.io/v2
kind: CiliumNetworkPolicy
metadata: {name: a, namespace: shop}
spek: {endpointSelector: {}}
---
apiVersion: cilium.io/v2
kind: CiliumNetworkPolicy
metadata: {name: b, namespace: shop}
specs: {endpointSelector: {}}
`, `
x.yaml document 1, CiliumNetworkPolicy shop/a: spek: Forbidden: unknown field; did you mean "spec"?
x.yaml document 2, CiliumNetworkPolicy shop/b: specs: Invalid value: "{...}": want a list
`},
		{"a wrong protocol does not make two ports of a service equal, a right one does", `
apiVersion: v1
kind: Service
metadata: {name: web, namespace: shop}
spec:
  clusterIP: 10.96.0.300
  ports: [{name: a, port: 53, protocol: 17}, {name: b, port: 53}]
---
apiVersion: v1
kind: Service
metadata: {name: dns, namespace: shop}
spec:
  clusterIPs: 10.96.0.3
  sesionAffinity: None
  ports: [{name: a, port: 53}, {name: b, port: 53}]
`, `
x.yaml document 1, Service shop/web: spec.ports[0].protocol: Invalid value: 17: want a string; put the value in quotes
x.yaml document 1, Service shop/web: spec.clusterIP: Invalid value: "10.96.0.300": not an IP address; write one like 10.1.2.3 or fd00::1
x.yaml document 2, Service shop/dns: spec.clusterIPs: Invalid value: "10.96.0.3": want a list
x.yaml document 2, Service shop/dns: spec.sesionAffinity: Forbidden: unknown field; did you mean "sessionAffinity"?
x.yaml document 2, Service shop/dns: spec.ports[1].port: Duplicate value: 53
`},
		{"an object whose name is missing is checked, one whose namespace is in doubt is not judged", `
apiVersion: cilium.io/v2
kind: CiliumNetworkPolicy
metadata: {nam: web, namespace: shop}
spec: {endpointSelector: {}, ingress: [{fromEntities: [wurld]}]}
---
apiVersion: cilium.io/v2
kind: CiliumNetworkPolicy
metadata: {name: web, namespce: shop}
spec: {endpointSelector: {matchLabels: {"k8s:io.kubernetes.pod.namespace": shop}}, ingress: [{}]}
---
apiVersion: cilium.io/v2
kind: CiliumNetworkPolicy
metadata: shop/web
spec: {endpointSelector: {matchLabels: {"k8s:io.kubernetes.pod.namespace": shop}}, ingress: [{}]}
`, `
x.yaml document 1, CiliumNetworkPolicy shop/: metadata.nam: Forbidden: unknown field; did you mean "name"?
x.yaml document 1, CiliumNetworkPolicy shop/: spec.ingress[0].fromEntities[0]: Unsupported value: "wurld": supported values: "all", "cluster", "health", "host", "ingress", "init", "kube-apiserver", "none", "remote-node", "unmanaged", "world", "world-ipv4", "world-ipv6"
x.yaml document 2, CiliumNetworkPolicy default/web: metadata.namespce: Forbidden: unknown field; did you mean "namespace"?
x.yaml document 3, CiliumNetworkPolicy default/: metadata: Invalid value: "shop/web": want a map of fields
`},
		{"labels of the wrong type do not hide others that no selector could name", `
apiVersion: v1
kind: Namespace
metadata: {name: shop, labels: {version: 1.0, "bad key": x}}
`, `
x.yaml document 1, Namespace shop: metadata.labels[version]: Invalid value: 1: want a string; put the value in quotes
x.yaml document 1, Namespace shop: metadata.labels[bad key]: Invalid value: "x": label key "bad key": the name may hold letters, digits, '-', '_' and '.', and must begin and end with a letter or digit
`},
	}
	for _, test := range tests {
		t.Run(test.sentence, func(t *testing.T) {
			if diff := cmp.Diff(strings.TrimSpace(test.want), mistakesOf(test.manifest)); diff != "" {
				t.Errorf("mistakes (-want +got):\n%s", diff)
			}
		})
	}
}
