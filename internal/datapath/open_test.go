package datapath

import (
	"fmt"
	"log/slog"
	"net/netip"
	"os"
	"path/filepath"
	"sync/atomic"
	"testing"

	"golang.org/x/sys/unix"

	"tendril.io/tendril/bpf"
)

// rootFolder is a folder in a bpffs of the test's own, so that nothing of it can be met or left by anybody else.
func rootFolder(t testing.TB) string {
	t.Helper()
	if os.Getuid() != 0 {
		t.Skip("needs root: loads BPF programs")
	}
	mount := t.TempDir()
	if err := unix.Mount("bpf", mount, "bpf", 0, ""); err != nil {
		t.Fatalf("mount bpffs: %v", err)
	}
	t.Cleanup(func() {
		if err := unix.Unmount(mount, 0); err != nil {
			t.Errorf("unmount bpffs: %v", err)
		}
	})
	return filepath.Join(mount, "node")
}

// cgroupFolder is a cgroup of the test's own.
func cgroupFolder(t *testing.T) string {
	t.Helper()
	parent := ""
	for _, folder := range []string{"/sys/fs/cgroup", "/sys/fs/cgroup/unified"} {
		var fs unix.Statfs_t
		if unix.Statfs(folder, &fs) == nil && fs.Type == unix.CGROUP2_SUPER_MAGIC {
			parent = folder
		}
	}
	if parent == "" {
		t.Fatal("no cgroup v2 hierarchy is mounted")
	}
	folder := filepath.Join(parent, fmt.Sprintf("tendril-datapath-test-%d-%d", os.Getpid(), cgroupNumber.Add(1)))
	if err := os.Mkdir(folder, 0o700); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := os.Remove(folder); err != nil {
			t.Errorf("remove cgroup: %v", err)
		}
	})
	return folder
}

var cgroupNumber atomic.Int32

// testConfig is a small node.
func testConfig(root string) Config {
	return Config{
		Root: root,
		Node: bpf.NodeConfig{
			Features:   bpf.FeatureIPv4 | bpf.FeatureIPv6 | bpf.FeatureMasquerade | bpf.FeatureServices | bpf.FeatureFlowRecords,
			Router4:    bpf.AddressOf(netip.MustParseAddr("10.1.0.1")),
			ClassWords: 4, HalfOpenLimit: 100, OutsideHalfOpenLimit: 100, NATPortMin: 32768, NATPortMax: 60999, PodMTU: 1500, TunnelMTU: 1450,
		},
		Sizes: map[string]uint32{
			"addresses": 1024, "prefixes": 1024, "peer_class": 1024, "class_bits": 256, "policy_programs": 64, "policy_cells": 4096,
			"endpoints": 64, "endpoint_uses": 64, "nodes": 64, "flows": 4096, "nat": 4096, "frontends": 256, "slots": 1024, "backends": 256,
			"assignments": 4096, "events": 65536,
		},
		Logger: slog.New(slog.DiscardHandler),
	}
}

// open opens a datapath that the test closes, unless it has closed it itself.
func open(t testing.TB, cfg Config) *Datapath {
	t.Helper()
	d, err := Open(t.Context(), cfg)
	if err != nil {
		t.Fatalf("open: %v", err)
	}
	t.Cleanup(func() { d.Close() })
	return d
}

// bare opens maps and numbers without programs, for tests that run none: loading them is what takes long.
func bare(t testing.TB, cfg Config) *Datapath {
	t.Helper()
	d, err := openBare(cfg)
	if err != nil {
		t.Fatalf("open: %v", err)
	}
	t.Cleanup(func() { d.Close() })
	return d
}

// openBench opens a small node for a benchmark.
func openBench(b *testing.B) *Datapath { return bare(b, testConfig(rootFolder(b))) }

func TestFirstOpenPutsAVersionInForce(t *testing.T) {
	d := open(t, testConfig(rootFolder(t)))
	if got := d.Version(); got != 1 {
		t.Errorf("version %d, want 1", got)
	}
}
