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
x.yaml document 2, Namespace x: apiVersion: Required value: say which kind of object this is; known are Namespace, Node, Pod, LoadBalancerPool, EgressGateway, Service, EndpointSlice, CiliumCIDRGroup, NetworkPolicy, CiliumNetworkPolicy, CiliumClusterwideNetworkPolicy, ClusterNetworkPolicy, AdminNetworkPolicy, BaselineAdminNetworkPolicy
x.yaml document 3, Secret x: kind: Invalid value: "Secret": not a kind that tendril reads; known are Namespace, Node, Pod, LoadBalancerPool, EgressGateway, Service, EndpointSlice, CiliumCIDRGroup, NetworkPolicy, CiliumNetworkPolicy, CiliumClusterwideNetworkPolicy, ClusterNetworkPolicy, AdminNetworkPolicy, BaselineAdminNetworkPolicy
x.yaml document 4, NetworkPolicy x: apiVersion: Invalid value: "v1": kind NetworkPolicy is read as networking.k8s.io/v1
`},
		{"a kind that only the operator writes", `
apiVersion: tendril.io/v1alpha1
kind: Identity
metadata: {name: 23d8331f4da864c8dabd958cc4ea9607, namespace: shop}
spec: {cluster: default, serviceAccount: default}
`, `
x.yaml document 1, Identity shop/23d8331f4da864c8dabd958cc4ea9607: kind: Forbidden: the operator writes an Identity for each identity that pods have; remove it, and give pods that are to have it these labels and this service account
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
		{"what cannot be honoured is refused, never left out", `
apiVersion: cilium.io/v2
kind: CiliumNetworkPolicy
metadata: {name: web, namespace: shop}
specs:
- nodeSelector: {matchLabels: {io.kubernetes.pod.namespace: shop}}
  endpointSelector: {}
  ingress: [{}]
- endpointSelector: {}
  ingress:
  - fromGroups: [{}]
  - authentication: {mode: required}
  - toPorts: [{ports: [{port: "443", protocol: TCP}], listener: {name: x}, terminatingTLS: {}, originatingTLS: {}}]
  - fromEndpoints: [{matchLabels: {"container:app": x}}]
  ingressDeny:
  - fromRequires: [{matchLabels: {a: b}}]
  - toPorts: [{ports: [{port: "80", protocol: TCP}], rules: {http: [{}]}}]
  egress:
  - toGroups: [{aws: {}}]
  egressDeny:
  - toFQDNs: [{matchName: a.b}]
`, `
x.yaml document 1, CiliumNetworkPolicy shop/web: specs[0].nodeSelector.matchLabels[io.kubernetes.pod.namespace]: Invalid value: "io.kubernetes.pod.namespace": nodes are selected by their own labels, and have no such one
x.yaml document 1, CiliumNetworkPolicy shop/web: specs[0].nodeSelector: Forbidden: nodeSelector and endpointSelector cannot be combined; write a rule for each
x.yaml document 1, CiliumNetworkPolicy shop/web: specs[0].nodeSelector: Forbidden: nodes belong to no namespace; use a CiliumClusterwideNetworkPolicy
x.yaml document 1, CiliumNetworkPolicy shop/web: specs[1].ingressDeny[0].fromRequires: Forbidden: a deny rule has no requirements; write the labels into its fromEndpoints
x.yaml document 1, CiliumNetworkPolicy shop/web: specs[1].ingressDeny[1].toPorts[0]: Forbidden: a deny rule ends at ports; to deny requests, allow the others
x.yaml document 1, CiliumNetworkPolicy shop/web: specs[1].ingress[0].fromGroups[0]: Forbidden: no cloud provider is asked for its groups; list the ranges in a CiliumCIDRGroup and name it with cidrGroupRef
x.yaml document 1, CiliumNetworkPolicy shop/web: specs[1].ingress[1].authentication.mode: Forbidden: not supported yet; remove the field, or the rule that has it
x.yaml document 1, CiliumNetworkPolicy shop/web: specs[1].ingress[2].toPorts[0].terminatingTLS: Forbidden: TLS is not terminated here; remove the field, or the rule that has it
x.yaml document 1, CiliumNetworkPolicy shop/web: specs[1].ingress[2].toPorts[0].originatingTLS: Forbidden: TLS is not originated here; remove the field, or the rule that has it
x.yaml document 1, CiliumNetworkPolicy shop/web: specs[1].ingress[2].toPorts[0].listener: Forbidden: there are no listeners of Envoy here; remove the field, or the rule that has it
x.yaml document 1, CiliumNetworkPolicy shop/web: specs[1].ingress[3].fromEndpoints[0].matchLabels[container:app]: Invalid value: "container:app": labels of source "container" are not supported yet; remove the field, or the rule that has it; known sources are k8s, any and reserved
x.yaml document 1, CiliumNetworkPolicy shop/web: specs[1].egressDeny[0].toFQDNs: Forbidden: names are for allow rules; to deny a name, allow the others
x.yaml document 1, CiliumNetworkPolicy shop/web: specs[1].egress[0].toGroups[0]: Forbidden: no cloud provider is asked for its groups; list the ranges in a CiliumCIDRGroup and name it with cidrGroupRef
x.yaml document 1, CiliumNetworkPolicy shop/web: specs[1].ingressDeny[1].toPorts[0]: Forbidden: names in DNS and rules about requests need a proxy, which this version does not have; remove the rule
x.yaml document 1, CiliumNetworkPolicy shop/web: specs[1].egressDeny[0]: Forbidden: names in DNS and rules about requests need a proxy, which this version does not have; remove the rule
`},
		{"impossible services, groups, nodes and requirements", `
apiVersion: cilium.io/v2
kind: CiliumNetworkPolicy
metadata: {name: web, namespace: shop}
spec:
  endpointSelector: {}
  ingress:
  - fromCIDRSet: [{}, {cidr: 10.0.0.0/8, cidrGroupRef: a}, {cidrGroupRef: A_b, except: [x]}, {cidrGroupSelector: {matchLabels: {"reserved:host": ""}}}]
  - fromNodes: [{matchLabels: {"reserved:host": ""}}]
  - fromRequires: [{matchLabels: {"a b": c}}]
  egress:
  - toServices: [{}, {k8sService: {serviceName: a}, k8sServiceSelector: {selector: {}}}, {k8sService: {namespace: A}}, {k8sServiceSelector: {selector: {matchLabels: {"a b": c}}}}]
`, `
x.yaml document 1, CiliumNetworkPolicy shop/web: spec.ingress[0].fromCIDRSet[0]: Required value: give cidr, cidrGroupRef or cidrGroupSelector
x.yaml document 1, CiliumNetworkPolicy shop/web: spec.ingress[0].fromCIDRSet[1]: Forbidden: give only one of cidr, cidrGroupRef and cidrGroupSelector; write an entry for each
x.yaml document 1, CiliumNetworkPolicy shop/web: spec.ingress[0].fromCIDRSet[2].cidrGroupRef: Invalid value: "A_b": a lowercase RFC 1123 subdomain must consist of lower case alphanumeric characters, '-' or '.', and must start and end with an alphanumeric character (e.g. 'example.com', regex used for validation is '[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*')
x.yaml document 1, CiliumNetworkPolicy shop/web: spec.ingress[0].fromCIDRSet[2].except[0]: Invalid value: "x": not an address range; write one like 10.1.0.0/16 or fd00:1::/32
x.yaml document 1, CiliumNetworkPolicy shop/web: spec.ingress[0].fromCIDRSet[3].cidrGroupSelector.matchLabels[reserved:host]: Invalid value: "reserved:host": the object is selected by its own labels, and has no such one
x.yaml document 1, CiliumNetworkPolicy shop/web: spec.ingress[1].fromNodes[0].matchLabels[reserved:host]: Invalid value: "reserved:host": nodes are selected by their own labels, and have no such one
x.yaml document 1, CiliumNetworkPolicy shop/web: spec.ingress[2].fromRequires[0].matchLabels[a b]: Invalid value: "a b": label key "a b": the name may hold letters, digits, '-', '_' and '.', and must begin and end with a letter or digit
x.yaml document 1, CiliumNetworkPolicy shop/web: spec.egress[0].toServices[0]: Required value: give k8sService or k8sServiceSelector
x.yaml document 1, CiliumNetworkPolicy shop/web: spec.egress[0].toServices[1]: Forbidden: give only one of k8sService and k8sServiceSelector; write an entry for each
x.yaml document 1, CiliumNetworkPolicy shop/web: spec.egress[0].toServices[2].k8sService.serviceName: Required value: name the service
x.yaml document 1, CiliumNetworkPolicy shop/web: spec.egress[0].toServices[2].k8sService.namespace: Invalid value: "A": a lowercase RFC 1123 subdomain must consist of lower case alphanumeric characters, '-' or '.', and must start and end with an alphanumeric character (e.g. 'example.com', regex used for validation is '[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*')
x.yaml document 1, CiliumNetworkPolicy shop/web: spec.egress[0].toServices[3].k8sServiceSelector.selector.matchLabels[a b]: Invalid value: "a b": label key "a b": the name may hold letters, digits, '-', '_' and '.', and must begin and end with a letter or digit
`},
		{"impossible requests are found beside what refuses them all", `
apiVersion: cilium.io/v2
kind: CiliumNetworkPolicy
metadata: {name: web, namespace: shop}
spec:
  endpointSelector: {}
  ingress:
  - toPorts:
    - {ports: [{port: "80", protocol: TCP}], rules: {http: [{method: "(", host: "a)|(b", path: "[", headers: ["", "a b: c"], headerMatches: [{name: "", mismatch: LOG, secret: {}}]}]}}
    - {ports: [{port: "80", protocol: UDP}, {port: "0", protocol: TCP}], rules: {http: [], kafka: [{role: eat, apiKey: fetch, apiVersion: "-1", topic: "a b"}, {apiKey: x}]}}
    - {ports: [{port: "53", protocol: UDP}], rules: {dns: [{matchName: a.b}]}}
    - {ports: [{port: "80", protocol: TCP}], rules: {l7: [{"": a}]}, serverNames: [""]}
  egress:
  - toFQDNs: [{}, {matchName: a.b, matchPattern: a.b}, {matchName: "*.b"}, {matchPattern: "a.**.b"}, {matchName: a..b}]
`, `
x.yaml document 1, CiliumNetworkPolicy shop/web: spec.ingress[0].toPorts[0].rules.http[0].method: Invalid value: "(": not a regular expression (RE2): error parsing regexp: missing closing ): ` + "`" + `(` + "`" + `
x.yaml document 1, CiliumNetworkPolicy shop/web: spec.ingress[0].toPorts[0].rules.http[0].path: Invalid value: "[": not a regular expression (RE2): error parsing regexp: missing closing ]: ` + "`" + `[` + "`" + `
x.yaml document 1, CiliumNetworkPolicy shop/web: spec.ingress[0].toPorts[0].rules.http[0].host: Invalid value: "a)|(b": not a regular expression (RE2): error parsing regexp: unexpected ): ` + "`a)|(b`" + `
x.yaml document 1, CiliumNetworkPolicy shop/web: spec.ingress[0].toPorts[0].rules.http[0].headers[0]: Invalid value: "": not the name of a header; write one like X-Token, or X-Token: value where both stand together
x.yaml document 1, CiliumNetworkPolicy shop/web: spec.ingress[0].toPorts[0].rules.http[0].headerMatches[0].name: Invalid value: "": not the name of a header; write one like X-Token, or X-Token: value where both stand together
x.yaml document 1, CiliumNetworkPolicy shop/web: spec.ingress[0].toPorts[0].rules.http[0].headerMatches[0].mismatch: Forbidden: requests are allowed or denied, not rewritten; remove the field to deny those that mismatch
x.yaml document 1, CiliumNetworkPolicy shop/web: spec.ingress[0].toPorts[0].rules.http[0].headerMatches[0].secret: Forbidden: secrets are not read; give the value
x.yaml document 1, CiliumNetworkPolicy shop/web: spec.ingress[0].toPorts[1].rules: Forbidden: http and kafka cannot be combined on one port; write a list of ports for each
x.yaml document 1, CiliumNetworkPolicy shop/web: spec.ingress[0].toPorts[1].rules.http: Required value: list at least one rule; {} allows every request
x.yaml document 1, CiliumNetworkPolicy shop/web: spec.ingress[0].toPorts[1].rules.kafka[0].apiKey: Forbidden: a role stands for its keys; give role or apiKey
x.yaml document 1, CiliumNetworkPolicy shop/web: spec.ingress[0].toPorts[1].rules.kafka[0].role: Unsupported value: "eat": supported values: "produce", "consume"
x.yaml document 1, CiliumNetworkPolicy shop/web: spec.ingress[0].toPorts[1].rules.kafka[0].apiVersion: Invalid value: "-1": a version is a number from 0 to 32767
x.yaml document 1, CiliumNetworkPolicy shop/web: spec.ingress[0].toPorts[1].rules.kafka[0].topic: Invalid value: "a b": a topic has up to 255 letters, digits, '.', '_' and '-'
x.yaml document 1, CiliumNetworkPolicy shop/web: spec.ingress[0].toPorts[1].rules.kafka[1].apiKey: Unsupported value: "x": supported values: "produce", "fetch", "offsets", "metadata", "leaderandisr", "stopreplica", "updatemetadata", "controlledshutdown", "offsetcommit", "offsetfetch", "findcoordinator", "joingroup", "heartbeat", "leavegroup", "syncgroup", "describegroups", "listgroups", "saslhandshake", "apiversions", "createtopics", "deletetopics", "deleterecords", "initproducerid", "offsetforleaderepoch", "addpartitionstotxn", "addoffsetstotxn", "endtxn", "writetxnmarkers", "txnoffsetcommit", "describeacls", "createacls", "deleteacls", "describeconfigs", "alterconfigs"
x.yaml document 1, CiliumNetworkPolicy shop/web: spec.ingress[0].toPorts[1].ports[0].protocol: Invalid value: "UDP": requests can only be read of TCP; write TCP
x.yaml document 1, CiliumNetworkPolicy shop/web: spec.ingress[0].toPorts[1].ports: Forbidden: requests can only be read on ports that are named; give numbers
x.yaml document 1, CiliumNetworkPolicy shop/web: spec.ingress[0].toPorts[2].rules.dns: Forbidden: names are asked for on egress; write the rule there
x.yaml document 1, CiliumNetworkPolicy shop/web: spec.ingress[0].toPorts[3].serverNames[0]: Invalid value: "": not a pattern of names in DNS; write one like *.example.com
x.yaml document 1, CiliumNetworkPolicy shop/web: spec.ingress[0].toPorts[3].rules.l7proto: Required value: name the protocol that l7 is about
x.yaml document 1, CiliumNetworkPolicy shop/web: spec.ingress[0].toPorts[3].rules.l7[0]: Invalid value: "": a key is empty; name it
x.yaml document 1, CiliumNetworkPolicy shop/web: spec.ingress[0].toPorts[3].serverNames: Forbidden: the requests inside TLS cannot be read; give serverNames or rules
x.yaml document 1, CiliumNetworkPolicy shop/web: spec.egress[0].toFQDNs[0]: Required value: give matchName or matchPattern
x.yaml document 1, CiliumNetworkPolicy shop/web: spec.egress[0].toFQDNs[1]: Forbidden: give only one of matchName and matchPattern; write an entry for each
x.yaml document 1, CiliumNetworkPolicy shop/web: spec.egress[0].toFQDNs[2].matchName: Invalid value: "*.b": not a name in DNS; write one like www.example.com
x.yaml document 1, CiliumNetworkPolicy shop/web: spec.egress[0].toFQDNs[3].matchPattern: Invalid value: "a.**.b": not a pattern of names in DNS; write one like *.example.com
x.yaml document 1, CiliumNetworkPolicy shop/web: spec.egress[0].toFQDNs[4].matchName: Invalid value: "a..b": not a name in DNS; write one like www.example.com
x.yaml document 1, CiliumNetworkPolicy shop/web: spec.ingress[0].toPorts[0]: Forbidden: names in DNS and rules about requests need a proxy, which this version does not have; remove the rule
x.yaml document 1, CiliumNetworkPolicy shop/web: spec.ingress[0].toPorts[1]: Forbidden: names in DNS and rules about requests need a proxy, which this version does not have; remove the rule
x.yaml document 1, CiliumNetworkPolicy shop/web: spec.ingress[0].toPorts[2]: Forbidden: names in DNS and rules about requests need a proxy, which this version does not have; remove the rule
x.yaml document 1, CiliumNetworkPolicy shop/web: spec.ingress[0].toPorts[3]: Forbidden: names in DNS and rules about requests need a proxy, which this version does not have; remove the rule
x.yaml document 1, CiliumNetworkPolicy shop/web: spec.egress[0]: Forbidden: names in DNS and rules about requests need a proxy, which this version does not have; remove the rule
`},
		{"impossible policies of a cluster", `
apiVersion: policy.networking.k8s.io/v1alpha2
kind: ClusterNetworkPolicy
metadata: {name: a, annotations: {tendril.io/stage: "yes"}}
spec:
  tier: Normal
  priority: 1001
  subject: {}
  ingress:
  - {action: Allow, from: []}
  - {action: Deny, from: [{}, {namespaces: {}, pods: {namespaceSelector: {}, podSelector: {}}}, {networks: [10.0.0.0/8]}], protocols: []}
  egress:
  - action: Deny
    to: [{domainNames: [a.b]}, {networks: []}, {networks: [x]}, {domainNames: [localhost, "a.*.b"]}, {nodes: {matchLabels: {"a b": c}}}]
    protocols: [{}, {tcp: {}}, {tcp: {destinationPort: {number: 1, range: {start: 1, end: 2}}}}, {udp: {destinationPort: {range: {start: 2, end: 2}}}}, {destinationNamedPort: http}]
---
apiVersion: policy.networking.k8s.io/v1alpha1
kind: AdminNetworkPolicy
metadata: {name: a}
spec:
  priority: -1
  subject: {namespaces: {}, pods: {namespaceSelector: {}, podSelector: {}}}
  ingress: [{action: Accept, from: [{namespaces: {}}], ports: [{portNumber: {protocol: ICMP, port: 0}}, {portNumber: {port: 1}, namedPort: a}]}]
---
apiVersion: policy.networking.k8s.io/v1alpha1
kind: BaselineAdminNetworkPolicy
metadata: {name: a}
spec:
  subject: {namespaces: {}}
  egress: [{action: Pass, to: [{domainNames: [a.b]}, {namespaces: {}}]}]
`, `
x.yaml document 1, ClusterNetworkPolicy a: spec.ingress[1].from[2].networks: Forbidden: unknown field; the fields here are namespaces, pods
x.yaml document 1, ClusterNetworkPolicy a: spec.priority: Invalid value: 1001: a priority is a number from 0 to 1000
x.yaml document 1, ClusterNetworkPolicy a: spec.tier: Unsupported value: "Normal": supported values: "Admin", "Baseline"
x.yaml document 1, ClusterNetworkPolicy a: spec.subject: Required value: say which pods the policy is for: namespaces or pods; namespaces: {} is all
x.yaml document 1, ClusterNetworkPolicy a: spec.ingress[0].action: Unsupported value: "Allow": supported values: "Accept", "Deny", "Pass"
x.yaml document 1, ClusterNetworkPolicy a: spec.ingress[0].from: Required value: name at least one peer; namespaces: {} is every pod
x.yaml document 1, ClusterNetworkPolicy a: spec.ingress[1].from[0]: Required value: an empty peer matches nobody; give namespaces, pods, or on egress nodes, networks or domainNames
x.yaml document 1, ClusterNetworkPolicy a: spec.ingress[1].from[1]: Forbidden: namespaces and pods cannot be combined in one peer; write a peer for each
x.yaml document 1, ClusterNetworkPolicy a: spec.ingress[1].protocols: Required value: list at least one; without the field the rule is for all ports
x.yaml document 1, ClusterNetworkPolicy a: spec.egress[0].to[1].networks: Required value: list at least one range; 0.0.0.0/0 and ::/0 are all addresses
x.yaml document 1, ClusterNetworkPolicy a: spec.egress[0].to[2].networks[0]: Invalid value: "x": not an address range; write one like 10.1.0.0/16 or fd00:1::/32
x.yaml document 1, ClusterNetworkPolicy a: spec.egress[0].to[3].domainNames[0]: Invalid value: "localhost": a name has two labels at least; write one like www.example.com or *.example.com
x.yaml document 1, ClusterNetworkPolicy a: spec.egress[0].to[3].domainNames[1]: Invalid value: "a.*.b": not a name in DNS; write one like www.example.com
x.yaml document 1, ClusterNetworkPolicy a: spec.egress[0].to[4].nodes.matchLabels[a b]: Invalid value: "a b": label key "a b": the name may hold letters, digits, '-', '_' and '.', and must begin and end with a letter or digit
x.yaml document 1, ClusterNetworkPolicy a: spec.egress[0].protocols[0]: Required value: an empty entry matches no port; give a number, a range or a name
x.yaml document 1, ClusterNetworkPolicy a: spec.egress[0].protocols[1].tcp.destinationPort: Invalid value: 0: a port is a number from 1 to 65535
x.yaml document 1, ClusterNetworkPolicy a: spec.egress[0].protocols[2]: Forbidden: give only one number, range or name; write an entry for each
x.yaml document 1, ClusterNetworkPolicy a: spec.egress[0].protocols[3].udp.destinationPort.range.end: Invalid value: 2: the last port of a range lies behind the first (2), up to 65535
x.yaml document 1, ClusterNetworkPolicy a: spec.egress[0].to[0].domainNames: Forbidden: names are for rules that allow; write the rule the other way round
x.yaml document 1, ClusterNetworkPolicy a: spec.egress[0].protocols[4].destinationNamedPort: Forbidden: only pods name their ports, and spec.egress[0].to[0] is none; give the number
x.yaml document 1, ClusterNetworkPolicy a: spec.egress[0].protocols[4].destinationNamedPort: Forbidden: only pods name their ports, and spec.egress[0].to[1] is none; give the number
x.yaml document 1, ClusterNetworkPolicy a: spec.egress[0].protocols[4].destinationNamedPort: Forbidden: only pods name their ports, and spec.egress[0].to[2] is none; give the number
x.yaml document 1, ClusterNetworkPolicy a: spec.egress[0].to[3].domainNames: Forbidden: names are for rules that allow; write the rule the other way round
x.yaml document 1, ClusterNetworkPolicy a: spec.egress[0].protocols[4].destinationNamedPort: Forbidden: only pods name their ports, and spec.egress[0].to[3] is none; give the number
x.yaml document 1, ClusterNetworkPolicy a: spec.egress[0].protocols[4].destinationNamedPort: Forbidden: only pods name their ports, and spec.egress[0].to[4] is none; give the number
x.yaml document 1, ClusterNetworkPolicy a: metadata.annotations[tendril.io/stage]: Unsupported value: "yes": supported values: "true", "false"
x.yaml document 1, ClusterNetworkPolicy a: spec.egress[0]: Forbidden: names in DNS and rules about requests need a proxy, which this version does not have; remove the rule
x.yaml document 3, BaselineAdminNetworkPolicy a: spec.egress[0].to[0].domainNames: Forbidden: unknown field; the fields here are namespaces, networks, nodes, pods
x.yaml document 3, BaselineAdminNetworkPolicy a: metadata.name: Invalid value: "a": a cluster has one such policy, and it is called default
x.yaml document 3, BaselineAdminNetworkPolicy a: spec.egress[0].action: Unsupported value: "Pass": supported values: "Allow", "Deny"
x.yaml document 2, AdminNetworkPolicy a: spec.priority: Invalid value: -1: a priority is a number from 0 to 1000
x.yaml document 2, AdminNetworkPolicy a: spec.subject: Forbidden: give only one of namespaces and pods; pods has a namespaceSelector of its own
x.yaml document 2, AdminNetworkPolicy a: spec.ingress[0].action: Unsupported value: "Accept": supported values: "Allow", "Deny", "Pass"
x.yaml document 2, AdminNetworkPolicy a: spec.ingress[0].ports[0].portNumber.protocol: Unsupported value: "ICMP": supported values: "TCP", "UDP", "SCTP"
x.yaml document 2, AdminNetworkPolicy a: spec.ingress[0].ports[0].portNumber.port: Invalid value: 0: a port is a number from 1 to 65535
x.yaml document 2, AdminNetworkPolicy a: spec.ingress[0].ports[1]: Forbidden: give only one number, range or name; write an entry for each
`},
		{"nodes and groups of ranges", `
apiVersion: v1
kind: Node
metadata: {name: n1, labels: {a: "b c"}}
---
apiVersion: cilium.io/v2
kind: CiliumCIDRGroup
metadata: {name: a}
spec: {externalCIDRs: []}
---
apiVersion: cilium.io/v2alpha1
kind: CiliumCIDRGroup
metadata: {name: b, namespace: shop}
spec: {externalCIDRs: [10.0.0.0/33]}
---
apiVersion: cilium.io/v1
kind: CiliumCIDRGroup
metadata: {name: c}
`, `
x.yaml document 3, CiliumCIDRGroup shop/b: metadata.namespace: Forbidden: a CiliumCIDRGroup belongs to no namespace; remove the field
x.yaml document 4, CiliumCIDRGroup c: apiVersion: Invalid value: "cilium.io/v1": kind CiliumCIDRGroup is read as cilium.io/v2 or cilium.io/v2alpha1
x.yaml document 1, Node n1: metadata.labels[a]: Invalid value: "b c": label a: the value "b c" may hold letters, digits, '-', '_' and '.', and must begin and end with a letter or digit
x.yaml document 2, CiliumCIDRGroup a: spec.externalCIDRs: Required value: list at least one range
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
    fromCIDR: [10.0.0]
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
      - {port: "65536", protocol: QUIC}
`, `
x.yaml document 1, CiliumNetworkPolicy shop/web: specs[0].endpointSelector: Required value: say which endpoints the rule is for; {} selects all
x.yaml document 1, CiliumNetworkPolicy shop/web: specs[0]: Required value: a rule without ingress, ingressDeny, egress and egressDeny does nothing; to isolate the endpoints write ingress: [{}]
x.yaml document 1, CiliumNetworkPolicy shop/web: specs[1].endpointSelector: Invalid value: "other": the policy is of namespace shop and selects there only; move it or use a CiliumClusterwideNetworkPolicy
x.yaml document 1, CiliumNetworkPolicy shop/web: specs[1].ingress[0].fromCIDR[0]: Invalid value: "10.0.0": not an address range; write one like 10.1.0.0/16 or fd00:1::/32
x.yaml document 1, CiliumNetworkPolicy shop/web: specs[1].ingress[0]: Forbidden: fromEndpoints and fromCIDR cannot be combined in one rule; write a rule for each
x.yaml document 1, CiliumNetworkPolicy shop/web: specs[1].ingress[1].fromEntities[0]: Unsupported value: "wurld": supported values: "all", "cluster", "health", "host", "ingress", "init", "kube-apiserver", "none", "remote-node", "unmanaged", "world", "world-ipv4", "world-ipv6"
x.yaml document 1, CiliumNetworkPolicy shop/web: specs[1].ingress[2].fromCIDR[0]: Invalid value: "10.0.0": not an address range; write one like 10.1.0.0/16 or fd00:1::/32
x.yaml document 1, CiliumNetworkPolicy shop/web: specs[1].ingress[3].fromEndpoints[0].matchLabels[reserved:moon]: Invalid value: "reserved:moon": no such reserved label; known are host, world, remote-node, kube-apiserver, health, init, unmanaged and ingress; other entities are named in fromEntities and toEntities
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
x.yaml document 1, CiliumNetworkPolicy shop/web: specs[1].ingress[6].toPorts[1].ports[7].protocol: Unsupported value: "QUIC": supported values: "TCP", "UDP", "SCTP", "ICMP", "ICMPv6", "VRRP", "IGMP", "ANY"
x.yaml document 1, CiliumNetworkPolicy shop/web: specs[1].ingress[6].toPorts[1].ports[7].port: Invalid value: 65536: a port is a number from 1 to 65535 or a name
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
metadata: {name: web, namespace: shop, annotations: {service.tendril.io/algorithm: best, service.tendril.io/forwarding: xdp}}
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
x.yaml document 1, Service shop/web: metadata.annotations[service.tendril.io/forwarding]: Unsupported value: "xdp": supported values: "dsr", "snat"
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
metadata: {name: b, labels: {kubernetes.io/service-name: web}, annotations: {service.tendril.io/weight: "0"}}
addressType: IPv4
ports: [{}, {port: 0}, {port: 80, protocol: X}]
endpoints: [{addresses: []}, {addresses: ["fd00::1"]}, {addresses: [x]}]
`, `
x.yaml document 1, EndpointSlice default/a: metadata.labels[kubernetes.io/service-name]: Required value: name the service that the slice is of
x.yaml document 1, EndpointSlice default/a: addressType: Unsupported value: "FQDN": supported values: "IPv4", "IPv6"
x.yaml document 2, EndpointSlice default/b: metadata.annotations[service.tendril.io/weight]: Invalid value: "0": a number from 1 to 100; backends that are to get nothing new are not ready
x.yaml document 2, EndpointSlice default/b: ports[0].port: Required value: give the number of the backends' port
x.yaml document 2, EndpointSlice default/b: ports[1].port: Invalid value: 0: a port is a number from 1 to 65535
x.yaml document 2, EndpointSlice default/b: ports[2].protocol: Unsupported value: "X": supported values: "TCP", "UDP", "SCTP"
x.yaml document 2, EndpointSlice default/b: endpoints[0].addresses: Required value: give the backend's address
x.yaml document 2, EndpointSlice default/b: endpoints[1].addresses[0]: Invalid value: "fd00::1": not of addressType IPv4; each slice holds one family
x.yaml document 2, EndpointSlice default/b: endpoints[2].addresses[0]: Invalid value: "x": not an IP address; write one like 10.1.2.3 or fd00::1
`},
		{"egress gateways", `
apiVersion: tendril.io/v1alpha1
kind: EgressGateway
metadata: {name: a}
spec:
  podSelector: {matchLabels: {"a b": c}}
  destinationCIDRs: [203.0.113.0/24, x]
  exceptCIDRs: [198.51.100.1]
  gateways:
  - {}
  - {node: n1, nodeSelector: {matchLabels: {role: egress}}}
  - {nodeSelector: {}, addresses: [192.0.2.1]}
  - {node: n2, addresses: [192.0.2.1, 192.0.2.2, 127.0.0.1, here]}
---
apiVersion: tendril.io/v1alpha1
kind: EgressGateway
metadata: {name: b, namespace: shop}
spec: {gateway: []}
`, `
x.yaml document 2, EgressGateway shop/b: spec.gateway: Forbidden: unknown field; did you mean "gateways"?
x.yaml document 2, EgressGateway shop/b: metadata.namespace: Forbidden: a EgressGateway belongs to no namespace; remove the field
x.yaml document 1, EgressGateway a: spec.podSelector.matchLabels[a b]: Invalid value: "a b": label key "a b": the name may hold letters, digits, '-', '_' and '.', and must begin and end with a letter or digit
x.yaml document 1, EgressGateway a: spec.destinationCIDRs[1]: Invalid value: "x": not an address range; write one like 10.1.0.0/16 or fd00:1::/32
x.yaml document 1, EgressGateway a: spec.exceptCIDRs[0]: Invalid value: "198.51.100.1": is in none of destinationCIDRs, so it excepts nothing; remove it or correct it
x.yaml document 1, EgressGateway a: spec.gateways[0]: Required value: give node or nodeSelector
x.yaml document 1, EgressGateway a: spec.gateways[1].nodeSelector: Forbidden: node names the node already; remove one of the two
x.yaml document 1, EgressGateway a: spec.gateways[2].addresses: Forbidden: an address is on one node; name that with node, or leave addresses out to use those of each node's uplink
x.yaml document 1, EgressGateway a: spec.gateways[2].nodeSelector: Required value: selects every node; give it a label that only gateways have
x.yaml document 1, EgressGateway a: spec.gateways[3].addresses[1]: Invalid value: "192.0.2.2": a second IPv4 address; give at most one a family
x.yaml document 1, EgressGateway a: spec.gateways[3].addresses[2]: Invalid value: "127.0.0.1": nobody outside can answer to it; write an address of a device of the node
x.yaml document 1, EgressGateway a: spec.gateways[3].addresses[2]: Invalid value: "127.0.0.1": a second IPv4 address; give at most one a family
x.yaml document 1, EgressGateway a: spec.gateways[3].addresses[3]: Invalid value: "here": not an IP address; write one like 10.1.2.3 or fd00::1
`},
		{"pools of addresses", `
apiVersion: tendril.io/v1alpha1
kind: LoadBalancerPool
metadata: {name: a, namespace: shop}
spec: {cidr: [192.0.2.0/24]}
---
apiVersion: tendril.io/v1alpha1
kind: LoadBalancerPool
metadata: {name: b}
spec: {cidrs: []}
---
apiVersion: tendril.io/v1alpha1
kind: LoadBalancerPool
metadata: {name: c}
spec:
  cidrs: [192.0.2.10/24, x, 224.0.0.0/8, 192.0.2.64/26, "fe80::/64", "::ffff:192.0.2.1/128"]
  serviceSelector: {matchLabels: {"a b": c}}
  namespaceSelector: {matchExpressions: [{key: team, operator: In}]}
`, `
x.yaml document 1, LoadBalancerPool shop/a: spec.cidr: Forbidden: unknown field; did you mean "cidrs"?
x.yaml document 1, LoadBalancerPool shop/a: metadata.namespace: Forbidden: a LoadBalancerPool belongs to no namespace; remove the field
x.yaml document 2, LoadBalancerPool b: spec.cidrs: Required value: list at least one range of addresses, e.g. 192.0.2.64/26
x.yaml document 3, LoadBalancerPool c: spec.cidrs[0]: Invalid value: "192.0.2.10/24": has bits behind its length; write 192.0.2.0/24 for the range, or 192.0.2.10 for the one address
x.yaml document 3, LoadBalancerPool c: spec.cidrs[1]: Invalid value: "x": not an address range; write one like 10.1.0.0/16 or fd00:1::/32
x.yaml document 3, LoadBalancerPool c: spec.cidrs[2]: Invalid value: "224.0.0.0/8": reaches into 224.0.0.0/4, which is multicast; no service can be reached there
x.yaml document 3, LoadBalancerPool c: spec.cidrs[3]: Invalid value: "192.0.2.64/26": overlaps 192.0.2.0/24 of the same pool; write each address once
x.yaml document 3, LoadBalancerPool c: spec.cidrs[4]: Invalid value: "fe80::/64": reaches into fe80::/10, which is link-local; no service can be reached there
x.yaml document 3, LoadBalancerPool c: spec.cidrs[5]: Invalid value: "::ffff:192.0.2.1/128": an IPv4 range written as IPv6; write it like 10.1.0.0/16
x.yaml document 3, LoadBalancerPool c: spec.serviceSelector.matchLabels[a b]: Invalid value: "a b": label key "a b": the name may hold letters, digits, '-', '_' and '.', and must begin and end with a letter or digit
x.yaml document 3, LoadBalancerPool c: spec.namespaceSelector.matchExpressions[0].values: Required value: In compares with at least one value
`},
		{"what a service wants of pools", `
apiVersion: v1
kind: Service
metadata: {name: a, annotations: {service.tendril.io/load-balancer-ips: "192.0.2.1, 192.0.2.2, fd00::1, x"}}
spec: {type: LoadBalancer, clusterIP: 10.96.0.1, ports: [{port: 80}]}
---
apiVersion: v1
kind: Service
metadata: {name: b, annotations: {service.tendril.io/load-balancer-ips: 192.0.2.1}}
spec: {type: LoadBalancer, clusterIP: 10.96.0.2, loadBalancerIP: 192.0.2.2, ipFamilies: [IPv4, IPv4, IPX], ipFamilyPolicy: Both, ports: [{port: 80}]}
---
apiVersion: v1
kind: Service
metadata: {name: c}
spec: {type: LoadBalancer, clusterIPs: [10.96.0.3, "fd96::3"], ipFamilyPolicy: SingleStack, ports: [{port: 80}]}
`, `
x.yaml document 1, Service default/a: metadata.annotations[service.tendril.io/load-balancer-ips]: Invalid value: "192.0.2.2": a second IPv4 address; wish for at most one a family
x.yaml document 1, Service default/a: metadata.annotations[service.tendril.io/load-balancer-ips]: Invalid value: "fd00::1": the service asks for no IPv6 address; add the family to ipFamilies or set ipFamilyPolicy
x.yaml document 1, Service default/a: metadata.annotations[service.tendril.io/load-balancer-ips]: Invalid value: "x": not an IP address; write one like 10.1.2.3 or fd00::1
x.yaml document 2, Service default/b: spec.ipFamilies[1]: Duplicate value: "IPv4"
x.yaml document 2, Service default/b: spec.ipFamilies[2]: Unsupported value: "IPX": supported values: "IPv4", "IPv6"
x.yaml document 2, Service default/b: spec.ipFamilyPolicy: Unsupported value: "Both": supported values: "SingleStack", "PreferDualStack", "RequireDualStack"
x.yaml document 2, Service default/b: spec.loadBalancerIP: Invalid value: "192.0.2.2": is not in the annotation service.tendril.io/load-balancer-ips; remove one of the two
x.yaml document 3, Service default/c: spec.ipFamilyPolicy: Invalid value: "SingleStack": the service has two families; give PreferDualStack or RequireDualStack, or one family
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
