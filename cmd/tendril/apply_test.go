package main

import (
	"bytes"
	"context"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"google.golang.org/protobuf/proto"

	storev1 "tendril.io/tendril/api/store/v1"
	"tendril.io/tendril/internal/kube"
	"tendril.io/tendril/internal/store"
)

// memoryStore is a store for tests; it numbers policies as the real one does.
type memoryStore struct {
	records  map[string]proto.Message
	revision uint64
	applied  int // calls of Apply
}

func (m *memoryStore) List(_ context.Context, kind store.Kind) ([]store.Record, error) {
	var found []store.Record
	for _, key := range slices.Sorted(maps.Keys(m.records)) {
		if strings.HasPrefix(key, string(kind)+"/") {
			found = append(found, store.Record{Key: key, Value: m.records[key]})
		}
	}
	return found, nil
}

func (m *memoryStore) Apply(_ context.Context, records []store.Record) (store.Result, error) {
	m.applied++
	for _, r := range records {
		if r.Value == nil {
			delete(m.records, r.Key)
			continue
		}
		value := proto.Clone(r.Value)
		if policy, ok := value.(*storev1.Policy); ok {
			m.revision++
			policy.Revision = m.revision
		}
		m.records[r.Key] = value
	}
	return store.Result{}, nil
}

const (
	shopNamespace = "apiVersion: v1\nkind: Namespace\nmetadata: {name: shop, labels: {team: red}}\n"
	webPolicy     = "apiVersion: networking.k8s.io/v1\nkind: NetworkPolicy\nmetadata: {name: web, namespace: shop}\nspec: {podSelector: {}}\n"
	webPod        = "apiVersion: v1\nkind: Pod\nmetadata: {name: web, namespace: shop, labels: {app: web}}\nspec: {nodeName: node1, containers: [{name: c}]}\n"
	otherPod      = "apiVersion: v1\nkind: Pod\nmetadata: {name: other, namespace: shop, labels: {app: web}}\nspec: {nodeName: node1, containers: [{name: c}]}\n"
)

// recordsOf translates manifests that must be right.
func recordsOf(t *testing.T, manifests ...string) []kube.Record {
	t.Helper()
	objects, err := kube.Decode("x.yaml", []byte(strings.Join(manifests, "---\n")))
	if err != nil {
		t.Fatal(err)
	}
	records, err := kube.Records(objects, "default")
	if err != nil {
		t.Fatal(err)
	}
	return records
}

// said is what the user sees, in one line.
func said(t *testing.T, outcomes []outcome) string {
	t.Helper()
	var out bytes.Buffer
	if err := (&manifestFlags{app: &app{}}).print(&out, outcomes); err != nil {
		t.Fatal(err)
	}
	return strings.Join(strings.Split(strings.TrimSpace(out.String()), "\n"), "; ")
}

func TestApplySaysWhatBecameOfEachObject(t *testing.T) {
	ctx, s := t.Context(), &memoryStore{records: map[string]proto.Message{}}
	changed := strings.Replace(webPolicy, "podSelector: {}", "podSelector: {}, policyTypes: [Egress]", 1)
	steps := []struct {
		sentence  string
		manifests []string
		dryRun    bool
		want      string
	}{
		{"a dry run writes nothing", []string{shopNamespace}, true, "Namespace shop created (dry run)"},
		{"new objects are created", []string{shopNamespace, webPolicy, webPod}, false, "Namespace shop created; NetworkPolicy shop/web created; Pod shop/web created"},
		{"the same again changes nothing", []string{shopNamespace, webPolicy, webPod}, false, "Namespace shop unchanged; NetworkPolicy shop/web unchanged; Pod shop/web unchanged"},
		{"another content configures", []string{changed}, false, "NetworkPolicy shop/web configured"},
		{"a pod with a known label set is new all the same", []string{otherPod}, false, "Pod shop/other created"},
	}
	for _, step := range steps {
		outcomes, err := applyRecords(ctx, s, recordsOf(t, step.manifests...), step.dryRun)
		if err != nil {
			t.Fatalf("%s: %v", step.sentence, err)
		}
		if diff := cmp.Diff(step.want, said(t, outcomes)); diff != "" {
			t.Errorf("%s (-want +got):\n%s", step.sentence, diff)
		}
	}
}

func TestDeleteTakesBackWhatItsManifestsDescribe(t *testing.T) {
	ctx, s := t.Context(), &memoryStore{records: map[string]proto.Message{}}
	if _, err := applyRecords(ctx, s, recordsOf(t, shopNamespace, webPolicy, webPod, otherPod), false); err != nil {
		t.Fatal(err)
	}
	f := &manifestFlags{app: &app{}, cluster: "default"}
	outcomes, err := f.deleteRecords(ctx, s, recordsOf(t, webPolicy, webPod), false)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff("NetworkPolicy shop/web deleted; Pod shop/web deleted", said(t, outcomes)); diff != "" {
		t.Errorf("outcomes (-want +got):\n%s", diff)
	}
	left := slices.Sorted(maps.Keys(s.records))
	if len(left) != 3 || !strings.HasPrefix(left[0], "labels/") || left[1] != "namespaces/shop" || left[2] != "pods/node1/shop/other" {
		t.Errorf("left in the store: %v", left)
	}

	outcomes, err = f.deleteRecords(ctx, s, recordsOf(t, webPolicy), false)
	if want := "NetworkPolicy shop/web: not in cluster default; give --ignore-not-found if that is fine"; err == nil || err.Error() != want {
		t.Errorf("deleting twice: got error %v, want %s", err, want)
	}
	if diff := cmp.Diff("NetworkPolicy shop/web not found", said(t, outcomes)); diff != "" {
		t.Errorf("outcomes (-want +got):\n%s", diff)
	}
	f.ignoreNotFound = true
	if _, err := f.deleteRecords(ctx, s, recordsOf(t, webPolicy), false); err != nil {
		t.Errorf("with --ignore-not-found: %v", err)
	}
}

func TestDeleteInADryRunDeletesNothing(t *testing.T) {
	ctx, s := t.Context(), &memoryStore{records: map[string]proto.Message{}}
	if _, err := applyRecords(ctx, s, recordsOf(t, shopNamespace), false); err != nil {
		t.Fatal(err)
	}
	f := &manifestFlags{app: &app{}}
	if _, err := f.deleteRecords(ctx, s, recordsOf(t, shopNamespace), true); err != nil {
		t.Fatal(err)
	}
	if len(s.records) != 1 || s.applied != 1 {
		t.Errorf("the store was written: %d records, %d writes", len(s.records), s.applied)
	}
}

// apply runs `tendril apply` against a store that nobody may reach.
func apply(t *testing.T, stdin string, args ...string) (string, error) {
	t.Helper()
	cmd := newApplyCommand(&app{output: "text"})
	cmd.SetArgs(append(args, "--store", "127.0.0.1:1", "--timeout", "300ms"))
	cmd.SetIn(strings.NewReader(stdin))
	cmd.SilenceUsage, cmd.SilenceErrors = true, true
	var out bytes.Buffer
	cmd.SetOut(&out)
	err := cmd.ExecuteContext(t.Context())
	return out.String(), err
}

func TestApplyFindsEveryMistakeInEveryFileBeforeItAsksTheStore(t *testing.T) {
	dir := t.TempDir()
	for name, text := range map[string]string{
		"a.yaml": shopNamespace, "b.yml": "kind: Namespace\n", "c.json": `{"apiVersion":"v1","kind":"Namespace","metadata":{"name":"shop"}}`,
		"readme.txt": "not a manifest",
	} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	missing := filepath.Join(dir, "missing.yaml")
	_, err := apply(t, "hello", "-f", dir, "-f", missing, "-f", "-")
	if err == nil {
		t.Fatal("accepted")
	}
	want := strings.Join([]string{
		"nothing was changed:",
		dir + "/b.yml document 1, Namespace: apiVersion: Required value: say which kind of object this is; known are " +
			"Namespace, Node, Pod, LoadBalancerPool, EgressGateway, Service, EndpointSlice, CiliumCIDRGroup, NetworkPolicy, CiliumNetworkPolicy, " +
			"CiliumClusterwideNetworkPolicy, ClusterNetworkPolicy, AdminNetworkPolicy, BaselineAdminNetworkPolicy",
		"file " + missing + ": no such file or directory",
		"standard input document 1: not an object; a document starts with apiVersion, kind and metadata",
		dir + "/c.json document 1, Namespace shop: defined twice, first in " + dir + "/a.yaml document 1; remove one",
	}, "\n")
	if diff := cmp.Diff(want, err.Error()); diff != "" {
		t.Errorf("error (-want +got):\n%s", diff)
	}
}

func TestApplyRefusesWhatNeedsAProxyBeforeItAsksTheStore(t *testing.T) {
	_, err := apply(t, shopNamespace+`---
apiVersion: cilium.io/v2
kind: CiliumNetworkPolicy
metadata: {name: web, namespace: shop}
spec:
  endpointSelector: {}
  egress: [{toFQDNs: [{matchName: a.b}]}, {toEntities: [world]}]
  ingress: [{toPorts: [{ports: [{port: "80", protocol: TCP}], rules: {http: [{method: GET}]}}]}]
`, "-f", "-")
	const why = ": Forbidden: names in DNS and rules about requests need a proxy, which this version does not have; remove the rule"
	want := "nothing was changed:\n" +
		"standard input document 2, CiliumNetworkPolicy shop/web: spec.ingress[0].toPorts[0]" + why + "\n" +
		"standard input document 2, CiliumNetworkPolicy shop/web: spec.egress[0]" + why
	if err == nil || err.Error() != want {
		t.Errorf("got error %v\nwant %s", err, want)
	}
}

func TestNodesAndGroupsOfRangesAreAppliedAndDeletedLikeTheOthers(t *testing.T) {
	const node = "apiVersion: v1\nkind: Node\nmetadata: {name: node1, labels: {role: edge}}\n"
	const group = "apiVersion: cilium.io/v2\nkind: CiliumCIDRGroup\nmetadata: {name: office}\nspec: {externalCIDRs: [192.0.2.0/24]}\n"
	ctx, s := t.Context(), &memoryStore{records: map[string]proto.Message{}}
	outcomes, err := applyRecords(ctx, s, recordsOf(t, node, group), false)
	if err != nil {
		t.Fatal(err)
	}
	if got, want := said(t, outcomes), "Node node1 created; CiliumCIDRGroup office created"; got != want {
		t.Errorf("got %s, want %s", got, want)
	}
	outcomes, err = (&manifestFlags{app: &app{}}).deleteRecords(ctx, s, recordsOf(t, node, group), false)
	if err != nil {
		t.Fatal(err)
	}
	if got, want := said(t, outcomes), "Node node1 deleted; CiliumCIDRGroup office deleted"; got != want || len(s.records) != 0 {
		t.Errorf("got %s, want %s; left %v", got, want, s.records)
	}
}

// The store would say only that some request was too long, and a dry run would have promised that it works.
func TestAnObjectThatTheStoreWouldNotTakeIsNamedBeforeItIsAsked(t *testing.T) {
	group := "apiVersion: cilium.io/v2\nkind: CiliumCIDRGroup\nmetadata: {name: everybody}\nspec: {externalCIDRs: [" +
		strings.Repeat("192.0.2.0/24, ", 80000) + "192.0.2.0/24]}\n"
	for _, dryRun := range []bool{false, true} {
		s := &memoryStore{records: map[string]proto.Message{}}
		_, err := applyRecords(t.Context(), s, recordsOf(t, shopNamespace, group), dryRun)
		want := "CiliumCIDRGroup everybody: needs 1120014 bytes in the store, which takes 1048576 an object: nothing was changed; split it into several"
		if err == nil || err.Error() != want || len(s.records) != 0 {
			t.Errorf("dry run %v: got error %v, %d records; want %s", dryRun, err, len(s.records), want)
		}
	}
}

func TestApplyOfNothingIsAMistake(t *testing.T) {
	_, err := apply(t, "# only a comment\n", "-f", "-")
	if want := "no object in -: nothing was changed"; err == nil || err.Error() != want {
		t.Errorf("got %v, want %s", err, want)
	}
	empty := t.TempDir()
	_, err = apply(t, "", "-f", empty)
	if want := fmt.Sprintf("nothing was changed:\nfolder %s: has no .yaml, .yml or .json file", empty); err == nil || err.Error() != want {
		t.Errorf("got %v, want %s", err, want)
	}
}

func TestApplySaysThatTheStoreIsAway(t *testing.T) {
	_, err := apply(t, shopNamespace, "-f", "-")
	if err == nil || !strings.Contains(err.Error(), "store 127.0.0.1:1 ") || !strings.Contains(err.Error(), "--store") {
		t.Errorf("got %v, want an error that names the store and the flag", err)
	}
}
