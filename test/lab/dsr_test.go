package lab

import (
	"context"
	"fmt"
	"net/netip"
	"strings"
	"testing"

	"tendril.io/tendril/internal/lab"
)

func TestABackendAnswersClientsItselfWithNativeRouting(t *testing.T) { testDSR(t, lab.ModeNative) }

func TestABackendAnswersClientsItselfInVXLAN(t *testing.T) { testDSR(t, lab.ModeVXLAN) }

// testDSR asks at node1 for a service whose only backend is on node2.
func testDSR(t *testing.T, mode lab.Mode) {
	const port = edgePort
	c := up(t, lab.Config{Mode: mode, Nodes: 2, LBMode: "dsr"})
	c.add(t, "node1", "client", "client")
	c.add(t, "node2", "web-2", "web")
	c.serve(t, "web-2")
	c.offer(t, served{Name: "edge", Spec: "type: NodePort", NodePort: port, Last: 1, Pods: []*lab.Pod{c.pods["web-2"]}})
	at := c.nodeAddrs(t, "node1")
	clients := c.seen(t, c.Outside(), at, port, "web-2")
	own, err := c.OutsideExec(t.Context(), "ip", "-o", "addr", "show", "scope", "global")
	if err != nil {
		t.Fatal(err)
	}
	for _, client := range clients {
		if !strings.Contains(own, " "+client.String()+"/") {
			t.Errorf("the server sees %s, want the client itself", client)
		}
	}
	for _, addr := range at {
		if counts, err := c.Outside().FetchMany(t.Context(), addr, port, 50); err != nil || counts["web-2"] != 50 {
			t.Errorf("50 connections to %s: %v, %v", addr, counts, err)
		}
	}
	for _, place := range append(c.hosts(t), c.pods["client"].Place, c.stray("client")) { // whose answers go another way
		c.seen(t, place, at, port, "web-2")
	}
	c.testClientPolicy(t, clients, at)
}

// A service may say which way its backends answer; the others follow the node's lb_mode, which may change under connections.
func TestAServiceOrItsNodeSaysWhoAnswersClients(t *testing.T) {
	c := up(t, lab.Config{Nodes: 2, LBMode: "dsr"})
	web := c.add(t, "node2", "web-2", "web")
	c.serve(t, "web-2")
	const silent, own, through = edgePort, edgePort + 1, edgePort + 2
	for port, s := range map[uint16]served{silent: {Name: "silent", Last: 1}, own: {Name: "own", Way: "dsr", Last: 2}, through: {Name: "through", Way: "snat", Last: 3}} {
		s.Spec, s.NodePort, s.Pods = "type: NodePort", port, []*lab.Pod{web}
		c.offer(t, s)
	}
	at := c.nodeAddrs(t, "node1")
	c.whoAsks(t, at, map[uint16]bool{silent: false, own: false, through: true})
	var ends []func() // of connections that were opened the one way and the other
	for _, addr := range at {
		ends = append(ends, c.probe(t, c.Outside(), lab.ProbeHTTP, netip.AddrPortFrom(addr, silent)))
	}
	for _, mode := range []string{"snat", "dsr"} {
		c.LBMode = mode
		c.restart(t, "node1", func() {})
		c.whoAsks(t, at, map[uint16]bool{silent: mode == "snat", own: false, through: true})
		status, err := c.Status(t.Context(), "node1")
		if err != nil || status.GetLbMode() != mode {
			t.Errorf("status says %q, %v", status.GetLbMode(), err)
		}
		for _, addr := range at {
			ends = append(ends, c.probe(t, c.Outside(), lab.ProbeHTTP, netip.AddrPortFrom(addr, silent)))
		}
	}
	for _, end := range ends {
		end()
	}
}

// whoAsks waits until the backend sees the node's address at the ports where that is wanted, and the client's at the others.
func (c *cluster) whoAsks(t *testing.T, at []netip.Addr, node map[uint16]bool) {
	t.Helper()
	for port, wanted := range node {
		for _, addr := range at {
			what := fmt.Sprintf("%s to be asked under the node's address: %v", netip.AddrPortFrom(addr, port), wanted)
			eventually(t, what, patience, func(ctx context.Context) error {
				answer, err := c.Outside().Fetch(ctx, addr, port)
				if err == nil && (answer.Sees == addr) != wanted {
					err = fmt.Errorf("the backend sees %s", answer.Sees)
				}
				return err
			})
		}
	}
}

// testClientPolicy lets the clients in by their own addresses, and then others instead.
func (c *cluster) testClientPolicy(t *testing.T, clients, at []netip.Addr) {
	const text = `
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: clients, namespace: shop}
spec:
  podSelector: {matchLabels: {app: web}}
  policyTypes: [Ingress]
  ingress: [{from: [%s]}]
`
	var allowed []string
	for _, client := range clients {
		allowed = append(allowed, fmt.Sprintf("{ipBlock: {cidr: %q}}", netip.PrefixFrom(client, client.BitLen())))
	}
	c.apply(t, manifest(t, fmt.Sprintf(text, strings.Join(allowed, ", "))))
	c.seen(t, c.Outside(), at, edgePort, "web-2")
	c.apply(t, manifest(t, fmt.Sprintf(text, `{ipBlock: {cidr: "198.51.100.0/24"}}`)))
	for _, addr := range at {
		if answer, err := c.Outside().Fetch(t.Context(), addr, edgePort); err == nil {
			t.Errorf("the policy has no room for the client, who reaches %s: %+v", addr, answer)
		}
	}
}
