package lab

import (
	"bufio"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"
)

// ProbeKind says what a probe sends at each tick.
type ProbeKind string

// The kinds.
const (
	ProbeUDP     ProbeKind = "udp"     // a datagram to an echo server
	ProbeTCP     ProbeKind = "tcp"     // a message on a kept connection to an echo server
	ProbeHTTP    ProbeKind = "http"    // a request on a kept connection to a web server
	ProbeConnect ProbeKind = "connect" // a new connection to an echo server, one message, close
)

// ProbeConfig describes an open-loop probe: it sends at fixed times, whether or not answers come, so that a pause of
// the network cannot hide behind a pause of the probe.
type ProbeConfig struct {
	Kind     ProbeKind
	Addr     string        // host:port
	Interval time.Duration // default 1 ms
	Duration time.Duration // default 10 s; a cancelled context ends the probe earlier, which is no error
	Grace    time.Duration // how long to wait for late answers after the last was sent; default 1 s
	Started  func()        // called once the connection stands, before anything is sent; may be nil
}

// ProbeResult counts what a probe saw. Sent is the sum of Answered and Lost.
type ProbeResult struct {
	Sent     int `json:"sent"`
	Answered int `json:"answered"`
	Lost     int `json:"lost"`
	Reset    int `json:"reset"`   // connections that ended in a reset
	Refused  int `json:"refused"` // connections that were refused or timed out
	// Round-trip times of what was answered. Max shows the longest pause.
	P50 time.Duration `json:"p50_ns"`
	P99 time.Duration `json:"p99_ns"`
	Max time.Duration `json:"max_ns"`
	// By counts answers by the name of who gave them; of kind http only: the first word of the body.
	By map[string]int `json:"by,omitempty"`
	// Errors are the first few distinct ones, for people.
	Errors []string `json:"errors,omitempty"`
}

// messageSize is what udp, tcp and connect send: a sequence number and padding.
const messageSize = 32

// Probe runs a probe to its end.
func Probe(ctx context.Context, config ProbeConfig) (ProbeResult, error) {
	if config.Interval == 0 {
		config.Interval = time.Millisecond
	}
	if config.Duration == 0 {
		config.Duration = 10 * time.Second
	}
	if config.Grace == 0 {
		config.Grace = time.Second
	}
	if config.Started == nil {
		config.Started = func() {}
	}
	if config.Interval < 0 || config.Duration < 0 || config.Grace < 0 {
		return ProbeResult{}, errors.New("probe: interval, duration and grace must be positive")
	}
	tally := &tally{sent: map[uint64]time.Time{}, by: map[string]int{}}
	var err error
	switch config.Kind {
	case ProbeUDP, ProbeTCP, ProbeHTTP:
		err = probeKept(ctx, config, tally)
	case ProbeConnect:
		err = probeConnect(ctx, config, tally)
	default:
		err = fmt.Errorf("kind %q: must be udp, tcp, http or connect", config.Kind)
	}
	if err != nil {
		return ProbeResult{}, fmt.Errorf("probe %s: %w", config.Addr, err)
	}
	return tally.result(), nil
}

// probeKept sends on one connection and reads answers beside.
func probeKept(ctx context.Context, config ProbeConfig, tally *tally) error {
	network := "tcp"
	if config.Kind == ProbeUDP {
		network = "udp"
	}
	conn, err := (&net.Dialer{Timeout: 5 * time.Second}).DialContext(ctx, network, config.Addr)
	if err != nil {
		return err
	}
	defer conn.Close()
	enlarge(conn)
	// Where nothing is acknowledged a write blocks in the end; the end of the probe is the end of that, too.
	stop := context.AfterFunc(ctx, func() { _ = conn.SetWriteDeadline(time.Now()) })
	defer stop()
	config.Started()
	var group errgroup.Group
	group.Go(func() error {
		readAnswers(conn, config.Kind, tally)
		return nil
	})
	every(ctx, config, func(sequence uint64) {
		tally.send(sequence)
		_, err := conn.Write(message(config, sequence))
		if errors.Is(err, os.ErrDeadlineExceeded) {
			tally.forget(sequence) // it never left
		} else if err != nil {
			tally.fail(err)
		}
	})
	tally.settle(config.Grace)
	conn.Close()
	return group.Wait()
}

// enlarge gives a datagram socket room for seconds of messages, beyond what the system allows by default, so that a
// process that has to wait for a processor loses nothing. Without privileges the room stays as it is.
func enlarge(conn any) {
	packets, ok := conn.(*net.UDPConn)
	if !ok {
		return
	}
	raw, err := packets.SyscallConn()
	if err != nil {
		return
	}
	_ = raw.Control(func(fd uintptr) {
		_ = unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, 16<<20)
		_ = unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_SNDBUFFORCE, 16<<20)
	})
}

// every calls f at each tick until the time is over. Ticks that the machine was too busy for are made up for at once.
func every(ctx context.Context, config ProbeConfig, f func(sequence uint64)) {
	begin := time.Now()
	for sequence := uint64(0); ; sequence++ {
		at := begin.Add(time.Duration(sequence) * config.Interval)
		if at.Sub(begin) >= config.Duration {
			return
		}
		select {
		case <-ctx.Done():
			return
		case <-time.After(time.Until(at)):
		}
		f(sequence)
	}
}

func message(config ProbeConfig, sequence uint64) []byte {
	if config.Kind == ProbeHTTP {
		return []byte("GET / HTTP/1.1\r\nHost: " + config.Addr + "\r\n\r\n")
	}
	return binary.BigEndian.AppendUint64(make([]byte, 0, messageSize), sequence)[:messageSize]
}

// readAnswers reads until the connection ends. Answers to http carry no number and come in order.
func readAnswers(conn net.Conn, kind ProbeKind, tally *tally) {
	buffer := make([]byte, messageSize)
	reader := bufio.NewReader(conn)
	for next := uint64(0); ; next++ {
		var err error
		by, sequence := "", next
		switch kind {
		case ProbeHTTP:
			by, err = readBody(reader)
		case ProbeTCP:
			_, err = io.ReadFull(reader, buffer)
			sequence = binary.BigEndian.Uint64(buffer)
		default:
			_, err = conn.Read(buffer)
			sequence = binary.BigEndian.Uint64(buffer)
		}
		if errors.Is(err, net.ErrClosed) {
			return
		}
		if err == nil {
			tally.answer(sequence, by)
			continue
		}
		tally.fail(err)
		if kind != ProbeUDP {
			return
		}
	}
}

// readBody reads one HTTP answer with a Content-Length and returns the first word of its body.
func readBody(reader *bufio.Reader) (string, error) {
	length := 0
	for {
		line, err := reader.ReadString('\n')
		if err != nil {
			return "", err
		}
		line = strings.TrimSpace(line)
		if line == "" {
			break
		}
		if name, value, _ := strings.Cut(line, ":"); strings.EqualFold(name, "Content-Length") {
			if _, err := fmt.Sscan(value, &length); err != nil || length < 0 || length > 1<<20 {
				return "", fmt.Errorf("answer has Content-Length %q", value)
			}
		}
	}
	body := make([]byte, length)
	if _, err := io.ReadFull(reader, body); err != nil {
		return "", err
	}
	word, _, _ := strings.Cut(strings.TrimSpace(string(body)), " ")
	return word, nil
}

// probeConnect opens a connection at each tick, each in a goroutine of its own, so that a slow one delays no other.
func probeConnect(ctx context.Context, config ProbeConfig, tally *tally) error {
	config.Started()
	var group errgroup.Group
	every(ctx, config, func(sequence uint64) {
		tally.send(sequence)
		group.Go(func() error {
			if err := connectOnce(config, sequence); err != nil {
				tally.fail(err)
			} else {
				tally.answer(sequence, "")
			}
			return nil
		})
	})
	return group.Wait()
}

func connectOnce(config ProbeConfig, sequence uint64) error {
	conn, err := net.DialTimeout("tcp", config.Addr, config.Grace)
	if err != nil {
		return err
	}
	defer conn.Close()
	if err := conn.SetDeadline(time.Now().Add(config.Grace)); err != nil {
		return err
	}
	if _, err := conn.Write(message(config, sequence)); err != nil {
		return err
	}
	_, err = io.ReadFull(conn, make([]byte, messageSize))
	return err
}

// tally is what a probe has seen so far.
type tally struct {
	mu              sync.Mutex
	sent            map[uint64]time.Time // not answered yet
	times           []time.Duration
	resets, refused int
	by              map[string]int
	errors          []string
}

func (t *tally) send(sequence uint64) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.sent[sequence] = time.Now()
}

func (t *tally) forget(sequence uint64) {
	t.mu.Lock()
	defer t.mu.Unlock()
	delete(t.sent, sequence)
}

// answer notes an answer; a second one to the same message counts for nothing.
func (t *tally) answer(sequence uint64, by string) {
	t.mu.Lock()
	defer t.mu.Unlock()
	at, waiting := t.sent[sequence]
	if !waiting {
		return
	}
	delete(t.sent, sequence)
	t.times = append(t.times, time.Since(at))
	if by != "" {
		t.by[by]++
	}
}

// fail sorts an error into what the result counts. What was sent stays unanswered, hence lost.
func (t *tally) fail(err error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	var timeout net.Error
	switch {
	case errors.Is(err, syscall.ECONNRESET), errors.Is(err, syscall.EPIPE), errors.Is(err, io.EOF),
		errors.Is(err, io.ErrUnexpectedEOF), errors.Is(err, syscall.ECONNABORTED):
		t.resets++
	case errors.Is(err, syscall.ECONNREFUSED), errors.As(err, &timeout) && timeout.Timeout():
		t.refused++
	}
	if text := err.Error(); len(t.errors) < 5 && !slices.Contains(t.errors, text) {
		t.errors = append(t.errors, text)
	}
}

// settle waits until everything is answered, or the grace is over.
func (t *tally) settle(grace time.Duration) {
	for deadline := time.Now().Add(grace); time.Now().Before(deadline); time.Sleep(time.Millisecond) {
		t.mu.Lock()
		waiting := len(t.sent)
		t.mu.Unlock()
		if waiting == 0 {
			return
		}
	}
}

func (t *tally) result() ProbeResult {
	t.mu.Lock()
	defer t.mu.Unlock()
	slices.Sort(t.times)
	return ProbeResult{
		Sent: len(t.times) + len(t.sent), Answered: len(t.times), Lost: len(t.sent), Reset: t.resets, Refused: t.refused,
		P50: quantile(t.times, 50), P99: quantile(t.times, 99), Max: quantile(t.times, 100), By: t.by, Errors: t.errors,
	}
}

// quantile picks from sorted times; percent is 0 to 100.
func quantile(sorted []time.Duration, percent int) time.Duration {
	if len(sorted) == 0 {
		return 0
	}
	return sorted[min(len(sorted)-1, len(sorted)*percent/100)]
}
