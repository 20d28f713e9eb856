package kube

import (
	"fmt"
	"net/netip"
	"strconv"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"tendril.io/tendril/bpf"
	"tendril.io/tendril/internal/identity"
	"tendril.io/tendril/internal/ipproto"
	"tendril.io/tendril/internal/label"
	"tendril.io/tendril/internal/policy"
	"tendril.io/tendril/internal/policy/policytest"
)

// A verdict test says in manifests who may speak, and reads from the compiled tables who does. The other tests compare
// the words of a translation; these would notice words that are as expected and mean something else.

// web is the pod that all verdicts are about.
const web = 1

// neighbour is somebody whom web may speak with.
type neighbour struct {
	name    string
	address string
	fact    policy.AddressFact
}

// workload is a pod's description for policies.
func workload(namespace, account string, labels map[string]string, ports ...policy.NamedPort) *policy.Workload {
	return &policy.Workload{Cluster: "lab", Namespace: namespace, ServiceAccount: account, Labels: label.SetOf(labels), NamedPorts: ports}
}

// neighbours are of every sort: pods of two namespaces, nodes, the API server, the outside, and an address of the pods'
// range that no pod has.
func neighbours() []neighbour {
	http := policy.NamedPort{Name: "http", Protocol: ipproto.TCP, Port: 9090}
	const cluster = uint32(bpf.AddressFlagCluster)
	return []neighbour{
		{"host", "10.0.0.1", policy.AddressFact{Reserved: identity.Host, Flags: cluster}},
		{"client", "10.0.1.2", policy.AddressFact{Workload: workload("shop", "bot", map[string]string{"app": "client"}, http), Flags: cluster}},
		{"batch", "10.0.1.3", policy.AddressFact{Workload: workload("shop", "default", map[string]string{"app": "batch", "tier": "back"}), Flags: cluster}},
		{"lab", "10.0.2.2", policy.AddressFact{Workload: workload("lab", "bot", map[string]string{"app": "client"}), Flags: cluster}},
		{"bare", "10.0.2.3", policy.AddressFact{Workload: workload("lab", "default", nil), Flags: cluster}},
		{"node", "10.0.0.2", policy.AddressFact{Flags: cluster, Reserved: identity.RemoteNode,
			Workload: &policy.Workload{Reserved: identity.RemoteNode, Cluster: "lab", Labels: label.SetOf(map[string]string{"zone": "east"})}}},
		{"api", "192.168.9.9", policy.AddressFact{Reserved: identity.KubeAPIServer}},
		{"world", "198.51.100.7", policy.AddressFact{Reserved: identity.World}},
		{"world6", "2001:db8::7", policy.AddressFact{Reserved: identity.World}},
		{"nobody", "10.0.1.99", policy.AddressFact{Reserved: identity.Unknown, Flags: cluster}},
	}
}

// groups are ranges and services that policies can name: two neighbours outside the cluster, and a pod.
func groups() []policy.Group {
	at := func(text string) []netip.Prefix { return []netip.Prefix{netip.MustParsePrefix(text)} }
	return []policy.Group{
		{Kind: policy.GroupCIDR, Name: "office", Prefixes: at("198.51.100.0/24")},
		{Kind: policy.GroupService, Namespace: "shop", Name: "mail", Prefixes: at("192.168.9.9/32")},
		{Kind: policy.GroupService, Namespace: "lab", Name: "sql", Labels: label.SetOf(map[string]string{"tier": "db"}), Prefixes: at("10.0.1.2/32")},
	}
}

// town is an engine that knows web and its neighbours, and what it has compiled.
type town struct {
	engine *policy.Engine
	kernel *policytest.Kernel
}

// newTown compiles the policies of a manifest.
func newTown(t *testing.T, manifest string) *town {
	t.Helper()
	n := &town{policy.New(policy.Config{}, policytest.NewNumbers()), policytest.NewKernel()}
	n.engine.SetNamespace("shop", map[string]string{"team": "red"})
	n.engine.SetNamespace("lab", map[string]string{"team": "blue", "env": "test"})
	self := workload("shop", "default", map[string]string{"app": "web"},
		policy.NamedPort{Name: "http", Protocol: ipproto.TCP, Port: 8080}, policy.NamedPort{Name: "dns", Protocol: ipproto.UDP, Port: 53})
	n.engine.SetSubject(web, *self)
	for _, x := range neighbours() {
		addr := netip.MustParseAddr(x.address)
		n.engine.SetAddress(netip.PrefixFrom(addr, addr.BitLen()), x.fact)
	}
	for _, g := range groups() {
		if err := n.engine.SetGroup(g); err != nil {
			t.Fatal(err)
		}
	}
	objects, err := Decode("x.yaml", []byte(manifest))
	if err != nil {
		t.Fatal(err)
	}
	for _, object := range objects {
		p, err := object.Policy()
		if err != nil {
			t.Fatal(err)
		}
		if err := n.engine.SetPolicy(p); err != nil {
			t.Fatal(err)
		}
	}
	delta, err := n.engine.Flush()
	if err != nil {
		t.Fatal(err)
	}
	if err := n.kernel.Apply(delta, nil); err != nil {
		t.Fatal(err)
	}
	return n
}

// admitted answers a question, "ingress 80/tcp", with the names of the neighbours that pass.
func (n *town) admitted(t *testing.T, question string) string {
	t.Helper()
	way, port, _ := strings.Cut(question, " ")
	direction := policy.Ingress
	if way == "egress" {
		direction = policy.Egress
	}
	digits, protocolName, _ := strings.Cut(port, "/")
	number, err := strconv.ParseUint(digits, 10, 16)
	if err != nil {
		t.Fatalf("question %q: %v", question, err)
	}
	protocol := map[string]uint8{"tcp": ipproto.TCP, "udp": ipproto.UDP, "sctp": ipproto.SCTP, "icmp": ipproto.ICMP, "icmpv6": ipproto.ICMPv6}[protocolName]
	names := []string{}
	for _, x := range neighbours() {
		v, err := n.kernel.Judge(web, direction, netip.MustParseAddr(x.address), protocol, uint16(number))
		if err != nil {
			t.Fatal(err)
		}
		if v.Action == bpf.ActionAllow {
			names = append(names, x.name)
		}
	}
	return fmt.Sprintf("%s: %s", question, strings.Join(names, " "))
}

// verdicts is a sentence about manifests, and who may speak with web as "direction port/protocol: names".
type verdicts struct {
	sentence, manifest string
	want               []string
}

func checkVerdicts(t *testing.T, header string, tests []verdicts) {
	t.Helper()
	for _, test := range tests {
		t.Run(test.sentence, func(t *testing.T) {
			n := newTown(t, header+strings.TrimPrefix(test.manifest, "\n"))
			var got []string
			for _, line := range test.want {
				question, _, _ := strings.Cut(line, ":")
				got = append(got, n.admitted(t, question))
			}
			if diff := cmp.Diff(test.want, got); diff != "" {
				t.Errorf("who may speak with web (-want +got):\n%s", diff)
			}
		})
	}
}

// A rule for anyone is for everyone who is somebody; where nothing isolates web there is no rule to ask, and even what
// comes from an address that no pod has is let through to the checks that are not policy's.
const (
	everyone  = "host client batch lab bare node api world world6"
	everybody = everyone + " nobody"
)

func TestVerdictsOfNetworkPolicyDefaults(t *testing.T) {
	checkVerdicts(t, networkPolicyHeader, []verdicts{
		{"a policy about other pods leaves web open both ways", `
  podSelector: {matchLabels: {app: db}}
`, []string{"ingress 80/tcp: " + everybody, "egress 80/tcp: " + everybody}},
		{"nothing said isolates ingress, of which the node itself is exempt, and not egress", `
  podSelector: {}
`, []string{"ingress 80/tcp: host", "ingress 53/udp: host", "egress 80/tcp: " + everybody}},
		{"an empty list of egress rules is none: egress stays open", `
  podSelector: {}
  egress: []
`, []string{"ingress 80/tcp: host", "egress 80/tcp: " + everybody}},
		{"one empty egress rule allows all of what it isolates", `
  podSelector: {}
  egress: [{}]
`, []string{"ingress 80/tcp: host", "egress 80/tcp: " + everyone, "egress 53/udp: " + everyone}},
		{"policyTypes Egress isolates egress although there is no rule; the node is no exception there", `
  podSelector: {}
  policyTypes: [Egress]
`, []string{"ingress 80/tcp: " + everybody, "egress 80/tcp: "}},
		{"an empty list of policyTypes is none, so the default holds", `
  podSelector: {}
  policyTypes: []
  egress: [{to: [{podSelector: {}}]}]
`, []string{"ingress 80/tcp: host", "egress 80/tcp: client batch"}},
		{"null stands for a field that is missing", `
  podSelector: {matchLabels: null}
  policyTypes: null
  ingress: null
  egress: null
`, []string{"ingress 80/tcp: host", "egress 80/tcp: " + everybody}},
	})
}

func TestVerdictsOfNetworkPolicyPeers(t *testing.T) {
	checkVerdicts(t, networkPolicyHeader, []verdicts{
		{"from missing and from empty are anyone, a peer of empty selectors is pods only", `
  podSelector: {}
  ingress:
  - ports: [{port: 1}]
  - {from: [], ports: [{port: 2}]}
  - {from: [{podSelector: {}}], ports: [{port: 3}]}
  - {from: [{namespaceSelector: {}}], ports: [{port: 4}]}
  - {from: [{namespaceSelector: {}, podSelector: {}}], ports: [{port: 5}]}
`, []string{"ingress 1/tcp: " + everyone, "ingress 2/tcp: " + everyone, "ingress 3/tcp: host client batch",
			"ingress 4/tcp: host client batch lab bare", "ingress 5/tcp: host client batch lab bare"}},
		{"labels of pod and namespace are joined in one peer and alternatives in two", `
  podSelector: {}
  ingress:
  - from: [{namespaceSelector: {matchLabels: {team: blue}}, podSelector: {matchLabels: {app: client}}}]
    ports: [{port: 1}]
  - from: [{namespaceSelector: {matchLabels: {team: blue}}}, {podSelector: {matchLabels: {app: client}}}]
    ports: [{port: 2}]
`, []string{"ingress 1/tcp: host lab", "ingress 2/tcp: host client lab bare"}},
		{"operators that a missing label satisfies still mean pods alone", `
  podSelector: {}
  ingress:
  - from: [{namespaceSelector: {}, podSelector: {matchExpressions: [{key: app, operator: NotIn, values: [client]}]}}]
    ports: [{port: 1}]
  - from: [{namespaceSelector: {}, podSelector: {matchExpressions: [{key: app, operator: DoesNotExist}]}}]
    ports: [{port: 2}]
  - from: [{namespaceSelector: {matchExpressions: [{key: env, operator: DoesNotExist}]}}]
    ports: [{port: 3}]
`, []string{"ingress 1/tcp: host batch bare", "ingress 2/tcp: host bare", "ingress 3/tcp: host client batch"}},
		{"an ipBlock means whoever has the address, pods and nodes too, less its exceptions", `
  podSelector: {}
  ingress:
  - {from: [{ipBlock: {cidr: 10.0.0.0/16, except: [10.0.1.0/24]}}], ports: [{port: 1}]}
  - {from: [{ipBlock: {cidr: 0.0.0.0/0}}], ports: [{port: 2}]}
  - {from: [{ipBlock: {cidr: "::/0"}}], ports: [{port: 3}]}
  - {from: [{ipBlock: {cidr: 10.0.0.0/8, except: [10.0.0.0/16]}}, {ipBlock: {cidr: 10.0.1.3/32}}], ports: [{port: 4}]}
`, []string{"ingress 1/tcp: host lab bare node", "ingress 2/tcp: host client batch lab bare node api world",
			"ingress 3/tcp: host world6", "ingress 4/tcp: host batch"}},
	})
}

func TestVerdictsOfNetworkPolicyPorts(t *testing.T) {
	checkVerdicts(t, networkPolicyHeader, []verdicts{
		{"a port is TCP unless said, and includes both ends of a range", `
  podSelector: {}
  ingress:
  - from: [{podSelector: {}}]
    ports: [{port: 8000, endPort: 8002}, {port: 65535, protocol: UDP}, {protocol: SCTP}]
`, []string{"ingress 7999/tcp: host", "ingress 8000/tcp: host client batch", "ingress 8002/tcp: host client batch",
			"ingress 8003/tcp: host", "ingress 8000/udp: host", "ingress 65535/udp: host client batch", "ingress 65534/udp: host",
			"ingress 1/sctp: host client batch", "ingress 8/icmp: host"}},
		{"a name is the port of whoever is spoken to: of web on ingress, of each peer on egress", `
  podSelector: {}
  ingress: [{from: [{podSelector: {}}], ports: [{port: http}]}]
  egress: [{ports: [{port: http}]}]
`, []string{"ingress 8080/tcp: host client batch", "ingress 9090/tcp: host", "egress 9090/tcp: client", "egress 8080/tcp: "}},
		{"a name of another protocol, or one that nobody has, opens nothing", `
  podSelector: {}
  ingress: [{ports: [{port: dns}, {port: http, protocol: UDP}, {port: absent}]}]
`, []string{"ingress 53/tcp: host", "ingress 53/udp: host", "ingress 8080/udp: host", "ingress 8080/tcp: host"}},
		{"no ports and empty ports are every protocol, those without ports included", `
  podSelector: {}
  ingress: [{from: [{podSelector: {matchLabels: {app: client}}}]}, {from: [{podSelector: {matchLabels: {app: batch}}}], ports: []}]
`, []string{"ingress 1/tcp: host client batch", "ingress 1/sctp: host client batch", "ingress 8/icmp: host client batch"}},
	})
}

func TestVerdictsOfCiliumDefaults(t *testing.T) {
	checkVerdicts(t, ciliumHeader+"spec:\n  endpointSelector: {}\n", []verdicts{
		{"a direction with no rules stays open", `
  egress: [{}]
`, []string{"ingress 80/tcp: " + everybody, "egress 80/tcp: "}},
		{"an empty rule is nobody here, where NetworkPolicy says anyone", `
  ingress: [{}]
`, []string{"ingress 80/tcp: host", "egress 80/tcp: " + everybody}},
		{"enableDefaultDeny false with an allow rule denies nobody", `
  enableDefaultDeny: {ingress: false}
  ingress: [{fromEndpoints: [{matchLabels: {app: client}}]}]
`, []string{"ingress 80/tcp: " + everybody}},
		{"enableDefaultDeny false leaves what deny rules do not name", `
  enableDefaultDeny: {ingress: false}
  ingressDeny: [{fromEntities: [world]}]
`, []string{"ingress 80/tcp: host client batch lab bare node nobody"}},
		{"enableDefaultDeny true isolates a direction that has no rules", `
  enableDefaultDeny: {egress: true}
  ingress: [{fromEntities: [all]}]
`, []string{"ingress 80/tcp: " + everyone, "egress 80/tcp: "}},
		{"a deny rule wins over an allow rule of the same peer, whichever stands first", `
  ingress: [{fromEndpoints: [{}]}]
  ingressDeny: [{fromEndpoints: [{matchLabels: {app: batch}}], toPorts: [{ports: [{port: "80", protocol: TCP}]}]}]
`, []string{"ingress 80/tcp: host client", "ingress 81/tcp: host client batch", "ingress 80/udp: host client batch"}},
	})
}

func TestVerdictsOfCiliumPeers(t *testing.T) {
	checkVerdicts(t, ciliumHeader+"spec:\n  endpointSelector: {}\n", []verdicts{
		{"endpoints are of the own namespace unless a namespace is named", `
  ingress:
  - {fromEndpoints: [{}], toPorts: [{ports: [{port: "1"}]}]}
  - {fromEndpoints: [{matchLabels: {"k8s:io.kubernetes.pod.namespace": lab}}], toPorts: [{ports: [{port: "2"}]}]}
  - {fromEndpoints: [{matchLabels: {io.cilium.k8s.namespace.labels.team: blue, app: client}}], toPorts: [{ports: [{port: "3"}]}]}
  - {fromEndpoints: [{matchExpressions: [{key: io.kubernetes.pod.namespace, operator: Exists}]}], toPorts: [{ports: [{port: "4"}]}]}
  - {fromEndpoints: [{matchLabels: {io.cilium.k8s.policy.serviceaccount: bot}}], toPorts: [{ports: [{port: "5"}]}]}
`, []string{"ingress 1/tcp: host client batch", "ingress 2/tcp: host lab bare", "ingress 3/tcp: host lab",
			"ingress 4/tcp: host client batch lab bare", "ingress 5/tcp: host client"}},
		{"a list that is there but empty is nobody, at whatever port", `
  ingress: [{fromEndpoints: [], toPorts: [{ports: [{port: "80"}]}]}, {fromEntities: []}, {fromCIDR: []}, {fromCIDRSet: []}]
`, []string{"ingress 80/tcp: host", "ingress 81/tcp: host"}},
		{"entities", `
  egress:
  - {toEntities: [all], toPorts: [{ports: [{port: "1"}]}]}
  - {toEntities: [world], toPorts: [{ports: [{port: "2"}]}]}
  - {toEntities: [world-ipv4], toPorts: [{ports: [{port: "3"}]}]}
  - {toEntities: [world-ipv6], toPorts: [{ports: [{port: "4"}]}]}
  - {toEntities: [cluster], toPorts: [{ports: [{port: "5"}]}]}
  - {toEntities: [host], toPorts: [{ports: [{port: "6"}]}]}
  - {toEntities: [remote-node], toPorts: [{ports: [{port: "7"}]}]}
  - {toEntities: [kube-apiserver], toPorts: [{ports: [{port: "8"}]}]}
  - {toEntities: [none], toPorts: [{ports: [{port: "9"}]}]}
`, []string{"egress 1/tcp: " + everyone, "egress 2/tcp: api world world6", "egress 3/tcp: api world", "egress 4/tcp: world6",
			"egress 5/tcp: host client batch lab bare node", "egress 6/tcp: host", "egress 7/tcp: node", "egress 8/tcp: api", "egress 9/tcp: "}},
		{"a range is hosts outside the cluster: pods and nodes that lie in it do not match", `
  egress:
  - {toCIDR: [0.0.0.0/0], toPorts: [{ports: [{port: "1"}]}]}
  - {toCIDRSet: [{cidr: 0.0.0.0/0, except: [198.51.100.0/24]}], toPorts: [{ports: [{port: "2"}]}]}
  - {toCIDR: [10.0.1.2, "2001:db8::7"], toPorts: [{ports: [{port: "3"}]}]}
`, []string{"egress 1/tcp: api world", "egress 2/tcp: api", "egress 3/tcp: world6"}},
	})
}

func TestVerdictsOfCiliumGroups(t *testing.T) {
	checkVerdicts(t, ciliumHeader+"spec:\n  endpointSelector: {}\n", []verdicts{
		{"a group of ranges, without what is excepted, and nobody by a name that is not known", `
  egress:
  - {toCIDRSet: [{cidrGroupRef: office}], toPorts: [{ports: [{port: "1"}]}]}
  - {toCIDRSet: [{cidrGroupRef: office, except: [198.51.100.7/32]}], toPorts: [{ports: [{port: "2"}]}]}
  - {toCIDRSet: [{cidrGroupRef: absent}], toPorts: [{ports: [{port: "3"}]}]}
`, []string{"egress 1/tcp: world", "egress 2/tcp: ", "egress 3/tcp: "}},
		{"services by name, by labels, and of a namespace that has none such", `
  egress:
  - {toServices: [{k8sService: {serviceName: mail, namespace: shop}}], toPorts: [{ports: [{port: "1"}]}]}
  - {toServices: [{k8sServiceSelector: {selector: {matchLabels: {tier: db}}}}], toPorts: [{ports: [{port: "2"}]}]}
  - {toServices: [{k8sServiceSelector: {selector: {matchLabels: {tier: db}}, namespace: shop}}], toPorts: [{ports: [{port: "3"}]}]}
`, []string{"egress 1/tcp: api", "egress 2/tcp: client", "egress 3/tcp: "}},
		{"nodes by their labels", `
  ingress:
  - {fromNodes: [{matchLabels: {zone: east}}], toPorts: [{ports: [{port: "1"}]}]}
  - {fromNodes: [{matchLabels: {zone: west}}], toPorts: [{ports: [{port: "2"}]}]}
  - {fromNodes: [{matchLabels: {app: client}}], toPorts: [{ports: [{port: "3"}]}]}
`, []string{"ingress 1/tcp: host node", "ingress 2/tcp: host", "ingress 3/tcp: host"}},
		{"API servers come in, and nobody else", `
  ingress: [{fromEntities: [kube-apiserver]}]
`, []string{"ingress 80/tcp: host api"}},
	})
}

func TestVerdictsOfCiliumPorts(t *testing.T) {
	checkVerdicts(t, ciliumHeader+"spec:\n  endpointSelector: {}\n", []verdicts{
		{"no protocol is each protocol with ports and no other", `
  ingress: [{fromEndpoints: [{}], toPorts: [{ports: [{port: "53"}]}]}]
`, []string{"ingress 53/tcp: host client batch", "ingress 53/udp: host client batch", "ingress 53/sctp: host client batch", "ingress 53/icmp: host"}},
		{"port 0 is every port of its protocol", `
  ingress: [{fromEndpoints: [{}], toPorts: [{ports: [{port: "0", protocol: UDP}]}]}]
`, []string{"ingress 1/udp: host client batch", "ingress 65535/udp: host client batch", "ingress 1/tcp: host"}},
		{"a range and a name side by side", `
  ingress: [{fromEndpoints: [{}], toPorts: [{ports: [{port: "10", endPort: 12, protocol: TCP}]}, {ports: [{port: dns, protocol: UDP}]}]}]
`, []string{"ingress 9/tcp: host", "ingress 10/tcp: host client batch", "ingress 12/tcp: host client batch", "ingress 13/tcp: host",
			"ingress 53/udp: host client batch", "ingress 53/tcp: host"}},
		{"an ICMP type is of one family and no port", `
  ingress: [{fromEndpoints: [{}], icmps: [{fields: [{type: EchoRequest}, {type: EchoRequest, family: IPv6}]}]}]
`, []string{"ingress 8/icmp: host client batch", "ingress 0/icmp: host", "ingress 128/icmpv6: host client batch", "ingress 8/icmpv6: host", "ingress 8/tcp: host"}},
	})
}

func TestVerdictsOfPoliciesTogether(t *testing.T) {
	checkVerdicts(t, "", []verdicts{
		{"allow rules of two objects add up", networkPolicyHeader + `  podSelector: {}
  ingress: [{from: [{podSelector: {matchLabels: {app: client}}}]}]
---
` + ciliumHeader + `spec: {endpointSelector: {}, ingress: [{fromEndpoints: [{matchLabels: {app: batch}}]}]}
`, []string{"ingress 80/tcp: host client batch"}},
		{"a deny of one object wins over an allow of another dialect", networkPolicyHeader + `  podSelector: {}
  ingress: [{}]
---
` + clusterwideHeader + `spec: {endpointSelector: {}, ingressDeny: [{fromEndpoints: [{matchLabels: {app: client}}]}]}
`, []string{"ingress 80/tcp: host batch bare node api world world6"}},
		{"a policy that isolates nothing does not open what another isolates", networkPolicyHeader + `  podSelector: {}
---
` + ciliumHeader + `spec: {endpointSelector: {}, enableDefaultDeny: {ingress: false}, ingress: [{fromEndpoints: [{matchLabels: {app: client}}]}]}
`, []string{"ingress 80/tcp: host client"}},
		{"a clusterwide policy about another namespace leaves web alone", clusterwideHeader +
			`spec: {endpointSelector: {matchLabels: {"k8s:io.kubernetes.pod.namespace": lab}}, ingress: [{}], egress: [{}]}
`, []string{"ingress 80/tcp: " + everybody, "egress 80/tcp: " + everybody}},
	})
}
