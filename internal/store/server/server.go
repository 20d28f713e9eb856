package server

import (
	"context"
	"crypto/rand"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/url"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
	"go.etcd.io/etcd/server/v3/embed"
	"go.etcd.io/etcd/server/v3/etcdserver/api/v3client"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"

	storev1 "tendril.io/tendril/api/store/v1"
	"tendril.io/tendril/internal/store"
)

// Config is for the embedded store and the Publish service beside it.
type Config struct {
	Dir         string // etcd's data
	ClientAddr  string // host:port that etcd listens on; port 0 picks one
	PublishAddr string // host:port that Publish listens on; port 0 picks one
	Cluster     string
	QuotaBytes  int64       // size at which etcd refuses writes, 0: 2 GiB
	TLS         *tls.Config // of the Publish service; its clients' certificates name their nodes. nil: plaintext
	Logger      *slog.Logger
}

// Server is an embedded etcd of one member, and the Publish service beside it.
type Server struct {
	// One member, which serves until run ends.
	etcd *embed.Etcd
	// Calls etcd in the process, past the network and every role.
	client *clientv3.Client
	grpc   *grpc.Server
	// Open before etcd is: an address that is taken is known at once.
	publish net.Listener
	done    chan struct{}
	err     error
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
	listener, err := net.Listen("tcp", config.PublishAddr)
	if err != nil {
		return nil, fmt.Errorf("listen for publish: %w", err)
	}
	etcd, err := startEtcd(ctx, config)
	if err != nil {
		return nil, errors.Join(err, listener.Close())
	}
	s := &Server{etcd: etcd, client: v3client.New(etcd.Server), publish: listener, done: make(chan struct{})}
	s.grpc = newPublishServer(s.client, config)
	go s.run(ctx)
	return s, nil
}

// Validate says what is missing or malformed.
func (c Config) Validate() error {
	if c.Dir == "" {
		return errors.New("store server: dir is empty; name a directory for the store's data")
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

// startEtcd starts the embedded member and waits until it answers.
func startEtcd(ctx context.Context, config Config) (*embed.Etcd, error) {
	etcd, err := embed.StartEtcd(etcdConfig(config))
	if err != nil {
		return nil, fmt.Errorf("start store in %s: %w", config.Dir, err)
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
	c.AdvertiseClientUrls = c.ListenClientUrls
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
	c.GRPCKeepAliveMinTime = 5 * time.Second // agents ask every 10 s
	// Nobody speaks JSON to it.
	c.EnableGRPCGateway = false
	return c
}

func newPublishServer(client *clientv3.Client, config Config) *grpc.Server {
	var options []grpc.ServerOption
	// Mutual: the configuration asks for certificates of clients.
	if config.TLS != nil {
		options = append(options, grpc.Creds(credentials.NewTLS(config.TLS)))
	}
	server := grpc.NewServer(options...)
	storev1.RegisterPublishServer(server, &publishService{
		client: client, prefix: store.Prefix(config.Cluster), named: config.TLS != nil,
	})
	return server
}

// run serves until the context ends or etcd fails.
func (s *Server) run(ctx context.Context) {
	defer close(s.done)
	served := make(chan error, 1)
	go func() { served <- s.grpc.Serve(s.publish) }()
	select {
	case <-ctx.Done():
	case s.err = <-s.etcd.Err():
	// Its result is wanted once more below.
	case s.err = <-served:
		served <- nil
	}
	// Agents' calls end before the store does, so that none is answered as done and lost.
	s.grpc.Stop()
	<-served
	s.client.Close()
	s.etcd.Close()
}

// Wait returns once the server has stopped, with the reason if the context was not it.
func (s *Server) Wait() error {
	<-s.done
	return s.err
}

// ClientAddr is where etcd listens, host:port.
func (s *Server) ClientAddr() string { return s.etcd.Clients[0].Addr().String() }

// PublishAddr is where the Publish service listens, host:port.
func (s *Server) PublishAddr() string { return s.publish.Addr().String() }
