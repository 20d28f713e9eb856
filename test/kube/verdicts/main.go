// Command verdicts makes one table in Markdown of the reports of Ginkgo (its --json-report): a row for each network spec that was asked, with the
// newest verdict on it, and the specs that no report has a verdict on.
//
//	verdicts NOT-HERE REPORT...
//
// NOT-HERE is a regular expression of the specs that nobody asks.
package main

import (
	"cmp"
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"os"
	"regexp"
	"slices"
	"strings"
	"time"
)

// suite is what is used of a report (types.Report of github.com/onsi/ginkgo/v2).
type suite struct {
	StartTime   time.Time
	SpecReports []spec
}

type spec struct {
	ContainerHierarchyTexts    []string
	LeafNodeType, LeafNodeText string
	State                      string
	Failure                    struct{ Message string }
}

func main() {
	if err := run(os.Stdout, os.Args[1], os.Args[2:]); err != nil {
		fmt.Fprintln(os.Stderr, "verdicts:", err)
		os.Exit(1)
	}
}

func run(out io.Writer, notHere string, files []string) error {
	left, err := regexp.Compile(notHere)
	if err != nil {
		return err
	}
	suites, err := read(files)
	if err != nil {
		return err
	}
	verdicts := map[string]string{} // by spec; empty: not asked
	leftOut := 0
	for i, s := range suites {
		for _, spec := range s.SpecReports {
			name := spec.name()
			switch {
			case spec.LeafNodeType != "It" || !strings.HasPrefix(name, "[sig-network]"):
			case left.MatchString(name):
				if i == 0 {
					leftOut++
				}
			default:
				verdicts[name] = cmp.Or(spec.verdict(), verdicts[name])
			}
		}
	}
	write(out, verdicts, leftOut)
	return nil
}

// read returns the reports' suites, the oldest first.
func read(files []string) ([]suite, error) {
	var all []suite
	for _, file := range files {
		text, err := os.ReadFile(file)
		if err != nil {
			return nil, err
		}
		var suites []suite
		if err := json.Unmarshal(text, &suites); err != nil {
			return nil, fmt.Errorf("%s: %w", file, err)
		}
		all = append(all, suites...)
	}
	slices.SortFunc(all, func(a, b suite) int { return a.StartTime.Compare(b.StartTime) })
	return all, nil
}

func (s spec) name() string {
	return strings.Join(append(s.ContainerHierarchyTexts, s.LeafNodeText), " ")
}

// verdict is empty where the spec was not asked or the end of the run cut it off.
func (s spec) verdict() string {
	why, _, _ := strings.Cut(s.Failure.Message, "\n")
	switch s.State {
	case "passed":
		return "pass"
	case "failed", "panicked":
		return "fail: " + why
	case "skipped":
		if why != "" {
			return "not applicable: " + why
		}
	}
	return ""
}

func write(out io.Writer, verdicts map[string]string, leftOut int) {
	counts := map[string]int{}
	short := strings.NewReplacer("|", `\|`, "[sig-network] ", "", " [Conformance]", "", " [LinuxOnly]", "", " [NodeConformance]", "",
		" [Feature:NetworkPolicy]", "").Replace
	var rows, unasked strings.Builder
	for _, name := range slices.Sorted(maps.Keys(verdicts)) {
		verdict := verdicts[name]
		kind, _, _ := strings.Cut(cmp.Or(verdict, "without verdict"), ":")
		counts[kind]++
		if verdict == "" {
			fmt.Fprintf(&unasked, "- %s\n", short(name))
		} else {
			fmt.Fprintf(&rows, "| %s | %s |\n", short(name), short(verdict))
		}
	}
	fmt.Fprintf(out, "%d specs, %d left out by name\n", len(verdicts)+leftOut, leftOut)
	for _, kind := range slices.Sorted(maps.Keys(counts)) {
		fmt.Fprintf(out, "%s: %d\n", kind, counts[kind])
	}
	fmt.Fprintf(out, "\n| spec | verdict |\n|---|---|\n%s", rows.String())
	if unasked.Len() > 0 {
		fmt.Fprintf(out, "\nWithout verdict:\n\n%s", unasked.String())
	}
}
