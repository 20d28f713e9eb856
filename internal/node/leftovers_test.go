package node

import (
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"testing"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

func TestLeftoversOfAnotherNetworkAreNamedWithTheRemedy(t *testing.T) {
	folder := t.TempDir()
	for _, path := range []string{"cilium/tc", "tc/globals/cali_v4_ip_sets", "tendril", "tc/globals/mine"} {
		if err := os.MkdirAll(filepath.Join(folder, path), 0o700); err != nil {
			t.Fatal(err)
		}
	}
	var found []string
	for _, other := range others() {
		for _, l := range slices.Concat(
			other.find([]string{"lo", "eth0", "cilium_host", "cali12345", "vxlan.calico", "flannel.1", "tnd0a0b0c", "veth12", "kube-ipvs0", "cni0"},
				[]string{"INPUT", "CILIUM_FORWARD", "CILIUM_INPUT", "cali-INPUT", "KUBE-SERVICES", "FLANNEL-FWD"},
				[]string{"/etc/cni/net.d/10-calico.conflist", "/etc/cni/net.d/10-mine.conflist"}),
			other.findPins(folder)) {
			if l.remedy == "" {
				t.Errorf("%s has no remedy", l.what)
			}
			found = append(found, l.network+": "+l.what)
		}
	}
	want := []string{
		"cilium: device cilium_host", "cilium: 2 packet filter chains, such as CILIUM_FORWARD",
		"cilium: 1 BPF programs and maps, such as " + filepath.Join(folder, "cilium"),
		"calico: device cali12345", "calico: device vxlan.calico", "calico: 1 packet filter chains, such as cali-INPUT",
		"calico: network configuration /etc/cni/net.d/10-calico.conflist",
		"calico: 1 BPF programs and maps, such as " + filepath.Join(folder, "tc/globals/cali_v4_ip_sets"),
		"flannel: device flannel.1", "flannel: 1 packet filter chains, such as FLANNEL-FWD", "kube-proxy in its mode ipvs: device kube-ipvs0", "a bridge plugin: device cni0",
	}
	if !slices.Equal(found, want) {
		t.Errorf("found\n%s\nwant\n%s", strings.Join(found, "\n"), strings.Join(want, "\n"))
	}
}

func TestLeftoversAreLookedForOnTheNode(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("needs root: makes a network namespace")
	}
	folder := t.TempDir()
	for _, name := range []string{"10-flannel.conflist", conflist} {
		if err := os.WriteFile(filepath.Join(folder, name), nil, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	var found []leftover
	done := make(chan error)
	go func() {
		runtime.LockOSThread() // never unlocked: the thread goes with the goroutine
		err := unix.Unshare(unix.CLONE_NEWNET)
		if err == nil {
			err = netlink.LinkAdd(&netlink.Bridge{LinkAttrs: netlink.LinkAttrs{Name: "weave"}})
		}
		if err == nil {
			found, err = findLeftovers(Config{BPFRoot: filepath.Join(folder, "tendril"), CNIConfDir: folder})
		}
		done <- err
	}()
	if err := <-done; err != nil {
		t.Fatal(err)
	}
	var what []string
	for _, l := range found {
		what = append(what, l.what)
	}
	if want := []string{"network configuration " + filepath.Join(folder, "10-flannel.conflist"), "device weave"}; !slices.Equal(what, want) {
		t.Errorf("found %q, want %q", what, want)
	}
}
