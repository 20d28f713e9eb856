package server_test

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	clientv3 "go.etcd.io/etcd/client/v3"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/status"

	storev1 "tendril.io/tendril/api/store/v1"
	"tendril.io/tendril/internal/store"
	"tendril.io/tendril/internal/store/server"
)

// A replica stands before an etcd outside until it is stopped.
type replica struct {
	*server.Server
	stop func()
}

// serveReplica runs one at addresses; port 0 picks one.
func serveReplica(t *testing.T, etcd string, identity store.Identity, read, publish string) replica {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	running, err := server.Serve(ctx, server.Config{
		Endpoints: []string{etcd}, ClientAddr: read, PublishAddr: publish, Cluster: cluster, TLS: identity,
	})
	if err != nil {
		cancel()
		t.Fatal(err)
	}
	stop := func() {
		cancel()
		if err := running.Wait(); err != nil {
			t.Errorf("replica ended: %v", err)
		}
	}
	t.Cleanup(stop)
	return replica{running, stop}
}

func TestAgentsGoOnAtAnotherReplicaWhenTheirsIsGone(t *testing.T) {
	etcd := serve(t)
	cert, key, err := server.MakeAuthority()
	if err != nil {
		t.Fatal(err)
	}
	var authorities [2]*server.Authority // one, with a certificate of each replica's own
	var replicas [2]replica
	for i := range replicas {
		authorities[i], err = server.NewAuthority(server.AuthorityConfig{Cert: cert, Key: key, Tokens: tokens{}, Hosts: []string{"127.0.0.1"}})
		if err != nil {
			t.Fatal(err)
		}
		replicas[i] = serveReplica(t, etcd.server.ClientAddr(), authorities[i], "127.0.0.1:0", "127.0.0.1:0")
	}
	writer := begin(t, etcd.server.ClientAddr())
	dir := t.TempDir()
	ca, token, file := filepath.Join(dir, "ca"), filepath.Join(dir, "token"), filepath.Join(dir, "certificate.pem")
	if err := errors.Join(os.WriteFile(ca, cert, 0o600), os.WriteFile(token, []byte("token-n1"), 0o600)); err != nil {
		t.Fatal(err)
	}
	client, tables := runConfig(t, store.Config{
		Endpoints: []string{replicas[0].ClientAddr(), replicas[1].ClientAddr()},
		Publish:   []string{replicas[0].PublishAddr(), replicas[1].PublishAddr()},
		Cluster:   cluster, Node: "n1", JournalPath: filepath.Join(dir, "journal"), TLS: store.Files{CA: ca, Cert: file, Key: file}, Token: token,
	})
	await(t, "the agent is complete", func() bool { return client.Status().Synced })
	epoch := client.Status().Epoch
	for round := range 4 { // each is away in turn, and comes back where it was
		away := replicas[round%2]
		away.stop()
		name := fmt.Sprintf("round%d", round)
		began := time.Now()
		if _, err := writer.Apply(t.Context(), []store.Record{{Key: "namespaces/" + name, Value: &storev1.Namespace{}}}); err != nil {
			t.Fatal(err)
		}
		ack := store.Key{Kind: store.KindAck, First: "n1"}
		if err := client.Publisher().Set(ack, &storev1.Ack{PolicyRevision: uint64(round + 1)}); err != nil {
			t.Fatal(err)
		}
		await(t, name+": the agent hears of what is written", func() bool { return tables.Namespaces.NumObjects(tables.DB.ReadTxn()) == round+1 })
		await(t, name+": the agent is heard", func() bool { return client.Publisher().Settled(ack) })
		t.Logf("%s: after %v", name, time.Since(began))
		replicas[round%2] = serveReplica(t, etcd.server.ClientAddr(), authorities[round%2], away.ClientAddr(), away.PublishAddr())
	}
	if now := client.Status(); now.Epoch != epoch || now.Counters.Snapshots != 1 {
		t.Errorf("epoch %s, then %s; read whole %d times, want once", epoch, now.Epoch, now.Counters.Snapshots)
	}
}

func TestAReplicaPassesOnWhatEtcdSaysAndOnlyReads(t *testing.T) {
	etcd := serve(t)
	relay := serveReplica(t, etcd.server.ClientAddr(), nil, "127.0.0.1:0", "127.0.0.1:0")
	through, err := store.DialEtcd([]string{relay.ClientAddr()}, store.Files{}, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	defer through.Close()
	key := store.Prefix(cluster) + "namespaces/x"
	for i := range 3 {
		if _, err := etcd.raw.Put(t.Context(), key, fmt.Sprint(i)); err != nil {
			t.Fatal(err)
		}
	}
	direct, err := etcd.raw.Get(t.Context(), key)
	if err != nil {
		t.Fatal(err)
	}
	got, err := through.Get(t.Context(), key)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(direct.Kvs, got.Kvs); diff != "" || got.Header.ClusterId != direct.Header.ClusterId || got.Header.Revision != direct.Header.Revision {
		t.Errorf("through the replica %v; (-etcd +replica)\n%s", got.Header, diff)
	}
	if _, err := through.Put(t.Context(), key, "mine"); !strings.Contains(fmt.Sprint(err), "can only be read") {
		t.Errorf("a write: got %v, want a refusal", err)
	}
	// An etcd outside may have others' secrets.
	for what, op := range map[string]clientv3.Op{
		"a key":                         clientv3.OpGet("/registry/secrets/kube-system/x"),
		"everything":                    clientv3.OpGet("", clientv3.WithPrefix()),
		"everything from a key on":      clientv3.OpGet(key, clientv3.WithFromKey()),
		"a range past the end":          clientv3.OpGet(key, clientv3.WithRange("/tendril/v2")),
		"another cluster":               clientv3.OpGet(store.Prefix(cluster + "2")),
		"a key in a transaction":        clientv3.OpTxn(nil, []clientv3.Op{clientv3.OpGet(key), clientv3.OpGet("/registry")}, nil),
		"deeper":                        clientv3.OpTxn(nil, nil, []clientv3.Op{clientv3.OpTxn(nil, []clientv3.Op{clientv3.OpGet("/registry")}, nil)}),
		"a comparison with a value":     clientv3.OpTxn([]clientv3.Cmp{clientv3.Compare(clientv3.Value("/registry"), "=", "x")}, nil, nil),
		"a removal in a transaction":    clientv3.OpTxn(nil, []clientv3.Op{clientv3.OpDelete(key)}, nil),
		"an empty key":                  clientv3.OpGet("\x00"),
		"what only looks like the same": clientv3.OpGet(strings.TrimSuffix(store.Prefix(cluster), "/")),
	} {
		if _, err := through.Do(t.Context(), op); !strings.Contains(fmt.Sprint(err), "only below") {
			t.Errorf("%s: got %v, want a refusal", what, err)
		}
	}
	for what, watch := range map[string]clientv3.WatchChan{
		"a key":      through.Watch(t.Context(), "/registry"),
		"everything": through.Watch(t.Context(), key, clientv3.WithFromKey()),
	} {
		select {
		case response := <-watch:
			if !strings.Contains(fmt.Sprint(response.Err()), "only below") {
				t.Errorf("watching %s: got %v, %v", what, response, response.Err())
			}
		case <-time.After(5 * time.Second):
			t.Errorf("watching %s: neither refused nor ended", what)
		}
	}
	// What an agent that was away for long must be told.
	if _, err := etcd.raw.Compact(t.Context(), got.Header.Revision); err != nil {
		t.Fatal(err)
	}
	response := <-through.Watch(clientv3.WithRequireLeader(t.Context()), key, clientv3.WithRev(1))
	if response.CompactRevision != got.Header.Revision || response.Err() == nil {
		t.Errorf("a watch from a revision that is gone: got %d, %v, want %d", response.CompactRevision, response.Err(), got.Header.Revision)
	}
	if _, err := through.Get(t.Context(), key, clientv3.WithRev(1)); !errors.Is(err, rpctypes.ErrCompacted) {
		t.Errorf("a read of a revision that is gone: got %v", err)
	}
}

func TestAReplicaStartsAndSaysWhyWhileEtcdIsAway(t *testing.T) {
	relay := serveReplica(t, "127.0.0.1:1", nil, "127.0.0.1:0", "127.0.0.1:0")
	conn := dial(t, relay.PublishAddr(), insecure.NewCredentials())
	defer conn.Close()
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Second)
	defer cancel()
	_, err := storev1.NewPublishClient(conn).Put(ctx, &storev1.PutRequest{Node: "n1", Writes: []*storev1.Write{write("acks/n1", nil)}})
	if code := status.Code(err); code != codes.Unavailable && code != codes.DeadlineExceeded {
		t.Errorf("a write: got %v, want one that is tried again", err)
	}
}
