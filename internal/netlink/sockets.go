package netlink

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"syscall"

	"golang.org/x/sys/unix"
)

// Socket is a connected socket of a network namespace. The cookie (SO_COOKIE) says that it is no later one with the same ends.
type Socket struct {
	Protocol      uint8 // IPPROTO_TCP or IPPROTO_UDP
	Local, Remote netip.AddrPort
	Device        uint32 // that it is bound to; 0: none
	Cookie        uint64
}

// sockDestroy is SOCK_DESTROY (linux/sock_diag.h).
const sockDestroy = 21

// EndSockets has sock_diag end sockets of the calling thread's network namespace, as if the network had: their processes' calls end
// with ECONNABORTED. One that is gone by itself is as good. It needs CONFIG_INET_DIAG_DESTROY.
func EndSockets(sockets []Socket) error {
	if len(sockets) == 0 {
		return nil
	}
	c, err := dial(unix.NETLINK_SOCK_DIAG)
	if err != nil {
		return err
	}
	defer c.close()
	var errs []error
	for _, s := range sockets {
		_, err := c.do(message{what: fmt.Sprintf("end socket %s to %s", s.Local, s.Remote), kind: sockDestroy, body: s.request(), absent: true})
		if !errors.Is(err, unix.ESTALE) { // the ends are another socket's by now
			errs = append(errs, err)
		}
	}
	return errors.Join(errs...)
}

// request is a struct inet_diag_req_v2 (linux/inet_diag.h). IPv4 addresses go as v4-mapped ones: the kernel looks for both
// families' sockets then, since one of IPv6 may talk IPv4.
func (s *Socket) request() []byte {
	const anyState = 0xffffffff
	body := []byte{unix.AF_INET6, s.Protocol, 0, 0}
	body = binary.NativeEndian.AppendUint32(body, anyState)
	body = binary.BigEndian.AppendUint16(body, s.Local.Port())
	body = binary.BigEndian.AppendUint16(body, s.Remote.Port())
	for _, end := range []netip.AddrPort{s.Local, s.Remote} {
		addr := end.Addr().As16()
		body = append(body, addr[:]...)
	}
	body = binary.NativeEndian.AppendUint32(body, s.Device)
	body = binary.NativeEndian.AppendUint32(body, uint32(s.Cookie))
	return binary.NativeEndian.AppendUint32(body, uint32(s.Cookie>>32))
}

// TryEndSockets ends a connection of its own over the loopback device, by which it tells whether EndSockets works here.
func TryEndSockets() error {
	listener, err := net.Listen("tcp4", "127.0.0.1:0")
	if err != nil {
		return err
	}
	defer listener.Close()
	for network, protocol := range map[string]uint8{"tcp4": unix.IPPROTO_TCP, "udp4": unix.IPPROTO_UDP} {
		if err := tryEnd(network, protocol, listener.Addr().String()); err != nil {
			return fmt.Errorf("%s: %w", network, err)
		}
	}
	return nil
}

// tryEnd ends one connection, and fails if it goes on.
func tryEnd(network string, protocol uint8, to string) error {
	client, err := net.Dial(network, to)
	if err != nil {
		return err
	}
	defer client.Close()
	s, err := socketOf(client, protocol)
	if err != nil {
		return err
	}
	if err := EndSockets([]Socket{s}); err != nil {
		return err
	}
	if _, err := client.Write([]byte{0}); err == nil {
		return errors.New("the socket was to be ended and goes on")
	}
	return nil
}

// socketOf names a connection's socket.
func socketOf(connection net.Conn, protocol uint8) (Socket, error) {
	s := Socket{Protocol: protocol}
	var err error
	if s.Local, err = netip.ParseAddrPort(connection.LocalAddr().String()); err != nil {
		return s, err
	}
	if s.Remote, err = netip.ParseAddrPort(connection.RemoteAddr().String()); err != nil {
		return s, err
	}
	raw, err := connection.(interface { // as TCPConn and UDPConn do
		SyscallConn() (syscall.RawConn, error)
	}).SyscallConn()
	if err != nil {
		return s, err
	}
	asked := raw.Control(func(fd uintptr) { s.Cookie, err = unix.GetsockoptUint64(int(fd), unix.SOL_SOCKET, unix.SO_COOKIE) })
	return s, errors.Join(asked, err)
}
