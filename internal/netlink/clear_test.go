package netlink

import (
	"context"
	"errors"
	"net/netip"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	lib "github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"tendril.io/tendril/internal/table"
)

// inventory is what devices, addresses, routes and classifiers a namespace has.
func inventory(t *testing.T, node *Handle) any {
	t.Helper()
	snapshot, err := node.Snapshot()
	if err != nil {
		t.Fatal(err)
	}
	link, err := node.lib.LinkByName("te-up")
	if err != nil {
		t.Fatal(err)
	}
	qdiscs, err := node.lib.QdiscList(link)
	if err != nil {
		t.Fatal(err)
	}
	kinds := []string{}
	for _, qdisc := range qdiscs {
		kinds = append(kinds, qdisc.Type())
	}
	return []any{snapshot.Devices, snapshot.Routes, kinds}
}

// settled waits until the kernel has given both ends of the uplink their link-local addresses, which it does a moment after they are up.
func settled(t *testing.T, node *Handle) {
	t.Helper()
	for deadline := time.Now().Add(5 * time.Second); ; time.Sleep(10 * time.Millisecond) {
		routes, err := node.lib.RouteListFiltered(lib.FAMILY_V6, &lib.Route{Table: unix.RT_TABLE_LOCAL}, lib.RT_FILTER_TABLE)
		if err != nil {
			t.Fatal(err)
		}
		given := 0
		for _, route := range routes {
			if route.Dst != nil && route.Dst.IP.IsLinkLocalUnicast() {
				given++
			}
		}
		if given >= 2 {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("no link-local addresses in time: %v", routes)
		}
	}
}

func TestClearTakesAwayWhatAnAgentLeftAndNothingElse(t *testing.T) {
	node := newNode(t)
	link := addUplink(t, node)
	loopback, err := node.lib.LinkByName("lo")
	if err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(node.lib.LinkSetUp(loopback), node.lib.AddrAdd(loopback, &lib.Addr{IPNet: ipNet(prefix("10.1.0.1/32"))})); err != nil {
		t.Fatal(err)
	}
	settled(t, node)
	before, given := inventory(t, node), []netip.Addr{addr("10.0.0.1"), addr("fd00::1")}
	program, _ := newProgram(t)
	_, err = node.CreatePair(testPair(newNamespace(t), 0))
	_, failed := node.EnsureOverlay(Overlay{Port: 8472, MTU: 1350})
	err = errors.Join(err, failed,
		node.EnsureNodeAddresses(given),
		node.Routes().Update(context.Background(), &table.RouteWanted{Prefix: prefix("10.0.2.0/24"), Via: addr("192.0.2.9"), Device: "te-up"}),
		node.AttachClassifier(uint32(link.Attrs().Index), Ingress, program.FD(), "te-ours", 1))
	if err != nil {
		t.Fatal(err)
	}
	if cmp.Equal(before, inventory(t, node), comparers()) {
		t.Fatal("nothing was put there")
	}
	device := testPair(nil, 0).Device
	for range 2 {
		err := node.Clear(Leftover{Devices: device[:len(device)-1], Addrs: given, Classifiers: []string{"te-ours"}})
		if err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(before, inventory(t, node), comparers()); diff != "" {
			t.Errorf("after clearing (-before +after):\n%s", diff)
		}
	}
}

func TestClearLeavesAnothersClassifierAndItsClsact(t *testing.T) {
	node := newNode(t)
	link := addUplink(t, node)
	program, id := newProgram(t)
	if err := node.AttachClassifier(uint32(link.Attrs().Index), Egress, program.FD(), "te-others", 1); err != nil {
		t.Fatal(err)
	}
	if err := node.Clear(Leftover{Devices: "te-none", Classifiers: []string{"te-ours"}}); err != nil {
		t.Fatal(err)
	}
	attached(t, node, uint32(link.Attrs().Index), Egress, id)
}
