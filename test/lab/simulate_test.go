package lab

import (
	"context"
	"fmt"
	"net/netip"
	"os/exec"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"google.golang.org/protobuf/encoding/protojson"

	agentv1 "tendril.io/tendril/api/agent/v1"
	"tendril.io/tendril/internal/lab"
)

// webForClients lets one kind of client in, at one port, and everybody else out.
const webForClients = `
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: web-for-clients, namespace: shop}
spec:
  podSelector: {matchLabels: {app: web}}
  ingress:
    - from: [{podSelector: {matchLabels: {app: client}}}]
      ports: [{port: 80}]
`

// TestASimulatedPolicyChangesWhatItSaid records flows, asks what a policy would change, applies it, and sees exactly
// those flows change.
func TestASimulatedPolicyChangesWhatItSaid(t *testing.T) {
	c := up(t, lab.Config{Nodes: 2})
	clients, webs := []string{"client", "stranger", "far-stranger"}, []string{"web-1", "web-2"}
	for name, node := range map[string]string{"web-1": "node1", "web-2": "node2", "client": "node1", "stranger": "node1", "far-stranger": "node2"} {
		app := name
		if slices.Contains(webs, name) {
			app = "web"
		}
		c.add(t, node, name, app)
	}
	for _, web := range webs {
		c.serve(t, web)
	}
	before := c.reaches(t, clients, webs)
	for edge, ok := range before {
		if !ok {
			t.Fatalf("%s: no answer while there is no policy", edge)
		}
	}
	file := manifest(t, webForClients)
	c.flowsAreKept(t, clients, webs)
	said := c.simulated(t, "-f", file)
	pairs := c.cli(t, "policy", "simulate", "-f", file, "--all-pairs")
	t.Logf("$ tendril policy simulate -f web-for-clients.yaml\n%s", c.cli(t, "policy", "simulate", "-f", file))
	t.Logf("$ tendril policy simulate -f web-for-clients.yaml --all-pairs\n%s", pairs)

	c.apply(t, file)
	after := c.reaches(t, clients, webs)
	var changed []string
	for edge := range before {
		if before[edge] != after[edge] {
			changed = append(changed, edge)
		}
	}
	slices.Sort(changed)
	if diff := cmp.Diff(changed, said); diff != "" || len(changed) != 8 {
		t.Errorf("what changed (-) and what the simulation said (+), of which both should be 8:\n%s", diff)
	}
	if said := c.simulated(t, "-f", file); len(said) != 0 {
		t.Errorf("the policy is in force, and a simulation of it says that %v would change", said)
	}
	if back := c.simulated(t, "--delete", "NetworkPolicy/shop/web-for-clients"); !slices.Equal(back, changed) {
		t.Errorf("without it %v would change back, want %v", back, changed)
	}
	t.Logf("$ tendril --node node2 policy explain --last --from-pod shop/stranger --verdict dropped\n%s",
		c.cli(t, "--node", "node2", "policy", "explain", "--last", "--from-pod", "shop/stranger", "--verdict", "dropped"))
	t.Logf("$ tendril policy list\n%s$ tendril policy get shop/web-for-clients\n%s$ tendril --node node1 endpoint list\n%s",
		c.cli(t, "policy", "list"), c.cli(t, "policy", "get", "shop/web-for-clients"), c.cli(t, "--node", "node1", "endpoint", "list"))
}

// edge is a flow as a simulation lists it.
func edge(from, to netip.Addr) string { return fmt.Sprintf("%s -> %s 80", from, to) }

// reaches says who is answered by whom, at every address.
func (c *cluster) reaches(t *testing.T, clients, webs []string) map[string]bool {
	t.Helper()
	found := map[string]bool{}
	for _, from := range clients {
		for _, to := range webs {
			for _, addr := range c.pods[to].Addrs {
				_, err := c.pods[from].Place.Fetch(t.Context(), addr, 80)
				found[edge(c.pods[from].Addr(familyOf(addr)), addr)] = err == nil
			}
		}
	}
	return found
}

// flowsAreKept waits until the web servers' agents have the flows: an agent reads them now and then.
func (c *cluster) flowsAreKept(t *testing.T, clients, webs []string) {
	t.Helper()
	for i, web := range webs {
		for _, from := range clients {
			for _, addr := range c.pods[from].Addrs {
				request := &agentv1.ObserveRequest{FromPod: namespace + "/" + from, ToPod: namespace + "/" + web, Ip: addr.String()}
				if err := c.WaitFlow(t.Context(), fmt.Sprint("node", i+1), request, func(*agentv1.Flow) bool { return true }); err != nil {
					t.Fatalf("the flow of %s to %s is not recorded: %v", from, web, err)
				}
			}
		}
	}
}

// simulated is what the command line says would change among flows to port 80.
func (c *cluster) simulated(t *testing.T, args ...string) []string {
	t.Helper()
	var reply agentv1.SimulateResponse
	text := c.cli(t, append([]string{"policy", "simulate", "-o", "json"}, args...)...)
	if err := protojson.Unmarshal([]byte(text), &reply); err != nil {
		t.Fatalf("%v in %s", err, text)
	}
	var said []string
	for _, f := range reply.GetFlows() {
		if f.GetDestination().GetPort() == 80 {
			said = append(said, edge(netip.MustParseAddr(f.GetSource().GetIp()), netip.MustParseAddr(f.GetDestination().GetIp())))
		}
	}
	slices.Sort(said)
	return said
}

// cli runs the command line on the lab and returns what it prints.
func (c *cluster) cli(t *testing.T, args ...string) string {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	out, err := exec.CommandContext(ctx, filepath.Join(c.BinDir, "tendril"), append([]string{"--lab", c.Name}, args...)...).CombinedOutput()
	if err != nil {
		t.Fatalf("tendril %v: %v\n%s", args, err, out)
	}
	return string(out)
}
