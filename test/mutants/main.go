// Command mutants measures what the fast tests notice: it puts one fault at a time into a copy of the tree, runs the tests that
// guard the place, and writes down which of them failed. A patch in patches/ is a fault; its first line says what is wrong
// then. A fault that no test notices is a hole in the tests, and fails the run unless its patch says "Survives: why".
//
//	go run ./test/mutants -out docs/mutants.md [-run words]
//
// Needs root and clang, as the tests of the datapath do. Tests that fail without a fault fail the run. The copy lies outside
// the tree, so that a run that is killed leaves no fault behind.
package main

import (
	"bytes"
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"time"

	"golang.org/x/sync/errgroup"
)

func main() {
	out := flag.String("out", "", "file to write the table to")
	run := flag.String("run", "", "only patches whose file name contains this; -out then keeps the other rows of the file")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
	defer stop()
	if err := measure(ctx, *run, *out); err != nil {
		fmt.Fprintln(os.Stderr, "mutants:", err)
		os.Exit(1)
	}
}

// wantCaught is how many of a hundred faults tests have to notice.
const wantCaught = 95

// measure tries all mutants, in a copy of the tree for each kind of them, and writes the table.
func measure(ctx context.Context, only, out string) error {
	mutants, err := readMutants("test/mutants/patches", only)
	if err != nil {
		return err
	}
	group, ctx := errgroup.WithContext(ctx)
	for _, kind := range kinds() {
		var mine []*mutant
		for _, m := range mutants {
			if kind.holds(m.where) {
				mine = append(mine, m)
			}
		}
		if len(mine) > 0 {
			group.Go(func() error { return kind.try(ctx, mine) })
		}
	}
	if err := group.Wait(); err != nil {
		return err
	}
	known, err := os.ReadFile(out)
	if err != nil && only != "" && out != "" {
		return err
	}
	all, err := readMutants("test/mutants/patches", "")
	if err != nil {
		return err
	}
	text, caught := table(all, mutants, string(known))
	fmt.Printf("%d of %d faults caught\n", caught, len(all))
	if out != "" {
		if err := os.WriteFile(out, []byte(text), 0o644); err != nil {
			return err
		}
	}
	if only == "" && caught*100 < wantCaught*len(all) {
		return fmt.Errorf("want at least %d in a hundred", wantCaught)
	}
	for _, m := range mutants {
		if m.caughtBy == "" && m.survives == "" {
			return fmt.Errorf("%s: no test notices it: add one, or say in the patch why none can (Survives: ...)", m.patch)
		}
	}
	return nil
}

// mutant is a fault and what became of it.
type mutant struct {
	patch    string // file
	fault    string // what is wrong with it in place
	where    string // file that it changes
	survives string // why no test can notice; empty: one has to
	guard    string // arguments of go test: what notices it soonest, if that is not the first suite of its kind
	caughtBy string // empty: by none
	took     time.Duration
}

// readMutants reads the patches in the order of their names.
func readMutants(folder, only string) ([]*mutant, error) {
	files, err := filepath.Glob(filepath.Join(folder, "*"+only+"*.patch"))
	if err != nil {
		return nil, err
	}
	if len(files) == 0 {
		return nil, fmt.Errorf("%s: no patch is called *%s*.patch", folder, only)
	}
	var all []*mutant
	for _, file := range files {
		text, err := os.ReadFile(file)
		if err != nil {
			return nil, err
		}
		m := &mutant{patch: file}
		for line := range strings.Lines(string(text)) {
			for prefix, field := range map[string]*string{"Fault: ": &m.fault, "Survives: ": &m.survives, "Guard: ": &m.guard, "+++ b/": &m.where} {
				if rest, ok := strings.CutPrefix(line, prefix); ok && *field == "" {
					*field = strings.TrimSpace(rest)
				}
			}
		}
		if m.fault == "" || m.where == "" {
			return nil, fmt.Errorf("%s: want a line \"Fault: ...\" and a change of a file", file)
		}
		all = append(all, m)
	}
	return all, nil
}

// kind is mutants that are built and noticed in the same way.
type kind struct {
	prefixes []string
	build    []string   // command that makes what the tests use, beside what go test builds
	suites   [][]string // arguments of go test, the fastest first
}

func kinds() []*kind {
	objects := func(what string, pairs int) []string {
		return []string{"./test/differential", "-run", "^TestObjectsMean" + what + "$", "-pairs", fmt.Sprint(pairs), "-rapid.shrinktime", "0s", "-rapid.nofailfile"}
	}
	return []*kind{
		{[]string{"internal/kube/"}, nil, [][]string{objects("WhatIsCompiled", 60000), {"./internal/kube"}}},
		{[]string{"internal/policy/"}, nil, [][]string{objects("WhatIsCompiled", 60000), {"./internal/policy", "-rapid.shrinktime", "0s", "-rapid.nofailfile"}}},
		{[]string{"bpf/"}, []string{"go", "generate", "./bpf"}, [][]string{objects("WhatTheKernelDoes", 60000), {"./bpf"}}},
	}
}

func (k *kind) holds(file string) bool {
	return slices.ContainsFunc(k.prefixes, func(p string) bool { return strings.HasPrefix(file, p) })
}

// try puts each mutant in place, asks the tests, and takes it out again.
func (k *kind) try(ctx context.Context, mutants []*mutant) error {
	tree, err := os.MkdirTemp("", "mutants-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(tree)
	if text, err := command(ctx, ".", "sh", "-c", "git ls-files -z | xargs -0 cp --parents -t "+tree).CombinedOutput(); err != nil {
		return fmt.Errorf("copy the tree: %w\n%s", err, text)
	}
	sound := map[string]bool{} // suites that pass without a fault
	for _, m := range mutants {
		start := time.Now()
		if err := k.tryOne(ctx, tree, m, sound); err != nil {
			return fmt.Errorf("%s: %w", m.patch, err)
		}
		m.took = time.Since(start)
		fmt.Printf("%-40s %4.0f s  %s\n", strings.TrimSuffix(filepath.Base(m.patch), ".patch"), m.took.Seconds(), orSurvived(m.caughtBy))
	}
	return nil
}

// tryOne tries a mutant. A suite counts only if it passes without a fault: that is seen to when it first matters.
func (k *kind) tryOne(ctx context.Context, tree string, m *mutant, sound map[string]bool) error {
	if text, err := command(ctx, tree, "git", "apply", m.patch).CombinedOutput(); err != nil {
		return fmt.Errorf("no longer applies; write it anew for the code as it is\n%s", text)
	}
	if err := k.make(ctx, tree); err != nil {
		return err
	}
	suites := k.suites
	if m.guard != "" {
		suites = slices.Insert(slices.Clone(suites), 0, strings.Fields(m.guard))
	}
	var by []string
	var err error
	for i := 0; i < len(suites) && by == nil; i++ {
		if m.caughtBy, err = failing(ctx, tree, suites[i]); err != nil {
			return err
		}
		if m.caughtBy != "" {
			by = suites[i]
		}
	}
	if text, err := command(ctx, tree, "git", "apply", "-R", m.patch).CombinedOutput(); err != nil {
		return fmt.Errorf("take it out again: %w\n%s", err, text)
	}
	if by == nil || sound[strings.Join(by, " ")] {
		return nil
	}
	sound[strings.Join(by, " ")] = true
	if err := k.make(ctx, tree); err != nil {
		return err
	}
	if name, err := failing(ctx, tree, by); err != nil || name != "" {
		return errors.Join(err, fmt.Errorf("%s fails without any fault", name))
	}
	return nil
}

func orSurvived(by string) string {
	if by == "" {
		return "SURVIVED"
	}
	return by
}

// failed finds the first test that failed in what go test prints.
var failed = regexp.MustCompile(`--- FAIL: (\S+)`)

// make builds what the tests of a kind use.
func (k *kind) make(ctx context.Context, tree string) error {
	if len(k.build) == 0 {
		return nil
	}
	if text, err := command(ctx, tree, k.build[0], k.build[1:]...).CombinedOutput(); err != nil {
		return fmt.Errorf("%s: %w: a mutant has to build\n%s", strings.Join(k.build, " "), err, text)
	}
	return nil
}

// failing runs a suite and returns the test of it that failed, or nothing. What does not build is an error, and no catch.
func failing(ctx context.Context, tree string, suite []string) (string, error) {
	text, err := command(ctx, tree, "go", append([]string{"test", "-count=1", "-timeout=5m", "-trimpath", "-vet=off", "-ldflags=-s -w"}, suite...)...).CombinedOutput()
	switch name := failed.FindSubmatch(text); {
	case ctx.Err() != nil:
		return "", ctx.Err()
	case err == nil:
		return "", nil
	case name != nil && slices.Contains(suite, "-run"):
		return string(name[1]), nil
	case name != nil: // again, alone: a test that fails by chance has noticed nothing
		return failing(ctx, tree, append([]string{suite[0], "-run", "^" + string(name[1]) + "$"}, suite[1:]...))
	case bytes.Contains(text, []byte("panic: ")):
		return strings.TrimPrefix(suite[0], "./") + " (panic)", nil
	}
	return "", fmt.Errorf("go test %s: %w\n%s", strings.Join(suite, " "), err, text)
}

func command(ctx context.Context, dir, name string, args ...string) *exec.Cmd {
	c := exec.CommandContext(ctx, name, args...)
	c.Dir = dir
	return c
}

// table prints what became of all mutants: those that were tried now, and of the others what the table said before.
func table(all, tried []*mutant, before string) (text string, caught int) {
	var b strings.Builder
	b.WriteString("# Faults that the tests notice\n\n")
	b.WriteString("`make mutants` puts each fault into a copy of the tree and runs the fast tests that guard the place until one fails; it writes this\n" +
		"table. A fault is a patch in `test/mutants/patches`.\n\n| fault | where | caught by | s |\n|---|---|---|---|\n")
	for _, m := range all {
		row := "| " + m.fault + " | `" + m.where + "` | none: not tried | |\n"
		for line := range strings.Lines(before) {
			if strings.HasPrefix(line, "| "+m.fault+" | ") {
				row = line
			}
		}
		for _, now := range tried {
			if now.patch == m.patch {
				row = now.row()
			}
		}
		if !strings.Contains(row, "| none: ") {
			caught++
		}
		b.WriteString(row)
	}
	fmt.Fprintf(&b, "\n%d of %d are caught.\n", caught, len(all))
	return b.String(), caught
}

// row is the mutant's line of the table.
func (m *mutant) row() string {
	by := "none: " + m.survives
	if m.caughtBy != "" {
		by = "`" + m.caughtBy + "`"
	}
	return fmt.Sprintf("| %s | `%s` | %s | %.0f |\n", m.fault, m.where, by, m.took.Seconds())
}
