package service

import (
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"tendril.io/tendril/bpf"
	"tendril.io/tendril/internal/policy"
	"tendril.io/tendril/internal/table"
)

func TestConfigNamesThePrimeThatWouldDo(t *testing.T) {
	for size, want := range map[uint32]string{0: "", 2: "", 4093: "", 4096: "nearest below is 4093", 1: "nearest below is 2", 200000: "at most 131071"} {
		err := Config{MaglevSize: size}.Validate()
		if got := err != nil && strings.Contains(err.Error(), want) || err == nil && want == ""; !got {
			t.Errorf("MaglevSize %d: got %v, want %q", size, err, want)
		}
	}
	if _, err := New(Config{MaglevSize: 9}, newLedger(t)); err == nil {
		t.Error("New accepted a table of 9 slots")
	}
	if _, err := New(Config{}, nil); err == nil {
		t.Error("New accepted no numbers")
	}
}

// What stands in the slots of one frontend, for every kind of service and endpoint.
func TestFrontendLeadsTo(t *testing.T) {
	port := func(name string, proto uint8, number uint16) table.ServicePort {
		return table.ServicePort{Name: name, Protocol: proto, Port: number}
	}
	with := func(change func(*table.Service)) table.Service {
		s := web("web", "10.96.0.1", "fd00:96::1")
		change(&s)
		return s
	}
	plain := with(func(*table.Service) {})
	here := Config{NodeName: "n1", Zone: "z1"}
	spread := behind("web", on("n1", "z1", ready("10.0.0.1")), on("n2", "z1", ready("10.0.0.2")), on("n3", "z2", ready("10.0.0.3")))
	for _, c := range []struct {
		name     string
		service  table.Service
		slices   []table.Backends
		frontend FrontendKey
		want     []string // nil: no frontend
	}{
		{"ready backends in order of address", plain,
			[]table.Backends{behind("web", ready("10.0.0.2"), ready("10.0.0.1"))}, tcp("10.96.0.1:80"), []string{"10.0.0.1:8080", "10.0.0.2:8080"}},
		{"only backends of the frontend's family", plain,
			[]table.Backends{behind("web", ready("10.0.0.1", "fd00::1"))}, tcp("[fd00:96::1]:80"), []string{"[fd00::1]:8080"}},
		{"only the first address of a family", plain,
			[]table.Backends{behind("web", ready("10.0.0.1", "10.0.0.9"))}, tcp("10.96.0.1:80"), []string{"10.0.0.1:8080"}},
		{"a v4-mapped address is IPv4", plain,
			[]table.Backends{behind("web", ready("::ffff:10.0.0.1"))}, tcp("10.96.0.1:80"), []string{"10.0.0.1:8080"}},
		{"nobody without endpoints", plain, nil, tcp("10.96.0.1:80"), []string{}},
		{"no starting backend", plain,
			[]table.Backends{behind("web", starting("10.0.0.1"), ready("10.0.0.2"))}, tcp("10.96.0.1:80"), []string{"10.0.0.2:8080"}},
		{"starting ones too if publishNotReadyAddresses", with(func(s *table.Service) { s.PublishNotReady = true }),
			[]table.Backends{behind("web", starting("10.0.0.1"), ready("10.0.0.2"))}, tcp("10.96.0.1:80"), []string{"10.0.0.1:8080", "10.0.0.2:8080"}},
		{"no draining backend while one is ready", plain,
			[]table.Backends{behind("web", draining("10.0.0.1"), ready("10.0.0.2"))}, tcp("10.96.0.1:80"), []string{"10.0.0.2:8080"}},
		{"draining backends when none is ready", plain,
			[]table.Backends{behind("web", draining("10.0.0.1"), starting("10.0.0.2"))}, tcp("10.96.0.1:80"), []string{"10.0.0.1:8080"}},
		{"backends of all slices, each once, in their best state", plain,
			[]table.Backends{behind("web", ready("10.0.0.1")), {Namespace: "default", Service: "web", Slice: "b",
				Ports: []table.NamedPort{{Name: "http", Port: 8080, Protocol: 6}}, Backends: []table.Backend{starting("10.0.0.1"), ready("10.0.0.3")}}},
			tcp("10.96.0.1:80"), []string{"10.0.0.1:8080", "10.0.0.3:8080"}},
		{"the slice's port of the same name", with(func(s *table.Service) {
			s.Ports = []table.ServicePort{port("http", 6, 80), port("metrics", 6, 9090)}
		}), []table.Backends{{Namespace: "default", Service: "web", Slice: "a",
			Ports: []table.NamedPort{{Name: "metrics", Port: 9100, Protocol: 6}, {Name: "http", Port: 8080, Protocol: 6}}, Backends: []table.Backend{ready("10.0.0.1")}}},
			tcp("10.96.0.1:9090"), []string{"10.0.0.1:9100"}},
		{"the slice's port of the same protocol", with(func(s *table.Service) {
			s.Ports = []table.ServicePort{port("dns", 17, 53), port("dns", 6, 53)}
		}), []table.Backends{{Namespace: "default", Service: "web", Slice: "a",
			Ports: []table.NamedPort{{Name: "dns", Port: 5353, Protocol: 17}, {Name: "dns", Port: 5354, Protocol: 6}}, Backends: []table.Backend{ready("10.0.0.1")}}},
			frontend("10.96.0.1:53", 17), []string{"10.0.0.1:5353"}},
		{"SCTP", with(func(s *table.Service) { s.Ports = []table.ServicePort{port("sig", 132, 36412)} }),
			[]table.Backends{{Namespace: "default", Service: "web", Slice: "a",
				Ports: []table.NamedPort{{Name: "sig", Port: 36412, Protocol: 132}}, Backends: []table.Backend{ready("10.0.0.1")}}},
			frontend("10.96.0.1:36412", 132), []string{"10.0.0.1:36412"}},
		{"nothing where the name is external", with(func(s *table.Service) { s.Type = "ExternalName" }),
			[]table.Backends{spread}, tcp("10.96.0.1:80"), nil},
		{"nothing where headless", web("web"), []table.Backends{spread}, tcp("10.96.0.1:80"), nil},
		{"this node's backends if internalTrafficPolicy is Local", with(func(s *table.Service) { s.InternalLocal = true }),
			[]table.Backends{spread}, tcp("10.96.0.1:80"), []string{"10.0.0.1:8080"}},
		{"everybody at an external address", with(func(s *table.Service) { s.ExternalIPs = addrs("192.0.2.1") }),
			[]table.Backends{spread}, tcp("192.0.2.1:80"), []string{"10.0.0.1:8080", "10.0.0.2:8080", "10.0.0.3:8080"}},
		{"everybody inside if only externalTrafficPolicy is Local", with(func(s *table.Service) {
			s.LoadBalancerIPs, s.ExternalLocal = addrs("192.0.2.1"), true
		}), []table.Backends{spread}, tcp("10.96.0.1:80"), []string{"10.0.0.1:8080", "10.0.0.2:8080", "10.0.0.3:8080"}},
		{"everybody at a node port, whatever internalTrafficPolicy is", with(func(s *table.Service) {
			s.Ports[0].NodePort, s.InternalLocal = 30080, true
		}), []table.Backends{spread}, tcp("0.0.0.0:30080"), []string{"10.0.0.1:8080", "10.0.0.2:8080", "10.0.0.3:8080"}},
		{"nothing at a node port of a family that the service has not", web("web", "fd00:96::1"),
			[]table.Backends{spread}, tcp("0.0.0.0:30080"), nil},
		{"the zone's backends if the service prefers close ones", with(func(s *table.Service) { s.TrafficDistribution = "PreferClose" }),
			[]table.Backends{spread}, tcp("10.96.0.1:80"), []string{"10.0.0.1:8080", "10.0.0.2:8080"}},
		{"this node's backends if the service prefers them", with(func(s *table.Service) { s.TrafficDistribution = "PreferSameNode" }),
			[]table.Backends{spread}, tcp("10.96.0.1:80"), []string{"10.0.0.1:8080"}},
		{"all backends if none is close", with(func(s *table.Service) { s.TrafficDistribution = "PreferSameZone" }),
			[]table.Backends{behind("web", on("n3", "z2", ready("10.0.0.3")))}, tcp("10.96.0.1:80"), []string{"10.0.0.3:8080"}},
		{"those with a hint for the zone", web("web", "10.96.0.1"),
			[]table.Backends{behind("web", hint(ready("10.0.0.1"), "z1", "z2"), hint(ready("10.0.0.2"), "z2"), hint(ready("10.0.0.3"), "z1"), hint(ready("10.0.0.4"), "z11"))},
			tcp("10.96.0.1:80"), []string{"10.0.0.1:8080", "10.0.0.3:8080"}},
		{"all if one has no hint", web("web", "10.96.0.1"),
			[]table.Backends{behind("web", hint(ready("10.0.0.1"), "z1"), hint(ready("10.0.0.2"), "z2"), ready("10.0.0.3"))},
			tcp("10.96.0.1:80"), []string{"10.0.0.1:8080", "10.0.0.2:8080", "10.0.0.3:8080"}},
		{"all if no hint is for the zone", web("web", "10.96.0.1"),
			[]table.Backends{behind("web", hint(ready("10.0.0.1"), "z3"), hint(ready("10.0.0.2"), "z2"))},
			tcp("10.96.0.1:80"), []string{"10.0.0.1:8080", "10.0.0.2:8080"}},
		{"this node's if internalTrafficPolicy is Local, whatever the hints", with(func(s *table.Service) { s.InternalLocal = true }),
			[]table.Backends{behind("web", hint(on("n1", "", ready("10.0.0.1")), "z2"), hint(on("n1", "", ready("10.0.0.2")), "z1"))},
			tcp("10.96.0.1:80"), []string{"10.0.0.1:8080", "10.0.0.2:8080"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			n := newTestNode(t, here)
			n.SetService(c.service)
			for _, slice := range c.slices {
				n.SetBackends(slice)
			}
			n.flush()
			if diff := cmp.Diff(c.want, n.kernel.slotsOf(c.frontend)); diff != "" {
				t.Errorf("slots of %v (-want +got):\n%s", c.frontend, diff)
			}
		})
	}
}

// A node learns its zone after the slices.
func TestHintsCountOnceTheZoneIsKnown(t *testing.T) {
	n := newTestNode(t, Config{})
	n.SetService(web("web", "10.96.0.1"))
	n.SetBackends(behind("web", hint(ready("10.0.0.1"), "z1"), hint(ready("10.0.0.2"), "z2")))
	n.flush()
	for _, c := range []struct {
		zone string
		want []string
	}{
		{"", []string{"10.0.0.1:8080", "10.0.0.2:8080"}}, {"z2", []string{"10.0.0.2:8080"}}, {"z1", []string{"10.0.0.1:8080"}},
	} {
		n.SetZone(c.zone)
		n.flush()
		if diff := cmp.Diff(c.want, n.kernel.slotsOf(tcp("10.96.0.1:80"))); diff != "" {
			t.Errorf("zone %q: slots (-want +got):\n%s", c.zone, diff)
		}
	}
}

// A zone by configuration goes before that of the labels, for as long as there is one.
func TestTheConfiguredZoneGoesFirst(t *testing.T) {
	n := newTestNode(t, Config{Zone: "z1"})
	n.SetService(web("web", "10.96.0.1"))
	n.SetBackends(behind("web", hint(ready("10.0.0.1"), "z1"), hint(ready("10.0.0.2"), "z2")))
	n.SetZone("z2")
	n.flush()
	for _, c := range []struct{ configured, want string }{{"z1", "10.0.0.1:8080"}, {"", "10.0.0.2:8080"}, {"z1", "10.0.0.1:8080"}} {
		n.Configure(c.configured, false)
		n.flush()
		if diff := cmp.Diff([]string{c.want}, n.kernel.slotsOf(tcp("10.96.0.1:80"))); diff != "" {
			t.Errorf("zone %q: slots (-want +got):\n%s", c.configured, diff)
		}
	}
}

// hint says for which zones a backend is.
func hint(backend table.Backend, zones ...string) table.Backend {
	backend.HintZones = zones
	return backend
}

func TestADeletedServiceLeavesNothing(t *testing.T) {
	n := newTestNode(t, Config{})
	n.SetService(web("web", "10.96.0.1"))
	n.SetBackends(behind("web", ready("10.0.0.1"), ready("10.0.0.2")))
	n.flush()
	n.DeleteService("default", "web")
	d := n.flush()
	if len(d.Removed) != 1 || len(d.Retired) != 2 {
		t.Errorf("delta removes %d frontends and %d backends, want 1 and 2", len(d.Removed), len(d.Retired))
	}
	n.DeleteBackends("default", "web", "a")
	n.DeleteBackends("default", "web", "a")
	n.DeleteService("default", "web")
	if d := n.flush(); !d.Empty() {
		t.Errorf("deleting what is gone changed something: %+v", d)
	}
	if got := n.kernel.state(); len(got) != 0 {
		t.Errorf("kernel still has %q", got)
	}
	if len(n.ledger.held) != 0 || len(n.services) != 0 || len(n.claimants) != 0 || len(n.backends) != 0 {
		t.Errorf("still held: %d numbers, %d services, %d claims, %d backends", len(n.ledger.held), len(n.services), len(n.claimants), len(n.backends))
	}
}

func TestADrainingBackendKeepsItsNumberUntilItIsGone(t *testing.T) {
	n := newTestNode(t, Config{})
	n.SetService(web("web", "10.96.0.1"))
	n.SetBackends(behind("web", ready("10.0.0.1"), ready("10.0.0.2")))
	before := n.flush().Backends[0]

	n.SetBackends(behind("web", draining("10.0.0.1"), ready("10.0.0.2")))
	d := n.flush()
	want := before
	want.State = bpf.BackendTerminating
	if diff := cmp.Diff([]BackendRow{want}, d.Retired, cmp.Comparer(sameRow)); diff != "" {
		t.Errorf("retired while draining (-want +got):\n%s", diff)
	}

	n.SetBackends(behind("web", ready("10.0.0.2")))
	want.State = bpf.BackendGone
	if diff := cmp.Diff([]BackendRow{want}, n.flush().Retired, cmp.Comparer(sameRow)); diff != "" {
		t.Errorf("gone backends (-want +got):\n%s", diff)
	}
}

// What one service sends its clients to is its own: it goes, or drains, whatever another does with the same address.
func TestAServiceLetsGoOfAnAddressThatAnotherKeeps(t *testing.T) {
	n := newTestNode(t, Config{})
	for _, name := range []string{"web", "shop"} {
		n.SetService(web(name, map[string]string{"web": "10.96.0.1", "shop": "10.96.0.2"}[name]))
		n.SetBackends(behind(name, ready("10.0.0.1"), ready("10.0.0.2")))
	}
	if d := n.flush(); len(d.Backends) != 4 {
		t.Errorf("%d backends, want two addresses for each of two services", len(d.Backends))
	}
	before := n.kernel.slotsOf(tcp("10.96.0.2:80"))
	n.SetBackends(behind("web", ready("10.0.0.2")))
	d := n.flush()
	if len(d.Retired) != 1 || d.Retired[0].State != bpf.BackendGone || d.Retired[0].Addr != addrs("10.0.0.1")[0] {
		t.Errorf("retired %+v, want the address gone from the one service", d.Retired)
	}
	if diff := cmp.Diff(before, n.kernel.slotsOf(tcp("10.96.0.2:80"))); diff != "" {
		t.Errorf("the other service (-before +after):\n%s", diff)
	}
	n.SetBackends(behind("web", draining("10.0.0.2")))
	n.SetBackends(behind("shop", ready("10.0.0.1"), draining("10.0.0.2")))
	if d := n.flush(); len(d.Retired) != 1 || d.Retired[0].State != bpf.BackendTerminating {
		t.Errorf("retired %+v, want the address draining where there is another, and only there", d.Retired)
	}
}

func TestOfTwoServicesTheFirstByNameHasTheAddress(t *testing.T) {
	n := newTestNode(t, Config{})
	n.SetService(web("zoo", "10.96.0.1"))
	n.SetBackends(behind("zoo", ready("10.0.0.26")))
	n.SetBackends(behind("ant", ready("10.0.0.1")))
	n.flush()
	who := func() string { return strings.Join(n.kernel.slotsOf(tcp("10.96.0.1:80")), " ") }
	if got := who(); got != "10.0.0.26:8080" {
		t.Fatalf("alone, zoo has %q", got)
	}

	n.SetService(web("ant", "10.96.0.1"))
	n.flush()
	if got := who(); got != "10.0.0.1:8080" {
		t.Errorf("the frontend leads to %q, want ant's backend", got)
	}
	problems := n.Problems()
	want := "service default/zoo: 10.96.0.1:80/tcp is served by service default/ant, which asks for it too: give one of them another address or port"
	if len(problems) != 1 || problems[0].String() != want {
		t.Errorf("problems %v, want %q", problems, want)
	}

	n.SetService(web("ant", "10.96.0.2"))
	n.flush()
	if got := who(); got != "10.0.0.26:8080" {
		t.Errorf("after ant moved, the frontend leads to %q, want zoo's backend", got)
	}
	if got := n.Problems(); len(got) != 0 {
		t.Errorf("problems remain: %v", got)
	}
}

// What clients of other machines are led to.
func TestOutsideLeadsTo(t *testing.T) {
	local, all := []string{"10.0.0.1:8080"}, []string{"10.0.0.1:8080", "10.0.0.2:8080"}
	for _, c := range []struct {
		name     string
		change   func(*table.Service)
		frontend FrontendKey
		want     []string // nil: nobody outside may use it
	}{
		{"nowhere at a cluster address", func(*table.Service) {}, tcp("10.96.0.1:80"), nil},
		{"every backend at a node port", func(s *table.Service) { s.Ports[0].NodePort = 30080 }, tcp("0.0.0.0:30080"), all},
		{"this node's at a node port if externalTrafficPolicy is Local", func(s *table.Service) {
			s.Ports[0].NodePort, s.ExternalLocal = 30080, true
		}, tcp("0.0.0.0:30080"), local},
		{"this node's at a load balancer's address if it is Local", func(s *table.Service) {
			s.LoadBalancerIPs, s.ExternalLocal = addrs("192.0.2.1"), true
		}, tcp("192.0.2.1:80"), local},
		{"every backend at an external address if only internalTrafficPolicy is Local", func(s *table.Service) {
			s.ExternalIPs, s.InternalLocal = addrs("192.0.2.1"), true
		}, tcp("192.0.2.1:80"), all},
	} {
		t.Run(c.name, func(t *testing.T) {
			n := newTestNode(t, Config{NodeName: "n1"})
			s := web("web", "10.96.0.1")
			c.change(&s)
			n.SetService(s)
			n.SetBackends(behind("web", on("n1", "", ready("10.0.0.1")), on("n2", "", ready("10.0.0.2"))))
			n.flush()
			if diff := cmp.Diff(c.want, n.kernel.outsideOf(c.frontend)); diff != "" {
				t.Errorf("outside slots of %v (-want +got):\n%s", c.frontend, diff)
			}
		})
	}
}

func TestSourceRangesGuardLoadBalancersOnly(t *testing.T) {
	n := newTestNode(t, Config{})
	s := web("web", "10.96.0.1")
	s.Ports[0].NodePort, s.LoadBalancerIPs = 30080, addrs("192.0.2.1")
	s.SourceRanges = append(s.SourceRanges, prefix("198.51.100.0/24"), prefix("2001:db8::/32"))
	n.SetService(s)
	n.SetBackends(behind("web", ready("10.0.0.1")))
	n.flush()
	guarded := n.kernel.frontends[tcp("192.0.2.1:80")]
	if got := n.kernel.guardsOf(guarded.Service); got != " 198.51.100.0/24 2001:db8::/32" || guarded.Flags&bpf.FrontendGuarded == 0 {
		t.Errorf("load balancer's frontend %+v for%s", guarded, got)
	}
	if at := n.kernel.frontends[tcp("0.0.0.0:30080")]; at.Flags&bpf.FrontendGuarded != 0 {
		t.Errorf("the node port is guarded, too: %+v", at)
	}
	s.SourceRanges = s.SourceRanges[:1]
	n.SetService(s)
	if d := n.flush(); len(d.Guards) != 0 || len(d.Unguarded) != 1 || len(d.Frontends) != 0 {
		t.Errorf("a range less: %+v", d)
	}
	n.DeleteService("default", "web")
	n.flush()
	if len(n.kernel.guards) != 0 {
		t.Errorf("left behind: %v", n.kernel.guards)
	}
}

func TestTwoServicesWithOneNodePortAndOneThatItselfDoubles(t *testing.T) {
	n := newTestNode(t, Config{NodeName: "n1"})
	ant, zoo := web("ant", "10.96.0.1"), web("zoo", "10.96.0.2")
	ant.Ports[0].NodePort, zoo.Ports[0].NodePort = 30080, 30080
	zoo.Type, zoo.ExternalLocal, zoo.HealthCheckNodePort = "LoadBalancer", true, 30080
	n.SetService(zoo)
	n.SetService(ant)
	n.SetBackends(behind("zoo", ready("10.0.0.26")))
	n.SetBackends(behind("ant", ready("10.0.0.1")))
	n.flush()
	if got := n.kernel.slotsOf(tcp("0.0.0.0:30080")); len(got) != 1 || got[0] != "10.0.0.1:8080" {
		t.Errorf("the node port leads to %v, want ant's backend", got)
	}
	if got := n.kernel.slotsOf(tcp("10.96.0.2:80")); len(got) != 1 {
		t.Errorf("zoo's cluster address leads to %v, want its backend", got)
	}
	var got []string
	for _, p := range n.Problems() {
		got = append(got, p.String())
	}
	want := []string{
		"service default/zoo: 0.0.0.0:30080/tcp is served by service default/ant, which asks for it too: give one of them another address or port",
		"service default/zoo: healthCheckNodePort 30080 is taken by service default/ant: give one of them another port",
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("problems (-want +got):\n%s", diff)
	}
}

// A service that finds no room keeps what it had; it gets the rest once there is room.
func TestNoRoomKeepsWhatWasThere(t *testing.T) {
	for _, kind := range []policy.Kind{policy.KindSlots, policy.KindBackend} {
		n := newTestNode(t, Config{})
		n.ledger.room[kind] = 5
		n.SetService(web("big", "10.96.0.1"))
		n.SetBackends(behind("big", ready("10.0.0.1"), ready("10.0.0.2"), ready("10.0.0.3")))
		n.SetService(web("web", "10.96.0.2"))
		n.SetBackends(behind("web", ready("10.0.1.1")))
		n.flush()
		held := len(n.ledger.held)
		before := n.kernel.state()

		n.SetBackends(behind("web", ready("10.0.1.2"), ready("10.0.1.3"), ready("10.0.1.4")))
		if d := n.flush(); !d.Empty() {
			t.Errorf("kind %d: a delta although there is no room: %+v", kind, d)
		}
		if diff := cmp.Diff(before, n.kernel.state()); diff != "" {
			t.Errorf("kind %d: the kernel changed although there was no room (-before +after):\n%s", kind, diff)
		}
		if got := len(n.ledger.held); got != held {
			t.Errorf("kind %d: %d assignments held after the roll-back, want %d", kind, got, held)
		}
		if got := n.Problems(); len(got) != 1 || !strings.Contains(got[0].String(), "service default/web: kind") {
			t.Errorf("kind %d: problems %v, want one of default/web that says which kind has no room", kind, got)
		}

		n.DeleteService("default", "big")
		n.flush() // what it releases is free only after this publication
		n.flush()
		if got := n.kernel.slotsOf(tcp("10.96.0.2:80")); len(got) != 3 {
			t.Errorf("kind %d: with room again the service has %v, want three backends", kind, got)
		}
		if got := n.Problems(); len(got) != 0 {
			t.Errorf("kind %d: problems remain: %v", kind, got)
		}
	}
}

func TestANodeThatGetsANumberChangesItsBackends(t *testing.T) {
	n := newTestNode(t, Config{Zone: "z1"})
	s := web("web", "10.96.0.1")
	s.TrafficDistribution = "PreferClose"
	n.SetService(s)
	n.SetBackends(behind("web", on("n1", "", ready("10.0.0.1")), on("n2", "", ready("10.0.0.2"))))
	n.flush()
	n.SetNode("n1", 7, "z1")
	d := n.flush()
	if len(d.Backends) != 1 || d.Backends[0].Node != 7 || len(d.Retired) != 1 {
		t.Errorf("backends %+v retired %+v, want the first on node 7 and the other retired", d.Backends, d.Retired)
	}
	if got := n.kernel.slotsOf(tcp("10.96.0.1:80")); len(got) != 1 || got[0] != "10.0.0.1:8080" {
		t.Errorf("slots %v, want the backend of the node's zone", got)
	}
	n.SetNode("n1", 9, "z1")
	if d := n.flush(); len(d.Backends) != 1 || d.Backends[0].Node != 9 || len(d.Frontends) != 0 {
		t.Errorf("delta %+v, want only the backend on node 9", d)
	}
	n.SetNode("n1", 9, "z1")
	if d := n.flush(); !d.Empty() {
		t.Errorf("the same node again changed %+v", d)
	}
	n.DeleteNode("n1")
	n.DeleteNode("n1")
	if d := n.flush(); len(d.Backends) != 2 || d.Backends[0].Node != 0 {
		t.Errorf("backends %+v, want none on a node that is gone", d.Backends)
	}
}
