package server

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/url"
	"os"
	"path/filepath"
	"sync"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
	"go.etcd.io/etcd/server/v3/embed"
	"go.etcd.io/etcd/server/v3/etcdserver/api/v3client"
	"google.golang.org/grpc"

	storev1 "tendril.io/tendril/api/store/v1"
	"tendril.io/tendril/internal/store"
)

// Config is for the store, embedded or before an etcd outside, and the Publish service beside it.
type Config struct {
	Dir         string      // data of the embedded etcd; or Endpoints
	Endpoints   []string    // of an etcd outside, host:port; any number of servers may be before it
	Outside     store.Files // for an etcd outside: who we are there, and whom we believe; zero: plaintext
	ClientAddr  string      // host:port where agents read; port 0 picks one
	PublishAddr string      // host:port that Publish listens on; port 0 picks one
	Cluster     string
	// Term is of the leader that keeps the embedded store, and Before of the one before, see store.BeginTerm; 0: the store is nobody's own.
	Term, Before uint64
	QuotaBytes   int64 // size at which etcd refuses writes, 0: 2 GiB
	// TLS is the store's certificate, and the authorities that name nodes; an *Authority issues them beside the Publish service. With TLS the
	// embedded etcd itself listens at a unix socket only, and who asks at ClientAddr can read. nil: plaintext.
	TLS store.Identity
	// Heard is when what the store is filled from last said anything; nil: nobody knows.
	Heard  func() time.Time
	Logger *slog.Logger
}

// Server is an embedded etcd of one member, or stands before one outside, and the Publish service beside it.
type Server struct {
	// One member, which serves until run ends; nil with an etcd outside.
	etcd *embed.Etcd
	// Calls the embedded etcd in the process, past the network and every role.
	client *clientv3.Client
	grpc   *grpc.Server
	// Open before etcd is: an address that is taken is known at once.
	publish net.Listener
	// For nodes to read; nil where they read at the embedded etcd itself, without TLS.
	reader *grpc.Server
	read   net.Listener
	admin  string // endpoint of etcd itself
	done   chan struct{}
	err    error
}

const (
	defaultQuota = 2 << 30
	startTimeout = 30 * time.Second
)

// Serve starts the store and returns once it answers. It runs until the context ends; Wait then returns.
func Serve(ctx context.Context, config Config) (*Server, error) {
	if err := config.Validate(); err != nil {
		return nil, err
	}
	if config.Logger == nil {
		config.Logger = slog.New(slog.DiscardHandler)
	}
	s := &Server{done: make(chan struct{})}
	if err := s.listen(config); err != nil {
		return nil, errors.Join(err, s.closeListeners())
	}
	connect := s.embed
	if config.Dir == "" {
		connect = s.relay
	}
	if err := connect(ctx, config); err != nil {
		return nil, errors.Join(err, s.closeListeners())
	}
	s.grpc = newPublishServer(s.client, config)
	go s.run(ctx)
	return s, nil
}

// embed starts the store.
func (s *Server) embed(ctx context.Context, config Config) (err error) {
	if s.etcd, err = startEtcd(ctx, config); err != nil {
		return err
	}
	s.client = v3client.New(s.etcd.Server)
	if config.Term != 0 {
		kept, err := store.BeginTerm(ctx, s.client, config.Cluster, config.Term, config.Before)
		if err != nil {
			s.etcd.Close()
			return errors.Join(err, s.client.Close())
		}
		config.Logger.Info("the store is of this leader's term", "term", config.Term, "kept", kept)
	}
	s.admin = s.etcd.Clients[0].Addr().String()
	if config.TLS != nil {
		s.reader = newReaderServer(s.etcd.Server, readable(store.Prefix(config.Cluster)), config.TLS)
		s.admin = "unix://" + config.socket()
	}
	return nil
}

// relay goes before a store outside, which may be away.
func (s *Server) relay(_ context.Context, config Config) (err error) {
	if s.client, err = store.DialEtcd(config.Endpoints, config.Outside, config.Logger); err != nil {
		return err
	}
	s.admin = config.Endpoints[0]
	s.reader = newRelayServer(s.client, readable(store.Prefix(config.Cluster)), config.TLS)
	return nil
}

// listen opens what etcd does not open itself.
func (s *Server) listen(config Config) (err error) {
	if s.publish, err = net.Listen("tcp", config.PublishAddr); err != nil {
		return fmt.Errorf("listen for publish: %w", err)
	}
	if config.TLS == nil && config.Dir != "" {
		return nil
	}
	if s.read, err = net.Listen("tcp", config.ClientAddr); err != nil {
		return fmt.Errorf("listen for readers: %w", err)
	}
	if config.Dir == "" {
		return nil
	}
	// Who may enter the folder may write the store: root.
	if err := os.MkdirAll(config.Dir, 0o700); err != nil {
		return fmt.Errorf("folder of the store: %w", err)
	}
	return nil
}

func (s *Server) closeListeners() (err error) {
	for _, listener := range []net.Listener{s.publish, s.read} {
		if listener != nil {
			err = errors.Join(err, listener.Close())
		}
	}
	return err
}

// Validate says what is missing or malformed.
func (c Config) Validate() error {
	if (c.Dir == "") == (len(c.Endpoints) == 0) {
		return fmt.Errorf("store server: dir is %q, endpoints are %v; name a directory for the store's data, or the addresses of an etcd outside", c.Dir, c.Endpoints)
	}
	if err := c.Outside.Validate(); err != nil {
		return fmt.Errorf("store server: etcd outside: %w", err)
	}
	for _, addr := range []string{c.ClientAddr, c.PublishAddr} {
		if _, _, err := net.SplitHostPort(addr); err != nil {
			return fmt.Errorf("store server: address %q: %w", addr, err)
		}
	}
	if err := store.CheckName(c.Cluster); err != nil {
		return fmt.Errorf("store server: cluster: %w", err)
	}
	return nil
}

// socket is where etcd itself listens with TLS. It may not be longer than 107 bytes (unix(7)).
func (c Config) socket() string { return filepath.Join(c.Dir, "store.sock") }

// startEtcd starts the embedded member and waits until it answers.
func startEtcd(ctx context.Context, config Config) (*embed.Etcd, error) {
	etcd, err := embed.StartEtcd(etcdConfig(config))
	if err != nil {
		return nil, fmt.Errorf("start store in %s: %w", config.Dir, err)
	}
	if config.TLS != nil {
		if err := os.Chmod(config.socket(), 0o600); err != nil { // for root, in whatever folder
			etcd.Close()
			return nil, fmt.Errorf("socket of the store: %w", err)
		}
	}
	select {
	// It has elected itself, and serves.
	case <-etcd.Server.ReadyNotify():
		return etcd, nil
	case err = <-etcd.Err():
	case <-ctx.Done():
		err = ctx.Err()
	case <-time.After(startTimeout):
		err = fmt.Errorf("not ready within %v", startTimeout)
	}
	etcd.Close()
	return nil, fmt.Errorf("start store in %s: %w", config.Dir, err)
}

// etcdConfig is a member on its own. Its peer address is never dialled; etcd wants one all the same.
func etcdConfig(config Config) *embed.Config {
	c := embed.NewConfig()
	c.Name = "tendril"
	c.Dir = config.Dir
	c.ListenClientUrls = []url.URL{{Scheme: "http", Host: config.ClientAddr}}
	c.AdvertiseClientUrls = c.ListenClientUrls // nobody asks; a socket is not allowed here
	if config.TLS != nil {
		c.ListenClientUrls = []url.URL{{Scheme: "unix", Path: config.socket()}}
	}
	c.ListenPeerUrls = []url.URL{{Scheme: "http", Host: "127.0.0.1:0"}}
	c.AdvertisePeerUrls = c.ListenPeerUrls
	c.InitialCluster = c.InitialClusterFromName(c.Name)
	c.InitialClusterToken = rand.Text() // counts on first start only: another store, another cluster id
	c.ZapLoggerBuilder = embed.NewZapLoggerBuilder(store.EtcdLogger(config.Logger))
	// Agents that were away longer read everything anew.
	c.AutoCompactionMode = "periodic"
	c.AutoCompactionRetention = "10m"
	c.QuotaBackendBytes = config.QuotaBytes
	if c.QuotaBackendBytes == 0 {
		c.QuotaBackendBytes = defaultQuota
	}
	// What one Publish call may hold.
	c.MaxTxnOps = store.MaxWrites
	c.GRPCKeepAliveMinTime = pingTime
	// Nobody speaks JSON to it.
	c.EnableGRPCGateway = false
	return c
}

func newPublishServer(client *clientv3.Client, config Config) *grpc.Server {
	var options []grpc.ServerOption
	authority, issues := config.TLS.(*Authority)
	if config.TLS != nil {
		credentials := store.NewCredentials(config.TLS)
		if issues {
			credentials = credentials.ForStrangers()
		}
		options = append(options, grpc.Creds(credentials))
	}
	server := grpc.NewServer(options...)
	storev1.RegisterPublishServer(server, &publishService{
		client: client, prefix: store.Prefix(config.Cluster), named: config.TLS != nil, heard: config.Heard,
	})
	if issues {
		storev1.RegisterAuthorityServer(server, authority)
	}
	return server
}

// run serves until the context ends or etcd fails.
func (s *Server) run(ctx context.Context) {
	defer close(s.done)
	served := make(chan error, 2)
	var serving sync.WaitGroup
	serving.Go(func() { served <- s.grpc.Serve(s.publish) })
	if s.reader != nil {
		serving.Go(func() { served <- s.reader.Serve(s.read) })
	}
	var failed <-chan error // nothing fails that is not ours
	if s.etcd != nil {
		failed = s.etcd.Err()
	}
	select {
	case <-ctx.Done():
	case s.err = <-failed:
	case s.err = <-served:
	}
	// Agents' calls end before the store does, so that none is answered as done and lost.
	s.grpc.Stop()
	if s.reader != nil {
		s.reader.Stop()
	}
	serving.Wait()
	s.client.Close()
	if s.etcd != nil {
		s.etcd.Close()
	}
}

// Wait returns once the server has stopped, with the reason if the context was not it.
func (s *Server) Wait() error {
	<-s.done
	return s.err
}

// ClientAddr is where agents read, host:port.
func (s *Server) ClientAddr() string {
	if s.read != nil {
		return s.read.Addr().String()
	}
	return s.etcd.Clients[0].Addr().String()
}

// AdminEndpoint is where etcd itself listens, for writers: at the same address, with TLS at a unix socket for root, or outside.
func (s *Server) AdminEndpoint() string { return s.admin }

// PublishAddr is where the Publish service listens, host:port.
func (s *Server) PublishAddr() string { return s.publish.Addr().String() }
