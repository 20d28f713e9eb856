package cni

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func TestStatusFailsUntilAnAgentWasReadyAndHoldsWithoutOne(t *testing.T) {
	run := filepath.Join(t.TempDir(), "tendril")
	socket := filepath.Join(run, "cni.sock")
	refused := func(when string) {
		t.Helper()
		err := CheckReady(socket)
		if err == nil || AsError(err).Code != CodeUnavailable || !strings.Contains(err.Error(), run) || !strings.Contains(err.Error(), "see in its log") {
			t.Errorf("%s: %v, want code %d, the folder and what to do", when, err, CodeUnavailable)
		}
	}
	refused("no folder, as after a boot")
	if err := MarkReady(socket); err == nil {
		t.Error("marked where no agent has its folder")
	}
	if err := os.Mkdir(run, 0o700); err != nil {
		t.Fatal(err)
	}
	refused("an agent has its folder, and is not ready")
	for range 2 { // each agent that becomes ready says so
		if err := MarkReady(socket); err != nil {
			t.Fatal(err)
		}
		if err := CheckReady(socket); err != nil {
			t.Errorf("without a socket: %v", err)
		}
	}
	if err := CheckReady(filepath.Join(t.TempDir(), "cni.sock")); err == nil {
		t.Error("an agent elsewhere is ready by this one's mark")
	}
	if err := os.RemoveAll(run); err != nil {
		t.Fatal(err)
	}
	refused("the agent was removed")
}
