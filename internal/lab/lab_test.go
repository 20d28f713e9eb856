package lab

import (
	"context"
	"fmt"
	"io"
	"maps"
	"net"
	"net/netip"
	"os"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sync/errgroup"

	"tendril.io/tendril/internal/node"
)

// bareLab is a lab without agents, under a name of its own; it is gone when the test ends, whatever happens.
func bareLab(t *testing.T, nodes int) *Lab {
	t.Helper()
	needRoot(t)
	name := "t" + randomHex(4)
	t.Cleanup(func() {
		if err := Down(context.Background(), name); err != nil {
			t.Error(err)
		}
		if left := Leftovers(name); len(left) > 0 {
			t.Errorf("after down there is still %v", left)
		}
	})
	l, err := Up(t.Context(), Config{Name: name, Nodes: nodes, Mode: ModeBare})
	if err != nil {
		t.Fatal(err)
	}
	return l
}

func needRoot(t *testing.T) {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("needs root: it makes namespaces")
	}
}

func addPod(t *testing.T, l *Lab, on, name string) *Pod {
	t.Helper()
	pod, err := l.AddPod(t.Context(), PodSpec{Node: on, Name: name})
	if err != nil {
		t.Fatal(err)
	}
	return pod
}

// greet listens in one place and dials from another, over TCP; the answer must come from the dialled address.
func greet(ctx context.Context, from, to Place, addr netip.Addr) error {
	var listener net.Listener
	err := inNetns(to.Netns, func() (err error) {
		listener, err = net.Listen("tcp", netip.AddrPortFrom(addr, 0).String())
		return err
	})
	if err != nil {
		return err
	}
	defer listener.Close()
	var group errgroup.Group
	group.Go(func() error {
		conn, err := listener.Accept()
		if err != nil {
			return err
		}
		defer conn.Close()
		_, err = fmt.Fprint(conn, "hello")
		return err
	})
	var conn net.Conn
	err = inNetns(from.Netns, func() (err error) {
		dialer := net.Dialer{Timeout: time.Second}
		conn, err = dialer.DialContext(ctx, "tcp", listener.Addr().String())
		return err
	})
	if err != nil {
		listener.Close()
		return err
	}
	defer conn.Close()
	text, err := io.ReadAll(conn)
	if err == nil && string(text) != "hello" {
		err = fmt.Errorf("got %q", text)
	}
	return err
}

func TestPodsOfABareLabReachEachOther(t *testing.T) {
	l := bareLab(t, 2)
	a, b, c := addPod(t, l, "node1", "a"), addPod(t, l, "node1", "b"), addPod(t, l, "node2", "c")
	for _, pair := range [][2]*Pod{{a, b}, {a, c}, {c, b}} {
		for _, addr := range pair[1].Addrs {
			if err := greet(t.Context(), pair[0].Place, pair[1].Place, addr); err != nil {
				t.Errorf("%s to %s at %s: %v", pair[0].FullName(), pair[1].FullName(), addr, err)
			}
		}
	}
}

func TestNodesReachOutsideAndOutsideKnowsNoPods(t *testing.T) {
	l := bareLab(t, 1)
	pod := addPod(t, l, "node1", "a")
	host, err := l.Node("node1")
	if err != nil {
		t.Fatal(err)
	}
	for _, addr := range OutsideAddrs() {
		if err := greet(t.Context(), host, l.Outside(), addr); err != nil {
			t.Errorf("node1 to outside at %s: %v", addr, err)
		}
	}
	for _, addr := range pod.Addrs {
		if err := greet(t.Context(), l.Outside(), pod.Place, addr); err == nil {
			t.Errorf("outside reached pod address %s, though it has no route", addr)
		}
	}
}

func TestACutCableSeparatesANode(t *testing.T) {
	l := bareLab(t, 2)
	a, b := addPod(t, l, "node1", "a"), addPod(t, l, "node2", "b")
	if err := l.Cut("node2"); err != nil {
		t.Fatal(err)
	}
	if err := greet(t.Context(), a.Place, b.Place, b.Addr(4)); err == nil {
		t.Error("node2 can be reached with its cable pulled")
	}
	if err := l.Restore("node2"); err != nil {
		t.Fatal(err)
	}
	if err := greet(t.Context(), a.Place, b.Place, b.Addr(4)); err != nil {
		t.Errorf("after the cable is back: %v", err)
	}
}

func TestProcessesAreBornInTheirPlace(t *testing.T) {
	l := bareLab(t, 1)
	pod := addPod(t, l, "node1", "a")
	host, err := l.Node("node1")
	if err != nil {
		t.Fatal(err)
	}
	for _, place := range []Place{pod.Place, host, l.Outside(), l.Control()} {
		cgroup, err := place.Exec(t.Context(), "cat", "/proc/self/cgroup")
		if err != nil {
			t.Fatal(err)
		}
		want := "0::" + strings.TrimPrefix(place.Cgroup, l.cgroups) + "\n"
		if !strings.Contains(cgroup, want) {
			t.Errorf("%s: cgroups are\n%swant %s", place.Name, cgroup, want)
		}
		inside, err := place.Exec(t.Context(), "stat", "-L", "-c", "%i", "/proc/self/ns/net")
		if err != nil {
			t.Fatal(err)
		}
		named, err := os.Stat(place.Netns)
		if err != nil {
			t.Fatal(err)
		}
		if got, want := strings.TrimSpace(inside), fmt.Sprint(named.Sys().(*syscall.Stat_t).Ino); got != want {
			t.Errorf("%s: runs in namespace %s, want %s", place.Name, got, want)
		}
	}
}

func TestBackgroundProcessesAreKnownByPidAndStartTime(t *testing.T) {
	l := bareLab(t, 1)
	first, err := l.Start(l.Outside(), "sleeper", "sleep", "1000")
	if err != nil {
		t.Fatal(err)
	}
	second, err := l.Start(l.Outside(), "sleeper", "sh", "-c", "echo one; echo two; exit 3")
	if err != nil {
		t.Fatal(err)
	}
	if second.Name != "sleeper-2" {
		t.Errorf("second process is named %q, want sleeper-2", second.Name)
	}
	if status, err := second.Wait(t.Context()); err != nil || status != 3 {
		t.Errorf("exit status %d, %v, want 3", status, err)
	}
	if got, want := second.Output(), "one\ntwo\n"; got != want {
		t.Errorf("output %q, want %q", got, want)
	}
	running, err := l.Processes()
	if err != nil || len(running) != 1 || running[0].PID != first.PID {
		t.Errorf("running: %v, %v, want the first one", running, err)
	}
	impostor := *first
	impostor.Start++
	if impostor.Alive() {
		t.Error("a process with another start time is taken for ours")
	}
	if err := first.Stop(t.Context()); err != nil || first.Alive() {
		t.Errorf("stop: %v, alive %v", err, first.Alive())
	}
	if err := first.Signal(syscall.SIGKILL); err != nil {
		t.Errorf("signal to an ended process: %v", err)
	}
}

func TestStopKillsWhatDoesNotListen(t *testing.T) {
	l := bareLab(t, 1)
	deaf, err := l.Start(l.Outside(), "deaf", "sh", "-c", "trap '' TERM; echo ready; while :; do sleep 0.01; done")
	if err != nil {
		t.Fatal(err)
	}
	err = Wait(t.Context(), "the trap", 5*time.Second, func(context.Context) error {
		if deaf.Output() == "" {
			return fmt.Errorf("no output yet")
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	if err := deaf.Stop(t.Context()); err != nil || deaf.Alive() {
		t.Errorf("stop: %v, alive %v", err, deaf.Alive())
	}
}

func TestDownTakesEverythingWithIt(t *testing.T) {
	l := bareLab(t, 2)
	pod := addPod(t, l, "node1", "a")
	var started []*Process
	for _, place := range []Place{pod.Place, l.Outside(), l.Control()} {
		process, err := l.Start(place, "", "sh", "-c", "sleep 1000 & sleep 1000")
		if err != nil {
			t.Fatal(err)
		}
		started = append(started, process)
	}
	if err := l.Down(t.Context()); err != nil {
		t.Fatal(err)
	}
	for _, process := range started {
		if process.Alive() {
			t.Errorf("process %s still runs", process.Name)
		}
	}
	if left := Leftovers(l.Name); len(left) > 0 {
		t.Errorf("left over: %v", left)
	}
	if err := l.Down(t.Context()); err != nil {
		t.Errorf("down again: %v", err)
	}
}

func TestDownWorksFromTheNameAloneAfterACrash(t *testing.T) {
	l := bareLab(t, 2)
	addPod(t, l, "node1", "a")
	if _, err := l.Start(l.Outside(), "", "sleep", "1000"); err != nil {
		t.Fatal(err)
	}
	if err := os.RemoveAll(l.state()); err != nil { // nobody remembers anything
		t.Fatal(err)
	}
	if err := Down(t.Context(), l.Name); err != nil {
		t.Fatal(err)
	}
	if left := Leftovers(l.Name); len(left) > 0 {
		t.Errorf("left over: %v", left)
	}
}

func TestALabOfThatNameIsNotTouchedByAnother(t *testing.T) {
	l := bareLab(t, 1)
	_, err := Up(t.Context(), Config{Name: l.Name, Mode: ModeBare})
	if err == nil || !strings.Contains(err.Error(), "tendril lab down --lab "+l.Name) {
		t.Errorf("second lab of one name: %v, want an error that says how to stop the first", err)
	}
	if _, err := Open(l.Name); err != nil {
		t.Errorf("the first lab is gone: %v", err)
	}
}

func TestPodsAreRemovedWithoutATrace(t *testing.T) {
	l := bareLab(t, 1)
	pod := addPod(t, l, "node1", "a")
	process, err := pod.Start("sleep", "1000")
	if err != nil {
		t.Fatal(err)
	}
	if err := l.RemovePod(t.Context(), pod); err != nil {
		t.Fatal(err)
	}
	if process.Alive() {
		t.Error("a process of the removed pod still runs")
	}
	for _, path := range []string{pod.Place.Netns, pod.Place.Cgroup, l.podRecord("default", "a")} {
		if _, err := os.Stat(path); err == nil {
			t.Errorf("%s is still there", path)
		}
	}
	again := addPod(t, l, "node1", "a")
	if !slices.Equal(again.Addrs, pod.Addrs) {
		t.Errorf("addresses %v were not given back, got %v", pod.Addrs, again.Addrs)
	}
}

func TestTwoPodsOfOneNameCannotBe(t *testing.T) {
	l := bareLab(t, 1)
	first := addPod(t, l, "node1", "a")
	if _, err := l.AddPod(t.Context(), PodSpec{Node: "node1", Name: "a"}); err == nil {
		t.Error("a second pod default/a was made")
	}
	if _, err := first.Exec(t.Context(), "true"); err != nil {
		t.Errorf("the first pod was harmed: %v", err)
	}
}

func TestPodsAreFoundByName(t *testing.T) {
	l := bareLab(t, 1)
	for _, namespace := range []string{"shop", "bank"} {
		if _, err := l.AddPod(t.Context(), PodSpec{Node: "node1", Namespace: namespace, Name: "web"}); err != nil {
			t.Fatal(err)
		}
	}
	addPod(t, l, "node1", "client")
	for name, want := range map[string]string{
		"shop/web": "shop/web", "client": "default/client", "node1": "node1", "outside": "outside", "control": "control",
		"web": "several", "nobody": "no such pod",
	} {
		place, err := l.Find(name)
		if got := fmt.Sprint(place.Name, err); !strings.Contains(got, want) {
			t.Errorf("find %s: %s, want %s", name, got, want)
		}
	}
}

func TestBadSpecsAreRefusedWithTheReason(t *testing.T) {
	needRoot(t)
	for want, config := range map[string]Config{
		`lab name "a-b"`: {Name: "a-b", Mode: ModeBare},
		"nodes 200":      {Nodes: 200, Mode: ModeBare},
		`mode "ipsec"`:   {Mode: "ipsec"},
		"tendril-agent":  {BinDir: t.TempDir()},
	} {
		if _, err := Up(t.Context(), config); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("up %+v: %v, want an error about %s", config, err, want)
		}
	}
	l := bareLab(t, 1)
	for want, spec := range map[string]PodSpec{
		`node "node9"`: {Node: "node9", Name: "a"},
		"shop/A":       {Node: "node1", Namespace: "shop", Name: "A"},
		"-bad-":        {Node: "node1", Name: "a", Labels: map[string]string{"-bad-": ""}},
	} {
		if _, err := l.AddPod(t.Context(), spec); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("pod %+v: %v, want an error about %s", spec, err, want)
		}
	}
	if _, err := Open("nosuch"); err == nil || !strings.Contains(err.Error(), "tendril lab up") {
		t.Errorf("open a lab that is not there: %v", err)
	}
	if err := Down(t.Context(), "../etc"); err == nil {
		t.Error("down took a path for a name")
	}
}

func TestManyPodsCanBeMadeAtOnce(t *testing.T) {
	l := bareLab(t, 1)
	var group errgroup.Group
	for i := range 20 {
		group.Go(func() error {
			_, err := l.AddPod(t.Context(), PodSpec{Node: "node1", Name: fmt.Sprint("p", i)})
			return err
		})
	}
	if err := group.Wait(); err != nil {
		t.Fatal(err)
	}
	pods, err := l.Pods()
	if err != nil || len(pods) != 20 {
		t.Fatalf("%d pods, %v, want 20", len(pods), err)
	}
	seen := map[netip.Addr]string{}
	for _, pod := range pods {
		for _, addr := range pod.Addrs {
			if other, twice := seen[addr]; twice {
				t.Errorf("%s and %s both have %s", other, pod.Name, addr)
			}
			seen[addr] = pod.Name
		}
	}
}

func TestLabsSurviveTheFirstUseOfIPNetns(t *testing.T) {
	l := bareLab(t, 1)
	raw, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		t.Fatal(err)
	}
	if !strings.Contains(string(raw), " "+netnsRoot+" ") {
		t.Fatalf("%s is no mount of its own: a later `ip netns add` would cover the namespaces of %s", netnsRoot, l.Name)
	}
}

func TestARecordOfEachPodAndOneOfWhatTheyShare(t *testing.T) {
	l := bareLab(t, 1)
	for _, name := range []string{"a", "b"} {
		if _, err := l.AddPod(t.Context(), PodSpec{Node: "node1", Namespace: "shop", Name: name, Labels: map[string]string{"app": "x"}}); err != nil {
			t.Fatal(err)
		}
	}
	records, err := l.records()
	if err != nil {
		t.Fatal(err)
	}
	kinds := map[string]int{}
	for _, record := range records {
		kind, _, _ := strings.Cut(record.Key, "/")
		kinds[kind]++
	}
	if want := map[string]int{"pods": 2, "namespaces": 1, "labels": 1}; !maps.Equal(kinds, want) {
		t.Errorf("records %v, want %v", kinds, want)
	}
}

func TestTheAgentsReadTheConfigurationThatTheLabWrites(t *testing.T) {
	needRoot(t)
	l := &Lab{Config: Config{Nodes: 2, Mode: ModeVXLAN, IPv4: true, IPv6: true, NoFlowRecords: true, XDP: "auto",
		MapSizes: map[string]uint32{"flows": 1000}}, names: names{"x"}, cgroups: "/sys/fs/cgroup"}
	file := t.TempDir() + "/agent.json"
	if err := saveRecord(file, l.agentConfig("node2")); err != nil {
		t.Fatal(err)
	}
	got, err := node.Load(file, "")
	if err != nil {
		t.Fatal(err)
	}
	if got.Node != "node2" || got.Mode != node.ModeVXLAN || got.FlowRecords || !got.Masquerade || got.XDP != node.XDPAuto ||
		got.PodCIDRs[1].String() != "fd44:0:0:2::/64" || got.MapSizes["flows"] != 1000 ||
		got.Cgroup != "/sys/fs/cgroup/tendril-lab-x/node2" || got.BPFRoot != "/sys/fs/bpf/tendril-lab-x/node2" {
		t.Errorf("the agent reads %+v", got)
	}
}
