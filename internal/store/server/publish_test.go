package server_test

import (
	"context"
	"fmt"
	"log/slog"
	"strings"
	"testing"

	clientv3 "go.etcd.io/etcd/client/v3"
	"go.uber.org/goleak"
	"golang.org/x/sync/errgroup"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/proto"

	storev1 "tendril.io/tendril/api/store/v1"
	"tendril.io/tendril/internal/store"
	"tendril.io/tendril/internal/store/server"
)

const cluster = "test"

// TestMain fails the run if a goroutine outlives the tests.
func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// A running store, and clients of both of its sides.
type running struct {
	server  *server.Server
	raw     *clientv3.Client
	publish storev1.PublishClient
	epoch   string
}

// serve starts a store with an epoch and nothing else in it.
func serve(t *testing.T) *running {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	s, err := server.Serve(ctx, server.Config{
		Dir: t.TempDir(), ClientAddr: "127.0.0.1:0", PublishAddr: "127.0.0.1:0", Cluster: cluster,
	})
	if err != nil {
		cancel()
		t.Fatal(err)
	}
	t.Cleanup(func() {
		cancel()
		if err := s.Wait(); err != nil {
			t.Errorf("store ended: %v", err)
		}
	})
	r := &running{server: s}
	if r.raw, err = clientv3.New(clientv3.Config{Endpoints: []string{s.ClientAddr()}, Logger: store.EtcdLogger(slog.New(slog.DiscardHandler))}); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { r.raw.Close() })
	conn := dial(t, s.PublishAddr(), insecure.NewCredentials())
	t.Cleanup(func() { conn.Close() })
	r.publish = storev1.NewPublishClient(conn)
	r.fill(t)
	return r
}

func dial(t *testing.T, addr string, creds credentials.TransportCredentials) *grpc.ClientConn {
	t.Helper()
	conn, err := grpc.NewClient("passthrough:///"+addr, grpc.WithTransportCredentials(creds))
	if err != nil {
		t.Fatal(err)
	}
	return conn
}

// begin starts an epoch with nothing in it, as the operator does, whose writer it returns.
func begin(t *testing.T, endpoint string) *store.Writer {
	t.Helper()
	writer, err := store.NewWriter(store.WriterConfig{Endpoints: []string{endpoint}, Cluster: cluster})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { writer.Close() })
	if _, err := writer.Fill(t.Context(), nil); err != nil {
		t.Fatal(err)
	}
	return writer
}

// fill has a store begin, and remembers the epoch.
func (r *running) fill(t *testing.T) {
	t.Helper()
	begin(t, r.server.ClientAddr())
	epoch, err := store.ReadEpoch(r.get(t, "epoch").Kvs[0].Value)
	if err != nil {
		t.Fatal(err)
	}
	r.epoch = epoch.GetId()
}

func (r *running) get(t *testing.T, key string, options ...clientv3.OpOption) *clientv3.GetResponse {
	t.Helper()
	response, err := r.raw.Get(t.Context(), store.Prefix(cluster)+key, options...)
	if err != nil {
		t.Fatal(err)
	}
	return response
}

func (r *running) put(t *testing.T, node string, writes ...*storev1.Write) error {
	_, err := r.publish.Put(t.Context(), &storev1.PutRequest{Node: node, Writes: writes})
	return err
}

func write(key string, value []byte) *storev1.Write { return &storev1.Write{Key: key, Value: value} }

func remove(key string) *storev1.Write { return &storev1.Write{Key: key, Remove: true} }

func encoded(t *testing.T, m proto.Message) []byte {
	t.Helper()
	value, err := proto.Marshal(m)
	if err != nil {
		t.Fatal(err)
	}
	return value
}

func address(t *testing.T) []byte {
	return encoded(t, &storev1.IP{PodUid: "uid-web", Sandbox: "box-web", Namespace: "default", Pod: "web"})
}

func TestPublishTakesANodesOwnKeysAndRefusesAllOthers(t *testing.T) {
	r := serve(t)
	address, self, epoch := address(t), encoded(t, &storev1.Node{Addresses: [][]byte{{192, 0, 2, 1}}}), r.epoch
	tooMany := make([]*storev1.Write, store.MaxWrites+1)
	for i := range tooMany {
		tooMany[i] = write("acks/n1", nil)
	}
	for _, test := range []struct {
		what   string
		node   string
		writes []*storev1.Write
		want   codes.Code
		says   string
	}{
		{"its address", "n1", []*storev1.Write{write("ips/n1/10.0.0.1", address)}, codes.OK, ""},
		{"several at once", "n1", []*storev1.Write{write("nodes/n1", self), remove("ips/n1/10.0.0.1"), write("acks/n1", nil)}, codes.OK, ""},
		{"its marker", "n1", []*storev1.Write{write("synced/"+epoch+"/ips/n1", nil)}, codes.OK, ""},
		{"the marker of another epoch", "n1", []*storev1.Write{write("synced/other/ips/n1", nil)}, codes.FailedPrecondition, "epoch"},
		{"another node's address", "n1", []*storev1.Write{write("ips/n2/10.0.0.1", address)}, codes.PermissionDenied, `key "ips/n2/10.0.0.1"`},
		{"another node's removal", "n1", []*storev1.Write{remove("nodes/n2")}, codes.PermissionDenied, `key "nodes/n2"`},
		{"another node's marker", "n1", []*storev1.Write{write("synced/"+epoch+"/ips/n2", nil)}, codes.PermissionDenied, "n2"},
		{"a kind's marker", "n1", []*storev1.Write{write("synced/"+epoch+"/pods", nil)}, codes.PermissionDenied, "synced/"},
		{"a node whose name begins alike", "n1", []*storev1.Write{write("nodes/n10", self)}, codes.PermissionDenied, "nodes/n10"},
		{"a pod on itself", "n1", []*storev1.Write{write("pods/n1/default/web", nil)}, codes.PermissionDenied, "pods/n1/default/web"},
		{"the epoch", "n1", []*storev1.Write{remove("epoch")}, codes.PermissionDenied, "epoch"},
		{"a policy", "n1", []*storev1.Write{write("policies/NetworkPolicy/a/b", nil)}, codes.PermissionDenied, "policies/"},
		{"one foreign key among its own", "n1", []*storev1.Write{write("acks/n1", []byte{8, 1}), write("acks/n2", nil)}, codes.PermissionDenied, "acks/n2"},
		{"no name", "", []*storev1.Write{write("acks/n1", nil)}, codes.PermissionDenied, "empty"},
		{"a key that is none", "n1", []*storev1.Write{write("ips/n1/10.0.0.01", address)}, codes.InvalidArgument, "10.0.0.01"},
		{"a value that is none", "n1", []*storev1.Write{write("nodes/n1", []byte{0xff})}, codes.InvalidArgument, "nodes/n1"},
		{"a node with a bad address", "n1", []*storev1.Write{write("nodes/n1", []byte{10, 3, 1, 2, 3})}, codes.InvalidArgument, "3 bytes"},
		{"a large value", "n1", []*storev1.Write{write("nodes/n1", make([]byte, 64<<10+1))}, codes.InvalidArgument, "the limit"},
		{"a key twice", "n1", []*storev1.Write{write("acks/n1", nil), remove("acks/n1")}, codes.InvalidArgument, "twice"},
		{"nothing", "n1", nil, codes.InvalidArgument, "want 1 to 128"},
		{"too much", "n1", tooMany, codes.InvalidArgument, "want 1 to 128"},
	} {
		before := r.get(t, "epoch").Header.Revision
		err := r.put(t, test.node, test.writes...)
		if got := status.Code(err); got != test.want || !strings.Contains(status.Convert(err).Message(), test.says) {
			t.Errorf("%s: got %v, want %v and %q", test.what, err, test.want, test.says)
		}
		if changed := r.get(t, "epoch").Header.Revision != before; changed != (test.want == codes.OK) {
			t.Errorf("%s: the store changed: %t", test.what, changed)
		}
	}
}

func TestPublishTakesWhatIsForItsEpochAndNothingThatIsForAnother(t *testing.T) {
	r := serve(t)
	put := func(epoch string) codes.Code {
		_, err := r.publish.Put(t.Context(), &storev1.PutRequest{Node: "n1", Epoch: epoch, Writes: []*storev1.Write{write("ips/n1/10.0.0.1", address(t))}})
		return status.Code(err)
	}
	if got := put("other"); got != codes.FailedPrecondition || len(r.get(t, "ips/n1/10.0.0.1").Kvs) > 0 {
		t.Errorf("an address for another epoch: got %v, and the store has %v", got, r.get(t, "ips/n1/10.0.0.1").Kvs)
	}
	if got := put(r.epoch); got != codes.OK {
		t.Errorf("an address for the store's epoch: got %v", got)
	}
	if _, err := r.raw.Delete(t.Context(), store.Prefix(cluster)+"epoch"); err != nil {
		t.Fatal(err)
	}
	if got := put(r.epoch); got != codes.FailedPrecondition {
		t.Errorf("an address for an epoch, and the store has none: got %v", got)
	}
}

func TestPublishKeepsFieldsThatItDoesNotKnow(t *testing.T) {
	r := serve(t)
	newer := protowire.AppendTag(address(t), 100, protowire.BytesType)
	newer = protowire.AppendString(newer, "from the future")
	if err := r.put(t, "n1", write("ips/n1/10.0.0.1", newer)); err != nil {
		t.Fatal(err)
	}
	if got := r.get(t, "ips/n1/10.0.0.1").Kvs[0].Value; string(got) != string(newer) {
		t.Errorf("stored %q, want %q", got, newer)
	}
}

func TestAliveHasALeaseOfItsOwnThatEachHeartbeatRenewsAndGrowsWithTheCluster(t *testing.T) {
	r := serve(t)
	lease := func(node string) clientv3.LeaseID {
		t.Helper()
		if err := r.put(t, node, write("alive/"+node, nil)); err != nil {
			t.Fatal(err)
		}
		return clientv3.LeaseID(r.get(t, "alive/"+node).Kvs[0].Lease)
	}
	first, second := lease("n1"), lease("n2")
	if first == 0 || first == second {
		t.Errorf("leases %x and %x, want two", first, second)
	}
	if again := lease("n1"); again != first {
		t.Errorf("the second heartbeat has lease %x, want the first's, %x", again, first)
	}
	for i := range 300 {
		if _, err := r.raw.Put(t.Context(), fmt.Sprintf("%snodes/m%d", store.Prefix(cluster), i), ""); err != nil {
			t.Fatal(err)
		}
	}
	longer := lease("n1")
	if longer == first {
		t.Error("the lease of a cluster of 300 is that of a cluster of none")
	}
	ttl, err := r.raw.TimeToLive(t.Context(), longer)
	if err != nil {
		t.Fatal(err)
	}
	if want := int64(store.AliveTime(300).Seconds()); ttl.GrantedTTL != want {
		t.Errorf("the longer lease lasts %d s, want %d", ttl.GrantedTTL, want)
	}
	if _, err := r.raw.Revoke(t.Context(), longer); err != nil {
		t.Fatal(err)
	}
	if left := r.get(t, "alive/n1").Kvs; len(left) != 0 {
		t.Errorf("without its lease the key is still there: %v", left)
	}
	lease("n1") // a node that was away grants itself life again
}

func TestANodeGetsTheLeaseThatItAsksForAndWatchersDoNotHearOfEachBeat(t *testing.T) {
	r := serve(t)
	beat := func(seconds uint32) (lease clientv3.LeaseID, revision int64) {
		t.Helper()
		value, err := proto.Marshal(&storev1.Alive{BootId: "b", LeaseSeconds: seconds})
		if err != nil {
			t.Fatal(err)
		}
		if err := r.put(t, "n1", write("alive/n1", value)); err != nil {
			t.Fatal(err)
		}
		kv := r.get(t, "alive/n1").Kvs[0]
		return clientv3.LeaseID(kv.Lease), kv.ModRevision
	}
	granted := func(lease clientv3.LeaseID) int64 {
		t.Helper()
		ttl, err := r.raw.TimeToLive(t.Context(), lease)
		if err != nil {
			t.Fatal(err)
		}
		return ttl.GrantedTTL
	}
	first, written := beat(60)
	if got := granted(first); got != 60 {
		t.Errorf("lease of %d s, want the 60 that the node asks for", got)
	}
	if again, revision := beat(60); again != first || revision != written {
		t.Errorf("the second beat has lease %x and revision %d, want %x and %d as before", again, revision, first, written)
	}
	shorter, _ := beat(50)
	if got := granted(shorter); got != 50 {
		t.Errorf("lease of %d s, want the 50 that the node asks for now", got)
	}
	if _, err := r.raw.Revoke(t.Context(), shorter); err != nil {
		t.Fatal(err)
	}
	if back, _ := beat(3600); granted(back) != 3600 { // beat fails if the key is not there
		t.Error("a node that was away has not the lease that it asks for")
	}
	if own, _ := beat(0); granted(own) != int64(store.AliveTime(0).Seconds()) {
		t.Error("a node that no longer asks for an hour keeps it")
	}
}

// SPEC C2: of the signs of life of 2000 nodes' agents, other agents hear of the first ones only, and the store has nothing more to keep.
func TestBeatsOf2000NodesAreNoEventsAndNoRevisions(t *testing.T) {
	const nodes, rounds = 2000, 3
	r := serve(t)
	beats := func() {
		t.Helper()
		group, ctx := errgroup.WithContext(t.Context())
		group.SetLimit(50)
		for i := range nodes {
			group.Go(func() error {
				name := fmt.Sprintf("n%d", i)
				value, err := proto.Marshal(&storev1.Alive{BootId: "boot of " + name})
				if err != nil {
					return err
				}
				_, err = r.publish.Put(ctx, &storev1.PutRequest{Node: name, Epoch: r.epoch, Writes: []*storev1.Write{write("alive/"+name, value)}})
				return err
			})
		}
		if err := group.Wait(); err != nil {
			t.Fatal(err)
		}
	}
	beats()
	first := r.get(t, "alive/n0")
	if count := r.get(t, "alive/", clientv3.WithPrefix(), clientv3.WithCountOnly()).Count; count != nodes {
		t.Fatalf("%d nodes are alive, want %d", count, nodes)
	}
	heard := r.raw.Watch(t.Context(), store.Prefix(cluster), clientv3.WithPrefix(), clientv3.WithRev(first.Header.Revision+1))
	for range rounds {
		beats()
	}
	// What is written after the beats is the next revision, and what a watcher hears of next.
	if err := r.put(t, "n0", write("acks/n0", nil)); err != nil {
		t.Fatal(err)
	}
	if now := r.get(t, "acks/n0").Header.Revision; now != first.Header.Revision+1 {
		t.Errorf("%d beats made %d revisions, want none", rounds*nodes, now-first.Header.Revision-1)
	}
	if next := <-heard; len(next.Events) != 1 || string(next.Events[0].Kv.Key) != store.Prefix(cluster)+"acks/n0" {
		t.Errorf("a watcher hears of %d events after the beats, %v; want the one write", len(next.Events), next.Events)
	}
	if last := r.get(t, "alive/n0"); last.Kvs[0].ModRevision != first.Kvs[0].ModRevision || last.Kvs[0].Lease != first.Kvs[0].Lease {
		t.Errorf("alive/n0 is another: %v, was %v", last.Kvs[0], first.Kvs[0])
	}
}

func TestTheServerRefusesAConfigurationThatCannotWork(t *testing.T) {
	good := server.Config{Dir: t.TempDir(), ClientAddr: "127.0.0.1:0", PublishAddr: "127.0.0.1:0", Cluster: cluster}
	for says, spoil := range map[string]func(*server.Config){
		`dir is "", endpoints are []`:  func(c *server.Config) { c.Dir = "" },
		"endpoints are [e:1]":          func(c *server.Config) { c.Endpoints = []string{"e:1"} },
		"etcd outside: CA file":        func(c *server.Config) { c.Dir, c.Endpoints, c.Outside.CA = "", []string{"e:1"}, "ca" },
		`address "nowhere"`:            func(c *server.Config) { c.ClientAddr = "nowhere" },
		"listen for publish":           func(c *server.Config) { c.PublishAddr = "192.0.2.77:1" },
		`cluster: name "a/b" contains`: func(c *server.Config) { c.Cluster = "a/b" },
	} {
		config := good
		spoil(&config)
		running, err := server.Serve(t.Context(), config)
		if err == nil || !strings.Contains(err.Error(), says) {
			t.Errorf("got %v, %v; want an error with %q", running, err, says)
		}
	}
}
