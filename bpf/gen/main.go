// Command gen compiles the BPF programs and writes what Go knows of them.
//
// It runs in the bpf folder (go generate ./bpf): every NAME.bpf.c becomes NAME.o, the structs and enums of lib/ become
// types.go, and enum reason becomes docs/drops.md. Output depends on nothing but the sources and the compiler.
package main

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"

	"github.com/cilium/ebpf"
)

// headers hold every struct and enum that Go shares with the programs.
var headers = []string{"lib/constants.h", "lib/structs.h"}

func main() {
	if err := run(); err != nil {
		fmt.Fprintln(os.Stderr, "gen:", err)
		os.Exit(1)
	}
}

// run is the whole build: bindings first, because they need no program to compile.
func run() error {
	decls, err := parseHeaders(headers)
	if err != nil {
		return err
	}
	spec, err := loadShapes(decls)
	if err != nil {
		return err
	}
	types, err := writeTypes(decls, spec)
	if err != nil {
		return err
	}
	if err := os.WriteFile("types.go", types, 0o644); err != nil {
		return err
	}
	if err := os.WriteFile(filepath.Join("..", "docs", "drops.md"), writeDrops(decls), 0o644); err != nil {
		return err
	}
	return compileAll()
}

// compileAll compiles every program and prints its size, so that growth is seen at each build.
func compileAll() error {
	sources, err := filepath.Glob("*.bpf.c")
	if err != nil {
		return err
	}
	if len(sources) == 0 {
		return errors.New("no *.bpf.c here: run it with go generate ./bpf")
	}
	for _, source := range sources {
		object := strings.TrimSuffix(source, ".bpf.c") + ".o"
		if err := compile(source, object); err != nil {
			return err
		}
		if err := printSizes(object); err != nil {
			return err
		}
	}
	return nil
}

// compile turns one C file into an object with BTF and without DWARF. Line information names files; they are told from
// this folder on, so that the object is the same wherever the checkout lies.
func compile(source, object string) error {
	include, err := multiarchInclude()
	if err != nil {
		return err
	}
	here, err := os.Getwd()
	if err != nil {
		return fmt.Errorf("compile %s: %w", source, err)
	}
	args := []string{"-O2", "-g", "-mcpu=v3", "-target", "bpfel", "-std=gnu11", "-Wall", "-Wextra", "-Werror",
		"-Wno-unused-parameter", "-fno-stack-protector", "-ffile-prefix-map=" + here + "=bpf", "-I", include, "-I", ".", "-c", source, "-o", object}
	if err := tool("clang", args...); err != nil {
		return fmt.Errorf("compile %s: %w", source, err)
	}
	if err := tool("llvm-strip", "-g", object); err != nil {
		return fmt.Errorf("strip %s: %w", object, err)
	}
	return nil
}

// tool runs a program of the pinned LLVM release.
func tool(name string, args ...string) error {
	var out bytes.Buffer
	cmd := exec.Command(name+"-19", args...)
	cmd.Stdout, cmd.Stderr = &out, &out
	if err := cmd.Run(); err != nil {
		return fmt.Errorf("%s-19: %w\n%s", name, err, out.String())
	}
	return nil
}

// multiarchInclude finds the folder of asm/types.h, which Debian keeps by architecture and clang -target bpf does not search.
func multiarchInclude() (string, error) {
	found, err := filepath.Glob("/usr/include/*/asm/types.h")
	if err != nil {
		return "", err
	}
	if len(found) > 0 {
		return filepath.Dir(filepath.Dir(found[0])), nil
	}
	if _, err := os.Stat("/usr/include/asm/types.h"); err == nil {
		return "/usr/include", nil
	}
	return "", errors.New("asm/types.h is nowhere under /usr/include: install linux-libc-dev")
}

// printSizes prints the instructions of each program, subprograms included.
func printSizes(object string) error {
	spec, err := ebpf.LoadCollectionSpec(object)
	if err != nil {
		return err
	}
	var names []string
	for name := range spec.Programs {
		names = append(names, name)
	}
	slices.Sort(names)
	for _, name := range names {
		fmt.Printf("%-10s %-20s %5d instructions\n", object, name, len(spec.Programs[name].Instructions))
	}
	return nil
}
