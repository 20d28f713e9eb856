package store

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	"go.etcd.io/etcd/api/v3/mvccpb"

	storev1 "tendril.io/tendril/api/store/v1"
	"tendril.io/tendril/internal/table"
)

func testApplier(t testing.TB) *applier {
	t.Helper()
	tables, err := table.New()
	if err != nil {
		t.Fatal(err)
	}
	return newApplier(tables)
}

// print lists every key in the tables, sorted.
func (a *applier) print() []string {
	var keys []string
	for _, shelf := range a.shelves {
		for key := range shelf.keys(a.tables.DB.ReadTxn()) {
			keys = append(keys, key.String())
		}
	}
	slices.Sort(keys)
	return keys
}

func put(t testing.TB, r Record) event { return event{key: r.Key, value: Encoded(t, r.Value)} }

func ignore(event) {}

// The writer's keys can reach a node in any order; what counts is the last state of each key.
func TestTheSameEventsInAnyOrderOfKeysEndInTheSameTables(t *testing.T) {
	var chains [][]event // each in order, among each other in none
	for i := range 6 {
		name := fmt.Sprintf("p%d", i)
		p, other := PodRecord("n1", name), NamespaceRecord(name, "a")
		chains = append(chains, []event{
			put(t, p), {key: p.Key, value: []byte{0xff}}, {key: p.Key, remove: true}, put(t, p),
		}, []event{
			put(t, other), put(t, NamespaceRecord(name, "b")), {key: other.Key, remove: i%2 == 0, value: Encoded(t, &storev1.Namespace{})},
		}, []event{
			{key: AddrKey("n1", fmt.Sprintf("10.0.0.%d", i)).String(), value: Encoded(t, IPValue(name))},
			put(t, PolicyRecord(name, "{}")),
		})
	}
	var want []string
	for seed := range uint64(200) {
		a := testApplier(t)
		a.epoch = "e1"
		random := rand.New(rand.NewPCG(seed, 1))
		left := slices.Clone(chains)
		for len(left) > 0 {
			i := random.IntN(len(left))
			a.apply(left[i][:1], ignore)
			if left[i] = left[i][1:]; len(left[i]) == 0 {
				left = slices.Delete(left, i, i+1)
			}
		}
		got := []string{fmt.Sprint("problems: ", a.listProblems())}
		for _, name := range []string{"pods", "ips", "namespaces", "policies"} {
			_, rows, err := a.tables.Show(a.tables.DB.ReadTxn(), name)
			if err != nil {
				t.Fatal(err)
			}
			got = append(got, fmt.Sprint(name, rows))
		}
		if seed == 0 {
			want = got
		}
		if diff := cmp.Diff(want, got); diff != "" {
			t.Fatalf("order %d (-first +this):\n%s", seed, diff)
		}
	}
	if !strings.Contains(strings.Join(want, ""), "p5") || strings.Contains(strings.Join(want, ""), "team=a") {
		t.Errorf("the events did not do what the test means: %v", want)
	}
}

func TestAStaleRowGoesWhenItsOwnKindIsMarkedAndNoOther(t *testing.T) {
	a := testApplier(t)
	node1, node2 := AddrKey("n1", "10.0.0.1").String(), AddrKey("n2", "10.0.1.1").String()
	a.settle("e1", map[Key]bool{}, true, ignore)
	a.apply([]event{
		put(t, PodRecord("n1", "web")), put(t, NamespaceRecord("default", "red")),
		{key: node1, value: Encoded(t, IPValue("web"))}, {key: node2, value: Encoded(t, IPValue("far"))},
		{key: "nodes/n1", value: Encoded(t, NodeValue("192.0.2.1"))},
	}, ignore)
	a.settle("e2", map[Key]bool{}, true, ignore)
	all := a.print()

	steps := []struct {
		marker string
		gone   []string
	}{
		{"synced/e1/pods", nil},
		{"synced/e2/services", nil},
		{"synced/e2/pods", []string{"pods/n1/default/web"}},
		{"synced/e2/ips/n1", []string{node1, "nodes/n1"}},
		{"synced/e2/namespaces", []string{"namespaces/default"}},
		{"synced/e2/ips/n2", []string{node2}},
	}
	for _, step := range steps {
		var pruned []string
		a.apply([]event{{key: step.marker, value: Encoded(t, &storev1.Synced{})}}, func(e event) { pruned = append(pruned, e.key) })
		slices.Sort(pruned)
		if diff := cmp.Diff(step.gone, pruned); diff != "" {
			t.Errorf("%s pruned (-want +got):\n%s", step.marker, diff)
		}
		all = slices.DeleteFunc(all, func(key string) bool { return slices.Contains(step.gone, key) })
		if diff := cmp.Diff(all, a.print(), cmpopts.EquateEmpty()); diff != "" {
			t.Errorf("after %s (-want +got):\n%s", step.marker, diff)
		}
	}
}

func TestARowWrittenAgainIsNoLongerStale(t *testing.T) {
	a := testApplier(t)
	a.settle("e1", map[Key]bool{}, true, ignore)
	a.apply([]event{put(t, PodRecord("n1", "web"))}, ignore)
	a.settle("e2", map[Key]bool{}, true, ignore)
	a.apply([]event{put(t, PodRecord("n1", "web")), {key: "synced/e2/pods"}}, ignore)
	if diff := cmp.Diff([]string{"pods/n1/default/web"}, a.print()); diff != "" {
		t.Errorf("tables (-want +got):\n%s", diff)
	}
}

func TestBetweenFillingsARemovalOnlyMakesARowStale(t *testing.T) {
	a := testApplier(t)
	a.settle("e1", map[Key]bool{}, true, ignore)
	a.apply([]event{put(t, PodRecord("n1", "web"))}, ignore)
	a.settle("", map[Key]bool{}, true, ignore)
	a.apply([]event{{key: PodRecord("n1", "web").Key, remove: true}}, ignore)
	if len(a.print()) != 1 {
		t.Error("the row went with the wipe")
	}
	a.settle("e2", map[Key]bool{syncedKey("e2", KindPod): true}, true, ignore)
	if got := a.print(); len(got) != 0 {
		t.Errorf("still there after a complete filling without it: %v", got)
	}
}

func TestMarkersOfAStoreThatWentBackDoNotCountUntilWrittenAgain(t *testing.T) {
	a := testApplier(t)
	a.settle("e1", map[Key]bool{}, true, ignore)
	a.apply([]event{put(t, PodRecord("n1", "web"))}, ignore)
	seen := map[Key]bool{syncedKey("e1", KindPod): true}
	a.settle("e1", seen, false, ignore)
	if len(a.print()) != 1 {
		t.Error("an old marker pruned a row")
	}
	a.apply([]event{{key: "synced/e1/pods"}}, ignore)
	if len(a.print()) != 0 {
		t.Error("a new marker did not prune")
	}
}

func TestAnUnchangedRecordDoesNotTouchItsTable(t *testing.T) {
	a := testApplier(t)
	a.apply([]event{put(t, PodRecord("n1", "web")), put(t, NamespaceRecord("default", "red"))}, ignore)
	before := a.tables.List(a.tables.DB.ReadTxn())
	count := 0
	a.apply([]event{put(t, PodRecord("n1", "web")), put(t, NamespaceRecord("default", "red"))}, func(event) { count++ })
	if diff := cmp.Diff(before, a.tables.List(a.tables.DB.ReadTxn())); diff != "" || count != 0 {
		t.Errorf("%d events counted as changes; tables (-before +after):\n%s", count, diff)
	}
}

// SPEC C2: two allocations for an applied event besides the row. What the table itself allocates is measured in the
// same run, by inserting ready rows, and taken off.
func TestAnAppliedPodEventCostsFewAllocations(t *testing.T) {
	const n = 2000
	raw := make([]*mvccpb.KeyValue, 0, n)
	for i := range n {
		e := put(t, PodRecord("node-1", fmt.Sprintf("web-%d", i)))
		raw = append(raw, &mvccpb.KeyValue{Key: []byte(e.key), Value: e.value})
	}
	a := testApplier(t)
	applied := testing.AllocsPerRun(1, func() {
		a = testApplier(t)
		events := make([]event, 0, n)
		for _, kv := range raw {
			events = append(events, event{key: string(kv.Key), value: kv.Value})
		}
		a.apply(events, ignore)
	})
	if got := len(a.print()); got != n {
		t.Fatalf("applied %d of %d events", got, n)
	}
	floor := tableFloor(t, n)
	beyond := (applied - floor) / n
	t.Logf("allocations an event: %.2f in all, %.2f for the table alone, %.2f beyond", applied/n, floor/n, beyond)
	if beyond > 2 {
		t.Errorf("%.2f allocations an event beyond the row and the table, want at most 2", beyond)
	}
}

// tableFloor counts the allocations of inserting n rows into empty tables. A row is three: itself, the text that its
// names are parts of, and its uid.
func tableFloor(t *testing.T, n int) float64 {
	rows := make([]*table.Pod, 0, n)
	for i := range n {
		name := fmt.Sprintf("web-%d", i)
		rows = append(rows, &table.Pod{Node: "node-1", Namespace: "default", Name: name, UID: "uid-" + name, Labels: [16]byte{1, 2, 3}})
	}
	return testing.AllocsPerRun(1, func() {
		a := testApplier(t)
		txn := a.tables.DB.WriteTxn(a.tables.Pods)
		for _, row := range rows {
			copied := *row
			copied.Name, copied.UID = strings.Clone(row.Name), strings.Clone(row.UID)
			a.tables.Pods.Insert(txn, &copied)
		}
		txn.Commit()
	})
}

func BenchmarkApplyOnePodEvent(b *testing.B) {
	a := testApplier(b)
	a.epoch = "e1"
	pod := PodRecord("node-1", "web")
	on := put(b, pod)
	pod.Value.(*storev1.Pod).HostNetwork = true
	off := put(b, pod)
	b.ReportAllocs()
	for i := 0; b.Loop(); i++ {
		e := on
		if i%2 == 0 {
			e = off
		}
		a.apply([]event{e}, ignore)
	}
}

// Were it stale for good, the snapshot file would never be true again.
func TestACounterThatIsGoneGoesWithTheMarkerOfPolicies(t *testing.T) {
	a := testApplier(t)
	a.apply([]event{{key: policyCounter().String(), value: Encoded(t, &storev1.Synced{Revision: 4})}}, ignore)
	a.settle("e1", map[Key]bool{}, true, ignore)
	if len(a.print()) != 1 || len(a.stale) != 1 {
		t.Fatalf("before the marker: rows %v, stale %v", a.print(), a.stale)
	}
	a.apply([]event{{key: syncedKey("e1", KindPolicy).String()}}, ignore)
	if len(a.print()) != 0 || len(a.stale) != 0 {
		t.Errorf("after the marker: rows %v, stale %v", a.print(), a.stale)
	}
}
