package flow

import (
	"context"
	"errors"
	"testing"
	"testing/synctest"
	"time"

	"pgregory.net/rapid"

	"tendril.io/tendril/bpf"
)

func utc() *time.Location { return time.UTC }

// numbered returns events whose time is their number, from first on.
func numbered(first, n uint64) []bpf.Event {
	events := make([]bpf.Event, n)
	for i := range events {
		events[i] = bpf.Event{Time: first + uint64(i), Kind: bpf.EventFlowNew}
	}
	return events
}

// A follower sees every event once and in order, and the numbers of what it missed add up, whoever reads when.
func TestAFollowerKnowsWhatItMissed(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		r := NewRing(rapid.IntRange(1, 16).Draw(t, "history"))
		var stored, kernelLost uint64
		type reader struct {
			*Follower
			next, lost, began uint64
		}
		var readers []*reader
		for range rapid.IntRange(1, 60).Draw(t, "steps") {
			switch rapid.SampledFrom([]string{"store", "store", "lose", "follow", "read", "resize"}).Draw(t, "step") {
			case "store":
				n := rapid.Uint64Range(0, 20).Draw(t, "n")
				r.Store(numbered(stored, n))
				stored += n
			case "resize":
				r.Resize(rapid.IntRange(1, 16).Draw(t, "history"))
			case "lose":
				n := rapid.Uint64Range(1, 5).Draw(t, "lost")
				r.Lose(n)
				kernelLost += n
			case "follow":
				readers = append(readers, &reader{Follower: r.Follow(true), next: stored, began: kernelLost})
			case "read":
				for _, f := range readers {
					buf := make([]bpf.Event, rapid.IntRange(1, 8).Draw(t, "buffer"))
					n, lost := f.Read(buf)
					f.lost += lost
					for _, e := range buf[:n] {
						if e.Time < f.next {
							t.Fatalf("event %d after event %d", e.Time, f.next-1)
						}
						f.next = e.Time + 1
					}
				}
			}
		}
		r.Store(numbered(stored, 1)) // losses are told with the event that follows them
		stored++
		for _, f := range readers {
			seen, began := uint64(0), f.began
			start := f.next
			buf := make([]bpf.Event, 7)
			for {
				n, lost := f.Read(buf)
				f.lost += lost
				if n == 0 {
					break
				}
				for _, e := range buf[:n] {
					if e.Time < start+seen {
						t.Fatalf("event %d twice", e.Time)
					}
				}
				seen += uint64(n)
				f.next = buf[n-1].Time + 1
			}
			if f.next != stored {
				t.Fatalf("follower ends at %d of %d", f.next, stored)
			}
			if missed := f.lost; missed < kernelLost-began {
				t.Fatalf("told of %d losses, the kernel alone had %d", missed, kernelLost-began)
			}
		}
		if total, lost := r.Totals(); total != stored || lost != kernelLost {
			t.Fatalf("totals %d and %d, want %d and %d", total, lost, stored, kernelLost)
		}
	})
}

func TestASlowFollowerIsToldHowManyItLost(t *testing.T) {
	r := NewRing(4)
	f := r.Follow(true)
	r.Store(numbered(0, 10))
	buf := make([]bpf.Event, 8)
	n, lost := f.Read(buf)
	if n != 4 || lost != 6 || buf[0].Time != 6 {
		t.Errorf("read %d events from %d with %d lost, want 4 from 6 with 6 lost", n, buf[0].Time, lost)
	}
	if n, lost := f.Read(buf); n != 0 || lost != 0 {
		t.Errorf("read %d events and %d losses again", n, lost)
	}
}

func TestAResizedRingKeepsWhatFits(t *testing.T) {
	r := NewRing(4)
	r.Store(numbered(0, 6)) // 2 to 5 are kept
	buf := make([]bpf.Event, 16)
	for _, step := range []struct {
		size        int
		first, kept uint64
	}{{4, 2, 4}, {8, 2, 4}, {2, 4, 2}, {16, 4, 2}} {
		r.Resize(step.size)
		n, lost := r.Follow(false).Read(buf)
		if r.Len() != step.size || uint64(n) != step.kept || lost != 0 || buf[0].Time != step.first {
			t.Errorf("of %d (%d) there are %d from %d, %d lost; want %d from %d", r.Len(), step.size, n, buf[0].Time, lost, step.kept, step.first)
		}
	}
	r.Store(numbered(6, 14))
	if n, _ := r.Follow(false).Read(buf); n != 16 || buf[0].Time != 4 || buf[15].Time != 19 {
		t.Errorf("then there are %d from %d to %d, want 4 to 19", n, buf[0].Time, buf[15].Time)
	}
}

func TestALossOfTheKernelIsToldWhereItHappened(t *testing.T) {
	r := NewRing(8)
	r.Lose(100) // before anybody followed
	r.Store(numbered(0, 2))
	f := r.Follow(false)
	r.Lose(3)
	r.Store(numbered(2, 2))
	buf := make([]bpf.Event, 8)
	for _, want := range []struct {
		n    int
		lost uint64
	}{{2, 0}, {2, 3}, {0, 0}} {
		if n, lost := f.Read(buf); n != want.n || lost != want.lost {
			t.Errorf("read %d events after %d losses, want %d after %d", n, lost, want.n, want.lost)
		}
	}
	r.Store(numbered(4, 1))
	if n, lost := f.Read(buf); n != 1 || lost != 0 {
		t.Errorf("read %d events after %d losses, want 1 after a loss that was told already", n, lost)
	}
}

func TestTheHistoryIsAPowerOfTwoAtLeastAsLong(t *testing.T) {
	for history, want := range map[int]int{0: DefaultHistory, 1: 1, 2: 2, 3: 4, 1000: 1024, 1024: 1024} {
		if got := len(NewRing(history).slots); got != want {
			t.Errorf("history %d keeps %d, want %d", history, got, want)
		}
	}
}

func TestAFollowerWaitsForTheNextEvent(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := NewRing(8)
		f := r.Follow(true)
		done := make(chan error, 1)
		go func() { done <- f.Wait(t.Context()) }()
		synctest.Wait()
		select {
		case err := <-done:
			t.Fatalf("Wait returned %v before there was an event", err)
		default:
		}
		r.Store(numbered(0, 1))
		if err := <-done; err != nil {
			t.Errorf("Wait: %v", err)
		}
		if err := f.Wait(t.Context()); err != nil {
			t.Errorf("Wait with an event to read: %v", err)
		}
		f.Read(make([]bpf.Event, 1))
		ctx, cancel := context.WithCancel(t.Context())
		cancel()
		if err := f.Wait(ctx); !errors.Is(err, context.Canceled) {
			t.Errorf("Wait: %v, want the context's error", err)
		}
	})
}

func TestStoringDoesNotAllocate(t *testing.T) {
	r := NewRing(1024)
	batch := numbered(0, 64)
	if got := testing.AllocsPerRun(1000, func() { r.Store(batch) }); got != 0 {
		t.Errorf("%v allocations a batch, want 0", got)
	}
	f, buf := r.Follow(false), make([]bpf.Event, 64)
	if got := testing.AllocsPerRun(1000, func() { r.Store(batch); f.Read(buf) }); got != 0 {
		t.Errorf("%v allocations a batch that is read, want 0", got)
	}
	raw, e := bytesOf(&batch[0]), bpf.Event{}
	if got := testing.AllocsPerRun(1000, func() {
		if err := Decode(raw, &e); err != nil {
			t.Fatal(err)
		}
	}); got != 0 {
		t.Errorf("%v allocations to decode, want 0", got)
	}
}

// BenchmarkStore is the path of every event: decode and store in batches of 64. At 200k events/s, 5 % of a core is 250 ns.
func BenchmarkStore(b *testing.B) {
	r := NewRing(0)
	batch := numbered(0, 64)
	one := numbered(0, 1)
	raw := bytesOf(&one[0])
	b.ReportAllocs()
	for i := 0; b.Loop(); i++ {
		if err := Decode(raw, &batch[i%64]); err != nil {
			b.Fatal(err)
		}
		if i%64 == 63 {
			r.Store(batch)
		}
	}
}

// BenchmarkFlow is the cost of a record that somebody reads.
func BenchmarkFlow(b *testing.B) {
	e := event("10.0.0.1", "10.0.0.2", nil)
	b.ReportAllocs()
	for b.Loop() {
		decoder.Flow(&e)
	}
}
