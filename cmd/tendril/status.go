package main

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/spf13/cobra"

	agentv1 "tendril.io/tendril/api/agent/v1"
	"tendril.io/tendril/internal/flow"
)

// newStatusCommand shows one agent's state on one screen.
func newStatusCommand(a *app) *cobra.Command {
	var wait bool
	var timeout time.Duration
	cmd := &cobra.Command{
		Use:     "status",
		GroupID: groupSee,
		Short:   "Show what the agent does and whether the datapath enforces what the store says",
		Example: `  tendril status
  tendril --node node1 status --wait      until everything in the store is in force`,
		Args: cobra.NoArgs,
	}
	cmd.Flags().BoolVar(&wait, "wait", false, "wait until the store is connected and its policies are in force")
	cmd.Flags().DurationVar(&timeout, "timeout", time.Minute, "how long to wait")
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		// Waiting includes an agent that has not made its socket yet.
		look := askStatus
		if wait {
			look = func(ctx context.Context, a *app) (*agentv1.StatusResponse, error) { return waitReady(ctx, a, timeout) }
		}
		status, err := look(cmd.Context(), a)
		if err != nil {
			return err
		}
		v := newView(cmd.OutOrStdout())
		if a.json() {
			return v.json(status)
		}
		return showStatus(v, status, time.Now())
	}
	return cmd
}

// askStatus asks the agent once.
func askStatus(ctx context.Context, a *app) (*agentv1.StatusResponse, error) {
	return askAgent(ctx, a, func(ctx context.Context, agent agentv1.AgentClient) (*agentv1.StatusResponse, error) {
		return agent.Status(ctx, &agentv1.StatusRequest{})
	})
}

// waitReady asks until the agent is ready, also while it is still starting.
func waitReady(ctx context.Context, a *app, timeout time.Duration) (*agentv1.StatusResponse, error) {
	end := time.Now().Add(timeout)
	ctx, cancel := context.WithDeadline(ctx, end)
	defer cancel()
	ticker := time.NewTicker(100 * time.Millisecond)
	defer ticker.Stop()
	var lacks error // what the agent lacked when it was last asked in time
	for {
		status, err := askStatus(ctx, a)
		if err == nil {
			err = notReady(status)
		}
		if err == nil {
			return status, nil
		}
		if lacks == nil || time.Now().Before(end) { // an answer that was cut off at the end says nothing of the agent
			lacks = err
		}
		select {
		case <-ticker.C:
		case <-ctx.Done():
			return nil, fmt.Errorf("not ready after %s: %w", timeout, lacks)
		}
	}
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
	v.row("store", storeText(s))
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

// certificateText says how long the node may still speak to the store.
func certificateText(until, now time.Time) string {
	if !now.Before(until) {
		return "expired at " + until.UTC().Format(time.RFC3339)
	}
	return fmt.Sprintf("until %s, for %s", until.UTC().Format(time.RFC3339), ago(until.Sub(now)))
}

// servicesText says which way clients outside are answered, and whether XDP takes part.
func servicesText(s *agentv1.StatusResponse) string {
	xdp := s.GetXdp()
	text := fmt.Sprintf("lb_mode %s, XDP %s", s.GetLbMode(), xdp.GetMode())
	if xdp.GetReason() != "" {
		text += fmt.Sprintf(" (%s is wanted: %s)", xdp.GetWanted(), xdp.GetReason())
	} else if xdp.GetWanted() != xdp.GetMode() {
		text += fmt.Sprintf(" (%s)", xdp.GetWanted())
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
