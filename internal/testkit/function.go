package testkit

import (
	"fmt"

	"github.com/cilium/ebpf/asm"
	"github.com/cilium/ebpf/btf"
)

// Functions cuts functions, and those that they call, out of a linked program, so that a test's own program can [Call] what
// is shipped.
func Functions(program asm.Instructions, names ...string) (asm.Instructions, error) {
	bodies := map[string]asm.Instructions{}
	current := ""
	for _, instruction := range program {
		if symbol := instruction.Symbol(); symbol != "" && btf.FuncMetadata(&instruction) != nil {
			current = symbol
		}
		bodies[current] = append(bodies[current], instruction)
	}
	var all asm.Instructions
	taken := map[string]bool{}
	for len(names) > 0 {
		name := names[0]
		names = names[1:]
		if taken[name] {
			continue
		}
		taken[name] = true
		body := bodies[name]
		if body == nil {
			return nil, fmt.Errorf("the program has no function %s", name)
		}
		all = append(all, body...)
		for _, instruction := range body {
			if instruction.IsFunctionReference() {
				names = append(names, instruction.Reference())
			}
		}
	}
	return all, nil
}

// Call is a call of one of the [Functions].
func Call(function string) asm.Instruction {
	return asm.Instruction{
		OpCode: asm.OpCode(asm.JumpClass).SetJumpOp(asm.Call), Src: asm.PseudoCall, Constant: -1,
	}.WithReference(function)
}
