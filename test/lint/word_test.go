package lint

import (
	"regexp"
	"strings"
	"testing"
)

// TestTheProjectStandsAlone: no file names a place of one machine or what it was written with. The patterns are spelt
// in two halves so that this file does not hold them.
func TestTheProjectStandsAlone(t *testing.T) {
	patterns := map[string]*regexp.Regexp{
		"a path of one machine": regexp.MustCompile(`(^|[\s"'(=:])/(ro` + `ot|ho` + `me|wo` + `rk)/`),
		"an assistant":          regexp.MustCompile(`(?i)\b(clau` + `de|chat` + `gpt|co` + `pilot|anth` + `ropic|open` + `ai|l` + `lm)\b`),
		"a to-do":               regexp.MustCompile(`\b(TO` + `DO|FIX` + `ME|X` + `XX)\b`),
	}
	for _, path := range tracked(t) {
		if strings.HasSuffix(path, ".o") || path == "go.sum" {
			continue
		}
		for i, line := range strings.Split(read(t, path), "\n") {
			for what, pattern := range patterns {
				if found := pattern.FindString(line); found != "" {
					t.Errorf("%s:%d: names %s: %s", path, i+1, what, strings.TrimSpace(found))
				}
			}
		}
	}
}
