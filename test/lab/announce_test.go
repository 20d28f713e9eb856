package lab

import (
	"context"
	"fmt"
	"net/netip"
	"os"
	"strings"
	"syscall"
	"testing"
	"time"

	"tendril.io/tendril/internal/lab"
)

// heardAt is the link address behind which a client outside finds an address on its own link; it asks anew.
func (c *cluster) heardAt(ctx context.Context, addr netip.Addr) (string, error) {
	// Errors are fine: there was no entry, or nobody answers.
	_, _ = c.OutsideExec(ctx, "ip", "neigh", "del", addr.String(), "dev", "eth0")
	_, _ = c.OutsideExec(ctx, "timeout", "1", "bash", "-c", fmt.Sprintf("exec 3<>/dev/tcp/%s/80", addr))
	return c.neighbour(ctx, addr)
}

// neighbour is what the client knows already.
func (c *cluster) neighbour(ctx context.Context, addr netip.Addr) (string, error) {
	text, err := c.OutsideExec(ctx, "ip", "neigh", "show", addr.String())
	if err != nil {
		return "", err
	}
	words := strings.Fields(text)
	for i, word := range words {
		if word == "lladdr" && i+1 < len(words) {
			return words[i+1], nil
		}
	}
	return "", fmt.Errorf("nobody has %s: %q", addr, text)
}

// uplinkMAC is the link address of a node.
func (c *cluster) uplinkMAC(t *testing.T, node string) string {
	t.Helper()
	place, err := c.Node(node)
	if err != nil {
		t.Fatal(err)
	}
	text, err := place.Exec(t.Context(), "ip", "-brief", "link", "show", "eth0")
	if err != nil || len(strings.Fields(text)) < 3 {
		t.Fatalf("%q: %v", text, err)
	}
	return strings.Fields(text)[2]
}

// A client on the nodes' own link, without any route, reaches a load balancer's addresses: one node answers for them. When its agent
// dies the datapath goes on until the lease is over, then another node takes over, and the client hears of it unasked. When the
// agent is back, so is the address.
func TestOneNodeAnswersForAnAddressAndAnotherTakesOver(t *testing.T) {
	const lease = 5 * time.Second
	c := up(t, lab.Config{Nodes: 2, AliveLease: lease})
	c.add(t, "node1", "web-1", "web")
	c.serve(t, "web-1")
	pool, err := os.ReadFile(example("load-balancer.yaml"))
	if err != nil {
		t.Fatal(err)
	}
	c.apply(t, manifest(t, strings.Split(string(pool), "\n---\n")[0]))
	c.offer(t, served{Name: "edge", Last: 90, Spec: "type: LoadBalancer", Pods: []*lab.Pod{c.pods["web-1"]}})
	given := []netip.Addr{netip.MustParseAddr("172.30.0.241"), netip.MustParseAddr("fd30::f1")}
	nodes := map[string]string{}
	for _, node := range c.NodeNames() {
		nodes[c.uplinkMAC(t, node)] = node
	}
	owners := map[netip.Addr]string{}
	for _, addr := range given {
		eventually(t, addr.String()+" to be answered for", 10*time.Second, func(ctx context.Context) error {
			mac, err := c.heardAt(ctx, addr)
			owners[addr] = nodes[mac]
			if err == nil && owners[addr] == "" {
				err = fmt.Errorf("%s is at %s, which is no node's", addr, mac)
			}
			return err
		})
	}
	c.seen(t, c.Outside(), given, 80, "web-1")

	for _, addr := range given {
		before := owners[addr]
		if err := c.KillAgent(t.Context(), before, syscall.SIGKILL); err != nil {
			t.Fatal(err)
		}
		died := time.Now()
		if mac, err := c.heardAt(t.Context(), addr); err != nil || nodes[mac] != before {
			t.Errorf("%s: %s answers after its agent died, want %s: %v", addr, nodes[mac], before, err)
		}
		// Without being asked: the client keeps what it knows until the new owner speaks.
		eventually(t, addr.String()+" to be taken over", lease+5*time.Second, func(ctx context.Context) error {
			mac, err := c.neighbour(ctx, addr)
			if err == nil && nodes[mac] == before {
				err = fmt.Errorf("%s is still at %s", addr, before)
			}
			return err
		})
		t.Logf("%s was taken over from %s in %s", addr, before, time.Since(died).Round(time.Millisecond))
		c.seen(t, c.Outside(), given, 80, "web-1")
		if err := c.StartAgent(t.Context(), before); err != nil {
			t.Fatal(err)
		}
		eventually(t, addr.String()+" to return", 10*time.Second, func(ctx context.Context) error {
			mac, err := c.neighbour(ctx, addr)
			if err == nil && nodes[mac] != before {
				err = fmt.Errorf("%s is at %s", addr, nodes[mac])
			}
			return err
		})
	}
	c.outlivesItsNode(t, lease, given, owners[given[0]])
}

// outlivesItsNode has the node that answers for the first address die: a client on the link reaches all of them at the other node, as soon as
// is promised.
func (c *cluster) outlivesItsNode(t *testing.T, lease time.Duration, given []netip.Addr, dies string) {
	t.Helper()
	c.add(t, "node2", "web-2", "web")
	c.serve(t, "web-2")
	left, pod := "node2", "web-2"
	if dies == "node2" {
		left, pod = "node1", "web-1"
	}
	c.offer(t, served{Name: "edge", Last: 90, Spec: "type: LoadBalancer", Pods: []*lab.Pod{c.pods[pod]}})
	c.seen(t, c.Outside(), given, 80, pod)
	if err := c.KillAgent(t.Context(), dies, syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	if err := c.Cut(dies); err != nil {
		t.Fatal(err)
	}
	died := time.Now()
	for _, addr := range given {
		eventually(t, addr.String()+" to be served after "+dies+" died", lease+5*time.Second, func(ctx context.Context) error {
			_, err := c.Outside().Fetch(ctx, addr, 80)
			return err
		})
		t.Logf("%s, after %s died: served by %s after %s", addr, dies, left, time.Since(died).Round(time.Millisecond))
	}
	if took := time.Since(died); took > lease+time.Second+slack {
		t.Errorf("addresses of %s were taken over after %s, want %s at most", dies, took, lease+time.Second)
	}
}

// slack is what the machine may take of the time in which an address is to be taken over.
const slack = 2 * time.Second
