package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"

	agentv1 "tendril.io/tendril/api/agent/v1"
	"tendril.io/tendril/internal/cni"
	"tendril.io/tendril/internal/lab"
)

// pods measures what a container runtime waits for: executions of the CNI plugin, from exec to exit. An address rests
// before another pod gets it and a node has 254, so every round of many pods has a lab of its own.
func (b *bench) pods(ctx context.Context) error {
	err := b.up(ctx, "pods", lab.ModeNative, 1, func(l *lab.Lab) error {
		return errors.Join(b.oneByOne(ctx, l), b.stubs(ctx, l), b.coldStart(ctx, l))
	})
	for range min(b.rounds, 5) {
		err = errors.Join(err, b.up(ctx, "many", lab.ModeNative, 1, func(l *lab.Lab) error {
			for _, n := range []int{30, 100} {
				took, err := b.adds(ctx, l, n, fmt.Sprintf("many%d", n))
				if err != nil {
					return err
				}
				b.sample(fmt.Sprintf("cni_add_%d_parallel_s", n), took.Seconds())
			}
			return nil
		}))
	}
	return err
}

// oneByOne adds pods in sequence.
func (b *bench) oneByOne(ctx context.Context, l *lab.Lab) error {
	var all []float64
	for i := range 100 {
		took, err := b.adds(ctx, l, 1, "one"+strconv.Itoa(i))
		if err != nil {
			return err
		}
		all = append(all, float64(took.Microseconds())/1e3)
	}
	b.results["cni_add_ms_p50"], b.results["cni_add_ms_p99"] = percentile(all, 0.5), percentile(all, 0.99)
	return nil
}

// sandbox is a container without a runtime: a namespace and what the plugin is told about it.
type sandbox struct {
	name, netns string
}

// adds makes n sandboxes, adds them to the network side by side, and takes them away again. Only the adding is timed.
func (b *bench) adds(ctx context.Context, l *lab.Lab, n int, prefix string) (took time.Duration, err error) {
	node, err := l.Node("node1")
	if err != nil {
		return 0, err
	}
	var boxes []sandbox
	for i := range n {
		name := fmt.Sprintf("%s-%d", prefix, i)
		netns := filepath.Join("/run/netns", "tendril-"+l.Name+"-bench-"+name)
		if err := newNetns(netns); err != nil {
			return 0, fmt.Errorf("namespace %s: %w", netns, err)
		}
		boxes = append(boxes, sandbox{name, netns})
	}
	begin := time.Now()
	err = b.each(ctx, l, node, boxes, cni.Add)
	took = time.Since(begin)
	err = errors.Join(err, b.each(ctx, l, node, boxes, cni.Del))
	for _, box := range boxes {
		err = errors.Join(err, unix.Unmount(box.netns, unix.MNT_DETACH), os.Remove(box.netns))
	}
	return took, err
}

// newNetns makes a network namespace that stays until it is unmounted, as container runtimes do.
func newNetns(path string) error {
	if err := os.WriteFile(path, nil, 0o444); err != nil {
		return err
	}
	done := make(chan error)
	go func() {
		runtime.LockOSThread() // and never unlocked: the thread ends with its namespace
		err := unix.Unshare(unix.CLONE_NEWNET)
		if err == nil {
			err = unix.Mount("/proc/thread-self/ns/net", path, "none", unix.MS_BIND, "")
		}
		done <- err
	}()
	return <-done
}

// each executes the plugin for all sandboxes at once.
func (b *bench) each(ctx context.Context, l *lab.Lab, node lab.Place, boxes []sandbox, command cni.Command) error {
	var group errgroup.Group
	for _, box := range boxes {
		group.Go(func() error { return b.plugin(ctx, l, node, box, command) })
	}
	return group.Wait()
}

// plugin executes the CNI plugin once, on the node.
func (b *bench) plugin(ctx context.Context, l *lab.Lab, node lab.Place, box sandbox, command cni.Command) error {
	state := filepath.Join("/run/tendril-lab", l.Name, "node1")
	config := cni.Config{CNIVersion: "1.1.0", Name: "tendril", Type: "tendril-cni",
		Socket: filepath.Join(state, "cni.sock"), DataDir: filepath.Join(state, "cni")}
	config.RuntimeConfig.Tendril = &cni.PodArgs{Labels: map[string]string{"app": "bench"}, ServiceAccount: "default"}
	text, err := json.Marshal(config)
	if err != nil {
		return err
	}
	cmd := exec.CommandContext(ctx, filepath.Join(b.bin, "tendril-cni"))
	cmd.Env = append(os.Environ(), "CNI_COMMAND="+string(command), "CNI_CONTAINERID="+box.name, "CNI_IFNAME=eth0",
		"CNI_NETNS="+box.netns, "CNI_PATH="+b.bin,
		"CNI_ARGS=IgnoreUnknown=1;K8S_POD_NAMESPACE=bench;K8S_POD_NAME="+box.name+";K8S_POD_UID="+box.name)
	var out bytes.Buffer
	cmd.Stdin, cmd.Stdout, cmd.Stderr = bytes.NewReader(text), &out, &out
	if err := node.Prepare(cmd)(); err != nil {
		return err
	}
	if err := cmd.Wait(); err != nil {
		return fmt.Errorf("CNI %s of %s: %w: %s", command, box.name, err, out.String())
	}
	return nil
}

// stubs asks the agent how long the kernel took to load each pod's programs.
func (b *bench) stubs(ctx context.Context, l *lab.Lab) error {
	for i := range 20 {
		if _, err := l.AddPod(ctx, lab.PodSpec{Node: "node1", Namespace: "bench", Name: "stub" + strconv.Itoa(i)}); err != nil {
			return err
		}
	}
	agent, err := l.Agent("node1")
	if err != nil {
		return err
	}
	list, err := agent.ListTemplates(ctx, &agentv1.ListTemplatesRequest{})
	if err != nil {
		return err
	}
	var loads []float64
	for _, template := range list.GetTemplates() {
		for _, instance := range template.GetInstances() {
			if instance.GetEndpoint() != 0 {
				loads = append(loads, float64(instance.GetLoadUs())/1e3)
			}
		}
	}
	if len(loads) == 0 {
		return errors.New("the agent lists no instance of a template")
	}
	b.results["stub_load_ms_p50"] = percentile(loads, 0.5)
	return nil
}

// coldStart kills the agent, removes all that it pinned and remembers, and waits for a new one's first pod.
func (b *bench) coldStart(ctx context.Context, l *lab.Lab) error {
	pods, err := l.Pods()
	if err != nil {
		return err
	}
	for _, pod := range pods {
		if err := l.RemovePod(ctx, pod); err != nil {
			return err
		}
	}
	for round := range b.rounds {
		if err := l.KillAgent(ctx, "node1", syscall.SIGKILL); err != nil {
			return err
		}
		for _, path := range []string{
			filepath.Join("/sys/fs/bpf/tendril-lab-"+l.Name, "node1"),
			filepath.Join("/run/tendril-lab", l.Name, "node1", "state"),
		} {
			if err := os.RemoveAll(path); err != nil {
				return err
			}
		}
		begin := time.Now()
		if err := l.StartAgent(ctx, "node1"); err != nil {
			return err
		}
		started := time.Since(begin)
		added, err := b.adds(ctx, l, 1, "cold"+strconv.Itoa(round))
		if err != nil {
			return err
		}
		b.sample("cold_start_to_first_pod_s", (started + added).Seconds())
	}
	return nil
}

// idle measures what an agent holds on to when nothing happens.
func (b *bench) idle(ctx context.Context, l *lab.Lab) error {
	time.Sleep(2 * time.Second)
	status, err := l.Status(ctx, "node1")
	if err != nil {
		return err
	}
	var bytes uint64
	for _, use := range status.GetMaps() {
		bytes += use.GetBytes()
	}
	b.results["bpf_maps_mib_default"] = float64(bytes) / (1 << 20)
	processes, err := l.Processes()
	if err != nil {
		return err
	}
	for _, process := range processes {
		if filepath.Base(process.Argv[0]) != "tendril-agent" || process.Place.Name != "node1" {
			continue
		}
		b.results["agent_rss_mib_idle"], err = residentMiB(process.PID)
		return err
	}
	return errors.New("node1 has no agent")
}

// residentMiB reads VmRSS (proc_pid_status(5)).
func residentMiB(pid int) (float64, error) {
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		return 0, err
	}
	for line := range strings.Lines(string(text)) {
		if rest, ok := strings.CutPrefix(line, "VmRSS:"); ok {
			kib, err := strconv.ParseFloat(strings.TrimSuffix(strings.TrimSpace(rest), " kB"), 64)
			return kib / 1024, err
		}
	}
	return 0, fmt.Errorf("process %d: no VmRSS", pid)
}
