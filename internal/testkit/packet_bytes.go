package testkit

import (
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"net/netip"
	"slices"
	"strconv"
)

const (
	ethernetLen  = 14
	fragmentNext = 44 // IPv6 fragment header, RFC 8200 4.5
	optionsNext  = 60 // IPv6 destination options header, RFC 8200 4.6
	serviceType4 = 158
	serviceType6 = 0x1e
)

// Bytes is the Ethernet frame, checksums filled in.
func (p *Packet) Bytes() []byte {
	frame := []byte{2, 0, 0, 0, 0, p.DestMAC, 2, 0, 0, 0, 0, p.SourceMAC}
	switch {
	case p.Protocol == "arp":
		return append(append(frame, 0x08, 0x06), p.arpBytes()...)
	case p.Source.Addr().Is4():
		return append(append(frame, 0x08, 0x00), p.ipBytes()...)
	}
	return append(append(frame, 0x86, 0xdd), p.ipBytes()...)
}

// arpBytes is the ARP message; who-has asks with no target link address, is-at tells with both.
func (p *Packet) arpBytes() []byte {
	operation := byte(1)
	if p.has("is-at") {
		operation = 2
	}
	out := []byte{0, 1, 8, 0, 6, 4, 0, operation, 2, 0, 0, 0, 0, p.SourceMAC}
	out = append(out, p.Source.Addr().AsSlice()...)
	target := []byte{0, 0, 0, 0, 0, 0}
	if operation == 2 {
		target = []byte{2, 0, 0, 0, 0, p.DestMAC}
	}
	return append(append(out, target...), p.Dest.Addr().AsSlice()...)
}

// ipBytes is the packet from the IP header on.
func (p *Packet) ipBytes() []byte {
	payload := p.transportBytes()
	if p.Source.Addr().Is4() {
		return p.ip4Bytes(payload)
	}
	number, _ := p.number()
	if p.Frag != 0 || p.More {
		header := []byte{number, 0, 0, 0, 0, 0, 0, 0}
		offset := uint16(p.Frag)
		if p.More {
			offset |= 1
		}
		binary.BigEndian.PutUint16(header[2:], offset)
		binary.BigEndian.PutUint32(header[4:], uint32(p.ID))
		payload, number = append(header, payload...), fragmentNext
	}
	if p.Service.IsValid() {
		header := binary.BigEndian.AppendUint16([]byte{number, 2, serviceType6, 18}, p.Service.Port())
		header = append(append(header, p.Service.Addr().AsSlice()...), 1, 0)
		payload, number = append(header, payload...), optionsNext
	}
	ip := make([]byte, 40)
	ip[0], ip[6], ip[7] = 0x60, number, byte(p.TTL)
	binary.BigEndian.PutUint16(ip[4:], uint16(len(payload)))
	copy(ip[8:], p.Source.Addr().AsSlice())
	copy(ip[24:], p.Dest.Addr().AsSlice())
	return append(ip, payload...)
}

func (p *Packet) ip4Bytes(payload []byte) []byte {
	ip := make([]byte, 20)
	number, _ := p.number()
	ip[0], ip[8], ip[9] = 0x45, byte(p.TTL), number
	if p.Service.IsValid() {
		ip[0] += 2
		ip = binary.BigEndian.AppendUint16(append(ip, serviceType4, 8), p.Service.Port())
		ip = append(ip, p.Service.Addr().AsSlice()...)
	}
	binary.BigEndian.PutUint16(ip[2:], uint16(len(ip)+len(payload)))
	if p.Protocol != "icmp" {
		binary.BigEndian.PutUint16(ip[4:], uint16(p.ID))
	}
	fragment := uint16(p.Frag / 8)
	if p.DF {
		fragment |= 0x4000
	}
	if p.More {
		fragment |= 0x2000
	}
	binary.BigEndian.PutUint16(ip[6:], fragment)
	copy(ip[12:], p.Source.Addr().AsSlice())
	copy(ip[16:], p.Dest.Addr().AsSlice())
	binary.BigEndian.PutUint16(ip[10:], Checksum(ip))
	return append(ip, payload...)
}

// transportBytes is the transport header and payload; a later fragment has no header.
func (p *Packet) transportBytes() []byte {
	payload := make([]byte, p.Len)
	if p.Frag != 0 {
		return payload
	}
	var header []byte
	at := -1 // offset of the checksum
	switch p.Protocol {
	case "tcp":
		header, at = make([]byte, 20), 16
		header[12] = 5 << 4
		for bit, name := range flagNames {
			if p.has(name) {
				header[13] |= 1 << bit
			}
		}
	case "udp":
		header, at = make([]byte, 8), 6
		binary.BigEndian.PutUint16(header[4:], uint16(8+p.Len))
	case "sctp":
		header = make([]byte, 12)
	case "icmp":
		header, at = p.icmpBytes(), 2
	}
	if p.Protocol == "tcp" || p.Protocol == "udp" || p.Protocol == "sctp" {
		binary.BigEndian.PutUint16(header, p.Source.Port())
		binary.BigEndian.PutUint16(header[2:], p.Dest.Port())
	}
	out := append(header, payload...)
	if p.Protocol == "sctp" {
		binary.LittleEndian.PutUint32(out[8:], sctpChecksum(out))
	}
	if at >= 0 {
		number, _ := p.number()
		binary.BigEndian.PutUint16(out[at:], transportChecksum(p.Source.Addr(), p.Dest.Addr(), number, out))
	}
	return out
}

// icmpBytes is the ICMP header with what belongs to its type.
func (p *Packet) icmpBytes() []byte {
	out := []byte{byte(p.Type), byte(p.Code), 0, 0, 0, 0, 0, 0}
	switch {
	case p.isError() && p.Source.Addr().Is4():
		binary.BigEndian.PutUint16(out[6:], uint16(p.MTU))
	case p.isError():
		binary.BigEndian.PutUint32(out[4:], uint32(p.MTU))
	default:
		binary.BigEndian.PutUint16(out[4:], uint16(p.ID))
		binary.BigEndian.PutUint16(out[6:], uint16(p.Seq))
	}
	if p.Target.IsValid() {
		out = append(out, p.Target.AsSlice()...)
		option := byte(1)
		if p.Type == 136 {
			option = 2
			out[4] = 0xe0
		}
		out = append(out, option, 1, 2, 0, 0, 0, 0, p.SourceMAC)
	}
	if p.Quoted != nil {
		out = append(out, p.Quoted.ipBytes()...)
	}
	return out
}

// Checksum is the Internet checksum (RFC 1071) of parts, of which only the last may have an odd number of bytes.
func Checksum(parts ...[]byte) uint16 {
	var sum uint32
	for _, part := range parts {
		for i := 0; i < len(part); i += 2 {
			word := uint32(part[i]) << 8
			if i+1 < len(part) {
				word |= uint32(part[i+1])
			}
			sum += word
		}
	}
	for sum > 0xffff {
		sum = sum&0xffff + sum>>16
	}
	return ^uint16(sum)
}

// sctpChecksum is a CRC32c of the whole packet with zeros in the checksum's place (RFC 9260, 6.8).
func sctpChecksum(packet []byte) uint32 {
	packet = slices.Clone(packet)
	clear(packet[8:12])
	return crc32.Checksum(packet, crc32.MakeTable(crc32.Castagnoli))
}

// transportChecksum covers the pseudo header, except for ICMP of IPv4.
func transportChecksum(source, dest netip.Addr, number byte, segment []byte) uint16 {
	if number == 1 {
		return Checksum(segment)
	}
	length := make([]byte, 4)
	binary.BigEndian.PutUint32(length, uint32(len(segment)))
	return Checksum(source.AsSlice(), dest.AsSlice(), length, []byte{0, number}, segment)
}

// DecodePacket reads a frame that the text form can express. A wrong checksum is a word in it, not an error.
func DecodePacket(frame []byte) (*Packet, error) {
	if len(frame) < ethernetLen {
		return nil, errors.New("frame: shorter than an Ethernet header")
	}
	p := &Packet{TTL: 64, DestMAC: frame[5], SourceMAC: frame[11]}
	switch binary.BigEndian.Uint16(frame[12:]) {
	case 0x0806:
		return p, p.decodeARP(frame[ethernetLen:])
	case 0x0800, 0x86dd:
		return p, p.decodeIP(frame[ethernetLen:], false)
	}
	return nil, fmt.Errorf("frame: ethertype %#x is not known", frame[12:14])
}

func (p *Packet) decodeARP(message []byte) error {
	if len(message) < 28 {
		return errors.New("frame: ARP cut off")
	}
	p.Protocol = "arp"
	p.Words = []string{"who-has"}
	if message[7] == 2 {
		p.Words = []string{"is-at"}
	}
	source, _ := netip.AddrFromSlice(message[14:18])
	dest, _ := netip.AddrFromSlice(message[24:28])
	p.Source, p.Dest = netip.AddrPortFrom(source, 0), netip.AddrPortFrom(dest, 0)
	p.BadSum = message[13] != p.SourceMAC || (message[7] == 2 && message[23] != p.DestMAC)
	return nil
}

// decodeIP reads from the IP header on. Of a quoted packet the end may be missing; its checksums are then unknown.
func (p *Packet) decodeIP(ip []byte, quoted bool) error {
	if len(ip) >= 20 && ip[0]>>4 == 4 {
		return p.decode4(ip, quoted)
	}
	if len(ip) < 40 || ip[0]>>4 != 6 {
		return errors.New("frame: IP header cut off")
	}
	number := ip[6]
	p.TTL = int(ip[7])
	source, _ := netip.AddrFromSlice(ip[8:24])
	dest, _ := netip.AddrFromSlice(ip[24:40])
	end := min(40+int(binary.BigEndian.Uint16(ip[4:])), len(ip))
	body := ip[40:end]
	if number == optionsNext && len(body) >= 24 && body[1] == 2 && body[2] == serviceType6 && body[3] == 18 {
		service, _ := netip.AddrFromSlice(body[6:22])
		p.Service = netip.AddrPortFrom(service, binary.BigEndian.Uint16(body[4:]))
		number, body = body[0], body[24:]
	}
	if number == fragmentNext {
		if len(body) < 8 {
			return errors.New("frame: fragment header cut off")
		}
		offset := binary.BigEndian.Uint16(body[2:])
		p.Frag, p.More = int(offset&^7), offset&1 != 0
		p.ID = int(binary.BigEndian.Uint32(body[4:]) & 0xffff)
		number, body = body[0], body[8:]
	}
	return p.decodeTransport(source, dest, number, body, quoted)
}

func (p *Packet) decode4(ip []byte, quoted bool) error {
	source, _ := netip.AddrFromSlice(ip[12:16])
	dest, _ := netip.AddrFromSlice(ip[16:20])
	fragment := binary.BigEndian.Uint16(ip[6:])
	p.TTL, p.ID = int(ip[8]), int(binary.BigEndian.Uint16(ip[4:]))
	p.DF, p.More, p.Frag = fragment&0x4000 != 0, fragment&0x2000 != 0, int(fragment&0x1fff)*8
	header := min(max(20, int(ip[0]&0xf)*4), len(ip))
	p.BadSum = Checksum(ip[:header]) != 0
	if header == 28 && ip[20] == serviceType4 && ip[21] == 8 {
		service, _ := netip.AddrFromSlice(ip[24:28])
		p.Service = netip.AddrPortFrom(service, binary.BigEndian.Uint16(ip[22:]))
	}
	end := max(header, min(int(binary.BigEndian.Uint16(ip[2:])), len(ip)))
	return p.decodeTransport(source, dest, ip[9], ip[header:end], quoted)
}

// decodeTransport reads ports, flags and the ICMP message, and checks the transport checksum of whole packets.
func (p *Packet) decodeTransport(source, dest netip.Addr, number byte, body []byte, quoted bool) error {
	names := map[byte]string{6: "tcp", 17: "udp", 132: "sctp", 1: "icmp", 58: "icmp"}
	headers := map[byte]int{6: 20, 17: 8, 132: 12, 1: 8, 58: 8}
	p.Source, p.Dest = netip.AddrPortFrom(source, 0), netip.AddrPortFrom(dest, 0)
	p.Protocol = names[number]
	if p.Protocol == "" {
		p.Protocol = strconv.Itoa(int(number))
	}
	if p.Frag != 0 || headers[number] == 0 {
		p.Len = len(body)
		return nil
	}
	if len(body) < 8 || (!quoted && len(body) < headers[number]) {
		return fmt.Errorf("frame: %s header cut off", p.Protocol)
	}
	p.Len = max(0, len(body)-headers[number])
	if !quoted && !p.More && number != 132 && transportChecksum(source, dest, number, body) != 0 {
		p.BadSum = true
	}
	if !quoted && !p.More && number == 132 && sctpChecksum(body) != binary.LittleEndian.Uint32(body[8:]) {
		p.BadSum = true
	}
	if p.Protocol == "icmp" {
		return p.decodeICMP(body)
	}
	p.Source = netip.AddrPortFrom(source, binary.BigEndian.Uint16(body))
	p.Dest = netip.AddrPortFrom(dest, binary.BigEndian.Uint16(body[2:]))
	if number == 6 && len(body) > 13 {
		for bit, name := range flagNames {
			if body[13]&(1<<bit) != 0 {
				p.Words = append(p.Words, name)
			}
		}
	}
	return nil
}

func (p *Packet) decodeICMP(body []byte) error {
	p.Type, p.Code = int(body[0]), int(body[1])
	p.ID = 0
	switch {
	case p.isError():
		p.MTU = int(binary.BigEndian.Uint16(body[6:]))
		p.Len = 0
		p.Quoted = &Packet{SourceMAC: 1, DestMAC: 2}
		return p.Quoted.decodeIP(body[8:], true)
	case p.Source.Addr().Is6() && (p.Type == 135 || p.Type == 136) && len(body) >= 24:
		p.Target, _ = netip.AddrFromSlice(body[8:24])
		p.Len = 0
		if len(body) >= 32 {
			p.BadSum = p.BadSum || body[31] != p.SourceMAC
		}
		return nil
	}
	p.ID, p.Seq = int(binary.BigEndian.Uint16(body[4:])), int(binary.BigEndian.Uint16(body[6:]))
	return nil
}
