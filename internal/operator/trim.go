package operator

import (
	"strings"

	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime/schema"
)

// fields are the fields of an object that are kept, as a tree; one without children is kept whole. A list's fields are those
// of its members.
type fields map[string]fields

// fieldsOf makes the tree of paths, names separated by dots.
func fieldsOf(paths string) fields {
	root := fields{}
	for path := range strings.FieldsSeq(paths) {
		at := root
		for name := range strings.SplitSeq(path, ".") {
			if at[name] == nil {
				at[name] = fields{}
			}
			at = at[name]
		}
	}
	return root
}

// keptAlways is what names an object.
const keptAlways = " apiVersion kind metadata.name metadata.namespace metadata.uid metadata.resourceVersion metadata.labels "

// keptFields are the paths that records of a core kind are made of (internal/kube, record.go, pod.go, service.go). Fields of a
// newer API server are not among them, so it does not matter that nobody here knows them.
func keptFields(kind schema.GroupVersionKind) (string, bool) {
	if kind.Group != "" && kind.Group != "discovery.k8s.io" {
		return "", false
	}
	switch kind.Kind {
	case "Namespace":
		return keptAlways, true
	case "Node":
		return keptAlways + "spec.podCIDR spec.podCIDRs " + podPoolField, true
	case "Pod":
		return keptAlways + `spec.nodeName spec.hostNetwork spec.serviceAccountName status.phase
			spec.containers.name spec.containers.ports
			spec.initContainers.name spec.initContainers.ports spec.initContainers.restartPolicy`, true
	case "Service":
		return keptAlways + `metadata.annotations spec.type spec.clusterIP spec.clusterIPs spec.ports spec.selector
			spec.sessionAffinity spec.sessionAffinityConfig spec.externalTrafficPolicy spec.internalTrafficPolicy
			spec.externalIPs spec.loadBalancerIP spec.loadBalancerClass spec.loadBalancerSourceRanges
			spec.healthCheckNodePort spec.publishNotReadyAddresses spec.trafficDistribution spec.ipFamilies
			spec.ipFamilyPolicy status.loadBalancer ` + grantedField, true
	case "EndpointSlice":
		return keptAlways + `metadata.annotations addressType ports
			endpoints.addresses endpoints.conditions endpoints.nodeName endpoints.zone endpoints.targetRef endpoints.hints`, true
	}
	return "", false
}

// trimmer gives the function that an informer applies to each object before it keeps it. Policies and our own kinds are
// kept as they were written: a field that nobody here knows must be noticed, not lost.
func trimmer(kind schema.GroupVersionKind) func(any) (any, error) {
	paths, known := keptFields(kind)
	kept := fieldsOf(paths)
	return func(value any) (any, error) {
		object, ok := value.(*unstructured.Unstructured)
		if !ok {
			return value, nil
		}
		switch kind {
		case serviceKind:
			moveGranted(object.Object)
		case nodeKind:
			movePodPool(object.Object)
		}
		if hasStatus(kind) {
			moveEnforced(object.Object)
		}
		if known {
			object.Object, _ = pick(object.Object, kept).(map[string]any)
		} else {
			unstructured.RemoveNestedField(object.Object, "metadata", "managedFields")
			unstructured.RemoveNestedField(object.Object, "status")
		}
		object.SetGroupVersionKind(kind)
		return object, nil
	}
}

// pick copies the kept fields of a value.
func pick(value any, kept fields) any {
	if len(kept) == 0 {
		return value
	}
	switch value := value.(type) {
	case map[string]any:
		out := make(map[string]any, len(kept))
		for name, inside := range kept {
			if field, ok := value[name]; ok {
				out[name] = pick(field, inside)
			}
		}
		return out
	case []any:
		out := make([]any, len(value))
		for i := range value {
			out[i] = pick(value[i], kept)
		}
		return out
	}
	return value
}
