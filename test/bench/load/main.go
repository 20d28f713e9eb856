// Command load makes and answers the small requests that benchmarks count. Every connection has an operating-system thread of
// its own and blocking sockets: no scheduler and no poller stands between a reply and the next request.
//
//	load serve PORT                 answers a byte with a byte, TCP and UDP, both families, until killed
//	load rr ADDR PORT N TIME        a byte there and back on N kept connections
//	load crr ADDR PORT N TIME       connect, a byte each way, close, N at a time
//	load ping ADDR PORT EVERY TIME  a datagram every EVERY, whether or not the last was answered
//	load answer ADDR PORT TIME      waits for the first answer to a datagram, each from a new socket
//	load silence ADDR PORT TIME     waits until datagrams of one socket are answered no more
//
// What it prints is one JSON object.
package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"runtime"
	"strconv"
	"time"
)

// result is what is printed; fields that a command does not measure are left out.
type result struct {
	Count     int     `json:"count"`                  // requests that were answered
	PerSecond float64 `json:"per_second,omitempty"`   // of them
	Sent      int     `json:"sent,omitempty"`         // datagrams of ping
	P50       float64 `json:"p50_us,omitempty"`       // round trip
	P99       float64 `json:"p99_us,omitempty"`       // round trip
	Max       float64 `json:"max_us,omitempty"`       // round trip
	At        int64   `json:"at_unix_nano,omitempty"` // answer: of the first; silence: when the last answered one was sent
}

func main() {
	// More processors than threads ever run: else the scheduler takes a processor from each thread that waits for the network,
	// and that thread has to ask for another when it has been answered.
	runtime.GOMAXPROCS(256)
	out, err := run(os.Args[1:])
	if err == nil {
		err = json.NewEncoder(os.Stdout).Encode(out)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "load:", err)
		os.Exit(1)
	}
}

func run(args []string) (result, error) {
	if len(args) == 2 && args[0] == "serve" {
		port, err := strconv.ParseUint(args[1], 10, 16)
		if err != nil {
			return result{}, err
		}
		return result{}, serve(uint16(port))
	}
	if len(args) < 4 {
		return result{}, errors.New("usage: see the package comment")
	}
	addr, err := netip.ParseAddr(args[1])
	if err != nil {
		return result{}, err
	}
	port, err := strconv.ParseUint(args[2], 10, 16)
	if err != nil {
		return result{}, err
	}
	target := netip.AddrPortFrom(addr, uint16(port))
	duration, err := time.ParseDuration(args[len(args)-1])
	if err != nil {
		return result{}, err
	}
	return dispatch(args[0], target, args[3], duration)
}

func dispatch(command string, target netip.AddrPort, extra string, duration time.Duration) (result, error) {
	switch command {
	case "answer":
		return answer(target, duration)
	case "silence":
		return silence(target, duration)
	case "ping":
		every, err := time.ParseDuration(extra)
		if err != nil {
			return result{}, err
		}
		return ping(target, every, duration)
	case "rr", "crr":
		threads, err := strconv.Atoi(extra)
		if err != nil || threads < 1 {
			return result{}, fmt.Errorf("connections %q: must be a number of at least 1", extra)
		}
		if command == "rr" {
			return many(threads, duration, target, requests)
		}
		return many(threads, duration, target, connects)
	}
	return result{}, fmt.Errorf("no such command: %s", command)
}
