package store

import (
	"context"
	"errors"
	"log/slog"
	"path/filepath"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	storev1 "tendril.io/tendril/api/store/v1"
)

func TestAnIntervalGrowsWithTheLogarithmOfTheCluster(t *testing.T) {
	for nodes, want := range map[int]time.Duration{0: 10, 1: 10, 2: 10, 4: 20, 1024: 100} {
		base := 10 * time.Second
		want *= time.Second
		if got := longest(base, nodes); got != want {
			t.Errorf("%d nodes: got %v, want %v", nodes, got, want)
		}
		distinct := map[time.Duration]bool{}
		for range 100 {
			got := Interval(base, nodes)
			distinct[got] = true
			if got < want*3/4 || got > want*5/4 {
				t.Fatalf("%d nodes: %v is more than a quarter off %v", nodes, got, want)
			}
		}
		if len(distinct) < 50 {
			t.Errorf("%d nodes: only %d of 100 intervals differ", nodes, len(distinct))
		}
	}
}

func TestABackoffDoublesUpToItsMaximumAndStartsOver(t *testing.T) {
	b := Backoff{Min: time.Second, Max: 8 * time.Second}
	for i, want := range []time.Duration{1, 2, 4, 8, 8, 8} {
		want *= time.Second
		if got := b.Next(); got < want*3/4 || got > want*5/4 {
			t.Errorf("try %d: got %v, want about %v", i, got, want)
		}
	}
	b.Reset()
	if got := b.Next(); got > 1250*time.Millisecond {
		t.Errorf("after reset: got %v, want about 1s", got)
	}
	var zero Backoff
	for range 100 {
		if got := zero.Next(); got > 37500*time.Millisecond {
			t.Fatalf("the zero value waits %v", got)
		}
	}
}

// A fakePublish is a Publish service in memory that notes when it was asked.
type fakePublish struct {
	storev1.PublishClient // the other calls
	mu                    sync.Mutex
	asked                 []time.Time
	puts                  []*storev1.PutRequest
	answer                func(*storev1.PutRequest) error
}

func (f *fakePublish) Put(_ context.Context, r *storev1.PutRequest, _ ...grpc.CallOption) (*storev1.PutResponse, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.asked = append(f.asked, time.Now())
	if err := f.answer(r); err != nil {
		return nil, err
	}
	f.puts = append(f.puts, r)
	return &storev1.PutResponse{}, nil
}

// arrived counts the requests that were answered well.
func (f *fakePublish) arrived() int {
	f.mu.Lock()
	defer f.mu.Unlock()
	return len(f.puts)
}

// keys lists what arrived, in order.
func (f *fakePublish) keys() (keys []string) {
	for _, r := range f.puts {
		for _, w := range r.GetWrites() {
			sign := "+"
			if w.GetRemove() {
				sign = "-"
			}
			keys = append(keys, sign+w.GetKey())
		}
	}
	return keys
}

func newFake() *fakePublish {
	return &fakePublish{answer: func(*storev1.PutRequest) error { return nil }}
}

func testPublisher(t *testing.T, path string, server storev1.PublishClient) *Publisher {
	t.Helper()
	p, err := openPublisher("n1", path, server, newCalls(1000, nil), slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	return p
}

func one() int { return 1 }

func TestAPublisherWaitsLongerAfterEachFailureAndForgetsNothing(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		fake := newFake()
		down := true
		fake.answer = func(*storev1.PutRequest) error {
			if down {
				return status.Error(codes.Unavailable, "away")
			}
			return nil
		}
		p := testPublisher(t, filepath.Join(t.TempDir(), "journal"), fake)
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan error, 1)
		go func() { done <- p.run(ctx, one) }()
		if err := p.Set(AddrKey("n1", "10.1.0.5"), IPValue("web")); err != nil {
			t.Fatal(err)
		}
		time.Sleep(10 * time.Minute)
		synctest.Wait()
		fake.mu.Lock()
		if n := len(fake.asked); n < 150 || n > 300 {
			t.Errorf("a store that was away for ten minutes was asked %d times", n)
		}
		for i := 2; i < min(6, len(fake.asked)); i++ {
			before, now := fake.asked[i-1].Sub(fake.asked[i-2]), fake.asked[i].Sub(fake.asked[i-1])
			if now <= before {
				t.Errorf("wait %d was %v after %v", i, now, before)
			}
		}
		down = false
		fake.mu.Unlock()
		if pending, problems := p.describe(); pending != 1 || len(problems) != 1 {
			t.Errorf("pending %d, problems %v", pending, problems)
		}
		time.Sleep(time.Minute)
		synctest.Wait()
		if got := fake.arrived(); got != 1 {
			t.Errorf("arrived %d times, want once", got)
		}
		cancel()
		if err := errors.Join(<-done, p.close()); err != nil {
			t.Error(err)
		}
	})
}

func TestTheHeartbeatComesAtItsInterval(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		fake := newFake()
		p := testPublisher(t, filepath.Join(t.TempDir(), "journal"), fake)
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan error, 1)
		go func() { done <- p.run(ctx, func() int { return 1024 }) }() // every 100 s
		if err := p.Set(AliveKey("n1"), &storev1.Alive{BootId: "b"}); err != nil {
			t.Fatal(err)
		}
		synctest.Wait()
		if got := fake.arrived(); got != 1 {
			t.Errorf("beats at the start: got %d, want 1", got)
		}
		time.Sleep(1000 * time.Second)
		synctest.Wait()
		if got := fake.arrived(); got < 9 || got > 14 {
			t.Errorf("beats in 1000 s: got %d, want about 11", got)
		}
		cancel()
		if err := errors.Join(<-done, p.close()); err != nil {
			t.Error(err)
		}
	})
}

func TestAHeartbeatThatAsksForALeaseComesFourTimesInIt(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		fake := newFake()
		p := testPublisher(t, filepath.Join(t.TempDir(), "journal"), fake)
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan error, 1)
		go func() { done <- p.run(ctx, func() int { return 1024 }) }() // else every 100 s
		if err := p.Set(AliveKey("n1"), &storev1.Alive{BootId: "b", LeaseSeconds: 40}); err != nil {
			t.Fatal(err)
		}
		synctest.Wait()
		if got := fake.arrived(); got != 1 {
			t.Errorf("beats at the start: got %d, want 1", got)
		}
		time.Sleep(1000 * time.Second)
		synctest.Wait()
		if got := fake.arrived(); got < 80 || got > 130 {
			t.Errorf("beats in 1000 s: got %d, want about 101", got)
		}
		cancel()
		if err := errors.Join(<-done, p.close()); err != nil {
			t.Error(err)
		}
	})
}
