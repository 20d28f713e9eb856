package store

import (
	"errors"
	"fmt"
	"log/slog"
	"net"
	"time"
)

// Config is what an agent needs to reach the store. Endpoints and Publish are host addresses, never a service's.
type Config struct {
	Endpoints []string // of etcd, host:port or URL
	Publish   []string // host:port of each server of the Publish service
	Cluster   string   // name of the cluster, in every key
	Node      string   // name of this node

	// SnapshotPath is the file with the last known records, loaded before the store answers; empty: none is kept.
	SnapshotPath string
	// JournalPath is the file with this node's own keys until they are published.
	JournalPath string

	RateLimit float64    // requests a second to the store, 0: 20
	Nodes     func() int // nodes of the cluster, for intervals; nil: counted from the nodes table
	TLS       Files      // this node's certificate and whom it believes; zero: plaintext, for the lab
	// Token is a file with what proves which node this is: with it the client has its certificate issued by the store's authority, and
	// keeps it in TLS.Cert and TLS.Key, which are one file then. Empty: somebody else puts them there.
	Token  string
	Logger *slog.Logger
	// Observe is told of every request: its name, how long it took and how it ended. May be nil.
	Observe func(operation string, took time.Duration, err error)
}

// Validate says what is missing or malformed.
func (c Config) Validate() error {
	if len(c.Endpoints) == 0 {
		return errors.New("store config: endpoints is empty; give at least one host:port of etcd")
	}
	if len(c.Publish) == 0 {
		return errors.New("store config: publish is empty; give at least one host:port of the Publish service")
	}
	for _, addr := range c.Publish {
		if _, _, err := net.SplitHostPort(addr); err != nil {
			return fmt.Errorf("store config: publish address %q: %w", addr, err)
		}
	}
	if c.JournalPath == "" {
		return errors.New("store config: journal path is empty; name a file that survives restarts")
	}
	if err := CheckName(c.Node); err != nil {
		return fmt.Errorf("store config: node: %w", err)
	}
	if c.RateLimit < 0 {
		return fmt.Errorf("store config: rate limit %v is negative", c.RateLimit)
	}
	if err := c.TLS.Validate(); err != nil {
		return fmt.Errorf("store config: %w", err)
	}
	if c.Token != "" && (c.TLS.CA == "" || c.TLS.Cert != c.TLS.Key) {
		return fmt.Errorf("store config: a token, CA file %q, certificate file %q, key file %q: name a CA file, and one file for certificate and key", c.TLS.CA, c.TLS.Cert, c.TLS.Key)
	}
	return checkCluster(c.Cluster)
}

// identity is nil for plaintext.
func (c Config) identity() Identity {
	if c.TLS == (Files{}) {
		return nil
	}
	return c.TLS
}

func checkCluster(cluster string) error {
	if err := CheckName(cluster); err != nil {
		return fmt.Errorf("store config: cluster: %w", err)
	}
	return nil
}

// WriterConfig is what the operator, the lab and `tendril apply` need to write the store.
type WriterConfig struct {
	Endpoints []string
	Cluster   string
	Term      uint64 // of the leader that keeps the store, for an epoch that this writer begins; 0: the store is nobody's own
	TLS       Files  // zero: plaintext
	Logger    *slog.Logger
}

// Status is how the connection to the store stands.
type Status struct {
	Connected bool
	LastError string        // why it is not connected
	Age       time.Duration // since the store last answered; since the start if it never did
	Revision  int64         // of the last event applied
	Epoch     string
	ClusterID uint64
	Loaded    bool // tables hold at least the last known records
	Synced    bool // tables are complete for the epoch
	// CertificateUntil is when this node's certificate expires; zero: there is none.
	CertificateUntil time.Time
	Counters         Counters
	Problems         []Problem // sorted by object
}

// Counters count what the client did since its start.
type Counters struct {
	Reads      uint64 // requests that read
	Writes     uint64 // requests that wrote
	Failures   uint64 // requests that failed
	Snapshots  uint64 // full reads of the store
	Resumes    uint64 // watches resumed by revision
	Events     uint64 // records applied
	BadRecords uint64 // records kept out
	Pruned     uint64 // rows removed because a complete filling does not have them
	Pending    uint64 // own keys not published yet
	Disowned   uint64 // keys of this node that the store had and nobody here knew, removed
}

// Problem is something a person should act on.
type Problem struct {
	Object  string
	Message string
	Remedy  string
}
