package cilium

import (
	"encoding/json"
	"reflect"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"sigs.k8s.io/yaml"
)

// whole is a policy that uses every field of the kinds, as their documentation spells them.
const whole = `
apiVersion: cilium.io/v2
kind: CiliumNetworkPolicy
metadata: {name: whole, namespace: shop}
spec:
  endpointSelector: {matchLabels: {app: web}}
  nodeSelector: {matchLabels: {role: edge}}
  enableDefaultDeny: {ingress: true, egress: false}
  labels: [{key: team, value: shop, source: k8s}]
  description: all there is
  log: {value: seen}
  ingress:
  - fromEndpoints: [{matchLabels: {app: client}}]
    fromCIDR: [192.0.2.0/24]
    fromCIDRSet: [{cidr: 192.0.2.0/24, except: [192.0.2.7/32], cidrGroupRef: partners, cidrGroupSelector: {matchLabels: {a: b}}}]
    fromEntities: [world]
    fromNodes: [{matchLabels: {role: edge}}]
    fromGroups: [{aws: {labels: {a: b}}}]
    fromRequires: [{matchLabels: {a: b}}]
    toPorts:
    - ports: [{port: "80", endPort: 90, protocol: TCP}]
      terminatingTLS: {secret: {name: a}}
      originatingTLS: {secret: {name: a}}
      serverNames: [shop.example]
      listener: {name: envoy}
      rules:
        http:
        - {method: GET, path: /a, host: a.b, headers: ["X-A: b"], headerMatches: [{name: X-B, value: c, mismatch: LOG, secret: {name: s}}]}
        kafka: [{role: produce, apiKey: fetch, apiVersion: "1", clientID: c, topic: t}]
        dns: [{matchName: a.b}, {matchPattern: "*.b"}]
        l7proto: r2d2
        l7: [{cmd: READ}]
    icmps: [{fields: [{family: IPv6, type: EchoRequest}]}]
    authentication: {mode: required}
  ingressDeny:
  - fromEntities: [world]
    toPorts: [{ports: [{port: "22", protocol: TCP}]}]
    icmps: [{fields: [{type: 8}]}]
  egress:
  - toEndpoints: [{matchLabels: {app: db}}]
    toCIDR: [192.0.2.0/24]
    toCIDRSet: [{cidr: 192.0.2.0/24}]
    toEntities: [world]
    toServices: [{k8sService: {serviceName: db, namespace: shop}}, {k8sServiceSelector: {selector: {matchLabels: {a: b}}, namespace: shop}}]
    toNodes: [{matchLabels: {role: edge}}]
    toGroups: [{aws: {labels: {a: b}}}]
    toFQDNs: [{matchName: shop.example}]
    toRequires: [{matchLabels: {a: b}}]
    toPorts: [{ports: [{port: dns, protocol: ANY}]}]
    icmps: [{fields: [{type: 8}]}]
    authentication: {mode: disabled}
  egressDeny:
  - toEntities: [host]
    toPorts: [{ports: [{port: "0"}]}]
    icmps: [{fields: [{type: 8}]}]
specs:
- endpointSelector: {}
  ingress: [{}]
status: {conditions: []}
`

// read decodes the policy, and the same as plain values.
func read(t *testing.T) (NetworkPolicy, any) {
	t.Helper()
	var policy NetworkPolicy
	if err := yaml.UnmarshalStrict([]byte(whole), &policy); err != nil {
		t.Fatal(err)
	}
	var plain any
	if err := yaml.Unmarshal([]byte(whole), &plain); err != nil {
		t.Fatal(err)
	}
	return policy, plain
}

func TestNothingOfAManifestIsLostOrRenamed(t *testing.T) {
	policy, want := read(t)
	text, err := json.Marshal(policy)
	if err != nil {
		t.Fatal(err)
	}
	var got map[string]any
	if err := json.Unmarshal(text, &got); err != nil {
		t.Fatal(err)
	}
	delete(got["metadata"].(map[string]any), "creationTimestamp") // null, which the type of Kubernetes writes
	// What is empty is written for the second rule, too: an object without fields says nothing.
	delete(got["specs"].([]any)[0].(map[string]any), "enableDefaultDeny")
	if diff := cmp.Diff(want, any(got)); diff != "" {
		t.Errorf("manifest (-written +read and written again):\n%s", diff)
	}
}

// TestTheWholePolicyUsesEveryField guards the test above: a field that is added to a type has to be added to the policy.
func TestTheWholePolicyUsesEveryField(t *testing.T) {
	policy, _ := read(t)
	used := map[string]bool{}
	note(reflect.ValueOf(policy), used)
	for typ := range fields(reflect.TypeFor[NetworkPolicy](), map[string]bool{}) {
		if !used[typ] {
			t.Errorf("no manifest uses %s", typ)
		}
	}
}

// ours says that a type is declared in this package.
func ours(typ reflect.Type) bool { return strings.HasSuffix(typ.PkgPath(), "api/cilium") }

// note marks the fields that are set somewhere in a value.
func note(v reflect.Value, used map[string]bool) {
	switch v.Kind() {
	case reflect.Pointer:
		if !v.IsNil() {
			note(v.Elem(), used)
		}
	case reflect.Slice:
		for i := range v.Len() {
			note(v.Index(i), used)
		}
	case reflect.Struct:
		for i := range v.NumField() {
			if ours(v.Type()) && !v.Field(i).IsZero() {
				used[v.Type().Name()+"."+v.Type().Field(i).Name] = true
				note(v.Field(i), used)
			}
		}
	}
}

// fields lists all fields of a type and of the types that it is made of.
func fields(typ reflect.Type, all map[string]bool) map[string]bool {
	for typ.Kind() == reflect.Pointer || typ.Kind() == reflect.Slice {
		typ = typ.Elem()
	}
	if typ.Kind() != reflect.Struct || !ours(typ) {
		return all
	}
	for i := range typ.NumField() {
		field := typ.Field(i)
		if name := typ.Name() + "." + field.Name; !all[name] {
			all[name] = true
			fields(field.Type, all)
		}
	}
	return all
}
