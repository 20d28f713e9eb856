package lint

import (
	"go/ast"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
)

// layers orders the layers that ARCHITECTURE.md gives to packages: a package imports its own layer or lower ones.
func layers() []string {
	return []string{"generated", "vocabulary", "brain", "mechanism", "assembly", "lab", "cmd", "test"}
}

// row finds the rows of the table of packages: | `folder` | layer | what it owns |.
var row = regexp.MustCompile("(?m)^\\| `([^`]+)` \\| (\\w+) \\| (.+) \\|$")

// architecture reads the layer of each package from ARCHITECTURE.md.
func architecture(t *testing.T) map[string]string {
	t.Helper()
	text, err := os.ReadFile(filepath.Join(root(t), "ARCHITECTURE.md"))
	if err != nil {
		t.Fatal(err)
	}
	layer := map[string]string{}
	for _, match := range row.FindAllStringSubmatch(string(text), -1) {
		if !slices.Contains(layers(), match[2]) {
			continue // a row of another table
		}
		if _, twice := layer[match[1]]; twice {
			t.Errorf("ARCHITECTURE.md lists %s twice", match[1])
		}
		layer[match[1]] = match[2]
	}
	return layer
}

func TestArchitectureListsEveryPackage(t *testing.T) {
	layer := architecture(t)
	for _, p := range packages(t) {
		if layer[p.name()] == "" {
			t.Errorf("ARCHITECTURE.md has no row for %s", p.name())
		}
		delete(layer, p.name())
	}
	for name := range layer {
		t.Errorf("ARCHITECTURE.md lists %s, which is not a package", name)
	}
}

func TestImportsPointOneWay(t *testing.T) {
	layer := architecture(t)
	for _, p := range packages(t) {
		for _, path := range p.Imports {
			imported, inside := strings.CutPrefix(path, module)
			if !inside || layer[p.name()] == "" || layer[imported] == "" {
				continue
			}
			from, to := slices.Index(layers(), layer[p.name()]), slices.Index(layers(), layer[imported])
			if from < to {
				t.Errorf("%s (%s) imports %s (%s): arrows point the other way", p.name(), layer[p.name()], imported, layer[imported])
			}
			if from == to && layer[imported] == "mechanism" {
				t.Errorf("%s imports %s: mechanisms do not import each other", p.name(), imported)
			}
		}
	}
}

func TestNoImportChainIsLongerThanSix(t *testing.T) {
	imports := map[string][]string{}
	for _, p := range packages(t) {
		imports[p.ImportPath] = p.Imports
	}
	longest := map[string][]string{} // the longest chain below a package
	var chain func(string) []string
	chain = func(path string) []string {
		if known, ok := longest[path]; ok {
			return known
		}
		var best []string
		for _, next := range imports[path] {
			if below := chain(next); imports[next] != nil && len(below)+1 > len(best) {
				best = append([]string{next}, below...)
			}
		}
		longest[path] = best
		return best
	}
	for path := range imports {
		if below := chain(path); len(below) > 6 {
			t.Errorf("%s: a chain of %d imports, at most 6: %s", path, len(below), strings.ReplaceAll(strings.Join(below, " -> "), module, ""))
		}
	}
}

// TestBrainsArePure: a brain has no I/O, no clock, no log and no goroutine; time comes in as a value.
func TestBrainsArePure(t *testing.T) {
	layer := architecture(t)
	forbidden := []string{"os", "net", "net/http", "log", "log/slog", "syscall", "golang.org/x/sys/unix", "math/rand", "math/rand/v2", "crypto/rand"}
	for _, f := range files(t) {
		if layer[f.pkg.name()] != "brain" || f.isTest {
			continue
		}
		for _, spec := range f.tree.Imports {
			if path := strings.Trim(spec.Path.Value, `"`); slices.Contains(forbidden, path) {
				t.Errorf("%s:%d: a brain imports %s", f.path, f.line(spec), path)
			}
		}
		ast.Inspect(f.tree, func(n ast.Node) bool {
			switch n := n.(type) {
			case *ast.GoStmt:
				t.Errorf("%s:%d: a brain starts a goroutine", f.path, f.line(n))
			case *ast.SelectorExpr:
				of, ok := n.X.(*ast.Ident)
				if ok && of.Name == "time" && slices.Contains([]string{"Now", "Since", "Until", "Sleep", "After", "NewTimer", "NewTicker"}, n.Sel.Name) {
					t.Errorf("%s:%d: a brain asks the clock: time.%s", f.path, f.line(n), n.Sel.Name)
				}
			}
			return true
		})
	}
}

func TestPackagesAreNamedForWhatTheyOwn(t *testing.T) {
	vague := []string{"util", "utils", "common", "types", "option", "options", "manager", "helper", "helpers", "misc"}
	for _, p := range packages(t) {
		if name := filepath.Base(p.Dir); slices.Contains(vague, name) {
			t.Errorf("package %s: the name says nothing of what it owns", p.name())
		}
	}
}
