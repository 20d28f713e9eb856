package node

import (
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"testing"

	"github.com/google/go-cmp/cmp"

	"tendril.io/tendril/internal/cni"
)

func TestTheNetworksConfigurationIsWrittenOnceTheKernelIsReadyAndStays(t *testing.T) {
	folder, run := t.TempDir(), t.TempDir()
	a := &Agent{
		config: Config{CNIConfDir: folder, RunDir: run, StateDir: cni.DefaultDataDir},
		log:    slog.New(slog.DiscardHandler), policies: &policyLoop{},
	}
	done := newSettled()
	if err := a.ready(done); err == nil {
		t.Error("ready before anything is in the kernel")
	}
	done.policy()
	offered := make(chan error, 1)
	go func() { offered <- a.offer(t.Context(), done) }()
	if entries, err := os.ReadDir(folder); err != nil || len(entries) > 0 {
		t.Errorf("written before services were in the kernel: %v, %v", entries, err)
	}
	if err := cni.CheckReady(a.config.cniSocket()); err == nil {
		t.Error("STATUS succeeds before services were in the kernel")
	}
	done.service()
	if err := <-offered; err != nil {
		t.Fatal(err)
	}
	if err := cni.CheckReady(a.config.cniSocket()); err != nil {
		t.Errorf("STATUS, once the kernel is ready: %v", err)
	}
	text, err := os.ReadFile(filepath.Join(folder, conflist))
	if err != nil {
		t.Fatal(err)
	}
	want := fmt.Sprintf(`{
  "cniVersion": "1.0.0",
  "cniVersions": [
    "1.0.0",
    "1.1.0"
  ],
  "name": "tendril",
  "plugins": [
    {
      "capabilities": {
        "bandwidth": true,
        "portMappings": true
      },
      "socket": "%s/cni.sock",
      "type": "tendril-cni"
    }
  ]
}`, run)
	if diff := cmp.Diff(want, string(text)); diff != "" {
		t.Errorf("configuration (-want +got):\n%s", diff)
	}
	a.policies.latest.Store(7)
	if err := a.ready(done); err == nil {
		t.Error("ready while a policy is not in force")
	}
	a.policies.inForce.Store(7)
	if err := a.ready(done); err != nil {
		t.Errorf("not ready with everything in force: %v", err)
	}
}
