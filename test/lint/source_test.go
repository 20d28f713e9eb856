// Package lint checks the project's habits that a program can check: which package may import which, how long things
// are, what is documented, what the C may use, which words have no business here.
//
// Each test says its budget in its name or first line. A budget is changed by changing it here, in a commit that says
// why.
package lint

import (
	"encoding/json"
	"go/ast"
	"go/parser"
	"go/token"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

const module = "tendril.io/tendril/"

// pkg is a package of the module, as `go list -json` shows it.
type pkg struct {
	ImportPath, Dir, Doc         string
	GoFiles, TestGoFiles         []string
	XTestGoFiles, IgnoredGoFiles []string
	Imports                      []string
}

// name is the package's folder in the module.
func (p *pkg) name() string { return strings.TrimPrefix(p.ImportPath, module) }

// root is the module's folder.
func root(t *testing.T) string {
	t.Helper()
	out, err := exec.Command("go", "list", "-m", "-f", "{{.Dir}}").Output()
	if err != nil {
		t.Fatalf("go list -m: %v", err)
	}
	return strings.TrimSpace(string(out))
}

// packages lists the module's packages.
func packages(t *testing.T) []*pkg {
	t.Helper()
	list := exec.Command("go", "list", "-json=ImportPath,Dir,Doc,GoFiles,TestGoFiles,XTestGoFiles,Imports", "./...")
	list.Dir = root(t)
	out, err := list.Output()
	if err != nil {
		t.Fatalf("go list: %v", err)
	}
	var all []*pkg
	for decoder := json.NewDecoder(strings.NewReader(string(out))); decoder.More(); {
		p := new(pkg)
		if err := decoder.Decode(p); err != nil {
			t.Fatal(err)
		}
		all = append(all, p)
	}
	return all
}

// file is a parsed Go file.
type file struct {
	path   string // in the module
	pkg    *pkg
	isTest bool
	text   string
	tree   *ast.File
	set    *token.FileSet
}

// parsed keeps what files read: nearly every test here wants it.
var parsed []*file

// files parses all Go files that people wrote; generated ones have no budget.
func files(t *testing.T) []*file {
	t.Helper()
	if parsed == nil {
		parsed = parse(t)
	}
	return parsed
}

func parse(t *testing.T) []*file {
	t.Helper()
	base := root(t)
	var all []*file
	for _, p := range packages(t) {
		for _, name := range append(append(p.GoFiles, p.TestGoFiles...), p.XTestGoFiles...) {
			path := filepath.Join(p.Dir, name)
			text, err := os.ReadFile(path)
			if err != nil {
				t.Fatal(err)
			}
			set := token.NewFileSet()
			tree, err := parser.ParseFile(set, path, text, parser.ParseComments)
			if err != nil {
				t.Fatal(err)
			}
			if ast.IsGenerated(tree) {
				continue
			}
			relative, err := filepath.Rel(base, path)
			if err != nil {
				t.Fatal(err)
			}
			all = append(all, &file{relative, p, strings.HasSuffix(name, "_test.go"), string(text), tree, set})
		}
	}
	return all
}

// lines of a node, its comment not counted.
func (f *file) lines(n ast.Node) int {
	return f.set.Position(n.End()).Line - f.set.Position(n.Pos()).Line + 1
}

// line says where a node begins.
func (f *file) line(n ast.Node) int { return f.set.Position(n.Pos()).Line }

// tracked lists the files that git knows, by their paths in the module.
func tracked(t *testing.T) []string {
	t.Helper()
	list := exec.Command("git", "ls-files", "-z")
	list.Dir = root(t)
	out, err := list.Output()
	if err != nil {
		t.Fatalf("git ls-files: %v", err)
	}
	return strings.Split(strings.TrimSuffix(string(out), "\x00"), "\x00")
}

// atLeast compares with a budget that the project does not keep yet. Owed is what it reached: worse fails; better by a
// quarter says that the debt should be written down anew, or crossed out by making owed equal to want.
func atLeast(t *testing.T, what string, got, want, owed float64) {
	t.Helper()
	switch {
	case got < owed:
		t.Errorf("%s: %.2f, want %.2f and at least the %.2f that was reached before", what, got, want, owed)
	case owed < want && got > owed*1.25:
		t.Logf("%s: %.2f is better than the %.2f that is written down as owed: raise it here", what, got, owed)
	}
}
