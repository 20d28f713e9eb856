// Command verdicts prints the reports of Ginkgo (its --json-report) as a table in Markdown: a row for each spec that ran, and why it did not pass.
package main

import (
	"encoding/json"
	"fmt"
	"os"
	"sort"
	"strings"
)

// suite is what is used of a report (types.Report of github.com/onsi/ginkgo/v2).
type suite struct{ SpecReports []spec }

type spec struct {
	ContainerHierarchyTexts []string
	LeafNodeType            string
	LeafNodeText            string
	State                   string
	Failure                 struct{ Message string }
}

func main() {
	if err := run(os.Args[1:]); err != nil {
		fmt.Fprintln(os.Stderr, "verdicts:", err)
		os.Exit(1)
	}
}

func run(files []string) error {
	var rows []string
	counts := map[string]int{}
	for _, file := range files {
		text, err := os.ReadFile(file)
		if err != nil {
			return err
		}
		var suites []suite
		if err := json.Unmarshal(text, &suites); err != nil {
			return fmt.Errorf("%s: %w", file, err)
		}
		for _, s := range suites {
			for _, spec := range s.SpecReports {
				if spec.LeafNodeType == "It" && (spec.State != "skipped" || spec.Failure.Message != "") {
					rows = append(rows, spec.row())
					counts[spec.State]++
				}
			}
		}
	}
	sort.Strings(rows)
	fmt.Println("| spec | verdict |\n|---|---|")
	fmt.Print(strings.Join(rows, ""))
	fmt.Fprintln(os.Stderr, counts)
	return nil
}

// row leaves out what all have, and keeps the first line of what went wrong.
func (s spec) row() string {
	name := strings.Join(append(s.ContainerHierarchyTexts, s.LeafNodeText), " ")
	verdict := s.State
	if why, _, _ := strings.Cut(s.Failure.Message, "\n"); why != "" {
		verdict += ": " + why
	}
	escape := strings.NewReplacer("|", `\|`, "[sig-network] ", "").Replace
	return fmt.Sprintf("| %s | %s |\n", escape(name), escape(verdict))
}
