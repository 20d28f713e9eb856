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

// sweepProgram is the syscall program that removes those of given connections that have expired.
const sweepProgram = "sweep_keys"

// sweepBatch is how many connections one step looks at. A bucket of the hash must fit (kernel, BPF_MAP_LOOKUP_BATCH answers
// ENOSPC otherwise); with a seeded hash and as many buckets as entries, buckets hold a handful.
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
	due    bpf.Sweep // expired connections to be removed
	begun  bool
	rules  map[uint32]bool // in quarantine when the walk began, and not named by a connection so far
	seen   int             // connections in this walk
	last   int             // connections in the walk before
}

func (s *sweeper) open(flows *ebpf.Map) {
	s.flows = flows
	s.keys, s.values = make([]bpf.FlowKey, sweepBatch), make([]bpf.Flow, sweepBatch)
}

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
		// Rules that enter quarantine during the walk wait for the next: connections behind the cursor may name them.
		s.begun, s.seen, s.rules, s.cursor = true, 0, d.numbers.quarantined(), ebpf.MapBatchCursor{}
	}
	n, err := s.flows.BatchLookup(&s.cursor, s.keys, s.values, nil)
	last := errors.Is(err, ebpf.ErrKeyNotExist)
	if err != nil && !last {
		s.begun = false
		return fmt.Errorf("read connections: %w", err)
	}
	if err := d.expireBatch(n, monotonic()); err != nil {
		return err
	}
	s.seen += n
	if !last {
		return nil
	}
	s.begun, s.last = false, s.seen
	return d.numbers.releaseRules(s.rules)
}

// expireBatch has the expired among the first n connections of the batch removed, and notes the rules that live on.
func (d *Datapath) expireBatch(n int, now uint64) error {
	s := &d.sweeper
	for i := range n {
		// An expired connection counts, too: its last event, which the sweep program is about to send, names the rule.
		delete(s.rules, s.values[i].Egress.Rule)
		delete(s.rules, s.values[i].Ingress.Rule)
		if s.values[i].Expires > now {
			continue
		}
		s.due.Keys[s.due.Count] = s.keys[i]
		if s.due.Count++; int(s.due.Count) == len(s.due.Keys) {
			if err := d.expire(&s.due); err != nil {
				return err
			}
		}
	}
	return d.expire(&s.due)
}

// expire runs the sweep program on what is due.
func (d *Datapath) expire(due *bpf.Sweep) error {
	if due.Count == 0 {
		return nil
	}
	defer func() { due.Count = 0 }()
	d.mu.Lock()
	waits := d.current == nil
	d.mu.Unlock()
	if waits {
		return nil // the first version is about to come into force; the next walk finds them again
	}
	return d.runSweep(due)
}

// runSweep has the program look at the keys of one batch; the counts of the outcome are in due afterwards.
func (d *Datapath) runSweep(due *bpf.Sweep) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.current == nil {
		return errors.New("sweep connections: the programs are not in force yet: try again in some seconds")
	}
	program := d.current.programs[sweepProgram]
	if program == nil {
		return fmt.Errorf("sweep connections: there is no program %s", sweepProgram)
	}
	if _, err := program.Run(&ebpf.RunOptions{Context: due, ContextOut: due}); err != nil {
		return fmt.Errorf("sweep connections: %w", err)
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
