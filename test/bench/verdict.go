package main

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"unsafe"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
	"github.com/cilium/ebpf/btf"
	"github.com/cilium/ebpf/rlimit"

	"tendril.io/tendril/bpf"
	"tendril.io/tendril/internal/testkit"
)

const (
	verdictAddresses = 100_000
	verdictActive    = 256              // addresses that packets come from: what a node talks to at a time
	verdictSeldom    = verdictAddresses // packets come from everywhere: caches do not help
	verdictClasses   = 4096
	verdictWords     = 4096 / 64 // of a row of class_bits: 4096 selectors
	verdictRepeat    = 500_000
	verdictPort      = 80
	firstCell        = 64
)

// verdict measures address -> peer -> policy in the shipped object's own functions, address_find and policy_judge, under
// BPF_PROG_TEST_RUN: 100,000 addresses are known, each run takes one of 256 that lie apart by chance, there are 4,096
// selectors, and in the policy the last of n entries matches. The floor is the same program without the two calls. The
// figures that end in _cold take each run one of all 100,000, so that nearly every one waits for memory.
func (b *bench) verdict(context.Context) error {
	if err := rlimit.RemoveMemlock(); err != nil {
		return err
	}
	for _, figure := range []struct {
		name            string
		entries, active int
	}{
		{"verdict_ns_1rule", 1, verdictActive}, {"verdict_ns_1rule_cold", 1, verdictSeldom},
		{"verdict_ns_10rules", 10, verdictActive},
		{"verdict_ns_16rules", 16, verdictActive}, {"verdict_ns_16rules_cold", 16, verdictSeldom},
		{"verdict_ns_64rules", 64, verdictActive},
	} {
		name := figure.name
		probe, err := newVerdictProbe(figure.entries, figure.active)
		if err != nil {
			return fmt.Errorf("%s: %w", name, err)
		}
		for range b.rounds {
			floor, err := timePerRun(probe.Programs["floor"])
			if err == nil {
				var full float64
				full, err = timePerRun(probe.Programs["probe"])
				b.sample(name, full-floor)
			}
			if err != nil {
				probe.Close()
				return fmt.Errorf("%s: %w", name, err)
			}
		}
		probe.Close()
	}
	return nil
}

// timePerRun is in nanoseconds; the kernel takes the time of all repetitions together.
func timePerRun(p *ebpf.Program) (float64, error) {
	result, took, err := p.Benchmark(make([]byte, 64), verdictRepeat, nil)
	if err != nil {
		return 0, err
	}
	if result != uint32(bpf.ActionAllow) {
		return 0, fmt.Errorf("the program says %d, want %d: it measures another path", result, bpf.ActionAllow)
	}
	return float64(took.Nanoseconds()), nil
}

// newVerdictProbe loads the two programs with the maps of the shipped object, and fills these.
func newVerdictProbe(entries, active int) (*ebpf.Collection, error) {
	spec, err := bpf.Load("pod")
	if err != nil {
		return nil, err
	}
	if err := spec.Variables["config"].Set(bpf.NodeConfig{ClassWords: verdictWords}); err != nil {
		return nil, err
	}
	shipped := spec.Programs["from_pod"]
	if shipped == nil {
		return nil, errors.New("the object pod has no program from_pod")
	}
	functions, err := testkit.Functions(shipped.Instructions, "address_find", "policy_judge")
	if err != nil {
		return nil, err
	}
	first := shipped.Instructions[0]
	spec.Programs = map[string]*ebpf.ProgramSpec{
		"probe": verdictProgram("probe", active, first, functions),
		"floor": verdictProgram("floor", active, first, nil),
	}
	for _, m := range spec.Maps {
		m.Pinning = ebpf.PinNone
	}
	collection, err := ebpf.NewCollection(spec)
	if err != nil {
		return nil, fmt.Errorf("%+v", err)
	}
	if err := fillVerdictMaps(collection.Maps, entries); err != nil {
		collection.Close()
		return nil, err
	}
	return collection, nil
}

// verdictProgram picks one of the addresses and, if it has the functions, asks them; it returns the verdict's action. The
// verifier wants type and line of every function, so the program borrows those of like, whose signature it has.
func verdictProgram(name string, active int, like asm.Instruction, functions asm.Instructions) *ebpf.ProgramSpec {
	const address, found, out = -16, -32, -48 // on the stack
	action := int16(unsafe.Offsetof(bpf.Verdict{}.Action))
	peer := int16(unsafe.Offsetof(bpf.PeerInfo{}.Peer))
	code := asm.Instructions{
		btf.WithFuncMetadata(asm.FnGetPrandomU32.Call().WithSymbol(name), btf.FuncMetadata(&like)).WithSource(like.Source()),
		asm.Mod.Imm32(asm.R0, int32(active)),
		asm.Mul.Imm32(asm.R0, int32(verdictAddresses/active)),
		asm.Add.Imm32(asm.R0, 10<<24), // 10.0.0.0 and on
		asm.HostTo(asm.BE, asm.R0, asm.Word),
		asm.StoreMem(asm.RFP, address+12, asm.R0, asm.Word),
		asm.Mov.Imm(asm.R6, 0),
		asm.StoreMem(asm.RFP, address, asm.R6, asm.DWord),
		asm.Mov.Imm32(asm.R1, -65536), // 00 00 ff ff in memory: v4-mapped
		asm.StoreMem(asm.RFP, address+8, asm.R1, asm.Word),
	}
	for slot := int16(out); slot < address; slot += 8 {
		code = append(code, asm.StoreMem(asm.RFP, slot, asm.R6, asm.DWord))
	}
	code = append(code, asm.StoreImm(asm.RFP, out+action, int64(bpf.ActionAllow), asm.Byte))
	if functions != nil {
		code = append(code,
			asm.Mov.Reg(asm.R1, asm.RFP), asm.Add.Imm(asm.R1, address),
			asm.Mov.Reg(asm.R2, asm.RFP), asm.Add.Imm(asm.R2, found),
			testkit.Call("address_find"),
			asm.Mov.Imm(asm.R1, 1),
			asm.LoadMem(asm.R2, asm.RFP, found+peer, asm.Word),
			asm.Mov.Imm(asm.R3, 6<<16|verdictPort),
			asm.Mov.Reg(asm.R4, asm.RFP), asm.Add.Imm(asm.R4, out),
			testkit.Call("policy_judge"))
	}
	code = append(code, asm.LoadMem(asm.R0, asm.RFP, out+action, asm.Byte), asm.Return())
	return &ebpf.ProgramSpec{Name: name, Type: ebpf.SchedCLS, License: "Dual BSD/GPL", Instructions: append(code, functions...)}
}

// fillVerdictMaps writes addresses, peers, classes and one policy program.
func fillVerdictMaps(maps map[string]*ebpf.Map, entries int) error {
	random := rand.New(rand.NewPCG(1, 2))
	var errs []error
	put := func(name string, key, value any) { errs = append(errs, maps[name].Put(key, value)) }
	for i := range uint32(verdictAddresses) {
		raw := [16]byte{10: 0xff, 11: 0xff, 12: 10, 13: byte(i >> 16), 14: byte(i >> 8), 15: byte(i)}
		put("addresses", raw, bpf.PeerInfo{Peer: uint32(bpf.PeerFirstFree) + random.Uint32N(50_000)})
	}
	for peer := range uint32(50_000) {
		put("peer_class", uint32(bpf.PeerFirstFree)+peer, random.Uint32N(verdictClasses))
	}
	selectors, others := verdictSelectors(entries)
	last := selectors[entries-1]
	for class := range uint32(verdictClasses) {
		var row bpf.ClassRow
		for i := range row.Word {
			row.Word[i] = random.Uint64() &^ others[i]
		}
		row.Word[last/64] |= 1 << (last % 64)
		put("class_bits", class, row)
	}
	put("policy_cells", uint32(firstCell), bpf.PolicyHeader{Segments: 1, DefaultAction: bpf.ActionDeny, DefaultRule: 2})
	put("policy_cells", uint32(firstCell+1), bpf.PolicySegment{
		FirstPort: verdictPort, LastPort: verdictPort, Protocol: 6, EntriesFirst: 2, EntriesCount: uint16(entries)})
	var list []bpf.PolicyCell // structs.h: the selectors, then the entries
	for chunk := range slices.Chunk(selectors, int(bpf.SelectorsPerCell)) {
		list = append(list, cell([8]uint16(append(slices.Clone(chunk), make([]uint16, 8)...))))
	}
	for i, selector := range selectors {
		entry := bpf.PolicyEntry{Rank: uint32(i) + 1, Selector: selector, Action: bpf.ActionDeny, Rule: 64 + uint32(i)}
		if i == entries-1 {
			entry.Action = bpf.ActionAllow
		}
		list = append(list, cell(entry))
	}
	for i := range list {
		put("policy_cells", firstCell+2+uint32(i), list[i])
	}
	put("policy_programs", uint32(1), uint64(1)<<63|1<<32|firstCell)
	return errors.Join(errs...)
}

// verdictSelectors spreads the selectors of the entries by chance over a row of class_bits, as those of policies that came and
// went over time are. The second result has the bits of all but the last entry's, which must not match.
func verdictSelectors(entries int) ([]uint16, [verdictWords]uint64) {
	var selectors []uint16
	var others [verdictWords]uint64
	for i, bit := range rand.New(rand.NewPCG(3, 4)).Perm(verdictWords * 64)[:entries] {
		selectors = append(selectors, uint16(bit))
		if i < entries-1 {
			others[bit/64] |= 1 << (bit % 64)
		}
	}
	return selectors, others
}

// cell is a 16-byte value in the machine's byte order.
func cell(v any) (c bpf.PolicyCell) {
	if _, err := binary.Encode(c[:], binary.NativeEndian, v); err != nil {
		panic(err) // only for a value of another size
	}
	return c
}
