package node

import (
	"errors"
	"fmt"
	"net/netip"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"tendril.io/tendril/internal/datapath"
	"tendril.io/tendril/internal/policy"
	"tendril.io/tendril/internal/policy/policytest"
	"tendril.io/tendril/internal/table"
)

// fakeNodes is the kernel's table of nodes.
type fakeNodes map[uint32]datapath.Node

func (f fakeNodes) WriteNode(row *datapath.Node) error {
	f[row.Number] = *row
	return nil
}

func (f fakeNodes) DeleteNode(number uint32) error {
	delete(f, number)
	return nil
}

func testNodes(t *testing.T, overlay string) (*nodeRows, fakeNodes, *policytest.Numbers) {
	t.Helper()
	tables, err := table.New()
	if err != nil {
		t.Fatal(err)
	}
	kernel, numbers := fakeNodes{}, policytest.NewNumbers()
	return &nodeRows{
		tables: tables, datapath: kernel, numbering: &numbering{numbers: numbers, known: map[string]uint32{}}, self: "node1",
		overlay: overlay, wanted: map[string][]*table.RouteWanted{}, shown: map[netip.Prefix]*table.RouteWanted{},
		uplink: uplink{name: "eth0", ifindex: 2, addr4: netip.MustParseAddr("172.30.0.1"), networks: []netip.Prefix{
			netip.MustParsePrefix("172.30.0.0/24"), netip.MustParsePrefix("fd00::/64"),
		}},
	}, kernel, numbers
}

// routes prints the wanted routes.
func (n *nodeRows) print() []string {
	var out []string
	for row := range n.tables.RoutesWanted.All(n.tables.DB.ReadTxn()) {
		out = append(out, fmt.Sprintf("%s via %s dev %s", row.Prefix, row.Via, row.Device))
	}
	return out
}

func otherNode(name string, addresses ...string) *table.Node {
	row := &table.Node{Name: name, Addresses: addrs(addresses...), PodCIDRs: []netip.Prefix{
		netip.MustParsePrefix("10.2.0.0/24"), netip.MustParsePrefix("fd01::/64"),
	}}
	row.Tunnel = row.Addresses[0]
	return row
}

func TestANodesPodsAreReachedByItsAddressesOrThroughTheOverlay(t *testing.T) {
	for _, test := range []struct {
		name, overlay string
		addresses     []string
		hop4, hop6    bool // a next hop on the link
		want          []string
	}{
		{"on the link", "", []string{"172.30.0.2", "fd00::2"}, true, true,
			[]string{"10.2.0.0/24 via 172.30.0.2 dev eth0", "fd01::/64 via fd00::2 dev eth0"}},
		{"behind a router", "", []string{"172.31.0.2", "fd05::2"}, false, false,
			[]string{"10.2.0.0/24 via 172.31.0.2 dev eth0", "fd01::/64 via fd05::2 dev eth0"}},
		{"of one family", "", []string{"172.30.0.2"}, true, false, []string{"10.2.0.0/24 via 172.30.0.2 dev eth0"}},
		{"through the overlay", "vx", []string{"172.30.0.2"}, true, false,
			[]string{"10.2.0.0/24 via invalid IP dev vx", "fd01::/64 via invalid IP dev vx"}},
	} {
		t.Run(test.name, func(t *testing.T) {
			n, kernel, _ := testNodes(t, test.overlay)
			row := otherNode("node2", test.addresses...)
			if err := n.SetNode(row); err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(test.want, n.print()); diff != "" {
				t.Errorf("routes (-want +got):\n%s", diff)
			}
			got := kernel[n.numbering.lookup("node2")]
			if got.NextHop4.IsValid() != test.hop4 || got.NextHop6.IsValid() != test.hop6 || got.Tunnel != row.Tunnel {
				t.Errorf("kernel has %+v", got)
			}
			if err := n.DeleteNode(row); err != nil || len(n.print()) != 0 || len(kernel) != 0 {
				t.Errorf("after its deletion (%v): routes %v, kernel %v", err, n.print(), kernel)
			}
		})
	}
}

func TestARouteThatTwoNodesClaimGoesBackToTheOneThatStays(t *testing.T) {
	n, _, _ := testNodes(t, "")
	first, second := otherNode("node2", "172.30.0.2"), otherNode("node3", "172.30.0.3")
	for _, row := range []*table.Node{first, second} {
		if err := n.SetNode(row); err != nil {
			t.Fatal(err)
		}
	}
	steps := []struct {
		gone *table.Node
		want []string
	}{
		{second, []string{"10.2.0.0/24 via 172.30.0.2 dev eth0"}},
		{first, nil},
	}
	for _, step := range steps {
		if err := n.DeleteNode(step.gone); err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(step.want, n.print()); diff != "" {
			t.Errorf("routes without %s (-want +got):\n%s", step.gone.Name, diff)
		}
	}
	// The other order: whose row was overwritten goes first, and takes nothing along.
	for _, row := range []*table.Node{first, second} {
		if err := errors.Join(n.SetNode(row)); err != nil {
			t.Fatal(err)
		}
	}
	if err := n.DeleteNode(first); err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff([]string{"10.2.0.0/24 via 172.30.0.3 dev eth0"}, n.print()); diff != "" {
		t.Errorf("routes (-want +got):\n%s", diff)
	}
}

func TestANodeWithoutARoomIsRefusedWithTheRemedyAndTakesNothing(t *testing.T) {
	n, kernel, numbers := testNodes(t, "")
	numbers.Room[policy.KindNode] = 1
	if err := n.SetNode(otherNode("node2", "172.30.0.2")); err != nil {
		t.Fatal(err)
	}
	err := n.SetNode(otherNode("node3", "172.30.0.3"))
	if err == nil || !strings.Contains(err.Error(), "raise map_sizes.nodes") || len(kernel) != 1 {
		t.Errorf("%v, kernel %v: want a refusal with a remedy", err, kernel)
	}
	if all := n.numbering.all(); len(all) != 1 {
		t.Errorf("numbers in use %v, want one", all)
	}
	n.ReleaseNode("node2")
	numbers.Complete()
	if err := n.SetNode(otherNode("node3", "172.30.0.3")); err != nil {
		t.Errorf("after node2's number is free: %v", err)
	}
}
