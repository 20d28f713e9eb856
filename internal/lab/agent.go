package lab

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/backoff"
	"google.golang.org/grpc/credentials/insecure"

	agentv1 "tendril.io/tendril/api/agent/v1"
	"tendril.io/tendril/internal/store"
)

// agentConfig is the configuration file of one agent, as the agent's own Config reads it; a test compares the two.
type agentConfig struct {
	Node        string            `json:"node"`
	Cluster     string            `json:"cluster"`
	Store       []string          `json:"store"`
	Publish     []string          `json:"publish"`
	PodCIDRs    []netip.Prefix    `json:"pod_cidrs"`
	Mode        Mode              `json:"mode"`
	Uplink      string            `json:"uplink"`
	BPFRoot     string            `json:"bpf_root"`
	Cgroup      string            `json:"cgroup"`
	RunDir      string            `json:"run_dir"`
	StateDir    string            `json:"state_dir"`
	Masquerade  bool              `json:"masquerade"`
	LBMode      string            `json:"lb_mode,omitempty"`
	XDP         string            `json:"xdp,omitempty"`
	AliveLease  uint32            `json:"alive_lease_seconds,omitempty"`
	FlowRecords bool              `json:"flow_records"`
	MapSizes    map[string]uint32 `json:"map_sizes,omitempty"`
}

// Cluster is the name of every lab's cluster.
const Cluster = "default"

func (l *Lab) agentConfig(node string) agentConfig {
	return agentConfig{
		Node:        node,
		Cluster:     Cluster,
		Store:       []string{StoreAddr()},
		Publish:     []string{PublishAddr()},
		PodCIDRs:    l.nodePodCIDRs(node),
		Mode:        l.Mode,
		Uplink:      uplinkName,
		BPFRoot:     l.pins(node),
		Cgroup:      l.cgroupPath(node),
		RunDir:      l.state(node),
		StateDir:    l.state(node, "state"),
		Masquerade:  true,
		LBMode:      l.LBMode,
		XDP:         l.XDP,
		AliveLease:  uint32(l.AliveLease / time.Second),
		FlowRecords: !l.NoFlowRecords,
		MapSizes:    l.MapSizes,
	}
}

// nodePodCIDRs are the prefixes of a node's pods in the families that the lab has.
func (l *Lab) nodePodCIDRs(node string) []netip.Prefix {
	i := slices.Index(l.NodeNames(), node) + 1
	return slices.DeleteFunc(podCIDRs(byte(i)), func(p netip.Prefix) bool {
		return p.Addr().Is4() && !l.IPv4 || p.Addr().Is6() && !l.IPv6
	})
}

// AgentFile is the configuration file of a node's agent, which follows it. StartAgent writes it anew.
func (l *Lab) AgentFile(node string) string { return l.state(node, "agent.json") }

func agentProcess(node string) string { return "agent-" + node }

// StartAgent starts a node's agent and waits until it answers.
func (l *Lab) StartAgent(ctx context.Context, node string) error {
	return l.StartAgentWith(ctx, node, nil)
}

// StartAgentWith starts a node's agent with other settings than the lab's, by the keys of the agent's configuration; nil takes one away.
func (l *Lab) StartAgentWith(ctx context.Context, node string, settings map[string]any) error {
	place, err := l.Node(node)
	if err != nil {
		return err
	}
	if running, err := l.process(agentProcess(node)); err == nil {
		return fmt.Errorf("agent of %s: already runs as process %d", node, running.PID)
	}
	config, err := withSettings(l.agentConfig(node), settings)
	if err != nil {
		return fmt.Errorf("agent of %s: %w", node, err)
	}
	file := l.AgentFile(node)
	if err := saveRecord(file, config); err != nil {
		return err
	}
	if err := os.MkdirAll(filepath.Dir(l.pins(node)), 0o755); err != nil {
		return fmt.Errorf("agent of %s: %w", node, err)
	}
	process, err := l.Start(place, agentProcess(node), filepath.Join(l.BinDir, "tendril-agent"), "--config", file)
	if err != nil {
		return err
	}
	return l.waitAgent(ctx, node, process)
}

// withSettings lays settings over a configuration.
func withSettings(config agentConfig, settings map[string]any) (map[string]any, error) {
	raw, err := json.Marshal(config)
	if err != nil {
		return nil, err
	}
	all := map[string]any{}
	if err := json.Unmarshal(raw, &all); err != nil {
		return nil, err
	}
	for key, value := range settings {
		if all[key] = value; value == nil {
			delete(all, key)
		}
	}
	return all, nil
}

// waitAgent waits until the agent answers, and no longer than it lives.
func (l *Lab) waitAgent(ctx context.Context, node string, process *Process) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	err := Wait(ctx, "the agent of "+node, startPatience, func(ctx context.Context) error {
		if !process.Alive() {
			cancel(errors.New("it has ended"))
			return fmt.Errorf("agent of %s: has ended", node)
		}
		_, err := l.Status(ctx, node)
		return err
	})
	if err != nil {
		return fmt.Errorf("%w%s", err, process.quoteLog(12))
	}
	return nil
}

// KillAgent sends a signal to a node's agent and waits until it is gone. Whatever it pinned stays.
func (l *Lab) KillAgent(ctx context.Context, node string, signal syscall.Signal) error {
	process, err := l.process(agentProcess(node))
	if err != nil {
		return err
	}
	if err := process.Signal(signal); err != nil {
		return err
	}
	_, err = process.Wait(ctx)
	return err
}

// Agent returns the API of a node's agent.
func (l *Lab) Agent(node string) (agentv1.AgentClient, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if conn, found := l.agents[node]; found {
		return agentv1.NewAgentClient(conn), nil
	}
	if _, err := l.Node(node); err != nil {
		return nil, err
	}
	socket := "unix://" + l.state(node, "agent.sock")
	// An agent that starts is asked again within milliseconds; gRPC would wait a second after the first refusal.
	pace := grpc.ConnectParams{Backoff: backoff.Config{BaseDelay: 5 * time.Millisecond, Multiplier: 1.6, Jitter: 0.2, MaxDelay: 200 * time.Millisecond}}
	conn, err := grpc.NewClient(socket, grpc.WithTransportCredentials(insecure.NewCredentials()), grpc.WithConnectParams(pace))
	if err != nil {
		return nil, fmt.Errorf("agent of %s: %w", node, err)
	}
	l.agents[node] = conn
	return agentv1.NewAgentClient(conn), nil
}

// Status asks a node's agent how it is.
func (l *Lab) Status(ctx context.Context, node string) (*agentv1.StatusResponse, error) {
	client, err := l.Agent(node)
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(ctx, 2*time.Second)
	defer cancel()
	status, err := client.Status(ctx, &agentv1.StatusRequest{}, grpc.WaitForReady(true))
	if err != nil {
		return nil, fmt.Errorf("agent of %s: %w", node, err)
	}
	return status, nil
}

// storeAnswer is how long one question to the store may take before it is asked again over another connection.
const storeAnswer = 3 * time.Second

// WaitConverged waits until every agent is connected to the store, knows all nodes, and enforces the policies that the
// store holds and no others. How far the store is, is asked of the store: an agent that has not heard of a policy, or of
// its removal, does not miss it.
func (l *Lab) WaitConverged(ctx context.Context, within time.Duration) error {
	var wanted uint64
	err := Wait(ctx, "the store to tell its policies", within, func(ctx context.Context) (err error) {
		ctx, cancel := context.WithTimeout(ctx, storeAnswer)
		defer cancel()
		wanted, err = l.policyRevision(ctx)
		return err
	})
	if err != nil {
		return err
	}
	for _, node := range l.NodeNames() {
		err := Wait(ctx, node+" to converge", within, func(ctx context.Context) error {
			status, err := l.Status(ctx, node)
			if err != nil {
				return err
			}
			return l.converged(status, wanted)
		})
		if err != nil {
			return fmt.Errorf("%w%s", err, quote(l.AgentLog(node), 8))
		}
	}
	return nil
}

// policyRevision is the number of the last policy that was written to the store or removed from it; 0: there was none.
func (l *Lab) policyRevision(ctx context.Context) (revision uint64, err error) {
	err = l.withWriter(func(w *store.Writer) error {
		revision, err = w.PolicyRevision(ctx)
		return err
	})
	return revision, err
}

func (l *Lab) converged(status *agentv1.StatusResponse, wanted uint64) error {
	wanted = max(wanted, status.PolicyRevisionWanted)
	switch {
	case !status.StoreConnected:
		return errors.New("not connected to the store")
	case int(status.Nodes) != l.Nodes:
		return fmt.Errorf("knows %d of %d nodes", status.Nodes, l.Nodes)
	case status.PolicyRevision < wanted:
		return fmt.Errorf("enforces policy revision %d, the store has %d", status.PolicyRevision, wanted)
	}
	return nil
}

// AgentLog returns what a node's agent has printed.
func (l *Lab) AgentLog(node string) string {
	return (&Process{Log: l.state(logFolder, agentProcess(node)+".log")}).Output()
}

// CLI runs the real command line on this lab, outside its namespaces, as a person would.
func (l *Lab) CLI(ctx context.Context, args ...string) (string, error) {
	cmd := exec.CommandContext(ctx, filepath.Join(l.BinDir, "tendril"), append([]string{"--lab", l.Name}, args...)...)
	var stdout, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	if err := cmd.Run(); err != nil {
		return stdout.String(), fmt.Errorf("tendril %s: %w%s", strings.Join(args, " "), err, quote(stderr.String(), 8))
	}
	return stdout.String(), nil
}
