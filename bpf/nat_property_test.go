package bpf

import (
	"bytes"
	"fmt"
	"maps"
	"net"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"github.com/cilium/ebpf"
	gocmp "github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"

	"tendril.io/tendril/internal/testkit"
)

// natWorld is a node beside the reference of what it does to packets: three pods that speak to the outside, clients of a node port
// whose backend is on another node, and the node itself.
type natWorld struct {
	*stage
	t      *rapid.T
	model  *translator
	tunnel bool // to the other node
}

// natFamily is what the world has in one family.
type natFamily struct {
	node, router       netip.Addr
	pods, far, callers []netip.Addr
	backend            netip.AddrPort
}

var natFamilies = []natFamily{
	{netip.MustParseAddr("192.0.2.1"), netip.MustParseAddr("198.51.100.250"),
		[]netip.Addr{netip.MustParseAddr("10.1.0.2"), netip.MustParseAddr("10.1.0.3"), netip.MustParseAddr("10.1.0.4")},
		[]netip.Addr{netip.MustParseAddr("198.51.100.1"), netip.MustParseAddr("198.51.100.2")},
		[]netip.Addr{netip.MustParseAddr("198.51.100.1"), netip.MustParseAddr("198.51.100.7")}, netip.MustParseAddrPort("10.2.0.2:5353")},
	{netip.MustParseAddr("2001:db8::1"), netip.MustParseAddr("2001:db9::250"),
		[]netip.Addr{netip.MustParseAddr("fd01::2"), netip.MustParseAddr("fd01::3"), netip.MustParseAddr("fd01::4")},
		[]netip.Addr{netip.MustParseAddr("2001:db9::1"), netip.MustParseAddr("2001:db9::2")},
		[]netip.Addr{netip.MustParseAddr("2001:db9::1"), netip.MustParseAddr("2001:db9::7")}, netip.MustParseAddrPort("[fd02::2]:5353")},
}

const (
	natSocketPort  = 5001  // of sockets of the node, TCP and UDP
	natServicePort = 40005 // of the node port, within the range that is fallen back on
)

// natPorts are few, so that flows collide; two are of the range.
var natPorts = []uint16{5000, natSocketPort, 40000, 40004, natServicePort}

// newNATWorld loads the programs once for all histories.
func newNATWorld(t *testing.T, tunnel bool) *natWorld {
	needRoot(t)
	config := testConfig()
	config.HalfOpenLimit, config.OutsideHalfOpenLimit = 1<<20, 1<<20
	s := newStageOf(t, config, nil)
	by := map[bool]string{true: ",tunnel"}[tunnel]
	for _, command := range []string{
		"program 1 allow", "uplink 100 192.0.2.1 2001:db8::1", "node 2 hop4=192.0.2.2 hop6=2001:db8::2 ifindex=100 tunnel=192.0.2.2",
		"address 192.0.2.1 peer=1 flags=host,cluster,node-port", "address 2001:db8::1 peer=1 flags=host,cluster,node-port",
		"address 10.2.0.2 peer=30 node=2 flags=cluster" + by, "address fd02::2 peer=30 node=2 flags=cluster" + by,
		"endpoint 1 10.1.0.2 fd01::2 peer=20 egress=1 ingress=1", "endpoint 2 10.1.0.3 fd01::3 peer=20 egress=1 ingress=1",
		"endpoint 3 10.1.0.4 fd01::4 peer=20 egress=1 ingress=1", fmt.Sprintf("listen 192.0.2.1:%d", natSocketPort),
		fmt.Sprintf("listen [2001:db8::1]:%d", natSocketPort),
	} {
		if _, err := s.do(command); err != nil {
			t.Fatalf("%s: %v", command, err)
		}
	}
	for _, f := range natFamilies {
		socket, err := net.ListenUDP("udp", net.UDPAddrFromAddrPort(netip.AddrPortFrom(f.node, natSocketPort)))
		if err != nil {
			t.Fatal(err)
		}
		s.sockets = append(s.sockets, socket)
		for _, protocol := range []string{"tcp", "udp", "sctp"} {
			anywhere := netip.IPv4Unspecified()
			if f.node.Is6() {
				anywhere = netip.IPv6Unspecified()
			}
			if _, err := s.do(fmt.Sprintf("service %s %s %s flags=external", protocol, netip.AddrPortFrom(anywhere, natServicePort), f.backend)); err != nil {
				t.Fatal(err)
			}
		}
	}
	return &natWorld{stage: s, tunnel: tunnel}
}

// begin empties the tables, and the reference with them.
func (w *natWorld) begin(t *rapid.T) {
	w.t = t
	w.sweepNow("all force")
	w.model = newTranslator(40000, 40009, func(protocol string, near netip.AddrPort) bool {
		switch near.Port() {
		case natSocketPort:
			return protocol == "tcp" || protocol == "udp"
		case natServicePort:
			return protocol != "icmp"
		}
		return false
	})
}

// sweepNow removes flows, and forgets where there was no free port.
func (w *natWorld) sweepNow(how string) {
	if _, err := w.do("sweep " + how); err != nil {
		w.t.Fatal(err)
	}
	var key NATKey
	var until uint64
	var keys []NATKey
	for entries := w.maps["nat_pauses"].Iterate(); entries.Next(&key, &until); {
		keys = append(keys, key)
	}
	for _, key := range keys {
		_ = w.maps["nat_pauses"].Delete(key)
	}
}

// pass runs a packet through a program. A packet that comes out must have right checksums, also the one that it quotes.
func (w *natWorld) pass(program string, ctx skBuff, p *testkit.Packet) (code uint32, out *testkit.Packet) {
	frame := p.Bytes()
	options := &ebpf.RunOptions{Data: frame, DataOut: make([]byte, len(frame)+256), Context: ctx}
	code, err := w.programs[program].Run(options)
	if err != nil {
		w.t.Fatal(err)
	}
	out, err = testkit.DecodePacket(options.DataOut)
	if err != nil {
		w.t.Fatal(err)
	}
	if out.BadSum || (out.Quoted != nil && out.Quoted.BadSum && !bytes.Equal(frame, options.DataOut)) {
		w.t.Fatalf("%s: %s became %s", program, p, out)
	}
	return code, out
}

// fromWire is a packet of another machine; want is the packet that must come out, nil: to the node's stack as it is.
func (w *natWorld) fromWire(p, want *testkit.Packet) {
	w.t.Helper()
	program, ctx := "net_in", skBuff{IfIndex: 100}
	if w.tunnel && p.Source.Addr() == w.family(p.Source.Addr()).backend.Addr() {
		program, ctx = "from_tunnel", skBuff{IfIndex: 1, CB: [5]uint32{0xc0000202, 7}} // 192.0.2.2, and the overlay's number
	}
	code, got := w.pass(program, ctx, p)
	wantCode := uint32(7)
	if want == nil || slices.Contains([]netip.Addr{natFamilies[0].node, natFamilies[1].node}, want.Dest.Addr()) {
		wantCode = 0
	}
	if want == nil {
		want = p
	}
	if code != wantCode || got.String() != want.String() {
		w.t.Fatalf("%s %s: code %d, %s, want code %d, %s", program, p, code, got, wantCode, want)
	}
}

// packet is one of a flow, from near to far.
func (w *natWorld) packet(flow tuple, again bool) *testkit.Packet {
	p := &testkit.Packet{Protocol: flow.protocol, Source: flow.near, Dest: flow.far, TTL: 64, SourceMAC: 1, DestMAC: 2,
		Len: rapid.IntRange(0, 40).Draw(w.t, "length")}
	switch {
	case flow.protocol == "icmp":
		p.Source, p.Dest = netip.AddrPortFrom(flow.near.Addr(), 0), netip.AddrPortFrom(flow.far.Addr(), 0)
		p.ID, p.Type = int(flow.near.Port()), map[bool]int{true: 8, false: 128}[flow.near.Addr().Is4()]
	case flow.protocol == "tcp" && again:
		p.Words = []string{"ack"}
	case flow.protocol == "tcp":
		p.Words = []string{"syn"}
	}
	return p
}

// answer is one of the same flow from far to near.
func (w *natWorld) answer(flow tuple) *testkit.Packet {
	p := w.packet(flow, true)
	p.Source, p.Dest = p.Dest, p.Source
	if flow.protocol == "icmp" {
		p.Type = map[bool]int{true: 0, false: 129}[flow.near.Addr().Is4()]
	}
	return p
}

// problem is a router's error about a packet.
func (w *natWorld) problem(router netip.Addr, to netip.AddrPort, about *testkit.Packet) *testkit.Packet {
	p := &testkit.Packet{Protocol: "icmp", Source: netip.AddrPortFrom(router, 0), Dest: netip.AddrPortFrom(to.Addr(), 0),
		Type: 3, Code: 1, TTL: 64, SourceMAC: 1, DestMAC: 2}
	if router.Is6() {
		p.Type, p.Code = 1, 3
	}
	quoted := *about
	quoted.SourceMAC, quoted.DestMAC, quoted.TTL = 1, 2, 64
	p.Quoted = &quoted
	return p
}

// arrives is the packet as whoever is at that address gets it: a pod by its device, another machine after a hop, the node untouched.
func (w *natWorld) arrives(p *testkit.Packet, at netip.Addr) *testkit.Packet {
	got := *p
	for _, f := range natFamilies {
		if at == f.node {
			return &got
		}
		if i := slices.Index(f.pods, at); i >= 0 {
			got.SourceMAC, got.DestMAC = byte(i+101), byte(i+1)
		}
	}
	got.TTL--
	return &got
}

// leaves sends a packet of a flow by a program, and checks and learns how it leaves. asked is whom the sender names as far end.
func (w *natWorld) leaves(program string, ctx skBuff, flow tuple, asked netip.AddrPort) {
	w.t.Helper()
	f := w.family(flow.far.Addr())
	known, again := w.model.flows[flow]
	p := w.packet(tuple{flow.protocol, flow.near, asked}, again)
	exhausted := w.reasons()[DropNATExhausted]
	code, got := w.pass(program, ctx, p)
	if code == 2 {
		if choices := w.model.choices(flow, f.node); again || len(choices) > 0 || w.reasons()[DropNATExhausted] != exhausted+1 {
			w.t.Fatalf("%s: %s was dropped, and might leave by the ports %d", program, p, choices)
		}
		return
	}
	port := got.Source.Port()
	if flow.protocol == "icmp" {
		port = uint16(got.ID)
	}
	near := netip.AddrPortFrom(got.Source.Addr(), port)
	switch {
	case again && near != known.outside.near:
		w.t.Fatalf("%s: %s left as %s, and before from %s", program, p, got, known.outside.near)
	case !again:
		var service netip.AddrPort
		if asked != flow.far {
			service = asked
		}
		if choices := w.model.choices(flow, f.node); near.Addr() != f.node || !w.model.learn(flow, near, service) {
			w.t.Fatalf("%s: %s left as %s, want one of the ports %d of %s", program, p, got, choices, f.node)
		}
	}
	want := w.withEnds(p, tuple{flow.protocol, near, flow.far})
	switch program {
	case "net_out":
	case "tunnel_out":
		want.SourceMAC ^= 1 // its own: vxlan drops a frame from the overlay device's
	default:
		want.TTL--
	}
	if got.String() != want.String() {
		w.t.Fatalf("%s: %s left as %s, want %s", program, p, got, want)
	}
}

// withEnds is a packet with other ends.
func (w *natWorld) withEnds(p *testkit.Packet, ends tuple) *testkit.Packet {
	other := *p
	other.Source, other.Dest = ends.near, ends.far
	if ends.protocol == "icmp" {
		other.Source, other.Dest = netip.AddrPortFrom(ends.near.Addr(), 0), netip.AddrPortFrom(ends.far.Addr(), 0)
		other.ID = int(ends.near.Port())
	}
	return &other
}

func (w *natWorld) family(addr netip.Addr) natFamily {
	if addr.Is4() {
		return natFamilies[0]
	}
	return natFamilies[1]
}

// drawFlow draws a flow to the outside of whoever is at near.
func (w *natWorld) drawFlow(near netip.Addr, protocols ...string) tuple {
	f := w.family(near)
	flow := tuple{protocol: rapid.SampledFrom(protocols).Draw(w.t, "protocol"),
		near: netip.AddrPortFrom(near, rapid.SampledFrom(natPorts).Draw(w.t, "port")),
		far:  netip.AddrPortFrom(rapid.SampledFrom(f.far).Draw(w.t, "far"), rapid.SampledFrom([]uint16{53, 80}).Draw(w.t, "far port"))}
	if flow.protocol == "icmp" {
		flow.far = netip.AddrPortFrom(flow.far.Addr(), 0)
	}
	return flow
}

// drawKnown draws a flow that has a translation.
func (w *natWorld) drawKnown() (tuple, translation) {
	flows := slices.SortedFunc(maps.Keys(w.model.flows), func(a, b tuple) int {
		return strings.Compare(fmt.Sprint(a), fmt.Sprint(b))
	})
	if len(flows) == 0 {
		w.t.Skip("no flow yet")
	}
	flow := rapid.SampledFrom(flows).Draw(w.t, "flow")
	return flow, w.model.flows[flow]
}

func (w *natWorld) drawFamily() natFamily {
	return natFamilies[rapid.IntRange(0, 1).Draw(w.t, "family")]
}

// podSends is a pod's packet to the outside.
func (w *natWorld) podSends(*rapid.T) {
	pod := rapid.IntRange(0, 2).Draw(w.t, "pod")
	flow := w.drawFlow(w.drawFamily().pods[pod], "tcp", "udp", "sctp", "icmp")
	w.leaves("from_pod", skBuff{IfIndex: 1, CB: [5]uint32{uint32(pod + 1), uint32(pod + 101)}}, flow, flow.far)
}

// clientAsks is a client's packet to the node port, whose backend is reached under the node's address.
func (w *natWorld) clientAsks(*rapid.T) {
	f := w.drawFamily()
	client := netip.AddrPortFrom(rapid.SampledFrom(f.callers).Draw(w.t, "client"), rapid.SampledFrom(append(natPorts, 53)).Draw(w.t, "client port"))
	flow := tuple{rapid.SampledFrom([]string{"tcp", "udp", "sctp"}).Draw(w.t, "protocol"), client, f.backend}
	w.leaves("net_in", skBuff{IfIndex: 100}, flow, netip.AddrPortFrom(f.node, natServicePort))
}

// nodeSends is the node's own packet, to the outside or to the node port's backend: left alone, unless it would be taken for another's.
func (w *natWorld) nodeSends(*rapid.T) {
	flow := w.drawFlow(w.drawFamily().node, "tcp", "udp", "icmp")
	if flow.protocol != "icmp" && rapid.Bool().Draw(w.t, "to the backend") {
		flow.far = w.family(flow.far.Addr()).backend
	}
	program := "net_out"
	if w.tunnel && flow.far == w.family(flow.far.Addr()).backend {
		program = "tunnel_out"
	}
	_, moved := w.model.flows[flow]
	_, held := w.model.holders[flow]
	if moved || held {
		w.leaves(program, skBuff{IfIndex: 100}, flow, flow.far)
		return
	}
	p := w.packet(flow, false)
	code, got := w.pass(program, skBuff{IfIndex: 100}, p)
	if got.SourceMAC = 1; code != 0 || got.String() != p.String() { // tunnel_out gives it another link address
		w.t.Fatalf("the node's own %s: code %d, %s, want it left alone", p, code, got)
	}
}

// farAnswers is the answer to a translated packet: it goes to who sent that, from whom he asked.
func (w *natWorld) farAnswers(*rapid.T) {
	flow, known := w.drawKnown()
	p := w.answer(known.outside)
	want := w.withEnds(p, tuple{flow.protocol, p.Source, flow.near})
	want.ID = 0
	if flow.protocol == "icmp" {
		want.ID = int(flow.near.Port())
	}
	if known.service.IsValid() {
		want.Source = known.service
	}
	w.fromWire(p, w.arrives(want, flow.near.Addr()))
}

// strangerSends is a packet for an address of the node that answers nobody: the node's stack has to say so.
func (w *natWorld) strangerSends(*rapid.T) {
	flow := w.drawFlow(w.drawFamily().node, "tcp", "udp", "sctp", "icmp")
	if _, held := w.model.holders[flow]; held || flow.near.Port() == natServicePort && flow.protocol != "icmp" {
		w.t.Skip("somebody waits for it")
	}
	w.fromWire(w.answer(flow), nil)
	p := w.problem(w.family(flow.near.Addr()).router, flow.near, w.packet(flow, true))
	code, got := w.pass("net_in", skBuff{IfIndex: 100}, p)
	if code != 0 || got.String() != p.String() {
		w.t.Fatalf("%s, about nothing that is known: code %d, %s", p, code, got)
	}
}

// routerComplains is an ICMP error about a translated packet: it reaches who sent that, and quotes what he sent.
func (w *natWorld) routerComplains(*rapid.T) {
	flow, known := w.drawKnown()
	router := w.family(flow.near.Addr()).router
	if flow.far == w.family(flow.near.Addr()).backend {
		router = flow.far.Addr()
	}
	about := w.packet(known.outside, true)
	sent := flow
	if known.service.IsValid() {
		sent.far = known.service
	}
	want := w.problem(router, flow.near, w.withEnds(about, sent))
	if known.service.IsValid() { // the backend's own error comes under the name that the client knows
		want.Source = netip.AddrPortFrom(known.service.Addr(), 0)
	}
	w.fromWire(w.problem(router, known.outside.near, about), w.arrives(want, flow.near.Addr()))
}

// clientComplains is a client's own error about an answer of the service: it reaches the backend, and quotes what that sent.
func (w *natWorld) clientComplains(*rapid.T) {
	flow, known := w.drawKnown()
	if !known.service.IsValid() {
		w.t.Skip("of no service")
	}
	about := w.packet(tuple{flow.protocol, known.service, flow.near}, true)
	p := w.problem(flow.near.Addr(), known.service, about)
	want := w.problem(w.family(flow.near.Addr()).node, known.outside.far, w.withEnds(about, tuple{flow.protocol, known.outside.far, known.outside.near}))
	w.fromWire(p, w.arrives(want, known.outside.far.Addr()))
}

// flowEnds lets one flow's time run out.
func (w *natWorld) flowEnds(*rapid.T) {
	flow, _ := w.drawKnown()
	key := FlowKey{Low: AddressOf(flow.near.Addr()), High: AddressOf(flow.far.Addr()), LowPort: NetPort(flow.near.Port()),
		HighPort: NetPort(flow.far.Port()), Protocol: protocolOf(flow.protocol)}
	if flow.protocol == "icmp" {
		key.HighPort = key.LowPort
		if flow.near.Addr().Is6() {
			key.Protocol = protocolOf("icmpv6")
		}
	}
	if bytes.Compare(key.Low[:], key.High[:]) > 0 {
		key.Low, key.High, key.LowPort, key.HighPort = key.High, key.Low, key.HighPort, key.LowPort
	}
	var kept Flow
	if err := w.maps["flows"].Lookup(key, &kept); err != nil {
		w.t.Fatalf("the flow %v: %v", flow, err)
	}
	kept.Expires = 1
	if err := w.maps["flows"].Put(key, kept); err != nil {
		w.t.Fatal(err)
	}
	w.sweepNow("all")
	w.model.forget(flow)
}

// agree compares the kernel's mappings with the reference's table.
func (w *natWorld) agree(*rapid.T) {
	want, got := map[string]string{}, map[string]string{}
	for outside, flow := range w.model.holders {
		number := protocolOf(outside.protocol)
		if outside.protocol == "icmp" && outside.near.Addr().Is6() {
			number = protocolOf("icmpv6")
		}
		want[fmt.Sprint(number, outside.near, outside.far)] = flow.near.String()
	}
	var key NATKey
	var mapping NATMapping
	entries := w.maps["nat"].Iterate()
	for entries.Next(&key, &mapping) {
		got[fmt.Sprint(key.Protocol, netip.AddrPortFrom(key.Node.Addr(), Port(key.NodePort)),
			netip.AddrPortFrom(key.Remote.Addr(), Port(key.RemotePort)))] = netip.AddrPortFrom(mapping.Pod.Addr(), Port(mapping.PodPort)).String()
	}
	if diff := gocmp.Diff(want, got); diff != "" || entries.Err() != nil {
		w.t.Fatalf("mappings (-reference +kernel): %v\n%s", entries.Err(), diff)
	}
}

// Whatever pods, clients of a node port, the node and strangers send, in any order: an answer and an ICMP error reach whom they are for,
// in his own terms; no two flows have one outside tuple; a port that is free is kept; what is the node's own is left alone.
func TestAnyTrafficIsTranslatedAsTheReferenceSays(t *testing.T) {
	for name, tunnel := range map[string]bool{"native": false, "tunnel": true} {
		t.Run(name, func(t *testing.T) {
			w := newNATWorld(t, tunnel)
			rapid.Check(t, func(t *rapid.T) {
				w.begin(t)
				t.Repeat(map[string]func(*rapid.T){
					"pod sends": w.podSends, "pod sends again": w.podSends, "client asks": w.clientAsks, "node sends": w.nodeSends,
					"far answers": w.farAnswers, "stranger sends": w.strangerSends, "router complains": w.routerComplains,
					"client complains": w.clientComplains, "flow ends": w.flowEnds, "": w.agree,
				})
			})
		})
	}
}
