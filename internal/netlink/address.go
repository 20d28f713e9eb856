package netlink

import (
	"fmt"
	"net/netip"

	lib "github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// EnsureNodeAddresses gives the node itself addresses, on its loopback device: the pods' gateways, which pods ping, and
// the address that health checks come from. An address that is there already is no error.
func (h *Handle) EnsureNodeAddresses(addrs []netip.Addr) error {
	loopback, err := h.lib.LinkByName("lo")
	if err != nil {
		return fmt.Errorf("loopback device: %w", err)
	}
	if err := h.lib.LinkSetUp(loopback); err != nil {
		return fmt.Errorf("set loopback device up: %w", err)
	}
	for _, addr := range addrs {
		address := &lib.Addr{IPNet: ipNet(netip.PrefixFrom(addr, addr.BitLen())), Flags: unix.IFA_F_NODAD}
		if err := h.lib.AddrReplace(loopback, address); err != nil {
			return fmt.Errorf("give the node address %s: %w", addr, err)
		}
	}
	return nil
}
