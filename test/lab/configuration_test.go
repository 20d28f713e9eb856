package lab

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"os"
	"strings"
	"testing"
	"time"

	agentv1 "tendril.io/tendril/api/agent/v1"
	"tendril.io/tendril/internal/lab"
)

// patience is for what takes milliseconds on a quiet machine.
const patience = time.Minute

// configured is a node whose agent runs, and its configuration as it was first.
type configured struct {
	*cluster
	node  string
	first map[string]any
}

func (c *cluster) configured(t *testing.T, node string) configured {
	t.Helper()
	raw, err := os.ReadFile(c.AgentFile(node))
	if err != nil {
		t.Fatal(err)
	}
	first := map[string]any{}
	if err := json.Unmarshal(raw, &first); err != nil {
		t.Fatal(err)
	}
	return configured{c, node, first}
}

// write replaces the file by the first one with other values.
func (c configured) write(t *testing.T, values map[string]any) {
	t.Helper()
	text := maps.Clone(c.first)
	maps.Copy(text, values)
	raw, err := json.Marshal(text)
	if err != nil {
		t.Fatal(err)
	}
	path := c.AgentFile(c.node)
	if err := errors.Join(os.WriteFile(path+".new", raw, 0o644), os.Rename(path+".new", path)); err != nil {
		t.Fatal(err)
	}
}

// says waits for a status of the agent.
func (c configured) says(t *testing.T, what string, check func(s *agentv1.StatusResponse, problems string) bool) {
	t.Helper()
	eventually(t, what, patience, func(ctx context.Context) error {
		s, err := c.Status(ctx, c.node)
		if err != nil {
			return err
		}
		var problems strings.Builder
		for _, p := range s.GetProblems() {
			fmt.Fprintf(&problems, "%s: %s; %s\n", p.GetObject(), p.GetMessage(), p.GetRemedy())
		}
		if !check(s, problems.String()) {
			return fmt.Errorf("lb_mode %s, version %d, %v, problems %q", s.GetLbMode(), s.GetDatapathVersion(), s.GetConfiguration(), problems.String())
		}
		return nil
	})
}

// asks waits until a place's new connection to a web server is seen there under an address; the zero address: until there is no answer.
func (c configured) asks(t *testing.T, from lab.Place, at netip.AddrPort, sees netip.Addr) {
	t.Helper()
	eventually(t, fmt.Sprintf("%s to be seen as %s at %s", from.Name, sees, at), patience, func(ctx context.Context) error {
		answer, err := from.Fetch(ctx, at.Addr(), at.Port())
		if !sees.IsValid() && err != nil {
			return nil
		}
		if err == nil && answer.Sees != sees {
			err = fmt.Errorf("got %+v", answer)
		}
		return err
	})
}

// A running agent's file is changed under connections of each kind that a key is about, each of which goes on as it began.
func TestAnAgentFollowsItsConfigurationUnderTraffic(t *testing.T) {
	const port = edgePort
	c := up(t, lab.Config{Nodes: 2})
	client, web := c.add(t, "node1", "client", "client"), c.add(t, "node2", "web-2", "web")
	near := c.add(t, "node1", "near", "near")
	c.serve(t, "web-2")
	c.serve(t, "near")
	if _, err := c.StartNginx(t.Context(), c.Outside(), "outside", 80); err != nil {
		t.Fatal(err)
	}
	for _, addr := range client.Addrs { // so that it can answer who is not masqueraded
		family := map[int]string{4: "-4", 6: "-6"}[familyOf(addr)]
		via := c.addrOf(t, "node1", addr)
		if _, err := c.OutsideExec(t.Context(), "ip", family, "route", "add", addr.String(), "via", via.String()); err != nil {
			t.Fatal(err)
		}
	}
	c.offer(t, served{Name: "edge", Spec: "type: NodePort", NodePort: port, Last: 1, Pods: []*lab.Pod{web}})
	n, at := c.configured(t, "node1"), c.nodeAddrs(t, "node1")
	c.whoAsks(t, at, map[uint16]bool{port: true})
	var ends []func()
	kept := func(from lab.Place, at netip.Addr, port uint16) {
		ends = append(ends, c.probe(t, from, lab.ProbeHTTP, netip.AddrPortFrom(at, port)))
	}
	kept(client.Place, lab.OutsideAddrs()[0], 80)
	kept(client.Place, web.Addrs[1], 80)
	kept(c.Outside(), at[0], port)
	n.liveKeys(t, client, near, func() { kept(c.Outside(), at[1], port) })
	n.publishedKeys(t, web)
	n.reloadedKeys(t, client, func() { kept(client.Place, lab.OutsideAddrs()[0], 80) })
	n.waitingKeys(t)
	n.brokenFiles(t)
	for _, end := range ends {
		end()
	}
}

// addrOf is a node's own address of the family that another one has.
func (c *cluster) addrOf(t *testing.T, node string, like netip.Addr) netip.Addr {
	t.Helper()
	for _, addr := range c.nodeAddrs(t, node) {
		if addr.Is4() == like.Is4() {
			return addr
		}
	}
	t.Fatalf("%s has no address of the family of %s", node, like)
	return netip.Addr{}
}

// liveKeys changes keys that count at once. In between a connection may be opened, which must outlive the change back.
func (c configured) liveKeys(t *testing.T, client, near *lab.Pod, open func()) {
	t.Helper()
	const port = edgePort
	at, beyond := c.nodeAddrs(t, c.node), lab.OutsideAddrs()
	host, err := c.Node(c.node)
	if err != nil {
		t.Fatal(err)
	}
	before, err := c.Status(t.Context(), c.node)
	if err != nil {
		t.Fatal(err)
	}
	c.write(t, map[string]any{"lb_mode": "dsr"})
	c.whoAsks(t, at, map[uint16]bool{port: false})
	open()
	c.write(t, map[string]any{"node_port_addresses": []string{at[0].String() + "/32"}})
	c.asks(t, c.Outside(), netip.AddrPortFrom(at[1], port), netip.Addr{})
	c.asks(t, c.Outside(), netip.AddrPortFrom(at[0], port), at[0]) // as lb_mode is what it was
	c.write(t, map[string]any{"no_masquerade": []string{beyond[0].String() + "/32"}})
	c.asks(t, client.Place, netip.AddrPortFrom(beyond[0], 80), client.Addrs[0])
	c.asks(t, client.Place, netip.AddrPortFrom(beyond[1], 80), at[1])
	c.asks(t, c.Outside(), netip.AddrPortFrom(at[1], port), at[1])

	c.apply(t, manifest(t, `
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: near, namespace: shop}
spec: {podSelector: {matchLabels: {app: near}}, policyTypes: [Ingress]}
`))
	router, err := host.Fetch(t.Context(), near.Addrs[0], 80)
	if err != nil {
		t.Fatalf("a node reaches its pods: %v", err)
	}
	c.write(t, map[string]any{"deny_local_host": true})
	c.asks(t, host, netip.AddrPortFrom(near.Addrs[0], 80), netip.Addr{})
	c.write(t, nil)
	c.asks(t, host, netip.AddrPortFrom(near.Addrs[0], 80), router.Sees)
	c.asks(t, client.Place, netip.AddrPortFrom(beyond[0], 80), at[0])
	c.says(t, "all to be as at the start", func(s *agentv1.StatusResponse, problems string) bool {
		return s.GetLbMode() == "snat" && problems == "" && s.GetDatapathVersion() == before.GetDatapathVersion() &&
			s.GetConfiguration().GetDigest() != before.GetConfiguration().GetDigest() // it is written otherwise
	})
}

// publishedKeys changes keys of which other nodes, or the link, hear at once.
func (c configured) publishedKeys(t *testing.T, web *lab.Pod) {
	t.Helper()
	c.offer(t, served{Name: "external", Last: 9, Spec: "externalIPs: [172.30.0.200]", Pods: []*lab.Pod{web}})
	agent, err := c.Agent(c.node)
	if err != nil {
		t.Fatal(err)
	}
	for _, announced := range []bool{false, true, false} {
		c.write(t, map[string]any{"announce_external_ips": announced, "zone": map[bool]string{true: "z-announced"}[announced]})
		eventually(t, fmt.Sprintf("announced %v, and so the zone", announced), patience, func(ctx context.Context) error {
			list, err := agent.ListServices(ctx, &agentv1.ListServicesRequest{Name: namespace + "/external"})
			if err != nil {
				return err
			}
			by, found := "", false
			for _, service := range list.GetServices() {
				if strings.HasPrefix(service.GetFrontend(), "172.30.0.200:") {
					by, found = service.GetAnnouncer(), true
				}
			}
			nodes, err := c.CLI(ctx, "--node", "node2", "db", "show", "nodes")
			if err == nil && (!found || (by != "") != announced || strings.Contains(nodes, "z-announced") != announced) {
				err = fmt.Errorf("announced by %q (%v); nodes, as node2 has them:\n%s", by, found, nodes)
			}
			return err
		})
	}
}

// reloadedKeys changes keys that programs are loaded with. In between a connection is opened, which must outlive the change back.
func (c configured) reloadedKeys(t *testing.T, client *lab.Pod, open func()) {
	t.Helper()
	at, beyond := c.nodeAddrs(t, c.node), lab.OutsideAddrs()
	status, err := c.Status(t.Context(), c.node)
	if err != nil {
		t.Fatal(err)
	}
	version := status.GetDatapathVersion()
	for _, step := range []struct {
		masquerade, records bool
	}{{false, true}, {false, false}, {true, true}} {
		version++
		c.write(t, map[string]any{"masquerade": step.masquerade, "flow_records": step.records})
		c.says(t, "one reload", func(s *agentv1.StatusResponse, _ string) bool { return s.GetDatapathVersion() == version })
		for i := range beyond {
			sees := client.Addrs[i]
			if step.masquerade {
				sees = at[i]
			}
			c.asks(t, client.Place, netip.AddrPortFrom(beyond[i], 80), sees)
		}
		if !step.masquerade && step.records {
			open()
		}
	}
}

// waitingKeys changes keys that need a restart, together with one that does not.
func (c configured) waitingKeys(t *testing.T) {
	t.Helper()
	c.write(t, map[string]any{"mode": "vxlan", "vni": 7, "lb_mode": "dsr"})
	c.says(t, "what waits to be said", func(s *agentv1.StatusResponse, problems string) bool {
		var keys []string
		for _, setting := range s.GetConfiguration().GetWaiting() {
			keys = append(keys, setting.GetKey()+" "+setting.GetInForce()+" "+setting.GetWanted())
		}
		return s.GetMode() == "native" && s.GetLbMode() == "dsr" && strings.Join(keys, ", ") == `mode "native" "vxlan", vni 7471 7` &&
			strings.Contains(problems, "vni: 7471 is in force, the file says 7, which waits for a restart of the agent; restart the agent, or take the change back")
	})
	out, err := c.CLI(t.Context(), "--node", c.node, "status")
	if err != nil || !strings.Contains(out, "in force for ") || !strings.Contains(out, "; waiting for a restart: mode, vni") {
		t.Errorf("tendril status prints, with %v:\n%s", err, out)
	}
	out, err = c.CLI(t.Context(), "--node", c.node, "db", "show", "configuration")
	if err != nil || !strings.Contains(out, "restart") || !strings.Contains(out, `"vxlan"`) {
		t.Errorf("tendril db show configuration prints, with %v:\n%s", err, out)
	}
}

// brokenFiles writes files with mistakes: nothing of them is followed.
func (c configured) brokenFiles(t *testing.T) {
	t.Helper()
	before, err := c.Status(t.Context(), c.node)
	if err != nil {
		t.Fatal(err)
	}
	for _, broken := range []struct {
		values map[string]any
		want   string
	}{
		{map[string]any{"lb_mode": "snat", "masquerade": false, "flow_history": -1}, "flow_history: -1 is not within 0 to"},
		{map[string]any{"lb_mode": "snat", "no_masquerade": "10.0.0.0/8"}, `no_masquerade: "10.0.0.0/8" is not a list of prefixes`},
		{map[string]any{"lb_mode": "snat", "lb_mod": "dsr"}, `unknown field "lb_mod"`},
	} {
		c.write(t, broken.values)
		c.says(t, "the mistake to be named", func(s *agentv1.StatusResponse, problems string) bool {
			return strings.Contains(problems, broken.want) && s.GetConfiguration().GetRefused()
		})
	}
	c.says(t, "nothing to have changed", func(s *agentv1.StatusResponse, _ string) bool {
		return s.GetLbMode() == "dsr" && s.GetDatapathVersion() == before.GetDatapathVersion() &&
			s.GetConfiguration().GetDigest() == before.GetConfiguration().GetDigest()
	})
	c.write(t, nil)
	c.says(t, "the corrected file to be followed", func(s *agentv1.StatusResponse, problems string) bool {
		return s.GetLbMode() == "snat" && problems == "" && !s.GetConfiguration().GetRefused()
	})
}
