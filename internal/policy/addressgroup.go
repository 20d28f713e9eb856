package policy

import (
	"cmp"
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"tendril.io/tendril/internal/label"
)

// groupKey names a group of addresses, or by empty fields all that agree in the others.
type groupKey struct {
	kind            GroupKind
	namespace, name string
}

func (g *Group) key() groupKey { return groupKey{g.Kind, g.Namespace, g.Name} }

func (r *GroupRef) key() groupKey { return groupKey{r.Kind, r.Namespace, r.Name} }

func (k groupKey) compare(other groupKey) int {
	return cmp.Or(cmp.Compare(k.kind, other.kind), cmp.Compare(k.namespace, other.namespace), cmp.Compare(k.name, other.name))
}

// groupSelector is a selector of addresses whose borders change while its meaning does not.
type groupSelector struct {
	ref     GroupRef             // canonical
	members map[netip.Prefix]int // borders in the tree of places, with the number of groups that have each
}

// SetGroup stages a group of addresses. One that is not valid changes nothing.
func (e *Engine) SetGroup(g Group) error {
	var prefixes []netip.Prefix
	for _, p := range g.Prefixes {
		if !p.IsValid() || p.Addr().Zone() != "" {
			return fmt.Errorf("%s: prefix %s: want an IPv4 or IPv6 prefix such as 10.0.0.0/8 or fd00::/8", g.ref(), p)
		}
		prefixes = append(prefixes, unmapped(p))
	}
	slices.SortFunc(prefixes, netip.Prefix.Compare)
	g.Prefixes = slices.Compact(prefixes)
	e.staged.addressGroups[g.key()] = &g
	return nil
}

// DeleteGroup stages that a group of addresses is gone. Policies that name it then name nobody by it.
func (e *Engine) DeleteGroup(kind GroupKind, namespace, name string) {
	e.staged.addressGroups[groupKey{kind, namespace, name}] = nil
}

// applyAddressGroups moves the borders that the staged groups move; nothing else is looked at.
func (e *Engine) applyAddressGroups() {
	for _, key := range sortedKeys(e.staged.addressGroups, groupKey.compare) {
		old, next := e.addressGroups[key], e.staged.addressGroups[key]
		if next == nil {
			drop(e.plan, e.addressGroups, key)
		} else {
			put(e.plan, e.addressGroups, key, next)
		}
		for s := range e.selectors.naming(key) {
			e.moveBorders(s, s.group.prefixes(old), s.group.prefixes(next))
		}
	}
}

// moveBorders replaces what one group contributes to a selector.
func (e *Engine) moveBorders(s *selector, old, next []netip.Prefix) {
	for _, p := range next {
		if _, stays := slices.BinarySearchFunc(old, p, netip.Prefix.Compare); !stays {
			e.addBorder(s, p)
		}
	}
	for _, p := range old {
		if _, stays := slices.BinarySearchFunc(next, p, netip.Prefix.Compare); !stays {
			e.removeBorder(s, p)
		}
	}
}

// addBorder says that one more group of a selector has a prefix.
func (e *Engine) addBorder(s *selector, prefix netip.Prefix) {
	n := s.group.members[prefix]
	put(e.plan, s.group.members, prefix, n+1)
	if n == 0 {
		e.include(s, prefix)
	}
}

func (e *Engine) removeBorder(s *selector, prefix netip.Prefix) {
	if n := s.group.members[prefix]; n > 1 {
		put(e.plan, s.group.members, prefix, n-1)
		return
	}
	drop(e.plan, s.group.members, prefix)
	e.exclude(s, prefix)
}

// fillGroup finds the borders of a selector that is new.
func (e *Engine) fillGroup(s *selector) {
	if key := s.group.ref.key(); key.name != "" && (key.namespace != "" || key.kind == GroupCIDR) {
		e.moveBorders(s, nil, s.group.prefixes(e.addressGroups[key]))
		return
	}
	for _, g := range e.addressGroups {
		e.moveBorders(s, nil, s.group.prefixes(g))
	}
}

// prefixes is what a group contributes to the selector: all it has, or nothing.
func (s *groupSelector) prefixes(g *Group) []netip.Prefix {
	if g == nil || !s.ref.holds(g) {
		return nil
	}
	return g.Prefixes
}

func (r *GroupRef) holds(g *Group) bool {
	switch {
	case r.Kind != g.Kind || r.Namespace != "" && r.Namespace != g.Namespace:
		return false
	case r.Name != "":
		return r.Name == g.Name
	}
	return r.Labels != nil && r.Labels.Matches(groupLabels{g.Labels})
}

// groupLabels answers selectors over groups.
type groupLabels struct{ set label.Set }

// Attribute answers label selectors.
func (l groupLabels) Attribute(key label.Key) (string, bool) {
	if key.Scope != label.ScopePod {
		return "", false
	}
	return l.set.Get(key.Name)
}

// naming yields the selectors that may hold a group.
func (r *registry) naming(key groupKey) func(func(*selector) bool) {
	return func(yield func(*selector) bool) {
		wider := []groupKey{key, {key.kind, "", key.name}, {key.kind, key.namespace, ""}, {key.kind, "", ""}}
		slices.SortFunc(wider, groupKey.compare)
		for _, k := range slices.Compact(wider) {
			for s := range r.byGroup[k] {
				if !yield(s) {
					return
				}
			}
		}
	}
}

// canonical returns the reference with its exceptions masked, sorted and without repetition.
func (r GroupRef) canonical() GroupRef {
	r.Except = CIDR{Except: r.Except}.canonical().Except
	if len(r.Except) == 0 {
		r.Except = nil
	}
	return r
}

func (g *Group) ref() GroupRef { return GroupRef{Kind: g.Kind, Namespace: g.Namespace, Name: g.Name} }

// String prints the reference, for example "cidr group office except 10.1.0.0/16" or "services tier=db of any namespace".
func (r GroupRef) String() string {
	what := map[GroupKind]string{GroupCIDR: "cidr group"}[r.Kind]
	if what == "" {
		what = string(r.Kind)
	}
	var b strings.Builder
	switch {
	case r.Name != "" && r.Kind == GroupCIDR:
		b.WriteString(what + " " + r.Name)
	case r.Name != "":
		b.WriteString(what + " " + cmp.Or(r.Namespace, "*") + "/" + r.Name)
	default:
		b.WriteString(what + "s " + r.Labels.String())
		if r.Kind != GroupCIDR && r.Namespace == "" {
			b.WriteString(" of any namespace")
		} else if r.Namespace != "" {
			b.WriteString(" of namespace " + r.Namespace)
		}
	}
	writeExceptions(&b, r.Except, r.OutsideOnly)
	return b.String()
}

func (r *GroupRef) validate() error {
	switch {
	case r.Kind != GroupService && r.Kind != GroupCIDR:
		return fmt.Errorf("no such kind of group %q: use %s or %s", r.Kind, GroupService, GroupCIDR)
	case (r.Name != "") == (r.Labels != nil):
		return fmt.Errorf("%s: give the group's name or a selector of labels, one of them", r.Kind)
	case r.Kind == GroupCIDR && r.Namespace != "":
		return fmt.Errorf("cidr group %s: has no namespace, remove %q", r.Name, r.Namespace)
	case strings.ContainsAny(r.Namespace+r.Name, " /*"):
		return fmt.Errorf("%s %q of namespace %q: no object can have such a name", r.Kind, r.Name, r.Namespace)
	}
	for _, x := range r.Except {
		if err := validateRange(x); err != nil {
			return err
		}
	}
	return nil
}
