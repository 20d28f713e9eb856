package node

import (
	"log/slog"
	"maps"
	"net/netip"
	"slices"
	"testing"
	"time"

	"github.com/cilium/statedb"
	"github.com/google/go-cmp/cmp"

	"tendril.io/tendril/internal/datapath"
	"tendril.io/tendril/internal/table"
)

// air is a kernel and a link that note what an announcer does.
type air struct {
	rows   map[netip.Addr]datapath.Announcement
	others map[netip.Addr]datapath.Rival
	told   map[netip.Addr]int
	heard  map[netip.Addr]bool
	now    time.Duration
	ends   time.Duration
}

func (a *air) Announce(rows []datapath.Announcement) error {
	a.rows = map[netip.Addr]datapath.Announcement{}
	for _, row := range rows {
		a.rows[row.Addr] = row
	}
	return nil
}

func (a *air) Announced() (rows []datapath.Announcement, err error) {
	for _, row := range a.rows {
		rows = append(rows, row)
	}
	return rows, nil
}

func (a *air) Rivals() (map[netip.Addr]datapath.Rival, error) { return a.others, nil }
func (a *air) Tell(addr netip.Addr) error                     { a.told[addr]++; return nil }
func (a *air) Hear(addr netip.Addr) error                     { a.heard[addr] = true; return nil }
func (a *air) Ignore(addr netip.Addr) error                   { delete(a.heard, addr); return nil }

// voiced is an announcer of node1 with a service that has an address.
type voiced struct {
	*announcer
	*air
	config *Config
	t      *testing.T
}

var announced = netip.MustParseAddr("2001:db8::7")

func newVoiced(t *testing.T, nodes ...string) voiced {
	t.Helper()
	tables, err := table.New()
	if err != nil {
		t.Fatal(err)
	}
	out := &air{told: map[netip.Addr]int{}, heard: map[netip.Addr]bool{}, now: 100 * time.Second, ends: 105 * time.Second}
	config := &Config{}
	v := voiced{&announcer{
		configured: func() (*Config, <-chan struct{}) { return config, nil },
		tables:     tables, self: "node1", mac: [6]byte{2, 0, 0, 0, 0, 1}, kernel: out, link: out,
		lease: func() (time.Duration, <-chan struct{}) { return out.ends, nil },
		now:   func() time.Duration { return out.now }, log: slog.New(slog.DiscardHandler),
	}, out, config, t}
	for _, node := range nodes {
		hold(v, tables.Alive, &table.Alive{Node: node})
	}
	hold(v, tables.Services, &table.Service{Namespace: "shop", Name: "web", Type: "LoadBalancer", LoadBalancerIPs: []netip.Addr{announced}})
	return v
}

// hold puts a row into a table.
func hold[Row any](v voiced, into statedb.RWTable[Row], row Row) {
	v.t.Helper()
	txn := v.tables.DB.WriteTxn(into)
	defer txn.Commit()
	if _, _, err := into.Insert(txn, row); err != nil {
		v.t.Fatal(err)
	}
}

// after takes a round some time later and returns until when the address is answered for; zero: it is not.
func (v voiced) after(d time.Duration) time.Duration {
	v.t.Helper()
	v.air.now += d
	if v.held == nil {
		if err := v.resume(); err != nil {
			v.t.Fatal(err)
		}
	}
	v.choose()
	if _, err := v.round(); err != nil {
		v.t.Fatal(err)
	}
	return v.rows[announced].Until
}

func TestATakeoverWaitsAndIsToldThrice(t *testing.T) {
	v := newVoiced(t, "node1")
	if got := v.after(0); got != 0 || !v.heard[announced] {
		t.Errorf("until %s at once, heard %v, want silence and to listen", got, v.heard)
	}
	if got := v.after(takeover); got != v.ends {
		t.Errorf("until %s, want the lease's end", got)
	}
	for range 20 {
		v.ends += 250 * time.Millisecond
		if got := v.after(250 * time.Millisecond); got != v.ends {
			t.Errorf("until %s, want the lease's new end %s", got, v.ends)
		}
	}
	if v.told[announced] != tells {
		t.Errorf("told %d times, want %d", v.told[announced], tells)
	}
}

func TestAnAddressThatIsAnothersIsSilentAtOnce(t *testing.T) {
	v := newVoiced(t, "node1")
	v.after(0)
	v.after(takeover)
	hold(v, v.tables.NodeLabels, &table.NodeLabels{Node: "node1", Labels: map[string]string{excluded: ""}})
	if got := v.after(0); got != 0 || v.heard[announced] {
		t.Errorf("an excluded node answers until %s and listens: %v", got, v.heard)
	}
	hold(v, v.tables.Alive, &table.Alive{Node: "node2"})
	v.after(0)
	if owner, _ := v.Owner(announced); owner != "node2" {
		t.Errorf("the owner is %q, want node2", owner)
	}
}

func TestALocalPolicyWantsABackend(t *testing.T) {
	v := newVoiced(t, "node1", "node2")
	hold(v, v.tables.Services, &table.Service{
		Namespace: "shop", Name: "web", Type: "LoadBalancer", LoadBalancerIPs: []netip.Addr{announced}, ExternalLocal: true,
	})
	for _, step := range []struct {
		backend table.Backend
		want    string
	}{
		{table.Backend{Node: "node1", Ready: true}, "node1"},
		{table.Backend{Node: "node2", Ready: true}, "node2"},
		{table.Backend{Node: "node2", Ready: true, Terminating: true}, ""},
		{table.Backend{Node: "node1"}, ""},
	} {
		hold(v, v.tables.Backends, &table.Backends{Namespace: "shop", Service: "web", Slice: "a", Backends: []table.Backend{step.backend}})
		v.after(0)
		if owner, _ := v.Owner(announced); owner != step.want {
			t.Errorf("with %+v the owner is %q, want %q", step.backend, owner, step.want)
		}
	}
}

func TestExternalIPsAreAnnouncedOnlyWhereAskedFor(t *testing.T) {
	external, nodesOwn := netip.MustParseAddr("192.0.2.7"), netip.MustParseAddr("192.0.2.1")
	for _, asked := range []bool{false, true} {
		v := newVoiced(t, "node1")
		v.config.AnnounceExternalIPs = asked
		hold(v, v.tables.Nodes, &table.Node{Name: "node2", Addresses: []netip.Addr{nodesOwn}})
		hold(v, v.tables.Services, &table.Service{
			Namespace: "shop", Name: "web", Type: "LoadBalancer", LoadBalancerIPs: []netip.Addr{announced}, ExternalIPs: []netip.Addr{external, nodesOwn},
		})
		v.after(0)
		v.after(takeover)
		want := []netip.Addr{announced}
		if asked {
			want = []netip.Addr{external, announced}
		}
		got := slices.SortedFunc(maps.Keys(v.rows), netip.Addr.Compare)
		if diff := cmp.Diff(want, got, cmp.Comparer(func(a, b netip.Addr) bool { return a == b })); diff != "" {
			t.Errorf("asked for %v: announced (-want +got):\n%s", asked, diff)
		}
	}
}

// An external IP, too, is for a node with a backend where the policy asks for one.
func TestAnExternalIPFollowsTheLocalPolicy(t *testing.T) {
	v := newVoiced(t, "node1", "node2")
	v.config.AnnounceExternalIPs = true
	external := netip.MustParseAddr("192.0.2.7")
	hold(v, v.tables.Services, &table.Service{Namespace: "shop", Name: "web", ExternalIPs: []netip.Addr{external}, ExternalLocal: true})
	for _, node := range []string{"node1", "node2"} {
		backend := table.Backend{Node: node, Ready: true}
		hold(v, v.tables.Backends, &table.Backends{Namespace: "shop", Service: "web", Slice: "a", Backends: []table.Backend{backend}})
		v.after(0)
		if owner, _ := v.Owner(external); owner != node {
			t.Errorf("the owner is %q, want %s, which has the backend", owner, node)
		}
	}
}

// The store cannot be reached: nobody can take over, so the node goes on as long as its agent lives, and yields.
func TestWithoutALeaseANodeGoesOnAndYields(t *testing.T) {
	v := newVoiced(t, "node1")
	v.after(0)
	v.after(takeover)
	v.after(10 * time.Second)
	want := datapath.Announcement{Addr: announced, MAC: v.mac, Until: v.air.now + unleased, Yields: v.ends}
	if diff := cmp.Diff(want, v.rows[announced], cmp.Comparer(func(a, b netip.Addr) bool { return a == b })); diff != "" {
		t.Errorf("announcement (-want +got):\n%s", diff)
	}
}

// A new agent leaves what the one before it announced as it is until it has a lease itself, and then makes no pause.
func TestANewAgentGoesOnWithoutAGap(t *testing.T) {
	v := newVoiced(t, "node1")
	before := datapath.Announcement{Addr: announced, Until: 104 * time.Second}
	v.rows = map[netip.Addr]datapath.Announcement{announced: before}
	v.ends = 0
	if got := v.after(0); got != before.Until {
		t.Errorf("without a lease it has changed %s to %s", before.Until, got)
	}
	v.ends = 106 * time.Second
	if got := v.after(0); got != v.ends || v.told[announced] != 0 {
		t.Errorf("until %s, told %d times, want %s and 0", got, v.told[announced], v.ends)
	}
}

func TestARivalIsKnown(t *testing.T) {
	v := newVoiced(t, "node1")
	v.after(0)
	v.after(takeover)
	other := datapath.Rival{MAC: []byte{2, 0, 0, 0, 0, 9}, Seen: v.air.now}
	for _, step := range []struct {
		after time.Duration
		seen  time.Duration
		want  string
	}{
		{0, v.air.now, ""}, // who had it before, as it may be
		{10 * time.Second, v.air.now + 9*time.Second, "02:00:00:00:00:09"},
		{2 * rivalMemory, v.air.now + 9*time.Second, ""},
	} {
		other.Seen = step.seen
		v.others = map[netip.Addr]datapath.Rival{announced: other}
		v.after(step.after)
		if _, got := v.Owner(announced); got != step.want {
			t.Errorf("%s later the rival is %q, want %q", step.after, got, step.want)
		}
	}
}
