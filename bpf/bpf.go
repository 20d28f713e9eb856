// Package bpf holds the compiled datapath and the Go form of everything the datapath shares with the agent.
//
// The programs are C (this folder's *.bpf.c and lib/); JOURNEY.md tells a packet's way through them. They are compiled
// when the project is released, never on a node: the objects lie here and are embedded. types.go is generated from the
// same headers that the programs include, so a number or layout has one home.
//
// This package loads nothing into the kernel and attaches nothing; that is the agent's datapath package.
package bpf

import (
	"bytes"
	"crypto/sha256"
	"embed"
	"encoding/hex"
	"fmt"
	"io"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/btf"
)

//go:generate go run ./gen

//go:embed *.o
var objects embed.FS

// Objects returns the names that Load knows, one for each C file.
func Objects() []string { return []string{"net", "pod", "reset", "sock", "sweep", "tunnel", "xdp"} }

// Load returns the programs and maps of one object, as compiled. Each call returns a copy that may be changed.
func Load(name string) (*ebpf.CollectionSpec, error) {
	object, err := objects.ReadFile(name + ".o")
	if err != nil {
		return nil, fmt.Errorf("bpf object %q: there is none of that name", name)
	}
	spec, err := ebpf.LoadCollectionSpecFromReader(bytes.NewReader(object))
	if err != nil {
		return nil, fmt.Errorf("bpf object %q: %w", name, err)
	}
	return spec, nil
}

// SchemaHash identifies the layout of a map: type, sizes and the names, offsets and types of all fields of key and
// value. Two maps with equal hashes can be used for each other; a pinned map with another hash must not be adopted.
func SchemaHash(spec *ebpf.MapSpec) string {
	hash := sha256.New()
	fmt.Fprintf(hash, "%s %d %d\n", spec.Type, spec.KeySize, spec.ValueSize)
	describe(hash, spec.Key)
	describe(hash, spec.Value)
	return hex.EncodeToString(hash.Sum(nil)[:8])
}

// describe writes a type's layout. It prints no comment, and no name of a typedef except the byte order it stands for.
func describe(out io.Writer, t btf.Type) {
	switch t := t.(type) {
	case *btf.Struct:
		fmt.Fprintf(out, "struct %s %d\n", t.Name, t.Size)
		describeMembers(out, t.Members)
	case *btf.Union:
		fmt.Fprintf(out, "union %s %d\n", t.Name, t.Size)
		describeMembers(out, t.Members)
	case *btf.Typedef:
		fmt.Fprintf(out, "%s ", t.Name)
		describe(out, t.Type)
	case *btf.Array:
		fmt.Fprintf(out, "array %d ", t.Nelems)
		describe(out, t.Type)
	case *btf.Int:
		fmt.Fprintf(out, "int %d\n", t.Size)
	default:
		fmt.Fprintf(out, "%T\n", t)
	}
}

func describeMembers(out io.Writer, members []btf.Member) {
	for _, m := range members {
		fmt.Fprintf(out, "%s %d ", m.Name, m.Offset)
		describe(out, m.Type)
	}
}
