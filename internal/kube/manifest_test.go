package kube

import (
	"errors"
	"fmt"
	"reflect"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// namesOf lists objects with their places, as "document kind namespace/name".
func namesOf(objects []*Object) []string {
	var names []string
	for _, o := range objects {
		names = append(names, fmt.Sprintf("%d %s", o.Document, o))
	}
	return names
}

func TestDecodeFindsTheObjects(t *testing.T) {
	const a, b = "apiVersion: v1\nkind: Namespace\nmetadata: {name: a}\n", "apiVersion: v1\nkind: Namespace\nmetadata: {name: b}\n"
	tests := []struct {
		sentence, manifest string
		want               []string
	}{
		{"an empty file holds nothing", "", nil},
		{"comments hold nothing", "# hello\n---\n# again\n", nil},
		{"documents are counted from 1", a + "---\n" + b, []string{"1 Namespace a", "2 Namespace b"}},
		{"comments ahead of the first marker are no document", "# hello\n---\n" + a + "---\n" + b, []string{"1 Namespace a", "2 Namespace b"}},
		{"an empty document counts", a + "---\n---\n" + b, []string{"1 Namespace a", "3 Namespace b"}},
		{"what follows the marker on its line belongs to the document", a + "--- {apiVersion: v1, kind: Namespace, metadata: {name: b}}\n", []string{"1 Namespace a", "2 Namespace b"}},
		{"the end marker hides nothing", a + "...\n" + b, []string{"1 Namespace a", "2 Namespace b"}},
		{"windows line ends and a byte order mark do not matter", "\xef\xbb\xbf" + strings.ReplaceAll(a+"---\n"+b, "\n", "\r\n"), []string{"1 Namespace a", "2 Namespace b"}},
		{"JSON is YAML", `{"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "a"}}`, []string{"1 Namespace a"}},
		{"a list stands for its items", `{"apiVersion": "v1", "kind": "List", "items": [{"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "a"}}]}`, []string{"1 Namespace a"}},
		{"a namespaced object without a namespace is in default", "apiVersion: networking.k8s.io/v1\nkind: NetworkPolicy\nmetadata: {name: a}\nspec: {podSelector: {}}\n", []string{"1 NetworkPolicy default/a"}},
	}
	for _, test := range tests {
		t.Run(test.sentence, func(t *testing.T) {
			objects, err := Decode("x.yaml", []byte(test.manifest))
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(test.want, namesOf(objects)); diff != "" {
				t.Errorf("objects (-want +got):\n%s", diff)
			}
		})
	}
}

func TestDecodeReturnsTheGoodObjectsBesideTheMistakes(t *testing.T) {
	objects, err := Decode("x.yaml", []byte("a: b\n---\napiVersion: v1\nkind: Namespace\nmetadata: {name: a}\n"))
	var mistakes Mistakes
	if !errors.As(err, &mistakes) || len(mistakes) != 1 {
		t.Fatalf("got %v, want one mistake", err)
	}
	if diff := cmp.Diff([]string{"2 Namespace a"}, namesOf(objects)); diff != "" {
		t.Errorf("objects (-want +got):\n%s", diff)
	}
}

func TestCanonicalTextLeavesOutWhatOnlyAnAPIServerNeeds(t *testing.T) {
	o := decodeOne(t, `
kind: NetworkPolicy
metadata:
  uid: "1234"
  resourceVersion: "7"
  generation: 3
  creationTimestamp: "2026-01-02T03:04:05Z"
  managedFields: [{manager: kubectl}]
  annotations: {kubectl.kubernetes.io/last-applied-configuration: "{}"}
  name: a
spec: {podSelector: {}}
apiVersion: networking.k8s.io/v1
`[1:])
	want := `{"apiVersion":"networking.k8s.io/v1","kind":"NetworkPolicy","metadata":{"name":"a","namespace":"default"},"spec":{"podSelector":{}}}`
	if diff := cmp.Diff(want, string(o.JSON)); diff != "" {
		t.Errorf("canonical JSON (-want +got):\n%s", diff)
	}
}

func TestSortPutsWhatOthersReferToFirst(t *testing.T) {
	objects := []*Object{
		{Kind: "CiliumNetworkPolicy", Namespace: "a", Name: "x"}, {Kind: "Service", Namespace: "b", Name: "x"},
		{Kind: "Service", Namespace: "a", Name: "y"}, {Kind: "Namespace", Name: "z"},
	}
	Sort(objects)
	got := make([]string, 0, len(objects))
	for _, o := range objects {
		got = append(got, o.String())
	}
	want := []string{"Namespace z", "Service a/y", "Service b/x", "CiliumNetworkPolicy a/x"}
	if !slices.Equal(got, want) {
		t.Errorf("got %v, want %v", got, want)
	}
}

func TestParsePolicyRefusesWhatTheStoreShouldNotHold(t *testing.T) {
	tests := []struct{ sentence, kind, object, want string }{
		{"text that is not JSON", "NetworkPolicy", "{", "store, NetworkPolicy: not valid JSON: unexpected EOF; apply the manifest again"},
		{"an object under another kind's key", "NetworkPolicy",
			`{"apiVersion":"v1","kind":"Namespace","metadata":{"name":"a"}}`,
			`store, Namespace a: kind: Invalid value: "Namespace": stored as NetworkPolicy; delete the object and apply the manifest again`},
		{"a field of a newer version", "NetworkPolicy",
			`{"apiVersion":"networking.k8s.io/v1","kind":"NetworkPolicy","metadata":{"name":"a"},"spec":{"podSelector":{},"zones":[]}}`,
			`store, NetworkPolicy default/a: spec.zones: Forbidden: unknown field; the fields here are egress, ingress, podSelector, policyTypes`},
		{"a kind that is no policy", "Namespace", `{"apiVersion":"v1","kind":"Namespace","metadata":{"name":"a"}}`, "store, Namespace a: not a policy"},
	}
	for _, test := range tests {
		t.Run(test.sentence, func(t *testing.T) {
			_, err := ParsePolicy(test.kind, []byte(test.object), "store")
			if err == nil {
				t.Fatal("accepted")
			}
			got := err.Error()
			if diff := cmp.Diff(test.want, got); diff != "" {
				t.Errorf("error (-want +got):\n%s", diff)
			}
		})
	}
}

// FuzzManifest feeds anything to the reader: it may refuse, but must not panic, and what it accepts must be stable: the
// canonical text is accepted again, says the same, and becomes a policy if it is of such a kind.
func FuzzManifest(f *testing.F) {
	f.Add([]byte(networkPolicyHeader + "  podSelector: {}\n  ingress: [{from: [{ipBlock: {cidr: 10.0.0.0/8}}], ports: [{port: 80, endPort: 90}]}]\n"))
	f.Add([]byte(ciliumHeader + "spec:\n  endpointSelector: {}\n  egress: [{toCIDR: [10.0.0.0/8]}, {toPorts: [{ports: [{port: \"80\"}]}]}]\n"))
	f.Add([]byte(clusterwideHeader + "specs:\n- endpointSelector: {}\n  ingressDeny: [{fromEntities: [all], icmps: [{fields: [{type: 8}]}]}]\n"))
	f.Add([]byte("apiVersion: v1\nkind: Service\nmetadata: {name: a}\nspec: {clusterIP: 10.0.0.1, ports: [{port: 80}]}\n---\n{}\n...\n"))
	f.Add([]byte("apiVersion: v1\nkind: Pod\nmetadata: {name: a}\nspec: {nodeName: node1, containers: [{name: c, ports: [{name: w, containerPort: 80}]}]}\n"))
	f.Add([]byte(clusterPolicyHeader + "  tier: Admin\n  subject: {namespaces: {}}\n  egress: [{action: Pass, to: [{networks: [10.0.0.0/8]}], protocols: [{tcp: {destinationPort: {number: 1}}}]}]\n"))
	f.Add([]byte("apiVersion: cilium.io/v2\nkind: CiliumCIDRGroup\nmetadata: {name: a}\nspec: {externalCIDRs: [10.0.0.1]}\n---\napiVersion: v1\nkind: Node\nmetadata: {name: a}\n"))
	f.Add([]byte("apiVersion: v1\nkind: List\nitems: [&a {apiVersion: v1, kind: Namespace, metadata: {name: a}}, *a]\n"))
	f.Fuzz(func(t *testing.T, data []byte) {
		objects, _ := Decode("fuzz", data)
		_, _ = Records(objects, "lab")
		for _, object := range objects {
			again, err := Decode("fuzz", object.JSON)
			if err != nil || len(again) != 1 {
				t.Fatalf("canonical text is refused: %v\n%s", err, object.JSON)
			}
			if string(again[0].JSON) != string(object.JSON) {
				t.Fatalf("canonical text is not stable:\n%s\n%s", object.JSON, again[0].JSON)
			}
			if !object.IsPolicy() {
				continue
			}
			p, err := object.Policy()
			q, errAgain := ParsePolicy(object.Kind, object.JSON, "fuzz")
			if (err == nil) != (errAgain == nil) || err == nil && render(p) != render(q) {
				t.Fatalf("read back from the store it differs: %v, %v\n%s", err, errAgain, object.JSON)
			}
		}
	})
}

// FuzzPolicy feeds anything to the translation of each kind of policy, as the spec of an object: it gives a policy whose
// peers are somebody, or Mistakes.
func FuzzPolicy(f *testing.F) {
	kinds := policyKinds()
	for i, spec := range []string{
		`{"podSelector":{},"ingress":[{"from":[{"ipBlock":{"cidr":"10.0.0.0/8","except":["10.1.0.0/16"]}}],"ports":[{"port":"http"}]}]}`,
		`{"endpointSelector":{},"ingress":[{"fromRequires":[{"matchLabels":{"a":"b"}}],"fromEndpoints":[{}],"toPorts":[{"ports":[{"port":"80","protocol":"TCP"}],"rules":{"http":[{"path":"/"}]}}]}]}`,
		`{"nodeSelector":{},"egress":[{"toServices":[{"k8sServiceSelector":{"selector":{}}}]},{"toFQDNs":[{"matchPattern":"*.a"}]},{"toCIDRSet":[{"cidrGroupRef":"a"}]}]}`,
		`{"tier":"Admin","priority":1,"subject":{"namespaces":{}},"egress":[{"action":"Accept","to":[{"domainNames":["a.b"]},{"networks":["::/0"]}]}]}`,
		`{"priority":1,"subject":{"pods":{"namespaceSelector":{},"podSelector":{}}},"ingress":[{"action":"Pass","from":[{"namespaces":{}}],"ports":[{"namedPort":"a"}]}]}`,
		`{"subject":{"namespaces":{}},"egress":[{"action":"Deny","to":[{"nodes":{}}],"ports":[{"portRange":{"start":1,"end":2}}]}]}`,
	} {
		f.Add(uint8(i), spec)
	}
	f.Fuzz(func(t *testing.T, which uint8, spec string) {
		k := kinds[int(which)%len(kinds)]
		object := fmt.Sprintf(`{"apiVersion":%q,"kind":%q,"metadata":{"name":"default"},"spec":%s}`, k.apiVersion, k.name, spec)
		p, err := ParsePolicy(k.name, []byte(object), "fuzz")
		var mistakes Mistakes
		switch {
		case err != nil && (!errors.As(err, &mistakes) || len(mistakes) == 0):
			t.Fatalf("%s: %v is no list of mistakes", object, err)
		case err == nil && len(p.Specs) == 0:
			t.Fatalf("%s: a policy about nobody", object)
		}
		if err == nil && strings.Contains(render(p), "NO PEER") {
			t.Fatalf("%s: a peer of nothing:\n%s", object, render(p))
		}
	})
}

// policyKinds are the kinds of policy among those that are read.
func policyKinds() (policies []kind) {
	for _, k := range kinds() {
		if (&Object{value: reflect.New(k.typ).Interface()}).IsPolicy() {
			policies = append(policies, k)
		}
	}
	return policies
}
