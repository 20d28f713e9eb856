package kube

import (
	"fmt"
	"math"
	"net/netip"
	"strings"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/validation"
	"k8s.io/apimachinery/pkg/util/validation/field"

	"tendril.io/tendril/internal/label"
	"tendril.io/tendril/internal/policy"
)

// keyFunc makes the requirement that a key of a manifest means, or says why it cannot be used.
// The operators and the shape of a selector are the same in every dialect; what a key speaks of is not, and that is all
// that a keyFunc decides.
type keyFunc func(key string, op label.Operator, values []string) (req label.Requirement, wrong string)

// podKey reads a key as a label of the pod itself.
func podKey(key string, op label.Operator, values []string) (label.Requirement, string) {
	return label.Requirement{Key: label.Key{Scope: label.ScopePod, Name: key}, Operator: op, Values: values}, ""
}

// namespaceKey reads a key as a label of the pod's namespace.
func namespaceKey(key string, op label.Operator, values []string) (label.Requirement, string) {
	return label.Requirement{Key: label.Key{Scope: label.ScopeNamespace, Name: key}, Operator: op, Values: values}, ""
}

// requirements translates a label selector; the conditions are joined by "and".
// matchLabels {a: b} is matchExpressions {key: a, operator: In, values: [b]} (metav1.LabelSelector). Every mistake is
// reported; conditions that are wrong are left out of the result, which must then not be used.
func requirements(s *metav1.LabelSelector, keyOf keyFunc, at *field.Path) ([]label.Requirement, field.ErrorList) {
	var reqs []label.Requirement
	var errs field.ErrorList
	for key, value := range sorted(s.MatchLabels) {
		here := at.Child("matchLabels").Key(key)
		req, wrong := requirement(keyOf, key, label.In, []string{value}, here, here)
		reqs, errs = append(reqs, req), append(errs, wrong...)
	}
	for i, e := range s.MatchExpressions {
		here := at.Child("matchExpressions").Index(i)
		op, wrong := operator(e, here)
		if len(wrong) > 0 {
			errs = append(errs, wrong...)
			continue
		}
		req, wrong := requirement(keyOf, e.Key, op, e.Values, here.Child("key"), here.Child("values"))
		reqs, errs = append(reqs, req), append(errs, wrong...)
	}
	return reqs, errs
}

// requirement makes one condition; keyAt and valuesAt are where its key and values stand.
// Keys and values follow the syntax of labels. A value that no label can have would never match, in a deny rule as well.
func requirement(keyOf keyFunc, key string, op label.Operator, values []string, keyAt, valuesAt *field.Path) (label.Requirement, field.ErrorList) {
	req, wrong := keyOf(key, op, values)
	if wrong != "" {
		return req, field.ErrorList{field.Invalid(keyAt, key, wrong)}
	}
	if err := label.ValidateKey(req.Key.Name); err != nil {
		return req, field.ErrorList{field.Invalid(keyAt, key, err.Error())}
	}
	if _, err := label.NewSelector(req); err != nil {
		return req, field.ErrorList{field.Invalid(valuesAt, strings.Join(values, ","), strings.TrimPrefix(err.Error(), "selector: "))}
	}
	return req, nil
}

// operator finds the operator and checks how many values it compares with. In or NotIn without values would match
// nobody or everybody, so it is a mistake, as it is to the API server.
func operator(e metav1.LabelSelectorRequirement, at *field.Path) (label.Operator, field.ErrorList) {
	for _, op := range []label.Operator{label.In, label.NotIn, label.Exists, label.DoesNotExist} {
		if string(e.Operator) != op.String() {
			continue
		}
		compares := op == label.In || op == label.NotIn
		switch {
		case compares && len(e.Values) == 0:
			return op, field.ErrorList{field.Required(at.Child("values"), op.String()+" compares with at least one value")}
		case !compares && len(e.Values) > 0:
			return op, field.ErrorList{field.Forbidden(at.Child("values"), op.String()+" compares with no value; remove them")}
		}
		return op, nil
	}
	return 0, field.ErrorList{field.NotSupported(at.Child("operator"), e.Operator, []string{"In", "NotIn", "Exists", "DoesNotExist"})}
}

// selectorOf joins requirements; those that were found wrong have been reported and are left out.
// It returns the errors that it was given, or its own, so that callers can end with it.
func selectorOf(reqs []label.Requirement, errs field.ErrorList) (label.Selector, field.ErrorList) {
	if len(errs) > 0 {
		return label.Selector{}, errs
	}
	selector, err := label.NewSelector(reqs...)
	if err != nil {
		return selector, field.ErrorList{field.InternalError(nil, err)}
	}
	return selector, nil
}

// inAnyNamespace requires that there is a namespace, so that a selector of pods never matches nodes or the outside,
// however it is put together.
// Operators such as NotIn and DoesNotExist are true of whatever has no labels: of nodes, of the outside. Only pods have
// the fact "namespace", and conditions are joined by "and", so this one keeps all of those out.
func inAnyNamespace() label.Requirement {
	return label.Requirement{Key: label.Key{Scope: label.ScopeFact, Name: label.FactNamespace}, Operator: label.Exists}
}

// nodes translates a selector of nodes by their labels: this one's network namespace and those of the others.
func nodes(s *metav1.LabelSelector, keyOf keyFunc, at *field.Path) (policy.Peer, field.ErrorList) {
	reqs, errs := requirements(s, keyOf, at)
	either := label.FactIs(label.FactReserved, string(policy.EntityHost), string(policy.EntityRemoteNode))
	selector, errs := selectorOf(append(reqs, either), errs)
	return policy.Peer{Selector: &selector}, errs
}

// prefix reads an address range. Bits behind the length are ignored, as Kubernetes does.
// An IPv4 range in IPv6 form is refused: the datapath keeps IPv4 in that form, and a length of 104 would be counted
// from another end than its author's.
func prefix(text string, at *field.Path) (netip.Prefix, field.ErrorList) {
	p, err := netip.ParsePrefix(text)
	if err != nil {
		return p, field.ErrorList{field.Invalid(at, text, "not an address range; write one like 10.1.0.0/16 or fd00:1::/32")}
	}
	if p.Addr().Is4In6() {
		return p, field.ErrorList{field.Invalid(at, text, "an IPv4 range written as IPv6; write it like 10.1.0.0/16")}
	}
	return p.Masked(), nil
}

// rangeOf reads a range and its exceptions, which must lie inside it.
// An exception outside its range would do nothing, and one as large as the range would leave nothing: both are typing
// mistakes. Those inside each other are fine, as are those that touch. outsideOnly tells the dialects apart.
func rangeOf(cidr string, except []string, outsideOnly bool, at *field.Path) (*policy.CIDR, field.ErrorList) {
	whole, errs := prefix(cidr, at.Child("cidr"))
	c := &policy.CIDR{Prefix: whole, OutsideOnly: outsideOnly}
	for i, text := range except {
		here := at.Child("except").Index(i)
		part, wrong := prefix(text, here)
		errs = append(errs, wrong...)
		if len(wrong) > 0 || !whole.IsValid() {
			continue
		}
		if part.Bits() <= whole.Bits() || !whole.Contains(part.Addr()) {
			errs = append(errs, field.Invalid(here, text, fmt.Sprintf("not a part of %s; an exception is smaller than its range and inside it", cidr)))
			continue
		}
		c.Except = append(c.Except, part)
	}
	return c, errs
}

// portRange makes a range of ports; last 0 means first alone.
// Port 0 is reserved by IANA and never on the wire in earnest; where a dialect means any port by it, the caller asks
// anyPort instead.
func portRange(protocol uint8, first, last int32, at *field.Path) (policy.Port, field.ErrorList) {
	if first < 1 || first > math.MaxUint16 {
		return policy.Port{}, field.ErrorList{field.Invalid(at.Child("port"), first, "a port is a number from 1 to 65535 or a name")}
	}
	if last == 0 {
		last = first
	}
	if last < first || last > math.MaxUint16 {
		return policy.Port{}, field.ErrorList{field.Invalid(at.Child("endPort"), last, fmt.Sprintf("the last port of a range lies between port (%d) and 65535", first))}
	}
	return policy.Port{Protocol: protocol, First: uint16(first), Last: uint16(last)}, nil
}

// anyPort is every port of a protocol.
func anyPort(protocol uint8) policy.Port {
	return policy.Port{Protocol: protocol, First: 0, Last: math.MaxUint16}
}

// namedPort is a port that the destination's pod gives a name.
// The syntax is that of container port names (RFC 6335 service names): lower case, at most 15 characters, a letter in it.
func namedPort(protocol uint8, name string, at *field.Path) (policy.Port, field.ErrorList) {
	var errs field.ErrorList
	for _, text := range validation.IsValidPortName(name) {
		errs = append(errs, field.Invalid(at, name, text))
	}
	return policy.Port{Protocol: protocol, Name: name}, errs
}
