// Package helm holds the Helm chart, and renders it without Helm for `tendril install`.
//
// Helm's own engine would nearly double the command line's size, for functions that these templates do not use. So they keep to
// what text/template has and the few functions below, which mean the same to both.
package helm

import (
	"bytes"
	"embed"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"path"
	"slices"
	"strconv"
	"strings"
	"text/template"

	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"sigs.k8s.io/yaml"
)

// chart is the folder that `helm install` is given.
//
//go:embed tendril
var chart embed.FS

// Values are the chart's values: what values.yaml says, and what was set over it.
type Values map[string]any

// Defaults reads values.yaml.
func Defaults() (Values, error) {
	text, err := chart.ReadFile("tendril/values.yaml")
	if err != nil {
		return nil, err
	}
	var values Values
	if err := yaml.UnmarshalStrict(text, &values); err != nil {
		return nil, fmt.Errorf("values.yaml: %w", err)
	}
	return values, nil
}

// free is the one value below which names are not the chart's, but the agent's.
const free = "agent.config"

// Set gives a value, by its path with dots, a text that is read as YAML: "agent.config.mode=vxlan". A path that the chart does not
// have is an error, for it would do nothing; so is what the chart's schema does not admit.
func (v Values) Set(assignment string) error {
	name, text, found := strings.Cut(assignment, "=")
	if !found {
		return fmt.Errorf("%q: write name=value", assignment)
	}
	var value any
	if err := yaml.Unmarshal([]byte(text), &value); err != nil {
		return fmt.Errorf("%s: %w", name, err)
	}
	at, parts := map[string]any(v), strings.Split(name, ".")
	for i, part := range parts {
		known, found := at[part]
		if !found && !strings.HasPrefix(name, free+".") {
			return fmt.Errorf("%s: the chart has no such value; there are %s", name, strings.Join(slices.Sorted(maps.Keys(at)), ", "))
		}
		if i == len(parts)-1 {
			at[part] = value
			return v.check()
		}
		below, ok := known.(map[string]any)
		if !ok {
			return fmt.Errorf("%s: %s holds no other values", name, strings.Join(parts[:i+1], "."))
		}
		at = below
	}
	return nil
}

// check reports every mistake by the chart's schema.
func (v Values) check() error {
	admitted, err := readSchema()
	if err != nil {
		return err
	}
	return admitted.check("", map[string]any(v))
}

// Text is a value as text, by its path with dots; empty if there is none.
func (v Values) Text(name string) string {
	value, found, err := unstructured.NestedFieldNoCopy(v, strings.Split(name, ".")...)
	if !found || err != nil || value == nil {
		return ""
	}
	return fmt.Sprint(value)
}

// Render makes the manifests, in the order in which they can be applied.
func Render(values Values, namespace string) ([]*unstructured.Unstructured, error) {
	functions := template.FuncMap{"toJson": toJSON, "quote": strconv.Quote, "required": required}
	data := map[string]any{"Values": map[string]any(values), "Release": map[string]any{"Namespace": namespace}}
	names, err := fs.Glob(chart, "tendril/templates/*.yaml")
	if err != nil {
		return nil, err
	}
	var objects []*unstructured.Unstructured
	for _, name := range names {
		text, err := chart.ReadFile(name)
		if err != nil {
			return nil, err
		}
		parsed, err := template.New(path.Base(name)).Option("missingkey=error").Funcs(functions).Parse(string(text))
		if err != nil {
			return nil, err
		}
		var rendered bytes.Buffer
		if err := parsed.Execute(&rendered, data); err != nil {
			if missing, ok := errors.AsType[unset](err); ok { // the template's place is of no use to who sets values
				err = missing
			}
			return nil, err
		}
		more, err := split(rendered.String())
		if err != nil {
			return nil, fmt.Errorf("%s: %w", name, err)
		}
		objects = append(objects, more...)
	}
	slices.SortStableFunc(objects, func(a, b *unstructured.Unstructured) int { return rank(a) - rank(b) })
	return objects, nil
}

// rank puts what pods need before pods.
func rank(object *unstructured.Unstructured) int {
	switch object.GetKind() {
	case "Deployment", "DaemonSet", "Pod":
		return 1
	}
	return 0
}

// split reads a rendered file's documents.
func split(text string) (objects []*unstructured.Unstructured, err error) {
	for document := range strings.SplitSeq(text, "\n---") {
		object := &unstructured.Unstructured{}
		if err := yaml.UnmarshalStrict([]byte(document), &object.Object); err != nil {
			return nil, err
		}
		if len(object.Object) > 0 {
			objects = append(objects, object)
		}
	}
	return objects, nil
}

func toJSON(value any) (string, error) {
	text, err := json.Marshal(value)
	return string(text), err
}

// unset says which value is, and what it is for.
type unset string

func (u unset) Error() string { return string(u) }

// required fails the rendering if a value is not set.
func required(what string, value any) (any, error) {
	if value == nil || value == "" {
		return nil, unset(what)
	}
	return value, nil
}
