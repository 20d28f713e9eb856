// Command run compiles a package's tests, boots another kernel with them, and prints what they say.
package main

import (
	"context"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"

	"tendril.io/tendril/test/kernels/vm"
)

func main() {
	kernels := flag.String("kernels", "build/kernels", "folder with a folder for each kernel")
	kernel := flag.String("kernel", "6.1", "version of the kernel to boot")
	memory := flag.Int("memory", 1024, "MiB that the guest has")
	flag.Parse()
	if flag.NArg() < 1 {
		fmt.Fprintln(os.Stderr, "run: name a package, and arguments of its test program after it")
		os.Exit(2)
	}
	if err := run(filepath.Join(*kernels, *kernel), *memory, flag.Arg(0), flag.Args()[1:]); err != nil {
		fmt.Fprintln(os.Stderr, "run:", err)
		os.Exit(1)
	}
}

func run(folder string, memory int, pkg string, arguments []string) error {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
	defer stop()
	dir, err := os.MkdirTemp("", "tendril-vm-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	init, program := filepath.Join(dir, "init"), filepath.Join(dir, "program")
	for _, build := range [][]string{{"build", "-o", init, "./test/kernels/init"}, {"test", "-c", "-o", program, pkg}} {
		command := exec.CommandContext(ctx, "go", build...)
		command.Env = append(os.Environ(), "CGO_ENABLED=0")
		command.Stdout, command.Stderr = os.Stdout, os.Stderr
		if err := command.Run(); err != nil {
			return fmt.Errorf("go %s: %w", build[0], err)
		}
	}
	if len(arguments) == 0 {
		arguments = []string{"-test.v"}
	}
	output, err := vm.Run(ctx, vm.Config{
		Kernel: filepath.Join(folder, "vmlinux"), Modules: vm.Modules(filepath.Join(folder, "modules"), "inet_diag", "tcp_diag", "udp_diag"),
		Init: init, Program: program, Arguments: arguments, MemoryMiB: memory,
	})
	fmt.Print(output)
	return err
}
