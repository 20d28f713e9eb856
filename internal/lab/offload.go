package lab

import (
	"errors"
	"fmt"
	"unsafe"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// ethtoolSetTXChecksum is ETHTOOL_STXCSUM of linux/ethtool.h, a command of SIOCETHTOOL that takes one number.
const ethtoolSetTXChecksum = 0x17

// prepareXDP makes a node's port of the bridge one that a program on the node's uplink can live with. The port fills in checksums that a
// sender has left to its device, since a program cannot tell that they are missing. And it has a program itself, which passes everything:
// a veth device takes frames that its peer's program sends (XDP_TX) only while it has one. GRO, which makes it poll as well, does not do:
// the frames are queued, but nobody is woken (veth_xdp_flush in drivers/net/veth.c).
func prepareXDP(n names, node string) error {
	const pass = 2 // XDP_PASS, linux/bpf.h
	program, err := ebpf.NewProgram(&ebpf.ProgramSpec{
		Name: "pass", Type: ebpf.XDP, License: "GPL", Instructions: asm.Instructions{asm.Mov.Imm(asm.R0, pass), asm.Return()},
	})
	if err != nil {
		return fmt.Errorf("program of port %s of the fabric: %w", node, err)
	}
	defer program.Close() // the device keeps it
	return inNetns(n.netnsPath(fabricPart), func() error {
		port, err := netlink.LinkByName(node)
		if err == nil {
			err = errors.Join(ComputeChecksums(node), netlink.LinkSetXdpFdWithFlags(port, program.FD(), unix.XDP_FLAGS_DRV_MODE))
		}
		if err != nil {
			return fmt.Errorf("port %s of the fabric: %w", node, err)
		}
		return nil
	})
}

// ComputeChecksums makes a device of this thread's namespace compute the checksums of what it sends. Virtual devices leave that to each
// other, which hides a wrong one.
func ComputeChecksums(device string) error { return setChecksums(device, 0) }

// LeaveChecksums makes a device leave them to the next again, and with them the cutting of large packets.
func LeaveChecksums(device string) error { return setChecksums(device, 1) }

// setChecksums says whether a device takes packets whose checksum is still to be computed.
func setChecksums(device string, taken uint32) error {
	socket, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(socket)
	setting := struct{ command, value uint32 }{ethtoolSetTXChecksum, taken} // struct ethtool_value
	var request struct {                                                    // struct ifreq
		name [unix.IFNAMSIZ]byte
		data unsafe.Pointer
		_    [24 - unsafe.Sizeof(uintptr(0))]byte
	}
	copy(request.name[:unix.IFNAMSIZ-1], device)
	request.data = unsafe.Pointer(&setting)
	_, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(socket), unix.SIOCETHTOOL, uintptr(unsafe.Pointer(&request)))
	if errno != 0 {
		return fmt.Errorf("checksums: %w", errno)
	}
	return nil
}
