package service

import (
	"fmt"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"tendril.io/tendril/internal/policy"
	"tendril.io/tendril/internal/table"
)

func TestViewsShowWhatTheKernelHas(t *testing.T) {
	n := newTestNode(t, Config{})
	n.SetService(web("web", "10.96.0.1", "fd00:96::1"))
	n.SetService(web("bare"))
	n.SetBackends(behind("web", on("n1", "", ready("10.0.0.1")), ready("10.0.0.2")))
	n.flush()
	var got []string
	for _, v := range n.Views("") {
		line := v.Namespace + "/" + v.Name + " " + v.Frontend.String()
		for _, b := range v.Backends {
			line += " " + b.Addr.String() + "=" + b.State.String() + "@" + b.Node
		}
		got = append(got, line)
	}
	want := []string{
		"default/bare invalid AddrPort",
		"default/web 10.96.0.1:80 10.0.0.1:8080=ready@n1 10.0.0.2:8080=ready@",
		"default/web [fd00:96::1]:80",
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("views (-want +got):\n%s", diff)
	}
	for name, want := range map[string]int{"default/web": 2, "default/bare": 1, "web": 0, "shop/web": 0} {
		for _, v := range n.Views(name) {
			if v.Namespace+"/"+v.Name != name {
				t.Errorf("the views of %s have %s/%s", name, v.Namespace, v.Name)
			}
		}
		if got := len(n.Views(name)); got != want {
			t.Errorf("%s has %d views, want %d", name, got, want)
		}
	}
	if ns, name, ok := n.FrontendService(tcp("10.96.0.1:80")); !ok || ns != "default" || name != "web" {
		t.Errorf("10.96.0.1:80 belongs to %s/%s (%v), want default/web", ns, name, ok)
	}
	if _, _, ok := n.FrontendService(tcp("10.96.0.9:80")); ok {
		t.Error("an address nobody serves has a service")
	}
}

// describe prints the backends behind a frontend, a line each.
func (n *testNode) describe(frontend FrontendKey) []string {
	var lines []string
	for _, v := range n.Views("") {
		if (FrontendKey{v.Frontend.Addr(), v.Frontend.Port(), v.Proto}) != frontend {
			continue
		}
		for _, b := range v.Backends {
			lines = append(lines, fmt.Sprintf("%s %s, inside %s, outside %s", b.Addr, b.State, b.Inside, b.Outside))
		}
	}
	return lines
}

func TestAViewSaysWhyABackendIsLeftOut(t *testing.T) {
	here := on("n1", "z1", ready("10.0.0.1", "fd00::1"))
	neighbour, far := on("n2", "z1", ready("10.0.0.2")), on("n3", "z2", ready("10.0.0.3"))
	going := on("n1", "z1", table.Backend{Addrs: addrs("10.0.0.5"), Terminating: true})
	for _, c := range []struct {
		name     string
		change   func(*table.Service)
		backends []table.Backend
		frontend FrontendKey
		want     []string
	}{
		{"by its conditions, before all else", func(s *table.Service) { s.InternalLocal = true },
			[]table.Backend{here, starting("10.0.0.4"), going}, tcp("10.96.0.1:80"), []string{
				"10.0.0.1:8080 ready, inside chosen, outside ", "10.0.0.4:8080 not ready, inside not ready, outside ",
				"10.0.0.5:8080 terminating, inside not ready, outside "}},
		{"drains beside a ready one", func(*table.Service) {}, []table.Backend{here, draining("10.0.0.4")}, tcp("10.96.0.1:80"), []string{
			"10.0.0.1:8080 ready, inside chosen, outside ", "10.0.0.4:8080 draining, inside draining, outside "}},
		{"drains, but nothing is ready", func(*table.Service) {}, []table.Backend{draining("10.0.0.4"), starting("10.0.0.6")}, tcp("10.96.0.1:80"), []string{
			"10.0.0.4:8080 draining, inside chosen, outside ", "10.0.0.6:8080 not ready, inside not ready, outside "}},
		{"counts as ready though it starts", func(s *table.Service) { s.PublishNotReady = true }, []table.Backend{starting("10.0.0.4")}, tcp("10.96.0.1:80"),
			[]string{"10.0.0.4:8080 ready, inside chosen, outside "}},
		{"of another node inside, internalTrafficPolicy is Local", func(s *table.Service) { s.InternalLocal = true },
			[]table.Backend{here, neighbour}, tcp("10.96.0.1:80"), []string{
				"10.0.0.1:8080 ready, inside chosen, outside ", "10.0.0.2:8080 ready, inside local policy, outside "}},
		{"of another node outside, externalTrafficPolicy is Local", func(s *table.Service) { s.ExternalLocal, s.Ports[0].NodePort = true, 30080 },
			[]table.Backend{here, neighbour}, tcp("0.0.0.0:30080"), []string{
				"10.0.0.1:8080 ready, inside chosen, outside chosen", "10.0.0.2:8080 ready, inside chosen, outside local policy"}},
		{"the local one drains, and drains are all that the policy leaves", func(s *table.Service) { s.ExternalLocal, s.Ports[0].NodePort = true, 30080 },
			[]table.Backend{on("n1", "", draining("10.0.0.4")), neighbour}, tcp("0.0.0.0:30080"), []string{
				"10.0.0.2:8080 ready, inside chosen, outside local policy", "10.0.0.4:8080 draining, inside draining, outside chosen"}},
		{"of another zone", func(s *table.Service) { s.TrafficDistribution = "PreferSameZone" }, []table.Backend{here, neighbour, far}, tcp("10.96.0.1:80"), []string{
			"10.0.0.1:8080 ready, inside chosen, outside ", "10.0.0.2:8080 ready, inside chosen, outside ",
			"10.0.0.3:8080 ready, inside nearer zone, outside "}},
		{"of another node that is less near", func(s *table.Service) { s.TrafficDistribution = "PreferSameNode" }, []table.Backend{here, neighbour}, tcp("10.96.0.1:80"),
			[]string{"10.0.0.1:8080 ready, inside chosen, outside ", "10.0.0.2:8080 ready, inside nearer node, outside "}},
		{"of another zone, and none is on the node", func(s *table.Service) { s.TrafficDistribution = "PreferSameNode" }, []table.Backend{neighbour, far}, tcp("10.96.0.1:80"),
			[]string{"10.0.0.2:8080 ready, inside chosen, outside ", "10.0.0.3:8080 ready, inside nearer zone, outside "}},
		{"far, but nothing is near", func(s *table.Service) { s.TrafficDistribution = "PreferSameZone" }, []table.Backend{far}, tcp("10.96.0.1:80"),
			[]string{"10.0.0.3:8080 ready, inside chosen, outside "}},
		{"the other family is no candidate", func(s *table.Service) { s.ClusterIPs = addrs("10.96.0.1", "fd00:96::1") }, []table.Backend{here, neighbour}, tcp("[fd00:96::1]:80"),
			[]string{"[fd00::1]:8080 ready, inside chosen, outside "}},
	} {
		t.Run(c.name, func(t *testing.T) {
			n := newTestNode(t, Config{NodeName: "n1", Zone: "z1"})
			s := web("web", "10.96.0.1")
			c.change(&s)
			n.SetService(s)
			n.SetBackends(behind("web", c.backends...))
			n.flush()
			if diff := cmp.Diff(c.want, n.describe(c.frontend)); diff != "" {
				t.Errorf("backends of %v (-want +got):\n%s", c.frontend, diff)
			}
		})
	}
}

// Each port has the endpoints of its own name. A zone that a slice does not name is the node's, in the view as in the choice.
func TestTwoPortsHaveBackendsOfTheirOwn(t *testing.T) {
	n := newTestNode(t, Config{NodeName: "n1", Zone: "z1"})
	s := web("web", "10.96.0.1")
	s.Ports = append(s.Ports, table.ServicePort{Name: "metrics", Protocol: 6, Port: 9090})
	n.SetService(s)
	row := behind("web", on("n1", "", ready("10.0.0.1")))
	row.Weight = 7
	n.SetBackends(row)
	n.SetBackends(table.Backends{Namespace: "default", Service: "web", Slice: "b",
		Ports: []table.NamedPort{{Name: "metrics", Port: 9100, Protocol: 6}}, Backends: []table.Backend{on("n2", "z2", ready("10.0.0.2"))}})
	n.SetNode("n1", 1, "z1")
	n.flush()
	var got []string
	for _, v := range n.Views("") {
		for _, b := range v.Backends {
			got = append(got, fmt.Sprint(v.Port, " ", v.Frontend, " ", b.Addr, " ", b.Node, " ", b.Zone, " ", b.Weight))
		}
	}
	want := []string{"http 10.96.0.1:80 10.0.0.1:8080 n1 z1 7", "metrics 10.96.0.1:9090 10.0.0.2:9100 n2 z2 1"}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("backends (-want +got):\n%s", diff)
	}
}

// While there is no room for a change, the view shows whom the kernel still has.
func TestAViewTellsWhatThereIsNoRoomFor(t *testing.T) {
	n := newTestNode(t, Config{})
	n.ledger.room[policy.KindBackend] = 2
	n.SetService(web("web", "10.96.0.1"))
	n.SetBackends(behind("web", ready("10.0.0.1"), ready("10.0.0.2")))
	n.flush()
	n.SetBackends(behind("web", ready("10.0.0.2"), ready("10.0.0.3"), ready("10.0.0.4")))
	n.flush()
	want := []string{
		"10.0.0.2:8080 ready, inside chosen, outside ", "10.0.0.3:8080 ready, inside no room, outside ",
		"10.0.0.4:8080 ready, inside no room, outside ", "10.0.0.1:8080 unlisted, inside chosen, outside ",
	}
	if diff := cmp.Diff(want, n.describe(tcp("10.96.0.1:80"))); diff != "" {
		t.Errorf("backends (-want +got):\n%s", diff)
	}
	if got := n.Problems(); len(got) != 1 || !strings.Contains(got[0].Remedy, "stays in force") {
		t.Errorf("problems %v, want one that says what stays in force", got)
	}
}
