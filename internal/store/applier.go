package store

import (
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/cilium/statedb"

	"tendril.io/tendril/internal/table"
)

// An applier makes the tables equal to the store, from whole snapshots and from single events, in any order. It does
// no I/O and holds the rule that nothing is removed before the store says that its filling is complete.
//
// Rows that a snapshot does not have become stale. A stale row stays until the marker synced/<epoch>/<kind> of its
// kind, or synced/<epoch>/ips/<node> for what a node's agent writes, is in the store, or until it is written again.
type applier struct {
	// Where rows go.
	tables *table.Tables
	// The kinds that become rows; records of other kinds are not read.
	shelves map[Kind]shelf
	// Rows that the last snapshot did not have, and whose marker has not come yet.
	stale map[Key]bool
	marks map[Key]bool // markers of the epoch at hand that count
	// What stands in the store and is not in force.
	problems map[string]Problem // by key
	// Of the filling at hand, empty while there is none: the store is being filled anew.
	epoch    string
	self     string // this node's name, empty: none
	selfDone bool   // this node's own marker has come since takeSelfDone was asked
	selfLost bool   // this node's own record was removed since takeSelfLost was asked
	// Counted since the start, see Counters.
	pruned uint64
	bad    uint64
}

// event is a change of one key, relative to the cluster's prefix.
type event struct {
	key    string
	value  []byte
	text   string // the value again, of a pod: its row quotes it. Empty: nobody copied it
	remove bool
}

// applied is what an event did, for the snapshot file.
type applied func(e event)

func newApplier(t *table.Tables) *applier {
	return &applier{
		tables: t, shelves: shelves(t),
		stale: map[Key]bool{}, marks: map[Key]bool{}, problems: map[string]Problem{},
	}
}

// begin opens a transaction over the tables that the events write, and only those.
func (a *applier) begin(events []event) statedb.WriteTxn {
	var metas []statedb.TableMeta
	for i, e := range events {
		kind := kindOf(e.key)
		if kind == KindSynced { // may prune any table
			return a.tables.DB.WriteTxn(a.tables.Stored()...)
		}
		shelf := a.shelves[kind]
		if shelf == nil || (i > 0 && kindOf(events[i-1].key) == kind) {
			continue
		}
		if meta := shelf.meta(); !slices.Contains(metas, meta) {
			metas = append(metas, meta)
		}
	}
	// A transaction must have a table. Events of other kinds alone, such as heartbeats, are the only ones without.
	if len(metas) == 0 {
		metas = append(metas, a.tables.Nodes)
	}
	return a.tables.DB.WriteTxn(metas...)
}

func kindOf(key string) Kind {
	kind, _, _ := strings.Cut(key, "/")
	return Kind(kind)
}

// apply takes events of one revision or of several in order. Each one that changed the tables goes to did.
func (a *applier) apply(events []event, did applied) {
	txn := a.begin(events)
	defer txn.Commit()
	for _, e := range events {
		if a.one(txn, e, did) {
			did(e)
		}
	}
}

// one applies an event and says whether it changed a table.
func (a *applier) one(txn statedb.WriteTxn, e event, did applied) bool {
	key, err := ParseKey(e.key)
	switch {
	// Of a newer version. Its readers know what to do with it.
	case errors.Is(err, errUnknownKind):
		return false
	case err != nil:
		a.report(e, err)
		return false
	case key.Kind == KindSynced:
		a.mark(txn, key, e.remove, did)
		return false
	}
	shelf := a.shelves[key.Kind]
	if shelf == nil {
		return false
	}
	if e.remove {
		return a.remove(txn, shelf, key)
	}
	delete(a.stale, key)
	changed, err := shelf.put(txn, key, e)
	if err != nil {
		a.report(e, fmt.Errorf("key %q: %w", e.key, err))
		return false
	}
	delete(a.problems, e.key)
	return changed
}

// remove takes a row away, unless the store is between fillings and its removals may be part of a wipe.
func (a *applier) remove(txn statedb.WriteTxn, shelf shelf, key Key) bool {
	delete(a.problems, key.String())
	a.selfLost = a.selfLost || (a.self != "" && key == NodeKey(a.self))
	if a.epoch == "" {
		a.stale[key] = true
		return false
	}
	delete(a.stale, key)
	return shelf.remove(txn, key)
}

// report keeps a record out. The row that was there, if any, stays: the last good one is better than none.
func (a *applier) report(e event, err error) {
	if e.remove {
		delete(a.problems, e.key)
		return
	}
	a.bad++
	a.problems[e.key] = Problem{
		Object:  e.key,
		Message: err.Error(),
		Remedy:  "the record is kept out and the last good one stays in force; write it again, or remove the key",
	}
}

// mark notes that a kind or a node is complete, and prunes what it does not have.
func (a *applier) mark(txn statedb.WriteTxn, marker Key, remove bool, did applied) {
	// A marker of another filling says nothing about this one.
	if marker.First != a.epoch {
		return
	}
	if remove {
		delete(a.marks, marker)
		return
	}
	a.marks[marker] = true
	a.selfDone = a.selfDone || (a.self != "" && marker == syncedNodeKey(a.epoch, a.self))
	// What was not written again by now is not in this filling.
	for key := range a.stale {
		if a.markerOf(key) == marker && a.prune(txn, key) {
			did(event{key: key.String(), remove: true})
		}
	}
}

// takeSelfDone says whether this node's own marker has come since the last time: the tables then have whatever the store
// has under this node.
func (a *applier) takeSelfDone() bool {
	done := a.selfDone
	a.selfDone = false
	return done
}

// takeSelfLost says whether this node's own record was removed since the last time.
func (a *applier) takeSelfLost() bool {
	lost := a.selfLost
	a.selfLost = false
	return lost
}

// hasSelf says whether the tables have this node's own record.
func (a *applier) hasSelf() bool {
	_, _, found := a.tables.Nodes.Get(a.tables.DB.ReadTxn(), table.NodeByName(a.self))
	return found
}

// ownAddresses lists what the tables have under ips/<this node>.
func (a *applier) ownAddresses() (keys []Key) {
	for row := range a.tables.IPs.Prefix(a.tables.DB.ReadTxn(), table.IPByNode(a.self)) {
		keys = append(keys, ipKeyOf(row))
	}
	return keys
}

// prune removes a stale row.
func (a *applier) prune(txn statedb.WriteTxn, key Key) bool {
	delete(a.stale, key)
	if !a.shelves[key.Kind].remove(txn, key) {
		return false
	}
	a.pruned++
	return true
}

// markerOf is the marker that must be in the store before a stale row of the key may go.
func (a *applier) markerOf(key Key) Key {
	switch {
	case key.Kind == KindCounter: // goes with what it counts
		return syncedKey(a.epoch, KindPolicy)
	case isFilled(key.Kind):
		return syncedKey(a.epoch, key.Kind)
	}
	return syncedNodeKey(a.epoch, key.Node())
}

// settle ends a snapshot that had exactly the keys in seen: other rows are stale from now on. Markers that were
// already in the store count only if trust says so.
func (a *applier) settle(epoch string, seen map[Key]bool, trust bool, did applied) {
	a.epoch = epoch
	// Markers count for one epoch, and only if the store has not lost them since.
	clear(a.marks)
	txn := a.tables.DB.WriteTxn(a.tables.Stored()...)
	defer txn.Commit()
	for _, shelf := range a.shelves {
		for key := range shelf.keys(txn) {
			if !seen[key] {
				a.stale[key] = true
			}
		}
	}
	if !trust {
		return
	}
	for key := range seen {
		if key.Kind == KindSynced {
			a.mark(txn, key, false, did)
		}
	}
}

// complete says whether every kind that the operator fills is complete for the epoch at hand.
func (a *applier) complete() bool {
	for _, kind := range Filled() {
		if a.epoch == "" || !a.marks[syncedKey(a.epoch, kind)] {
			return false
		}
	}
	return true
}

// listProblems returns the problems sorted by object.
func (a *applier) listProblems() []Problem {
	list := slices.Collect(maps.Values(a.problems))
	slices.SortFunc(list, func(x, y Problem) int { return strings.Compare(x.Object, y.Object) })
	return list
}
