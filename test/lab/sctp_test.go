package lab

import (
	"cmp"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"tendril.io/tendril/internal/lab"
)

// The cells of services again, over SCTP (RFC 9260). They are for a kernel that has it; test/kernels brings one. Every client is
// translated per packet, for the socket's hooks know TCP and UDP only.

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
	c := testCells(t, config, "sctp")
	// From then on nodes leave checksums to others: one that computed them would spoil its errors about packets that came without (bpf/JOURNEY.md).
	for _, host := range c.hosts(t) {
		if _, err := exchanges(t.Context(), host, []exchange{{Protocol: "sctp", Long: 1, Target: netip.AddrPortFrom(c.pods["web"].Addrs[0], witnessPort)}}); err != nil {
			t.Fatal(err)
		}
	}
	for i, place := range c.places {
		t.Run("long questions of "+place.Name, func(t *testing.T) { c.askLong(t, place, cellFirstPort+(len(c.places)+i)*1000) })
	}
	t.Run("announced", c.askAnnounced)
}

// askAnnounced asks every node for a load balancer's addresses of the nodes' own network, the node that announces them included.
func (c *cellTable) askAnnounced(t *testing.T) {
	text := `
apiVersion: tendril.io/v1alpha1
kind: LoadBalancerPool
metadata: {name: edge}
spec: {cidrs: [172.30.0.241/32, "fd30::f1/128"]}
---
apiVersion: v1
kind: Service
metadata: {name: announced, namespace: shop}
spec:
  type: LoadBalancer
  clusterIPs: ["10.96.3.1", "fd96::3:1"]
  clusterIP: 10.96.3.1
  ports: [{port: 80, protocol: SCTP}]
`
	for _, backend := range c.pods["web"].Addrs {
		text += fmt.Sprintf(`---
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {name: announced-v%[1]d, namespace: shop, labels: {kubernetes.io/service-name: announced}}
addressType: IPv%[1]d
ports: [{port: %[2]d, protocol: SCTP}]
endpoints: [{addresses: ["%[3]s"], nodeName: node1}]
`, familyOf(backend), witnessPort, backend)
	}
	c.apply(t, manifest(t, text))
	for _, text := range []string{"172.30.0.241:80", "[fd30::f1]:80"} {
		target := netip.MustParseAddrPort(text)
		ask := func(ctx context.Context, place lab.Place, patience time.Duration) error {
			made, err := exchanges(ctx, place, []exchange{{Protocol: "sctp", Target: target, Patience: patience}})
			if err == nil && (made[0].Failed != "" || made[0].Name != "web" || made[0].From != target) {
				err = fmt.Errorf("%s asks %s: %+v", place.Name, target, made[0])
			}
			return err
		}
		eventually(t, text+" to be announced", cellPatience, func(ctx context.Context) error { return ask(ctx, c.Outside(), sctpPatience) })
		for _, host := range c.hosts(t) {
			if err := ask(t.Context(), host, cellPatience); err != nil {
				t.Error(err)
			}
		}
	}
}

// sctpLong is more than any path takes in one packet, but for the loopback device.
const sctpLong = 60000

// askLong asks questions that take many packets of every service that answers a place's short ones. None waits for a timer, unless the path
// narrows on its way, at a tunnel: then the kernel hears of it while its socket is busy with sending, and sends again what was too large
// when the timer expires, in fragments.
func (c *cellTable) askLong(t *testing.T, place cellPlace, first int) {
	var asked []exchange
	for _, one := range c.cells(place) {
		if len(one.sees) > 0 && !one.policy.internalLocal && !one.policy.externalLocal && one.policy.way == "snat" {
			one.Port, one.Long, one.Patience = first+len(asked), sctpLong, cellPatience
			asked = append(asked, one.exchange)
		}
	}
	before := c.sctpExpiries(t, place)
	made, err := exchanges(t.Context(), place.Place, asked)
	if err != nil {
		t.Fatal(err)
	}
	for _, one := range made {
		if one.Failed != "" {
			t.Errorf("%s: %s", one.Target, one.Failed)
		}
	}
	if expired := c.sctpExpiries(t, place) - before; expired > 0 && c.Mode == lab.ModeNative {
		t.Errorf("%d of %d questions waited for a timer", expired, len(asked))
	}
	t.Logf("%d questions", len(asked))
}

// sctpExpiries counts how often a place's associations have sent again what was not acknowledged in time.
func (c *cellTable) sctpExpiries(t *testing.T, place cellPlace) (count int) {
	t.Helper()
	text, err := place.Exec(t.Context(), "cat", "/proc/net/sctp/snmp")
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(text) {
		if name, value, _ := strings.Cut(line, "\t"); strings.TrimSpace(name) == "SctpT3RtxExpireds" {
			if count, err = strconv.Atoi(strings.TrimSpace(value)); err != nil {
				t.Fatal(err)
			}
			return count
		}
	}
	t.Fatalf("no count of expired timers:\n%s", text)
	return 0
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

// checksums has a place's devices compute the checksums of what they send, or leave that to others.
func checksums(set func(device string) error) error {
	devices, err := net.Interfaces()
	if err != nil {
		return err
	}
	for _, device := range devices {
		if device.Name == "lo" {
			continue // has no choice
		}
		if err := set(device.Name); err != nil {
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
	if e.Target.Addr() == local {
		if err := narrowSCTP(fd, sctpNarrow); err != nil {
			return fmt.Errorf("narrow the path: %w", err)
		}
	}
	if err := connectSCTP(fd, e.Target, limit); err != nil {
		return fmt.Errorf("connect: %w", err)
	}
	question := append(make([]byte, e.Long), "who?\n"...)
	if _, err := unhurried(func() (int, error) { return unix.Write(fd, question) }); err != nil {
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

// sctpNarrow is less than any path of a lab takes.
const sctpNarrow = 1400

// narrowSCTP tells a socket what its paths take. The loopback device takes more than what is behind it, and of a route to itself the kernel
// believes no ICMP error.
func narrowSCTP(fd, mtu int) error {
	const peerAddrParams, size, atMTU, atFlags, fixed = 9, 156, 138, 146, 1 << 4 // struct sctp_paddrparams and SPP_PMTUD_DISABLE of linux/sctp.h
	params := make([]byte, size)
	binary.NativeEndian.PutUint32(params[atMTU:], uint32(mtu))
	binary.NativeEndian.PutUint32(params[atFlags:], fixed)
	return unix.SetsockoptString(fd, unix.IPPROTO_SCTP, peerAddrParams, string(params))
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
	if err := checksums(lab.ComputeChecksums); err != nil {
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
			buffer := make([]byte, sctpLong)
			read := func() (int, error) { return unix.Read(conn, buffer) }
			n, err := unhurried(read)
			for err == nil && n > 0 && buffer[n-1] != '\n' {
				n, err = unhurried(read)
			}
			if err == nil && n > 0 {
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
