package store

import (
	"cmp"
	"context"
	"fmt"
	"slices"
	"strings"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	storev1 "tendril.io/tendril/api/store/v1"
)

// run sends what is queued and the heartbeat until the context ends. After a failure it waits, whatever comes.
func (p *Publisher) run(ctx context.Context, nodes func() int) error {
	var backoff Backoff
	var beatAt time.Time
	for ctx.Err() == nil {
		backoff.Max = longest(retryMax, nodes())
		if lease := p.leaseTime(); lease > 0 { // a long pause would cost it the lease
			backoff.Max = min(backoff.Max, lease/beatsPerLease)
		}
		// Keys before the heartbeat: a node that is alive should have its record.
		err := p.drain(ctx)
		if err == nil && p.beatDue(beatAt) {
			if err = p.beat(ctx); err == nil {
				beatAt = time.Now().Add(p.beatInterval(nodes()))
			}
		}
		// What Status shows is the last round, not the worst.
		p.failed(err)
		if err == nil {
			backoff.Reset()
			p.idle(ctx, beatAt)
		} else if ctx.Err() == nil {
			wait := backoff.Next()
			p.logger.Warn("publishing failed", "error", err, "again_in", wait)
			sleep(ctx, wait)
		}
	}
	return nil
}

// idle waits for a change or the next heartbeat.
func (p *Publisher) idle(ctx context.Context, beatAt time.Time) {
	var beat <-chan time.Time
	if !beatAt.IsZero() {
		timer := time.NewTimer(time.Until(beatAt))
		defer timer.Stop()
		beat = timer.C
	}
	select {
	case <-ctx.Done():
	case <-p.wake:
	case <-beat:
	}
}

// beatWanted is whether a heartbeat should not wait for its time.
func (p *Publisher) beatWanted() bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.alive != nil && p.beatNow
}

func (p *Publisher) beatDue(at time.Time) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.alive != nil && (p.beatNow || !time.Now().Before(at))
}

// leaseTime is the lease that the heartbeat asks for; 0: it leaves it to the server.
func (p *Publisher) leaseTime() time.Duration {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.lease
}

// beatInterval is how long to wait for the next heartbeat.
func (p *Publisher) beatInterval(nodes int) time.Duration {
	if lease := p.leaseTime(); lease > 0 {
		return jitter(lease / beatsPerLease)
	}
	return Interval(heartbeat, nodes)
}

// beat renews alive/<node>.
func (p *Publisher) beat(ctx context.Context) error {
	p.mu.Lock()
	// Cleared before sending: a value that is set meanwhile is sent next.
	value := p.alive
	p.beatNow = false
	p.mu.Unlock()
	// The store counts from when it hears of it, which is later.
	sent := SinceBoot()
	response, err := p.put(ctx, []*storev1.Write{{Key: AliveKey(p.node).String(), Value: value}})
	p.mu.Lock()
	defer p.mu.Unlock()
	if err != nil {
		p.beatNow = true
		return fmt.Errorf("heartbeat: %w", err)
	}
	p.ends = sent + time.Duration(response.GetLeaseSeconds())*time.Second
	close(p.beaten)
	p.beaten = make(chan struct{})
	return nil
}

func (p *Publisher) put(ctx context.Context, writes []*storev1.Write) (response *storev1.PutResponse, err error) {
	err = p.calls.write(ctx, "publish", func(ctx context.Context) (err error) {
		response, err = p.client.Put(ctx, &storev1.PutRequest{Node: p.node, Writes: writes, Epoch: p.filling()})
		return err
	})
	if status.Code(err) == codes.FailedPrecondition { // its store is of another epoch than the one that the feed follows
		p.onOther()
	}
	return response, err
}

// filling is the epoch that own keys are in, or on their way to; empty: none is known.
func (p *Publisher) filling() string {
	p.mu.Lock()
	defer p.mu.Unlock()
	return cmp.Or(p.target, p.epoch)
}

// drain sends batch after batch until nothing is queued.
func (p *Publisher) drain(ctx context.Context) error {
	// The journal goes to the disk once a round, before its first write leaves: the store must not know of what this node
	// would have forgotten after a crash of the machine.
	for synced := false; ; synced = true {
		batch, writes := p.batch()
		if len(batch) == 0 {
			return p.tidy()
		}
		if !synced {
			if err := p.sync(); err != nil {
				return err
			}
		}
		// Others forget what they knew of this node besides once the marker is there: its sign of life had better be before it.
		if batch[0].key.Kind == KindSynced && p.beatWanted() {
			if err := p.beat(ctx); err != nil {
				return err
			}
		}
		_, err := p.put(ctx, writes)
		if err := p.settle(batch, err); err != nil {
			return err
		}
	}
}

// batch takes the front of the queue. A marker goes alone, so that a store that was filled anew refuses only it.
func (p *Publisher) batch() (batch []queued, writes []*storev1.Write) {
	p.mu.Lock()
	defer p.mu.Unlock()
	limit := MaxWrites
	if p.single {
		limit = 1
	}
	for _, q := range p.queue {
		marker := q.key.Kind == KindSynced
		if len(batch) == limit || (marker && len(batch) > 0) {
			break
		}
		o := p.own[q.key]
		// Void: the key was changed again and stands further back.
		if !marker && o.sequence != q.sequence {
			continue
		}
		batch = append(batch, q)
		writes = append(writes, &storev1.Write{Key: q.key.String(), Value: o.value, Remove: o.remove})
		if marker {
			break
		}
	}
	if len(batch) == 0 {
		p.queue = nil
	}
	return batch, writes
}

// settle takes the server's answer to a batch; it returns an error if the batch must be sent again, later.
func (p *Publisher) settle(batch []queued, err error) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	marker := batch[0].key.Kind == KindSynced
	switch code := status.Code(err); {
	case code == codes.OK:
		p.single = false
	// One write of the batch is bad and the server takes all or none: one at a time from here.
	case code == codes.InvalidArgument && len(batch) > 1:
		p.single = true
		return nil
	// Found it. Nobody but this agent can correct it, so the others must not wait.
	case code == codes.InvalidArgument:
		p.refuse(batch[0].key, err)
	// The store is away, or has no room, or does not know us, or has another epoch, of which the feed will tell: nothing is lost, all of it is tried
	// again.
	default:
		return err
	}
	p.done(batch)
	if marker && err == nil && batch[0].key.First == p.target {
		return p.published()
	}
	return nil
}

// done takes a batch off the queue and notes in the journal how far the store knows. While all keys are being published
// again the journal is not told: a crash must start over.
func (p *Publisher) done(batch []queued) {
	// Batches leave in order, so the store has everything up to the last of them.
	last := batch[len(batch)-1].sequence
	p.queue = slices.DeleteFunc(p.queue, func(q queued) bool { return q.sequence <= last })
	for _, q := range batch {
		if o, had := p.own[q.key]; had && o.remove && o.sequence == q.sequence {
			delete(p.own, q.key)
		}
	}
	p.acked = last
	if p.target != "" {
		return
	}
	if err := p.note(last, journalAcked, nil, false); err != nil {
		p.logger.Warn("journal", "error", err)
	}
}

// published notes that all own keys are in the filling at hand.
func (p *Publisher) published() error {
	p.epoch, p.target = p.target, ""
	if err := p.note(p.acked, journalAcked, nil, false); err != nil {
		return err
	}
	return p.note(p.acked, journalEpoch, []byte(p.epoch), false)
}

// refuse gives up on a key that the server will never take, and says so.
func (p *Publisher) refuse(key Key, err error) {
	p.refusals[key] = Problem{
		Object:  key.String(),
		Message: fmt.Sprintf("not published: %s", status.Convert(err).Message()),
		Remedy:  "correct what the agent publishes; it is tried again when the record changes or the store is filled anew",
	}
}

func (p *Publisher) sync() error {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.log.sync()
}

// tidy compacts the journal once it has grown enough. Removals that the store does not know of yet stay.
func (p *Publisher) tidy() error {
	p.mu.Lock()
	defer p.mu.Unlock()
	if !p.log.bloated() {
		return nil
	}
	return p.log.compact(func(sequence uint64) bool { return sequence > p.acked })
}

// failed notes how the last round ended.
func (p *Publisher) failed(err error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.failure = err
}

// describe returns how many changes wait, and what is wrong.
func (p *Publisher) describe() (pending int, problems []Problem) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, q := range p.queue {
		if q.key.Kind == KindSynced || p.own[q.key].sequence == q.sequence {
			pending++
		}
	}
	for _, problem := range p.refusals {
		problems = append(problems, problem)
	}
	if p.failure != nil {
		problems = append(problems, Problem{
			Object:  "publish server",
			Message: p.failure.Error(),
			Remedy:  "check that the publish server runs and is reachable; changes wait in the journal meanwhile",
		})
	}
	slices.SortFunc(problems, func(a, b Problem) int { return strings.Compare(a.Object, b.Object) })
	return pending, problems
}

func (p *Publisher) close() error {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.log.close()
}
