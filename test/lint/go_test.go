package lint

import (
	"go/ast"
	"go/token"
	"slices"
	"strings"
	"testing"
)

const (
	maxFunctionLines  = 80
	maxFunctionMedian = 10
	maxFileLines      = 700
)

func TestFunctionsAndFilesAreShort(t *testing.T) {
	var lengths []int
	for _, f := range files(t) {
		if n := strings.Count(f.text, "\n"); n > maxFileLines {
			t.Errorf("%s: %d lines, at most %d", f.path, n, maxFileLines)
		}
		for _, decl := range f.tree.Decls {
			function, ok := decl.(*ast.FuncDecl)
			if !ok {
				continue
			}
			n := f.lines(function)
			if n > maxFunctionLines && !isTable(f, function) {
				t.Errorf("%s:%d: function %s has %d lines, at most %d", f.path, f.line(function), function.Name.Name, n, maxFunctionLines)
			}
			if !f.isTest {
				lengths = append(lengths, n)
			}
		}
	}
	slices.Sort(lengths)
	if median := lengths[len(lengths)/2]; median > maxFunctionMedian {
		t.Errorf("the median function has %d lines, at most %d", median, maxFunctionMedian)
	}
}

// isTable tells tests whose length is a table of cases: without its composite literals the function is short.
func isTable(f *file, function *ast.FuncDecl) bool {
	if !f.isTest {
		return false
	}
	n := f.lines(function)
	ast.Inspect(function, func(node ast.Node) bool {
		literal, ok := node.(*ast.CompositeLit)
		if ok {
			n -= f.lines(literal) - 1
		}
		return !ok
	})
	return n <= maxFunctionLines
}

func TestEveryPackageAndExportedNameIsDocumented(t *testing.T) {
	for _, p := range packages(t) {
		if len(p.GoFiles) > 0 && p.Doc == "" {
			t.Errorf("package %s has no doc comment", p.name())
		}
	}
	exported, bare := 0, []string{}
	for _, f := range files(t) {
		if f.isTest {
			continue
		}
		for _, name := range exportedNames(f) {
			exported++
			if strings.HasPrefix(name, "!") {
				bare = append(bare, f.path+": "+name[1:])
			}
		}
	}
	if len(bare)*20 > exported { // 95 %
		t.Errorf("%d of %d exported names have no doc comment, at most 5 %%:\n%s", len(bare), exported, strings.Join(bare, "\n"))
	}
}

// exportedNames lists the exported names of a file's top level, with a "!" before those without a comment.
func exportedNames(f *file) []string {
	var names []string
	add := func(name *ast.Ident, documented bool) {
		if !name.IsExported() {
			return
		}
		mark := "!"
		if documented {
			mark = ""
		}
		names = append(names, mark+name.Name)
	}
	for _, decl := range f.tree.Decls {
		switch d := decl.(type) {
		case *ast.FuncDecl:
			if d.Recv == nil || ast.IsExported(receiver(d)) {
				add(d.Name, d.Doc != nil)
			}
		case *ast.GenDecl:
			for _, spec := range d.Specs {
				switch s := spec.(type) {
				case *ast.TypeSpec:
					add(s.Name, d.Doc != nil || s.Doc != nil || s.Comment != nil)
				case *ast.ValueSpec:
					for _, name := range s.Names {
						add(name, d.Doc != nil || s.Doc != nil || s.Comment != nil)
					}
				}
			}
		}
	}
	return names
}

// receiver is the name of a method's type.
func receiver(d *ast.FuncDecl) string {
	typ := d.Recv.List[0].Type
	for {
		switch x := typ.(type) {
		case *ast.StarExpr:
			typ = x.X
		case *ast.IndexExpr:
			typ = x.X
		case *ast.Ident:
			return x.Name
		default:
			return ""
		}
	}
}

// TestStateIsNotGlobal: no init function, and at most 1.5 package-level variables a thousand lines. Error values and
// compiled patterns, which never change, count like any other.
func TestStateIsNotGlobal(t *testing.T) {
	lines, variables := 0, []string{}
	for _, f := range files(t) {
		if f.isTest {
			continue
		}
		lines += strings.Count(f.text, "\n")
		for _, decl := range f.tree.Decls {
			switch d := decl.(type) {
			case *ast.FuncDecl:
				if d.Name.Name == "init" && d.Recv == nil {
					t.Errorf("%s:%d: func init; call a function where its effect is needed", f.path, f.line(d))
				}
			case *ast.GenDecl:
				if d.Tok == token.VAR {
					for _, spec := range d.Specs {
						variables = append(variables, f.path+": "+spec.(*ast.ValueSpec).Names[0].Name)
					}
				}
			}
		}
	}
	if float64(len(variables)) > 1.5*float64(lines)/1000 {
		t.Errorf("%d package-level variables in %d lines, at most 1.5 a thousand:\n%s", len(variables), lines, strings.Join(variables, "\n"))
	}
}

// TestCommentsAreAQuarter: 20 to 30 % of the lines that are not blank, tests left out.
func TestCommentsAreAQuarter(t *testing.T) {
	lines, comments := 0, 0
	for _, f := range files(t) {
		if f.isTest {
			continue
		}
		for line := range strings.Lines(f.text) {
			if strings.TrimSpace(line) != "" {
				lines++
			}
		}
		for _, group := range f.tree.Comments {
			comments += f.lines(group)
		}
	}
	percent := 100 * float64(comments) / float64(lines)
	atLeast(t, "percent of the lines of Go with comments", percent, 20, 12)
	if percent > 30 {
		t.Errorf("%.0f %% of the lines of Go have comments, at most 30", percent)
	}
}

// TestThereIsMoreTestThanCode: 1.1 lines of test for each of code, stories and other test data included.
func TestThereIsMoreTestThanCode(t *testing.T) {
	tests, code := 0, 0
	for _, f := range files(t) {
		n := strings.Count(f.text, "\n")
		if f.isTest || strings.HasPrefix(f.path, "test/") || strings.HasPrefix(f.path, "internal/lab/") || strings.HasPrefix(f.path, "internal/testkit/") {
			tests += n
		} else {
			code += n
		}
	}
	tests += lineCount(t, func(path string) bool {
		return strings.Contains(path, "testdata/") && strings.HasSuffix(path, ".txtar")
	})
	code += lineCount(t, isC)
	atLeast(t, "lines of tests for each line of code", float64(tests)/float64(code), 1.1, 0.75)
}
