package endpoint

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/netip"
	"os"
	"runtime"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"
	"tendril.io/tendril/bpf"
	"tendril.io/tendril/internal/cni"
	"tendril.io/tendril/internal/ipam"
	"tendril.io/tendril/internal/netlink"
	"tendril.io/tendril/internal/policy"
	"tendril.io/tendril/internal/table"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// world is everything outside the manager: kernel, cluster and numbers. It outlives managers, as the real ones do.
type world struct {
	mutex     sync.Mutex
	devices   map[string]*netlink.PairState
	numbers   map[policy.Digest]uint32
	published map[netip.Addr]table.IP
	committed map[netip.Addr]func(time.Time) // withdrawals that the store has not noted
	open      int                            // programs loaded and not closed
	ifindex   uint32
	number    uint32

	calls []string
	// fail makes the call of that text and number of occurrence fail, or the caller die before or after it.
	fail      string
	failEvery bool
	dieBefore string
	dieAfter  string

	foreignStubs bool // devices carry stubs of an earlier datapath
}

func newWorld() *world {
	return &world{
		devices: make(map[string]*netlink.PairState), numbers: make(map[policy.Digest]uint32),
		published: make(map[netip.Addr]table.IP), committed: make(map[netip.Addr]func(time.Time)),
	}
}

var errFault = errors.New("injected fault")

// call does a thing that can go wrong. A caller that dies ends its goroutine: what it would do next never happens.
func (w *world) call(name string, do func()) error {
	w.mutex.Lock()
	defer w.mutex.Unlock()
	nth := name
	if n := len(slices.DeleteFunc(slices.Clone(w.calls), func(c string) bool { return c != name })); n > 0 {
		nth = fmt.Sprintf("%s#%d", name, n+1)
	}
	if w.calls = append(w.calls, name); len(w.calls) > 10_000 {
		panic("the manager calls " + name + " without end")
	}
	switch {
	case w.fail == nth || w.failEvery && w.fail == name:
		return errFault
	case w.dieBefore == nth:
		runtime.Goexit()
	}
	do()
	if w.dieAfter == nth {
		runtime.Goexit()
	}
	return nil
}

func (w *world) CreatePair(p netlink.Pair) (ifindex uint32, err error) {
	err = w.call("create", func() {
		w.ifindex++
		ifindex = w.ifindex
		w.devices[p.Device] = &netlink.PairState{IfIndex: ifindex, Joined: true, PodUp: true, HostMAC: p.HostMAC, PodMAC: p.PodMAC, PodAddrs: p.Addrs}
	})
	return ifindex, err
}

func (w *world) NetnsCookie(*os.File) (cookie uint64, err error) {
	err = w.call("cookie", func() { cookie = 4711 })
	return cookie, err
}

func (w *world) device(ifindex uint32) *netlink.PairState {
	for _, d := range w.devices {
		if d.IfIndex == ifindex {
			return d
		}
	}
	return &netlink.PairState{}
}

func (w *world) AttachClassifiers(ifindex uint32, classifiers ...netlink.Classifier) error {
	return w.call("attach", func() {
		for _, c := range classifiers {
			w.device(ifindex).Programs[c.Direction] = uint32(c.FD)
		}
	})
}

func (w *world) ConnectPair(ifindex uint32, _ [6]byte, _ []netip.Addr) error {
	return w.call("connect", func() { w.device(ifindex).Up = true })
}

func (w *world) RemovePair(device string) error {
	return w.call("remove", func() { delete(w.devices, device) })
}

func (w *world) InspectPair(device string, _ *os.File, _ string) (state netlink.PairState, err error) {
	err = w.call("inspect", func() {
		if d := w.devices[device]; d != nil {
			state = *d
		}
	})
	return state, err
}

// veth is the device that the plugin before makes for a chained pod.
const veth = "veth1"

// makeVeth is that plugin's ADD.
func (w *world) makeVeth() {
	w.ifindex++
	w.devices[veth] = &netlink.PairState{
		IfIndex: w.ifindex, Up: true, HostMAC: [6]byte{2, 1}, Joined: true, PodUp: true, PodMAC: [6]byte{2, 2},
		PodAddrs: []netip.Addr{netip.MustParseAddr("10.22.0.5"), netip.MustParseAddr("fd22::5")},
	}
}

func (w *world) FindPair(*os.File, string) (found netlink.Adopted, err error) {
	err = w.call("find", func() {
		if d := w.devices[veth]; d != nil {
			found = netlink.Adopted{Device: veth, IfIndex: d.IfIndex, HostMAC: d.HostMAC, PodMAC: d.PodMAC, MTU: 1400}
		}
	})
	return found, err
}

func (w *world) NotePod(netlink.Adopted) error { return w.call("note", func() {}) }

func (w *world) ReleasePair(a netlink.Adopted) error {
	return w.call("leave", func() {
		if d := w.devices[a.Device]; d != nil {
			d.Up, d.Programs = false, [2]uint32{}
		}
	})
}

func (w *world) Assign(_ policy.Kind, d policy.Digest, _ uint32) (first uint32, err error) {
	err = w.call("assign", func() {
		if w.numbers[d] == 0 {
			w.number++
			w.numbers[d] = w.number
		}
		first = w.numbers[d]
	})
	return first, err
}

func (w *world) Release(_ policy.Kind, d policy.Digest) {
	w.call("release", func() { delete(w.numbers, d) })
}

func (w *world) Publish(ip table.IP) error {
	return w.call("publish", func() { w.published[ip.Addr] = ip })
}

func (w *world) Withdraw(addr netip.Addr, committed func(time.Time)) error {
	return w.call("withdraw", func() {
		delete(w.published, addr)
		w.committed[addr] = committed
	})
}

// commit is the store taking note of every withdrawal.
func (w *world) commit() {
	w.mutex.Lock()
	waiting := w.committed
	w.committed = make(map[netip.Addr]func(time.Time))
	w.mutex.Unlock()
	for _, committed := range waiting {
		committed(time.Now())
	}
}

// stub is a loaded program whose descriptor says what it is an instance of.
type stub struct {
	w  *world
	fd int
}

func (s stub) FD() int { return s.fd }

func (s stub) Close() error {
	s.w.mutex.Lock()
	defer s.w.mutex.Unlock()
	s.w.open--
	return nil
}

func (w *world) loadStub(endpoint, generation uint32, entry bpf.Entry) (Program, error) {
	s := stub{w, int(endpoint*1000 + generation*10 + uint32(entry) + 1)}
	return s, w.call("load", func() { w.open++ })
}

// adoptStub says yes unless the world's stubs are some other datapath's.
func (w *world) adoptStub(_, _, _ uint32, _ bpf.Entry) (bool, error) { return !w.foreignStubs, nil }

// agent is a manager with tables and a judge.
type agent struct {
	*Manager
	tables *table.Tables
}

// newAgent starts a manager in a folder, and restores it.
func newAgent(t testing.TB, w *world, dir string) *agent {
	t.Helper()
	a := newUnrestored(t, w, dir)
	if err := a.Restore(t.Context(), cni.NewQueue(dir)); err != nil {
		t.Fatal(err)
	}
	return a
}

func newUnrestored(t testing.TB, w *world, dir string) *agent {
	t.Helper()
	tables, err := table.New()
	if err != nil {
		t.Fatal(err)
	}
	book, err := ipam.New(netip.MustParsePrefix("10.1.0.0/24"), netip.MustParsePrefix("fd01::/64"))
	if err != nil {
		t.Fatal(err)
	}
	m, err := New(Config{
		Node: "n1", Cluster: "default", StateDir: dir, MTUs: MTUs{Device: 1500, Route: 1450}, Book: book,
		Numbers: w, Links: w, LoadStub: w.loadStub, AdoptStub: w.adoptStub, Publisher: w, Tables: tables,
		IsNodeAddress: func(addr netip.Addr) bool { return addr == netip.MustParseAddr("192.0.2.1") },
		Log:           slog.New(slog.NewTextHandler(io.Discard, nil)),
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { m.Close() })
	return &agent{m, tables}
}

// judge sets the state of each endpoint that appears, until the context ends.
func (a *agent) judge(ctx context.Context, state table.EndpointState) {
	for {
		rows, changed := a.tables.Endpoints.AllWatch(a.tables.DB.ReadTxn())
		for row := range rows {
			if row.State == table.EndpointAttaching {
				a.setState(row, state)
			}
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return
		}
	}
}

func (a *agent) setState(row *table.Endpoint, state table.EndpointState) {
	judged := *row
	judged.State = state
	txn := a.tables.DB.WriteTxn(a.tables.Endpoints)
	a.tables.Endpoints.Insert(txn, &judged)
	txn.Commit()
}

// judged runs do while a judge is at work.
func (a *agent) judged(t testing.TB, state table.EndpointState, do func()) {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	var judge sync.WaitGroup
	judge.Go(func() { a.judge(ctx, state) })
	defer judge.Wait()
	defer cancel()
	do()
}

// rows returns the endpoints' table.
func (a *agent) rows() []*table.Endpoint {
	var rows []*table.Endpoint
	for row := range a.tables.Endpoints.All(a.tables.DB.ReadTxn()) {
		rows = append(rows, row)
	}
	return rows
}

// request is a CNI request for the pod default/<container>.
func request(container string) *cni.Request {
	r := &cni.Request{
		Command: cni.Add, ContainerID: container, IfName: "eth0", NetnsPath: "/run/netns/" + container,
		Args: cni.Args{
			Namespace: "default", Pod: container, UID: "uid-" + container, Labels: map[string]string{"app": container},
			NamedPorts: []cni.NamedPort{{Name: "http", Port: 80, Protocol: 6}},
		},
	}
	r.Config.Name = "tendril"
	return r
}

// containsAll says that a text has all parts.
func containsAll(text string, parts ...string) bool {
	return !slices.ContainsFunc(parts, func(part string) bool { return !strings.Contains(text, part) })
}
