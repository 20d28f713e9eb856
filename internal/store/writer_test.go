package store_test

import (
	"context"
	"fmt"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"google.golang.org/protobuf/encoding/protowire"

	storev1 "tendril.io/tendril/api/store/v1"
	. "tendril.io/tendril/internal/store"
)

// revision is the store's.
func revision(t *testing.T, w *world) int64 {
	t.Helper()
	r, err := w.raw.Get(t.Context(), "x")
	if err != nil {
		t.Fatal(err)
	}
	return r.Header.Revision
}

func TestARecordThatDoesNotDifferIsNotWritten(t *testing.T) {
	w := newWorld(t)
	first := w.apply(PodRecord("n1", "web"), NamespaceRecord("default", "red"), PolicyRecord("deny", "{}"))
	if diff := cmp.Diff(Result{Written: 3, Revision: first.Revision, PolicyRevision: 1, Epoch: first.Epoch}, first); diff != "" {
		t.Errorf("first (-want +got):\n%s", diff)
	}
	before := revision(t, w)
	second := w.apply(PodRecord("n1", "web"), NamespaceRecord("default", "red"), PolicyRecord("deny", "{}"))
	if second.Written != 0 || second.Unchanged != 3 || second.PolicyRevision != 0 {
		t.Errorf("second: %+v", second)
	}
	if after := revision(t, w); after != before {
		t.Errorf("the store went from revision %d to %d", before, after)
	}
}

func TestAPolicysRevisionRisesWithEachChangeOfAnyPolicy(t *testing.T) {
	w := newWorld(t)
	revisionOf := func(name string) uint64 {
		t.Helper()
		records, err := w.writer.List(t.Context(), KindPolicy)
		if err != nil {
			t.Fatal(err)
		}
		for _, r := range records {
			if strings.HasSuffix(r.Key, "/"+name) {
				return r.Value.(*storev1.Policy).GetRevision()
			}
		}
		return 0
	}
	w.apply(PolicyRecord("a", "1"), PolicyRecord("b", "1"))
	if a, b := revisionOf("a"), revisionOf("b"); a != 1 || b != 2 {
		t.Errorf("revisions %d and %d, want 1 and 2", a, b)
	}
	w.apply(PolicyRecord("a", "2"), PolicyRecord("b", "1"))
	if a, b := revisionOf("a"), revisionOf("b"); a != 3 || b != 2 {
		t.Errorf("after a changed: %d and %d, want 3 and 2", a, b)
	}
	if got := w.apply(Record{PolicyRecord("b", "").Key, nil}).PolicyRevision; got != 4 {
		t.Errorf("a removal is revision %d, want 4", got)
	}
	if got := w.apply(PolicyRecord("b", "1")).PolicyRevision; got != 5 {
		t.Errorf("b again is revision %d, want 5", got)
	}
}

func TestWritersAtTheSameTimeGiveEachPolicyARevisionOfItsOwn(t *testing.T) {
	w := newWorld(t)
	var group sync.WaitGroup
	for i := range 4 {
		group.Go(func() {
			for j := range 5 {
				if _, err := w.writer.Apply(t.Context(), []Record{PolicyRecord(fmt.Sprintf("p%d", i), fmt.Sprint(j))}); err != nil {
					t.Error(err)
				}
			}
		})
	}
	group.Wait()
	records, err := w.writer.List(t.Context(), KindPolicy)
	if err != nil {
		t.Fatal(err)
	}
	seen := map[uint64]bool{}
	for _, r := range records {
		seen[r.Value.(*storev1.Policy).GetRevision()] = true
	}
	if len(seen) != 4 || !seen[20] {
		t.Errorf("revisions of 4 policies after 20 changes: %v", seen)
	}
}

func TestFieldsOfANewerVersionSurviveARewrite(t *testing.T) {
	w := newWorld(t)
	newer := protowire.AppendTag(Encoded(t, &storev1.Namespace{Labels: map[string]string{"team": "red"}}), 99, protowire.VarintType)
	newer = protowire.AppendVarint(newer, 7)
	w.put("namespaces/default", newer)
	if got := w.apply(NamespaceRecord("default", "red")); got.Written != 0 {
		t.Errorf("a record that differs only in what this version does not know was written: %+v", got)
	}
	w.apply(NamespaceRecord("default", "blue"))
	records, err := w.writer.List(t.Context(), KindNamespace)
	if err != nil {
		t.Fatal(err)
	}
	m := records[0].Value.(*storev1.Namespace)
	if m.GetLabels()["team"] != "blue" || len(m.ProtoReflect().GetUnknown()) == 0 {
		t.Errorf("after the rewrite: %v, unknown fields %x", m, m.ProtoReflect().GetUnknown())
	}
}

func TestFillingDeletesWhatIsGoneAndLeavesAgentsKeysAlone(t *testing.T) {
	w := newWorld(t)
	w.put("nodes/n1", Encoded(t, NodeValue("192.0.2.1")))
	w.put("ips/n1/10.0.0.1", Encoded(t, IPValue("web")))
	var many []Record
	for i := range 300 {
		many = append(many, PodRecord("n1", fmt.Sprintf("p%d", i)))
	}
	if got := w.fill(append(many, PolicyRecord("a", "{}"))...); got.Written != 301 || got.Deleted != 0 {
		t.Errorf("first filling: %+v", got)
	}
	if got := w.fill(many[:10]...); got.Written != 0 || got.Unchanged != 10 || got.Deleted != 291 || got.PolicyRevision != 2 {
		t.Errorf("second filling: %+v", got)
	}
	for kind, want := range map[Kind]int{KindPod: 10, KindPolicy: 0, KindNode: 1, KindIP: 1, KindEpoch: 1, KindSynced: len(Filled())} {
		records, err := w.writer.List(t.Context(), kind)
		if err != nil || len(records) != want {
			t.Errorf("%s: %d records, want %d (%v)", kind, len(records), want, err)
		}
	}
}

func TestFillingSparesWhatTheCallerDoesNotKnow(t *testing.T) {
	w := newWorld(t)
	w.fill(PodRecord("n1", "web"), PolicyRecord("a", "{}"), NamespaceRecord("default", "red"))
	kind := strings.Split(PolicyRecord("a", "").Key, "/")[1]
	epoch := w.fill(PodRecord("n1", "web"), PolicyRecord("a", "{}"), NamespaceRecord("default", "red")).Epoch
	unknown := "policies/" + kind + "/"
	got, err := w.writer.Fill(t.Context(), []Record{PodRecord("n1", "api")}, unknown)
	if err != nil || got.Written != 1 || got.Deleted != 2 {
		t.Errorf("got %+v, %v, want a pod written, and the other and the namespace deleted", got, err)
	}
	if policies, err := w.writer.List(t.Context(), KindPolicy); err != nil || len(policies) != 1 {
		t.Errorf("%d policies, %v, want the one that stood there", len(policies), err)
	}
	marked := func(kind Kind) bool {
		r, err := w.raw.Get(t.Context(), Prefix(cluster)+"synced/"+epoch+"/"+string(kind))
		if err != nil {
			t.Fatal(err)
		}
		return len(r.Kvs) == 1
	}
	if !marked(KindPolicy) || !marked(KindPod) {
		t.Error("a filling that was complete is no longer marked as such")
	}

	w.wipe()
	if got, err = w.writer.Fill(t.Context(), []Record{PodRecord("n1", "api")}, unknown); err != nil {
		t.Fatal(err)
	}
	if epoch = got.Epoch; marked(KindPolicy) || !marked(KindPod) {
		t.Errorf("marked: policies %t, pods %t, want pods only", marked(KindPolicy), marked(KindPod))
	}
}

func TestOneBadRecordMeansThatNothingIsWritten(t *testing.T) {
	w := newWorld(t)
	before := revision(t, w)
	_, err := w.writer.Apply(t.Context(), []Record{
		PodRecord("n1", "good"),
		{Key: "nodes/n1", Value: NodeValue("192.0.2.1")},
		{Key: "pods/n1/x", Value: &storev1.Pod{}},
		{Key: "pods/n1/default/short", Value: &storev1.Pod{Labels: []byte{1}}},
		{Key: "services/a/b", Value: &storev1.Pod{}},
		PodRecord("n1", "good"),
	})
	if err == nil {
		t.Fatal("accepted")
	}
	for _, want := range []string{
		`key "nodes/n1": nodes are not the operator's to write`, `key "pods/n1/x"`, `key "pods/n1/default/short": labels has 1 bytes`,
		`key "services/a/b": record is a tendril.store.v1.Pod`, `key "pods/n1/default/good": given twice`,
	} {
		if !strings.Contains(err.Error(), want) {
			t.Errorf("error %q does not say %q", err, want)
		}
	}
	if after := revision(t, w); after != before {
		t.Error("something was written all the same")
	}
}

func TestDeletingANodeTakesAllItsKeysAndNoOthers(t *testing.T) {
	w := newWorld(t)
	w.fill(PodRecord("n1", "web"), PodRecord("n10", "web"))
	for _, key := range []string{"nodes/n1", "alive/n1", "acks/n1", "ips/n1/10.0.0.1", "nodes/n10", "ips/n10/10.0.1.1"} {
		w.put(key, nil)
	}
	if err := w.writer.DeleteNode(t.Context(), "n1"); err != nil {
		t.Fatal(err)
	}
	var left []string
	for _, kind := range []Kind{KindNode, KindAlive, KindAck, KindIP, KindPod} {
		records, err := w.writer.List(t.Context(), kind)
		if err != nil {
			t.Fatal(err)
		}
		for _, r := range records {
			left = append(left, r.Key)
		}
	}
	if diff := cmp.Diff([]string{"nodes/n10", "ips/n10/10.0.1.1", "pods/n10/default/web"}, left); diff != "" {
		t.Errorf("left (-want +got):\n%s", diff)
	}
	if err := w.writer.DeleteNode(t.Context(), "n1/../n10"); err == nil {
		t.Error("a node's name with a slash is accepted")
	}
}

func TestADeadNodeLosesWhatItsAgentPublishedAndALiveOneNothing(t *testing.T) {
	w := newWorld(t)
	w.fill(PodRecord("n1", "web"))
	for _, key := range []string{"nodes/n1", "acks/n1", "ips/n1/10.0.0.1", "nodes/n10", "alive/n10", "ips/n11/10.0.1.1", "nodes/a/b"} {
		w.put(key, nil)
	}
	nodes, err := w.writer.Nodes(t.Context())
	if diff := cmp.Diff(map[string]bool{"n1": false, "n10": true, "n11": false}, nodes); err != nil || diff != "" {
		t.Errorf("nodes (-want +got), %v:\n%s", err, diff)
	}
	for node, want := range map[string]bool{"n1": true, "n10": false, "n11": true} {
		if got, err := w.writer.DeleteDeadNode(t.Context(), node); err != nil || got != want {
			t.Errorf("delete %s: got %v, %v, want %v", node, got, err, want)
		}
	}
	nodes, err = w.writer.Nodes(t.Context())
	if diff := cmp.Diff(map[string]bool{"n10": true}, nodes); err != nil || diff != "" {
		t.Errorf("left (-want +got), %v:\n%s", err, diff)
	}
	if pods, err := w.writer.List(t.Context(), KindPod); err != nil || len(pods) != 1 {
		t.Errorf("%d pods, %v, want the one", len(pods), err)
	}
	if _, err := w.writer.DeleteDeadNode(t.Context(), "n1/../n10"); err == nil {
		t.Error("a node's name with a slash is accepted")
	}
}

func TestAWriteToAStoreThatIsAwayFails(t *testing.T) {
	w := newWorld(t)
	writer, err := NewWriter(WriterConfig{Endpoints: []string{w.clientAddr}, Cluster: cluster})
	if err != nil {
		t.Fatal(err)
	}
	defer writer.Close()
	w.halt()
	ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
	defer cancel()
	if _, err := writer.Apply(ctx, []Record{PodRecord("n1", "x")}); err == nil || !strings.Contains(err.Error(), "epoch") {
		t.Errorf("got %v, want an error that says what was asked of the store", err)
	}
}

func TestAWriterWantsAnAddressAndACluster(t *testing.T) {
	for says, config := range map[string]WriterConfig{
		"endpoints is empty": {Cluster: "c"},
		"cluster: a name is": {Endpoints: []string{"127.0.0.1:1"}},
	} {
		if _, err := NewWriter(config); err == nil || !strings.Contains(err.Error(), says) {
			t.Errorf("%+v: got %v, want an error with %q", config, err, says)
		}
	}
}
