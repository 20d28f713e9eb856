package lab

import (
	"context"
	"fmt"
	"net/netip"
	"strings"
	"syscall"
	"testing"
	"time"

	agentv1 "tendril.io/tendril/api/agent/v1"
	"tendril.io/tendril/internal/lab"
)

// forNodes is a policy for every node; spec is what it says.
func forNodes(spec string) string {
	return "apiVersion: cilium.io/v2\nkind: CiliumClusterwideNetworkPolicy\nmetadata: {name: nodes}\nspec:\n  nodeSelector: {}\n" + spec
}

const (
	letWebIn  = "  ingress:\n  - fromEntities: [world]\n    toPorts: [{ports: [{port: \"80\", protocol: TCP}]}]\n  - fromEntities: [cluster]\n"
	letNoneIn = "  ingress: [{}]\n  egress: [{}]\n"
)

func TestHostPoliciesWithNativeRouting(t *testing.T) { hostPolicies(t, lab.ModeNative) }

func TestHostPoliciesWithVXLAN(t *testing.T) { hostPolicies(t, lab.ModeVXLAN) }

// hostState is what a node says of the policy for nodes.
func (c *cluster) hostState(ctx context.Context, node string) (string, error) {
	agent, err := c.Agent(node)
	if err != nil {
		return "", err
	}
	reply, err := agent.ListPolicies(ctx, &agentv1.ListPoliciesRequest{})
	if err != nil {
		return "", err
	}
	for _, p := range reply.GetPolicies() {
		if p.GetName() == "nodes" {
			return p.GetState(), nil
		}
	}
	return "", nil
}

func (c *cluster) waitHostState(t *testing.T, want string) {
	t.Helper()
	eventually(t, "the policy for nodes is "+want, 30*time.Second, func(ctx context.Context) error {
		if state, err := c.hostState(ctx, "node1"); err != nil || state != want {
			return fmt.Errorf("it is %q, %v", state, err)
		}
		return nil
	})
}

func hostPolicies(t *testing.T, mode lab.Mode) {
	c := up(t, lab.Config{Mode: mode, Nodes: 2})
	c.add(t, "node1", "web-1", "web")
	c.add(t, "node2", "client", "client")
	c.serve(t, "web-1")
	node, err := c.Node("node1")
	if err != nil {
		t.Fatal(err)
	}
	for _, port := range []uint16{80, 22} {
		if _, err := c.StartNginx(t.Context(), node, fmt.Sprint("node1-", port), port); err != nil {
			t.Fatal(err)
		}
	}
	status, err := c.Status(t.Context(), "node1")
	if err != nil {
		t.Fatal(err)
	}
	reach := func(port uint16, want bool) {
		t.Helper()
		for _, text := range status.GetAddresses() {
			ctx, cancel := context.WithTimeout(t.Context(), 2*time.Second)
			_, err := c.Outside().Fetch(ctx, netip.MustParseAddr(text), port)
			cancel()
			if (err == nil) != want {
				t.Errorf("outside to %s port %d: %v, want %v", text, port, err, want)
			}
		}
	}
	reach(22, true)
	c.apply(t, manifest(t, forNodes(letWebIn)))
	c.waitHostState(t, "in force")
	reach(80, true)
	reach(22, false)
	c.answers(t, "client", "web-1")
	if out, err := c.CLI(t.Context(), "--node", "node1", "observe", "--verdict", "dropped", "--port", "22"); err != nil || !strings.Contains(out, "(host)") {
		t.Errorf("drops for the node: %v\n%s", err, out)
	}
	// A policy that cuts the nodes off is undone, and the store comes back.
	c.apply(t, manifest(t, forNodes(letNoneIn)))
	c.waitHostState(t, "trial")
	if mode == lab.ModeVXLAN { // the variant: the agent does not live to see the end
		if err := c.KillAgent(t.Context(), "node1", syscall.SIGKILL); err != nil {
			t.Fatal(err)
		}
		if err := c.StartAgent(t.Context(), "node1"); err != nil {
			t.Fatal(err)
		}
	}
	c.waitHostState(t, "rolled back")
	c.connected(t, true)
	reach(80, true)
	reach(22, false)
}
