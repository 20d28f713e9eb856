package kube

import "testing"

func TestCiliumNodesServicesAndGroups(t *testing.T) {
	checkTranslations(t, ciliumHeader, []translation{
		{"nodes are hosts, this one's and the others', by their labels", `
spec:
  endpointSelector: {}
  ingress: [{fromNodes: [{matchLabels: {"k8s:role": edge}}, {}]}]
  egress: [{toNodes: [{matchExpressions: [{key: zone, operator: NotIn, values: [a]}]}], toPorts: [{ports: [{port: "10250", protocol: TCP}]}]}]
`, `
spec: @namespace=shop isolates [ingress egress]
  spec.ingress[0]: allow from pods @reserved in (host,remote-node),node:role=edge or pods @reserved in (host,remote-node)
  spec.egress[0]: allow to pods @reserved in (host,remote-node),node:zone notin (a) at 6/10250
`},
		{"an empty list of nodes is nobody", `
spec: {endpointSelector: {}, ingress: [{fromNodes: []}]}
`, `
spec: @namespace=shop isolates [ingress]
`},
		{"services stay names; without a namespace they are of any", `
spec:
  endpointSelector: {}
  egress:
  - toServices:
    - k8sService: {serviceName: db}
    - k8sService: {serviceName: db, namespace: data}
    - k8sServiceSelector: {selector: {matchLabels: {"any:tier": back}}, namespace: data}
    - k8sServiceSelector: {selector: {}}
`, `
spec: @namespace=shop isolates [egress]
  spec.egress[0]: allow to service group db or service group db of data or service groups with tier=back of data or service groups with *
`},
		{"groups of ranges stay names; exceptions need not lie in them", `
spec:
  endpointSelector: {}
  ingress:
  - fromCIDRSet:
    - {cidrGroupRef: office, except: [192.0.2.7/32]}
    - cidrGroupSelector: {matchExpressions: [{key: role, operator: In, values: [vpn, lab]}]}
    - cidr: 198.51.100.0/24
`, `
spec: @namespace=shop isolates [ingress]
  spec.ingress[0]: allow from outside cidr group office but 192.0.2.7/32 or outside cidr groups with role in (lab,vpn) or outside 198.51.100.0/24
`},
		{"the API server is a fact beside who it is", `
spec:
  endpointSelector: {}
  egress:
  - toEndpoints: [{matchLabels: {"reserved:kube-apiserver": ""}}]
  - toEndpoints: [{matchLabels: {"reserved:kube-apiserver": "", "reserved:remote-node": ""}}]
  - toEndpoints: [{matchExpressions: [{key: "reserved:kube-apiserver", operator: DoesNotExist}]}]
`, `
spec: @namespace=shop isolates [egress]
  spec.egress[0]: allow to entity kube-apiserver
  spec.egress[1]: allow to pods @api-server=true,@reserved=remote-node
  spec.egress[2]: allow to pods @api-server notin (true),@namespace=shop
`},
	})
}

func TestCiliumRequirements(t *testing.T) {
	checkTranslations(t, ciliumHeader, []translation{
		{"a requirement gives nothing, joins the rule's own selectors, and denies the pods that miss a part of it", `
spec:
  endpointSelector: {}
  ingress:
  - fromRequires: [{matchLabels: {team: a}, matchExpressions: [{key: old, operator: DoesNotExist}]}]
    fromEndpoints: [{matchLabels: {app: client}}]
`, `
spec: @namespace=shop isolates [ingress]
  spec.ingress[0].fromRequires: deny from pods team notin (a),@namespace or pods old,@namespace or pods @namespace notin (shop),@namespace
  spec.ingress[0]: allow from pods app=client,!old,team=a,@namespace=shop
`},
		{"alone, or with ports, it lets nobody in", `
spec:
  endpointSelector: {}
  egress: [{toRequires: [{matchLabels: {team: a}}], toPorts: [{ports: [{port: "80"}]}]}]
`, `
spec: @namespace=shop isolates [egress]
  spec.egress[0].toRequires: deny to pods team notin (a),@namespace or pods @namespace notin (shop),@namespace
`},
		{"an empty list of them asks for nothing", `
spec:
  endpointSelector: {}
  egress: [{toRequires: [], toPorts: [{ports: [{port: "80", protocol: TCP}]}]}]
`, `
spec: @namespace=shop isolates [egress]
  spec.egress[0]: allow to anyone at 6/80
`},
	})
}

func TestCiliumNodePolicies(t *testing.T) {
	checkTranslations(t, clusterwideHeader, []translation{
		{"a nodeSelector is about the host of the nodes with these labels", `
spec:
  nodeSelector: {matchLabels: {role: edge}}
  ingress:
  - {fromEntities: [cluster]}
  - {fromCIDR: [192.0.2.0/24], toPorts: [{ports: [{port: "22", protocol: TCP}]}]}
`, `
spec: @reserved=host,node:role=edge isolates [ingress]
  spec.ingress[0]: allow from entity cluster
  spec.ingress[1]: allow from outside 192.0.2.0/24 at 6/22
`},
		{"an empty one is about every node", `
spec: {nodeSelector: {}, egress: [{toEntities: [all]}]}
`, `
spec: @reserved=host isolates [egress]
  spec.egress[0]: allow to anyone
`},
	})
}

func TestVerdictsOfCiliumRequirements(t *testing.T) {
	checkVerdicts(t, "", []verdicts{
		{"a requirement narrows what other policies of any dialect allow, at every port, and is about pods", ciliumHeader + `spec:
  endpointSelector: {}
  ingress: [{fromRequires: [{matchLabels: {app: client, "k8s:io.kubernetes.pod.namespace": shop}}]}]
---
` + networkPolicyHeader + `  podSelector: {}
  ingress: [{}]
`, []string{"ingress 80/tcp: host client node api world world6", "ingress 53/udp: host client node api world world6"}},
		{"without any other rule it only isolates", ciliumHeader + `spec:
  endpointSelector: {}
  ingress: [{fromRequires: [{matchLabels: {app: client}}], toPorts: [{ports: [{port: "80", protocol: TCP}]}]}]
`, []string{"ingress 80/tcp: host"}},
		{"a selector of a reserved label is narrowed by the requirement beside it", ciliumHeader + `spec:
  endpointSelector: {}
  egress: [{toRequires: [{matchLabels: {app: client}}], toEndpoints: [{matchLabels: {"reserved:host": ""}}, {matchLabels: {app: client}}, {matchLabels: {app: batch}}]}]
`, []string{"egress 80/tcp: client"}},
	})
}
