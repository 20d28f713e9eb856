package bpf

import (
	"fmt"
	"net/netip"
	"strings"
	"testing"

	"pgregory.net/rapid"
)

// dsrNode is one of the two nodes of the test: the one that is asked, or the backend's.
func dsrNode(t *testing.T, commands string) *stage {
	s := newStage(t)
	for _, command := range strings.Split(strings.TrimSpace(commands), "\n") {
		if _, err := s.do(command); err != nil {
			t.Fatalf("%s: %v", command, err)
		}
	}
	return s
}

// became is the packet that a command's packet has become; it must have been sent on.
func (s *stage) became(t *rapid.T, format string, args ...any) string {
	command := fmt.Sprintf(format, args...)
	answer, err := s.do(command)
	first, packet, _ := strings.Cut(answer, "\n")
	if err != nil || first != "redirect: forwarded" || strings.Contains(packet, "bad-checksum") {
		t.Fatalf("%s: %s, %v", command, answer, err)
	}
	return packet
}

// Whatever a client sends to a service, on the backend's node the pod sees the client, and the client sees the service.
func TestClientAndBackendMeetAcrossTwoNodes(t *testing.T) {
	needRoot(t)
	asked := dsrNode(t, `
address 192.0.2.1 peer=1 flags=host,cluster,node-port
address 2001:db8::1 peer=1 flags=host,cluster,node-port
address 10.2.0.2 peer=30 node=2 flags=cluster
address fd02::2 peer=30 node=2 flags=cluster
node 2 hop4=192.0.2.2 hop6=2001:db8::2 ifindex=100`)
	backend := dsrNode(t, `
endpoint 1 10.2.0.2 fd02::2 peer=20 egress=1 ingress=1
program 1 allow
address 192.0.2.1 peer=3 node=1 flags=remote-node,cluster
address 2001:db8::1 peer=3 node=1 flags=remote-node,cluster`)
	ends := map[bool]struct{ any, node, pod, balanced string }{
		true:  {"0.0.0.0", "192.0.2.1", "10.2.0.2", "203.0.113.5"},
		false: {"[::]", "[2001:db8::1]", "[fd02::2]", "[2001:db8:5::5]"},
	}
	for _, s := range []*stage{asked, backend} {
		for _, end := range ends {
			for _, protocol := range []string{"tcp", "udp"} {
				for _, frontend := range []string{end.any + ":30080", end.balanced + ":80"} {
					if _, err := s.do(fmt.Sprintf("service %s %s %s:8080 flags=external,dsr", protocol, frontend, end.pod)); err != nil {
						t.Fatal(err)
					}
				}
			}
		}
	}
	next := uint32(0) // no client comes twice
	rapid.Check(t, func(t *rapid.T) {
		v4 := rapid.Bool().Draw(t, "IPv4")
		protocol := rapid.SampledFrom([]string{"tcp", "udp"}).Draw(t, "protocol")
		service := rapid.SampledFrom([]string{ends[v4].node + ":30080", ends[v4].balanced + ":80"}).Draw(t, "service")
		port := rapid.Uint16Range(1, 65535).Draw(t, "port")
		size := rapid.IntRange(0, 1400).Draw(t, "size")
		next++
		client := netip.AddrPortFrom(netip.AddrFrom4([4]byte{100, 64, byte(next >> 8), byte(next)}), port)
		if !v4 {
			client = netip.AddrPortFrom(netip.AddrFrom16([16]byte{0x20, 1, 0xd, 0xb9, 14: byte(next >> 8), 15: byte(next)}), port)
		}
		syn, ack := "", ""
		if protocol == "tcp" {
			syn, ack = " syn", " syn ack"
		}
		for round, word := range []string{syn, strings.TrimPrefix(ack, " syn")} {
			sent := asked.became(t, "net_in %s %s > %s%s len=%d", protocol, client, service, word, size)
			if told := strings.Contains(sent, " service="+service); told != (protocol == "udp" || round == 0) {
				t.Errorf("packet %d of %s to %s leaves as %s", round, protocol, service, sent)
			}
			got := backend.became(t, "net_in %s", sent)
			if want := fmt.Sprintf("%s %s > %s:8080", protocol, client, ends[v4].pod); !strings.HasPrefix(got, want) {
				t.Errorf("the pod gets %s, want %s", got, want)
			}
			got = backend.became(t, "from_pod 1 %s %s:8080 > %s%s len=%d", protocol, ends[v4].pod, client, ack, size)
			if want := fmt.Sprintf("%s %s > %s", protocol, service, client); !strings.HasPrefix(got, want) {
				t.Errorf("the client gets %s, want %s", got, want)
			}
		}
	})
}
