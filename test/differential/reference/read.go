package reference

import (
	"fmt"
	"strings"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	networkingv1 "k8s.io/api/networking/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/yaml"

	"tendril.io/tendril/api/cilium"
)

// Read adds the objects of a manifest.
func (w *World) Read(manifest string) error {
	for document := range strings.SplitSeq(manifest, "\n---") {
		var head metav1.TypeMeta
		if err := yaml.Unmarshal([]byte(document), &head); err != nil {
			return err
		}
		if err := w.read(head.Kind, []byte(document)); err != nil {
			return fmt.Errorf("%s: %w", head.Kind, err)
		}
	}
	return nil
}

func (w *World) read(kind string, document []byte) error {
	switch kind {
	case "":
		return nil
	case "Namespace":
		return add[corev1.Namespace](document, &w.Namespaces)
	case "Node":
		return add[corev1.Node](document, &w.Nodes)
	case "Pod":
		return add[corev1.Pod](document, &w.Pods)
	case "Service":
		return add[corev1.Service](document, &w.Services)
	case "EndpointSlice":
		return add[discoveryv1.EndpointSlice](document, &w.Slices)
	case "CiliumCIDRGroup":
		return add[CIDRGroup](document, &w.CIDRGroups)
	case "NetworkPolicy":
		return add[networkingv1.NetworkPolicy](document, &w.NetworkPolicies)
	case "CiliumNetworkPolicy", "CiliumClusterwideNetworkPolicy":
		return add[cilium.NetworkPolicy](document, &w.CiliumPolicies)
	case "ClusterNetworkPolicy", "AdminNetworkPolicy", "BaselineAdminNetworkPolicy":
		return add[AdminPolicy](document, &w.AdminPolicies)
	}
	return fmt.Errorf("no such kind")
}

func add[T any](document []byte, to *[]T) error {
	var object T
	if err := yaml.Unmarshal(document, &object); err != nil {
		return err
	}
	*to = append(*to, object)
	return nil
}
