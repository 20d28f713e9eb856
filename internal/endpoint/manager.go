package endpoint

import (
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"os"
	"path/filepath"
	"sync"
	"time"

	"tendril.io/tendril/bpf"
	"tendril.io/tendril/internal/cni"
	"tendril.io/tendril/internal/ipam"
	"tendril.io/tendril/internal/netlink"
	"tendril.io/tendril/internal/policy"
	"tendril.io/tendril/internal/table"
)

// Program is a loaded stub.
type Program interface {
	FD() int
	Close() error
}

// Publisher tells the cluster which pod has which address. Neither call waits for the store.
type Publisher interface {
	// Publish journals an address; the store learns it when it can.
	Publish(ip table.IP) error
	// Withdraw takes it back. committed is called, once and from any goroutine, when the store has taken note; after a
	// restart Withdraw is asked again.
	Withdraw(addr netip.Addr, committed func(at time.Time)) error
}

// Links is what the kernel does for a pod: *netlink.Handle.
type Links interface {
	CreatePair(netlink.Pair) (ifindex uint32, err error)
	// NetnsCookie is the number by which programs know a network namespace.
	NetnsCookie(netns *os.File) (uint64, error)
	AttachClassifiers(ifindex uint32, classifiers ...netlink.Classifier) error
	ConnectPair(ifindex uint32, podMAC [6]byte, addrs []netip.Addr) error
	RemovePair(device string) error
	// InspectPair says how a pair is; the pod's end only if netns is not nil. A missing device has index 0.
	InspectPair(device string, netns *os.File, ifName string) (netlink.PairState, error)
	// FindPair, NotePod and ReleasePair are for a device that another plugin makes and removes.
	FindPair(netns *os.File, ifName string) (netlink.Adopted, error)
	NotePod(netlink.Adopted) error
	ReleasePair(netlink.Adopted) error
}

// Config is what a Manager needs. All fields are required.
type Config struct {
	Node     string
	Cluster  string
	StateDir string // folder of the journal
	MTUs     MTUs
	Book     *ipam.Book // the Manager becomes its only user
	Numbers  policy.Numbers
	Links    Links
	// LoadStub makes the instance of a template that belongs to an endpoint.
	LoadStub func(endpoint, generation uint32, entry bpf.Entry) (Program, error)
	// AdoptStub says whether a program that an earlier agent put on a device is the one that LoadStub would make. One
	// that is not, because the template or the maps behind it are others, is replaced: packets meet the old or the new.
	AdoptStub func(program, endpoint, generation uint32, entry bpf.Entry) (bool, error)
	Publisher Publisher
	// IsNodeAddress says whether a host port may be at an address.
	IsNodeAddress func(addr netip.Addr) bool
	Tables        *table.Tables
	Log           *slog.Logger
}

// Manager makes and removes endpoints; it is the cni.Handler of the agent. Make one with New, call Restore once, then
// let it serve.
type Manager struct {
	config  Config
	links   Links
	journal *journal
	locks   locks

	mutex     sync.Mutex // guards what follows, and is never held while the kernel or a file is waited for
	book      *ipam.Book
	endpoints map[cni.Attachment]*endpoint
	claims    map[cni.Attachment]claimed
	last      uint32 // generation given out last
	restored  bool
}

// Address is an address that is not free, with what it is used for.
type Address = ipam.Address

// New opens the journal. Nothing in the kernel is touched yet.
func New(config Config) (*Manager, error) {
	if err := config.validate(); err != nil {
		return nil, err
	}
	opened, err := openJournal(filepath.Join(config.StateDir, "endpoints.journal"))
	if err != nil {
		return nil, err
	}
	return &Manager{
		config: config, links: config.Links, journal: opened, book: config.Book,
		endpoints: make(map[cni.Attachment]*endpoint), claims: make(map[cni.Attachment]claimed),
	}, nil
}

// validate finds what build forgot, at start rather than at the first pod.
func (c *Config) validate() error {
	switch {
	case c.Node == "" || c.StateDir == "":
		return errors.New("endpoints: node and state folder are required")
	case c.Book == nil || c.Numbers == nil || c.Links == nil || c.LoadStub == nil || c.AdoptStub == nil || c.IsNodeAddress == nil || c.Publisher == nil || c.Tables == nil:
		return errors.New("endpoints: book, numbers, links, stubs, publisher and tables are required")
	case c.Log == nil:
		return errors.New("endpoints: log is required")
	case c.MTUs.Device == 0 || c.MTUs.Route == 0:
		return fmt.Errorf("endpoints: MTUs %+v: compute them with MTU", c.MTUs)
	}
	return nil
}

// Close closes the journal. Endpoints stay.
func (m *Manager) Close() error { return m.journal.close() }

// Addresses lists the addresses that are not free, by pool and address.
func (m *Manager) Addresses() []Address {
	m.mutex.Lock()
	defer m.mutex.Unlock()
	return m.book.List()
}

// Room fails while a pool has no address for another pod, with its use and the remedy.
func (m *Manager) Room() error {
	m.mutex.Lock()
	defer m.mutex.Unlock()
	return m.book.Room(time.Now())
}

// ready fails before Restore: until then an endpoint that is not known may exist all the same.
func (m *Manager) ready() error {
	m.mutex.Lock()
	defer m.mutex.Unlock()
	if !m.restored {
		return cni.Errorf(cni.CodeUnavailable, "the agent is starting; try again later", "endpoints are not restored yet")
	}
	return nil
}

// lookup finds an endpoint, complete or not. What it returns may be changed only under the attachment's lock.
func (m *Manager) lookup(a cni.Attachment) *endpoint {
	m.mutex.Lock()
	defer m.mutex.Unlock()
	return m.endpoints[a]
}

func (m *Manager) routers() []netip.Addr {
	m.mutex.Lock()
	defer m.mutex.Unlock()
	return m.book.Routers()
}
