package operator

import (
	"context"
	"fmt"
	"path/filepath"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"

	"tendril.io/tendril/internal/store"
	"tendril.io/tendril/internal/store/server"
	"tendril.io/tendril/internal/table"
)

// beatingNode is a Node object as kubelet keeps it up to date.
func beatingNode(i int, at time.Time, labels map[string]string) *corev1.Node {
	node := &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: fmt.Sprintf("node-%04d", i), Labels: labels}}
	node.Spec.PodCIDRs = []string{fmt.Sprintf("10.%d.%d.0/24", 1+i>>8, byte(i))}
	node.Status.Conditions = []corev1.NodeCondition{{Type: corev1.NodeReady, Status: corev1.ConditionTrue, LastHeartbeatTime: metav1.NewTime(at)}}
	node.Status.Images = []corev1.ContainerImage{{Names: []string{fmt.Sprint(at.Unix())}}}
	return node
}

// SPEC C2, with the store that the operator embeds and the client that agents have: all nodes of a cluster of 2000 give a sign of life, and no
// agent hears of it.
func TestAHeartbeatOf2000NodesCostsAnAgentNoEvent(t *testing.T) {
	const nodes = 2000
	now := time.Now()
	var objects []runtime.Object
	for i := range nodes {
		objects = append(objects, beatingNode(i, now, nil))
	}
	c := prepare(t, objects...)
	writer, agent := realStore(t)
	c.config.Store = writer
	c.run()
	c.until(func() string {
		// Marked as complete: nothing of the first filling is on its way.
		if got := agent.Status(); !got.Synced || got.Counters.Events < nodes {
			return fmt.Sprintf("%d events of the first filling, want one for each of %d nodes", got.Counters.Events, nodes)
		}
		return ""
	})
	settled := agent.Status().Counters.Events
	labels := uint64(0)
	for i := range nodes {
		c.update("nodes", beatingNode(i, now.Add(10*time.Second), nil))
		if i%50 < 49 {
			continue
		}
		// The operator reads Nodes in their order: when this one's label has come, it has read all before. A fake watch holds no more than 100.
		c.update("nodes", beatingNode(i, now.Add(20*time.Second), map[string]string{"role": "edge"}))
		labels++
		c.until(func() string { return cmp.Diff(settled+labels, agent.Status().Counters.Events) })
	}
	if got := agent.Status().Counters.Events - settled; got != labels {
		t.Errorf("%d events for %d heartbeats and %d labels, want those of the labels", got, nodes, labels)
	}
}

// realStore starts a store, and an agent's client of it.
func realStore(t *testing.T) (*store.Writer, *store.Client) {
	t.Helper()
	dir := t.TempDir()
	ctx, cancel := context.WithCancel(context.Background())
	running, err := server.Serve(ctx, server.Config{Dir: filepath.Join(dir, "etcd"), ClientAddr: "127.0.0.1:0", PublishAddr: "127.0.0.1:0", Cluster: "default"})
	if err != nil {
		t.Fatal(err)
	}
	writer, err := store.NewWriter(store.WriterConfig{Endpoints: []string{running.ClientAddr()}, Cluster: "default"})
	if err != nil {
		t.Fatal(err)
	}
	client, err := store.Dial(store.Config{
		Endpoints: []string{running.ClientAddr()}, Publish: []string{running.PublishAddr()}, Cluster: "default", Node: "agent",
		JournalPath: filepath.Join(dir, "journal"), RateLimit: 1000,
	})
	if err != nil {
		t.Fatal(err)
	}
	tables, err := table.New()
	if err != nil {
		t.Fatal(err)
	}
	ended := make(chan error, 1)
	go func() { ended <- client.Run(ctx, tables) }()
	t.Cleanup(func() {
		cancel()
		for _, err := range []error{<-ended, client.Close(), writer.Close(), running.Wait()} {
			if err != nil {
				t.Errorf("store: %v", err)
			}
		}
	})
	return writer, client
}
