package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"time"

	"github.com/cilium/ebpf"
	"golang.org/x/sys/unix"

	"tendril.io/tendril/internal/lab"
)

const (
	loadPort    = "7000"
	connections = "4" // enough that no core sleeps between a request and its answer
)

// field is a lab with a client and two servers: one on its own node, one on another.
type field struct {
	lab         *lab.Lab
	client      *lab.Pod
	same, cross *lab.Pod
}

// traffic measures what pods get out of the network, each figure as a ratio to bare veth in the same round.
func (b *bench) traffic(ctx context.Context) error {
	return b.up(ctx, "bare", lab.ModeBare, 2, func(bare *lab.Lab) error {
		return b.up(ctx, "native", lab.ModeNative, 2, func(native *lab.Lab) error {
			return b.up(ctx, "vxlan", lab.ModeVXLAN, 2, func(vxlan *lab.Lab) error {
				return b.rounds3(ctx, bare, native, vxlan)
			})
		})
	})
}

func (b *bench) rounds3(ctx context.Context, labs ...*lab.Lab) error {
	var fields []*field
	for _, l := range labs {
		f, err := b.field(ctx, l)
		if err != nil {
			return fmt.Errorf("lab %s: %w", l.Name, err)
		}
		fields = append(fields, f)
	}
	bare, native, vxlan := fields[0], fields[1], fields[2]
	var errs []error
	for round := range b.rounds {
		for _, kind := range []string{"rr", "crr", "stream"} {
			run := b.kinds()[kind]
			errs = append(errs,
				b.ratio(ctx, round, run, "tcp_"+kind+"_same_node", pair{bare.client, bare.same}, pair{native.client, native.same}),
				b.ratio(ctx, round, run, "tcp_"+kind+"_cross_node_native", pair{bare.client, bare.cross}, pair{native.client, native.cross}),
				b.ratio(ctx, round, run, "tcp_"+kind+"_cross_node_vxlan", pair{bare.client, bare.cross}, pair{vxlan.client, vxlan.cross}))
		}
		errs = append(errs, b.bpfTime(ctx, native))
	}
	return errors.Join(append(errs, b.idle(ctx, native.lab))...)
}

// pair is who asks and who answers.
type pair struct {
	client, server *lab.Pod
}

// field makes the pods of a lab and starts the servers in them.
func (b *bench) field(ctx context.Context, l *lab.Lab) (*field, error) {
	f := &field{lab: l}
	for _, p := range []struct {
		pod        **lab.Pod
		name, node string
	}{{&f.client, "client", "node1"}, {&f.same, "same", "node1"}, {&f.cross, "cross", "node2"}} {
		pod, err := b.pod(ctx, l, p.name, p.node)
		if err != nil {
			return nil, err
		}
		*p.pod = pod
		if p.name == "client" {
			continue
		}
		if _, err := pod.Start(b.load, "serve", loadPort); err != nil {
			return nil, err
		}
		if _, err := l.StartIperf(ctx, pod.Place); err != nil {
			return nil, err
		}
	}
	time.Sleep(300 * time.Millisecond) // the load servers listen
	return f, nil
}

// pod makes a pod whose ports of closed connections may be used again at once, and which has enough of them.
func (b *bench) pod(ctx context.Context, l *lab.Lab, name, node string) (*lab.Pod, error) {
	pod, err := l.AddPod(ctx, lab.PodSpec{Node: node, Namespace: "bench", Name: name, Labels: map[string]string{"app": name}})
	if err == nil {
		_, err = pod.Exec(ctx, "sysctl", "-qw", "net.ipv4.tcp_tw_reuse=1", "net.ipv4.ip_local_port_range=10000 65000")
	}
	return pod, err
}

// measure gives a rate from a client to a server.
type measure func(ctx context.Context, client, server *lab.Pod) (float64, error)

func (b *bench) kinds() map[string]measure {
	return map[string]measure{
		"rr": func(ctx context.Context, client, server *lab.Pod) (float64, error) {
			out, err := b.ask(ctx, client, "rr", server.Addr(4).String(), loadPort, connections, b.time.String())
			return out.PerSecond, err
		},
		"crr": func(ctx context.Context, client, server *lab.Pod) (float64, error) {
			out, err := b.ask(ctx, client, "crr", server.Addr(4).String(), loadPort, connections, b.time.String())
			return out.PerSecond, err
		},
		"stream": b.stream,
	}
}

// ratio measures bare and ours right after each other; who is first takes turns.
func (b *bench) ratio(ctx context.Context, round int, m measure, name string, bare, ours pair) error {
	rates := map[pair]float64{}
	order := []pair{bare, ours}
	if round%2 == 1 {
		slices.Reverse(order)
	}
	for _, p := range order {
		rate, err := m(ctx, p.client, p.server)
		if err != nil {
			return fmt.Errorf("%s, %s: %w", name, p.client.Name, err)
		}
		rates[p] = rate
	}
	if rates[bare] <= 0 {
		return fmt.Errorf("%s: the floor is %v", name, rates[bare])
	}
	b.sample(name, rates[ours]/rates[bare])
	return nil
}

// answerOf is what the load program prints.
type answerOf struct {
	Count     int     `json:"count"`
	PerSecond float64 `json:"per_second"`
	At        int64   `json:"at_unix_nano"`
}

// ask runs the load program in a pod to its end.
func (b *bench) ask(ctx context.Context, pod *lab.Pod, args ...string) (answerOf, error) {
	var out answerOf
	text, err := pod.Exec(ctx, append([]string{b.load}, args...)...)
	if err != nil {
		return out, err
	}
	return out, json.Unmarshal([]byte(text), &out)
}

// stream is iperf3's rate in bits a second, as the receiver saw it.
func (b *bench) stream(ctx context.Context, client, server *lab.Pod) (float64, error) {
	text, err := client.Exec(ctx, "iperf3", "-J", "-c", server.Addr(4).String(), "-t", strconv.Itoa(max(1, int(b.time.Seconds()))))
	if err != nil {
		return 0, err
	}
	var report struct {
		End struct {
			Received struct {
				Rate float64 `json:"bits_per_second"`
			} `json:"sum_received"`
		} `json:"end"`
	}
	if err := json.Unmarshal([]byte(text), &report); err != nil {
		return 0, fmt.Errorf("iperf3's report: %w", err)
	}
	return report.End.Received.Rate, nil
}

// bpfTime is the time that all BPF programs of both nodes take for one connection, which the kernel counts.
func (b *bench) bpfTime(ctx context.Context, f *field) error {
	stats, err := ebpf.EnableStats(unix.BPF_STATS_RUN_TIME) // on while it is open
	if err != nil {
		return fmt.Errorf("bpf statistics: %w", err)
	}
	before, err := runtimeOfAll()
	var out answerOf
	if err == nil {
		out, err = b.ask(ctx, f.client, "crr", f.cross.Addr(4).String(), loadPort, connections, b.time.String())
	}
	after, afterErr := runtimeOfAll()
	if err := errors.Join(err, afterErr, stats.Close()); err != nil {
		return err
	}
	b.sample("bpf_us_per_connection", float64((after-before).Nanoseconds())/1e3/float64(max(1, out.Count)))
	return nil
}

// runtimeOfAll sums what the kernel counted for every program.
func runtimeOfAll() (time.Duration, error) {
	var total time.Duration
	for id := ebpf.ProgramID(0); ; {
		next, err := ebpf.ProgramGetNextID(id)
		if err != nil {
			return total, nil // there is no more
		}
		id = next
		program, err := ebpf.NewProgramFromID(id)
		if err != nil {
			continue // gone meanwhile
		}
		stats, err := program.Stats()
		program.Close()
		if err != nil {
			return 0, err
		}
		total += stats.Runtime
	}
}
