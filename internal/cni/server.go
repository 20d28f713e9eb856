package cni

import (
	"context"
	"errors"
	"fmt"
	"net"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// Handler does what runtimes ask for. Requests arrive in parallel. An error that is or wraps an *Error reaches the
// runtime with its code, any other with CodeInternal.
type Handler interface {
	// Add attaches a container. Repeating it for the same attachment gives the same result or an error.
	Add(ctx context.Context, request *Request) (*Result, error)
	// Del detaches; it succeeds if there is nothing to detach.
	Del(ctx context.Context, request *Request) error
	// Check fails if an attachment is not as Add left it.
	Check(ctx context.Context, request *Request) error
	// GC detaches everything that is not among the configuration's valid attachments.
	GC(ctx context.Context, request *Request) error
}

const (
	// requestTime bounds reading a request; the plugin sends it at once.
	requestTime = 5 * time.Second
	// replyTime bounds writing a reply, which waits only for callers that read nothing of more than a socket holds.
	replyTime = time.Second
	// serveTime bounds a command. Runtimes give up after one to four minutes.
	serveTime = 50 * time.Second
)

// Serve answers requests on a unix socket until the context ends, then closes the listener, lets commands that run
// come to their end and returns. Only root and the agent's own user are served.
func Serve(ctx context.Context, listener *net.UnixListener, handler Handler) error {
	stop := context.AfterFunc(ctx, func() { listener.Close() })
	defer stop()
	var commands sync.WaitGroup
	defer commands.Wait()
	for {
		conn, err := listener.AcceptUnix()
		switch {
		case ctx.Err() != nil:
			if err == nil {
				conn.Close()
			}
			return nil
		case errors.Is(err, unix.EMFILE), errors.Is(err, unix.ENFILE), errors.Is(err, unix.ECONNABORTED):
			time.Sleep(10 * time.Millisecond) // descriptors come back when commands end
		case err != nil:
			return fmt.Errorf("accept plugin: %w", err)
		default:
			commands.Go(func() { serveConn(ctx, conn, handler) })
		}
	}
}

// serveConn answers the one request of a connection. A command that has begun is not cut off when ctx ends: it
// finishes, or fails and undoes itself, within serveTime.
func serveConn(ctx context.Context, conn *net.UnixConn, handler Handler) {
	defer conn.Close()
	if err := checkCaller(conn); err != nil {
		answer(conn, Reply{Error: AsError(err)})
		return
	}
	_ = conn.SetReadDeadline(time.Now().Add(requestTime)) // fails only on a closed connection, which the read tells
	var raw Raw
	netns, err := readFrame(conn, &raw)
	if err != nil {
		answer(conn, Reply{Error: Errorf(CodeDecode, "malformed request to the agent", "%v", err)})
		return
	}
	defer closeFile(netns)
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), serveTime)
	defer cancel()
	request, err := raw.Parse()
	if err != nil {
		answer(conn, Reply{Error: AsError(err)})
		return
	}
	request.Netns = netns
	answer(conn, serve(ctx, handler, request))
}

// answer sends a reply. A caller that is gone, or does not read, needs none.
func answer(conn *net.UnixConn, reply Reply) {
	_ = conn.SetWriteDeadline(time.Now().Add(replyTime))
	_ = writeFrame(conn, reply, nil)
}

// serve turns a command into a reply.
func serve(ctx context.Context, handler Handler, request *Request) Reply {
	var encoded []byte
	err := error(nil)
	switch request.Command {
	case Add:
		encoded, err = serveAdd(ctx, handler, request)
	case Del:
		err = handler.Del(ctx, request)
	case Check:
		err = handler.Check(ctx, request)
	case GC:
		err = handler.GC(ctx, request)
	default:
		err = environment("CNI_COMMAND", request.Command, "the plugin answers it itself")
	}
	if err != nil {
		return Reply{Error: AsError(err)}
	}
	return Reply{Result: encoded}
}

// serveAdd adds, and encodes in the version that the configuration asks for, which may leave out what it does not know.
func serveAdd(ctx context.Context, handler Handler, request *Request) ([]byte, error) {
	if request.Netns == nil {
		return nil, environment("CNI_NETNS", request.NetnsPath, "the plugin could not open it")
	}
	result, err := handler.Add(ctx, request)
	if err != nil {
		return nil, err
	}
	return result.Encode(request.Config.CNIVersion)
}

// checkCaller refuses processes of other users, should the socket's folder let them in.
func checkCaller(conn *net.UnixConn) error {
	raw, err := conn.SyscallConn()
	if err != nil {
		return err
	}
	var caller *unix.Ucred
	var asked error
	err = raw.Control(func(fd uintptr) {
		caller, asked = unix.GetsockoptUcred(int(fd), unix.SOL_SOCKET, unix.SO_PEERCRED)
	})
	if err = errors.Join(err, asked); err != nil {
		return fmt.Errorf("ask who calls: %w", err)
	}
	if caller.Uid != 0 && caller.Uid != uint32(unix.Geteuid()) {
		return Errorf(CodeInternal, "permission denied", "user %d may not use the agent's CNI socket: run the plugin as root",
			caller.Uid)
	}
	return nil
}
