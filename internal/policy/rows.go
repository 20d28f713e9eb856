package policy

import (
	"cmp"
	"fmt"
	"maps"
	"slices"
	"strings"
)

// Row is a line of one of the engine's tables, as `tendril db show` prints it.
type Row interface {
	Header() []string
	Cells() []string
}

// SelectorRow is a selector bit.
type SelectorRow struct {
	Bit  uint32
	Text string
	Uses int // programs, views and narrower selectors
}

// Header names the columns.
func (SelectorRow) Header() []string { return []string{"bit", "selector", "uses"} }

// Cells prints the row.
func (r SelectorRow) Cells() []string { return []string{fmt.Sprint(r.Bit), r.Text, fmt.Sprint(r.Uses)} }

// Selectors lists the selectors by bit.
func (e *Engine) Selectors() []SelectorRow {
	var out []SelectorRow
	for s := range maps.Values(e.selectors.byDigest) {
		out = append(out, SelectorRow{s.bit, s.text, s.refs})
	}
	slices.SortFunc(out, func(a, b SelectorRow) int { return cmp.Compare(a.Bit, b.Bit) })
	return out
}

// ClassInfo is a class in use.
type ClassInfo struct {
	Class     uint32
	Selectors []uint32
	Peers     int
}

// Header names the columns.
func (ClassInfo) Header() []string { return []string{"class", "selectors", "peers"} }

// Cells prints the row.
func (r ClassInfo) Cells() []string {
	return []string{fmt.Sprint(r.Class), strings.Trim(fmt.Sprint(r.Selectors), "[]"), fmt.Sprint(r.Peers)}
}

// Classes lists the classes by number.
func (e *Engine) Classes() []ClassInfo {
	var out []ClassInfo
	for _, c := range e.classes {
		out = append(out, ClassInfo{Class: c.number, Selectors: slices.Collect(c.bits.all()), Peers: c.count})
	}
	slices.SortFunc(out, func(a, b ClassInfo) int { return cmp.Compare(a.Class, b.Class) })
	return out
}

// PeerDescription is a peer in use.
type PeerDescription struct {
	Peer     uint32
	Class    uint32
	Identity string
	Labels   string
	Ports    []NamedPort
	Ranges   []string
}

// Header names the columns.
func (PeerDescription) Header() []string {
	return []string{"peer", "class", "identity", "labels", "ports", "ranges"}
}

// Cells prints the row.
func (r PeerDescription) Cells() []string {
	var ports []string
	for _, p := range r.Ports {
		ports = append(ports, fmt.Sprintf("%s=%d/%s", p.Name, p.Port, protocolName(p.Protocol)))
	}
	return []string{
		fmt.Sprint(r.Peer), fmt.Sprint(r.Class), r.Identity, r.Labels, strings.Join(ports, " "), strings.Join(r.Ranges, " "),
	}
}

// Peers lists the peers by number.
func (e *Engine) Peers() []PeerDescription {
	var out []PeerDescription
	for _, p := range e.peers {
		out = append(out, p.description())
	}
	slices.SortFunc(out, func(a, b PeerDescription) int { return cmp.Compare(a.Peer, b.Peer) })
	return out
}

func (p *peer) description() PeerDescription {
	d := PeerDescription{Peer: p.number, Ports: p.ports, Identity: p.workload.Reserved.String(), Labels: p.workload.Labels.String()}
	if !p.isReserved() {
		d.Identity = p.workload.Identity.String()
		d.Labels = strings.Trim(p.workload.Namespace+" "+p.workload.Labels.String(), " ")
	}
	if p.server {
		d.Identity += " api-server"
	}
	if p.class != nil {
		d.Class = p.class.number
	}
	for _, s := range p.cidrs {
		d.Ranges = append(d.Ranges, s.text)
	}
	slices.Sort(d.Ranges)
	return d
}

// ProgramInfo is a policy program in use.
type ProgramInfo struct {
	Program   uint32
	Direction Direction
	Staged    bool // asked only for what records say
	Workload  string
	Subjects  int
	FirstCell uint32
	CellCount int
	Rules     int
	Default   string // the builtin rule that decides when no other does
	Isolators []Key
}

// Header names the columns.
func (ProgramInfo) Header() []string {
	return []string{"program", "direction", "workload", "endpoints", "cells", "rules", "default", "isolated by"}
}

// Cells prints the row.
func (r ProgramInfo) Cells() []string {
	var isolators []string
	for _, key := range r.Isolators {
		isolators = append(isolators, key.String())
	}
	direction := r.Direction.String()
	if r.Staged {
		direction += " staged"
	}
	return []string{
		fmt.Sprint(r.Program), direction, r.Workload, fmt.Sprint(r.Subjects),
		fmt.Sprintf("%d+%d", r.FirstCell, r.CellCount), fmt.Sprint(r.Rules), r.Default, strings.Join(isolators, " "),
	}
}

// String is the direction's name.
func (d Direction) String() string {
	if d == Ingress {
		return "ingress"
	}
	return "egress"
}

// String is the action's name.
func (a Action) String() string { return cellAction(a).String() }

// Programs lists the programs by number.
func (e *Engine) Programs() []ProgramInfo {
	var out []ProgramInfo
	for _, g := range e.groups {
		for d := range g.programs {
			for _, p := range []*program{g.programs[d], g.staged[d]} {
				if p != nil {
					out = append(out, g.describe(p, Direction(d), p == g.staged[d]))
				}
			}
		}
	}
	slices.SortFunc(out, func(a, b ProgramInfo) int { return cmp.Compare(a.Program, b.Program) })
	return out
}

func (g *group) describe(p *program, d Direction, staged bool) ProgramInfo {
	_, rule := g.defaultOf(p.isolators)
	return ProgramInfo{
		Program: p.number, Direction: d, Staged: staged, Workload: Party{Workload: &g.workload}.describe(),
		Subjects: len(g.subjects), FirstCell: p.content.first, CellCount: len(p.content.cells), Rules: len(p.rules),
		Default: rule.String(), Isolators: p.isolators,
	}
}
