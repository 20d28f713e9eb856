package kube

import "testing"

const networkPolicyHeader = `apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: web, namespace: shop}
spec:
`

func TestNetworkPolicySelectsAndIsolates(t *testing.T) {
	checkTranslations(t, networkPolicyHeader, []translation{
		{"an empty podSelector selects the whole namespace, and nothing said means ingress", `
  podSelector: {}
`, `
spec: @namespace=shop isolates [ingress]
`},
		{"egress rules without policyTypes isolate both ways", `
  podSelector: {matchLabels: {app: web}}
  egress: [{}]
`, `
spec: app=web,@namespace=shop isolates [ingress egress]
  spec.egress[0]: allow to anyone
`},
		{"policyTypes Egress alone leaves ingress open and its rules without effect", `
  podSelector: {}
  policyTypes: [Egress]
  ingress: [{}]
`, `
spec: @namespace=shop isolates [egress]
`},
		{"policyTypes of both with no rules denies everything", `
  podSelector: {}
  policyTypes: [Ingress, Egress]
`, `
spec: @namespace=shop isolates [ingress egress]
`},
		{"all four operators narrow the subject", `
  podSelector:
    matchExpressions:
    - {key: app, operator: In, values: [b, a, b]}
    - {key: tier, operator: NotIn, values: [db]}
    - {key: beta, operator: Exists}
    - {key: old, operator: DoesNotExist}
`, `
spec: app in (a,b),beta,!old,tier notin (db),@namespace=shop isolates [ingress]
`},
	})
}

func TestNetworkPolicyPeers(t *testing.T) {
	checkTranslations(t, networkPolicyHeader, []translation{
		{"a rule without from is open to anyone", `
  podSelector: {}
  ingress: [{ports: [{port: 80}]}]
`, `
spec: @namespace=shop isolates [ingress]
  spec.ingress[0]: allow from anyone at 6/80
`},
		{"an empty from list is open to anyone as well", `
  podSelector: {}
  ingress: [{from: []}]
`, `
spec: @namespace=shop isolates [ingress]
  spec.ingress[0]: allow from anyone
`},
		{"a podSelector alone means the policy's own namespace", `
  podSelector: {}
  ingress: [{from: [{podSelector: {matchLabels: {app: client}}}]}]
`, `
spec: @namespace=shop isolates [ingress]
  spec.ingress[0]: allow from pods app=client,@namespace=shop
`},
		{"an empty namespaceSelector means every pod of every namespace, and no node", `
  podSelector: {}
  ingress: [{from: [{namespaceSelector: {}}]}]
`, `
spec: @namespace=shop isolates [ingress]
  spec.ingress[0]: allow from pods @namespace
`},
		{"both selectors in one peer are joined by and, in two peers by or", `
  podSelector: {}
  ingress:
  - from:
    - {namespaceSelector: {matchLabels: {team: red}}, podSelector: {matchLabels: {app: client}}}
    - namespaceSelector: {matchLabels: {team: blue}}
    - podSelector: {}
`, `
spec: @namespace=shop isolates [ingress]
  spec.ingress[0]: allow from pods app=client,namespace:team=red,@namespace or pods namespace:team=blue,@namespace or pods @namespace=shop
`},
		{"a namespace that lacks a label is still a namespace: nodes and the outside do not match", `
  podSelector: {}
  ingress: [{from: [{namespaceSelector: {matchExpressions: [{key: team, operator: DoesNotExist}]}}]}]
`, `
spec: @namespace=shop isolates [ingress]
  spec.ingress[0]: allow from pods !namespace:team,@namespace
`},
		{"an ipBlock means whoever has the address, less its exceptions", `
  podSelector: {}
  egress: [{to: [{ipBlock: {cidr: 10.0.0.0/8, except: [10.1.0.0/16, 10.2.3.4/32]}}, {ipBlock: {cidr: "fd00::/8"}}]}]
  policyTypes: [Egress]
`, `
spec: @namespace=shop isolates [egress]
  spec.egress[0]: allow to 10.0.0.0/8 but 10.1.0.0/16 but 10.2.3.4/32 or fd00::/8
`},
		{"bits behind the length of a range do not count", `
  podSelector: {}
  ingress: [{from: [{ipBlock: {cidr: 10.1.2.3/16}}]}]
`, `
spec: @namespace=shop isolates [ingress]
  spec.ingress[0]: allow from 10.1.0.0/16
`},
	})
}

func TestNetworkPolicyPorts(t *testing.T) {
	checkTranslations(t, networkPolicyHeader, []translation{
		{"numbers, ranges, names and whole protocols stand side by side; the protocol is TCP unless said", `
  podSelector: {}
  ingress:
  - ports:
    - port: 80
    - {port: 8000, endPort: 8080, protocol: UDP}
    - {port: metrics}
    - {protocol: SCTP}
    - {port: 443, endPort: 443}
`, `
spec: @namespace=shop isolates [ingress]
  spec.ingress[0]: allow from anyone at 6/80 17/8000-8080 6/metrics 132/any 6/443
`},
		{"an empty list of ports is any port of any protocol", `
  podSelector: {}
  ingress: [{ports: []}]
`, `
spec: @namespace=shop isolates [ingress]
  spec.ingress[0]: allow from anyone
`},
	})
}
