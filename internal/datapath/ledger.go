package datapath

import (
	"errors"
	"fmt"

	"github.com/cilium/ebpf"

	"tendril.io/tendril/bpf"
)

// mapLedger is the ledger in the pinned map `assignments`.
type mapLedger struct {
	m *ebpf.Map
	// before is asked ahead of every write; tests stop the world with it.
	before func(write) error
}

func (l *mapLedger) put(key bpf.AssignmentKey, value bpf.Assignment) error {
	if err := l.before(writeAssignment); err != nil {
		return err
	}
	if err := l.m.Put(&key, &value); err != nil {
		return fullMap("assignments", l.m, err)
	}
	return nil
}

func (l *mapLedger) drop(keys []bpf.AssignmentKey) error {
	for i := range keys {
		if err := l.before(writeAssignment); err != nil {
			return err
		}
		if err := l.m.Delete(&keys[i]); err != nil && !errors.Is(err, ebpf.ErrKeyNotExist) {
			return fmt.Errorf("map assignments: %w", err)
		}
	}
	return nil
}

// load reads everything.
func (l *mapLedger) load() (map[bpf.AssignmentKey]bpf.Assignment, error) {
	out := map[bpf.AssignmentKey]bpf.Assignment{}
	err := walk(l.m, func(keys []bpf.AssignmentKey, values []bpf.Assignment) error {
		for i := range keys {
			out[keys[i]] = values[i]
		}
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("read map assignments: %w", err)
	}
	return out, nil
}

// walkBatch is how many entries one system call reads. A bucket of a hash must fit.
const walkBatch = 512

// walk calls visit for every entry of a hash or trie, in batches whose slices are only valid during the call.
func walk[K, V any](m *ebpf.Map, visit func(keys []K, values []V) error) error {
	keys, values := make([]K, walkBatch), make([]V, walkBatch)
	var cursor ebpf.MapBatchCursor
	for {
		n, err := m.BatchLookup(&cursor, keys, values, nil)
		if err != nil && !errors.Is(err, ebpf.ErrKeyNotExist) {
			return err
		}
		if visitErr := visit(keys[:n], values[:n]); visitErr != nil {
			return visitErr
		}
		if err != nil {
			return nil
		}
	}
}

// FullError says that a hash has no room. What was to be written is not in force.
type FullError struct {
	Map      string
	Capacity uint32
	Err      error
}

// Error names the map and the remedy.
func (e *FullError) Error() string {
	return fmt.Sprintf("map %s is full (%d entries): enlarge it in the agent's configuration: %v", e.Map, e.Capacity, e.Err)
}

// Unwrap is the kernel's answer.
func (e *FullError) Unwrap() error { return e.Err }

// fullMap names the map in a failed write, with the remedy if it is full.
func fullMap(name string, m *ebpf.Map, err error) error {
	if isFull(err) {
		return &FullError{Map: name, Capacity: m.MaxEntries(), Err: err}
	}
	return fmt.Errorf("map %s: %w", name, err)
}
