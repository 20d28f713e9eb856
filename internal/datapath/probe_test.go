package datapath

import (
	"encoding/binary"
	"testing"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
)

// loadProbe loads a program of the test's own.
func loadProbe(t testing.TB, name string, text asm.Instructions) *ebpf.Program {
	t.Helper()
	program, err := ebpf.NewProgram(&ebpf.ProgramSpec{Type: ebpf.SchedCLS, License: "Dual BSD/GPL", Instructions: text})
	if err != nil {
		t.Fatalf("load probe %q: %+v", name, err)
	}
	t.Cleanup(func() { program.Close() })
	return program
}

// reportStubWords writes the first two words of skb->cb to the start of the packet.
func reportStubWords() asm.Instructions {
	return asm.Instructions{
		asm.Mov.Reg(asm.R6, asm.R1),
		asm.LoadMem(asm.R2, asm.R6, skbCB, asm.Word),
		asm.StoreMem(asm.R10, -8, asm.R2, asm.Word),
		asm.LoadMem(asm.R2, asm.R6, skbCB+4, asm.Word),
		asm.StoreMem(asm.R10, -4, asm.R2, asm.Word),
		asm.Mov.Imm(asm.R2, 0),
		asm.Mov.Reg(asm.R3, asm.R10),
		asm.Add.Imm(asm.R3, -8),
		asm.Mov.Imm(asm.R4, 8),
		asm.Mov.Imm(asm.R5, 0),
		asm.FnSkbStoreBytes.Call(),
		asm.Mov.Imm(asm.R0, 0),
		asm.Return(),
	}
}

func wordAt(b []byte, offset int) uint32 { return binary.NativeEndian.Uint32(b[offset:]) }
