// Command verdicts makes one table in Markdown of the reports of Ginkgo (its --json-report): a row for each network spec that was asked, with the
// newest verdict on it; a row for each that nobody asks, with the reason; and the specs that no report has a verdict on.
//
//	verdicts NOT-HERE REPORT...
//
// NOT-HERE is a file of who nobody asks: in each line a regular expression of names, a tab, and the verdict.
package main

import (
	"cmp"
	"encoding/json"
	"errors"
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
	left, err := readReasons(notHere)
	if err != nil {
		return err
	}
	suites, err := read(files)
	if err != nil {
		return err
	}
	verdicts := map[string]string{} // by spec; empty: not asked
	for _, s := range suites {
		for _, spec := range s.SpecReports {
			if name := spec.name(); spec.LeafNodeType == "It" && strings.HasPrefix(name, "[sig-network]") {
				verdicts[name] = cmp.Or(left.why(name), spec.verdict(), verdicts[name])
			}
		}
	}
	write(out, verdicts)
	return nil
}

// reasons say in their order why specs are not asked.
type reasons []reason

type reason struct {
	names *regexp.Regexp
	why   string
}

func readReasons(file string) (all reasons, err error) {
	text, err := os.ReadFile(file)
	if err != nil {
		return nil, err
	}
	for number, line := range strings.Split(string(text), "\n") {
		if line == "" || line[0] == '#' {
			continue
		}
		names, why, _ := strings.Cut(line, "\t")
		expression, err := regexp.Compile(names)
		if err == nil && why == "" {
			err = errors.New("no tab and reason")
		}
		if err != nil {
			return nil, fmt.Errorf("%s:%d: %w", file, number+1, err)
		}
		all = append(all, reason{expression, why})
	}
	return all, nil
}

// why is empty for a spec that is asked.
func (r reasons) why(name string) string {
	for _, reason := range r {
		if reason.names.MatchString(name) {
			return reason.why
		}
	}
	return ""
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

func write(out io.Writer, verdicts map[string]string) {
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
	fmt.Fprintf(out, "%d specs\n", len(verdicts))
	for _, kind := range slices.Sorted(maps.Keys(counts)) {
		fmt.Fprintf(out, "%s: %d\n", kind, counts[kind])
	}
	fmt.Fprintf(out, "\n| spec | verdict |\n|---|---|\n%s", rows.String())
	if unasked.Len() > 0 {
		fmt.Fprintf(out, "\nWithout verdict:\n\n%s", unasked.String())
	}
}
