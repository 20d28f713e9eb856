package store_test

import (
	"bytes"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	clientv3 "go.etcd.io/etcd/client/v3"
	"google.golang.org/protobuf/proto"

	storev1 "tendril.io/tendril/api/store/v1"
	. "tendril.io/tendril/internal/store"
)

func TestAnAgentSeesTheStoreFirstWholeAndThenChangeByChange(t *testing.T) {
	w := newWorld(t)
	w.fill(PodRecord("n1", "web"), NamespaceRecord("default", "red"), NodeLabelsRecord("n1", "edge"), CIDRGroupRecord("office", "203.0.113.0/24"))
	a := w.agent("n1")
	a.untilSynced()
	select {
	case <-a.client.Synced():
	default:
		t.Error("synced is still open")
	}
	want := []string{
		"cidrgroups office 203.0.113.0/24 -",
		"counters pools 1", // namespaces have a say in pools of addresses
		"namespaces default team=red",
		"nodelabels n1 role=edge",
		"pods n1 default web uid-web 01020300000000000000000000000000 - -",
	}
	if diff := cmp.Diff(want, a.rows()); diff != "" {
		t.Errorf("tables (-want +got):\n%s", diff)
	}

	a.caughtUp(w.apply(NamespaceRecord("default", "blue"), PodRecord("n1", "db"), Record{PodRecord("n1", "web").Key, nil},
		NodeLabelsRecord("n1", "core"), Record{CIDRGroupRecord("office").Key, nil}, CIDRGroupRecord("shop", "2001:db8::/32")).Revision)
	want = []string{
		"cidrgroups shop 2001:db8::/32 -",
		"counters pools 2",
		"namespaces default team=blue",
		"nodelabels n1 role=core",
		"pods n1 default db uid-db 01020300000000000000000000000000 - -",
	}
	if diff := cmp.Diff(want, a.rows()); diff != "" {
		t.Errorf("tables (-want +got):\n%s", diff)
	}
	if s := a.client.Status(); s.Counters.Snapshots != 1 || !s.Connected || len(s.Problems) != 0 {
		t.Errorf("status: %+v", s)
	}
}

// A removal has no row: the counter says that it has come.
func TestARemovedPolicyComesWithItsNumber(t *testing.T) {
	w := newWorld(t)
	w.fill(PolicyRecord("a", "{}"), PolicyRecord("b", "{}"))
	a := w.agent("n1")
	a.untilSynced()
	a.untilHas("counters policies 2")
	w.apply(Record{PolicyRecord("a", "").Key, nil})
	a.untilHas("counters policies 3")
	if a.has("default a") { // they come in one transaction: no reader sees the number first
		t.Errorf("the number is there, and the policy too: %v", a.rows())
	}

	// Away while the next one goes: the file has the number, and the store the next.
	a.stop()
	w.apply(Record{PolicyRecord("b", "").Key, nil})
	a = w.agent("n1")
	a.untilHas("counters policies 4")
	if a.has("policies NetworkPolicy") {
		t.Errorf("the number is there, and the policy too: %v", a.rows())
	}
	if c := a.client.Status().Counters; c.Snapshots != 0 || c.Resumes == 0 {
		t.Errorf("the watch was not resumed: %+v", c)
	}

	// Filled anew with fewer: the numbers begin anew, and the file is kept again.
	a.untilSynced()
	w.wipe()
	w.fill(PolicyRecord("c", "{}"))
	a.untilHas("counters policies 1")
	a.untilSynced()
	a.stop()
	w.halt()
	a = w.agent("n1")
	a.untilHas("counters policies 1")
}

func TestAWatchResumesAfterTheStoreWasAway(t *testing.T) {
	w := newWorld(t)
	w.fill(PodRecord("n1", "web"))
	a := w.agent("n1")
	a.untilSynced()
	w.halt()
	until(t, "the agent notices", func() bool { return !a.client.Status().Connected })
	if !a.has("web") {
		t.Error("the pod vanished with the store")
	}
	w.start()
	w.apply(PodRecord("n1", "late"))
	a.untilHas("late")
	if c := a.client.Status().Counters; c.Snapshots != 1 || c.Resumes == 0 {
		t.Errorf("the watch was not resumed: %+v", c)
	}
}

func TestNoRowVanishesWhileTheStoreIsWipedAndRefilled(t *testing.T) {
	w := newWorld(t)
	w.fill(PodRecord("n1", "web"), PodRecord("n1", "old"), NamespaceRecord("default", "red"))
	a := w.agent("n1")
	a.set(AddrKey("n1", "10.1.0.5"), IPValue("web"))
	a.set(NodeKey("n1"), NodeValue("192.0.2.1"))
	a.untilSynced()
	a.untilHas("ips n1 10.1.0.5")
	before := a.rows()

	w.wipe()
	until(t, "the agent sees the empty store", func() bool { s := a.client.Status(); return s.Connected && s.Epoch == "" })
	if diff := cmp.Diff(before, a.rows()); diff != "" {
		t.Errorf("with the store empty (-before +now):\n%s", diff)
	}
	w.apply(PodRecord("n1", "web"), NamespaceRecord("default", "blue")) // a filling in progress: no marker yet
	a.untilHas("team=blue")
	if !a.has("old") {
		t.Error("a pod was pruned before the filling was complete")
	}
	w.fill(PodRecord("n1", "web"), NamespaceRecord("default", "blue"))
	a.untilGone("old")
	a.untilHas("ips n1 10.1.0.5")
	until(t, "the agent has published its keys anew", func() bool {
		r, err := w.raw.Get(t.Context(), Prefix(cluster)+"ips/n1/10.1.0.5")
		return err == nil && len(r.Kvs) == 1
	})
}

func TestANodesAddressesStayUntilThatNodeHasRepublishedOrIsDeleted(t *testing.T) {
	w := newWorld(t)
	w.fill()
	writer, reader := w.agent("n1"), w.agent("n2")
	writer.set(AddrKey("n1", "10.1.0.5"), IPValue("web"))
	writer.set(NodeKey("n1"), NodeValue("192.0.2.1"))
	reader.untilHas("nodes n1")
	reader.untilHas("ips n1 10.1.0.5")
	writer.stop()

	w.wipe()
	w.fill(NamespaceRecord("after", "wipe"))
	reader.untilHas("namespaces after")
	reader.untilSynced()
	if !reader.has("ips n1 10.1.0.5") || !reader.has("nodes n1") {
		t.Fatalf("rows of a node that has not republished are gone: %v", reader.rows())
	}

	back := w.agent("n1")
	if err := back.client.Publisher().Delete(AddrKey("n1", "10.1.0.5")); err != nil {
		t.Fatal(err)
	}
	back.set(AddrKey("n1", "10.1.0.6"), IPValue("api"))
	reader.untilHas("ips n1 10.1.0.6")
	reader.untilGone("ips n1 10.1.0.5")
	back.stop()

	if err := w.writer.DeleteNode(t.Context(), "n1"); err != nil {
		t.Fatal(err)
	}
	reader.untilGone("n1")
}

func TestANodeThatWasDeletedPublishesItselfAgain(t *testing.T) {
	for what, back := range map[string]func(w *world, a *agent) *agent{
		"while it watched": func(_ *world, a *agent) *agent { return a },
		"and resumes":      func(w *world, _ *agent) *agent { return w.agent("n1") },
		"and reads the store whole": func(w *world, a *agent) *agent {
			if err := os.Remove(filepath.Join(w.dir, "n1", "snapshot")); err != nil {
				t.Error(err)
			}
			return w.agent("n1")
		},
		// Its file says that it has seen the removal, its journal that it has published everything.
		"and had seen it": func(w *world, _ *agent) *agent {
			journal := filepath.Join(w.dir, "n1", "journal")
			aside := journal + ".aside"
			if err := os.Rename(journal, aside); err != nil {
				t.Error(err)
			}
			seen := w.agent("n1") // without a journal it has nothing to publish
			seen.untilSynced()
			seen.untilGone("nodes n1")
			seen.stop()
			if err := os.Rename(aside, journal); err != nil {
				t.Error(err)
			}
			return w.agent("n1")
		},
	} {
		t.Run(what, func(t *testing.T) {
			w := newWorld(t)
			w.fill()
			reader, a := w.agent("n2"), w.agent("n1")
			a.set(AddrKey("n1", "10.1.0.5"), IPValue("web"))
			a.set(NodeKey("n1"), NodeValue("192.0.2.1"))
			reader.untilHas("nodes n1")
			until(t, "the node knows", func() bool { return a.client.Status().Counters.Pending == 0 && a.has("nodes n1") })
			if what != "while it watched" {
				a.stop()
			}
			if err := w.writer.DeleteNode(t.Context(), "n1"); err != nil {
				t.Fatal(err)
			}
			back(w, a)
			reader.untilHas("nodes n1")
			reader.untilHas("ips n1 10.1.0.5")
			until(t, "the store has them", func() bool {
				r, err := w.raw.Get(t.Context(), Prefix(cluster)+"ips/n1/10.1.0.5")
				return err == nil && len(r.Kvs) == 1
			})
		})
	}
}

func TestAStoreWipedInPlaceByOneTransactionTakesNothingAlong(t *testing.T) {
	w := newWorld(t)
	w.fill(PodRecord("n1", "web"))
	a := w.agent("n1")
	a.untilSynced()
	if _, err := w.raw.Delete(t.Context(), Prefix(cluster), clientv3.WithPrefix()); err != nil {
		t.Fatal(err)
	}
	until(t, "the agent sees the empty store", func() bool { return a.client.Status().Epoch == "" })
	if !a.has("web") {
		t.Error("the pod vanished")
	}
	w.fill()
	a.untilGone("web")
}

func TestARevisionFromTheFutureIsNotWaitedFor(t *testing.T) {
	w := newWorld(t)
	w.fill(PodRecord("n1", "web"))
	for range 20 { // revisions that the restored store will not have
		w.put("namespaces/default", nil)
	}
	epoch, err := w.raw.Get(t.Context(), Prefix(cluster)+"epoch")
	if err != nil {
		t.Fatal(err)
	}
	a := w.agent("n1")
	a.untilSynced()
	a.caughtUp(epoch.Header.Revision)

	w.wipe() // stands for a restored backup: the same epoch, fewer revisions
	w.put("epoch", epoch.Kvs[0].Value)
	until(t, "the agent knows that the store went back", func() bool {
		s := a.client.Status()
		return s.Connected && s.Revision < epoch.Header.Revision
	})
	if !a.has("web") {
		t.Error("the pod vanished")
	}
	w.apply(PodRecord("n1", "new"))
	a.untilHas("new")
	w.fill(PodRecord("n1", "new"))
	a.untilGone("web")
}

func TestCompactionPastOurRevisionLeadsToAFullRead(t *testing.T) {
	w := newWorld(t)
	w.fill(PodRecord("n1", "web"), PodRecord("n1", "old"))
	a := w.agent("n1")
	a.untilSynced()
	a.stop()
	w.apply(Record{PodRecord("n1", "old").Key, nil})
	last := w.apply(PodRecord("n1", "new")).Revision
	if _, err := w.raw.Compact(t.Context(), last, clientv3.WithCompactPhysical()); err != nil {
		t.Fatal(err)
	}
	b := w.agent("n1")
	b.untilHas("new")
	b.untilGone("old")
	if c := b.client.Status().Counters; c.Snapshots != 1 {
		t.Errorf("snapshots: got %d, want 1", c.Snapshots)
	}
}

func TestTablesAreLoadedFromDiskWhileTheStoreIsAway(t *testing.T) {
	w := newWorld(t)
	w.fill(PodRecord("n1", "web"))
	a := w.agent("n1")
	a.untilSynced()
	before := a.rows()
	a.stop()
	w.halt()

	b := w.agent("n1")
	<-b.client.Loaded()
	if diff := cmp.Diff(before, b.rows()); diff != "" {
		t.Errorf("from disk (-before +now):\n%s", diff)
	}
	if s := b.client.Status(); s.Synced || s.Connected {
		t.Errorf("status claims a store that is away: %+v", s)
	}
	w.start()
	b.untilSynced()
	if c := b.client.Status().Counters; c.Snapshots != 0 || c.Resumes == 0 {
		t.Errorf("the watch was not resumed from the file's revision: %+v", c)
	}
}

func TestAFileOfAStoreWithNothingInItIsResumedLikeAnyOther(t *testing.T) {
	w := newWorld(t)
	w.fill()
	a := w.agent("n1")
	a.untilSynced()
	a.stop()
	b := w.agent("n1")
	b.untilSynced()
	if c := b.client.Status().Counters; c.Snapshots != 0 || c.Resumes != 1 {
		t.Errorf("not resumed: %+v", c)
	}
	b.caughtUp(w.apply(PodRecord("n1", "web")).Revision)
	b.caughtUp(w.apply(Record{PodRecord("n1", "web").Key, nil}).Revision)
	if b.has("web") {
		t.Error("a removed pod stays")
	}
}

func TestABadRecordIsKeptOutAndNamedWhileOthersPass(t *testing.T) {
	w := newWorld(t)
	w.fill(PodRecord("n1", "web"))
	a := w.agent("n1")
	a.untilSynced()
	w.put("pods/n1/default/web", []byte("\xff\xff not protobuf"))
	w.put("pods/n1/only-three", nil)
	w.put("flavours/of/the/future", nil)
	w.apply(PodRecord("n1", "good"))
	a.untilHas("good")
	if !a.has("web") {
		t.Error("the last good row was dropped for a bad record")
	}
	var objects []string
	for _, problem := range a.client.Status().Problems {
		objects = append(objects, problem.Object)
	}
	if diff := cmp.Diff([]string{"pods/n1/default/web", "pods/n1/only-three"}, objects); diff != "" {
		t.Errorf("problems (-want +got):\n%s", diff)
	}
	a.caughtUp(w.apply(PodRecord("n1", "web")).Revision)
	if got := len(a.client.Status().Problems); got != 1 {
		t.Errorf("problems after the repair: got %d, want 1", got)
	}
}

func TestKeysSetWhileTheStoreIsAwayArriveInOrderAfterARestart(t *testing.T) {
	w := newWorld(t)
	w.fill()
	w.halt()
	a := w.agent("n1")
	start := time.Now()
	a.set(AddrKey("n1", "10.1.0.5"), IPValue("web"))
	a.set(AddrKey("n1", "10.1.0.6"), IPValue("gone"))
	a.set(NodeKey("n1"), NodeValue("192.0.2.1"))
	if err := a.client.Publisher().Delete(AddrKey("n1", "10.1.0.6")); err != nil {
		t.Fatal(err)
	}
	if took := time.Since(start); took > time.Second {
		t.Errorf("the caller waited %v for a store that is away", took)
	}
	a.stop()

	w.start()
	b := w.agent("n1")
	b.untilHas("ips n1 10.1.0.5")
	b.untilHas("nodes n1")
	until(t, "nothing is pending", func() bool { return b.client.Status().Counters.Pending == 0 })
	if b.has("10.1.0.6") {
		t.Error("a deleted key was published")
	}
	if diff := cmp.Diff([]Key{AddrKey("n1", "10.1.0.5"), NodeKey("n1")}, b.client.Publisher().Own()); diff != "" {
		t.Errorf("own keys (-want +got):\n%s", diff)
	}
}

func TestTheHeartbeatIsTheOnlyLeasedKey(t *testing.T) {
	w := newWorld(t)
	w.fill()
	a := w.agent("n1")
	a.set(NodeKey("n1"), NodeValue("192.0.2.1"))
	a.set(AliveKey("n1"), &storev1.Alive{BootId: "b1"})
	lease := func(key string) (id int64, value []byte) {
		r, err := w.raw.Get(t.Context(), Prefix(cluster)+key)
		if err != nil || len(r.Kvs) == 0 {
			return -1, nil
		}
		return r.Kvs[0].Lease, r.Kvs[0].Value
	}
	until(t, "alive/n1 has a lease", func() bool { id, _ := lease("alive/n1"); return id > 0 })
	until(t, "nodes/n1 is there without one", func() bool { id, _ := lease("nodes/n1"); return id == 0 })
	first, _ := lease("alive/n1")
	a.set(AliveKey("n1"), &storev1.Alive{BootId: "b2"})
	want, _ := proto.Marshal(&storev1.Alive{BootId: "b2"})
	until(t, "the new value is there", func() bool { _, value := lease("alive/n1"); return bytes.Equal(value, want) })
	if second, _ := lease("alive/n1"); second != first {
		t.Errorf("the lease was not renewed but replaced: %x, then %x", first, second)
	}
}

func TestAnAgentThatLostItsJournalRemovesWhatItNoLongerKnows(t *testing.T) {
	w := newWorld(t)
	w.fill()
	other, a := w.agent("n10"), w.agent("n1")
	other.set(AddrKey("n10", "10.1.1.5"), IPValue("far"))
	other.set(NodeKey("n10"), NodeValue("192.0.2.10"))
	a.set(AddrKey("n1", "10.1.0.5"), IPValue("web"))
	a.set(AddrKey("n1", "10.1.0.6"), IPValue("gone"))
	a.set(NodeKey("n1"), NodeValue("192.0.2.1"))
	other.untilHas("nodes n1")
	until(t, "all is published", func() bool { return a.client.Status().Counters.Pending == 0 })
	a.stop()
	if err := os.Remove(filepath.Join(w.dir, "n1", "journal")); err != nil {
		t.Fatal(err)
	}

	b := w.agent("n1")
	b.set(AddrKey("n1", "10.1.0.5"), IPValue("web"))
	b.untilSynced()
	until(t, "the address is published", func() bool { return b.client.Status().Counters.Pending == 0 })
	if !other.has("ips n1 10.1.0.6") {
		t.Error("a key was removed before the agent said what it has")
	}
	b.set(NodeKey("n1"), NodeValue("192.0.2.1"))
	other.untilGone("ips n1 10.1.0.6")
	for _, want := range []string{"ips n1 10.1.0.5", "ips n10 10.1.1.5"} {
		if !other.has(want) {
			t.Errorf("%s is gone as well", want)
		}
	}
	if got := b.client.Status().Counters.Disowned; got != 1 {
		t.Errorf("disowned: got %d, want 1", got)
	}
}

func TestAKeyThatABackupBroughtBackIsFoundWhenTheStoreIsReadWhole(t *testing.T) {
	w := newWorld(t)
	w.fill()
	a := w.agent("n1")
	a.set(AddrKey("n1", "10.1.0.5"), IPValue("web"))
	a.set(NodeKey("n1"), NodeValue("192.0.2.1"))
	until(t, "the marker is there", func() bool {
		r, err := w.raw.Get(t.Context(), Prefix(cluster)+"synced/"+a.client.Status().Epoch+"/ips/n1")
		return err == nil && len(r.Kvs) == 1
	})
	a.stop()
	w.put("ips/n1/10.1.0.6", Encoded(t, IPValue("ghost")))
	if err := os.Remove(filepath.Join(w.dir, "n1", "snapshot")); err != nil {
		t.Fatal(err)
	}
	b := w.agent("n1")
	until(t, "the key is disowned", func() bool { return b.client.Status().Counters.Disowned == 1 })
	b.untilGone("ips n1 10.1.0.6")
	b.untilHas("ips n1 10.1.0.5")
}
