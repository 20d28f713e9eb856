package endpoint

import (
	"net/netip"
	"strings"
	"testing"

	"tendril.io/tendril/internal/cni"
	"tendril.io/tendril/internal/table"
)

// asking is an ADD of a pod with a host port.
func asking(name string, port cni.HostPort) *cni.Request {
	r := request(name)
	r.Args.Namespace, r.Args.Pod, r.Args.HostPorts = "shop", name, []cni.HostPort{port}
	return r
}

// A host port is one pod's until that pod has gone, across restarts; who asks for it too is told of both.
func TestAHostPortIsOnePods(t *testing.T) {
	w, dir := newWorld(), t.TempDir()
	a := newAgent(t, w, dir)
	port := cni.HostPort{Port: 8080, Target: 80, Protocol: 6}
	adds := func(name string, port cni.HostPort) (err error) {
		a.judged(t, table.EndpointReady, func() { _, err = a.Add(t.Context(), asking(name, port)) })
		return err
	}
	if err := adds("web", port); err != nil {
		t.Fatal(err)
	}
	if rows := a.rows(); len(rows) != 1 || len(rows[0].HostPorts) != 1 || rows[0].HostPorts[0] != table.HostPort(port) {
		t.Errorf("rows %+v, want one with the host port", rows)
	}
	a.Close()
	a = newAgent(t, w, dir)
	here := port
	here.Addr = netip.MustParseAddr("192.0.2.1")
	for _, wanted := range []cni.HostPort{port, here} {
		err := adds("other", wanted)
		if err == nil || !strings.Contains(err.Error(), "shop/other") || !strings.Contains(err.Error(), "shop/web") {
			t.Errorf("%s: %v, want an error that names both pods", wanted, err)
		}
	}
	for _, free := range []cni.HostPort{{Port: 8080, Target: 80, Protocol: 17}, {Port: 8081, Target: 80, Protocol: 6}} {
		if err := adds("beside-"+strings.ReplaceAll(free.String()[2:], "/", "-"), free); err != nil {
			t.Errorf("%s: %v", free, err)
		}
	}
	elsewhere := port
	elsewhere.Addr = netip.MustParseAddr("10.96.0.1")
	if err := adds("thief", elsewhere); err == nil || !strings.Contains(err.Error(), "use an address of node n1") {
		t.Errorf("a host port at an address of somebody else: %v", err)
	}
	if err := a.Del(t.Context(), request("web")); err != nil {
		t.Fatal(err)
	}
	if err := adds("other", here); err != nil {
		t.Errorf("the pod has gone, its port stays: %v", err)
	}
}

// An ADD that fails gives its host ports back.
func TestAHostPortOfAFailedAddIsFree(t *testing.T) {
	w := newWorld()
	a := newAgent(t, w, t.TempDir())
	w.fail = "create"
	port := cni.HostPort{Port: 8080, Target: 80, Protocol: 6}
	if _, err := a.Add(t.Context(), asking("web", port)); err == nil {
		t.Fatal("a device that could not be made was no error")
	}
	w.fail = ""
	a.judged(t, table.EndpointReady, func() {
		if _, err := a.Add(t.Context(), asking("other", port)); err != nil {
			t.Error(err)
		}
	})
}
