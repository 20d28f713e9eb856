package ipproto

import (
	"strings"
	"testing"
)

func TestEveryNumberIsReadBackFromEitherSpelling(t *testing.T) {
	for number := range 255 {
		want := uint8(number + 1)
		for _, text := range []string{Name(want), ManifestName(want), strings.ToUpper(Name(want))} {
			if got, err := Parse(text); err != nil || got != want {
				t.Errorf("%q is read as %d, %v; want %d", text, got, err, want)
			}
		}
	}
}

func TestNames(t *testing.T) {
	for number, want := range map[uint8]string{
		0: "0", 1: "ICMP", 2: "IGMP", 6: "TCP", 17: "UDP", 41: "41", 58: "ICMPv6", 112: "VRRP", 132: "SCTP", 255: "255",
	} {
		if got := ManifestName(number); got != want {
			t.Errorf("protocol %d is %q in manifests, want %q", number, got, want)
		}
		if got := Name(number); got != strings.ToLower(want) {
			t.Errorf("protocol %d is %q, want %q", number, got, strings.ToLower(want))
		}
	}
	for _, alias := range []string{"icmp6", "ipv6-icmp", "IPv6-ICMP"} {
		if got, err := Parse(alias); err != nil || got != ICMPv6 {
			t.Errorf("%q is read as %d, %v; want %d", alias, got, err, ICMPv6)
		}
	}
}

func TestWhatIsNoProtocolIsRefusedWithTheRemedy(t *testing.T) {
	for _, text := range []string{"", "0", "256", "-6", "quic", "tcp ", "6.0", "0x6", "any"} {
		number, err := Parse(text)
		if err == nil || number != 0 || !strings.Contains(err.Error(), "must be tcp") || !strings.Contains(err.Error(), `"`+text+`"`) {
			t.Errorf("%q is read as %d, %v; want an error that names it and the remedy", text, number, err)
		}
	}
}

func TestOnlyTransportsHavePorts(t *testing.T) {
	var with []string
	for number := range 256 {
		if HasPorts(uint8(number)) {
			with = append(with, Name(uint8(number)))
		}
	}
	if got := strings.Join(with, " "); got != "tcp udp sctp" {
		t.Errorf("protocols with ports are %s", got)
	}
}

func TestCommonNamesDoNotAllocate(t *testing.T) {
	if n := testing.AllocsPerRun(100, func() { ManifestName(TCP); ManifestName(ICMPv6) }); n != 0 {
		t.Errorf("a manifest's name costs %v allocations", n)
	}
}
