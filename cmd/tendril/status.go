package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/spf13/cobra"

	agentv1 "tendril.io/tendril/api/agent/v1"
	"tendril.io/tendril/internal/flow"
)

// statusCommand is what `tendril status` is asked.
type statusCommand struct {
	*app
	cluster    bool
	kubeconfig string
	namespace  string
	wait       bool
	timeout    time.Duration
}

// newStatusCommand shows one agent's state on one screen, or a whole cluster's.
func newStatusCommand(a *app) *cobra.Command {
	s := &statusCommand{app: a}
	cmd := &cobra.Command{
		Use:     "status",
		GroupID: groupSee,
		Short:   "Show whether the datapath enforces what the store says, on a node or in a whole Kubernetes cluster",
		Long: `Show whether the datapath enforces what the store says.

Of one node, if --socket or --node names its agent, or an agent runs on this machine. Of the whole Kubernetes cluster, if --cluster or
--kubeconfig is given, or no agent runs here and a kubeconfig leads to a cluster: its objects are read, and in each agent's pod the agent is
asked, as ` + "`kubectl exec`" + ` does. The first line says whose status it is.

With --wait it ends with status 0 once all is in force, and with 1 and what is missing at the timeout. Without, what is missing is shown, and the
status is 0.`,
		Example: `  tendril status
  tendril status --cluster --wait --timeout 5m    until every node of the cluster enforces what it should
  tendril --node node1 status --wait              until everything in the store is in force there`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error { return s.run(cmd) },
	}
	flags := cmd.Flags()
	flags.BoolVar(&s.cluster, "cluster", false, "the whole Kubernetes cluster, also where an agent runs")
	flags.StringVar(&s.kubeconfig, "kubeconfig", "", "file that leads to the cluster's API server (default: $KUBECONFIG, else ~/.kube/config)")
	flags.StringVar(&s.namespace, "namespace", "kube-system", "namespace of agents and operator")
	flags.BoolVar(&s.wait, "wait", false, "wait until the store is connected and everything is in force")
	flags.DurationVar(&s.timeout, "timeout", time.Minute, "how long to wait")
	return cmd
}

func (s *statusCommand) run(cmd *cobra.Command) error {
	ofCluster, err := s.ofCluster()
	if err != nil {
		return err
	}
	told := newProgress(cmd.ErrOrStderr())
	v := newView(cmd.OutOrStdout())
	if ofCluster {
		c, err := dialCluster(s.kubeconfig)
		if err != nil {
			return err
		}
		look := func(ctx context.Context) (*clusterStatus, error, error) {
			status, err := c.status(ctx, s.namespace)
			if err != nil {
				return nil, nil, err
			}
			return status, status.lacks(), nil
		}
		return show(cmd.Context(), s, told, time.Second, look, func(status *clusterStatus) error { return showCluster(v, status, time.Now(), s.json()) })
	}
	look := func(ctx context.Context) (*agentv1.StatusResponse, error, error) {
		status, err := askStatus(ctx, s.app)
		if err != nil {
			return nil, nil, err
		}
		return status, notReady(status), nil
	}
	return show(cmd.Context(), s, told, 100*time.Millisecond, look, func(status *agentv1.StatusResponse) error {
		if s.json() {
			return v.json(status)
		}
		return showStatus(v, status, time.Now())
	})
}

// ofCluster says whether the cluster is meant. What the flags say goes first; then an agent of this machine.
func (s *statusCommand) ofCluster() (bool, error) {
	agent := s.socket != "" || s.node != ""
	if s.cluster || s.kubeconfig != "" {
		if agent {
			return false, errors.New("flags --cluster and --kubeconfig mean a cluster, --socket and --node one agent: give one kind of them")
		}
		return true, nil
	}
	if agent {
		return false, nil
	}
	_, err := s.socketPath()
	return err != nil && hasKubeconfig(), nil
}

// show prints what look finds: once, or when nothing is lacking any more. Look returns a status and what it lacks, or that it failed; to a wait
// that is the same, as agents and whole clusters may still be starting.
func show[S any](ctx context.Context, s *statusCommand, told *progress, every time.Duration,
	look func(context.Context) (status *S, lacks, failed error), print func(*S) error) error {
	if !s.wait {
		status, _, err := look(ctx)
		if err != nil {
			return err
		}
		return print(status)
	}
	end := time.Now().Add(s.timeout)
	waited, cancel := context.WithDeadline(ctx, end)
	defer cancel()
	var last *S
	var lacks error // when it was last asked in time
	for {
		status, missing, err := look(waited)
		if err == nil && missing == nil {
			told.end()
			return print(status)
		}
		if lacks == nil || time.Now().Before(end) { // an answer that was cut off at the end says nothing
			last, lacks = status, cmp.Or(err, missing)
		}
		told.say(lacks.Error())
		select {
		case <-time.After(every):
			continue
		case <-waited.Done():
		}
		told.end()
		if ctx.Err() != nil {
			return fmt.Errorf("not ready when interrupted: %w", lacks)
		}
		failed := fmt.Errorf("not ready after %s: %w", s.timeout, lacks)
		if last == nil {
			return failed
		}
		return errors.Join(print(last), failed)
	}
}

// askStatus asks the agent once.
func askStatus(ctx context.Context, a *app) (*agentv1.StatusResponse, error) {
	return askAgent(ctx, a, func(ctx context.Context, agent agentv1.AgentClient) (*agentv1.StatusResponse, error) {
		return agent.Status(ctx, &agentv1.StatusRequest{})
	})
}

// notReady says what an agent still lacks, or nil.
func notReady(s *agentv1.StatusResponse) error {
	switch {
	case !s.GetStoreConnected():
		return errors.New("the store is not connected: does it run, and is its address right?")
	case s.GetPolicyRevision() < s.GetPolicyRevisionWanted():
		return fmt.Errorf("policy revision %d is in force, the store has %d", s.GetPolicyRevision(), s.GetPolicyRevisionWanted())
	}
	return nil
}

// showStatus prints one screen.
func showStatus(v *view, s *agentv1.StatusResponse, now time.Time) error {
	state := v.right.Render("ready")
	if err := notReady(s); err != nil {
		state = v.wrong.Render("not ready") + ": " + err.Error()
	}
	v.row(v.strong.Render(s.GetNode()), state)
	started := time.Unix(0, s.GetStartedUnixNano())
	v.row("agent", fmt.Sprintf("version %s, up %s", s.GetVersion(), ago(now.Sub(started))))
	if c := s.GetConfiguration(); c.GetFile() != "" {
		v.row("configuration", configurationText(c, now))
	}
	v.row("store", storeText(s))
	if s.ApiServerSilentMs != nil {
		v.row("API server", "the operator heard from it "+ago(time.Duration(s.GetApiServerSilentMs())*time.Millisecond)+" ago")
	}
	if until := s.GetCertificateUntilUnix(); until != 0 {
		v.row("certificate", certificateText(time.Unix(until, 0), now))
	}
	v.row("policy", fmt.Sprintf("revision %d of %d in force, verdict epoch %d", s.GetPolicyRevision(), s.GetPolicyRevisionWanted(), s.GetVerdictEpoch()))
	v.row("datapath", fmt.Sprintf("version %d, %s routing, MTU %d", s.GetDatapathVersion(), s.GetMode(), s.GetMtu()))
	v.row("cluster", fmt.Sprintf("%d nodes, %d pods here", s.GetNodes(), s.GetEndpoints()))
	v.row("addresses", strings.Join(s.GetAddresses(), " "))
	v.row("pod CIDRs", strings.Join(s.GetPodCidrs(), " "))
	v.row("services", servicesText(s))
	v.row("features", featuresText(v, s.GetFeatures()))
	if err := v.flush(); err != nil {
		return err
	}
	if len(s.GetMaps()) > 0 {
		v.line("")
		v.header("MAP", "ENTRIES", "CAPACITY", "FULL", "MEMORY")
		for _, m := range s.GetMaps() {
			v.row(m.GetName(), number(m.GetEntries()), number(m.GetCapacity()), v.fullText(m), flow.BytesText(m.GetBytes()))
		}
		if err := v.flush(); err != nil {
			return err
		}
	}
	for _, p := range s.GetProblems() {
		v.line("\n%s %s: %s", v.wrong.Render("problem:"), p.GetObject(), p.GetMessage())
		if p.GetRemedy() != "" {
			v.line("  %s", p.GetRemedy())
		}
	}
	return nil
}

// storeText says how the store is.
func storeText(s *agentv1.StatusResponse) string {
	age := ago(time.Duration(s.GetStoreAgeMs()) * time.Millisecond)
	if !s.GetStoreConnected() {
		return "not connected, last answer " + age + " ago; what was in force stays in force"
	}
	return fmt.Sprintf("connected, answered %s ago, revision %d, epoch %s", age, s.GetStoreRevision(), s.GetStoreEpoch())
}

// configurationText says which file is in force, since when, and what of it is not.
func configurationText(c *agentv1.Configuration, now time.Time) string {
	text := fmt.Sprintf("%s, SHA-256 %.12s, in force for %s", c.GetFile(), c.GetDigest(), ago(now.Sub(time.Unix(0, c.GetSinceUnixNano()))))
	var keys []string
	for _, setting := range c.GetWaiting() {
		keys = append(keys, setting.GetKey())
	}
	if len(keys) > 0 {
		text += "; waiting for a restart: " + strings.Join(keys, ", ")
	}
	if c.GetRefused() {
		text += "; the file is another now and is not followed, see below"
	}
	return text
}

// certificateText says how long the node may still speak to the store.
func certificateText(until, now time.Time) string {
	if !now.Before(until) {
		return "expired at " + until.UTC().Format(time.RFC3339)
	}
	return fmt.Sprintf("until %s, for %s", until.UTC().Format(time.RFC3339), ago(until.Sub(now)))
}

// servicesText says which way clients outside are answered, and whether XDP or a kube-proxy takes part.
func servicesText(s *agentv1.StatusResponse) string {
	xdp := s.GetXdp()
	text := fmt.Sprintf("lb_mode %s, XDP %s", s.GetLbMode(), xdp.GetMode())
	if xdp.GetReason() != "" {
		text += fmt.Sprintf(" (%s is wanted: %s)", xdp.GetWanted(), xdp.GetReason())
	} else if xdp.GetWanted() != xdp.GetMode() {
		text += fmt.Sprintf(" (%s)", xdp.GetWanted())
	}
	if mode := s.GetKubeProxy(); mode != "" {
		text += fmt.Sprintf("; kube-proxy (%s) runs here as well, and is not needed", mode)
	}
	return text
}

// featuresText lists the kernel's features, those that are missing with the reason.
func featuresText(v *view, features []*agentv1.Feature) string {
	var has, lacks []string
	for _, f := range features {
		if f.GetAvailable() {
			has = append(has, f.GetName())
			continue
		}
		text := "no " + f.GetName()
		if f.GetDetail() != "" {
			text += " (" + f.GetDetail() + ")"
		}
		lacks = append(lacks, v.odd.Render(text))
	}
	return strings.Join(append(has, lacks...), ", ")
}

// fullText says how full a map is, with a colour from 80 % on.
func (v *view) fullText(m *agentv1.MapUse) string {
	if m.GetCapacity() == 0 {
		return ""
	}
	percent := 100 * m.GetEntries() / m.GetCapacity()
	text := fmt.Sprintf("%d%%", percent)
	switch {
	case percent >= 95:
		return v.wrong.Render(text)
	case percent >= 80:
		return v.odd.Render(text)
	}
	return text
}

// newReloadCommand swaps the datapath.
func newReloadCommand(a *app) *cobra.Command {
	return answer(a, &cobra.Command{
		Use:     "reload",
		GroupID: groupApply,
		Short:   "Build the datapath anew beside the old one and swap them, under traffic",
		Example: `  tendril --node node1 reload`,
	}, func(ctx context.Context, agent agentv1.AgentClient) (*agentv1.ReloadResponse, error) {
		return agent.Reload(ctx, &agentv1.ReloadRequest{})
	}, func(v *view, r *agentv1.ReloadResponse) {
		v.row(fmt.Sprintf("datapath version %d is in force after %s", r.GetDatapathVersion(), ago(time.Duration(r.GetTookNs()))))
	})
}
