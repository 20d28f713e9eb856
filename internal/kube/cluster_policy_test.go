package kube

import "testing"

const (
	clusterPolicyHeader = `apiVersion: policy.networking.k8s.io/v1alpha2
kind: ClusterNetworkPolicy
metadata: {name: web}
spec:
`
	adminHeader = `apiVersion: policy.networking.k8s.io/v1alpha1
kind: AdminNetworkPolicy
metadata: {name: web}
spec:
`
	baselineHeader = `apiVersion: policy.networking.k8s.io/v1alpha1
kind: BaselineAdminNetworkPolicy
metadata: {name: default}
spec:
`
)

func TestClusterNetworkPolicies(t *testing.T) {
	checkTranslations(t, clusterPolicyHeader, []translation{
		{"rules keep their order, their names and their actions, and isolate nobody", `
  tier: Admin
  priority: 30
  subject: {namespaces: {matchLabels: {team: red}}}
  ingress:
  - {name: monitors, action: Accept, from: [{pods: {namespaceSelector: {matchLabels: {team: ops}}, podSelector: {matchLabels: {app: probe}}}}]}
  - {action: Pass, from: [{namespaces: {matchLabels: {team: red}}}]}
  - {action: Deny, from: [{namespaces: {}}]}
`, `
spec: namespace:team=red,@namespace isolates [] in admin at 30
  spec.ingress[0] "monitors": allow from pods app=probe,namespace:team=ops,@namespace
  spec.ingress[1]: pass from pods namespace:team=red,@namespace
  spec.ingress[2]: deny from pods @namespace
`},
		{"networks, nodes and names are peers of egress; networks mean whoever has the address", `
  tier: Baseline
  priority: 0
  subject: {pods: {namespaceSelector: {}, podSelector: {matchLabels: {app: web}}}}
  egress:
  - action: Accept
    to: [{networks: [10.0.0.0/8, "fd00::/8"]}, {nodes: {matchLabels: {role: edge}}}, {domainNames: ["*.example.com", Example.com.]}]
`, `
spec: app=web,@namespace isolates [] in baseline at 0
  spec.egress[0]: allow to 10.0.0.0/8 or fd00::/8 or pods @reserved in (host,remote-node),node:role=edge or names like **.example.com or name example.com
`},
		{"ports by number, range and name; a name is of any protocol", `
  tier: Admin
  priority: 1000
  subject: {namespaces: {}}
  egress:
  - action: Deny
    to: [{namespaces: {}}]
    protocols:
    - {tcp: {destinationPort: {number: 80}}}
    - {udp: {destinationPort: {range: {start: 1, end: 65535}}}}
    - {sctp: {destinationPort: {number: 7}}}
    - {destinationNamedPort: http}
`, `
spec: @namespace isolates [] in admin at 1000
  spec.egress[0]: deny to pods @namespace at 6/80 17/1-65535 132/7 6/http 17/http 132/http
`},
	})
}

func TestAdminNetworkPolicies(t *testing.T) {
	checkTranslations(t, adminHeader, []translation{
		{"the predecessor says the same in other words; its protocol is TCP unless said", `
  priority: 5
  subject: {namespaces: {}}
  ingress:
  - {name: a, action: Pass, from: [{namespaces: {}}], ports: [{portNumber: {port: 80}}, {portNumber: {protocol: UDP, port: 53}}]}
  egress:
  - action: Allow
    to: [{networks: [192.0.2.0/24]}, {nodes: {}}, {domainNames: [a.b]}]
    ports: [{portRange: {protocol: SCTP, start: 1, end: 9}}, {portRange: {start: 8, end: 9}}]
  - {action: Deny, to: [{pods: {namespaceSelector: {}, podSelector: {}}}], ports: [{namedPort: http}]}
`, `
spec: @namespace isolates [] in admin at 5
  spec.ingress[0] "a": pass from pods @namespace at 6/80 17/53
  spec.egress[0]: allow to 192.0.2.0/24 or pods @reserved in (host,remote-node) or name a.b at 132/1-9 6/8-9
  spec.egress[1]: deny to pods @namespace at 6/http 17/http 132/http
`},
	})
	checkTranslations(t, baselineHeader, []translation{
		{"the baseline policy stands behind every other of its tier", `
  subject: {namespaces: {}}
  ingress: [{action: Deny, from: [{namespaces: {}}]}]
  egress: [{action: Allow, to: [{networks: [0.0.0.0/0]}, {nodes: {}}]}]
`, `
spec: @namespace isolates [] in baseline at 1001
  spec.ingress[0]: deny from pods @namespace
  spec.egress[0]: allow to 0.0.0.0/0 or pods @reserved in (host,remote-node)
`},
	})
}

func TestVerdictsAcrossTiers(t *testing.T) {
	const baselineDeny = clusterPolicyHeader + `  tier: Baseline
  priority: 10
  subject: {namespaces: {matchLabels: {team: red}}}
  ingress: [{action: Accept, from: [{pods: {namespaceSelector: {}, podSelector: {matchLabels: {app: batch}}}}]}, {action: Deny, from: [{namespaces: {}}]}]
`
	const adminPass = adminHeader + `  priority: 10
  subject: {namespaces: {matchLabels: {team: red}}}
  ingress:
  - {action: Pass, from: [{pods: {namespaceSelector: {matchLabels: {team: red}}, podSelector: {}}}]}
  - {action: Deny, from: [{namespaces: {}}]}
`
	checkVerdicts(t, "", []verdicts{
		{"a baseline denies where nobody else decides, and nobody is isolated by it", baselineDeny, []string{
			"ingress 80/tcp: host batch node api world world6 nobody", "egress 80/tcp: " + everybody}},
		{"what isolates in the tier before leaves the baseline nothing to decide", baselineDeny + "---\n" + networkPolicyHeader + `  podSelector: {}
  ingress: [{from: [{podSelector: {matchLabels: {app: client}}}]}]
`, []string{"ingress 80/tcp: host client"}},
		{"rules hold in their order: who is passed on is not denied by the next rule", adminPass, []string{"ingress 80/tcp: host client batch node api world world6 nobody"}},
		{"an admin's Accept wins over isolation and deny of later tiers", adminHeader + `  priority: 1
  subject: {namespaces: {}}
  ingress: [{action: Allow, from: [{namespaces: {matchLabels: {team: blue}}}]}]
---
` + ciliumHeader + `spec: {endpointSelector: {}, ingressDeny: [{fromEntities: [all]}]}
`, []string{"ingress 80/tcp: host lab bare"}},
		{"of two policies of a tier the lower priority is looked at first", clusterPolicyHeader + `  tier: Admin
  priority: 1
  subject: {namespaces: {}}
  ingress: [{action: Deny, from: [{pods: {namespaceSelector: {}, podSelector: {matchLabels: {app: batch}}}}]}]
---
` + adminHeader + `  priority: 2
  subject: {namespaces: {}}
  ingress: [{action: Allow, from: [{namespaces: {}}]}]
---
` + networkPolicyHeader + `  podSelector: {}
`, []string{"ingress 80/tcp: host client lab bare"}},
	})
}
