package tendril

import (
	"fmt"
	"maps"
	"reflect"
	"slices"
	"strings"
	"testing"

	"sigs.k8s.io/yaml"
)

// schema is the part of an OpenAPI schema that says what a Go type says.
type schema struct {
	Type                 string            `json:"type"`
	Description          string            `json:"description"`
	Properties           map[string]schema `json:"properties"`
	Required             []string          `json:"required"`
	Items                *schema           `json:"items"`
	AdditionalProperties *schema           `json:"additionalProperties"`
}

type definition struct {
	Metadata struct{ Name string }
	Spec     struct {
		Group, Scope string
		Names        struct{ Kind, Plural string }
		Versions     []struct {
			Name                     string
			Served, Storage          bool
			AdditionalPrinterColumns []struct{ Name, JSONPath string }
			Schema                   struct{ OpenAPIV3Schema schema }
		}
	}
}

func TestTheDefinitionsSayWhatTheTypesSay(t *testing.T) {
	types := map[string]reflect.Type{
		KindLoadBalancerPool: reflect.TypeFor[LoadBalancerPool](),
		KindEgressGateway:    reflect.TypeFor[EgressGateway](),
		KindIdentity:         reflect.TypeFor[Identity](),
	}
	for text := range strings.SplitSeq(CRDs, "\n---\n") {
		var d definition
		if err := yaml.Unmarshal([]byte(text), &d); err != nil {
			t.Fatal(err)
		}
		want, ok := types[d.Spec.Names.Kind]
		if !ok {
			t.Errorf("a definition of %q, which is no kind of ours", d.Spec.Names.Kind)
			continue
		}
		delete(types, d.Spec.Names.Kind)
		if got := d.Spec.Names.Plural + "." + d.Spec.Group; got != d.Metadata.Name {
			t.Errorf("name %s, want %s", d.Metadata.Name, got)
		}
		version := d.Spec.Versions[0]
		if got := d.Spec.Group + "/" + version.Name; len(d.Spec.Versions) != 1 || got != APIVersion || !version.Served || !version.Storage {
			t.Errorf("version %s, want the one %s, served and stored", got, APIVersion)
		}
		if len(version.AdditionalPrinterColumns) < 2 {
			t.Error("kubectl get shows names only")
		}
		for _, wrong := range differences(version.Schema.OpenAPIV3Schema, want, "") {
			t.Error(wrong)
		}
	}
	for kind := range types {
		t.Errorf("no definition of %s", kind)
	}
}

// differences compares a schema with a type, field by field.
func differences(s schema, want reflect.Type, at string) (wrong []string) {
	for want.Kind() == reflect.Pointer {
		want = want.Elem()
	}
	kinds := map[reflect.Kind]string{reflect.String: "string", reflect.Slice: "array", reflect.Map: "object", reflect.Struct: "object", reflect.Bool: "boolean"}
	if s.Type != kinds[want.Kind()] {
		return []string{fmt.Sprintf("%s: type %q, want %q", at, s.Type, kinds[want.Kind()])}
	}
	switch want.Kind() {
	case reflect.Slice:
		if s.Items == nil {
			return []string{at + ": no items"}
		}
		return differences(*s.Items, want.Elem(), at+"[]")
	case reflect.Map:
		if s.AdditionalProperties == nil {
			return []string{at + ": no additionalProperties"}
		}
		return differences(*s.AdditionalProperties, want.Elem(), at+"{}")
	case reflect.Struct:
		return structDifferences(s, want, at)
	}
	return nil
}

func structDifferences(s schema, want reflect.Type, at string) (wrong []string) {
	properties, required := maps.Clone(s.Properties), []string{}
	if at == "" { // of every object
		for _, name := range []string{"apiVersion", "kind", "metadata"} {
			if _, ok := properties[name]; !ok {
				wrong = append(wrong, "no "+name)
			}
			delete(properties, name)
		}
	}
	for i := range want.NumField() {
		name, options, _ := strings.Cut(want.Field(i).Tag.Get("json"), ",")
		if want.Field(i).Anonymous {
			continue
		}
		property, ok := properties[name]
		if !ok {
			wrong = append(wrong, fmt.Sprintf("%s.%s: not in the schema", at, name))
			continue
		}
		delete(properties, name)
		if property.Description == "" {
			wrong = append(wrong, fmt.Sprintf("%s.%s: no description, which kubectl explain would print", at, name))
		}
		if options != "omitempty" {
			required = append(required, name)
		}
		wrong = append(wrong, differences(property, want.Field(i).Type, at+"."+name)...)
	}
	for name := range properties {
		wrong = append(wrong, fmt.Sprintf("%s.%s: not in the type", at, name))
	}
	slices.Sort(required)
	if got := slices.Sorted(slices.Values(s.Required)); !slices.Equal(got, required) {
		wrong = append(wrong, fmt.Sprintf("%s: required %v, want %v", at, got, required))
	}
	return wrong
}
