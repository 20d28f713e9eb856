package main

import (
	"cmp"
	"slices"
	"time"

	agentv1 "tendril.io/tendril/api/agent/v1"
	"tendril.io/tendril/internal/flow"
)

// merger puts the records of several nodes in order of time. Without follow it prints when all have come; with follow
// each record waits a little for earlier ones.
type merger struct {
	print  func(*agentv1.Flow) error
	follow bool
	last   int // of the past records together; 0: all
	held   []heldRecord
}

// heldRecord is a record that waits for earlier ones.
type heldRecord struct {
	flow    *agentv1.Flow
	arrived time.Time
}

// run prints records until they end.
func (m *merger) run(records <-chan *agentv1.Flow) error {
	// Half the wait, so that a record waits at most one and a half.
	ticker := time.NewTicker(settle / 2)
	defer ticker.Stop()
	for {
		select {
		case record, ok := <-records:
			if !ok {
				if m.last > 0 && !m.follow {
					m.sort()
					m.held = m.held[max(0, len(m.held)-m.last):]
				}
				return m.release(len(m.held))
			}
			m.held = append(m.held, heldRecord{record, time.Now()})
		case now := <-ticker.C:
			if m.follow {
				if err := m.release(m.settled(now)); err != nil {
					return err
				}
			}
		}
	}
}

// sort puts the held records in order of time.
func (m *merger) sort() {
	slices.SortStableFunc(m.held, func(x, y heldRecord) int {
		return cmp.Compare(x.flow.GetTimeUnixNano(), y.flow.GetTimeUnixNano())
	})
}

// settled says how many of the held records, in order of time, may be printed: up to the last one that has waited.
func (m *merger) settled(now time.Time) int {
	// One that has waited long enough takes along all that are earlier: they would only come out of order.
	m.sort()
	for i := len(m.held); i > 0; i-- {
		if now.Sub(m.held[i-1].arrived) >= settle {
			return i
		}
	}
	return 0
}

// release prints the first n held records.
func (m *merger) release(n int) error {
	m.sort()
	for _, held := range m.held[:n] {
		if err := m.print(held.flow); err != nil {
			return err
		}
	}
	m.held = slices.Delete(m.held, 0, n)
	return nil
}

// flowPrinter prints records as lines or as JSON.
type flowPrinter struct {
	view  *view
	json  bool
	nodes bool // name the node on each line
}

// print prints one record, and ahead of it how many are missing.
func (p *flowPrinter) print(record *agentv1.Flow) error {
	if p.json {
		return p.view.jsonLine(record)
	}
	if lost := record.GetLost(); lost > 0 {
		p.view.line("%s", p.view.odd.Render("... "+number(lost)+" records lost"))
	}
	line := flow.Describe(record, time.Local)
	verdict := line.Verdict + spaces(8-len(line.Verdict))
	switch record.GetVerdict() {
	case flow.VerdictDropped:
		verdict = p.view.wrong.Render(verdict)
	case flow.VerdictRedirected:
		verdict = p.view.odd.Render(verdict)
	default:
		verdict = p.view.right.Render(verdict)
	}
	text := p.view.dim.Render(line.Time) + " "
	if p.nodes {
		text += record.GetNode() + " "
	}
	text += verdict + " " + line.Path
	if line.Why != "" {
		text += "  " + p.view.dim.Render(line.Why)
	}
	p.view.line("%s", text)
	return nil
}

// spaces is so many spaces, or none.
func spaces(n int) string {
	const blank = "                "
	return blank[:max(0, min(n, len(blank)))]
}
