package bpf

import (
	"fmt"
	"regexp"
	"strings"
	"testing"
	"time"

	"pgregory.net/rapid"
)

// edgeStory is a node that leads clients of node ports to a backend of another node.
const edgeStory = `
program 1 allow
address 192.0.2.1 peer=1 flags=host,cluster,node-port
address 2001:db8::1 peer=1 flags=host,cluster,node-port
address 10.2.0.2 peer=30 node=2 flags=cluster
address fd02::2 peer=30 node=2 flags=cluster
uplink 100 192.0.2.1 2001:db8::1
node 2 hop4=192.0.2.2 hop6=2001:db8::2 ifindex=100
service tcp 0.0.0.0:30080 10.2.0.2:8080 flags=external
service tcp [::]:30080 [fd02::2]:8080 flags=external
service udp 0.0.0.0:30080 10.2.0.2:8080 flags=external
service udp [::]:30080 [fd02::2]:8080 flags=external`

func edgeStage(t testing.TB) *stage {
	s := newStage(t)
	for _, command := range strings.Split(strings.TrimSpace(edgeStory), "\n") {
		if _, err := s.do(command); err != nil {
			t.Fatalf("%s: %v", command, err)
		}
	}
	return s
}

// edgePacket draws a packet of one of a few clients, or an answer to one.
func edgePacket(t *rapid.T) string {
	v4 := rapid.Bool().Draw(t, "IPv4")
	protocol := rapid.SampledFrom([]string{"tcp", "udp"}).Draw(t, "protocol")
	port := 1000 + rapid.IntRange(0, 3).Draw(t, "client") // each has a port of its own, so that none is chosen at random
	node, client, pod := "[2001:db8::1]", "[2001:db9::7]", "[fd02::2]"
	if v4 {
		node, client, pod = "192.0.2.1", "198.51.100.7", "10.2.0.2"
	}
	text := fmt.Sprintf("%s %s:%d > %s:30080", protocol, client, port, node)
	if rapid.Bool().Draw(t, "answer") {
		text = fmt.Sprintf("%s %s:8080 > %s:%d", protocol, pod, node, port)
	}
	if protocol == "tcp" {
		text += rapid.SampledFrom([]string{" syn", " syn ack", " ack", " ack", " ack", " fin ack", " rst"}).Draw(t, "flags")
	}
	if rapid.IntRange(0, 9).Draw(t, "last hop") == 0 {
		text += " ttl=1"
	}
	return fmt.Sprintf("%s len=%d", text, rapid.SampledFrom([]int{0, 1, 2, 7, 900, 1440, 1480}).Draw(t, "size"))
}

// Whether XDP takes a packet or leaves it to net_in, the same packet leaves, and the same is known of its flow.
func TestXDPSendsWhatTCXWouldSend(t *testing.T) {
	needRoot(t)
	early, late := edgeStage(t), edgeStage(t)
	links, outcome := regexp.MustCompile(` mac=\S+`), regexp.MustCompile(`^(tx|redirect)`)
	taken, outer := 0, t
	rapid.Check(t, func(t *rapid.T) {
		for _, s := range []*stage{early, late} {
			s.empty(outer, "flows")
			s.empty(outer, "nat")
		}
		began := time.Now()
		// A flow that is refused lives for a second: where this takes as long, it may have ended for the later stage alone.
		differs := func(format string, args ...any) {
			if time.Since(began) > time.Duration(LifetimeRefused)*time.Second/2 {
				t.Skip("it took too long")
			}
			t.Fatalf(format, args...)
		}
		for range rapid.IntRange(1, 30).Draw(t, "packets") {
			command := edgePacket(t)
			if rapid.IntRange(0, 9).Draw(t, "policy changes") == 0 {
				epoch := fmt.Sprintf("epoch %d", rapid.IntRange(1, 1000).Draw(t, "epoch"))
				for _, s := range []*stage{early, late} {
					if _, err := s.do(epoch); err != nil {
						t.Fatal(err)
					}
				}
			}
			got, err := early.do("xdp_in " + command)
			if err != nil {
				t.Fatalf("%s: %v", command, err)
			}
			want, err := late.do("net_in " + command)
			if err != nil {
				t.Fatalf("%s: %v", command, err)
			}
			if strings.HasPrefix(got, "tx") {
				taken++
				got = links.ReplaceAllString(outcome.ReplaceAllString(got, "redirect"), "")
			}
			if strings.Contains(got, "bad-checksum") || got != want {
				differs("%s: with XDP %s, without %s", command, got, want)
			}
		}
		for _, list := range []string{"flows", "nat"} {
			got, err := early.do(list)
			want, errLate := late.do(list)
			if err != nil || errLate != nil || got != want {
				differs("%s with XDP:\n%s%v\nwithout:\n%s%v", list, got, err, want, errLate)
			}
		}
	})
	if taken == 0 {
		t.Error("XDP took no packet")
	}
}
