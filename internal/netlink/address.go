package netlink

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"

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

// RemoveNodeAddresses takes addresses away that EnsureNodeAddresses gave; those that are not there are no error.
func (h *Handle) RemoveNodeAddresses(unwanted []netip.Addr) error {
	loopback, err := h.lib.LinkByName("lo")
	if err != nil {
		return fmt.Errorf("loopback device: %w", err)
	}
	addrs, err := again(func() ([]lib.Addr, error) { return h.lib.AddrList(loopback, lib.FAMILY_ALL) })
	if err != nil {
		return fmt.Errorf("list the node's addresses: %w", err)
	}
	var failed []error
	for _, addr := range addrs {
		ip, ok := netip.AddrFromSlice(addr.IP)
		if !ok || !slices.Contains(unwanted, ip.Unmap()) {
			continue
		}
		if err := h.lib.AddrDel(loopback, &addr); err != nil {
			failed = append(failed, fmt.Errorf("take address %s from the node: %w", ip, err))
		}
	}
	return errors.Join(failed...)
}
