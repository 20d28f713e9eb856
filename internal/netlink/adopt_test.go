package netlink

import (
	"errors"
	"net"
	"os"
	"slices"
	"strings"
	"testing"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/link"
	"github.com/google/go-cmp/cmp"
	lib "github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// portOf makes a pair and a bridge that the pair's end on the host is a port of, both up, as the plugin bridge does.
func portOf(t *testing.T, node *Handle, pod *os.File, number byte) Pair {
	t.Helper()
	pair := testPair(pod, number)
	index, err := node.CreatePair(pair)
	if err != nil {
		t.Fatal(err)
	}
	bridge := &lib.Bridge{LinkAttrs: lib.LinkAttrs{Name: "te-br"}}
	if err := node.lib.LinkAdd(bridge); err != nil && !errors.Is(err, unix.EEXIST) {
		t.Fatal(err)
	}
	host, err := node.lib.LinkByIndex(int(index))
	if err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(node.lib.LinkSetMaster(host, bridge), node.lib.LinkSetUp(bridge), node.lib.LinkSetUp(host)); err != nil {
		t.Fatal(err)
	}
	return pair
}

func TestFoundPairIsTheOtherEndOfThePodsDevice(t *testing.T) {
	node, pod := newNode(t), newNamespace(t)
	portOf(t, node, newNamespace(t), 1) // numbers of namespaces and devices begin anew everywhere: another pod's fit as well
	pair := portOf(t, node, pod, 0)
	found, err := node.FindPair(pod, "eth0")
	if err != nil {
		t.Fatal(err)
	}
	state, err := node.InspectPair(pair.Device, pod, "eth0")
	if err != nil {
		t.Fatal(err)
	}
	want := Adopted{Device: pair.Device, IfIndex: state.IfIndex, HostMAC: pair.HostMAC, PodMAC: pair.PodMAC, MTU: pair.DeviceMTU}
	if diff := cmp.Diff(want, found); diff != "" {
		t.Errorf("found (-want +got):\n%s", diff)
	}
	if !state.Joined {
		t.Error("the ends of a pair are said not to be joined")
	}
}

func TestWhatIsNoPairWithTheNodeIsNotTakenOver(t *testing.T) {
	node, pod, elsewhere := newNode(t), newNamespace(t), newNode(t)
	if _, err := elsewhere.CreatePair(testPair(pod, 0)); err != nil {
		t.Fatal(err)
	}
	bridge := &lib.Bridge{LinkAttrs: lib.LinkAttrs{Name: "te-br"}}
	if err := inside(t, pod).lib.LinkAdd(bridge); err != nil {
		t.Fatal(err)
	}
	for device, says := range map[string]string{"eth0": "no other end in the node's namespace", "te-br": "of type bridge", "te-none": "not found"} {
		if found, err := node.FindPair(pod, device); err == nil || !strings.Contains(err.Error(), says) {
			t.Errorf("%s: found %+v, %v; want an error that says %q", device, found, err, says)
		}
	}
	// the other end is here by index, but it is another pod's
	for number := range byte(4) {
		if _, err := node.CreatePair(testPair(newNamespace(t), number)); err != nil {
			t.Fatal(err)
		}
	}
	if found, err := node.FindPair(pod, "eth0"); err == nil {
		t.Errorf("found %+v", found)
	}
}

func TestDeviceThatCarriesAProgramIsNotTakenOver(t *testing.T) {
	program, _ := newProgram(t)
	for says, put := range map[string]func(*Handle, uint32) error{
		"carries a classifier (bpf)": func(h *Handle, index uint32) error {
			return h.AttachClassifier(index, Egress, program.FD(), "te-others", 7)
		},
		"carries program": func(h *Handle, index uint32) error {
			return enter(h.namespace, func() error {
				attached, err := link.AttachTCX(link.TCXOptions{Interface: int(index), Program: program, Attach: ebpf.AttachTCXIngress})
				if err == nil {
					t.Cleanup(func() { attached.Close() })
				}
				return err
			})
		},
	} {
		node, pod := newNode(t), newNamespace(t)
		index, err := node.CreatePair(testPair(pod, 0))
		if err != nil {
			t.Fatal(err)
		}
		if err := put(node, index); errors.Is(err, ebpf.ErrNotSupported) { // TCX came with kernel 6.6
			continue
		} else if err != nil {
			t.Fatal(err)
		}
		if _, err := node.FindPair(pod, "eth0"); err == nil || !strings.Contains(err.Error(), says) {
			t.Errorf("error is %v, want it to say %q", err, says)
		}
	}
}

func TestBridgeKnowsWhereThePodIs(t *testing.T) {
	node, pod := newNode(t), newNamespace(t)
	portOf(t, node, pod, 0)
	found, err := node.FindPair(pod, "eth0")
	if err != nil {
		t.Fatal(err)
	}
	for range 2 {
		if err := node.NotePod(found); err != nil {
			t.Fatal(err)
		}
	}
	entries, err := node.lib.NeighList(int(found.IfIndex), unix.AF_BRIDGE)
	if err != nil {
		t.Fatal(err)
	}
	if !slices.ContainsFunc(entries, func(n lib.Neigh) bool {
		return slices.Equal(n.HardwareAddr, net.HardwareAddr(found.PodMAC[:])) && n.State&lib.NUD_NOARP != 0
	}) {
		t.Errorf("the bridge's entries are %+v", entries)
	}
	alone := newNamespace(t)
	if _, err := node.CreatePair(testPair(alone, 1)); err != nil {
		t.Fatal(err)
	}
	if found, err = node.FindPair(alone, "eth0"); err == nil {
		err = node.NotePod(found)
	}
	if err != nil {
		t.Errorf("a device without bridge: %v", err)
	}
}

func TestReleasedPairIsDownAndBareAndAnothersIsLeftAlone(t *testing.T) {
	node, pod := newNode(t), newNamespace(t)
	pair := portOf(t, node, pod, 0)
	found, err := node.FindPair(pod, "eth0")
	if err != nil {
		t.Fatal(err)
	}
	program, id := newProgram(t)
	attach := func() {
		if err := node.AttachClassifiers(found.IfIndex, Classifier{Ingress, program.FD(), "te-in", 0}, Classifier{Egress, program.FD(), "te-out", 0}); err != nil {
			t.Fatal(err)
		}
	}
	attach()
	other := found
	other.HostMAC[5]++
	if err := node.ReleasePair(other); err != nil {
		t.Fatal(err)
	}
	attached(t, node, found.IfIndex, Ingress, id)
	for range 2 {
		if err := node.ReleasePair(found); err != nil {
			t.Fatal(err)
		}
		state, err := node.InspectPair(pair.Device, nil, "")
		if err != nil || state.Up || state.Programs != [2]uint32{} || state.IfIndex == 0 {
			t.Errorf("after its release it is %+v, %v", state, err)
		}
	}
	if err := errors.Join(node.RemovePair(pair.Device), node.ReleasePair(found)); err != nil {
		t.Errorf("a device that is gone: %v", err)
	}
}

func TestClearClosesWhatOtherPluginsMadeForPods(t *testing.T) {
	node, pod := newNode(t), newNamespace(t)
	pair := portOf(t, node, pod, 0)
	found, err := node.FindPair(pod, "eth0")
	if err != nil {
		t.Fatal(err)
	}
	program, _ := newProgram(t)
	if err := node.AttachClassifier(found.IfIndex, Egress, program.FD(), "te-to-pod", DefaultHandle); err != nil {
		t.Fatal(err)
	}
	if err := node.Clear(Leftover{Devices: "te-none", Adopted: []string{"te-to-pod"}}); err != nil {
		t.Fatal(err)
	}
	state, err := node.InspectPair(pair.Device, nil, "")
	if err != nil || state.Up || state.Programs != [2]uint32{} || state.IfIndex == 0 {
		t.Errorf("it is %+v, %v; want it there, down and without programs", state, err)
	}
}
