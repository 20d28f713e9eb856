package datapath

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"time"

	"github.com/cilium/ebpf"
	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"

	"tendril.io/tendril/bpf"
)

// Connections expire by a walk over `flows` that is spread over time: a batch, a pause, a batch. The walk only reads;
// removing an entry, with its NAT mapping, counters and last event, is the sweep program's, which looks at the entry
// again by itself.

// sweepProgram is the name of the syscall program that removes an expired connection.
const sweepProgram = "sweep"

// sweepBatch is how many connections one step looks at.
const sweepBatch = 256

// A whole walk takes about sweepFull when the table is full and sweepIdle when it is empty.
const (
	sweepIdle = 10 * time.Second
	sweepFull = 2 * time.Second
)

// sweeper walks the connections.
type sweeper struct {
	flows  *ebpf.Map
	cursor ebpf.MapBatchCursor
	keys   []bpf.FlowKey
	values []bpf.Flow
	begun  bool
	rules  map[uint32]bool // in quarantine when the walk began, and not named by a connection so far
	seen   int             // connections in this walk
	last   int             // connections in the walk before
}

func (s *sweeper) open(flows *ebpf.Map) {
	s.flows = flows
	s.keys, s.values = make([]bpf.FlowKey, sweepBatch), make([]bpf.Flow, sweepBatch)
}

func (s *sweeper) close() {}

// pause is how long to wait between two batches, so that a walk takes as long as the table's fill asks for.
func (s *sweeper) pause() time.Duration {
	capacity := int(s.flows.MaxEntries())
	fill := float64(min(max(s.last, s.seen), capacity)) / float64(capacity)
	walk := sweepIdle - time.Duration(fill*float64(sweepIdle-sweepFull))
	batches := max(1, max(s.last, s.seen)/sweepBatch)
	step := walk / time.Duration(batches)
	return step/2 + rand.N(step) // jitter around the mean
}

// Run frees what publications retired and sweeps connections, until ctx ends.
func (d *Datapath) Run(ctx context.Context) error {
	group, ctx := errgroup.WithContext(ctx)
	group.Go(func() error { return d.reclaimer(ctx) })
	group.Go(func() error { return d.sweep(ctx) })
	return group.Wait()
}

func (d *Datapath) sweep(ctx context.Context) error {
	d.sweeper.open(d.set.maps["flows"])
	for sleep(ctx, d.sweeper.pause()) {
		if err := d.sweepStep(); err != nil {
			d.log.Warn("connections are not swept", "error", err)
			if !sleep(ctx, time.Second) {
				return nil
			}
		}
	}
	return nil
}

// sweepStep looks at one batch and has the expired removed.
func (d *Datapath) sweepStep() error {
	s := &d.sweeper
	if !s.begun {
		s.begun, s.seen, s.rules, s.cursor = true, 0, d.numbers.quarantined(), ebpf.MapBatchCursor{}
	}
	n, err := s.flows.BatchLookup(&s.cursor, s.keys, s.values, nil)
	last := errors.Is(err, ebpf.ErrKeyNotExist)
	if err != nil && !last {
		s.begun = false
		return fmt.Errorf("read connections: %w", err)
	}
	now := monotonic()
	for i := range n {
		delete(s.rules, s.values[i].Egress.Rule)
		delete(s.rules, s.values[i].Ingress.Rule)
		if s.values[i].Expires <= now {
			if err := d.expire(&s.keys[i]); err != nil {
				return err
			}
		}
	}
	s.seen += n
	if !last {
		return nil
	}
	s.begun, s.last = false, s.seen
	return d.numbers.releaseRules(s.rules)
}

// expire asks the sweep program to remove a connection if it has expired.
func (d *Datapath) expire(key *bpf.FlowKey) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	v := d.current
	if v == nil || v.programs[sweepProgram] == nil {
		return nil
	}
	if _, err := v.programs[sweepProgram].Run(&ebpf.RunOptions{Context: key}); err != nil {
		return fmt.Errorf("sweep connection: %w", err)
	}
	return nil
}

// monotonic is the programs' clock.
func monotonic() uint64 {
	var t unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_MONOTONIC, &t); err != nil {
		return 0
	}
	return uint64(t.Nano())
}
