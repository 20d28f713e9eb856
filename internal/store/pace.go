package store

import (
	"math"
	"math/rand/v2"
	"time"
)

// Interval is how long to wait between rounds of something that every node does: base, growing with the logarithm of
// the number of nodes so that the store's load does too, and jittered by a quarter to either side so that nodes
// started together drift apart.
func Interval(base time.Duration, nodes int) time.Duration {
	return jitter(longest(base, nodes))
}

// longest is Interval before jitter: base x log2(nodes), at least base.
func longest(base time.Duration, nodes int) time.Duration {
	// Two nodes are the smallest cluster: below that the logarithm would be none.
	factor := math.Log2(float64(max(nodes, 2)))
	return time.Duration(float64(base) * factor)
}

// jitter spreads a time evenly over three to five quarters of it.
func jitter(d time.Duration) time.Duration {
	if d < 4 {
		return d
	}
	return d*3/4 + rand.N(d/2)
}

// retryMax is the longest that a small cluster's agent waits before it tries the store again; it grows with log2(nodes).
const retryMax = 3 * time.Second

// Backoff is how long to wait before the next of several tries: doubling from Min to Max, jittered. The zero value
// goes from 100 ms to 30 s.
type Backoff struct {
	Min, Max time.Duration
	tries    int
}

// Next returns the wait before the next try.
func (b *Backoff) Next() time.Duration {
	low, high := b.Min, b.Max
	if low == 0 {
		low = 100 * time.Millisecond
	}
	if high == 0 {
		high = 30 * time.Second
	}
	wait := high
	// Shifting further would overflow.
	if b.tries < 32 && low<<b.tries < high {
		wait = low << b.tries
	}
	b.tries++
	return jitter(wait)
}

// Reset starts over, after a success.
func (b *Backoff) Reset() { b.tries = 0 }
