package node

import (
	"log/slog"
	"slices"
	"testing"

	"github.com/cilium/statedb"
	"github.com/google/go-cmp/cmp"

	"tendril.io/tendril/internal/policy/policytest"
	"tendril.io/tendril/internal/service"
	"tendril.io/tendril/internal/table"
)

// testServiceLoop is that of node1, which has no services yet.
func testServiceLoop(t *testing.T) *serviceLoop {
	t.Helper()
	brain, err := service.New(service.Config{NodeName: "node1"}, policytest.NewNumbers())
	if err != nil {
		t.Fatal(err)
	}
	return &serviceLoop{
		tables: testFacts(t, Config{}).tables, self: "node1", publisher: &fakeKernel{}, brain: brain, gone: func([]uint32) {}, log: slog.New(slog.DiscardHandler),
		number: func(string) uint32 { return 1 },
	}
}

// In Kubernetes all agents have one configuration, so a node's zone is what its labels say, also if they come later.
func TestANodesLabelSaysWhichBackendsAreNear(t *testing.T) {
	l := testServiceLoop(t)
	tables := l.tables
	if err := l.start(); err != nil {
		t.Fatal(err)
	}
	defer l.stop()
	backend := func(addr, zone string) table.Backend {
		return table.Backend{Addrs: addrs(addr), Zone: zone, Ready: true, Serving: true}
	}
	change := func(do func(txn statedb.WriteTxn) error) (near []string) {
		t.Helper()
		txn := tables.DB.WriteTxn(tables.Services, tables.Backends, tables.NodeLabels)
		if err := do(txn); err != nil {
			t.Fatal(err)
		}
		txn.Commit()
		if err := l.catchUp(t.Context()); err != nil {
			t.Fatal(err)
		}
		for _, view := range l.brain.Views("shop/web") {
			for _, b := range view.Backends {
				if b.Inside == service.Chosen {
					near = append(near, b.Addr.Addr().String())
				}
			}
		}
		slices.Sort(near)
		return near
	}
	label := func(node, zone string) []string {
		t.Helper()
		return change(func(txn statedb.WriteTxn) error {
			_, _, err := tables.NodeLabels.Insert(txn, &table.NodeLabels{Node: node, Labels: map[string]string{"topology.kubernetes.io/zone": zone}})
			return err
		})
	}
	expect := func(when string, got []string, want ...string) {
		t.Helper()
		if diff := cmp.Diff(want, got); diff != "" {
			t.Errorf("%s (-want +got):\n%s", when, diff)
		}
	}
	expect("in no zone", change(func(txn statedb.WriteTxn) error {
		if _, _, err := tables.Services.Insert(txn, &table.Service{
			Namespace: "shop", Name: "web", Type: "ClusterIP", ClusterIPs: addrs("10.96.0.1"), TrafficDistribution: "PreferSameZone",
			Ports: []table.ServicePort{{Protocol: 6, Port: 80}},
		}); err != nil {
			return err
		}
		_, _, err := tables.Backends.Insert(txn, &table.Backends{
			Namespace: "shop", Service: "web", Slice: "a", Ports: []table.NamedPort{{Port: 80, Protocol: 6}},
			Backends: []table.Backend{backend("10.0.1.1", "east"), backend("10.0.2.1", "west")},
		})
		return err
	}), "10.0.1.1", "10.0.2.1")
	expect("another node's zone", label("node2", "east"), "10.0.1.1", "10.0.2.1")
	expect("in the east", label("node1", "east"), "10.0.1.1")
	expect("in the west", label("node1", "west"), "10.0.2.1")
	expect("in no zone again", change(func(txn statedb.WriteTxn) error {
		_, _, err := tables.NodeLabels.Delete(txn, &table.NodeLabels{Node: "node1"})
		return err
	}), "10.0.1.1", "10.0.2.1")
}
