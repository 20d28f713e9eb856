package lab

import (
	"encoding/binary"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"os"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	agentv1 "tendril.io/tendril/api/agent/v1"
	"tendril.io/tendril/internal/lab"
	"tendril.io/tendril/internal/testkit"
)

// floodVariable makes the test binary send SYNs to the address and port that it holds, until it is killed: under forged addresses, or
// under those of a prefix that stands behind.
const floodVariable = "TENDRIL_TEST_FLOOD"

// A flood comes in bursts, as many SYNs a second as it takes to fill the quota at once, and not so many that the machine has no time
// for who is to be served meanwhile.
const (
	floodBurst = 100
	floodPause = 10 * time.Millisecond
)

// runFlood is the process that sends.
func runFlood(target string) int {
	if err := flood(target); err != nil {
		fmt.Fprintln(os.Stderr, err)
	}
	return 1
}

func flood(text string) error {
	to, sender, named := strings.Cut(text, " ")
	target, err := netip.ParseAddrPort(to)
	if err != nil {
		return err
	}
	domain, senders, hop := unix.AF_INET6, netip.MustParsePrefix("2001:db8:f100::/48"), unix.Sockaddr(&unix.SockaddrInet6{Addr: target.Addr().As16()})
	if target.Addr().Is4() {
		domain, senders, hop = unix.AF_INET, netip.MustParsePrefix("198.18.0.0/15"), &unix.SockaddrInet4{Addr: target.Addr().As4()}
	}
	if named {
		if senders, err = netip.ParsePrefix(sender); err != nil {
			return err
		}
	}
	fd, err := unix.Socket(domain, unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.IPPROTO_RAW) // the headers come with the packets
	if err != nil {
		return err
	}
	for {
		for range floodBurst {
			from := netip.AddrPortFrom(someAddr(senders), uint16(1024+rand.IntN(60000)))
			if err := unix.Sendto(fd, synOf(from, target), 0, hop); err != nil && err != unix.ENOBUFS {
				return err
			}
		}
		time.Sleep(floodPause)
	}
}

// someAddr is any address of a prefix.
func someAddr(prefix netip.Prefix) netip.Addr {
	bytes := prefix.Addr().AsSlice()
	for i := prefix.Bits() / 8; i < len(bytes); i++ {
		mask := byte(0xff)
		if i == prefix.Bits()/8 {
			mask >>= prefix.Bits() % 8
		}
		bytes[i] |= byte(rand.Uint32()) & mask
	}
	addr, _ := netip.AddrFromSlice(bytes)
	return addr
}

// synOf is the first packet of a connection (RFC 9293, 3.1), in an IPv4 or IPv6 packet.
func synOf(from, to netip.AddrPort) []byte {
	const size, syn, window = 20, 2, 64240
	tcp := binary.BigEndian.AppendUint16(nil, from.Port())
	tcp = binary.BigEndian.AppendUint16(tcp, to.Port())
	tcp = binary.BigEndian.AppendUint32(tcp, rand.Uint32())
	tcp = append(tcp, 0, 0, 0, 0, size/4<<4, syn)
	tcp = binary.BigEndian.AppendUint16(tcp, window)
	tcp = append(tcp, 0, 0, 0, 0)
	sum := testkit.Checksum(from.Addr().AsSlice(), to.Addr().AsSlice(), []byte{0, unix.IPPROTO_TCP, 0, size}, tcp)
	binary.BigEndian.PutUint16(tcp[16:], sum)
	var packet []byte
	if from.Addr().Is4() {
		packet = []byte{0x45, 0, 0, 20 + size, 0, 0, 0, 0, 64, unix.IPPROTO_TCP, 0, 0} // the kernel fills the checksum
	} else {
		packet = []byte{0x60, 0, 0, 0, 0, size, unix.IPPROTO_TCP, 64}
	}
	packet = append(packet, from.Addr().AsSlice()...)
	packet = append(packet, to.Addr().AsSlice()...)
	return append(packet, tcp...)
}

// A flood of SYNs under forged addresses at a node port takes the quota of clients outside and no more: who has a connection keeps it,
// and pods and nodes open new ones, to the service that is flooded, too.
func TestAFloodAtANodePortDisturbsNoConnection(t *testing.T) {
	const flows, quota = 32768, 32768 / 8
	c := up(t, lab.Config{Nodes: 2, MapSizes: map[string]uint32{"flows": flows}})
	s := served{Name: "echo", Spec: "type: NodePort", NodePort: edgePort, Last: 1}
	for name, node := range map[string]string{"echo-1": "node1", "echo-2": "node2"} {
		pod := c.add(t, node, name, "echo")
		if _, err := c.StartEcho(t.Context(), pod.Place, 80); err != nil {
			t.Fatal(err)
		}
		s.Pods = append(s.Pods, pod)
	}
	near, far := c.add(t, "node1", "client", "client"), c.add(t, "node2", "far", "client")
	c.offer(t, s)
	var ends []func()
	for i, cluster := range []string{"10.96.1.1", "fd96::1:1"} {
		inside, outside := netip.AddrPortFrom(netip.MustParseAddr(cluster), 80), netip.AddrPortFrom(c.nodeAddrs(t, "node1")[i], edgePort)
		ends = append(ends, c.probe(t, c.Outside(), lab.ProbeTCP, outside), c.probe(t, near.Place, lab.ProbeTCP, inside))
		for _, place := range append(c.hosts(t), near.Place, far.Place, c.stray("client")) {
			ends = append(ends, c.probe(t, place, lab.ProbeConnect, inside))
		}
	}
	for _, addr := range c.nodeAddrs(t, "node1") {
		c.startFlood(t, c.Outside(), netip.AddrPortFrom(addr, edgePort).String())
	}
	time.Sleep(5 * time.Second)
	for _, end := range ends {
		end()
	}
	got := c.dropped(t, "node1", "outside-quota")
	t.Logf("%d packets dropped as outside-quota, %d flows of %d", got, c.flowsOf(t, "node1"), flows)
	if got < quota {
		t.Errorf("%d packets dropped as outside-quota, want at least %d: the flood did not fill it", got, quota)
	}
	for _, node := range c.NodeNames() { // a flow and a service entry for each place in the quota, and what the probes have
		if used := c.flowsOf(t, node); used > flows/2 {
			t.Errorf("%s has %d flows of %d", node, used, flows)
		}
		if got := c.dropped(t, node, "flow-table-full"); got != 0 {
			t.Errorf("%s dropped %d packets as flow-table-full", node, got)
		}
	}
}

// A pod that opens connections which nobody answers, to outside and to a service, fills its own quota: its neighbours on the node go on
// and open new ones, to the same places.
func TestAFloodFromAPodDisturbsNoOther(t *testing.T) {
	const flows = 32768
	c := up(t, lab.Config{Nodes: 2, MapSizes: map[string]uint32{"flows": flows}})
	flooder, near, far := c.add(t, "node1", "flooder", "client"), c.add(t, "node1", "client", "client"), c.add(t, "node2", "far", "client")
	echo := c.add(t, "node2", "echo-1", "echo")
	for _, place := range []lab.Place{echo.Place, c.Outside()} {
		if _, err := c.StartEcho(t.Context(), place, 80); err != nil {
			t.Fatal(err)
		}
	}
	c.offer(t, served{Name: "echo", Spec: "type: ClusterIP", Last: 1, Pods: []*lab.Pod{echo}})
	services := []string{"10.96.1.1", "fd96::1:1"}
	var ends []func()
	for i, outside := range lab.OutsideAddrs() {
		service, outside := netip.AddrPortFrom(netip.MustParseAddr(services[i]), 80), netip.AddrPortFrom(outside, 80)
		ends = append(ends, c.probe(t, near.Place, lab.ProbeTCP, service), c.probe(t, near.Place, lab.ProbeTCP, outside))
		for _, place := range []lab.Place{near.Place, far.Place, c.stray("client"), c.hosts(t)[0]} {
			ends = append(ends, c.probe(t, place, lab.ProbeConnect, service), c.probe(t, place, lab.ProbeConnect, outside))
		}
	}
	for i, silent := range []string{"198.51.100.66", "2001:db8:100::66"} { // nobody answers there
		if _, err := c.OutsideExec(t.Context(), "ip", "route", "add", "blackhole", silent); err != nil {
			t.Fatal(err)
		}
		from := flooder.Addrs[i]
		for _, target := range []string{silent, services[i]} {
			c.startFlood(t, flooder.Place, fmt.Sprintf("%s %s", netip.AddrPortFrom(netip.MustParseAddr(target), 80), netip.PrefixFrom(from, from.BitLen())))
		}
	}
	time.Sleep(5 * time.Second)
	for _, end := range ends {
		end()
	}
	got := c.dropped(t, "node1", "half-open-quota")
	t.Logf("%d packets dropped as half-open-quota, %d flows of %d", got, c.flowsOf(t, "node1"), flows)
	if got == 0 {
		t.Error("no packet was dropped as half-open-quota: the flood did not fill it")
	}
	for _, node := range c.NodeNames() {
		for _, reason := range []string{"flow-table-full", "nat-table-full", "nat-exhausted"} {
			if got := c.dropped(t, node, reason); got != 0 {
				t.Errorf("%s dropped %d packets as %s", node, got, reason)
			}
		}
	}
}

func (c *cluster) startFlood(t *testing.T, from lab.Place, target string) {
	t.Helper()
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	if _, err := c.Start(from, "", "env", floodVariable+"="+target, self); err != nil {
		t.Fatal(err)
	}
}

// dropped counts a node's packets of a reason.
func (c *cluster) dropped(t *testing.T, node, reason string) uint64 {
	t.Helper()
	return c.counted(t, node, func(counter *agentv1.CountersResponse_Counter) bool { return counter.GetReason() == reason })
}

// counted sums up those of a node's counters of packets that are meant.
func (c *cluster) counted(t *testing.T, node string, meant func(*agentv1.CountersResponse_Counter) bool) (packets uint64) {
	t.Helper()
	agent, err := c.Agent(node)
	if err != nil {
		t.Fatal(err)
	}
	list, err := agent.Counters(t.Context(), &agentv1.CountersRequest{})
	if err != nil {
		t.Fatal(err)
	}
	for _, counter := range list.GetCounters() {
		if meant(counter) {
			packets += counter.GetPackets()
		}
	}
	return packets
}

// flowsOf counts a node's entries of flows.
func (c *cluster) flowsOf(t *testing.T, node string) uint64 {
	t.Helper()
	status, err := c.Status(t.Context(), node)
	if err != nil {
		t.Fatal(err)
	}
	for _, use := range status.GetMaps() {
		if use.GetName() == "flows" {
			return use.GetEntries()
		}
	}
	t.Fatalf("%s does not say how many flows it has", node)
	return 0
}
