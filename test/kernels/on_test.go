package kernels

import (
	"context"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"tendril.io/tendril/test/kernels/vm"
)

// supported lists the kernels on which everything must load, oldest first; the machine's own comes on top.
func supported() []string { return []string{"6.1", "6.12"} }

// TestOn boots each supported kernel and runs the tests of this package in it that say something about kernels. The kernels are where TENDRIL_KERNELS says;
// `make test` fetches them.
func TestOn(t *testing.T) {
	dir := kernels(t)
	init := build(t, "build", "./init")
	program := build(t, "test", "-c", ".")
	for _, version := range supported() {
		t.Run(version, func(t *testing.T) {
			output, err := boot(t, vm.Config{
				Kernel:    filepath.Join(dir, version, "vmlinux"),
				Modules:   vm.Modules(filepath.Join(dir, version, "modules"), "inet_diag", "tcp_diag", "udp_diag"),
				Init:      init,
				Program:   program,
				Arguments: []string{"-test.run=^(" + strings.Join(inside(), "|") + ")$", "-test.v"},
			})
			if err != nil {
				t.Fatalf("%v\n%s", err, output)
			}
			for _, name := range inside() {
				if !strings.Contains(output, "--- PASS: "+name+" ") {
					t.Fatalf("the guest did not run %s:\n%s", name, output)
				}
			}
			if !strings.Contains(output, "kernel "+version+".") {
				t.Fatalf("the guest ran another kernel:\n%s", output)
			}
		})
	}
}

// kernels is the folder of the kernels, or the test is skipped.
func kernels(t *testing.T) string {
	t.Helper()
	dir := os.Getenv("TENDRIL_KERNELS")
	if dir == "" {
		t.Skip("TENDRIL_KERNELS is not set; `make test` fetches kernels and sets it")
	}
	return dir
}

// inside lists the tests that run in guests.
func inside() []string { return []string{"TestEveryProgramLoads", "TestClientsOfAGoneBackendEnd"} }

// TestAGuestThatFailsIsSeen makes sure that TestOn can fail: a program's status comes through, and so does a guest that
// never gets as far.
func TestAGuestThatFailsIsSeen(t *testing.T) {
	dir := kernels(t)
	kernel := filepath.Join(dir, supported()[0], "vmlinux")
	init := build(t, "build", "./init")
	program := build(t, "test", "-c", ".")
	_, err := boot(t, vm.Config{Kernel: kernel, Init: init, Program: program, Arguments: []string{"-test.nosuchflag"}})
	if err == nil || err.Error() != "guest's program ended with status 2" {
		t.Errorf("a program that fails: got %v, want status 2", err)
	}
	notAnInit := filepath.Join(t.TempDir(), "init")
	if err := os.WriteFile(notAnInit, []byte("no program"), 0o700); err != nil {
		t.Fatal(err)
	}
	_, err = boot(t, vm.Config{Kernel: kernel, Init: notAnInit, Program: program})
	if err == nil || !strings.Contains(err.Error(), "without a status") {
		t.Errorf("a guest that cannot start: got %v, want to hear of a missing status", err)
	}
}

// boot runs a guest with a limit of time that a healthy one is far from.
func boot(t *testing.T, config vm.Config) (string, error) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 3*time.Minute)
	defer cancel()
	return vm.Run(ctx, config)
}

// build compiles a static program with go build or go test -c.
func build(t *testing.T, arguments ...string) string {
	t.Helper()
	out := filepath.Join(t.TempDir(), "out")
	arguments = append(arguments[:len(arguments)-1:len(arguments)-1], "-o", out, arguments[len(arguments)-1])
	command := exec.Command("go", arguments...)
	command.Env = append(os.Environ(), "CGO_ENABLED=0")
	if text, err := command.CombinedOutput(); err != nil {
		t.Fatalf("go %s: %v\n%s", strings.Join(arguments, " "), err, text)
	}
	return out
}
