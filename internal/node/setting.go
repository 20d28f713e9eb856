package node

import (
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"reflect"
	"slices"
	"strings"
)

// effect says when a change of a setting counts.
type effect string

// The effects.
const (
	effectLive    effect = "live"    // at once
	effectReload  effect = "reload"  // at once, by programs that are loaded with it and swapped in under traffic
	effectRestart effect = "restart" // when the agent starts the next time
)

// setting is a field of Config.
type setting struct {
	key    string // as the file spells it
	effect effect
	field  int // its index
}

// settings lists the fields of Config in their order.
func settings() []setting {
	var all []setting
	config := reflect.TypeFor[Config]()
	for i := range config.NumField() {
		field := config.Field(i)
		if !field.IsExported() {
			continue
		}
		key, _, _ := strings.Cut(field.Tag.Get("json"), ",")
		all = append(all, setting{key, effect(field.Tag.Get("change")), i})
	}
	return all
}

// of is the setting's place in a configuration.
func (s setting) of(c *Config) reflect.Value { return reflect.ValueOf(c).Elem().Field(s.field) }

// text is the setting's value as a file has it; empty: it has none.
func (s setting) text(c *Config) string {
	value := s.of(c)
	switch value.Kind() {
	case reflect.Slice, reflect.Map, reflect.String:
		if value.Len() == 0 {
			return ""
		}
	}
	raw, err := json.Marshal(value.Interface())
	if err != nil {
		return err.Error() // cannot be: all of it was read from JSON
	}
	return string(raw)
}

// decode reads a configuration file and reports every mistake at once, by key.
func decode(raw []byte) (Config, error) {
	var config Config
	var given map[string]json.RawMessage
	if err := json.Unmarshal(raw, &given); err != nil {
		return config, fmt.Errorf("%w: it has to be one JSON object", err)
	}
	var problems []error
	for _, s := range settings() {
		value, ok := given[s.key]
		delete(given, s.key)
		if !ok {
			continue
		}
		place := s.of(&config)
		if err := json.Unmarshal(value, place.Addr().Interface()); err != nil {
			problems = append(problems, fmt.Errorf("%s: %s is not %s", s.key, value, form(place.Type())))
		}
	}
	for _, key := range slices.Sorted(maps.Keys(given)) {
		problems = append(problems, fmt.Errorf("unknown field %q: correct its name, or remove it", key))
	}
	return config, errors.Join(problems...)
}

// form says what values of a type look like.
func form(t reflect.Type) string {
	switch t {
	case reflect.TypeFor[[]netip.Prefix]():
		return `a list of prefixes, as in ["10.0.0.0/8", "fd00::/8"]`
	case reflect.TypeFor[[]string]():
		return `a list of strings, as in ["10.0.0.1:2379"]`
	case reflect.TypeFor[map[string]uint32]():
		return `an object of numbers, as in {"flows": 1048576}`
	}
	switch t.Kind() {
	case reflect.Bool:
		return "true or false"
	case reflect.String:
		return "a string"
	case reflect.Int:
		return "a whole number"
	}
	return fmt.Sprintf("a whole number from 0 to %d", uint64(1)<<t.Bits()-1)
}

// change is a setting that has one value here and another there.
type change struct {
	setting
	was, is string
}

// changes compares two configurations.
func changes(was, is *Config) []change {
	var all []change
	for _, s := range settings() {
		if a, b := s.text(was), s.text(is); a != b {
			all = append(all, change{s, a, b})
		}
	}
	return all
}

// followed is the configuration of an agent that goes on with c and whose file says wanted: what needs a restart stays.
func (c *Config) followed(wanted *Config) *Config {
	next := *c
	next.origin = wanted.origin
	for _, s := range settings() {
		if s.effect != effectRestart {
			s.of(&next).Set(s.of(wanted))
		}
	}
	return &next
}
