package cni

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"time"
)

const (
	dialBackoffMin = 5 * time.Millisecond
	dialBackoffMax = 500 * time.Millisecond
)

// ErrAgentAway says that nobody answers at the agent's socket: the request was not begun.
var ErrAgentAway = errors.New("the agent does not answer")

// Ask sends a request to the agent and waits for the reply. While nobody listens it tries again, with growing pauses,
// until patience is over, and then returns ErrAgentAway. netns may be nil.
func Ask(ctx context.Context, socket string, raw *Raw, netns *os.File, patience time.Duration) (*Reply, error) {
	conn, err := dial(ctx, socket, patience)
	if err != nil {
		return nil, err
	}
	defer conn.Close()
	stop := context.AfterFunc(ctx, func() { _ = conn.SetDeadline(time.Unix(1, 0)) })
	defer stop()
	if err := writeFrame(conn, raw, netns); err != nil {
		return nil, fmt.Errorf("send request to agent: %w", err)
	}
	var reply Reply
	file, err := readFrame(conn, &reply)
	closeFile(file)
	if err != nil {
		return nil, fmt.Errorf("read agent's reply: %w", err)
	}
	return &reply, nil
}

// dial waits for somebody to listen. Every failure is tried again: a socket that is missing, refuses or denies looks
// the same while an agent is being replaced. What it was at last stands in the error beside ErrAgentAway.
func dial(ctx context.Context, socket string, patience time.Duration) (*net.UnixConn, error) {
	ctx, cancel := context.WithTimeoutCause(ctx, patience, ErrAgentAway)
	defer cancel()
	address := &net.UnixAddr{Name: socket, Net: "unix"}
	for pause := dialBackoffMin; ; pause = min(2*pause, dialBackoffMax) {
		conn, err := net.DialUnix("unix", nil, address)
		if err == nil {
			return conn, nil
		}
		select {
		case <-ctx.Done():
			return nil, fmt.Errorf("%w: %w", context.Cause(ctx), err)
		case <-time.After(pause):
		}
	}
}
