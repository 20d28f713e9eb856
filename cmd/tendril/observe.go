package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"sync"
	"sync/atomic"
	"time"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	agentv1 "tendril.io/tendril/api/agent/v1"
	"tendril.io/tendril/internal/flow"
)

// settle is how long a record that is followed on several nodes waits for an earlier one of another node.
const settle = 200 * time.Millisecond

// observation is what the flags of observe say.
type observation struct {
	app      *app
	request  agentv1.ObserveRequest
	since    time.Duration
	allNodes bool
}

// newObserveCommand shows flow records.
func newObserveCommand(a *app) *cobra.Command {
	o := &observation{app: a}
	cmd := &cobra.Command{
		Use:     "observe",
		GroupID: groupSee,
		Short:   "Show flows with identities, verdict and the rule that made it",
		Example: `  tendril observe --last 20                          the last flows of this node
  tendril --node node1 observe -f --verdict dropped  drops as they happen
  tendril observe --all-nodes --pod shop/web         what one pod did, on all nodes of the lab
  tendril observe --staged --since 1h                what staged policies would change
  tendril observe --to-pod shop/web --port 80 -o json`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error { return o.run(cmd) },
	}
	flags, r := cmd.Flags(), &o.request
	flags.BoolVarP(&r.Follow, "follow", "f", false, "go on with new flows")
	flags.Uint32Var(&r.Last, "last", 0, "show so many past flows (default: all kept, or none with -f)")
	o.filters(flags)
	flags.Uint32Var(&r.Port, "port", 0, "only flows with this port")
	flags.StringVar(&r.Protocol, "protocol", "", "tcp, udp, sctp, icmp, icmpv6 or a number")
	flags.BoolVarP(&o.allNodes, "all-nodes", "A", false, "ask all nodes of the lab and merge their flows by time")
	return cmd
}

// filterNames are the flags that filters adds.
func filterNames() []string {
	return []string{"since", "pod", "from-pod", "to-pod", "namespace", "verdict", "ip", "kind", "staged"}
}

// filters adds the flags that say which records are meant, apart from port and protocol.
func (o *observation) filters(flags *pflag.FlagSet) {
	r := &o.request
	flags.DurationVar(&o.since, "since", 0, "only flows of the last, as in 30s or 5m")
	flags.StringVar(&r.Pod, "pod", "", "only flows of this pod (namespace/name), on either side")
	flags.StringVar(&r.FromPod, "from-pod", "", "only flows that this pod began")
	flags.StringVar(&r.ToPod, "to-pod", "", "only flows to this pod")
	flags.StringVarP(&r.Namespace, "namespace", "n", "", "only flows with a pod of this namespace")
	flags.StringVar(&r.Verdict, "verdict", "", "allowed, dropped or redirected")
	flags.StringVar(&r.Ip, "ip", "", "only flows with an address in this range, as in 10.0.0.1 or fd00::/64")
	flags.StringVar(&r.Kind, "kind", "", "new, established, end, verdict or drop")
	flags.BoolVar(&r.Staged, "staged", false, "only flows that a staged policy would treat otherwise")
}

// check finds what is wrong with the filters. The agent would refuse them too, but without one agent being up.
func (o *observation) check() error {
	if _, err := flow.ParseQuery(&o.request); err != nil {
		return fmt.Errorf("flag --%w", err)
	}
	if o.since > 0 {
		o.request.SinceUnixNano = time.Now().Add(-o.since).UnixNano()
	}
	return nil
}

// run asks one agent or several.
func (o *observation) run(cmd *cobra.Command) error {
	if err := o.check(); err != nil {
		return err
	}
	p := &flowPrinter{view: newView(cmd.OutOrStdout()), json: o.app.json(), nodes: o.allNodes}
	if o.allNodes {
		return o.merge(cmd, p)
	}
	agent, err := o.app.connect()
	if err != nil {
		return err
	}
	defer agent.Close()
	return o.stream(cmd.Context(), agent, p.print)
}

// stream gives one agent's records to take until they end or the user leaves.
func (o *observation) stream(ctx context.Context, agent *agentConn, take func(*agentv1.Flow) error) error {
	records, err := agent.Observe(ctx, &o.request)
	if err != nil {
		return explainAnswer(agent.path, err)
	}
	for {
		record, err := records.Recv()
		switch {
		case ctx.Err() != nil:
			return nil
		case errors.Is(err, io.EOF) && !o.request.Follow:
			return nil
		case errors.Is(err, io.EOF):
			return fmt.Errorf("agent at %s: ended the flow of records: is it restarting? try again", agent.path)
		case err != nil:
			return explainAnswer(agent.path, err)
		}
		if err := take(record); err != nil {
			return err
		}
	}
}

// merge asks all nodes of the lab at once and prints their records in order of time. A node that does not answer is
// named at once and does not keep the others from answering; the exit status tells.
func (o *observation) merge(cmd *cobra.Command, p *flowPrinter) error {
	sockets, err := o.app.labSockets()
	if err != nil {
		return err
	}
	ctx, leave := context.WithCancel(cmd.Context())
	defer leave()
	var failures atomic.Int32
	complain := func(err error) {
		failures.Add(1)
		fmt.Fprintf(cmd.ErrOrStderr(), "tendril: %v\n", err)
	}
	var streams sync.WaitGroup
	records := make(chan *agentv1.Flow)
	for _, path := range sockets {
		agent, err := dialAgent(path)
		if err != nil {
			complain(err)
			continue
		}
		defer agent.Close()
		streams.Go(func() {
			if err := o.stream(ctx, agent, func(record *agentv1.Flow) error { return send(ctx, records, record) }); err != nil {
				complain(err)
			}
		})
	}
	go func() {
		streams.Wait()
		close(records)
	}()
	m := merger{print: p.print, follow: o.request.Follow, last: int(o.request.Last)}
	if err := m.run(records); err != nil {
		return err
	}
	if failures.Load() > 0 {
		return exitError{1}
	}
	return nil
}

// send hands a record on, unless nobody wants it any more.
func send(ctx context.Context, records chan<- *agentv1.Flow, record *agentv1.Flow) error {
	select {
	case records <- record:
	case <-ctx.Done():
	}
	return nil
}
