package testkit

import (
	"encoding/hex"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// texts is one of every kind of packet, in canonical form.
var texts = []string{
	"tcp 10.1.0.2:1234 > 10.1.0.3:80 syn",
	"tcp [fd01::2]:1234 > [fd01::3]:80 syn ack ttl=63",
	"udp 10.1.0.2:53 > 10.1.0.3:53 len=9 mac=7>8",
	"udp [fd01::2]:53 > [fd01::3]:53 id=9 len=16 more",
	"udp 10.1.0.2:53 > 10.1.0.3:53 id=9 len=16 more",
	"udp 10.1.0.2 > 10.1.0.3 id=9 len=16 frag=24",
	"icmp 10.1.0.2 > 10.1.0.3 echo id=7 seq=1 df",
	"icmp fd01::2 > fd01::3 reply id=7 seq=1",
	"icmp 192.0.2.9 > 10.1.0.3 type=3 code=4 mtu=1400 { tcp 10.1.0.3:80 > 192.0.2.1:9 ack }",
	"icmp 2001:db8::9 > fd01::3 type=2 mtu=1400 { udp [fd01::3]:80 > [2001:db8::1]:9 len=4 }",
	"icmp fd01::2 > ff02::1:ff00:1 ns target=fd01::1 ttl=255",
	"icmp fd01::2 > fd01::1 na target=fd01::2 ttl=255",
	"arp 10.1.0.2 > 10.1.0.1 who-has",
	"arp 10.1.0.1 > 10.1.0.2 is-at mac=2>1",
	"sctp 10.1.0.2:1 > 10.1.0.3:2",
	"47 10.1.0.2 > 10.1.0.3 len=8",
}

func TestEveryPacketSurvivesTheWayToBytesAndBack(t *testing.T) {
	for _, text := range texts {
		p, err := ParsePacket(text)
		if err != nil {
			t.Error(err)
			continue
		}
		if got := p.String(); got != text {
			t.Errorf("parsed:  got %s\nwant %s", got, text)
		}
		decoded, err := DecodePacket(p.Bytes())
		if err != nil {
			t.Errorf("%s: %v", text, err)
			continue
		}
		if got := decoded.String(); got != text {
			t.Errorf("decoded: got %s\nwant %s", got, text)
		}
	}
}

func TestChecksumsAreThoseOfAKnownPacket(t *testing.T) {
	p, err := ParsePacket("udp 10.1.0.2:1 > 10.1.0.3:2")
	if err != nil {
		t.Fatal(err)
	}
	got := hex.EncodeToString(p.Bytes()[14:])
	// IP: 4500+001c+4011+0a01+0002+0a01+0003 = 9934; UDP: addresses 1407 + protocol 0011 + length 0008 + header 000b = 142b.
	want := "4500001c00000000401166cb" + "0a010002" + "0a010003" + "000100020008" + "ebd4"
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
}

func TestAWrongChecksumShowsInTheText(t *testing.T) {
	for _, text := range texts {
		p, err := ParsePacket(text)
		if err != nil {
			t.Fatal(err)
		}
		if p.Protocol == "arp" || p.Protocol == "47" || p.Protocol == "sctp" || p.Frag != 0 || p.More {
			continue // nothing there that a checksum of the transport covers
		}
		frame := p.Bytes()
		offset := 14 + 20
		if p.Source.Addr().Is6() {
			offset = 14 + 40
		}
		frame[offset+1] ^= 1
		decoded, err := DecodePacket(frame)
		if err != nil {
			t.Fatal(err)
		}
		if !strings.Contains(decoded.String(), "bad-checksum") {
			t.Errorf("%s: a flipped bit went unnoticed: %s", text, decoded)
		}
	}
}

func TestNonsenseIsRefusedByName(t *testing.T) {
	for text, want := range map[string]string{
		"":                                 "want PROTOCOL",
		"tcp 10.1.0.2 > fd01::2":           "two address families",
		"tcp 10.1.0.2 > 10.1.0.3 sin":      `"sin"`,
		"xyz 10.1.0.2 > 10.1.0.3":          `"xyz"`,
		"tcp 10.1.0.2 > 10.1.0.3 ttl=999":  "ttl",
		"tcp 10.1.0.2 > 10.1.0.3 frag=7":   "frag",
		"tcp 10.1.0.2 > 10.1.0.3 x=1":      `"x=1"`,
		"tcp 10.1.0.2 > 10.1.0.3 len=a":    "len=a",
		"tcp 10.1.0.299 > 10.1.0.3":        "source",
		"arp fd01::1 > fd01::2 who-has":    "IPv4",
		"icmp 1.1.1.1 > 1.1.1.2 type=3 { ": "brace",
	} {
		_, err := ParsePacket(text)
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%q: got %v, want it to say %s", text, err, want)
		}
	}
}

func FuzzParsePacket(f *testing.F) {
	for _, text := range texts {
		f.Add(text)
	}
	f.Fuzz(func(t *testing.T, text string) {
		p, err := ParsePacket(text)
		if err != nil {
			return
		}
		again, err := ParsePacket(p.String())
		if err != nil {
			t.Fatalf("%q prints as %q, which does not parse: %v", text, p, err)
		}
		if diff := cmp.Diff(p.String(), again.String()); diff != "" {
			t.Fatal(diff)
		}
		p.Bytes()
	})
}

func FuzzDecodePacket(f *testing.F) {
	for _, text := range texts {
		p, err := ParsePacket(text)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(p.Bytes())
	}
	f.Fuzz(func(t *testing.T, frame []byte) {
		if p, err := DecodePacket(frame); err == nil {
			_ = p.String()
		}
	})
}
