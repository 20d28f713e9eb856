package lab

import (
	"bytes"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"

	agentv1 "tendril.io/tendril/api/agent/v1"
	"tendril.io/tendril/internal/lab"
)

const echoPort = 7

// A node port, asked at node1 for an echo server on node2.
const echoService = `
apiVersion: v1
kind: Service
metadata: {name: echo, namespace: shop}
spec:
  type: NodePort
  ipFamilyPolicy: RequireDualStack
  clusterIPs: ["10.96.1.7", "fd96::1:7"]
  clusterIP: 10.96.1.7
  ports:
    - {name: tcp, protocol: TCP, port: 7, nodePort: %[1]d}
    - {name: udp, protocol: UDP, port: 7, nodePort: %[1]d}
---
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {name: echo-4, namespace: shop, labels: {kubernetes.io/service-name: echo}}
addressType: IPv4
ports: [{name: tcp, protocol: TCP, port: 7}, {name: udp, protocol: UDP, port: 7}]
endpoints: [{addresses: ["%[2]s"], nodeName: node2, conditions: {ready: true}}]
---
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {name: echo-6, namespace: shop, labels: {kubernetes.io/service-name: echo}}
addressType: IPv6
ports: [{name: tcp, protocol: TCP, port: 7}, {name: udp, protocol: UDP, port: 7}]
endpoints: [{addresses: ["%[3]s"], nodeName: node2, conditions: {ready: true}}]
`

// echoEdge is a lab whose node1 leads clients outside to an echo server on node2.
func echoEdge(t *testing.T, config lab.Config) *cluster {
	t.Helper()
	config.Nodes = 2
	c := up(t, config)
	pod := c.add(t, "node2", "echo", "echo")
	if _, err := c.StartEcho(t.Context(), pod.Place, echoPort); err != nil {
		t.Fatal(err)
	}
	c.apply(t, manifest(t, fmt.Sprintf(echoService, edgePort, pod.Addr(4), pod.Addr(6))))
	return c
}

func TestXDPCarriesServicesWhileItsAgentIsAway(t *testing.T) {
	const load = 4 << 20
	c := echoEdge(t, lab.Config{XDP: "native"})
	addrs := c.nodeAddrs(t, "node1")
	var ends []func()
	var kept []net.Conn // connections that are older than the agent will be
	for _, addr := range addrs {
		at := netip.AddrPortFrom(addr, edgePort)
		kept = append(kept, c.dialEcho(t, at))
		ends = append(ends, c.probe(t, c.Outside(), lab.ProbeUDP, at), c.probe(t, c.Outside(), lab.ProbeTCP, at))
	}
	before := c.carried(t, "node1", "xdp")
	c.restart(t, "node1", func() { echoes(t, kept, 1000) })
	echoes(t, kept, 1000)
	for _, end := range ends { // before the loads, which are more than a veth device's queue takes
		end()
	}
	c.restart(t, "node1", func() { echoes(t, kept, load) })
	var fresh []net.Conn
	for _, addr := range addrs {
		fresh = append(fresh, c.dialEcho(t, netip.AddrPortFrom(addr, edgePort)))
	}
	echoes(t, append(fresh, kept...), load)
	// A load passes node1 on its way there and on its way back.
	if got, want := c.carried(t, "node1", "xdp")-before, uint64(3*len(addrs)*2*load); got < want {
		t.Errorf("XDP carried %d bytes, want at least %d", got, want)
	}
	if got := c.carried(t, "node2", "xdp"); got != 0 {
		t.Errorf("node2 has the backend, and XDP carried %d bytes", got)
	}
}

func TestXDPOnVethIsOffUnlessItIsAskedFor(t *testing.T) {
	c := up(t, lab.Config{Nodes: 1})
	c.xdp(t, "auto", "off", "eth0 is a veth device: ")
	pin := occupy(t, c.Name)
	if _, err := c.NodeExec(t.Context(), "node1", "ip", "link", "set", "dev", "eth0", "xdpdrv", "pinned", pin); err != nil {
		t.Fatal(err)
	}
	c.XDP = "native"
	if err := c.KillAgent(t.Context(), "node1", syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	err := c.StartAgent(t.Context(), "node1")
	if want := "uplink eth0: attach xdp_in to device "; err == nil || !strings.Contains(err.Error(), want) || !strings.Contains(err.Error(), "set xdp to auto") {
		t.Fatalf("another program is on the device, and the agent says %v", err)
	}
	if _, err := c.NodeExec(t.Context(), "node1", "ip", "link", "set", "dev", "eth0", "xdpdrv", "off"); err != nil {
		t.Fatal(err)
	}
	if err := c.StartAgent(t.Context(), "node1"); err != nil {
		t.Fatal(err)
	}
	c.xdp(t, "native", "native", "")
}

// xdp wants node1's status to say this of XDP; reason is how it begins.
func (c *cluster) xdp(t *testing.T, wanted, mode, reason string) {
	t.Helper()
	status, err := c.Status(t.Context(), "node1")
	if err != nil {
		t.Fatal(err)
	}
	got := status.GetXdp()
	if got.GetWanted() != wanted || got.GetMode() != mode || !strings.HasPrefix(got.GetReason(), reason) || (reason == "") != (got.GetReason() == "") {
		t.Errorf("the status says %v, want %s, which comes to %s for a reason like %q", got, wanted, mode, reason)
	}
}

// occupy pins an XDP program that is another's.
func occupy(t *testing.T, name string) (pin string) {
	t.Helper()
	program, err := ebpf.NewProgram(&ebpf.ProgramSpec{
		Type: ebpf.XDP, License: "GPL", Instructions: asm.Instructions{asm.Mov.Imm(asm.R0, 2), asm.Return()}, // XDP_PASS
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { program.Close() })
	pin = "/sys/fs/bpf/" + name + "-other"
	if err := program.Pin(pin); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.Remove(pin) })
	return pin
}

// restart kills a node's agent, and starts it again when away has returned.
func (c *cluster) restart(t *testing.T, node string, away func()) {
	t.Helper()
	if err := c.KillAgent(t.Context(), node, syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	away()
	if err := c.StartAgent(t.Context(), node); err != nil {
		t.Fatal(err)
	}
}

// dialEcho opens a connection from outside for the test's time.
func (c *cluster) dialEcho(t *testing.T, at netip.AddrPort) net.Conn {
	t.Helper()
	conn, err := c.Outside().Dial(t.Context(), "tcp", at.String())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	return conn
}

// carried is how many bytes a hook of a node has sent on.
func (c *cluster) carried(t *testing.T, node, hook string) uint64 {
	t.Helper()
	agent, err := c.Agent(node)
	if err != nil {
		t.Fatal(err)
	}
	reply, err := agent.Counters(t.Context(), &agentv1.CountersRequest{})
	if err != nil {
		t.Fatal(err)
	}
	for _, counter := range reply.Counters {
		if counter.Hook == hook && counter.Reason == "forwarded" {
			return counter.Bytes
		}
	}
	return 0
}

// echoes sends so many bytes by each connection, one after another, and wants the same back.
func echoes(t *testing.T, conns []net.Conn, size int) {
	t.Helper()
	for _, conn := range conns {
		if err := echo(conn, size, time.Minute); err != nil {
			t.Fatalf("%d bytes by %s: %v", size, conn.RemoteAddr(), err)
		}
	}
}

// echo sends so many bytes to an echo server and reads them back.
func echo(conn net.Conn, size int, patience time.Duration) error {
	sent, got := make([]byte, size), make([]byte, size)
	_, _ = rand.Read(sent)
	if err := conn.SetDeadline(time.Now().Add(patience)); err != nil {
		return err
	}
	written := make(chan error, 1)
	go func() {
		_, err := conn.Write(sent)
		written <- err
	}()
	_, err := io.ReadFull(conn, got)
	if err := errors.Join(err, <-written); err != nil {
		return err
	}
	if !bytes.Equal(got, sent) {
		return errors.New("other bytes come back")
	}
	return nil
}
