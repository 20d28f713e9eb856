// Command bench measures the project's promises and writes them as one flat JSON object of name and number.
//
// Whatever depends on the machine is a ratio: to bare veth pairs that the same kernel routes, with no BPF and no rules,
// measured right before or after, in turn. A figure is the median of the rounds. What each part measures stands in its
// file: verdict.go, edge.go, policy.go, service.go, life.go and allocs.go (of the store), traffic.go, kubeproxy.go, pods.go, change.go, kube.go.
//
// The bench and all that it starts, agents and floor included, run at the highest priority: what else the machine does
// then disturbs the figures less, and favours none of them.
package main

import (
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"maps"
	"math/rand/v2"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"slices"
	"strconv"
	"time"

	"golang.org/x/sys/unix"

	"tendril.io/tendril/internal/lab"
)

// bench is one run.
type bench struct {
	load    string // the compiled load program
	bin     string // folder of the binaries
	rounds  int
	time    time.Duration // of each load
	only    string
	results map[string]float64
	samples map[string][]float64
	left    []string // figures that cannot be taken here, which was said
}

func main() {
	b := &bench{results: map[string]float64{}, samples: map[string][]float64{}}
	out := flag.String("out", "bench/results.json", "file to write")
	flag.StringVar(&b.bin, "bin", "bin", "folder of the project's binaries")
	flag.IntVar(&b.rounds, "rounds", 9, "how often each figure is taken")
	flag.DurationVar(&b.time, "time", time.Second, "how long each load runs")
	flag.StringVar(&b.only, "only", "", "take only the figures of this part: verdict, edge, policies, services, store, traffic, proxies, pods, changes or kube; nothing is written")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
	defer stop()
	err := b.run(ctx)
	b.print()
	if b.only == "" {
		err = errors.Join(err, b.write(*out))
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "bench:", err)
		os.Exit(1)
	}
}

// run takes all figures; a part that fails does not keep the others from being taken.
func (b *bench) run(ctx context.Context) error {
	if err := hurry(); err != nil {
		fmt.Fprintln(os.Stderr, "bench: at the usual priority:", err)
	}
	bin, err := filepath.Abs(b.bin)
	if err != nil {
		return err
	}
	b.bin = bin
	dir, err := os.MkdirTemp("", "tendril-bench-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	b.load = filepath.Join(dir, "tendril-load")
	build := exec.CommandContext(ctx, "go", "build", "-o", b.load, "./test/bench/load")
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if text, err := build.CombinedOutput(); err != nil {
		return fmt.Errorf("build load: %w\n%s", err, text)
	}
	return b.parts(ctx)
}

// hurry raises the priority of all threads, whose children inherit it.
func hurry() error {
	threads, err := os.ReadDir("/proc/self/task")
	for _, thread := range threads {
		id, convErr := strconv.Atoi(thread.Name())
		err = errors.Join(err, convErr, unix.Setpriority(unix.PRIO_PROCESS, id, -20))
	}
	return err
}

// parts takes the figures of the parts that are wanted.
func (b *bench) parts(ctx context.Context) error {
	parts := []struct {
		name string
		run  func(context.Context) error
	}{{"verdict", b.verdict}, {"edge", b.edge}, {"policies", b.policies}, {"services", b.services}, {"store", b.store}, {"traffic", b.traffic}, {"proxies", b.proxies}, {"pods", b.pods}, {"changes", b.changes}, {"kube", b.kube}}
	var errs []error
	known := b.only == ""
	for _, part := range parts {
		known = known || b.only == part.name
		if b.only != "" && b.only != part.name {
			continue
		}
		fmt.Fprintf(os.Stderr, "bench: %s\n", part.name)
		if err := part.run(ctx); err != nil {
			errs = append(errs, fmt.Errorf("%s: %w", part.name, err))
		}
	}
	if !known {
		return fmt.Errorf("-only %q: there are the parts verdict, edge, policies, services, store, traffic, proxies, pods, changes and kube", b.only)
	}
	return errors.Join(errs...)
}

// up starts a lab for the time of f. Its name is its own, so that two runs do not meet.
func (b *bench) up(ctx context.Context, kind string, mode lab.Mode, nodes int, f func(*lab.Lab) error) error {
	name := fmt.Sprintf("bench%s%06x", kind, rand.Uint32N(1<<24))
	l, err := lab.Up(ctx, lab.Config{Name: name, Mode: mode, Nodes: nodes, BinDir: b.bin})
	if err != nil {
		return err
	}
	return errors.Join(f(l), l.Close(), lab.Down(context.WithoutCancel(ctx), name))
}

// sample adds a figure of one round; its result is the median of all.
func (b *bench) sample(name string, value float64) {
	b.samples[name] = append(b.samples[name], value)
	b.results[name] = percentile(b.samples[name], 0.5)
}

// percentile of values, by the nearest rank.
func percentile(values []float64, share float64) float64 {
	sorted := slices.Sorted(slices.Values(values))
	return sorted[int(share*float64(len(sorted)-1)+0.5)]
}

// want is what SPEC asks for: at least, or at most where the bound is negative; 0: no bound is given.
func want() map[string]float64 {
	return map[string]float64{
		"tcp_rr_same_node": 0.97, "tcp_stream_same_node": 1.0, "tcp_crr_same_node": 0.90,
		"tcp_rr_cross_node_native": 0.95, "tcp_stream_cross_node_native": 0.97, "tcp_crr_cross_node_native": 0.85,
		"tcp_rr_cross_node_vxlan": 0.80, "tcp_stream_cross_node_vxlan": 0.92, "tcp_crr_cross_node_vxlan": 0,
		"bpf_us_per_connection": -20, "verdict_ns_1rule": -80, "verdict_ns_10rules": -80, "verdict_ns_16rules": -80, "verdict_ns_64rules": 0,
		"verdict_ns_1rule_cold": 0, "verdict_ns_16rules_cold": 0,
		"xdp_lb_ns": 0, "xdp_lb_ns_v6": 0, "xdp_lb_ns_answer": 0, "tcx_lb_ns": 0, "tcx_lb_ns_v6": 0, "tcx_lb_ns_answer": 0,
		"stub_load_ms_p50": -1, "cni_add_ms_p50": -30, "cni_add_ms_p99": 0, "cni_add_30_parallel_s": -0.6,
		"cni_add_100_parallel_s": -2, "cold_start_to_first_pod_s": -1,
		"policy_rule_change_ms_p50": -5, "policy_10k_rules_load_s": -1, "policy_bytes_per_identity": 0,
		"identity_add_us_p50": 0, "identity_add_kernel_writes": -6,
		"policy_apply_to_enforced_ms_p50": -20, "service_apply_to_answer_ms_p50": -20,
		"svc_crr_20k_vs_1": 0.95, "svc_crr_vs_kube_proxy_nftables_1": 1.0, "svc_crr_vs_kube_proxy_nftables_1000": 1.3,
		"svc_crr_vs_kube_proxy_nftables_20000": 0, "svc_crr_vs_kube_proxy_iptables_1": 1.0,
		"svc_crr_vs_kube_proxy_iptables_1000": 1.3, "svc_crr_vs_kube_proxy_iptables_20000": 0,
		"veth_crr_vs_kube_proxy_nftables_1": 0, "veth_crr_vs_kube_proxy_nftables_1000": 0, "veth_crr_vs_kube_proxy_nftables_20000": 0,
		"veth_crr_vs_kube_proxy_iptables_1": 0, "veth_crr_vs_kube_proxy_iptables_1000": 0, "veth_crr_vs_kube_proxy_iptables_20000": 0,
		"svc_program_250k_endpoints_s": -5, "svc_change_ms_p50": -5, "memory_20k_services_mib": 0,
		"store_writes_per_pod_life": 0, "store_bytes_per_pod_event": -150,
		"store_wire_bytes_per_pod_event": 0, "store_wire_bytes_per_node_event": 0,
		"allocs_per_pod_event": -2, "allocs_per_pod_event_table": 0, "allocs_per_node_event": 0, "allocs_per_node_event_table": 0,
		"kube_pod_ready_ms_p50": 0, "kube_pod_ready_bridge_ms_p50": 0,
		"agent_rss_mib_idle": -60, "bpf_maps_mib_default": -48,
	}
}

// print writes the table: figure, value, what is wanted, and whether it is reached.
func (b *bench) print() {
	for _, name := range slices.Sorted(maps.Keys(want())) {
		value, ok := b.results[name]
		bound, verdict := want()[name], ""
		switch {
		case !ok && b.only != "":
			continue
		case !ok:
			fmt.Printf("%-36s %10s\n", name, "-")
			continue
		case bound > 0 && value < bound:
			verdict = fmt.Sprintf("short of %g", bound)
		case bound > 0:
			verdict = fmt.Sprintf("ok, >= %g", bound)
		case bound < 0 && value > -bound:
			verdict = fmt.Sprintf("above %g", -bound)
		case bound < 0:
			verdict = fmt.Sprintf("ok, <= %g", -bound)
		}
		fmt.Printf("%-36s %10.3f   %s\n", name, value, verdict)
	}
}

// write saves the results. What could not be measured is left out, and named in the error.
func (b *bench) write(path string) error {
	var errs []error
	for _, name := range slices.Sorted(maps.Keys(want())) {
		if _, ok := b.results[name]; !ok && !slices.Contains(b.left, name) {
			errs = append(errs, fmt.Errorf("%s was not measured: %s is without it", name, path))
		}
	}
	text, err := json.MarshalIndent(b.results, "", "  ")
	if err == nil {
		err = os.WriteFile(path, append(text, '\n'), 0o644)
	}
	return errors.Join(append(errs, err)...)
}
