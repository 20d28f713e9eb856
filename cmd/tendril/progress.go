package main

import (
	"fmt"
	"io"
	"os"
	"time"

	"golang.org/x/sys/unix"
)

// progress tells what a wait is for: on a terminal in one line that changes, elsewhere in a line for each change.
type progress struct {
	out      io.Writer
	begun    time.Time
	terminal bool
	columns  int
	last     string
}

func newProgress(out io.Writer) *progress {
	p := &progress{out: out, begun: time.Now(), columns: columns(out)}
	if file, ok := out.(*os.File); ok {
		_, err := unix.IoctlGetTermios(int(file.Fd()), unix.TCGETS)
		p.terminal = err == nil
	}
	return p
}

// eraseLine goes to the line's beginning and clears it (ECMA-48: EL).
const eraseLine = "\r\x1b[K"

func (p *progress) say(text string) {
	elapsed := ago(time.Since(p.begun).Truncate(time.Second))
	if p.terminal {
		line := []rune(fmt.Sprintf("waiting for %s: %s", elapsed, text))
		fmt.Fprint(p.out, eraseLine+string(line[:min(len(line), p.columns-1)]))
	} else if text != p.last {
		fmt.Fprintf(p.out, "waiting for %s: %s\n", elapsed, text)
	}
	p.last = text
}

// end leaves no half line behind.
func (p *progress) end() {
	if p.terminal && p.last != "" {
		fmt.Fprint(p.out, eraseLine)
	}
}
