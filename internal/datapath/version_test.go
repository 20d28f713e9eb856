package datapath

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/cilium/ebpf"
	"github.com/google/go-cmp/cmp"

	"tendril.io/tendril/bpf"
	"tendril.io/tendril/internal/policy"
)

// slots lists the program ids in the entry slots.
func entrySlots(t testing.TB, d *Datapath) map[bpf.Entry]uint32 {
	t.Helper()
	out := map[bpf.Entry]uint32{}
	for entry := range bpf.EntryCount {
		var id uint32
		if err := d.set.maps["entries"].Lookup(uint32(entry), &id); err == nil {
			out[entry] = id
		}
	}
	return out
}

// tree lists every path under a folder.
func tree(t testing.TB, folder string) []string {
	t.Helper()
	var out []string
	err := filepath.WalkDir(folder, func(path string, _ os.DirEntry, err error) error {
		out = append(out, path)
		return err
	})
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		t.Fatal(err)
	}
	return out
}

func TestEveryEntryHasItsProgram(t *testing.T) {
	d := open(t, testConfig(rootFolder(t)))
	got := entrySlots(t, d)
	if len(got) != len(entryPrograms()) {
		t.Fatalf("slots %v, want one for each of %v", got, entryPrograms())
	}
	for entry, id := range got {
		program, err := ebpf.NewProgramFromID(ebpf.ProgramID(id))
		if err != nil {
			t.Fatal(err)
		}
		if info := must(program.Info()); info.Name != programName(entry) {
			t.Errorf("entry %s runs %s", entry, info.Name)
		}
		program.Close()
	}
}

func TestRestartWithTheSameProgramsKeepsThem(t *testing.T) {
	root := rootFolder(t)
	d := open(t, testConfig(root))
	publish(t, d, smallDelta())
	slots, kernel := entrySlots(t, d), readState(t, d)
	if err := d.Close(); err != nil {
		t.Fatal(err)
	}
	again := open(t, testConfig(root))
	if diff := cmp.Diff(slots, entrySlots(t, again)); diff != "" {
		t.Errorf("programs (-before +after):\n%s", diff)
	}
	if diff := cmp.Diff(kernel, readState(t, again)); diff != "" {
		t.Errorf("maps (-before +after):\n%s", diff)
	}
	if again.Version() != 1 {
		t.Errorf("version %d, want 1 still", again.Version())
	}
}

func TestRestartWithAnotherConfigurationReplacesPrograms(t *testing.T) {
	cfg := testConfig(rootFolder(t))
	d := open(t, cfg)
	slots := entrySlots(t, d)
	if err := d.Close(); err != nil {
		t.Fatal(err)
	}
	cfg.Node.VNI = 7
	again := open(t, cfg)
	for entry, id := range entrySlots(t, again) {
		if slots[entry] == id {
			t.Errorf("entry %s still runs program %d", entry, id)
		}
	}
	if again.Version() != 2 {
		t.Errorf("version %d, want 2", again.Version())
	}
}

func TestReloadSwapsEveryEntryAndDropsTheOldVersion(t *testing.T) {
	cfg := testConfig(rootFolder(t))
	d := open(t, cfg)
	before := entrySlots(t, d)
	version, err := d.Reload(t.Context(), cfg.Node)
	if err != nil || version != 2 || d.Version() != 2 {
		t.Fatalf("reload: version %d, %d (%v), want 2", version, d.Version(), err)
	}
	for entry, id := range entrySlots(t, d) {
		if before[entry] == id {
			t.Errorf("entry %s still runs program %d", entry, id)
		}
		if !eventually(func() bool { return programGone(before[entry]) }) {
			t.Errorf("program %d of the old version is still loaded", before[entry])
		}
	}
	names := must(listFolder(filepath.Join(cfg.Root, versionsFolder)))
	if len(names) != 2 || !strings.HasPrefix(names[0], "2-") || names[1] != currentLink {
		t.Errorf("versions folder holds %v, want version 2 and its link", names)
	}
}

// programGone says whether the kernel has freed a program.
func programGone(id uint32) bool {
	p, err := ebpf.NewProgramFromID(ebpf.ProgramID(id))
	if err == nil {
		p.Close()
	}
	return errors.Is(err, os.ErrNotExist)
}

// eventually asks for up to five seconds: the kernel frees programs after a grace period of its own.
func eventually(condition func() bool) bool {
	for range 100 {
		if condition() {
			return true
		}
		time.Sleep(50 * time.Millisecond)
	}
	return false
}

func TestNoPacketIsLostInReloads(t *testing.T) {
	cfg := testConfig(rootFolder(t))
	d := open(t, cfg)
	stub := must(d.LoadStub(1, 1, bpf.EntryNetOut))
	defer stub.Close()
	ctx, stop := context.WithCancel(t.Context())
	done := make(chan error)
	go func() {
		var err error
		for ctx.Err() == nil && err == nil {
			_, err = stub.program.Run(&ebpf.RunOptions{Data: make([]byte, 64), Repeat: 500})
		}
		done <- err
	}()
	for range 8 {
		if _, err := d.Reload(t.Context(), cfg.Node); err != nil {
			t.Fatal(err)
		}
	}
	stop()
	if err := <-done; err != nil {
		t.Fatal(err)
	}
	for _, c := range must(d.Counters()) {
		if c.Reason == bpf.DropTailCall {
			t.Errorf("%d packets found no program", c.Packets)
		}
	}
}

func TestAgentThatDiedWhileItSwappedIsReplacedWhole(t *testing.T) {
	cfg := testConfig(rootFolder(t))
	for _, n := range []int{0, 1, len(entryPrograms()) - 1} {
		d := open(t, cfg)
		before := entrySlots(t, d)
		dieAfter(d, n)
		if _, err := d.Reload(t.Context(), cfg.Node); !errors.Is(err, errDied) {
			t.Fatalf("got %v", err)
		}
		d.Close()
		after := open(t, cfg)
		for entry, id := range entrySlots(t, after) {
			if before[entry] == id {
				t.Errorf("death after %d slots: entry %s is of the version that was being replaced", n, entry)
			}
		}
		if names := must(listFolder(filepath.Join(cfg.Root, versionsFolder))); len(names) != 2 {
			t.Errorf("death after %d slots leaves versions %v", n, names)
		}
		after.Close()
	}
}

func TestBadReloadChangesNothing(t *testing.T) {
	cfg := testConfig(rootFolder(t))
	d := open(t, cfg)
	before := entrySlots(t, d)
	for name, spoil := range map[string]func(*bpf.NodeConfig){
		"no address family":   func(n *bpf.NodeConfig) { n.Features = 0 },
		"other class words":   func(n *bpf.NodeConfig) { n.ClassWords = 8 },
		"tunnel, no device":   func(n *bpf.NodeConfig) { n.Features |= bpf.FeatureTunnel },
		"backwards NAT range": func(n *bpf.NodeConfig) { n.NATPortMin = n.NATPortMax + 1 },
	} {
		node := cfg.Node
		spoil(&node)
		if _, err := d.Reload(t.Context(), node); err == nil {
			t.Errorf("%s was accepted", name)
		}
	}
	if diff := cmp.Diff(before, entrySlots(t, d)); diff != "" {
		t.Errorf("programs (-before +after):\n%s", diff)
	}
}

func TestMapOfAnotherSizeWaitsUntilItIsFilled(t *testing.T) {
	cfg := testConfig(rootFolder(t))
	d := open(t, cfg)
	publish(t, d, smallDelta())
	slots := entrySlots(t, d)
	oldPin := pinOf(t, d, "addresses")
	if err := d.Close(); err != nil {
		t.Fatal(err)
	}
	cfg.Sizes["addresses"] = 2048
	again := open(t, cfg)
	if diff := cmp.Diff(slots, entrySlots(t, again)); diff != "" {
		t.Fatalf("programs changed before the new map was filled (-before +after):\n%s", diff)
	}
	cfg.Node.HalfOpenLimit++ // a reload meanwhile must not put programs on the empty map into force, either
	reloaded, err := again.Reload(t.Context(), cfg.Node)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(slots, entrySlots(t, again)); diff != "" {
		t.Fatalf("programs changed before the new map was filled, by a reload (-before +after):\n%s", diff)
	}
	publish(t, again, smallDelta())
	if _, err := again.Prune(t.Context(), Wanted{}); err != nil {
		t.Fatal(err)
	}
	for entry, id := range entrySlots(t, again) {
		if slots[entry] == id {
			t.Errorf("entry %s still uses the old map", entry)
		}
	}
	if again.Version() != reloaded {
		t.Errorf("version %d is in force, want the reloaded %d", again.Version(), reloaded)
	}
	if _, err := os.Stat(oldPin); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the old map is still pinned: %v", err)
	}
	if got := again.set.maps["addresses"].MaxEntries(); got != 2048 {
		t.Errorf("addresses has %d entries, want 2048", got)
	}
}

// Programs in force follow descriptors into the cells that they know, so whoever makes new cells makes new descriptors.
func TestMapsThatPointIntoAnotherAreMadeAnewWithIt(t *testing.T) {
	cfg := testConfig(rootFolder(t))
	d := open(t, cfg)
	publish(t, d, smallDelta())
	old := must(d.set.maps["policy_programs"].Clone())
	defer old.Close()
	if err := d.Close(); err != nil {
		t.Fatal(err)
	}
	cfg.Sizes["policy_cells"] *= 2
	again := open(t, cfg)
	delta := smallDelta()
	delta.Contents[0].FirstCell, delta.Programs[0].Descriptor = 9, inUse|9
	publish(t, again, delta)
	var before, after uint64
	if err := errors.Join(old.Lookup(uint32(1), &before), again.set.maps["policy_programs"].Lookup(uint32(1), &after)); err != nil {
		t.Fatal(err)
	}
	if before != inUse|1 || after != inUse|9 {
		t.Errorf("descriptor %x for the programs in force and %x for those that wait, want %x and %x", before, after, uint64(inUse|1), uint64(inUse|9))
	}
	if diff := cmp.Diff([]string{"policy_cells", "policy_programs"}, again.set.made); diff != "" {
		t.Errorf("maps made anew (-want +got):\n%s", diff)
	}
}

// pinOf is where a map is pinned.
func pinOf(t testing.TB, d *Datapath, name string) string {
	t.Helper()
	folder := filepath.Join(d.cfg.Root, mapsFolder)
	names := must(listFolder(folder))
	i := slices.IndexFunc(names, func(pin string) bool { return strings.HasPrefix(pin, name+"-") })
	if i < 0 {
		t.Fatalf("map %s is not pinned", name)
	}
	return filepath.Join(folder, names[i])
}

func TestConnectionsOfAnotherLayoutAreRefused(t *testing.T) {
	cfg := testConfig(rootFolder(t))
	d := bare(t, cfg)
	pin := pinOf(t, d, "flows")
	if err := d.Close(); err != nil {
		t.Fatal(err)
	}
	foreign := filepath.Join(filepath.Dir(pin), "flows-0123456789abcdef")
	m := must(ebpf.NewMap(&ebpf.MapSpec{Type: ebpf.Hash, KeySize: 4, ValueSize: 4, MaxEntries: 1}))
	defer m.Close()
	if err := errors.Join(os.Remove(pin), m.Pin(foreign)); err != nil {
		t.Fatal(err)
	}
	before := tree(t, cfg.Root)
	_, err := Open(t.Context(), cfg)
	var schema *SchemaError
	if !errors.As(err, &schema) || schema.Map != "flows" || schema.Found != "flows-0123456789abcdef" {
		t.Errorf("got %v, want a SchemaError of flows", err)
	}
	if diff := cmp.Diff(before, tree(t, cfg.Root)); diff != "" {
		t.Errorf("pins (-before +after):\n%s", diff)
	}
}

func TestConnectionsKeepTheirTableWhenItsSizeChanges(t *testing.T) {
	cfg := testConfig(rootFolder(t))
	if err := bare(t, cfg).Close(); err != nil {
		t.Fatal(err)
	}
	cfg.Sizes["flows"] = 8192
	if got := bare(t, cfg).set.maps["flows"].MaxEntries(); got != 4096 {
		t.Errorf("flows has %d entries, want those it was made with", got)
	}
}

func TestTwoAgentsOnOneRootAreRefused(t *testing.T) {
	cfg := testConfig(rootFolder(t))
	d := bare(t, cfg)
	var locked *LockedError
	if _, err := Open(t.Context(), cfg); !errors.As(err, &locked) || locked.Root != cfg.Root {
		t.Errorf("second agent: got %v, want a LockedError", err)
	}
	if err := Teardown(cfg.Root); !errors.As(err, &locked) {
		t.Errorf("teardown under an agent: got %v, want a LockedError", err)
	}
	if err := d.Close(); err != nil {
		t.Fatal(err)
	}
	bare(t, cfg)
}

func TestTeardownLeavesNothing(t *testing.T) {
	cfg := testConfig(rootFolder(t))
	cfg.Cgroup = cgroupFolder(t)
	ifIndex := testDevice(t)
	d := open(t, cfg)
	if err := errors.Join(d.AttachUplink(ifIndex), d.AttachSockets()); err != nil {
		t.Fatal(err)
	}
	must(d.numbers.Assign(policy.KindPeer, digest(1), 1))
	slots := entrySlots(t, d)
	if err := d.Close(); err != nil {
		t.Fatal(err)
	}
	for range 2 {
		if err := Teardown(cfg.Root); err != nil {
			t.Fatal(err)
		}
		if left := tree(t, cfg.Root); len(left) > 1 {
			t.Errorf("left: %v", left)
		}
	}
	if left := onDevice(t, ifIndex, ebpf.AttachTCXIngress); len(left) > 0 {
		t.Errorf("left on the uplink: %v", left)
	}
	for _, id := range slots {
		if !eventually(func() bool { return programGone(id) }) {
			t.Errorf("program %d is still loaded", id)
		}
	}
}

func TestRootOutsideBPFFSNamesTheRemedy(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("needs root: opens a datapath")
	}
	cfg := testConfig(filepath.Join(t.TempDir(), "node"))
	_, err := Open(t.Context(), cfg)
	if err == nil || !strings.Contains(err.Error(), "mount -t bpf bpf /sys/fs/bpf") {
		t.Errorf("got %v", err)
	}
	if _, err := os.Stat(cfg.Root); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the folder was made nevertheless")
	}
}

func TestProgramsKnowTheNodesConfiguration(t *testing.T) {
	cfg := testConfig(rootFolder(t))
	d := bare(t, cfg)
	if d.node.NetnsCookie == 0 || d.node.NetnsCookie != must(netnsCookie()) {
		t.Errorf("network namespace cookie %d", d.node.NetnsCookie)
	}
	if d.node.EventWakeupBytes == 0 {
		t.Error("no threshold for waking the reader of events")
	}
}

func BenchmarkOpenAgain(b *testing.B) {
	cfg := testConfig(rootFolder(b))
	open(b, cfg).Close()
	for b.Loop() {
		open(b, cfg).Close()
	}
}

func BenchmarkReload(b *testing.B) {
	cfg := testConfig(rootFolder(b))
	d := open(b, cfg)
	for b.Loop() {
		if _, err := d.Reload(b.Context(), cfg.Node); err != nil {
			b.Fatal(err)
		}
	}
}
