package kube

import (
	"errors"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// mistakesOf decodes and translates everything, as `tendril apply` does, and returns the lines that a user would see.
func mistakesOf(manifest string) string {
	objects, err := Decode("x.yaml", []byte(manifest))
	lines := []string{}
	if err != nil {
		lines = append(lines, err.Error())
	}
	if _, err := Records(objects, "lab"); err != nil {
		lines = append(lines, err.Error())
	}
	return strings.Join(lines, "\n")
}

func TestMistakesNameFileObjectFieldAndRemedy(t *testing.T) {
	tests := []struct{ sentence, manifest, want string }{
		{"two mistakes in one object are both found, with the nearest field name", `
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: web, namespace: shop}
spec:
  podSelectr: {}
  ingress:
  - from: [{podSelector: {matchLabel: {a: b}}}]
`, `
x.yaml document 1, NetworkPolicy shop/web: spec.ingress[0].from[0].podSelector.matchLabel: Forbidden: unknown field; did you mean "matchLabels"?
x.yaml document 1, NetworkPolicy shop/web: spec.podSelectr: Forbidden: unknown field; did you mean "podSelector"?
`},
		{"mistakes in several documents are all found", `
apiVersion: v1
kind: Namespace
metadata: {name: Bad_Name}
---
kind: Namespace
metadata: {name: x}
---
apiVersion: v1
kind: Secret
metadata: {name: x}
---
apiVersion: v1
kind: NetworkPolicy
metadata: {name: x}
`, `
x.yaml document 1, Namespace Bad_Name: metadata.name: Invalid value: "Bad_Name": a lowercase RFC 1123 subdomain must consist of lower case alphanumeric characters, '-' or '.', and must start and end with an alphanumeric character (e.g. 'example.com', regex used for validation is '[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*')
x.yaml document 2, Namespace x: apiVersion: Required value: say which kind of object this is; known are Namespace, Pod, Service, EndpointSlice, NetworkPolicy, CiliumNetworkPolicy, CiliumClusterwideNetworkPolicy
x.yaml document 3, Secret x: kind: Invalid value: "Secret": not a kind that tendril reads; known are Namespace, Pod, Service, EndpointSlice, NetworkPolicy, CiliumNetworkPolicy, CiliumClusterwideNetworkPolicy
x.yaml document 4, NetworkPolicy x: apiVersion: Invalid value: "v1": kind NetworkPolicy is read as networking.k8s.io/v1
`},
		{"values of the wrong type", `
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: web, namespace: shop, labels: {version: 1.0, on: yes}}
spec:
  podSelector: all
  ingress: {from: []}
  egress: [{ports: [{port: 80, endPort: high}, {port: 1.5}]}]
`, `
x.yaml document 1, NetworkPolicy shop/web: metadata.labels[true]: Invalid value: true: want a string; put the value in quotes
x.yaml document 1, NetworkPolicy shop/web: metadata.labels[version]: Invalid value: 1: want a string; put the value in quotes
x.yaml document 1, NetworkPolicy shop/web: spec.egress[0].ports[0].endPort: Invalid value: "high": want a whole number
x.yaml document 1, NetworkPolicy shop/web: spec.egress[0].ports[1].port: Invalid value: 1.5: want a whole number or a name
x.yaml document 1, NetworkPolicy shop/web: spec.ingress: Invalid value: "{...}": want a list
x.yaml document 1, NetworkPolicy shop/web: spec.podSelector: Invalid value: "all": want a map of fields
`},
		{"broken YAML", `apiVersion: v1
kind: [
`, `
x.yaml document 1: not valid YAML: line 2: did not find expected node content (lines are counted from the start of the document)
`},
		{"a key given twice", `apiVersion: v1
kind: Namespace
metadata: {name: a}
kind: Pod
`, `
x.yaml document 1: not valid YAML: line 4: key "kind" already set in map (lines are counted from the start of the document)
`},
		{"two values in a document", `{"apiVersion": "v1"}
{"apiVersion": "v1"}`, `
x.yaml document 1: more than one value in a document; put a line of --- between objects
`},
		{"a scalar", `hello`, `
x.yaml document 1: not an object; a document starts with apiVersion, kind and metadata
`},
		{"a cluster-wide kind in a namespace", `
apiVersion: cilium.io/v2
kind: CiliumClusterwideNetworkPolicy
metadata: {name: x, namespace: shop}
spec: {endpointSelector: {}, ingress: [{}]}
`, `
x.yaml document 1, CiliumClusterwideNetworkPolicy shop/x: metadata.namespace: Forbidden: a CiliumClusterwideNetworkPolicy belongs to no namespace; remove the field
`},
		{"an object without a name, in a namespace that is none", `
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {namespace: "a/b"}
spec: {podSelector: {}}
`, `
x.yaml document 1, NetworkPolicy a/b/: metadata.name: Required value: give the object a name
x.yaml document 1, NetworkPolicy a/b/: metadata.namespace: Invalid value: "a/b": a lowercase RFC 1123 label must consist of lower case alphanumeric characters or '-', and must start and end with an alphanumeric character (e.g. 'my-name',  or '123-abc', regex used for validation is '[a-z0-9]([-a-z0-9]*[a-z0-9])?')
`},
		{"the same object twice", `
apiVersion: v1
kind: Namespace
metadata: {name: a}
---
apiVersion: v1
kind: Namespace
metadata: {name: a}
`, `
x.yaml document 2, Namespace a: defined twice, first in x.yaml document 1; remove one
`},
		{"impossible NetworkPolicy peers", `
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: web, namespace: shop}
spec:
  podSelector: {matchLabels: {"bad key": x}}
  policyTypes: [Ingres]
  ingress:
  - from:
    - {}
    - {podSelector: {}, ipBlock: {cidr: 10.0.0.0/8}}
    - {ipBlock: {cidr: 10.0.0.0/33}}
    - {ipBlock: {cidr: 10.0.0.0/8, except: [10.0.0.0/8, 11.0.0.0/16, x]}}
    - {ipBlock: {cidr: "::ffff:10.0.0.0/104"}}
    - {podSelector: {matchExpressions: [{key: a, operator: Is, values: [b]}, {key: a, operator: In}, {key: a, operator: Exists, values: [b]}, {key: a, operator: In, values: ["b c"]}]}}
`, `
x.yaml document 1, NetworkPolicy shop/web: spec.podSelector.matchLabels[bad key]: Invalid value: "bad key": label key "bad key": the name may hold letters, digits, '-', '_' and '.', and must begin and end with a letter or digit
x.yaml document 1, NetworkPolicy shop/web: spec.policyTypes[0]: Unsupported value: "Ingres": supported values: "Ingress", "Egress"
x.yaml document 1, NetworkPolicy shop/web: spec.ingress[0].from[0]: Required value: an empty peer matches nobody; give podSelector, namespaceSelector or ipBlock
x.yaml document 1, NetworkPolicy shop/web: spec.ingress[0].from[1]: Forbidden: ipBlock stands alone; write the selectors as a peer of their own
x.yaml document 1, NetworkPolicy shop/web: spec.ingress[0].from[2].ipBlock.cidr: Invalid value: "10.0.0.0/33": not an address range; write one like 10.1.0.0/16 or fd00:1::/32
x.yaml document 1, NetworkPolicy shop/web: spec.ingress[0].from[3].ipBlock.except[0]: Invalid value: "10.0.0.0/8": not a part of 10.0.0.0/8; an exception is smaller than its range and inside it
x.yaml document 1, NetworkPolicy shop/web: spec.ingress[0].from[3].ipBlock.except[1]: Invalid value: "11.0.0.0/16": not a part of 10.0.0.0/8; an exception is smaller than its range and inside it
x.yaml document 1, NetworkPolicy shop/web: spec.ingress[0].from[3].ipBlock.except[2]: Invalid value: "x": not an address range; write one like 10.1.0.0/16 or fd00:1::/32
x.yaml document 1, NetworkPolicy shop/web: spec.ingress[0].from[4].ipBlock.cidr: Invalid value: "::ffff:10.0.0.0/104": an IPv4 range written as IPv6; write it like 10.1.0.0/16
x.yaml document 1, NetworkPolicy shop/web: spec.ingress[0].from[5].podSelector.matchExpressions[0].operator: Unsupported value: "Is": supported values: "In", "NotIn", "Exists", "DoesNotExist"
x.yaml document 1, NetworkPolicy shop/web: spec.ingress[0].from[5].podSelector.matchExpressions[1].values: Required value: In compares with at least one value
x.yaml document 1, NetworkPolicy shop/web: spec.ingress[0].from[5].podSelector.matchExpressions[2].values: Forbidden: Exists compares with no value; remove them
x.yaml document 1, NetworkPolicy shop/web: spec.ingress[0].from[5].podSelector.matchExpressions[3].values: Invalid value: "b c": label a: the value "b c" may hold letters, digits, '-', '_' and '.', and must begin and end with a letter or digit
`},
		{"impossible NetworkPolicy ports", `
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: web, namespace: shop}
spec:
  podSelector: {}
  ingress:
  - ports:
    - {port: 0}
    - {port: 70000}
    - {port: 80, endPort: 79}
    - {port: 80, endPort: 70000}
    - {port: http, endPort: 90}
    - {endPort: 90}
    - {port: 80, endPort: 0}
    - {port: UPPER}
    - {port: 80, protocol: ICMP}
`, `
x.yaml document 1, NetworkPolicy shop/web: spec.ingress[0].ports[0].port: Invalid value: 0: a port is a number from 1 to 65535 or a name
x.yaml document 1, NetworkPolicy shop/web: spec.ingress[0].ports[1].port: Invalid value: 70000: a port is a number from 1 to 65535 or a name
x.yaml document 1, NetworkPolicy shop/web: spec.ingress[0].ports[2].endPort: Invalid value: 79: the last port of a range lies between port (80) and 65535
x.yaml document 1, NetworkPolicy shop/web: spec.ingress[0].ports[3].endPort: Invalid value: 70000: the last port of a range lies between port (80) and 65535
x.yaml document 1, NetworkPolicy shop/web: spec.ingress[0].ports[4].endPort: Forbidden: a range starts at a number; set port to it or remove endPort
x.yaml document 1, NetworkPolicy shop/web: spec.ingress[0].ports[5].port: Required value: a range starts at a number; give it or remove endPort
x.yaml document 1, NetworkPolicy shop/web: spec.ingress[0].ports[6].endPort: Invalid value: 0: a port is a number from 1 to 65535
x.yaml document 1, NetworkPolicy shop/web: spec.ingress[0].ports[7].port: Invalid value: "UPPER": must contain only alpha-numeric characters (a-z, 0-9), and hyphens (-)
x.yaml document 1, NetworkPolicy shop/web: spec.ingress[0].ports[7].port: Invalid value: "UPPER": must contain at least one letter (a-z)
x.yaml document 1, NetworkPolicy shop/web: spec.ingress[0].ports[8].protocol: Unsupported value: "ICMP": supported values: "TCP", "UDP", "SCTP"
`},
		{"what cannot be enforced yet is refused, never left out", `
apiVersion: cilium.io/v2
kind: CiliumNetworkPolicy
metadata: {name: web, namespace: shop}
specs:
- nodeSelector: {}
  ingress: [{}]
- endpointSelector: {}
  ingress:
  - fromNodes: [{}]
  - fromGroups: [{}]
  - fromRequires: [{matchLabels: {a: b}}]
  - authentication: {mode: required}
  - toPorts: [{ports: [{port: "80", protocol: TCP}], rules: {http: [{method: GET}]}}]
  - toPorts: [{ports: [{port: "443", protocol: TCP}], serverNames: [a.example], listener: {name: x}, terminatingTLS: {}, originatingTLS: {}}]
  - fromCIDRSet: [{cidrGroupRef: office}, {cidrGroupSelector: {}}]
  - fromEndpoints: [{matchLabels: {"container:app": x}}]
  egress:
  - toFQDNs: [{matchName: example.com}]
  - toServices: [{k8sService: {serviceName: a}}]
  - toNodes: [{}]
  - toGroups: [{}]
  - toRequires: [{}]
`, `
x.yaml document 1, CiliumNetworkPolicy shop/web: specs[0].nodeSelector: Forbidden: policies for nodes are not supported yet; remove the field, or the rule that has it
x.yaml document 1, CiliumNetworkPolicy shop/web: specs[1].ingress[0].fromNodes: Forbidden: not supported yet; remove the field, or the rule that has it
x.yaml document 1, CiliumNetworkPolicy shop/web: specs[1].ingress[1].fromGroups: Forbidden: not supported yet; remove the field, or the rule that has it
x.yaml document 1, CiliumNetworkPolicy shop/web: specs[1].ingress[2].fromRequires: Forbidden: not supported yet; remove the field, or the rule that has it
x.yaml document 1, CiliumNetworkPolicy shop/web: specs[1].ingress[3].authentication.mode: Forbidden: not supported yet; remove the field, or the rule that has it
x.yaml document 1, CiliumNetworkPolicy shop/web: specs[1].ingress[4].toPorts[0].rules: Forbidden: not supported yet; remove the field, or the rule that has it
x.yaml document 1, CiliumNetworkPolicy shop/web: specs[1].ingress[5].toPorts[0].terminatingTLS: Forbidden: not supported yet; remove the field, or the rule that has it
x.yaml document 1, CiliumNetworkPolicy shop/web: specs[1].ingress[5].toPorts[0].originatingTLS: Forbidden: not supported yet; remove the field, or the rule that has it
x.yaml document 1, CiliumNetworkPolicy shop/web: specs[1].ingress[5].toPorts[0].serverNames: Forbidden: not supported yet; remove the field, or the rule that has it
x.yaml document 1, CiliumNetworkPolicy shop/web: specs[1].ingress[5].toPorts[0].listener: Forbidden: not supported yet; remove the field, or the rule that has it
x.yaml document 1, CiliumNetworkPolicy shop/web: specs[1].ingress[6].fromCIDRSet[0].cidrGroupRef: Forbidden: not supported yet; remove the field, or the rule that has it
x.yaml document 1, CiliumNetworkPolicy shop/web: specs[1].ingress[6].fromCIDRSet[1].cidrGroupSelector: Forbidden: not supported yet; remove the field, or the rule that has it
x.yaml document 1, CiliumNetworkPolicy shop/web: specs[1].ingress[7].fromEndpoints[0].matchLabels[container:app]: Invalid value: "container:app": labels of source "container" are not supported yet; remove the field, or the rule that has it; known sources are k8s, any and reserved
x.yaml document 1, CiliumNetworkPolicy shop/web: specs[1].egress[0].toFQDNs: Forbidden: not supported yet; remove the field, or the rule that has it
x.yaml document 1, CiliumNetworkPolicy shop/web: specs[1].egress[1].toServices: Forbidden: not supported yet; remove the field, or the rule that has it
x.yaml document 1, CiliumNetworkPolicy shop/web: specs[1].egress[2].toNodes: Forbidden: not supported yet; remove the field, or the rule that has it
x.yaml document 1, CiliumNetworkPolicy shop/web: specs[1].egress[3].toGroups: Forbidden: not supported yet; remove the field, or the rule that has it
x.yaml document 1, CiliumNetworkPolicy shop/web: specs[1].egress[4].toRequires: Forbidden: not supported yet; remove the field, or the rule that has it
`},
		{"impossible cilium rules", `
apiVersion: cilium.io/v2
kind: CiliumNetworkPolicy
metadata: {name: web, namespace: shop}
specs:
- {}
- endpointSelector: {matchLabels: {"k8s:io.kubernetes.pod.namespace": other}}
  ingress:
  - fromEndpoints: [{}]
    fromCIDR: [10.0.0.0/8]
  - fromEntities: [wurld]
  - fromCIDR: [10.0.0]
  - fromEndpoints: [{matchLabels: {"reserved:moon": ""}}, {matchLabels: {"reserved:host": "yes"}}]
  - icmps: [{fields: [{type: 300}, {type: Ping}, {family: IPv5, type: 1}, {}]}, {}]
  - icmps: [{fields: [{type: 8}]}]
    toPorts: [{ports: [{port: "80"}]}]
  - toPorts:
    - {}
    - ports:
      - {protocol: TCP}
      - {port: "99999"}
      - {port: "-1"}
      - {port: http, endPort: 90}
      - {port: "90", endPort: 80}
      - {port: "80", protocol: ICMP}
      - {port: "80", protocol: QUIC}
`, `
x.yaml document 1, CiliumNetworkPolicy shop/web: specs[0].endpointSelector: Required value: say which endpoints the rule is for; {} selects all
x.yaml document 1, CiliumNetworkPolicy shop/web: specs[0]: Required value: a rule without ingress, ingressDeny, egress and egressDeny does nothing; to isolate the endpoints write ingress: [{}]
x.yaml document 1, CiliumNetworkPolicy shop/web: specs[1].endpointSelector: Invalid value: "other": the policy is of namespace shop and selects there only; move it or use a CiliumClusterwideNetworkPolicy
x.yaml document 1, CiliumNetworkPolicy shop/web: specs[1].ingress[0]: Forbidden: fromEndpoints and fromCIDR cannot be combined in one rule; write a rule for each
x.yaml document 1, CiliumNetworkPolicy shop/web: specs[1].ingress[1].fromEntities[0]: Unsupported value: "wurld": supported values: "all", "cluster", "health", "host", "ingress", "init", "kube-apiserver", "none", "remote-node", "unmanaged", "world", "world-ipv4", "world-ipv6"
x.yaml document 1, CiliumNetworkPolicy shop/web: specs[1].ingress[2].fromCIDR[0]: Invalid value: "10.0.0": not an address range; write one like 10.1.0.0/16 or fd00:1::/32
x.yaml document 1, CiliumNetworkPolicy shop/web: specs[1].ingress[3].fromEndpoints[0].matchLabels[reserved:moon]: Invalid value: "reserved:moon": no such reserved label; known are host, world, remote-node, kube-apiserver, health, init, unmanaged and ingress
x.yaml document 1, CiliumNetworkPolicy shop/web: specs[1].ingress[3].fromEndpoints[1].matchLabels[reserved:host]: Invalid value: "reserved:host": reserved labels have no value; write ""
x.yaml document 1, CiliumNetworkPolicy shop/web: specs[1].ingress[4].icmps[0].fields[0].type: Invalid value: 300: an ICMP type is a number from 0 to 255
x.yaml document 1, CiliumNetworkPolicy shop/web: specs[1].ingress[4].icmps[0].fields[1].type: Unsupported value: "Ping": supported values: "DestinationUnreachable", "Echo", "EchoReply", "EchoRequest", "ExtendedEchoReply", "ExtendedEchoRequest", "ParameterProblem", "Photuris", "Redirect", "RouterAdvertisement", "RouterSelection", "TimeExceeded", "Timestamp", "TimestampReply"
x.yaml document 1, CiliumNetworkPolicy shop/web: specs[1].ingress[4].icmps[0].fields[2].family: Unsupported value: "IPv5": supported values: "IPv4", "IPv6"
x.yaml document 1, CiliumNetworkPolicy shop/web: specs[1].ingress[4].icmps[0].fields[3].type: Required value: give the ICMP type, a number or a name
x.yaml document 1, CiliumNetworkPolicy shop/web: specs[1].ingress[4].icmps[1].fields: Required value: list at least one ICMP type
x.yaml document 1, CiliumNetworkPolicy shop/web: specs[1].ingress[5].icmps: Forbidden: toPorts and icmps cannot be combined in one rule; write a rule for each
x.yaml document 1, CiliumNetworkPolicy shop/web: specs[1].ingress[6].toPorts[0].ports: Required value: list at least one port; "0" is any port
x.yaml document 1, CiliumNetworkPolicy shop/web: specs[1].ingress[6].toPorts[1].ports[0].port: Required value: give a number or a name; "0" is any port
x.yaml document 1, CiliumNetworkPolicy shop/web: specs[1].ingress[6].toPorts[1].ports[1].port: Invalid value: 99999: a port is a number from 1 to 65535 or a name
x.yaml document 1, CiliumNetworkPolicy shop/web: specs[1].ingress[6].toPorts[1].ports[2].port: Invalid value: -1: a port is a number from 1 to 65535 or a name
x.yaml document 1, CiliumNetworkPolicy shop/web: specs[1].ingress[6].toPorts[1].ports[3].endPort: Forbidden: a range starts at a number; set port to it or remove endPort
x.yaml document 1, CiliumNetworkPolicy shop/web: specs[1].ingress[6].toPorts[1].ports[4].endPort: Invalid value: 80: the last port of a range lies between port (90) and 65535
x.yaml document 1, CiliumNetworkPolicy shop/web: specs[1].ingress[6].toPorts[1].ports[5].port: Forbidden: protocol ICMP has no ports; write "0" or use icmps
x.yaml document 1, CiliumNetworkPolicy shop/web: specs[1].ingress[6].toPorts[1].ports[6].protocol: Unsupported value: "QUIC": supported values: "TCP", "UDP", "SCTP", "ICMP", "ICMPv6", "VRRP", "IGMP", "ANY"
`},
		{"a cilium policy of nothing", `
apiVersion: cilium.io/v2
kind: CiliumNetworkPolicy
metadata: {name: web, namespace: shop}
`, `
x.yaml document 1, CiliumNetworkPolicy shop/web: spec: Required value: give spec or specs
`},
		{"services that an API server would have completed", `
apiVersion: v1
kind: Service
metadata: {name: web, namespace: shop, annotations: {service.tendril.io/algorithm: best}}
spec:
  type: NodePort
  sessionAffinity: Cookie
  externalIPs: [10.0.0.256]
  loadBalancerSourceRanges: [10.0.0.0]
  ports: [{port: 80}, {port: 80, name: b}, {port: 0, protocol: ICMP, name: b, nodePort: 70000}]
`, `
x.yaml document 1, Service shop/web: spec.clusterIP: Required value: give an address of the service range, or None; there is no API server here to choose one
x.yaml document 1, Service shop/web: spec.ports[0].name: Required value: ports have names where there is more than one
x.yaml document 1, Service shop/web: spec.ports[0].nodePort: Required value: give a port of the node, e.g. 30080; there is no API server here to choose one
x.yaml document 1, Service shop/web: spec.ports[1].nodePort: Required value: give a port of the node, e.g. 30080; there is no API server here to choose one
x.yaml document 1, Service shop/web: spec.ports[1].port: Duplicate value: 80
x.yaml document 1, Service shop/web: spec.ports[2].protocol: Unsupported value: "ICMP": supported values: "TCP", "UDP", "SCTP"
x.yaml document 1, Service shop/web: spec.ports[2].port: Invalid value: 0: a port is a number from 1 to 65535
x.yaml document 1, Service shop/web: spec.ports[2].nodePort: Invalid value: 70000: a port is a number from 1 to 65535
x.yaml document 1, Service shop/web: spec.ports[2].name: Duplicate value: "b"
x.yaml document 1, Service shop/web: spec.sessionAffinity: Unsupported value: "Cookie": supported values: "None", "ClientIP"
x.yaml document 1, Service shop/web: spec.externalIPs[0]: Invalid value: "10.0.0.256": not an IP address; write one like 10.1.2.3 or fd00::1
x.yaml document 1, Service shop/web: spec.loadBalancerSourceRanges[0]: Invalid value: "10.0.0.0": not an address range; write one like 10.1.0.0/16 or fd00:1::/32
x.yaml document 1, Service shop/web: metadata.annotations[service.tendril.io/algorithm]: Unsupported value: "best": supported values: "random", "maglev"
`},
		{"services whose addresses disagree", `
apiVersion: v1
kind: Service
metadata: {name: a}
spec: {type: Odd, clusterIP: 10.0.0.1, clusterIPs: [10.0.0.2]}
---
apiVersion: v1
kind: Service
metadata: {name: b}
spec: {clusterIPs: [10.0.0.1, 10.0.0.2], ports: [{port: 80}], sessionAffinity: ClientIP, sessionAffinityConfig: {clientIP: {timeoutSeconds: 0}}}
`, `
x.yaml document 1, Service default/a: spec.type: Unsupported value: "Odd": supported values: "ClusterIP", "NodePort", "LoadBalancer", "ExternalName"
x.yaml document 1, Service default/a: spec.clusterIP: Invalid value: "10.0.0.1": differs from the first of clusterIPs; remove one of the two fields
x.yaml document 1, Service default/a: spec.ports: Required value: give at least one port
x.yaml document 2, Service default/b: spec.clusterIPs: Invalid value: ["10.0.0.1","10.0.0.2"]: at most one address a family
x.yaml document 2, Service default/b: spec.sessionAffinityConfig.clientIP.timeoutSeconds: Invalid value: 0: a time from 1 to 86400 seconds
`},
		{"traffic policies that are misspelt do not mean the default", `
apiVersion: v1
kind: Service
metadata: {name: a}
spec:
  clusterIP: 10.0.0.1
  ports: [{port: 80}]
  internalTrafficPolicy: local
  externalTrafficPolicy: LOCAL
  trafficDistribution: PreferNear
`, `
x.yaml document 1, Service default/a: spec.internalTrafficPolicy: Unsupported value: "local": supported values: "Cluster", "Local"
x.yaml document 1, Service default/a: spec.externalTrafficPolicy: Unsupported value: "LOCAL": supported values: "Cluster", "Local"
x.yaml document 1, Service default/a: spec.trafficDistribution: Unsupported value: "PreferNear": supported values: "PreferClose", "PreferSameZone", "PreferSameNode"
`},
		{"endpoint slices", `
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {name: a}
addressType: FQDN
endpoints: []
---
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {name: b, labels: {kubernetes.io/service-name: web}}
addressType: IPv4
ports: [{}, {port: 0}, {port: 80, protocol: X}]
endpoints: [{addresses: []}, {addresses: ["fd00::1"]}, {addresses: [x]}]
`, `
x.yaml document 1, EndpointSlice default/a: metadata.labels[kubernetes.io/service-name]: Required value: name the service that the slice is of
x.yaml document 1, EndpointSlice default/a: addressType: Unsupported value: "FQDN": supported values: "IPv4", "IPv6"
x.yaml document 2, EndpointSlice default/b: ports[0].port: Required value: give the number of the backends' port
x.yaml document 2, EndpointSlice default/b: ports[1].port: Invalid value: 0: a port is a number from 1 to 65535
x.yaml document 2, EndpointSlice default/b: ports[2].protocol: Unsupported value: "X": supported values: "TCP", "UDP", "SCTP"
x.yaml document 2, EndpointSlice default/b: endpoints[0].addresses: Required value: give the backend's address
x.yaml document 2, EndpointSlice default/b: endpoints[1].addresses[0]: Invalid value: "fd00::1": not of addressType IPv4; each slice holds one family
x.yaml document 2, EndpointSlice default/b: endpoints[2].addresses[0]: Invalid value: "x": not an IP address; write one like 10.1.2.3 or fd00::1
`},
		{"pods", `
apiVersion: v1
kind: Pod
metadata: {name: a, labels: {a: "b c"}}
spec: {containers: [{name: x, ports: [{containerPort: 0}, {containerPort: 80, protocol: X}]}]}
`, `
x.yaml document 1, Pod default/a: metadata.labels[a]: Invalid value: "b c": label a: the value "b c" may hold letters, digits, '-', '_' and '.', and must begin and end with a letter or digit
x.yaml document 1, Pod default/a: spec.nodeName: Required value: name the node that the pod is on; there is no scheduler here to choose one
x.yaml document 1, Pod default/a: spec.containers[0].ports[0].containerPort: Invalid value: 0: a port is a number from 1 to 65535
x.yaml document 1, Pod default/a: spec.containers[0].ports[1].protocol: Unsupported value: "X": supported values: "TCP", "UDP", "SCTP"
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

func TestMistakesCanBeTakenApart(t *testing.T) {
	_, err := Decode("x.yaml", []byte("a: b"))
	var mistake *Mistake
	if !errors.As(err, &mistake) {
		t.Fatalf("errors.As found no Mistake in %v", err)
	}
	if mistake.File != "x.yaml" || mistake.Document != 1 {
		t.Errorf("got %s document %d, want x.yaml document 1", mistake.File, mistake.Document)
	}
}
