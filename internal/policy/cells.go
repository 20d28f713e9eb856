package policy

import (
	"cmp"
	"crypto/sha256"
	"encoding/binary"
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
	any     []int32           // entries for any protocol
	ports   [256]*protocolPorts
}

// protocolPorts are the entries that name one protocol.
type protocolPorts struct {
	any    []int32    // at any port
	ranges []portSpan // at some
}

// portSpan says that an entry speaks of a run of ports.
type portSpan struct {
	first, last uint16
	entry       int32
}

// segment is a run of ports with the list of entries that speak of all of it.
type segment struct {
	protocol    uint8
	first, last uint16
	list        int
}

// add appends an entry, whose ranges must be merged.
func (b *builder) add(entry bpf.PolicyEntry, tier Tier, ranges []portRange) {
	at := int32(len(b.entries))
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
	l := &lists{known: map[uint64][]int{}}
	for protocol, p := range b.ports {
		if p == nil {
			continue
		}
		ports = append(ports, l.segmentsOf(uint8(protocol), p.ranges)...)
		if len(p.any) > 0 {
			protocols = append(protocols, segment{uint8(protocol), 0, math.MaxUint16, l.of(p.any)})
		}
	}
	everything := l.of(b.any)
	segments := slices.Concat(ports, protocols)
	if needs := 1 + len(segments) + l.cells; needs > maxCells {
		return nil, &programTooLarge{needs}
	}
	firsts := l.place(1 + len(segments))
	b.header.Segments, b.header.Protocols = uint16(len(ports)), uint16(len(protocols))
	b.header.AnyFirst, b.header.AnyCount = uint16(firsts[everything]), uint16(len(b.any))
	cells := append(make([][16]byte, 0, 1+len(segments)+l.cells), headerCell(b.header))
	for _, s := range segments {
		cells = append(cells, segmentCell(s, firsts[s.list], l.all[s.list].count))
	}
	for _, list := range l.all {
		for part := range slices.Chunk(list.entries, int(bpf.SelectorsPerCell)) {
			cells = append(cells, b.selectorCell(part))
		}
		for _, i := range list.entries {
			cells = append(cells, entryCell(b.entries[i]))
		}
	}
	return cells, nil
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

// lists are the distinct lists of entries of a program. n ranges that overlap can make 2n segments of up to n entries
// each, quadratic in what a policy's author chooses, and the author is owed the number of cells all the same: a list is
// told by the sum of its entries' hashes, of which each border changes one, compared with the lists of equal sum, and
// kept only while a program could hold it.
type lists struct {
	known map[uint64][]int // by sum
	all   []list
	cells int // of all of them
}

// list is some entries in the order of their ranks. entries is nil where there are more than can be kept.
type list struct {
	entries []int32
	count   int
}

// find returns the index of a list.
func (l *lists) find(sum uint64, entries []int32) int {
	for _, i := range l.known[sum] {
		if known := &l.all[i]; known.count == len(entries) && (known.entries == nil || slices.Equal(known.entries, entries)) {
			return i
		}
	}
	fresh := list{count: len(entries)}
	if l.cells += listCells(len(entries)); l.cells <= maxCells {
		fresh.entries = slices.Clone(entries)
	}
	l.all = append(l.all, fresh)
	l.known[sum] = append(l.known[sum], len(l.all)-1)
	return len(l.all) - 1
}

// listCells is how many cells a list of n entries takes: its selectors, and itself.
func listCells(n int) int { return (n+int(bpf.SelectorsPerCell)-1)/int(bpf.SelectorsPerCell) + n }

// of returns the index of a list whose sum is not at hand.
func (l *lists) of(entries []int32) int {
	sum := uint64(0)
	for _, i := range entries {
		sum += scatter(i)
	}
	return l.find(sum, entries)
}

// place returns the first cell of each list, the lists standing one behind the other; 0 for the empty one.
func (l *lists) place(next int) []int {
	firsts := make([]int, len(l.all))
	for i := range l.all {
		if l.all[i].count > 0 {
			firsts[i] = next
			next += listCells(l.all[i].count)
		}
	}
	return firsts
}

// scatter is a hash of an entry's index: the finalizer of SplitMix64 (Steele, Lea, Flood 2014).
func scatter(entry int32) uint64 {
	x := (uint64(entry) + 1) * 0x9e3779b97f4a7c15
	x = (x ^ x>>30) * 0xbf58476d1ce4e5b9
	x = (x ^ x>>27) * 0x94d049bb133111eb
	return x ^ x>>31
}

// border is a port at which an entry begins to be spoken of, or no longer is.
type border struct {
	port   int32
	entry  int32
	begins bool
}

// segmentsOf cuts ranges that may overlap into disjoint segments, sorted by port.
func (l *lists) segmentsOf(protocol uint8, spans []portSpan) []segment {
	borders := make([]border, 0, 2*len(spans))
	for _, s := range spans {
		borders = append(borders, border{int32(s.first), s.entry, true}, border{int32(s.last) + 1, s.entry, false})
	}
	slices.SortFunc(borders, func(a, b border) int {
		return cmp.Or(cmp.Compare(a.port, b.port), cmp.Compare(a.entry, b.entry), compareBools(a.begins, b.begins))
	})
	var out []segment
	var active []int32 // by rank
	sum := uint64(0)
	for i := 0; i < len(borders); {
		port := borders[i].port
		for ; i < len(borders) && borders[i].port == port; i++ {
			active, sum = borders[i].cross(active, sum)
		}
		if len(active) > 0 {
			out = appendSegment(out, segment{protocol, uint16(port), uint16(borders[i].port - 1), l.find(sum, active)})
		}
	}
	return out
}

// cross adds a border's entry to those that are spoken of, or takes it away. Where an entry ends and begins at one port,
// it ends first.
func (b border) cross(active []int32, sum uint64) ([]int32, uint64) {
	at, _ := slices.BinarySearch(active, b.entry)
	if b.begins {
		return slices.Insert(active, at, b.entry), sum + scatter(b.entry)
	}
	return slices.Delete(active, at, at+1), sum - scatter(b.entry)
}

// compareBools orders false before true.
func compareBools(a, b bool) int {
	switch {
	case a == b:
		return 0
	case b:
		return -1
	}
	return 1
}

// appendSegment appends a segment, or widens the last one if it says the same of the ports just before.
func appendSegment(list []segment, s segment) []segment {
	if n := len(list); n > 0 && int(list[n-1].last)+1 == int(s.first) && list[n-1].list == s.list {
		list[n-1].last = s.last
		return list
	}
	return append(list, s)
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

func segmentCell(s segment, first, count int) (cell [16]byte) {
	order := binary.NativeEndian
	order.PutUint16(cell[0:], s.first)
	order.PutUint16(cell[2:], s.last)
	cell[4] = s.protocol
	order.PutUint16(cell[8:], uint16(first))
	order.PutUint16(cell[10:], uint16(count))
	return cell
}

func (b *builder) selectorCell(part []int32) (cell [16]byte) {
	for i, entry := range part {
		binary.NativeEndian.PutUint16(cell[2*i:], b.entries[entry].Selector)
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
