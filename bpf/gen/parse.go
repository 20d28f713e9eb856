package main

import (
	"fmt"
	"os"
	"regexp"
	"strings"
)

// declaration is a struct, union or enum of a header with its comments. Layout comes from BTF, not from here.
type declaration struct {
	kind    string // struct, union or enum
	name    string
	doc     string
	members []member
}

// member is a field or an enumerator with its comment.
type member struct {
	name string
	doc  string
}

var (
	opening    = regexp.MustCompile(`^(struct|union|enum) (\w+) \{$`)
	field      = regexp.MustCompile(`^\t[\w ]+?\b(\w+)(?:\[\w+\])?;\s*(?:/\*\s*(.*?)\s*\*/)?$`)
	enumerator = regexp.MustCompile(`^\t(\w+) = [^,]+,\s*(?:/\*\s*(.*?)\s*\*/)?$`)
)

// parseHeaders reads the declarations of all headers, in order.
func parseHeaders(paths []string) ([]declaration, error) {
	var all []declaration
	for _, path := range paths {
		text, err := os.ReadFile(path)
		if err != nil {
			return nil, err
		}
		decls, err := parseHeader(string(text))
		if err != nil {
			return nil, fmt.Errorf("%s:%w", path, err)
		}
		all = append(all, decls...)
	}
	return all, nil
}

// parseHeader reads one header. It knows the project's own layout of C and refuses what it does not understand.
func parseHeader(text string) ([]declaration, error) {
	var decls []declaration
	var comment []string
	var open *declaration
	inComment := false
	for number, line := range strings.Split(text, "\n") {
		switch {
		case inComment:
			comment = append(comment, commentText(line))
			inComment = !strings.Contains(line, "*/")
		case open != nil && line == "};":
			decls = append(decls, *open)
			open, comment = nil, nil
		case open != nil:
			m, err := parseMember(open.kind, line)
			if err != nil {
				return nil, fmt.Errorf("%d: %w", number+1, err)
			}
			open.members = append(open.members, m...)
		case strings.HasPrefix(line, "/*"):
			comment = []string{commentText(line)}
			inComment = !strings.Contains(line, "*/")
		case opening.MatchString(line):
			found := opening.FindStringSubmatch(line)
			open = &declaration{kind: found[1], name: found[2], doc: strings.TrimSpace(strings.Join(comment, "\n"))}
		default:
			comment = nil
		}
	}
	return decls, nil
}

// parseMember reads a line inside a declaration; an empty line is no member.
func parseMember(kind, line string) ([]member, error) {
	pattern := field
	if kind == "enum" {
		pattern = enumerator
	}
	if strings.TrimSpace(line) == "" {
		return nil, nil
	}
	found := pattern.FindStringSubmatch(line)
	if found == nil {
		return nil, fmt.Errorf("cannot read %q as a member of the %s", line, kind)
	}
	return []member{{name: found[1], doc: found[2]}}, nil
}

// commentText is a comment line without its decoration.
func commentText(line string) string {
	line = strings.TrimSpace(line)
	line = strings.TrimSuffix(strings.TrimPrefix(line, "/*"), "*/")
	line = strings.TrimPrefix(line, "* ")
	if line == "*" || line == "*/" || line == "/" {
		return ""
	}
	return strings.TrimSuffix(strings.TrimPrefix(line, " "), " ")
}
