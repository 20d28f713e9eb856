package operator

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"sync"
	"time"

	"google.golang.org/protobuf/proto"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/client-go/discovery"
	"k8s.io/client-go/dynamic"
	"k8s.io/client-go/metadata"

	"tendril.io/tendril/internal/kube"
	"tendril.io/tendril/internal/store"
)

// Config is for one replica.
type Config struct {
	// Cluster names the cluster in the store; it is part of every identity.
	Cluster string
	// Objects reads the API server and writes the status of objects; Kinds says what it has.
	Objects dynamic.Interface
	Kinds   discovery.DiscoveryInterface
	// Metadata lists the objects of identities; nil: nobody looks after them.
	Metadata metadata.Interface
	// NoIdentities: none are to be there.
	NoIdentities bool
	// IdentityGrace is how long an identity stays that no pod has any more; 0: a minute.
	IdentityGrace time.Duration
	// Store is where records go.
	Store Store
	// Grace is how long a node without a Node object and without a sign of life is missed before what its agent published is
	// removed; 0: ten minutes.
	Grace time.Duration
	// PodPools are where nodes without pod CIDRs get them from; none: Kubernetes gives them, or the agents' own configuration.
	PodPools []PodPool
	// Logger is told of objects that cannot be honoured, and of failures.
	Logger *slog.Logger

	patience     time.Duration // with lists that do not come; 0: listPatience
	rolloutEvery time.Duration // 0: rolloutInterval
	identityPace time.Duration // 0: identityPace
}

// Store is the part of store.Writer that is used; it says more about each.
type Store interface {
	// Apply writes and removes some records.
	Apply(ctx context.Context, records []store.Record) (store.Result, error)
	// Fill makes the store hold exactly the records, and leaves keys alone that begin in an unknown way.
	Fill(ctx context.Context, records []store.Record, unknown ...string) (store.Result, error)
	// List reads all records of a kind.
	List(ctx context.Context, kind store.Kind) ([]store.Record, error)
	// PolicyRevision is the number of the last policy written or removed.
	PolicyRevision(ctx context.Context) (uint64, error)
	// State tells whether the store is still as it was left.
	State(ctx context.Context) (store.State, error)
	// Nodes lists whose agents have published something, and who is alive.
	Nodes(ctx context.Context) (map[string]bool, error)
	// DeleteDeadNode removes what the agent of a node has published, unless the node is alive.
	DeleteDeadNode(ctx context.Context, node string) (bool, error)
}

// fillInterval is how often everything is compared with the store, before jitter: a store that lost its data while nobody
// wrote is whole again by then.
const fillInterval = 5 * time.Minute

// lookInterval is how often the store is asked whether it is still as it was left: one small request of the leader.
const lookInterval = time.Second

// Run leads: it keeps the store equal to the cluster until the context ends. Failures are tried again.
func Run(ctx context.Context, config Config) error {
	config.Grace = cmp.Or(config.Grace, defaultGrace)
	config.IdentityGrace = cmp.Or(config.IdentityGrace, defaultIdentityGrace)
	config.rolloutEvery = cmp.Or(config.rolloutEvery, rolloutInterval)
	config.identityPace = cmp.Or(config.identityPace, identityPace)
	config.patience = cmp.Or(config.patience, listPatience)
	backoff := store.Backoff{Min: time.Second}
	if err := define(ctx, config); err != nil {
		config.Logger.Warn("not all kinds are defined; those that the API server has are read all the same", "error", err)
	}
	for {
		began := time.Now()
		err := follow(ctx, config)
		if ctx.Err() != nil {
			return nil
		}
		if errors.Is(err, errKinds) {
			config.Logger.Info("the API server's kinds have changed; reading them anew")
			continue
		}
		if time.Since(began) > fillInterval {
			backoff.Reset()
		}
		config.Logger.Warn("cannot follow the API server; trying again", "error", err)
		if err := pause(ctx, backoff.Next()); err != nil {
			return nil
		}
	}
}

// errKinds ends a round of follow: the API server has other kinds than before.
var errKinds = errors.New("other kinds")

// follow reads the kinds that there are now, and writes until there are others.
func follow(ctx context.Context, config Config) error {
	kinds, err := served(config.Kinds)
	if err != nil {
		return err
	}
	watcher, err := newWatcher(config.Objects, kinds, config.Logger)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithCancel(ctx)
	defer watcher.factory.Shutdown() // waits for the informers
	defer cancel()
	if err := watcher.start(ctx, config.patience); err != nil {
		return err
	}
	shown := &addresses{Config: config, watcher: watcher}
	var beside sync.WaitGroup
	defer beside.Wait()
	defer cancel() // before the wait
	beside.Go(func() { shown.run(ctx) })
	pods := &podPrefixes{Config: config, watcher: watcher}
	beside.Go(func() { pods.run(ctx) })
	told := &rollout{Config: config, watcher: watcher}
	beside.Go(func() { told.run(ctx) })
	who := newIdentities(config)
	beside.Go(func() { who.run(ctx) })
	w := writing{Config: config, watcher: watcher, mirror: newMirror(config.Cluster), identities: who, departed: departed{},
		listed: map[schema.GroupVersionKind]bool{}}
	w.readLists()
	asked := time.NewTicker(firstKindsInterval)
	defer asked.Stop()
	collected := time.NewTicker(config.collectEvery())
	defer collected.Stop()
	looked := time.NewTicker(lookInterval)
	defer looked.Stop()
	for {
		w.write(ctx)
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-watcher.wake:
			w.read(watcher.take())
		case <-w.again():
		case <-looked.C:
			w.readLists()
			w.look(ctx, shown)
		case <-collected.C:
			collected.Reset(store.Interval(config.collectEvery(), 0))
			w.collect(ctx)
		case <-asked.C:
			asked.Reset(store.Interval(kindsInterval, 0))
			// An error is no answer: what was known holds on.
			if now, err := served(config.Kinds); err == nil && !maps.Equal(now, kinds) {
				return errKinds
			}
		}
	}
}

// writing is the leader's state. It is for one goroutine.
type writing struct {
	Config
	watcher *watcher
	mirror  *mirror
	// Is told which identities pods begin and cease to have.
	identities *identities
	// Kinds whose list is in.
	listed map[schema.GroupVersionKind]bool
	// Nodes that may be gone.
	departed departed
	// What the store has not been told, by key; nil removes.
	pending map[string]proto.Message
	// The store's filling that everything was last written to; empty: none.
	epoch string
	// When everything is next compared with the store; zero: at once.
	fill time.Time
	// When a failed call may be repeated.
	retry   time.Time
	backoff store.Backoff
}

// readLists reads the kinds whose first list has come since it was last called; what changes from there on is noted. Then the store
// is made equal to them, too: before, nobody could tell what of it is gone.
func (w *writing) readLists() {
	for kind := range w.watcher.informers {
		if !w.listed[kind] && w.watcher.has(kind) {
			w.listed[kind] = true
			w.read(w.watcher.all(kind))
			w.fill = time.Time{}
		}
	}
}

// unknown lists what keys of kinds begin with whose list is not in.
func (w *writing) unknown() (prefixes []string) {
	for kind := range w.watcher.informers {
		if !w.listed[kind] {
			prefixes = append(prefixes, kube.KeysOf(kind.Kind)...)
		}
	}
	return prefixes
}

// read takes objects' states.
func (w *writing) read(names []reference) {
	if w.pending == nil {
		w.pending = map[string]proto.Message{}
	}
	for _, name := range names {
		if err := w.mirror.update(name, w.watcher.get(name), w.pending); err != nil {
			w.Logger.Warn("an object cannot be honoured as it is", "object", name.String(), "error", err)
		}
	}
	w.identities.note(w.mirror.turned, w.listed[podKind])
	clear(w.mirror.turned)
}

// write brings the store up to date, if it is time to. After a failure nobody knows what arrived, so everything is compared.
func (w *writing) write(ctx context.Context) {
	now := time.Now()
	if now.Before(w.retry) {
		return
	}
	var err error
	var result store.Result
	switch {
	case !now.Before(w.fill):
		result, err = w.Store.Fill(ctx, w.mirror.all(), w.unknown()...)
		w.fill, w.epoch = now.Add(store.Interval(fillInterval, 0)), result.Epoch
	case len(w.pending) > 0:
		records := make([]store.Record, 0, len(w.pending))
		for key, value := range w.pending {
			records = append(records, w.mirror.written(key, value))
		}
		result, err = w.Store.Apply(ctx, records)
		w.refill(result.Epoch)
	}
	if err == nil {
		clear(w.pending)
		w.backoff.Reset()
		return
	}
	w.fill, w.retry = time.Time{}, now.Add(w.backoff.Next())
	if ctx.Err() == nil {
		w.Logger.Warn("the store was not written; trying again", "error", err)
	}
}

// look sees whether the store is still as it was left. That it cannot be asked is told by the next write.
func (w *writing) look(ctx context.Context, shown *addresses) {
	ctx, cancel := context.WithTimeout(ctx, lookInterval)
	defer cancel()
	state, err := w.Store.State(ctx)
	if err != nil {
		return
	}
	w.refill(state.Epoch)
	shown.look(state.Addresses)
}

// refill has everything written to a store that is not the one that everything was written to: it lost its data.
func (w *writing) refill(epoch string) {
	if w.epoch != "" && epoch != w.epoch {
		w.Logger.Warn("the store has lost what was in it; it is filled again", "epoch", epoch, "was", w.epoch)
		w.fill, w.epoch = time.Time{}, ""
	}
}

// again fires when write has something to do that no change announces.
func (w *writing) again() <-chan time.Time {
	next := w.fill
	if w.retry.After(next) {
		next = w.retry
	}
	return time.After(time.Until(next))
}

// pause waits, no longer than the context.
func pause(ctx context.Context, d time.Duration) error {
	select {
	case <-ctx.Done():
		return fmt.Errorf("pause: %w", ctx.Err())
	case <-time.After(d):
		return nil
	}
}
