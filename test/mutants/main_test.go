package main

import (
	"os/exec"
	"path/filepath"
	"testing"
)

// A fault that no longer fits the code measures nothing. Whoever changes the code writes it anew: the same fault, in the
// new code (git diff, behind the line that says what is wrong).
func TestEveryFaultAppliesToTheTree(t *testing.T) {
	mutants, err := readMutants("patches", "")
	if err != nil {
		t.Fatal(err)
	}
	if len(mutants) < 40 {
		t.Errorf("%d faults, want at least 40", len(mutants))
	}
	for _, m := range mutants {
		patch, err := filepath.Abs(m.patch)
		if err != nil {
			t.Fatal(err)
		}
		check := exec.Command("git", "apply", "--check", patch)
		check.Dir = "../.."
		if text, err := check.CombinedOutput(); err != nil {
			t.Errorf("%s: %v\n%s", m.patch, err, text)
		}
	}
}
