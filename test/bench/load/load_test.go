package main

import (
	"net/netip"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// startServer serves on a free port of the loopback device until the test's process ends.
func startServer(t *testing.T) netip.AddrPort {
	t.Helper()
	fd, err := listener(unix.SOCK_STREAM, 0)
	if err != nil {
		t.Fatal(err)
	}
	name, err := unix.Getsockname(fd)
	if err != nil {
		t.Fatal(err)
	}
	port := uint16(name.(*unix.SockaddrInet6).Port)
	unix.Close(fd)
	failed := make(chan error, 1)
	go func() { failed <- serve(port) }()
	target := netip.AddrPortFrom(netip.MustParseAddr("127.0.0.1"), port)
	for range 200 {
		select {
		case err := <-failed:
			t.Fatal(err)
		default:
		}
		if fd, err := connection(unix.SOCK_STREAM, target); err == nil {
			unix.Close(fd)
			return target
		}
		time.Sleep(5 * time.Millisecond)
	}
	t.Fatal("the server does not listen")
	return target
}

func TestEveryKindOfLoadIsAnswered(t *testing.T) {
	target := startServer(t)
	for _, test := range []struct {
		name string
		run  func() (result, error)
	}{
		{"rr", func() (result, error) { return many(2, 50*time.Millisecond, target, requests) }},
		{"crr", func() (result, error) { return many(2, 50*time.Millisecond, target, connects) }},
		{"ping", func() (result, error) { return ping(target, time.Millisecond, 50*time.Millisecond) }},
		{"answer", func() (result, error) { return answer(target, time.Second) }},
	} {
		t.Run(test.name, func(t *testing.T) {
			out, err := test.run()
			if err != nil {
				t.Fatal(err)
			}
			if out.Count == 0 {
				t.Error("nothing was answered")
			}
			if test.name == "ping" && out.Sent != out.Count {
				t.Errorf("%d datagrams were sent, %d answered", out.Sent, out.Count)
			}
		})
	}
}

func TestNoServerIsAnError(t *testing.T) {
	nobody := netip.MustParseAddrPort("127.0.0.1:1")
	if _, err := many(1, 20*time.Millisecond, nobody, requests); err == nil {
		t.Error("rr against nobody succeeded")
	}
	if _, err := answer(nobody, 20*time.Millisecond); err == nil {
		t.Error("an answer came from nobody")
	}
	if _, err := silence(startServer(t), 50*time.Millisecond); err == nil {
		t.Error("silence was found while the server answers")
	}
}
