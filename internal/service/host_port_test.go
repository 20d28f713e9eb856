package service

import (
	"net/netip"
	"testing"

	"github.com/google/go-cmp/cmp"

	"tendril.io/tendril/bpf"
	"tendril.io/tendril/internal/table"
)

func TestAHostPortLeadsToItsPodInBothFamilies(t *testing.T) {
	n := newTestNode(t, Config{NodeName: "n1"})
	put := func(pod string, port table.HostPort, at ...string) (name string) {
		frontend, backends := HostPort("apps", pod, "n1", addrs(at...), port)
		n.SetService(frontend)
		n.SetBackends(backends)
		return frontend.Name
	}
	if got := put("web-1", table.HostPort{Port: 8080, Target: 80, Protocol: 6}, "10.0.0.1", "fd00::1"); got != "web-1:8080/tcp" {
		t.Errorf("name %s", got)
	}
	put("dns", table.HostPort{Addr: netip.MustParseAddr("192.0.2.1"), Port: 53, Target: 5353, Protocol: 17}, "10.0.0.2", "fd00::2")
	n.flush()
	for key, want := range map[FrontendKey][]string{
		tcp("0.0.0.0:8080"):              {"10.0.0.1:80"},
		tcp("[::]:8080"):                 {"[fd00::1]:80"},
		frontend("192.0.2.1:53", 17):     {"10.0.0.2:5353"},
		frontend("[2001:db8::1]:53", 17): nil,
	} {
		if diff := cmp.Diff(want, n.kernel.slotsOf(key)); diff != "" {
			t.Errorf("%s inside (-want +got):\n%s", key, diff)
		}
		if diff := cmp.Diff(want, n.kernel.outsideOf(key)); diff != "" {
			t.Errorf("%s outside (-want +got):\n%s", key, diff)
		}
	}
}

// A loopback address is the node's alone, and a node port answers there, too.
func TestAHostPortAtLoopbackIsForTheNodeAlone(t *testing.T) {
	n := newTestNode(t, Config{NodeName: "n1", DSR: true})
	at := table.HostPort{Addr: netip.MustParseAddr("127.0.0.1"), Port: 30080, Target: 80, Protocol: 6}
	pod, backends := HostPort("apps", "web-1", "n1", addrs("10.0.0.1", "fd00::1"), at)
	n.SetService(pod)
	n.SetBackends(backends)
	n.flush()
	key := tcp("127.0.0.1:30080")
	if got := n.kernel.slotsOf(key); len(got) != 1 || got[0] != "10.0.0.1:80" {
		t.Errorf("sockets of the node are led to %v", got)
	}
	if got := n.kernel.frontends[key].Flags; got != bpf.FrontendLoopback {
		t.Errorf("flags %d, want those of loopback and of nothing outside", got)
	}
	s := web("web", "10.96.0.1")
	s.Ports[0].NodePort = 30080
	n.SetService(s)
	n.SetBackends(behind("web", ready("10.0.0.2")))
	n.flush()
	if got := n.kernel.slotsOf(key); got != nil {
		t.Errorf("where a service has the port, the host port leads to %v", got)
	}
	n.DeleteService("default", "web")
	n.flush()
	if got := n.kernel.slotsOf(key); len(got) != 1 {
		t.Errorf("once the service has gone: %v", got)
	}
}

// Whoever may make a pod may not take a port from a service, whatever the names and whoever came first.
func TestAServicesPortGoesBeforeAHostPort(t *testing.T) {
	n := newTestNode(t, Config{})
	pod, backends := HostPort("aaa", "thief", "n1", addrs("10.0.0.9"), table.HostPort{Port: 30080, Target: 80, Protocol: 6})
	n.SetService(pod)
	n.SetBackends(backends)
	n.flush()
	s := web("web", "10.96.0.1")
	s.Ports[0].NodePort = 30080
	n.SetService(s)
	n.SetBackends(behind("web", ready("10.0.0.1")))
	n.flush()
	if got := n.kernel.slotsOf(tcp("0.0.0.0:30080")); len(got) != 1 || got[0] != "10.0.0.1:8080" {
		t.Errorf("the service's node port leads to %v", got)
	}
	if problems := n.Problems(); len(problems) != 1 || problems[0].Object != "service aaa/thief:30080/tcp" {
		t.Errorf("problems %v, want the host port's", problems)
	}
}
