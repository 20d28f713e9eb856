package lab

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/net/dns/dnsmessage"
)

// startEcho runs the echo server on a free port until the test ends.
func startEcho(t *testing.T) string {
	t.Helper()
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	port := netip.MustParseAddrPort(listener.Addr().String()).Port()
	listener.Close()
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error)
	go func() { done <- Echo(ctx, port) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
	addr := fmt.Sprintf("127.0.0.1:%d", port)
	err = Wait(t.Context(), "echo", 5*time.Second, func(context.Context) error {
		conn, err := net.Dial("tcp", addr)
		if err == nil {
			conn.Close()
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return addr
}

func TestAProbeOfAHealthyServerLosesNothing(t *testing.T) {
	addr := startEcho(t)
	for _, kind := range []ProbeKind{ProbeUDP, ProbeTCP, ProbeConnect} {
		got, err := Probe(t.Context(), ProbeConfig{Kind: kind, Addr: addr, Duration: 100 * time.Millisecond})
		if err != nil {
			t.Fatal(err)
		}
		if got.Sent != 100 || got.Answered != 100 || got.Lost+got.Reset+got.Refused != 0 || got.P50 == 0 || got.Max < got.P50 {
			t.Errorf("%s: %+v, want 100 sent and answered", kind, got)
		}
	}
}

func TestAProbeOfAWebServerKnowsWhoAnswered(t *testing.T) {
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		fmt.Fprintln(w, "web-1 sees you")
	}))
	defer server.Close()
	got, err := Probe(t.Context(), ProbeConfig{Kind: ProbeHTTP, Addr: server.Listener.Addr().String(), Duration: 50 * time.Millisecond})
	if err != nil {
		t.Fatal(err)
	}
	if want := map[string]int{"web-1": 50}; got.Lost != 0 || !cmp.Equal(got.By, want) {
		t.Errorf("%+v, want 50 answers of web-1", got)
	}
}

func TestAResetIsCountedAndWhatFollowsIsLost(t *testing.T) {
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer listener.Close()
	go func() {
		conn, err := listener.Accept()
		if err != nil {
			return
		}
		_, _ = io.ReadFull(conn, make([]byte, 10*messageSize))
		_ = conn.(*net.TCPConn).SetLinger(0) // close with a reset
		conn.Close()
	}()
	got, err := Probe(t.Context(), ProbeConfig{Kind: ProbeTCP, Addr: listener.Addr().String(),
		Duration: 50 * time.Millisecond, Grace: 10 * time.Millisecond})
	if err != nil {
		t.Fatal(err)
	}
	if got.Reset == 0 || got.Lost != got.Sent || got.Sent != 50 || len(got.Errors) == 0 {
		t.Errorf("%+v, want a reset and everything lost", got)
	}
}

func TestUnansweredDatagramsAreLost(t *testing.T) {
	silent, err := net.ListenPacket("udp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer silent.Close()
	got, err := Probe(t.Context(), ProbeConfig{Kind: ProbeUDP, Addr: silent.LocalAddr().String(),
		Duration: 20 * time.Millisecond, Grace: 10 * time.Millisecond})
	if err != nil || got.Lost != 20 || got.Answered != 0 {
		t.Errorf("%+v, %v, want 20 lost", got, err)
	}
}

func TestRefusedConnectionsAreCounted(t *testing.T) {
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	addr := listener.Addr().String()
	listener.Close()
	got, err := Probe(t.Context(), ProbeConfig{Kind: ProbeConnect, Addr: addr, Duration: 10 * time.Millisecond})
	if err != nil || got.Refused != 10 || got.Lost != 10 {
		t.Errorf("%+v, %v, want 10 refused", got, err)
	}
	if _, err := Probe(t.Context(), ProbeConfig{Kind: ProbeTCP, Addr: addr}); err == nil {
		t.Error("a probe of a closed port over a kept connection says nothing")
	}
}

func TestAnInterruptedProbeReportsWhatItSaw(t *testing.T) {
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Millisecond)
	defer cancel()
	got, err := Probe(ctx, ProbeConfig{Kind: ProbeUDP, Addr: startEcho(t), Duration: time.Hour})
	if err != nil || got.Sent == 0 || got.Lost != 0 {
		t.Errorf("%+v, %v, want some sent and none lost", got, err)
	}
}

func TestBadProbesAreRefused(t *testing.T) {
	for _, config := range []ProbeConfig{
		{Kind: "icmp", Addr: "127.0.0.1:7"},
		{Kind: ProbeUDP, Addr: "nowhere"},
		{Kind: ProbeUDP, Addr: "127.0.0.1:7", Interval: -1},
	} {
		if _, err := Probe(t.Context(), config); err == nil {
			t.Errorf("%+v is accepted", config)
		}
	}
}

func TestErrorsAreSortedIntoCounters(t *testing.T) {
	for _, test := range []struct {
		err             error
		resets, refused int
	}{
		{syscall.ECONNRESET, 1, 0},
		{&net.OpError{Err: syscall.EPIPE}, 1, 0},
		{io.EOF, 1, 0},
		{syscall.ECONNREFUSED, 0, 1},
		{&net.OpError{Err: context.DeadlineExceeded}, 0, 1},
		{errors.New("other"), 0, 0},
	} {
		tally := &tally{}
		tally.fail(test.err)
		tally.fail(test.err)
		if tally.resets != 2*test.resets || tally.refused != 2*test.refused || len(tally.errors) != 1 {
			t.Errorf("%v: %d resets, %d refused, errors %q", test.err, tally.resets, tally.refused, tally.errors)
		}
	}
}

func TestAnswersCountOnce(t *testing.T) {
	tally := &tally{sent: map[uint64]time.Time{}, by: map[string]int{}}
	tally.send(7)
	tally.answer(7, "")
	tally.answer(7, "")
	tally.answer(8, "")
	if got := tally.result(); got.Answered != 1 || got.Lost != 0 {
		t.Errorf("%+v, want one answer", got)
	}
}

func TestQuantiles(t *testing.T) {
	times := make([]time.Duration, 100)
	for i := range times {
		times[i] = time.Duration(i)
	}
	for percent, want := range map[int]time.Duration{0: 0, 50: 50, 99: 99, 100: 99} {
		if got := quantile(times, percent); got != want {
			t.Errorf("%d %%: %d, want %d", percent, got, want)
		}
	}
	if got := quantile(nil, 50); got != 0 {
		t.Errorf("of nothing: %v", got)
	}
}

func FuzzReadBody(f *testing.F) {
	f.Add("HTTP/1.1 200 OK\r\nContent-Length: 6\r\n\r\nweb-1 ")
	f.Add("Content-Length: -1\r\n\r\n")
	f.Add("Content-Length: 99999999999999999999\r\n\r\n")
	f.Fuzz(func(t *testing.T, text string) {
		name, err := readBody(bufio.NewReader(strings.NewReader(text)))
		if err == nil && strings.Contains(name, " ") {
			t.Errorf("name %q is not a word", name)
		}
	})
}

func query(t *testing.T, name string, kind dnsmessage.Type) []byte {
	t.Helper()
	message := dnsmessage.Message{
		Header:    dnsmessage.Header{ID: 42, RecursionDesired: true},
		Questions: []dnsmessage.Question{{Name: dnsmessage.MustNewName(name), Type: kind, Class: dnsmessage.ClassINET}},
	}
	raw, err := message.Pack()
	if err != nil {
		t.Fatal(err)
	}
	return raw
}

func TestTheNameServerAnswersByFamily(t *testing.T) {
	names, err := ParseNames([]string{"web.shop=10.96.0.80,fd96::80"})
	if err != nil {
		t.Fatal(err)
	}
	for _, test := range []struct {
		name, want string
		kind       dnsmessage.Type
	}{
		{"web.shop.", "RCodeSuccess [10.96.0.80]", dnsmessage.TypeA},
		{"WEB.Shop.", "RCodeSuccess [fd96::80]", dnsmessage.TypeAAAA},
		{"web.shop.", "RCodeSuccess []", dnsmessage.TypeMX},
		{"no.shop.", "RCodeNameError []", dnsmessage.TypeA},
	} {
		var reply dnsmessage.Message
		if err := reply.Unpack(names.answer(query(t, test.name, test.kind))); err != nil {
			t.Fatal(err)
		}
		addrs := []string{}
		for _, answer := range reply.Answers {
			switch body := answer.Body.(type) {
			case *dnsmessage.AResource:
				addrs = append(addrs, netip.AddrFrom4(body.A).String())
			case *dnsmessage.AAAAResource:
				addrs = append(addrs, netip.AddrFrom16(body.AAAA).String())
			}
		}
		if got := fmt.Sprint(reply.RCode, addrs); got != test.want || reply.ID != 42 || !reply.Response {
			t.Errorf("%s %s: %s, want %s", test.name, test.kind, got, test.want)
		}
	}
}

func TestBadNamesAreRefused(t *testing.T) {
	for _, arg := range []string{"", "web", "=10.0.0.1", "web=", "web=10.0.0"} {
		if _, err := ParseNames([]string{arg}); err == nil {
			t.Errorf("%q is accepted", arg)
		}
	}
}

func FuzzAnswer(f *testing.F) {
	f.Add([]byte{0, 42, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0, 3, 'w', 'e', 'b', 0, 0, 1, 0, 1})
	f.Add([]byte{})
	names := Names{"web.": {netip.MustParseAddr("10.0.0.1")}}
	f.Fuzz(func(t *testing.T, raw []byte) {
		reply := names.answer(raw)
		var message dnsmessage.Message
		if reply != nil && message.Unpack(reply) != nil {
			t.Errorf("the reply to %x cannot be read", raw)
		}
	})
}

func TestListenersAreFoundInTheKernelsTable(t *testing.T) {
	const table = `  sl  local_address rem_address   st
   0: 00000000:0050 00000000:0000 0A 00000000:00000000
   1: 0100007F:1F90 0100007F:C000 01 00000000:00000000
`
	for port, want := range map[uint16]bool{80: true, 8080: false, 5: false, 0: false} {
		if got := hasListener(table, port); got != want {
			t.Errorf("port %d listens: %v, want %v", port, got, want)
		}
	}
}

func TestForwardLeadsToTheStore(t *testing.T) {
	socket := t.TempDir() + "/store.sock"
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error)
	target := startEcho(t)
	go func() { done <- Forward(ctx, socket, target) }()
	var conn net.Conn
	err := Wait(t.Context(), "the socket", 5*time.Second, func(context.Context) (err error) {
		conn, err = net.Dial("unix", socket)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	if _, err := conn.Write([]byte("hello")); err != nil {
		t.Fatal(err)
	}
	answer := make([]byte, 5)
	if _, err := io.ReadFull(conn, answer); err != nil || string(answer) != "hello" {
		t.Errorf("answer %q, %v", answer, err)
	}
	cancel()
	if err := <-done; err != nil {
		t.Errorf("forward ended with %v", err)
	}
}

func TestAProbeThatIsNotReadFromCanBeEnded(t *testing.T) {
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer listener.Close()
	ctx, cancel := context.WithTimeout(t.Context(), 500*time.Millisecond)
	defer cancel()
	begin := time.Now()
	got, err := Probe(ctx, ProbeConfig{Kind: ProbeTCP, Addr: listener.Addr().String(), Interval: time.Nanosecond,
		Duration: time.Hour, Grace: time.Millisecond})
	if err != nil || got.Lost != got.Sent || got.Sent == 0 {
		t.Errorf("%+v, %v, want everything lost", got, err)
	}
	if took := time.Since(begin); took > 5*time.Second {
		t.Errorf("it ended after %s", took)
	}
}
