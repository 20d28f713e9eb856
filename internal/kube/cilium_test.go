package kube

import "testing"

const ciliumHeader = `apiVersion: cilium.io/v2
kind: CiliumNetworkPolicy
metadata: {name: web, namespace: shop}
`

const clusterwideHeader = `apiVersion: cilium.io/v2
kind: CiliumClusterwideNetworkPolicy
metadata: {name: web}
`

func TestCiliumSubjectAndDefault(t *testing.T) {
	checkTranslations(t, ciliumHeader, []translation{
		{"an empty endpointSelector selects the namespace; an empty rule isolates and allows nobody", `
spec:
  endpointSelector: {}
  ingress: [{}]
`, `
spec: @namespace=shop isolates [ingress]
`},
		{"sources k8s, any and none mean the pod's own labels", `
spec:
  endpointSelector: {matchLabels: {"k8s:app": web, "any:tier": front, zone: a}}
  egress: [{}]
`, `
spec: app=web,tier=front,zone=a,@namespace=shop isolates [egress]
`},
		{"naming the own namespace changes nothing", `
spec:
  endpointSelector: {matchLabels: {"k8s:io.kubernetes.pod.namespace": shop}}
  ingress: [{}]
`, `
spec: @namespace=shop isolates [ingress]
`},
		{"service account and cluster are facts", `
spec:
  endpointSelector: {matchLabels: {io.cilium.k8s.policy.serviceaccount: bot, io.cilium.k8s.policy.cluster: blue}}
  ingress: [{}]
`, `
spec: @cluster=blue,@namespace=shop,@service-account=bot isolates [ingress]
`},
		{"enableDefaultDeny false leaves the endpoints open to what no rule denies", `
spec:
  endpointSelector: {}
  enableDefaultDeny: {ingress: false}
  ingressDeny: [{fromEntities: [world]}]
`, `
spec: @namespace=shop isolates []
  spec.ingressDeny[0]: deny from entity world
`},
		{"a deny list alone isolates like any other", `
spec:
  endpointSelector: {}
  egressDeny: [{toCIDR: [10.0.0.0/8]}]
`, `
spec: @namespace=shop isolates [egress]
  spec.egressDeny[0]: deny to outside 10.0.0.0/8
`},
		{"specs are independent rules of one object", `
specs:
- endpointSelector: {matchLabels: {app: a}}
  ingress: [{fromEntities: [host]}]
- endpointSelector: {matchLabels: {app: b}}
  egress: [{toEntities: [all]}]
`, `
specs[0]: app=a,@namespace=shop isolates [ingress]
  specs[0].ingress[0]: allow from entity host
specs[1]: app=b,@namespace=shop isolates [egress]
  specs[1].egress[0]: allow to anyone
`},
		{"labels, description and log are for people only", `
spec:
  description: who may ask
  labels: [{key: owner, value: red, source: k8s}]
  log: {value: web}
  endpointSelector: {}
  ingress: [{}]
`, `
spec: @namespace=shop isolates [ingress]
`},
	})
}

func TestCiliumPeers(t *testing.T) {
	checkTranslations(t, ciliumHeader, []translation{
		{"endpoints are of the policy's own namespace unless they speak of namespaces", `
spec:
  endpointSelector: {}
  ingress:
  - fromEndpoints:
    - {matchLabels: {app: client}}
    - {}
    - {matchLabels: {"k8s:io.kubernetes.pod.namespace": lab, app: client}}
    - {matchExpressions: [{key: "k8s:io.kubernetes.pod.namespace", operator: Exists}]}
    - {matchLabels: {io.cilium.k8s.namespace.labels.team: red}}
`, `
spec: @namespace=shop isolates [ingress]
  spec.ingress[0]: allow from pods app=client,@namespace=shop or pods @namespace=shop or pods app=client,@namespace=lab,@namespace or pods @namespace or pods namespace:team=red,@namespace
`},
		{"an empty list of endpoints means nobody", `
spec:
  endpointSelector: {}
  ingress: [{fromEndpoints: []}, {fromCIDR: [], toPorts: [{ports: [{port: "80"}]}]}]
`, `
spec: @namespace=shop isolates [ingress]
`},
		{"ports without peers mean anyone at those ports", `
spec:
  endpointSelector: {}
  ingress: [{toPorts: [{ports: [{port: "80", protocol: TCP}]}]}]
`, `
spec: @namespace=shop isolates [ingress]
  spec.ingress[0]: allow from anyone at 6/80
`},
		{"a reserved label is an entity", `
spec:
  endpointSelector: {}
  ingress: [{fromEndpoints: [{matchLabels: {"reserved:host": ""}}]}]
`, `
spec: @namespace=shop isolates [ingress]
  spec.ingress[0]: allow from entity host
`},
		{"not being of a reserved identity does not open other namespaces", `
spec:
  endpointSelector: {}
  ingress: [{fromEndpoints: [{matchExpressions: [{key: "reserved:world", operator: DoesNotExist}]}]}]
`, `
spec: @namespace=shop isolates [ingress]
  spec.ingress[0]: allow from pods @namespace=shop,@reserved notin (world)
`},
		{"every entity keeps its name", `
spec:
  endpointSelector: {}
  egress: [{toEntities: [world, world-ipv4, world-ipv6, cluster, host, remote-node, kube-apiserver, health, init, unmanaged, ingress, none]}]
`, `
spec: @namespace=shop isolates [egress]
  spec.egress[0]: allow to entity world or entity world-ipv4 or entity world-ipv6 or entity cluster or entity host or entity remote-node or entity kube-apiserver or entity health or entity init or entity unmanaged or entity ingress or entity none
`},
		{"ranges and single addresses mean hosts outside the cluster", `
spec:
  endpointSelector: {}
  egress:
  - toCIDR: [192.0.2.0/24, 198.51.100.7, "2001:db8::1"]
  - toCIDRSet: [{cidr: 10.0.0.0/8, except: [10.96.0.0/12]}]
`, `
spec: @namespace=shop isolates [egress]
  spec.egress[0]: allow to outside 192.0.2.0/24 or outside 198.51.100.7/32 or outside 2001:db8::1/128
  spec.egress[1]: allow to outside 10.0.0.0/8 but 10.96.0.0/12
`},
		{"authentication that is disabled asks for nothing", `
spec:
  endpointSelector: {}
  ingress: [{fromEntities: [cluster], authentication: {mode: disabled}}]
`, `
spec: @namespace=shop isolates [ingress]
  spec.ingress[0]: allow from entity cluster
`},
	})
}

func TestCiliumPorts(t *testing.T) {
	checkTranslations(t, ciliumHeader, []translation{
		{"no protocol means each protocol with ports", `
spec:
  endpointSelector: {}
  ingress: [{toPorts: [{ports: [{port: "53"}, {port: dns, protocol: ANY}]}]}]
`, `
spec: @namespace=shop isolates [ingress]
  spec.ingress[0]: allow from anyone at 6/53 17/53 132/53 6/dns 17/dns 132/dns
`},
		{"ranges, port 0 and protocols without ports", `
spec:
  endpointSelector: {}
  ingress:
  - toPorts:
    - ports: [{port: "8000", endPort: 8080, protocol: TCP}, {port: "0", protocol: UDP}]
    - ports: [{protocol: VRRP}, {port: "0", protocol: ICMP}]
`, `
spec: @namespace=shop isolates [ingress]
  spec.ingress[0]: allow from anyone at 6/8000-8080 17/any 112/any 1/any
`},
		{"ICMP types by number and by name, IPv4 unless said", `
spec:
  endpointSelector: {}
  ingress: [{fromEntities: [cluster], icmps: [{fields: [{type: 8}, {type: EchoReply}, {family: IPv6, type: EchoRequest}]}]}]
`, `
spec: @namespace=shop isolates [ingress]
  spec.ingress[0]: allow from entity cluster at 1/8 1/0 58/128
`},
		{"deny rules come ahead of allow rules", `
spec:
  endpointSelector: {}
  ingress: [{fromEntities: [cluster]}]
  ingressDeny: [{fromEndpoints: [{matchLabels: {app: bad}}], toPorts: [{ports: [{port: "80", protocol: TCP}]}]}]
`, `
spec: @namespace=shop isolates [ingress]
  spec.ingressDeny[0]: deny from pods app=bad,@namespace=shop at 6/80
  spec.ingress[0]: allow from entity cluster
`},
	})
}

func TestCiliumClusterwide(t *testing.T) {
	checkTranslations(t, clusterwideHeader, []translation{
		{"empty selectors mean the pods of all namespaces, never nodes or the outside", `
spec:
  endpointSelector: {}
  ingress: [{fromEndpoints: [{}, {matchLabels: {app: a}}]}]
`, `
spec: @namespace isolates [ingress]
  spec.ingress[0]: allow from pods @namespace or pods app=a,@namespace
`},
		{"endpoints whose labels have not arrived can be selected", `
spec:
  endpointSelector: {matchLabels: {"reserved:init": ""}}
  egress: [{toEntities: [host]}]
`, `
spec: @reserved=init isolates [egress]
  spec.egress[0]: allow to entity host
`},
	})
}
