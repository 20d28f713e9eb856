package reference_test

import (
	"fmt"
	"net/netip"
	"strconv"
	"strings"
	"testing"

	"tendril.io/tendril/internal/ipproto"
	"tendril.io/tendril/test/differential/reference"
)

// town is what all cases are about; "who" names a party of it by its last word below.
const town = `
{apiVersion: v1, kind: Namespace, metadata: {name: shop, labels: {team: red}}}
---
{apiVersion: v1, kind: Namespace, metadata: {name: lab, labels: {team: blue}}}
---
{apiVersion: v1, kind: Node, metadata: {name: here, labels: {role: edge}}, status: {addresses: [{type: InternalIP, address: 10.0.0.1}]}}
---
{apiVersion: v1, kind: Node, metadata: {name: there, labels: {role: core}}, status: {addresses: [{type: InternalIP, address: 10.0.0.2}, {type: ExternalIP, address: 10.0.0.3}]}}
---
apiVersion: v1
kind: Pod
metadata: {name: web, namespace: shop, labels: {app: web}}
spec: {serviceAccountName: bot, containers: [{name: a, ports: [{name: http, containerPort: 80}, {name: dns, protocol: UDP, containerPort: 53}]}]}
status: {podIPs: [{ip: 10.1.0.1}, {ip: "fd00::1"}]}
---
apiVersion: v1
kind: Pod
metadata: {name: db, namespace: shop, labels: {app: db, tier: back}}
spec: {serviceAccountName: db, containers: [{name: a, ports: [{name: http, containerPort: 81}]}]}
status: {podIPs: [{ip: 10.1.0.2}, {ip: "fd00::2"}]}
---
apiVersion: v1
kind: Pod
metadata: {name: guest, namespace: lab, labels: {app: web}}
spec: {serviceAccountName: bot}
status: {podIPs: [{ip: 10.1.0.3}]}
---
apiVersion: v1
kind: Pod
metadata: {name: onhost, namespace: shop, labels: {app: db}}
spec: {hostNetwork: true}
status: {podIPs: [{ip: 10.0.0.2}]}
---
{apiVersion: v1, kind: Service, metadata: {name: data, namespace: shop, labels: {kind: data}}}
---
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {name: data-1, namespace: shop, labels: {kubernetes.io/service-name: data}}
endpoints: [{addresses: [10.1.0.2]}, {addresses: [198.51.100.7]}]
---
{apiVersion: cilium.io/v2, kind: CiliumCIDRGroup, metadata: {name: partners, labels: {trust: low}}, spec: {externalCIDRs: [198.51.100.0/24]}}
`

func people() map[string]string {
	return map[string]string{
		"web": "10.1.0.1", "web6": "fd00::1", "db": "10.1.0.2", "db6": "fd00::2", "guest": "10.1.0.3", "here": "10.0.0.1", "there": "10.0.0.2",
		"there2": "10.0.0.3", "nobody": "10.1.0.9", "world": "198.51.100.7", "world6": "2001:db8::7", "api": "192.168.9.9",
	}
}

// question reads "web>db 80/tcp".
func question(t *testing.T, text string) reference.Packet {
	t.Helper()
	ends, port, _ := strings.Cut(text, " ")
	from, to, _ := strings.Cut(ends, ">")
	digits, protocol, _ := strings.Cut(port, "/")
	n, err := strconv.ParseUint(digits, 10, 16)
	if err != nil {
		t.Fatalf("question %q: %v", text, err)
	}
	return reference.Packet{
		Source: netip.MustParseAddr(people()[from]), Destination: netip.MustParseAddr(people()[to]), Port: uint16(n),
		Protocol: map[string]uint8{"tcp": ipproto.TCP, "udp": ipproto.UDP, "sctp": ipproto.SCTP, "icmp": ipproto.ICMP, "icmpv6": ipproto.ICMPv6}[protocol],
	}
}

// answer is "allow KIND/NAME PLACE" of one side.
func answer(v *reference.Verdict) string {
	if v == nil {
		return "-"
	}
	action := "deny"
	if v.Allow {
		action = "allow"
	}
	if v.Kind == "" {
		return action + " " + strings.TrimPrefix(v.Place, "builtin/")
	}
	return strings.Join([]string{action, v.Name, v.Place}, " ")
}

// check asks a manifest questions, lines "in|out FROM>TO PORT/PROTOCOL: ANSWER".
func check(t *testing.T, manifest, lines string) {
	t.Helper()
	w := &reference.World{
		Cluster: "lab", Local: "here", PodRanges: []netip.Prefix{netip.MustParsePrefix("10.1.0.0/24"), netip.MustParsePrefix("fd00::/64")},
		APIServers: []netip.Addr{netip.MustParseAddr("192.168.9.9"), netip.MustParseAddr("10.0.0.3")},
	}
	if err := w.Read(town + "\n---\n" + manifest); err != nil {
		t.Fatal(err)
	}
	for line := range strings.SplitSeq(strings.TrimSpace(lines), "\n") {
		ask, want, _ := strings.Cut(strings.TrimSpace(line), ": ")
		way, packet, _ := strings.Cut(ask, " ")
		egress, ingress := w.Judge(question(t, packet))
		got := answer(map[string]*reference.Verdict{"in": ingress, "out": egress}[way])
		if got != want {
			t.Errorf("%s: got %s, want %s", ask, got, want)
		}
	}
}

func networkPolicy(spec string) string {
	return fmt.Sprintf("apiVersion: networking.k8s.io/v1\nkind: NetworkPolicy\nmetadata: {name: np, namespace: shop}\nspec: {%s}\n", spec)
}

func ciliumPolicy(spec string) string {
	return fmt.Sprintf("apiVersion: cilium.io/v2\nkind: CiliumNetworkPolicy\nmetadata: {name: cnp, namespace: shop}\nspec: {endpointSelector: {matchLabels: {app: web}}, %s}\n", spec)
}

func clusterPolicy(name, spec string) string {
	return fmt.Sprintf("apiVersion: policy.networking.k8s.io/v1alpha2\nkind: ClusterNetworkPolicy\nmetadata: {name: %s}\nspec: {%s}\n", name, spec)
}

func TestWithoutPolicies(t *testing.T) {
	check(t, "", `
		in db>web 80/tcp: allow default-allow
		out web>world 80/tcp: allow default-allow
		in here>web 80/tcp: allow local-host
		in there>web 80/tcp: allow default-allow
		out there>web 80/tcp: -
		in web>world 80/tcp: -
		out here>web 80/tcp: allow default-allow`)
}

func TestNetworkPolicy(t *testing.T) {
	for _, test := range []struct{ sentence, spec, lines string }{
		{"policyTypes default to ingress", `podSelector: {}`, `
			in db>web 80/tcp: deny default-deny
			in here>web 80/tcp: allow local-host
			out web>db 80/tcp: allow default-allow
			in db>guest 80/tcp: allow default-allow`},
		{"policyTypes default to both where there are egress rules", `podSelector: {}, egress: [{to: [{podSelector: {}}]}]`, `
			out web>db 80/tcp: allow np spec.egress[0]
			out web>guest 80/tcp: deny default-deny
			out web>there 80/tcp: deny default-deny
			in db>web 80/tcp: deny default-deny`},
		{"policyTypes decide where they are given", `podSelector: {}, policyTypes: [Egress], ingress: [{}]`, `
			in db>web 80/tcp: allow default-allow
			out web>db 80/tcp: deny default-deny`},
		{"podSelector selects the subject", `podSelector: {matchExpressions: [{key: app, operator: In, values: [db]}, {key: tier, operator: Exists}]}`, `
			in db>web 80/tcp: allow default-allow
			in web>db 80/tcp: deny default-deny`},
		{"no peers are anyone but nobody", `podSelector: {}, ingress: [{ports: [{port: 1}]}, {from: []}]`, `
			in world>web 1/tcp: allow np spec.ingress[0]
			in there>web 8/icmp: allow np spec.ingress[1]
			in nobody>web 8/icmp: deny default-deny`},
		{"peers by pod, by namespace, by both", `podSelector: {}, ingress: [{from: [{podSelector: {matchLabels: {app: db}}}]},
			{from: [{namespaceSelector: {matchLabels: {team: blue}}, podSelector: {matchLabels: {app: db}}}]}, {from: [{namespaceSelector: {matchLabels: {kubernetes.io/metadata.name: lab}}}]}]`, `
			in db>web 1/tcp: allow np spec.ingress[0]
			in guest>web 1/tcp: allow np spec.ingress[2]
			in there>web 1/tcp: deny default-deny`},
		{"operators that a missing label satisfies", `podSelector: {}, ingress: [{from: [{podSelector: {matchExpressions: [{key: tier, operator: DoesNotExist}]}}]},
			{from: [{podSelector: {matchExpressions: [{key: app, operator: NotIn, values: [web]}]}}]}]`, `
			in web6>db6 1/tcp: allow np spec.ingress[0]
			in db>web 1/tcp: allow np spec.ingress[1]
			in world>web 1/tcp: deny default-deny`},
		{"ipBlock is any address less its exceptions", `podSelector: {}, egress: [{to: [{ipBlock: {cidr: 10.0.0.0/8, except: [10.1.0.2/32]}}]}, {to: [{ipBlock: {cidr: "::/0"}}]}]`, `
			out web>guest 1/tcp: allow np spec.egress[0]
			out web>there 1/tcp: allow np spec.egress[0]
			out web>db 1/tcp: deny default-deny
			out web6>db6 1/tcp: allow np spec.egress[1]
			out web>nobody 1/tcp: deny default-deny
			out web>world 1/tcp: deny default-deny`},
		{"ports, ranges, protocols and names", `podSelector: {}, ingress: [{ports: [{port: 10, endPort: 12}, {protocol: SCTP}]}, {ports: [{port: 5, protocol: UDP}, {port: http}, {port: dns}, {port: dns, protocol: UDP}]}],
			egress: [{ports: [{port: http}]}]`, `
			in db>web 9/tcp: deny default-deny
			in db>web 10/tcp: allow np spec.ingress[0]
			in db>web 12/tcp: allow np spec.ingress[0]
			in db>web 13/tcp: deny default-deny
			in db>web 10/udp: deny default-deny
			in db>web 10/sctp: allow np spec.ingress[0]
			in db>web 5/udp: allow np spec.ingress[1]
			in db>web 80/tcp: allow np spec.ingress[1]
			in db>web 53/udp: allow np spec.ingress[1]
			in db>web 53/tcp: deny default-deny
			out web>db 81/tcp: allow np spec.egress[0]
			out web>db 80/tcp: deny default-deny
			out web>guest 80/tcp: deny default-deny`},
	} {
		t.Run(test.sentence, func(t *testing.T) { check(t, networkPolicy(test.spec), test.lines) })
	}
}

func TestCiliumNetworkPolicy(t *testing.T) {
	for _, test := range []struct{ sentence, spec, lines string }{
		{"an empty rule isolates and allows nobody; other pods are left alone", `ingress: [{}]`, `
			in db>web 1/tcp: deny default-deny
			in web>db 1/tcp: allow default-allow
			out web>db 1/tcp: allow default-allow`},
		{"enableDefaultDeny", `enableDefaultDeny: {ingress: false, egress: true}, ingressDeny: [{fromEntities: [world]}]`, `
			in db>web 1/tcp: allow default-allow
			in world>web 1/tcp: deny cnp spec.ingressDeny[0]
			out web>db 1/tcp: deny default-deny`},
		{"deny before allow", `ingress: [{fromEntities: [all]}], ingressDeny: [{fromEndpoints: [{}]}]`, `
			in db>web 1/tcp: deny cnp spec.ingressDeny[0]
			in guest>web 1/tcp: allow cnp spec.ingress[0]`},
		{"fromEndpoints is of the own namespace unless it names one", `ingress: [{fromEndpoints: [{matchLabels: {"k8s:tier": back}}]}, {fromEndpoints: [{matchLabels: {"k8s:io.kubernetes.pod.namespace": lab}}]},
			{fromEndpoints: [{matchLabels: {io.cilium.k8s.namespace.labels.team: blue}}]}]`, `
			in db>web 1/tcp: allow cnp spec.ingress[0]
			in guest>web 1/tcp: allow cnp spec.ingress[1]
			in there>web 1/tcp: deny default-deny`},
		{"facts as labels", `ingress: [{fromEndpoints: [{matchLabels: {io.cilium.k8s.policy.serviceaccount: db, "any:io.cilium.k8s.policy.cluster": lab}}]}, {fromEndpoints: [{matchLabels: {"reserved:remote-node": ""}}]}]`, `
			in db>web 1/tcp: allow cnp spec.ingress[0]
			in there>web 1/tcp: allow cnp spec.ingress[1]
			in world>web 1/tcp: deny default-deny`},
		{"entities", `egress: [{toEntities: [host]}, {toEntities: [kube-apiserver]}, {toEntities: [remote-node]}, {toEntities: [world-ipv6]}, {toEntities: [world]}, {toEntities: [cluster]}]`, `
			out web>here 1/tcp: allow cnp spec.egress[0]
			out web>api 1/tcp: allow cnp spec.egress[1]
			out web>there2 1/tcp: allow cnp spec.egress[1]
			out web>there 1/tcp: allow cnp spec.egress[2]
			out web6>world6 1/tcp: allow cnp spec.egress[3]
			out web>world 1/tcp: allow cnp spec.egress[4]
			out web>guest 1/tcp: allow cnp spec.egress[5]
			out web>nobody 1/tcp: deny default-deny`},
		{"ranges are hosts outside", `egress: [{toCIDR: [10.0.0.0/8]}, {toCIDRSet: [{cidr: 0.0.0.0/0, except: [198.51.0.0/16]}]}, {toCIDR: ["2001:db8::7"]}]`, `
			out web>guest 1/tcp: deny default-deny
			out web>there 1/tcp: deny default-deny
			out web>world 1/tcp: deny default-deny
			out web>api 1/tcp: allow cnp spec.egress[1]
			out web6>world6 1/tcp: allow cnp spec.egress[2]`},
		{"groups of ranges by name and by label", `egress: [{toCIDRSet: [{cidrGroupRef: partners, except: [198.51.100.7/32]}]}, {toCIDRSet: [{cidrGroupSelector: {matchLabels: {trust: low}}}]}]`, `
			out web>world 1/tcp: allow cnp spec.egress[1]
			out web>api 1/tcp: deny default-deny`},
		{"nodes by label", `egress: [{toNodes: [{matchLabels: {role: core}}]}]`, `
			out web>there2 1/tcp: allow cnp spec.egress[0]
			out web>here 1/tcp: deny default-deny
			out web>guest 1/tcp: deny default-deny`},
		{"services are their backends", `egress: [{toServices: [{k8sService: {serviceName: data}}], toPorts: [{ports: [{port: "1"}]}]}, {toServices: [{k8sServiceSelector: {selector: {matchLabels: {kind: data}}, namespace: shop}}]}]`, `
			out web>db 1/tcp: allow cnp spec.egress[0]
			out web>world 2/tcp: allow cnp spec.egress[1]
			out web>guest 1/tcp: deny default-deny`},
		{"ports", `ingress: [{toPorts: [{ports: [{port: "5"}]}]}, {toPorts: [{ports: [{port: "7", endPort: 8, protocol: UDP}, {port: http, protocol: TCP}, {port: "0", protocol: SCTP}]}]}]`, `
			in db>web 5/sctp: allow cnp spec.ingress[0]
			in db>web 5/icmp: deny default-deny
			in db>web 8/udp: allow cnp spec.ingress[1]
			in db>web 8/tcp: deny default-deny
			in db>web 80/tcp: allow cnp spec.ingress[1]
			in db>web 9/sctp: allow cnp spec.ingress[1]`},
		{"requirements deny the pods that miss them and allow nobody", `ingress: [{fromRequires: [{matchLabels: {tier: back}}], fromEndpoints: [{matchLabels: {app: db}}]}, {fromEntities: [world]}, {fromRequires: [], toPorts: [{ports: [{port: "1"}]}]}]`, `
			in db>web 2/tcp: allow cnp spec.ingress[0]
			in guest>web 1/tcp: deny cnp spec.ingress[0].fromRequires
			in there>web 1/tcp: allow cnp spec.ingress[2]
			in world>web 2/tcp: allow cnp spec.ingress[1]`},
		{"types of ICMP", `ingress: [{icmps: [{fields: [{type: EchoRequest}, {type: 128, family: IPv6}]}]}]`, `
			in db>web 8/icmp: allow cnp spec.ingress[0]
			in db>web 0/icmp: deny default-deny
			in db6>web6 128/icmpv6: allow cnp spec.ingress[0]
			in db>web 8/tcp: deny default-deny`},
	} {
		t.Run(test.sentence, func(t *testing.T) { check(t, ciliumPolicy(test.spec), test.lines) })
	}
}

func TestCiliumClusterwideNetworkPolicy(t *testing.T) {
	const head = "apiVersion: cilium.io/v2\nkind: CiliumClusterwideNetworkPolicy\nmetadata: {name: ccnp}\n"
	check(t, head+`specs:
- endpointSelector: {matchLabels: {"k8s:io.kubernetes.pod.namespace": shop}}
  ingress: [{fromEndpoints: [{}], toPorts: [{ports: [{port: "1"}]}]}]
- endpointSelector: {}
  ingressDeny: [{fromEndpoints: [{matchLabels: {app: db}}]}]
- nodeSelector: {matchLabels: {role: edge}}
  ingress: [{fromEntities: [world]}]
`, `
		in guest>web 1/tcp: allow ccnp specs[0].ingress[0]
		in there>web 1/tcp: deny default-deny
		in web>guest 1/tcp: deny default-deny
		in db>guest 1/tcp: deny ccnp specs[1].ingressDeny[0]
		in world>here 1/tcp: allow ccnp specs[2].ingress[0]
		in db>here 1/tcp: deny default-deny
		out here>db 1/tcp: allow default-allow`)
}

func TestClusterNetworkPolicy(t *testing.T) {
	shop := `subject: {namespaces: {matchLabels: {kubernetes.io/metadata.name: shop}}}`
	check(t, clusterPolicy("b", `tier: Admin, priority: 5, `+shop+`, ingress: [{action: Accept, from: [{namespaces: {}}], protocols: [{tcp: {destinationPort: {number: 1}}}]},
		{action: Pass, from: [{namespaces: {}}], protocols: [{udp: {destinationPort: {range: {start: 3, end: 5}}}}]},
		{action: Deny, from: [{pods: {namespaceSelector: {}, podSelector: {matchLabels: {app: db}}}}], protocols: [{udp: {}}, {sctp: {}}, {destinationNamedPort: http}]}]`)+"---\n"+
		clusterPolicy("a", `tier: Admin, priority: 6, `+shop+`, ingress: [{action: Deny, from: [{namespaces: {}}], protocols: [{tcp: {destinationPort: {number: 1}}}, {udp: {}}]}]`)+"---\n"+
		clusterPolicy("base", `tier: Baseline, priority: 0, subject: {pods: {namespaceSelector: {}, podSelector: {matchLabels: {app: web}}}},
		egress: [{action: Deny, to: [{networks: [10.0.0.3/32]}]}, {action: Accept, to: [{nodes: {matchLabels: {role: core}}}]}, {action: Deny, to: [{networks: [10.0.0.0/8, "::/0"]}]}]`)+"---\n"+
		networkPolicy(`podSelector: {matchLabels: {app: db}}, policyTypes: [Ingress, Egress]`), `
		in db>web 1/tcp: allow b spec.ingress[0]
		in db>web 4/udp: allow default-allow
		in db>web 6/udp: deny b spec.ingress[2]
		in guest>web 6/udp: deny a spec.ingress[0]
		in db>web 6/sctp: deny b spec.ingress[2]
		in db>web 80/tcp: deny b spec.ingress[2]
		in db>web 81/tcp: allow default-allow
		in there>web 1/tcp: allow default-allow
		in web>db 4/udp: deny default-deny
		in web>db 1/tcp: allow b spec.ingress[0]
		in db>guest 1/tcp: allow default-allow
		out web>there 1/tcp: allow base spec.egress[1]
		out web>there2 1/tcp: deny base spec.egress[0]
		out web>db 1/tcp: deny base spec.egress[2]
		out web6>world6 1/tcp: deny base spec.egress[2]
		out web>world 1/tcp: allow default-allow
		out db>web 1/tcp: deny default-deny`)
}

func TestAdminNetworkPolicyAndItsBaseline(t *testing.T) {
	check(t, `apiVersion: policy.networking.k8s.io/v1alpha1
kind: AdminNetworkPolicy
metadata: {name: anp}
spec:
  priority: 1
  subject: {pods: {namespaceSelector: {}, podSelector: {matchLabels: {app: web}}}}
  ingress: [{action: Pass, from: [{namespaces: {matchLabels: {team: blue}}}]},
    {action: Deny, from: [{namespaces: {}}], ports: [{portNumber: {protocol: UDP, port: 3}}, {portRange: {start: 5, end: 6}}, {namedPort: dns}]}]
---
apiVersion: policy.networking.k8s.io/v1alpha1
kind: BaselineAdminNetworkPolicy
metadata: {name: default}
spec:
  subject: {namespaces: {}}
  ingress: [{action: Deny, from: [{namespaces: {matchLabels: {team: blue}}}]}]
  egress: [{action: Allow, to: [{nodes: {}}]}, {action: Deny, to: [{networks: [0.0.0.0/0]}]}]
---
`+clusterPolicy("first", `tier: Baseline, priority: 1000, subject: {namespaces: {}}, egress: [{action: Accept, to: [{networks: [192.168.0.0/16]}]}]`), `
		in guest>web 3/udp: deny default spec.ingress[0]
		in db>web 3/udp: deny anp spec.ingress[1]
		in db>web 3/tcp: allow default-allow
		in db>web 6/tcp: deny anp spec.ingress[1]
		in db>web 53/udp: deny anp spec.ingress[1]
		out web>there 1/tcp: allow default spec.egress[0]
		out web>api 1/tcp: allow first spec.egress[0]
		out web>world 1/tcp: deny default spec.egress[1]`)
}

func TestStagedPoliciesHaveNoEffect(t *testing.T) {
	check(t, strings.Replace(networkPolicy(`podSelector: {}`), "namespace: shop", `namespace: shop, annotations: {tendril.io/stage: "true"}`, 1), `
		in db>web 1/tcp: allow default-allow`)
}

func TestOrderOfObjects(t *testing.T) {
	// Allows of two objects: the first by kind and name is named; a deny of the last still wins.
	check(t, networkPolicy(`podSelector: {}, ingress: [{}]`)+"---\n"+ciliumPolicy(`ingress: [{fromEndpoints: [{}]}], ingressDeny: [{fromEntities: [world]}]`), `
		in db>web 1/tcp: allow cnp spec.ingress[0]
		in guest>web 1/tcp: allow np spec.ingress[0]
		in world>web 1/tcp: deny cnp spec.ingressDeny[0]`)
}
