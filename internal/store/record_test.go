package store

import (
	"net/netip"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"google.golang.org/protobuf/proto"

	storev1 "tendril.io/tendril/api/store/v1"
	"tendril.io/tendril/internal/table"
)

func four(text string) []byte { return netip.MustParseAddr(text).AsSlice() }

func parse(texts ...string) (result []netip.Addr) {
	for _, text := range texts {
		result = append(result, netip.MustParseAddr(text))
	}
	return result
}

func equal[Row any](t *testing.T, want, got Row, err error) {
	t.Helper()
	same := cmp.Comparer(func(a, b netip.Addr) bool { return a == b })
	prefixes := cmp.Comparer(func(a, b netip.Prefix) bool { return a == b })
	if diff := cmp.Diff(want, got, same, prefixes); diff != "" || err != nil {
		t.Errorf("error %v (-want +got):\n%s", err, diff)
	}
}

func TestEachRecordBecomesTheRowOfItsKey(t *testing.T) {
	gotNode, err := nodeRow(NodeKey("n1"), &storev1.Node{
		Addresses: [][]byte{four("192.0.2.1"), four("2001:db8::1")}, PodCidrs: []string{"10.1.0.0/24", "fd00::/64"},
		Tunnel: four("192.0.2.1"), RouterAddresses: [][]byte{four("10.1.0.1")}, HealthAddresses: [][]byte{four("10.1.0.2")},
		Zone: "z", BootId: "b", MinVersion: 1, MaxVersion: 2,
	})
	equal(t, &table.Node{
		Name: "n1", Addresses: parse("192.0.2.1", "2001:db8::1"),
		PodCIDRs: []netip.Prefix{netip.MustParsePrefix("10.1.0.0/24"), netip.MustParsePrefix("fd00::/64")},
		Tunnel:   netip.MustParseAddr("192.0.2.1"), Routers: parse("10.1.0.1"), Healths: parse("10.1.0.2"),
		Zone: "z", BootID: "b", MinVersion: 1, MaxVersion: 2,
	}, gotNode, err)

	gotPod, err := podRow(PodKey("n1", "ns", "web"), &storev1.Pod{
		Uid: "u", Labels: make([]byte, 16), HostNetwork: true,
		NamedPorts: []*storev1.NamedPort{{Name: "http", Port: 80, Protocol: 6}},
	})
	equal(t, &table.Pod{
		Node: "n1", Namespace: "ns", Name: "web", UID: "u", HostNetwork: true,
		NamedPorts: []table.NamedPort{{Name: "http", Port: 80, Protocol: 6}},
	}, gotPod, err)

	gotIP, err := ipRow(AddrKey("n1", "fd00::5"), IPValue("web"))
	equal(t, &table.IP{
		Node: "n1", Addr: netip.MustParseAddr("fd00::5"), PodUID: "uid-web", Sandbox: "box-web", Namespace: "default", Pod: "web",
	}, gotIP, err)

	gotSet, err := labelSetRow(LabelsKey([16]byte{9}), &storev1.LabelSet{
		Cluster: "c", Namespace: "ns", ServiceAccount: "sa", Labels: map[string]string{"a": "b"},
	})
	equal(t, &table.LabelSet{
		Hash: [16]byte{9}, Cluster: "c", Namespace: "ns", ServiceAccount: "sa", Labels: map[string]string{"a": "b"},
	}, gotSet, err)

	gotLabels, err := nodeLabelsRow(NodeLabelsKey("n1"), &storev1.NodeLabels{Labels: map[string]string{"role": "edge"}})
	equal(t, &table.NodeLabels{Node: "n1", Labels: map[string]string{"role": "edge"}}, gotLabels, err)

	gotGroup, err := cidrGroupRow(CIDRGroupKey("office"), &storev1.CIDRGroup{
		Prefixes: []string{"203.0.113.0/24", "2001:db8::/32"}, Labels: map[string]string{"team": "red"},
	})
	equal(t, &table.CIDRGroup{
		Name: "office", Labels: map[string]string{"team": "red"},
		Prefixes: []netip.Prefix{netip.MustParsePrefix("203.0.113.0/24"), netip.MustParsePrefix("2001:db8::/32")},
	}, gotGroup, err)

	gotBackends, err := backendsRow(EndpointsKey("ns", "web", "web-1"), &storev1.Endpoints{
		Ports:    []*storev1.EndpointPort{{Name: "http", Port: 8080, Protocol: 6}},
		Backends: []*storev1.Backend{{Addresses: [][]byte{four("10.1.0.5")}, Node: "n1", Zone: "z", Ready: true, Pod: "ns/web", HintZones: []string{"a", "b"}}},
	})
	equal(t, &table.Backends{
		Namespace: "ns", Service: "web", Slice: "web-1", Ports: []table.NamedPort{{Name: "http", Port: 8080, Protocol: 6}},
		Backends: []table.Backend{{Addrs: parse("10.1.0.5"), Node: "n1", Zone: "z", Ready: true, Pod: "ns/web", HintZones: []string{"a", "b"}}},
	}, gotBackends, err)

	gotPolicy, err := policyRow(PolicyKey("ClusterNetworkPolicy", "", "p"), &storev1.Policy{Object: []byte("{}"), Revision: 3, Source: "f"})
	equal(t, &table.Policy{Kind: "ClusterNetworkPolicy", Name: "p", Object: []byte("{}"), Revision: 3, Source: "f"}, gotPolicy, err)
}

func TestAServiceRecordKeepsAllItsOptions(t *testing.T) {
	got, err := serviceRow(ServiceKey("ns", "web"), &storev1.Service{
		Type: storev1.Service_NODE_PORT, ClusterIps: [][]byte{four("10.96.0.1")},
		Ports:           []*storev1.ServicePort{{Name: "http", Protocol: 6, Port: 80, NodePort: 30080}},
		AffinitySeconds: 10, InternalLocal: true, ExternalLocal: true, ExternalIps: [][]byte{four("198.51.100.1")},
		LoadBalancerIps: [][]byte{four("198.51.100.2")}, SourceRanges: []string{"203.0.113.0/24"}, HealthCheckNodePort: 30081,
		TrafficDistribution: "PreferClose", PublishNotReady: true, Algorithm: "maglev", Forwarding: "dsr", Labels: map[string]string{"tier": "db"},
	})
	equal(t, &table.Service{
		Namespace: "ns", Name: "web", Type: "NodePort", ClusterIPs: parse("10.96.0.1"),
		Ports:           []table.ServicePort{{Name: "http", Protocol: 6, Port: 80, NodePort: 30080}},
		AffinitySeconds: 10, InternalLocal: true, ExternalLocal: true, ExternalIPs: parse("198.51.100.1"),
		LoadBalancerIPs: parse("198.51.100.2"), SourceRanges: []netip.Prefix{netip.MustParsePrefix("203.0.113.0/24")},
		HealthCheckNodePort: 30081, TrafficDistribution: "PreferClose", PublishNotReady: true, Algorithm: "maglev", Forwarding: "dsr", Labels: map[string]string{"tier": "db"},
	}, got, err)
}

func TestARecordThatCannotBeARowNamesTheField(t *testing.T) {
	mapped := netip.MustParseAddr("::ffff:10.0.0.1").AsSlice()
	for _, test := range []struct {
		key    Key
		record proto.Message
		says   string
	}{
		{NodeKey("n"), &storev1.Node{Addresses: [][]byte{{1, 2, 3}}}, "addresses has an address of 3 bytes"},
		{NodeKey("n"), &storev1.Node{Tunnel: mapped}, "tunnel has the IPv4-mapped address"},
		{NodeKey("n"), &storev1.Node{PodCidrs: []string{"10.0.0.1/24"}}, "pod_cidrs: prefix 10.0.0.1/24 has bits beyond"},
		{NodeKey("n"), &storev1.Node{PodCidrs: []string{"ten"}}, "pod_cidrs"},
		{NodeKey("n"), &storev1.Node{RouterAddresses: [][]byte{{}}}, "router_addresses"},
		{NodeKey("n"), &storev1.Node{HealthAddresses: [][]byte{{}}}, "health_addresses"},
		{PodKey("n", "a", "b"), &storev1.Pod{Labels: make([]byte, 20)}, "labels has 20 bytes"},
		{PodKey("n", "a", "b"), &storev1.Pod{Labels: make([]byte, 16), NamedPorts: []*storev1.NamedPort{{Port: 70000}}}, "named_ports: 70000 is not a port"},
		{CIDRGroupKey("g"), &storev1.CIDRGroup{Prefixes: []string{"10.0.0.0/8", "10.0.0.1/24"}}, "prefixes: prefix 10.0.0.1/24 has bits beyond"},
		{ServiceKey("a", "b"), &storev1.Service{Type: 77}, "type 77"},
		{ServiceKey("a", "b"), &storev1.Service{ClusterIps: [][]byte{{1}}}, "cluster_ips"},
		{ServiceKey("a", "b"), &storev1.Service{ExternalIps: [][]byte{{1}}}, "external_ips"},
		{ServiceKey("a", "b"), &storev1.Service{LoadBalancerIps: [][]byte{{1}}}, "load_balancer_ips"},
		{ServiceKey("a", "b"), &storev1.Service{SourceRanges: []string{"x"}}, "source_ranges"},
		{ServiceKey("a", "b"), &storev1.Service{HealthCheckNodePort: 1 << 20}, "health_check_node_port"},
		{ServiceKey("a", "b"), &storev1.Service{Ports: []*storev1.ServicePort{{Protocol: 256}}}, "ports: 256 is not an IP protocol"},
		{ServiceKey("a", "b"), &storev1.Service{Ports: []*storev1.ServicePort{{NodePort: 1 << 16}}}, "ports.node_port"},
		{EndpointsKey("a", "b", "c"), &storev1.Endpoints{Backends: []*storev1.Backend{{Addresses: [][]byte{{9}}}}}, "backends.addresses"},
		{EndpointsKey("a", "b", "c"), &storev1.Endpoints{Ports: []*storev1.EndpointPort{{Port: 1 << 16}}}, "ports"},
		{PolicyKey("K", "a", "b"), &storev1.Policy{}, "object is empty"},
	} {
		a := testApplier(t)
		key := test.key.String()
		a.apply([]event{{key: key, value: Encoded(t, test.record)}}, ignore)
		problems := a.listProblems()
		if len(problems) != 1 || problems[0].Object != key || !strings.Contains(problems[0].Message, test.says) {
			t.Errorf("%s %v: got %v, want a problem with %q", key, test.record, problems, test.says)
		}
		if rows := a.print(); len(rows) != 0 {
			t.Errorf("%s became a row", key)
		}
	}
}

// Whatever bytes stand under whatever key, the tables hold rows of well-formed keys only, and nothing panics.
func FuzzApply(f *testing.F) {
	f.Add("pods/n1/a/b", []byte{18, 16, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0})
	f.Add("nodes/n1", []byte{10, 4, 1, 2, 3, 4})
	f.Add("services/a/b", []byte{8, 1})
	f.Add("nodelabels/n1", []byte{10, 6, 10, 1, 'a', 18, 1, 'b'})
	f.Add("cidrgroups/g", []byte("\n\x0a10.0.0.0/8"))
	f.Add("synced/e1/pods", []byte(nil))
	f.Add("ips/n1/10.0.0.1", []byte{10, 1, 'u'})
	f.Fuzz(func(t *testing.T, key string, value []byte) {
		a := testApplier(t)
		a.epoch = "e1"
		a.apply([]event{{key: key, value: value}}, ignore)
		rows := a.print()
		if len(rows) > 1 || (len(rows) == 1 && rows[0] != key) {
			t.Errorf("key %q made rows %q", key, rows)
		}
		a.apply([]event{{key: key, remove: true}}, ignore)
		if len(a.print()) != 0 || len(a.problems) != 0 {
			t.Errorf("key %q: left after its removal: %q %v", key, a.print(), a.problems)
		}
	})
}
