package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
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
	agent, err := a.connect()
	if err != nil {
		return response, err
	}
	defer agent.Close()
	// An agent that hangs must not hang the command line too.
	ctx, cancel := context.WithTimeout(ctx, askTimeout)
	defer cancel()
	if response, err = question(ctx, agent); err != nil {
		return response, explainAnswer(agent.path, err)
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
