package datapath

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"path/filepath"
	"testing"

	"github.com/google/go-cmp/cmp"

	"tendril.io/tendril/bpf"
	"tendril.io/tendril/internal/policy"
	"tendril.io/tendril/internal/service"
	"tendril.io/tendril/internal/table"
)

// inUse is bit 63 of a descriptor.
const inUse = 1 << 63

// state is all that publications write, as the kernel has it.
type state struct {
	Addresses   map[bpf.Address]bpf.PeerInfo
	Prefixes    map[bpf.Prefix]bpf.PeerInfo
	Frontends   map[bpf.FrontendKey]bpf.Frontend
	Nodes       map[uint32]bpf.Node
	Endpoints   map[uint32]bpf.Endpoint
	Assignments map[bpf.AssignmentKey]bpf.Assignment
	Arenas      map[string]map[int]uint64 // words that are not 0
}

// readState reads everything but the verdict epoch, which rises by more after an interruption.
func readState(t testing.TB, d *Datapath) state {
	t.Helper()
	s := state{
		Addresses:   must(known[bpf.Address, bpf.PeerInfo](d.set.maps["addresses"])),
		Prefixes:    must(known[bpf.Prefix, bpf.PeerInfo](d.set.maps["prefixes"])),
		Frontends:   must(known[bpf.FrontendKey, bpf.Frontend](d.set.maps["frontends"])),
		Nodes:       must(known[uint32, bpf.Node](d.set.maps["nodes"])),
		Endpoints:   must(known[uint32, bpf.Endpoint](d.set.maps["endpoints"])),
		Assignments: must(known[bpf.AssignmentKey, bpf.Assignment](d.set.maps["assignments"])),
		Arenas:      map[string]map[int]uint64{},
	}
	for _, a := range []*arena{d.arenas.peerClass, d.arenas.classBits, d.arenas.programs, d.arenas.cells, d.arenas.slots, d.arenas.backends} {
		words := map[int]uint64{}
		for i := range len(a.mem) / 8 {
			if v := *a.word(i * 8); v != 0 {
				words[i] = v
			}
		}
		s.Arenas[a.name] = words
	}
	return s
}

// cells makes n cells that all hold v.
func cells(n int, v uint64) [][16]byte {
	out := make([][16]byte, n)
	for i := range out {
		binary.NativeEndian.PutUint64(out[i][:8], v)
		binary.NativeEndian.PutUint64(out[i][8:], v)
	}
	return out
}

// smallDelta touches every part of a delta.
func smallDelta() *policy.Delta {
	return &policy.Delta{
		Classes:  []policy.ClassRow{{Class: 1, Bits: []uint64{5}}, {Class: 2, Bits: []uint64{6, 7, 8, 9}}},
		Peers:    []policy.PeerRow{{Peer: 16, Class: 1}, {Peer: 17, Class: 2}},
		Contents: []policy.ContentRow{{FirstCell: 1, Cells: cells(3, 11)}},
		Programs: []policy.ProgramRow{{Program: 1, Descriptor: inUse | 1}},
		Set: []policy.AddressRow{
			{Prefix: netip.MustParsePrefix("10.1.0.5/32"), Peer: 16, Endpoint: 3, Flags: uint32(bpf.AddressFlagLocalPod)},
			{Prefix: netip.MustParsePrefix("fd00::5/128"), Peer: 16, Endpoint: 3, Flags: uint32(bpf.AddressFlagLocalPod)},
			{Prefix: netip.MustParsePrefix("0.0.0.0/0"), Peer: 2},
			{Prefix: netip.MustParsePrefix("192.0.2.0/24"), Peer: 17},
			{Prefix: netip.MustParsePrefix("2001:db8::/32"), Peer: 17},
		},
		Subjects: []policy.SubjectRow{{Endpoint: 3, Peer: 16, Ingress: 1, Egress: 1, StagedIngress: 2, StagedEgress: 3}},
		Changed:  true,
	}
}

func publish(t testing.TB, d *Datapath, delta *policy.Delta) {
	t.Helper()
	if err := d.Publish(t.Context(), delta); err != nil {
		t.Fatal(err)
	}
}

func TestPublishWritesEveryPart(t *testing.T) {
	d := bare(t, testConfig(rootFolder(t)))
	publish(t, d, smallDelta())
	got := readState(t, d)
	pod := bpf.PeerInfo{Peer: 16, Endpoint: 3, Flags: bpf.AddressFlagLocalPod}
	wantAddresses := map[bpf.Address]bpf.PeerInfo{
		bpf.AddressOf(netip.MustParseAddr("10.1.0.5")): pod, bpf.AddressOf(netip.MustParseAddr("fd00::5")): pod,
	}
	if diff := cmp.Diff(wantAddresses, got.Addresses); diff != "" {
		t.Errorf("addresses (-want +got):\n%s", diff)
	}
	wantPrefixes := map[bpf.Prefix]bpf.PeerInfo{
		{Length: 96, Address: netip.MustParseAddr("::ffff:0:0").As16()}:        {Peer: 2},
		{Length: 120, Address: netip.MustParseAddr("::ffff:192.0.2.0").As16()}: {Peer: 17},
		{Length: 32, Address: netip.MustParseAddr("2001:db8::").As16()}:        {Peer: 17},
	}
	if diff := cmp.Diff(wantPrefixes, got.Prefixes); diff != "" {
		t.Errorf("prefixes (-want +got):\n%s", diff)
	}
	wantArenas := map[string]map[int]uint64{
		"class_bits": {4: 5, 8: 6, 9: 7, 10: 8, 11: 9}, "peer_class": {16: 1, 17: 2}, "policy_programs": {1: inUse | 1},
		"policy_cells": {2: 11, 3: 11, 4: 11, 5: 11, 6: 11, 7: 11}, "slots": {}, "backends": {},
	}
	if diff := cmp.Diff(wantArenas, got.Arenas); diff != "" {
		t.Errorf("arenas (-want +got):\n%s", diff)
	}
	if diff := cmp.Diff(bpf.Endpoint{Peer: 16, Ingress: 1, Egress: 1, StagedIngress: 2, StagedEgress: 3}, got.Endpoints[3]); diff != "" {
		t.Errorf("endpoint 3 (-want +got):\n%s", diff)
	}
}

func TestKernelSeesWhatWasStoredThroughMemory(t *testing.T) {
	d := bare(t, testConfig(rootFolder(t)))
	publish(t, d, smallDelta())
	var class uint32
	if err := d.set.maps["peer_class"].Lookup(uint32(17), &class); err != nil || class != 2 {
		t.Errorf("peer_class[17] = %d (%v), want 2", class, err)
	}
	var cell bpf.PolicyCell
	if err := d.set.maps["policy_cells"].Lookup(uint32(3), &cell); err != nil || [16]byte(cell) != cells(1, 11)[0] {
		t.Errorf("policy_cells[3] = %v (%v)", cell, err)
	}
	var epoch uint32
	if err := d.set.maps["control"].Lookup(uint32(bpf.ControlVerdictEpoch), &epoch); err != nil || epoch != d.VerdictEpoch() || epoch == 0 {
		t.Errorf("control[VERDICT_EPOCH] = %d (%v), want %d", epoch, err, d.VerdictEpoch())
	}
}

func TestPublishingTheSameTwiceWritesNothingButAddresses(t *testing.T) {
	d := bare(t, testConfig(rootFolder(t)))
	publish(t, d, smallDelta())
	before := d.Writes()
	again := smallDelta()
	again.Changed, again.Set = false, nil
	publish(t, d, again)
	if diff := cmp.Diff(before, d.Writes()); diff != "" {
		t.Errorf("writes (-first +second):\n%s", diff)
	}
}

func TestManyAddressesAreWrittenOnlyWhereTheyDiffer(t *testing.T) {
	d := bare(t, testConfig(rootFolder(t)))
	delta := &policy.Delta{}
	for i := range diffFrom + 10 {
		addr := netip.AddrFrom4([4]byte{10, 2, byte(i >> 8), byte(i)})
		delta.Set = append(delta.Set, policy.AddressRow{Prefix: netip.PrefixFrom(addr, 32), Peer: 16})
	}
	publish(t, d, delta)
	before := d.Writes()["address"]
	delta.Set[7].Peer = 17
	publish(t, d, delta)
	if got := d.Writes()["address"] - before; got != 1 {
		t.Errorf("%d addresses written, want the 1 that differs", got)
	}
}

func TestAnIdentityThatAppearsCostsConstantWrites(t *testing.T) {
	d := bare(t, testConfig(rootFolder(t)))
	publish(t, d, smallDelta())
	for _, endpoints := range []int{1, 50} {
		subjects := &policy.Delta{}
		for i := range endpoints {
			subjects.Subjects = append(subjects.Subjects, policy.SubjectRow{Endpoint: uint32(i) + 1, Peer: 16, Ingress: 1, Egress: 1})
		}
		publish(t, d, subjects)
		before := d.Writes()
		publish(t, d, &policy.Delta{
			Peers: []policy.PeerRow{{Peer: 20 + uint32(endpoints), Class: 2}},
			Set:   []policy.AddressRow{{Prefix: netip.MustParsePrefix(fmt.Sprintf("10.9.0.%d/32", endpoints)), Peer: 20 + uint32(endpoints)}},
		})
		total := uint64(0)
		for kind, n := range d.Writes() {
			total += n - before[kind]
		}
		if total != 2 {
			t.Errorf("with %d endpoints, a new identity and its address cost %d writes, want 2", endpoints, total)
		}
	}
}

func TestImpossibleDeltaIsRefusedWhole(t *testing.T) {
	d := bare(t, testConfig(rootFolder(t)))
	publish(t, d, &policy.Delta{})
	for name, spoil := range map[string]func(*policy.Delta){
		"class 256 with 1 words of selectors: there is room for 256 classes of 4 words": func(delta *policy.Delta) {
			delta.Classes = append(delta.Classes, policy.ClassRow{Class: 256, Bits: []uint64{1}})
		},
		"class 3 with 5 words of selectors: there is room for 256 classes of 4 words": func(delta *policy.Delta) {
			delta.Classes = append(delta.Classes, policy.ClassRow{Class: 3, Bits: make([]uint64, 5)})
		},
		"class 4294967295 with 1 words of selectors: there is room for 256 classes of 4 words": func(delta *policy.Delta) {
			delta.Classes = append(delta.Classes, policy.ClassRow{Class: 1<<32 - 1, Bits: []uint64{1}})
		},
		"peer 1024: there is room for 1024": func(delta *policy.Delta) {
			delta.Peers = append(delta.Peers, policy.PeerRow{Peer: 1024})
		},
		"policy cells 4095 to 4096: there is room for 4096": func(delta *policy.Delta) {
			delta.Contents = append(delta.Contents, policy.ContentRow{FirstCell: 4095, Cells: cells(2, 1)})
		},
		"policy program 64: there is room for 64": func(delta *policy.Delta) {
			delta.Programs = append(delta.Programs, policy.ProgramRow{Program: 64})
		},
		"endpoint 0: there is room for 1 to 63": func(delta *policy.Delta) {
			delta.Subjects = append(delta.Subjects, policy.SubjectRow{})
		},
		"address row without an address": func(delta *policy.Delta) {
			delta.Set = append(delta.Set, policy.AddressRow{})
		},
		"removed address row without an address": func(delta *policy.Delta) {
			delta.Unset = append(delta.Unset, netip.Prefix{})
		},
	} {
		before := readState(t, d)
		delta := smallDelta()
		spoil(delta)
		err := d.Publish(t.Context(), delta)
		if want := "publish policy: " + name; err == nil || err.Error() != want {
			t.Errorf("got %v, want %s", err, want)
		}
		if diff := cmp.Diff(before, readState(t, d)); diff != "" {
			t.Errorf("%s: half applied (-before +after):\n%s", name, diff)
		}
	}
}

func TestFullAddressMapIsNamed(t *testing.T) {
	cfg := testConfig(rootFolder(t))
	cfg.Sizes["addresses"] = 4
	d := bare(t, cfg)
	var err error
	for i := byte(0); err == nil && i < 100; i++ {
		prefix := netip.PrefixFrom(netip.AddrFrom4([4]byte{10, 0, 0, i}), 32)
		err = d.Publish(t.Context(), &policy.Delta{Set: []policy.AddressRow{{Prefix: prefix, Peer: 16}}})
	}
	var full *FullError
	if !errors.As(err, &full) || full.Map != "addresses" || full.Capacity != 4 {
		t.Errorf("got %v, want addresses full at 4", err)
	}
}

func TestEpochRisesWithTheFirstPublicationAndWithChangesOnly(t *testing.T) {
	root := rootFolder(t)
	for range 2 {
		d := bare(t, testConfig(root))
		before := d.VerdictEpoch()
		for i, c := range []struct {
			changed bool
			rise    uint32
		}{{false, 1}, {false, 0}, {true, 1}, {true, 1}, {false, 0}} {
			publish(t, d, &policy.Delta{Changed: c.changed})
			if got := d.VerdictEpoch() - before; got != c.rise {
				t.Errorf("publication %d (changed %v) raised the epoch by %d, want %d", i, c.changed, got, c.rise)
			}
			before = d.VerdictEpoch()
		}
		if err := d.Close(); err != nil {
			t.Fatal(err)
		}
	}
}

func TestReleasedNumbersLeadNowhere(t *testing.T) {
	d := bare(t, testConfig(rootFolder(t)))
	n := d.Numbers()
	program := must(n.Assign(policy.KindProgram, digest(1), 1))
	peer := must(n.Assign(policy.KindPeer, digest(1), 1))
	backend := must(n.Assign(policy.KindBackend, digest(1), 1))
	publish(t, d, &policy.Delta{
		Peers: []policy.PeerRow{{Peer: peer, Class: 3}}, Programs: []policy.ProgramRow{{Program: program, Descriptor: inUse}},
	})
	row := service.BackendRow{Index: backend, Addr: netip.MustParseAddr("10.0.0.1"), Port: 80, Proto: 6, State: bpf.BackendActive}
	if err := d.PublishServices(t.Context(), &service.Delta{Backends: []service.BackendRow{row}}); err != nil {
		t.Fatal(err)
	}
	n.Release(policy.KindProgram, digest(1))
	n.Release(policy.KindPeer, digest(1))
	n.Release(policy.KindBackend, digest(1))
	publish(t, d, &policy.Delta{})
	if err := d.PublishServices(t.Context(), &service.Delta{}); err != nil {
		t.Fatal(err)
	}
	got := readState(t, d).Arenas
	for _, name := range []string{"policy_programs", "peer_class", "backends"} {
		if len(got[name]) > 0 {
			t.Errorf("%s still leads to %v", name, got[name])
		}
	}
}

// errDied is what a dead agent would say.
var errDied = errors.New("the agent died here")

// dieAfter lets n writes through.
func dieAfter(d *Datapath, n int) {
	d.counts.fault = func(write) error {
		if n--; n < 0 {
			return errDied
		}
		return nil
	}
}

// life is what an agent does with its state, from a restart on: it claims numbers and publishes everything. With the
// second rules, a program has other content in other cells and one address is gone.
func life(d *Datapath, secondRules bool) error {
	ctx, n := context.Background(), d.Numbers()
	content := digest(10)
	if secondRules {
		content = digest(11)
	}
	number := func(kind policy.Kind, dg policy.Digest, count uint32) (first uint32) {
		var err error
		if first, err = n.Assign(kind, dg, count); err != nil {
			panic(err)
		}
		return first
	}
	peer, class, program, at := number(policy.KindPeer, digest(1), 1), number(policy.KindClass, digest(2), 1),
		number(policy.KindProgram, digest(3), 1), number(policy.KindCells, content, 4)
	delta := &policy.Delta{
		Classes: []policy.ClassRow{{Class: class, Bits: []uint64{3}}}, Peers: []policy.PeerRow{{Peer: peer, Class: class}},
		Contents: []policy.ContentRow{{FirstCell: at, Cells: cells(4, uint64(content[0]))}},
		Programs: []policy.ProgramRow{{Program: program, Descriptor: inUse | uint64(at)}},
		Set:      []policy.AddressRow{{Prefix: netip.MustParsePrefix("10.1.0.5/32"), Peer: peer}},
		Subjects: []policy.SubjectRow{{Endpoint: 2, Peer: peer, Ingress: program, Egress: program}},
		Changed:  true,
	}
	wanted := Wanted{Addresses: map[netip.Prefix]bool{netip.MustParsePrefix("10.1.0.5/32"): true}, Endpoints: map[uint32]bool{2: true}}
	if other := netip.MustParsePrefix("10.1.0.6/32"); !secondRules {
		delta.Set = append(delta.Set, policy.AddressRow{Prefix: other, Peer: peer})
		wanted.Addresses[other] = true
	} else {
		delta.Unset = []netip.Prefix{other}
		n.Release(policy.KindCells, digest(10))
	}
	row := &table.Endpoint{ID: 2, Generation: 1, IfIndex: 9, Addrs: []netip.Addr{netip.MustParseAddr("10.1.0.5")}, MTU: 1500}
	if err := errors.Join(d.Publish(ctx, delta), d.WriteEndpoint(row)); err != nil {
		return err
	}
	if _, err := d.Prune(ctx, wanted); err != nil {
		return err
	}
	n.PruneUnclaimed()
	if err := d.Publish(ctx, &policy.Delta{}); err != nil {
		return err
	}
	return d.reclaim()
}

// tryLife is a life that may end at any write.
func tryLife(d *Datapath, secondRules bool) (err error) {
	defer func() {
		if r := recover(); r != nil {
			err = r.(error)
		}
	}()
	return life(d, secondRules)
}

func TestAgentMayDieBetweenAnyTwoWrites(t *testing.T) {
	folder := filepath.Dir(rootFolder(t))
	cfg := testConfig(filepath.Join(folder, "reference"))
	cfg.Sizes["policy_cells"], cfg.Sizes["peer_class"] = 64, 64
	d := bare(t, cfg)
	if err := errors.Join(life(d, false), life(d, true)); err != nil {
		t.Fatal(err)
	}
	reference := readState(t, d)
	for _, secondRules := range []bool{false, true} {
		died := true
		for n := 0; died; n++ {
			cfg.Root = filepath.Join(folder, fmt.Sprintf("node-%v-%d", secondRules, n))
			died = dieAndGoOn(t, cfg, secondRules, n)
			d := bare(t, cfg)
			if err := life(d, true); err != nil {
				t.Fatalf("the agent after the one that died after %d writes: %v", n, err)
			}
			checkSameMeaning(t, n, reference, readState(t, d))
			if err := errors.Join(d.Close(), Teardown(cfg.Root)); err != nil {
				t.Fatal(err)
			}
		}
	}
}

// dieAndGoOn lets an agent die after n writes of its first life or of its second rules; false: n were enough.
func dieAndGoOn(t *testing.T, cfg Config, secondRules bool, n int) bool {
	t.Helper()
	d := bare(t, cfg)
	defer d.Close()
	if secondRules {
		if err := life(d, false); err != nil {
			t.Fatal(err)
		}
	}
	dieAfter(d, n)
	err := tryLife(d, secondRules)
	if err != nil && !errors.Is(err, errDied) {
		t.Fatalf("after %d writes: %v", n, err)
	}
	return err != nil
}

// checkSameMeaning compares states in which cells may lie at other places: the content of cells nobody uses is moot, and
// which free cells a program got depends on what was free when it asked.
func checkSameMeaning(t *testing.T, n int, want, got state) {
	t.Helper()
	for _, s := range []*state{&want, &got} {
		descriptor := s.Arenas["policy_programs"][1]
		first := int(uint32(descriptor))
		content := map[int]uint64{}
		for i := range 8 {
			content[i] = s.Arenas["policy_cells"][first*2+i]
		}
		assignments := map[bpf.AssignmentKey]bpf.Assignment{}
		for key, row := range s.Assignments {
			if policy.Kind(key.Kind) == policy.KindCells {
				if int(row.First) != first {
					t.Errorf("death after %d writes: program at cell %d, its assignment says %d", n, first, row.First)
				}
				row.First = 0
			}
			assignments[key] = row
		}
		arenas := map[string]map[int]uint64{}
		for name, words := range s.Arenas {
			arenas[name] = words
		}
		arenas["policy_cells"], arenas["policy_programs"] = content, map[int]uint64{1: descriptor &^ 0xffffffff}
		s.Assignments, s.Arenas = assignments, arenas
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Fatalf("death after %d writes leaves another state (-want +got):\n%s", n, diff)
	}
}

func BenchmarkPublishSmallDelta(b *testing.B) {
	d := openBench(b)
	deltas := [2]*policy.Delta{smallDelta(), smallDelta()}
	deltas[1].Peers[0].Class, deltas[1].Programs[0].Descriptor = 2, inUse|2
	deltas[1].Subjects[0].Ingress = 2
	b.ReportAllocs()
	for i := 0; b.Loop(); i++ {
		if err := d.Publish(context.Background(), deltas[i%2]); err != nil {
			b.Fatal(err)
		}
	}
}
