package store_test

import (
	"context"
	"errors"
	"fmt"
	"hash/fnv"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
	"go.uber.org/goleak"
	"google.golang.org/protobuf/proto"

	. "tendril.io/tendril/internal/store"
	"tendril.io/tendril/internal/store/server"
	"tendril.io/tendril/internal/table"
)

const cluster = "test"

// TestMain fails the run if a goroutine outlives the tests.
func TestMain(m *testing.M) {
	goleak.VerifyTestMain(m,
		// the resolver of the embedded etcd's tracing and logging libraries live as long as the process
		goleak.IgnoreTopFunction("go.opencensus.io/stats/view.(*worker).start"),
		goleak.IgnoreTopFunction("github.com/golang/glog.(*fileSink).flushDaemon"))
}

// A world is a store that tests stop, wipe and fill.
type world struct {
	t                       *testing.T
	dir                     string
	clientAddr, publishAddr string
	server                  *server.Server
	stop                    context.CancelFunc
	raw                     *clientv3.Client // past every check
	writer                  *Writer
	term, before            uint64 // of the leader that keeps it, and of the one before
}

// newWorld makes one, beside those of other tests: they mostly wait, for disks and for time to pass.
func newWorld(t *testing.T) *world {
	t.Helper()
	t.Parallel()
	w := &world{t: t, dir: t.TempDir(), clientAddr: freeAddr(t), publishAddr: freeAddr(t)}
	w.start()
	t.Cleanup(w.halt)
	return w
}

// freeAddr is an address that stays free until it is used, and while the store is away: each test has a loopback address
// of its own, from a hash of its name, so that nobody else is given the port meanwhile.
func freeAddr(t *testing.T) string {
	t.Helper()
	hash := fnv.New32()
	hash.Write([]byte(t.Name()))
	sum := hash.Sum32()
	l, err := net.Listen("tcp", fmt.Sprintf("127.%d.%d.%d:0", 1+sum>>24%250, byte(sum>>8), 1+sum%250))
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	return l.Addr().String()
}

func (w *world) start() {
	w.t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	running, err := server.Serve(ctx, server.Config{
		Dir: filepath.Join(w.dir, "etcd"), ClientAddr: w.clientAddr, PublishAddr: w.publishAddr, Cluster: cluster, Term: w.term, Before: w.before,
	})
	if err != nil {
		cancel()
		w.t.Fatal(err)
	}
	w.server, w.stop = running, cancel
	if w.raw, err = clientv3.New(clientv3.Config{Endpoints: []string{w.clientAddr}, Logger: EtcdLogger(slog.New(slog.DiscardHandler))}); err != nil {
		w.t.Fatal(err)
	}
	if w.writer, err = NewWriter(WriterConfig{Endpoints: []string{w.clientAddr}, Cluster: cluster, Term: w.term}); err != nil {
		w.t.Fatal(err)
	}
}

// halt stops the store; its data stays.
func (w *world) halt() {
	if w.server == nil {
		return
	}
	w.stop()
	if err := errors.Join(w.raw.Close(), w.writer.Close(), w.server.Wait()); err != nil {
		w.t.Errorf("store ended: %v", err)
	}
	w.server = nil
}

// wipe replaces the store by an empty one at the same address.
func (w *world) wipe() {
	w.t.Helper()
	w.halt()
	if err := os.RemoveAll(filepath.Join(w.dir, "etcd")); err != nil {
		w.t.Fatal(err)
	}
	w.start()
}

func (w *world) fill(records ...Record) Result {
	w.t.Helper()
	result, err := w.writer.Fill(w.t.Context(), records)
	if err != nil {
		w.t.Fatal(err)
	}
	return result
}

func (w *world) apply(records ...Record) Result {
	w.t.Helper()
	result, err := w.writer.Apply(w.t.Context(), records)
	if err != nil {
		w.t.Fatal(err)
	}
	return result
}

// put writes bytes as they are, past every check.
func (w *world) put(key string, value []byte) {
	w.t.Helper()
	if _, err := w.raw.Put(w.t.Context(), Prefix(cluster)+key, string(value)); err != nil {
		w.t.Fatal(err)
	}
}

// An agent is a running client and its tables.
type agent struct {
	t      *testing.T
	client *Client
	tables *table.Tables
	cancel context.CancelFunc
	ended  chan error
}

// agent starts one; its files are in a folder of the world named after it.
func (w *world) agent(node string) *agent {
	w.t.Helper()
	return w.agentAt(node, []string{w.clientAddr}, []string{w.publishAddr})
}

// agentAt starts one that goes to other addresses.
func (w *world) agentAt(node string, endpoints, publish []string) *agent {
	w.t.Helper()
	client, err := Dial(Config{
		Endpoints: endpoints, Publish: publish, Cluster: cluster, Node: node, RateLimit: 1000,
		SnapshotPath: filepath.Join(w.dir, node, "snapshot"), JournalPath: filepath.Join(w.dir, node, "journal"),
	})
	if err != nil {
		w.t.Fatal(err)
	}
	tables, err := table.New()
	if err != nil {
		w.t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	a := &agent{w.t, client, tables, cancel, make(chan error, 1)}
	go func() { a.ended <- client.Run(ctx, tables) }()
	w.t.Cleanup(a.stop)
	return a
}

func (a *agent) stop() {
	if a.cancel == nil {
		return
	}
	a.cancel()
	a.cancel = nil
	if err := <-a.ended; err != nil {
		a.t.Errorf("client ended: %v", err)
	}
	if err := a.client.Close(); err != nil {
		a.t.Errorf("close client: %v", err)
	}
}

// rows prints the primary columns of what the store fills, one line a row: enough to tell rows apart.
func (a *agent) rows() []string {
	txn := a.tables.DB.ReadTxn()
	var lines []string
	for _, stored := range a.tables.Stored() {
		name := stored.Name()
		_, rows, err := a.tables.Show(txn, name)
		if err != nil {
			a.t.Fatal(err)
		}
		for _, row := range rows {
			lines = append(lines, name+" "+strings.Join(row, " "))
		}
	}
	slices.Sort(lines)
	return lines
}

func (a *agent) has(part string) bool {
	return slices.ContainsFunc(a.rows(), func(line string) bool { return strings.Contains(line, part) })
}

// until waits for something to hold.
func until(t *testing.T, what string, holds func() bool) {
	t.Helper()
	deadline := time.Now().Add(time.Minute)
	for !holds() {
		if time.Now().After(deadline) {
			t.Fatalf("still not so: %s", what)
		}
		time.Sleep(2 * time.Millisecond)
	}
}

func (a *agent) untilHas(part string) {
	a.t.Helper()
	until(a.t, "the tables have "+part, func() bool { return a.has(part) })
}

func (a *agent) untilGone(part string) {
	a.t.Helper()
	until(a.t, "the tables have no "+part, func() bool { return !a.has(part) })
}

func (a *agent) untilSynced() {
	a.t.Helper()
	until(a.t, "the tables are complete", func() bool { return a.client.Status().Synced })
}

// caughtUp waits until the agent has applied a revision.
func (a *agent) caughtUp(revision int64) {
	a.t.Helper()
	until(a.t, fmt.Sprintf("revision %d is applied", revision), func() bool { return a.client.Status().Revision >= revision })
}

func (a *agent) set(key Key, record proto.Message) {
	a.t.Helper()
	if err := a.client.Publisher().Set(key, record); err != nil {
		a.t.Fatal(err)
	}
}
