package netlink

import (
	"crypto/rand"
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"os"

	"golang.org/x/sys/unix"
)

// Pinger asks machines for a sign of life by ICMP echo (RFC 792, RFC 4443), which their kernels answer. It is for one goroutine.
type Pinger struct {
	sockets [2]int // raw, IPv4 and IPv6; -1: the node has no such family
	id      uint16
	cookie  [8]byte // in every question, so that no answer can be made up by who has not seen one
}

// OpenPinger returns one for the network namespace of the calling thread.
func OpenPinger() (*Pinger, error) {
	p := &Pinger{sockets: [2]int{-1, -1}, id: uint16(os.Getpid())}
	if _, err := rand.Read(p.cookie[:]); err != nil {
		return nil, err
	}
	for i, family := range []struct{ domain, protocol int }{{unix.AF_INET, unix.IPPROTO_ICMP}, {unix.AF_INET6, unix.IPPROTO_ICMPV6}} {
		socket, err := unix.Socket(family.domain, unix.SOCK_RAW|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, family.protocol)
		if errors.Is(err, unix.EAFNOSUPPORT) {
			continue
		}
		if err != nil {
			return nil, errors.Join(fmt.Errorf("open raw ICMP socket: %w", err), p.Close())
		}
		p.sockets[i] = socket
	}
	return p, nil
}

// Close ends it.
func (p *Pinger) Close() (err error) {
	for _, socket := range p.sockets {
		if socket >= 0 {
			err = errors.Join(err, unix.Close(socket))
		}
	}
	return err
}

// Types of ICMP messages.
const (
	echoRequest4, echoReply4 = 8, 0
	echoRequest6, echoReply6 = 128, 129
)

// Ask sends a question.
func (p *Pinger) Ask(addr netip.Addr) error {
	message := make([]byte, 8, 16)
	message[0] = echoRequest6
	binary.BigEndian.PutUint16(message[4:], p.id)
	message = append(message, p.cookie[:]...)
	if addr.Is4() {
		message[0] = echoRequest4
		binary.BigEndian.PutUint16(message[2:], checksum(message)) // the kernel fills it in for IPv6 (RFC 3542 3.1)
		return p.send(0, message, &unix.SockaddrInet4{Addr: addr.As4()}, addr)
	}
	return p.send(1, message, &unix.SockaddrInet6{Addr: addr.As16()}, addr)
}

func (p *Pinger) send(family int, message []byte, to unix.Sockaddr, addr netip.Addr) error {
	if err := unix.Sendto(p.sockets[family], message, 0, to); err != nil {
		return fmt.Errorf("ask %s for an echo: %w", addr, err)
	}
	return nil
}

// checksum is that of RFC 1071 over an even number of bytes.
func checksum(message []byte) uint16 {
	var sum uint32
	for i := 0; i+1 < len(message); i += 2 {
		sum += uint32(binary.BigEndian.Uint16(message[i:]))
	}
	sum = sum&0xffff + sum>>16
	return ^uint16(sum + sum>>16)
}

// Answered returns who has answered since the last call.
func (p *Pinger) Answered() []netip.Addr {
	var all []netip.Addr
	buffer := make([]byte, 256)
	for _, socket := range p.sockets {
		for socket >= 0 {
			n, from, err := unix.Recvfrom(socket, buffer, 0)
			if err != nil {
				break // nothing more
			}
			switch from := from.(type) {
			case *unix.SockaddrInet4: // with the IP header
				if header := int(buffer[0]&0xf) * 4; n > header && p.mine(buffer[header:n], echoReply4) {
					all = append(all, netip.AddrFrom4(from.Addr))
				}
			case *unix.SockaddrInet6:
				if p.mine(buffer[:n], echoReply6) {
					all = append(all, netip.AddrFrom16(from.Addr))
				}
			}
		}
	}
	return all
}

// mine says whether a message answers a question of this one.
func (p *Pinger) mine(message []byte, kind byte) bool {
	return len(message) == 16 && message[0] == kind && binary.BigEndian.Uint16(message[4:]) == p.id && [8]byte(message[8:]) == p.cookie
}
