package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
)

// kubeFigures are what kube takes.
func kubeFigures() []string { return []string{"kube_pod_ready_ms_p50", "kube_pod_ready_bridge_ms_p50"} }

// kube measures what a user of Kubernetes waits for: from the creation of 30 pods at once on a node, until half of them are Ready. The same kubelet and
// containerd run on a node with tendril and on one with the standard bridge plugin, which has no policy and no store, in the cluster of `make test-kube`. Where
// that was not built yet, the figures are left out.
func (b *bench) kube(ctx context.Context) error {
	kubelet := filepath.Join("build", "kube", "bin", "kubelet")
	if _, err := os.Stat(kubelet); errors.Is(err, os.ErrNotExist) {
		fmt.Fprintf(os.Stderr, "bench: there is no %s: `make test-kube` builds it; until then there is no %v\n", kubelet, kubeFigures())
		b.left = append(b.left, kubeFigures()...)
		return nil
	}
	if out, err := exec.CommandContext(ctx, "test/kube/build.sh").CombinedOutput(); err != nil { // what has changed since
		return fmt.Errorf("build: %w\n%s", err, out)
	}
	dir, err := os.MkdirTemp("", "tendril-bench-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	file := filepath.Join(dir, "results")
	run := exec.CommandContext(ctx, "test/kube/run.sh", "pod_ready")
	run.Env = append(os.Environ(), "ROUNDS="+strconv.Itoa(min(b.rounds, 5)), "RESULTS="+file)
	run.Stdout, run.Stderr = os.Stderr, os.Stderr
	if err := run.Run(); err != nil {
		return fmt.Errorf("test/kube/run.sh pod_ready: %w", err)
	}
	text, err := os.ReadFile(file)
	if err != nil {
		return err
	}
	figures := map[string]float64{}
	if err := json.Unmarshal(text, &figures); err != nil {
		return fmt.Errorf("results of test/kube/run.sh pod_ready: %w", err)
	}
	for _, name := range kubeFigures() {
		b.results[name] = figures[name]
	}
	return nil
}
