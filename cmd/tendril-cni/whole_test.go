package main

import (
	"context"
	"fmt"
	"io"
	"log/slog"
	"net/netip"
	"os"
	"runtime"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
	"golang.org/x/sys/unix"
	"tendril.io/tendril/bpf"
	"tendril.io/tendril/internal/cni"
	"tendril.io/tendril/internal/endpoint"
	"tendril.io/tendril/internal/ipam"
	"tendril.io/tendril/internal/netlink"
	"tendril.io/tendril/internal/policy"
	"tendril.io/tendril/internal/table"
)

// These tests go the whole way: plugin process, socket, endpoint manager, real devices in real namespaces. Only the
// datapath and the store are stood in for: by programs that let everything pass, and by a publisher that forgets.

type cluster struct {
	mutex   sync.Mutex
	numbers map[policy.Digest]uint32
	last    atomic.Uint32
}

func (c *cluster) Assign(_ policy.Kind, d policy.Digest, _ uint32) (uint32, error) {
	c.mutex.Lock()
	defer c.mutex.Unlock()
	if c.numbers[d] == 0 {
		c.numbers[d] = c.last.Add(1)
	}
	return c.numbers[d], nil
}

func (c *cluster) Release(_ policy.Kind, d policy.Digest) {
	c.mutex.Lock()
	defer c.mutex.Unlock()
	delete(c.numbers, d)
}

func (*cluster) Publish(table.IP) error { return nil }

func (*cluster) Withdraw(_ netip.Addr, committed func(time.Time)) error {
	go committed(time.Now())
	return nil
}

// loadStub loads a program of a few instructions, as a stub is.
func (*cluster) loadStub(endpoint, generation uint32, _ bpf.Entry) (endpoint.Program, error) {
	return ebpf.NewProgram(&ebpf.ProgramSpec{
		Type: ebpf.SchedCLS, License: "GPL",
		Instructions: asm.Instructions{
			asm.Mov.Imm(asm.R1, int32(endpoint)), asm.Mov.Imm(asm.R2, int32(generation)), asm.Mov.Imm(asm.R0, 0), asm.Return(),
		},
	})
}

// adoptStub takes every stub for its own: there is one datapath here.
func adoptStub(_, _, _ uint32, _ bpf.Entry) (bool, error) { return true, nil }

// newNamespace makes a network namespace that goes with its file, and returns a path to it for as long.
func newNamespace(t testing.TB) (file *os.File, path string) {
	t.Helper()
	made := make(chan *os.File)
	go func() {
		runtime.LockOSThread() // never unlocked: the thread goes with the goroutine
		if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
			t.Error(err)
			made <- nil
			return
		}
		file, err := os.Open("/proc/thread-self/ns/net")
		if err != nil {
			t.Error(err)
		}
		made <- file
	}()
	if file = <-made; file == nil {
		t.FailNow()
	}
	t.Cleanup(func() { file.Close() })
	return file, fmt.Sprintf("/proc/%d/fd/%d", os.Getpid(), file.Fd())
}

// node is an agent's CNI side in a namespace of its own.
type node struct {
	site
	manager *endpoint.Manager
	handle  *netlink.Handle
	tables  *table.Tables
}

func newNode(t testing.TB) *node {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("needs root: makes network namespaces")
	}
	file, _ := newNamespace(t)
	handle, err := netlink.OpenAt(file)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { handle.Close() })
	tables, err := table.New()
	if err != nil {
		t.Fatal(err)
	}
	n := &node{site: newSite(t), handle: handle, tables: tables}
	n.start(t, &cluster{numbers: make(map[policy.Digest]uint32)})
	return n
}

// start restores the manager, judges what it makes, and serves.
func (n *node) start(t testing.TB, c *cluster) {
	t.Helper()
	book, err := ipam.New(netip.MustParsePrefix("10.1.0.0/16"), netip.MustParsePrefix("fd01::/64"))
	if err != nil {
		t.Fatal(err)
	}
	n.manager, err = endpoint.New(endpoint.Config{
		Node: "n1", Cluster: "default", StateDir: n.dir, MTUs: endpoint.MTU(endpoint.Underlay{DeviceMTU: 1500, Tunnel: true}),
		Book: book, Numbers: c, Links: n.handle, LoadStub: c.loadStub, IsNodeAddress: func(netip.Addr) bool { return false },
		AdoptStub: adoptStub, Publisher: c, Tables: n.tables,
		Log: slog.New(slog.NewTextHandler(io.Discard, nil)),
	})
	if err != nil {
		t.Fatal(err)
	}
	if err := n.handle.PrepareNode(); err != nil {
		t.Fatal(err)
	}
	if err := n.manager.Restore(t.Context(), cni.NewQueue(n.dir)); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	var judge sync.WaitGroup
	judge.Go(func() { n.judge(ctx) })
	stop := n.listen(t, n.manager)
	t.Cleanup(func() {
		stop()
		cancel()
		judge.Wait()
		n.manager.Close()
	})
}

// judge makes every endpoint ready at once.
func (n *node) judge(ctx context.Context) {
	for {
		rows, changed := n.tables.Endpoints.AllWatch(n.tables.DB.ReadTxn())
		txn := n.tables.DB.WriteTxn(n.tables.Endpoints)
		for row := range rows {
			if now, _, found := n.tables.Endpoints.Get(txn, table.EndpointByID(row.ID)); found && now.State == table.EndpointAttaching {
				judged := *now
				judged.State = table.EndpointReady
				n.tables.Endpoints.Insert(txn, &judged)
			}
		}
		txn.Commit()
		select {
		case <-changed:
		case <-ctx.Done():
			return
		}
	}
}

// run executes the plugin for a container.
func (n *node) run(t testing.TB, command, container, netns string) string {
	t.Helper()
	out, status := n.exec(t, n.config("1.1.0"), "CNI_COMMAND="+command, "CNI_CONTAINERID="+container, "CNI_IFNAME=eth0",
		"CNI_NETNS="+netns, "CNI_ARGS=K8S_POD_NAMESPACE=default;K8S_POD_NAME="+container+";TENDRIL_LABELS=app=web")
	if status != 0 {
		t.Errorf("%s %s: %s", command, container, out)
	}
	return out
}

func TestWholeWayFromPluginToDevicesAndBack(t *testing.T) {
	n := newNode(t)
	_, netns := newNamespace(t)
	out := n.run(t, "ADD", "web", netns)
	for _, want := range []string{`"10.1.0.3/32"`, `"fd01::3/128"`, `"mtu":1450`, `"name":"eth0"`} {
		if !strings.Contains(out, want) {
			t.Errorf("result %s lacks %s", out, want)
		}
	}
	n.run(t, "CHECK", "web", netns)
	snapshot, err := n.handle.Snapshot()
	if err != nil {
		t.Fatal(err)
	}
	for _, pod := range []string{"10.1.0.3/32", "fd01::3/128"} {
		want := netip.MustParsePrefix(pod)
		if !slices.ContainsFunc(snapshot.Routes, func(r table.Route) bool {
			return r.Prefix == want && strings.HasPrefix(r.Device, endpoint.DevicePrefix)
		}) {
			t.Errorf("node has no route to %s", pod)
		}
	}
	n.run(t, "DEL", "web", netns)
	n.run(t, "DEL", "web", netns)
	if snapshot, err = n.handle.Snapshot(); err != nil || len(snapshot.Devices) != 1 {
		t.Errorf("devices after DEL: %+v, %v; want only lo", snapshot.Devices, err)
	}
	if out, status := n.exec(t, n.config("1.1.0"), "CNI_COMMAND=CHECK", "CNI_CONTAINERID=web", "CNI_IFNAME=eth0", "CNI_NETNS="+netns); status == 0 {
		t.Errorf("CHECK of a deleted container succeeded: %s", out)
	}
}

func TestCheckNoticesWhatSomebodyTookAway(t *testing.T) {
	n := newNode(t)
	file, netns := newNamespace(t)
	n.run(t, "ADD", "web", netns)
	pod, err := netlink.OpenAt(file)
	if err != nil {
		t.Fatal(err)
	}
	defer pod.Close()
	if err := pod.RemovePair("eth0"); err != nil { // takes the host's end along
		t.Fatal(err)
	}
	out, status := n.exec(t, n.config("1.1.0"), "CNI_COMMAND=CHECK", "CNI_CONTAINERID=web", "CNI_IFNAME=eth0", "CNI_NETNS="+netns)
	if got := failure(t, out, status); !strings.Contains(got.Details, "delete and add") {
		t.Errorf("printed %s", out)
	}
	n.run(t, "DEL", "web", netns)
}

// pods makes namespaces for a number of containers.
func pods(t testing.TB, count int) []string {
	paths := make([]string, count)
	for i := range paths {
		_, paths[i] = newNamespace(t)
	}
	return paths
}

// together runs a command for many containers at once and returns how long all took.
func (n *node) together(t testing.TB, command string, netns []string) time.Duration {
	start := time.Now()
	var group sync.WaitGroup
	for i, path := range netns {
		group.Go(func() { n.run(t, command, fmt.Sprint("pod-", i), path) })
	}
	group.Wait()
	return time.Since(start)
}

func TestHundredPodsAtOnceGetDifferentAddressesAndGoAgain(t *testing.T) {
	n := newNode(t)
	netns := pods(t, 100)
	n.together(t, "ADD", netns)
	seen := make(map[netip.Addr]bool)
	for row := range n.tables.Endpoints.All(n.tables.DB.ReadTxn()) {
		for _, addr := range row.Addrs {
			if seen[addr] {
				t.Errorf("address %s was given out twice", addr)
			}
			seen[addr] = true
		}
	}
	if len(seen) != 200 {
		t.Errorf("%d addresses, want 200", len(seen))
	}
	n.together(t, "DEL", netns)
	if snapshot, err := n.handle.Snapshot(); err != nil || len(snapshot.Devices) != 1 {
		t.Errorf("%d devices after all DELs, %v; want only lo", len(snapshot.Devices), err)
	}
}

// BenchmarkWhole prints the median of one ADD and one DEL after the other, and how long 30 and 100 take at once.
func BenchmarkWhole(b *testing.B) {
	n := newNode(b)
	var add, remove []time.Duration
	for b.Loop() {
		for i, path := range pods(b, 10) {
			start := time.Now()
			n.run(b, "ADD", fmt.Sprint("one-", i), path)
			middle := time.Now()
			n.run(b, "DEL", fmt.Sprint("one-", i), path)
			add, remove = append(add, middle.Sub(start)), append(remove, time.Since(middle))
		}
		for _, count := range []int{30, 100} {
			netns := pods(b, count)
			b.ReportMetric(float64(n.together(b, "ADD", netns).Milliseconds()), fmt.Sprintf("add%d-ms", count))
			b.ReportMetric(float64(n.together(b, "DEL", netns).Milliseconds()), fmt.Sprintf("del%d-ms", count))
		}
	}
	slices.Sort(add)
	slices.Sort(remove)
	b.ReportMetric(float64(add[len(add)/2].Microseconds())/1000, "add-p50-ms")
	b.ReportMetric(float64(add[len(add)*99/100].Microseconds())/1000, "add-p99-ms")
	b.ReportMetric(float64(remove[len(remove)/2].Microseconds())/1000, "del-p50-ms")
}
