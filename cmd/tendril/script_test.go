package main

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/rogpeppe/go-internal/testscript"
	"github.com/spf13/cobra"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/reflect/protoregistry"

	agentv1 "tendril.io/tendril/api/agent/v1"
)

func TestMain(m *testing.M) {
	testscript.Main(m, map[string]func(){"tendril": main})
}

// TestScripts runs the real command line on agents that answer from files. In a script's archive, agent/METHOD.json is
// the answer of the agent at $AGENT to a method, agent/METHOD.error an error instead ("code: message"), agent/Observe.json
// a record a line. lab/NODE/... are agents of the lab named $LAB. Answers are read when they are asked for, so a script
// can change them. $WORK/asked lists the requests as "method {json}".
func TestScripts(t *testing.T) {
	testscript.Run(t, testscript.Params{
		Dir: "testdata",
		Setup: func(env *testscript.Env) error {
			env.Setenv("TZ", "UTC")
			env.Setenv("AGENT", filepath.Join(env.WorkDir, "agent.sock"))
			if err := serveAnswers(env, filepath.Join(env.WorkDir, "agent"), filepath.Join(env.WorkDir, "agent.sock")); err != nil {
				return err
			}
			return serveLab(env)
		},
		Cmds: map[string]func(*testscript.TestScript, bool, []string){"deadsocket": deadSocket},
		Condition: func(name string) (bool, error) {
			if name == "root" {
				return os.Geteuid() == 0, nil
			}
			return false, fmt.Errorf("unknown condition %q", name)
		},
	})
}

// deadSocket makes a socket that nobody listens on, as an agent leaves it that was killed.
func deadSocket(ts *testscript.TestScript, _ bool, args []string) {
	fd, err := syscall.Socket(syscall.AF_UNIX, syscall.SOCK_STREAM, 0)
	ts.Check(err)
	ts.Check(syscall.Bind(fd, &syscall.SockaddrUnix{Name: ts.MkAbs(args[0])}))
	ts.Check(syscall.Close(fd))
}

// serveLab starts the agents of the script's lab where tendril looks for them. That place is root's.
func serveLab(env *testscript.Env) error {
	nodes, err := os.ReadDir(filepath.Join(env.WorkDir, "lab"))
	if errors.Is(err, fs.ErrNotExist) || os.Geteuid() != 0 {
		return nil
	}
	if err != nil {
		return err
	}
	root, err := os.MkdirTemp(mkdir(labRoot), "cli-test-")
	if err != nil {
		return err
	}
	env.Defer(func() {
		os.RemoveAll(root)
		os.Remove(labRoot) // only if it is empty: other labs stay
	})
	env.Setenv("LAB", filepath.Base(root))
	for _, node := range nodes {
		path := filepath.Join(mkdir(filepath.Join(root, node.Name())), "agent.sock")
		if err := serveAnswers(env, filepath.Join(env.WorkDir, "lab", node.Name()), path); err != nil {
			return err
		}
	}
	return nil
}

func mkdir(path string) string {
	os.MkdirAll(path, 0o755)
	return path
}

// serveAnswers starts an agent that answers from the files of a folder, if there is such a folder.
func serveAnswers(env *testscript.Env, folder, socket string) error {
	if _, err := os.Stat(folder); err != nil {
		return nil
	}
	listener, err := net.Listen("unix", socket)
	if err != nil {
		return err
	}
	agent := &cannedAgent{folder: folder, asked: filepath.Join(env.WorkDir, "asked")}
	server := grpc.NewServer(grpc.UnaryInterceptor(agent.unary), grpc.StreamInterceptor(agent.stream))
	agentv1.RegisterAgentServer(server, agentv1.UnimplementedAgentServer{})
	done := make(chan struct{})
	go func() {
		defer close(done)
		server.Serve(listener)
	}()
	env.Defer(func() {
		server.Stop()
		<-done
	})
	return nil
}

// cannedAgent answers every method from a file.
type cannedAgent struct {
	folder string
	asked  string
	mu     sync.Mutex
}

// unary answers a method with one answer. The response's type is the one that the generated code declares.
func (c *cannedAgent) unary(_ context.Context, request any, info *grpc.UnaryServerInfo, _ grpc.UnaryHandler) (any, error) {
	method := filepath.Base(info.FullMethod)
	c.note(method, request.(proto.Message))
	text, err := c.read(method)
	if err != nil {
		return nil, err
	}
	output := agentv1.File_agent_v1_agent_proto.Services().ByName("Agent").Methods().ByName(protoreflect.Name(method)).Output()
	kind, err := protoregistry.GlobalTypes.FindMessageByName(output.FullName())
	if err != nil {
		return nil, err
	}
	response := kind.New().Interface()
	if err := protojson.Unmarshal(text, response); err != nil {
		return nil, status.Errorf(codes.Internal, "answer to %s: %v", method, err)
	}
	return response, nil
}

// stream answers Observe with a record a line. Asked to follow, it stays until the caller leaves.
func (c *cannedAgent) stream(_ any, stream grpc.ServerStream, info *grpc.StreamServerInfo, _ grpc.StreamHandler) error {
	var request agentv1.ObserveRequest
	if err := stream.RecvMsg(&request); err != nil {
		return err
	}
	c.note("Observe", &request)
	text, err := c.read("Observe")
	if err != nil {
		return err
	}
	for line := bufio.NewScanner(bytes.NewReader(text)); line.Scan(); {
		var record agentv1.Flow
		if err := protojson.Unmarshal(line.Bytes(), &record); err != nil {
			return status.Errorf(codes.Internal, "record %s: %v", line.Text(), err)
		}
		if err := stream.SendMsg(&record); err != nil {
			return err
		}
	}
	if request.Follow {
		if _, err := os.Stat(filepath.Join(c.folder, "ends")); err == nil {
			return nil
		}
		<-stream.Context().Done()
	}
	return nil
}

// read returns the answer to a method, or the error that the script wants.
func (c *cannedAgent) read(method string) ([]byte, error) {
	if text, err := os.ReadFile(filepath.Join(c.folder, method+".error")); err == nil {
		code, message, _ := strings.Cut(strings.TrimSpace(string(text)), ": ")
		var parsed codes.Code
		if err := json.Unmarshal([]byte(`"`+code+`"`), &parsed); err != nil {
			return nil, err
		}
		return nil, status.Error(parsed, message)
	}
	text, err := os.ReadFile(filepath.Join(c.folder, method+".json"))
	if err != nil {
		return nil, status.Errorf(codes.Internal, "the script has no answer to %s", method)
	}
	return text, nil
}

// note writes down a request.
func (c *cannedAgent) note(method string, request proto.Message) {
	c.mu.Lock()
	defer c.mu.Unlock()
	text, _ := protojson.Marshal(request)
	var out bytes.Buffer
	json.Compact(&out, text)
	f, err := os.OpenFile(c.asked, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o644)
	if err != nil {
		return
	}
	defer f.Close()
	fmt.Fprintf(f, "%s %s\n", method, out.Bytes())
}

// A newcomer learns every command from an example; one that only holds others shows theirs.
func TestEveryCommandHasAnExample(t *testing.T) {
	var visit func(cmd *cobra.Command)
	visit = func(cmd *cobra.Command) {
		if cmd.Hidden {
			return
		}
		for _, child := range cmd.Commands() {
			visit(child)
		}
		if cmd.Short == "" {
			t.Errorf("%s: no description", cmd.CommandPath())
		}
		if !strings.Contains(cmd.Example, "tendril") {
			t.Errorf("%s: no example", cmd.CommandPath())
		}
	}
	visit(newRootCommand())
}

// Records of several nodes come out in order of time, each once, whichever node is fast.
func TestMergedRecordsAreInOrderOfTime(t *testing.T) {
	for _, follow := range []bool{false, true} {
		var got []int64
		m := merger{follow: follow, print: func(f *agentv1.Flow) error { got = append(got, f.TimeUnixNano); return nil }}
		records := make(chan *agentv1.Flow)
		go func() {
			defer close(records)
			for _, at := range []int64{5, 1, 4, 2} {
				records <- &agentv1.Flow{TimeUnixNano: at}
			}
			if follow {
				time.Sleep(3 * settle)
			}
			for _, at := range []int64{8, 3, 7} {
				records <- &agentv1.Flow{TimeUnixNano: at}
			}
		}()
		if err := m.run(records); err != nil {
			t.Fatal(err)
		}
		want := "[1 2 3 4 5 7 8]"
		if follow {
			want = "[1 2 4 5 3 7 8]" // 3 came when 5 had waited long enough
		}
		if fmt.Sprint(got) != want {
			t.Errorf("follow %v: printed %v, want %s", follow, got, want)
		}
	}
}

func TestDurationsAreSaidShortly(t *testing.T) {
	for d, want := range map[time.Duration]string{
		-1: "0s", 0: "0s", 1500 * time.Microsecond: "2ms", 3240 * time.Millisecond: "3.2s", 62 * time.Second: "1m2s",
		3*time.Hour + 5*time.Minute: "3h5m", 50 * time.Hour: "2d2h",
	} {
		if got := ago(d); got != want {
			t.Errorf("%v is %q, want %q", d, got, want)
		}
	}
}
