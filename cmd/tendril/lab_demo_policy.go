package main

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	agentv1 "tendril.io/tendril/api/agent/v1"
	"tendril.io/tendril/internal/lab"
)

// reach is step 1: every pair of near and far, in both families and both routing modes.
func (d *demo) reach(ctx context.Context) (err error) {
	d.s.lines(d.s.dim.Render(fmt.Sprintf("%-8s %-11s %-5s %-18s %-18s %-6s %s", "routing", "", "", "from", "to", "answer", "took")))
	if err := d.reachIn(ctx, d.pods["client"], d.pods["web-1"], d.pods["web-2"], lab.ModeNative); err != nil {
		return err
	}
	begin := time.Now()
	overlay, err := lab.Up(ctx, lab.Config{Name: d.l.Name + "vx", Nodes: 2, Mode: lab.ModeVXLAN, BinDir: d.l.BinDir})
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, overlay.Down(context.WithoutCancel(ctx))) }()
	pods := map[string]*lab.Pod{}
	for name, node := range map[string]string{"web-1": "node1", "web-2": "node2", "client": "node1"} {
		if pods[name], err = overlay.AddPod(ctx, lab.PodSpec{Node: node, Namespace: namespace, Name: name}); err != nil {
			return err
		}
	}
	for _, name := range []string{"web-1", "web-2"} {
		if _, err := overlay.StartNginx(ctx, pods[name].Place, name, 80); err != nil {
			return err
		}
	}
	d.s.note(fmt.Sprintf("a second lab of two nodes, VXLAN routing, is up after %s", short(time.Since(begin))))
	return d.reachIn(ctx, pods["client"], pods["web-1"], pods["web-2"], lab.ModeVXLAN)
}

// reachIn asks a near and a far web server from a client.
func (d *demo) reachIn(ctx context.Context, client, near, far *lab.Pod, mode lab.Mode) error {
	for where, server := range []*lab.Pod{near, far} {
		for _, addr := range server.Addrs {
			answer, err := client.Place.Fetch(ctx, addr, 80)
			if err != nil {
				return err
			}
			row := fmt.Sprintf("%-8s %-11s %-5s %-18s %-18s %-6s %s", mode, []string{"same node", "other node"}[where],
				family(addr), answer.Sees, addr, answer.Name, short(answer.Took))
			if err := d.hold(answer.Name == server.Name && slices.Contains(client.Addrs, answer.Sees), "%s", row); err != nil {
				return err
			}
		}
	}
	return nil
}

// police is step 2.
func (d *demo) police(ctx context.Context) error {
	for _, file := range []string{"web-from-client.yaml", "web-guard.yaml"} {
		if err := d.apply(ctx, file); err != nil {
			return err
		}
	}
	for _, addr := range d.pods["web-2"].Addrs {
		answer, err := d.pods["client"].Place.Fetch(ctx, addr, 80)
		if err != nil {
			return err
		}
		if err := d.hold(answer.Name == "web-2", "client   → web-2  %-16s answered after %s", addr, short(answer.Took)); err != nil {
			return err
		}
		_, err = d.pods["stranger"].Place.Fetch(ctx, addr, 80)
		if err := d.hold(err != nil, "stranger → web-2  %-16s no answer", addr); err != nil {
			return err
		}
	}
	if err := d.seen(ctx, "client", "forwarded", "web-from-client"); err != nil {
		return err
	}
	if err := d.seen(ctx, "stranger", "dropped", "web-guard"); err != nil {
		return err
	}
	return d.show(ctx, 4, "--node", "node2", "observe", "--to-pod", "shop/web-2", "--last", "4")
}

// seen waits for a flow record from a pod to web-2 that has this verdict by a rule of this policy.
func (d *demo) seen(ctx context.Context, from, verdict, policy string) error {
	request := &agentv1.ObserveRequest{FromPod: namespace + "/" + from, ToPod: namespace + "/web-2", Verdict: verdict}
	err := d.l.WaitFlow(ctx, "node2", request, func(flow *agentv1.Flow) bool {
		return strings.Contains(flow.GetIngress().GetRuleName(), policy)
	})
	return d.hold(err == nil, "observe: %s from %s, by %s%s", verdict, from, policy, because(err))
}

func because(err error) string {
	if err == nil {
		return ""
	}
	return ": " + err.Error()
}

// explain is step 3: the visitor has never sent a packet.
func (d *demo) explain(ctx context.Context) error {
	for _, flow := range []struct {
		from    string
		port    uint32
		verdict string
	}{{"visitor", 80, "denied"}, {"client", 80, "allowed"}} {
		if err := d.foretell(ctx, flow.from, flow.port, flow.verdict); err != nil {
			return err
		}
	}
	if err := d.show(ctx, 40, "--node", "node2", "policy", "explain", "--from", "shop/visitor", "--to", "shop/web-2", "--port", "80"); err != nil {
		return err
	}
	_, err := d.pods["visitor"].Place.Fetch(ctx, d.pods["web-2"].Addr(4), 80)
	return d.hold(err != nil, "and when visitor asks web-2 after all, there is no answer")
}

// foretell asks the agent of the destination's node for the verdict of an imagined flow to web-2.
func (d *demo) foretell(ctx context.Context, from string, port uint32, want string) error {
	client, err := d.l.Agent("node2")
	if err != nil {
		return err
	}
	answer, err := client.Explain(ctx, &agentv1.ExplainRequest{
		From: namespace + "/" + from, To: namespace + "/web-2", Port: port, Protocol: 6})
	if err != nil {
		return err
	}
	return d.hold(answer.Verdict == want, "%s → web-2 port %d would be %s", from, port, answer.Verdict)
}
