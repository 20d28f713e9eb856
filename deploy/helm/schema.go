package helm

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"math"
	"regexp"
	"slices"
	"strings"
)

// schema is what values may be, by values.schema.json: what of JSON Schema that file uses, and no more. Helm reads the same file.
type schema struct {
	Version     string             `json:"$schema"`
	Type        oneOrMore          `json:"type"`
	Description string             `json:"description"` // what a value is: completes "is not"
	Properties  map[string]*schema `json:"properties"`
	Others      *others            `json:"additionalProperties"` // absent: any
	Required    []string           `json:"required"`
	Items       *schema            `json:"items"`
	Enum        []string           `json:"enum"`
	Pattern     string             `json:"pattern"` // of a string
	Minimum     *float64           `json:"minimum"` // of a number
	Maximum     *float64           `json:"maximum"`
}

// oneOrMore are the names of one type or of several.
type oneOrMore []string

func (o *oneOrMore) UnmarshalJSON(text []byte) error {
	*o = oneOrMore{""}
	if err := json.Unmarshal(text, &(*o)[0]); err == nil {
		return nil
	}
	return json.Unmarshal(text, (*[]string)(o))
}

// others is what names may have that are not among the properties; nil within: there may be none.
type others struct{ *schema }

func (o *others) UnmarshalJSON(text []byte) error {
	if string(text) == "false" {
		return nil
	}
	return strictly(text, &o.schema)
}

// strictly refuses what this package would not heed.
func strictly(text []byte, into any) error {
	decoder := json.NewDecoder(bytes.NewReader(text))
	decoder.DisallowUnknownFields()
	return decoder.Decode(into)
}

// readSchema reads the chart's.
func readSchema() (*schema, error) {
	text, err := chart.ReadFile("tendril/values.schema.json")
	if err != nil {
		return nil, err
	}
	s := &schema{}
	if err := strictly(text, s); err != nil {
		return nil, fmt.Errorf("values.schema.json: %w", err)
	}
	return s, nil
}

// check reports every mistake in a value at once, by its path. No value (null) is one that is not set.
func (s *schema) check(path string, value any) error {
	if value == nil {
		return nil
	}
	if !s.admits(value) {
		text, _ := json.Marshal(value) // it was read from YAML
		return fmt.Errorf("%s: %s is not %s", strings.TrimPrefix(path, "."), text, s.Description)
	}
	var mistakes []error
	switch value := value.(type) {
	case map[string]any:
		for _, name := range slices.Sorted(maps.Keys(value)) {
			mistakes = append(mistakes, s.checkProperty(path, name, value[name]))
		}
		for _, name := range s.Required {
			if value[name] == nil {
				mistakes = append(mistakes, fmt.Errorf("%s: required: %s", strings.TrimPrefix(path+"."+name, "."), s.Properties[name].Description))
			}
		}
	case []any:
		for i, item := range value {
			if s.Items != nil {
				mistakes = append(mistakes, s.Items.check(fmt.Sprintf("%s[%d]", path, i), item))
			}
		}
	}
	return errors.Join(mistakes...)
}

func (s *schema) checkProperty(path, name string, value any) error {
	below := s.Properties[name]
	if below == nil && s.Others != nil {
		if below = s.Others.schema; below == nil {
			return fmt.Errorf("%s: there is no such value; there are %s",
				strings.TrimPrefix(path+"."+name, "."), strings.Join(slices.Sorted(maps.Keys(s.Properties)), ", "))
		}
	}
	if below == nil {
		return nil
	}
	return below.check(path+"."+name, value)
}

// admits is whether a value by itself, without what it holds, may be.
func (s *schema) admits(value any) bool {
	kind := ""
	switch value := value.(type) {
	case map[string]any:
		kind = "object"
	case []any:
		kind = "array"
	case bool:
		kind = "boolean"
	case float64: // YAML's numbers are JSON's
		kind = "number"
		if value == math.Trunc(value) {
			kind = "integer"
		}
		if s.Minimum != nil && value < *s.Minimum || s.Maximum != nil && value > *s.Maximum {
			return false
		}
	case string:
		kind = "string"
		if len(s.Enum) > 0 && !slices.Contains(s.Enum, value) || s.Pattern != "" && !regexp.MustCompile(s.Pattern).MatchString(value) {
			return false
		}
	}
	return len(s.Type) == 0 || slices.Contains(s.Type, kind)
}
