package kernels

import (
	"net/netip"
	"os"
	"testing"

	"github.com/cilium/ebpf"
	"golang.org/x/sys/unix"

	"tendril.io/tendril/bpf"
	"tendril.io/tendril/internal/datapath"
	"tendril.io/tendril/internal/netlink"
)

// TestClientsOfAGoneBackendEnd has sockets that were led to a backend that is gone, and others whose backend is there. The first must
// end, by the kernel's function where there is one and by sock_diag everywhere; the others go on.
func TestClientsOfAGoneBackendEnd(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("loading BPF programs needs root")
	}
	for _, feature := range datapath.Features() {
		if feature.Name == "kfunc-sock-destroy" && feature.Available {
			t.Run("by the kernel's function", func(t *testing.T) { testClientsEnd(t, true) })
		}
	}
	if err := netlink.TryEndSockets(); err != nil {
		t.Fatalf("sock_diag ends no sockets here: %v", err)
	}
	t.Run("by sock_diag", func(t *testing.T) { testClientsEnd(t, false) })
}

// Backends of the test, by number.
const (
	backendGone = 1
	backendHere = 2
)

func testClientsEnd(t *testing.T, byFunction bool) {
	reset := loadReset(t, byFunction)
	loopback4, loopback6 := &unix.SockaddrInet4{Addr: [4]byte{127, 0, 0, 1}}, &unix.SockaddrInet6{Addr: [16]byte{15: 1}}
	mapped := &unix.SockaddrInet6{Addr: [16]byte{10: 0xff, 0xff, 127, 0, 0, 1}}
	for _, c := range []struct {
		name         string
		program      string
		domain, kind int
		protocol     uint8
		at           unix.Sockaddr
	}{
		{"TCP over IPv4", "reset_tcp", unix.AF_INET, unix.SOCK_STREAM, unix.IPPROTO_TCP, loopback4},
		{"TCP over IPv6", "reset_tcp", unix.AF_INET6, unix.SOCK_STREAM, unix.IPPROTO_TCP, loopback6},
		{"TCP over IPv4 by a socket of IPv6", "reset_tcp", unix.AF_INET6, unix.SOCK_STREAM, unix.IPPROTO_TCP, mapped},
		{"UDP over IPv4", "reset_udp", unix.AF_INET, unix.SOCK_DGRAM, unix.IPPROTO_UDP, loopback4},
		{"UDP over IPv6", "reset_udp", unix.AF_INET6, unix.SOCK_DGRAM, unix.IPPROTO_UDP, loopback6},
		{"UDP over IPv4 by a socket of IPv6", "reset_udp", unix.AF_INET6, unix.SOCK_DGRAM, unix.IPPROTO_UDP, mapped},
	} {
		t.Run(c.name, func(t *testing.T) {
			server := serve(t, c.domain, c.kind, c.at)
			gone, here := connect(t, c.domain, c.kind, server), connect(t, c.domain, c.kind, server)
			lead(t, reset, gone, backendGone)
			lead(t, reset, here, backendHere)
			due, err := datapath.WalkSockets(reset.Programs[c.program], c.protocol)
			if err != nil {
				t.Fatal(err)
			}
			if want := map[bool]int{false: 1}[byFunction]; len(due) != want {
				t.Fatalf("the iterator names %v, want %d", due, want)
			}
			for _, socket := range due {
				later := netlink.Socket(socket)
				later.Cookie++
				if err := netlink.EndSockets([]netlink.Socket{later, netlink.Socket(socket)}); err != nil {
					t.Fatal(err)
				}
			}
			if got := waits(gone); got != unix.ECONNABORTED {
				t.Errorf("the client of the backend that is gone: %v, want %v", got, unix.ECONNABORTED)
			}
			if got := waits(here); got != unix.EAGAIN {
				t.Errorf("the other client: %v, want it to wait on", got)
			}
		})
	}
}

// loadReset loads the iterators, with one backend that is there.
func loadReset(t *testing.T, byFunction bool) *ebpf.Collection {
	t.Helper()
	spec, err := bpf.Load("reset")
	if err != nil {
		t.Fatal(err)
	}
	config := everything()
	if !byFunction {
		config.Features |= bpf.FeatureSockDiag
	}
	if err := spec.Variables["config"].Set(config); err != nil {
		t.Fatal(err)
	}
	for _, m := range spec.Maps {
		m.Pinning = ebpf.PinNone
	}
	reset, err := ebpf.NewCollection(spec)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(reset.Close)
	backend := bpf.Backend{Address: bpf.AddressOf(netip.MustParseAddr("127.0.0.1")), Port: bpf.NetPort(80), State: bpf.BackendActive}
	if err := reset.Maps["backends"].Put(uint32(backendHere), backend); err != nil {
		t.Fatal(err)
	}
	return reset
}

// lead notes a backend at a socket, as the socket hooks do.
func lead(t *testing.T, reset *ebpf.Collection, fd int, backend uint32) {
	t.Helper()
	service := bpf.SocketService{Backend: bpf.AddressOf(netip.MustParseAddr("127.0.0.1")), BackendPort: bpf.NetPort(80), BackendIndex: backend}
	if err := reset.Maps["socket_services"].Put(int32(fd), service); err != nil {
		t.Fatal(err)
	}
}

// serve opens a socket that takes what comes and answers nothing, and says where it is.
func serve(t *testing.T, domain, kind int, at unix.Sockaddr) unix.Sockaddr {
	t.Helper()
	fd := socket(t, domain, kind)
	if err := unix.Bind(fd, at); err != nil {
		t.Fatal(err)
	}
	if kind == unix.SOCK_STREAM {
		if err := unix.Listen(fd, 8); err != nil {
			t.Fatal(err)
		}
	}
	bound, err := unix.Getsockname(fd)
	if err != nil {
		t.Fatal(err)
	}
	return bound
}

func connect(t *testing.T, domain, kind int, server unix.Sockaddr) int {
	t.Helper()
	fd := socket(t, domain, kind)
	if err := unix.Connect(fd, server); err != nil {
		t.Fatal(err)
	}
	return fd
}

// socket opens one that waits for no answer longer than a moment.
func socket(t *testing.T, domain, kind int) int {
	t.Helper()
	fd, err := unix.Socket(domain, kind|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { unix.Close(fd) })
	if err := unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &unix.Timeval{Usec: 100_000}); err != nil {
		t.Fatal(err)
	}
	return fd
}

// waits is how waiting for an answer ends.
func waits(fd int) error {
	_, err := unix.Read(fd, make([]byte, 1))
	return err
}
