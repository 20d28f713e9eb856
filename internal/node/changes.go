package node

import (
	"fmt"

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
