package main

import (
	"bytes"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"unicode/utf8"

	"github.com/charmbracelet/lipgloss"
	"golang.org/x/sys/unix"

	agentv1 "tendril.io/tendril/api/agent/v1"
)

func TestTheWidthIsTheTerminals(t *testing.T) {
	terminal, err := os.OpenFile("/dev/ptmx", os.O_RDWR|unix.O_NOCTTY, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer terminal.Close()
	file, err := os.Create(filepath.Join(t.TempDir(), "out"))
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	for _, test := range []struct{ has, want int }{{0, pageWidth}, {20, minWidth}, {72, 72}, {180, 180}} {
		if err := unix.IoctlSetWinsize(int(terminal.Fd()), unix.TIOCSWINSZ, &unix.Winsize{Row: 24, Col: uint16(test.has)}); err != nil {
			t.Fatal(err)
		}
		if got := columns(terminal); got != test.want {
			t.Errorf("a terminal of %d columns: got %d, want %d", test.has, got, test.want)
		}
	}
	if got := columns(file); got != pageWidth {
		t.Errorf("a file: got %d, want %d", got, pageWidth)
	}
	if got := columns(&bytes.Buffer{}); got != pageWidth {
		t.Errorf("a buffer: got %d, want %d", got, pageWidth)
	}
}

// TestAProofFitsItsWidth: no line is too long, whatever the selectors are, and no word of them is lost.
func TestAProofFitsItsWidth(t *testing.T) {
	selector := "pods app in (" + strings.Repeat("checkout,", 30) + "end),@namespace=shop; or " + strings.Repeat("pods team=payments; or ", 9) + "entity world"
	why := "the peer has no label app, the rule wants " + selector
	answer := &agentv1.ExplainResponse{Verdict: "denied", Summary: "denied by the ingress of shop/web: " + strings.Repeat("long-name-", 12), Proofs: []*agentv1.Proof{{
		Direction: "ingress", Endpoint: "shop/web", Peer: "shop/client", Nearest: "NetworkPolicy/shop/web spec.ingress[0]: " + why,
		Verdict: &agentv1.Judgement{Action: "deny", RuleName: "builtin/default-deny"},
		Steps:   []*agentv1.Step{{RuleName: "NetworkPolicy/shop/web", Place: "spec.ingress[0]", Selector: selector, Ports: "80/TCP", Action: "allow", Why: why}},
	}}}
	for _, width := range []int{minWidth, 80, pageWidth, 200} {
		var out bytes.Buffer
		v := newView(&out)
		v.width = width
		showProofs(v, answer)
		for line := range strings.Lines(out.String()) {
			if n := utf8.RuneCountInString(strings.TrimSuffix(line, "\n")); n > width {
				t.Errorf("width %d: a line of %d: %s", width, n, line)
			}
		}
		letters := strings.Join(strings.Fields(out.String()), "")
		if want := strings.Join(strings.Fields("but "+why), ""); !strings.Contains(letters, want) {
			t.Errorf("width %d: the reason is not whole:\n%s", width, out.String())
		}
	}
}

func TestOnlyTheRuleThatDecidesIsHighlighted(t *testing.T) {
	var out bytes.Buffer
	v := newView(&out)
	v.strong = lipgloss.NewStyle().Transform(func(text string) string { return "<" + text + ">" })
	v.showProof(&agentv1.Proof{
		Direction: "egress", Endpoint: "shop/a", Peer: "shop/b", Verdict: &agentv1.Judgement{Action: "allow", RuleName: "two"},
		Steps: []*agentv1.Step{
			{RuleName: "zero", Action: "pass", Matched: true}, {RuleName: "one", Action: "deny", Why: "no"}, {RuleName: "two", Action: "allow", Matched: true},
		},
	})
	if got := out.String(); strings.Count(got, "<") != 2 || !strings.Contains(got, "<egress>") || !strings.Contains(got, "<two  ← decides>") {
		t.Errorf("highlighted are not the direction and the rule that decides:\n%s", got)
	}
}
