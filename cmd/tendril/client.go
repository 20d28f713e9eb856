package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/spf13/cobra"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"

	agentv1 "tendril.io/tendril/api/agent/v1"
)

// askTimeout bounds a question that has one answer.
const askTimeout = 15 * time.Second

// agentConn is a connection to one agent.
type agentConn struct {
	agentv1.AgentClient
	conn *grpc.ClientConn
	path string // of its socket
}

// maxAnswer bounds one answer of the agent, in bytes: a list of half a million connections fits.
const maxAnswer = 256 << 20

// connect finds the agent that the flags mean and connects to it.
func (a *app) connect() (*agentConn, error) {
	path, err := a.socketPath()
	if err != nil {
		return nil, explainDial(path, err)
	}
	return dialAgent(path)
}

// dialAgent connects to the agent that listens on a socket. It tries the socket first, because gRPC would say of any
// failure only that the agent is unavailable.
func dialAgent(path string) (*agentConn, error) {
	trial, err := net.DialTimeout("unix", path, askTimeout)
	if err != nil {
		return nil, explainDial(path, err)
	}
	trial.Close() // gRPC makes its own
	conn, err := grpc.NewClient("unix:"+path, grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithDefaultCallOptions(grpc.MaxCallRecvMsgSize(maxAnswer)))
	if err != nil {
		return nil, fmt.Errorf("agent socket %s: %w", path, err)
	}
	return &agentConn{agentv1.NewAgentClient(conn), conn, path}, nil
}

// Close ends the connection.
func (c *agentConn) Close() { c.conn.Close() }

// explainDial adds what to do next to the ways in which a socket cannot be reached.
func explainDial(path string, err error) error {
	switch {
	case errors.Is(err, os.ErrPermission):
		return fmt.Errorf("agent socket %s: permission denied: run tendril as root", path)
	case errors.Is(err, syscall.ECONNREFUSED):
		return fmt.Errorf("agent socket %s: nobody listens: the agent has ended; start tendril-agent again, its log says why it ended", path)
	}
	return err
}

// explainAnswer turns a gRPC error into one that says what to do next.
func explainAnswer(path string, err error) error {
	s, ok := status.FromError(err)
	if !ok {
		return err
	}
	switch s.Code() {
	case codes.Unavailable:
		return fmt.Errorf("agent at %s: went away: %s: is it restarting? try again", path, s.Message())
	case codes.DeadlineExceeded:
		return fmt.Errorf("agent at %s: no answer within %s: see its log", path, askTimeout)
	case codes.Unimplemented:
		return fmt.Errorf("agent at %s: does not know this question: it is of another version than this tendril", path)
	}
	return errors.New(s.Message())
}

// answer makes a command out of a question with one answer: it is printed by show or, with -o json, as it is.
func answer[R proto.Message](a *app, cmd *cobra.Command, question func(context.Context, agentv1.AgentClient) (R, error), show func(*view, R)) *cobra.Command {
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		response, err := askAgent(cmd.Context(), a, question)
		if err != nil {
			return err
		}
		v := newView(cmd.OutOrStdout())
		if a.json() {
			return v.json(response)
		}
		show(v, response)
		return v.flush()
	}
	if cmd.Args == nil {
		cmd.Args = cobra.NoArgs
	}
	return cmd
}

// askAgent puts one question to the agent that the flags mean.
func askAgent[R any](ctx context.Context, a *app, question func(context.Context, agentv1.AgentClient) (R, error)) (response R, err error) {
	path, err := a.socketPath()
	if err != nil {
		return response, explainDial(path, err)
	}
	// An agent that hangs must not hang the command line too.
	ctx, cancel := context.WithTimeout(ctx, askTimeout)
	defer cancel()
	return askOne(ctx, path, question)
}

// nodeAnswer is one agent's answer.
type nodeAnswer[R any] struct {
	node     string // its name in the lab; empty: the agent of this machine, or the one that the flags name
	response R
}

// agentSockets lists whom a question to the whole cluster goes to, by node: the one agent that the flags name, else all of
// the lab, else the agent of this machine.
func (a *app) agentSockets() (map[string]string, error) {
	if a.node == "" && a.socket == "" {
		sockets, err := a.labSockets()
		if err == nil {
			return sockets, nil
		}
		if _, missing := a.socketPath(); missing != nil {
			return nil, errors.Join(err, missing)
		}
	}
	path, err := a.socketPath()
	return map[string]string{a.node: path}, explainDial(path, err)
}

// askAll puts one question to all agents at once. One that does not answer keeps nobody else from answering; the error
// names each. waiting is called every two seconds with the nodes that are still silent; nil: nobody wants to know.
func askAll[R any](ctx context.Context, sockets map[string]string, limit time.Duration, question func(context.Context, agentv1.AgentClient) (R, error),
	waiting func(nodes []string, since time.Duration)) ([]nodeAnswer[R], error) {
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	var mu sync.Mutex
	var answers []nodeAnswer[R]
	var failures []error
	silent := maps.Clone(sockets)
	var asked sync.WaitGroup
	for node, path := range sockets {
		asked.Go(func() {
			response, err := askOne(ctx, path, question)
			mu.Lock()
			defer mu.Unlock()
			delete(silent, node)
			if err != nil {
				failures = append(failures, err)
				return
			}
			answers = append(answers, nodeAnswer[R]{node, response})
		})
	}
	done := make(chan struct{})
	go func() {
		asked.Wait()
		close(done)
	}()
	ticker := time.NewTicker(patience)
	defer ticker.Stop()
	for begun := time.Now(); ; {
		select {
		case <-done:
			slices.SortFunc(answers, func(a, b nodeAnswer[R]) int { return strings.Compare(a.node, b.node) })
			return answers, errors.Join(failures...)
		case now := <-ticker.C:
			mu.Lock()
			if waiting != nil {
				waiting(slices.Sorted(maps.Keys(silent)), now.Sub(begun))
			}
			mu.Unlock()
		}
	}
}

// whileWaiting tells the user what a command is at, each time that their patience ends, until stop is called.
func whileWaiting(out io.Writer, what string) (stop func()) {
	begun := time.Now()
	var mu sync.Mutex // a line is whole, and none comes after stop
	stopped := false
	var timer *time.Timer
	mu.Lock()
	defer mu.Unlock()
	timer = time.AfterFunc(patience, func() {
		mu.Lock()
		defer mu.Unlock()
		if !stopped {
			fmt.Fprintf(out, "tendril: still %s after %s\n", what, ago(time.Since(begun)))
			timer.Reset(patience)
		}
	})
	return func() {
		mu.Lock()
		defer mu.Unlock()
		stopped = true
		timer.Stop()
	}
}

// patience is how long a question may take before the user is told what it waits for.
const patience = 2 * time.Second

// askOne puts a question to the agent at a socket.
func askOne[R any](ctx context.Context, path string, question func(context.Context, agentv1.AgentClient) (R, error)) (response R, err error) {
	agent, err := dialAgent(path)
	if err != nil {
		return response, err
	}
	defer agent.Close()
	if response, err = question(ctx, agent); err != nil {
		return response, explainAnswer(path, err)
	}
	return response, nil
}

// labSockets lists the sockets of all agents of the lab, by node.
func (a *app) labSockets() (map[string]string, error) {
	pattern := filepath.Join(labRoot, a.lab, "*", "agent.sock")
	paths, err := filepath.Glob(pattern)
	if err != nil {
		return nil, err
	}
	if len(paths) == 0 {
		return nil, fmt.Errorf("lab %q: no agent listens at %s: start the lab with `tendril lab up`", a.lab, pattern)
	}
	sockets := make(map[string]string, len(paths))
	for _, path := range paths {
		sockets[filepath.Base(filepath.Dir(path))] = path
	}
	return sockets, nil
}
