package netlink

import (
	"net/netip"
	"os"
	"runtime"
	"testing"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
	"github.com/google/go-cmp/cmp"
	"go.uber.org/goleak"
	"golang.org/x/sys/unix"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// compareAddrs lets go-cmp look at netip values.
func comparers() cmp.Options {
	return cmp.Options{
		cmp.Comparer(func(a, b netip.Addr) bool { return a == b }),
		cmp.Comparer(func(a, b netip.Prefix) bool { return a == b }),
	}
}

// newNamespace makes a network namespace that goes when the test ends: it has no name and no process, only a file.
func newNamespace(t testing.TB) *os.File {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("needs root: makes network namespaces")
	}
	made := make(chan *os.File)
	go func() {
		runtime.LockOSThread() // never unlocked: the thread goes with the goroutine
		if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
			t.Errorf("make network namespace: %v", err)
			made <- nil
			return
		}
		file, err := os.Open("/proc/thread-self/ns/net")
		if err != nil {
			t.Errorf("open network namespace: %v", err)
		}
		made <- file
	}()
	file := <-made
	if file == nil {
		t.FailNow()
	}
	t.Cleanup(func() { file.Close() })
	return file
}

// newNode makes a namespace and a handle in it.
func newNode(t testing.TB) *Handle {
	t.Helper()
	h, err := OpenAt(newNamespace(t))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { h.Close() })
	return h
}

// inside opens a handle in a pod's namespace.
func inside(t testing.TB, netns *os.File) *Handle {
	t.Helper()
	h, err := OpenAt(netns)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { h.Close() })
	return h
}

// newProgram loads a classifier that lets everything pass and tells its id.
func newProgram(t testing.TB) (program *ebpf.Program, id uint32) {
	t.Helper()
	program, err := ebpf.NewProgram(&ebpf.ProgramSpec{
		Type: ebpf.SchedCLS, License: "GPL",
		Instructions: asm.Instructions{asm.Mov.Imm(asm.R0, 0), asm.Return()},
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { program.Close() })
	info, err := program.Info()
	if err != nil {
		t.Fatal(err)
	}
	known, _ := info.ID()
	return program, uint32(known)
}

func addr(s string) netip.Addr     { return netip.MustParseAddr(s) }
func prefix(s string) netip.Prefix { return netip.MustParsePrefix(s) }

// testPair is a pod's devices; number makes it differ from others.
func testPair(netns *os.File, number byte) Pair {
	return Pair{
		Device: "te-pod" + string('a'+number%26) + string('a'+number/26), IfName: "eth0", Netns: netns,
		HostMAC: [6]byte{2, 1, 0, 0, 0, number}, PodMAC: [6]byte{2, 2, 0, 0, 0, number},
		Addrs:   []netip.Addr{netip.AddrFrom4([4]byte{10, 9, 0, 10 + number}), netip.MustParseAddr("fd09::").Next()},
		Routers: []netip.Addr{addr("10.9.0.1"), addr("fd09::ff")}, DeviceMTU: 1500, RouteMTU: 1450,
	}
}
