package bpf

import (
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/link"
)

// socketStage attaches the socket hooks to a cgroup of the test's own, in which the test process then runs.
func socketStage(t *testing.T) *stage {
	needRoot(t)
	loaded := loadObject(t, "sock", testConfig(), nil)
	root, own := cgroupHome(t)
	group := filepath.Join(root, fmt.Sprintf("tendril-bpf-test-%d", os.Getpid()))
	back := filepath.Join(root, own, "cgroup.procs")
	if err := os.Mkdir(group, 0o755); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := errors.Join(os.WriteFile(back, []byte("0"), 0o644), os.Remove(group)); err != nil {
			t.Error(err)
		}
	})
	for name, attach := range map[string]ebpf.AttachType{
		"connect4": ebpf.AttachCGroupInet4Connect, "connect6": ebpf.AttachCGroupInet6Connect,
		"sendmsg4": ebpf.AttachCGroupUDP4Sendmsg, "sendmsg6": ebpf.AttachCGroupUDP6Sendmsg,
		"recvmsg4": ebpf.AttachCGroupUDP4Recvmsg, "recvmsg6": ebpf.AttachCGroupUDP6Recvmsg,
		"getpeername4": ebpf.AttachCgroupInet4GetPeername, "getpeername6": ebpf.AttachCgroupInet6GetPeername,
	} {
		attached, err := link.AttachCgroup(link.CgroupOptions{Path: group, Attach: attach, Program: loaded.Programs[name]})
		if err != nil {
			t.Fatalf("attach %s: %v", name, err)
		}
		t.Cleanup(func() { attached.Close() })
	}
	if err := os.WriteFile(filepath.Join(group, "cgroup.procs"), []byte("0"), 0o644); err != nil {
		t.Fatal(err)
	}
	return &stage{maps: loaded.Maps, nextCell: 1, slots: 1}
}

// cgroupHome is where cgroup v2 is mounted, and the process's own group in it.
func cgroupHome(t *testing.T) (root, own string) {
	t.Helper()
	mounts, err := os.ReadFile("/proc/self/mounts")
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(mounts)) {
		if fields := strings.Fields(line); len(fields) > 2 && fields[2] == "cgroup2" {
			root = fields[1]
		}
	}
	if root == "" {
		t.Fatal("cgroup v2 is not mounted: mount -t cgroup2 none /sys/fs/cgroup")
	}
	groups, err := os.ReadFile("/proc/self/cgroup")
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(groups)) {
		if path, ok := strings.CutPrefix(strings.TrimSpace(line), "0::"); ok {
			own = path
		}
	}
	return root, own
}

// socketFamilies are a frontend that no device has, and the backend's address, for each family.
func socketFamilies() map[string][2]string {
	return map[string][2]string{"IPv4": {"10.96.7.1", "127.0.0.1"}, "IPv6": {"fd96:7::1", "::1"}}
}

func TestAConnectionToAServiceReachesABackendAndDoesNotKnow(t *testing.T) {
	s := socketStage(t)
	for family, addrs := range socketFamilies() {
		listener, err := net.Listen("tcp", net.JoinHostPort(addrs[1], "0"))
		if err != nil {
			t.Fatal(err)
		}
		defer listener.Close()
		frontend := net.JoinHostPort(addrs[0], "80")
		if _, err := s.do(fmt.Sprintf("service tcp %s %s", frontend, listener.Addr())); err != nil {
			t.Fatal(err)
		}
		conn, err := net.DialTimeout("tcp", frontend, 2*time.Second)
		if err != nil {
			t.Errorf("%s: %v", family, err)
			continue
		}
		if got := conn.RemoteAddr().String(); got != frontend {
			t.Errorf("%s: the peer is called %s, want %s", family, got, frontend)
		}
		conn.Close()
	}
}

func TestADatagramSocketGetsItsAnswerFromTheService(t *testing.T) {
	s := socketStage(t)
	for family, addrs := range socketFamilies() {
		server, err := net.ListenPacket("udp", net.JoinHostPort(addrs[1], "0"))
		if err != nil {
			t.Fatal(err)
		}
		defer server.Close()
		frontend := netip.AddrPortFrom(netip.MustParseAddr(addrs[0]), 53)
		if _, err := s.do(fmt.Sprintf("service udp %s %s", frontend, server.LocalAddr())); err != nil {
			t.Fatal(err)
		}
		network := map[string]string{"IPv4": "udp4", "IPv6": "udp6"}[family]
		client, err := net.ListenUDP(network, &net.UDPAddr{IP: net.ParseIP(addrs[1])})
		if err != nil {
			t.Fatal(err)
		}
		defer client.Close()
		if _, err := client.WriteToUDPAddrPort([]byte("ask"), frontend); err != nil {
			t.Errorf("%s: %v", family, err)
			continue
		}
		buffer := make([]byte, 16)
		deadline := time.Now().Add(2 * time.Second)
		if err := errors.Join(server.SetDeadline(deadline), client.SetDeadline(deadline)); err != nil {
			t.Fatal(err)
		}
		_, from, err := server.ReadFrom(buffer)
		if err != nil {
			t.Errorf("%s: the backend got nothing: %v", family, err)
			continue
		}
		if _, err := server.WriteTo([]byte("answer"), from); err != nil {
			t.Fatal(err)
		}
		_, sender, err := client.ReadFromUDPAddrPort(buffer)
		if err != nil || sender != frontend {
			t.Errorf("%s: the answer came from %s (%v), want %s", family, sender, err, frontend)
		}
	}
}

// resetClients runs the iterators that end clients of gone backends, on the stage's maps.
func resetClients(t *testing.T, s *stage) {
	t.Helper()
	loaded := loadObject(t, "reset", testConfig(), s.maps)
	for _, name := range []string{"reset_tcp", "reset_udp"} {
		attached, err := link.AttachIter(link.IterOptions{Program: loaded.Programs[name]})
		if err != nil {
			t.Fatal(err)
		}
		defer attached.Close()
		walk, err := attached.Open()
		if err != nil {
			t.Fatal(err)
		}
		defer walk.Close()
		if _, err := io.Copy(io.Discard, walk); err != nil {
			t.Fatal(err)
		}
	}
}

// A backend goes: the sockets that were led to it end at once, a sibling's and one that asked for the address itself do not.
func TestClientsOfABackendThatGoesAreReset(t *testing.T) {
	s := socketStage(t)
	for family, addrs := range socketFamilies() {
		for _, network := range []string{"tcp", "udp"} {
			server := listen(t, network, net.JoinHostPort(addrs[1], "0"))
			port := map[string]string{"tcp": "80", "udp": "53"}[network]
			frontend := net.JoinHostPort(addrs[0], port)
			if _, err := s.do(fmt.Sprintf("service %s %s %s", network, frontend, server)); err != nil {
				t.Fatal(err)
			}
			led := dial(t, network, frontend)
			if _, err := s.do(fmt.Sprintf("service %s %s %s", network, frontend, server)); err != nil { // the same, as another backend
				t.Fatal(err)
			}
			sibling, direct := dial(t, network, frontend), dial(t, network, server)
			if _, err := s.do(fmt.Sprintf("backend %d gone", s.backends-1)); err != nil {
				t.Fatal(err)
			}
			resetClients(t, s)
			for name, c := range map[string]struct {
				conn net.Conn
				ends bool
			}{"the backend's client": {led, true}, "a sibling's": {sibling, false}, "one that asked for the address": {direct, false}} {
				if err := c.conn.SetDeadline(time.Now().Add(50 * time.Millisecond)); err != nil {
					t.Fatal(err)
				}
				_, err := c.conn.Read(make([]byte, 1))
				if ended := !errors.Is(err, os.ErrDeadlineExceeded); ended != c.ends {
					t.Errorf("%s, %s, %s: %v, want its end %v", family, network, name, err, c.ends)
				}
			}
		}
	}
}

// listen starts a server that says nothing, and returns its address.
func listen(t *testing.T, network, address string) string {
	t.Helper()
	if network == "udp" {
		packets, err := net.ListenPacket(network, address)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { packets.Close() })
		return packets.LocalAddr().String()
	}
	listener, err := net.Listen(network, address)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { listener.Close() })
	return listener.Addr().String()
}

func dial(t *testing.T, network, address string) net.Conn {
	t.Helper()
	conn, err := net.DialTimeout(network, address, 2*time.Second)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	return conn
}

func TestAServiceWithoutBackendRefuses(t *testing.T) {
	s := socketStage(t)
	if _, err := s.do("service tcp 10.96.7.2:80"); err != nil {
		t.Fatal(err)
	}
	_, err := net.DialTimeout("tcp", "10.96.7.2:80", 2*time.Second)
	if !errors.Is(err, syscall.ECONNREFUSED) {
		t.Errorf("got %v, want connection refused", err)
	}
}
