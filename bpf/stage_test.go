package bpf

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"slices"
	"strconv"
	"strings"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/ringbuf"
	"golang.org/x/sys/unix"
)

// The commands of a story that change or print the state. Words are name=value, lists are joined by commas.

// words splits a command's arguments into plain ones and named ones.
func words(text string) (plain []string, named map[string]string) {
	named = map[string]string{}
	for _, word := range strings.Fields(text) {
		if name, value, ok := strings.Cut(word, "="); ok {
			named[name] = value
		} else {
			plain = append(plain, word)
		}
	}
	return plain, named
}

// number reads a named number; absent is 0.
func number(named map[string]string, name string) uint32 {
	n, err := strconv.ParseUint(named[name], 10, 32)
	if err != nil {
		return 0
	}
	return uint32(n)
}

// endpoint INDEX ADDRESS4 ADDRESS6 peer=N ingress=PROGRAM egress=PROGRAM staged-ingress=PROGRAM staged-egress=PROGRAM mtu=N chained=1: a pod; its generation is INDEX+100, its link addresses
// end in INDEX (pod) and INDEX+100 (host).
func (s *stage) endpoint(text string) (string, error) {
	plain, named := words(text)
	index, err := strconv.Atoi(plain[0])
	if err != nil {
		return "", err
	}
	e := Endpoint{IfIndex: uint32(1000 + index), Generation: uint32(index + 100), Peer: number(named, "peer"),
		Ingress: number(named, "ingress"), Egress: number(named, "egress"), MTU: 1500,
		StagedIngress: number(named, "staged-ingress"), StagedEgress: number(named, "staged-egress")}
	if named["mtu"] != "" {
		e.MTU = number(named, "mtu")
	}
	if named["chained"] != "" {
		e.Flags = EndpointChained
	}
	e.PodMAC, e.HostMAC = [6]byte{2, 0, 0, 0, 0, byte(index)}, [6]byte{2, 0, 0, 0, 0, byte(index + 100)}
	e.Address4, e.Address6 = AddressOf(netip.MustParseAddr(plain[1])), AddressOf(netip.MustParseAddr(plain[2]))
	info := PeerInfo{Peer: e.Peer, Endpoint: uint32(index), Flags: AddressFlagLocalPod | AddressFlagCluster}
	return "", errors.Join(s.maps["endpoints"].Put(uint32(index), e),
		s.maps["addresses"].Put(e.Address4, info), s.maps["addresses"].Put(e.Address6, info))
}

// host ingress=PROGRAM egress=PROGRAM staged-ingress=PROGRAM staged-egress=PROGRAM: what the node is judged by; with none, nothing.
func (s *stage) host(text string) (string, error) {
	_, named := words(text)
	e := Endpoint{Ingress: number(named, "ingress"), Egress: number(named, "egress"), Peer: uint32(PeerHost),
		StagedIngress: number(named, "staged-ingress"), StagedEgress: number(named, "staged-egress")}
	if e.Ingress|e.Egress|e.StagedIngress|e.StagedEgress != 0 {
		e.IfIndex = 1
	}
	return "", s.maps["endpoints"].Put(uint32(EndpointHost), e)
}

// listen ADDRESS: a TCP socket of the node.
func (s *stage) listen(text string) (string, error) {
	socket, err := net.Listen("tcp", text)
	if err == nil {
		s.sockets = append(s.sockets, socket)
	}
	return "", err
}

// connect tcp|udp LOCAL REMOTE: a connected socket.
func (s *stage) connect(text string) (string, error) {
	plain, _ := words(text)
	var local net.Addr = net.TCPAddrFromAddrPort(netip.MustParseAddrPort(plain[1]))
	if plain[0] == "udp" {
		local = net.UDPAddrFromAddrPort(netip.MustParseAddrPort(plain[1]))
	}
	socket, err := (&net.Dialer{LocalAddr: local}).Dial(plain[0], plain[2])
	if err == nil {
		s.sockets = append(s.sockets, socket)
	}
	return "", err
}

// forget INDEX: the endpoint's record goes out of use, its addresses stay.
func (s *stage) forget(text string) (string, error) {
	index, err := strconv.Atoi(text)
	if err != nil {
		return "", err
	}
	return "", s.maps["endpoints"].Put(uint32(index), Endpoint{})
}

// address PREFIX peer=N node=N flags=LIST
func (s *stage) address(text string) (string, error) {
	plain, named := words(text)
	flags := map[string]AddressFlag{"host": AddressFlagHost, "remote-node": AddressFlagRemoteNode, "cluster": AddressFlagCluster,
		"no-masquerade": AddressFlagNoMasquerade, "tunnel": AddressFlagTunnel, "unknown": AddressFlagUnknown,
		"node-port": AddressFlagNodePort}
	info := PeerInfo{Peer: number(named, "peer"), Node: number(named, "node")}
	for name := range strings.SplitSeq(named["flags"], ",") {
		info.Flags |= flags[name]
	}
	if addr, err := netip.ParseAddr(plain[0]); err == nil {
		return "", s.maps["addresses"].Put(AddressOf(addr), info)
	}
	prefix, err := netip.ParsePrefix(plain[0])
	if err != nil {
		return "", err
	}
	return "", s.maps["prefixes"].Put(PrefixOf(prefix), info)
}

// node INDEX tunnel=ADDRESS hop4=ADDRESS hop6=ADDRESS ifindex=N
func (s *stage) node(text string) (string, error) {
	plain, named := words(text)
	index, err := strconv.Atoi(plain[0])
	if err != nil {
		return "", err
	}
	addr := func(name string) Address {
		a, _ := netip.ParseAddr(named[name])
		return AddressOf(a)
	}
	return "", s.maps["nodes"].Put(uint32(index), Node{Tunnel: addr("tunnel"), NextHop4: addr("hop4"), NextHop6: addr("hop6"),
		IfIndex: number(named, "ifindex")})
}

// uplink IFINDEX ADDRESS4 ADDRESS6
func (s *stage) uplink(text string) (string, error) {
	plain, _ := words(text)
	index, err := strconv.Atoi(plain[0])
	if err != nil {
		return "", err
	}
	return "", s.maps["uplinks"].Put(uint32(index), Uplink{Address4: AddressOf(netip.MustParseAddr(plain[1])),
		Address6: AddressOf(netip.MustParseAddr(plain[2])), MTU: 1500})
}

// announce ADDRESS for=SECONDS yields: the node answers for the address for that long, with a link address that ends in 9; for
// less than 0 the time is over; with yields it has no lease.
func (s *stage) announce(text string) (string, error) {
	plain, named := words(text)
	seconds, err := strconv.ParseInt(named["for"], 10, 32)
	if err != nil {
		return "", err
	}
	now := sinceBoot()
	row := Announcement{Until: uint64(int64(now) + seconds*1e9), MAC: [6]byte{2, 0, 0, 0, 0, 9}}
	if len(plain) > 1 {
		row.Yields = now
	}
	return "", s.maps["announcements"].Put(AddressOf(netip.MustParseAddr(plain[0])), row)
}

// sinceBoot is CLOCK_BOOTTIME in ns.
func sinceBoot() uint64 {
	var now unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_BOOTTIME, &now); err != nil {
		panic(err)
	}
	return uint64(now.Nano())
}

// rivals prints who else was heard to have an announced address.
func (s *stage) rivals(string) (string, error) {
	var lines []string
	var key Address
	var value Rival
	entries := s.maps["rivals"].Iterate()
	for entries.Next(&key, &value) {
		lines = append(lines, fmt.Sprintf("%s %s", key, net.HardwareAddr(value.MAC[:])))
	}
	return sorted(lines), entries.Err()
}

// peer INDEX class=N bits=LIST: a peer's class, and the selectors that match it.
func (s *stage) peer(text string) (string, error) {
	plain, named := words(text)
	index, err := strconv.Atoi(plain[0])
	if err != nil {
		return "", err
	}
	class := number(named, "class")
	var row ClassRow
	for text := range strings.SplitSeq(named["bits"], ",") {
		if bit, err := strconv.Atoi(text); err == nil {
			row.Word[bit/64] |= 1 << (bit % 64)
		}
	}
	if err := s.maps["class_bits"].Put(class, row); err != nil {
		return "", err
	}
	return "", s.maps["peer_class"].Put(uint32(index), class)
}

// program INDEX DEFAULT {; ACTION PORTS selector=N rank=N rule=N [argument=N]}: DEFAULT is allow or deny; PORTS is tcp/80, tcp/80-90,
// tcp (any port) or any. Content goes to fresh cells, then the descriptor is flipped, as the agent does it.
func (s *stage) program(text string) (string, error) {
	parts := strings.Split(text, ";")
	plain, _ := words(parts[0])
	index, err := strconv.Atoi(plain[0])
	if err != nil {
		return "", err
	}
	source := programSource{allow: plain[1] == "allow"}
	for _, part := range parts[1:] {
		if err := source.entry(part); err != nil {
			return "", err
		}
	}
	cells := source.compile()
	first := s.nextCell
	s.nextCell += uint32(len(cells))
	for i, cell := range cells {
		if err := s.maps["policy_cells"].Put(first+uint32(i), cell); err != nil {
			return "", err
		}
	}
	return "", s.maps["policy_programs"].Put(uint32(index), 1<<63|uint64(first))
}

// epoch N: the verdict epoch.
func (s *stage) epoch(text string) (string, error) {
	n, err := strconv.ParseUint(text, 10, 32)
	if err != nil {
		return "", err
	}
	return "", s.maps["control"].Put(uint32(ControlVerdictEpoch), uint32(n))
}

// protocols by name.
func protocolOf(name string) uint8 {
	return map[string]uint8{"icmp": 1, "tcp": 6, "udp": 17, "icmpv6": 58, "sctp": 132}[name]
}

// service PROTOCOL FRONTEND {BACKEND} flags=LIST affinity=SECONDS number=N outside=N: backends get the next free numbers; the
// first outside of them are for clients of elsewhere, of an external frontend.
func (s *stage) service(text string) (string, error) {
	plain, named := words(text)
	protocol, frontend := protocolOf(plain[0]), netip.MustParseAddrPort(plain[1])
	key := FrontendKey{Address: AddressOf(frontend.Addr()), Port: NetPort(frontend.Port()), Protocol: protocol}
	value := Frontend{Inside: SlotRange{First: s.slots, Count: uint32(len(plain) - 2)}, AffinitySeconds: number(named, "affinity"), Service: number(named, "number")}
	for flag := range strings.SplitSeq(named["flags"], ",") {
		value.Flags |= map[string]FrontendFlag{"hash": FrontendHash, "external": FrontendExternal, "guarded": FrontendGuarded, "dsr": FrontendDSR, "loopback": FrontendLoopback}[flag]
	}
	if value.Flags&FrontendExternal != 0 {
		value.Outside = value.Inside
	}
	if named["outside"] != "" {
		value.Outside.Count = number(named, "outside")
	}
	for _, text := range plain[2:] {
		end := netip.MustParseAddrPort(text)
		s.backends++
		backend := Backend{Address: AddressOf(end.Addr()), Port: NetPort(end.Port()), Protocol: protocol, State: BackendActive}
		if err := errors.Join(s.maps["backends"].Put(s.backends, backend), s.maps["slots"].Put(s.slots, s.backends)); err != nil {
			return "", err
		}
		s.slots++
	}
	return "", s.maps["frontends"].Put(key, value)
}

// guard SERVICE PREFIX: clients that the guarded frontends of a service admit.
func (s *stage) guard(text string) (string, error) {
	plain, _ := words(text)
	number, err := strconv.ParseUint(plain[0], 10, 32)
	if err != nil {
		return "", err
	}
	return "", s.maps["guards"].Put(GuardOf(uint32(number), netip.MustParsePrefix(plain[1])), uint32(1))
}

// gateway NUMBER address=ADDRESS nodes=LIST: an egress gateway in one family; self is this node.
func (s *stage) gateway(text string) (string, error) {
	plain, named := words(text)
	index, err := strconv.ParseUint(plain[0], 10, 32)
	if err != nil {
		return "", err
	}
	row := Gateway{}
	if addr, err := netip.ParseAddr(named["address"]); err == nil {
		row.Address = AddressOf(addr)
	}
	for name := range strings.SplitSeq(named["nodes"], ",") {
		node, err := strconv.ParseUint(name, 10, 32)
		if name == "self" {
			node, err = uint64(GatewaySelf), nil
		}
		if err == nil {
			row.Slots[row.Count] = uint32(node)
			row.Count++
		}
	}
	return "", s.maps["gateways"].Put(uint32(index), row)
}

// selected ADDRESS SET: a pod of a set.
func (s *stage) selected(text string) (string, error) {
	plain, _ := words(text)
	set, err := strconv.ParseUint(plain[1], 10, 32)
	if err != nil {
		return "", err
	}
	return "", s.maps["gateway_pods"].Put(AddressOf(netip.MustParseAddr(plain[0])), uint32(set))
}

// route SET PREFIX GATEWAY: by which gateway a set's pods reach a prefix.
func (s *stage) route(text string) (string, error) {
	plain, _ := words(text)
	set, err1 := strconv.ParseUint(plain[0], 10, 32)
	gateway, err2 := strconv.ParseUint(plain[2], 10, 32)
	if err := errors.Join(err1, err2); err != nil {
		return "", err
	}
	return "", s.maps["gateway_routes"].Put(GatewayRouteOf(uint32(set), netip.MustParsePrefix(plain[1])), uint32(gateway))
}

// gateways EPOCH: something about gateways has changed.
func (s *stage) gateways(text string) (string, error) {
	n, err := strconv.ParseUint(text, 10, 32)
	if err != nil {
		return "", err
	}
	return "", s.maps["control"].Put(uint32(ControlGatewayEpoch), uint32(n))
}

// affinities prints which backend each client has.
func (s *stage) affinities(string) (string, error) {
	var lines []string
	var key AffinityKey
	var value Affinity
	entries := s.maps["affinities"].Iterate()
	for entries.Next(&key, &value) {
		lines = append(lines, fmt.Sprintf("%d %s at %s backend=%d", key.Frontend.Protocol, key.Client,
			netip.AddrPortFrom(key.Frontend.Address.Addr(), Port(key.Frontend.Port)), value.Backend))
	}
	return sorted(lines), entries.Err()
}

// idle SECONDS: every client's last choice was that much earlier.
func (s *stage) idle(text string) (string, error) {
	seconds, err := strconv.ParseUint(text, 10, 32)
	if err != nil {
		return "", err
	}
	kept := map[AffinityKey]Affinity{}
	var key AffinityKey
	var value Affinity
	for entries := s.maps["affinities"].Iterate(); entries.Next(&key, &value); {
		kept[key] = value
	}
	for key, value := range kept {
		value.Used -= seconds * 1e9
		err = errors.Join(err, s.maps["affinities"].Put(key, value))
	}
	return "", err
}

// backend INDEX STATE
func (s *stage) backend(text string) (string, error) {
	plain, _ := words(text)
	index, err := strconv.ParseUint(plain[0], 10, 32)
	if err != nil {
		return "", err
	}
	var backend Backend
	if err := s.maps["backends"].Lookup(uint32(index), &backend); err != nil {
		return "", err
	}
	backend.State = map[string]BackendState{"gone": BackendGone, "active": BackendActive, "terminating": BackendTerminating}[plain[1]]
	return "", s.maps["backends"].Put(uint32(index), backend)
}

// flowText is a flow in one line, in the direction in which it was opened.
func flowText(key FlowKey, flow Flow) string {
	source, dest := netip.AddrPortFrom(key.Low.Addr(), Port(key.LowPort)), netip.AddrPortFrom(key.High.Addr(), Port(key.HighPort))
	if flow.Flags&FlowLowIsSource == 0 {
		source, dest = dest, source
	}
	text := fmt.Sprintf("%d %s > %s", key.Protocol, source, dest)
	if flow.Backend != 0 {
		return fmt.Sprintf("%s backend=%d", text, flow.Backend)
	}
	text += fmt.Sprintf(" %s packets=%d/%d egress=%s/%d ingress=%s/%d", flow.State, flow.Forward.Packets, flow.Reverse.Packets,
		flow.Egress.Action, flow.Egress.Rule, flow.Ingress.Action, flow.Ingress.Rule)
	text += stagedText(flow.Egress.StagedAction, flow.Egress.StagedRule, flow.Ingress.StagedAction, flow.Ingress.StagedRule)
	if !flow.NATAddress.IsZero() {
		text += fmt.Sprintf(" nat=%s", netip.AddrPortFrom(flow.NATAddress.Addr(), Port(flow.NATPort)))
	}
	if !flow.Service.IsZero() {
		text += fmt.Sprintf(" service=%s", netip.AddrPortFrom(flow.Service.Addr(), Port(flow.ServicePort)))
	}
	if flow.Flags&FlowGateway != 0 {
		text += fmt.Sprintf(" node=%d", flow.Node)
	}
	if rest := flow.Flags &^ FlowLowIsSource; rest != 0 {
		text += " " + rest.String()
	}
	return text
}

// stagedText says what staged policies would do, where there are any.
func stagedText(egress Action, egressRule uint32, ingress Action, ingressRule uint32) (text string) {
	if egress != ActionNone {
		text += fmt.Sprintf(" staged-egress=%s/%d", egress, egressRule)
	}
	if ingress != ActionNone {
		text += fmt.Sprintf(" staged-ingress=%s/%d", ingress, ingressRule)
	}
	return text
}

// sorted joins lines in order.
func sorted(lines []string) string {
	slices.Sort(lines)
	if len(lines) == 0 {
		return "none"
	}
	return strings.Join(lines, "\n")
}

// flows prints the flows.
func (s *stage) flows(string) (string, error) {
	var lines []string
	var key FlowKey
	var flow Flow
	entries := s.maps["flows"].Iterate()
	for entries.Next(&key, &flow) {
		lines = append(lines, flowText(key, flow))
	}
	return sorted(lines), entries.Err()
}

// nat prints the mappings.
func (s *stage) nat(string) (string, error) {
	var lines []string
	var key NATKey
	var mapping NATMapping
	entries := s.maps["nat"].Iterate()
	for entries.Next(&key, &mapping) {
		lines = append(lines, fmt.Sprintf("%d %s <- %s is %s", key.Protocol, netip.AddrPortFrom(key.Node.Addr(), Port(key.NodePort)),
			netip.AddrPortFrom(key.Remote.Addr(), Port(key.RemotePort)), netip.AddrPortFrom(mapping.Pod.Addr(), Port(mapping.PodPort))))
	}
	return sorted(lines), entries.Err()
}

// events [sorted]: those since it was last asked; sorted where the order is that of a hash table.
func (s *stage) drain(text string) (string, error) {
	var lines []string
	for {
		s.events.SetDeadline(alreadyPast())
		record, err := s.events.Read()
		if errors.Is(err, os.ErrDeadlineExceeded) || errors.Is(err, ringbuf.ErrFlushed) {
			if text == "sorted" || len(lines) == 0 {
				return sorted(lines), nil
			}
			return strings.Join(lines, "\n"), nil
		}
		if err != nil {
			return "", err
		}
		var e Event
		if err := binary.Read(bytes.NewReader(record.RawSample), binary.NativeEndian, &e); err != nil {
			return "", err
		}
		lines = append(lines, eventText(e))
	}
}

// eventText is an event in one line, without times.
func eventText(e Event) string {
	text := fmt.Sprintf("%s %s %d %s > %s packets=%d/%d peers=%d>%d egress=%s/%d ingress=%s/%d", e.Kind, e.Hook, e.Protocol,
		netip.AddrPortFrom(e.Source.Addr(), Port(e.SourcePort)), netip.AddrPortFrom(e.Destination.Addr(), Port(e.DestinationPort)),
		e.Forward.Packets, e.Reverse.Packets, e.SourcePeer, e.DestinationPeer,
		e.EgressAction, e.EgressRule, e.IngressAction, e.IngressRule)
	text += stagedText(e.StagedEgressAction, e.StagedEgressRule, e.StagedIngressAction, e.StagedIngressRule)
	if e.Kind == EventDrop {
		text += " " + e.Reason.String()
	}
	if !e.Service.IsZero() {
		text += fmt.Sprintf(" service=%s", netip.AddrPortFrom(e.Service.Addr(), Port(e.ServicePort)))
	}
	return text
}

// age [SECONDS]: every flow has so many seconds less to live; without a number its time has come.
func (s *stage) age(text string) (string, error) {
	seconds := uint64(1 << 32)
	if text != "" {
		n, err := strconv.ParseUint(text, 10, 32)
		if err != nil {
			return "", err
		}
		seconds = n
	}
	var keys []FlowKey
	var key FlowKey
	var flow Flow
	for entries := s.maps["flows"].Iterate(); entries.Next(&key, &flow); {
		keys = append(keys, key)
	}
	for _, key := range keys {
		if err := s.maps["flows"].Lookup(key, &flow); err != nil {
			return "", err
		}
		flow.Expires = max(flow.Expires, seconds*1e9+1) - seconds*1e9
		if err := s.maps["flows"].Update(key, flow, ebpf.UpdateExist); err != nil {
			return "", err
		}
	}
	return "", nil
}

// sweep all|keys [force] [quiet]: runs a sweep program; quiet where a flow may or may not be met before its service entry is gone.
func (s *stage) sweep(text string) (string, error) {
	plain, _ := words(text)
	var sweep Sweep
	if slices.Contains(plain, "force") {
		sweep.Force = 1
	}
	var key FlowKey
	var flow Flow
	for entries := s.maps["flows"].Iterate(); entries.Next(&key, &flow) && plain[0] == "keys" && sweep.Count < uint32(SweepKeys); sweep.Count++ {
		sweep.Keys[sweep.Count] = key
	}
	after := sweep
	_, err := s.programs["sweep_"+plain[0]].Run(&ebpf.RunOptions{Context: sweep, ContextOut: &after})
	if slices.Contains(plain, "quiet") {
		return "", err
	}
	return fmt.Sprintf("removed=%d kept=%d", after.Removed, after.Kept), err
}

// fill MAP: puts entries of nobody into flows or nat until there is no room.
func (s *stage) fill(name string) (string, error) {
	m := s.maps[name]
	key, value := make([]byte, m.KeySize()), make([]byte, m.ValueSize())
	for i := range m.MaxEntries() + 1 {
		binary.NativeEndian.PutUint32(key, i+1)
		if err := m.Update(key, value, ebpf.UpdateNoExist); err != nil {
			return "", nil // full
		}
	}
	return "", errors.New("the map took more than its size")
}

// half-open INDEX: what counts against an endpoint's quota.
func (s *stage) halfOpen(text string) (string, error) {
	index, err := strconv.ParseUint(text, 10, 32)
	if err != nil {
		return "", err
	}
	var use EndpointUse
	err = s.maps["endpoint_uses"].Lookup(uint32(index), &use)
	return fmt.Sprint(use.HalfOpen), err
}
