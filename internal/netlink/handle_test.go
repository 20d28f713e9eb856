package netlink

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/google/go-cmp/cmp"
	lib "github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
	"tendril.io/tendril/internal/table"
)

// here is the network namespace that the test's thread is in.
func here(t *testing.T) uint64 {
	t.Helper()
	var stat unix.Stat_t
	if err := unix.Stat("/proc/thread-self/ns/net", &stat); err != nil {
		t.Fatal(err)
	}
	return stat.Ino
}

func TestThreadComesBackWhateverHappensInside(t *testing.T) {
	netns, home := newNamespace(t), here(t)
	failure := errors.New("inside")
	for name, outcome := range map[string]error{"success": nil, "failure": failure} {
		var inside uint64
		err := enter(netns, func() error { inside = here(t); return outcome })
		if !errors.Is(err, outcome) || inside == home || here(t) != home {
			t.Errorf("%s: %v, was in %d, is in %d; want to have been elsewhere than %d and to be back", name, err, inside, here(t), home)
		}
	}
	file, err := os.Create(filepath.Join(t.TempDir(), "no-namespace"))
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	err = enter(file, func() error { t.Error("it was entered"); return nil })
	if err == nil || !strings.Contains(err.Error(), file.Name()) || here(t) != home {
		t.Errorf("entering what is no namespace: %v, want an error that names the file", err)
	}
}

func TestHandleOutlivesTheFileThatItWasMadeFrom(t *testing.T) {
	netns := newNamespace(t)
	h, err := OpenAt(netns)
	if err != nil {
		t.Fatal(err)
	}
	defer h.Close()
	netns.Close()
	if s, err := h.Snapshot(); err != nil || len(s.Devices) != 1 || s.Devices[0].Name != "lo" {
		t.Errorf("devices are %+v, %v; want lo", s.Devices, err)
	}
	if err := h.SetSysctl("ipv4/ip_forward", "1"); err != nil {
		t.Error(err)
	}
}

func TestManyCallersShareFewSockets(t *testing.T) {
	node := newNode(t)
	var callers sync.WaitGroup
	for i := range 50 {
		callers.Go(func() {
			name := fmt.Sprint("te-none", i)
			if state, err := node.InspectPair(name, nil, ""); err != nil || state.IfIndex != 0 {
				t.Errorf("device %s is %+v, %v; want none", name, state, err)
			}
		})
	}
	callers.Wait()
	if idle := len(node.conns); idle == 0 || idle > parallel {
		t.Errorf("%d sockets are kept, want 1 to %d", idle, parallel)
	}
}

func TestInspectionFollowsWhatHappensToAPair(t *testing.T) {
	node, pod := newNode(t), newNamespace(t)
	pair := testPair(pod, 0)
	ifindex, err := node.CreatePair(pair)
	if err != nil {
		t.Fatal(err)
	}
	program, id := newProgram(t)
	inPod := inside(t, pod)
	link, err := inPod.lib.LinkByName("eth0")
	if err != nil {
		t.Fatal(err)
	}
	want := PairState{IfIndex: ifindex, HostMAC: pair.HostMAC, Joined: true, PodUp: true, PodMAC: pair.PodMAC, PodAddrs: pair.Addrs}
	for _, step := range []struct {
		what   string
		do     func() error
		change func()
	}{
		{"made", func() error { return nil }, func() {}},
		{"attached", func() error { return node.AttachClassifiers(ifindex, both(program.FD())...) },
			func() { want.Programs = [2]uint32{id, id} }},
		{"connected", func() error { return node.ConnectPair(ifindex, pair.PodMAC, pair.Addrs) }, func() { want.Up = true }},
		{"one program gone", func() error { return node.DetachClassifier(ifindex, Egress, 0) }, func() { want.Programs[Egress] = 0 }},
		{"one address gone", func() error {
			return inPod.lib.AddrDel(link, &lib.Addr{IPNet: ipNet(netip.PrefixFrom(pair.Addrs[0], 32))})
		}, func() { want.PodAddrs = pair.Addrs[1:] }},
		{"another name in the pod", func() error { return errors.Join(inPod.lib.LinkSetDown(link), inPod.lib.LinkSetName(link, "te-moved")) },
			func() { want.Joined, want.PodUp, want.PodMAC, want.PodAddrs = false, false, [6]byte{}, nil }},
		{"removed", func() error { return node.RemovePair(pair.Device) }, func() { want = PairState{} }},
	} {
		if err := step.do(); err != nil {
			t.Fatalf("%s: %v", step.what, err)
		}
		step.change()
		got, err := node.InspectPair(pair.Device, pod, "eth0")
		if err != nil {
			t.Errorf("%s: %v", step.what, err)
		}
		if diff := cmp.Diff(want, got, comparers()); diff != "" {
			t.Errorf("%s (-want +got):\n%s", step.what, diff)
		}
	}
}

func TestWhatIsDoneToAMissingDeviceNamesTheStepThatFailed(t *testing.T) {
	node := newNode(t)
	if err := node.ConnectPair(4711, [6]byte{2}, []netip.Addr{addr("10.9.0.1")}); !errors.Is(err, unix.ENODEV) || !strings.Contains(err.Error(), "host end") {
		t.Errorf("connect: %v, want ENODEV and the step", err)
	}
	if program, err := node.Attached(4711, Ingress, 0); err != nil || program != 0 {
		t.Errorf("attached is program %d, %v; want none", program, err)
	}
	if err := node.DetachClassifier(4711, Ingress, 0); err != nil {
		t.Errorf("detach: %v, want nothing to do", err)
	}
}

func TestUplinkHasTheLowestMetricAndIPv4GoesFirst(t *testing.T) {
	node := newNode(t)
	for _, name := range []string{"te-a", "te-b", "te-c"} {
		if err := node.lib.LinkAdd(&lib.Veth{LinkAttrs: lib.LinkAttrs{Name: name}, PeerName: name + "-other"}); err != nil {
			t.Fatal(err)
		}
	}
	route := func(device, to string, metric int) {
		t.Helper()
		link, err := node.lib.LinkByName(device)
		if err != nil {
			t.Fatal(err)
		}
		if err := errors.Join(node.lib.LinkSetUp(link),
			node.lib.RouteAdd(&lib.Route{LinkIndex: link.Attrs().Index, Dst: ipNet(prefix(to)), Priority: metric, Scope: lib.SCOPE_LINK})); err != nil {
			t.Fatal(err)
		}
	}
	for _, step := range []struct {
		device, to string
		metric     int
		want       string
	}{
		{"te-c", "::/0", 10, "te-c"},
		{"te-a", "0.0.0.0/0", 300, "te-a"},
		{"te-b", "0.0.0.0/0", 200, "te-b"},
		{"te-c", "0.0.0.0/0", 400, "te-b"},
		{"te-c", "10.0.0.0/8", 1, "te-b"},
	} {
		route(step.device, step.to, step.metric)
		if got, err := node.Uplink(); err != nil || got.Device != step.want {
			t.Errorf("with %s by %s the uplink is %s, %v; want %s", step.to, step.device, got.Device, err, step.want)
		}
	}
}

func TestPruningOfManyRoutesOfBothFamiliesAndTables(t *testing.T) {
	node := newNode(t)
	addUplink(t, node)
	routes, ctx := node.Routes(), context.Background()
	var rows []*table.RouteWanted
	for i := range byte(40) {
		row := &table.RouteWanted{Prefix: netip.PrefixFrom(netip.AddrFrom4([4]byte{10, 2, i, 0}), 24), Via: addr("192.0.2.2"), Device: "te-up"}
		if i%2 == 1 {
			row.Prefix = netip.PrefixFrom(netip.AddrFrom16([16]byte{0xfd, 2, i}), 64)
			row.Via = addr("2001:db8::2")
		}
		if i%3 == 0 {
			row.Table = 100
		}
		rows = append(rows, row)
		if err := routes.Update(ctx, row); err != nil {
			t.Fatal(err)
		}
	}
	keep := slices.DeleteFunc(slices.Clone(rows), func(r *table.RouteWanted) bool { return r.Table == 100 })
	for range 2 { // the second finds nothing to do
		if err := routes.Prune(ctx, slices.Values(keep)); err != nil {
			t.Fatal(err)
		}
		if got := ours(t, node); len(got) != len(keep) {
			t.Errorf("%d routes are left, want %d:\n%s", len(got), len(keep), strings.Join(got, "\n"))
		}
	}
	if err := routes.Prune(ctx, slices.Values([]*table.RouteWanted{})); err != nil || len(ours(t, node)) != 0 {
		t.Errorf("routes when none is wanted: %v, %v", ours(t, node), err)
	}
}
