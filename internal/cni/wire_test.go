package cni

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"
)

// recorder is a handler that notes what it was asked.
type recorder struct {
	mutex sync.Mutex
	asked []string
	inode uint64 // of the namespace that came along
	fail  error
	hold  chan struct{} // closed when commands may end
}

func (r *recorder) note(request *Request) error {
	if r.hold != nil {
		<-r.hold
	}
	r.mutex.Lock()
	defer r.mutex.Unlock()
	r.asked = append(r.asked, fmt.Sprint(request.Command, " ", request.ContainerID))
	if request.Netns != nil {
		var stat unix.Stat_t
		unix.Fstat(int(request.Netns.Fd()), &stat)
		r.inode = stat.Ino
	}
	return r.fail
}

func (r *recorder) Add(_ context.Context, request *Request) (*Result, error) {
	if err := r.note(request); err != nil {
		return nil, err
	}
	return testResult(), nil
}
func (r *recorder) Del(_ context.Context, request *Request) error   { return r.note(request) }
func (r *recorder) Check(_ context.Context, request *Request) error { return r.note(request) }
func (r *recorder) GC(_ context.Context, request *Request) error    { return r.note(request) }

// serving starts a server that ends with the test, and returns its socket.
func serving(t *testing.T, handler Handler) (socket string, stop func()) {
	t.Helper()
	socket = filepath.Join(t.TempDir(), "cni.sock")
	listener, err := net.ListenUnix("unix", &net.UnixAddr{Name: socket, Net: "unix"})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- Serve(ctx, listener, handler) }()
	stop = sync.OnceFunc(func() {
		cancel()
		if err := <-ended; err != nil {
			t.Errorf("serve: %v", err)
		}
	})
	t.Cleanup(stop)
	return socket, stop
}

func rawRequest(command Command) *Raw {
	return &Raw{Command: command, ContainerID: "c1", IfName: "eth0", NetnsPath: "/run/netns/c1", Stdin: []byte(gcConfig("[]"))}
}

func TestRequestReachesTheHandlerWithItsNamespace(t *testing.T) {
	r := &recorder{}
	socket, _ := serving(t, r)
	netns, err := os.Open("/proc/self/ns/net")
	if err != nil {
		t.Fatal(err)
	}
	defer netns.Close()
	for _, command := range []Command{Add, Del, Check, GC} {
		reply, err := Ask(t.Context(), socket, rawRequest(command), netns, time.Second)
		if err != nil || reply.Error != nil {
			t.Fatalf("%s: %v, %v", command, reply, err)
		}
		if (command == Add) != (len(reply.Result) > 0) {
			t.Errorf("%s: result is %q", command, reply.Result)
		}
	}
	if diff := cmp.Diff([]string{"ADD c1", "DEL c1", "CHECK c1", "GC c1"}, r.asked); diff != "" {
		t.Errorf("asked (-want +got):\n%s", diff)
	}
	var stat unix.Stat_t
	if err := unix.Fstat(int(netns.Fd()), &stat); err != nil || stat.Ino != r.inode {
		t.Errorf("handler got namespace %d, want %d (%v)", r.inode, stat.Ino, err)
	}
}

func TestHandlersErrorReachesTheRuntime(t *testing.T) {
	for want, fail := range map[Code]error{
		CodeTryAgainLater: fmt.Errorf("wrapped: %w", Errorf(CodeTryAgainLater, "later", "d")),
		CodeInternal:      errors.New("plain"),
	} {
		socket, _ := serving(t, &recorder{fail: fail})
		reply, err := Ask(t.Context(), socket, rawRequest(Del), nil, time.Second)
		if err != nil || reply.Error == nil || reply.Error.Code != want {
			t.Errorf("reply to %v is %+v, %v; want code %d", fail, reply, err, want)
		}
	}
}

// verbose fails with more than a socket's buffers hold.
type verbose struct{ recorder }

func (*verbose) Del(context.Context, *Request) error {
	return errors.New(strings.Repeat("x", maxFrame/2))
}

func TestCallerThatDoesNotReadItsReplyHoldsUpNobody(t *testing.T) {
	socket, stop := serving(t, &verbose{})
	conn, err := net.DialUnix("unix", nil, &net.UnixAddr{Name: socket, Net: "unix"})
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	if err := writeFrame(conn, rawRequest(Del), nil); err != nil {
		t.Fatal(err)
	}
	time.Sleep(50 * time.Millisecond) // the agent has the request, and fills the socket
	begun := time.Now()
	stop()
	if took := time.Since(begun); took > 2*replyTime {
		t.Errorf("the agent waited %s for a caller that reads nothing", took)
	}
}

func TestAddWithoutNamespaceIsRefused(t *testing.T) {
	r := &recorder{}
	socket, _ := serving(t, r)
	reply, err := Ask(t.Context(), socket, rawRequest(Add), nil, time.Second)
	if err != nil || reply.Error == nil || !strings.Contains(reply.Error.Error(), "CNI_NETNS") || r.asked != nil {
		t.Errorf("reply is %+v, %v; handler was asked %v", reply, err, r.asked)
	}
}

func TestMalformedRequestsGetAClearAnswerAndChangeNothing(t *testing.T) {
	frame := func(body string) string {
		return string(binary.BigEndian.AppendUint32(nil, uint32(len(body)))) + body
	}
	for name, bytes := range map[string]string{
		"not JSON":  frame("nonsense"),
		"too long":  "\xff\xff\xff\xff",
		"cut off":   "\x00\x00\x01\x00{",
		"no header": "\x00",
		"bad field": frame(`{"command":"ADD"}`),
	} {
		t.Run(name, func(t *testing.T) {
			r := &recorder{}
			socket, _ := serving(t, r)
			conn, err := net.DialUnix("unix", nil, &net.UnixAddr{Name: socket, Net: "unix"})
			if err != nil {
				t.Fatal(err)
			}
			defer conn.Close()
			io.WriteString(conn, bytes)
			conn.CloseWrite()
			var reply Reply
			if _, err := readFrame(conn, &reply); err != nil || reply.Error == nil || reply.Error.Message == "" {
				t.Errorf("reply is %+v, %v; want an error", reply, err)
			}
			if r.asked != nil {
				t.Errorf("handler was asked %v", r.asked)
			}
		})
	}
}

func TestStoppingLetsCommandsComeToTheirEnd(t *testing.T) {
	r := &recorder{hold: make(chan struct{})}
	socket, stop := serving(t, r)
	answered := make(chan error, 1)
	go func() {
		reply, err := Ask(context.Background(), socket, rawRequest(Del), nil, time.Second)
		if err == nil && reply.Error != nil {
			err = reply.Error
		}
		answered <- err
	}()
	time.Sleep(50 * time.Millisecond) // the command is under way
	go func() {
		time.Sleep(50 * time.Millisecond)
		close(r.hold)
	}()
	stop()
	if err := <-answered; err != nil {
		t.Errorf("command under way ended with %v", err)
	}
}

func TestAgentAwayIsNoticedAfterPatienceAndNotBefore(t *testing.T) {
	socket := filepath.Join(t.TempDir(), "cni.sock")
	start := time.Now()
	_, err := Ask(t.Context(), socket, rawRequest(Del), nil, 100*time.Millisecond)
	if !errors.Is(err, ErrAgentAway) || time.Since(start) < 100*time.Millisecond {
		t.Errorf("after %s: %v, want ErrAgentAway", time.Since(start), err)
	}
}

func TestAgentThatComesBackInTimeIsAsked(t *testing.T) {
	r := &recorder{}
	socket, stop := serving(t, r)
	stop() // away
	go func() {
		time.Sleep(60 * time.Millisecond)
		os.Remove(socket)
		listener, err := net.ListenUnix("unix", &net.UnixAddr{Name: socket, Net: "unix"})
		if err != nil {
			t.Error(err)
			return
		}
		conn, err := listener.AcceptUnix()
		if err == nil {
			serveConn(context.Background(), conn, r)
		}
		listener.Close()
	}()
	if _, err := Ask(t.Context(), socket, rawRequest(Del), nil, 5*time.Second); err != nil {
		t.Error(err)
	}
}

func TestAskEndsWithItsContext(t *testing.T) {
	r := &recorder{hold: make(chan struct{})}
	socket, _ := serving(t, r)
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	if _, err := Ask(ctx, socket, rawRequest(Del), nil, time.Second); err == nil {
		t.Error("an answer came from a handler that gave none")
	}
	close(r.hold)
}

func TestSeveralDescriptorsAreRefusedAndNoneIsKept(t *testing.T) {
	pair, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	var ends [2]*net.UnixConn
	for i, fd := range pair {
		file := os.NewFile(uintptr(fd), "pair")
		conn, err := net.FileConn(file)
		file.Close()
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
		ends[i] = conn.(*net.UnixConn)
	}
	before := openFiles(t)
	if _, _, err := ends[0].WriteMsgUnix(make([]byte, headerSize), unix.UnixRights(0, 1, 2, 0, 1), nil); err != nil {
		t.Fatal(err)
	}
	var reply Reply
	file, err := readFrame(ends[1], &reply)
	if err == nil || file != nil {
		t.Errorf("read %v, %v; want a refusal", file, err)
	}
	if after := openFiles(t); after != before {
		t.Errorf("%d descriptors are open, %d were before", after, before)
	}
}

func openFiles(t *testing.T) int {
	t.Helper()
	entries, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Fatal(err)
	}
	return len(entries)
}

func TestQueueKeepsDeletionsUntilTheyAreDone(t *testing.T) {
	queue := NewQueue(filepath.Join(t.TempDir(), "data"))
	var done []string
	do := func(request *Request) error {
		done = append(done, request.ContainerID)
		if request.ContainerID == "stubborn" && len(done) < 3 {
			return errors.New("not now")
		}
		return nil
	}
	if err := queue.Drain(do); err != nil || done != nil {
		t.Errorf("draining a queue that never was: %v, did %v", err, done)
	}
	for _, id := range []string{"willing", "stubborn", "willing", "withdrawn"} {
		raw := rawRequest(Del)
		raw.ContainerID = id
		if err := queue.Put(raw); err != nil {
			t.Fatal(err)
		}
		if id == "withdrawn" {
			if err := errors.Join(queue.Remove(raw), queue.Remove(raw)); err != nil {
				t.Error(err)
			}
		}
	}
	if err := queue.Drain(do); err == nil || !strings.Contains(err.Error(), "not now") || len(done) != 2 {
		t.Errorf("first time: %v, did %v", err, done)
	}
	if err := queue.Drain(do); err != nil || len(done) != 3 || done[2] != "stubborn" {
		t.Errorf("second time: %v, did %v", err, done)
	}
}

func TestQueueRefusesWhatIsNoDeletion(t *testing.T) {
	queue := NewQueue(t.TempDir())
	if err := queue.Put(rawRequest(Check)); err != nil {
		t.Fatal(err)
	}
	broken := filepath.Join(queue.dir, "broken"+queueSuffix)
	if err := os.WriteFile(broken, []byte("{"), 0o600); err != nil {
		t.Fatal(err)
	}
	err := queue.Drain(func(*Request) error { t.Error("it was done"); return nil })
	if err == nil || !strings.Contains(err.Error(), "only DEL") || !strings.Contains(err.Error(), broken) {
		t.Errorf("error is %v, want one that names both files", err)
	}
}

func FuzzFrame(f *testing.F) {
	f.Add([]byte("\x00\x00\x00\x02{}"))
	f.Add([]byte("\xff\xff\xff\xff{}"))
	f.Fuzz(func(t *testing.T, bytes []byte) {
		if len(bytes) < headerSize {
			return
		}
		var raw Raw
		if readBody(strings.NewReader(string(bytes[headerSize:])), [headerSize]byte(bytes), headerSize, &raw) == nil {
			raw.Parse()
		}
	})
}
