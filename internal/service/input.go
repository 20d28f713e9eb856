package service

import (
	"cmp"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"tendril.io/tendril/internal/table"
)

// DefaultMaglevSize is the number of slots of a Maglev table unless configured: within 1 % of even up to 40 backends.
const DefaultMaglevSize = 4093

// maxMaglevSize bounds a table to a quarter of the slots that a node has on defaults.
const maxMaglevSize = 131071

// Config is what the brain knows of its node. The zero value balances over all backends.
type Config struct {
	NodeName   string // for internalTrafficPolicy and externalTrafficPolicy Local
	Zone       string // for trafficDistribution; empty: what SetZone says
	MaglevSize uint32 // slots of a Maglev table, a prime; 0: DefaultMaglevSize
	DSR        bool   // backends of other nodes answer clients outside themselves, unless a service says otherwise
}

// Validate says what is wrong with the configuration, and the nearest value that would do.
func (c Config) Validate() error {
	if c.MaglevSize == 0 {
		return nil
	}
	if c.MaglevSize > maxMaglevSize {
		return fmt.Errorf("maglev size %d: at most %d slots fit beside other services", c.MaglevSize, maxMaglevSize)
	}
	if prime := primeUpTo(c.MaglevSize); prime != c.MaglevSize {
		return fmt.Errorf("maglev size %d: must be a prime, the nearest below is %d", c.MaglevSize, prime)
	}
	return nil
}

// primeUpTo returns the largest prime <= n, or 2.
func primeUpTo(n uint32) uint32 {
	for ; n > 2; n-- {
		prime := true
		for d := uint32(2); d*d <= n && prime; d++ {
			prime = n%d != 0
		}
		if prime {
			return n
		}
	}
	return 2
}

// serviceKey names a service.
type serviceKey struct{ namespace, name string }

// String is the name as people write it.
func (k serviceKey) String() string { return k.namespace + "/" + k.name }

// hostPort says that the service stands for a host port: no other name has such a byte.
func (k serviceKey) hostPort() bool { return strings.IndexByte(k.name, hostPortMark) >= 0 }

// compare orders names: it decides conflicts and the order in which services are published. Host ports come last: who may
// only make pods must not take a service's port.
func (k serviceKey) compare(other serviceKey) int {
	if a, b := k.hostPort(), other.hostPort(); a != b {
		if a {
			return 1
		}
		return -1
	}
	if c := strings.Compare(k.namespace, other.namespace); c != 0 {
		return c
	}
	return strings.Compare(k.name, other.name)
}

// record is all that the brain keeps of a service: what was put in, and what is published of it.
type record struct {
	service   *table.Service            // nil: only its endpoints are known so far
	slices    map[string]table.Backends // by name of the slice
	claims    []FrontendKey             // frontends that its service asks for, sorted
	published publication
	problems  []Problem // why the kernel does not have what the inputs ask for; empty: it has
	dirty     bool
}

// node is what the brain knows of a node of the cluster.
type node struct {
	number uint32
	zone   string
	addrs  []netip.Addr
}

// Brain turns services and endpoints into what the kernel must know.
type Brain struct {
	config    Config
	numbers   Numbers
	services  map[serviceKey]*record
	claimants map[FrontendKey][]serviceKey // sorted: the first one has it
	nodes     map[string]node
	nodesAt   map[netip.Addr][]string // sorted names of the nodes that have an address
	atNodes   nodeFrontends           // of those that are asked for
	moved     map[netip.Addr]struct{} // addresses that nodes got or gave up since the last flush

	health    map[serviceKey]HealthCheck
	frontends map[FrontendKey]frontendState
	backends  map[backendName]*backendState

	dirty      []serviceKey
	stuck      map[serviceKey]struct{} // no room: tried again when something was released
	released   uint64                  // counts releases, ever
	stuckAt    uint64                  // released when a stuck service was last tried
	nodesDirty bool                    // some node's number changed: backends may have to be rewritten
	labelled   string                  // zone that this node's labels name
	home       string                  // zone of this node; empty: zones are not preferred
	zonesDirty bool                    // this or some node's zone changed: near backends may be others
	change     change
}

// New returns a brain that has published nothing.
func New(config Config, numbers Numbers) (*Brain, error) {
	if err := config.Validate(); err != nil {
		return nil, fmt.Errorf("service config: %w", err)
	}
	if numbers == nil {
		return nil, errors.New("service config: no numbers to assign from")
	}
	if config.MaglevSize == 0 {
		config.MaglevSize = DefaultMaglevSize
	}
	return &Brain{
		config:    config,
		home:      config.Zone,
		numbers:   numbers,
		services:  make(map[serviceKey]*record),
		claimants: make(map[FrontendKey][]serviceKey),
		nodes:     make(map[string]node),
		nodesAt:   make(map[netip.Addr][]string),
		atNodes:   make(nodeFrontends),
		moved:     make(map[netip.Addr]struct{}),
		health:    make(map[serviceKey]HealthCheck),
		frontends: make(map[FrontendKey]frontendState),
		backends:  make(map[backendName]*backendState),
		stuck:     make(map[serviceKey]struct{}),
	}, nil
}

// SetService notes a service, new or changed. The row's slices must not change afterwards.
func (b *Brain) SetService(row table.Service) {
	key := serviceKey{row.Namespace, row.Name}
	r := b.record(key)
	r.service = &row
	b.claim(key, r, wantedFrontends(&row))
	b.touch(key, r)
}

// DeleteService forgets a service. Its endpoint slices stay until they are deleted themselves.
func (b *Brain) DeleteService(namespace, name string) {
	key := serviceKey{namespace, name}
	r, ok := b.services[key]
	if !ok || r.service == nil {
		return
	}
	r.service = nil
	b.claim(key, r, nil)
	b.touch(key, r)
}

// SetBackends notes an endpoint slice, new or changed. The row's slices must not change afterwards.
func (b *Brain) SetBackends(row table.Backends) {
	key := serviceKey{row.Namespace, row.Service}
	r := b.record(key)
	if r.slices == nil {
		r.slices = make(map[string]table.Backends, 1)
	}
	r.slices[row.Slice] = row
	b.touch(key, r)
}

// DeleteBackends forgets an endpoint slice.
func (b *Brain) DeleteBackends(namespace, service, slice string) {
	key := serviceKey{namespace, service}
	r, ok := b.services[key]
	if !ok {
		return
	}
	if _, ok := r.slices[slice]; !ok {
		return
	}
	delete(r.slices, slice)
	b.touch(key, r)
}

// SetZone says in which zone this node is, by its labels; empty: in none. Config.Zone goes before it.
func (b *Brain) SetZone(zone string) {
	b.labelled = zone
	b.settleZone()
}

// settleZone has the next flush look at near backends again if this node is in another zone now.
func (b *Brain) settleZone() {
	if home := cmp.Or(b.config.Zone, b.labelled); b.home != home {
		b.home, b.zonesDirty = home, true
	}
}

// Configure exchanges those fields of the configuration that may change: Zone and DSR.
func (b *Brain) Configure(zone string, dsr bool) {
	b.config.Zone = zone
	b.settleZone()
	if b.config.DSR == dsr {
		return
	}
	b.config.DSR = dsr
	for key, r := range b.services {
		if r.service != nil && r.service.Forwarding == "" {
			b.touch(key, r)
		}
	}
}

// SetNode notes a node's number in the nodes map; its zone, which counts where a slice names none; and its addresses, where
// node ports answer.
func (b *Brain) SetNode(name string, number uint32, zone string, addrs ...netip.Addr) {
	was := b.nodes[name]
	if was.number == number && was.zone == zone && slices.Equal(was.addrs, addrs) {
		return
	}
	b.zonesDirty = b.zonesDirty || b.home != "" && was.zone != zone
	if !slices.Equal(was.addrs, addrs) {
		b.settle(name, was.addrs, addrs)
	}
	b.nodes[name] = node{number, zone, addrs}
	b.nodesDirty = true
}

// DeleteNode forgets a node.
func (b *Brain) DeleteNode(name string) {
	if _, ok := b.nodes[name]; !ok {
		return
	}
	b.SetNode(name, 0, "")
	delete(b.nodes, name)
}

// settle moves a node to other addresses. For a while two nodes can list one.
func (b *Brain) settle(name string, was, is []netip.Addr) {
	for _, addr := range was {
		b.moved[addr] = struct{}{}
		b.nodesAt[addr] = slices.DeleteFunc(b.nodesAt[addr], func(n string) bool { return n == name })
		if len(b.nodesAt[addr]) == 0 {
			delete(b.nodesAt, addr)
		}
	}
	for _, addr := range is {
		b.moved[addr] = struct{}{}
		if at, has := slices.BinarySearch(b.nodesAt[addr], name); !has {
			b.nodesAt[addr] = slices.Insert(b.nodesAt[addr], at, name)
		}
	}
}

// touchMoved has the flush look at the services that ask for an address which has become a node's, or is one no more. It
// walks all frontends, once for all nodes that changed.
func (b *Brain) touchMoved() {
	if len(b.moved) == 0 {
		return
	}
	for frontend := range b.claimants {
		if _, moved := b.moved[frontend.Addr]; !moved {
			continue
		}
		b.touchClaimants(frontend, serviceKey{})
		b.touchClaimants(frontend.anywhere(), serviceKey{})
		if anywhere := frontend.anywhere(); b.atNode(frontend) {
			b.atNodes.add(anywhere, frontend)
		} else {
			b.atNodes.remove(anywhere, frontend)
		}
	}
	clear(b.moved)
}

// atNode says that a node port, too, may answer at a frontend's address.
func (b *Brain) atNode(frontend FrontendKey) bool {
	return frontend.Addr.IsLoopback() || len(b.nodesAt[frontend.Addr]) > 0
}

// anywhere is the same port at every address of the node.
func (k FrontendKey) anywhere() FrontendKey {
	return FrontendKey{unspecified(k.Addr.Is4()), k.Port, k.Proto}
}

// nodeFrontends are, by a port at every address of the node, frontends of that port at one address of a node.
type nodeFrontends map[FrontendKey][]FrontendKey

// add and remove keep each list sorted and distinct.
func (n nodeFrontends) add(anywhere, frontend FrontendKey) {
	if at, has := slices.BinarySearchFunc(n[anywhere], frontend, FrontendKey.Compare); !has {
		n[anywhere] = slices.Insert(n[anywhere], at, frontend)
	}
}

func (n nodeFrontends) remove(anywhere, frontend FrontendKey) {
	if at, has := slices.BinarySearchFunc(n[anywhere], frontend, FrontendKey.Compare); has {
		n[anywhere] = slices.Delete(n[anywhere], at, at+1)
	}
	if len(n[anywhere]) == 0 {
		delete(n, anywhere)
	}
}

// rivals are frontends that some service asks for and that meet this one at a node: at one address, or at all.
func (b *Brain) rivals(frontend FrontendKey) []FrontendKey {
	anywhere := frontend.anywhere()
	if frontend == anywhere {
		return b.atNodes[anywhere]
	}
	if b.atNode(frontend) && len(b.claimants[anywhere]) > 0 {
		return []FrontendKey{anywhere}
	}
	return nil
}

// record returns the record of a service, making it if it is new.
func (b *Brain) record(key serviceKey) *record {
	r, ok := b.services[key]
	if !ok {
		r = &record{}
		b.services[key] = r
	}
	return r
}

// touch has the next Flush look at a service.
func (b *Brain) touch(key serviceKey, r *record) {
	if !r.dirty {
		r.dirty = true
		b.dirty = append(b.dirty, key)
	}
}

// claim replaces the frontends that a service asks for. Where that changes who has a frontend, the services concerned
// are looked at again.
func (b *Brain) claim(key serviceKey, r *record, wanted []FrontendKey) {
	for _, frontend := range r.claims {
		if _, kept := slices.BinarySearchFunc(wanted, frontend, FrontendKey.Compare); !kept {
			b.unclaim(key, frontend)
		}
	}
	for _, frontend := range wanted {
		claimants := b.claimants[frontend]
		at, has := slices.BinarySearchFunc(claimants, key, serviceKey.compare)
		if has {
			continue
		}
		b.claimants[frontend] = slices.Insert(claimants, at, key)
		if b.atNode(frontend) {
			b.atNodes.add(frontend.anywhere(), frontend)
		}
		b.touchClaimants(frontend, key)
	}
	r.claims = wanted
}

// unclaim takes a service off the list of those that ask for a frontend.
func (b *Brain) unclaim(key serviceKey, frontend FrontendKey) {
	claimants := b.claimants[frontend]
	if at, has := slices.BinarySearchFunc(claimants, key, serviceKey.compare); has {
		claimants = slices.Delete(claimants, at, at+1)
	}
	b.claimants[frontend] = claimants
	b.touchClaimants(frontend, key)
	if len(claimants) == 0 {
		delete(b.claimants, frontend)
		b.atNodes.remove(frontend.anywhere(), frontend)
	}
}

// touchClaimants has the next Flush look at the other services that ask for a frontend, or for one that meets it: it may have
// changed hands.
func (b *Brain) touchClaimants(frontend FrontendKey, except serviceKey) {
	b.touchAll(b.claimants[frontend], except)
	for _, rival := range b.rivals(frontend) {
		b.touchAll(b.claimants[rival], except)
	}
}

// touchAll has the next Flush look at services.
func (b *Brain) touchAll(keys []serviceKey, except serviceKey) {
	for _, key := range keys {
		if key != except {
			b.touch(key, b.services[key])
		}
	}
}

// owner returns the service that has a frontend: of several that ask for it, the one whose name sorts first, so that
// all nodes agree whatever the order in which they heard of them. A node's address is nobody's cluster address.
func (b *Brain) owner(frontend FrontendKey) serviceKey {
	atNode := len(b.nodesAt[frontend.Addr]) > 0
	for _, key := range b.claimants[frontend] {
		if !atNode || b.services[key].external(frontend.Addr) {
			return key
		}
	}
	return serviceKey{}
}

// external says whether a service asks for an address for clients outside.
func (r *record) external(addr netip.Addr) bool {
	is := func(a netip.Addr) bool { return a.Unmap() == addr }
	return slices.ContainsFunc(r.service.ExternalIPs, is) || slices.ContainsFunc(r.service.LoadBalancerIPs, is)
}
