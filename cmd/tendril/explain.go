package main

import (
	"io"
	"os"
	"strings"
	"time"

	"github.com/charmbracelet/lipgloss"
	"golang.org/x/sys/unix"

	agentv1 "tendril.io/tendril/api/agent/v1"
	"tendril.io/tendril/internal/flow"
)

// A proof is read from the left: a mark, an action, and the rule; what the rule says stands below its name. A table of
// the same would have a column as wide as the longest selector, and no terminal is that wide.
const (
	pageWidth = 100           // columns, where the output is no terminal
	minWidth  = 40            // a narrower terminal wraps by itself
	stepLead  = "           " // what follows a rule's first line begins under its name
)

// columns is how wide a line may be.
func columns(out io.Writer) int {
	file, ok := out.(*os.File)
	if !ok {
		return pageWidth
	}
	size, err := unix.IoctlGetWinsize(int(file.Fd()), unix.TIOCGWINSZ)
	if err != nil || size.Col == 0 { // a pipe or a file; a terminal that does not know
		return pageWidth
	}
	return max(minWidth, int(size.Col))
}

// showProofs prints the verdict, and for each side the rules in the order in which they were looked at.
func showProofs(v *view, r *agentv1.ExplainResponse) {
	if record := r.GetRecord(); record != nil {
		v.showRecord(record, r.GetVerdict())
	}
	summary := strings.TrimPrefix(r.GetSummary(), r.GetVerdict()+" ")
	v.hang(v.verdictText(r.GetVerdict())+"  ", summary, v.strong)
	for _, p := range r.GetProofs() {
		v.line("")
		v.showProof(p)
	}
}

// showRecord prints the record that is explained, and whether what it says still holds.
func (v *view) showRecord(record *agentv1.Flow, now string) {
	line := flow.Describe(record, time.Local)
	v.hang(v.dim.Render("recorded "+line.Time)+"  ", strings.TrimSpace(line.Verdict+" "+line.Path+"  "+line.Why), v.plain)
	then := "allowed"
	switch {
	case record.GetEgress().GetAction() == "deny", record.GetIngress().GetAction() == "deny":
		then = "denied"
	case record.GetVerdict() == flow.VerdictDropped:
		v.line("policy did not drop it; what holds now is:")
		return
	}
	if then == now {
		v.line("the same holds now:")
		return
	}
	v.line("%s", v.odd.Render("policy, or who the ends are, has changed since; now it is:"))
}

// showProof prints one side's proof: what was asked, the rules, the one that decided, and the one that nearly did.
func (v *view) showProof(p *agentv1.Proof) {
	preposition := "to"
	if p.GetDirection() == "ingress" {
		preposition = "from"
	}
	v.hang(v.strong.Render(p.GetDirection()), " of "+p.GetEndpoint()+" "+preposition+" "+p.GetPeer(), v.plain)
	if p.GetVerdict().GetAction() == "none" {
		v.hang("  ? ", "not an endpoint of this node, nothing is claimed: if it is a pod, ask the agent of its node", v.odd)
		return
	}
	decided := false
	for _, s := range p.GetSteps() {
		decided = s.GetMatched() && s.GetAction() != "pass" // the walk ends there
		v.showStep(s, preposition, decided)
	}
	if !decided {
		v.showDefault(p)
	}
	if staged := p.GetStaged(); staged != nil {
		v.hang(v.odd.Render("  staged   "), flow.WouldBe(staged)+" by "+flow.RuleText(staged), v.plain)
	}
	if p.GetNearest() != "" {
		rule, why, _ := strings.Cut(p.GetNearest(), ": ")
		v.hang(v.odd.Render("  nearest  "), rule, v.plain)
		v.hang(stepLead, why, v.odd)
	}
}

// showStep prints one rule: what it does and where it stands, whom and what it is for, and why it does not apply.
func (v *view) showStep(s *agentv1.Step, preposition string, decides bool) {
	name := strings.TrimSpace(s.GetRuleName() + " " + s.GetPlace())
	if s.GetSource() != "" {
		name += " (" + s.GetSource() + ")"
	}
	what := preposition + " " + s.GetSelector()
	if s.GetPorts() != "" {
		what += " at " + s.GetPorts()
	}
	switch {
	case decides:
		v.hang(v.mark(true, s.GetAction()), name+"  ← decides", v.strong)
	case s.GetMatched():
		v.hang(v.mark(true, s.GetAction()), name, v.plain)
	default:
		v.hang(v.mark(false, s.GetAction()), name, v.plain)
	}
	v.hang(stepLead, what, v.dim)
	if s.GetWhy() != "" {
		v.hang(stepLead, "but "+s.GetWhy(), v.plain)
	}
}

// showDefault prints what holds where no rule applied, in the form of a rule.
func (v *view) showDefault(p *agentv1.Proof) {
	v.hang(v.mark(true, p.GetVerdict().GetAction()), flow.RuleText(p.GetVerdict())+"  ← decides", v.strong)
	why := "no policy isolates the pod in this direction"
	if p.GetVerdict().GetAction() == "deny" {
		why = "the pod is isolated in this direction, and no rule lets this through"
		if by := p.GetIsolators(); len(by) > 0 {
			why = "the pod is isolated in this direction by " + strings.Join(by, ", ") + ", and no rule lets this through"
		}
	}
	v.hang(stepLead, why, v.dim)
}

// mark is the left margin of a rule: whether it applies, and what it does. Actions are padded to the longest.
func (v *view) mark(applies bool, action string) string {
	pad := strings.Repeat(" ", max(1, len("redirect")-len(action)-1))
	if !applies {
		return v.dim.Render("  ✗ "+action) + pad
	}
	return v.right.Render("  ✓ ") + v.verdictText(action) + pad
}

// hang prints text behind a lead, in lines that fit; what does not fit goes on below the text's beginning.
func (v *view) hang(lead, text string, style lipgloss.Style) {
	margin := lipgloss.Width(lead)
	for i, part := range wrap(text, max(minWidth/2, v.width-margin), "") {
		if i > 0 {
			lead = strings.Repeat(" ", margin)
		}
		v.line("%s", lead+style.Render(part))
	}
}
