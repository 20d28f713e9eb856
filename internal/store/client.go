package store

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
	"golang.org/x/sync/errgroup"
	"google.golang.org/grpc"
	"google.golang.org/grpc/backoff"

	storev1 "tendril.io/tendril/api/store/v1"
	"tendril.io/tendril/internal/table"
)

// Client is an agent's side of the store: a feed that fills the tables and a publisher of the node's own keys.
type Client struct {
	// As it was given, with a logger; addresses may be others by now.
	config    Config
	addresses *addresses
	// For reading; its role in etcd may do nothing else.
	etcd *clientv3.Client
	// For writing the node's own keys.
	publish   *publishConn
	calls     *calls
	publisher *Publisher
	enrolment *enrolment // nil: the certificate is somebody else's to renew
	started   time.Time
	// Closed by the feed, see Loaded and Synced.
	loaded chan struct{}
	synced chan struct{}

	mu   sync.Mutex
	feed *feed // nil until Run
}

// Dial prepares a client. It reads the journal but does not wait for the store, which may be away.
func Dial(config Config) (*Client, error) {
	if err := config.Validate(); err != nil {
		return nil, err
	}
	if config.Logger == nil {
		config.Logger = slog.New(slog.DiscardHandler)
	}
	calls := newCalls(config.RateLimit, config.Observe)
	// Neither connects yet: an agent must start while the store is away.
	etcd, err := DialEtcd(config.Endpoints, config.TLS, config.Logger)
	if err != nil {
		return nil, err
	}
	publish, err := dialPublish(config.Publish, config.identity())
	if err != nil {
		return nil, errors.Join(err, etcd.Close())
	}
	addresses := &addresses{store: config.Endpoints, publish: config.Publish}
	c := &Client{
		config: config, addresses: addresses, etcd: etcd, publish: publish, calls: calls, started: time.Now(),
		loaded: make(chan struct{}), synced: make(chan struct{}),
	}
	c.publisher, err = openPublisher(config.Node, config.JournalPath, storev1.NewPublishClient(publish), calls, config.Logger)
	if err != nil {
		return nil, errors.Join(err, publish.Close(), etcd.Close())
	}
	if config.Token != "" {
		c.enrolment = &enrolment{files: config.TLS, node: config.Node, tokenPath: config.Token, addresses: addresses, logger: config.Logger}
	}
	return c, nil
}

// DialEtcd makes etcd's client; it connects on first use. A connection that goes silent is noticed within seconds.
func DialEtcd(endpoints []string, tls Files, logger *slog.Logger) (*clientv3.Client, error) {
	options := []grpc.DialOption{reconnect()}
	if tls != (Files{}) {
		options = append(options, grpc.WithTransportCredentials(NewCredentials(tls)))
	}
	client, err := clientv3.New(clientv3.Config{
		Endpoints:            endpoints,
		DialKeepAliveTime:    10 * time.Second,
		DialKeepAliveTimeout: 5 * time.Second,
		Logger:               EtcdLogger(logger),
		MaxUnaryRetries:      1, // retries are ours: see Backoff
		DialOptions:          options,
	})
	if err != nil {
		return nil, fmt.Errorf("dial store %v: %w", endpoints, err)
	}
	return client, nil
}

// reconnect bounds how long gRPC waits between tries to connect, so that a store that is back is soon found.
func reconnect() grpc.DialOption {
	return grpc.WithConnectParams(grpc.ConnectParams{
		Backoff:           backoff.Config{BaseDelay: 100 * time.Millisecond, Multiplier: 1.6, Jitter: 0.2, MaxDelay: 4 * time.Second},
		MinConnectTimeout: 3 * time.Second,
	})
}

// Run fills the tables and publishes the node's keys until the context ends; it can be called once. The store may come
// and go meanwhile. It returns an error only where going on makes no sense, such as an unreadable file.
func (c *Client) Run(ctx context.Context, tables *table.Tables) error {
	applier := newApplier(tables)
	applier.self = c.config.Node
	f := &feed{
		client: c.etcd, prefix: Prefix(c.config.Cluster), applier: applier, calls: c.calls,
		logger: c.config.Logger, nodes: c.nodes(tables), onOwn: c.publisher.disown, answered: c.started,
		loaded: c.loaded, synced: c.synced,
		onEpoch: func(epoch string, force bool) { c.publisher.republish(epoch, force) },
	}
	// Of two who both believe to lead, the feed may be at the one that was replaced: it looks again who is there.
	c.publisher.onOther = f.endSession
	// Before anything else: what was last known goes into the tables, so that the agent can go on with it.
	if c.config.SnapshotPath != "" {
		if err := f.load(c.config.SnapshotPath); err != nil {
			return err
		}
		defer f.close()
	}
	c.mu.Lock()
	c.feed = f
	c.mu.Unlock()
	group, ctx := errgroup.WithContext(ctx)
	// Reading, its file and writing go on apart: none waits for another.
	group.Go(func() error { return f.run(ctx) })
	group.Go(func() error { return f.maintain(ctx) })
	group.Go(func() error { return c.publisher.run(ctx, f.nodes) })
	if c.enrolment != nil {
		group.Go(func() error { return c.enrolment.run(ctx) })
	}
	return group.Wait()
}

// nodes counts the cluster's nodes, for intervals.
func (c *Client) nodes(tables *table.Tables) func() int {
	if c.config.Nodes != nil {
		return c.config.Nodes
	}
	return func() int { return tables.Nodes.NumObjects(tables.DB.ReadTxn()) }
}

// Loaded is closed once the tables hold the last known records, from the snapshot file or from the store: enough to go
// on forwarding with.
func (c *Client) Loaded() <-chan struct{} { return c.loaded }

// Synced is closed once the tables have been complete for the store's epoch: everything that the operator writes is in
// them. It stays closed when the store goes away or is filled anew; see Status for now.
func (c *Client) Synced() <-chan struct{} { return c.synced }

// Publisher is where the node's own keys are set.
func (c *Client) Publisher() *Publisher { return c.publisher }

// Status says how the connection stands.
func (c *Client) Status() Status {
	c.mu.Lock()
	f := c.feed
	c.mu.Unlock()
	status := Status{Age: time.Since(c.started)}
	if f != nil {
		f.describe(&status)
	}
	status.Counters.Reads = c.calls.reads.Load()
	status.Counters.Writes = c.calls.writes.Load()
	status.Counters.Failures = c.calls.failures.Load()
	status.Counters.Snapshots = c.calls.snapshots.Load()
	status.Counters.Resumes = c.calls.resumes.Load()
	status.Counters.Events = c.calls.events.Load()
	status.Counters.Disowned = c.publisher.disowned.Load()
	pending, problems := c.publisher.describe()
	status.Counters.Pending = uint64(pending)
	status.Problems = append(status.Problems, problems...)
	if c.config.TLS != (Files{}) {
		c.describeCertificate(&status)
	}
	return status
}

// describeCertificate says until when the node's certificate is good, and why if it is not.
func (c *Client) describeCertificate(s *Status) {
	cert, err := c.config.TLS.check(c.config.Node, time.Now())
	if cert != nil {
		s.CertificateUntil = cert.NotAfter
	}
	if c.enrolment != nil {
		if last := c.enrolment.lastError(); last != nil {
			s.Problems = append(s.Problems, Problem{
				Object: "certificate", Message: fmt.Sprintf("no new one is issued: %v", last),
				Remedy: "it is tried again; see the operator's log, and what the message names",
			})
		}
		return
	}
	if err != nil {
		s.Problems = append(s.Problems, Problem{
			Object: "certificate", Message: err.Error(),
			Remedy: "put a certificate of this node and its key there, of the authority that the store believes; the files are read anew at every connection",
		})
	}
}

// describe fills in what the feed knows.
func (f *feed) describe(s *Status) {
	f.mu.Lock()
	defer f.mu.Unlock()
	s.Connected, s.LastError, s.Age = f.isConnected, f.lastError, time.Since(f.answered)
	s.Revision, s.Epoch, s.ClusterID = f.revision, f.epoch, f.cluster
	s.Loaded, s.Synced = isClosed(f.loaded), f.applier.complete() && !f.behind
	s.Counters.BadRecords, s.Counters.Pruned = f.applier.bad, f.applier.pruned
	s.Problems = f.applier.listProblems()
	if f.behind {
		s.Problems = append(s.Problems, Problem{
			Object:  "store",
			Message: "the store went back in time: it has lost writes that this node had seen; no row is removed meanwhile",
			Remedy:  "fill the store again from its source, as the operator does at its start",
		})
	}
}

func isClosed(done <-chan struct{}) bool {
	select {
	case <-done:
		return true
	default:
		return false
	}
}

func (f *feed) close() {
	f.mu.Lock()
	defer f.mu.Unlock()
	if err := f.file.close(); err != nil {
		f.logger.Warn("snapshot file", "error", err)
	}
	f.file = nil
}

// Close ends the connections and the journal. Call it after Run has returned.
func (c *Client) Close() error {
	return errors.Join(c.publisher.close(), c.publish.Close(), c.etcd.Close())
}
