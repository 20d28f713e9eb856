package kube

import (
	"encoding/json"
	"fmt"
	"maps"
	"reflect"
	"slices"
	"strconv"
	"strings"

	"k8s.io/apimachinery/pkg/util/validation/field"
)

// checkShape compares decoded JSON with the Go type that it is meant for and finds every unknown field and every value
// of the wrong type, where a decoder would stop at the first. Numbers must be json.Number.
func checkShape(value any, want reflect.Type, at *field.Path) field.ErrorList {
	for want.Kind() == reflect.Pointer {
		want = want.Elem()
	}
	if value == nil || want.Kind() == reflect.Interface {
		return nil // null means absent
	}
	if reflect.PointerTo(want).Implements(reflect.TypeFor[json.Unmarshaler]()) {
		return checkSelfDecoding(value, want, at)
	}
	switch want.Kind() {
	case reflect.Struct:
		return checkStruct(value, want, at)
	case reflect.Map:
		return checkMap(value, want, at)
	case reflect.Slice:
		return checkSlice(value, want, at)
	}
	return checkScalar(value, want, at)
}

// checkStruct compares field by field, in the order of their names, so that messages have an order. Names are compared
// exactly: encoding/json would take podselector for podSelector, the API server does not.
func checkStruct(value any, want reflect.Type, at *field.Path) field.ErrorList {
	object, ok := value.(map[string]any)
	if !ok {
		return wrongType(value, "a map of fields", at)
	}
	known := fieldsOf(want)
	var errs field.ErrorList
	for _, name := range slices.Sorted(maps.Keys(object)) {
		child := childOf(at, name)
		if typ, ok := known[name]; ok {
			errs = append(errs, checkShape(object[name], typ, child)...)
			continue
		}
		errs = append(errs, field.Forbidden(child, "unknown field; "+suggestion(name, known)))
	}
	return errs
}

// checkMap compares the values; keys are the author's own.
func checkMap(value any, want reflect.Type, at *field.Path) field.ErrorList {
	object, ok := value.(map[string]any)
	if !ok {
		return wrongType(value, "a map", at)
	}
	var errs field.ErrorList
	for _, key := range slices.Sorted(maps.Keys(object)) {
		errs = append(errs, checkShape(object[key], want.Elem(), at.Key(key))...)
	}
	return errs
}

// checkSlice compares the members, each under its index.
func checkSlice(value any, want reflect.Type, at *field.Path) field.ErrorList {
	if want.Elem().Kind() == reflect.Uint8 {
		return checkScalar(value, reflect.TypeFor[string](), at) // bytes travel as base64
	}
	list, ok := value.([]any)
	if !ok {
		return wrongType(value, "a list", at)
	}
	var errs field.ErrorList
	for i, element := range list {
		errs = append(errs, checkShape(element, want.Elem(), at.Index(i))...)
	}
	return errs
}

// checkScalar compares texts, booleans and whole numbers, whose size counts: 70000 is no int16. Other kinds do not
// occur in the types that are read here, and are left to the decoder.
func checkScalar(value any, want reflect.Type, at *field.Path) field.ErrorList {
	switch want.Kind() {
	case reflect.String:
		if _, ok := value.(string); !ok {
			return wrongType(value, "a string", at)
		}
	case reflect.Bool:
		if _, ok := value.(bool); !ok {
			return wrongType(value, "true or false", at)
		}
	case reflect.Int, reflect.Int16, reflect.Int32, reflect.Int64:
		number, ok := value.(json.Number)
		if !ok {
			return wrongType(value, "a whole number", at)
		}
		if _, err := strconv.ParseInt(number.String(), 10, want.Bits()); err != nil {
			return wrongType(value, fmt.Sprintf("a whole number of %d bits", want.Bits()), at)
		}
	}
	return nil
}

// checkSelfDecoding asks types that decode themselves (times, quantities, int-or-string).
func checkSelfDecoding(value any, want reflect.Type, at *field.Path) field.ErrorList {
	text, err := json.Marshal(value)
	if err == nil {
		err = json.Unmarshal(text, reflect.New(want).Interface())
	}
	if err != nil {
		return wrongType(value, spelling(want.Name()), at)
	}
	return nil
}

// spelling says what a type that decodes itself reads.
func spelling(name string) string {
	switch name {
	case "IntOrString":
		return "a whole number or a name"
	case "Quantity":
		return "a quantity like 100m or 2Gi"
	case "Time", "MicroTime":
		return "a time like 2006-01-02T15:04:05Z"
	}
	return "a " + name
}

// wrongType says what was expected. The usual reason is YAML's own reading of a bare word, such as 8080 or yes.
func wrongType(value any, want string, at *field.Path) field.ErrorList {
	remedy := "want " + want
	if _, isString := value.(string); !isString && want == "a string" {
		remedy += "; put the value in quotes"
	}
	return field.ErrorList{field.TypeInvalid(at, brief(value), remedy)}
}

// brief is a value as it can stand in an error: lists and maps by their kind only.
func brief(value any) any {
	switch v := value.(type) {
	case map[string]any:
		return "{...}"
	case []any:
		return "[...]"
	default:
		return v
	}
}

// childOf is the path of a field; the first of all has no parent.
func childOf(at *field.Path, name string) *field.Path {
	if at == nil {
		return field.NewPath(name)
	}
	return at.Child(name)
}

// fieldsOf lists a struct's fields by their JSON names, those of embedded structs included.
func fieldsOf(typ reflect.Type) map[string]reflect.Type {
	known := map[string]reflect.Type{}
	for i := range typ.NumField() {
		member := typ.Field(i)
		name, _, _ := strings.Cut(member.Tag.Get("json"), ",")
		switch {
		case name == "-" || !member.IsExported():
		case name == "" && member.Anonymous:
			maps.Copy(known, fieldsOf(member.Type))
		case name != "":
			known[name] = member.Type
		}
	}
	return known
}

// suggestion names the known field that is spelled most like the unknown one, or all of them.
func suggestion(name string, known map[string]reflect.Type) string {
	names := slices.Sorted(maps.Keys(known))
	best, bestDistance := "", 3
	for _, candidate := range names {
		if d := distance(strings.ToLower(name), strings.ToLower(candidate)); d < bestDistance {
			best, bestDistance = candidate, d
		}
	}
	if best != "" {
		return fmt.Sprintf("did you mean %q?", best)
	}
	return "the fields here are " + strings.Join(names, ", ")
}

// distance is the number of single-character edits between two words (Levenshtein).
func distance(a, b string) int {
	row := make([]int, len(b)+1)
	for j := range row {
		row[j] = j
	}
	for i := range len(a) {
		diagonal := row[0]
		row[0] = i + 1
		for j := range len(b) {
			cost := 1
			if a[i] == b[j] {
				cost = 0
			}
			diagonal, row[j+1] = row[j+1], min(row[j+1]+1, row[j]+1, diagonal+cost)
		}
	}
	return row[len(b)]
}
