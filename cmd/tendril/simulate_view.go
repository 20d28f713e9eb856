package main

import (
	"fmt"
	"slices"
	"strings"
	"time"

	agentv1 "tendril.io/tendril/api/agent/v1"
	"tendril.io/tendril/internal/flow"
	"tendril.io/tendril/internal/policy"
)

// show prints what became of the policies, a row for each change, and what the rows were found among.
func (f *simulateFlags) show(v *view, r *agentv1.SimulateResponse, node string) error {
	if f.json() {
		return v.json(r)
	}
	for _, p := range r.GetPolicies() {
		v.hang("", f.policyText(p), v.plain)
	}
	header, rows, summary := flowHeader(), flowRows(v, r), flowSummary(r)
	if f.allPairs {
		header, rows, summary = pairHeader(), pairRows(v, r), pairSummary(r, node)
	}
	if err := f.table(v, header, rows); err != nil {
		return err
	}
	v.line("")
	for _, line := range summary {
		v.hang("", line, v.plain)
	}
	return nil
}

// table prints as many rows as the flags allow, and counts the rest.
func (f *simulateFlags) table(v *view, header []string, rows [][]string) error {
	if len(rows) == 0 {
		return nil
	}
	shown := len(rows)
	if f.limit > 0 {
		shown = min(shown, f.limit)
	}
	v.line("")
	v.header(header...)
	for _, row := range rows[:shown] {
		v.row(row...)
	}
	err := v.flush()
	if more := len(rows) - shown; more > 0 {
		v.line("%s", v.dim.Render("... and "+counted(more, "row")+" more: --limit 0 or -o json prints them"))
	}
	return err
}

// policyText says what becomes of a policy.
func (f *simulateFlags) policyText(p *agentv1.SimulatedPolicy) string {
	verb := "selects"
	if p.GetChange() == "deleted" {
		verb = "selected"
	}
	where := ""
	if !f.allPairs {
		where = " of the nodes asked"
	}
	what := counted(p.GetEndpoints(), "pod") + where
	if f.allPairs {
		what = counted(p.GetEndpoints(), "kind") + " of pod"
	}
	text := fmt.Sprintf("%s %s: %s, %s %s", p.GetKind(), strings.TrimPrefix(p.GetNamespace()+"/"+p.GetName(), "/"), p.GetChange(), verb, what)
	if p.GetStaged() {
		text += "; it is staged, and simulated as if it were in force"
	}
	return text
}

func flowHeader() []string {
	return []string{"FROM", "TO", "PORT", "SEEN", "LAST", "NOW", "BY", "THEN", "BY"}
}

// flowRows makes a row of flows that read alike: of both families, mostly. The latest comes first.
func flowRows(v *view, r *agentv1.SimulateResponse) (rows [][]string) {
	at := map[string]int{}
	var seen []uint64
	for _, f := range r.GetFlows() {
		if !f.GetChanges() {
			continue
		}
		row := []string{
			endName(f.GetSource()), endName(f.GetDestination()), portName(f), "", time.Unix(0, f.GetLastUnixNano()).Format("15:04:05"),
			v.verdictText(f.GetNow().GetVerdict()), verdictAuthor(f.GetNow()), v.verdictText(f.GetThen().GetVerdict()), verdictAuthor(f.GetThen()),
		}
		key := fmt.Sprint(row[:3], row[5:])
		if _, known := at[key]; !known {
			at[key] = len(rows)
			rows, seen = append(rows, row), append(seen, 0)
		}
		seen[at[key]] += f.GetCount()
		rows[at[key]][3] = number(seen[at[key]])
	}
	return rows
}

// endName is a pod's name, or an address.
func endName(p *agentv1.Party) string {
	if p.GetPod() != "" {
		return p.GetNamespace() + "/" + p.GetPod()
	}
	return p.GetIp()
}

// portName is a port and its protocol; protocols without ports stand alone.
func portName(f *agentv1.SimulatedFlow) string {
	name := flow.ProtocolName(f.GetProtocol())
	switch name {
	case "tcp", "udp", "sctp":
		return number(f.GetDestination().GetPort()) + "/" + name
	}
	return name
}

// verdictAuthor names the side that decides and its rule; where both allow, what each has to say.
func verdictAuthor(verdict *agentv1.SimulatedVerdict) string {
	var said, silent []string
	for _, side := range []struct {
		direction string
		judgement *agentv1.Judgement
	}{{"egress", verdict.GetEgress()}, {"ingress", verdict.GetIngress()}} {
		switch {
		case verdict.GetDecides() != "both" && verdict.GetDecides() != side.direction:
		case side.judgement.GetRuleName() == defaultAllow:
			silent = append(silent, side.direction)
		default:
			said = append(said, side.direction+" "+flow.RuleText(side.judgement))
		}
	}
	if len(said) == 0 {
		return "no policy restricts " + strings.Join(silent, " or ")
	}
	return strings.Join(said, ", ")
}

// defaultAllow is the rule of a side that no policy isolates.
const defaultAllow = "builtin/default-allow"

// flowSummary says how much of what was looked at would change.
func flowSummary(r *agentv1.SimulateResponse) []string {
	of := "of " + counted(r.GetReplayed(), "recorded flow")
	if at := r.GetOldestUnixNano(); at != 0 {
		of += " since " + time.Unix(0, at).Format("15:04:05")
	}
	var turns []string
	for _, f := range r.GetFlows() {
		if f.GetChanges() {
			turns = append(turns, f.GetNow().GetVerdict()+" -> "+f.GetThen().GetVerdict())
		}
	}
	lines := []string{counted(r.GetChanged(), "") + of + " would change" + tally(turns)}
	if r.GetChanged() == 0 {
		lines[0] = "nothing would change " + of
	}
	for _, left := range []struct {
		n       uint64
		one, of string
	}{
		{r.GetDeparted(), "flow", "not judged: one end is no longer what it was"},
		{r.GetUnjudged(), "record", "not replayed: policy had no say in it"},
		{r.GetLost(), "record", "lost before anybody could read it"},
	} {
		if left.n > 0 {
			lines = append(lines, counted(left.n, left.one)+" "+left.of)
		}
	}
	return lines
}

// tally counts equal texts, in the order in which they first come.
func tally(texts []string) string {
	count := map[string]int{}
	var order []string
	for _, text := range texts {
		if count[text]++; count[text] == 1 {
			order = append(order, text)
		}
	}
	for i, text := range order {
		order[i] = fmt.Sprintf("%d %s", count[text], text)
	}
	if len(order) == 0 {
		return ""
	}
	return ": " + strings.Join(order, ", ")
}

// counted is a number with its noun; without a noun the number and a space.
func counted[N int | uint32 | uint64](n N, noun string) string {
	if noun != "" && n != 1 {
		noun += "s"
	}
	return fmt.Sprintf("%d %s", n, noun)
}

func pairHeader() []string {
	return []string{"FROM", "TO", "PORTS", "SERVING", "NOW", "BY", "THEN", "BY"}
}

func pairRows(v *view, r *agentv1.SimulateResponse) (rows [][]string) {
	for _, p := range r.GetPairs() {
		from, to := r.GetCrowds()[p.GetFrom()], r.GetCrowds()[p.GetTo()]
		rows = append(rows, []string{
			crowdName(from), crowdName(to), p.GetPortsText(), strings.Join(p.GetServes(), ", "),
			v.verdictText(p.GetNow().GetVerdict()), verdictAuthor(p.GetNow()), v.verdictText(p.GetThen().GetVerdict()), verdictAuthor(p.GetThen()),
		})
	}
	return rows
}

// crowdNames is how many members of a crowd are called by name.
const crowdNames = 3

// crowdName names a crowd by its members.
func crowdName(c *agentv1.Crowd) string {
	members := c.GetMembers()
	names := strings.Join(members[:min(len(members), crowdNames)], " ")
	if more := len(members) - crowdNames; more > 0 {
		names += fmt.Sprintf(" and %d more", more)
	}
	switch policy.CrowdKind(c.GetKind()) {
	case policy.CrowdOwnNode:
		return "the pod's own node"
	case policy.CrowdOtherNodes:
		return "other nodes (" + names + ")"
	case policy.CrowdWorld:
		if slices.Contains(members, "0.0.0.0/0") || slices.Contains(members, "::/0") {
			return "the outside"
		}
		return "the outside in " + names
	}
	return names
}

func pairSummary(r *agentv1.SimulateResponse, node string) []string {
	var turns []string
	for _, p := range r.GetPairs() {
		turns = append(turns, p.GetNow().GetVerdict()+" -> "+p.GetThen().GetVerdict())
	}
	of := fmt.Sprintf("among %s, which policies tell apart into %s with their nodes and the outside", counted(r.GetPods(), "pod"), counted(len(r.GetCrowds()), "group"))
	if node != "" {
		of += ", as " + node + " knows them"
	}
	if len(turns) == 0 {
		return []string{"nothing would change " + of}
	}
	return []string{counted(r.GetChanged(), "pair") + " would change at some port, in " + counted(len(turns), "row") + tally(turns), of}
}
