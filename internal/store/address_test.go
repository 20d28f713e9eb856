package store_test

import (
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	storev1 "tendril.io/tendril/api/store/v1"

	. "tendril.io/tendril/internal/store"
)

// leaders are the stores of two operators, of which one leads at a time; neither runs yet.
func leaders(t *testing.T) (first, second *world) {
	t.Helper()
	t.Parallel()
	first = &world{t: t, dir: t.TempDir(), clientAddr: freeAddr(t), publishAddr: freeAddr(t), term: 1}
	second = &world{t: t, dir: t.TempDir(), clientAddr: freeAddr(t), publishAddr: freeAddr(t), term: 2}
	t.Cleanup(first.halt)
	t.Cleanup(second.halt)
	return first, second
}

func (w *world) agentOfBoth(node string, other *world) *agent {
	return w.agentAt(node, []string{w.clientAddr, other.clientAddr}, []string{w.publishAddr, other.publishAddr})
}

func (w *world) hasKey(key string) bool {
	response, err := w.raw.Get(w.t.Context(), Prefix(cluster)+key)
	return err == nil && len(response.Kvs) == 1
}

func TestAnAgentGoesToTheStoreOfTheNextLeaderAndLosesNothing(t *testing.T) {
	first, second := leaders(t)
	first.start()
	first.fill(PodRecord("n2", "stays"), PodRecord("n2", "goes"), PolicyRecord("guard", "{}"))
	a := first.agentOfBoth("n1", second)
	a.set(NodeKey("n1"), NodeValue("192.0.2.1"))
	a.set(AddrKey("n1", "10.1.0.5"), IPValue("mine"))
	a.set(AliveKey("n1"), &storev1.Alive{})
	a.untilSynced()
	a.untilHas("10.1.0.5")
	a.untilHas("alive n1")
	before, cluster1 := a.rows(), a.client.Status().ClusterID

	first.halt()
	second.start()
	until(t, "the agent is at the second store", func() bool {
		status := a.client.Status()
		return status.Connected && status.ClusterID != cluster1
	})
	if diff := cmp.Diff(before, a.rows()); diff != "" {
		t.Errorf("rows before the second store is filled (-before +now):\n%s", diff)
	}
	epoch := second.fill(PodRecord("n2", "stays"), PodRecord("n2", "comes"), PolicyRecord("guard", "{}")).Epoch
	a.untilHas("default comes")
	a.untilGone("default goes")
	a.untilSynced()
	for _, key := range []string{"nodes/n1", "ips/n1/10.1.0.5", "synced/" + epoch + "/ips/n1"} {
		until(t, "the second store has "+key, func() bool { return second.hasKey(key) })
	}
	// Whoever reads the marker takes a node without a sign of life for dead.
	alive, err := second.raw.Get(t.Context(), Prefix(cluster)+"alive/n1")
	marker, err2 := second.raw.Get(t.Context(), Prefix(cluster)+"synced/"+epoch+"/ips/n1")
	if err != nil || err2 != nil || len(alive.Kvs) != 1 || alive.Kvs[0].CreateRevision > marker.Kvs[0].CreateRevision {
		t.Errorf("the sign of life %v is not before the marker %v: %v, %v", alive, marker, err, err2)
	}
	if !a.has("10.1.0.5") || !a.has("default stays") {
		t.Errorf("something was lost on the way: %s", strings.Join(a.rows(), "\n"))
	}
}

func TestAnAgentDoesNotGoBackToALeaderThatWasReplaced(t *testing.T) {
	first, second := leaders(t)
	first.start()
	first.fill(PodRecord("n2", "old"))
	second.start()
	second.fill(PodRecord("n2", "new"))
	first.halt()
	a := second.agentOfBoth("n1", first)
	a.set(NodeKey("n1"), NodeValue("192.0.2.1"))
	a.untilSynced()
	until(t, "the second store has the node", func() bool { return second.hasKey("nodes/n1") })

	first.start() // it does not know that it was replaced
	second.apply(PodRecord("n2", "newer"))
	a.untilHas("default newer")
	second.halt()
	a.set(AddrKey("n1", "10.1.0.5"), IPValue("mine"))
	until(t, "the agent says why it follows nobody", func() bool { return strings.Contains(a.client.Status().LastError, "term") })
	for range 50 { // the first one is asked again and again
		if a.has("default old") || !a.has("default newer") || first.hasKey("ips/n1/10.1.0.5") || first.hasKey("nodes/n1") {
			t.Fatalf("the agent went back: %s", strings.Join(a.rows(), "\n"))
		}
		time.Sleep(20 * time.Millisecond)
	}
	a.stop() // nor does the next process of the agent
	a = second.agentOfBoth("n1", first)
	until(t, "the agent says why after a restart, too", func() bool { return strings.Contains(a.client.Status().LastError, "term") })
	if a.has("default old") || !a.has("default newer") {
		t.Errorf("the agent went back after its restart: %s", strings.Join(a.rows(), "\n"))
	}
	second.start()
	until(t, "the second store has what was published meanwhile", func() bool { return second.hasKey("ips/n1/10.1.0.5") })
	if first.hasKey("ips/n1/10.1.0.5") {
		t.Error("the first store was written, too")
	}
}

func TestAnAgentFindsTheLaterOfTwoWhoBothBelieveToLead(t *testing.T) {
	first, second := leaders(t)
	for _, w := range []*world{first, second} {
		w.start()
	}
	first.fill(PodRecord("n2", "old"))
	second.fill(PodRecord("n2", "new"))
	second.halt()
	a := first.agentOfBoth("n1", second)
	a.set(NodeKey("n1"), NodeValue("192.0.2.1"))
	until(t, "the first store has the node", func() bool { return first.hasKey("nodes/n1") })
	a.untilHas("default old")
	second.start()
	a.set(AliveKey("n1"), &storev1.Alive{LeaseSeconds: 1}) // one sign of life in a quarter of that
	a.untilHas("default new")
	a.untilGone("default old")
	first.halt()
	until(t, "the second store has the node", func() bool { return second.hasKey("nodes/n1") })
	first.start()
	second.halt() // the agent loses it for a while
	until(t, "the agent is at neither", func() bool { return strings.Contains(a.client.Status().LastError, "term") })
	second.start()
	second.apply(PodRecord("n2", "newer"))
	a.untilHas("default newer")
	if a.has("default old") {
		t.Errorf("the agent has what the first leader had: %s", strings.Join(a.rows(), "\n"))
	}
}

func TestAnAgentMovesToOtherAddressesWithoutARestart(t *testing.T) {
	w := newWorld(t)
	w.fill(NamespaceRecord("shop", "red"))
	nowhere := "127.0.0.1:1"
	a := w.agentAt("n1", []string{nowhere}, []string{nowhere})
	a.set(NodeKey("n1"), NodeValue("192.0.2.1"))
	until(t, "the agent finds nobody", func() bool { return a.client.Status().LastError != "" })
	if err := a.client.Move(nil, []string{w.publishAddr}); err == nil {
		t.Error("a move to no address was no mistake")
	}
	if err := a.client.Move([]string{w.clientAddr}, []string{w.publishAddr}); err != nil {
		t.Fatal(err)
	}
	a.untilHas("shop")
	until(t, "the store has the node", func() bool { return w.hasKey("nodes/n1") })
	before := a.client.Status().Counters.Resumes
	if err := a.client.Move([]string{w.clientAddr, nowhere}, []string{w.publishAddr}); err != nil {
		t.Fatal(err)
	}
	w.apply(NamespaceRecord("bank", "blue"))
	a.untilHas("bank")
	if got := a.client.Status().Counters.Resumes; got != before {
		t.Errorf("one more address began %d sessions", got-before)
	}
	if err := a.client.Move([]string{nowhere}, []string{w.publishAddr}); err != nil {
		t.Fatal(err)
	}
	until(t, "the agent has left", func() bool { return !a.client.Status().Connected })
	if err := a.client.Move([]string{w.clientAddr}, []string{w.publishAddr}); err != nil {
		t.Fatal(err)
	}
	until(t, "the agent is back", func() bool { return a.client.Status().Connected })
	if err := a.client.Probe(t.Context()); err != nil {
		t.Errorf("a probe goes elsewhere: %v", err)
	}
}

func TestALeaderThatIsFollowedByItselfKeepsItsStore(t *testing.T) {
	w, other := leaders(t)
	w.start()
	w.fill(PodRecord("n2", "stays"))
	a := w.agentOfBoth("n1", other)
	a.set(NodeKey("n1"), NodeValue("192.0.2.1"))
	a.untilSynced()
	until(t, "the store has the node", func() bool { return w.hasKey("nodes/n1") })
	snapshots, epoch := a.client.Status().Counters.Snapshots, a.client.Status().Epoch

	w.halt()
	w.term, w.before = 9, 1
	w.start()
	w.apply(PodRecord("n2", "comes"))
	a.untilHas("default comes")
	if now := a.client.Status(); now.Epoch != epoch || now.Counters.Snapshots != snapshots || !w.hasKey("nodes/n1") {
		t.Errorf("the store is another one: epoch %s, was %s, and the agent has read it whole %d times", now.Epoch, epoch, now.Counters.Snapshots-snapshots)
	}
	w.halt()
	other.term, other.before = 5, 4 // who led between the two, and does not know that it is over
	other.start()
	until(t, "the agent follows no leader of before", func() bool { return strings.Contains(a.client.Status().LastError, "term") })
}

func TestALeaderAfterOthersFillsItsStoreAnew(t *testing.T) {
	first, second := leaders(t)
	first.start()
	first.fill(PodRecord("n2", "old"), PolicyRecord("guard", `{"old": true}`))
	a := first.agentOfBoth("n1", second)
	a.set(NodeKey("n1"), NodeValue("192.0.2.1"))
	a.set(AliveKey("n1"), &storev1.Alive{})
	a.untilSynced()
	first.halt()
	second.before = 1
	second.start()
	second.fill(PodRecord("n2", "new"))
	a.untilGone("default old")
	second.halt()

	first.term, first.before = 3, 2
	first.start() // has what it had in its first term
	until(t, "the first store has the node again", func() bool { return first.hasKey("alive/n1") && first.hasKey("nodes/n1") })
	if first.hasKey("policies/NetworkPolicy/default/guard") || a.has("default old") || a.has("guard") || !a.has("default new") {
		t.Errorf("what was gone came back, or what is there went: %s", strings.Join(a.rows(), "\n"))
	}
	first.fill(PodRecord("n2", "last"))
	a.untilGone("default new")
	a.untilSynced()
}
