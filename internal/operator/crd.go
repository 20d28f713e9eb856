package operator

import (
	"context"
	"errors"
	"fmt"
	"strings"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"sigs.k8s.io/yaml"

	"tendril.io/tendril/api/cilium"
	"tendril.io/tendril/api/tendril"
	"tendril.io/tendril/internal/kube"
)

var definitions = schema.GroupVersionResource{Group: "apiextensions.k8s.io", Version: "v1", Resource: "customresourcedefinitions"}

// define has the API server know our own kinds, and the policy kinds that we read if nobody else defined them: theirs is the
// word on their own. It does what it can and says what it could not.
func define(ctx context.Context, config Config) error {
	client := config.Objects.Resource(definitions)
	own, err := ownDefinitions()
	failures := []error{err}
	for _, definition := range own {
		_, err := client.Apply(ctx, definition.GetName(), definition, metav1.ApplyOptions{FieldManager: fieldManager, Force: true})
		failures = append(failures, wrap(definition, err))
	}
	for _, definition := range readDefinitions() {
		_, err := client.Create(ctx, definition, metav1.CreateOptions{FieldManager: fieldManager})
		if !apierrors.IsAlreadyExists(err) {
			failures = append(failures, wrap(definition, err))
		}
	}
	return errors.Join(failures...)
}

func wrap(definition *unstructured.Unstructured, err error) error {
	if err == nil {
		return nil
	}
	return fmt.Errorf("define %s: %w", definition.GetName(), err)
}

// ownDefinitions are those of tendril.io.
func ownDefinitions() (list []*unstructured.Unstructured, err error) {
	for text := range strings.SplitSeq(tendril.CRDs, "\n---\n") {
		definition := &unstructured.Unstructured{}
		if err := yaml.Unmarshal([]byte(text), &definition.Object); err != nil {
			return nil, fmt.Errorf("our own definitions: %w", err)
		}
		list = append(list, definition)
	}
	return list, nil
}

// readDefinitions are those of the other custom kinds that are read, each in the newest version that we know.
func readDefinitions() (list []*unstructured.Unstructured) {
	taken := map[string]bool{}
	for _, kind := range kube.Kinds() {
		builtIn := !strings.Contains(kind.Group, ".") || kind.Group == "networking.k8s.io" || kind.Group == "discovery.k8s.io"
		if builtIn || kind.GroupVersion().String() == tendril.APIVersion || taken[kind.Kind] {
			continue
		}
		taken[kind.Kind] = true
		list = append(list, definitionOf(kind))
	}
	return list
}

// definitionOf is the definition of a kind whose owner is not here. It has no schema below spec on purpose: the API server takes
// fields out that a schema does not have, and a policy without one of its conditions is another policy. So the operator and
// agents see what the author wrote, and refuse what they do not know.
func definitionOf(kind schema.GroupVersionKind) *unstructured.Unstructured {
	singular := strings.ToLower(kind.Kind)
	plural := singular + "s"
	if stem, ends := strings.CutSuffix(singular, "y"); ends {
		plural = stem + "ies"
	}
	scope := "Cluster"
	if kind.Kind == cilium.KindNetworkPolicy {
		scope = "Namespaced"
	}
	open := map[string]any{"type": "object", "x-kubernetes-preserve-unknown-fields": true}
	text := map[string]any{"type": "string"}
	return &unstructured.Unstructured{Object: map[string]any{
		"apiVersion": definitions.GroupVersion().String(), "kind": "CustomResourceDefinition",
		"metadata": map[string]any{
			"name": plural + "." + kind.Group,
			// The API server asks it of definitions of groups that belong to Kubernetes.
			"annotations": map[string]any{"api-approved.kubernetes.io": "unapproved, stands in for the definition of the project that owns the kind"},
		},
		"spec": map[string]any{
			"group": kind.Group, "scope": scope,
			"names": map[string]any{"kind": kind.Kind, "listKind": kind.Kind + "List", "plural": plural, "singular": singular},
			"versions": []any{map[string]any{
				"name": kind.Version, "served": true, "storage": true,
				"subresources":             map[string]any{"status": map[string]any{}},
				"additionalPrinterColumns": columnsOf(kind.Kind),
				"schema": map[string]any{"openAPIV3Schema": map[string]any{
					"type": "object",
					"properties": map[string]any{
						"apiVersion": text, "kind": text, "metadata": map[string]any{"type": "object"}, "spec": open, "status": open,
						"specs": map[string]any{"type": "array", "items": open},
					},
				}},
			}},
		},
	}}
}

// columnsOf is what kubectl get prints.
func columnsOf(kind string) []any {
	column := func(name, typ, path string) any {
		return map[string]any{"name": name, "type": typ, "jsonPath": path}
	}
	var columns []any
	switch kind {
	case "ClusterNetworkPolicy":
		columns = append(columns, column("Tier", "string", ".spec.tier"), column("Priority", "integer", ".spec.priority"))
	case "AdminNetworkPolicy":
		columns = append(columns, column("Priority", "integer", ".spec.priority"))
	case cilium.KindCIDRGroup:
		columns = append(columns, column("CIDRs", "string", ".spec.externalCIDRs"))
	}
	return append(columns, column("Age", "date", ".metadata.creationTimestamp"))
}
