package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"strconv"
	"strings"

	"github.com/spf13/cobra"

	agentv1 "tendril.io/tendril/api/agent/v1"
	"tendril.io/tendril/internal/flow"
)

// newPolicyCommand explains verdicts and lists policies.
func newPolicyCommand(a *app) *cobra.Command {
	return group("policy", "Explain verdicts, simulate changes and list policies",
		newPolicyExplainCommand(a), newPolicySimulateCommand(a), newPolicyListCommand(a), newPolicyGetCommand(a))
}

// explanation is what the flags of explain say.
type explanation struct {
	from, to, port, protocol string
	last                     bool
	past                     observation // filters of the record that is meant by last
}

// newPolicyExplainCommand proves the verdict of a flow that need not have happened, or of the last one that did.
func newPolicyExplainCommand(a *app) *cobra.Command {
	e := &explanation{past: observation{app: a}}
	cmd := &cobra.Command{
		Use:   "explain --from PARTY --to PARTY [--port PORT[/PROTOCOL]] | --last [FILTERS OF OBSERVE]",
		Short: "Prove the verdict of a flow, past or imagined",
		Long: `Prove the verdict of a flow, past or imagined: every rule that was looked at, in order, and the one that decided. A rule is
named by its object and its field there, and by the file that the object was applied from.

A party is a pod (namespace/name), an address, or a reserved identity such as reserved:world or reserved:host.

With --last it is the newest flow record that the filters find, the same as those of ` + "`tendril observe`" + `: what the record said
then, and what holds now. Records of ICMP do not have its type; echo is assumed.`,
		Example: `  tendril policy explain --from shop/client --to shop/web --port 80
  tendril policy explain --from shop/client --to 192.0.2.7 --port 53/udp
  tendril policy explain --from reserved:world --to shop/web --proto icmp
  tendril policy explain --last --to-pod shop/web --verdict dropped`,
		PreRunE: func(cmd *cobra.Command, _ []string) error { return e.check(cmd) },
	}
	flags := cmd.Flags()
	flags.StringVar(&e.from, "from", "", "who speaks first")
	flags.StringVar(&e.to, "to", "", "who is spoken to")
	flags.StringVar(&e.port, "port", "", "port of the destination, as in 80 or 53/udp (of ICMP: the type)")
	flags.StringVar(&e.protocol, "proto", "", "tcp (default), udp, sctp, icmp, icmpv6 or a number")
	flags.BoolVar(&e.last, "last", false, "explain the newest recorded flow that these filters find:")
	e.past.filters(flags)
	return answer(a, cmd, e.ask, showProofs)
}

// check sees to it that one of the two forms is meant.
func (e *explanation) check(cmd *cobra.Command) error {
	if !e.last {
		for _, name := range filterNames() {
			if cmd.Flags().Changed(name) {
				return fmt.Errorf("flag --%s: is for --last", name)
			}
		}
		_, err := explainRequest(e.from, e.to, e.port, e.protocol)
		return err
	}
	if e.from != "" || e.to != "" {
		return errors.New("flags --from and --to: are not for --last: use --from-pod, --to-pod, --pod or --ip")
	}
	imagined, err := explainRequest("any", "any", e.port, e.protocol) // checks port and protocol
	if err != nil {
		return err
	}
	e.past.request.Port, e.past.request.Last = imagined.GetPort(), 1
	if _, suffix, both := strings.Cut(e.port, "/"); both || e.protocol != "" {
		e.past.request.Protocol = cmp.Or(e.protocol, suffix)
	}
	return e.past.check()
}

// ask puts the question, and ahead of it, with --last, the one for the record.
func (e *explanation) ask(ctx context.Context, agent agentv1.AgentClient) (*agentv1.ExplainResponse, error) {
	if !e.last {
		request, err := explainRequest(e.from, e.to, e.port, e.protocol)
		if err != nil {
			return nil, err
		}
		return agent.Explain(ctx, request)
	}
	records, err := agent.Observe(ctx, &e.past.request)
	if err != nil {
		return nil, err
	}
	record, err := records.Recv()
	if errors.Is(err, io.EOF) {
		return nil, errors.New("no record of such a flow is kept: see `tendril observe`, and ask the agent of the pod's node")
	}
	if err != nil {
		return nil, err
	}
	response, err := agent.Explain(ctx, &agentv1.ExplainRequest{
		From: record.GetSource().GetIp(), To: record.GetDestination().GetIp(), Protocol: record.GetProtocol(),
		Port: uint32(flow.PolicyPort(uint8(record.GetProtocol()), uint16(record.GetDestination().GetPort()))),
	})
	if err != nil {
		return nil, err
	}
	response.Record = record
	return response, nil
}

// explainRequest checks the flags of explain.
func explainRequest(from, to, port, protocol string) (*agentv1.ExplainRequest, error) {
	for flag, value := range map[string]string{"from": from, "to": to} {
		if value == "" {
			return nil, fmt.Errorf("flag --%s: name a pod (namespace/name), an address or a reserved identity (reserved:world)", flag)
		}
	}
	number, suffix, both := strings.Cut(port, "/")
	if both && protocol != "" && protocol != suffix {
		return nil, fmt.Errorf("flags --port %s and --proto %s: they name two protocols", port, protocol)
	}
	if both {
		protocol = suffix
	}
	if protocol == "" {
		protocol = "tcp"
	}
	request := &agentv1.ExplainRequest{From: from, To: to}
	parsed, err := flow.ParseProtocol(protocol)
	if err != nil {
		return nil, fmt.Errorf("flag --proto: %w", err)
	}
	request.Protocol = uint32(parsed)
	if number == "" {
		return request, nil
	}
	value, err := strconv.ParseUint(number, 10, 16)
	if err != nil {
		return nil, fmt.Errorf("flag --port %q: must be a number up to 65535, with or without a protocol: 80, 53/udp", port)
	}
	request.Port = uint32(value)
	return request, nil
}

// verdictText colours a verdict or an action.
func (v *view) verdictText(verdict string) string {
	switch verdict {
	case "denied", "deny", "dropped":
		return v.wrong.Render(verdict)
	case "allowed", "allow", "forwarded":
		return v.right.Render(verdict)
	}
	return v.odd.Render(verdict)
}
