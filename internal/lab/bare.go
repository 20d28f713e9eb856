package lab

import (
	"errors"
	"fmt"
	"net/netip"
	"os"
	"strconv"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"
)

// routeBare turns the nodes of a bare lab into routers that know each other's pods.
func (l *Lab) routeBare() error {
	for i := 1; i <= l.Nodes; i++ {
		path := l.netnsPath(nodeName(i))
		err := setSysctls(path, map[string]string{
			"net.ipv4.ip_forward":              "1",
			"net.ipv6.conf.all.forwarding":     "1",
			"net.ipv4.conf.all.rp_filter":      "0",
			"net.ipv4.conf.default.rp_filter":  "0",
			"net.ipv6.conf.default.accept_dad": "0",
		})
		if err != nil {
			return err
		}
		err = withLinks(path, func(h *netlink.Handle) error { return l.routeToOthers(h, i) })
		if err != nil {
			return fmt.Errorf("%s: %w", nodeName(i), err)
		}
	}
	return nil
}

func (l *Lab) routeToOthers(h *netlink.Handle, self int) error {
	for other := 1; other <= l.Nodes; other++ {
		if other == self {
			continue
		}
		for family, gateway := range fabricAddrs(byte(other)) {
			if err := addRoute(h, uplinkName, podCIDRs(byte(other))[family], gateway.Addr()); err != nil {
				return err
			}
		}
	}
	return nil
}

// wireBare connects a pod by a plain veth pair with host routes.
func (p *Pod) wireBare() error {
	number, err := p.claimBareNumber()
	if err != nil {
		return err
	}
	var gateways []netip.Addr
	for _, prefix := range p.lab.nodePodCIDRs(p.Node) {
		p.Addrs = append(p.Addrs, podAddr(prefix, number))
		gateways = append(gateways, podAddr(prefix, 1))
	}
	inside, err := netns.GetFromPath(p.Place.Netns)
	if err != nil {
		return err
	}
	defer inside.Close()
	err = withLinks(p.lab.netnsPath(p.Node), func(h *netlink.Handle) error {
		return p.wireHostEnd(h, inside, gateways)
	})
	if err != nil {
		return err
	}
	err = withLinks(p.Place.Netns, func(h *netlink.Handle) error { return p.wirePodEnd(h, gateways) })
	if err != nil {
		return err
	}
	n := p.lab.names
	return errors.Join(waitUp(n, n.podNetns(p.Namespace, p.Name), uplinkName, true), waitUp(n, p.Node, p.bareDevice(), false))
}

func (p *Pod) wireHostEnd(h *netlink.Handle, inside netns.NsHandle, gateways []netip.Addr) error {
	device := p.bareDevice()
	attrs := netlink.NewLinkAttrs()
	attrs.Name = device
	veth := &netlink.Veth{LinkAttrs: attrs, PeerName: uplinkName, PeerNamespace: netlink.NsFd(inside)}
	if err := h.LinkAdd(veth); err != nil {
		return fmt.Errorf("veth %s: %w", device, err)
	}
	if err := giveAddrs(h, device, singles(gateways)); err != nil {
		return err
	}
	for _, addr := range p.Addrs {
		if err := addRoute(h, device, single(addr), netip.Addr{}); err != nil {
			return err
		}
	}
	return nil
}

func (p *Pod) wirePodEnd(h *netlink.Handle, gateways []netip.Addr) error {
	if err := giveAddrs(h, uplinkName, singles(p.Addrs)); err != nil {
		return err
	}
	for _, gateway := range gateways {
		if err := addRoute(h, uplinkName, single(gateway), netip.Addr{}); err != nil {
			return err
		}
		if err := addRoute(h, uplinkName, anyPrefix(gateway), gateway); err != nil {
			return err
		}
	}
	return nil
}

// unwireBare takes the pod's device away from its node, at once, and gives its number back.
func (p *Pod) unwireBare() error {
	err := withLinks(p.lab.netnsPath(p.Node), func(h *netlink.Handle) error {
		link, err := h.LinkByName(p.bareDevice())
		if errors.As(err, &netlink.LinkNotFoundError{}) {
			return nil
		}
		if err != nil {
			return err
		}
		if err := h.LinkDel(link); err != nil && !errors.Is(err, unix.ENODEV) {
			return fmt.Errorf("veth %s: %w", link.Attrs().Name, err)
		}
		return nil
	})
	if len(p.Addrs) > 0 {
		err = errors.Join(err, ignoreMissing(os.Remove(p.lab.bareNumber(p.Node, lastByte(p.Addrs[0])))))
	}
	return err
}

// claimBareNumber takes the lowest free last byte of the node's pods.
func (p *Pod) claimBareNumber() (int, error) {
	if err := os.MkdirAll(p.lab.state(p.Node), 0o755); err != nil {
		return 0, err
	}
	for number := 2; number < 255; number++ {
		file, err := os.OpenFile(p.lab.bareNumber(p.Node, number), os.O_CREATE|os.O_EXCL, 0o644)
		if err == nil {
			return number, file.Close()
		}
		if !errors.Is(err, os.ErrExist) {
			return 0, err
		}
	}
	return 0, fmt.Errorf("%s: has no free address, 253 pods are the most in mode bare", p.Node)
}

func (l *Lab) bareNumber(node string, number int) string {
	return l.state(node, "address-"+strconv.Itoa(number))
}

// bareDevice is the host's end of the pod's veth pair; 15 bytes are the most that a name may have (IFNAMSIZ).
func (p *Pod) bareDevice() string { return "veth" + p.Sandbox[:10] }

func lastByte(addr netip.Addr) int {
	raw := addr.AsSlice()
	return int(raw[len(raw)-1])
}

func singles(addrs []netip.Addr) []netip.Prefix {
	var prefixes []netip.Prefix
	for _, addr := range addrs {
		prefixes = append(prefixes, single(addr))
	}
	return prefixes
}
