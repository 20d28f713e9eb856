package main

import (
	"context"
	"fmt"
	"maps"
	"net/netip"
	"path/filepath"
	"slices"
	"strings"
	"time"

	agentv1 "tendril.io/tendril/api/agent/v1"
	"tendril.io/tendril/internal/lab"
)

// The addresses of the services in the example manifests.
func webService() []netip.Addr {
	return []netip.Addr{netip.MustParseAddr("10.96.0.80"), netip.MustParseAddr("fd96::80")}
}

func dnsService() []netip.Addr {
	return []netip.Addr{netip.MustParseAddr("10.96.0.53"), netip.MustParseAddr("fd96::53")}
}

// balance is step 4.
func (d *demo) balance(ctx context.Context) error {
	for _, file := range []string{"web-service.yaml", "dns-service.yaml"} {
		if err := d.apply(ctx, file); err != nil {
			return err
		}
	}
	if err := d.spread(ctx); err != nil {
		return err
	}
	if err := d.lookUp(ctx); err != nil {
		return err
	}
	return d.removeBackend(ctx)
}

// spread asks the service from three kinds of client.
func (d *demo) spread(ctx context.Context) error {
	node, err := d.l.Node("node1")
	if err != nil {
		return err
	}
	stray := d.pods["client"].Place // in the pod's namespace, but born outside the node's cgroup: no socket hook sees it
	stray.Cgroup = d.l.Outside().Cgroup
	for _, from := range []struct {
		what  string
		place lab.Place
	}{
		{"pod, at connect", d.pods["client"].Place},
		{"host process, at connect", node},
		{"pod, per packet", stray},
	} {
		for _, addr := range webService() {
			counts, err := from.place.FetchMany(ctx, addr, 80, 30)
			if err != nil {
				return fmt.Errorf("%s: %w", from.what, err)
			}
			if err := d.hold(len(counts) == 3, "%-25s %-5s 30 connections: %s", from.what, family(addr), shares(counts)); err != nil {
				return err
			}
		}
	}
	return nil
}

func shares(counts map[string]int) string {
	var parts []string
	for _, name := range slices.Sorted(maps.Keys(counts)) {
		parts = append(parts, fmt.Sprintf("%s %d", name, counts[name]))
	}
	return strings.Join(parts, ", ")
}

// lookUp asks the name server through its service, over UDP.
func (d *demo) lookUp(ctx context.Context) error {
	for _, addr := range dnsService() {
		out, err := d.pods["client"].Exec(ctx, "dig", "+short", "+time=2", "+tries=1", "@"+addr.String(), "web.shop", "A", "web.shop", "AAAA")
		if err != nil {
			return err
		}
		got := strings.Join(strings.Fields(out), " ")
		if err := d.hold(got == "10.96.0.80 fd96::80", "dig @%s web.shop: %s", addr, got); err != nil {
			return err
		}
	}
	return nil
}

// removeBackend keeps connections open through the service while one backend goes.
func (d *demo) removeBackend(ctx context.Context) error {
	const kept = 9
	target := netip.AddrPortFrom(webService()[0], 80)
	var probes []*lab.Process
	for range kept {
		probe, err := d.l.StartProbe(ctx, d.pods["client"].Place, lab.ProbeHTTP, target, 10*time.Millisecond)
		if err != nil {
			return err
		}
		probes = append(probes, probe)
	}
	time.Sleep(time.Second) // traffic on every connection before the change
	if err := d.apply(ctx, filepath.Join("next", "web-two-backends.yaml")); err != nil {
		return err
	}
	counts, err := d.pods["client"].Place.FetchMany(ctx, webService()[0], 80, 30)
	if err != nil {
		return err
	}
	if err := d.hold(counts["web-3"] == 0, "web-3 removed; 30 new connections: %s", shares(counts)); err != nil {
		return err
	}
	return d.judgeKept(ctx, probes)
}

// judgeKept ends the probes and looks at those whose backend stayed.
func (d *demo) judgeKept(ctx context.Context, probes []*lab.Process) error {
	var alive, answered, lost, resets int
	for _, probe := range probes {
		result, err := lab.EndProbe(ctx, probe)
		if err != nil {
			return err
		}
		if result.By["web-3"] > 0 {
			continue
		}
		alive++
		answered, lost, resets = answered+result.Answered, lost+result.Lost, resets+result.Reset
	}
	return d.hold(alive > 0 && lost == 0 && resets == 0,
		"%d kept connections to the other two: %d requests, %d lost, %d reset", alive, answered, lost, resets)
}

// masquerade is step 5.
func (d *demo) masquerade(ctx context.Context) error {
	status, err := d.l.Status(ctx, "node1")
	if err != nil {
		return err
	}
	for _, addr := range lab.OutsideAddrs() {
		answer, err := d.pods["client"].Place.Fetch(ctx, addr, 80)
		if err != nil {
			return err
		}
		if err := d.hold(slices.Contains(status.Addresses, answer.Sees.String()),
			"client → outside %-17s it sees %-11s answered after %s", addr, answer.Sees, short(answer.Took)); err != nil {
			return fmt.Errorf("%w: the node's addresses are %v", err, status.Addresses)
		}
	}
	return d.listMapping(ctx)
}

// listMapping shows the mapping of a connection that is open while it looks.
func (d *demo) listMapping(ctx context.Context) error {
	before, err := d.mappings(ctx)
	if err != nil {
		return err
	}
	outside := lab.OutsideAddrs()[0]
	probe, err := d.l.StartProbe(ctx, d.pods["client"].Place, lab.ProbeHTTP, netip.AddrPortFrom(outside, 80), 10*time.Millisecond)
	if err != nil {
		return err
	}
	err = lab.Wait(ctx, "the probe's NAT mapping", 3*time.Second, func(ctx context.Context) error {
		now, err := d.mappings(ctx)
		if err == nil && len(now) == len(before) {
			err = fmt.Errorf("there are %d mappings of the client to %s, as before", len(now), outside)
		}
		return err
	})
	if err != nil {
		return err
	}
	if err := d.show(ctx, 6, "--node", "node1", "bpf", "nat", "list"); err != nil {
		return err
	}
	result, err := lab.EndProbe(ctx, probe)
	if err != nil {
		return err
	}
	return d.hold(result.Clean(), "%d requests on that connection, %d lost", result.Sent, result.Lost)
}

// mappings are the NAT mappings of the client towards the outside host's first address.
func (d *demo) mappings(ctx context.Context) ([]*agentv1.Mapping, error) {
	client, err := d.l.Agent("node1")
	if err != nil {
		return nil, err
	}
	list, err := client.ListMappings(ctx, &agentv1.ListMappingsRequest{})
	if err != nil {
		return nil, err
	}
	from, to := d.pods["client"].Addr(4).String(), lab.OutsideAddrs()[0].String()
	return slices.DeleteFunc(list.Mappings, func(m *agentv1.Mapping) bool {
		return m.PodIp != from || m.RemoteIp != to
	}), nil
}
