package server

import (
	"context"
	"errors"
	"net/netip"
	"sync"
	"time"

	"golang.org/x/time/rate"
	"google.golang.org/grpc/peer"
)

// turns bounds what strangers cost the API server, who is asked about every token: so many a second together, in the order in which they came, and
// few from one address, so that one who asks all the time does not keep the nodes from it.
type turns struct {
	all *rate.Limiter

	mu   sync.Mutex
	each map[netip.Addr]*rate.Limiter
}

const (
	turnsPerSecond = 20 // 5000 nodes that begin together have their certificates after four minutes
	turnsPatience  = 4 * time.Second
	turnsOfEach    = 5 // at once; then one a second
	turnsKnown     = 10000
)

func newTurns() turns {
	return turns{all: rate.NewLimiter(turnsPerSecond, turnsPerSecond), each: map[netip.Addr]*rate.Limiter{}}
}

// wait returns when it is the caller's turn. Who would wait for longer than his patience is sent away at once, to ask again later.
func (t *turns) wait(ctx context.Context) error {
	if !t.of(address(ctx)).Allow() {
		return errors.New("this address asks for certificates all the time: ask again later")
	}
	ctx, cancel := context.WithTimeout(ctx, turnsPatience)
	defer cancel()
	if t.all.Wait(ctx) != nil {
		return errors.New("too many nodes ask for certificates at once: ask again later")
	}
	return nil
}

// of is the limiter of an address. Who has not asked for a while is forgotten when there are many.
func (t *turns) of(addr netip.Addr) *rate.Limiter {
	t.mu.Lock()
	defer t.mu.Unlock()
	own := t.each[addr]
	if own == nil {
		if len(t.each) >= turnsKnown {
			for known, l := range t.each {
				if l.Tokens() >= turnsOfEach {
					delete(t.each, known)
				}
			}
		}
		own = rate.NewLimiter(1, turnsOfEach)
		t.each[addr] = own
	}
	return own
}

// address is the caller's; the zero value if it has none.
func address(ctx context.Context) netip.Addr {
	caller, ok := peer.FromContext(ctx)
	if !ok {
		return netip.Addr{}
	}
	at, _ := netip.ParseAddrPort(caller.Addr.String())
	return at.Addr().Unmap()
}
