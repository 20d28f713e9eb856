package bpf

import (
	"encoding/binary"
	"fmt"
	"net"
	"net/netip"
	"strings"
	"testing"

	"github.com/cilium/ebpf"

	"tendril.io/tendril/internal/testkit"
)

// natStage is a node with two pods whose packets to the outside are masqueraded, with room for many half-open flows.
func natStage(t *testing.T) *stage {
	needRoot(t)
	s := newStage(t)
	for _, command := range []string{
		"endpoint 1 10.1.0.2 fd01::2 peer=20 egress=1 ingress=1", "endpoint 2 10.1.0.3 fd01::3 peer=21 egress=1 ingress=1",
		"program 1 allow", "uplink 100 192.0.2.1 2001:db8::1",
		"address 192.0.2.1 peer=1 flags=host,cluster", "address 2001:db8::1 peer=1 flags=host,cluster",
	} {
		if _, err := s.do(command); err != nil {
			t.Fatalf("%s: %v", command, err)
		}
	}
	return s
}

// send1 plays a command whose packet must come out, and returns the packet.
func send1(t *testing.T, s *stage, command string) *testkit.Packet {
	t.Helper()
	answer, err := s.do(command)
	if err != nil {
		t.Fatalf("%s: %v", command, err)
	}
	_, text, ok := strings.Cut(answer, "\n")
	if !ok {
		t.Fatalf("%s: no packet came out: %s", command, answer)
	}
	p, err := testkit.ParsePacket(text)
	if err != nil {
		t.Fatal(err)
	}
	if p.BadSum {
		t.Fatalf("%s: %s", command, text)
	}
	return p
}

// answer1 sends the reply of an outside host, which also takes the flow out of the quota, and returns what the pod gets.
func answer1(t *testing.T, s *stage, sent *testkit.Packet) *testkit.Packet {
	t.Helper()
	return send1(t, s, fmt.Sprintf("net_in %s %s > %s", sent.Protocol, sent.Dest, sent.Source))
}

func TestTwoPodsWithOnePortGetTwoAndEachItsOwnReplies(t *testing.T) {
	for _, ends := range [][3]string{
		{"10.1.0.2:5000", "10.1.0.3:5000", "198.51.100.1:53"}, {"[fd01::2]:5000", "[fd01::3]:5000", "[2001:db9::1]:53"},
	} {
		s := natStage(t)
		first := send1(t, s, fmt.Sprintf("from_pod 1 udp %s > %s", ends[0], ends[2]))
		second := send1(t, s, fmt.Sprintf("from_pod 2 udp %s > %s", ends[1], ends[2]))
		if first.Source.Port() != 5000 {
			t.Errorf("the first pod's free port was changed: %s", first)
		}
		if port := second.Source.Port(); port < 40000 || port > 40009 {
			t.Errorf("the second pod got a port outside the node's range: %s", second)
		}
		if got, want := answer1(t, s, second).Dest, netip.MustParseAddrPort(ends[1]); got != want {
			t.Errorf("the second pod's reply went to %s", got)
		}
		if got, want := answer1(t, s, first).Dest, netip.MustParseAddrPort(ends[0]); got != want {
			t.Errorf("the first pod's reply went to %s", got)
		}
	}
}

func TestEveryPortOfTheRangeIsFoundAndThenTheReasonIsClear(t *testing.T) {
	s := natStage(t)
	used := map[uint16]bool{}
	// Eleven: one keeps its own port, ten fill the range 40000 to 40009.
	for i := range 11 {
		pod := i%2 + 1
		text := fmt.Sprintf("from_pod %d udp 10.1.0.%d:5000 > 198.51.100.1:53", pod, pod+1)
		if i >= 2 {
			text = fmt.Sprintf("from_pod %d udp 10.1.0.%d:5000 > 198.51.100.1:53", i+1, i+20)
			if _, err := s.do(fmt.Sprintf("endpoint %d 10.1.0.%d fd01::%d peer=20 egress=1 ingress=1", i+1, i+20, i+20)); err != nil {
				t.Fatal(err)
			}
		}
		sent := send1(t, s, text)
		if used[sent.Source.Port()] {
			t.Errorf("flow %d got port %d, which another has", i, sent.Source.Port())
		}
		used[sent.Source.Port()] = true
	}
	if _, err := s.do("endpoint 30 10.1.0.60 fd01::60 peer=20 egress=1 ingress=1"); err != nil {
		t.Fatal(err)
	}
	got, err := s.do("from_pod 30 udp 10.1.0.60:5000 > 198.51.100.1:53")
	if err != nil || got != "shot: nat-exhausted" {
		t.Errorf("the twelfth: got %q, %v", got, err)
	}
	if p := send1(t, s, "from_pod 30 udp 10.1.0.60:5000 > 198.51.100.2:53"); p.Source.Port() != 5000 {
		t.Errorf("another destination was touched: %s", p)
	}
}

// 10k flows of as many clients want one port towards one destination: each gets a port of its own while the range lasts, and then
// the reason and its counter say what is missing.
func TestTenThousandCollisionsLoseNothingUntilTheRangeIsFull(t *testing.T) {
	needRoot(t)
	const flows, ports = 10_000, 10_000
	config := testConfig()
	config.NATPortMin, config.NATPortMax = 20_000, 20_000+ports-2 // with the one that keeps its own: as many as flows
	config.HalfOpenLimit, config.OutsideHalfOpenLimit = 1<<20, 1<<20
	s := newStageOf(t, config, map[string]uint32{"flows": 65536, "nat": 65536})
	for _, command := range []string{
		"program 1 allow", "uplink 100 192.0.2.1 2001:db8::1", "address 192.0.2.1 peer=1 flags=host,cluster",
		"endpoint 1 10.1.0.2 fd01::2 peer=20 egress=1 ingress=1",
	} {
		if _, err := s.do(command); err != nil {
			t.Fatalf("%s: %v", command, err)
		}
	}
	used := map[uint16]bool{}
	send := func(i int) uint32 {
		pod := netip.AddrFrom4([4]byte{10, 1, byte(1 + i/250), byte(1 + i%250)})
		endpoint := Endpoint{IfIndex: 1001, Generation: 101, Peer: 20, Egress: 1, Ingress: 1, MTU: 1500, Address4: AddressOf(pod)}
		if err := s.maps["endpoints"].Put(uint32(1), endpoint); err != nil {
			t.Fatal(err)
		}
		p := &testkit.Packet{Protocol: "udp", Source: netip.AddrPortFrom(pod, 5000), Dest: netip.MustParseAddrPort("198.51.100.1:53"), TTL: 64}
		options := &ebpf.RunOptions{Data: p.Bytes(), DataOut: make([]byte, 256), Context: skBuff{IfIndex: 1, CB: [5]uint32{1, 101}}}
		code, err := s.programs["from_pod"].Run(options)
		if err != nil {
			t.Fatal(err)
		}
		if port := binary.BigEndian.Uint16(options.DataOut[14+20:]); code == 7 {
			if used[port] {
				t.Fatalf("flow %d got port %d, which another has", i, port)
			}
			used[port] = true
		}
		return code
	}
	lost := 0
	for i := range flows {
		if send(i) != 7 {
			lost++
		}
	}
	if lost > 0 {
		t.Errorf("%d of %d flows were lost while ports were free", lost, flows)
	}
	before := s.reasons()[DropNATExhausted]
	if code := send(flows); code != 2 || s.reasons()[DropNATExhausted] != before+1 {
		t.Errorf("one more than there are ports: code %d, nat-exhausted %d after %d", code, s.reasons()[DropNATExhausted], before)
	}
}

func TestASocketOfTheNodeKeepsItsPort(t *testing.T) {
	s := natStage(t)
	for _, local := range []string{"192.0.2.1:5001", "[2001:db8::1]:5001"} {
		socket, err := net.ListenUDP("udp", net.UDPAddrFromAddrPort(netip.MustParseAddrPort(local)))
		if err != nil {
			t.Fatal(err)
		}
		defer socket.Close()
	}
	for _, text := range []string{"from_pod 1 udp 10.1.0.2:5001 > 198.51.100.1:53", "from_pod 1 udp [fd01::2]:5001 > [2001:db9::1]:53"} {
		if p := send1(t, s, text); p.Source.Port() == 5001 {
			t.Errorf("a pod got the port of a socket of the node: %s", p)
		}
	}
}

func TestNoPortOfAServiceIsLentToAPod(t *testing.T) {
	s := natStage(t)
	for _, frontend := range []string{"0.0.0.0:40003", "[::]:40003"} {
		if _, err := s.do("service udp " + frontend + " flags=external"); err != nil {
			t.Fatal(err)
		}
	}
	for _, text := range []string{"from_pod 1 udp 10.1.0.2:40003 > 198.51.100.1:53", "from_pod 1 udp [fd01::2]:40003 > [2001:db9::1]:53"} {
		if p := send1(t, s, text); p.Source.Port() == 40003 {
			t.Errorf("answers to this would be taken for a new client of the service: %s", p)
		}
	}
}

func TestAConnectionOfTheNodeIsMovedOffAPodsTuple(t *testing.T) {
	s := natStage(t)
	pod := send1(t, s, "from_pod 1 udp 10.1.0.2:5002 > 198.51.100.1:53")
	node := send1(t, s, "net_out udp 192.0.2.1:5002 > 198.51.100.1:53")
	if pod.Source.Port() != 5002 || node.Source.Port() == 5002 {
		t.Fatalf("pod %s, node %s", pod, node)
	}
	if again := send1(t, s, "net_out udp 192.0.2.1:5002 > 198.51.100.1:53"); again.Source != node.Source {
		t.Errorf("the node's next packet left as %s", again)
	}
	if got, want := answer1(t, s, node).Dest.String(), "192.0.2.1:5002"; got != want {
		t.Errorf("the node's reply went to %s", got)
	}
	if got, want := answer1(t, s, pod).Dest.String(), "10.1.0.2:5002"; got != want {
		t.Errorf("the pod's reply went to %s", got)
	}
}

// A process of the node and a pod have the same port towards the same backend outside, in either order.
func TestAClientOfAServiceOnTheNodeSharesNoTuple(t *testing.T) {
	s := natStage(t)
	if _, err := s.do("service sctp 10.96.0.1:80 198.51.100.1:53"); err != nil {
		t.Fatal(err)
	}
	pod := func(port int) string { return fmt.Sprintf("from_pod 1 sctp 10.1.0.2:%d > 198.51.100.1:53", port) }
	process := func(port int) string { return fmt.Sprintf("net_out sctp 192.0.2.1:%d > 10.96.0.1:80", port) }
	for port, order := range map[int][]string{5002: {pod(5002), process(5002)}, 5003: {process(5003), pod(5003)}} {
		first, second := send1(t, s, order[0]), send1(t, s, order[1])
		if int(first.Source.Port()) != port || int(second.Source.Port()) == port {
			t.Fatalf("first %s, second %s", first, second)
		}
		for i, sent := range []*testkit.Packet{first, second} {
			want := map[bool]string{true: "198.51.100.1:53 > 10.1.0.2", false: "10.96.0.1:80 > 192.0.2.1"}[order[i] == pod(port)]
			if answer := answer1(t, s, sent); fmt.Sprintf("%s > %s", answer.Source, answer.Dest) != fmt.Sprintf("%s:%d", want, port) {
				t.Errorf("%s is answered by %s, want %s:%d", order[i], answer, want, port)
			}
		}
	}
}

func TestAMappingGoesWithItsFlow(t *testing.T) {
	s := natStage(t)
	send1(t, s, "from_pod 1 tcp 10.1.0.2:5003 > 198.51.100.1:80 syn")
	send1(t, s, "from_pod 1 icmp 10.1.0.2 > 198.51.100.1 echo id=9")
	if got, _ := s.do("sweep all force"); got != "removed=2 kept=0" {
		t.Error(got)
	}
	if got, _ := s.do("nat"); got != "none" {
		t.Errorf("left behind: %s", got)
	}
}

// nodePortStage has a service at a port of the node.
func nodePortStage(t *testing.T, service string) *stage {
	s := natStage(t)
	for _, command := range []string{"address 192.0.2.1 peer=1 flags=host,cluster,node-port", service} {
		if _, err := s.do(command); err != nil {
			t.Fatal(err)
		}
	}
	return s
}

// A client outside opens connection after connection from one port. Each goes to one backend, though the flow before it ends with its SYN.
func TestAPortThatIsUsedAgainHasOneBackendForEachConnection(t *testing.T) {
	s := nodePortStage(t, "service tcp 0.0.0.0:30080 198.51.100.1:80 198.51.100.2:80 198.51.100.3:80 198.51.100.4:80 flags=external")
	for i := range 20 {
		opened := send1(t, s, "net_in tcp 198.51.100.77:4000 > 192.0.2.1:30080 syn")
		send1(t, s, fmt.Sprintf("net_in tcp %s > %s syn ack", opened.Dest, opened.Source))
		for _, flags := range []string{"ack", "ack", "fin ack"} {
			if next := send1(t, s, "net_in tcp 198.51.100.77:4000 > 192.0.2.1:30080 "+flags); next.Dest != opened.Dest {
				t.Fatalf("connection %d began with %s and goes on (%s) with %s", i, opened.Dest, flags, next.Dest)
			}
		}
		send1(t, s, fmt.Sprintf("net_in tcp %s > %s fin ack", opened.Dest, opened.Source))
	}
}

// It is reached under the node's address like any other, and its mapping goes with its flow.
func TestAClientOutsideThatIsTheBackendItselfLeavesNoMapping(t *testing.T) {
	s := nodePortStage(t, "service udp 0.0.0.0:30099 198.51.100.77:5353 flags=external")
	sent := send1(t, s, "net_in udp 198.51.100.77:1400 > 192.0.2.1:30099")
	if answer := answer1(t, s, sent); answer.Source.String() != "192.0.2.1:30099" || answer.Dest.String() != "198.51.100.77:1400" {
		t.Errorf("%s is answered by %s", sent, answer)
	}
	for _, command := range []string{"sweep all force", "flows", "nat"} {
		if got, err := s.do(command); err != nil || (got != "none" && command != "sweep all force") {
			t.Errorf("%s: %s, %v", command, got, err)
		}
	}
}
