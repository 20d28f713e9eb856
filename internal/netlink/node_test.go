package netlink

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	lib "github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
	"tendril.io/tendril/internal/table"
)

// addUplink makes a device with addresses and default routes; its other end stays beside it.
func addUplink(t *testing.T, node *Handle) lib.Link {
	t.Helper()
	uplink := &lib.Veth{LinkAttrs: lib.LinkAttrs{Name: "te-up", MTU: 1400}, PeerName: "te-fabric"}
	if err := node.lib.LinkAdd(uplink); err != nil {
		t.Fatal(err)
	}
	link, err := node.lib.LinkByName("te-up")
	if err != nil {
		t.Fatal(err)
	}
	other, err := node.lib.LinkByName("te-fabric")
	if err != nil {
		t.Fatal(err)
	}
	steps := []error{
		node.lib.AddrAdd(link, &lib.Addr{IPNet: ipNet(prefix("192.0.2.7/24"))}),
		node.lib.AddrAdd(link, &lib.Addr{IPNet: ipNet(prefix("2001:db8::7/64")), Flags: unix.IFA_F_NODAD}),
		node.lib.LinkSetUp(other), node.lib.LinkSetUp(link),
		node.lib.RouteAdd(&lib.Route{LinkIndex: link.Attrs().Index, Gw: addr("192.0.2.1").AsSlice()}),
		node.lib.RouteAdd(&lib.Route{LinkIndex: link.Attrs().Index, Gw: addr("2001:db8::1").AsSlice()}),
	}
	if err := errors.Join(steps...); err != nil {
		t.Fatal(err)
	}
	return link
}

func TestUplinkIsTheDefaultRoutesDevice(t *testing.T) {
	node := newNode(t)
	link := addUplink(t, node)
	got, err := node.Uplink()
	want := NextHop{Via: addr("192.0.2.1"), Device: "te-up", IfIndex: uint32(link.Attrs().Index), MTU: 1400}
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(want, got, comparers()); diff != "" {
		t.Errorf("uplink (-want +got):\n%s", diff)
	}
}

func TestNodeWithoutDefaultRouteHasNoUplink(t *testing.T) {
	if _, err := newNode(t).Uplink(); !errors.Is(err, ErrNoRoute) {
		t.Errorf("error is %v, want ErrNoRoute", err)
	}
}

func TestNextHopOfEitherFamily(t *testing.T) {
	node := newNode(t)
	index := uint32(addUplink(t, node).Attrs().Index)
	want := map[netip.Addr]NextHop{
		addr("192.0.2.9"):    {Source: addr("192.0.2.7")},
		addr("198.51.100.1"): {Via: addr("192.0.2.1"), Source: addr("192.0.2.7")},
		addr("2001:db8:1::"): {Via: addr("2001:db8::1"), Source: addr("2001:db8::7")},
	}
	for to, want := range want {
		want.Device, want.IfIndex, want.MTU = "te-up", index, 1400
		got, err := node.NextHop(to)
		if err != nil {
			t.Errorf("next hop to %s: %v", to, err)
		}
		if diff := cmp.Diff(want, got, comparers()); diff != "" {
			t.Errorf("next hop to %s (-want +got):\n%s", to, diff)
		}
	}
	if _, err := newNode(t).NextHop(addr("198.51.100.1")); !errors.Is(err, ErrNoRoute) {
		t.Errorf("error without routes is %v, want ErrNoRoute", err)
	}
}

// ours lists the routes that Routes owns, as text.
func ours(t *testing.T, node *Handle) []string {
	t.Helper()
	routes, err := node.Routes().list()
	if err != nil {
		t.Fatal(err)
	}
	var lines []string
	for _, r := range routes {
		lines = append(lines, fmt.Sprintf("%s via %s mtu %d", r.Dst, r.Gw, r.MTU))
	}
	slices.Sort(lines)
	return lines
}

func TestRoutesBecomeEqualToTheTableAndOthersStay(t *testing.T) {
	node := newNode(t)
	addUplink(t, node)
	index, err := node.EnsureOverlay(Overlay{Port: 8472, MTU: 1350})
	if err != nil {
		t.Fatal(err)
	}
	native4 := &table.RouteWanted{Prefix: prefix("10.2.0.0/24"), Via: addr("192.0.2.2"), Device: "te-up"}
	native6 := &table.RouteWanted{Prefix: prefix("fd02::/64"), Via: addr("2001:db8::2"), Device: "te-up"}
	overlay := &table.RouteWanted{Prefix: prefix("10.3.0.0/24"), Device: OverlayDevice, MTU: 1350}
	routes, ctx := node.Routes(), context.Background()
	for _, wanted := range []*table.RouteWanted{native4, native6, overlay, native4} {
		if err := routes.Update(ctx, wanted); err != nil {
			t.Fatal(err)
		}
	}
	want := []string{"10.2.0.0/24 via 192.0.2.2 mtu 0", "10.3.0.0/24 via <nil> mtu 1350", "fd02::/64 via 2001:db8::2 mtu 0"}
	if diff := cmp.Diff(want, ours(t, node)); diff != "" {
		t.Errorf("routes after updates (-want +got):\n%s", diff)
	}
	moved := *native4
	moved.Via = addr("192.0.2.3")
	if err := errors.Join(routes.Update(ctx, &moved), routes.Delete(ctx, native6), routes.Delete(ctx, native6)); err != nil {
		t.Fatal(err)
	}
	want = []string{"10.2.0.0/24 via 192.0.2.3 mtu 0", "10.3.0.0/24 via <nil> mtu 1350"}
	if diff := cmp.Diff(want, ours(t, node)); diff != "" {
		t.Errorf("routes after a move and a deletion (-want +got):\n%s", diff)
	}
	if err := routes.Prune(ctx, slices.Values([]*table.RouteWanted{overlay})); err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff([]string{"10.3.0.0/24 via <nil> mtu 1350"}, ours(t, node)); diff != "" {
		t.Errorf("routes after pruning (-want +got):\n%s", diff)
	}
	if hop, err := node.NextHop(addr("198.51.100.1")); err != nil || hop.Via != addr("192.0.2.1") {
		t.Errorf("the administrator's default route is %+v, %v; want it untouched", hop, err)
	}
	if hop, err := node.NextHop(addr("10.3.0.9")); err != nil || hop.IfIndex != index {
		t.Errorf("overlay route leads to %+v, %v; want device %d", hop, err, index)
	}
}

func TestRouteOverAMissingDevice(t *testing.T) {
	routes := newNode(t).Routes()
	row := &table.RouteWanted{Prefix: prefix("10.2.0.0/24"), Device: "te-none"}
	if err := routes.Update(context.Background(), row); err == nil || !strings.Contains(err.Error(), "te-none") {
		t.Errorf("update: %v, want an error that names the device", err)
	}
	if err := routes.Delete(context.Background(), row); err != nil {
		t.Errorf("delete: %v, want nothing to do", err)
	}
}

func TestOverlayIsMadeKeptAndRemadeForAnotherPort(t *testing.T) {
	node := newNode(t)
	first, err := node.EnsureOverlay(Overlay{Port: 8472, MTU: 1450})
	if err != nil {
		t.Fatal(err)
	}
	again, err := node.EnsureOverlay(Overlay{Port: 8472, MTU: 1400})
	if err != nil || again != first {
		t.Errorf("second time the index is %d, %v; want %d kept", again, err, first)
	}
	link, err := node.lib.LinkByName(OverlayDevice)
	if err != nil {
		t.Fatal(err)
	}
	vxlan, mac := link.(*lib.Vxlan), OverlayMAC()
	type facts struct {
		MTU, Port                       int
		Flow, Learning, UDPCSum, NoARP  bool
		ZeroChecksum6Tx, ZeroChecksum6R bool
		MAC                             string
	}
	got := facts{
		vxlan.MTU, vxlan.Port, vxlan.FlowBased, vxlan.Learning, vxlan.UDPCSum, vxlan.RawFlags&unix.IFF_NOARP != 0,
		vxlan.UDP6ZeroCSumTx, vxlan.UDP6ZeroCSumRx, vxlan.HardwareAddr.String(),
	}
	want := facts{MTU: 1400, Port: 8472, Flow: true, UDPCSum: true, NoARP: true, MAC: fmt.Sprintf("%x", mac[:1])}
	want.MAC = "02:74:65:6e:64:72"
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("overlay device (-want +got):\n%s", diff)
	}
	if moved, err := node.EnsureOverlay(Overlay{Port: 4789, MTU: 1400}); err != nil || moved == first {
		t.Errorf("for another port the index is %d, %v; want a new device", moved, err)
	}
	for range 2 {
		if err := node.RemoveOverlay(); err != nil {
			t.Error(err)
		}
	}
}

func TestForwardingDoesNotEndAdvertisedRoutes(t *testing.T) {
	node := newNode(t)
	addUplink(t, node)
	if err := errors.Join(node.SetSysctl("ipv6/conf/te-up/accept_ra", "1"), node.SetSysctl("ipv6/conf/te-fabric/accept_ra", "0")); err != nil {
		t.Fatal(err)
	}
	if err := node.PrepareNode(); err != nil {
		t.Fatal(err)
	}
	for device, want := range map[string]string{"te-up": "2", "te-fabric": "0"} {
		if got, err := node.Sysctl("ipv6/conf/" + device + "/accept_ra"); err != nil || got != want {
			t.Errorf("accept_ra of %s is %q, %v; want %q", device, got, err, want)
		}
	}
}

func TestNodeHasTheGatewaysAddresses(t *testing.T) {
	node := newNode(t)
	gateways := []netip.Addr{addr("10.1.0.1"), addr("fd01::1")}
	for range 2 { // repeating it is harmless
		if err := node.EnsureNodeAddresses(gateways); err != nil {
			t.Fatal(err)
		}
	}
	for _, gateway := range gateways {
		if hop, err := node.NextHop(gateway); err != nil || hop.Device != "lo" {
			t.Errorf("%s is reached by %+v, %v; want the node itself", gateway, hop, err)
		}
	}
}

func TestPreparedNodeForwardsAndAnswersForNobody(t *testing.T) {
	node := newNode(t)
	if err := node.PrepareNode(); err != nil {
		t.Fatal(err)
	}
	if _, err := node.CreatePair(testPair(newNamespace(t), 0)); err != nil {
		t.Fatal(err)
	}
	device := testPair(nil, 0).Device
	want := map[string]string{
		"ipv4/ip_forward": "1", "ipv6/conf/all/forwarding": "1",
		"ipv4/conf/" + device + "/rp_filter": "0", "ipv4/conf/" + device + "/forwarding": "1",
		"ipv4/conf/" + device + "/proxy_arp": "0", "ipv6/conf/" + device + "/forwarding": "1",
	}
	for name, want := range want {
		if got, err := node.Sysctl(name); err != nil || got != want {
			t.Errorf("%s is %q, %v; want %q", name, got, err, want)
		}
	}
	if err := node.SetSysctl("ipv4/no_such_thing", "1"); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("setting what does not exist: %v", err)
	}
}

func TestCookieTellsNamespacesApart(t *testing.T) {
	first, second := newNode(t), newNode(t)
	a, errA := first.NetnsCookie(first.namespace)
	again, errAgain := first.NetnsCookie(first.namespace)
	b, errB := second.NetnsCookie(second.namespace)
	if err := errors.Join(errA, errAgain, errB); err != nil {
		t.Fatal(err)
	}
	if a == 0 || a != again || a == b {
		t.Errorf("cookies are %d, again %d, and %d elsewhere", a, again, b)
	}
}

func TestWatchSeesDevicesAddressesAndRoutesComeAndGo(t *testing.T) {
	node := newNode(t)
	ctx, cancel := context.WithCancel(context.Background())
	seen, ended := make(chan Snapshot, 64), make(chan error)
	go func() { ended <- node.Watch(ctx, func(s Snapshot) { seen <- s }) }()
	await := func(what string, holds func(Snapshot) bool) {
		t.Helper()
		for {
			select {
			case s := <-seen:
				if holds(s) {
					return
				}
			case <-time.After(10 * time.Second):
				t.Fatalf("never saw %s", what)
			}
		}
	}
	has := func(s Snapshot) bool {
		return slices.ContainsFunc(s.Devices, func(d table.Device) bool {
			return d.Name == "te-up" && d.Up && d.Type == "veth" && d.MTU == 1400 &&
				slices.Contains(d.Addrs, prefix("192.0.2.7/24")) && slices.Contains(d.Addrs, prefix("2001:db8::7/64"))
		})
	}
	await("the first snapshot", func(s Snapshot) bool { return len(s.Devices) > 0 && !has(s) })
	link := addUplink(t, node)
	await("the uplink", func(s Snapshot) bool {
		return has(s) && slices.Contains(s.Routes, table.Route{
			Prefix: prefix("0.0.0.0/0"), Via: addr("192.0.2.1"), Device: "te-up", Table: unix.RT_TABLE_MAIN,
		})
	})
	if err := node.lib.LinkDel(link); err != nil {
		t.Fatal(err)
	}
	await("the uplink go", func(s Snapshot) bool { return !has(s) })
	cancel()
	if err := <-ended; err != nil {
		t.Errorf("watch ended with %v", err)
	}
}

func FuzzPacketsOfAnyBytes(f *testing.F) {
	m := getLink("te-pod")
	f.Add(m.append(nil, 1))
	f.Add([]byte{0, 0, 0, 0})
	f.Fuzz(func(t *testing.T, datagram []byte) {
		for p := range packets(datagram) {
			p.text()
			parseLink(p.body)
			programID(p.body)
		}
	})
}
