package main

import (
	"context"
	"fmt"
	"strconv"
	"strings"

	"github.com/spf13/cobra"

	agentv1 "tendril.io/tendril/api/agent/v1"
	"tendril.io/tendril/internal/flow"
)

// newPolicyCommand explains verdicts and lists policies.
func newPolicyCommand(a *app) *cobra.Command {
	return group("policy", "Explain verdicts and list policies",
		newPolicyExplainCommand(a), newPolicyListCommand(a), newPolicyGetCommand(a))
}

// newPolicyExplainCommand proves the verdict of a flow that need not have happened.
func newPolicyExplainCommand(a *app) *cobra.Command {
	var from, to, port, protocol string
	var request *agentv1.ExplainRequest
	cmd := &cobra.Command{
		Use:   "explain --from PARTY --to PARTY [--port PORT[/PROTOCOL]]",
		Short: "Prove the verdict of a flow, past or imagined",
		Long: `Prove the verdict of a flow, past or imagined: every rule that was looked at, in order, and the one that decided.

A party is a pod (namespace/name), an address, or a reserved identity such as reserved:world or reserved:host.`,
		Example: `  tendril policy explain --from shop/client --to shop/web --port 80
  tendril policy explain --from shop/client --to 192.0.2.7 --port 53/udp
  tendril policy explain --from reserved:world --to shop/web --proto icmp`,
		PreRunE: func(*cobra.Command, []string) (err error) {
			request, err = explainRequest(from, to, port, protocol)
			return err
		},
	}
	cmd.Flags().StringVar(&from, "from", "", "who speaks first")
	cmd.Flags().StringVar(&to, "to", "", "who is spoken to")
	cmd.Flags().StringVar(&port, "port", "", "port of the destination, as in 80 or 53/udp (of ICMP: the type)")
	cmd.Flags().StringVar(&protocol, "proto", "", "tcp (default), udp, sctp, icmp, icmpv6 or a number")
	return answer(a, cmd, func(ctx context.Context, agent agentv1.AgentClient) (*agentv1.ExplainResponse, error) {
		return agent.Explain(ctx, request)
	}, showProofs)
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

// listPolicies is the question of both policy lists.
func listPolicies(ctx context.Context, agent agentv1.AgentClient) (*agentv1.ListPoliciesResponse, error) {
	return agent.ListPolicies(ctx, &agentv1.ListPoliciesRequest{})
}

// newPolicyListCommand lists all policies: a refused one is not in force at all, never in part.
func newPolicyListCommand(a *app) *cobra.Command {
	return answer(a, &cobra.Command{
		Use:     "list",
		Short:   "List the policies in force, and those that were refused",
		Example: `  tendril policy list`,
	}, listPolicies, func(v *view, r *agentv1.ListPoliciesResponse) {
		v.header("KIND", "NAMESPACE", "NAME", "STATE", "REVISION", "PODS HERE", "MESSAGE")
		for _, p := range r.GetPolicies() {
			v.row(p.GetKind(), p.GetNamespace(), p.GetName(), v.stateText(p.GetState()), number(p.GetRevision()), number(p.GetEndpoints()), p.GetMessage())
		}
	})
}

// newPolicyGetCommand shows the policies of one name.
func newPolicyGetCommand(a *app) *cobra.Command {
	var name string
	return answer(a, &cobra.Command{
		Use:   "get [NAMESPACE/]NAME",
		Short: "Show one policy: whether it is in force, and if not why",
		Example: `  tendril policy get shop/allow-client
  tendril policy get cluster-wide-deny`,
		Args: argument(&name, "policy", false),
	}, func(ctx context.Context, agent agentv1.AgentClient) (*agentv1.ListPoliciesResponse, error) {
		all, err := listPolicies(ctx, agent)
		if err != nil {
			return nil, err
		}
		found := &agentv1.ListPoliciesResponse{}
		for _, p := range all.GetPolicies() {
			if strings.TrimPrefix(p.GetNamespace()+"/"+p.GetName(), "/") == name {
				found.Policies = append(found.Policies, p)
			}
		}
		if len(found.Policies) == 0 {
			return nil, fmt.Errorf("policy %s: the agent has none of that name: see `tendril policy list`", name)
		}
		return found, nil
	}, func(v *view, r *agentv1.ListPoliciesResponse) {
		for _, p := range r.GetPolicies() {
			v.row("policy", p.GetKind()+" "+strings.TrimPrefix(p.GetNamespace()+"/"+p.GetName(), "/"))
			v.row("state", v.stateText(p.GetState()))
			v.row("message", p.GetMessage())
			v.row("revision", number(p.GetRevision()))
			v.row("pods here", number(p.GetEndpoints()))
		}
	})
}

// stateText colours the state of a policy or a pod.
func (v *view) stateText(state string) string {
	switch state {
	case "in force", "ready":
		return v.right.Render(state)
	case "refused":
		return v.wrong.Render(state)
	}
	return v.odd.Render(state)
}
