package lint

import (
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

// A command behind "!" does not end a script under set -e, whatever comes of it: as a statement it checks nothing.
func TestNoScriptChecksBehindABang(t *testing.T) {
	scripts, err := filepath.Glob(filepath.Join("..", "*", "*.sh"))
	if err != nil || len(scripts) < 10 {
		t.Fatalf("%d scripts, %v", len(scripts), err)
	}
	statement := regexp.MustCompile(`^\s*! `)
	for _, path := range scripts {
		text, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		for number, line := range strings.Split(string(text), "\n") {
			if statement.MatchString(line) {
				t.Errorf("%s:%d: %s: fails nothing", path, number+1, strings.TrimSpace(line))
			}
		}
	}
}
