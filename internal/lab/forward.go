package lab

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
)

// Forward listens on a unix socket and leads every connection to a TCP address, until the context ends. Unix sockets
// are found by their path, whatever network namespace asks: that is how programs outside the lab reach its store.
func Forward(ctx context.Context, socket, addr string) error {
	if err := os.Remove(socket); err != nil && !errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("forward %s: %w", socket, err)
	}
	listener, err := net.Listen("unix", socket)
	if err != nil {
		return fmt.Errorf("forward %s: %w", socket, err)
	}
	stop := context.AfterFunc(ctx, func() { listener.Close() })
	defer stop()
	for {
		near, err := listener.Accept()
		if err != nil {
			return ignoreClosed(err)
		}
		go func() { // ends with its client or the store
			defer near.Close()
			_ = splice(near, addr)
		}()
	}
}

// splice copies both ways until either side is done.
func splice(near net.Conn, addr string) error {
	far, err := net.Dial("tcp", addr)
	if err != nil {
		return err
	}
	defer far.Close()
	done := make(chan error, 2)
	copyTo := func(to, from net.Conn) {
		_, err := io.Copy(to, from)
		done <- err
	}
	go copyTo(near, far)
	go copyTo(far, near)
	return <-done
}
