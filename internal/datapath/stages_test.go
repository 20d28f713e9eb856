package datapath

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
)

// stagedObject is an object of two stages: the first tail-calls the second, which answers with the given number.
func stagedObject(answer int32, second string) *ebpf.CollectionSpec {
	program := func(name string, text asm.Instructions) *ebpf.ProgramSpec {
		return &ebpf.ProgramSpec{Name: name, Type: ebpf.SchedCLS, License: "Dual BSD/GPL", Instructions: text}
	}
	return &ebpf.CollectionSpec{
		Maps: map[string]*ebpf.MapSpec{"stages": {
			Name: "stages", Type: ebpf.ProgramArray, KeySize: 4, ValueSize: 4, MaxEntries: 2,
			Contents: []ebpf.MapKV{{Key: uint32(1), Value: second}},
		}},
		Programs: map[string]*ebpf.ProgramSpec{
			"first": program("first", asm.Instructions{
				asm.LoadMapPtr(asm.R2, 0).WithReference("stages"), asm.Mov.Imm(asm.R3, 1), asm.FnTailCall.Call(),
				asm.Mov.Imm(asm.R0, tcActShot), asm.Return(),
			}),
			"second": program("second", asm.Instructions{asm.Mov.Imm(asm.R0, answer), asm.Return()}),
		},
	}
}

// stagedVersion is a version that is not in force.
func stagedVersion(d *Datapath, name string) *version {
	return &version{
		folder: filepath.Join(d.cfg.Root, versionsFolder, name), programs: map[string]*ebpf.Program{}, arrays: map[string]*ebpf.Map{},
	}
}

func TestStagesAreAVersionsOwn(t *testing.T) {
	d := bare(t, testConfig(rootFolder(t)))
	for answer, name := range map[int32]string{7: "8-a", 9: "9-b"} {
		v := stagedVersion(d, name)
		mkdir(t, v.folder)
		if err := d.loadObjects(v, map[string]*ebpf.CollectionSpec{"staged": stagedObject(answer, "second")}, &d.node); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(v.close)
		for _, when := range []string{"before", "after"} { // another version is loaded
			got, _, err := v.programs["first"].Test(make([]byte, 64))
			if err != nil || int32(got) != answer {
				t.Errorf("version %s %s: answer %d (%v), want %d", name, when, got, err, answer)
			}
		}
	}
}

func TestStagesOutliveTheAgent(t *testing.T) {
	d := bare(t, testConfig(rootFolder(t)))
	v := stagedVersion(d, "8-a")
	mkdir(t, v.folder)
	if err := d.loadObjects(v, map[string]*ebpf.CollectionSpec{"staged": stagedObject(7, "second")}, &d.node); err != nil {
		t.Fatal(err)
	}
	first := must(v.programs["first"].Clone()) // as an entry slot would hold it
	defer first.Close()
	v.close()
	if got, _, err := first.Test(make([]byte, 64)); err != nil || got != 7 {
		t.Errorf("answer %d (%v) without an agent, want 7", got, err)
	}
	if err := v.discard(); err != nil {
		t.Fatal(err)
	}
	gone := func() bool {
		got, _, err := first.Test(make([]byte, 64))
		return err == nil && got == tcActShot
	}
	if !eventually(gone) {
		t.Error("a discarded version still has its stages")
	}
}

func TestStageWithoutProgramIsNamed(t *testing.T) {
	d := bare(t, testConfig(rootFolder(t)))
	v := stagedVersion(d, "8-a")
	mkdir(t, v.folder)
	defer v.discard()
	err := d.loadObjects(v, map[string]*ebpf.CollectionSpec{"staged": stagedObject(7, "third")}, &d.node)
	if err == nil || !strings.Contains(err.Error(), "third") || !strings.Contains(err.Error(), "stages") {
		t.Errorf("got %v, want it to name program and map", err)
	}
}

func mkdir(t *testing.T, folder string) {
	t.Helper()
	if err := os.Mkdir(folder, 0o700); err != nil {
		t.Fatal(err)
	}
}
