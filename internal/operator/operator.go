package operator

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"time"

	"google.golang.org/protobuf/proto"
	"k8s.io/client-go/discovery"
	"k8s.io/client-go/dynamic"

	"tendril.io/tendril/internal/store"
)

// Config is for one replica.
type Config struct {
	// Cluster names the cluster in the store; it is part of every identity.
	Cluster string
	// Objects reads the API server; Kinds says what it has.
	Objects dynamic.Interface
	Kinds   discovery.DiscoveryInterface
	// Store is where records go.
	Store Store
	// Logger is told of objects that cannot be honoured, and of failures.
	Logger *slog.Logger
}

// Store is the part of store.Writer that is used.
type Store interface {
	// Apply writes and removes some records.
	Apply(ctx context.Context, records []store.Record) (store.Result, error)
	// Fill makes the store hold exactly the records.
	Fill(ctx context.Context, records []store.Record) (store.Result, error)
}

// fillInterval is how often everything is compared with the store, before jitter: a store that lost its data while nobody
// wrote is whole again by then.
const fillInterval = 5 * time.Minute

// Run leads: it keeps the store equal to the cluster until the context ends. Failures are tried again.
func Run(ctx context.Context, config Config) error {
	backoff := store.Backoff{Min: time.Second}
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
	if err := watcher.start(ctx); err != nil {
		return err
	}
	w := writing{Config: config, watcher: watcher, mirror: newMirror(config.Cluster)}
	// The list that the informers began with: what changes from here on is noted.
	w.read(watcher.all())
	asked := time.NewTicker(kindsInterval)
	defer asked.Stop()
	for {
		w.write(ctx)
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-watcher.wake:
			w.read(watcher.take())
		case <-w.again():
		case <-asked.C:
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
	// What the store has not been told, by key; nil removes.
	pending map[string]proto.Message
	// When everything is next compared with the store; zero: at once.
	fill time.Time
	// When a failed call may be repeated.
	retry   time.Time
	backoff store.Backoff
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
}

// write brings the store up to date, if it is time to. After a failure nobody knows what arrived, so everything is compared.
func (w *writing) write(ctx context.Context) {
	now := time.Now()
	if now.Before(w.retry) {
		return
	}
	var err error
	switch {
	case !now.Before(w.fill):
		_, err = w.Store.Fill(ctx, w.mirror.all())
		w.fill = now.Add(store.Interval(fillInterval, 0))
	case len(w.pending) > 0:
		records := make([]store.Record, 0, len(w.pending))
		for key, value := range w.pending {
			records = append(records, store.Record{Key: key, Value: value})
		}
		_, err = w.Store.Apply(ctx, records)
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
