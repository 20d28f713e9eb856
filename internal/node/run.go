package node

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/cilium/statedb"

	storev1 "tendril.io/tendril/api/store/v1"
	"tendril.io/tendril/internal/netlink"
	"tendril.io/tendril/internal/store"
	"tendril.io/tendril/internal/table"
)

// introduce publishes this node and keeps its sign of life, as the configuration has them.
func (a *Agent) introduce(ctx context.Context) error {
	for first := true; ctx.Err() == nil; first = false {
		config, changed := a.configuration.InForce()
		err := a.publishSelf(config)
		switch {
		case err != nil && first:
			return fmt.Errorf("publish this node: %w", err)
		case err != nil:
			a.log.Error("publish this node as the configuration has it now; will try again", "error", err)
			sleep(ctx, jittered(applyAgain))
			continue
		}
		select {
		case <-changed:
		case <-ctx.Done():
		}
	}
	return nil
}

// publishSelf tells the store of this node. Of what it has already it hears nothing.
func (a *Agent) publishSelf(config *Config) error {
	row := a.selfRow()
	boot := bootID()
	record := &storev1.Node{
		Tunnel: row.Tunnel.AsSlice(), MinVersion: 1, MaxVersion: 1, BootId: boot, Zone: config.Zone,
		Addresses: slicesOf(row.Addresses), RouterAddresses: slicesOf(row.Routers), HealthAddresses: slicesOf(row.Healths),
	}
	for _, cidr := range row.PodCIDRs {
		record.PodCidrs = append(record.PodCidrs, cidr.String())
	}
	publisher := a.store.Publisher()
	return errors.Join(publisher.Set(store.NodeKey(row.Name), record), publisher.Set(store.AliveKey(row.Name), &storev1.Alive{
		BootId: boot, StartedUnix: a.started.Unix(), LeaseSeconds: config.AliveLeaseSeconds,
	}))
}

// bootID names this boot of the machine; a node that comes back with another one has lost its pods.
func bootID() string {
	raw, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	if err != nil {
		return ""
	}
	return strings.TrimSpace(string(raw))
}

func slicesOf(addrs []netip.Addr) [][]byte {
	all := make([][]byte, 0, len(addrs))
	for _, addr := range addrs {
		all = append(all, addr.AsSlice())
	}
	return all
}

// acknowledgeEvery is multiplied by log2 of the number of nodes.
const acknowledgeEvery = 10 * time.Second

// acknowledge tells the store which policy revision the kernel enforces, when that has changed.
func (a *Agent) acknowledge(ctx context.Context) error {
	var last uint64
	for {
		nodes := a.tables.Nodes.NumObjects(a.tables.DB.ReadTxn())
		if !sleep(ctx, store.Interval(acknowledgeEvery, nodes)) {
			return nil
		}
		revision := a.policies.inForce.Load()
		if revision == last {
			continue
		}
		if err := a.store.Publisher().Set(store.AckKey(a.config.Node), &storev1.Ack{PolicyRevision: revision}); err != nil {
			a.log.Warn("acknowledge policy revision; will try again", "revision", revision, "error", err)
			continue
		}
		last = revision
	}
}

// watchKernel keeps the tables of devices and routes. At 5k nodes there are thousands of routes, and each pod that comes
// or goes changes two rows: only those are written.
func (a *Agent) watchKernel(ctx context.Context) error {
	return a.links.Watch(ctx, func(snapshot netlink.Snapshot) {
		txn := a.tables.DB.WriteTxn(a.tables.Devices, a.tables.Routes)
		defer txn.Commit()
		if err := replace(txn, a.tables.Devices, snapshot.Devices, deviceKey, sameDevice); err != nil {
			a.log.Error("note devices", "error", err)
		}
		if err := replace(txn, a.tables.Routes, snapshot.Routes, routeKey, sameRoute); err != nil {
			a.log.Error("note routes", "error", err)
		}
	})
}

func deviceKey(d *table.Device) uint32 { return d.Index }

func sameDevice(a, b *table.Device) bool {
	return a.Name == b.Name && a.Type == b.Type && a.MTU == b.MTU && a.MAC == b.MAC && a.Up == b.Up && slices.Equal(a.Addrs, b.Addrs)
}

// routeKey tells routes apart as the table does.
func routeKey(r *table.Route) table.Route {
	return table.Route{Table: r.Table, Prefix: r.Prefix, Device: r.Device}
}

func sameRoute(a, b *table.Route) bool { return *a == *b }

// replace makes a table hold rows and nothing else. Rows that are there already are not written, so that nobody who
// watches them wakes up. Of two rows with one key the last counts.
func replace[Row any, Key comparable](
	txn statedb.WriteTxn, into statedb.RWTable[*Row], rows []Row, key func(*Row) Key, same func(a, b *Row) bool,
) error {
	fresh := make(map[Key]*Row, len(rows))
	for i := range rows {
		fresh[key(&rows[i])] = &rows[i]
	}
	var gone []*Row
	for old := range into.All(txn) {
		row, stays := fresh[key(old)]
		if !stays {
			gone = append(gone, old)
		} else if same(old, row) {
			delete(fresh, key(old))
		}
	}
	for _, row := range gone {
		if _, _, err := into.Delete(txn, row); err != nil {
			return err
		}
	}
	for _, row := range fresh {
		if _, _, err := into.Insert(txn, row); err != nil {
			return err
		}
	}
	return nil
}

// recordFlows moves events from the kernel into the history.
func (a *Agent) recordFlows(ctx context.Context) error {
	return a.datapath.Events(ctx, a.flows.Store)
}

// countLost tells the history, every second, how many events the kernel had no room for.
func (a *Agent) countLost(ctx context.Context) error {
	before, err := a.datapath.EventsLost()
	for ; err == nil && sleep(ctx, time.Second); before, err = a.noteLost(before) {
	}
	return err
}

func (a *Agent) noteLost(before uint64) (uint64, error) {
	lost, err := a.datapath.EventsLost()
	if err == nil && lost > before {
		a.flows.Lose(lost - before)
		a.log.Warn("flow records lost: the ring buffer was full", "lost", lost-before)
	}
	return lost, err
}

// drainEvery is how often deletions that failed at start are tried again.
const drainEvery = time.Minute

// drainDeletions does what the plugin was asked while nobody listened, and could not be done at start.
func (a *Agent) drainDeletions(ctx context.Context) error {
	for sleep(ctx, jittered(drainEvery)) {
		if err := a.endpoints.Drain(ctx, a.deletions()); err != nil {
			a.log.Warn("queued deletions; will try again", "error", err)
		}
	}
	return nil
}

// addressPublisher tells the store which pod has which address.
type addressPublisher struct {
	publisher *store.Publisher
	node      string

	mu      sync.Mutex
	resting []resting
}

// resting is an address whose release the store has not taken note of yet.
type resting struct {
	key       store.Key
	committed func(at time.Time)
}

// Publish implements endpoint.Publisher.
func (p *addressPublisher) Publish(ip table.IP) error {
	record := &storev1.IP{PodUid: ip.PodUID, Sandbox: ip.Sandbox, Namespace: ip.Namespace, Pod: ip.Pod}
	return p.publisher.Set(store.IPKey(p.node, ip.Addr), record)
}

// Withdraw implements endpoint.Publisher.
func (p *addressPublisher) Withdraw(addr netip.Addr, committed func(at time.Time)) error {
	key := store.IPKey(p.node, addr)
	if err := p.publisher.Delete(key); err != nil {
		return err
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	p.resting = append(p.resting, resting{key, committed})
	return nil
}

// Run tells who withdrew an address when the store has taken note.
func (p *addressPublisher) Run(ctx context.Context) error {
	for sleep(ctx, time.Second) {
		// Taken out while they are asked about: committed calls into the endpoint manager, which withdraws under locks of
		// its own.
		p.mu.Lock()
		waiting := p.resting
		p.resting = nil
		p.mu.Unlock()
		now := time.Now()
		left := slices.DeleteFunc(waiting, func(r resting) bool {
			settled := p.publisher.Settled(r.key)
			if settled {
				r.committed(now)
			}
			return settled
		})
		p.mu.Lock()
		p.resting = append(p.resting, left...)
		p.mu.Unlock()
	}
	return nil
}
