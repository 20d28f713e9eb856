package netlink

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"

	"golang.org/x/sys/unix"
)

// Announcer tells the link of a device who has an address that no device has, and has the device hear those who ask for it. It
// is for one goroutine.
type Announcer struct {
	index  int
	mac    [6]byte
	frames int // packet socket
	groups int // socket whose memberships are the device's
}

// OpenAnnouncer returns one for a device of the network namespace of the calling thread.
func OpenAnnouncer(index uint32, mac [6]byte) (*Announcer, error) {
	frames, err := unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0) // 0: it receives nothing
	if err != nil {
		return nil, fmt.Errorf("open packet socket: %w", err)
	}
	groups, err := unix.Socket(unix.AF_INET6, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if errors.Is(err, unix.EAFNOSUPPORT) { // a node without IPv6 has no addresses to hear of
		groups, err = -1, nil
	}
	if err != nil {
		return nil, errors.Join(fmt.Errorf("open socket for multicast groups: %w", err), unix.Close(frames))
	}
	return &Announcer{index: int(index), mac: mac, frames: frames, groups: groups}, nil
}

// Close leaves all groups.
func (a *Announcer) Close() error {
	err := unix.Close(a.frames)
	if a.groups >= 0 {
		err = errors.Join(err, unix.Close(a.groups))
	}
	return err
}

// Tell says to all on the link that the device has an address: an ARP announcement (RFC 5227 3), or an unsolicited neighbour
// advertisement (RFC 4861 7.2.6). It is heard or not, so who wants to be sure says it again.
func (a *Announcer) Tell(addr netip.Addr) error {
	frame := a.arp(addr)
	if addr.Is6() {
		frame = a.advertisement(addr)
	}
	to := unix.SockaddrLinklayer{Ifindex: a.index, Halen: 6}
	copy(to.Addr[:], frame[:6])
	to.Protocol = binary.NativeEndian.Uint16(frame[12:14])
	if err := unix.Sendto(a.frames, frame, 0, &to); err != nil {
		return fmt.Errorf("announce %s: %w", addr, err)
	}
	return nil
}

// arp is the frame of an announcement: a request for an address by who has it.
func (a *Announcer) arp(addr netip.Addr) []byte {
	frame := make([]byte, 0, 42)
	frame = append(frame, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff)
	frame = append(frame, a.mac[:]...)
	frame = append(frame, 0x08, 0x06, 0, 1, 0x08, 0, 6, 4, 0, 1) // Ethernet, IPv4, lengths, request (RFC 826)
	frame = append(frame, a.mac[:]...)
	frame = append(frame, addr.AsSlice()...)
	frame = append(frame, 0, 0, 0, 0, 0, 0)
	return append(frame, addr.AsSlice()...)
}

// advertisement is the frame of an unsolicited one to all nodes, which overrides what they know.
func (a *Announcer) advertisement(addr netip.Addr) []byte {
	all := netip.MustParseAddr("ff02::1")
	message := []byte{136, 0, 0, 0, 0x20, 0, 0, 0}
	message = append(message, addr.AsSlice()...)
	message = append(message, 2, 1) // target link-layer address, in units of 8 bytes
	message = append(message, a.mac[:]...)
	binary.BigEndian.PutUint16(message[2:], checksum6(addr, all, 58, message))
	frame := []byte{0x33, 0x33, 0, 0, 0, 1}
	frame = append(frame, a.mac[:]...)
	frame = append(frame, 0x86, 0xdd, 0x60, 0, 0, 0, 0, byte(len(message)), 58, 255)
	frame = append(frame, addr.AsSlice()...)
	frame = append(frame, all.AsSlice()...)
	return append(frame, message...)
}

// checksum6 is that of a message of an upper-layer protocol (RFC 8200 8.1).
func checksum6(from, to netip.Addr, protocol byte, message []byte) uint16 {
	pseudo := append(from.AsSlice(), to.AsSlice()...)
	pseudo = binary.BigEndian.AppendUint32(pseudo, uint32(len(message)))
	pseudo = append(pseudo, 0, 0, 0, protocol)
	sum := uint32(0)
	for _, part := range [][]byte{pseudo, message} {
		for i, b := range part {
			sum += uint32(b) << (8 * (1 - i%2))
		}
	}
	for sum > 0xffff {
		sum = sum>>16 + sum&0xffff
	}
	return ^uint16(sum)
}

// Hear has the device receive neighbour solicitations for an address, which go to a group of addresses with the same end (RFC
// 4291 2.7.1). IPv4 needs nothing: ARP is broadcast.
func (a *Announcer) Hear(addr netip.Addr) error {
	return a.membership(addr, unix.IPV6_JOIN_GROUP, unix.EADDRINUSE) // of another address with the same end
}

// Ignore ends that.
func (a *Announcer) Ignore(addr netip.Addr) error {
	return a.membership(addr, unix.IPV6_LEAVE_GROUP, unix.EADDRNOTAVAIL)
}

func (a *Announcer) membership(addr netip.Addr, option int, fine error) error {
	if !addr.Is6() || a.groups < 0 {
		return nil
	}
	request := unix.IPv6Mreq{Multiaddr: solicitedNode(addr).As16(), Interface: uint32(a.index)}
	if err := unix.SetsockoptIPv6Mreq(a.groups, unix.IPPROTO_IPV6, option, &request); err != nil && !errors.Is(err, fine) {
		return fmt.Errorf("group %s: %w", solicitedNode(addr), err)
	}
	return nil
}

// solicitedNode is the group of an address.
func solicitedNode(addr netip.Addr) netip.Addr {
	bytes := addr.As16()
	return netip.AddrFrom16([16]byte{0xff, 2, 11: 1, 12: 0xff, 13: bytes[13], 14: bytes[14], 15: bytes[15]})
}
