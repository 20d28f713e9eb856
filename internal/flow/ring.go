package flow

import (
	"context"
	"math/bits"
	"sync"

	"tendril.io/tendril/bpf"
)

// DefaultHistory is how many events a Ring keeps unless told otherwise: about 2.3 MiB.
const DefaultHistory = 16384

// Ring keeps the last events. It is safe for one writer and any number of followers at once.
type Ring struct {
	mu    sync.Mutex
	slots []slot        // a power of two of them
	head  uint64        // sequence number of the next event; event n stands in slots[n % len]
	first uint64        // what came before it had gone when the ring was last resized
	lost  uint64        // events that the kernel could not deliver, ever
	wake  chan struct{} // closed at the next event; nil while nobody waits
}

// slot is a kept event and how many the kernel had lost when it came.
type slot struct {
	event bpf.Event
	lost  uint64
}

// NewRing returns a ring that keeps at least history events; 0: DefaultHistory.
func NewRing(history int) *Ring { return &Ring{slots: make([]slot, ringSize(history))} }

func ringSize(history int) int {
	if history <= 0 {
		history = DefaultHistory
	}
	return 1 << bits.Len(uint(history-1))
}

// Resize has the ring keep at least history events from now on, in place of what it was made for. Those that have room stay. It is
// for one goroutine.
func (r *Ring) Resize(history int) {
	size := ringSize(history)
	if size == r.Len() {
		return
	}
	slots := make([]slot, size) // before the writer has to wait
	r.mu.Lock()
	defer r.mu.Unlock()
	before := uint64(len(r.slots) - 1)
	r.first = max(r.oldest(), r.head-min(r.head, uint64(size)))
	for n := r.first; n < r.head; n++ {
		slots[n&uint64(size-1)] = r.slots[n&before]
	}
	r.slots = slots
}

// Store appends events and wakes followers that wait. It copies them and does not allocate.
func (r *Ring) Store(events []bpf.Event) {
	if len(events) == 0 {
		return
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	// The ring is a power of two, so that finding a slot is a mask.
	mask := uint64(len(r.slots) - 1)
	for i := range events {
		s := &r.slots[r.head&mask]
		s.event, s.lost = events[i], r.lost
		r.head++
	}
	// One wake-up a batch, and only if somebody sleeps: a follower that keeps up never costs the writer anything.
	if r.wake != nil {
		close(r.wake)
		r.wake = nil
	}
}

// Len is how many events the ring can keep.
func (r *Ring) Len() int {
	r.mu.Lock()
	defer r.mu.Unlock()
	return len(r.slots)
}

// Lose notes that the kernel had to drop n events between what was stored and what comes next.
func (r *Ring) Lose(n uint64) {
	r.mu.Lock()
	r.lost += n
	r.mu.Unlock()
}

// Totals says how many events were ever stored, and how many the kernel lost.
func (r *Ring) Totals() (stored, lost uint64) {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.head, r.lost
}

// oldest is the sequence number of the first event that is still kept.
func (r *Ring) oldest() uint64 { return max(r.first, r.head-min(r.head, uint64(len(r.slots)))) }

// Follower reads a ring at its own pace. It is for one goroutine.
type Follower struct {
	ring *Ring
	next uint64 // sequence number
	lost uint64 // of the kernel's losses, those told or not ours to tell
}

// Follow returns a follower that starts with the oldest event kept or, if fromNow, with the next one to come.
func (r *Ring) Follow(fromNow bool) *Follower {
	r.mu.Lock()
	defer r.mu.Unlock()
	f := &Follower{ring: r, next: r.oldest(), lost: r.lost}
	switch {
	case fromNow:
		f.next = r.head
	case f.next < r.head: // losses before the history began are nobody's
		f.lost = r.slots[f.next&uint64(len(r.slots)-1)].lost
	}
	return f
}

// Read copies events into buf and says how many it copied, and how many were lost just before the first: overwritten
// before this follower came to them, or never delivered by the kernel. It does not wait; 0 events: none yet.
func (f *Follower) Read(buf []bpf.Event) (n int, lost uint64) {
	r := f.ring
	r.mu.Lock()
	defer r.mu.Unlock()
	if f.next == r.head || len(buf) == 0 {
		return 0, 0
	}
	// Overwritten: the writer never waits for a follower.
	if oldest := r.oldest(); f.next < oldest {
		lost = oldest - f.next
		f.next = oldest
	}
	mask := uint64(len(r.slots) - 1)
	// Never delivered: the slot knows how many had been lost by then, the follower how many it was told of.
	first := r.slots[f.next&mask].lost
	lost += first - f.lost
	f.lost = first
	for n < len(buf) && f.next < r.head {
		s := &r.slots[f.next&mask]
		if s.lost != first {
			break // a loss stands between: the next Read tells it
		}
		buf[n] = s.event
		n++
		f.next++
	}
	return n, lost
}

// Wait returns once there is something to read, or with the context's error.
func (f *Follower) Wait(ctx context.Context) error {
	r := f.ring
	r.mu.Lock()
	if f.next < r.head {
		r.mu.Unlock()
		return nil
	}
	if r.wake == nil {
		r.wake = make(chan struct{})
	}
	wake := r.wake
	r.mu.Unlock()
	select {
	case <-wake:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}
