package main

import (
	"cmp"
	"fmt"
	"slices"
	"strings"
	"time"
)

// screenNodes is how many nodes are listed: those that are not ready first.
const screenNodes = 16

// showCluster prints one screen.
func showCluster(v *view, s *clusterStatus, now time.Time, asJSON bool) error {
	if asJSON {
		return printJSON(v.out, s)
	}
	state := v.right.Render("ready")
	if len(s.Missing) > 0 {
		state = v.wrong.Render("not ready") + ": " + s.lacks().Error()
	}
	a := s.Agents
	v.row(v.strong.Render("cluster"), state)
	v.row("operator", operatorText(s.Operator))
	if s.Authority != nil {
		v.row("authority", authorityText(s.Authority, now))
	}
	v.row("agents", fmt.Sprintf("%d of %d ready, version %s, %s routing", a.Ready, a.Wanted, orNone(a.Versions), orNone(a.Modes)))
	v.row("store", fmt.Sprintf("connected on %d of %d nodes, epoch %s", a.Connected, a.Wanted, orNone(a.Epochs)))
	v.row("policy", fmt.Sprintf("%d policies, revision %d in force on %d of %d nodes", a.Policies, a.PolicyRevision, a.Enforcing, a.Wanted))
	v.row("services", number(a.Services))
	v.row("pods", number(a.Pods))
	if err := v.flush(); err != nil {
		return err
	}
	v.line("")
	if err := showNodes(v, s.Nodes); err != nil {
		return err
	}
	for _, p := range s.Problems {
		v.line("\n%s %s: %s%s", v.wrong.Render("problem:"), p.Object, p.Message, saidBy(p.Nodes))
		if p.Remedy != "" {
			v.line("  %s", p.Remedy)
		}
	}
	return nil
}

func showNodes(v *view, nodes []memberStatus) error {
	rank := func(n memberStatus) int {
		if n.Ready {
			return 1
		}
		return 0
	}
	nodes = slices.Clone(nodes)
	slices.SortStableFunc(nodes, func(a, b memberStatus) int { return cmp.Compare(rank(a), rank(b)) })
	v.header("NODE", "AGENT", "PODS", "POLICY", "DATAPATH", "WHY NOT")
	for _, node := range nodes[:min(len(nodes), screenNodes)] {
		state := v.right.Render("ready")
		if !node.Ready {
			state = v.wrong.Render("not ready")
		}
		pods, revision, version := "", "", ""
		if node.answered {
			pods, revision, version = number(node.Pods), fmt.Sprintf("revision %d", node.PolicyRevision), fmt.Sprintf("version %d", node.DatapathVersion)
		}
		v.row(node.Name, state, pods, revision, version, node.Why)
	}
	if err := v.flush(); err != nil {
		return err
	}
	if left := len(nodes) - screenNodes; left > 0 {
		v.line("and %d more nodes: -o json has them all", left)
	}
	return nil
}

func operatorText(o operatorStatus) string {
	text := fmt.Sprintf("%d of %d replicas ready, ", o.Ready, o.Replicas)
	if o.Leader == "" {
		return text + "nobody leads"
	}
	text += fmt.Sprintf("%s leads, said so %s ago", o.Leader, ago(time.Duration(o.RenewedAgo)*time.Second))
	if o.Heard != nil {
		text += fmt.Sprintf(", heard from the API server %s ago", ago(time.Duration(*o.Heard)*time.Millisecond))
	}
	return text
}

// orNone joins what agents say, which is one thing in most clusters.
func orNone(texts []string) string { return cmp.Or(strings.Join(texts, " and "), "unknown") }

// saidBy names those that say so, or a few of them; what is of the cluster is of none.
func saidBy(names []string) string {
	const few = 3
	switch n := len(names); {
	case n == 0:
		return ""
	case n <= few:
		return fmt.Sprintf(" (on %s)", strings.Join(names, ", "))
	default:
		return fmt.Sprintf(" (on %s and %d more nodes)", strings.Join(names[:few], ", "), n-few)
	}
}
