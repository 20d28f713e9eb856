package lab

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"time"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"
)

const bridgeName = "fabric"

// buildFabric makes the fabric namespace with its bridge. No netfilter, no multicast snooping, no spanning tree: a wire
// with many ends.
func buildFabric(n names) error {
	path := n.netnsPath(fabricPart)
	if err := createNetns(path); err != nil {
		return err
	}
	err := setSysctls(path, map[string]string{
		"net.bridge.bridge-nf-call-iptables?":  "0",
		"net.bridge.bridge-nf-call-ip6tables?": "0",
		"net.ipv6.conf.default.disable_ipv6":   "1",
	})
	if err != nil {
		return err
	}
	return withLinks(path, func(h *netlink.Handle) error {
		snooping := false
		bridge := &netlink.Bridge{LinkAttrs: netlink.LinkAttrs{Name: bridgeName}, MulticastSnooping: &snooping}
		if err := h.LinkAdd(bridge); err != nil {
			return fmt.Errorf("bridge %s: %w", bridgeName, err)
		}
		return linkUp(h, bridgeName)
	})
}

// joinFabric makes a namespace with an uplink into the fabric's bridge, by a wire or, if there is none, a veth pair; the bridge's port carries the part's name.
func joinFabric(n names, part string, wire Wire, addrs []netip.Prefix) error {
	if err := createNetns(n.netnsPath(part)); err != nil {
		return err
	}
	inside, err := netns.GetFromPath(n.netnsPath(part))
	if err != nil {
		return err
	}
	defer inside.Close()
	if err := detectDuplicates(n, part, false); err != nil {
		return err
	}
	if wire == (Wire{}) {
		err = withLinks(n.netnsPath(fabricPart), func(h *netlink.Handle) error { return addPort(h, part, inside) })
	} else {
		err = layWire(n, part, wire)
	}
	if err != nil {
		return err
	}
	err = withLinks(n.netnsPath(part), func(h *netlink.Handle) error { return giveAddrs(h, uplinkName, addrs) })
	if err != nil {
		return err
	}
	return detectDuplicates(n, part, true)
}

// detectDuplicates switches duplicate address detection for devices that come later. The uplink comes without: on a
// machine that has been up for a while it is over, and while it lasts the kernel forwards no IPv6.
func detectDuplicates(n names, part string, on bool) error {
	value := "0"
	if on {
		value = "1"
	}
	return setSysctls(n.netnsPath(part), map[string]string{"net.ipv6.conf.default.accept_dad": value})
}

// bridge finds the fabric's bridge.
func bridge(h *netlink.Handle) (netlink.Link, error) {
	found, err := h.LinkByName(bridgeName)
	if err != nil {
		return nil, fmt.Errorf("bridge %s: %w", bridgeName, err)
	}
	return found, nil
}

// addPort makes a veth pair whose near end is a port of the bridge and whose far end is the uplink in another namespace.
func addPort(h *netlink.Handle, port string, inside netns.NsHandle) error {
	bridge, err := bridge(h)
	if err != nil {
		return err
	}
	attrs := netlink.NewLinkAttrs()
	attrs.Name = port
	attrs.MasterIndex = bridge.Attrs().Index
	veth := &netlink.Veth{LinkAttrs: attrs, PeerName: uplinkName, PeerNamespace: netlink.NsFd(inside)}
	if err := h.LinkAdd(veth); err != nil {
		return fmt.Errorf("port %s of the fabric: %w", port, err)
	}
	return linkUp(h, port)
}

// layWire puts one end of a wire into the bridge, and the other into the part's namespace.
func layWire(n names, part string, wire Wire) error {
	err := errors.Join(moveDevice(wire.Port, n.netnsPath(fabricPart), part), moveDevice(wire.Uplink, n.netnsPath(part), uplinkName))
	if err != nil {
		return fmt.Errorf("wire of %s: %w", part, err)
	}
	return withLinks(n.netnsPath(fabricPart), func(h *netlink.Handle) error {
		bridge, err := bridge(h)
		if err != nil {
			return err
		}
		port, err := h.LinkByName(part)
		if err == nil {
			err = h.LinkSetMaster(port, bridge)
		}
		if err != nil {
			return fmt.Errorf("port %s of the fabric: %w", part, err)
		}
		return linkUp(h, part)
	})
}

// moveDevice moves a device of the machine to another namespace, where it gets another name, and maybe another index.
func moveDevice(device, path, name string) error {
	namespace, err := netns.GetFromPath(path)
	if err != nil {
		return err
	}
	defer namespace.Close()
	link, err := netlink.LinkByName(device)
	if err == nil {
		err = netlink.LinkSetNsFd(link, int(namespace))
	}
	if err != nil {
		return fmt.Errorf("device %s: %w", device, err)
	}
	return withLinks(path, func(h *netlink.Handle) error {
		link, err := h.LinkByName(device)
		if err == nil {
			err = h.LinkSetName(link, name)
		}
		return err
	})
}

// giveAddrs brings a device up with addresses that are usable at once, without duplicate address detection.
func giveAddrs(h *netlink.Handle, device string, addrs []netip.Prefix) error {
	if err := linkUp(h, device); err != nil {
		return err
	}
	link, err := h.LinkByName(device)
	if err != nil {
		return fmt.Errorf("link %s: %w", device, err)
	}
	for _, addr := range addrs {
		entry := &netlink.Addr{IPNet: ipNet(addr)}
		if addr.Addr().Is6() {
			entry.Flags = unix.IFA_F_NODAD
		}
		if err := h.AddrAdd(link, entry); err != nil {
			return fmt.Errorf("address %s on %s: %w", addr, device, err)
		}
	}
	return nil
}

// addRoute sends what goes to prefix through a gateway, or straight out of the device where the gateway is not valid.
func addRoute(h *netlink.Handle, device string, prefix netip.Prefix, gateway netip.Addr) error {
	link, err := h.LinkByName(device)
	if err != nil {
		return fmt.Errorf("link %s: %w", device, err)
	}
	route := &netlink.Route{LinkIndex: link.Attrs().Index, Dst: ipNet(prefix), Scope: netlink.SCOPE_LINK}
	if gateway.IsValid() {
		route.Gw, route.Scope = gateway.AsSlice(), netlink.SCOPE_UNIVERSE
	}
	if err := h.RouteAdd(route); err != nil {
		return fmt.Errorf("route %s via %s: %w", prefix, gateway, err)
	}
	return nil
}

// buildOutside makes the host that is no part of the cluster: it has addresses beyond the fabric, routes nothing and
// knows no pod prefix.
func buildOutside(n names) error {
	if err := joinFabric(n, outsidePart, Wire{}, fabricAddrs(lastByteOutside)); err != nil {
		return err
	}
	var beyond []netip.Prefix
	for _, addr := range OutsideAddrs() {
		beyond = append(beyond, netip.PrefixFrom(addr, addr.BitLen()))
	}
	return withLinks(n.netnsPath(outsidePart), func(h *netlink.Handle) error { return giveAddrs(h, "lo", beyond) })
}

// buildNode makes a node's namespace: an uplink and a default route through the outside host. Everything else on it is
// its agent's work.
func buildNode(n names, i int, wire Wire) error {
	part := nodeName(i)
	if err := joinFabric(n, part, wire, fabricAddrs(byte(i))); err != nil {
		return err
	}
	return withLinks(n.netnsPath(part), func(h *netlink.Handle) error {
		for _, addr := range fabricAddrs(lastByteOutside) {
			if err := addRoute(h, uplinkName, anyPrefix(addr.Addr()), addr.Addr()); err != nil {
				return err
			}
		}
		return nil
	})
}

// setPort puts a part's port of the bridge up or down: a cable pulled and put back.
func setPort(n names, part string, up bool) error {
	return withLinks(n.netnsPath(fabricPart), func(h *netlink.Handle) error {
		link, err := h.LinkByName(part)
		if err != nil {
			return fmt.Errorf("port %s of the fabric: %w", part, err)
		}
		if up {
			return h.LinkSetUp(link)
		}
		return h.LinkSetDown(link)
	})
}

// learnSeconds is how long a bridge remembers where an address is, unless it is told otherwise.
const learnSeconds = 300

// setLearning has the bridge remember where addresses are, or nothing.
func setLearning(n names, on bool) error {
	return withLinks(n.netnsPath(fabricPart), func(h *netlink.Handle) error {
		var age uint32 // in hundredths of a second (linux/if_link.h)
		if on {
			age = 100 * learnSeconds
		}
		attrs := netlink.NewLinkAttrs()
		attrs.Name = bridgeName
		if err := h.LinkModify(&netlink.Bridge{LinkAttrs: attrs, AgeingTime: &age}); err != nil {
			return fmt.Errorf("bridge %s: %w", bridgeName, err)
		}
		return nil
	})
}

// waitUp waits until a device carries packets. The kernel activates a link's queue, and makes an IPv6 address answer
// solicitations, a little after it was asked to, from work queues; what is sent until then is dropped.
func waitUp(n names, part, device string, probes bool) error {
	return withLinks(n.netnsPath(part), func(h *netlink.Handle) error {
		what := "device " + device + " of " + part
		return Wait(context.Background(), what, 5*time.Second, func(context.Context) error { return isUp(h, device, probes) })
	})
}

// isUp says what is missing until a device carries packets. With probes the device tests its link-local address for
// duplicates, which takes a second or two and which it can do without; a device that forwards cannot.
func isUp(h *netlink.Handle, device string, probes bool) error {
	link, err := h.LinkByName(device)
	if err != nil {
		return err
	}
	if state := link.Attrs().OperState; state != netlink.OperUp {
		return fmt.Errorf("its state is %s", state)
	}
	addrs, err := h.AddrList(link, netlink.FAMILY_V6)
	if err != nil {
		return err
	}
	for _, addr := range addrs {
		if addr.Flags&unix.IFA_F_TENTATIVE != 0 && (addr.IP.IsGlobalUnicast() || !probes) {
			return fmt.Errorf("its address %s is tentative", addr.IPNet)
		}
	}
	if len(addrs) == 1 && !probes {
		return errors.New("it has no link-local address yet")
	}
	return nil
}

// anyPrefix is the default route's prefix in the family of addr.
func anyPrefix(addr netip.Addr) netip.Prefix {
	if addr.Is4() {
		return netip.PrefixFrom(netip.IPv4Unspecified(), 0)
	}
	return netip.PrefixFrom(netip.IPv6Unspecified(), 0)
}

// single is the prefix that holds one address.
func single(addr netip.Addr) netip.Prefix { return netip.PrefixFrom(addr, addr.BitLen()) }

func ipNet(prefix netip.Prefix) *net.IPNet {
	return &net.IPNet{
		IP:   slices.Clone(prefix.Addr().AsSlice()),
		Mask: net.CIDRMask(prefix.Bits(), prefix.Addr().BitLen()),
	}
}

// deleteAllNetns removes every namespace of a lab.
func deleteAllNetns(n names) error {
	paths, err := listNetns(n)
	for _, path := range paths {
		err = errors.Join(err, deleteNetns(path))
	}
	return err
}
