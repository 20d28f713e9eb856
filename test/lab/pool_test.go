package lab

import (
	"context"
	"fmt"
	"net/netip"
	"os"
	"strings"
	"testing"
	"time"

	agentv1 "tendril.io/tendril/api/agent/v1"
	"tendril.io/tendril/internal/lab"
)

// pooled finds the frontends of a service on node1, and its problem.
func (c *cluster) pooled(ctx context.Context, name string) (addrs []netip.Addr, problem string, err error) {
	agent, err := c.Agent("node1")
	if err != nil {
		return nil, "", err
	}
	list, err := agent.ListServices(ctx, &agentv1.ListServicesRequest{})
	if err != nil {
		return nil, "", err
	}
	for _, s := range list.GetServices() {
		at, err := netip.ParseAddrPort(s.GetFrontend())
		if s.GetName() == name && err == nil {
			addrs = append(addrs, at.Addr())
		}
		if s.GetName() == name && s.GetProblem() != "" {
			problem = s.GetProblem()
		}
	}
	return addrs, problem, nil
}

// The example's pool gives its service an address of each family, which every node answers for; a wish that cannot be met
// stands on the service's line.
func TestAPoolsAddressesLeadToTheService(t *testing.T) {
	c := up(t, lab.Config{Nodes: 1})
	c.add(t, "node1", "web-1", "web")
	c.serve(t, "web-1")
	pool, err := os.ReadFile(example("load-balancer.yaml"))
	if err != nil {
		t.Fatal(err)
	}
	c.apply(t, manifest(t, strings.Split(string(pool), "\n---\n")[0]))
	c.offer(t, served{Name: "edge", Last: 90, Spec: "type: LoadBalancer", Pods: []*lab.Pod{c.pods["web-1"]}})
	given := []netip.Addr{netip.MustParseAddr("172.30.0.241"), netip.MustParseAddr("fd30::f1")}
	eventually(t, "the service to have its addresses", 5*time.Second, func(ctx context.Context) error {
		addrs, problem, err := c.pooled(ctx, "shop/edge")
		for _, want := range given {
			if !strings.Contains(fmt.Sprint(addrs), want.String()) {
				return fmt.Errorf("%v, %q, %w: no %s", addrs, problem, err, want)
			}
		}
		return err
	})
	for _, addr := range given {
		via := c.nodeAddrs(t, "node1")[0]
		if addr.Is6() {
			via = c.nodeAddrs(t, "node1")[1]
		}
		if _, err := c.OutsideExec(t.Context(), "ip", "route", "replace", addr.String(), "via", via.String()); err != nil {
			t.Fatal(err)
		}
	}
	c.seen(t, c.Outside(), given, 80, "web-1")

	c.offer(t, served{Name: "late", Last: 91, Spec: "type: LoadBalancer\n  loadBalancerIP: 172.30.0.241", Pods: []*lab.Pod{c.pods["web-1"]}})
	eventually(t, "the problem to be told", 5*time.Second, func(ctx context.Context) error {
		_, problem, err := c.pooled(ctx, "shop/late")
		if want := "172.30.0.241, which it asks for, is of service shop/edge"; err == nil && !strings.Contains(problem, want) {
			err = fmt.Errorf("problem %q, want %q", problem, want)
		}
		return err
	})
}
