package datapath

import (
	"fmt"
	"net"
	"os"
	"path/filepath"
	"slices"
	"testing"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/link"
	"github.com/google/go-cmp/cmp"
	"github.com/vishvananda/netlink"

	"tendril.io/tendril/bpf"
)

// testDevice makes a device of the test's own.
func testDevice(t *testing.T) uint32 {
	t.Helper()
	name := fmt.Sprintf("tdp%d", os.Getpid())
	device := &netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: name}, PeerName: name + "p"}
	if err := netlink.LinkAdd(device); err != nil {
		t.Fatalf("make device %s: %v", name, err)
	}
	t.Cleanup(func() {
		if err := netlink.LinkDel(device); err != nil {
			t.Errorf("remove device %s: %v", name, err)
		}
	})
	made, err := net.InterfaceByName(name)
	if err != nil {
		t.Fatal(err)
	}
	return uint32(made.Index)
}

// onDevice lists the names of programs that TCX has on a device in a direction.
func onDevice(t *testing.T, ifIndex uint32, at ebpf.AttachType) []string {
	t.Helper()
	result, err := link.QueryPrograms(link.QueryOptions{Target: int(ifIndex), Attach: at})
	if err != nil {
		t.Fatal(err)
	}
	var names []string
	for _, row := range result.Programs {
		program, err := ebpf.NewProgramFromID(row.ID)
		if err != nil {
			t.Fatal(err)
		}
		info, err := program.Info()
		program.Close()
		if err != nil {
			t.Fatal(err)
		}
		names = append(names, info.Name)
	}
	return names
}

func TestUplinkKeepsItsStubsAcrossRestart(t *testing.T) {
	root := rootFolder(t)
	ifIndex := testDevice(t)
	d := bare(t, testConfig(root))
	for range 2 { // the second time changes nothing
		if err := d.AttachUplink(ifIndex); err != nil {
			t.Fatal(err)
		}
	}
	in, out := onDevice(t, ifIndex, ebpf.AttachTCXIngress), onDevice(t, ifIndex, ebpf.AttachTCXEgress)
	if len(in) != 1 || len(out) != 1 || in[0] == out[0] {
		t.Fatalf("programs on the device: in %v, out %v; want one each", in, out)
	}
	before := d.Templates()
	if err := d.Close(); err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(in, onDevice(t, ifIndex, ebpf.AttachTCXIngress)); diff != "" {
		t.Errorf("without an agent (-want +got):\n%s", diff)
	}
	again := bare(t, testConfig(root))
	if err := again.AttachUplink(ifIndex); err != nil {
		t.Fatal(err)
	}
	i := slices.IndexFunc(before, func(row Template) bool { return row.Entry == bpf.EntryNetIn })
	was, is := before[i].Instances[0].ProgramID, again.Templates()[i].Instances[0].ProgramID
	if was != is {
		t.Errorf("the uplink's program changed from %d to %d", was, is)
	}
	if err := again.Detach(ifIndex); err != nil {
		t.Fatal(err)
	}
	if left := onDevice(t, ifIndex, ebpf.AttachTCXIngress); len(left) > 0 {
		t.Errorf("left on the device: %v", left)
	}
}

func TestUplinkCarryingAnotherStubIsUpdatedInPlace(t *testing.T) {
	d := bare(t, testConfig(rootFolder(t)))
	ifIndex := testDevice(t)
	if err := d.AttachUplink(ifIndex); err != nil {
		t.Fatal(err)
	}
	pinned := must(openLink(firstPin(t, d)))
	defer pinned.Close()
	other := loadProbe(t, "foreign", reportStubWords())
	if err := pinned.Update(other); err != nil {
		t.Fatal(err)
	}
	id := must(pinned.Info()).ID
	if err := d.AttachUplink(ifIndex); err != nil {
		t.Fatal(err)
	}
	if got := must(must(openLink(firstPin(t, d))).Info()).ID; got != id {
		t.Errorf("link %d was replaced by %d: the device was bare for a while", id, got)
	}
	want := []string{d.stubs.programName(0, 0, bpf.EntryNetIn)}
	if diff := cmp.Diff(want, onDevice(t, ifIndex, ebpf.AttachTCXIngress)); diff != "" {
		t.Errorf("programs on the device (-want +got):\n%s", diff)
	}
}

// firstPin is the first link's pin, of net-in.
func firstPin(t *testing.T, d *Datapath) string {
	t.Helper()
	names := must(listFolder(filepath.Join(d.cfg.Root, linksFolder)))
	slices.Sort(names)
	return filepath.Join(d.cfg.Root, linksFolder, names[0])
}

func TestDeviceThatIsGoneIsNamed(t *testing.T) {
	d := bare(t, testConfig(rootFolder(t)))
	err := d.AttachOverlay(1 << 30)
	want := "attach tunnel-in to device 1073741824: attach tcx link: no such device"
	if err == nil || err.Error() != want {
		t.Errorf("got %v, want %s", err, want)
	}
}

func TestSocketHooksFollowAReload(t *testing.T) {
	cfg := testConfig(rootFolder(t))
	cfg.Cgroup = cgroupFolder(t)
	d := open(t, cfg)
	if len(d.hooks) == 0 {
		t.Fatal("the objects hold no socket hook")
	}
	if err := d.AttachSockets(); err != nil {
		t.Fatal(err)
	}
	check := func(when string) {
		t.Helper()
		for name, at := range d.hooks {
			folder := must(os.Open(cfg.Cgroup))
			result, err := link.QueryPrograms(link.QueryOptions{Target: int(folder.Fd()), Attach: at})
			folder.Close()
			if err != nil {
				t.Fatal(err)
			}
			want, _ := must(d.current.programs[name].Info()).ID()
			if len(result.Programs) != 1 || result.Programs[0].ID != want {
				t.Errorf("%s: hook %s runs %v, want program %d", when, name, result.Programs, want)
			}
		}
	}
	check("attached")
	if _, err := d.Reload(t.Context(), cfg.Node); err != nil {
		t.Fatal(err)
	}
	check("reloaded")
	if err := d.Close(); err != nil {
		t.Fatal(err)
	}
	d = open(t, cfg)
	if err := d.AttachSockets(); err != nil {
		t.Fatal(err)
	}
	check("restarted")
}

func TestSocketHooksWithoutCgroupAreRefused(t *testing.T) {
	if err := bare(t, testConfig(rootFolder(t))).AttachSockets(); err == nil {
		t.Error("attached to no cgroup")
	}
}
