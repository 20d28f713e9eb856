package lab

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"regexp"
	"slices"
	"syscall"
	"testing"
	"time"

	"tendril.io/tendril/internal/lab"
)

// egressObject is a gateway for the clients' way to the outside, with its entries of nodes.
func egressObject(gateways string) string {
	return `apiVersion: tendril.io/v1alpha1
kind: EgressGateway
metadata: {name: partners}
spec:
  podSelector: {matchLabels: {app: client}}
  destinationCIDRs: [198.51.100.0/24, "2001:db8:100::/64"]
  exceptCIDRs: [198.51.100.11/32, "2001:db8:100::11/128"]
  gateways: [` + gateways + `]
---
apiVersion: v1
kind: Node
metadata: {name: node2, labels: {role: egress}}
`
}

// knownAs asks outside which address it sees.
func (c *cluster) knownAs(ctx context.Context, pod string, addr netip.Addr) (netip.Addr, error) {
	answer, err := c.pods[pod].Place.Fetch(ctx, addr, 80)
	if err == nil && answer.Name != "outside" {
		err = fmt.Errorf("%s answered", answer.Name)
	}
	return answer.Sees, err
}

// sees waits until outside sees a pod under one of these addresses, family by family.
func (c *cluster) sees(t *testing.T, pod string, wanted ...string) {
	t.Helper()
	for _, addr := range lab.OutsideAddrs() {
		eventually(t, fmt.Sprintf("outside to see %s as one of %v at %s", pod, wanted, addr), 5*time.Second, func(ctx context.Context) error {
			sees, err := c.knownAs(ctx, pod, addr)
			if err == nil && !slices.Contains(wanted, sees.String()) {
				err = fmt.Errorf("it sees %s", sees)
			}
			return err
		})
	}
}

func TestPodsLeaveByTheirEgressGatewayWithNativeRouting(t *testing.T) {
	leaveByGateway(t, lab.ModeNative)
}

func TestPodsLeaveByTheirEgressGatewayWithVXLAN(t *testing.T) { leaveByGateway(t, lab.ModeVXLAN) }

// leaveByGateway tells the story of one gateway, of a second, and of their ends.
func leaveByGateway(t *testing.T, mode lab.Mode) {
	c := up(t, lab.Config{Nodes: 3, Mode: mode})
	c.add(t, "node1", "client", "client")
	c.add(t, "node1", "stranger", "stranger")
	c.add(t, "node2", "near", "client")
	c.outside(t, "198.51.100.11", "2001:db8:100::11")
	if _, err := c.StartNginx(t.Context(), c.Outside(), "outside", 80); err != nil {
		t.Fatal(err)
	}
	c.sees(t, "client", "172.30.0.1", "fd30::1")

	c.apply(t, manifest(t, egressObject("{nodeSelector: {matchLabels: {role: egress}}}")))
	c.sees(t, "client", "172.30.0.2", "fd30::2")
	c.sees(t, "near", "172.30.0.2", "fd30::2")
	c.sees(t, "stranger", "172.30.0.1", "fd30::1")
	c.excepted(t)
	c.judgedAtTheTrueDestination(t)
	c.goesOnWithoutAgent(t)
	c.failsOver(t)
	c.closed(t)
}

// outside gives the host outside more addresses.
func (c *cluster) outside(t *testing.T, addrs ...string) {
	t.Helper()
	for _, addr := range addrs {
		if _, err := c.OutsideExec(t.Context(), "ip", "addr", "add", addr, "dev", "lo"); err != nil {
			t.Fatal(err)
		}
	}
}

// excepted: what the object excepts is reached as ever.
func (c *cluster) excepted(t *testing.T) {
	t.Helper()
	for addr, want := range map[string]string{"198.51.100.11": "172.30.0.1", "2001:db8:100::11": "fd30::1"} {
		if sees, err := c.knownAs(t.Context(), "client", netip.MustParseAddr(addr)); err != nil || sees.String() != want {
			t.Errorf("client asks %s, which is excepted: outside sees %s, %v, want %s", addr, sees, err, want)
		}
	}
}

// judgedAtTheTrueDestination: a policy of the pod holds for what goes by a gateway.
func (c *cluster) judgedAtTheTrueDestination(t *testing.T) {
	t.Helper()
	policy := manifest(t, `apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: no-partners, namespace: `+namespace+`}
spec:
  podSelector: {matchLabels: {app: client}}
  policyTypes: [Egress]
  egress: [{to: [{ipBlock: {cidr: 10.0.0.0/8}}]}]
`)
	c.apply(t, policy)
	eventually(t, "the policy to hold", 5*time.Second, func(ctx context.Context) error {
		ctx, cancel := context.WithTimeout(ctx, 300*time.Millisecond)
		defer cancel()
		if sees, err := c.knownAs(ctx, "client", lab.OutsideAddrs()[0]); err == nil {
			return fmt.Errorf("outside sees %s", sees)
		}
		return nil
	})
	if _, err := c.CLI(t.Context(), "delete", "-f", policy); err != nil {
		t.Fatal(err)
	}
	c.sees(t, "client", "172.30.0.2", "fd30::2")
}

// goesOnWithoutAgent: the gateway's kernel serves while its agent is away.
func (c *cluster) goesOnWithoutAgent(t *testing.T) {
	t.Helper()
	end := c.probe(t, c.pods["client"].Place, lab.ProbeHTTP, netip.AddrPortFrom(lab.OutsideAddrs()[0], 80))
	if err := c.KillAgent(t.Context(), "node2", syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	time.Sleep(1500 * time.Millisecond) // longer than a dead gateway is kept
	c.sees(t, "client", "172.30.0.2", "fd30::2")
	if err := c.StartAgent(t.Context(), "node2"); err != nil {
		t.Fatal(err)
	}
	c.sees(t, "client", "172.30.0.2", "fd30::2")
	end()
}

// failsOver: a second gateway shares the flows, and takes all of them within a second of the first one's end.
func (c *cluster) failsOver(t *testing.T) {
	t.Helper()
	for _, addr := range []string{"172.30.0.77/24", "fd30::77/64"} {
		if _, err := c.NodeExec(t.Context(), "node3", "ip", "addr", "add", addr, "dev", "eth0"); err != nil {
			t.Fatal(err)
		}
	}
	c.apply(t, manifest(t, egressObject(`{nodeSelector: {matchLabels: {role: egress}}}, {node: node3, addresses: [172.30.0.77, "fd30::77"]}`)))
	both := []string{"172.30.0.2", "172.30.0.77", "fd30::2", "fd30::77"}
	shares := make(map[string]int)
	eventually(t, "both gateways to share", 10*time.Second, func(ctx context.Context) error {
		for _, addr := range lab.OutsideAddrs() {
			sees, err := c.knownAs(ctx, "client", addr)
			if err != nil || !slices.Contains(both, sees.String()) {
				return errors.Join(err, fmt.Errorf("outside sees %s", sees))
			}
			shares[sees.String()]++
		}
		if len(shares) < len(both) {
			return fmt.Errorf("so far %v", shares)
		}
		return nil
	})
	if err := c.KillAgent(t.Context(), "node2", syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	if err := c.Cut("node2"); err != nil {
		t.Fatal(err)
	}
	begun := time.Now()
	var failed time.Duration // when a connection that could not be made was begun, the last time
	for asked := time.Since(begun); asked < 3*time.Second; asked = time.Since(begun) {
		for _, addr := range lab.OutsideAddrs() {
			ctx, cancel := context.WithTimeout(t.Context(), 500*time.Millisecond) // of which most is for the machine
			at := time.Since(begun)
			if _, err := c.knownAs(ctx, "client", addr); err != nil {
				failed = at
				t.Logf("after %v, for %v: %v", at.Round(time.Millisecond), (time.Since(begun) - at).Round(time.Millisecond), err)
			}
			cancel()
		}
	}
	t.Logf("the last connection that failed was begun %v after the gateway's end", failed.Round(time.Millisecond))
	if failed > time.Second {
		t.Errorf("a connection begun %v after the gateway's end failed, want none after a second", failed)
	}
	c.sees(t, "client", "172.30.0.77", "fd30::77")
	text, err := c.CLI(t.Context(), "--node", "node1", "egress", "list")
	if err != nil || !regexp.MustCompile(`node2 +dead +172.30.0.2 fd30::2`).MatchString(text) || !regexp.MustCompile(`partners +shop/client .*node3 +alive +172.30.0.77 fd30::77`).MatchString(text) {
		t.Errorf("egress list: %v, want node2 dead and node3 alive for shop/client\n%s", err, text)
	}
}

// closed: with no gateway alive nothing leaves, which is counted; with one back it does.
func (c *cluster) closed(t *testing.T) {
	t.Helper()
	before := c.dropped(t, "node1", "no-gateway")
	if err := c.Cut("node3"); err != nil {
		t.Fatal(err)
	}
	eventually(t, "packets to be dropped for want of a gateway", 5*time.Second, func(ctx context.Context) error {
		ctx, cancel := context.WithTimeout(ctx, 300*time.Millisecond)
		defer cancel()
		if sees, err := c.knownAs(ctx, "client", lab.OutsideAddrs()[0]); err == nil {
			t.Fatalf("outside sees %s", sees)
		}
		if c.dropped(t, "node1", "no-gateway") == before {
			return errors.New("none is counted")
		}
		return nil
	})
	c.sees(t, "stranger", "172.30.0.1", "fd30::1")
	if err := c.Restore("node3"); err != nil {
		t.Fatal(err)
	}
	c.sees(t, "client", "172.30.0.77", "fd30::77")
	if _, err := c.CLI(t.Context(), "delete", "-f", manifest(t, egressObject("{node: node3}"))); err != nil {
		t.Fatal(err)
	}
	c.sees(t, "client", "172.30.0.1", "fd30::1")
}
