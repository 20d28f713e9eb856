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

// shape is what comparing decoded JSON with a Go type finds, where a decoder would stop at the first mistake. What is
// wrong is taken out of the JSON, so that the rest can still be decoded and its meaning checked: an author who corrects
// a manifest wants to hear everything in one go.
type shape struct {
	errs    field.ErrorList
	damaged []string // paths of values that were taken out, and of fields that a misspelt name probably meant
	holes   []string // paths of the maps that something was taken out of; "" is the object itself
}

// check compares a value with the type that it is meant for; numbers must be json.Number. It tells whether the value as
// a whole can be decoded into the type; where it cannot, whoever holds the value takes it out.
func (s *shape) check(value any, want reflect.Type, at *field.Path) bool {
	for want.Kind() == reflect.Pointer {
		want = want.Elem()
	}
	if value == nil || want.Kind() == reflect.Interface {
		return true // null means absent
	}
	if reflect.PointerTo(want).Implements(reflect.TypeFor[json.Unmarshaler]()) {
		return s.checkSelfDecoding(value, want, at)
	}
	switch want.Kind() {
	case reflect.Struct:
		return s.checkStruct(value, want, at)
	case reflect.Map:
		return s.checkMap(value, want, at)
	case reflect.Slice:
		return s.checkSlice(value, want, at)
	}
	return s.checkScalar(value, want, at)
}

// checkStruct compares field by field, in the order of their names, so that messages have an order. Names are compared
// exactly: encoding/json would take podselector for podSelector, the API server does not.
func (s *shape) checkStruct(value any, want reflect.Type, at *field.Path) bool {
	object, ok := value.(map[string]any)
	if !ok {
		return s.wrongType(value, "a map of fields", at)
	}
	known := fieldsOf(want)
	for _, name := range slices.Sorted(maps.Keys(object)) {
		child := childOf(at, name)
		typ, ok := known[name]
		if ok && s.check(object[name], typ, child) {
			continue
		}
		if !ok {
			s.unknown(name, known, at)
		}
		delete(object, name)
		s.holes = append(s.holes, strings.TrimSuffix(strings.TrimSuffix(child.String(), name), "."))
	}
	return true
}

// unknown reports a field that the type does not have. If the author meant another, that one is as good as damaged:
// a complaint that it is missing would send them looking for a second mistake.
func (s *shape) unknown(name string, known map[string]reflect.Type, at *field.Path) {
	remedy := "the fields here are " + strings.Join(slices.Sorted(maps.Keys(known)), ", ")
	if meant := nearest(name, known); meant != "" {
		remedy = fmt.Sprintf("did you mean %q?", meant)
		s.damaged = append(s.damaged, childOf(at, meant).String())
	}
	s.errs = append(s.errs, field.Forbidden(childOf(at, name), "unknown field; "+remedy))
}

// checkMap compares the values; keys are the author's own.
func (s *shape) checkMap(value any, want reflect.Type, at *field.Path) bool {
	object, ok := value.(map[string]any)
	if !ok {
		return s.wrongType(value, "a map", at)
	}
	for _, key := range slices.Sorted(maps.Keys(object)) {
		if !s.check(object[key], want.Elem(), at.Key(key)) {
			delete(object, key)
		}
	}
	return true
}

// checkSlice compares the members, each under its index. One that is wrong becomes null and not a gap: the indexes of
// those behind it must stay those of the manifest.
func (s *shape) checkSlice(value any, want reflect.Type, at *field.Path) bool {
	if want.Elem().Kind() == reflect.Uint8 {
		return s.checkScalar(value, reflect.TypeFor[string](), at) // bytes travel as base64
	}
	list, ok := value.([]any)
	if !ok {
		return s.wrongType(value, "a list", at)
	}
	for i, element := range list {
		if !s.check(element, want.Elem(), at.Index(i)) {
			list[i] = nil
		}
	}
	return true
}

// checkScalar compares texts, booleans and whole numbers, whose size counts: 70000 is no int16. Other kinds do not
// occur in the types that are read here, and are left to the decoder.
func (s *shape) checkScalar(value any, want reflect.Type, at *field.Path) bool {
	switch want.Kind() {
	case reflect.String:
		if _, ok := value.(string); !ok {
			return s.wrongType(value, "a string", at)
		}
	case reflect.Bool:
		if _, ok := value.(bool); !ok {
			return s.wrongType(value, "true or false", at)
		}
	case reflect.Int, reflect.Int16, reflect.Int32, reflect.Int64:
		number, ok := value.(json.Number)
		if !ok {
			return s.wrongType(value, "a whole number", at)
		}
		if _, err := strconv.ParseInt(number.String(), 10, want.Bits()); err != nil {
			return s.wrongType(value, fmt.Sprintf("a whole number of %d bits", want.Bits()), at)
		}
	}
	return true
}

// checkSelfDecoding asks types that decode themselves (times, quantities, int-or-string).
func (s *shape) checkSelfDecoding(value any, want reflect.Type, at *field.Path) bool {
	text, err := json.Marshal(value)
	if err == nil {
		err = json.Unmarshal(text, reflect.New(want).Interface())
	}
	return err == nil || s.wrongType(value, spelling(want.Name()), at)
}

// wrongType reports what was expected. The usual reason is YAML's own reading of a bare word, such as 8080 or yes.
func (s *shape) wrongType(value any, want string, at *field.Path) bool {
	remedy := "want " + want
	if _, isString := value.(string); !isString && want == "a string" {
		remedy += "; put the value in quotes"
	}
	s.errs = append(s.errs, field.TypeInvalid(at, brief(value), remedy))
	s.damaged = append(s.damaged, at.String())
	return false
}

// isFollowUp tells whether a complaint about the meaning of what is left may only stem from what was taken out: it is
// about a damaged value; or about something missing in a map that was not left whole; or about a likeness of members
// of a list, one of which is damaged. Such a complaint is kept back until the shape is right.
func (s *shape) isFollowUp(err *field.Error) bool {
	for _, path := range s.damaged {
		if isWithin(err.Field, path) {
			return true
		}
	}
	switch err.Type {
	case field.ErrorTypeRequired:
		return slices.Contains(s.holes, err.Field) || slices.Contains(s.holes, parentOf(err.Field))
	case field.ErrorTypeDuplicate:
		list := err.Field[:max(0, strings.LastIndexByte(err.Field, '['))]
		return slices.ContainsFunc(s.damaged, func(path string) bool { return isWithin(path, list) })
	}
	return false
}

// isWithin tells whether a path is another one or leads on from it; everything is within the object.
func isWithin(path, outer string) bool {
	rest, ok := strings.CutPrefix(path, outer)
	return ok && (rest == "" || outer == "" || rest[0] == '.' || rest[0] == '[')
}

// parentOf is the path of the map that a field is in.
func parentOf(path string) string {
	return path[:max(0, strings.LastIndexByte(path, '.'))]
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
// A type that is embedded without a name, such as metav1.TypeMeta, spells its fields in line, as encoding/json has it.
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

// nearest is the known field that is spelled most like an unknown one; empty if none is within two edits, since a
// guess that is far off misleads more than a list of all names.
func nearest(name string, known map[string]reflect.Type) string {
	best, bestDistance := "", 3
	for _, candidate := range slices.Sorted(maps.Keys(known)) {
		if d := distance(strings.ToLower(name), strings.ToLower(candidate)); d < bestDistance {
			best, bestDistance = candidate, d
		}
	}
	return best
}

// distance is the number of single-character edits between two words (Levenshtein).
// Transposed letters cost two, which is why nearest accepts two edits. Bytes are compared: field names are ASCII.
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
