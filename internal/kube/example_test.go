package kube

import (
	"flag"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/rogpeppe/go-internal/txtar"
)

func TestMain(m *testing.M) {
	flag.Bool("update", false, "write the golden files")
	flag.Parse()
	os.Exit(m.Run())
}

// TestExamplesMeanWhatTheyMeant: every manifest of examples can be applied, and the policies are translated as the golden
// file says, which is there to be read beside them. -update writes it.
func TestExamplesMeanWhatTheyMeant(t *testing.T) {
	files, err := filepath.Glob("../../examples/policy/*.yaml")
	more, moreErr := filepath.Glob("../../examples/*.yaml")
	if err != nil || moreErr != nil || len(files) == 0 || len(more) == 0 {
		t.Fatalf("no examples: %v, %v", err, moreErr)
	}
	const path = "testdata/examples.txtar"
	got := &txtar.Archive{Comment: []byte("The policies of examples in the ordered model, as render_test.go prints it.\n\n")}
	for _, file := range append(files, more...) {
		data, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		objects, err := Decode(file, data)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := Records(objects, "lab"); err != nil {
			t.Fatal(err)
		}
		var text strings.Builder
		for _, o := range objects {
			text.WriteString(o.String() + "\n")
			if !o.IsPolicy() {
				continue
			}
			p, err := o.Policy()
			if err != nil {
				t.Fatal(err)
			}
			text.WriteString(render(p))
		}
		name := strings.TrimPrefix(filepath.ToSlash(file), "../../")
		got.Files = append(got.Files, txtar.File{Name: name, Data: []byte(text.String())})
	}
	if flag.Lookup("update").Value.String() == "true" {
		if err := os.WriteFile(path, txtar.Format(got), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(string(want), string(txtar.Format(got))); diff != "" {
		t.Errorf("%s (-want +got):\n%s", path, diff)
	}
}
