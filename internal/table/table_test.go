package table

import (
	"context"
	"flag"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"text/tabwriter"
	"time"

	"github.com/cilium/statedb"
	"github.com/google/go-cmp/cmp"
)

// golden prints a test's text, compared with a file. -update writes the file.
func golden(t *testing.T, name, got string) {
	t.Helper()
	path := filepath.Join("testdata", name)
	if flag.Lookup("update").Value.String() == "true" {
		if err := os.WriteFile(path, []byte(got), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(string(want), got); diff != "" {
		t.Errorf("%s (-want +got):\n%s", path, diff)
	}
}

func TestMain(m *testing.M) {
	flag.Bool("update", false, "write the golden files")
	flag.Parse()
	os.Exit(m.Run())
}

func newTables(t *testing.T) *Tables {
	t.Helper()
	tables, err := New()
	if err != nil {
		t.Fatal(err)
	}
	return tables
}

// insert puts rows into a table in one transaction.
func insert[Row any](t *testing.T, tables *Tables, into statedb.RWTable[Row], rows ...Row) {
	t.Helper()
	txn := tables.DB.WriteTxn(into)
	defer txn.Commit()
	for _, row := range rows {
		if _, _, err := into.Insert(txn, row); err != nil {
			t.Fatal(err)
		}
	}
}

func at(texts ...string) (addrs []netip.Addr) {
	for _, text := range texts {
		addrs = append(addrs, netip.MustParseAddr(text))
	}
	return addrs
}

func within(texts ...string) (prefixes []netip.Prefix) {
	for _, text := range texts {
		prefixes = append(prefixes, netip.MustParsePrefix(text))
	}
	return prefixes
}

// full returns tables with a full row and an empty one in each, as far as keys let it.
func full(t *testing.T) *Tables {
	tables := newTables(t)
	fillStored(t, tables)
	fillLocal(t, tables)
	return tables
}

func fillStored(t *testing.T, tables *Tables) {
	insert(t, tables, tables.Nodes, &Node{Name: "bare"}, &Node{
		Name: "n1", Addresses: at("192.0.2.1", "2001:db8::1"), PodCIDRs: within("10.1.0.0/24", "fd00::/64"),
		Tunnel: at("192.0.2.1")[0], Routers: at("10.1.0.1"), Healths: at("10.1.0.2"), Zone: "z1", BootID: "boot", MinVersion: 1, MaxVersion: 2,
	})
	insert(t, tables, tables.Pods, &Pod{Node: "n1", Namespace: "default", Name: "bare"}, &Pod{
		Node: "n1", Namespace: "default", Name: "web", UID: "u1", Labels: [16]byte{0xab}, HostNetwork: true,
		NamedPorts: []NamedPort{{"http", 80, 6}, {"dns", 53, 17}, {"sig", 7, 132}, {"odd", 0, 47}},
	})
	insert(t, tables, tables.IPs, &IP{Node: "n1", Addr: at("10.1.0.9")[0]},
		&IP{Node: "n1", Addr: at("fd00::5")[0], PodUID: "u1", Sandbox: "box", Namespace: "default", Pod: "web"})
	insert(t, tables, tables.LabelSets, &LabelSet{}, &LabelSet{
		Hash: [16]byte{0xab}, Cluster: "c", Namespace: "default", ServiceAccount: "sa", Labels: map[string]string{"b": "2", "a": "1"},
	})
	insert(t, tables, tables.Namespaces, &Namespace{Name: "bare"}, &Namespace{Name: "default", Labels: map[string]string{"team": "red"}})
	insert(t, tables, tables.NodeLabels, &NodeLabels{Node: "bare"}, &NodeLabels{Node: "n1", Labels: map[string]string{"role": "edge"}})
	insert(t, tables, tables.Alive, &Alive{Node: "n1", BootID: "b0", Started: 1700000000}, &Alive{Node: "n2"})
	insert(t, tables, tables.CIDRGroups, &CIDRGroup{Name: "bare"},
		&CIDRGroup{Name: "office", Prefixes: within("203.0.113.0/24", "2001:db8::/32"), Labels: map[string]string{"team": "red"}})
	insert(t, tables, tables.EgressGateways, &EgressGateway{Name: "bare"}, &EgressGateway{
		Name: "partners", Destinations: within("203.0.113.0/24"), Exceptions: within("203.0.113.7/32"),
		Nodes: []EgressNodes{{Node: "n1", Addrs: at("192.0.2.1", "2001:db8::1")}, {}},
	})
	insert(t, tables, tables.Services, &Service{Namespace: "default", Name: "bare"}, &Service{
		Namespace: "default", Name: "web", Type: "NodePort", ClusterIPs: at("10.96.0.1"),
		Ports: []ServicePort{{"http", 6, 80, 30080}, {"", 17, 53, 0}}, ExternalIPs: at("198.51.100.1"), LoadBalancerIPs: at("198.51.100.2"),
		SourceRanges: within("203.0.113.0/24"), InternalLocal: true, ExternalLocal: true, PublishNotReady: true, AffinitySeconds: 30,
		HealthCheckNodePort: 31000, TrafficDistribution: "PreferClose", Algorithm: "maglev", Forwarding: "dsr", Labels: map[string]string{"tier": "db"},
	})
	insert(t, tables, tables.Backends, &Backends{Namespace: "default", Service: "web", Slice: "web-1"}, &Backends{
		Namespace: "default", Service: "web", Slice: "web-2", Ports: []NamedPort{{"http", 8080, 6}},
		Backends: []Backend{
			{Addrs: at("10.1.0.5", "fd00::5"), Node: "n1", Ready: true, Serving: true},
			{Addrs: at("10.1.0.6"), Terminating: true, Serving: true},
			{Addrs: at("10.1.0.7"), Terminating: true},
			{Addrs: at("10.1.0.8")},
		},
	})
	insert(t, tables, tables.Policies, &Policy{Kind: "ClusterNetworkPolicy", Name: "all"},
		&Policy{Kind: "NetworkPolicy", Namespace: "default", Name: "deny", Object: []byte("{}"), Revision: 7, Source: "deny.yaml"})
	insert(t, tables, tables.Counters, &Counter{Kind: "policies", Revision: 8})
}

func fillLocal(t *testing.T, tables *Tables) {
	insert(t, tables, tables.Endpoints, &Endpoint{ID: 1}, &Endpoint{
		ID: 2, Generation: 3, Namespace: "default", Pod: "web", PodUID: "u1", Sandbox: "box", IfName: "eth0", Device: "td2", IfIndex: 12,
		PodMAC: [6]byte{2, 0, 0, 0, 0, 1}, Addrs: at("10.1.0.5", "fd00::5"), MTU: 1450, Created: time.Unix(1e9, 0), State: EndpointReady,
		Peer: 20, Ingress: 4, Egress: 5,
	})
	insert(t, tables, tables.Devices, &Device{Index: 1, Name: "lo"}, &Device{
		Index: 2, Name: "eth0", Type: "veth", MTU: 1500, MAC: [6]byte{2, 0, 0, 0, 0, 2}, Up: true, Addrs: within("192.0.2.1/24"),
	})
	insert(t, tables, tables.Routes, &Route{Prefix: within("0.0.0.0/0")[0], Via: at("192.0.2.254")[0], Device: "eth0", Table: 254},
		&Route{Prefix: within("::/0")[0], Device: "eth0", Table: 254, MTU: 1400, Source: at("2001:db8::1")[0]})
	insert(t, tables, tables.RoutesWanted, &RouteWanted{Prefix: within("10.2.0.0/24")[0], Via: at("192.0.2.2")[0], Device: "eth0", Table: 254})
}

func TestEveryTablePrintsItsRows(t *testing.T) {
	tables := full(t)
	txn := tables.DB.ReadTxn()
	var text strings.Builder
	for _, info := range tables.List(txn) {
		header, rows, err := tables.Show(txn, info.Name)
		if err != nil {
			t.Fatal(err)
		}
		if len(rows) == 0 || len(rows) != info.Rows {
			t.Errorf("%s: %d rows shown, %d listed", info.Name, len(rows), info.Rows)
		}
		fmt.Fprintf(&text, "%s\n", info.Name)
		lines := tabwriter.NewWriter(&text, 0, 1, 2, ' ', 0)
		for _, row := range append([][]string{header}, rows...) {
			if len(row) != len(header) {
				t.Errorf("%s: %d cells under %d columns", info.Name, len(row), len(header))
			}
			fmt.Fprintf(lines, "  %s\n", strings.Join(row, "\t"))
		}
		lines.Flush()
	}
	golden(t, "tables.txt", text.String())
}

func TestTablesAreListedWithWhatTheyAreAbout(t *testing.T) {
	tables := newTables(t)
	var text strings.Builder
	for _, info := range tables.List(tables.DB.ReadTxn()) {
		fmt.Fprintf(&text, "%-16s %d %s\n", info.Name, info.Rows, info.About)
	}
	golden(t, "list.txt", text.String())
}

func TestATableThatDoesNotExistIsAnErrorThatNamesThoseThatDo(t *testing.T) {
	tables := newTables(t)
	_, _, err := tables.Show(tables.DB.ReadTxn(), "pots")
	if err == nil || !strings.HasPrefix(err.Error(), `table "pots" does not exist; tables are nodes, pods, ips,`) {
		t.Errorf("got %v", err)
	}
}

func TestARevisionRisesWithEachChange(t *testing.T) {
	tables := newTables(t)
	before := tables.List(tables.DB.ReadTxn())[0].Revision
	insert(t, tables, tables.Nodes, &Node{Name: "n1"})
	if after := tables.List(tables.DB.ReadTxn())[0].Revision; after <= before {
		t.Errorf("revision %d after %d", after, before)
	}
}

// found counts what a query finds.
func found[Row any](tables *Tables, in statedb.Table[Row], query statedb.Query[Row]) int {
	count := 0
	for range in.List(tables.DB.ReadTxn(), query) {
		count++
	}
	return count
}

func TestEveryQueryFindsItsRowsAndNoOthers(t *testing.T) {
	s := full(t)
	for what, got := range map[string][2]int{
		"node":            {found(s, s.Nodes, NodeByName("n1")), found(s, s.Nodes, NodeByName("n"))},
		"pod by key":      {found(s, s.Pods, PodByKey("n1/default/web")), found(s, s.Pods, PodByKey("n1/default/we"))},
		"pod by name":     {found(s, s.Pods, PodByName("default", "web")), found(s, s.Pods, PodByName("defaul", "t/web"))},
		"pod by uid":      {found(s, s.Pods, PodByUID("u1")), found(s, s.Pods, PodByUID("u"))},
		"pod by labels":   {found(s, s.Pods, PodByLabels([16]byte{0xab})), found(s, s.Pods, PodByLabels([16]byte{1}))},
		"ip by key":       {found(s, s.IPs, IPByKey("n1", at("fd00::5")[0])), found(s, s.IPs, IPByKey("n2", at("fd00::5")[0]))},
		"ip by address":   {found(s, s.IPs, IPByAddr(at("10.1.0.9")[0])), found(s, s.IPs, IPByAddr(at("10.1.0.8")[0]))},
		"ip by pod":       {found(s, s.IPs, IPByPodUID("u1")), found(s, s.IPs, IPByPodUID("u2"))},
		"label set":       {found(s, s.LabelSets, LabelSetByHash([16]byte{0xab})), found(s, s.LabelSets, LabelSetByHash([16]byte{2}))},
		"namespace":       {found(s, s.Namespaces, NamespaceByName("default")), found(s, s.Namespaces, NamespaceByName("x"))},
		"node labels":     {found(s, s.NodeLabels, NodeLabelsByNode("n1")), found(s, s.NodeLabels, NodeLabelsByNode("n"))},
		"cidr group":      {found(s, s.CIDRGroups, CIDRGroupByName("office")), found(s, s.CIDRGroups, CIDRGroupByName("offic"))},
		"service":         {found(s, s.Services, ServiceByName("default", "web")), found(s, s.Services, ServiceByName("x", "web"))},
		"slice":           {found(s, s.Backends, BackendsByKey("default", "web", "web-1")), found(s, s.Backends, BackendsByKey("default", "web", "web"))},
		"policy":          {found(s, s.Policies, PolicyByKey("NetworkPolicy", "default", "deny")), found(s, s.Policies, PolicyByKey("NetworkPolicy", "", "deny"))},
		"cluster policy":  {found(s, s.Policies, PolicyByKey("ClusterNetworkPolicy", "", "all")), 0},
		"counter":         {found(s, s.Counters, CounterByKind("policies")), found(s, s.Counters, CounterByKind("pods"))},
		"endpoint":        {found(s, s.Endpoints, EndpointByID(2)), found(s, s.Endpoints, EndpointByID(3))},
		"endpoint by v4":  {found(s, s.Endpoints, EndpointByIP(at("10.1.0.5")[0])), found(s, s.Endpoints, EndpointByIP(at("10.1.0.6")[0]))},
		"endpoint by v6":  {found(s, s.Endpoints, EndpointByIP(at("fd00::5")[0])), 0},
		"endpoint by pod": {found(s, s.Endpoints, EndpointByPod("default", "web")), found(s, s.Endpoints, EndpointByPod("x", "web"))},
		"device":          {found(s, s.Devices, DeviceByIndex(2)), found(s, s.Devices, DeviceByIndex(9))},
	} {
		if got != [2]int{1, 0} {
			t.Errorf("%s: found %d of 1, and %d of 0 by a wrong key", what, got[0], got[1])
		}
	}
}

func TestTheAddressesOfANodeAreNotThoseOfOneWhoseNameBeginsAlike(t *testing.T) {
	s := full(t)
	insert(t, s, s.IPs, &IP{Node: "n10", Addr: at("10.1.9.9")[0]})
	var got []string
	for ip := range s.IPs.Prefix(s.DB.ReadTxn(), IPByNode("n1")) {
		got = append(got, ip.Addr.String())
	}
	if diff := cmp.Diff([]string{"10.1.0.9", "fd00::5"}, got); diff != "" {
		t.Errorf("addresses of n1 (-want +got):\n%s", diff)
	}
}

func TestTablesRunUntilTheContextEnds(t *testing.T) {
	tables := newTables(t)
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- tables.Run(ctx) }()
	insert(t, tables, tables.Nodes, &Node{Name: "n1"})
	cancel()
	if err := <-done; err != nil {
		t.Error(err)
	}
}
