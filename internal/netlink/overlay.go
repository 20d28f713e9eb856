package netlink

import (
	"bytes"
	"errors"
	"fmt"
	"net"

	lib "github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// OverlayDevice is the overlay device's name.
const OverlayDevice = "tendril_vxlan"

// OverlayMAC is the overlay device's address, the same on every node: the stack writes a device's own address as
// destination where neighbours are off, and so the receiving node takes the frame for its own.
func OverlayMAC() [6]byte { return [6]byte{0x02, 0x74, 0x65, 0x6e, 0x64, 0x72} }

// Overlay says how the overlay device is to be.
type Overlay struct {
	Port uint16 // UDP, of the outer packet
	MTU  uint32 // bytes of inner IP packet
}

// EnsureOverlay makes the overlay device, or changes it to what is wanted, and returns its index. It is a VXLAN device
// without a destination of its own (collect metadata): programs set the tunnel of each packet. It has no neighbours and
// no IPv6 address of its own, learns nothing, and checksums outer UDP in both families.
func (h *Handle) EnsureOverlay(o Overlay) (ifindex uint32, err error) {
	link, err := h.lib.LinkByName(OverlayDevice)
	if err == nil && !o.fits(link) {
		if err := h.RemoveOverlay(); err != nil {
			return 0, err
		}
		link, err = nil, lib.LinkNotFoundError{}
	}
	if missing := (lib.LinkNotFoundError{}); errors.As(err, &missing) {
		link, err = h.addOverlay(o)
	}
	if err != nil {
		return 0, fmt.Errorf("overlay device: %w", err)
	}
	index := uint32(link.Attrs().Index)
	_, err = h.do(
		setLink("keep overlay device from link-local addresses", index, 0, noLinkLocal()),
		setLink("set overlay device up", index, unix.IFF_UP|unix.IFF_NOARP, attribute32(nil, unix.IFLA_MTU, o.MTU)),
	)
	return index, err
}

// fits says whether a device that exists can be used: its kind and port cannot be changed, and one with another link
// address is not ours, however it is named.
func (o Overlay) fits(link lib.Link) bool {
	vxlan, ok := link.(*lib.Vxlan)
	mac := OverlayMAC()
	return ok && vxlan.FlowBased && vxlan.Port == int(o.Port) && bytes.Equal(vxlan.HardwareAddr, mac[:])
}

// addOverlay makes the device with the library, since it happens once. Learning is off: a program says where each
// packet goes, and a table learnt from packets could be filled by anyone.
func (h *Handle) addOverlay(o Overlay) (lib.Link, error) {
	mac := OverlayMAC()
	err := h.lib.LinkAdd(&lib.Vxlan{
		LinkAttrs: lib.LinkAttrs{Name: OverlayDevice, HardwareAddr: net.HardwareAddr(mac[:]), MTU: int(o.MTU)},
		FlowBased: true, Learning: false, Port: int(o.Port), UDPCSum: true,
	})
	if err != nil {
		return nil, fmt.Errorf("add vxlan on UDP port %d: %w", o.Port, err)
	}
	return h.lib.LinkByName(OverlayDevice)
}

// RemoveOverlay removes the overlay device, if there is one.
func (h *Handle) RemoveOverlay() error {
	_, err := h.do(deleteLink(OverlayDevice))
	return err
}
