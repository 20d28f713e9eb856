package node

import (
	"context"
	"errors"
	"iter"
	"log/slog"
	"net/netip"
	"slices"
	"sync"
	"time"

	"github.com/cilium/statedb"

	"tendril.io/tendril/internal/datapath"
	"tendril.io/tendril/internal/service"
	"tendril.io/tendril/internal/table"
)

const (
	// takeover is how long a node waits before it answers for an address that has become its own: by then the one that had it
	// has heard of the same change.
	takeover = 500 * time.Millisecond
	// tells is how often the link is told of a new owner, a second apart: neighbours ignore what comes within a second of the
	// last (locktime of Linux), and frames get lost.
	tells = 3
	// unleased is how long the kernel answers on without a lease after the agent last said so.
	unleased = 3 * time.Second
	// firstBeat is how long a new agent leaves what the one before it announced as it is, if it gets no lease.
	firstBeat = 10 * time.Second
	// excluded is the well-known label of nodes that are no way in (Kubernetes).
	excluded = "node.kubernetes.io/exclude-from-external-load-balancers"
)

// announcer has each address of a load balancer, and each external IP if the configuration says so, answered for by one node on the
// link. All nodes compute the same from the same tables: who is alive, who is excluded, who has a backend that the policy asks for. An
// address is answered for until the end of this node's lease at the most, so that another takes over from silence. While the store
// cannot be reached nobody can take over; then the node goes on, and yields to whom it hears.
type announcer struct {
	tables *table.Tables
	self   string
	mac    [6]byte
	// configured says whether services' external IPs are answered for as well, but for those that a node has itself.
	configured func() (config *Config, changed <-chan struct{})
	kernel     announcements
	link       link
	lease      func() (ends time.Duration, changed <-chan struct{})
	now        func() time.Duration // since boot
	log        *slog.Logger

	mu     sync.Mutex // guards owners, which the API reads, and rivals
	owners map[netip.Addr]string
	rivals map[netip.Addr]string // who else answers for what is this node's, by link address

	began time.Duration
	held  map[netip.Addr]*holding
}

// holding is an address that is this node's.
type holding struct {
	since time.Duration
	told  int
}

// announcements is the part of the datapath that is used.
type announcements interface {
	Announce(rows []datapath.Announcement) error
	Announced() ([]datapath.Announcement, error)
	Rivals() (map[netip.Addr]datapath.Rival, error)
}

// link is the part of netlink.Announcer that is used.
type link interface {
	Tell(addr netip.Addr) error
	Hear(addr netip.Addr) error
	Ignore(addr netip.Addr) error
}

// Run follows the tables until ctx ends. What the kernel answers for then stays, until its time is over.
func (a *announcer) Run(ctx context.Context, loaded <-chan struct{}) error {
	select {
	case <-loaded:
	case <-ctx.Done():
		return nil
	}
	if err := a.resume(); err != nil {
		return err
	}
	var tables []<-chan struct{}
	for ctx.Err() == nil {
		if tables == nil {
			tables = a.choose()
		}
		_, beaten := a.lease() // before the round, so that no heartbeat is missed
		next, err := a.round()
		if err != nil {
			a.log.Error("announce addresses of services; will try again", "error", err)
			next = loopBackoff
		}
		watches := statedb.NewWatchSet()
		watches.Add(tables...)
		watches.Add(beaten)
		timed, cancel := context.WithTimeout(ctx, next)
		fired, _ := watches.Wait(timed, gathering) // an error: it is time for the next round, or ctx has ended
		cancel()
		if slices.ContainsFunc(fired, func(ch <-chan struct{}) bool { return slices.Contains(tables, ch) }) {
			tables = nil
		}
	}
	return nil
}

// gathering is how long changes of the tables are collected.
const gathering = 50 * time.Millisecond

// resume takes over what the agent before this one announced, without a gap.
func (a *announcer) resume() error {
	a.began, a.held = a.now(), make(map[netip.Addr]*holding)
	rows, err := a.kernel.Announced()
	for _, row := range rows {
		if row.Until > a.began {
			a.held[row.Addr] = &holding{since: a.began - takeover, told: tells}
		}
	}
	return err
}

// choose computes who answers for each address, and returns what is closed when that may have changed.
func (a *announcer) choose() []<-chan struct{} {
	t := a.tables
	txn := t.DB.ReadTxn()
	alive, changed1 := t.Alive.AllWatch(txn)
	services, changed2 := t.Services.AllWatch(txn)
	backends, changed3 := t.Backends.AllWatch(txn)
	_, changed4 := t.NodeLabels.AllWatch(txn)
	config, changed5 := a.configured()
	watched := []<-chan struct{}{changed1, changed2, changed3, changed4, changed5}
	var candidates []service.Candidate
	for row := range alive {
		labels, _, _ := t.NodeLabels.Get(txn, table.NodeLabelsByNode(row.Node))
		if labels == nil || !has(labels.Labels, excluded) {
			candidates = append(candidates, service.NewCandidate(row.Node))
		}
	}
	nodesOwn := make(map[netip.Addr]bool)
	if config.AnnounceExternalIPs {
		nodes, changed := t.Nodes.AllWatch(txn)
		watched = append(watched, changed)
		for row := range nodes {
			for _, addr := range row.Addresses {
				nodesOwn[addr] = true
			}
		}
	}
	owners, local := make(map[netip.Addr]string), localNodes(services, backends)
	for row := range services {
		for _, addr := range addressesOf(row, config.AnnounceExternalIPs, nodesOwn) {
			if _, taken := owners[addr]; taken { // of two services the first by name has it
				continue
			}
			may := func(string) bool { return true }
			if row.ExternalLocal {
				may = func(node string) bool { return local[serviceName{row.Namespace, row.Name}][node] }
			}
			owners[addr] = service.Announcer(addr, candidates, may)
		}
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	a.owners = owners
	return watched
}

// addressesOf lists the addresses of a service that some node is to answer for.
func addressesOf(row *table.Service, external bool, nodesOwn map[netip.Addr]bool) []netip.Addr {
	if !external || len(row.ExternalIPs) == 0 {
		return row.LoadBalancerIPs
	}
	others := slices.DeleteFunc(slices.Clone(row.ExternalIPs), func(addr netip.Addr) bool { return nodesOwn[addr] })
	return slices.Concat(row.LoadBalancerIPs, others)
}

func has(labels map[string]string, key string) bool {
	_, is := labels[key]
	return is
}

// localNodes finds, for services whose clients from outside must be served where they come in, the nodes that can.
func localNodes(services iter.Seq2[*table.Service, uint64], backends iter.Seq2[*table.Backends, uint64]) map[serviceName]map[string]bool {
	nodes := make(map[serviceName]map[string]bool)
	for row := range services {
		if row.ExternalLocal {
			nodes[serviceName{row.Namespace, row.Name}] = make(map[string]bool)
		}
	}
	for slice := range backends {
		found := nodes[serviceName{slice.Namespace, slice.Service}]
		for _, backend := range slice.Backends {
			if found != nil && backend.Ready && !backend.Terminating {
				found[backend.Node] = true
			}
		}
	}
	return nodes
}

// Owner is the node that answers for an address, as far as this one knows; "" nobody. rival is who else does, by link address: that
// is known of this node's own.
func (a *announcer) Owner(addr netip.Addr) (node, rival string) {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.owners[addr], a.rivals[addr]
}

// round brings kernel and link to where the choice is, and returns when there is more to do.
func (a *announcer) round() (next time.Duration, err error) {
	now := a.now()
	until, yields, ok := a.term(now)
	if !ok {
		return time.Second, nil
	}
	mine := a.mine()
	for addr := range a.held {
		if _, stays := slices.BinarySearchFunc(mine, addr, netip.Addr.Compare); !stays {
			delete(a.held, addr)
			err = errors.Join(err, a.link.Ignore(addr))
		}
	}
	next = time.Hour
	var rows []datapath.Announcement
	for _, addr := range mine {
		h := a.held[addr]
		if h == nil {
			h = &holding{since: now}
			a.held[addr] = h
			err = errors.Join(err, a.link.Hear(addr))
		}
		if answers := h.since + takeover; answers > now {
			next = min(next, answers-now)
			continue
		}
		rows = append(rows, datapath.Announcement{Addr: addr, MAC: a.mac, Until: until, Yields: yields})
	}
	if err = errors.Join(err, a.kernel.Announce(rows)); err != nil {
		return 0, err
	}
	if len(rows) > 0 {
		next = min(next, time.Second) // to tell, to see rivals, and to go on if the lease is not renewed
	}
	return next, errors.Join(a.tell(rows, now), a.watchRivals(rows, now))
}

// term is how long the kernel may answer from now on; not ok: what there is stays as it is.
func (a *announcer) term(now time.Duration) (until, yields time.Duration, ok bool) {
	ends, _ := a.lease()
	switch {
	case now < ends:
		return ends, 0, true
	case ends == 0 && now < a.began+firstBeat:
		return 0, 0, false
	}
	return now + unleased, max(ends, a.began), true
}

// mine lists this node's addresses in order.
func (a *announcer) mine() []netip.Addr {
	a.mu.Lock()
	defer a.mu.Unlock()
	var mine []netip.Addr
	for addr, owner := range a.owners {
		if owner == a.self {
			mine = append(mine, addr)
		}
	}
	slices.SortFunc(mine, netip.Addr.Compare)
	return mine
}

// tell has the link hear of new addresses, now and again a second later.
func (a *announcer) tell(rows []datapath.Announcement, now time.Duration) (err error) {
	for _, row := range rows {
		h := a.held[row.Addr]
		if h.told < tells && now >= h.since+takeover+time.Duration(h.told)*time.Second {
			h.told++
			err = errors.Join(err, a.link.Tell(row.Addr))
		}
	}
	return err
}

// watchRivals notes who else answers for this node's addresses. For a while after a change that is who had it before.
func (a *announcer) watchRivals(rows []datapath.Announcement, now time.Duration) error {
	if len(rows) == 0 {
		return nil
	}
	seen, err := a.kernel.Rivals()
	if err != nil {
		return err
	}
	rivals := make(map[netip.Addr]string)
	for _, row := range rows {
		rival, is := seen[row.Addr]
		if is && rival.Seen > a.held[row.Addr].since+tells*time.Second && now-rival.Seen < rivalMemory {
			rivals[row.Addr] = rival.MAC.String()
		}
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	for addr, mac := range rivals {
		if a.rivals[addr] != mac {
			a.log.Warn("somebody else on the link answers for an address of this node", "address", addr, "mac", mac)
		}
	}
	a.rivals = rivals
	return nil
}

// rivalMemory is how long somebody who was heard counts as there: caches of neighbours last about as long.
const rivalMemory = time.Minute
