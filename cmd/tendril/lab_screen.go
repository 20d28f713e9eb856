package main

import (
	"fmt"
	"io"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/charmbracelet/lipgloss"
)

// width is how many columns the lab's output is made for, wide how many a line of a command's output may take in it.
const (
	width = 80
	wide  = 92
)

// screen prints what the lab has to say. Colours appear only where the writer is a terminal.
type screen struct {
	out                              io.Writer
	strong, dim, right, wrong, frame lipgloss.Style
}

func newScreen(out io.Writer) *screen {
	colours := lipgloss.NewRenderer(out)
	style := colours.NewStyle
	return &screen{
		out:    out,
		strong: style().Bold(true),
		dim:    style().Faint(true),
		right:  style().Foreground(lipgloss.Color("2")).Bold(true),
		wrong:  style().Foreground(lipgloss.Color("1")).Bold(true),
		frame:  style().Foreground(lipgloss.Color("6")),
	}
}

// heading opens a part: a title and a rule to the right margin.
func (s *screen) heading(title string) {
	rule := strings.Repeat("─", max(3, width-utf8.RuneCountInString(title)-1))
	fmt.Fprintf(s.out, "\n%s %s\n", s.strong.Render(title), s.frame.Render(rule))
}

// lines prints plain lines, indented.
func (s *screen) lines(lines ...string) {
	for _, line := range lines {
		fmt.Fprintf(s.out, "  %s\n", line)
	}
}

// note prints a remark.
func (s *screen) note(text string) { s.lines(s.dim.Render(text)) }

// progress prints a step that has begun.
func (s *screen) progress(text string) { s.lines(s.dim.Render("· " + text)) }

// good prints something that holds, and how long it took where that is worth a word.
func (s *screen) good(text string, took time.Duration) { s.verdict(s.right.Render("✓"), text, took) }

// bad prints something that does not hold.
func (s *screen) bad(text string) { s.verdict(s.wrong.Render("✗"), text, 0) }

func (s *screen) verdict(mark, text string, took time.Duration) {
	if took == 0 {
		fmt.Fprintf(s.out, "  %s %s\n", mark, text)
		return
	}
	pad := max(1, width-utf8.RuneCountInString(text)-4-9)
	fmt.Fprintf(s.out, "  %s %s%s%s\n", mark, text, strings.Repeat(" ", pad), s.dim.Render(fmt.Sprintf("%9s", short(took))))
}

// command prints a command line that a person could have typed, and what it printed.
func (s *screen) command(line, output string) {
	s.lines(s.dim.Render("$ ") + s.strong.Render(line))
	for text := range strings.Lines(output) {
		body := strings.TrimSpace(text)
		lead := text[:strings.Index(text, body)] // what is indented stays so in all of its lines
		for _, part := range wrap(body, wide-len(lead), "      ") {
			fmt.Fprintf(s.out, "    %s\n", strings.TrimRight(s.dim.Render("│ ")+lead+part, " "))
		}
	}
}

// wrap breaks a line that is too long at blanks; columns move together first, and what follows is indented.
func wrap(text string, limit int, indent string) []string {
	if utf8.RuneCountInString(text) <= limit {
		return []string{text}
	}
	var lines []string
	var line []rune
	begun := false // the line holds a word
	for _, word := range strings.Fields(text) {
		letters := []rune(word)
		if begun && len(line)+1+len(letters) > limit {
			lines = append(lines, string(line))
			line, begun = []rune(indent), false
		}
		if begun {
			line = append(line, ' ')
		}
		line, begun = append(line, letters...), true
		for len(line) > limit { // a word longer than a line
			lines = append(lines, string(line[:limit]))
			line = append([]rune(indent), line[limit:]...)
		}
	}
	return append(lines, string(line))
}

// short rounds a time to what a person wants to know.
func short(d time.Duration) string {
	switch {
	case d < time.Millisecond:
		return d.Round(time.Microsecond).String()
	case d < time.Second:
		return d.Round(100 * time.Microsecond).String()
	default:
		return d.Round(100 * time.Millisecond).String()
	}
}
