package datapath

import (
	"cmp"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"os"
	"slices"
	"sync"
	"time"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"

	"tendril.io/tendril/bpf"
)

// A stub is the program that a device carries: it writes its constants to skb->cb and tail-calls an entry. It is made
// from a template by patching constants; nothing is compiled. A stub outlives reloads, since only the entry's slot
// changes, and it is not pinned: the device's filter or link holds it.

// Offsets in struct __sk_buff (linux/bpf.h).
const (
	skbLen = 0
	skbCB  = 48
)

// tcActShot drops a packet (linux/pkt_cls.h).
const tcActShot = 2

// template is a program text with named holes.
type template struct {
	name      string
	entry     bpf.Entry
	constants []string // what is patched in
}

// templates lists one for each entry.
func templates() []template {
	out := make([]template, 0, bpf.EntryCount)
	for entry := range bpf.EntryCount {
		if entry.String() != "" {
			out = append(out, template{entry.String(), entry, []string{"endpoint", "generation"}})
		}
	}
	return out
}

// stubMaps are the maps that a template refers to.
type stubMaps struct {
	entries, counters int // file descriptors
}

// instructions is the template's text with its constants patched in.
func (t template) instructions(endpoint, generation uint32, m stubMaps) asm.Instructions {
	// Reached only if the entry is empty: count DROP_TAIL_CALL at this hook, with the packet's bytes, and drop.
	counter := int32(bpf.DropTailCall)*int32(bpf.HookCount) + int32(t.entry)
	return asm.Instructions{
		asm.Mov.Reg(asm.R6, asm.R1),
		// skb->cb is free for programs between this one and the entry (kernel, BPF_SKB_CB_LEN): nothing else touches it. Constants go by a
		// register: 6.1 lets no BPF_ST write the context.
		asm.Mov.Imm(asm.R2, int32(endpoint)),
		asm.StoreMem(asm.R1, skbCB+4*int16(bpf.StubEndpoint), asm.R2, asm.Word),
		asm.Mov.Imm(asm.R2, int32(generation)),
		asm.StoreMem(asm.R1, skbCB+4*int16(bpf.StubGeneration), asm.R2, asm.Word),
		asm.LoadMapPtr(asm.R2, m.entries),
		asm.Mov.Imm(asm.R3, int32(t.entry)),
		asm.FnTailCall.Call(),
		asm.StoreImm(asm.R10, -4, int64(counter), asm.Word),
		asm.LoadMapPtr(asm.R1, m.counters),
		asm.Mov.Reg(asm.R2, asm.R10),
		asm.Add.Imm(asm.R2, -4),
		asm.FnMapLookupElem.Call(),
		asm.JEq.Imm(asm.R0, 0, "drop"),
		asm.LoadMem(asm.R1, asm.R0, 0, asm.DWord),
		asm.Add.Imm(asm.R1, 1),
		asm.StoreMem(asm.R0, 0, asm.R1, asm.DWord),
		asm.LoadMem(asm.R2, asm.R6, skbLen, asm.Word),
		asm.LoadMem(asm.R1, asm.R0, 8, asm.DWord),
		asm.Add.Reg(asm.R1, asm.R2),
		asm.StoreMem(asm.R0, 8, asm.R1, asm.DWord),
		asm.Mov.Imm(asm.R0, tcActShot).WithSymbol("drop"),
		asm.Return(),
	}
}

// digest stands for the template's text.
func (t template) digest() string {
	sum := sha256.Sum256(fmt.Appendf(nil, "%v", t.instructions(0, 0, stubMaps{})))
	return hex.EncodeToString(sum[:8])
}

// Stub is a loaded stub. Close it once a device's filter or link holds it.
type Stub struct {
	Endpoint   uint32
	Generation uint32
	Entry      bpf.Entry
	LoadTime   time.Duration // spent in building and loading
	ProgramID  uint32
	program    *ebpf.Program
}

// FD is what a filter is made of.
func (s *Stub) FD() int { return s.program.FD() }

// Close lets go of the program; whatever carries it keeps it.
func (s *Stub) Close() error { return s.program.Close() }

// stubs is what is known of stubs and their templates.
type stubs struct {
	mu        sync.Mutex
	maps      stubMaps
	entriesID ebpf.MapID
	templates []template
	digests   []string // by entry
	instances map[stubKey]TemplateInstance
}

type stubKey struct {
	entry    bpf.Entry
	endpoint uint32 // of stubs of the node's own devices: the device
}

// TemplateInstance is a stub in use.
type TemplateInstance struct {
	Endpoint  uint32 // pods; the node's own devices: 0
	IfIndex   uint32 // the node's own devices; pods: 0
	ProgramID uint32
	LoadTime  time.Duration // 0: an earlier agent loaded it
}

// Template is a stub's text and where it is in use.
type Template struct {
	Name         string
	Entry        bpf.Entry
	Instructions int
	Constants    []string
	Digest       string
	Instances    []TemplateInstance
}

// open readies the templates. Their digests are the same for equal text, whoever computes them.
func (s *stubs) open(set *mapSet) error {
	info, err := set.maps["entries"].Info()
	if err != nil {
		return fmt.Errorf("map entries: %w", err)
	}
	s.entriesID, _ = info.ID()
	s.maps = stubMaps{set.maps["entries"].FD(), set.maps["counters"].FD()}
	s.templates, s.instances = templates(), map[stubKey]TemplateInstance{}
	s.digests = make([]string, bpf.EntryCount)
	for _, t := range s.templates {
		s.digests[t.entry] = t.digest()
	}
	return nil
}

// find returns the template of an entry.
func (s *stubs) find(entry bpf.Entry) (template, error) {
	i := slices.IndexFunc(s.templates, func(t template) bool { return t.entry == entry })
	if i < 0 {
		return template{}, fmt.Errorf("load stub: there is no entry %d", entry)
	}
	return s.templates[i], nil
}

// programName says in the kernel's program list what a stub is: equal names are equal stubs.
func (s *stubs) programName(endpoint, generation uint32, entry bpf.Entry) string {
	sum := sha256.Sum256(fmt.Appendf(nil, "%s %d %d %d", s.digests[entry], endpoint, generation, s.entriesID))
	return "stub_" + hex.EncodeToString(sum[:4])
}

// LoadStub loads the stub of an entry for an endpoint. It runs no verifier log and loads no type information: the text
// is the same each time.
func (d *Datapath) LoadStub(endpoint, generation uint32, entry bpf.Entry) (*Stub, error) {
	stub, err := d.stubs.load(endpoint, generation, entry)
	if err != nil {
		return nil, err
	}
	d.stubs.note(stubKey{entry, endpoint}, TemplateInstance{Endpoint: endpoint, ProgramID: stub.ProgramID, LoadTime: stub.LoadTime})
	return stub, nil
}

func (s *stubs) load(endpoint, generation uint32, entry bpf.Entry) (*Stub, error) {
	start := time.Now()
	t, err := s.find(entry)
	if err != nil {
		return nil, err
	}
	program, err := ebpf.NewProgramWithOptions(&ebpf.ProgramSpec{
		Name: s.programName(endpoint, generation, entry), Type: ebpf.SchedCLS, License: "Dual BSD/GPL",
		Instructions: t.instructions(endpoint, generation, s.maps),
	}, ebpf.ProgramOptions{LogDisabled: true})
	if err != nil {
		return nil, fmt.Errorf("load stub %s of endpoint %d: %w", t.name, endpoint, err)
	}
	loadTime := time.Since(start)
	info, err := program.Info()
	if err != nil {
		program.Close()
		return nil, fmt.Errorf("load stub %s of endpoint %d: %w", t.name, endpoint, err)
	}
	id, _ := info.ID()
	return &Stub{endpoint, generation, entry, loadTime, uint32(id), program}, nil
}

func (s *stubs) note(key stubKey, instance TemplateInstance) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.instances[key] = instance
}

// AdoptStub says whether a program that a device carries, from an earlier agent, is the stub that LoadStub would make,
// and lists it if so. If not, load one and attach it in the other's place.
func (d *Datapath) AdoptStub(programID, endpoint, generation uint32, entry bpf.Entry) (bool, error) {
	if _, err := d.stubs.find(entry); err != nil {
		return false, err
	}
	same, err := d.stubs.is(ebpf.ProgramID(programID), endpoint, generation, entry)
	if same {
		d.stubs.note(stubKey{entry, endpoint}, TemplateInstance{Endpoint: endpoint, ProgramID: programID})
	}
	return same, err
}

// is says whether a program is a given stub.
func (s *stubs) is(id ebpf.ProgramID, endpoint, generation uint32, entry bpf.Entry) (bool, error) {
	program, err := ebpf.NewProgramFromID(id)
	if errors.Is(err, os.ErrNotExist) {
		return false, nil
	}
	if err != nil {
		return false, fmt.Errorf("program %d: %w", id, err)
	}
	defer program.Close()
	info, err := program.Info()
	if err != nil {
		return false, fmt.Errorf("program %d: %w", id, err)
	}
	return info.Name == s.programName(endpoint, generation, entry), nil
}

// ForgetStubs takes an endpoint's stubs off the list, when its device is gone.
func (d *Datapath) ForgetStubs(endpoint uint32) {
	d.stubs.mu.Lock()
	defer d.stubs.mu.Unlock()
	delete(d.stubs.instances, stubKey{bpf.EntryFromPod, endpoint})
	delete(d.stubs.instances, stubKey{bpf.EntryToPod, endpoint})
}

// Templates lists every template and its instances, by entry and endpoint.
func (d *Datapath) Templates() []Template {
	s := &d.stubs
	s.mu.Lock()
	defer s.mu.Unlock()
	out := make([]Template, 0, len(s.templates))
	for _, t := range s.templates {
		row := Template{Name: t.name, Entry: t.entry, Constants: t.constants, Digest: s.digests[t.entry]}
		row.Instructions = len(t.instructions(0, 0, stubMaps{}))
		for key, instance := range s.instances {
			if key.entry == t.entry {
				row.Instances = append(row.Instances, instance)
			}
		}
		slices.SortFunc(row.Instances, func(a, b TemplateInstance) int {
			return cmp.Or(cmp.Compare(a.Endpoint, b.Endpoint), cmp.Compare(a.IfIndex, b.IfIndex))
		})
		out = append(out, row)
	}
	return out
}
