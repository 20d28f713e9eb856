package bpf

import (
	"encoding/binary"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"
)

// alreadyPast is a deadline that makes a read return at once.
func alreadyPast() time.Time { return time.Now().Add(-time.Second) }

// programSource is a policy program as a story writes it, and its compilation into cells: the layout of structs.h, written out
// a second time on purpose.
type programSource struct {
	allow   bool
	entries []sourceEntry
}

type sourceEntry struct {
	protocol    uint8 // 0: any
	first, last uint16
	anyPort     bool
	cell        PolicyEntry
}

// entry reads "ACTION PORTS selector=N rank=N rule=N argument=N".
func (p *programSource) entry(text string) error {
	plain, named := words(text)
	actions := map[string]Action{"allow": ActionAllow, "deny": ActionDeny, "pass": ActionPass, "redirect": ActionRedirect}
	e := sourceEntry{cell: PolicyEntry{Rank: number(named, "rank"), Selector: uint16(number(named, "selector")),
		Action: actions[plain[0]], Rule: number(named, "rule"), Argument: number(named, "argument")}}
	name, ports, hasPorts := strings.Cut(plain[1], "/")
	e.protocol, e.anyPort = protocolOf(name), !hasPorts
	if hasPorts {
		first, last, ranged := strings.Cut(ports, "-")
		if !ranged {
			last = first
		}
		a, err := strconv.ParseUint(first, 10, 16)
		if err != nil {
			return err
		}
		b, err := strconv.ParseUint(last, 10, 16)
		if err != nil {
			return err
		}
		e.first, e.last = uint16(a), uint16(b)
	}
	if e.cell.Action == ActionNone || (name != "any" && e.protocol == 0) {
		return fmt.Errorf("cannot read entry %q", text)
	}
	p.entries = append(p.entries, e)
	return nil
}

// compile lays the program out. Port ranges of one story do not overlap, so each is a segment of its own.
func (p *programSource) compile() []PolicyCell {
	type segment struct {
		protocol    uint8
		first, last uint16
		anyPort     bool
	}
	lists := map[segment][]PolicyEntry{}
	var anyList []PolicyEntry
	for _, e := range p.entries {
		if e.protocol == 0 {
			anyList = append(anyList, e.cell)
			continue
		}
		key := segment{e.protocol, e.first, e.last, e.anyPort}
		if e.anyPort {
			key.first, key.last = 0, 65535
		}
		lists[key] = append(lists[key], e.cell)
	}
	var keys []segment
	for key := range lists {
		keys = append(keys, key)
	}
	slices.SortFunc(keys, func(a, b segment) int {
		if a.anyPort != b.anyPort {
			return map[bool]int{false: -1, true: 1}[a.anyPort]
		}
		return int(a.protocol)<<16 + int(a.first) - int(b.protocol)<<16 - int(b.first)
	})
	header := PolicyHeader{DefaultAction: ActionDeny, DefaultRule: uint32(RuleDefaultDeny)}
	if p.allow {
		header.DefaultAction, header.DefaultRule = ActionAllow, uint32(RuleDefaultAllow)
	}
	next := uint16(1 + len(keys))
	cells := []PolicyCell{{}}
	var entries []PolicyCell
	add := func(list []PolicyEntry) (first uint16) {
		slices.SortFunc(list, func(a, b PolicyEntry) int { return int(a.Rank) - int(b.Rank) })
		first = next
		for part := range slices.Chunk(list, int(SelectorsPerCell)) {
			var selectors [SelectorsPerCell]uint16
			for i, e := range part {
				selectors[i] = e.Selector
			}
			entries = append(entries, cellOf(selectors))
		}
		for _, e := range list {
			entries = append(entries, cellOf(e))
		}
		next = uint16(1 + len(keys) + len(entries))
		return first
	}
	for _, key := range keys {
		if key.anyPort {
			header.Protocols++
		} else {
			header.Segments++
		}
		count := uint16(len(lists[key]))
		cells = append(cells, cellOf(PolicySegment{FirstPort: key.first, LastPort: key.last, Protocol: key.protocol,
			EntriesFirst: add(lists[key]), EntriesCount: count}))
	}
	header.AnyCount = uint16(len(anyList))
	header.AnyFirst = add(anyList)
	cells[0] = cellOf(header)
	return append(cells, entries...)
}

// cellOf is a 16-byte struct in memory order.
func cellOf(v any) PolicyCell {
	var cell PolicyCell
	if _, err := binary.Encode(cell[:], binary.NativeEndian, v); err != nil {
		panic(err) // only for a struct of another size, which the compiler's caller cannot make
	}
	return cell
}
