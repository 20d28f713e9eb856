package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"os"
	"path/filepath"
	"runtime"
	"time"

	"github.com/cilium/ebpf/rlimit"
	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"

	"tendril.io/tendril/bpf"
	"tendril.io/tendril/internal/datapath"
	"tendril.io/tendril/internal/identity"
	"tendril.io/tendril/internal/kube"
	"tendril.io/tendril/internal/label"
	"tendril.io/tendril/internal/policy"
	"tendril.io/tendril/internal/table"
)

const (
	policyEndpoints  = 100
	policyApps       = 34   // of endpoints: each but one has three
	policySelectors  = 4000 // of the 4,096 that there is room for
	policyObjects    = 1000
	policyIdentities = 10_000
)

// kernel is a node's maps and programs, attached to nothing, in a bpffs of its own.
type kernel struct {
	datapath *datapath.Datapath
	close    func() error
}

// newKernel makes a datapath of default sizes but for those that are given.
func newKernel(ctx context.Context, sizes map[string]uint32) (*kernel, error) {
	dir, err := os.MkdirTemp("", "tendril-bench-")
	if err != nil {
		return nil, err
	}
	if err := unix.Mount("bpf", dir, "bpf", 0, ""); err != nil {
		return nil, errors.Join(fmt.Errorf("mount bpffs: %w", err), os.Remove(dir))
	}
	unmount := func() error { return errors.Join(unix.Unmount(dir, 0), os.Remove(dir)) }
	d, err := datapath.Open(ctx, datapath.Config{
		Root: filepath.Join(dir, "node"), Logger: slog.New(slog.DiscardHandler), Sizes: sizes,
		Node: bpf.NodeConfig{Features: bpf.FeatureIPv4 | bpf.FeatureIPv6 | bpf.FeatureFlowRecords, HalfOpenLimit: 1000, OutsideHalfOpenLimit: 1 << 16, PodMTU: 1500, TunnelMTU: 1450},
	})
	if err != nil {
		return nil, errors.Join(err, unmount())
	}
	ctx, stop := context.WithCancel(ctx)
	group, ctx := errgroup.WithContext(ctx)
	group.Go(func() error { return d.Run(ctx) })
	return &kernel{datapath: d, close: func() error {
		stop()
		return errors.Join(group.Wait(), d.Close(), unmount())
	}}, nil
}

// brain is the part of an agent that a policy goes through, from a row of its table to the maps of the kernel: what the
// agent's policy loop does, without the loop.
type brain struct {
	*kernel
	engine *policy.Engine
}

// newBrain makes a datapath on default sizes, with 100 pods.
func newBrain(ctx context.Context) (*brain, error) {
	k, err := newKernel(ctx, nil)
	if err != nil {
		return nil, err
	}
	b := &brain{k, policy.New(policy.Config{}, k.datapath.Numbers())}
	return b, b.addPods()
}

func benchWorkload(labels map[string]string) policy.Workload {
	w := policy.Workload{Cluster: "lab", Namespace: "bench", Labels: label.SetOf(labels)}
	w.Identity = identity.Of(w.Cluster, w.Namespace, w.ServiceAccount, w.Labels)
	return w
}

// addPods writes the node's own pods, no two of which have equal labels.
func (b *brain) addPods() error {
	for i := range uint32(policyEndpoints) {
		addr := netip.AddrFrom4([4]byte{10, 1, 0, byte(i + 1)})
		w := benchWorkload(map[string]string{"app": fmt.Sprint("app", i%policyApps), "pod": fmt.Sprint(i)})
		row := &table.Endpoint{ID: i + 1, Generation: 1, Namespace: "bench", Pod: fmt.Sprint("pod", i), IfIndex: 1, Addrs: []netip.Addr{addr}, MTU: 1500}
		if err := b.datapath.WriteEndpoint(row); err != nil {
			return err
		}
		b.engine.SetSubject(i+1, w)
		b.engine.SetAddress(netip.PrefixFrom(addr, 32), policy.AddressFact{
			Workload: &w, Endpoint: i + 1, Flags: uint32(bpf.AddressFlagLocalPod | bpf.AddressFlagCluster)})
	}
	return nil
}

// object is a NetworkPolicy for one app with some rules, each of one selector and one port.
func object(n, rules, port int) []byte {
	ingress := ""
	for i := range rules {
		if i > 0 {
			ingress += ","
		}
		ingress += fmt.Sprintf(`{"from":[{"podSelector":{"matchLabels":{"peer":"peer%d"}}}],"ports":[{"protocol":"TCP","port":%d}]}`,
			(n*rules+i)%policySelectors, port+i)
	}
	return fmt.Appendf(nil, `{"apiVersion":"networking.k8s.io/v1","kind":"NetworkPolicy","metadata":{"name":"policy%d","namespace":"bench"},`+
		`"spec":{"podSelector":{"matchLabels":{"app":"app%d"}},"policyTypes":["Ingress"],"ingress":[%s]}}`, n, n%policyApps, ingress)
}

// read takes the row of an object to the engine, as the policy loop does.
func (b *brain) read(object []byte) error {
	parsed, err := kube.ParsePolicy("NetworkPolicy", object, "bench")
	if err != nil {
		return err
	}
	return b.engine.SetPolicy(parsed)
}

// publish takes what the engine was told to the kernel.
func (b *brain) publish(ctx context.Context) (policy.Delta, error) {
	delta, err := b.engine.Flush()
	if err == nil {
		err = b.datapath.Publish(ctx, &delta)
	}
	if refused := b.engine.Refused(); err == nil && len(refused) > 0 {
		err = fmt.Errorf("%d policies are refused, the first: %w", len(refused), refused[0].Reason)
	}
	return delta, err
}

// load takes 1000 policies with some rules each to the kernel, and returns how long that took.
func (b *brain) load(ctx context.Context, rules int) (time.Duration, error) {
	begin := time.Now()
	for n := range policyObjects {
		if err := b.read(object(n, rules, 1000)); err != nil {
			return 0, err
		}
	}
	_, err := b.publish(ctx)
	return time.Since(begin), err
}

// policies measures the policy engine and its publication in maps of default size: a rule that changes among 1000 where it
// selects three of 100 pods; loading 10,000 rules with 4000 selectors; and, in their presence, an identity that appears.
// Times are from the row, as its table hands it over, to the return of the publication. The policy loop's own latency is
// part of policy_apply_to_enforced_ms_p50.
func (b *bench) policies(ctx context.Context) error {
	if err := rlimit.RemoveMemlock(); err != nil {
		return err
	}
	for _, part := range []func(context.Context, *brain) error{b.ruleChanges, b.identities} {
		brain, err := newBrain(ctx)
		if brain != nil {
			if err == nil {
				err = part(ctx, brain)
			}
			err = errors.Join(err, brain.close())
		}
		if err != nil {
			return err
		}
	}
	return nil
}

func (b *bench) ruleChanges(ctx context.Context, brain *brain) error {
	if _, err := brain.load(ctx, 1); err != nil {
		return err
	}
	for round := range 10 * b.rounds {
		changed := object(round*7%policyObjects, 1, 2000+round)
		begin := time.Now()
		if err := brain.read(changed); err != nil {
			return err
		}
		delta, err := brain.publish(ctx)
		took := time.Since(begin)
		if err != nil {
			return err
		}
		if n := delta.Work.SubjectsRecomputed; n > 3 || len(delta.Programs) == 0 {
			return fmt.Errorf("a rule that selects 3 pods made %d be computed anew and %d programs change", n, len(delta.Programs))
		}
		b.sample("policy_rule_change_ms_p50", float64(took.Microseconds())/1e3)
	}
	return nil
}

// newcomer is an identity that nobody had before; most have a class of their own.
func newcomer(i int) (netip.Prefix, policy.AddressFact) {
	w := benchWorkload(map[string]string{"peer": fmt.Sprint("peer", i%policySelectors), "n": fmt.Sprint(i)})
	addr := netip.AddrFrom4([4]byte{10, 2, byte(i >> 8), byte(i)})
	return netip.PrefixFrom(addr, 32), policy.AddressFact{Workload: &w, Flags: uint32(bpf.AddressFlagCluster)}
}

func (b *bench) identities(ctx context.Context, brain *brain) error {
	took, err := brain.load(ctx, 10)
	if err != nil {
		return err
	}
	b.sample("policy_10k_rules_load_s", took.Seconds())
	bytes, most := heap(), uint64(0)
	times := make([]float64, 0, policyIdentities)
	for i := range policyIdentities {
		prefix, fact := newcomer(i)
		before, begin := writesOf(brain.datapath), time.Now()
		brain.engine.SetAddress(prefix, fact)
		if _, err := brain.publish(ctx); err != nil {
			return err
		}
		times = append(times, float64(time.Since(begin).Nanoseconds())/1e3)
		most = max(most, writesOf(brain.datapath)-before)
	}
	b.sample("identity_add_us_p50", percentile(times, 0.5))
	b.sample("identity_add_kernel_writes", float64(most))
	b.sample("policy_bytes_per_identity", (heap()-bytes)/policyIdentities)
	runtime.KeepAlive(brain)
	return nil
}

// writesOf counts all changes of the kernel's state: arenas, rows, assignments of numbers.
func writesOf(d *datapath.Datapath) (n uint64) {
	for _, count := range d.Writes() {
		n += count
	}
	return n
}

// heap is the bytes that are in use.
func heap() float64 {
	runtime.GC()
	var stats runtime.MemStats
	runtime.ReadMemStats(&stats)
	return float64(stats.HeapAlloc)
}
