package lab

import (
	"context"
	"fmt"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"strings"
	"testing"
	"time"

	"tendril.io/tendril/internal/lab"
)

// The wires that test/kernels gives a guest (vm.Wire).
const (
	wireMerging = 1 // the first device takes several segments of a TCP stream in one piece
	wirePlain   = 2
)

// wired finds a wire of the guest by its devices' link addresses, or skips the test.
func wired(t *testing.T, number int) lab.Wire {
	t.Helper()
	devices, err := net.Interfaces()
	if err != nil {
		t.Fatal(err)
	}
	var names [2]string
	for _, device := range devices {
		for end := range names {
			if device.HardwareAddr.String() == fmt.Sprintf("02:00:00:00:%02x:%02x", number, end+1) {
				names[end] = device.Name
			}
		}
	}
	if names[0] == "" || names[1] == "" {
		t.Skip("needs two virtio-net devices that are joined; test/kernels runs this test in a guest that has them")
	}
	return lab.Wire{Uplink: names[0], Port: names[1]}
}

// The driver has XDP, so it is used without being asked for. The peer leaves checksums and segments to its device, as virtio devices of one
// machine do: the bytes come back as they were only if the driver has the machine complete them before a program sees them.
func TestXDPOnVirtio(t *testing.T) {
	c := echoEdge(t, lab.Config{Wires: map[string]lab.Wire{"node1": wired(t, wirePlain)}})
	c.xdp(t, "auto", "native", "")
	c.carriesXDP(t)
	c.yields(t)
}

// A driver that merges segments would have to stop it, so a program is on it only if somebody asks.
func TestXDPOnADriverThatMerges(t *testing.T) {
	c := echoEdge(t, lab.Config{Wires: map[string]lab.Wire{"node1": wired(t, wireMerging)}})
	c.xdp(t, "auto", "off", "eth0 receives segments in one piece (rx-gro-hw)")
	c.XDP = "native"
	c.restart(t, "node1", func() {})
	c.xdp(t, "native", "native", "")
	c.carriesXDP(t)
}

// carriesXDP has node1's uplink carry transfers of every family and protocol to node2, and take what is node1's own.
func (c *cluster) carriesXDP(t *testing.T) {
	t.Helper()
	const load = 4 << 20
	own := lab.Place{}
	for _, place := range c.hosts(t) {
		if place.Name == "node1" {
			own = place
		}
	}
	if _, err := c.StartEcho(t.Context(), own, echoPort); err != nil {
		t.Fatal(err)
	}
	var led, stay []net.Conn
	for _, addr := range c.nodeAddrs(t, "node1") {
		led = append(led, c.dialEcho(t, netip.AddrPortFrom(addr, edgePort)))
		stay = append(stay, c.dialEcho(t, netip.AddrPortFrom(addr, echoPort)))
	}
	before := c.carried(t, "node1", "xdp")
	echoes(t, led, load)
	if got, want := c.carried(t, "node1", "xdp")-before, uint64(len(led)*2*load); got < want {
		t.Errorf("XDP carried %d bytes of TCP, want at least %d", got, want)
	}
	echoes(t, stay, load)
	for _, addr := range c.nodeAddrs(t, "node1") {
		before := c.carried(t, "node1", "xdp")
		c.datagrams(t, netip.AddrPortFrom(addr, edgePort))
		if c.carried(t, "node1", "xdp") == before {
			t.Errorf("XDP carried no datagram to %s", addr)
		}
	}
}

// datagrams has echoes of several sizes come back to ports of outside: each port's first packet opens a flow, and others can be carried.
func (c *cluster) datagrams(t *testing.T, at netip.AddrPort) {
	t.Helper()
	for _, size := range []int{1, 2, 511, 1400} {
		eventually(t, fmt.Sprintf("%d bytes by UDP from %s", size, at), time.Minute, func(ctx context.Context) error {
			conn, err := c.Outside().Dial(ctx, "udp", at.String())
			if err != nil {
				return err
			}
			defer conn.Close()
			for range 3 {
				if err := echo(conn, size, 5*time.Second); err != nil {
					return err
				}
			}
			return nil
		})
	}
}

// yields has an agent that is not told to use XDP start beside another's program, and on a device whose frames are too large for one.
func (c *cluster) yields(t *testing.T) {
	t.Helper()
	c.XDP = "off"
	c.restart(t, "node1", func() {})
	c.xdp(t, "off", "off", "")
	pin := occupy(t, c.Name)
	for _, at := range []struct {
		mode, reason string
		settings     []string
	}{
		{"off", "eth0 has another program: ", []string{"xdpdrv pinned " + pin}},
		{"off", "eth0's driver has no XDP, or none with its present settings: ", []string{"xdpdrv off", "mtu 9000"}},
		{"native", "", []string{"mtu 1500"}},
	} {
		c.XDP = ""
		c.restart(t, "node1", func() {
			for _, setting := range at.settings {
				if _, err := c.NodeExec(t.Context(), "node1", strings.Fields("ip link set dev eth0 "+setting)...); err != nil {
					t.Fatal(err)
				}
			}
		})
		c.xdp(t, "auto", at.mode, at.reason)
	}
}

// A driver without XDP is left alone: macvlan's, on a veth pair.
func TestXDPOnADriverWithoutItIsOff(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("needs root: it makes devices and namespaces")
	}
	name := "t" + randomName()
	lower, uplink, port := name+"l", name+"u", name+"p"
	for _, command := range []string{
		"link add " + lower + " type veth peer name " + port, "link set " + lower + " up", "link add link " + lower + " name " + uplink + " type macvlan",
	} {
		if out, err := exec.Command("ip", strings.Fields(command)...).CombinedOutput(); err != nil {
			t.Fatalf("ip %s: %v: %s", command, err, out)
		}
	}
	t.Cleanup(func() { _ = exec.Command("ip", "link", "del", lower).Run() })
	c := up(t, lab.Config{Nodes: 1, Wires: map[string]lab.Wire{"node1": {Uplink: uplink, Port: port}}})
	c.xdp(t, "auto", "off", "eth0's driver has no XDP, or none with its present settings: ")
}
