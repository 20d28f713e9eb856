package policy

import (
	"cmp"
	"crypto/sha256"
	"encoding/binary"
	"fmt"
	"math"
	"slices"

	"tendril.io/tendril/bpf"
)

// maxCells is how many cells 16-bit cell numbers reach.
const maxCells = math.MaxUint16

// portRange is a run of ports of one protocol; protocol 0 is any, and then the run holds all ports.
type portRange struct {
	protocol    uint8
	first, last uint16
}

// portProtocols are the protocols that a port of "any protocol" speaks of: those that have ports at all.
func portProtocols() []uint8 { return []uint8{6, 17, 132} }

// rangesOf returns the ranges of a port that has no name.
func rangesOf(p Port) []portRange {
	if p.Protocol != 0 || p.anyPort() {
		return []portRange{{p.Protocol, p.First, p.Last}}
	}
	var out []portRange
	for _, protocol := range portProtocols() {
		out = append(out, portRange{protocol, p.First, p.Last})
	}
	return out
}

// anyPort says whether a port that has no name is every port.
func (p *Port) anyPort() bool { return p.First == 0 && p.Last == math.MaxUint16 }

func (r portRange) full() bool { return r.first == 0 && r.last == math.MaxUint16 }

// mergeRanges returns the same ports in sorted ranges that do not touch.
func mergeRanges(ranges []portRange) []portRange {
	ranges = slices.SortedFunc(slices.Values(ranges), func(a, b portRange) int {
		return cmp.Or(cmp.Compare(a.protocol, b.protocol), cmp.Compare(a.first, b.first))
	})
	var out []portRange
	for _, r := range ranges {
		if r.protocol == 0 {
			return []portRange{r}
		}
		if n := len(out); n > 0 && out[n-1].protocol == r.protocol && int(r.first) <= int(out[n-1].last)+1 {
			out[n-1].last = max(out[n-1].last, r.last)
			continue
		}
		out = append(out, r)
	}
	return out
}

// builder collects a program's entries in the order of their precedence, and lays them out in cells.
type builder struct {
	header  bpf.PolicyHeader
	entries []bpf.PolicyEntry // the index is the rank
	tiers   []Tier            // of each entry
	any     []int             // entries for any protocol
	ports   [256]*protocolPorts
}

// protocolPorts are the entries that name one protocol.
type protocolPorts struct {
	any    []int      // at any port
	ranges []portSpan // at some
}

// portSpan says that an entry speaks of a run of ports.
type portSpan struct {
	first, last uint16
	entry       int
}

// segment is a run of ports with the entries that speak of all of it.
type segment struct {
	protocol    uint8
	first, last uint16
	entries     []int
}

// add appends an entry, whose ranges must be merged.
func (b *builder) add(entry bpf.PolicyEntry, tier Tier, ranges []portRange) {
	at := len(b.entries)
	entry.Rank = uint32(at)
	b.entries = append(b.entries, entry)
	b.tiers = append(b.tiers, tier)
	for _, r := range ranges {
		if r.protocol == 0 {
			b.any = append(b.any, at)
			continue
		}
		if b.ports[r.protocol] == nil {
			b.ports[r.protocol] = &protocolPorts{}
		}
		if p := b.ports[r.protocol]; r.full() {
			p.any = append(p.any, at)
		} else {
			p.ranges = append(p.ranges, portSpan{r.first, r.last, at})
		}
	}
}

// layout returns the program: header, port segments, any-port segments, then the lists, equal ones once.
func (b *builder) layout() ([][16]byte, error) {
	b.aimPasses()
	var ports, protocols []segment
	// n ranges that all overlap make 2n segments of up to n entries each: quadratic, and a policy's author chooses n.
	budget := 16 * maxCells // of list elements, before equal lists are found to be one
	for protocol, p := range b.ports {
		if p == nil {
			continue
		}
		ports = append(ports, segmentsOf(uint8(protocol), p.ranges, &budget)...)
		if len(p.any) > 0 {
			protocols = append(protocols, segment{uint8(protocol), 0, math.MaxUint16, p.any})
		}
	}
	l := lister{builder: b, next: 1 + len(ports) + len(protocols), known: map[string]int{}}
	if budget < 0 || l.next > maxCells {
		return nil, b.tooLarge()
	}
	cells := make([][16]byte, 1, l.next+len(b.entries))
	for _, s := range slices.Concat(ports, protocols) {
		cells = append(cells, segmentCell(s, l.place(s.entries)))
	}
	b.header.Segments, b.header.Protocols = uint16(len(ports)), uint16(len(protocols))
	b.header.AnyFirst, b.header.AnyCount = uint16(l.place(b.any)), uint16(len(b.any))
	if l.next > maxCells {
		return nil, b.tooLarge()
	}
	cells[0] = headerCell(b.header)
	return append(cells, l.cells...), nil
}

func (b *builder) tooLarge() error {
	return fmt.Errorf("compile program: %d entries need more than %d cells: merge port ranges or peers", len(b.entries), maxCells)
}

// aimPasses points each pass at the first entry of a later tier, or behind the last entry.
func (b *builder) aimPasses() {
	for i := range b.entries {
		if b.entries[i].Action != bpf.ActionPass {
			continue
		}
		next := i
		for next < len(b.entries) && b.tiers[next] == b.tiers[i] {
			next++
		}
		b.entries[i].Argument = uint32(next)
	}
}

// lister places lists of entries behind the segments.
type lister struct {
	builder *builder
	next    int
	known   map[string]int // list -> first cell
	cells   [][16]byte
}

func (l *lister) place(list []int) int {
	if len(list) == 0 || l.next > maxCells {
		return 0
	}
	key := make([]byte, 0, 4*len(list))
	for _, i := range list {
		key = binary.NativeEndian.AppendUint32(key, uint32(i))
	}
	if first, ok := l.known[string(key)]; ok {
		return first
	}
	first := l.next
	l.known[string(key)] = first
	for part := range slices.Chunk(list, int(bpf.SelectorsPerCell)) {
		l.cells = append(l.cells, l.selectorCell(part))
	}
	for _, i := range list {
		l.cells = append(l.cells, entryCell(l.builder.entries[i]))
	}
	l.next += listCells(len(list))
	return first
}

// listCells is how many cells a list of n entries takes: its selectors, and itself.
func listCells(n int) int { return (n+int(bpf.SelectorsPerCell)-1)/int(bpf.SelectorsPerCell) + n }

// segmentsOf cuts ranges that may overlap into disjoint segments, sorted by port. It takes what it lists from the
// budget and gives up when that is spent, so that a huge policy costs bounded time and memory.
func segmentsOf(protocol uint8, spans []portSpan, budget *int) []segment {
	var cuts []int // first ports of segments, and of the gaps between them
	for _, s := range spans {
		cuts = append(cuts, int(s.first), int(s.last)+1)
	}
	slices.Sort(cuts)
	cuts = slices.Compact(cuts)
	slices.SortStableFunc(spans, func(a, b portSpan) int { return cmp.Compare(a.first, b.first) })
	var out []segment
	var active []portSpan // by rank
	next := 0
	for i := 0; i+1 < len(cuts) && *budget >= 0; i++ {
		active = slices.DeleteFunc(active, func(s portSpan) bool { return int(s.last) < cuts[i] })
		for ; next < len(spans) && int(spans[next].first) == cuts[i]; next++ {
			at, _ := slices.BinarySearchFunc(active, spans[next], func(a, b portSpan) int { return cmp.Compare(a.entry, b.entry) })
			active = slices.Insert(active, at, spans[next])
		}
		if len(active) == 0 {
			continue
		}
		*budget -= len(active)
		out = appendSegment(out, segment{protocol, uint16(cuts[i]), uint16(cuts[i+1] - 1), entriesOf(active)})
	}
	return out
}

// appendSegment appends a segment, or widens the last one if it says the same of the ports just before.
func appendSegment(list []segment, s segment) []segment {
	if n := len(list); n > 0 && int(list[n-1].last)+1 == int(s.first) && slices.Equal(list[n-1].entries, s.entries) {
		list[n-1].last = s.last
		return list
	}
	return append(list, s)
}

func entriesOf(spans []portSpan) []int {
	out := make([]int, 0, len(spans))
	for _, s := range spans {
		out = append(out, s.entry)
	}
	return out
}

func cellAction(a Action) bpf.Action {
	switch a {
	case Allow:
		return bpf.ActionAllow
	case Redirect:
		return bpf.ActionRedirect
	case Pass:
		return bpf.ActionPass
	}
	return bpf.ActionDeny
}

// The four forms of a cell, in the machine's byte order, as bpf/lib/structs.h lays them out.

func headerCell(h bpf.PolicyHeader) (cell [16]byte) {
	order := binary.NativeEndian
	order.PutUint16(cell[0:], h.Segments)
	order.PutUint16(cell[2:], h.Protocols)
	order.PutUint16(cell[4:], h.AnyFirst)
	order.PutUint16(cell[6:], h.AnyCount)
	cell[8] = byte(h.DefaultAction)
	order.PutUint32(cell[12:], h.DefaultRule)
	return cell
}

func segmentCell(s segment, first int) (cell [16]byte) {
	order := binary.NativeEndian
	order.PutUint16(cell[0:], s.first)
	order.PutUint16(cell[2:], s.last)
	cell[4] = s.protocol
	order.PutUint16(cell[8:], uint16(first))
	order.PutUint16(cell[10:], uint16(len(s.entries)))
	return cell
}

func (l *lister) selectorCell(part []int) (cell [16]byte) {
	for i, entry := range part {
		binary.NativeEndian.PutUint16(cell[2*i:], l.builder.entries[entry].Selector)
	}
	return cell
}

func entryCell(entry bpf.PolicyEntry) (cell [16]byte) {
	order := binary.NativeEndian
	order.PutUint32(cell[0:], entry.Rank)
	order.PutUint16(cell[4:], entry.Selector)
	cell[6] = byte(entry.Action)
	cell[7] = entry.Flags
	order.PutUint32(cell[8:], entry.Rule)
	order.PutUint32(cell[12:], entry.Argument)
	return cell
}

func contentDigest(cells [][16]byte) Digest {
	h := sha256.New()
	h.Write([]byte("policy.cells/1"))
	for i := range cells {
		h.Write(cells[i][:])
	}
	return Digest(h.Sum(nil)[:16])
}
