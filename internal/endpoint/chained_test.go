package endpoint

import (
	"context"
	"encoding/json"
	"errors"
	"net/netip"
	"sync"
	"testing"

	"github.com/google/go-cmp/cmp"
	"tendril.io/tendril/internal/cni"
	"tendril.io/tendril/internal/table"
)

// previous is what the plugin before has answered for makeVeth's device.
const previous = `{"cniVersion":"1.1.0","interfaces":[{"name":"cni0"},{"name":"veth1"},{"name":"eth0","sandbox":"/run/netns/web"}],
	"ips":[{"interface":2,"address":"10.22.0.5/24","gateway":"10.22.0.1"},{"interface":2,"address":"fd22::5/64"}],"dns":{"domain":"example.org"}}`

// chained is a request behind another plugin.
func chained(container string) *cni.Request {
	r := request(container)
	r.Config.PrevResult = json.RawMessage(previous)
	return r
}

// addChained adds a pod whose device another plugin has made.
func addChained(t *testing.T, a *agent, w *world) *cni.Result {
	t.Helper()
	w.makeVeth()
	var result *cni.Result
	a.judged(t, table.EndpointReady, func() {
		var err error
		if result, err = a.Add(context.Background(), chained("web")); err != nil {
			t.Error(err)
		}
	})
	return result
}

// leftChained is left once the other plugin has removed its device, which must be closed and bare by then.
func leftChained(t *testing.T, a *agent, w *world) []string {
	t.Helper()
	if d := w.devices[veth]; d != nil && (d.Up || d.Programs != [2]uint32{}) {
		t.Errorf("the device is left as %+v, want it down and without programs", d)
	}
	delete(w.devices, veth)
	return left(t, a, w)
}

func TestChainedPodTakesDeviceAndAddressesAsTheyAre(t *testing.T) {
	w := newWorld()
	a := newAgent(t, w, t.TempDir())
	result := addChained(t, a, w)
	want := []string{"assign", "find", "cookie", "load", "load", "attach", "publish", "publish", "note"}
	if diff := cmp.Diff(want, w.calls); diff != "" {
		t.Errorf("calls (-want +got):\n%s", diff)
	}
	if encoded, err := result.Encode("1.1.0"); err != nil || string(encoded) != previous {
		t.Errorf("the runtime is told %s, %v; want what the plugin before said", encoded, err)
	}
	row := a.rows()[0]
	addrs := []netip.Addr{netip.MustParseAddr("10.22.0.5"), netip.MustParseAddr("fd22::5")}
	if !row.Chained || row.Device != veth || row.IfIndex != 1 || row.MTU != 1400 || row.PodMAC != [6]byte{2, 2} || row.HostMAC != [6]byte{2, 1} ||
		!cmp.Equal(row.Addrs, addrs, comparers()) {
		t.Errorf("row is %+v", row)
	}
	again, err := a.Add(t.Context(), chained("web"))
	if err != nil || string(again.Previous) != previous {
		t.Errorf("again: %+v, %v", again, err)
	}
	if err := a.Check(t.Context(), chained("web")); err != nil {
		t.Error(err)
	}
	if err := a.Del(t.Context(), request("web")); err != nil {
		t.Fatal(err)
	}
	if found := leftChained(t, a, w); found != nil {
		t.Errorf("left behind: %v", found)
	}
}

func TestBandwidthIsAcceptedAndSaidNotToHold(t *testing.T) {
	w, dir := newWorld(), t.TempDir()
	a := newAgent(t, w, dir)
	r := request("web")
	r.Args.Bandwidth = cni.Bandwidth{IngressRate: 10_000_000, EgressRate: 1_000_000}
	a.judged(t, table.EndpointReady, func() {
		if _, err := a.Add(context.Background(), r); err != nil {
			t.Error(err)
		}
	})
	want := []string{"kubernetes.io/egress-bandwidth of 1000000 bit/s is not enforced", "kubernetes.io/ingress-bandwidth of 10000000 bit/s is not enforced"}
	for _, rows := range [][]*table.Endpoint{a.rows(), newAgent(t, w, dir).rows()} {
		if diff := cmp.Diff(want, rows[0].Notes); diff != "" {
			t.Errorf("notes (-want +got):\n%s", diff)
		}
	}
}

func TestChainedAndOwnAreNotTheSamePod(t *testing.T) {
	w := newWorld()
	a := newAgent(t, w, t.TempDir())
	addChained(t, a, w)
	other := chained("web")
	other.Config.PrevResult = json.RawMessage(`{"ips":[{"address":"10.22.0.9/24"}]}`)
	for _, r := range []*cni.Request{request("web"), other} {
		if _, err := a.Add(t.Context(), r); cni.AsError(err).Code != cni.CodeInvalidEnvironment {
			t.Errorf("ADD with prevResult %s: %v, want a refusal", r.Config.PrevResult, err)
		}
	}
	second := chained("db")
	if _, err := a.Add(t.Context(), second); err == nil || !containsAll(err.Error(), "10.22.0.5", "default/web") {
		t.Errorf("another pod with the same address: %v", err)
	}
}

func TestFailureOfAnyStepClosesAChainedPod(t *testing.T) {
	for _, step := range []string{"assign", "find", "cookie", "load", "load#2", "attach", "publish", "publish#2", "note"} {
		t.Run(step, func(t *testing.T) {
			w := newWorld()
			a := newAgent(t, w, t.TempDir())
			w.makeVeth()
			w.fail = step
			a.judged(t, table.EndpointReady, func() {
				if _, err := a.Add(context.Background(), chained("web")); err == nil {
					t.Error("added")
				}
			})
			if step == "assign" || step == "find" { // nothing of the device is known yet: the runtime is told to take all back
				delete(w.devices, veth)
			}
			if found := leftChained(t, a, w); found != nil {
				t.Errorf("left behind: %v", found)
			}
			w.fail = ""
			addChained(t, a, w)
		})
	}
}

func TestDeathAnywhereClosesAChainedPodAtTheNextStart(t *testing.T) {
	for _, step := range []string{"assign", "find", "load", "attach", "publish", "note"} {
		for _, when := range []string{"before", "after"} {
			t.Run(when+" "+step, func(t *testing.T) {
				w, dir := newWorld(), t.TempDir()
				dying := newAgent(t, w, dir)
				w.makeVeth()
				w.dieAfter = step
				if when == "before" {
					w.dieBefore, w.dieAfter = step, ""
				}
				dying.judged(t, table.EndpointReady, func() {
					var dead sync.WaitGroup
					dead.Go(func() {
						dying.Add(context.Background(), chained("web"))
						t.Error("the agent lived on")
					})
					dead.Wait()
				})
				w.dieBefore, w.dieAfter, w.open = "", "", 0
				a := newAgent(t, w, dir)
				if step == "assign" || step == "find" { // no program was on it, and the ADD has failed
					delete(w.devices, veth)
				}
				if found := leftChained(t, a, w); found != nil {
					t.Errorf("left behind: %v", found)
				}
			})
		}
	}
}

func TestRestartKeepsChainedPodsAndTellsAnotherDeviceFromTheirs(t *testing.T) {
	w, dir := newWorld(), t.TempDir()
	addChained(t, newAgent(t, w, dir), w)
	a := newAgent(t, w, dir)
	if rows := a.rows(); len(rows) != 1 || rows[0].Device != veth || !rows[0].Chained {
		t.Fatalf("rows after a restart: %+v", rows)
	}
	if _, err := a.Add(t.Context(), chained("db")); err == nil || !containsAll(err.Error(), "10.22.0.5", "default/web") {
		t.Errorf("another pod with the same address: %v", err)
	}
	w.makeVeth() // the machine has booted: the name is another pod's, whose addresses are not on it
	if rows := newAgent(t, w, dir).rows(); len(rows) != 0 {
		t.Errorf("rows after a reboot: %+v", rows)
	}
}

func TestReleasedAddressOfAnotherPluginIsWithdrawnAfterARestart(t *testing.T) {
	w, dir := newWorld(), t.TempDir()
	a := newAgent(t, w, dir)
	addChained(t, a, w)
	if err := a.Del(t.Context(), request("web")); err != nil {
		t.Fatal(err)
	}
	clear(w.committed) // the store was away, and so is the agent now
	newAgent(t, w, dir)
	if len(w.committed) != 2 {
		t.Fatalf("withdrawn after the restart: %v, want both addresses", w.committed)
	}
	w.commit()
	clear(w.committed)
	newAgent(t, w, dir)
	if len(w.committed) != 0 {
		t.Errorf("withdrawn once more: %v", w.committed)
	}
}

func TestCheckNoticesWhatBecameOfAChainedPod(t *testing.T) {
	for says, change := range map[string]func(*world){
		"lacks a program":        func(w *world) { w.devices[veth].Programs[1] = 0 },
		"carries another":        func(w *world) { w.foreignStubs = true },
		"is not the other end":   func(w *world) { w.devices[veth].Joined = false },
		"lacks address fd22::5":  func(w *world) { w.devices[veth].PodAddrs = w.devices[veth].PodAddrs[:1] },
		"has index 0, not 1":     func(w *world) { w.devices[veth].HostMAC[5]++ },
		"has MAC 02:02:00:00:00": func(w *world) { w.devices[veth].PodMAC[5]++ },
		"is down":                func(w *world) { w.devices[veth].Up = false },
	} {
		w := newWorld()
		a := newAgent(t, w, t.TempDir())
		addChained(t, a, w)
		change(w)
		if err := a.Check(t.Context(), chained("web")); err == nil || !containsAll(err.Error(), says) {
			t.Errorf("CHECK: %v, want it to say %q", err, says)
		}
	}
}

func TestDeviceThatCannotBeTakenOverFailsTheAdd(t *testing.T) {
	w := newWorld()
	a := newAgent(t, w, t.TempDir())
	w.fail = "find"
	if _, err := a.Add(t.Context(), chained("web")); cni.AsError(err).Code != cni.CodeUnsupportedField || !errors.Is(err, errFault) && !containsAll(err.Error(), "injected") {
		t.Errorf("error is %v", err)
	}
}
