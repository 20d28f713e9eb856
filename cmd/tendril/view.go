package main

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"strings"
	"time"

	"github.com/charmbracelet/lipgloss"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"
)

// view prints an agent's answer for people. Colours appear only where the writer is a terminal.
type view struct {
	out                            io.Writer
	strong, dim, right, wrong, odd lipgloss.Style
	plain                          lipgloss.Style
	width                          int        // columns that running text may take
	rows                           [][]string // of the table that is being made
	titled                         bool       // the first row is a header
}

// newView returns a view on a writer. That NO_COLOR and pipes get no colours is the renderer's doing.
func newView(out io.Writer) *view {
	style := lipgloss.NewRenderer(out).NewStyle
	return &view{
		out:    out,
		width:  columns(out),
		plain:  style(),
		strong: style().Bold(true),
		dim:    style().Faint(true),
		right:  style().Foreground(lipgloss.Color("2")),
		wrong:  style().Foreground(lipgloss.Color("1")).Bold(true),
		odd:    style().Foreground(lipgloss.Color("3")),
	}
}

// header begins a table.
func (v *view) header(names ...string) {
	for i, name := range names {
		names[i] = v.strong.Render(name)
	}
	v.rows, v.titled = append(v.rows, names), true
}

// row adds a row to the table; empty cells show as a dash.
func (v *view) row(cells ...string) {
	for i, cell := range cells {
		if lipgloss.Width(cell) == 0 {
			cells[i] = v.dim.Render("-")
		}
	}
	v.rows = append(v.rows, cells)
}

// flush prints the table, its columns aligned, and forgets it. A table with a header and no rows says so.
func (v *view) flush() error {
	rows, titled := v.rows, v.titled
	v.rows, v.titled = nil, false
	if titled && len(rows) == 1 {
		_, err := fmt.Fprintln(v.out, v.dim.Render("none"))
		return err
	}
	var widths []int
	for _, row := range rows {
		for i, cell := range row {
			if i == len(widths) {
				widths = append(widths, 0)
			}
			widths[i] = max(widths[i], lipgloss.Width(cell))
		}
	}
	var text bytes.Buffer
	for _, row := range rows {
		var line strings.Builder
		for i, cell := range row {
			line.WriteString(cell)
			line.WriteString(strings.Repeat(" ", widths[i]-lipgloss.Width(cell)+2))
		}
		text.WriteString(strings.TrimRight(line.String(), " ") + "\n")
	}
	_, err := v.out.Write(text.Bytes())
	return err
}

// line prints a line outside tables.
func (v *view) line(format string, args ...any) {
	fmt.Fprintf(v.out, format+"\n", args...)
}

// json prints an answer as indented JSON. Every field is there, so that scripts need not guess.
func (v *view) json(m proto.Message) error {
	text, err := protojson.MarshalOptions{UseProtoNames: true, EmitUnpopulated: true}.Marshal(m)
	if err != nil {
		return err
	}
	var out bytes.Buffer // protojson varies its spaces on purpose; indenting makes them the same every time
	if err := json.Indent(&out, text, "", "  "); err != nil {
		return err
	}
	out.WriteByte('\n')
	_, err = v.out.Write(out.Bytes())
	return err
}

// jsonLine prints a record of a stream as one line of JSON, without the fields that are zero.
func (v *view) jsonLine(m proto.Message) error {
	text, err := protojson.MarshalOptions{UseProtoNames: true}.Marshal(m)
	if err != nil {
		return err
	}
	var out bytes.Buffer
	if err := json.Compact(&out, text); err != nil {
		return err
	}
	out.WriteByte('\n')
	_, err = v.out.Write(out.Bytes())
	return err
}

// ago is a duration as people say it: two units at most.
func ago(d time.Duration) string {
	switch {
	case d < 0:
		return "0s"
	case d < time.Second:
		return d.Round(time.Millisecond).String()
	case d < time.Minute:
		return d.Round(100 * time.Millisecond).String()
	case d < time.Hour:
		return fmt.Sprintf("%dm%ds", int(d.Minutes()), int(d.Seconds())%60)
	case d < 48*time.Hour:
		return fmt.Sprintf("%dh%dm", int(d.Hours()), int(d.Minutes())%60)
	default:
		return fmt.Sprintf("%dd%dh", int(d.Hours())/24, int(d.Hours())%24)
	}
}

// number is an unsigned number as text; 0 is a value like others.
func number[N uint32 | uint64](n N) string { return fmt.Sprint(n) }
