package main

import (
	"encoding/binary"
	"fmt"
	"net/netip"
	"runtime"
	"time"

	"golang.org/x/sys/unix"
)

// pace is how often answer and silence ask: their resolution.
const pace = 500 * time.Microsecond

// silenceAfter is how long nothing may be answered before silence believes it.
const silenceAfter = 200 * time.Millisecond

// ping is open-loop: datagrams leave by the clock, and a slow answer delays none of them. Each carries its own time.
func ping(target netip.AddrPort, every, duration time.Duration) (result, error) {
	fd, err := connection(unix.SOCK_DGRAM, target)
	if err != nil {
		return result{}, err
	}
	defer unix.Close(fd)
	if err := receiveTimeout(fd, 500*time.Millisecond); err != nil {
		return result{}, err
	}
	answers := make(chan []time.Duration)
	go func() { answers <- receive(fd) }()
	runtime.LockOSThread()
	sent := 0
	for next, deadline := time.Now(), time.Now().Add(duration); next.Before(deadline); next = next.Add(every) {
		time.Sleep(time.Until(next))
		var message [8]byte
		binary.NativeEndian.PutUint64(message[:], uint64(time.Now().UnixNano()))
		if _, err := unix.Write(fd, message[:]); err != nil && err != unix.ECONNREFUSED {
			return result{}, fmt.Errorf("send: %w", err)
		}
		sent++
	}
	out := summary(<-answers)
	out.Sent = sent
	return out, nil
}

// receive collects the round trips until nothing comes any more.
func receive(fd int) []time.Duration {
	runtime.LockOSThread()
	var took []time.Duration
	buffer := make([]byte, 64)
	for {
		n, err := unix.Read(fd, buffer)
		if err == unix.ECONNREFUSED {
			continue
		}
		if err != nil || n != 8 {
			return took
		}
		at := int64(binary.NativeEndian.Uint64(buffer))
		took = append(took, time.Duration(time.Now().UnixNano()-at))
	}
}

func receiveTimeout(fd int, d time.Duration) error {
	t := unix.NsecToTimeval(d.Nanoseconds())
	return unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &t)
}

// answer asks from a new socket each time, as a new client would, until it is answered.
func answer(target netip.AddrPort, duration time.Duration) (result, error) {
	buffer := make([]byte, 64)
	for deadline := time.Now().Add(duration); time.Now().Before(deadline); time.Sleep(pace) {
		fd, err := connection(unix.SOCK_DGRAM, target)
		if err != nil {
			continue // no route yet
		}
		err = receiveTimeout(fd, 2*time.Millisecond)
		if err == nil {
			err = exchange(fd, buffer)
		}
		unix.Close(fd)
		if err == nil {
			return result{Count: 1, At: time.Now().UnixNano()}, nil
		}
	}
	return result{}, fmt.Errorf("%s: no answer within %s", target, duration)
}

// silence asks on one socket until nobody answers for a while, and tells when the last answered question was asked.
func silence(target netip.AddrPort, duration time.Duration) (result, error) {
	fd, err := connection(unix.SOCK_DGRAM, target)
	if err != nil {
		return result{}, err
	}
	defer unix.Close(fd)
	if err := receiveTimeout(fd, 20*time.Millisecond); err != nil {
		return result{}, err
	}
	buffer := make([]byte, 64)
	var out result
	for deadline := time.Now().Add(duration); time.Now().Before(deadline); time.Sleep(pace) {
		asked := time.Now()
		switch err := exchange(fd, buffer); {
		case err == nil:
			out.Count, out.At = out.Count+1, asked.UnixNano()
		case out.Count > 0 && asked.UnixNano()-out.At > silenceAfter.Nanoseconds():
			return out, nil
		}
	}
	return result{}, fmt.Errorf("%s: still answered after %s", target, duration)
}
