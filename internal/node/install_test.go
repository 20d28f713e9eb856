package node

import (
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func TestAnotherNetworksConfigurationIsNamedBeforeAnythingIsInstalled(t *testing.T) {
	folder := t.TempDir()
	config := Config{CNIBinDir: folder, CNIConfDir: folder}
	place := func(name string) {
		if err := os.WriteFile(filepath.Join(folder, name), nil, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	place("10-later.conflist")
	place("00-notes.txt")
	if err := checkRuntime(config); err == nil || !strings.Contains(err.Error(), "loopback: no such file") {
		t.Errorf("without the loopback plugin: %v", err)
	}
	place("loopback")
	if err := checkRuntime(config); err != nil {
		t.Errorf("with nothing in the way: %v", err)
	}
	place("05-tendril.conflist")
	place("00-other.conf")
	err := checkRuntime(config)
	if err == nil || !strings.Contains(err.Error(), "00-other.conf is of another network") || strings.Contains(err.Error(), "later") {
		t.Errorf("beside another network: %v", err)
	}
	config = Config{BPFRoot: filepath.Join(folder, "tendril"), Cgroup: folder}
	err = checkKernel(config)
	if err == nil || !strings.Contains(err.Error(), "is in no bpffs") || !strings.Contains(err.Error(), "no control group of version 2") {
		t.Errorf("on a file system that is neither: %v", err)
	}
}

func TestAnInterpreterOfProgramsIsNamed(t *testing.T) {
	root := t.TempDir()
	path := filepath.Join(root, "net/core/bpf_jit_enable")
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		t.Fatal(err)
	}
	for value, warned := range map[string]bool{"0\n": true, "1\n": false} {
		if err := os.WriteFile(path, []byte(value), 0o600); err != nil {
			t.Fatal(err)
		}
		var out strings.Builder
		warnOfSettings(root, slog.New(slog.NewTextHandler(&out, nil)))
		if got := strings.Contains(out.String(), "bpf_jit_enable"); got != warned {
			t.Errorf("set to %q: %q", value, out.String())
		}
	}
}
