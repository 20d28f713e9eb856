package node

import (
	"encoding/json"
	"flag"
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

var update = flag.Bool("update", false, "write the documentation that is generated")

func TestEverySettingSaysWhenAChangeCounts(t *testing.T) {
	for _, s := range settings() {
		if s.key == "" || !slices.Contains([]effect{effectLive, effectReload, effectRestart}, s.effect) {
			t.Errorf("field %s: key %q, change %q; want a key, and live, reload or restart", reflect.TypeFor[Config]().Field(s.field).Name, s.key, s.effect)
		}
	}
}

// other is a configuration with one setting that the other one does not have.
func other(s setting) *Config {
	config := Config{}.withDefaults()
	value := s.of(&config)
	switch value.Kind() {
	case reflect.Bool:
		value.SetBool(!value.Bool())
	case reflect.String:
		value.SetString(value.String() + "x")
	case reflect.Int:
		value.SetInt(value.Int() + 1)
	case reflect.Uint16, reflect.Uint32:
		value.SetUint(value.Uint() + 1)
	case reflect.Slice:
		value.Set(reflect.MakeSlice(value.Type(), 1, 1))
	case reflect.Map:
		value.Set(reflect.ValueOf(map[string]uint32{"flows": 7}))
	}
	return &config
}

func TestAChangeIsFollowedUnlessItNeedsARestart(t *testing.T) {
	before := Config{}.withDefaults()
	for _, s := range settings() {
		wanted := other(s)
		wanted.origin.digest = "new"
		got := changes(&before, wanted)
		if len(got) != 1 || got[0].setting != s || got[0].was == got[0].is {
			t.Errorf("%s: the configurations differ by %+v", s.key, got)
		}
		next := before.followed(wanted)
		if follows := s.text(next) == s.text(wanted); follows != (s.effect != effectRestart) {
			t.Errorf("%s: followed: %v, and it is said to count by %s", s.key, follows, s.effect)
		}
		if left := changes(next, wanted); len(left) > 1 || next.origin.digest != "new" || len(changes(&before, &before)) != 0 {
			t.Errorf("%s: of others is left %+v, of file %+v", s.key, left, next.origin)
		}
	}
}

func TestAnEmptyListIsNone(t *testing.T) {
	a, err := decode([]byte(`{"no_masquerade": [], "map_sizes": {}, "pod_cidrs": null}`))
	if err != nil {
		t.Fatal(err)
	}
	if got := changes(&Config{}, &a); len(got) != 0 {
		t.Errorf("got %+v, want no difference", got)
	}
}

// What a file says is what it is read as: written again, it is read as the same.
func FuzzDecode(f *testing.F) {
	for _, seed := range []string{
		`{}`, `{"node": "n", "store": ["s:1"], "masquerade": true, "map_sizes": {"flows": 7}, "no_masquerade": ["fd00::/8"]}`,
		`{"vni": -1, "pod_cidrs": null, "x": {}}`, `[]`, `{"node": "\ud800"}`,
	} {
		f.Add([]byte(seed))
	}
	f.Fuzz(func(t *testing.T, raw []byte) {
		config, err := decode(raw)
		if err != nil {
			return
		}
		written, err := json.Marshal(config)
		if err != nil {
			t.Fatal(err)
		}
		again, err := decode(written)
		if err != nil {
			t.Fatalf("%s is read, and written as %s: %v", raw, written, err)
		}
		if diff := changes(&config, &again); len(diff) > 0 {
			t.Fatalf("%s is read otherwise again: %+v", raw, diff)
		}
	})
}

const tableMark = "<!-- settings: go test ./internal/node -run Documented -update -->\n"

// The table of docs/configuration.md is made of the fields and their comments.
func TestEverySettingIsDocumented(t *testing.T) {
	path := filepath.Join("..", "..", "docs", "configuration.md")
	raw, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	above, written, found := strings.Cut(string(raw), tableMark)
	if !found {
		t.Fatalf("%s has no line %q", path, tableMark)
	}
	made := settingsTable(t)
	if *update {
		if err := os.WriteFile(path, []byte(above+tableMark+made), 0o644); err != nil {
			t.Fatal(err)
		}
		return
	}
	if diff := cmp.Diff(made, written); diff != "" {
		t.Errorf("%s is not what config.go says; write it with -update (-config.go +written):\n%s", path, diff)
	}
}

// notByChart are settings that the chart gives itself, that must not be the same on all nodes, or whose folders its pods do not have.
var notByChart = []string{
	"node", "cluster", "store", "publish", "store_ca", "store_cert", "store_key", "store_token", "pod_cidrs", "cgroup", "run_dir", "state_dir",
	"cni_bin_dir", "cni_conf_dir", "ready_addr",
}

// What the chart's schema says of agent.config is made of the fields, too, so Helm and `tendril install` refuse what agents would.
func TestTheChartTakesEverySettingThatIsNotItsOwn(t *testing.T) {
	path := filepath.Join("..", "..", "deploy", "helm", "tendril", "values.schema.json")
	raw, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	var whole map[string]any
	if err := json.Unmarshal(raw, &whole); err != nil {
		t.Fatal(err)
	}
	agent := whole["properties"].(map[string]any)["agent"].(map[string]any)["properties"].(map[string]any)
	made := settingsSchema(t)
	if *update {
		agent["config"] = made
		text, err := json.MarshalIndent(whole, "", "  ")
		if err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, append(text, '\n'), 0o644); err != nil {
			t.Fatal(err)
		}
		return
	}
	if diff := cmp.Diff(made, agent["config"]); diff != "" {
		t.Errorf("agent.config in %s is not what config.go says; write it with -update (-config.go +written):\n%s", path, diff)
	}
}

// settingsSchema is the JSON schema of the settings that people give in the chart's values.
func settingsSchema(t *testing.T) map[string]any {
	t.Helper()
	properties := map[string]any{}
	for _, s := range settings() {
		if !slices.Contains(notByChart, s.key) {
			properties[s.key] = valueSchema(t, s, s.of(&Config{}).Type())
		}
	}
	return map[string]any{
		"type": "object", "description": "an object of the agent's settings, as in {mode: vxlan}", "additionalProperties": false, "properties": properties,
	}
}

func valueSchema(t *testing.T, s setting, of reflect.Type) map[string]any {
	t.Helper()
	made := map[string]any{"description": form(of)}
	choices := map[reflect.Type][]string{
		reflect.TypeFor[Mode]():   {string(ModeNative), string(ModeVXLAN)},
		reflect.TypeFor[LBMode](): {string(LBModeSNAT), string(LBModeDSR)},
		reflect.TypeFor[XDP]():    {string(XDPOff), string(XDPAuto), string(XDPNative), string(XDPGeneric)},
	}[of]
	switch of.Kind() {
	case reflect.Bool:
		made["type"] = "boolean"
	case reflect.String:
		made["type"] = "string"
		if choices != nil {
			made["enum"], made["description"] = anyOf(choices), "one of "+strings.Join(choices, ", ")
		}
	case reflect.Slice:
		made["type"], made["items"] = "array", map[string]any{"type": "string", "description": "a prefix, as in \"10.0.0.0/8\"", "pattern": "^[0-9a-fA-F.:]+/[0-9]+$"}
	case reflect.Map:
		made["type"], made["additionalProperties"] = "object", valueSchema(t, s, of.Elem())
	case reflect.Int:
		made["type"] = "integer"
	case reflect.Uint16, reflect.Uint32:
		made["type"], made["minimum"], made["maximum"] = "integer", 0.0, float64(uint64(1)<<of.Bits()-1)
	default:
		t.Fatalf("%s: no schema for a %s", s.key, of)
	}
	return made
}

// anyOf is a list as JSON decodes it.
func anyOf(texts []string) (list []any) {
	for _, text := range texts {
		list = append(list, text)
	}
	return list
}

// settingsTable is the table, a row a setting.
func settingsTable(t *testing.T) string {
	t.Helper()
	file, err := parser.ParseFile(token.NewFileSet(), "config.go", nil, parser.ParseComments)
	if err != nil {
		t.Fatal(err)
	}
	comments := map[string]string{}
	ast.Inspect(file, func(node ast.Node) bool {
		if field, ok := node.(*ast.Field); ok && len(field.Names) == 1 {
			comments[field.Names[0].Name] = strings.Join(strings.Fields(field.Doc.Text()), " ")
		}
		return true
	})
	var b strings.Builder
	b.WriteString("\n| key | a change counts | meaning |\n|---|---|---|\n")
	last := ""
	for _, s := range settings() {
		name := reflect.TypeFor[Config]().Field(s.field).Name
		text := comments[name]
		switch {
		case text == "" && last != "":
			text = "see above"
		case text == "":
			t.Errorf("field %s has no comment", name)
		default:
			text = inFilesWords(strings.TrimPrefix(text, name+" "))
		}
		last = text
		fmt.Fprintf(&b, "| `%s` | %s | %s |\n", s.key, s.effect, strings.ReplaceAll(text, "|", "\\|"))
	}
	return b.String()
}

// inFilesWords has other fields called as the file calls them. A name of one word is a word.
func inFilesWords(text string) string {
	for _, s := range settings() {
		name := reflect.TypeFor[Config]().Field(s.field).Name
		if strings.Contains(s.key, "_") {
			text = strings.ReplaceAll(text, name, "`"+s.key+"`")
		}
	}
	return text
}
