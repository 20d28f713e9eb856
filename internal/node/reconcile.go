package node

import (
	"context"
	"fmt"
	"iter"
	"log/slog"
	"math/rand/v2"
	"time"

	"github.com/cilium/statedb"

	"tendril.io/tendril/internal/store"
)

// target is something outside that is made equal to a table. All three verbs are idempotent: a row may be updated
// again after it was updated, and deleted after it is gone.
type target[Row any] interface {
	// Update makes the target have row.
	Update(ctx context.Context, row Row) error
	// Delete makes the target not have row.
	Delete(ctx context.Context, row Row) error
	// Prune removes from the target what is not among rows. It is called only when rows are known to be complete.
	Prune(ctx context.Context, rows iter.Seq[Row]) error
}

// reconciler makes a target equal to a table. It is the small version of statedb's own, which brings dependency
// injection, flags and a job registry into the agent with it (see ARCHITECTURE.md, "What we wrote ourselves").
type reconciler[Row any] struct {
	name     string
	db       *statedb.DB
	table    statedb.RWTable[Row]
	target   target[Row]
	key      func(Row) string
	complete <-chan struct{} // closed once the table holds all that is wanted
	log      *slog.Logger

	failed  map[string]pending[Row]
	backoff store.Backoff
}

// pending is an operation that failed and is tried again.
type pending[Row any] struct {
	row     Row
	deleted bool
}

const (
	reconcileBackoffMin = 50 * time.Millisecond
	reconcileBackoffMax = 30 * time.Second
	reconcilePruneEvery = 10 * time.Minute
)

// Run applies changes until ctx ends.
func (r *reconciler[Row]) Run(ctx context.Context) error {
	txn := r.db.WriteTxn(r.table)
	changes, err := r.table.Changes(txn)
	txn.Commit()
	if err != nil {
		return fmt.Errorf("watch table %s: %w", r.table.Name(), err)
	}
	defer changes.Close()
	r.failed = make(map[string]pending[Row])
	r.backoff = store.Backoff{Min: reconcileBackoffMin, Max: reconcileBackoffMax}
	complete := r.complete
	prune := time.NewTimer(time.Hour)
	defer prune.Stop()
	for {
		rows, changed := changes.Next(r.db.ReadTxn())
		for change := range rows {
			r.apply(ctx, pending[Row]{row: change.Object, deleted: change.Deleted})
		}
		retry, stop := r.retryTimer()
		select {
		case <-ctx.Done():
			stop()
			return nil
		case <-changed:
		case <-retry:
			r.retry(ctx)
		case <-complete:
			complete = nil
			r.prune(ctx)
			prune.Reset(jittered(reconcilePruneEvery))
		case <-prune.C:
			r.prune(ctx)
			prune.Reset(jittered(reconcilePruneEvery))
		}
		stop()
	}
}

func (r *reconciler[Row]) apply(ctx context.Context, p pending[Row]) {
	key := r.key(p.row)
	verb, do := "update", r.target.Update
	if p.deleted {
		verb, do = "delete", r.target.Delete
	}
	if err := do(ctx, p.row); err != nil {
		r.failed[key] = p
		r.log.Warn("reconcile; will try again", "target", r.name, "verb", verb, "row", key, "error", err)
		return
	}
	delete(r.failed, key)
}

func (r *reconciler[Row]) retry(ctx context.Context) {
	before := len(r.failed)
	for _, p := range r.failed {
		r.apply(ctx, p)
	}
	if len(r.failed) < before {
		r.backoff.Reset()
	}
}

// retryTimer fires after the present back-off, which doubles with each round that mends nothing.
func (r *reconciler[Row]) retryTimer() (<-chan time.Time, func()) {
	if len(r.failed) == 0 {
		r.backoff.Reset()
		return nil, func() {}
	}
	timer := time.NewTimer(r.backoff.Next())
	return timer.C, func() { timer.Stop() }
}

func (r *reconciler[Row]) prune(ctx context.Context) {
	txn := r.db.ReadTxn()
	wanted := func(yield func(Row) bool) {
		for row := range r.table.All(txn) {
			if !yield(row) {
				return
			}
		}
	}
	if err := r.target.Prune(ctx, wanted); err != nil {
		r.log.Warn("prune; will try again", "target", r.name, "error", err)
	}
}

// jittered spreads d over [0.75 d, 1.25 d), so that nodes do not act in step.
func jittered(d time.Duration) time.Duration {
	return d*3/4 + rand.N(max(d/2, 1))
}

// sleep waits for d and reports whether ctx is still going.
func sleep(ctx context.Context, d time.Duration) bool {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
		return true
	case <-ctx.Done():
		return false
	}
}
