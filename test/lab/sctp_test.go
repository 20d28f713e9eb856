package lab

import (
	"cmp"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"tendril.io/tendril/internal/lab"
)

// The cells of services again, over SCTP (RFC 9260). They are for a kernel that has it; test/kernels brings one. Every client is
// translated per packet, for the socket's hooks know TCP and UDP only; so a node's own processes do not reach a port of their own node: the loopback
// device has no hook.

func TestEveryCellOfServicesOverSCTPWithNativeRouting(t *testing.T) {
	testSCTP(t, lab.Config{Mode: lab.ModeNative})
}

func TestEveryCellOfServicesOverSCTPInVXLAN(t *testing.T) {
	testSCTP(t, lab.Config{Mode: lab.ModeVXLAN, LBMode: "dsr"})
}

func testSCTP(t *testing.T, config lab.Config) {
	if !sctpHere() {
		t.Skip("this kernel has no SCTP; test/kernels runs this test on one that has")
	}
	testCells(t, config, "sctp")
}

// sctpPatience is for exchanges that must fail. It is longer than that of others, since kernels with SCTP are emulated. An INIT that is lost is sent again after three seconds.
const sctpPatience = 8 * time.Second

// sctpHere says whether the kernel has SCTP.
func sctpHere() bool {
	fd, err := unix.Socket(unix.AF_INET6, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, unix.IPPROTO_SCTP)
	if err == nil {
		unix.Close(fd)
	}
	return err == nil
}

// ownChecksums has a place's devices compute the checksums of what they send.
func ownChecksums() error {
	devices, err := net.Interfaces()
	if err != nil {
		return err
	}
	for _, device := range devices {
		if device.Name == "lo" {
			continue // has no choice
		}
		if err := lab.ComputeChecksums(device.Name); err != nil {
			return fmt.Errorf("%s: %w", device.Name, err)
		}
	}
	return nil
}

// sctpSocket is bound to one address, so that it names no other to its peer: translation knows nothing of several (RFC 9260, 5.1.2).
func sctpSocket(at netip.AddrPort, limit time.Duration) (fd int, err error) {
	domain := unix.AF_INET6
	if at.Addr().Is4() {
		domain = unix.AF_INET
	}
	if fd, err = unix.Socket(domain, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, unix.IPPROTO_SCTP); err != nil {
		return 0, err
	}
	patience := unix.NsecToTimeval(limit.Nanoseconds())
	err = errors.Join(
		unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_SNDTIMEO, &patience),
		unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &patience),
		unix.Bind(fd, sockaddrOf(at)))
	if err != nil {
		unix.Close(fd)
	}
	return fd, err
}

// ownAddr is the first address of a family that a place has on its network.
func ownAddr(ipv4 bool) (netip.Addr, error) {
	device, err := net.InterfaceByName("eth0")
	if err != nil {
		return netip.Addr{}, err
	}
	addrs, err := device.Addrs()
	if err != nil {
		return netip.Addr{}, err
	}
	for _, addr := range addrs {
		if prefix, err := netip.ParsePrefix(addr.String()); err == nil && prefix.Addr().Is4() == ipv4 && prefix.Addr().IsGlobalUnicast() {
			return prefix.Addr(), nil
		}
	}
	return netip.Addr{}, fmt.Errorf("%s has no address for it", device.Name)
}

// makeSCTP asks and waits for the answer.
func (e *exchange) makeSCTP() error {
	local, err := ownAddr(e.Target.Addr().Is4())
	if err != nil {
		return err
	}
	limit := cmp.Or(e.Patience, sctpPatience)
	fd, err := sctpSocket(netip.AddrPortFrom(local, uint16(e.Port)), limit)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	if err := connectSCTP(fd, e.Target, limit); err != nil {
		return fmt.Errorf("connect: %w", err)
	}
	if _, err := unhurried(func() (int, error) { return unix.Write(fd, []byte("who?\n")) }); err != nil {
		return fmt.Errorf("ask: %w", err)
	}
	line := make([]byte, 512)
	n, err := unhurried(func() (int, error) { return unix.Read(fd, line) })
	if err != nil {
		return fmt.Errorf("wait: %w", err)
	}
	peer, err := unix.Getpeername(fd)
	if err != nil {
		return err
	}
	return e.read(string(line[:n]), sockaddrAddrPort(peer))
}

// connectSCTP waits with poll(2): a connect that a signal has interrupted cannot be called again.
func connectSCTP(fd int, target netip.AddrPort, limit time.Duration) error {
	if err := unix.SetNonblock(fd, true); err != nil {
		return err
	}
	if err := unix.Connect(fd, sockaddrOf(target)); err != nil && !errors.Is(err, unix.EINPROGRESS) {
		return err
	}
	ready := []unix.PollFd{{Fd: int32(fd), Events: unix.POLLOUT}}
	n, err := unhurried(func() (int, error) { return unix.Poll(ready, int(limit.Milliseconds())) })
	if err != nil {
		return err
	}
	if n == 0 {
		return os.ErrDeadlineExceeded
	}
	if code, err := unix.GetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_ERROR); err != nil || code != 0 {
		return errors.Join(err, unix.Errno(code))
	}
	return unix.SetNonblock(fd, false)
}

// unhurried makes a system call again that a signal has interrupted: those with a time limit are not resumed by the kernel (signal(7)).
func unhurried(call func() (int, error)) (int, error) {
	for {
		if n, err := call(); !errors.Is(err, unix.EINTR) {
			return n, err
		}
	}
}

// witnessSCTP answers like a witness of TCP.
func witnessSCTP(name, address string) error {
	at, err := netip.ParseAddrPort(address)
	if err != nil {
		return err
	}
	if err := ownChecksums(); err != nil {
		return err
	}
	fd, err := sctpSocket(at, cellPatience)
	if err != nil {
		return err
	}
	if err := unix.Listen(fd, 1024); err != nil {
		return err
	}
	for {
		conn, peer, err := unix.Accept(fd)
		if errors.Is(err, unix.EAGAIN) || errors.Is(err, unix.EINTR) {
			continue // nobody for a while
		} else if err != nil {
			return err
		}
		go func() {
			defer unix.Close(conn)
			read := func() (int, error) { return unix.Read(conn, make([]byte, 512)) }
			if n, err := unhurried(read); err == nil && n > 0 {
				_, _ = unix.Write(conn, fmt.Appendf(nil, "%s sees %s\n", name, sockaddrAddrPort(peer)))
				_, _ = unhurried(read) // until the client has gone
			}
		}()
	}
}

// sockaddrOf is an address as system calls take it.
func sockaddrOf(at netip.AddrPort) unix.Sockaddr {
	if at.Addr().Is4() {
		return &unix.SockaddrInet4{Addr: at.Addr().As4(), Port: int(at.Port())}
	}
	return &unix.SockaddrInet6{Addr: at.Addr().As16(), Port: int(at.Port())}
}

func sockaddrAddrPort(at unix.Sockaddr) netip.AddrPort {
	switch at := at.(type) {
	case *unix.SockaddrInet4:
		return netip.AddrPortFrom(netip.AddrFrom4(at.Addr), uint16(at.Port))
	case *unix.SockaddrInet6:
		return netip.AddrPortFrom(netip.AddrFrom16(at.Addr).Unmap(), uint16(at.Port))
	}
	return netip.AddrPort{}
}
