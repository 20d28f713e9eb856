package lint

import (
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"testing"
)

func isC(path string) bool {
	return strings.HasPrefix(path, "bpf/") && (strings.HasSuffix(path, ".c") || strings.HasSuffix(path, ".h"))
}

// cFiles reads the C of the datapath, by path.
func cFiles(t *testing.T) map[string]string {
	t.Helper()
	all := map[string]string{}
	for _, path := range tracked(t) {
		if isC(path) {
			all[path] = read(t, path)
		}
	}
	if len(all) == 0 {
		t.Fatal("no C found")
	}
	return all
}

func read(t *testing.T, path string) string {
	t.Helper()
	text, err := os.ReadFile(filepath.Join(root(t), path))
	if err != nil && !os.IsNotExist(err) { // removed, but not yet committed
		t.Fatal(err)
	}
	return string(text)
}

func lineCount(t *testing.T, wanted func(path string) bool) int {
	t.Helper()
	n := 0
	for _, path := range tracked(t) {
		if wanted(path) {
			n += strings.Count(read(t, path), "\n")
		}
	}
	return n
}

// cComment finds comments of both kinds; C in this project has none inside strings.
var cComment = regexp.MustCompile(`(?s)/\*.*?\*/|//[^\n]*`)

// blank takes comments away and keeps their lines.
func blank(text string) string {
	return cComment.ReplaceAllStringFunc(text, func(comment string) string {
		return strings.Repeat("\n", strings.Count(comment, "\n"))
	})
}

// TestCHasNoVariants: features are load-time constants, so there is no #if; there is no goto; and at most two
// function-like macros a thousand lines.
func TestCHasNoVariants(t *testing.T) {
	conditional := regexp.MustCompile(`^\s*#\s*(if|ifdef|ifndef|elif|else)\b`)
	jump := regexp.MustCompile(`\bgoto\b`)
	macro := regexp.MustCompile(`^\s*#\s*define\s+(\w+)\(`)
	lines, macros := 0, []string{}
	for path, text := range cFiles(t) {
		for i, line := range strings.Split(blank(text), "\n") {
			lines++
			if conditional.MatchString(line) {
				t.Errorf("%s:%d: %s: use a constant of node_config", path, i+1, strings.TrimSpace(line))
			}
			if jump.MatchString(line) {
				t.Errorf("%s:%d: goto", path, i+1)
			}
			if match := macro.FindStringSubmatch(line); match != nil {
				macros = append(macros, path+": "+match[1])
			}
		}
	}
	if len(macros)*1000 > 2*lines {
		t.Errorf("%d function-like macros in %d lines, at most 2 a thousand:\n%s", len(macros), lines, strings.Join(macros, "\n"))
	}
}

// cFunction finds where a definition's body begins: a line that is only "{" after a line that ends in ")", or one that
// ends in ") {"; bodies end with "}" in the first column.
var cFunction = regexp.MustCompile(`(?m)^[a-z_][^;{}=]*?\b(\w+)\s*\([^;{}]*\)\s*\n?\{[^\n]*\n`)

// functions gives the names of a C file's functions and their lengths in lines.
func functions(text string) map[string]int {
	found := map[string]int{}
	text = blank(text)
	for _, at := range cFunction.FindAllStringSubmatchIndex(text, -1) {
		body := text[at[1]:]
		end := strings.Index("\n"+body, "\n}")
		if end < 0 {
			continue
		}
		header := text[at[0]:at[1]]
		found[text[at[2]:at[3]]] = strings.Count(header, "\n") + strings.Count(body[:end], "\n") + 1
	}
	return found
}

func TestCFunctionsAreShortAndServeBothFamilies(t *testing.T) {
	twins, all := []string{}, map[string]string{}
	for path, text := range cFiles(t) {
		for name, n := range functions(text) {
			all[name] = path
			if n > maxFunctionLines {
				t.Errorf("%s: function %s has %d lines, at most %d", path, name, n, maxFunctionLines)
			}
		}
	}
	if len(all) < 20 {
		t.Errorf("only %d C functions found: does this test still read them?", len(all))
	}
	for name, path := range all {
		if _, both := all[strings.Replace(name, "4", "6", 1)]; strings.Contains(name, "4") && both {
			twins = append(twins, path+": "+name)
		}
	}
	if len(twins) > 10 {
		t.Errorf("%d functions exist once for each family, at most 10:\n%s", len(twins), strings.Join(twins, "\n"))
	}
}

func TestTailCallSlotsAreFew(t *testing.T) {
	match := regexp.MustCompile(`ENTRY_COUNT = (\d+)`).FindStringSubmatch(read(t, "bpf/lib/constants.h"))
	if match == nil {
		t.Fatal("bpf/lib/constants.h does not define ENTRY_COUNT")
	}
	if n, _ := strconv.Atoi(match[1]); n > 8 {
		t.Errorf("%d tail-call slots, at most 8", n)
	}
}

// TestCCommentsAreAThird: 25 to 35 % of the lines that are not blank.
func TestCCommentsAreAThird(t *testing.T) {
	lines, pure := 0, 0
	for _, text := range cFiles(t) {
		bare := strings.Split(blank(text), "\n")
		for i, line := range strings.Split(text, "\n") {
			switch {
			case strings.TrimSpace(line) == "":
				continue
			case strings.TrimSpace(bare[i]) == "":
				pure++
			case strings.Contains(line, "/*") || strings.Contains(line, "//"):
				pure++ // a comment beside code
			}
			lines++
		}
	}
	percent := 100 * float64(pure) / float64(lines)
	atLeast(t, "percent of the lines of C with comments", percent, 25, 18)
	if percent > 35 {
		t.Errorf("%.0f %% of the lines of C have comments, at most 35", percent)
	}
}
