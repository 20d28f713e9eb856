package service

import (
	"fmt"
	"net/netip"
	"slices"
	"testing"

	"github.com/google/go-cmp/cmp"

	"tendril.io/tendril/internal/policy"
	"tendril.io/tendril/internal/table"
)

// Each mistake is told on the line of the service that made it, and costs no other service anything: of either order of
// events, and until it is mended.
func TestAMistakeIsToldAndHarmsNobodyElse(t *testing.T) {
	nodePort := func(s *table.Service) { s.Ports[0].NodePort = 30080 }
	for _, c := range []struct {
		name   string
		change func(*table.Service) // of zoo, which asks wrongly
		ant    func(*table.Service) // of its neighbour
		slice  func(*table.Backends)
		want   string
	}{
		{"a node port that another service has", nodePort, nodePort, nil,
			"0.0.0.0:30080/tcp is served by service default/ant, which asks for it too: give one of them another address or port"},
		{"a cluster address that another service has", func(s *table.Service) { s.ClusterIPs = addrs("10.96.0.1") }, nil, nil,
			"10.96.0.1:80/tcp is served by service default/ant, which asks for it too: give one of them another address or port"},
		{"an external address that is another's load balancer's", func(s *table.Service) { s.ExternalIPs = addrs("192.0.2.1") },
			func(s *table.Service) { s.LoadBalancerIPs = addrs("192.0.2.1") }, nil,
			"192.0.2.1:80/tcp is served by service default/ant, which asks for it too: give one of them another address or port"},
		{"a load balancer's address that is another's cluster address", func(s *table.Service) { s.LoadBalancerIPs = addrs("10.96.0.1") }, nil, nil,
			"10.96.0.1:80/tcp is served by service default/ant, which asks for it too: give one of them another address or port"},
		{"a node's address for the cluster", func(s *table.Service) { s.ClusterIPs = addrs("172.30.0.7") }, nil, nil,
			"clusterIP 172.30.0.7 is an address of node n7: give the service another one"},
		{"a node's external address where another has the node port", func(s *table.Service) { s.ExternalIPs, s.Ports[0].Port = addrs("172.30.0.7"), 30080 }, nodePort, nil,
			"172.30.0.7:30080/tcp is served by service default/ant, which asks for it too: give one of them another address or port"},
		{"a node port where another has a node's external address", nodePort, func(s *table.Service) {
			s.ExternalIPs = addrs("172.30.0.7")
			s.Ports = append(s.Ports, table.ServicePort{Name: "http", Protocol: 6, Port: 30080})
		}, nil, "its node port does not answer at 172.30.0.7:30080/tcp, which service default/ant has: give one of them another port"},
		{"an unknown protocol", func(s *table.Service) { s.Ports[0].Protocol = 50 }, nil, nil,
			"port 80 has IP protocol 50, which is not served: use TCP, UDP or SCTP"},
		{"endpoints without address", nil, nil, func(s *table.Backends) {
			s.Backends = append(s.Backends, table.Backend{Ready: true}, table.Backend{Ready: true, Addrs: []netip.Addr{{}}})
		}, "endpoint slice a has 2 endpoints without an address: give each an address, or take them out"},
		{"more backends than a Maglev table has slots", func(s *table.Service) { s.Algorithm = AlgorithmMaglev }, nil, func(s *table.Backends) {
			for i := range 13 {
				s.Backends = append(s.Backends, ready(fmt.Sprint("10.1.0.", i+1)))
			}
		}, "maglev table of 13 slots cannot hold 14 backends: what it had stays in force; raise maglev_size, or take the annotation for maglev away"},
		{"more backends than there are numbers", nil, nil, func(s *table.Backends) {
			for i := range 20 {
				s.Backends = append(s.Backends, ready(fmt.Sprint("10.1.0.", i+1)))
			}
		}, fmt.Sprintf("kind %d: need 1, have room for 0 of 20: what it had stays in force; raise the map's size or remove services", policy.KindBackend)},
	} {
		t.Run(c.name, func(t *testing.T) {
			zoo, ant, slice := web("zoo", "10.96.0.2"), web("ant", "10.96.0.1"), behind("zoo", ready("10.0.0.26"))
			apply(c.change, &zoo)
			apply(c.ant, &ant)
			apply(c.slice, &slice)
			for _, order := range [][]int{{0, 1, 2}, {2, 1, 0}, {1, 2, 0}, {1, 0, 2}} {
				n := newTestNode(t, Config{MaglevSize: 13})
				n.ledger.room[policy.KindBackend] = 20
				n.SetBackends(behind("ant", ready("10.0.0.1")))
				n.flush()
				events := []func(){
					func() { n.SetService(ant) },
					func() { n.SetService(zoo); n.SetBackends(slice) },
					func() { n.SetNode("n7", 7, "", addrs("172.30.0.7")...) },
				}
				for _, i := range order {
					events[i]()
					n.flush()
				}
				n.expect(t, order, "service default/zoo: "+c.want)
				for _, at := range wantedFrontends(&ant) {
					if got := n.kernel.slotsOf(at); !slices.Equal(got, []string{"10.0.0.1:8080"}) {
						t.Errorf("order %v: ant's %v leads to %v, want its backend", order, at, got)
					}
				}
				n.SetService(web("zoo", "10.96.0.9"))
				n.SetBackends(behind("zoo", ready("10.0.0.26")))
				n.flush()
				n.expect(t, order)
			}
		})
	}
}

// apply makes a change, if there is one.
func apply[Row any](change func(*Row), row *Row) {
	if change != nil {
		change(row)
	}
}

// expect compares the problems of all services.
func (n *testNode) expect(t *testing.T, order []int, want ...string) {
	t.Helper()
	var got []string
	for _, p := range n.Problems() {
		got = append(got, p.String())
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("order %v: problems (-want +got):\n%s", order, diff)
	}
}

// A node that leaves an address leaves it to services.
func TestANodesAddressIsFreeOnceTheNodeHasLeftIt(t *testing.T) {
	n := newTestNode(t, Config{})
	n.SetNode("n7", 7, "", addrs("172.30.0.7")...)
	n.SetNode("n8", 8, "", addrs("172.30.0.7")...)
	n.SetService(web("web", "172.30.0.7"))
	n.SetBackends(behind("web", ready("10.0.0.1")))
	n.flush()
	at := tcp("172.30.0.7:80")
	if got := n.kernel.slotsOf(at); got != nil {
		t.Errorf("a node's address leads to %v", got)
	}
	n.DeleteNode("n7")
	n.flush()
	if got := n.kernel.slotsOf(at); got != nil {
		t.Errorf("the address of the other node leads to %v", got)
	}
	n.SetNode("n8", 8, "", addrs("172.30.0.8")...)
	n.flush()
	if got := n.kernel.slotsOf(at); !slices.Equal(got, []string{"10.0.0.1:8080"}) {
		t.Errorf("an address that nodes have left leads to %v, want the backend", got)
	}
	n.SetNode("n9", 9, "", addrs("172.30.0.7")...)
	n.flush()
	if got := n.kernel.slotsOf(at); got != nil {
		t.Errorf("an address that a node has got leads to %v", got)
	}
	if len(n.atNodes) != 1 || len(n.nodesAt) != 2 || len(n.moved) != 0 {
		t.Errorf("the brain remembers %v %v %v", n.atNodes, n.nodesAt, n.moved)
	}
	n.DeleteService("default", "web")
	n.flush()
	if len(n.atNodes) != 0 {
		t.Errorf("left behind: %v", n.atNodes)
	}
}
