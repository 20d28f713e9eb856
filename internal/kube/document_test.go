package kube

import (
	"maps"
	"os"
	"reflect"
	"slices"
	"strings"
	"testing"

	"tendril.io/tendril/api/cilium"
)

// TestTheDocumentSpeaksOfEveryField: whoever looks a field up in docs/policy.md finds it there.
func TestTheDocumentSpeaksOfEveryField(t *testing.T) {
	text, err := os.ReadFile("../../docs/policy.md")
	if err != nil {
		t.Fatal(err)
	}
	words := map[string]bool{}
	for _, word := range strings.FieldsFunc(string(text), func(r rune) bool { return !strings.ContainsRune(fieldLetters, r) }) {
		words[word] = true
	}
	fields := map[string]bool{}
	for _, k := range policyKinds() {
		if !words[k.name] || !strings.Contains(string(text), k.apiVersion) {
			t.Errorf("docs/policy.md does not know %s of %s", k.name, k.apiVersion)
		}
		spec := fieldsOf(k.typ)["spec"]
		note(spec, fields)
	}
	note(reflect.TypeFor[cilium.CIDRGroupSpec](), fields)
	// In the label of a rule, what people write for themselves; in a range, what its row explains.
	explained := []string{"key", "value", "source", "operator", "values", "fields", "start", "end"}
	for _, name := range slices.Sorted(maps.Keys(fields)) {
		if !words[name] && !slices.Contains(explained, name) {
			t.Errorf("docs/policy.md says nothing of %s", name)
		}
	}
}

const fieldLetters = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789"

// note marks the fields of a type and of the types that it is made of.
func note(typ reflect.Type, fields map[string]bool) {
	for typ.Kind() == reflect.Pointer || typ.Kind() == reflect.Slice {
		typ = typ.Elem()
	}
	if typ.Kind() != reflect.Struct || typ.Name() == "IntOrString" {
		return
	}
	for name, member := range fieldsOf(typ) {
		fields[name] = true
		note(member, fields)
	}
}
