package kube

import (
	"bytes"
	"encoding/json"
	"fmt"

	"k8s.io/apimachinery/pkg/runtime/schema"

	"tendril.io/tendril/api/cilium"
	storev1 "tendril.io/tendril/api/store/v1"
	"tendril.io/tendril/api/tendril"
)

// Kinds lists the kinds that are read, those that others refer to first. A kind of several versions stands there once for
// each, the newest first.
func Kinds() []schema.GroupVersionKind {
	all := kinds()
	list := make([]schema.GroupVersionKind, len(all))
	for i, k := range all {
		list[i] = schema.FromAPIVersionAndKind(k.apiVersion, k.name)
	}
	return list
}

// KeysOf lists what the keys of records of a kind begin with.
func KeysOf(kind string) []string {
	switch kind {
	case "Namespace":
		return []string{"namespaces/"}
	case "Node":
		return []string{"nodelabels/"}
	case "Pod":
		return []string{"pods/", "labels/"}
	case tendril.KindLoadBalancerPool:
		return []string{"pools/"}
	case tendril.KindEgressGateway:
		return []string{"egressgateways/"}
	case "Service":
		return []string{"services/"}
	case "EndpointSlice":
		return []string{"endpoints/"}
	case cilium.KindCIDRGroup:
		return []string{"cidrgroups/"}
	}
	return []string{"policies/" + kind + "/"}
}

// DecodeServed reads one object in JSON, as an API server gives it. The error is a Mistakes.
func DecodeServed(text []byte) (*Object, error) {
	decoder := json.NewDecoder(bytes.NewReader(text))
	decoder.UseNumber()
	var value any
	if err := decoder.Decode(&value); err != nil {
		return nil, fmt.Errorf("object of the API server: %w", err)
	}
	object, mistakes := decodeObject(value, "", 0)
	return object, mistakes.orNil()
}

// RefusedPolicy is the record of a policy that Records or DecodeServed refused but that stands in the API server all the
// same; false if the kind is no policy. Agents must hear of it: they refuse it as well, and then keep the version
// before it in force or isolate its namespace. Had nobody told them, what it selects would be open.
func RefusedPolicy(kind, namespace, name string, fields map[string]any) (Record, bool) {
	if !IsPolicy(kind) {
		return Record{}, false
	}
	text, err := canonical(fields, namespace)
	if err != nil { // a map from JSON becomes JSON again
		return Record{}, false
	}
	object := &Object{Kind: kind, Namespace: namespace, Name: name, JSON: text}
	if namespace == "" {
		namespace = "-"
	}
	return Record{Key: "policies/" + kind + "/" + namespace + "/" + name, Value: &storev1.Policy{Object: text}, Object: object}, true
}

// IsPolicy tells the kinds whose objects are judged by agents.
func IsPolicy(kind string) bool {
	switch kind {
	case "NetworkPolicy", cilium.KindNetworkPolicy, cilium.KindClusterwideNetworkPolicy,
		kindClusterNetworkPolicy, kindAdminNetworkPolicy, kindBaselineAdminNetworkPolicy:
		return true
	}
	return false
}
