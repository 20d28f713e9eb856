package testkit

import (
	"fmt"
	"os"
	"os/exec"
	"strings"
)

// WithBinaries runs tests with the product's binaries, built from a checkout into a folder that the environment's variable then names, and takes them away
// again. If somebody else has built them, the variable says where. It returns what run does: the exit code.
func WithBinaries(checkout, variable string, run func() int) int {
	if os.Getenv(variable) != "" {
		return run()
	}
	folder, err := os.MkdirTemp("", "tendril-test-")
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	defer os.RemoveAll(folder)
	build := exec.Command("go", "build", "-o", folder, "./cmd/...")
	build.Dir = checkout
	if out, err := build.CombinedOutput(); err != nil {
		fmt.Fprintf(os.Stderr, "build the binaries: %v\n%s", err, out)
		return 1
	}
	os.Setenv(variable, folder)
	return run()
}

// LastLines is the end of a text, for the log of a test that failed.
func LastLines(text string, count int) string {
	lines := strings.Split(strings.TrimSpace(text), "\n")
	return strings.Join(lines[max(0, len(lines)-count):], "\n")
}
