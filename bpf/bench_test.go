package bpf

import (
	"fmt"
	"testing"

	"github.com/cilium/ebpf"
	"golang.org/x/sys/unix"

	"tendril.io/tendril/internal/testkit"
)

// repeat is how often one frame goes through a program in one system call: each time takes a hop off its 255.
const repeat = 240

// run measures nanoseconds per packet of one program, by the kernel's own count.
func (s *stage) run(b *testing.B, text string) {
	b.Helper()
	p, err := testkit.ParsePacket(text)
	if err != nil {
		b.Fatal(err)
	}
	counting, err := ebpf.EnableStats(uint32(unix.BPF_STATS_RUN_TIME))
	if err != nil {
		b.Fatal(err)
	}
	defer counting.Close()
	program := s.programs["from_pod"]
	before, err := program.Stats()
	if err != nil {
		b.Fatal(err)
	}
	for b.Loop() {
		options := &ebpf.RunOptions{Data: p.Bytes(), Context: skBuff{IfIndex: 1, CB: [5]uint32{1, 101}}, Repeat: repeat}
		if _, err := program.Run(options); err != nil {
			b.Fatal(err)
		}
	}
	after, err := program.Stats()
	if err != nil {
		b.Fatal(err)
	}
	b.ReportMetric(float64(after.Runtime-before.Runtime)/float64(after.RunCount-before.RunCount), "ns/packet")
	b.ReportMetric(0, "ns/op")
}

func benchStage(b *testing.B) *stage {
	needRoot(b)
	s := newStage(b)
	for _, command := range []string{
		"endpoint 1 10.1.0.2 fd01::2 peer=20 egress=1 ingress=1", "endpoint 2 10.1.0.3 fd01::3 peer=21 egress=1 ingress=1",
		"program 1 allow", "epoch 1", "node 2 hop4=192.0.2.2 hop6=2001:db8::2 ifindex=100 tunnel=192.0.2.2",
		"address 10.2.0.2 peer=22 node=2 flags=cluster", "uplink 100 192.0.2.1 2001:db8::1",
	} {
		if _, err := s.do(command); err != nil {
			b.Fatal(err)
		}
	}
	return s
}

func BenchmarkEstablished(b *testing.B) {
	for _, bench := range []struct{ name, text string }{
		{"same-node-v4", "tcp 10.1.0.2:1234 > 10.1.0.3:80 ack ttl=255"},
		{"same-node-v6", "tcp [fd01::2]:1234 > [fd01::3]:80 ack ttl=255"},
		{"remote-native-v4", "tcp 10.1.0.2:1234 > 10.2.0.2:80 ack ttl=255"},
		{"outside-v4", "tcp 10.1.0.2:1234 > 198.51.100.1:80 ack ttl=255"},
	} {
		b.Run(bench.name, func(b *testing.B) {
			benchStage(b).run(b, bench.text)
		})
	}
}

func BenchmarkDenied(b *testing.B) {
	for _, rules := range []int{1, 10, 16} {
		b.Run(fmt.Sprintf("rules-%d", rules), func(b *testing.B) {
			s := benchStage(b)
			text := "program 2 deny"
			for i := range rules {
				text += fmt.Sprintf("; allow tcp/80 selector=5 rank=%d rule=%d", i+1, i+100)
			}
			for _, command := range []string{text, "endpoint 2 10.1.0.3 fd01::3 peer=21 egress=1 ingress=2"} {
				if _, err := s.do(command); err != nil {
					b.Fatal(err)
				}
			}
			s.run(b, "tcp 10.1.0.2:1234 > 10.1.0.3:80 syn")
		})
	}
}
