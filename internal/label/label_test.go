package label_test

import (
	"maps"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"

	"tendril.io/tendril/internal/label"
)

// attributes is the plainest thing that has some.
type attributes map[label.Key]string

func (a attributes) Attribute(key label.Key) (string, bool) {
	value, ok := a[key]
	return value, ok
}

func pod(name string) label.Key       { return label.Key{Name: name} }
func namespace(name string) label.Key { return label.Key{Scope: label.ScopeNamespace, Name: name} }

func TestRequirementHolds(t *testing.T) {
	web := attributes{pod("app"): "web", pod("empty"): "", namespace("app"): "other"}
	require := func(name string, op label.Operator, values ...string) label.Requirement {
		return label.Requirement{Key: pod(name), Operator: op, Values: values}
	}
	for sentence, test := range map[string]struct {
		requirement label.Requirement
		want        bool
	}{
		"In holds where the value is listed":                    {require("app", label.In, "db", "web"), true},
		"In fails where it is not":                              {require("app", label.In, "db"), false},
		"In fails where the key is absent":                      {require("tier", label.In, ""), false},
		"In holds for an empty value that is listed":            {require("empty", label.In, ""), true},
		"NotIn fails where the value is listed":                 {require("app", label.NotIn, "web"), false},
		"NotIn holds where it is not":                           {require("app", label.NotIn, "db"), true},
		"NotIn holds where the key is absent":                   {require("tier", label.NotIn, "db"), true},
		"Exists holds where the key is there":                   {require("empty", label.Exists), true},
		"Exists fails where it is not":                          {require("tier", label.Exists), false},
		"DoesNotExist fails where the key is there":             {require("app", label.DoesNotExist), false},
		"DoesNotExist holds where it is not":                    {require("tier", label.DoesNotExist), true},
		"a namespace's label is not the pod's of the same name": {label.NamespaceEquals("app", "web"), false},
	} {
		t.Run(sentence, func(t *testing.T) {
			if got := label.MustSelector(test.requirement).Matches(web); got != test.want {
				t.Errorf("%s on %v: got %v, want %v", test.requirement, web, got, test.want)
			}
		})
	}
}

func TestSelectorIsAConjunctionAndTheEmptyOneMatchesEverything(t *testing.T) {
	web := attributes{pod("app"): "web", namespace("team"): "a"}
	both := label.MustSelector(label.Equals("app", "web"), label.NamespaceEquals("team", "a"))
	one := label.MustSelector(label.Equals("app", "web"), label.NamespaceEquals("team", "b"))
	if !both.Matches(web) || one.Matches(web) || !(label.Selector{}).Matches(web) {
		t.Errorf("got %v, %v, %v, want true, false, true", both.Matches(web), one.Matches(web), label.Selector{}.Matches(web))
	}
}

func TestSelectorHasOneCanonicalForm(t *testing.T) {
	a := label.MustSelector(
		label.FactIs(label.FactNamespace, "shop"), label.Requirement{Key: pod("app"), Operator: label.In, Values: []string{"web", "db", "web"}},
		label.Requirement{Key: namespace("team"), Operator: label.DoesNotExist}, label.Equals("tier", ""))
	b := label.MustSelector(
		label.Equals("tier", ""), label.Requirement{Key: namespace("team"), Operator: label.DoesNotExist},
		label.Requirement{Key: pod("app"), Operator: label.In, Values: []string{"db", "web"}}, label.FactIs(label.FactNamespace, "shop"),
		label.Equals("tier", ""))
	if got, want := a.String(), "app in (db,web),tier=,!namespace:team,@namespace=shop"; got != want {
		t.Errorf("got %q, want %q", got, want)
	}
	if !a.Equal(b) || a.Digest() != b.Digest() || !cmp.Equal(a, b) {
		t.Errorf("%s and %s should be equal", a, b)
	}
	if got := (label.Selector{}).String(); got != "*" {
		t.Errorf("the empty selector prints as %q, want *", got)
	}
	if !a.Mentions(namespace("team")) || a.Mentions(pod("team")) {
		t.Errorf("%s mentions the namespace's team and not the pod's", a)
	}
	if got, err := (label.Selector{}).With(label.Equals("app", "web")); err != nil || got.String() != "app=web" {
		t.Errorf("With: got %s, %v, want app=web", got, err)
	}
}

func TestNewSelectorKeepsNothingOfItsCallers(t *testing.T) {
	values := []string{"b", "a"}
	s := label.MustSelector(label.Requirement{Key: pod("app"), Operator: label.In, Values: values})
	values[0], values[1] = "x", "y"
	if got, want := s.Requirements()[0].Values, []string{"a", "b"}; !slices.Equal(got, want) {
		t.Errorf("got %v, want %v", got, want)
	}
}

func drawSelector(t *rapid.T) label.Selector {
	return label.MustSelector(rapid.SliceOfN(rapid.Custom(func(t *rapid.T) label.Requirement {
		r := label.Requirement{
			Key:      label.Key{Scope: rapid.SampledFrom([]label.Scope{0, 1, 2}).Draw(t, "scope"), Name: rapid.SampledFrom([]string{"a", "b", "in"}).Draw(t, "name")},
			Operator: rapid.SampledFrom([]label.Operator{label.In, label.NotIn, label.Exists, label.DoesNotExist}).Draw(t, "operator"),
		}
		if r.Operator == label.In || r.Operator == label.NotIn {
			r.Values = rapid.SliceOfN(rapid.SampledFrom([]string{"", "a", "b"}), 1, 3).Draw(t, "values")
		}
		return r
	}), 0, 3).Draw(t, "requirements")...)
}

// Two selectors print alike only if they have the same requirements.
func TestCanonicalFormIsInjective(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		a, b := drawSelector(t), drawSelector(t)
		same := cmp.Equal(a.Requirements(), b.Requirements())
		if (a.String() == b.String()) != same || a.Equal(b) != same || (a.Digest() == b.Digest()) != same {
			t.Fatalf("%q and %q: same requirements %v, equal %v", a, b, same, a.Equal(b))
		}
	})
}

func TestBadRequirementIsRefusedByName(t *testing.T) {
	for want, r := range map[string]label.Requirement{
		`selector: key app: operator In needs at least one value`:   {Key: pod("app")},
		`selector: key app: operator Exists takes no values`:        {Key: pod("app"), Operator: label.Exists, Values: []string{"a"}},
		`selector: key app: no such operator Operator(9)`:           {Key: pod("app"), Operator: 9},
		`selector: key "app" has no such scope 7`:                   {Key: label.Key{Scope: 7, Name: "app"}, Operator: label.Exists},
		`selector: label key "": the name is empty`:                 {Key: pod(""), Operator: label.Exists},
		`selector: label namespace:app: the value "a,b" may hold l`: {Key: namespace("app"), Values: []string{"a,b"}},
	} {
		if _, err := label.NewSelector(r); err == nil || !strings.HasPrefix(err.Error(), want) {
			t.Errorf("%+v: got error %v, want %s", r, err, want)
		}
	}
}

func TestValidateFollowsKubernetes(t *testing.T) {
	long := strings.Repeat("a", 63)
	for _, ok := range [][2]string{
		{"app", "web"}, {"app", ""}, {"App_2.x-y", "V-1.0_b"}, {"example.com/app", "x"}, {long, long},
		{strings.Repeat("a", 63) + ".b/" + long, "x"}, {"k8s-app", "1"},
	} {
		if err := label.Validate(ok[0], ok[1]); err != nil {
			t.Errorf("%q=%q: got error %v, want none", ok[0], ok[1], err)
		}
	}
	for _, bad := range []struct{ key, value, want string }{
		{"", "x", "the name is empty"},
		{"example.com/", "x", "the name is empty"},
		{"/app", "x", "the prefix before '/' is empty"},
		{"a/b/c", "x", "must begin and end"},
		{"Example.com/app", "x", "not a DNS subdomain"},
		{"-.com/app", "x", "not a DNS subdomain"},
		{strings.Repeat("a.", 127) + "a/app", "x", "the prefix has 255 bytes"},
		{long + "a", "x", "the name has 64 bytes"},
		{"-app", "x", "must begin and end"},
		{"app", long + "a", "the value has 64 bytes"},
		{"app", "web ", "may hold letters"},
		{"app", "-", "may hold letters"},
		{"app", "wéb", "may hold letters"},
	} {
		if err := label.Validate(bad.key, bad.value); err == nil || !strings.Contains(err.Error(), bad.want) {
			t.Errorf("%q=%q: got error %v, want %q", bad.key, bad.value, err, bad.want)
		}
	}
}

func TestSetIsSortedAndEqualByContent(t *testing.T) {
	m := map[string]string{"b": "2", "a": "1", "c": ""}
	s, err := label.NewSet(m)
	if err != nil {
		t.Fatal(err)
	}
	if got, want := s.String(), "a=1,b=2,c="; got != want {
		t.Errorf("got %q, want %q", got, want)
	}
	parsed, err := label.ParseSet("c=,b=2,a=1")
	if err != nil || !parsed.Equal(s) {
		t.Errorf("ParseSet: got %v, %v, want %v", parsed, err, s)
	}
	if value, ok := s.Get("c"); value != "" || !ok {
		t.Errorf("Get(c): got %q, %v, want an empty value that is there", value, ok)
	}
	if _, ok := s.Get("d"); ok {
		t.Errorf("Get(d): got a value, want none")
	}
	if got := s.Map(); !maps.Equal(got, m) {
		t.Errorf("Map: got %v, want %v", got, m)
	}
	if empty, err := label.ParseSet(""); err != nil || empty.Len() != 0 {
		t.Errorf("ParseSet of nothing: got %v, %v, want the empty set", empty, err)
	}
	for sub := range s.All() { // stopping early must be safe
		if sub == "a" {
			break
		}
	}
}

func TestBadSetIsRefusedByName(t *testing.T) {
	for text, want := range map[string]string{
		"app":        `label "app": want key=value`,
		"a=1,,b=2":   `label "": want key=value`,
		"a=1,a=2":    `label "a": given twice`,
		"a=b c":      `label a: the value "b c"`,
		"=x":         `label key "": the name is empty`,
		"app=web,b ": `label "b ": want key=value`,
	} {
		if _, err := label.ParseSet(text); err == nil || !strings.HasPrefix(err.Error(), want) {
			t.Errorf("ParseSet(%q): got error %v, want %s", text, err, want)
		}
	}
}

func TestMatchingDoesNotAllocate(t *testing.T) {
	set := label.SetOf(map[string]string{"app": "web", "tier": "front"})
	w := &setAttributes{set}
	s := label.MustSelector(label.Equals("app", "web"), label.Requirement{Key: pod("tier"), Operator: label.NotIn, Values: []string{"back", "db"}})
	if n := testing.AllocsPerRun(100, func() {
		if !s.Matches(w) {
			t.Fatal("does not match")
		}
	}); n != 0 {
		t.Errorf("got %v allocations, want 0", n)
	}
}

type setAttributes struct{ set label.Set }

func (a *setAttributes) Attribute(key label.Key) (string, bool) { return a.set.Get(key.Name) }

// What ParseSet takes, it prints so that it takes it again as the same set.
func FuzzParseSet(f *testing.F) {
	for _, seed := range []string{"", "a=b", "example.com/app=web,tier=", "a=b,a=c", "=", ","} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, text string) {
		s, err := label.ParseSet(text)
		if err != nil {
			return
		}
		again, err := label.ParseSet(s.String())
		if err != nil || !again.Equal(s) {
			t.Errorf("ParseSet(%q) = %v, which parses as %v, %v", text, s, again, err)
		}
		for key, value := range s.All() {
			if err := label.Validate(key, value); err != nil {
				t.Errorf("ParseSet(%q) took %v", text, err)
			}
		}
	})
}
