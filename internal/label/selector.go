package label

import (
	"crypto/sha256"
	"fmt"
	"slices"
	"strings"
)

// Operator is how a requirement compares. The semantics are those of Kubernetes' label selectors: NotIn also
// matches where the key is absent.
type Operator uint8

// The operators.
const (
	In Operator = iota
	NotIn
	Exists
	DoesNotExist
)

// String is the operator's name in Kubernetes' matchExpressions.
func (o Operator) String() string {
	switch o {
	case In:
		return "In"
	case NotIn:
		return "NotIn"
	case Exists:
		return "Exists"
	case DoesNotExist:
		return "DoesNotExist"
	}
	return fmt.Sprintf("Operator(%d)", uint8(o))
}

// Requirement is one condition of a selector. Values are sorted and distinct.
type Requirement struct {
	Key      Key
	Operator Operator
	Values   []string
}

// Equals is the requirement that a pod label has one value.
func Equals(name, value string) Requirement {
	return Requirement{Key: Key{Name: name}, Operator: In, Values: []string{value}}
}

// NamespaceEquals is the requirement that a label of the namespace has one value.
func NamespaceEquals(name, value string) Requirement {
	return Requirement{Key: Key{Scope: ScopeNamespace, Name: name}, Operator: In, Values: []string{value}}
}

// FactIs is the requirement that a fact is one of the values.
func FactIs(fact string, values ...string) Requirement {
	return Requirement{Key: Key{Scope: ScopeFact, Name: fact}, Operator: In, Values: values}
}

// Selector is an immutable conjunction of requirements in canonical form: sorted, without duplicates. The zero value
// has no requirement and matches everything. Two selectors that are written differently but have the same
// requirements are equal.
type Selector struct {
	requirements []Requirement
	text         string // canonical form; computed once, since selectors are compared more often than made
}

// NewSelector returns the conjunction of the requirements, or an error that names the one that is not valid.
func NewSelector(requirements ...Requirement) (Selector, error) {
	if len(requirements) == 0 {
		return Selector{}, nil
	}
	own := make([]Requirement, 0, len(requirements))
	for _, r := range requirements {
		r.Values = slices.Compact(slices.Sorted(slices.Values(r.Values)))
		if err := r.validate(); err != nil {
			return Selector{}, err
		}
		own = append(own, r)
	}
	slices.SortFunc(own, compareRequirements)
	own = slices.CompactFunc(own, func(a, b Requirement) bool { return compareRequirements(a, b) == 0 })
	return Selector{requirements: own, text: textOf(own)}, nil
}

// MustSelector is NewSelector for requirements known to be valid; it panics otherwise.
func MustSelector(requirements ...Requirement) Selector {
	s, err := NewSelector(requirements...)
	if err != nil {
		panic(err)
	}
	return s
}

// With returns the selector with more requirements.
func (s Selector) With(more ...Requirement) (Selector, error) {
	return NewSelector(slices.Concat(s.requirements, more)...)
}

// Requirements returns the requirements, sorted. The caller must not change them.
func (s Selector) Requirements() []Requirement { return s.requirements }

// Mentions says whether some requirement is about key.
func (s Selector) Mentions(key Key) bool {
	return slices.ContainsFunc(s.requirements, func(r Requirement) bool { return r.Key == key })
}

// Matches says whether all requirements hold. It does not allocate.
func (s Selector) Matches(attributes Attributes) bool {
	for i := range s.requirements {
		if !s.requirements[i].Matches(attributes) {
			return false
		}
	}
	return true
}

// Matches says whether the requirement holds. It does not allocate.
func (r *Requirement) Matches(attributes Attributes) bool {
	value, ok := attributes.Attribute(r.Key)
	switch r.Operator {
	case In:
		return ok && slices.Contains(r.Values, value)
	case NotIn:
		return !ok || !slices.Contains(r.Values, value)
	case Exists:
		return ok
	default:
		return !ok
	}
}

// Equal says whether both selectors have the same requirements.
func (s Selector) Equal(other Selector) bool { return s.text == other.text }

// String is the canonical form, for example "app=web,namespace:team in (a,b),!@reserved". It is injective: two
// selectors print alike only if they are equal. The selector of everything prints as "*".
func (s Selector) String() string {
	if s.text == "" {
		return "*"
	}
	return s.text
}

// Digest is a hash of the canonical form.
func (s Selector) Digest() [16]byte {
	sum := sha256.Sum256([]byte("label.Selector/1 " + s.text))
	return [16]byte(sum[:16])
}

// String prints the requirement as it stands in a selector's canonical form.
func (r Requirement) String() string {
	switch {
	case r.Operator == Exists:
		return r.Key.String()
	case r.Operator == DoesNotExist:
		return "!" + r.Key.String()
	case r.Operator == NotIn:
		return r.Key.String() + " notin (" + strings.Join(r.Values, ",") + ")"
	case len(r.Values) == 1:
		return r.Key.String() + "=" + r.Values[0]
	}
	return r.Key.String() + " in (" + strings.Join(r.Values, ",") + ")"
}

func (r Requirement) validate() error {
	if r.Key.Scope > ScopeNode {
		return fmt.Errorf("selector: key %q has no such scope %d", r.Key.Name, r.Key.Scope)
	}
	if err := ValidateKey(r.Key.Name); err != nil {
		return fmt.Errorf("selector: %w", err)
	}
	wantsValues := r.Operator == In || r.Operator == NotIn
	switch {
	case r.Operator > DoesNotExist:
		return fmt.Errorf("selector: key %s: no such operator %s", r.Key, r.Operator)
	case wantsValues && len(r.Values) == 0:
		return fmt.Errorf("selector: key %s: operator %s needs at least one value", r.Key, r.Operator)
	case !wantsValues && len(r.Values) > 0:
		return fmt.Errorf("selector: key %s: operator %s takes no values", r.Key, r.Operator)
	}
	limit := maxValue
	if r.Key.Scope == ScopeFact {
		limit = maxFact
	}
	for _, value := range r.Values {
		if err := validateValue(r.Key.String(), value, limit); err != nil {
			return fmt.Errorf("selector: %w", err)
		}
	}
	return nil
}

func compareRequirements(a, b Requirement) int {
	if c := a.Key.compare(b.Key); c != 0 {
		return c
	}
	if a.Operator != b.Operator {
		return int(a.Operator) - int(b.Operator)
	}
	return slices.Compare(a.Values, b.Values)
}

func textOf(requirements []Requirement) string {
	parts := make([]string, 0, len(requirements))
	for _, r := range requirements {
		parts = append(parts, r.String())
	}
	return strings.Join(parts, ",")
}
