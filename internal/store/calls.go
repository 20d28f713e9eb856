package store

import (
	"context"
	"sync/atomic"
	"time"

	"golang.org/x/time/rate"
)

// calls is the one gate through which requests leave for the store: it limits their rate, bounds their time and
// counts them.
type calls struct {
	// Every request takes a token, reading and writing alike.
	limiter *rate.Limiter
	observe func(operation string, took time.Duration, err error)

	// What Counters says.
	reads, writes, failures, snapshots, resumes, events atomic.Uint64
}

const (
	defaultRate = 20.0 // requests a second
	burst       = 2.0  // seconds of the rate that may go at once
)

func newCalls(limit float64, observe func(string, time.Duration, error)) *calls {
	if limit == 0 {
		limit = defaultRate
	}
	if observe == nil {
		observe = func(string, time.Duration, error) {}
	}
	return &calls{limiter: rate.NewLimiter(rate.Limit(limit), max(1, int(limit*burst))), observe: observe}
}

func (c *calls) read(ctx context.Context, operation string, do func(context.Context) error) error {
	c.reads.Add(1)
	return c.call(ctx, operation, do)
}

func (c *calls) write(ctx context.Context, operation string, do func(context.Context) error) error {
	c.writes.Add(1)
	return c.call(ctx, operation, do)
}

func (c *calls) call(ctx context.Context, operation string, do func(context.Context) error) error {
	// Waiting for its turn counts neither as time of the request nor as its failure.
	if err := c.limiter.Wait(ctx); err != nil {
		return err
	}
	// A store that hangs is like one that is away.
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	start := time.Now()
	err := do(ctx)
	c.observe(operation, time.Since(start), err)
	if err != nil {
		c.failures.Add(1)
	}
	return err
}
