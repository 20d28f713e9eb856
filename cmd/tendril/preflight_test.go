package main

import (
	"bytes"
	"errors"
	"strings"
	"testing"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/meta"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/client-go/dynamic/fake"
	k8stesting "k8s.io/client-go/testing"

	"tendril.io/tendril/internal/kube"
)

const soundPolicies = `
{apiVersion: networking.k8s.io/v1, kind: NetworkPolicy, metadata: {name: sound, namespace: shop, uid: u, resourceVersion: "7", generation: 1,
 creationTimestamp: "2026-01-01T00:00:00Z", managedFields: [{manager: kubectl, operation: Apply, apiVersion: networking.k8s.io/v1, fieldsType: FieldsV1, fieldsV1: {"f:spec": {}}}]},
 spec: {podSelector: {matchLabels: {app: web}}, ingress: [{from: [{podSelector: {matchLabels: {app: client}}}]}]}}
---
{apiVersion: cilium.io/v2, kind: CiliumNetworkPolicy, metadata: {name: sound, namespace: shop},
 spec: {endpointSelector: {matchLabels: {app: web}}, ingress: [{fromEntities: [cluster]}]}}
`

// clusterWith is a cluster whose API server knows all kinds of policy but one.
func clusterWith(t *testing.T, manifests, unknown string) *cluster {
	t.Helper()
	lists := map[schema.GroupVersionResource]string{}
	for _, kind := range kube.Kinds() {
		resource, _ := meta.UnsafeGuessKindToResource(kind)
		lists[resource] = kind.Kind + "List"
	}
	client := fake.NewSimpleDynamicClientWithCustomListKinds(runtime.NewScheme(), lists, objectsOf(t, manifests)...)
	client.PrependReactor("list", unknown, func(k8stesting.Action) (bool, runtime.Object, error) {
		return true, nil, apierrors.NewNotFound(schema.GroupResource{Resource: unknown}, "")
	})
	return &cluster{client: client}
}

func TestPreflightNamesPoliciesThatCannotBeHonoured(t *testing.T) {
	var out bytes.Buffer
	if err := preflight(t.Context(), clusterWith(t, soundPolicies, "adminnetworkpolicies"), &out); err != nil || out.String() != "all 2 policies can be honoured\n" {
		t.Errorf("sound policies: %v\n%s", err, &out)
	}
	out.Reset()
	err := preflight(t.Context(), clusterWith(t, soundPolicies+`---
{apiVersion: networking.k8s.io/v1, kind: NetworkPolicy, metadata: {name: typo, namespace: shop}, spec: {podSelector: {}, ingress: [{frm: []}]}}
---
{apiVersion: cilium.io/v2, kind: CiliumClusterwideNetworkPolicy, metadata: {name: wide}, spec: {endpointSelector: {}, ingress: [{fromEntities: [nobody]}]}}
`, "adminnetworkpolicies"), &out)
	if err == nil || !strings.Contains(err.Error(), "2 of 4 policies") {
		t.Errorf("error is %v", err)
	}
	for _, want := range []string{"NetworkPolicy/shop/typo: ", "frm", "every pod of namespace shop", "CiliumClusterwideNetworkPolicy/wide: ", "nobody", "every pod\n"} {
		if !strings.Contains(out.String(), want) {
			t.Errorf("output lacks %q:\n%s", want, &out)
		}
	}
	if strings.Contains(out.String(), "sound") {
		t.Errorf("sound policies are named:\n%s", &out)
	}
}

func TestPreflightThatCannotReadSaysSo(t *testing.T) {
	c := clusterWith(t, soundPolicies, "adminnetworkpolicies")
	c.client.(*fake.FakeDynamicClient).PrependReactor("list", "networkpolicies", func(k8stesting.Action) (bool, runtime.Object, error) {
		return true, nil, errors.New("forbidden")
	})
	if err := preflight(t.Context(), c, &bytes.Buffer{}); err == nil || !strings.Contains(err.Error(), "list networkpolicies: forbidden") {
		t.Errorf("error is %v", err)
	}
}
