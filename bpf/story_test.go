package bpf

import (
	"bytes"
	"encoding/binary"
	"errors"
	"flag"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
	"github.com/cilium/ebpf/ringbuf"
	gocmp "github.com/google/go-cmp/cmp"
	"github.com/rogpeppe/go-internal/txtar"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"tendril.io/tendril/internal/testkit"
)

var update = flag.Bool("update", false, "write what the stories do now as what they should do")

// Stories are txtar files of commands and, indented by a tab, what the shipped programs do. A command that starts with
// a hook's name sends a packet through that hook's program; the others change or print the state.
func TestStories(t *testing.T) {
	needRoot(t)
	files, err := filepath.Glob("testdata/*.txtar")
	if err != nil || len(files) == 0 {
		t.Fatalf("no stories: %v", err)
	}
	for _, file := range files {
		t.Run(strings.TrimSuffix(filepath.Base(file), ".txtar"), func(t *testing.T) { tellStory(t, file) })
	}
}

// tellStory plays one file and compares it with itself.
func tellStory(t *testing.T, file string) {
	archive, err := txtar.ParseFile(file)
	if err != nil {
		t.Fatal(err)
	}
	config := testConfig()
	if filepath.Base(file) == "flood.txtar" {
		config.OutsideHalfOpenLimit = 3
	}
	if strings.HasPrefix(filepath.Base(file), "gateway") {
		config.HalfOpenLimit = 16 // their flows are moved while they are half-open
	}
	if strings.HasSuffix(file, "-native.txtar") {
		config.Features &^= FeatureTunnel
	}
	s := newStageOf(t, config, nil)
	for i, section := range archive.Files {
		var out strings.Builder
		for line := range strings.Lines(string(section.Data)) {
			if strings.HasPrefix(line, "\t") {
				continue
			}
			out.WriteString(line)
			command := strings.TrimSpace(line)
			if command == "" || strings.HasPrefix(command, "#") {
				continue
			}
			answer, err := s.do(command)
			if err != nil {
				t.Fatalf("%s: %s: %v", file, command, err)
			}
			for answered := range strings.Lines(answer) {
				out.WriteString("\t" + strings.TrimRight(answered, "\n") + "\n")
			}
		}
		if diff := gocmp.Diff(string(section.Data), out.String()); diff != "" && !*update {
			t.Errorf("%s, section %s (-want +got):\n%s", file, section.Name, diff)
		}
		archive.Files[i].Data = []byte(out.String())
	}
	if *update {
		if err := os.WriteFile(file, txtar.Format(archive), 0o644); err != nil {
			t.Fatal(err)
		}
	}
}

// stage is a node: the maps, and every program on them.
type stage struct {
	maps     map[string]*ebpf.Map
	programs map[string]*ebpf.Program
	events   *ringbuf.Reader
	nextCell uint32
	sockets  []io.Closer
	slots    uint32
	backends uint32
	before   map[Reason]uint64
}

// newStage loads all objects on one set of maps, in a network namespace with routes of its own.
func newStage(t testing.TB) *stage { return newStageOf(t, testConfig(), nil) }

// newStageOf does so for a node of another configuration, with larger maps.
func newStageOf(t testing.TB, config NodeConfig, sizes map[string]uint32) *stage {
	enterNamespace(t)
	s := &stage{maps: map[string]*ebpf.Map{}, programs: map[string]*ebpf.Program{}, nextCell: 1, slots: 1}
	for _, object := range []string{"pod", "net", "tunnel", "sweep", "xdp"} {
		loaded := loadSized(t, object, config, s.maps, sizes)
		for name, m := range loaded.Maps {
			if !strings.HasPrefix(name, ".") && s.maps[name] == nil {
				s.maps[name] = m
			}
		}
		for name, program := range loaded.Programs {
			s.programs[name] = program
		}
	}
	s.programs["from_tunnel"] = s.decapsulator(t)
	var err error
	if s.events, err = ringbuf.NewReader(s.maps["events"]); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		s.events.Close()
		for _, socket := range s.sockets {
			socket.Close()
		}
	})
	return s
}

// enterNamespace gives the test a network namespace with a default route by the device that is its uplink.
func enterNamespace(t testing.TB) {
	t.Helper()
	runtime.LockOSThread() // never unlocked: the thread dies with the test, and the namespace with it
	if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
		t.Fatal(err)
	}
	for _, family := range []string{"ipv4", "ipv6"} {
		if err := os.WriteFile("/proc/sys/net/"+family+"/conf/all/forwarding", []byte("1"), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	// Frames of tests are for it unless they say otherwise.
	up := &netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: "up0", Index: 100, HardwareAddr: net.HardwareAddr{2, 0, 0, 0, 0, 2}}, PeerName: "wire0"}
	check := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	check(netlink.LinkAdd(up))
	for _, name := range []string{"lo", "up0", "wire0"} {
		link, err := netlink.LinkByName(name)
		check(err)
		check(netlink.LinkSetUp(link))
	}
	loopback, err := netlink.LinkByName("lo")
	check(err)
	// The last two play machines outside, with sockets that the node's can be connected to.
	for _, text := range []string{"192.0.2.1/24", "2001:db8::1/64", "198.51.100.9/32", "2001:db8:9::9/128"} {
		addr, err := netlink.ParseAddr(text)
		check(err)
		addr.Flags = unix.IFA_F_NODAD
		link := netlink.Link(up)
		if addr.Mask.String() == "ffffffff" || addr.IP.String() == "2001:db8:9::9" {
			link = loopback
		}
		check(netlink.AddrAdd(link, addr))
	}
	for _, gateway := range []string{"192.0.2.254", "2001:db8::fe"} {
		check(netlink.RouteAdd(&netlink.Route{LinkIndex: 100, Gw: netip.MustParseAddr(gateway).AsSlice()}))
	}
	for _, neighbour := range []string{"192.0.2.254", "2001:db8::fe", "192.0.2.2", "2001:db8::2"} { // XDP cannot ask for them
		check(netlink.NeighAdd(&netlink.Neigh{LinkIndex: 100, State: netlink.NUD_PERMANENT, IP: netip.MustParseAddr(neighbour).AsSlice(),
			HardwareAddr: net.HardwareAddr{2, 0, 0, 0, 0, 9}}))
	}
}

// decapsulator is a program that gives a packet the tunnel header that the overlay device would have: the outer source is
// in the first two words of cb. It then goes on in tunnel_in.
func (s *stage) decapsulator(t testing.TB) *ebpf.Program {
	index, tunnelIn := uint32(EntryTunnelIn), s.programs["tunnel_in"]
	if err := s.maps["entries"].Put(index, tunnelIn); err != nil {
		t.Fatal(err)
	}
	const key, size, localIPv4, cb = -48, 44, 28, 48 // struct bpf_tunnel_key and __sk_buff of <linux/bpf.h>
	program, err := ebpf.NewProgram(&ebpf.ProgramSpec{Type: ebpf.SchedCLS, License: "GPL", Instructions: asm.Instructions{
		asm.Mov.Reg(asm.R6, asm.R1), asm.Mov.Imm(asm.R2, 0),
		asm.StoreMem(asm.RFP, key, asm.R2, asm.DWord), asm.StoreMem(asm.RFP, key+8, asm.R2, asm.DWord),
		asm.StoreMem(asm.RFP, key+16, asm.R2, asm.DWord), asm.StoreMem(asm.RFP, key+24, asm.R2, asm.DWord),
		asm.StoreMem(asm.RFP, key+32, asm.R2, asm.DWord), asm.StoreMem(asm.RFP, key+40, asm.R2, asm.Word),
		asm.LoadMem(asm.R1, asm.R6, cb, asm.Word), asm.StoreMem(asm.RFP, key+localIPv4, asm.R1, asm.Word),
		asm.LoadMem(asm.R1, asm.R6, cb+4, asm.Word), asm.StoreMem(asm.RFP, key, asm.R1, asm.Word),
		asm.Mov.Reg(asm.R1, asm.R6), asm.Mov.Reg(asm.R2, asm.RFP), asm.Add.Imm(asm.R2, key),
		asm.Mov.Imm(asm.R3, size), asm.Mov.Imm(asm.R4, 0), asm.FnSkbSetTunnelKey.Call(),
		asm.Mov.Reg(asm.R1, asm.R6), asm.LoadMapPtr(asm.R2, s.maps["entries"].FD()),
		asm.Mov.Imm(asm.R3, int32(index)), asm.FnTailCall.Call(),
		asm.Mov.Imm(asm.R0, 2), asm.Return(),
	}})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { program.Close() })
	return program
}

// skBuff is the start of struct __sk_buff, as BPF_PROG_TEST_RUN takes it.
type skBuff struct {
	Len, PktType, Mark, QueueMapping, Protocol, VlanPresent, VlanTCI, VlanProto, Priority uint32
	IngressIfIndex, IfIndex, TCIndex                                                      uint32
	CB                                                                                    [5]uint32
	Rest                                                                                  [31]uint32
}

// do plays one command and returns what is to be seen.
func (s *stage) do(command string) (string, error) {
	name, rest, _ := strings.Cut(command, " ")
	commands := map[string]func(string) (string, error){
		"endpoint": s.endpoint, "address": s.address, "node": s.node, "uplink": s.uplink, "program": s.program,
		"announce": s.announce, "rivals": s.rivals, "host": s.host, "listen": s.listen, "connect": s.connect,
		"peer": s.peer, "epoch": s.epoch, "service": s.service, "guard": s.guard, "gateway": s.gateway, "selected": s.selected, "route": s.route, "gateways": s.gateways, "affinities": s.affinities, "idle": s.idle, "backend": s.backend, "flows": s.flows, "nat": s.nat,
		"events": s.drain, "sweep": s.sweep, "age": s.age, "half-open": s.halfOpen, "forget": s.forget, "fill": s.fill, "segments": s.segments, "merged": s.merged,
	}
	if do := commands[name]; do != nil {
		return do(rest)
	}
	switch name {
	case "from_pod", "to_pod":
		index, packet, _ := strings.Cut(rest, " ")
		n, err := strconv.ParseUint(index, 10, 32)
		if err != nil {
			return "", err
		}
		return s.send(name, packet, skBuff{IfIndex: 1, CB: [5]uint32{uint32(n), uint32(n) + 100}})
	case "loop_out":
		return s.send(name, rest, skBuff{IfIndex: 1})
	case "net_in", "net_out", "tunnel_out":
		return s.send(name, rest, skBuff{IfIndex: 100})
	case "xdp_in":
		return s.sendXDP(rest)
	case "marked_net_out":
		return s.send("net_out", rest, skBuff{IfIndex: 100, Mark: uint32(MarkForwarded)})
	case "from_tunnel":
		outer, packet, _ := strings.Cut(rest, " ")
		vni, sender := uint32(7), outer
		if number, address, ok := strings.Cut(outer, "@"); ok {
			n, err := strconv.Atoi(number)
			if err != nil {
				return "", err
			}
			vni, sender = uint32(n), address
		}
		addr, err := netip.ParseAddr(sender)
		if err != nil {
			return "", err
		}
		b := addr.As4()
		return s.send(name, packet, skBuff{IfIndex: 1, CB: [5]uint32{binary.BigEndian.Uint32(b[:]), vni}})
	}
	return "", errors.New("no such command")
}

// send runs a packet through a program and says how its journey ended and, if it changed, what it has become.
func (s *stage) send(program, text string, ctx skBuff) (string, error) {
	frame, err := frameOf(text)
	if err != nil {
		return "", err
	}
	s.before = s.reasons()
	out := make([]byte, len(frame)+256)
	var after skBuff
	options := &ebpf.RunOptions{Data: frame, DataOut: out, Context: ctx, ContextOut: &after}
	code, err := s.programs[program].Run(options)
	if err != nil {
		return "", err
	}
	answer := fmt.Sprintf("%s: %s", map[uint32]string{0: "ok", 2: "shot", 7: "redirect"}[code], s.counted())
	if bytes.Equal(options.DataOut, frame) || code == 2 {
		return answer, nil
	}
	packet, err := testkit.DecodePacket(options.DataOut)
	if err != nil {
		return "", err
	}
	return answer + "\n" + packet.String(), nil
}

// xdpBuff is struct xdp_md, as BPF_PROG_TEST_RUN takes it.
type xdpBuff struct {
	Data, DataEnd, DataMeta, IngressIfIndex, RxQueueIndex, EgressIfIndex uint32
}

// sendXDP runs a packet through xdp_in, and where that passes, through net_in, as the kernel would.
func (s *stage) sendXDP(text string) (string, error) {
	frame, err := frameOf(text)
	if err != nil {
		return "", err
	}
	before := s.reasons()
	out := make([]byte, len(frame)+256)
	options := &ebpf.RunOptions{Data: frame, DataOut: out, Context: xdpBuff{DataEnd: uint32(len(frame)), IngressIfIndex: 100}}
	code, err := s.programs["xdp_in"].Run(options)
	if err != nil {
		return "", err
	}
	s.before = before
	if counted := s.counted(); code == 2 && (counted != "" || !bytes.Equal(options.DataOut, frame)) {
		return "", fmt.Errorf("a packet that passes was counted as %q, or changed", counted)
	} else if code == 2 {
		return s.send("net_in", text, skBuff{IfIndex: 100})
	}
	packet, err := testkit.DecodePacket(options.DataOut)
	if err != nil {
		return "", err
	}
	return fmt.Sprintf("%s: %s\n%s", map[uint32]string{0: "aborted", 1: "drop", 3: "tx", 4: "xdp redirect"}[code], s.counted(), packet), nil
}

// segments SIZE PACKET: a packet from pod 1 that will be cut into segments of SIZE bytes of payload.
func (s *stage) segments(text string) (string, error) {
	size, packet, _ := strings.Cut(text, " ")
	n, err := strconv.ParseUint(size, 10, 16)
	if err != nil {
		return "", err
	}
	return s.send("from_pod", packet, skBuff{IfIndex: 1, CB: [5]uint32{1, 101}}.segmented(uint32(n)))
}

// merged SIZE PACKET: a packet from the wire that the device has made of several of SIZE bytes of payload.
func (s *stage) merged(text string) (string, error) {
	size, packet, _ := strings.Cut(text, " ")
	n, err := strconv.ParseUint(size, 10, 16)
	if err != nil {
		return "", err
	}
	return s.send("net_in", packet, skBuff{IfIndex: 100}.segmented(uint32(n)))
}

// segmented is the context of a packet that stands for several.
func (b skBuff) segmented(size uint32) skBuff {
	b.Rest[27] = size // gso_size
	b.Rest[24] = 4    // gso_segs
	return b
}

// frameOf is a packet given as text, or as hex where the text form cannot say it.
func frameOf(text string) ([]byte, error) {
	if digits, ok := strings.CutPrefix(text, "hex "); ok {
		var frame []byte
		_, err := fmt.Sscanf(strings.ReplaceAll(digits, " ", ""), "%x", &frame)
		return frame, err
	}
	p, err := testkit.ParsePacket(text)
	if err != nil {
		return nil, err
	}
	return p.Bytes(), nil
}

// reasons are the packets counted so far.
func (s *stage) reasons() map[Reason]uint64 {
	sums := map[Reason]uint64{}
	for _, reason := range Reasons() {
		for hook := range uint32(HookCount) {
			var counts []Counter
			if s.maps["counters"].Lookup(uint32(reason)*uint32(HookCount)+hook, &counts) == nil {
				for _, c := range counts {
					sums[reason] += c.Packets
				}
			}
		}
	}
	return sums
}

// counted names the one reason under which the last packet was counted.
func (s *stage) counted() string {
	var names []string
	for reason, n := range s.reasons() {
		if n != s.before[reason] {
			names = append(names, reason.String())
		}
	}
	slices.Sort(names)
	return strings.Join(names, " ")
}
