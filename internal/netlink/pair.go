package netlink

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"slices"

	"golang.org/x/sys/unix"
)

// Pair is a pod's two devices and what the pod's side of them knows of the network.
type Pair struct {
	Device    string // on the host
	IfName    string // in the pod
	Netns     *os.File
	HostMAC   [6]byte
	PodMAC    [6]byte
	Addrs     []netip.Addr // of the pod; each gets full prefix length
	Routers   []netip.Addr // the pod's gateways, one of each family of Addrs
	DeviceMTU uint32
	RouteMTU  uint32 // of the default routes; 0: the device's
}

// CreatePair makes a pod's devices: the pod's end ready for traffic, with addresses and routes; the host's end down, so
// that nothing passes before a program judges it (see ConnectPair). It returns the index of the host's end. If it
// fails, nothing is left.
func (h *Handle) CreatePair(p Pair) (ifindex uint32, err error) {
	replies, err := h.do(p.create(), getLink(p.Device))
	if errors.Is(err, unix.EEXIST) {
		return 0, err // one of the names is taken, by what was there before
	}
	if err != nil {
		return 0, h.undone(p.Device, err)
	}
	if len(replies) == 0 {
		return 0, h.undone(p.Device, errors.New("read device "+p.Device+": no answer"))
	}
	link := parseLink(replies[0])
	h.turns <- struct{}{}
	err = p.configure(link.peer)
	<-h.turns
	if err != nil {
		return 0, h.undone(p.Device, err)
	}
	return link.index, nil
}

// undone removes what a failed CreatePair made.
func (h *Handle) undone(device string, err error) error {
	_, failed := h.do(deleteLink(device))
	return errors.Join(err, failed)
}

// configure does the pod's side. The thread is inside the pod's namespace for /proc/sys/net and to open a socket; the
// settings come before the device is up, so that it never asks for routers.
func (p *Pair) configure(peer uint32) error {
	return enter(p.Netns, func() error {
		if err := p.setSysctls(); err != nil {
			return err
		}
		c, err := dial(unix.NETLINK_ROUTE)
		if err != nil {
			return err
		}
		defer c.close()
		_, err = c.do(p.podMessages(peer)...)
		return err
	})
}

// setSysctls: addresses and routes come from us alone, so router advertisements and duplicate address detection are
// off. Runtimes may have switched IPv6 off in the namespace; where the kernel has none there is nothing to set.
func (p *Pair) setSysctls() error {
	if !slices.ContainsFunc(p.Addrs, netip.Addr.Is6) {
		return nil
	}
	conf := "ipv6/conf/" + p.IfName
	return errors.Join(
		setSysctl(conf+"/accept_ra", "0"),
		setSysctl(conf+"/accept_dad", "0"),
		setSysctl(conf+"/disable_ipv6", "0"),
	)
}

// podMessages brings the pod's devices up with addresses and routes. The gateway gets a route of its own, because
// addresses have full length and so no neighbours.
func (p *Pair) podMessages(peer uint32) []message {
	const loopback = 1 // the index of lo in every namespace (net/core/dev.c)
	batch := []message{
		setLink("set lo up", loopback, unix.IFF_UP, nil),
	}
	for _, addr := range p.Addrs {
		batch = append(batch, newAddress(peer, addr))
	}
	batch = append(batch, setLink("set "+p.IfName+" up", peer, unix.IFF_UP, nil))
	for _, router := range p.Routers {
		batch = append(batch,
			hop{dst: netip.PrefixFrom(router, router.BitLen()), device: peer, link: true, protocol: unix.RTPROT_STATIC}.message(),
			hop{dst: everything(router), via: router, device: peer, mtu: p.RouteMTU, protocol: unix.RTPROT_STATIC}.message())
	}
	return batch
}

// everything is the default route's destination in the family of an address.
func everything(family netip.Addr) netip.Prefix {
	if family.Is4() {
		return netip.PrefixFrom(netip.IPv4Unspecified(), 0)
	}
	return netip.PrefixFrom(netip.IPv6Unspecified(), 0)
}

// ConnectPair brings the host's end of a pair up and points the node's stack at the pod: a route of full length for
// each address and a permanent neighbour entry, so that the node itself reaches the pod without asking for its MAC.
// Repeating it is harmless.
func (h *Handle) ConnectPair(ifindex uint32, podMAC [6]byte, addrs []netip.Addr) error {
	batch := []message{
		setLink("keep host end from link-local addresses", ifindex, 0, noLinkLocal()),
		setLink("set host end up", ifindex, unix.IFF_UP, nil),
	}
	for _, addr := range addrs {
		route := hop{dst: netip.PrefixFrom(addr, addr.BitLen()), device: ifindex, link: true, protocol: ProtocolPod}
		batch = append(batch, route.message(), newNeighbour(ifindex, addr, podMAC))
	}
	_, err := h.do(batch...)
	return err
}

// noLinkLocal keeps IPv6 from giving the host's end an address: the datapath answers there, the stack needs not.
func noLinkLocal() []byte {
	const modeNone = 1 // IN6_ADDR_GEN_MODE_NONE
	mode := attribute(nil, unix.IFLA_INET6_ADDR_GEN_MODE, []byte{modeNone})
	return nest(nil, unix.IFLA_AF_SPEC, nest(nil, unix.AF_INET6, mode))
}

// create is the one message that makes both ends, each in its namespace with its name.
func (p *Pair) create() message {
	const infoPeer = 1 // VETH_INFO_PEER, linux/veth.h
	peer := ifinfo(0, 0)
	peer = attributeText(peer, unix.IFLA_IFNAME, p.IfName)
	peer = attribute(peer, unix.IFLA_ADDRESS, p.PodMAC[:])
	peer = attribute32(peer, unix.IFLA_MTU, p.DeviceMTU)
	peer = attribute32(peer, unix.IFLA_NET_NS_FD, uint32(p.Netns.Fd()))
	info := attributeText(nil, unix.IFLA_INFO_KIND, "veth")
	info = nest(info, unix.IFLA_INFO_DATA, nest(nil, infoPeer, peer))
	body := ifinfo(0, 0)
	body = attributeText(body, unix.IFLA_IFNAME, p.Device)
	body = attribute(body, unix.IFLA_ADDRESS, p.HostMAC[:])
	body = attribute32(body, unix.IFLA_MTU, p.DeviceMTU)
	body = nest(body, unix.IFLA_LINKINFO, info)
	return message{
		what: fmt.Sprintf("create devices %s and %s", p.Device, p.IfName),
		kind: unix.RTM_NEWLINK, flags: unix.NLM_F_CREATE | unix.NLM_F_EXCL, body: body,
	}
}

// ifinfo is struct ifinfomsg (linux/rtnetlink.h); flags are both set and marked as changed.
func ifinfo(index, flags uint32) []byte {
	out := make([]byte, 4, unix.SizeofIfInfomsg) // family, padding, type
	out = binary.NativeEndian.AppendUint32(out, index)
	out = binary.NativeEndian.AppendUint32(out, flags)
	return binary.NativeEndian.AppendUint32(out, flags)
}

// getLink asks for a device by name; ENODEV says that there is none.
func getLink(device string) message {
	return message{
		what: "read device " + device, kind: unix.RTM_GETLINK,
		body: attributeText(ifinfo(0, 0), unix.IFLA_IFNAME, device),
	}
}

// setLink changes a device by index. Flags are only ever set here, never cleared: see ifinfo.
func setLink(what string, index, flags uint32, attributes []byte) message {
	return message{what: what, kind: unix.RTM_SETLINK, body: append(ifinfo(index, flags), attributes...)}
}

// deleteLink removes a device by name, and with a pair its other end wherever that is.
func deleteLink(device string) message {
	return message{
		what: "remove device " + device, kind: unix.RTM_DELLINK, absent: true,
		body: attributeText(ifinfo(0, 0), unix.IFLA_IFNAME, device),
	}
}

// newAddress is struct ifaddrmsg with an address of full length, usable at once.
func newAddress(index uint32, addr netip.Addr) message {
	out := []byte{family(addr), uint8(addr.BitLen()), unix.IFA_F_NODAD, unix.RT_SCOPE_UNIVERSE}
	out = binary.NativeEndian.AppendUint32(out, index)
	out = attribute(out, unix.IFA_LOCAL, addr.AsSlice())
	out = attribute(out, unix.IFA_ADDRESS, addr.AsSlice())
	return message{
		what: "add address " + addr.String(), kind: unix.RTM_NEWADDR,
		flags: unix.NLM_F_CREATE | unix.NLM_F_EXCL, body: out,
	}
}

// newNeighbour is struct ndmsg with an entry that never expires.
func newNeighbour(index uint32, addr netip.Addr, mac [6]byte) message {
	out := []byte{family(addr), 0, 0, 0}
	out = binary.NativeEndian.AppendUint32(out, index)
	out = binary.NativeEndian.AppendUint16(out, unix.NUD_PERMANENT)
	out = append(out, 0, 0) // flags, type
	out = attribute(out, unix.NDA_DST, addr.AsSlice())
	out = attribute(out, unix.NDA_LLADDR, mac[:])
	return message{
		what: "add neighbour " + addr.String(), kind: unix.RTM_NEWNEIGH,
		flags: unix.NLM_F_CREATE | unix.NLM_F_REPLACE, body: out,
	}
}

// hop is a route by device index, for the messages of a batch.
type hop struct {
	dst      netip.Prefix
	via      netip.Addr
	device   uint32
	mtu      uint32
	protocol uint8
	link     bool // the destination is on the link
}

// message is struct rtmsg with what the route says; it replaces an equal one.
func (r hop) message() message {
	scope := uint8(unix.RT_SCOPE_UNIVERSE)
	if r.link && r.dst.Addr().Is4() {
		scope = unix.RT_SCOPE_LINK
	}
	out := []byte{
		family(r.dst.Addr()), uint8(r.dst.Bits()), 0, 0,
		unix.RT_TABLE_MAIN, r.protocol, scope, unix.RTN_UNICAST, 0, 0, 0, 0,
	}
	if r.dst.Bits() > 0 {
		out = attribute(out, unix.RTA_DST, r.dst.Addr().AsSlice())
	}
	if r.via.IsValid() {
		out = attribute(out, unix.RTA_GATEWAY, r.via.AsSlice())
	}
	out = attribute32(out, unix.RTA_OIF, r.device)
	if r.mtu > 0 {
		out = nest(out, unix.RTA_METRICS, attribute32(nil, unix.RTAX_MTU, r.mtu))
	}
	return message{
		what: "add route " + r.dst.String(), kind: unix.RTM_NEWROUTE,
		flags: unix.NLM_F_CREATE | unix.NLM_F_REPLACE, body: out,
	}
}

// family is the number of an address's family (linux/socket.h).
func family(addr netip.Addr) uint8 {
	if addr.Is4() {
		return unix.AF_INET
	}
	return unix.AF_INET6
}

// linkInfo is what a device's description says, as far as we look.
type linkInfo struct {
	index uint32
	peer  uint32 // index of the other end, in its namespace
	flags uint32
	mtu   uint32
	mac   [6]byte
	name  string
}

// parseLink reads struct ifinfomsg and its attributes; what is missing stays zero.
func parseLink(body []byte) linkInfo {
	var link linkInfo
	if len(body) < unix.SizeofIfInfomsg {
		return link
	}
	link.index = binary.NativeEndian.Uint32(body[4:])
	link.flags = binary.NativeEndian.Uint32(body[8:])
	for kind, value := range attributes(body[unix.SizeofIfInfomsg:]) {
		switch {
		case kind == unix.IFLA_LINK && len(value) >= 4:
			link.peer = binary.NativeEndian.Uint32(value)
		case kind == unix.IFLA_MTU && len(value) >= 4:
			link.mtu = binary.NativeEndian.Uint32(value)
		case kind == unix.IFLA_ADDRESS:
			copy(link.mac[:], value)
		case kind == unix.IFLA_IFNAME && len(value) > 0:
			link.name = string(value[:len(value)-1])
		}
	}
	return link
}
