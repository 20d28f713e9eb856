package main

import (
	"strings"
	"testing"
	"time"
	"unicode/utf8"

	"github.com/google/go-cmp/cmp"
)

func TestTheScreenFitsItsWidthAndHasNoColoursInAFile(t *testing.T) {
	var out strings.Builder
	s := newScreen(&out)
	s.heading("1 A step")
	s.command("tendril observe", "short\n"+strings.Repeat("many words ", 30)+"\n"+strings.Repeat("x", 200))
	s.good("it holds", 1234*time.Millisecond)
	s.bad("it does not")
	for line := range strings.Lines(out.String()) {
		limit := width
		if strings.Contains(line, "│") {
			limit = wide + 6
		}
		if got := utf8.RuneCountInString(strings.TrimSuffix(line, "\n")); got > limit {
			t.Errorf("%d columns: %q", got, line)
		}
	}
	if strings.Contains(out.String(), "\x1b") {
		t.Errorf("escape sequences in a file: %q", out.String())
	}
	for _, want := range []string{"✓ it holds", "1.2s\n", "✗ it does not", "$ tendril observe", "│ short"} {
		if !strings.Contains(out.String(), want) {
			t.Errorf("no %q in\n%s", want, out.String())
		}
	}
}

func TestLongLinesBreakAtBlanks(t *testing.T) {
	for _, test := range []struct {
		text string
		want []string
	}{
		{"", []string{""}},
		{"just right", []string{"just right"}},
		{"  aaa   bbb ccc ddd", []string{"aaa bbb", "      ccc", "      ddd"}},
		{"abcdefghijklmnop", []string{"abcdefghij", "      klmn", "      op"}},
	} {
		if diff := cmp.Diff(test.want, wrap(test.text, 10, "      ")); diff != "" {
			t.Errorf("wrap %q (-want +got):\n%s", test.text, diff)
		}
	}
}

func FuzzWrap(f *testing.F) {
	f.Add("a long line of some words")
	f.Fuzz(func(t *testing.T, text string) {
		for _, line := range wrap(text, 20, "      ") {
			if got := utf8.RuneCountInString(line); got > 20 {
				t.Errorf("%d columns: %q", got, line)
			}
		}
	})
}

func TestTimesAreRoundedForPeople(t *testing.T) {
	for took, want := range map[time.Duration]string{
		1234 * time.Nanosecond: "1µs", 12345 * time.Microsecond: "12.3ms", 1234 * time.Millisecond: "1.2s",
	} {
		if got := short(took); got != want {
			t.Errorf("%d ns is %q, want %q", took, got, want)
		}
	}
}
