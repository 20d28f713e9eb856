package main

import (
	"cmp"
	"context"
	"fmt"
	"maps"
	"math"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"

	agentv1 "tendril.io/tendril/api/agent/v1"
	"tendril.io/tendril/internal/flow"
	"tendril.io/tendril/internal/ipproto"
)

// newBPFCommand shows what is in the kernel.
func newBPFCommand(a *app) *cobra.Command {
	return group("bpf", "Look into the datapath: templates, NAT, connections, counters",
		holder("template", "The program templates of pods", newTemplateListCommand(a), newTemplateDescribeCommand(a)),
		holder("lb", "Service addresses", newLBListCommand(a), newLBFlushCommand(a)),
		holder("nat", "SNAT mappings", newNATListCommand(a), newNATFlushCommand(a)),
		holder("ct", "Tracked connections", newCTListCommand(a), newCTFlushCommand(a)),
		newCountersCommand(a),
	)
}

// listTemplates is the question of both template commands: describing is a matter of showing.
func listTemplates(ctx context.Context, agent agentv1.AgentClient) (*agentv1.ListTemplatesResponse, error) {
	return agent.ListTemplates(ctx, &agentv1.ListTemplatesRequest{})
}

// newTemplateListCommand shows that pods share a template: a line a template, however many instances.
func newTemplateListCommand(a *app) *cobra.Command {
	return answer(a, &cobra.Command{
		Use:     "list",
		Short:   "List the templates and how often each is instantiated",
		Example: `  tendril --node node1 bpf template list`,
	}, listTemplates, func(v *view, r *agentv1.ListTemplatesResponse) {
		v.header("TEMPLATE", "ENTRY", "INSTRUCTIONS", "PATCHED IN", "INSTANCES", "LOAD MEDIAN", "DIGEST")
		for _, t := range r.GetTemplates() {
			v.row(t.GetName(), t.GetEntry(), number(t.GetInstructions()), strings.Join(t.GetConstants(), ","),
				fmt.Sprint(len(t.GetInstances())), loadMedian(t.GetInstances()), shortIdentity(t.GetDigest()))
		}
	})
}

// loadMedian is the median time that the kernel took to load an instance.
func loadMedian(instances []*agentv1.ListTemplatesResponse_Instance) string {
	var times []uint32
	for _, i := range instances {
		if i.GetLoadUs() > 0 {
			times = append(times, i.GetLoadUs())
		}
	}
	if len(times) == 0 {
		return ""
	}
	slices.Sort(times)
	return loadTime(times[len(times)/2])
}

// loadTime is a load time, given in microseconds.
func loadTime(us uint32) string {
	return strconv.FormatFloat(float64(us)/1000, 'f', 2, 64) + " ms"
}

// newTemplateDescribeCommand shows the instances too, with the time that each took to load.
func newTemplateDescribeCommand(a *app) *cobra.Command {
	var name string
	return answer(a, &cobra.Command{
		Use:   "describe [TEMPLATE]",
		Short: "Show each template with all its instances",
		Example: `  tendril bpf template describe
  tendril bpf template describe from-pod`,
		Args: argument(&name, "template", true),
	}, func(ctx context.Context, agent agentv1.AgentClient) (*agentv1.ListTemplatesResponse, error) {
		all, err := listTemplates(ctx, agent)
		if err != nil || name == "" {
			return all, err
		}
		for _, t := range all.GetTemplates() {
			if t.GetName() == name {
				return &agentv1.ListTemplatesResponse{Templates: []*agentv1.ListTemplatesResponse_Template{t}}, nil
			}
		}
		return nil, fmt.Errorf("template %s: the datapath has none of that name: see `tendril bpf template list`", name)
	}, func(v *view, r *agentv1.ListTemplatesResponse) {
		for _, t := range r.GetTemplates() {
			v.row("template", v.strong.Render(t.GetName()))
			v.row("leads to", t.GetEntry())
			v.row("instructions", number(t.GetInstructions()))
			v.row("patched in", strings.Join(t.GetConstants(), ", "))
			v.row("digest", t.GetDigest())
			v.flush()
			v.header("  ENDPOINT", "NAME", "PROGRAM", "LOADED IN")
			for _, i := range t.GetInstances() {
				v.row("  "+number(i.GetEndpoint()), i.GetName(), number(i.GetProgramId()), loadTime(i.GetLoadUs()))
			}
			v.flush()
		}
	})
}

// rowFlags choose rows of a table of the kernel, to list or to flush them.
type rowFlags struct {
	ip, protocol string
	port         uint32
}

// onlyRows gives a command the flags for all of that. More flags that hold an address are checked along.
func onlyRows(cmd *cobra.Command, whose string, addresses ...string) *rowFlags {
	f := &rowFlags{}
	cmd.Flags().Uint32Var(&f.port, "port", 0, "only those with this port "+whose)
	cmd.Flags().StringVar(&f.protocol, "protocol", "", "only those of this protocol: tcp, udp, sctp, icmp, icmpv6 or a number")
	onlyIP(cmd, &f.ip, whose)
	cmd.PreRunE = func(cmd *cobra.Command, _ []string) error {
		for _, flag := range append(addresses, "ip") {
			if err := checkAddress(cmd, flag); err != nil {
				return err
			}
		}
		if cmd.Flags().Changed("port") && (f.port == 0 || f.port > math.MaxUint16) {
			return fmt.Errorf("flag --port %d: must be a port, from 1 to 65535", f.port)
		}
		if cmd.Flags().Changed("protocol") {
			if _, err := ipproto.Parse(f.protocol); err != nil {
				return fmt.Errorf("flag --protocol: %w", err)
			}
		}
		return nil
	}
	return f
}

// onlyIP gives a command the flag --ip, which chooses rows by an address.
func onlyIP(cmd *cobra.Command, ip *string, whose string) {
	cmd.Flags().StringVar(ip, "ip", "", "only those with this address "+whose)
	cmd.PreRunE = func(cmd *cobra.Command, _ []string) error { return checkAddress(cmd, "ip") }
}

// newLBListCommand lists service addresses as the kernel has them.
func newLBListCommand(a *app) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "list",
		Short: "List service addresses with the backends in their slots",
		Example: `  tendril --node node1 bpf lb list
  tendril bpf lb list --ip 10.96.0.80 -o json
  tendril bpf lb list --protocol udp --port 53`,
	}
	only := onlyRows(cmd, "as frontend or backend")
	return answer(a, cmd, func(ctx context.Context, agent agentv1.AgentClient) (*agentv1.ListFrontendsResponse, error) {
		return agent.ListFrontends(ctx, &agentv1.ListFrontendsRequest{Ip: only.ip, Port: only.port, Protocol: only.protocol})
	}, func(v *view, r *agentv1.ListFrontendsResponse) {
		v.header("PROTOCOL", "FRONTEND", "FLAGS", "AFFINITY", "SLOTS", "BACKENDS", "FROM OUTSIDE")
		for _, f := range r.GetFrontends() {
			affinity := ""
			if f.GetAffinitySeconds() > 0 {
				affinity = ago(time.Duration(f.GetAffinitySeconds()) * time.Second)
			}
			v.row(flow.ProtocolName(f.GetProtocol()), hostPort(f.GetAddress(), f.GetPort()), f.GetFlags(), affinity, number(f.GetSlots()),
				strings.Join(f.GetInside(), " "), strings.Join(f.GetOutside(), " "))
		}
	})
}

// newLBFlushCommand forgets affinities: all that services remember of clients beyond their connections.
func newLBFlushCommand(a *app) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "flush",
		Short: "Forget which backend clients had; connections stay",
		Example: `  tendril bpf lb flush --ip 10.0.1.7
  tendril bpf lb flush`,
	}
	var ip string
	onlyIP(cmd, &ip, "as client")
	return answer(a, cmd, func(ctx context.Context, agent agentv1.AgentClient) (*agentv1.FlushAffinitiesResponse, error) {
		return agent.FlushAffinities(ctx, &agentv1.FlushAffinitiesRequest{Ip: ip})
	}, func(v *view, r *agentv1.FlushAffinitiesResponse) {
		v.row(number(r.GetRemoved()) + " affinities forgotten")
	})
}

// newNATListCommand lists what pods look like from outside.
func newNATListCommand(a *app) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "list",
		Short: "List SNAT mappings: which pod is behind which port of the node",
		Example: `  tendril --node node1 bpf nat list
  tendril bpf nat list --ip 198.51.100.10 --protocol tcp --port 443`,
	}
	only := onlyRows(cmd, "as pod, node or remote")
	return answer(a, cmd, func(ctx context.Context, agent agentv1.AgentClient) (*agentv1.ListMappingsResponse, error) {
		return agent.ListMappings(ctx, &agentv1.ListMappingsRequest{Ip: only.ip, Port: only.port, Protocol: only.protocol})
	}, func(v *view, r *agentv1.ListMappingsResponse) {
		v.header("PROTOCOL", "POD", "FROM", "SEEN AS", "BY", "AGE")
		for _, m := range r.GetMappings() {
			v.row(flow.ProtocolName(m.GetProtocol()), m.GetOwner(), hostPort(m.GetPodIp(), m.GetPodPort()),
				hostPort(m.GetNodeIp(), m.GetNodePort()), hostPort(m.GetRemoteIp(), m.GetRemotePort()), ago(time.Duration(m.GetAgeNs())))
		}
	})
}

// hostPort joins an address and a port as people write them.
func hostPort(ip string, port uint32) string {
	addr, err := netip.ParseAddr(ip)
	if err != nil {
		return ip
	}
	return netip.AddrPortFrom(addr, uint16(port)).String()
}

// newNATFlushCommand removes mappings. It asks nothing back: the mappings are remade by the next packets out.
func newNATFlushCommand(a *app) *cobra.Command {
	var pod string
	cmd := &cobra.Command{
		Use:   "flush",
		Short: "Remove SNAT mappings; connections that use them break",
		Example: `  tendril bpf nat flush --pod-ip 10.0.1.7
  tendril bpf nat flush --ip 198.51.100.10 --protocol udp
  tendril bpf nat flush`,
	}
	cmd.Flags().StringVar(&pod, "pod-ip", "", "only those of this pod address")
	only := onlyRows(cmd, "as pod, node or remote", "pod-ip")
	return answer(a, cmd, func(ctx context.Context, agent agentv1.AgentClient) (*agentv1.FlushMappingsResponse, error) {
		return agent.FlushMappings(ctx, &agentv1.FlushMappingsRequest{PodIp: pod, Ip: only.ip, Port: only.port, Protocol: only.protocol})
	}, func(v *view, r *agentv1.FlushMappingsResponse) {
		v.row(number(r.GetRemoved()) + " mappings removed")
	})
}

// checkAddress checks a flag that holds an address. Without the flag everything is meant, but not with one that a script
// has left empty.
func checkAddress(cmd *cobra.Command, name string) error {
	flag := cmd.Flags().Lookup(name)
	if !flag.Changed {
		return nil
	}
	if addr, err := netip.ParseAddr(flag.Value.String()); err != nil || addr.Zone() != "" {
		return fmt.Errorf("flag --%s %q: must be an address, as in 10.0.1.7 or fd00::7; without the flag all are meant", name, flag.Value)
	}
	return nil
}

// newCTListCommand lists tracked connections.
func newCTListCommand(a *app) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "list",
		Short: "List tracked connections with both verdicts",
		Example: `  tendril --node node1 bpf ct list
  tendril bpf ct list --ip 10.0.1.7 --protocol tcp --port 443`,
	}
	only := onlyRows(cmd, "on either end")
	return answer(a, cmd, func(ctx context.Context, agent agentv1.AgentClient) (*agentv1.ListFlowsResponse, error) {
		return agent.ListFlows(ctx, &agentv1.ListFlowsRequest{Ip: only.ip, Port: only.port, Protocol: only.protocol})
	}, func(v *view, r *agentv1.ListFlowsResponse) {
		v.header("PROTOCOL", "FROM", "TO", "STATE", "EXPIRES", "SENT", "RECEIVED", "EGRESS", "INGRESS")
		for _, e := range r.GetFlows() {
			f := e.GetFlow()
			v.row(flow.ProtocolName(f.GetProtocol()), flow.PartyText(f.GetSource(), true), flow.PartyText(f.GetDestination(), true),
				e.GetState(), ago(time.Duration(e.GetExpiresNs())), flow.BytesText(f.GetForwardBytes()), flow.BytesText(f.GetReverseBytes()),
				v.judgementText(f.GetEgress()), v.judgementText(f.GetIngress()))
		}
	})
}

// judgementText is a verdict and who made it.
func (v *view) judgementText(j *agentv1.Judgement) string {
	if j == nil {
		return ""
	}
	return v.verdictText(j.GetAction()) + " " + flow.RuleText(j)
}

// newCTFlushCommand forgets connections, for when one wants to see a first packet judged again.
func newCTFlushCommand(a *app) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "flush",
		Short: "Forget tracked connections; their next packets are judged as new",
		Example: `  tendril bpf ct flush --ip 10.0.1.7
  tendril bpf ct flush --protocol udp --port 53
  tendril bpf ct flush`,
	}
	only := onlyRows(cmd, "on either end")
	return answer(a, cmd, func(ctx context.Context, agent agentv1.AgentClient) (*agentv1.FlushFlowsResponse, error) {
		return agent.FlushFlows(ctx, &agentv1.FlushFlowsRequest{Ip: only.ip, Port: only.port, Protocol: only.protocol})
	}, func(v *view, r *agentv1.FlushFlowsResponse) {
		v.row(number(r.GetRemoved()) + " connections forgotten")
	})
}

// newCountersCommand shows the packet ledger.
func newCountersCommand(a *app) *cobra.Command {
	var drops bool
	cmd := &cobra.Command{
		Use:   "counters",
		Short: "Show what became of every packet, by reason and hook",
		Example: `  tendril --node node1 bpf counters
  tendril --node node1 bpf counters --drops`,
	}
	cmd.Flags().BoolVar(&drops, "drops", false, "only drops")
	return answer(a, cmd, func(ctx context.Context, agent agentv1.AgentClient) (*agentv1.CountersResponse, error) {
		r, err := agent.Counters(ctx, &agentv1.CountersRequest{})
		if drops && r != nil {
			r.Counters = slices.DeleteFunc(r.Counters, func(c *agentv1.CountersResponse_Counter) bool { return !c.GetDrop() })
			r.Tallies = nil
		}
		return r, err
	}, showCounters)
}

// showCounters prints the counters, drops last and largest first, then the tallies.
func showCounters(v *view, r *agentv1.CountersResponse) {
	slices.SortStableFunc(r.Counters, func(x, y *agentv1.CountersResponse_Counter) int {
		switch {
		case x.GetDrop() != y.GetDrop() && y.GetDrop():
			return -1
		case x.GetDrop() != y.GetDrop():
			return 1
		}
		return cmp.Compare(y.GetPackets(), x.GetPackets())
	})
	v.header("REASON", "HOOK", "PACKETS", "BYTES", "MEANING")
	for _, c := range r.Counters {
		reason := v.right.Render(c.GetReason())
		if c.GetDrop() {
			reason = v.wrong.Render(c.GetReason())
		}
		v.row(reason, c.GetHook(), number(c.GetPackets()), flow.BytesText(c.GetBytes()), c.GetAbout())
	}
	if len(r.GetTallies()) == 0 {
		return
	}
	v.flush()
	v.line("")
	v.header("TALLY", "COUNT")
	for _, name := range slices.Sorted(maps.Keys(r.GetTallies())) {
		v.row(name, number(r.GetTallies()[name]))
	}
}
