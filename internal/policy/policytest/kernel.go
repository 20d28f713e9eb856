package policytest

import (
	"encoding/binary"
	"fmt"
	"net/netip"
	"slices"

	"tendril.io/tendril/bpf"
	"tendril.io/tendril/internal/policy"
)

// Kernel is a model of the datapath's policy tables: maps that deltas are applied to, and the interpreter of their
// content. It refuses a delta that would pull the ground from under a packet on its way.
type Kernel struct {
	Classes  map[uint32][]uint64
	Peers    map[uint32]uint32
	Cells    map[uint32][16]byte
	Programs map[uint32]uint64
	Rows     map[netip.Prefix]policy.AddressRow
	Subjects map[uint32]policy.SubjectRow
}

// NewKernel returns empty tables.
func NewKernel() *Kernel {
	return &Kernel{
		Classes: map[uint32][]uint64{}, Peers: map[uint32]uint32{}, Cells: map[uint32][16]byte{},
		Programs: map[uint32]uint64{}, Rows: map[netip.Prefix]policy.AddressRow{}, Subjects: map[uint32]policy.SubjectRow{},
	}
}

// Apply carries a delta out row by row and calls after, if there is one, behind each row that packets could see.
func (k *Kernel) Apply(d policy.Delta, after func(stage string)) error {
	if after == nil {
		after = func(string) {}
	}
	for _, row := range d.Classes {
		if old, ok := k.Classes[row.Class]; ok && k.classInUse(row.Class) && !slices.Equal(old, row.Bits) {
			return fmt.Errorf("class %d is in use and would change from %x to %x", row.Class, old, row.Bits)
		}
		k.Classes[row.Class] = row.Bits
	}
	for _, row := range d.Peers {
		if _, ok := k.Classes[row.Class]; !ok {
			return fmt.Errorf("peer %d gets class %d, which was never written", row.Peer, row.Class)
		}
		k.Peers[row.Peer] = row.Class
		after("peer")
	}
	for _, row := range d.Set {
		if _, ok := k.Peers[row.Peer]; !ok {
			return fmt.Errorf("address %s gets peer %d, which was never written", row.Prefix, row.Peer)
		}
		k.Rows[row.Prefix] = row
		after("address")
	}
	if err := k.applyPrograms(d, after); err != nil {
		return err
	}
	for _, prefix := range d.Unset {
		if _, ok := k.Rows[prefix]; !ok {
			return fmt.Errorf("address %s is removed and was not there", prefix)
		}
		delete(k.Rows, prefix)
		after("removal")
	}
	return nil
}

// Forget removes the endpoints that are gone, which is their owner's business and not a delta's.
func (k *Kernel) Forget(f *Facts) {
	for endpoint := range k.Subjects {
		if _, ok := f.Subjects[endpoint]; !ok {
			delete(k.Subjects, endpoint)
		}
	}
}

func (k *Kernel) applyPrograms(d policy.Delta, after func(string)) error {
	for _, row := range d.Contents {
		for i, cell := range row.Cells {
			at := row.FirstCell + uint32(i)
			if old, ok := k.Cells[at]; ok && old != cell && k.cellInUse(at) {
				return fmt.Errorf("cell %d is in use and would change", at)
			}
			k.Cells[at] = cell
		}
	}
	for _, row := range d.Programs {
		if row.Descriptor == 0 && k.programInUse(row.Program) {
			return fmt.Errorf("program %d ends and still judges an endpoint", row.Program)
		}
		k.Programs[row.Program] = row.Descriptor
		after("program")
	}
	for _, row := range d.Subjects {
		absent := func(program uint32) bool { // the node is not judged by what it has not got
			return k.Programs[program]>>63 == 0 && (program != 0 || row.Endpoint != uint32(bpf.EndpointHost))
		}
		if absent(row.Ingress) || absent(row.Egress) {
			return fmt.Errorf("endpoint %d is judged by a program that is not in force", row.Endpoint)
		}
		for _, staged := range []uint32{row.StagedIngress, row.StagedEgress} {
			if staged != 0 && k.Programs[staged]>>63 == 0 {
				return fmt.Errorf("endpoint %d is asked about by staged program %d, which is not there", row.Endpoint, staged)
			}
		}
		k.Subjects[row.Endpoint] = row
		after("subject")
	}
	return nil
}

func (k *Kernel) classInUse(class uint32) bool {
	for _, row := range k.Rows {
		if k.Peers[row.Peer] == class {
			return true
		}
	}
	return false
}

func (k *Kernel) programInUse(program uint32) bool {
	for _, s := range k.Subjects {
		if s.Ingress == program || s.Egress == program || s.StagedIngress == program || s.StagedEgress == program {
			return true
		}
	}
	return false
}

func (k *Kernel) cellInUse(cell uint32) bool {
	for _, descriptor := range k.Programs {
		first := uint32(descriptor)
		if descriptor>>63 == 1 && cell >= first && cell < first+k.length(first) {
			return true
		}
	}
	return false
}

// length is the number of cells of the program that begins at first.
func (k *Kernel) length(first uint32) uint32 {
	h := k.Header(first)
	end := uint32(1) + uint32(h.Segments) + uint32(h.Protocols)
	for i := range uint32(h.Segments) + uint32(h.Protocols) {
		s := k.segment(first + 1 + i)
		end = max(end, uint32(s.EntriesFirst)+selectorCells(s.EntriesCount)+uint32(s.EntriesCount))
	}
	return max(end, uint32(h.AnyFirst)+selectorCells(h.AnyCount)+uint32(h.AnyCount))
}

// selectorCells is how many cells the selectors of a list of n entries take.
func selectorCells(n uint16) uint32 {
	return (uint32(n) + uint32(bpf.SelectorsPerCell) - 1) / uint32(bpf.SelectorsPerCell)
}

// Peer returns the peer of an address as the datapath finds it.
func (k *Kernel) Peer(addr netip.Addr) uint32 {
	for bits := addr.BitLen(); bits >= 0; bits-- {
		prefix, _ := addr.Prefix(bits)
		if row, ok := k.Rows[prefix]; ok {
			return row.Peer
		}
	}
	return uint32(bpf.PeerUnknown)
}

// Judge evaluates an endpoint's program for a packet from or to an address.
func (k *Kernel) Judge(endpoint uint32, d policy.Direction, addr netip.Addr, protocol uint8, port uint16) (bpf.Verdict, error) {
	subject, ok := k.Subjects[endpoint]
	if !ok {
		return bpf.Verdict{}, fmt.Errorf("endpoint %d is not known", endpoint)
	}
	number := subject.Ingress
	if d == policy.Egress {
		number = subject.Egress
	}
	return k.run(k.Programs[number], k.Classes[k.Peers[k.Peer(addr)]], protocol, port)
}

// JudgeStaged evaluates the program with the staged policies; false: there is none.
func (k *Kernel) JudgeStaged(endpoint uint32, d policy.Direction, addr netip.Addr, protocol uint8, port uint16) (bpf.Verdict, bool, error) {
	number := k.Subjects[endpoint].StagedIngress
	if d == policy.Egress {
		number = k.Subjects[endpoint].StagedEgress
	}
	if number == 0 {
		return bpf.Verdict{}, false, nil
	}
	v, err := k.run(k.Programs[number], k.Classes[k.Peers[k.Peer(addr)]], protocol, port)
	return v, true, err
}

// run is the interpreter: the rules of bpf/lib/structs.h, word for word.
func (k *Kernel) run(descriptor uint64, class []uint64, protocol uint8, port uint16) (bpf.Verdict, error) {
	if descriptor>>63 == 0 {
		return bpf.Verdict{}, fmt.Errorf("program is not in use")
	}
	base := uint32(descriptor)
	h := k.Header(base)
	if uint32(descriptor>>32)&0xffff != uint32(h.Segments) {
		return bpf.Verdict{}, fmt.Errorf("descriptor says %d segments, header %d", descriptor>>32&0xffff, h.Segments)
	}
	lists := [][2]uint32{{uint32(h.AnyFirst), uint32(h.AnyCount)}}
	for i := range uint32(h.Segments) + uint32(h.Protocols) {
		s := k.segment(base + 1 + i)
		if s.Protocol == protocol && s.FirstPort <= port && port <= s.LastPort {
			lists = append(lists, [2]uint32{uint32(s.EntriesFirst), uint32(s.EntriesCount)})
		}
	}
	if len(lists) > 3 {
		return bpf.Verdict{}, fmt.Errorf("port %d of protocol %d is in more than one segment", port, protocol)
	}
	for from := uint32(0); ; {
		best, found := k.first(base, lists, class, from)
		switch {
		case !found:
			return bpf.Verdict{Rule: h.DefaultRule, Action: h.DefaultAction}, nil
		case best.Action != bpf.ActionPass:
			return bpf.Verdict{Rule: best.Rule, Action: best.Action, Argument: uint16(best.Argument)}, nil
		case best.Argument <= best.Rank:
			return bpf.Verdict{}, fmt.Errorf("pass at rank %d goes back to %d", best.Rank, best.Argument)
		}
		from = best.Argument
	}
}

// first returns the matching entry of the lowest rank at or behind from.
func (k *Kernel) first(base uint32, lists [][2]uint32, class []uint64, from uint32) (best bpf.PolicyEntry, found bool) {
	for _, list := range lists {
		for i := range list[1] {
			e := k.entry(base + list[0] + selectorCells(uint16(list[1])) + i)
			selector := k.selector(base+list[0], i)
			holds := int(selector/64) < len(class) && class[selector/64]>>(selector%64)&1 == 1
			if holds && e.Rank >= from && (!found || e.Rank < best.Rank) {
				best, found = e, true
			}
		}
	}
	return best, found
}

// selector reads number i of the selectors from first on.
func (k *Kernel) selector(first, i uint32) uint16 {
	c := k.Cells[first+i/uint32(bpf.SelectorsPerCell)]
	return binary.NativeEndian.Uint16(c[2*(i%uint32(bpf.SelectorsPerCell)):])
}

// Header reads the cell as a header.
func (k *Kernel) Header(cell uint32) bpf.PolicyHeader {
	c, order := k.Cells[cell], binary.NativeEndian
	return bpf.PolicyHeader{
		Segments: order.Uint16(c[0:]), Protocols: order.Uint16(c[2:]), AnyFirst: order.Uint16(c[4:]), AnyCount: order.Uint16(c[6:]),
		DefaultAction: bpf.Action(c[8]), DefaultRule: order.Uint32(c[12:]),
	}
}

func (k *Kernel) segment(cell uint32) bpf.PolicySegment {
	c, order := k.Cells[cell], binary.NativeEndian
	return bpf.PolicySegment{
		FirstPort: order.Uint16(c[0:]), LastPort: order.Uint16(c[2:]), Protocol: c[4],
		EntriesFirst: order.Uint16(c[8:]), EntriesCount: order.Uint16(c[10:]),
	}
}

func (k *Kernel) entry(cell uint32) bpf.PolicyEntry {
	c, order := k.Cells[cell], binary.NativeEndian
	return bpf.PolicyEntry{
		Rank: order.Uint32(c[0:]), Selector: order.Uint16(c[4:]), Action: bpf.Action(c[6]),
		Rule: order.Uint32(c[8:]), Argument: order.Uint32(c[12:]),
	}
}
