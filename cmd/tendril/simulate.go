package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	agentv1 "tendril.io/tendril/api/agent/v1"
	storev1 "tendril.io/tendril/api/store/v1"
	"tendril.io/tendril/internal/kube"
	"tendril.io/tendril/internal/lab"
	"tendril.io/tendril/internal/policy"
)

// simulateTimeout bounds a simulation on every node; the user may leave earlier.
const simulateTimeout = 5 * time.Minute

// simulateFlags are what the flags of simulate say.
type simulateFlags struct {
	*app
	files    []string
	deletes  []string
	since    time.Duration
	allPairs bool
	rules    bool
	limit    int
	exitCode bool
}

// newPolicySimulateCommand is `tendril policy simulate`.
func newPolicySimulateCommand(a *app) *cobra.Command {
	f := &simulateFlags{app: a}
	cmd := &cobra.Command{
		Use:   "simulate [-f FILE|DIR|-] [--delete KIND/NAMESPACE/NAME]",
		Short: "Say what a change of policies would change, without changing anything",
		Long: `Say what a change of policies would change, without changing anything.

The policies of the files are put in place of those of the same name, or beside the others, in a second engine of each
agent, and those under --delete are taken out of it. Then the flows that the agents have recorded are judged both ways, and
those that would fare differently are listed: who, to which port, what holds now and what would hold then, the side that decides
(egress of the source or ingress of the destination) and its rule. Without --node all nodes of the lab are asked, and what
they say of one flow is put together.

With --all-pairs it is not recorded flows that are judged but everything that could be sent: between all pods of the cluster,
their nodes and the outside, at every port. Pods that policies cannot tell apart are one row. One agent answers, since every
agent knows all pods and policies; it judges both sides of each pair.

A staged policy (annotation tendril.io/stage) is simulated as if it were in force. A file with a mistake is not simulated at all.

The exit status is 0 whether or not something would change; with --exit-code it is 1 if something would. It is 1 if an agent
did not answer, or if there was a mistake.`,
		Example: `  tendril policy simulate -f new.yaml                    which recorded flows would change
  tendril policy simulate -f new.yaml --since 1h         only those of the last hour
  tendril policy simulate --delete NetworkPolicy/shop/web
  tendril policy simulate -f new.yaml --all-pairs        which pods could reach which, that cannot now, or no longer
  tendril policy simulate -f policies/ --exit-code       for a pipeline: fails if a flow would change`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error { return f.run(cmd) },
	}
	flags := cmd.Flags()
	flags.StringArrayVarP(&f.files, "filename", "f", nil, "file, folder of .yaml, .yml and .json files, or - for standard input; may be repeated")
	flags.StringArrayVar(&f.deletes, "delete", nil, "a policy that goes, KIND/NAMESPACE/NAME or KIND/NAME; may be repeated")
	flags.DurationVar(&f.since, "since", 0, "only flows recorded in the last, as in 30m or 1h (default: all kept)")
	flags.BoolVar(&f.allPairs, "all-pairs", false, "judge all pairs of the cluster's pods instead of recorded flows")
	flags.BoolVar(&f.rules, "rules", false, "list also what would fare alike, but by other rules")
	flags.IntVar(&f.limit, "limit", 50, "print at most so many rows and count the rest; 0: all (-o json prints all)")
	flags.BoolVar(&f.exitCode, "exit-code", false, "exit with status 1 if something would change")
	return cmd
}

// run checks everything that can be checked here, then asks.
func (f *simulateFlags) run(cmd *cobra.Command) error {
	changes, err := f.changes(cmd.InOrStdin(), cmd.ErrOrStderr())
	if err != nil {
		return fmt.Errorf("nothing was simulated:\n%w", err)
	}
	request := &agentv1.SimulateRequest{Changes: changes, AllPairs: f.allPairs, Rules: f.rules}
	if f.since > 0 {
		request.SinceUnixNano = time.Now().Add(-f.since).UnixNano()
	}
	sockets, err := f.agentSockets()
	if err != nil {
		return err
	}
	if node := slices.Min(slices.Collect(maps.Keys(sockets))); f.allPairs {
		sockets = map[string]string{node: sockets[node]}
	}
	request.Unchanged = len(sockets) > 1 // what one node leaves as it is another may not
	begun := time.Now()
	answers, failed := askAll(cmd.Context(), sockets, simulateTimeout, func(ctx context.Context, agent agentv1.AgentClient) (*agentv1.SimulateResponse, error) {
		return agent.Simulate(ctx, request)
	}, func(nodes []string, _ time.Duration) {
		fmt.Fprintf(cmd.ErrOrStderr(), "tendril: still simulating after %s, waiting for %s\n", ago(time.Since(begun)), strings.Join(nodes, ", "))
	})
	if len(answers) == 0 {
		return failed
	}
	merged := mergeSimulations(answers, f.rules)
	if err := f.show(newView(cmd.OutOrStdout()), merged, answers[0].node); err != nil {
		return err
	}
	if failed != nil {
		return failed
	}
	if f.exitCode && merged.GetChanged() > 0 {
		return exitError{1}
	}
	return nil
}

// changes reads the files and the flags; the error holds every mistake in them.
func (f *simulateFlags) changes(stdin io.Reader, notes io.Writer) ([]*agentv1.PolicyChange, error) {
	objects, err := readManifests(f.files, stdin)
	records, wrong := kube.Records(objects, lab.Cluster)
	errs := []error{err, wrong}
	var changes []*agentv1.PolicyChange
	others := 0
	for _, record := range records {
		value, ok := record.Value.(*storev1.Policy)
		if !ok {
			others++
			continue
		}
		o := record.Object
		changes = append(changes, &agentv1.PolicyChange{Kind: o.Kind, Namespace: o.Namespace, Name: o.Name, Object: value.GetObject(), Source: value.GetSource()})
	}
	for _, text := range f.deletes {
		parts := strings.Split(text, "/")
		if len(parts) < 2 || len(parts) > 3 || slices.Contains(parts, "") {
			errs = append(errs, fmt.Errorf("flag --delete %q: must be KIND/NAMESPACE/NAME, or KIND/NAME of a cluster-wide kind", text))
			continue
		}
		change := &agentv1.PolicyChange{Kind: parts[0], Name: parts[len(parts)-1]}
		if len(parts) == 3 {
			change.Namespace = parts[1]
		}
		changes = append(changes, change)
	}
	if err := errors.Join(errs...); err != nil {
		return nil, err
	}
	if len(changes) == 0 {
		return nil, errors.New("no policy to put in place or to take away: give a file with -f, or --delete")
	}
	if others > 0 {
		fmt.Fprintf(notes, "tendril: %d records of objects that are no policies are left out\n", others)
	}
	return changes, nil
}

// mergeSimulations puts what several nodes say of one flow together: each judges the sides that are its own pods.
func mergeSimulations(answers []nodeAnswer[*agentv1.SimulateResponse], rules bool) *agentv1.SimulateResponse {
	if len(answers) == 1 {
		return answers[0].response
	}
	type key struct {
		source, destination string
		protocol, port      uint32
	}
	merged := &agentv1.SimulateResponse{}
	flows := map[key]*agentv1.SimulatedFlow{}
	for i, answer := range answers {
		r := answer.response
		merged.Records, merged.Unjudged, merged.Lost = merged.Records+r.GetRecords(), merged.Unjudged+r.GetUnjudged(), merged.Lost+r.GetLost()
		merged.Departed += r.GetDeparted()
		if at := r.GetOldestUnixNano(); at != 0 && (merged.OldestUnixNano == 0 || at < merged.OldestUnixNano) {
			merged.OldestUnixNano = at
		}
		for n, p := range r.GetPolicies() {
			if i == 0 {
				merged.Policies = append(merged.Policies, p)
			} else {
				merged.Policies[n].Endpoints += p.GetEndpoints()
			}
		}
		for _, f := range r.GetFlows() {
			k := key{f.GetSource().GetIp(), f.GetDestination().GetIp(), f.GetProtocol(), f.GetDestination().GetPort()}
			if known := flows[k]; known != nil {
				joinFlow(known, f)
			} else {
				flows[k] = f
			}
		}
	}
	merged.Replayed = uint64(len(flows))
	for _, f := range flows {
		now, then := judgements(f.GetNow()), judgements(f.GetThen())
		f.Now.Verdict, f.Now.Decides = decide(now)
		f.Then.Verdict, f.Then.Decides = decide(then)
		if f.Changes = policy.Differ(now, then, rules); f.Changes {
			merged.Flows = append(merged.Flows, f)
		}
	}
	merged.Changed = uint64(len(merged.Flows))
	slices.SortFunc(merged.Flows, func(a, b *agentv1.SimulatedFlow) int {
		return cmp.Or(cmp.Compare(b.GetLastUnixNano(), a.GetLastUnixNano()), cmp.Compare(a.GetSource().GetIp(), b.GetSource().GetIp()),
			cmp.Compare(a.GetDestination().GetIp(), b.GetDestination().GetIp()), cmp.Compare(a.GetDestination().GetPort(), b.GetDestination().GetPort()))
	})
	return merged
}

// joinFlow adds another node's account of a flow. Both counted the same packets, or one of them only those that
// arrived.
func joinFlow(known, f *agentv1.SimulatedFlow) {
	for _, v := range []struct{ into, from *agentv1.SimulatedVerdict }{{known.GetNow(), f.GetNow()}, {known.GetThen(), f.GetThen()}} {
		if isJudged(v.from.GetEgress()) {
			v.into.Egress = v.from.GetEgress()
		}
		if isJudged(v.from.GetIngress()) {
			v.into.Ingress = v.from.GetIngress()
		}
	}
	known.Count = max(known.GetCount(), f.GetCount())
	known.FirstUnixNano, known.LastUnixNano = min(known.GetFirstUnixNano(), f.GetFirstUnixNano()), max(known.GetLastUnixNano(), f.GetLastUnixNano())
	known.Nodes = append(known.Nodes, f.GetNodes()...)
}

func isJudged(j *agentv1.Judgement) bool { return j.GetAction() != "" && j.GetAction() != "none" }

// judgements is a verdict's sides as the policy engine speaks of them.
func judgements(v *agentv1.SimulatedVerdict) (sides [2]policy.Judgement) {
	for i, j := range []*agentv1.Judgement{v.GetEgress(), v.GetIngress()} {
		action := map[string]policy.Action{"deny": policy.Deny, "redirect": policy.Redirect, "allow": policy.Allow}[j.GetAction()]
		direction := []policy.Direction{policy.Egress, policy.Ingress}[i]
		sides[i] = policy.Judgement{
			Direction: direction, Judged: isJudged(j), Action: action, Rule: policy.RuleInfo{Name: j.GetRuleName(), Place: j.GetPlace()},
		}
	}
	return sides
}

// decide is the verdict and the side that decides.
func decide(sides [2]policy.Judgement) (verdict, decides string) {
	action, decides := policy.Decide(sides)
	return map[policy.Action]string{policy.Deny: "denied", policy.Redirect: "redirected", policy.Allow: "allowed"}[action], decides
}
