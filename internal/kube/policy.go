package kube

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"

	networkingv1 "k8s.io/api/networking/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/validation/field"
	"sigs.k8s.io/network-policy-api/apis/v1alpha1"
	"sigs.k8s.io/network-policy-api/apis/v1alpha2"

	"tendril.io/tendril/api/cilium"
	"tendril.io/tendril/internal/policy"
)

// ParsePolicy translates a policy object, as the store holds it, to the ordered model. It is as strict as Decode: an
// object with a field that is unknown or cannot be honoured is refused whole, with a Mistakes, since leaving out a part
// could allow what the author denied.
func ParsePolicy(kind string, objectJSON []byte, source string) (policy.Policy, error) {
	numbers := json.NewDecoder(bytes.NewReader(objectJSON))
	numbers.UseNumber()
	var value any
	if err := numbers.Decode(&value); err != nil {
		err = fmt.Errorf("not valid JSON: %w; apply the manifest again", err)
		return policy.Policy{}, Mistakes{{File: source, Object: kind, Err: err}}
	}
	object, mistakes := decodeObject(value, source, 0)
	if len(mistakes) > 0 {
		return policy.Policy{}, mistakes
	}
	if object.Kind != kind {
		err := field.Invalid(field.NewPath("kind"), object.Kind, "stored as "+kind+"; delete the object and apply the manifest again")
		return policy.Policy{}, object.place(field.ErrorList{err})
	}
	return object.Policy()
}

// IsPolicy tells whether the object is of a kind that Policy translates.
func (o *Object) IsPolicy() bool {
	switch o.value.(type) {
	case *networkingv1.NetworkPolicy, *cilium.NetworkPolicy,
		*v1alpha2.ClusterNetworkPolicy, *v1alpha1.AdminNetworkPolicy, *v1alpha1.BaselineAdminNetworkPolicy:
		return true
	}
	return false
}

// Policy translates the object to the ordered model. The error is a Mistakes.
// A policy without specs cannot come out of it without an error: to the engine that would be a policy about nobody.
func (o *Object) Policy() (policy.Policy, error) {
	if !o.IsPolicy() {
		return policy.Policy{}, Mistakes{{File: o.File, Document: o.Document, Object: o.String(), Err: errors.New("not a policy")}}
	}
	p, errs := o.translate()
	if len(errs) > 0 {
		return policy.Policy{}, o.place(errs)
	}
	return p, nil
}

// translate gives as much of the policy as is right, and what is not.
func (o *Object) translate() (policy.Policy, field.ErrorList) {
	p := policy.Policy{
		Key:    policy.Key{Kind: o.Kind, Namespace: o.Namespace, Name: o.Name},
		Source: o.File,
	}
	var errs field.ErrorList
	switch object := o.value.(type) {
	case *networkingv1.NetworkPolicy:
		p.Specs, errs = networkPolicySpecs(object, o.Namespace)
	case *cilium.NetworkPolicy:
		p.Specs, errs = ciliumSpecs(object, o.Namespace)
	case *v1alpha2.ClusterNetworkPolicy:
		p.Specs, errs = clusterNetworkPolicySpecs(object)
	case *v1alpha1.AdminNetworkPolicy:
		p.Specs, errs = adminNetworkPolicySpecs(object)
	case *v1alpha1.BaselineAdminNetworkPolicy:
		p.Specs, errs = baselineAdminNetworkPolicySpecs(object)
	}
	var wrong field.ErrorList
	p.Staged, wrong = staged(o.value.(metav1.Object).GetAnnotations())
	return p, append(errs, wrong...)
}

// stageAnnotation makes a policy of any kind a staged one, which is judged and reported but not in force.
const stageAnnotation = "tendril.io/stage"

// staged reads the annotation. What is neither true nor false is a mistake: either guess could be the wrong one.
func staged(annotations map[string]string) (bool, field.ErrorList) {
	value, ok := annotations[stageAnnotation]
	switch {
	case value == "true":
		return true, nil
	case value == "false" || !ok:
		return false, nil
	}
	at := field.NewPath("metadata", "annotations").Key(stageAnnotation)
	return false, field.ErrorList{field.NotSupported(at, value, []string{"true", "false"})}
}
