package testkit

import (
	"fmt"
	"net/netip"
	"strconv"
	"strings"
)

// Packet is a frame in a form that people can read and write. Its text is
//
//	PROTOCOL SOURCE > DESTINATION {WORD} [{ QUOTED }]
//
// PROTOCOL is tcp, udp, sctp, icmp, arp or a number; ends are address:port, [address]:port or address. Words:
//
//	syn ack fin rst psh            TCP flags
//	echo reply ns na               ICMP by name, in the family of the addresses
//	type=N code=N id=N seq=N mtu=N ICMP by number; id is also the id of a fragment
//	target=ADDRESS                 of neighbour discovery
//	service=ADDRESS:PORT           in the option by which a load balancer tells the backend's node what was asked
//	who-has is-at                  ARP: SOURCE asks for or owns, DESTINATION is asked for or told
//	ttl=N len=N df frag=N more     hop limit, bytes of payload, fragments (offset in bytes)
//	mac=N>N                        last bytes of the link addresses 02:00:00:00:00:N
//	bad-checksum                   in output: some checksum is wrong
//
// An ICMP error ends with the packet that it quotes, in braces. What is not said has its default: ttl 64, mac 1>2, else 0.
type Packet struct {
	Protocol         string
	Source, Dest     netip.AddrPort
	Words            []string
	TTL, Len         int
	Type, Code       int
	ID, Seq, MTU     int
	Target           netip.Addr
	Service          netip.AddrPort
	DF, More, BadSum bool
	Frag             int
	SourceMAC        byte
	DestMAC          byte
	Quoted           *Packet
}

// flagNames are the TCP flags by bit.
var flagNames = []string{"fin", "syn", "rst", "psh", "ack"}

// ParsePacket reads the text form of one packet.
func ParsePacket(text string) (*Packet, error) {
	outer, quoted, hasQuote := strings.Cut(text, "{")
	fields := strings.Fields(outer)
	if len(fields) < 4 || fields[2] != ">" {
		return nil, fmt.Errorf("packet %q: want PROTOCOL SOURCE > DESTINATION", text)
	}
	p := &Packet{Protocol: fields[0], TTL: 64, SourceMAC: 1, DestMAC: 2}
	var err error
	if p.Source, err = parseEnd(fields[1]); err != nil {
		return nil, fmt.Errorf("packet %q: source: %w", text, err)
	}
	if p.Dest, err = parseEnd(fields[3]); err != nil {
		return nil, fmt.Errorf("packet %q: destination: %w", text, err)
	}
	if p.Source.Addr().Is4() != p.Dest.Addr().Is4() {
		return nil, fmt.Errorf("packet %q: two address families", text)
	}
	if _, known := p.number(); !known {
		return nil, fmt.Errorf("packet %q: protocol %q is not known", text, p.Protocol)
	}
	for _, word := range fields[4:] {
		if err := p.word(word); err != nil {
			return nil, fmt.Errorf("packet %q: %w", text, err)
		}
	}
	if hasQuote {
		inside, after, closed := cutLast(quoted, "}")
		if !closed || strings.TrimSpace(after) != "" {
			return nil, fmt.Errorf("packet %q: the quoted packet ends with a brace", text)
		}
		if p.Quoted, err = ParsePacket(inside); err != nil {
			return nil, err
		}
	}
	return p, p.validate()
}

// validate refuses numbers that have no place in a packet.
func (p *Packet) validate() error {
	checks := []struct {
		name         string
		value, limit int
	}{
		{"ttl", p.TTL, 255}, {"len", p.Len, 9000}, {"type", p.Type, 255}, {"code", p.Code, 255}, {"id", p.ID, 65535},
		{"seq", p.Seq, 65535}, {"mtu", p.MTU, 65535}, {"frag", p.Frag, 65528},
	}
	for _, c := range checks {
		if c.value < 0 || c.value > c.limit {
			return fmt.Errorf("packet word %s: %d is not within 0 and %d", c.name, c.value, c.limit)
		}
	}
	if p.Frag%8 != 0 {
		return fmt.Errorf("packet word frag: %d is not a multiple of 8", p.Frag)
	}
	if p.Protocol == "arp" && p.Source.Addr().Is6() {
		return fmt.Errorf("packet: arp is for IPv4")
	}
	if p.Service.IsValid() && p.Service.Addr().Is4() != p.Source.Addr().Is4() {
		return fmt.Errorf("packet word service: %s is of the other address family", p.Service)
	}
	if p.Target.IsValid() && p.Target.Is4() {
		return fmt.Errorf("packet word target: %s is not IPv6", p.Target)
	}
	return nil
}

// cutLast cuts around the last separator.
func cutLast(s, separator string) (before, after string, found bool) {
	i := strings.LastIndex(s, separator)
	if i < 0 {
		return s, "", false
	}
	return s[:i], s[i+len(separator):], true
}

// parseEnd reads address:port, [address]:port or address.
func parseEnd(text string) (netip.AddrPort, error) {
	if addr, err := netip.ParseAddr(text); err == nil && addr.Zone() == "" {
		return netip.AddrPortFrom(addr, 0), nil
	}
	end, err := netip.ParseAddrPort(text)
	if err == nil && end.Addr().Zone() != "" {
		return end, fmt.Errorf("%q has a zone", text)
	}
	return end, err
}

// word reads one word behind the ends.
func (p *Packet) word(word string) error {
	name, value, valued := strings.Cut(word, "=")
	if !valued {
		return p.plainWord(word)
	}
	switch name {
	case "target":
		target, err := netip.ParseAddr(value)
		p.Target = target.WithZone("")
		return err
	case "service":
		service, err := parseEnd(value)
		p.Service = service
		return err
	case "mac":
		_, err := fmt.Sscanf(value, "%d>%d", &p.SourceMAC, &p.DestMAC)
		return err
	}
	number, err := strconv.Atoi(value)
	if err != nil {
		return fmt.Errorf("word %q: %w", word, err)
	}
	fields := map[string]*int{"ttl": &p.TTL, "len": &p.Len, "type": &p.Type, "code": &p.Code, "id": &p.ID,
		"seq": &p.Seq, "mtu": &p.MTU, "frag": &p.Frag}
	if fields[name] == nil {
		return fmt.Errorf("word %q is not known", word)
	}
	*fields[name] = number
	return nil
}

// plainWord reads a word without a value.
func (p *Packet) plainWord(word string) error {
	v6 := p.Source.Addr().Is6()
	types := map[string][2]int{"echo": {8, 128}, "reply": {0, 129}, "ns": {-1, 135}, "na": {-1, 136}}
	switch word {
	case "df":
		p.DF = true
		return nil
	case "more":
		p.More = true
		return nil
	case "bad-checksum":
		p.BadSum = true
		return nil
	case "who-has", "is-at", "syn", "ack", "fin", "rst", "psh":
		p.Words = append(p.Words, word)
		return nil
	}
	byFamily, ok := types[word]
	if !ok {
		return fmt.Errorf("word %q is not known", word)
	}
	p.Type = byFamily[0]
	if v6 {
		p.Type = byFamily[1]
	}
	return nil
}

// has tells whether a word is set.
func (p *Packet) has(word string) bool {
	for _, w := range p.Words {
		if w == word {
			return true
		}
	}
	return false
}

// number is the IP protocol number.
func (p *Packet) number() (byte, bool) {
	switch p.Protocol {
	case "tcp":
		return 6, true
	case "udp":
		return 17, true
	case "sctp":
		return 132, true
	case "arp":
		return 0, true
	case "icmp":
		if p.Source.Addr().Is6() {
			return 58, true
		}
		return 1, true
	}
	n, err := strconv.ParseUint(p.Protocol, 10, 8)
	return byte(n), err == nil
}

// isError tells ICMP errors, which quote a packet.
func (p *Packet) isError() bool {
	if p.Protocol != "icmp" {
		return false
	}
	if p.Source.Addr().Is6() {
		return p.Type < 128
	}
	return p.Type == 3 || p.Type == 11 || p.Type == 12
}

// String is the text form; ParsePacket reads it back.
func (p *Packet) String() string {
	var out strings.Builder
	fmt.Fprintf(&out, "%s %s > %s", p.Protocol, endText(p.Source), endText(p.Dest))
	for _, word := range p.Words {
		out.WriteString(" " + word)
	}
	if p.Protocol == "icmp" {
		out.WriteString(p.icmpText())
	}
	if p.Protocol != "icmp" && p.ID != 0 {
		fmt.Fprintf(&out, " id=%d", p.ID)
	}
	for _, v := range []struct {
		name            string
		value, standard int
	}{{"ttl", p.TTL, 64}, {"len", p.Len, 0}, {"frag", p.Frag, 0}} {
		if v.value != v.standard {
			fmt.Fprintf(&out, " %s=%d", v.name, v.value)
		}
	}
	for _, v := range []struct {
		name string
		set  bool
	}{{"df", p.DF}, {"more", p.More}, {"bad-checksum", p.BadSum}} {
		if v.set {
			out.WriteString(" " + v.name)
		}
	}
	if p.Service.IsValid() {
		fmt.Fprintf(&out, " service=%s", endText(p.Service))
	}
	if p.SourceMAC != 1 || p.DestMAC != 2 {
		fmt.Fprintf(&out, " mac=%d>%d", p.SourceMAC, p.DestMAC)
	}
	if p.Quoted != nil {
		fmt.Fprintf(&out, " { %s }", p.Quoted)
	}
	return out.String()
}

// icmpText prints what an ICMP header says.
func (p *Packet) icmpText() string {
	var out strings.Builder
	names := map[int]string{8: "echo", 0: "reply"}
	if p.Source.Addr().Is6() {
		names = map[int]string{128: "echo", 129: "reply", 135: "ns", 136: "na"}
	}
	if name := names[p.Type]; name != "" {
		out.WriteString(" " + name)
	} else {
		fmt.Fprintf(&out, " type=%d", p.Type)
	}
	for _, v := range []struct {
		name  string
		value int
	}{{"code", p.Code}, {"id", p.ID}, {"seq", p.Seq}, {"mtu", p.MTU}} {
		if v.value != 0 {
			fmt.Fprintf(&out, " %s=%d", v.name, v.value)
		}
	}
	if p.Target.IsValid() {
		fmt.Fprintf(&out, " target=%s", p.Target)
	}
	return out.String()
}

// endText prints an end, without the port if there is none.
func endText(end netip.AddrPort) string {
	if end.Port() == 0 {
		return end.Addr().String()
	}
	return end.String()
}
