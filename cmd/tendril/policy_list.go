package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	agentv1 "tendril.io/tendril/api/agent/v1"
)

// listPolicies is the question of both policy lists.
func listPolicies(ctx context.Context, agent agentv1.AgentClient) (*agentv1.ListPoliciesResponse, error) {
	return agent.ListPolicies(ctx, &agentv1.ListPoliciesRequest{})
}

// policyLister is a list of policies, of the whole cluster or of the agent that the flags name.
type policyLister struct {
	*app
	name string // of the one policy that is meant; empty: all
}

// newPolicyListCommand lists all policies: a refused one is not in force at all, never in part.
func newPolicyListCommand(a *app) *cobra.Command {
	l := &policyLister{app: a}
	return &cobra.Command{
		Use:   "list",
		Short: "List the policies in force, and those that are staged or were refused",
		Long: `List the policies in force, and those that are staged or were refused.

Without --node all nodes of the lab are asked: NODES says how many of them enforce the policy as it was last given.`,
		Example: `  tendril policy list
  tendril --node node1 policy list`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error { return l.run(cmd, showPolicies) },
	}
}

// newPolicyGetCommand shows the policies of one name.
func newPolicyGetCommand(a *app) *cobra.Command {
	l := &policyLister{app: a}
	return &cobra.Command{
		Use:   "get [KIND/][NAMESPACE/]NAME",
		Short: "Show one policy: what it does, whether it is in force, and if not why",
		Example: `  tendril policy get shop/allow-client
  tendril policy get NetworkPolicy/shop/allow-client
  tendril --node node1 policy get cluster-wide-deny`,
		Args: argument(&l.name, "policy", false),
		RunE: func(cmd *cobra.Command, _ []string) error { return l.run(cmd, showPolicy) },
	}
}

// run asks one agent or all, and prints what they say as one list. An agent that does not answer is told after that.
func (l *policyLister) run(cmd *cobra.Command, show func(v *view, r *agentv1.ListPoliciesResponse, asked int)) error {
	sockets, err := l.agentSockets()
	if err != nil {
		return err
	}
	answers, failed := askAll(cmd.Context(), sockets, askTimeout, listPolicies, nil)
	if len(answers) == 0 {
		return failed
	}
	merged := mergePolicies(answers)
	if l.name != "" {
		merged.Policies = slices.DeleteFunc(merged.Policies, func(p *agentv1.Policy) bool { return !called(p, l.name) })
		if len(merged.Policies) == 0 {
			none := fmt.Errorf("policy %s: no policy has that name: see `tendril policy list`", l.name)
			return errors.Join(none, failed)
		}
	}
	v := newView(cmd.OutOrStdout())
	if l.json() {
		return errors.Join(v.json(merged), failed)
	}
	show(v, merged, len(answers))
	return errors.Join(v.flush(), failed)
}

// policyName is how commands call a policy, without its kind.
func policyName(p *agentv1.Policy) string {
	return strings.TrimPrefix(p.GetNamespace()+"/"+p.GetName(), "/")
}

// called tells whether a name is meant for the policy: with its kind, as flow records and explain write it, or without.
func called(p *agentv1.Policy, name string) bool {
	return name == policyName(p) || name == p.GetKind()+"/"+policyName(p)
}

// mergePolicies makes one list of what each node says of each policy. Program numbers mean something on their own node
// only.
func mergePolicies(answers []nodeAnswer[*agentv1.ListPoliciesResponse]) *agentv1.ListPoliciesResponse {
	if len(answers) == 1 {
		return answers[0].response
	}
	merged := &agentv1.ListPoliciesResponse{}
	known := map[string]*agentv1.Policy{}
	for _, answer := range answers {
		for _, p := range answer.response.GetPolicies() {
			key := p.GetKind() + " " + policyName(p)
			into := known[key]
			state := p.GetState()
			if message := p.GetMessage(); message != "" {
				p.Message = answer.node + ": " + message
			}
			if into == nil {
				p.Nodes, p.Programs = map[string]uint32{state: 1}, nil
				known[key] = p
				merged.Policies = append(merged.Policies, p)
				continue
			}
			into.Nodes[state]++
			into.Revision = max(into.GetRevision(), p.GetRevision())
			into.Endpoints += p.GetEndpoints()
			into.Rules, into.Source = max(into.GetRules(), p.GetRules()), cmp.Or(into.GetSource(), p.GetSource())
			if len(into.GetSelectors()) == 0 {
				into.Selectors = p.GetSelectors()
			}
			into.Pods = append(into.GetPods(), p.GetPods()...)
			into.Message = strings.Trim(into.GetMessage()+"; "+p.GetMessage(), "; ")
		}
	}
	for _, p := range merged.Policies {
		slices.Sort(p.Pods)
		if len(p.GetNodes()) > 1 {
			p.State = strings.Join(slices.Sorted(maps.Keys(p.GetNodes())), ", ")
		}
	}
	slices.SortStableFunc(merged.Policies, func(a, b *agentv1.Policy) int {
		return strings.Compare(a.GetKind()+" "+policyName(a), b.GetKind()+" "+policyName(b))
	})
	return merged
}

// showPolicies prints a line for each policy.
func showPolicies(v *view, r *agentv1.ListPoliciesResponse, asked int) {
	if asked == 1 {
		v.header("KIND", "NAMESPACE", "NAME", "STATE", "REVISION", "RULES", "PODS HERE", "MESSAGE")
	} else {
		v.header("KIND", "NAMESPACE", "NAME", "STATE", "NODES", "REVISION", "RULES", "PODS", "MESSAGE")
	}
	for _, p := range r.GetPolicies() {
		row := []string{p.GetKind(), p.GetNamespace(), p.GetName(), v.stateText(p.GetState())}
		if asked > 1 {
			row = append(row, enforcing(p, asked))
		}
		v.row(append(row, number(p.GetRevision()), number(p.GetRules()), number(p.GetEndpoints()), p.GetMessage())...)
	}
}

// enforcing says how many nodes do as the policy says.
func enforcing(p *agentv1.Policy, asked int) string {
	return fmt.Sprintf("%d/%d", p.GetNodes()["in force"]+p.GetNodes()["staged"], asked)
}

// showPolicy prints all that is known of a policy.
func showPolicy(v *view, r *agentv1.ListPoliciesResponse, asked int) {
	for _, p := range r.GetPolicies() {
		v.row("policy", p.GetKind()+" "+policyName(p))
		v.row("state", v.stateText(p.GetState()))
		if asked > 1 {
			v.row("nodes", enforcing(p, asked))
		}
		v.row("message", p.GetMessage())
		v.row("revision", number(p.GetRevision()))
		v.row("source", p.GetSource())
		v.row("rules", number(p.GetRules()))
		if asked == 1 {
			var programs []string
			for _, program := range p.GetPrograms() {
				programs = append(programs, number(program))
			}
			v.row("programs", strings.Join(programs, " "))
			v.row("pods here", number(p.GetEndpoints()))
		} else {
			v.row("pods", number(p.GetEndpoints()))
		}
		for _, pod := range p.GetPods() {
			v.row("  selects", pod)
		}
		for _, selector := range p.GetSelectors() {
			v.row("  names", selector)
		}
	}
}

// stateText colours the state of a policy or a pod.
func (v *view) stateText(state string) string {
	switch state {
	case "in force", "ready":
		return v.right.Render(state)
	case "refused", "rolled back":
		return v.wrong.Render(state)
	}
	return v.odd.Render(state)
}
