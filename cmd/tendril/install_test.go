package main

import (
	"strings"
	"testing"

	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"sigs.k8s.io/yaml"

	"tendril.io/tendril/deploy/helm"
)

// nodesNamed are Nodes as the API server lists them; control ones have a "+" before their names, and those without an address a "-".
func nodesNamed(names string) (nodes []unstructured.Unstructured) {
	for i, name := range strings.Fields(names) {
		node := unstructured.Unstructured{Object: map[string]any{}}
		if strings.HasPrefix(name, "+") {
			node.SetLabels(map[string]string{"node-role.kubernetes.io/control-plane": ""})
		}
		if !strings.HasPrefix(name, "-") {
			addresses := []any{map[string]any{"type": "Hostname", "address": name}, map[string]any{"type": "InternalIP", "address": "192.0.2." + string(rune('1'+i))}}
			_ = unstructured.SetNestedSlice(node.Object, addresses, "status", "addresses")
		}
		node.SetName(strings.TrimLeft(name, "+-"))
		nodes = append(nodes, node)
	}
	return nodes
}

func TestInstallPlacesOperators(t *testing.T) {
	for name, test := range map[string]struct {
		nodes string
		set   string
		want  string // of the chart's values, or of the error
	}{
		"on the nodes of the control plane":                  {"w1 +c1 w2 +c2", "", `replicas: [{node: c1, address: 192.0.2.2}, {node: c2, address: 192.0.2.4}]`},
		"on three of them, where there are more":             {"+a +b +c +d", "", `replicas: [{node: a, address: 192.0.2.1}, {node: b, address: 192.0.2.2}, {node: c, address: 192.0.2.3}]`},
		"on the one node of the control plane":               {"w1 +c1", "", `node: c1, address: 192.0.2.2`},
		"on the first node, where no control plane is shown": {"w1 w2", "", `node: w1, address: 192.0.2.1`},
		"on the one that is named":                           {"+c1 w1 +c2", "operator.node=w1", `node: w1, address: 192.0.2.2`},
		"at the one address that is given":                   {"+c1 +c2", "operator.address=198.51.100.1", `node: c1, address: 198.51.100.1`},
		"before a store outside":                             {"w1 +c1", `store.external.endpoints=["e:2379"]`, `replicas: [{node: c1, address: 192.0.2.2}]`},
		"not in an empty cluster":                            {"", "", "the cluster has no node"},
		"not on a node that is not there":                    {"+c1", "operator.node=c2", "the cluster has no node"},
		"not on one without an address":                      {"w1 -w2", "operator.node=w2", "node w2 has no address yet"},
	} {
		t.Run(name, func(t *testing.T) {
			values, err := helm.Defaults()
			if err == nil && test.set != "" {
				err = values.Set(test.set)
			}
			if err != nil {
				t.Fatal(err)
			}
			if err := placeOperators(nodesNamed(test.nodes), values); err != nil {
				if !strings.Contains(err.Error(), test.want) {
					t.Errorf("got %v, want %s", err, test.want)
				}
				return
			}
			var want map[string]any
			if err := yaml.Unmarshal([]byte("{"+test.want+"}"), &want); err != nil {
				t.Fatalf("%s: %v", test.want, err)
			}
			placed, _, _ := unstructured.NestedMap(values, "operator")
			for key := range placed {
				if key != "node" && key != "address" && key != "replicas" || placed[key] == "" {
					delete(placed, key)
				}
			}
			if list, _ := placed["replicas"].([]any); len(list) == 0 {
				delete(placed, "replicas")
			}
			got, _ := yaml.Marshal(placed)
			wanted, _ := yaml.Marshal(want)
			if string(got) != string(wanted) {
				t.Errorf("got\n%swant\n%s", got, wanted)
			}
		})
	}
}
