package main

import (
	"bytes"
	"fmt"
	"strings"

	"github.com/cilium/ebpf/btf"
)

// enum prints an enum as a Go type, its constants, and its names.
func (w *writer) enum(d declaration) error {
	var e *btf.Enum
	if err := w.spec.TypeByName(d.name, &e); err != nil {
		return err
	}
	width := w.width[d.name]
	if width == 0 {
		width = 4
	}
	name := goName(d.name)
	w.doc(d, fmt.Sprintf("is enum %s of the datapath.", d.name))
	w.printf("type %s uint%d\n\n// The values of %s.\nconst (\n", name, width*8, name)
	for i, v := range e.Values {
		w.printf("\t%s %s = %d%s\n", constName(v.Name), name, v.Value, fieldComment(false, d.members[i].doc))
	}
	w.printf(")\n\n")
	switch {
	case d.name == "capacity" || d.name == "bound" || d.name == "lifetime" || d.name == "mark":
	case d.name == "feature" || strings.HasSuffix(d.name, "_flag"):
		w.flagNames(name, e)
	default:
		w.valueNames(name, e)
	}
	if d.name == "reason" || d.name == "builtin_rule" {
		w.about(d, e)
	}
	return nil
}

// marker tells enumerators that bound a range from those that name a value.
func marker(name string) bool {
	return strings.HasSuffix(name, "_COUNT") || strings.HasSuffix(name, "_FIRST") || strings.HasSuffix(name, "_FIRST_FREE")
}

// plainName is an enumerator without its first word, in lower case: DROP_POLICY_DENY is policy-deny.
func plainName(name string) string {
	_, rest, _ := strings.Cut(name, "_")
	return strings.ToLower(strings.ReplaceAll(rest, "_", "-"))
}

// valueNames prints String and, for loops over all values, a function named after the plural.
func (w *writer) valueNames(name string, e *btf.Enum) {
	w.printf("// String is the name in lower case, or the empty string for a value that has none.\n")
	w.printf("func (v %s) String() string {\n\tswitch v {\n", name)
	for _, v := range e.Values {
		if !marker(v.Name) {
			w.printf("\tcase %s:\n\t\treturn %q\n", constName(v.Name), plainName(v.Name))
		}
	}
	w.printf("\t}\n\treturn \"\"\n}\n\n")
	if name != "Reason" && name != "Hook" && name != "Tally" {
		return
	}
	plural := strings.TrimSuffix(name, "y") + "s"
	if strings.HasSuffix(name, "y") {
		plural = strings.TrimSuffix(name, "y") + "ies"
	}
	w.printf("// %s returns every named value in order.\nfunc %s() []%s {\n\treturn []%s{\n", plural, plural, name, name)
	for _, v := range e.Values {
		if !marker(v.Name) {
			w.printf("\t\t%s,\n", constName(v.Name))
		}
	}
	w.printf("\t}\n}\n\n")
}

// flagNames prints String for an enum of bits.
func (w *writer) flagNames(name string, e *btf.Enum) {
	var names, bits []string
	for _, v := range e.Values {
		names = append(names, fmt.Sprintf("%q", plainName(v.Name)))
		bits = append(bits, fmt.Sprint(v.Value))
	}
	w.printf("// String names the bits that are set, joined by |.\nfunc (v %s) String() string {\n", name)
	w.printf("\treturn joinFlags(uint32(v), []string{%s}, []uint32{%s})\n}\n\n", strings.Join(names, ", "), strings.Join(bits, ", "))
}

// about prints a method with the comment of each value.
func (w *writer) about(d declaration, e *btf.Enum) {
	w.printf("// About says in a line what the value means.\nfunc (v %s) About() string {\n\tswitch v {\n", goName(d.name))
	for i, v := range e.Values {
		if !marker(v.Name) {
			w.printf("\tcase %s:\n\t\treturn %q\n", constName(v.Name), d.members[i].doc)
		}
	}
	w.printf("\t}\n\treturn \"\"\n}\n\n")
}

// writeDrops returns docs/drops.md.
func writeDrops(decls []declaration) []byte {
	var out bytes.Buffer
	out.WriteString("# How a packet's journey can end\n\n")
	out.WriteString("Generated from `enum reason` in bpf/lib/constants.h by `go generate ./bpf`. `tendril observe` and the\n")
	out.WriteString("drop counters print the name; bpf/JOURNEY.md says at which step each one is given.\n\n")
	out.WriteString("| name | kind | meaning |\n|---|---|---|\n")
	for _, d := range decls {
		if d.kind != "enum" || d.name != "reason" {
			continue
		}
		for _, m := range d.members {
			if marker(m.name) {
				continue
			}
			kind, _, _ := strings.Cut(m.name, "_")
			kind = map[string]string{"DROP": "drop", "REASON": "passed"}[kind]
			fmt.Fprintf(&out, "| `%s` | %s | %s |\n", plainName(m.name), kind, m.doc)
		}
	}
	return out.Bytes()
}

// initialisms are words that Go spells in its own way.
var initialisms = map[string]string{
	"id": "ID", "nat": "NAT", "mac": "MAC", "mtu": "MTU", "vni": "VNI", "dsr": "DSR", "tcp": "TCP", "udp": "UDP", "icmp": "ICMP", "ttl": "TTL",
	"ipv4": "IPv4", "ipv6": "IPv6", "ifindex": "IfIndex", "cap": "Cap", "api": "API", "apiserver": "APIServer",
}

// goName is a C name in Go's spelling.
func goName(name string) string {
	var out strings.Builder
	for word := range strings.SplitSeq(strings.ToLower(name), "_") {
		if as, ok := initialisms[word]; ok {
			out.WriteString(as)
			continue
		}
		out.WriteString(strings.ToUpper(word[:1]) + word[1:])
	}
	return out.String()
}

// constName is an enumerator in Go's spelling. Address flags say so, to stand apart from what Address has.
func constName(name string) string {
	if rest, ok := strings.CutPrefix(name, "ADDRESS_"); ok {
		return "AddressFlag" + goName(rest)
	}
	return goName(name)
}
