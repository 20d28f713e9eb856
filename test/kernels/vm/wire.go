package vm

import (
	"fmt"
	"os/exec"
	"runtime"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// A wire is two virtio-net devices of the guest: what the one sends the other receives. In between are two taps and a bridge, in a network
// namespace that lives as long as qemu: like two guests of one machine, the devices leave checksums and segments to each other where
// both ends have agreed to it (VIRTIO 1.2, 5.1.3), and the machine does for a device what that does not take.

// Wire says what the first device of a wire takes from the other.
type Wire struct {
	Segments bool // several of a TCP stream in one piece
}

// wireAddr is the link address of a wire's end, 0 or 1, by which the guest tells its devices apart.
func wireAddr(wire, end int) string { return fmt.Sprintf("02:00:00:00:%02x:%02x", wire+1, end+1) }

// wireTap names an end's tap.
func wireTap(wire, end int) string { return fmt.Sprintf("wire%d-%d", wire, end) }

// wireArguments are qemu's for the wires.
func wireArguments(wires []Wire) (arguments []string) {
	for i, wire := range wires {
		for end := range 2 {
			tap := wireTap(i, end)
			device := "virtio-net-pci,romfile=,netdev=" + tap + ",mac=" + wireAddr(i, end)
			if end == 0 && !wire.Segments {
				device += ",guest_tso4=off,guest_tso6=off,guest_ecn=off,guest_ufo=off"
			}
			arguments = append(arguments, "-netdev", "tap,script=no,downscript=no,id="+tap+",ifname="+tap, "-device", device)
		}
	}
	return arguments
}

// startWired starts a command where its taps are. The thread of the namespace ends with it, and with the last process the namespace.
func startWired(command *exec.Cmd, wires int) error {
	started := make(chan error)
	go func() {
		runtime.LockOSThread() // for good
		err := unix.Unshare(unix.CLONE_NEWNET)
		if err != nil {
			err = fmt.Errorf("network namespace for the guest's wires: %w", err)
		}
		for wire := 0; wire < wires && err == nil; wire++ {
			err = layWire(wire)
		}
		if err == nil {
			err = command.Start()
		}
		started <- err
	}()
	return <-started
}

// layWire makes a bridge with two taps in the thread's namespace.
func layWire(wire int) error {
	bridge := &netlink.Bridge{LinkAttrs: netlink.LinkAttrs{Name: fmt.Sprintf("wire%d", wire)}}
	if err := netlink.LinkAdd(bridge); err != nil {
		return fmt.Errorf("bridge of a guest's wire: %w", err)
	}
	links := []netlink.Link{bridge}
	for end := range 2 {
		attrs := netlink.NewLinkAttrs()
		attrs.Name, attrs.MasterIndex = wireTap(wire, end), bridge.Attrs().Index
		tap := &netlink.Tuntap{LinkAttrs: attrs, Mode: netlink.TUNTAP_MODE_TAP, Flags: netlink.TUNTAP_VNET_HDR | netlink.TUNTAP_NO_PI}
		if err := netlink.LinkAdd(tap); err != nil {
			return fmt.Errorf("tap of a guest's wire: %w", err)
		}
		links = append(links, tap)
	}
	for _, link := range links {
		if err := netlink.LinkSetUp(link); err != nil {
			return fmt.Errorf("%s of a guest's wire: %w", link.Attrs().Name, err)
		}
	}
	return nil
}
