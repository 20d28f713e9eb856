// Package differential_test asks the shipped datapath what it thinks of random packets under random policies, and
// compares its answers with those of the reference in internal/policy/policytest: action, and the rule that decided.
//
// The way is the whole one: facts go through the policy engine, its deltas through internal/datapath into pinned maps
// of the test's own, and packets through a pod's stub and the programs behind it, by BPF_PROG_TEST_RUN. Answers are
// read from the events that programs send. `go test` runs a hundred worlds; `go test -rapid.checks=N` runs N.
//
// objects_test.go begins further ahead, at manifests of every dialect (draw_test.go), and is judged by a reference that
// reads the objects themselves (test/differential/reference); -pairs says how many.
package differential_test

import (
	"context"
	"encoding/binary"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/rlimit"
	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"
	"pgregory.net/rapid"

	"tendril.io/tendril/bpf"
	"tendril.io/tendril/internal/datapath"
	"tendril.io/tendril/internal/identity"
	"tendril.io/tendril/internal/policy"
	"tendril.io/tendril/internal/policy/policytest"
	"tendril.io/tendril/internal/table"
	"tendril.io/tendril/internal/testkit"
)

// kernel is a node whose datapath is the real one.
type kernel struct {
	datapath *datapath.Datapath
	engine   *policy.Engine
	told     *policytest.Facts
	root     string // its folder in bpffs
	stubs    map[bpf.Entry]map[uint32]*ebpf.Program
	port     uint16 // source port of the next packet, by which its event is known
	out      []byte // room for what comes out of a program

	mu     sync.Mutex
	events map[eventKey]bpf.Event
}

// classWords is enough for 512 selectors.
const classWords = 8

// eventKey names the packet that an event is about.
type eventKey struct {
	protocol uint8
	port     uint16
}

// needRoot skips where programs cannot be loaded for want of privilege, and only there.
func needRoot(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("needs root: loads BPF programs")
	}
	if err := rlimit.RemoveMemlock(); err != nil {
		t.Fatal(err)
	}
}

func openKernel(t *testing.T) *kernel {
	t.Helper()
	needRoot(t)
	mount := t.TempDir()
	if err := unix.Mount("bpf", mount, "bpf", 0, ""); err != nil {
		t.Fatalf("mount bpffs: %v", err)
	}
	t.Cleanup(func() {
		if err := unix.Unmount(mount, 0); err != nil {
			t.Errorf("unmount bpffs: %v", err)
		}
	})
	root := filepath.Join(mount, "node")
	ctx, cancel := context.WithCancel(context.Background())
	group, ctx := errgroup.WithContext(ctx)
	d, err := datapath.Open(ctx, datapath.Config{
		Root: root, Logger: slog.New(slog.DiscardHandler),
		Node: bpf.NodeConfig{
			Features: bpf.FeatureIPv4 | bpf.FeatureIPv6 | bpf.FeatureFlowRecords, ClassWords: classWords,
			HalfOpenLimit: 1 << 30, OutsideHalfOpenLimit: 1 << 30, PodMTU: 1500, TunnelMTU: 1450, EventWakeupBytes: 1,
		},
		Sizes: map[string]uint32{
			"addresses": 1024, "prefixes": 1024, "peer_class": 1024, "class_bits": 1024, "policy_programs": 64, "policy_cells": 131072,
			"endpoints": 64, "endpoint_uses": 64, "nodes": 64, "assignments": 8192, "events": 1 << 22,
		},
	})
	if err != nil {
		cancel()
		t.Fatal(err)
	}
	k := &kernel{
		datapath: d, engine: policy.New(policy.Config{ClassWords: classWords}, d.Numbers()), told: policytest.NewFacts(),
		root: root, stubs: map[bpf.Entry]map[uint32]*ebpf.Program{}, events: map[eventKey]bpf.Event{},
		out: make([]byte, 512),
	}
	group.Go(func() error { return d.Run(ctx) })
	group.Go(func() error { return d.Events(ctx, k.note) })
	t.Cleanup(func() {
		cancel()
		if err := group.Wait(); err != nil {
			t.Errorf("datapath: %v", err)
		}
		if err := d.Close(); err != nil {
			t.Errorf("close datapath: %v", err)
		}
	})
	k.loadStubs(t)
	return k
}

// generation of every endpoint record.
const generation = 7

func (k *kernel) loadStubs(t *testing.T) {
	for _, entry := range []bpf.Entry{bpf.EntryFromPod, bpf.EntryToPod} {
		k.stubs[entry] = map[uint32]*ebpf.Program{}
		for endpoint := uint32(1); endpoint <= policytest.Endpoints; endpoint++ {
			stub, err := k.datapath.LoadStub(endpoint, generation, entry)
			if err != nil {
				t.Fatal(err)
			}
			fd, err := unix.Dup(stub.FD())
			if err != nil {
				t.Fatal(err)
			}
			program, err := ebpf.NewProgramFromFD(fd)
			if err != nil {
				t.Fatal(err)
			}
			if err := stub.Close(); err != nil {
				t.Fatal(err)
			}
			k.stubs[entry][endpoint] = program
			t.Cleanup(func() { program.Close() })
		}
	}
}

// addressesOf are an endpoint's own, apart from the generator's.
func addressesOf(endpoint uint32) []netip.Addr {
	return []netip.Addr{
		netip.AddrFrom4([4]byte{10, 99, 0, byte(endpoint)}),
		netip.AddrFrom16([16]byte{0xfd, 0x99, 15: byte(endpoint)}),
	}
}

// note keeps the first event of each packet that tells what policy said.
func (k *kernel) note(batch []bpf.Event) {
	k.mu.Lock()
	defer k.mu.Unlock()
	for _, e := range batch {
		if e.Kind == bpf.EventFlowEnd || e.Kind == bpf.EventFlowEstablished {
			continue
		}
		key := eventKey{e.Protocol, be(e.SourcePort)}
		if _, known := k.events[key]; !known {
			k.events[key] = e
		}
	}
}

// be reads a number in network byte order out of an event.
func be(v uint16) uint16 {
	var b [2]byte
	binary.NativeEndian.PutUint16(b[:], v)
	return binary.BigEndian.Uint16(b[:])
}

// event waits for what programs said of a packet.
func (k *kernel) event(key eventKey) (bpf.Event, bool) {
	for range 2000 {
		k.mu.Lock()
		e, ok := k.events[key]
		delete(k.events, key)
		k.mu.Unlock()
		if ok {
			return e, true
		}
		time.Sleep(time.Millisecond)
	}
	return bpf.Event{}, false
}

// become replaces everything that the node knows by a new world.
func (k *kernel) become(t *rapid.T, next *policytest.Facts) {
	for name := range k.told.Namespaces {
		k.engine.DeleteNamespace(name)
	}
	for key := range k.told.Policies {
		k.engine.DeletePolicy(key)
	}
	for prefix := range k.told.Addresses {
		k.engine.DeleteAddress(prefix)
	}
	for group := range k.told.Groups {
		k.engine.DeleteGroup(group.Kind, group.Namespace, group.Name)
	}
	if err := next.Tell(k.engine); err != nil {
		t.Fatal(err)
	}
	k.told = next
	for endpoint := range next.Subjects {
		if err := k.datapath.WriteEndpoint(&table.Endpoint{
			ID: endpoint, Generation: generation, Namespace: "blue", Pod: fmt.Sprint("pod", endpoint), IfIndex: 1,
			Addrs: addressesOf(endpoint), MTU: 1500,
		}); err != nil {
			t.Fatal(err)
		}
	}
	k.publish(t)
}

func (k *kernel) publish(t *rapid.T) {
	delta, err := k.engine.Flush()
	if err != nil {
		t.Fatalf("flush: %v", err)
	}
	if err := k.datapath.Publish(context.Background(), &delta); err != nil {
		t.Fatalf("publish: %v", err)
	}
	if refused := k.engine.Refused(); len(refused) > 0 {
		t.Fatalf("refused: %v", refused)
	}
}

// drawWorld draws all that a node can know, its own pods' addresses included.
func drawWorld(t *rapid.T) *policytest.Facts {
	f := policytest.NewFacts()
	f.Seed(t, policy.New(policy.Config{}, policytest.NewNumbers()))
	for endpoint, w := range f.Subjects {
		own := w
		for _, addr := range addressesOf(endpoint) {
			f.Addresses[netip.PrefixFrom(addr, addr.BitLen())] = policy.AddressFact{
				Workload: &own, Endpoint: endpoint, Flags: uint32(bpf.AddressFlagLocalPod | bpf.AddressFlagCluster),
			}
		}
	}
	return f
}

// speakable says whether a packet of the generator can be sent at all: families must fit, and of ICMP only echoes open
// a flow of their own.
func speakable(p policytest.Packet) bool {
	switch p.Protocol {
	case unix.IPPROTO_TCP, unix.IPPROTO_UDP, unix.IPPROTO_SCTP:
		return p.Port != 0
	case unix.IPPROTO_ICMP:
		return p.Peer.Is4() && p.Port == 8
	case unix.IPPROTO_ICMPV6:
		return p.Peer.Is6() && p.Port == 128
	}
	return false
}

// ask sends a packet through the programs and returns their answer in the reference's words.
func (k *kernel) ask(t *rapid.T, p policytest.Packet) policytest.Answer {
	e := k.send(t, p)
	switch {
	case e.Reason == bpf.DropUnknownSource || e.Reason == bpf.DropUnknownDestination:
		return policytest.Answer{Action: "deny", Builtin: "unknown"}
	case p.Direction == policy.Egress:
		return k.answer(t, e.EgressAction, e.EgressRule)
	}
	return k.answer(t, e.IngressAction, e.IngressRule)
}

// send sends a packet through the pod's programs and returns what they said of it.
func (k *kernel) send(t *rapid.T, p policytest.Packet) bpf.Event {
	own := addressOf(p.Endpoint, p.Peer)
	k.port = max(k.port+1, 1024)
	data := frame(p.Peer, own, p.Protocol, k.port, p.Port)
	entry := bpf.EntryToPod
	if p.Direction == policy.Egress {
		entry, data = bpf.EntryFromPod, frame(own, p.Peer, p.Protocol, k.port, p.Port)
	}
	if _, err := k.stubs[entry][p.Endpoint].Run(&ebpf.RunOptions{Data: data, DataOut: make([]byte, len(data)+256)}); err != nil {
		t.Fatalf("run %s for %+v: %v", entry, p, err)
	}
	e, ok := k.event(eventKey{p.Protocol, k.port})
	if !ok {
		t.Fatalf("packet %+v: programs said nothing of it", p)
	}
	return e
}

// answer names an action and a rule id as the reference does.
func (k *kernel) answer(t *rapid.T, action bpf.Action, rule uint32) policytest.Answer {
	info, ok := k.engine.Rule(rule)
	if !ok {
		t.Fatalf("a verdict names rule %d, which nobody knows", rule)
	}
	answer := policytest.Answer{Action: action.String(), Key: info.Key, Place: info.Place}
	if info.Key == (policy.Key{}) {
		answer.Builtin = info.Name
	}
	return answer
}

// want is the reference's answer, less what events do not tell. Addresses that nobody owns are dropped before policy.
func (k *kernel) want(p policytest.Packet) policytest.Answer {
	longest, unknown := -1, false
	for prefix, fact := range k.told.Addresses {
		if prefix.Contains(p.Peer) && prefix.Bits() > longest {
			longest, unknown = prefix.Bits(), fact.Workload == nil && fact.Reserved == identity.Unknown
		}
	}
	if unknown {
		return policytest.Answer{Action: "deny", Builtin: "unknown"}
	}
	answer := k.told.Judge(p)
	answer.ProxyPort = 0
	return answer
}

// The kernel says what the reference says: the same action, by the same rule.
func TestKernelAgreesWithReference(t *testing.T) {
	k := openKernel(t)
	asked := 0
	rapid.Check(t, func(rt *rapid.T) {
		k.become(rt, drawWorld(rt))
		packets := k.packets()
		for range 2 {
			for _, p := range rapid.SliceOfN(rapid.SampledFrom(packets), 40, 40).Draw(rt, "packets") {
				asked++
				if got, want := k.ask(rt, p), k.want(p); got != want {
					rt.Fatalf("packet %+v\nkernel    %+v\nreference %+v", p, got, want)
				}
			}
			// Once more after a change of one policy, with programs, classes and prefixes in motion.
			next := policytest.DrawPolicy(rt)
			k.told.Policies[next.Key] = next
			if err := k.engine.SetPolicy(next); err != nil {
				rt.Fatal(err)
			}
			k.publish(rt)
		}
	})
	t.Logf("%d packets agree", asked)
}

// A pod's packet to a pod of the same node is judged by both, the destination's ingress included: a range that holds
// the source's address holds the source, in each family for itself.
func TestPodsOfOneNodeAreJudgedByTheRangesOfTheirAddresses(t *testing.T) {
	k := openKernel(t)
	rapid.Check(t, func(rt *rapid.T) {
		k.become(rt, drawWorld(rt))
		for _, packet := range rapid.SliceOfN(rapid.SampledFrom(k.packets()), 40, 40).Draw(rt, "packets") {
			if packet.Direction == policy.Ingress || !k.isLocal(packet.Peer) {
				continue
			}
			there := packet
			there.Endpoint, there.Peer, there.Direction = k.ownerOf(packet.Peer), addressOf(packet.Endpoint, packet.Peer), policy.Ingress
			e := k.send(rt, packet)
			if e.EgressAction == bpf.ActionNone || e.IngressAction == bpf.ActionNone {
				rt.Fatalf("packet %+v: event %+v, want both ends judged", packet, e)
			}
			if got, want := k.answer(rt, e.IngressAction, e.IngressRule), k.want(there); got != want {
				rt.Fatalf("packet %+v, seen from its destination\nkernel    %+v\nreference %+v", packet, got, want)
			}
		}
	})
}

// A device whose pod has gone speaks for nobody, though another pod has the number now.
func TestADeviceOfAPodThatHasGoneIsRefused(t *testing.T) {
	k := openKernel(t)
	rapid.Check(t, func(rt *rapid.T) {
		k.become(rt, drawWorld(rt))
		packet := rapid.SampledFrom(k.packets()).Draw(rt, "packet")
		row := &table.Endpoint{
			ID: packet.Endpoint, Generation: generation + 1, Namespace: "blue", Pod: "successor", IfIndex: 1,
			Addrs: addressesOf(packet.Endpoint), MTU: 1500,
		}
		if err := k.datapath.WriteEndpoint(row); err != nil {
			rt.Fatal(err)
		}
		if e := k.send(rt, packet); e.Reason != bpf.DropStaleEndpoint {
			rt.Fatalf("packet %+v: got %s, want %s", packet, e.Reason, bpf.DropStaleEndpoint)
		}
	})
}

func (k *kernel) isLocal(addr netip.Addr) bool { return k.ownerOf(addr) != 0 }

// ownerOf is the endpoint that has an address, or 0.
func (k *kernel) ownerOf(addr netip.Addr) uint32 {
	for endpoint := range k.told.Subjects {
		if slices.Contains(addressesOf(endpoint), addr) {
			return endpoint
		}
	}
	return 0
}

// addressOf is the endpoint's address in the family of another.
func addressOf(endpoint uint32, like netip.Addr) netip.Addr {
	if like.Is6() {
		return addressesOf(endpoint)[1]
	}
	return addressesOf(endpoint)[0]
}

// packets lists what can be sent, local pods talking to each other included.
func (k *kernel) packets() []policytest.Packet {
	var out []policytest.Packet
	for _, p := range k.told.Packets() {
		if p.Protocol == unix.IPPROTO_ICMPV6 {
			p.Port = 128
		}
		if speakable(p) {
			out = append(out, p)
		}
	}
	for _, p := range out { // of what is in out now
		other := addressesOf(p.Endpoint%policytest.Endpoints + 1)
		if p.Peer.Is4() {
			p.Peer = other[0]
		} else {
			p.Peer = other[1]
		}
		out = append(out, p)
	}
	return out
}

// frame builds an Ethernet frame with a packet that opens a flow. port is the destination port, or the ICMP type.
func frame(source, destination netip.Addr, protocol uint8, sourcePort, port uint16) []byte {
	transport := transportOf(protocol, sourcePort, port)
	var b []byte
	if source.Is4() {
		b = append(make([]byte, 12), 0x08, 0x00)
		header := make([]byte, 20)
		header[0], header[8], header[9] = 0x45, 64, protocol
		binary.BigEndian.PutUint16(header[2:], uint16(20+len(transport)))
		copy(header[12:], source.AsSlice())
		copy(header[16:], destination.AsSlice())
		binary.BigEndian.PutUint16(header[10:], testkit.Checksum(header))
		b = append(b, header...)
	} else {
		b = append(make([]byte, 12), 0x86, 0xdd)
		header := make([]byte, 40)
		header[0], header[6], header[7] = 0x60, protocol, 64
		binary.BigEndian.PutUint16(header[4:], uint16(len(transport)))
		copy(header[8:], source.AsSlice())
		copy(header[24:], destination.AsSlice())
		b = append(b, header...)
	}
	copy(b, net.HardwareAddr{2, 0, 0, 0, 0, 1, 2, 0, 0, 0, 0, 2})
	return append(b, transport...)
}

func transportOf(protocol uint8, sourcePort, port uint16) []byte {
	b := make([]byte, 20)
	switch protocol {
	case unix.IPPROTO_ICMP, unix.IPPROTO_ICMPV6:
		b[0] = byte(port)
		binary.BigEndian.PutUint16(b[4:], sourcePort) // the id stands for both ports
		return b
	}
	binary.BigEndian.PutUint16(b[0:], sourcePort)
	binary.BigEndian.PutUint16(b[2:], port)
	switch protocol {
	case unix.IPPROTO_TCP:
		b[12], b[13] = 5<<4, 2 // SYN
	case unix.IPPROTO_UDP:
		binary.BigEndian.PutUint16(b[4:], 20)
	}
	return b
}
