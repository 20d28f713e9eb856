package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
	"google.golang.org/protobuf/proto"

	"tendril.io/tendril/internal/store"
	"tendril.io/tendril/internal/store/server"
	"tendril.io/tendril/internal/table"
)

const storeCluster = "default"

// plane is a control plane in this process: the store as the operator embeds it, and the store's client of one agent with its
// tables. They talk over loopback.
type plane struct {
	writer *store.Writer
	raw    *clientv3.Client // to look on
	agent  *store.Client
	tables *table.Tables
	wire   *meter // between the two
}

// store measures what the life of pods and nodes costs the store and who reads it.
func (b *bench) store(ctx context.Context) error {
	return withPlane(ctx, func(ctx context.Context, p *plane) error {
		if err := b.lives(ctx, p); err != nil {
			return err
		}
		return b.allocations(ctx, p)
	})
}

// withPlane starts a plane for the time of f.
func withPlane(ctx context.Context, f func(context.Context, *plane) error) error {
	// In memory, since nothing here is a time, and every write would wait for a disk.
	dir, err := os.MkdirTemp("/dev/shm", "tendril-bench-store-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	running, err := server.Serve(ctx, server.Config{
		Dir: filepath.Join(dir, "etcd"), ClientAddr: "127.0.0.1:0", PublishAddr: "127.0.0.1:0", Cluster: storeCluster,
	})
	if err != nil {
		return err
	}
	p := &plane{}
	if p.wire, err = newMeter(running.ClientAddr()); err != nil {
		return err
	}
	defer p.wire.listener.Close()
	if err := p.connect(running, dir); err != nil {
		return err
	}
	ended := make(chan error, 1)
	go func() { ended <- p.agent.Run(ctx, p.tables) }()
	if _, err = p.writer.Fill(ctx, nil); err == nil {
		err = p.until(ctx, "the agent has read the store", func() bool { return p.agent.Status().Synced })
	}
	if err == nil {
		err = f(ctx, p)
	}
	cancel()
	// The store waits for its clients.
	return errors.Join(err, <-ended, p.agent.Close(), p.writer.Close(), p.raw.Close(), running.Wait())
}

func (p *plane) connect(running *server.Server, dir string) (err error) {
	quiet := store.EtcdLogger(slog.New(slog.DiscardHandler))
	if p.raw, err = clientv3.New(clientv3.Config{Endpoints: []string{running.ClientAddr()}, Logger: quiet}); err != nil {
		return err
	}
	if p.writer, err = store.NewWriter(store.WriterConfig{Endpoints: []string{running.ClientAddr()}, Cluster: storeCluster}); err != nil {
		return err
	}
	if p.tables, err = table.New(); err != nil {
		return err
	}
	p.agent, err = store.Dial(store.Config{
		Endpoints: []string{p.wire.listener.Addr().String()}, Publish: []string{running.PublishAddr()}, Cluster: storeCluster, Node: podNode, RateLimit: 1000,
		SnapshotPath: filepath.Join(dir, "snapshot"), JournalPath: filepath.Join(dir, "journal"),
	})
	return err
}

// until waits for something to hold.
func (*plane) until(ctx context.Context, what string, holds func() bool) error {
	for deadline := time.Now().Add(20 * time.Second); !holds(); {
		if err := ctx.Err(); err != nil || time.Now().After(deadline) {
			return errors.Join(fmt.Errorf("still not so: %s", what), err)
		}
		time.Sleep(200 * time.Microsecond)
	}
	return nil
}

// write writes records one after the other, and waits each time until the agent has the change: an answer of the watch then has
// one event, as it has where one thing happens at a time.
func (p *plane) write(ctx context.Context, records []store.Record) error {
	for _, record := range records {
		value, err := proto.Marshal(record.Value)
		if err != nil {
			return err
		}
		// Past the writers, which are not measured here, and of whom each takes his own kinds only.
		answer, err := p.raw.Put(ctx, store.Prefix(storeCluster)+record.Key, string(value))
		if err != nil {
			return err
		}
		if err := p.reached(ctx, answer.Header.Revision); err != nil {
			return err
		}
	}
	return nil
}

func (p *plane) reached(ctx context.Context, revision int64) error {
	return p.until(ctx, fmt.Sprintf("the agent has revision %d", revision), func() bool { return p.agent.Status().Revision >= revision })
}

// change is an event of the store.
type change struct {
	key     store.Key
	removed bool
	bytes   int // of key and value, as they are stored and sent
}

// changes lists what happened to the store after a revision.
func (p *plane) changes(ctx context.Context, after int64) ([]change, error) {
	prefix := store.Prefix(storeCluster)
	last, err := p.raw.Get(ctx, prefix, clientv3.WithPrefix(), clientv3.WithCountOnly())
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	var all []change
	watch := p.raw.Watch(ctx, prefix, clientv3.WithPrefix(), clientv3.WithRev(after+1))
	for seen := after; seen < last.Header.Revision; {
		answer := <-watch
		if err := answer.Err(); err != nil || len(answer.Events) == 0 {
			return nil, fmt.Errorf("watch: %w", errors.Join(err, ctx.Err()))
		}
		for _, event := range answer.Events {
			seen = event.Kv.ModRevision
			key, err := store.ParseKey(strings.TrimPrefix(string(event.Kv.Key), prefix))
			if err != nil {
				return nil, err
			}
			all = append(all, change{key, event.Type == clientv3.EventTypeDelete, len(event.Kv.Key) + len(event.Kv.Value)})
		}
	}
	return all, nil
}

// meter is a way to a server that counts the bytes that come from there.
type meter struct {
	listener net.Listener
	bytes    atomic.Int64
}

func newMeter(server string) (*meter, error) {
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return nil, err
	}
	m := &meter{listener: listener}
	go func() {
		for {
			client, err := listener.Accept()
			if err != nil {
				return // closed
			}
			go m.pass(client, server)
		}
	}()
	return m, nil
}

// pass carries a connection until its ends close it, which is all that can go wrong with it.
func (m *meter) pass(client net.Conn, server string) {
	defer client.Close()
	up, err := net.Dial("tcp", server)
	if err != nil {
		return
	}
	go func() {
		defer up.Close() // the other direction ends with it
		_, _ = io.Copy(up, client)
	}()
	_, _ = io.Copy(io.MultiWriter(m, client), up)
}

// Write counts.
func (m *meter) Write(data []byte) (int, error) {
	m.bytes.Add(int64(len(data)))
	return len(data), nil
}
