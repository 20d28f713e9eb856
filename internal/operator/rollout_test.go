package operator

import (
	"encoding/json"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime"
	clienttesting "k8s.io/client-go/testing"

	storev1 "tendril.io/tendril/api/store/v1"
)

// guarded is a policy of a kind that has a status.
func guarded() *unstructured.Unstructured {
	return &unstructured.Unstructured{Object: map[string]any{
		"apiVersion": "cilium.io/v2", "kind": "CiliumNetworkPolicy", "metadata": map[string]any{"namespace": "shop", "name": "p", "uid": "u"},
		"spec": map[string]any{"endpointSelector": map[string]any{}, "ingress": []any{map[string]any{}}},
	}}
}

// condition is what the status of the policy says of its enforcement: status, message.
func (c *cluster) condition() []string {
	object, err := c.in("ciliumnetworkpolicies", "shop").Get(c.t.Context(), "p", metav1.GetOptions{})
	if err != nil {
		c.t.Fatal(err)
	}
	moveEnforced(object.Object)
	condition, _ := object.Object[enforcedField].(map[string]any)
	status, _ := condition["status"].(string)
	message, _ := condition["message"].(string)
	return []string{status, message}
}

func (m *memory) acknowledge(revision uint64, alive map[string]bool, acks map[string]uint64) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.revision, m.nodes, m.acks = revision, alive, acks
}

func TestAPolicySaysOnHowManyNodesItIsInForce(t *testing.T) {
	c := prepare(t, guarded())
	c.config.rolloutEvery = 10 * time.Millisecond
	var mu sync.Mutex
	writes := 0
	c.objects.PrependReactor("patch", "ciliumnetworkpolicies", func(action clienttesting.Action) (bool, runtime.Object, error) {
		patch := action.(clienttesting.PatchActionImpl)
		var body map[string]any
		if err := json.Unmarshal(patch.Patch, &body); err != nil || patch.Subresource != "status" || patch.PatchOptions.FieldManager != fieldManager {
			t.Errorf("patch %s %q: %v", patch.Patch, patch.Subresource, err)
		}
		mu.Lock()
		writes++
		mu.Unlock()
		object := guarded()
		object.Object["status"] = body["status"]
		return true, object, c.objects.Tracker().Update(patch.GetResource(), object, "shop")
	})
	alive := map[string]bool{"n1": true, "n2": true, "dead": false}
	// n3's number is of a store that was lost.
	alive["n3"] = true
	c.memory.acknowledge(7, alive, map[string]uint64{"n1": 7, "n2": 6, "n3": 99, "dead": 3})
	c.run()
	says := func(want ...string) {
		t.Helper()
		c.until(func() string { return cmp.Diff(want, c.condition()) })
	}
	says("False", "revision 7 is in force on 1 of 3 nodes")
	c.memory.acknowledge(7, alive, map[string]uint64{"n1": 7, "n2": 7, "n3": 7})
	says("True", "revision 7 is in force on all nodes")
	c.memory.acknowledge(8, alive, map[string]uint64{"n1": 8, "n2": 8})
	says("False", "revision 8 is in force on 2 of 3 nodes") // n3 has not said anything yet
	c.memory.acknowledge(8, alive, map[string]uint64{"n1": 8, "n2": 8, "n3": 8})
	says("True", "revision 8 is in force on all nodes")

	// Another node comes up: nothing to say.
	mu.Lock()
	before := writes
	mu.Unlock()
	alive = map[string]bool{"n1": true, "n2": true, "n3": true, "new": true}
	c.memory.acknowledge(8, alive, map[string]uint64{"n1": 8, "n2": 8, "n3": 8})
	looks := c.memory.looks()
	c.until(func() string {
		if c.memory.looks() < looks+3 {
			return "nobody looked"
		}
		return ""
	})
	mu.Lock()
	if writes != before {
		t.Errorf("%d writes though nothing has changed", writes-before)
	}
	mu.Unlock()

	c.memory.acknowledge(9, alive, map[string]uint64{"n1": 8, "n2": 9, "n3": 8, "new": 8})
	says("False", "revision 9 is in force on 1 of 4 nodes")
	if policy := c.memory.get("policies/CiliumNetworkPolicy/shop/p").(*storev1.Policy); strings.Contains(string(policy.Object), "nforced") {
		t.Errorf("agents hear of the status: %s", policy.Object)
	}
}

func TestKindsWithAStatusArePoliciesButForNetworkPolicy(t *testing.T) {
	var got []string
	for _, definition := range readDefinitions() {
		columns, _, _ := unstructured.NestedSlice(definition.Object["spec"].(map[string]any)["versions"].([]any)[0].(map[string]any), "additionalPrinterColumns")
		for _, column := range columns {
			if column.(map[string]any)["name"] == "Enforced" {
				got = append(got, definition.GetName())
			}
		}
	}
	if len(got) != 5 {
		t.Errorf("kinds that show whether they are enforced: %q, want the five policy kinds", got)
	}
}
