package node

import (
	"context"
	"fmt"
	"time"

	"github.com/cilium/statedb"
)

// feed hands the changes of one table to a function, each once, in order.
type feed interface {
	// pull consumes what has changed up to txn and adds the table's watch channel to the set.
	pull(txn statedb.ReadTxn, watches *statedb.WatchSet)
	close()
}

// feeds watches several tables for one loop.
type feeds []feed

// pull consumes the changes of all tables up to txn and fills watches with what closes at the next change.
func (f feeds) pull(txn statedb.ReadTxn, watches *statedb.WatchSet) {
	watches.Clear()
	for _, each := range f {
		each.pull(txn, watches)
	}
}

func (f feeds) close() {
	for _, each := range f {
		each.close()
	}
}

type tableFeed[Row any] struct {
	changes statedb.ChangeIterator[Row]
	handle  func(row Row, deleted bool)
}

// watch starts a feed; the first pull brings every row that is there.
func watch[Row any](db *statedb.DB, table statedb.RWTable[Row], handle func(row Row, deleted bool)) (feed, error) {
	txn := db.WriteTxn(table)
	defer txn.Commit()
	changes, err := table.Changes(txn)
	if err != nil {
		return nil, fmt.Errorf("watch table %s: %w", table.Name(), err)
	}
	return &tableFeed[Row]{changes, handle}, nil
}

func (f *tableFeed[Row]) pull(txn statedb.ReadTxn, watches *statedb.WatchSet) {
	rows, changed := f.changes.Next(txn)
	for change := range rows {
		f.handle(change.Object, change.Deleted)
	}
	watches.Add(changed)
}

func (f *tableFeed[Row]) close() { f.changes.Close() }

// loop moves changes of tables to the kernel, each attempt under its own lock.
type loop interface {
	// start begins to watch the tables; stop ends that.
	start() error
	stop()
	// attempt takes what has changed to the kernel and fills watches with what closes at the next change. An error is
	// the loop's own to report; the same changes are tried again. Not settled: there is more to do already.
	attempt(ctx context.Context, watches *statedb.WatchSet) (settled bool, err error)
}

// loopBackoff is the mean pause after an attempt that failed. It does not grow: what stands still is the node's policy.
const loopBackoff = 200 * time.Millisecond

// follow runs a loop from when loaded is closed until ctx ends, and calls first once, when it is first settled.
func follow(ctx context.Context, l loop, loaded <-chan struct{}, first func()) error {
	select {
	case <-loaded:
	case <-ctx.Done():
		return nil
	}
	defer l.stop()
	if err := l.start(); err != nil {
		return err
	}
	watches := statedb.NewWatchSet()
	for ctx.Err() == nil {
		settled, err := l.attempt(ctx, watches)
		if err != nil {
			sleep(ctx, jittered(loopBackoff))
			continue
		}
		if !settled {
			continue
		}
		if first != nil {
			first()
			first = nil
		}
		if _, err := watches.Wait(ctx, 0); err != nil {
			return nil
		}
	}
	return nil
}
