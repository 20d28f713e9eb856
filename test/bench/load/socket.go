package main

import (
	"errors"
	"fmt"
	"net/netip"
	"runtime"
	"slices"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"
)

// socket makes a blocking socket for a target's family.
func socket(kind int, target netip.AddrPort) (int, error) {
	family := unix.AF_INET6
	if target.Addr().Is4() {
		family = unix.AF_INET
	}
	return unix.Socket(family, kind|unix.SOCK_CLOEXEC, 0)
}

func sockaddr(target netip.AddrPort) unix.Sockaddr {
	if target.Addr().Is4() {
		return &unix.SockaddrInet4{Addr: target.Addr().As4(), Port: int(target.Port())}
	}
	return &unix.SockaddrInet6{Addr: target.Addr().As16(), Port: int(target.Port())}
}

// connection is a connected socket; close it.
func connection(kind int, target netip.AddrPort) (int, error) {
	fd, err := socket(kind, target)
	if err != nil {
		return -1, err
	}
	if kind == unix.SOCK_STREAM {
		_ = unix.SetsockoptInt(fd, unix.IPPROTO_TCP, unix.TCP_NODELAY, 1) // only speed depends on it
	}
	if err := unix.Connect(fd, sockaddr(target)); err != nil {
		unix.Close(fd)
		return -1, fmt.Errorf("connect %s: %w", target, err)
	}
	return fd, nil
}

// exchange sends a byte and waits for one.
func exchange(fd int, buffer []byte) error {
	if _, err := unix.Write(fd, buffer[:1]); err != nil {
		return err
	}
	n, err := unix.Read(fd, buffer)
	if err == nil && n == 0 {
		err = errors.New("closed by the server")
	}
	return err
}

// serve answers forever: a thread for datagrams, and for TCP always one more than there are connections. A thread that has
// answered a connection accepts the next one itself, so that nothing is handed from thread to thread.
func serve(port uint16) error {
	datagrams, err := listener(unix.SOCK_DGRAM, port)
	if err != nil {
		return err
	}
	go serveDatagrams(datagrams)
	streams, err := listener(unix.SOCK_STREAM, port)
	if err != nil {
		return err
	}
	failed := make(chan error)
	var waiting atomic.Int32
	var accept func()
	start := func() { waiting.Add(1); go accept() }
	accept = func() {
		runtime.LockOSThread()
		for {
			fd, _, err := unix.Accept4(streams, unix.SOCK_CLOEXEC)
			if err != nil {
				failed <- fmt.Errorf("accept: %w", err)
				return
			}
			if waiting.Add(-1) == 0 {
				start()
			}
			serveStream(fd)
			waiting.Add(1)
		}
	}
	start()
	return <-failed
}

// listener takes both families on one socket.
func listener(kind int, port uint16) (int, error) {
	fd, err := unix.Socket(unix.AF_INET6, kind|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return -1, err
	}
	err = errors.Join(
		unix.SetsockoptInt(fd, unix.IPPROTO_IPV6, unix.IPV6_V6ONLY, 0),
		unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_REUSEADDR, 1),
		unix.Bind(fd, &unix.SockaddrInet6{Port: int(port)}))
	if err == nil && kind == unix.SOCK_STREAM {
		err = unix.Listen(fd, 4096)
	}
	if err != nil {
		return -1, fmt.Errorf("listen on port %d: %w", port, err)
	}
	return fd, nil
}

func serveDatagrams(fd int) {
	runtime.LockOSThread()
	buffer := make([]byte, 2048)
	for {
		n, from, err := unix.Recvfrom(fd, buffer, 0)
		if err == nil {
			_ = unix.Sendto(fd, buffer[:n], 0, from) // a lost answer is what clients measure
		}
	}
}

func serveStream(fd int) {
	defer unix.Close(fd)
	_ = unix.SetsockoptInt(fd, unix.IPPROTO_TCP, unix.TCP_NODELAY, 1)
	buffer := make([]byte, 64)
	for {
		n, err := unix.Read(fd, buffer)
		if err != nil || n == 0 {
			return
		}
		if _, err := unix.Write(fd, buffer[:n]); err != nil {
			return
		}
	}
}

// client makes requests until the deadline and returns how long each took.
type client func(target netip.AddrPort, deadline time.Time) ([]time.Duration, error)

// requests keeps one connection.
func requests(target netip.AddrPort, deadline time.Time) ([]time.Duration, error) {
	fd, err := connection(unix.SOCK_STREAM, target)
	if err != nil {
		return nil, err
	}
	defer unix.Close(fd)
	buffer := make([]byte, 64)
	var took []time.Duration
	for begin := time.Now(); begin.Before(deadline); {
		if err := exchange(fd, buffer); err != nil {
			return took, err
		}
		end := time.Now()
		took, begin = append(took, end.Sub(begin)), end
	}
	return took, nil
}

// connects makes a connection for each request; the client closes first.
func connects(target netip.AddrPort, deadline time.Time) ([]time.Duration, error) {
	buffer := make([]byte, 64)
	var took []time.Duration
	for begin := time.Now(); begin.Before(deadline); {
		fd, err := connection(unix.SOCK_STREAM, target)
		if err != nil {
			return took, err
		}
		err = exchange(fd, buffer)
		unix.Close(fd)
		if err != nil {
			return took, err
		}
		end := time.Now()
		took, begin = append(took, end.Sub(begin)), end
	}
	return took, nil
}

// many runs clients side by side, a thread each.
func many(threads int, duration time.Duration, target netip.AddrPort, run client) (result, error) {
	type part struct {
		took []time.Duration
		err  error
	}
	parts := make(chan part)
	begin := time.Now()
	deadline := begin.Add(duration)
	for range threads {
		go func() {
			runtime.LockOSThread()
			took, err := run(target, deadline)
			parts <- part{took, err}
		}()
	}
	var all []time.Duration
	var err error
	for range threads {
		p := <-parts
		all, err = append(all, p.took...), errors.Join(err, p.err)
	}
	if err != nil {
		return result{}, err
	}
	out := summary(all)
	out.PerSecond = float64(len(all)) / time.Since(begin).Seconds()
	return out, nil
}

// summary gives the distribution of round trips.
func summary(took []time.Duration) result {
	if len(took) == 0 {
		return result{}
	}
	slices.Sort(took)
	us := func(share float64) float64 {
		return float64(took[int(share*float64(len(took)-1))].Nanoseconds()) / 1e3
	}
	return result{Count: len(took), P50: us(0.5), P99: us(0.99), Max: us(1)}
}
