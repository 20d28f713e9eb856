package store_test

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/google/go-cmp/cmp"
	clientv3 "go.etcd.io/etcd/client/v3"
	"google.golang.org/protobuf/proto"

	storev1 "tendril.io/tendril/api/store/v1"
	. "tendril.io/tendril/internal/store"
)

// balanced is a service of the namespace default that asks for an IPv4 address, or for the ones given.
func balanced(name string, wishes ...string) Record {
	m := &storev1.LoadBalancer{Families: []uint32{4}, Labels: map[string]string{"app": name}}
	for _, text := range wishes {
		m.Wishes = append(m.Wishes, netip.MustParseAddr(text).AsSlice())
	}
	return Record{ServiceKey("default", name).String(), &storev1.Service{Type: storev1.Service_LOAD_BALANCER, LoadBalancer: m}}
}

func poolRecord(name string, prefixes ...string) Record {
	return Record{PoolKey(name).String(), &storev1.LoadBalancerPool{Prefixes: prefixes}}
}

// given lists what services have, as "name address", and "name -" for one that was told why it has none.
func given(t *testing.T, w *world) string {
	t.Helper()
	records, err := w.writer.List(t.Context(), KindService)
	if err != nil {
		t.Fatal(err)
	}
	var all []string
	for _, r := range records {
		name := r.Key[strings.LastIndex(r.Key, "/")+1:]
		m := r.Value.(*storev1.Service).GetLoadBalancer()
		for _, g := range m.GetGrants() {
			addr, _ := netip.AddrFromSlice(g.GetAddress())
			all = append(all, name+" "+addr.String())
		}
		for range m.GetShortfalls() {
			all = append(all, name+" -")
		}
	}
	return strings.Join(all, ", ")
}

// servicesAt reads the services as they were at a revision.
func (w *world) servicesAt(revision int64, each func(key string, m *storev1.Service)) {
	w.t.Helper()
	page, err := w.raw.Get(w.t.Context(), Prefix(cluster)+"services/", clientv3.WithPrefix(), clientv3.WithRev(revision))
	if err != nil {
		w.t.Fatal(err)
	}
	for _, kv := range page.Kvs {
		m := &storev1.Service{}
		if err := proto.Unmarshal(kv.Value, m); err != nil {
			w.t.Fatal(err)
		}
		each(string(kv.Key), m)
	}
}

// noTwins wants no address at two services, at any revision from first on.
func (w *world) noTwins(first int64) {
	w.t.Helper()
	for at := first; at <= revision(w.t, w); at++ {
		owners := map[string]string{}
		w.servicesAt(at, func(key string, m *storev1.Service) {
			for _, g := range m.GetLoadBalancer().GetGrants() {
				addr, _ := netip.AddrFromSlice(g.GetAddress())
				if other := owners[addr.String()]; other != "" {
					w.t.Fatalf("revision %d: %s and %s both have %s", at, other, key, addr)
				}
				owners[addr.String()] = key
			}
		})
	}
}

func TestAddressesOfPoolsAreGivenKeptAndGivenBack(t *testing.T) {
	w := newWorld(t)
	gone := func(r Record) Record { return Record{r.Key, nil} }
	selecting := poolRecord("b", "198.51.100.1/32")
	selecting.Value.(*storev1.LoadBalancerPool).NamespaceSelector = []*storev1.Requirement{{Key: "team", Operator: "In", Values: []string{"red"}}}
	steps := []struct {
		sentence string
		records  []Record
		want     string
	}{
		{"without a pool nobody has any", []Record{balanced("one"), balanced("two")}, ""},
		{"a new pool serves those who wait", []Record{poolRecord("a", "192.0.2.0/30")}, "one 192.0.2.1, two 192.0.2.2"},
		{"what is full says so", []Record{balanced("three")}, "one 192.0.2.1, three -, two 192.0.2.2"},
		{"to apply again changes nothing", []Record{balanced("two"), balanced("three"), balanced("one")}, "one 192.0.2.1, three -, two 192.0.2.2"},
		{"what is given back is given on", []Record{gone(balanced("one"))}, "three 192.0.2.1, two 192.0.2.2"},
		{"a wish for what another has is not met", []Record{balanced("four", "192.0.2.2")}, "four -, three 192.0.2.1, two 192.0.2.2"},
		{"until he goes", []Record{gone(balanced("two"))}, "four 192.0.2.2, three 192.0.2.1"},
		{"a pool for other namespaces serves nobody", []Record{selecting, balanced("five")}, "five -, four 192.0.2.2, three 192.0.2.1"},
		{"until the namespace's labels change", []Record{NamespaceRecord("default", "red")}, "five 198.51.100.1, four 192.0.2.2, three 192.0.2.1"},
		{"addresses go with their pool", []Record{gone(poolRecord("a"))}, "five 198.51.100.1, four -, three -"},
		{"a service of another type asks for none", []Record{{ServiceKey("default", "five").String(), &storev1.Service{}}}, "four -, three 198.51.100.1"},
	}
	for _, step := range steps {
		w.apply(step.records...)
		if got := given(t, w); got != step.want {
			t.Errorf("%s: got %q, want %q", step.sentence, got, step.want)
		}
	}
}

func TestAddressesOfNodesAndPodsAreNotGiven(t *testing.T) {
	w := newWorld(t)
	w.put("nodes/n1", Encoded(t, NodeValue("10.1.1.1"))) // its pods have 10.1.0.0/24
	w.apply(poolRecord("a", "10.1.0.0/23"), balanced("one"), balanced("two"))
	if got, want := given(t, w), "one 10.1.1.0, two 10.1.1.2"; got != want {
		t.Errorf("got %q, want %q", got, want)
	}
}

func TestNoAddressIsGivenTwiceByWritersAtTheSameTime(t *testing.T) {
	w := newWorld(t)
	w.apply(poolRecord("a", "192.0.2.0/26"))
	first := revision(t, w)
	var group sync.WaitGroup
	for i := range 4 {
		group.Go(func() {
			for j := range 5 {
				if _, err := w.writer.Apply(t.Context(), []Record{balanced(fmt.Sprintf("s%d-%d", i, j))}); err != nil {
					t.Error(err)
				}
			}
		})
	}
	group.Wait()
	w.noTwins(first) // the next writer would heal it
	addrs := strings.Split(given(t, w), ", ")
	for i := range addrs {
		_, addrs[i], _ = strings.Cut(addrs[i], " ")
	}
	slices.Sort(addrs)
	if distinct := slices.Compact(slices.Clone(addrs)); len(distinct) != 20 || slices.Contains(distinct, "-") {
		t.Errorf("20 services have %v", addrs)
	}
}

// Of a change that concerns more services than fit into a transaction, no revision may show one address at two services.
func TestAtNoRevisionDoTwoServicesHaveOneAddress(t *testing.T) {
	w := newWorld(t)
	// The pool changes hands: those who wait come before those who have, by name.
	var records []Record
	for _, tier := range []string{"late", "old"} {
		for i := range 200 {
			r := balanced(fmt.Sprintf("%s-%03d", tier, i))
			r.Value.(*storev1.Service).LoadBalancer.Labels = map[string]string{"tier": tier}
			records = append(records, r)
		}
	}
	pool := func(tier string) Record {
		r := poolRecord("a", "10.0.0.0/24")
		r.Value.(*storev1.LoadBalancerPool).ServiceSelector = []*storev1.Requirement{{Key: "tier", Operator: "In", Values: []string{tier}}}
		return r
	}
	w.apply(append(slices.Clone(records), pool("old"))...)
	first := revision(t, w)
	w.apply(pool("late"))
	if got := given(t, w); strings.Count(got, "late-") != 200 || strings.Count(got, " 10.0.0.") != 200 || strings.Contains(got, "late-000 -") {
		t.Errorf("the pool is for others now, and they have: %s", got)
	}
	w.noTwins(first)
	if again := w.apply(records...); again.Written != 0 {
		t.Errorf("the outcome is not final: %+v", again)
	}
}

func TestAFillingKeepsTheAddressesThatItsRecordsCarry(t *testing.T) {
	w := newWorld(t)
	w.apply(poolRecord("a", "192.0.2.0/28"), balanced("one"), balanced("two"))
	w.apply(Record{balanced("one").Key, nil})
	var kept []Record
	for _, kind := range Filled() {
		some, err := w.writer.List(t.Context(), kind)
		if err != nil {
			t.Fatal(err)
		}
		kept = append(kept, some...)
	}
	w.wipe()
	w.fill(append(kept, balanced("early"))...)
	if diff := cmp.Diff("early 192.0.2.1, two 192.0.2.2", given(t, w)); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
}

func TestARecordTakesNobodysAddressByCarryingIt(t *testing.T) {
	w := newWorld(t)
	w.apply(poolRecord("a", "192.0.2.0/28"), balanced("owner"))
	thief := balanced("a-thief") // comes before the owner by name
	thief.Value.(*storev1.Service).LoadBalancer.Grants = []*storev1.Grant{{Address: []byte{192, 0, 2, 1}, Pool: "a"}}
	w.apply(thief)
	if got, want := given(t, w), "a-thief 192.0.2.2, owner 192.0.2.1"; got != want {
		t.Errorf("got %q, want %q", got, want)
	}
}

// Each transaction but the first is answered from what the one before it left; whoever asks for everybody must find it right.
func TestTheTransactionsOfALargeApplyLeaveNothingForTheNextApply(t *testing.T) {
	w := newWorld(t)
	many := func(from, to int, gone bool) (all []Record) {
		for i := from; i < to; i++ {
			r := balanced(fmt.Sprintf("s%03d", i))
			if gone {
				r.Value = nil
			}
			all = append(all, r)
		}
		return all
	}
	asking := balanced("s777", "192.0.2.5")
	w.apply(NamespaceRecord("default", "red"))
	for _, step := range []struct {
		sentence   string
		records    []Record
		have, told int
	}{
		{"a pool of 254 for 200", append(many(0, 200, false), poolRecord("a", "192.0.2.0/24")), 200, 200},
		{"another 200 use it up", many(200, 400, false), 254, 400},
		{"what is known, and some more", many(100, 600, false), 254, 600},
		{"who goes makes room, in the same apply", append(many(0, 200, true), asking), 254, 401},
		{"all fit", many(200, 500, true), 101, 101},
		{"some come while others go", append(many(0, 140, false), many(500, 600, true)...), 141, 141},
	} {
		w.apply(step.records...)
		text := given(t, w)
		if have := strings.Count(text, "192.0.2."); have != step.have {
			t.Errorf("%s: %d services have an address, want %d", step.sentence, have, step.have)
		}
		if all := len(strings.Split(text, ", ")); all != step.told {
			t.Errorf("%s: %d services have an address or are told why not, want %d", step.sentence, all, step.told)
		}
		if again := w.apply(NamespaceRecord("default", "red")); again.Written > 0 {
			t.Errorf("%s: asking for everybody changes %d records", step.sentence, again.Written)
		}
	}
	w.noTwins(1)
}

// A writer that asks for everybody with each of its transactions looks at 64 times as many for eight times as many.
func TestTheCostOfALargeApplyGrowsWithItsServicesAndNotWithTheirSquare(t *testing.T) {
	w := newWorld(t)
	w.apply(poolRecord("a", "198.18.0.0/16"))
	looked := func(services int) (sum int) {
		var all, gone []Record
		for i := range services {
			r := balanced(fmt.Sprintf("s%05d", i))
			all, gone = append(all, r), append(gone, Record{r.Key, nil})
		}
		sum = w.apply(all...).Looked
		for _, r := range all {
			r.Value.(*storev1.Service).LoadBalancer.Labels = map[string]string{"changed": "yes"}
		}
		sum += w.apply(all...).Looked
		if got := strings.Count(given(t, w), "198.18."); got != services {
			t.Fatalf("%d services have an address, want %d", got, services)
		}
		return sum + w.apply(gone...).Looked
	}
	few, many := looked(1000), looked(8000)
	if few < 3000 || many > 9*few {
		t.Errorf("1,000 services are looked at %d times, 8,000 %d times: %.1f times as often, want at most 9",
			few, many, float64(many)/float64(few))
	}
}
