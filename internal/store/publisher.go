package store

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"
	"google.golang.org/protobuf/proto"

	storev1 "tendril.io/tendril/api/store/v1"
)

// Publisher publishes the keys under the agent's own node. Set and Delete return once the journal has the change, and
// never wait for the store; Client.Run sends it, in order, as often as it takes.
//
// What is written to the journal survives the agent's death at once, and the machine's from the next round of sending
// on, which begins by waiting for the disk. A crash of the machine takes its pods along, so no more is needed.
//
// A key that is set again before it was sent goes to the end of the queue with its last value: the store never shows a
// later change without an earlier one of another key.
type Publisher struct {
	// The node whose keys these are; no other key is taken.
	node   string
	client storev1.PublishClient
	calls  *calls
	logger *slog.Logger
	// Has a value when there may be something to send. One is enough: sending looks at everything.
	wake chan struct{}
	// Told that a server has answered whose store is of another epoch.
	onOther func()

	disowned atomic.Uint64 // keys removed because nobody here knew of them

	mu sync.Mutex
	// The journal. All of what follows but the heartbeat and the queue's order can be read back from it.
	log      *logFile
	own      map[Key]own
	queue    []queued
	sequence uint64        // of the last change
	acked    uint64        // every change up to it is in the store
	epoch    string        // filling of the store that all own keys were published to
	target   string        // filling that they are being published to, empty: none
	alive    []byte        // heartbeat, nil: none
	lease    time.Duration // that the heartbeat asks for; 0: the server chooses
	beatNow  bool          // the next heartbeat does not wait for its time
	ends     time.Duration // of the lease, by SinceBoot; 0: none yet
	beaten   chan struct{} // closed at the next heartbeat that the store takes
	refusals map[Key]Problem
	single   bool // send one write at a time, to find the one that the server refuses
	failure  error
}

// own is the last value of an own key. A removed one stays until the store knows.
type own struct {
	value    []byte
	remove   bool
	sequence uint64
}

// queued is a place in the queue; it is void if its key has changed since.
type queued struct {
	key      Key
	sequence uint64
}

// Keys of the journal that are no keys of the store.
const (
	journalAcked = "@acked"
	journalEpoch = "@epoch"
)

// MaxWrites is how many writes etcd takes in one transaction by default.
const MaxWrites = 128

// heartbeat is how often alive/<node> is renewed, x log2(nodes), by a node that asks for no lease of its own.
const heartbeat = 10 * time.Second

// beatsPerLease is how often a lease that a node asks for is renewed while it lasts.
const beatsPerLease = 4

// AliveTime is how long alive/<node> lasts after a heartbeat in a cluster of that many nodes: four heartbeats.
func AliveTime(nodes int) time.Duration { return 4 * longest(heartbeat, nodes) }

// openPublisher reads the journal and queues what the store may not have. It needs no store.
func openPublisher(node, path string, client storev1.PublishClient, calls *calls, logger *slog.Logger) (*Publisher, error) {
	p := &Publisher{
		node: node, client: client, calls: calls, logger: logger, wake: make(chan struct{}, 1),
		own: map[Key]own{}, refusals: map[Key]Problem{}, beaten: make(chan struct{}),
		onOther: func() {},
	}
	log, torn, err := openLog(path, p.replay)
	if err != nil {
		return nil, err
	}
	if torn > 0 {
		logger.Warn("journal was torn", "path", path, "bytes_lost", torn)
	}
	p.log = log
	p.requeue()
	return p, nil
}

// replay takes a write of the journal.
func (p *Publisher) replay(sequence uint64, w *storev1.Write) {
	// An acknowledgement has the sequence of what it acknowledges, so the last frame's need not be the highest.
	p.sequence = max(p.sequence, sequence)
	switch w.GetKey() {
	case journalAcked:
		p.acked = max(p.acked, sequence)
		return
	case journalEpoch:
		p.epoch = string(w.GetValue())
		return
	}
	key, err := ParseKey(w.GetKey())
	if err != nil || p.check(key) != nil { // of another version, or another node's name
		p.logger.Warn("journal holds a key that is not this node's", "key", w.GetKey())
		return
	}
	// Later frames of a key come later in the file: the last write counts.
	p.own[key] = own{w.GetValue(), w.GetRemove(), sequence}
}

// requeue queues what the journal has and the store does not, in order.
func (p *Publisher) requeue() {
	for key, o := range p.own {
		switch {
		case o.sequence > p.acked:
			p.queue = append(p.queue, queued{key, o.sequence})
		case o.remove:
			delete(p.own, key)
		}
	}
	slices.SortFunc(p.queue, func(a, b queued) int { return int(int64(a.sequence) - int64(b.sequence)) })
}

// check refuses keys that the server would refuse.
func (p *Publisher) check(key Key) error {
	if err := key.Check(); err != nil {
		return err
	}
	return key.CheckOwner(p.node)
}

// Set publishes a record under one of the node's own keys. Setting alive/<node> starts its heartbeat, which is not kept
// in the journal.
func (p *Publisher) Set(key Key, record proto.Message) error {
	if err := errors.Join(p.check(key), checkMessage(key, record)); err != nil {
		return fmt.Errorf("publish: %w", err)
	}
	value, err := proto.MarshalOptions{Deterministic: true}.Marshal(record)
	if err != nil {
		return fmt.Errorf("publish key %q: %w", key, err)
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	// A heartbeat is worth nothing later, so neither the journal nor the queue has it.
	if alive, ok := record.(*storev1.Alive); ok {
		p.alive, p.lease, p.beatNow = value, time.Duration(alive.GetLeaseSeconds())*time.Second, true
		p.nudge()
		return nil
	}
	// An agent that starts sets all that it restored. What the journal has already is no change, so that a restart of every
	// agent at once writes nothing to the store.
	if o, had := p.own[key]; had && !o.remove && bytes.Equal(o.value, value) {
		return nil
	}
	return p.change(key, own{value: value})
}

// Lease is until when the store takes this node for alive, by SinceBoot, and a channel that is closed when that has changed. Zero: it
// never did.
func (p *Publisher) Lease() (ends time.Duration, changed <-chan struct{}) {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.ends, p.beaten
}

// SourceSilent is for how long the server has heard nothing from the Kubernetes API server, that the store is filled from; false: it is filled from
// elsewhere, or the server does not say.
func (p *Publisher) SourceSilent(ctx context.Context) (silent time.Duration, known bool) {
	var answer *storev1.SourceResponse
	err := p.calls.read(ctx, "source", func(ctx context.Context) (err error) {
		answer, err = p.client.Source(ctx, &storev1.SourceRequest{Node: p.node})
		return err
	})
	if err != nil || answer.SilentMs == nil {
		return 0, false
	}
	return time.Duration(answer.GetSilentMs()) * time.Millisecond, true
}

// SinceBoot is the clock of leases (CLOCK_BOOTTIME): it goes on while the machine sleeps, as the store's does.
func SinceBoot() time.Duration {
	var now unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_BOOTTIME, &now); err != nil {
		return 0 // cannot be: every kernel since 2.6.39 has the clock
	}
	return time.Duration(now.Nano())
}

// Delete removes one of the node's own keys.
func (p *Publisher) Delete(key Key) error {
	if err := p.check(key); err != nil {
		return fmt.Errorf("publish: %w", err)
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	// A key that is not known is removed all the same: the journal may be younger than the store.
	if o, had := p.own[key]; had && o.remove {
		return nil
	}
	return p.change(key, own{remove: true})
}

// disown removes those of the node's keys, as the store has them, that the node does not know of: what an agent whose
// journal was lost had published, or what a restored backup brought back. Until nodes/<node> is set it does nothing, since
// the agent has not said yet what it has.
func (p *Publisher) disown(stored []Key) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if self, had := p.own[NodeKey(p.node)]; !had || self.remove {
		return
	}
	for _, key := range stored {
		if _, known := p.own[key]; known { // or its removal is on its way
			continue
		}
		if err := p.change(key, own{remove: true}); err != nil {
			p.logger.Warn("the store has a key of this node that nobody here knows; it stays", "key", key, "error", err)
			continue
		}
		p.disowned.Add(1)
		p.logger.Warn("the store had a key of this node that nobody here knows; removing it", "key", key)
	}
}

// Settled says whether the store has taken note of the last change of one of the node's own keys.
func (p *Publisher) Settled(key Key) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	o, ok := p.own[key]
	return !ok || o.sequence <= p.acked
}

// change writes a change to the journal and queues it. Nothing has changed if the journal refuses.
func (p *Publisher) change(key Key, o own) error {
	o.sequence = p.sequence + 1
	if err := p.note(o.sequence, key.String(), o.value, o.remove); err != nil {
		return err
	}
	p.sequence++
	p.own[key] = o
	delete(p.refusals, key)
	p.queue = append(p.queue, queued{key, o.sequence})
	if key == NodeKey(p.node) && p.target != "" {
		p.queueMarker()
	}
	p.nudge()
	return nil
}

// note appends to the journal and hands it to the kernel.
func (p *Publisher) note(sequence uint64, key string, value []byte, remove bool) error {
	if err := p.log.append(sequence, key, value, remove); err != nil {
		return err
	}
	return p.log.flush()
}

// nudge wakes run without waiting for it.
func (p *Publisher) nudge() {
	select {
	case p.wake <- struct{}{}:
	default:
	}
}

// republish queues all own keys again, followed by the marker that they are complete, if the store's filling is not the
// one that they were published to, or force says that it may have lost some. It says whether it did.
func (p *Publisher) republish(epoch string, force bool) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	// The same filling as before, or one that is being published to: every key is there or in the queue.
	if !force && (p.epoch == epoch || p.target == epoch) {
		return false
	}
	if p.epoch != "" { // a crash before the end must start over
		p.epoch = ""
		if err := p.note(p.sequence, journalEpoch, nil, false); err != nil {
			p.logger.Warn("journal", "error", err)
		}
	}
	keys := make([]Key, 0, len(p.own))
	for key := range p.own {
		keys = append(keys, key)
	}
	// In the order in which they were changed, so that readers see the order in which things happened.
	slices.SortFunc(keys, func(a, b Key) int { return int(int64(p.own[a].sequence) - int64(p.own[b].sequence)) })
	// All places in the queue are void: every key gets a new sequence, above what was acknowledged.
	p.queue = p.queue[:0]
	for _, key := range keys {
		o := p.own[key]
		p.sequence++
		o.sequence = p.sequence
		p.own[key] = o
		p.queue = append(p.queue, queued{key, o.sequence})
	}
	p.target = epoch
	p.beatNow = p.alive != nil // the sign of life may be gone with the rest
	if o, had := p.own[NodeKey(p.node)]; had && !o.remove {
		p.queueMarker()
	}
	p.nudge()
	return true
}

// queueMarker queues the marker that this node's keys are complete. Other nodes then forget what they knew of it
// besides. It waits for nodes/<node>, which an agent sets once it has restored its pods.
func (p *Publisher) queueMarker() {
	p.sequence++
	p.queue = append(p.queue, queued{syncedNodeKey(p.target, p.node), p.sequence})
}
