package node

import (
	"context"
	"log/slog"
	"slices"
	"sync"

	"github.com/cilium/statedb"

	"tendril.io/tendril/internal/datapath"
	"tendril.io/tendril/internal/service"
	"tendril.io/tendril/internal/table"
)

// serviceLoop is a service's journey on this node: rows -> brain -> delta -> kernel.
type serviceLoop struct {
	tables    *table.Tables
	self      string // name of this node
	publisher servicePublisher
	number    func(node string) uint32
	gone      func(backends []uint32) // told of backends that are gone, once the kernel knows
	log       *slog.Logger

	configured func() (*Config, <-chan struct{}) // nil: the configuration does not change

	mu    sync.RWMutex // guards brain: the loop writes, the API reads
	brain *service.Brain

	hostPorts   map[uint32][]serviceName // by endpoint: what the brain has of its host ports
	feeds       feeds                    // of the tables that services come from
	health      healthServers
	unpublished *service.Delta // computed, not yet in the kernel
	trouble     error          // why the kernel does not agree with the tables; nil: it does
}

// zoneLabel of a Node is its zone (Kubernetes, well-known labels).
const zoneLabel = "topology.kubernetes.io/zone"

// servicePublisher makes the kernel agree with a delta.
type servicePublisher interface {
	PublishServices(ctx context.Context, delta *service.Delta) error
}

// Run follows the tables until ctx ends. It starts once loaded is closed; first is called when the kernel first agrees
// with the tables.
func (l *serviceLoop) Run(ctx context.Context, loaded <-chan struct{}, first func()) error {
	return follow(ctx, l, loaded, first)
}

// attempt implements loop.
func (l *serviceLoop) attempt(ctx context.Context, watches *statedb.WatchSet) (settled bool, err error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.feeds.pull(l.tables.DB.ReadTxn(), watches)
	l.configure(watches)
	err = l.step(ctx)
	if l.trouble = err; err != nil {
		l.log.Error("publish services; will try again", "error", err)
	}
	if again := l.health.retry(); again != nil {
		watches.Add(again)
	}
	return err == nil, err
}

// configure goes by the configuration in force.
func (l *serviceLoop) configure(watches *statedb.WatchSet) {
	if l.configured == nil {
		return
	}
	config, changed := l.configured()
	watches.Add(changed)
	l.brain.Configure(config.Zone, config.LBMode == LBModeDSR)
}

// stop implements loop.
func (l *serviceLoop) stop() {
	l.feeds.close()
	l.health.close()
}

// catchUp brings the kernel to where the tables are. The caller holds mu.
func (l *serviceLoop) catchUp(ctx context.Context) error {
	l.feeds.pull(l.tables.DB.ReadTxn(), statedb.NewWatchSet())
	return l.step(ctx)
}

// start implements loop.
func (l *serviceLoop) start() error {
	t := l.tables
	l.health.healthy = func() bool { return l.Trouble() == nil }
	nodes, err1 := watch(t.DB, t.Nodes, func(row *table.Node, deleted bool) {
		if deleted {
			l.brain.DeleteNode(row.Name)
			return
		}
		l.brain.SetNode(row.Name, l.number(row.Name), row.Zone, slices.Concat(row.Addresses, row.Routers)...)
	})
	services, err2 := watch(t.DB, t.Services, func(row *table.Service, deleted bool) {
		if deleted {
			l.brain.DeleteService(row.Namespace, row.Name)
			return
		}
		l.brain.SetService(*row)
	})
	backends, err3 := watch(t.DB, t.Backends, func(row *table.Backends, deleted bool) {
		if deleted {
			l.brain.DeleteBackends(row.Namespace, row.Service, row.Slice)
			return
		}
		l.brain.SetBackends(*row)
	})
	endpoints, err4 := watch(t.DB, t.Endpoints, l.setHostPorts)
	labels, err5 := watch(t.DB, t.NodeLabels, func(row *table.NodeLabels, deleted bool) {
		switch {
		case row.Node != l.self:
		case deleted:
			l.brain.SetZone("")
		default:
			l.brain.SetZone(row.Labels[zoneLabel])
		}
	})
	for _, err := range []error{err1, err2, err3, err4, err5} {
		if err != nil {
			return err
		}
	}
	l.feeds = feeds{nodes, services, backends, endpoints, labels}
	return nil
}

// step takes what has changed to the kernel; a delta that could not be published is published again first.
func (l *serviceLoop) step(ctx context.Context) error {
	for {
		if l.unpublished == nil {
			delta := l.brain.Flush()
			if delta.Empty() {
				l.health.set(l.brain.HealthChecks())
				return nil
			}
			l.unpublished = &delta
		}
		if err := l.publisher.PublishServices(ctx, l.unpublished); err != nil {
			return err
		}
		l.gone(datapath.GoneBackends(l.unpublished))
		l.unpublished = nil
	}
}

// Trouble is what keeps the kernel from agreeing with the tables.
func (l *serviceLoop) Trouble() error {
	l.mu.RLock()
	defer l.mu.RUnlock()
	return l.trouble
}

// Read calls do with the brain, which it may ask but not change.
func (l *serviceLoop) Read(do func(brain *service.Brain)) {
	l.mu.RLock()
	defer l.mu.RUnlock()
	do(l.brain)
}
