package differential_test

import (
	"maps"
	"net/netip"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
	"pgregory.net/rapid"

	storev1 "tendril.io/tendril/api/store/v1"
	"tendril.io/tendril/bpf"
	"tendril.io/tendril/internal/identity"
	"tendril.io/tendril/internal/ipproto"
	"tendril.io/tendril/internal/kube"
	"tendril.io/tendril/internal/label"
	"tendril.io/tendril/internal/policy"
	"tendril.io/tendril/test/differential/reference"
)

// endpoints is the number of pods on the node that is asked.
const endpoints = 3

// host is the endpoint's number that stands for the node itself.
const host = endpoints + 1

// town is one world twice: as the reference reads it, and as the policy engine is told it.
type town struct {
	text       []string // by place
	world      reference.World
	namespaces map[string]map[string]string
	subjects   map[uint32]policy.Workload
	owners     map[netip.Addr]uint32 // endpoint of a pod's address
	hosts      []netip.Addr          // of the node itself
	addresses  map[netip.Prefix]policy.AddressFact
	policies   []policy.Policy
	groups     []policy.Group
	packets    []reference.Packet // to ask about
}

const inCluster = uint32(bpf.AddressFlagCluster)

// newTown reads manifests both ways.
func newTown(t *rapid.T, m manifests) *town {
	n := &town{namespaces: map[string]map[string]string{}, subjects: map[uint32]policy.Workload{}, owners: map[netip.Addr]uint32{},
		addresses: map[netip.Prefix]policy.AddressFact{},
		world: reference.World{
			Cluster: "lab", Local: "here", APIServers: []netip.Addr{netip.MustParseAddr("192.0.2.99"), netip.MustParseAddr("10.0.0.102")},
			PodRanges: []netip.Prefix{netip.MustParsePrefix("10.1.0.0/16"), netip.MustParsePrefix("fd00:1::/64"), netip.MustParsePrefix("fd00:2::/64")},
		},
	}
	for _, r := range n.world.PodRanges {
		n.addresses[r] = policy.AddressFact{Reserved: identity.Unknown, Flags: inCluster | uint32(bpf.AddressFlagUnknown)}
	}
	for _, addr := range n.world.APIServers {
		n.addresses[exact(addr)] = policy.AddressFact{Reserved: identity.World, APIServer: true}
	}
	for _, place := range slices.Sorted(maps.Keys(m)) {
		n.text = append(n.text, m[place])
	}
	for _, manifest := range n.text {
		if err := n.world.Read(manifest); err != nil {
			t.Fatalf("the reference cannot read this: %v\n%s", err, manifest)
		}
	}
	for _, node := range n.world.Nodes {
		n.addNode(&node)
	}
	for _, manifest := range n.text {
		if strings.Contains(manifest, "kind: Node\n") {
			continue
		}
		n.decode(t, manifest)
	}
	n.addGroups()
	return n
}

func exact(addr netip.Addr) netip.Prefix { return netip.PrefixFrom(addr, addr.BitLen()) }

func (n *town) addNode(node *corev1.Node) {
	w := &policy.Workload{Reserved: identity.RemoteNode, Labels: label.SetOf(node.Labels)}
	fact := policy.AddressFact{Workload: w, Flags: inCluster | uint32(bpf.AddressFlagRemoteNode)}
	if node.Name == n.world.Local {
		w.Reserved, fact.Flags = identity.Host, inCluster|uint32(bpf.AddressFlagHost)
	}
	for _, a := range node.Status.Addresses {
		addr := netip.MustParseAddr(a.Address)
		if w.Reserved == identity.Host {
			n.hosts = append(n.hosts, addr)
		}
		fact.APIServer = slices.Contains(n.world.APIServers, addr)
		n.addresses[exact(addr)] = fact
	}
}

// decode takes a manifest the way that tendril takes it: decoded, checked, turned into records and policies.
func (n *town) decode(t *rapid.T, manifest string) {
	objects, err := kube.Decode("town.yaml", []byte(manifest))
	if err != nil {
		t.Fatalf("%v\n%s", err, manifest)
	}
	records, err := kube.Records(objects, n.world.Cluster)
	if err != nil {
		t.Fatalf("%v\n%s", err, manifest)
	}
	var set *storev1.LabelSet
	for _, r := range records {
		switch value := r.Value.(type) {
		case *storev1.Namespace:
			n.namespaces[r.Object.Name] = value.Labels
		case *storev1.LabelSet:
			set = value
		case *storev1.Pod:
			n.addPod(r.Object, set, value)
		case *storev1.Policy:
			p, err := kube.ParsePolicy(r.Object.Kind, value.Object, "town.yaml")
			if err != nil {
				t.Fatalf("%v\n%s", err, manifest)
			}
			n.policies = append(n.policies, p)
		}
	}
}

func (n *town) addPod(o *kube.Object, set *storev1.LabelSet, slim *storev1.Pod) {
	w := policy.Workload{Cluster: set.Cluster, Namespace: set.Namespace, ServiceAccount: set.ServiceAccount, Labels: label.SetOf(set.Labels)}
	for _, p := range slim.NamedPorts {
		w.NamedPorts = append(w.NamedPorts, policy.NamedPort{Name: p.Name, Protocol: uint8(p.Protocol), Port: uint16(p.Port)})
	}
	at := slices.IndexFunc(n.world.Pods, func(p corev1.Pod) bool { return p.Name == o.Name })
	pod := &n.world.Pods[at]
	fact := policy.AddressFact{Workload: &w, Flags: inCluster}
	if pod.Spec.NodeName == n.world.Local {
		fact.Endpoint = uint32(len(n.subjects) + 1)
		fact.Flags |= uint32(bpf.AddressFlagLocalPod)
		n.subjects[fact.Endpoint] = w
	}
	for _, ip := range pod.Status.PodIPs {
		addr := netip.MustParseAddr(ip.IP)
		n.addresses[exact(addr)] = fact
		if fact.Endpoint != 0 {
			n.owners[addr] = fact.Endpoint
		}
	}
}

// addGroups tells of lists of ranges and of services what policies may name.
func (n *town) addGroups() {
	for _, g := range n.world.CIDRGroups {
		group := policy.Group{Kind: policy.GroupCIDR, Name: g.Name, Labels: label.SetOf(g.Labels)}
		for _, r := range g.Spec.ExternalCIDRs {
			group.Prefixes = append(group.Prefixes, netip.MustParsePrefix(r))
		}
		n.groups = append(n.groups, group)
	}
	for _, s := range n.world.Services {
		group := policy.Group{Kind: policy.GroupService, Namespace: s.Namespace, Name: s.Name, Labels: label.SetOf(s.Labels)}
		for _, slice := range n.world.Slices {
			for _, e := range slice.Endpoints {
				if slice.Namespace == s.Namespace && slice.Labels["kubernetes.io/service-name"] == s.Name {
					group.Prefixes = append(group.Prefixes, exact(netip.MustParseAddr(e.Addresses[0])))
				}
			}
		}
		n.groups = append(n.groups, group)
	}
}

// tell replaces what an engine knows, another town or nothing, by this one.
func (n *town) tell(t *rapid.T, e *policy.Engine, before *town) {
	if before != nil {
		for _, p := range before.policies {
			e.DeletePolicy(p.Key)
		}
		for prefix := range before.addresses {
			e.DeleteAddress(prefix)
		}
		for _, g := range before.groups {
			e.DeleteGroup(g.Kind, g.Namespace, g.Name)
		}
	}
	for name, labels := range n.namespaces {
		e.SetNamespace(name, labels)
	}
	for endpoint, w := range n.subjects {
		e.SetSubject(endpoint, w)
	}
	for prefix, fact := range n.addresses {
		e.SetAddress(prefix, fact)
	}
	for _, g := range n.groups {
		if err := e.SetGroup(g); err != nil {
			t.Fatal(err)
		}
	}
	for _, p := range n.policies {
		if err := e.SetPolicy(p); err != nil {
			t.Fatalf("%v\n%s", err, n)
		}
	}
}

// String is all manifests.
func (n *town) String() string { return strings.Join(n.text, "---\n") }

// questions lists packets between everybody of the town and its pods of this node, at ports on and beside the edges of
// what policies name.
func (n *town) questions() []reference.Packet {
	others := []string{
		"10.0.0.1", "10.0.0.2", "10.0.0.102", "fd00::1", "fd00::2", "10.1.0.9", "fd00:2::9", "192.0.2.7", "192.0.2.8", "192.0.2.77", "192.0.2.99", "192.0.9.9",
		"203.0.113.1", "2001:db8::7", "2001:db8::100", "2001:db8:1::1", "2a00::1",
	}
	var addrs []netip.Addr
	for _, text := range others {
		addrs = append(addrs, netip.MustParseAddr(text))
	}
	for _, pod := range n.world.Pods {
		for _, ip := range pod.Status.PodIPs {
			addrs = append(addrs, netip.MustParseAddr(ip.IP))
		}
	}
	var out []reference.Packet
	for _, from := range slices.SortedFunc(maps.Keys(n.owners), netip.Addr.Compare) {
		for _, to := range addrs {
			if from.Is4() != to.Is4() || n.owners[from] == n.owners[to] {
				continue
			}
			for _, w := range what(from.Is4()) {
				out = append(out, reference.Packet{Source: from, Destination: to, Protocol: w.protocol, Port: w.port})
				if n.owners[to] == 0 {
					out = append(out, reference.Packet{Source: to, Destination: from, Protocol: w.protocol, Port: w.port})
				}
			}
		}
	}
	for _, from := range n.hosts {
		for _, to := range addrs {
			if from.Is4() != to.Is4() || slices.Contains(n.hosts, to) {
				continue
			}
			for _, w := range what(from.Is4()) {
				out = append(out, reference.Packet{Source: from, Destination: to, Protocol: w.protocol, Port: w.port})
				out = append(out, reference.Packet{Source: to, Destination: from, Protocol: w.protocol, Port: w.port})
			}
		}
	}
	return out
}

// judge is the endpoint whose programs judge what an address sends and gets; 0: it is judged elsewhere.
func (n *town) judge(addr netip.Addr) uint32 {
	if slices.Contains(n.hosts, addr) {
		return host
	}
	return n.owners[addr]
}

type protocolPort struct {
	protocol uint8
	port     uint16
}

func what(is4 bool) []protocolPort {
	all := []protocolPort{{ipproto.TCP, 65535}, {ipproto.UDP, 65535}, {ipproto.SCTP, 2}, {ipproto.SCTP, 7}}
	for port := uint16(1); port <= 7; port++ {
		all = append(all, protocolPort{ipproto.TCP, port}, protocolPort{ipproto.UDP, port})
	}
	if is4 {
		return append(all, protocolPort{ipproto.ICMP, 8}, protocolPort{ipproto.ICMP, 3})
	}
	return append(all, protocolPort{ipproto.ICMPv6, 128}, protocolPort{ipproto.ICMPv6, 1})
}

// verdict says in the reference's words what an action and a rule's number say.
func verdict(t *rapid.T, e *policy.Engine, action bpf.Action, rule uint32) reference.Verdict {
	info, ok := e.Rule(rule)
	if !ok {
		t.Fatalf("a verdict names rule %d, which nobody knows", rule)
	}
	v := reference.Verdict{Allow: action == bpf.ActionAllow, Kind: info.Key.Kind, Namespace: info.Key.Namespace, Name: info.Key.Name, Place: info.Place}
	if info.Key == (policy.Key{}) {
		v.Place = info.Name
	}
	return v
}
