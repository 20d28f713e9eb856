package endpoint

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"
	"tendril.io/tendril/internal/cni"
	"tendril.io/tendril/internal/ipam"
	"tendril.io/tendril/internal/table"
)

func comparers() cmp.Options {
	return cmp.Options{
		cmp.Comparer(func(a, b netip.Addr) bool { return a == b }),
		cmp.Comparer(func(a, b netip.Prefix) bool { return a == b }),
	}
}

// add adds a pod that is judged to be ready.
func add(t testing.TB, a *agent, container string) *cni.Result {
	t.Helper()
	var result *cni.Result
	a.judged(t, table.EndpointReady, func() {
		var err error
		if result, err = a.Add(context.Background(), request(container)); err != nil {
			t.Errorf("add %s: %v", container, err)
		}
	})
	return result
}

func TestAddGoesThroughItsStepsInOrder(t *testing.T) {
	w := newWorld()
	a := newAgent(t, w, t.TempDir())
	add(t, a, "web")
	want := []string{"assign", "create", "cookie", "load", "load", "attach", "publish", "publish", "connect"}
	if diff := cmp.Diff(want, w.calls); diff != "" {
		t.Errorf("calls (-want +got):\n%s", diff)
	}
	if w.open != 0 {
		t.Errorf("%d programs were left open", w.open)
	}
}

func TestAddedPodIsInTheTableWithItsLabels(t *testing.T) {
	a := newAgent(t, newWorld(), t.TempDir())
	add(t, a, "web")
	rows := a.rows()
	if len(rows) != 1 {
		t.Fatalf("%d rows, want 1", len(rows))
	}
	got := rows[0]
	type facts struct {
		ID, Generation, IfIndex, MTU uint32
		Pod, UID, Sandbox, IfName    string
		Addrs                        []netip.Addr
		State                        table.EndpointState
		Labels                       map[string]string
		Account                      string
		Hashed                       bool
		Ports                        []table.NamedPort
	}
	want := facts{
		1, 1, 1, 1500, "default/web", "uid-web", "web", "eth0",
		[]netip.Addr{netip.MustParseAddr("10.1.0.3"), netip.MustParseAddr("fd01::3")}, table.EndpointReady,
		map[string]string{"app": "web"}, "default", true, []table.NamedPort{{Name: "http", Port: 80, Protocol: 6}},
	}
	have := facts{
		got.ID, got.Generation, got.IfIndex, got.MTU, got.Namespace + "/" + got.Pod, got.PodUID, got.Sandbox, got.IfName,
		got.Addrs, got.State, got.ArgLabels.Labels, got.ArgLabels.ServiceAccount, got.ArgLabels.Hash != [16]byte{}, got.ArgPorts,
	}
	if diff := cmp.Diff(want, have, comparers()); diff != "" {
		t.Errorf("row (-want +got):\n%s", diff)
	}
}

func TestAddTellsTheRuntimeWhatItMade(t *testing.T) {
	a := newAgent(t, newWorld(), t.TempDir())
	got := add(t, a, "web")
	e := a.lookup(cni.Attachment{ContainerID: "web", IfName: "eth0"})
	want := &cni.Result{
		Interfaces: []cni.Interface{
			{Name: e.device(), MAC: macText(e.hostMAC()), MTU: 1500},
			{Name: "eth0", MAC: macText(e.podMAC()), MTU: 1500, Sandbox: "/run/netns/web"},
		},
		IPs: []cni.IP{
			{Address: netip.MustParsePrefix("10.1.0.3/32"), Gateway: netip.MustParseAddr("10.1.0.1"), Interface: 1},
			{Address: netip.MustParsePrefix("fd01::3/128"), Gateway: netip.MustParseAddr("fd01::1"), Interface: 1},
		},
		Routes: []cni.Route{
			{Dst: netip.MustParsePrefix("0.0.0.0/0"), Via: netip.MustParseAddr("10.1.0.1"), MTU: 1450},
			{Dst: netip.MustParsePrefix("::/0"), Via: netip.MustParseAddr("fd01::1"), MTU: 1450},
		},
	}
	if diff := cmp.Diff(want, got, comparers()); diff != "" {
		t.Errorf("result (-want +got):\n%s", diff)
	}
	if len(e.device()) > 15 {
		t.Errorf("device name %s is longer than the kernel allows", e.device())
	}
}

func TestRepeatedAddGivesTheSameResult(t *testing.T) {
	w := newWorld()
	a := newAgent(t, w, t.TempDir())
	first := add(t, a, "web")
	calls := len(w.calls)
	again, err := a.Add(t.Context(), request("web"))
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(first, again, comparers()); diff != "" {
		t.Errorf("second result (-first +second):\n%s", diff)
	}
	if len(w.calls) != calls {
		t.Errorf("the second ADD called %v", w.calls[calls:])
	}
	other := request("web")
	other.NetnsPath = "/run/netns/other"
	if _, err := a.Add(t.Context(), other); err == nil || !strings.Contains(err.Error(), "delete it first") {
		t.Errorf("ADD for another namespace: %v, want a refusal", err)
	}
}

func TestParallelAddsOfOneContainerMakeOneEndpoint(t *testing.T) {
	w := newWorld()
	a := newAgent(t, w, t.TempDir())
	a.judged(t, table.EndpointReady, func() {
		var adders sync.WaitGroup
		for range 8 {
			adders.Go(func() {
				if _, err := a.Add(context.Background(), request("web")); err != nil {
					t.Error(err)
				}
			})
		}
		adders.Wait()
	})
	if len(w.devices) != 1 || len(a.rows()) != 1 {
		t.Errorf("%d devices and %d rows, want one each", len(w.devices), len(a.rows()))
	}
}

// left describes everything that is not as before any ADD.
func left(t *testing.T, a *agent, w *world) []string {
	t.Helper()
	var found []string
	note := func(bad bool, what string) {
		if bad {
			found = append(found, what)
		}
	}
	said, err := readJournal(a.journal.path)
	note(err != nil, fmt.Sprint("unreadable journal: ", err))
	note(len(w.devices) > 0, "device")
	note(len(w.numbers) > 0, "number")
	note(len(w.published) > 0, "published address")
	note(w.open != 0, "open program")
	note(len(a.rows()) > 0, "row")
	note(len(said.records) > 0, "record in the journal")
	note(len(a.Manager.endpoints) > 0, "endpoint")
	for _, address := range a.Addresses() {
		note(address.State == ipam.Used && address.Owner != ipam.OwnerRouter && address.Owner != ipam.OwnerHealth, "used address")
	}
	return found
}

func TestFailureOfAnyStepLeavesNothing(t *testing.T) {
	steps := []string{"assign", "create", "load", "load#2", "attach", "publish", "publish#2", "connect"}
	for _, step := range steps {
		t.Run(step, func(t *testing.T) {
			w := newWorld()
			a := newAgent(t, w, t.TempDir())
			w.fail = step
			a.judged(t, table.EndpointReady, func() {
				if _, err := a.Add(context.Background(), request("web")); !errors.Is(err, errFault) {
					t.Errorf("error is %v, want the fault", err)
				}
			})
			if found := left(t, a, w); found != nil {
				t.Errorf("left behind: %v", found)
			}
			add(t, a, "web") // and the next attempt succeeds
		})
	}
}

func TestAddressThatOthersMayKnowRestsAfterAFailure(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld()
		a := newAgent(t, w, t.TempDir())
		w.fail = "connect"
		a.judged(t, table.EndpointReady, func() { a.Add(context.Background(), request("web")) })
		got := add(t, a, "web")
		if got.IPs[0].Address.Addr() != netip.MustParseAddr("10.1.0.4") {
			t.Errorf("the second attempt got %s, the address of the first is known to others", got.IPs[0].Address)
		}
	})
}

func TestFailureOfUndoingIsMadeUpForLater(t *testing.T) {
	for name, finish := range map[string]func(*testing.T, *agent, *world, string) *agent{
		"by DEL": func(t *testing.T, a *agent, _ *world, _ string) *agent {
			if err := a.Del(t.Context(), request("web")); err != nil {
				t.Error(err)
			}
			return a
		},
		"by the next start": func(t *testing.T, _ *agent, w *world, dir string) *agent { return newAgent(t, w, dir) },
	} {
		t.Run(name, func(t *testing.T) {
			w, dir := newWorld(), t.TempDir()
			a := newAgent(t, w, dir)
			a.judged(t, table.EndpointReady, func() {
				w.fail, w.failEvery = "remove", true
				a.links = &failing{world: w}
				_, err := a.Add(context.Background(), request("web"))
				if err == nil || !strings.Contains(err.Error(), "undo create devices") {
					t.Errorf("error is %v, want one that says what was not undone", err)
				}
				a.links = w
			})
			w.fail, w.failEvery = "", false
			if found := left(t, finish(t, a, w, dir), w); found != nil {
				t.Errorf("left behind: %v", found)
			}
		})
	}
}

// failing is a kernel that connects nothing.
type failing struct{ *world }

func (*failing) ConnectPair(uint32, [6]byte, []netip.Addr) error { return errFault }

func TestDeathAtAnyStepLeavesNothingAfterTheNextStart(t *testing.T) {
	steps := []string{"assign", "create", "load", "load#2", "attach", "publish", "publish#2", "connect"}
	for _, step := range steps {
		for _, when := range []string{"before", "after"} {
			t.Run(when+" "+step, func(t *testing.T) {
				w, dir := newWorld(), t.TempDir()
				dying := newAgent(t, w, dir)
				if when == "before" {
					w.dieBefore = step
				} else {
					w.dieAfter = step
				}
				dying.judged(t, table.EndpointReady, func() {
					var dead sync.WaitGroup
					dead.Go(func() {
						dying.Add(context.Background(), request("web"))
						t.Error("the agent lived on")
					})
					dead.Wait()
				})
				w.dieBefore, w.dieAfter, w.open = "", "", 0 // a process takes its descriptors along
				a := newAgent(t, w, dir)
				if found := left(t, a, w); found != nil {
					t.Errorf("left behind: %v", found)
				}
				add(t, a, "web")
			})
		}
	}
}

func TestDeathAnywhereInADeletionIsMadeUpForByRepeatingIt(t *testing.T) {
	for _, step := range []string{"remove", "release", "withdraw", "withdraw#2"} {
		for _, when := range []string{"before", "after"} {
			t.Run(when+" "+step, func(t *testing.T) {
				w, dir := newWorld(), t.TempDir()
				dying := newAgent(t, w, dir)
				add(t, dying, "web")
				if when == "before" {
					w.dieBefore = step
				} else {
					w.dieAfter = step
				}
				var dead sync.WaitGroup
				dead.Go(func() { dying.Del(context.Background(), request("web")) })
				dead.Wait()
				w.dieBefore, w.dieAfter = "", ""
				a := newAgent(t, w, dir)
				if err := a.Del(t.Context(), request("web")); err != nil {
					t.Fatal(err)
				}
				if found := left(t, a, w); found != nil {
					t.Errorf("left behind: %v", found)
				}
				if len(w.committed) != 2 {
					t.Errorf("%d addresses wait for the store, want 2", len(w.committed))
				}
			})
		}
	}
}

func TestDeletionIsIdempotentAndUnknownContainersAreNoError(t *testing.T) {
	w := newWorld()
	a := newAgent(t, w, t.TempDir())
	if err := a.Del(t.Context(), request("never-seen")); err != nil {
		t.Errorf("unknown container: %v", err)
	}
	add(t, a, "web")
	for range 2 {
		if err := a.Del(t.Context(), request("web")); err != nil {
			t.Error(err)
		}
	}
	if found := left(t, a, w); found != nil {
		t.Errorf("left behind: %v", found)
	}
}

func TestAddressRestsAMinuteAfterTheStoreTookNoteEvenAcrossARestart(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w, dir := newWorld(), t.TempDir()
		a := newAgent(t, w, dir)
		add(t, a, "web")
		if err := a.Del(t.Context(), request("web")); err != nil {
			t.Fatal(err)
		}
		states := func(a *agent) (list []string) {
			for _, address := range a.Addresses() {
				if address.Owner == "default/web" {
					list = append(list, fmt.Sprint(address.Addr, " ", address.State))
				}
			}
			return list
		}
		w.committed = make(map[netip.Addr]func(time.Time)) // the agent dies before the store answers
		a = newAgent(t, w, dir)
		want := []string{"10.1.0.3 released", "fd01::3 released"}
		if diff := cmp.Diff(want, states(a)); diff != "" {
			t.Errorf("while the store does not know (-want +got):\n%s", diff)
		}
		w.commit()
		a = newAgent(t, w, dir)
		want = []string{"10.1.0.3 cooling", "fd01::3 cooling"}
		if diff := cmp.Diff(want, states(a)); diff != "" {
			t.Errorf("when the store knows (-want +got):\n%s", diff)
		}
		time.Sleep(2 * time.Minute)
		if got := states(newAgent(t, w, dir)); got != nil {
			t.Errorf("after two minutes: %v, want nothing", got)
		}
	})
}

func TestRestartLeavesRunningPodsAlone(t *testing.T) {
	w, dir := newWorld(), t.TempDir()
	first := newAgent(t, w, dir)
	result := add(t, first, "web")
	w.calls = nil
	a := newAgent(t, w, dir)
	if diff := cmp.Diff([]string{"inspect", "assign", "publish", "publish"}, w.calls); diff != "" {
		t.Errorf("calls of the restart (-want +got):\n%s", diff)
	}
	if rows := a.rows(); len(rows) != 1 || rows[0].State != table.EndpointAttaching || rows[0].ID != 1 {
		t.Errorf("rows after the restart are %+v", rows)
	}
	again, err := a.Add(t.Context(), request("web"))
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(result, again, comparers()); diff != "" {
		t.Errorf("result after the restart (-before +after):\n%s", diff)
	}
	if second := add(t, a, "db"); second.IPs[0].Address == result.IPs[0].Address {
		t.Error("an address was given out twice")
	}
	if rows := a.rows(); rows[1].Generation != 2 {
		t.Errorf("generation after the restart is %d, want 2", rows[1].Generation)
	}
}

func TestRestartMendsWhatIsMissing(t *testing.T) {
	device := deviceName(cni.Attachment{ContainerID: "web", IfName: "eth0"})
	for name, c := range map[string]struct {
		damage func(*world)
		want   []string
	}{
		"a program is gone": {
			func(w *world) { w.devices[device].Programs[1] = 0 },
			[]string{"inspect", "assign", "load", "load", "attach", "publish", "publish"},
		},
		"the device is down": {
			func(w *world) { w.devices[device].Up = false },
			[]string{"inspect", "assign", "publish", "publish", "connect"},
		},
		"the numbers were lost": {
			func(w *world) { clear(w.numbers) },
			[]string{"inspect", "assign", "load", "load", "attach", "publish", "publish"},
		},
		"the device is gone": {
			func(w *world) { clear(w.devices) },
			[]string{"inspect", "remove", "release", "withdraw", "withdraw"},
		},
	} {
		t.Run(name, func(t *testing.T) {
			w, dir := newWorld(), t.TempDir()
			add(t, newAgent(t, w, dir), "web")
			c.damage(w)
			w.calls = nil
			newAgent(t, w, dir)
			if diff := cmp.Diff(c.want, w.calls); diff != "" {
				t.Errorf("calls of the restart (-want +got):\n%s", diff)
			}
		})
	}
}

func TestRestartWithANewDatapathReplacesStubsThatAreThere(t *testing.T) {
	w, dir := newWorld(), t.TempDir()
	add(t, newAgent(t, w, dir), "web")
	a := newUnrestored(t, w, dir)
	w.foreignStubs = true
	w.calls = nil
	if err := a.Restore(t.Context(), cni.NewQueue(dir)); err != nil {
		t.Fatal(err)
	}
	want := []string{"inspect", "assign", "load", "load", "attach", "publish", "publish"}
	if diff := cmp.Diff(want, w.calls); diff != "" {
		t.Errorf("calls of the restart (-want +got):\n%s", diff)
	}
}

func TestQueuedDeletionsAreDoneAtStart(t *testing.T) {
	w, dir := newWorld(), t.TempDir()
	add(t, newAgent(t, w, dir), "web")
	raw := &cni.Raw{Command: cni.Del, ContainerID: "web", IfName: "eth0", Stdin: []byte(`{"cniVersion":"1.1.0","name":"tendril"}`)}
	if err := cni.NewQueue(dir).Put(raw); err != nil {
		t.Fatal(err)
	}
	a := newAgent(t, w, dir)
	if found := left(t, a, w); found != nil {
		t.Errorf("left behind: %v", found)
	}
}

func TestPodWithoutLabelsStartsAsInitAfterTwoSeconds(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a := newAgent(t, newWorld(), t.TempDir())
		start := time.Now()
		a.judged(t, table.EndpointInit, func() {
			if _, err := a.Add(context.Background(), request("web")); err != nil {
				t.Error(err)
			}
		})
		if took := time.Since(start); took != labelPatience {
			t.Errorf("took %s, want %s", took, labelPatience)
		}
	})
}

func TestPodWhoseLabelsArriveInTimeIsNotHeldUp(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a := newAgent(t, newWorld(), t.TempDir())
		start := time.Now()
		a.judged(t, table.EndpointInit, func() {
			go func() {
				time.Sleep(300 * time.Millisecond)
				a.setState(a.rows()[0], table.EndpointReady)
			}()
			if _, err := a.Add(context.Background(), request("web")); err != nil {
				t.Error(err)
			}
		})
		if took := time.Since(start); took != 300*time.Millisecond {
			t.Errorf("took %s, want 300ms", took)
		}
	})
}

func TestPodThatNobodyJudgesIsRefusedAndUndone(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld()
		a := newAgent(t, w, t.TempDir())
		_, err := a.Add(context.Background(), request("web"))
		if cni.AsError(err).Code != cni.CodeTryAgainLater {
			t.Errorf("error is %v, want one with code 11", err)
		}
		if found := left(t, a, w); found != nil {
			t.Errorf("left behind: %v", found)
		}
	})
}

func TestGarbageCollectionRemovesWhatTheRuntimeDoesNotKnow(t *testing.T) {
	w := newWorld()
	a := newAgent(t, w, t.TempDir())
	for _, name := range []string{"keep", "drop", "other-network"} {
		add(t, a, name)
	}
	a.lookup(cni.Attachment{ContainerID: "other-network", IfName: "eth0"}).Network = "another"
	gc := request("")
	gc.Config.ValidAttachments = []cni.Attachment{{ContainerID: "keep", IfName: "eth0"}, {ContainerID: "gone", IfName: "eth0"}}
	if err := a.GC(t.Context(), gc); err != nil {
		t.Fatal(err)
	}
	var pods []string
	for _, row := range a.rows() {
		pods = append(pods, row.Pod)
	}
	if diff := cmp.Diff([]string{"keep", "other-network"}, pods); diff != "" {
		t.Errorf("pods after GC (-want +got):\n%s", diff)
	}
}

func TestCheckNamesEverythingThatDiffers(t *testing.T) {
	w := newWorld()
	a := newAgent(t, w, t.TempDir())
	if err := a.Check(t.Context(), request("web")); cni.AsError(err).Code != cni.CodeUnknownContainer {
		t.Errorf("unknown container: %v", err)
	}
	add(t, a, "web")
	if err := a.Check(t.Context(), request("web")); err != nil {
		t.Errorf("untouched container: %v", err)
	}
	for _, device := range w.devices {
		device.Up, device.Programs[0], device.PodAddrs = false, 0, device.PodAddrs[:1]
	}
	err := a.Check(t.Context(), request("web"))
	for _, want := range []string{"is down", "lacks a program", "lacks address fd01::3", "delete and add"} {
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("error is %v, want it to say %q", err, want)
		}
	}
}

func TestAddSaysWhyNothingCanBeAdded(t *testing.T) {
	w := newWorld()
	a := newUnrestored(t, w, t.TempDir())
	if _, err := a.Add(t.Context(), request("web")); cni.AsError(err).Code != cni.CodeUnavailable || !strings.Contains(err.Error(), "starting") {
		t.Errorf("before Restore: %v", err)
	}
	if err := a.Restore(t.Context(), cni.NewQueue(t.TempDir())); err != nil {
		t.Fatal(err)
	}
	if err := a.Room(); err != nil {
		t.Errorf("after Restore: %v", err)
	}
	first := add(t, a, "web")
	for i := range 256 - 3 - 2 { // the /24 less network, router, health, broadcast and web
		if _, err := a.book.Allocate(fmt.Sprint("pod-", i), time.Now()); err != nil {
			t.Fatal(err)
		}
	}
	if err := a.Room(); err == nil || !strings.Contains(err.Error(), "10.1.0.0/24") {
		t.Errorf("without addresses: %v, want the pool's name", err)
	}
	if _, err := a.Add(t.Context(), request("late")); cni.AsError(err).Code != cni.CodeTryAgainLater || !strings.Contains(err.Error(), "10.1.0.0/24") {
		t.Errorf("added without addresses: %v, want code %d and the pool's name", err, cni.CodeTryAgainLater)
	}
	if again := add(t, a, "web"); !reflect.DeepEqual(again, first) {
		t.Errorf("a pod that has its addresses, added again: %+v, before %+v", again, first)
	}
}

func TestIncompleteConfigurationIsRefused(t *testing.T) {
	whole := newUnrestored(t, newWorld(), t.TempDir()).config
	for want, spoil := range map[string]func(*Config){
		"node and state folder": func(c *Config) { c.Node = "" },
		"state folder are":      func(c *Config) { c.StateDir = "" },
		"book, numbers":         func(c *Config) { c.Book = nil },
		"numbers, links":        func(c *Config) { c.Numbers = nil },
		"links, stubs":          func(c *Config) { c.Links = nil },
		"stubs, publisher":      func(c *Config) { c.LoadStub = nil },
		"stubs":                 func(c *Config) { c.AdoptStub = nil },
		"publisher and tables":  func(c *Config) { c.Publisher = nil },
		"tables are required":   func(c *Config) { c.Tables = nil },
		"log is required":       func(c *Config) { c.Log = nil },
		"compute them with MTU": func(c *Config) { c.MTUs.Route = 0 },
	} {
		config := whole
		config.StateDir = t.TempDir()
		spoil(&config)
		if m, err := New(config); err == nil || m != nil || !strings.Contains(err.Error(), want) {
			t.Errorf("error is %v, want it to say %q", err, want)
		}
	}
}

// TestContainerOfNoPodIsKnownByItsOwnName: podman and cnitool speak of containers only.
func TestContainerOfNoPodIsKnownByItsOwnName(t *testing.T) {
	w, dir := newWorld(), t.TempDir()
	a := newAgent(t, w, dir)
	r := request("c0ffee")
	r.Args = cni.Args{}
	a.judged(t, table.EndpointReady, func() {
		if _, err := a.Add(context.Background(), r); err != nil {
			t.Error(err)
		}
	})
	for _, a := range []*agent{a, newAgent(t, w, dir)} { // before and after a restart
		row := a.rows()[0]
		if row.Pod != "" || row.ArgLabels != nil || row.Sandbox != "c0ffee" {
			t.Errorf("row is %+v, want one without pod and labels", row)
		}
		var owners []string
		for _, address := range a.Addresses() {
			owners = append(owners, address.Owner)
		}
		want := []string{ipam.OwnerRouter, ipam.OwnerHealth, "c0ffee", ipam.OwnerRouter, ipam.OwnerHealth, "c0ffee"}
		if diff := cmp.Diff(want, owners); diff != "" {
			t.Errorf("owners (-want +got):\n%s", diff)
		}
	}
}

func TestFullDiskRefusesPodsAndLosesNoAddress(t *testing.T) {
	w, dir := newWorld(), t.TempDir()
	a := newAgent(t, w, dir)
	a.journal.close()
	before := a.Addresses()
	if _, err := a.Add(t.Context(), request("web")); err == nil || !strings.Contains(err.Error(), "journal") {
		t.Errorf("error is %v, want one about the journal", err)
	}
	if diff := cmp.Diff(before, a.Addresses(), comparers()); diff != "" {
		t.Errorf("addresses (-before +after):\n%s", diff)
	}
	if len(w.calls) != 0 {
		t.Errorf("calls without a journal: %v", w.calls)
	}
}

func TestMACsAreLocalUnicastAndDiffer(t *testing.T) {
	seen := make(map[[6]byte]bool)
	for i := range 1000 {
		e := &endpoint{record: record{Attachment: cni.Attachment{ContainerID: fmt.Sprint(i), IfName: "eth0"}}}
		for _, mac := range [][6]byte{e.podMAC(), e.hostMAC()} {
			if mac[0]&3 != 2 || seen[mac] {
				t.Fatalf("MAC %s is not local unicast, or not the only one", macText(mac))
			}
			seen[mac] = true
		}
	}
}

func TestStateFolderIsOnlyForRoot(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "state")
	newAgent(t, newWorld(), dir)
	files, err := os.ReadDir(dir)
	if err != nil || len(files) == 0 {
		t.Fatal(files, err)
	}
	if slices.ContainsFunc(files, func(f os.DirEntry) bool { i, _ := f.Info(); return i.Mode().Perm()&0o077 != 0 }) {
		t.Error("others may read the endpoints' journal")
	}
}
