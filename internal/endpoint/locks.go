package endpoint

import (
	"context"
	"sync"

	"tendril.io/tendril/internal/cni"
)

// locks lets one command at a time work on an attachment. The zero value is ready.
type locks struct {
	mutex sync.Mutex
	held  map[cni.Attachment]chan struct{} // closed when the holder is done
}

// lock waits for its turn, and returns what ends it.
func (l *locks) lock(ctx context.Context, a cni.Attachment) (unlock func(), err error) {
	for {
		l.mutex.Lock()
		holder, taken := l.held[a]
		if !taken {
			if l.held == nil {
				l.held = make(map[cni.Attachment]chan struct{})
			}
			done := make(chan struct{})
			l.held[a] = done
			l.mutex.Unlock()
			return func() {
				l.mutex.Lock()
				delete(l.held, a)
				l.mutex.Unlock()
				close(done)
			}, nil
		}
		l.mutex.Unlock()
		select {
		case <-holder:
		case <-ctx.Done():
			return nil, cni.Errorf(cni.CodeTryAgainLater, "another command works on this attachment; try again later",
				"container %s, device %s", a.ContainerID, a.IfName)
		}
	}
}
