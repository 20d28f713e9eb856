package netlink

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	lib "github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

func TestPairIsReadyInThePodAndDownOnTheHost(t *testing.T) {
	node, pod := newNode(t), newNamespace(t)
	pair := testPair(pod, 0)
	ifindex, err := node.CreatePair(pair)
	if err != nil {
		t.Fatal(err)
	}
	state, err := node.InspectPair(pair.Device, pod, "eth0")
	if err != nil {
		t.Fatal(err)
	}
	want := PairState{IfIndex: ifindex, HostMAC: pair.HostMAC, Joined: true, PodUp: true, PodMAC: pair.PodMAC, PodAddrs: pair.Addrs}
	if diff := cmp.Diff(want, state, comparers()); diff != "" {
		t.Errorf("state of the pair (-want +got):\n%s", diff)
	}
	for name, want := range map[string]string{"accept_ra": "0", "accept_dad": "0", "disable_ipv6": "0"} {
		if got, err := inside(t, pod).Sysctl("ipv6/conf/eth0/" + name); err != nil || got != want {
			t.Errorf("%s in the pod is %q (%v), want %q", name, got, err, want)
		}
	}
}

func TestPodRoutesLeadToTheRouterWithTheRouteMTU(t *testing.T) {
	node, pod := newNode(t), newNamespace(t)
	if _, err := node.CreatePair(testPair(pod, 0)); err != nil {
		t.Fatal(err)
	}
	snapshot, err := inside(t, pod).Snapshot()
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	for _, r := range snapshot.Routes {
		if r.Table == unix.RT_TABLE_MAIN && !r.Prefix.Addr().IsLinkLocalUnicast() {
			got = append(got, fmt.Sprintf("%s via %s dev %s mtu %d", r.Prefix, r.Via, r.Device, r.MTU))
		}
	}
	want := []string{
		"0.0.0.0/0 via 10.9.0.1 dev eth0 mtu 1450",
		"10.9.0.1/32 via invalid IP dev eth0 mtu 0",
		"::/0 via fd09::ff dev eth0 mtu 1450",
		"fd09::1/128 via invalid IP dev eth0 mtu 0", // the kernel's own, for the address
		"fd09::ff/128 via invalid IP dev eth0 mtu 0",
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("routes in the pod (-want +got):\n%s", diff)
	}
}

func TestConnectedPairCarriesTraffic(t *testing.T) {
	node, pod := newNode(t), newNamespace(t)
	pair := testPair(pod, 0)
	ifindex, err := node.CreatePair(pair)
	if err != nil {
		t.Fatal(err)
	}
	// Without a datapath nobody answers for the gateway, so the node takes its addresses.
	link, err := node.lib.LinkByIndex(int(ifindex))
	if err != nil {
		t.Fatal(err)
	}
	for range 2 { // repeating it is harmless
		if err := node.ConnectPair(ifindex, pair.PodMAC, pair.Addrs); err != nil {
			t.Fatal(err)
		}
	}
	for _, router := range pair.Routers {
		full := ipNet(netip.PrefixFrom(router, router.BitLen()))
		if err := node.lib.AddrAdd(link, &lib.Addr{IPNet: full, Flags: unix.IFA_F_NODAD}); err != nil {
			t.Fatal(err)
		}
	}
	for i, to := range pair.Addrs {
		echo(t, node, pod, to, pair.Routers[i])
	}
	if mode, err := node.Sysctl("ipv6/conf/" + pair.Device + "/addr_gen_mode"); err != nil || mode != "1" {
		t.Errorf("host's end makes itself link-local addresses: addr_gen_mode is %q, %v; want 1", mode, err)
	}
}

// echo sends a datagram from the node to the pod and back.
func echo(t *testing.T, node *Handle, pod *os.File, to, from netip.Addr) {
	t.Helper()
	var server, client net.PacketConn
	listen := func(at *net.PacketConn, address netip.Addr) func() error {
		return func() (err error) {
			*at, err = net.ListenPacket("udp", netip.AddrPortFrom(address, 0).String())
			return err
		}
	}
	if err := enter(pod, listen(&server, to)); err != nil {
		t.Fatal(err)
	}
	defer server.Close()
	if err := enter(node.namespace, listen(&client, from)); err != nil {
		t.Fatal(err)
	}
	defer client.Close()
	deadline := time.Now().Add(5 * time.Second)
	client.SetDeadline(deadline)
	server.SetDeadline(deadline)
	buffer := make([]byte, 16)
	if _, err := client.WriteTo([]byte("there"), server.LocalAddr()); err != nil {
		t.Fatal(err)
	}
	n, back, err := server.ReadFrom(buffer)
	if err != nil || string(buffer[:n]) != "there" {
		t.Fatalf("pod received %q, %v", buffer[:n], err)
	}
	if _, err := server.WriteTo([]byte("and back"), back); err != nil {
		t.Fatal(err)
	}
	n, _, err = client.ReadFrom(buffer)
	if err != nil || string(buffer[:n]) != "and back" {
		t.Fatalf("node received %q, %v", buffer[:n], err)
	}
}

func TestFailedPairLeavesNothing(t *testing.T) {
	node, pod := newNode(t), newNamespace(t)
	pair := testPair(pod, 0)
	pair.Routers = []netip.Addr{addr("10.9.0.1"), addr("::1")} // the loopback address is no gateway
	_, err := node.CreatePair(pair)
	if err == nil || !strings.Contains(err.Error(), "add route ::") {
		t.Errorf("error is %v, want one that names the route", err)
	}
	state, err := node.InspectPair(pair.Device, pod, "eth0")
	if err != nil || state.IfIndex != 0 || state.PodUp {
		t.Errorf("after the failure the pair is %+v, %v; want nothing", state, err)
	}
}

func TestPairWithATakenNameIsRefusedAndTheOldOneStays(t *testing.T) {
	node, first, second := newNode(t), newNamespace(t), newNamespace(t)
	want, err := node.CreatePair(testPair(first, 0))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := node.CreatePair(testPair(second, 0)); !errors.Is(err, unix.EEXIST) {
		t.Errorf("error is %v, want EEXIST", err)
	}
	state, err := node.InspectPair(testPair(first, 0).Device, nil, "")
	if err != nil || state.IfIndex != want {
		t.Errorf("the old pair is %+v, %v; want index %d", state, err, want)
	}
}

func TestRemovedPairsAreGoneFromBothSides(t *testing.T) {
	node := newNode(t)
	const count = 20
	var removers sync.WaitGroup
	for i := range byte(count) {
		pod := newNamespace(t)
		pair := testPair(pod, i)
		if _, err := node.CreatePair(pair); err != nil {
			t.Fatal(err)
		}
		defer func() {
			state, err := node.InspectPair(pair.Device, pod, "eth0")
			if err != nil || state.IfIndex != 0 || state.PodUp {
				t.Errorf("pair %s is %+v, %v; want nothing", pair.Device, state, err)
			}
		}()
		removers.Go(func() {
			for range 2 { // the second finds nothing
				if err := node.RemovePair(pair.Device); err != nil {
					t.Errorf("remove %s: %v", pair.Device, err)
				}
			}
		})
	}
	removers.Wait()
}

func TestRemovalLeavesOtherDevices(t *testing.T) {
	node := newNode(t)
	if _, err := node.CreatePair(testPair(newNamespace(t), 0)); err != nil {
		t.Fatal(err)
	}
	if err := node.removeAll([]string{"te-none", "te-nope"}); err != nil {
		t.Errorf("removing what is not there: %v", err)
	}
	state, err := node.InspectPair(testPair(nil, 0).Device, nil, "")
	if err != nil || state.IfIndex == 0 {
		t.Errorf("the other pair is %+v, %v; want it untouched", state, err)
	}
}

// BenchmarkPair prints what each step of adding and removing a pod costs.
func BenchmarkPair(b *testing.B) {
	node := newNode(b)
	program, _ := newProgram(b)
	var create, attach, connect, remove time.Duration
	timed := func(total *time.Duration, do func() error) {
		start := time.Now()
		if err := do(); err != nil {
			b.Fatal(err)
		}
		*total += time.Since(start)
	}
	for b.Loop() {
		b.StopTimer()
		pair := testPair(newNamespace(b), 0)
		b.StartTimer()
		var ifindex uint32
		timed(&create, func() (err error) { ifindex, err = node.CreatePair(pair); return err })
		timed(&attach, func() error { return node.AttachClassifiers(ifindex, both(program.FD())...) })
		timed(&connect, func() error { return node.ConnectPair(ifindex, pair.PodMAC, pair.Addrs) })
		timed(&remove, func() error { return node.RemovePair(pair.Device) })
	}
	for name, total := range map[string]time.Duration{
		"create-us": create, "attach-us": attach, "connect-us": connect, "remove-us": remove,
	} {
		b.ReportMetric(float64(total.Microseconds())/float64(b.N), name)
	}
}

// BenchmarkHundredPairs prints how long 100 pods take at once, in and out.
func BenchmarkHundredPairs(b *testing.B) {
	program, _ := newProgram(b)
	var in, out time.Duration
	for b.Loop() {
		b.StopTimer()
		node := newNode(b)
		pairs := make([]Pair, 100)
		for i := range pairs {
			pairs[i] = testPair(newNamespace(b), byte(i))
		}
		b.StartTimer()
		in += together(b, pairs, func(p Pair) error {
			ifindex, err := node.CreatePair(p)
			if err != nil {
				return err
			}
			return errors.Join(node.AttachClassifiers(ifindex, both(program.FD())...), node.ConnectPair(ifindex, p.PodMAC, p.Addrs))
		})
		out += together(b, pairs, func(p Pair) error { return node.RemovePair(p.Device) })
	}
	b.ReportMetric(float64(in.Milliseconds())/float64(b.N), "in-ms")
	b.ReportMetric(float64(out.Milliseconds())/float64(b.N), "out-ms")
}

func both(fd int) []Classifier {
	return []Classifier{{Ingress, fd, "te-in", 1}, {Egress, fd, "te-out", 1}}
}

func together(b *testing.B, pairs []Pair, do func(Pair) error) time.Duration {
	start := time.Now()
	var group sync.WaitGroup
	for _, pair := range pairs {
		group.Go(func() {
			if err := do(pair); err != nil {
				b.Error(err)
			}
		})
	}
	group.Wait()
	return time.Since(start)
}
