package main

import (
	"context"
	"encoding/json"
	"fmt"
	"net/netip"
	"slices"
	"syscall"
	"time"

	"golang.org/x/sync/errgroup"

	agentv1 "tendril.io/tendril/api/agent/v1"
	"tendril.io/tendril/internal/lab"
)

// survive is step 6: node1 has the clients, node2 the servers; both are disturbed.
func (d *demo) survive(ctx context.Context) error {
	server := d.pods["server"]
	if _, err := d.l.StartEcho(ctx, server.Place, 7); err != nil {
		return err
	}
	if _, err := d.l.StartIperf(ctx, server.Place); err != nil {
		return err
	}
	err := d.underLoad(ctx, "agents of node1 and node2: SIGKILL, a second away, started again", func() error {
		return d.eachNode(func(node string) error {
			if err := d.l.KillAgent(ctx, node, syscall.SIGKILL); err != nil {
				return err
			}
			time.Sleep(time.Second)
			return d.l.StartAgent(ctx, node)
		})
	})
	if err != nil {
		return err
	}
	return d.underLoad(ctx, "datapath of node1 and node2: a new version loaded and swapped in, 3 times", func() error {
		return d.eachNode(func(node string) error {
			for range 3 {
				if err := d.reload(ctx, node); err != nil {
					return err
				}
				time.Sleep(200 * time.Millisecond)
			}
			return nil
		})
	})
}

func (d *demo) eachNode(f func(node string) error) error {
	var group errgroup.Group
	for _, node := range []string{"node1", "node2"} {
		group.Go(func() error { return f(node) })
	}
	return group.Wait()
}

// reload asks an agent for a new datapath version and checks that it got one.
func (d *demo) reload(ctx context.Context, node string) error {
	client, err := d.l.Agent(node)
	if err != nil {
		return err
	}
	before, err := d.l.Status(ctx, node)
	if err != nil {
		return err
	}
	answer, err := client.Reload(ctx, &agentv1.ReloadRequest{})
	if err != nil {
		return fmt.Errorf("reload of %s: %w", node, err)
	}
	if answer.DatapathVersion <= before.DatapathVersion {
		return fmt.Errorf("reload of %s: datapath version is %d, was %d", node, answer.DatapathVersion, before.DatapathVersion)
	}
	return nil
}

// load is what runs while something is disturbed: three probes and iperf3.
type load struct {
	names  []string
	probes []*lab.Process
	iperf  *lab.Process
}

// underLoad disturbs something in the middle of a load and judges what the load saw.
func (d *demo) underLoad(ctx context.Context, what string, disturb func() error) error {
	d.s.lines(d.s.strong.Render(what))
	running, err := d.startLoad(ctx)
	if err != nil {
		return err
	}
	time.Sleep(time.Second)
	if err := disturb(); err != nil {
		return err
	}
	time.Sleep(time.Second)
	return d.endLoad(ctx, running)
}

func (d *demo) startLoad(ctx context.Context) (*load, error) {
	client, server := d.pods["client"].Place, d.pods["server"]
	v4, v6 := netip.AddrPortFrom(server.Addr(4), 7), netip.AddrPortFrom(server.Addr(6), 7)
	running := &load{}
	for _, one := range []struct {
		name     string
		target   netip.AddrPort
		kind     lab.ProbeKind
		interval time.Duration
	}{
		{"UDP over IPv4, every 1 ms", v4, lab.ProbeUDP, time.Millisecond},
		{"TCP over IPv6, every 1 ms", v6, lab.ProbeTCP, time.Millisecond},
		{"new TCP connection, 10 ms", v4, lab.ProbeConnect, 10 * time.Millisecond},
	} {
		probe, err := d.l.StartProbe(ctx, client, one.kind, one.target, one.interval)
		if err != nil {
			return nil, err
		}
		running.names, running.probes = append(running.names, one.name), append(running.probes, probe)
	}
	// A fixed rate leaves the processor some air, so that a loss is the datapath's and not a full queue's.
	var err error
	running.iperf, err = d.l.Start(client, "iperf3-client", "iperf3", "-c", server.Addr(4).String(), "-t", "6", "-i", "0.2",
		"-b", "300M", "-J")
	return running, err
}

func (d *demo) endLoad(ctx context.Context, running *load) error {
	d.s.lines(d.s.dim.Render(fmt.Sprintf("  %-27s %7s %7s %7s %7s   %s", "", "sent", "lost", "reset", "refused", "longest wait")))
	for i, probe := range running.probes {
		result, err := lab.EndProbe(ctx, probe)
		if err != nil {
			return err
		}
		row := fmt.Sprintf("%-27s %7d %7d %7d %7d   %s", running.names[i], result.Sent, result.Lost, result.Reset, result.Refused, short(result.Max))
		if err := d.hold(result.Clean(), "%s", row); err != nil {
			return fmt.Errorf("%w: %v", err, result.Errors)
		}
	}
	return d.judgeIperf(ctx, running.iperf)
}

// iperfReport is the part of iperf3's JSON that matters here.
type iperfReport struct {
	Error     string `json:"error"`
	Intervals []struct {
		Sum struct {
			Bytes float64 `json:"bytes"`
		} `json:"sum"`
	} `json:"intervals"`
	End struct {
		Received struct {
			BitsPerSecond float64 `json:"bits_per_second"`
		} `json:"sum_received"`
	} `json:"end"`
}

func (d *demo) judgeIperf(ctx context.Context, client *lab.Process) error {
	if _, err := client.Wait(ctx); err != nil {
		return err
	}
	var report iperfReport
	if err := json.Unmarshal([]byte(client.Output()), &report); err != nil {
		return fmt.Errorf("iperf3: %w: %s", err, client.Output())
	}
	silent := 0
	for _, interval := range report.Intervals {
		if interval.Sum.Bytes == 0 {
			silent++
		}
	}
	if report.Error != "" {
		return fmt.Errorf("iperf3: %s", report.Error)
	}
	return d.hold(silent == 0 && len(report.Intervals) > 0, "iperf3, one TCP stream: %.0f Mbit/s, %d of %d intervals without progress",
		report.End.Received.BitsPerSecond/1e6, silent, len(report.Intervals))
}

// grow is step 7.
func (d *demo) grow(ctx context.Context) error {
	const pods = 100
	begin := time.Now()
	var times []time.Duration
	for i := range pods {
		name := fmt.Sprintf("many-%d", i+1)
		if err := d.addPod(ctx, "node3", name, "many"); err != nil {
			return err
		}
		times = append(times, d.pods[name].Took)
	}
	took := time.Since(begin)
	slices.Sort(times)
	if err := d.show(ctx, 8, "--node", "node3", "bpf", "template", "list"); err != nil {
		return err
	}
	if err := d.judgeTemplates(ctx, pods); err != nil {
		return err
	}
	last := d.pods[fmt.Sprintf("many-%d", pods)]
	answer, err := last.Place.Fetch(ctx, lab.OutsideAddrs()[0], 80)
	if err != nil {
		return err
	}
	return d.hold(answer.Name == "outside", "%d pods in %s; CNI ADD: half within %s, the slowest %s",
		pods, short(took), short(times[len(times)/2]), short(times[pods-1]))
}

// judgeTemplates wants all pods to be instances of one template.
func (d *demo) judgeTemplates(ctx context.Context, pods int) error {
	client, err := d.l.Agent("node3")
	if err != nil {
		return err
	}
	list, err := client.ListTemplates(ctx, &agentv1.ListTemplatesRequest{})
	if err != nil {
		return err
	}
	most := &agentv1.ListTemplatesResponse_Template{}
	for _, template := range list.Templates {
		if len(template.Instances) > len(most.Instances) {
			most = template
		}
	}
	return d.hold(len(most.Instances) >= pods, "template %s: %d instructions, %d instances", most.Name, most.Instructions, len(most.Instances))
}
