package main

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"slices"
	"strings"
	"testing"

	"google.golang.org/protobuf/encoding/protojson"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/meta"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/client-go/dynamic/fake"
	clienttesting "k8s.io/client-go/testing"
)

// dumpedCluster has two nodes, of which n2's agent does not answer, and whose API server refuses events and knows no cilium.io.
func dumpedCluster(t *testing.T) *cluster {
	t.Helper()
	manifests := strings.ReplaceAll(twoNodes, "labels: {app.kubernetes.io/name: tendril-agent}", "labels: {app.kubernetes.io/name: tendril-agent, app.kubernetes.io/part-of: tendril}")
	manifests = strings.ReplaceAll(manifests, "name: tendril-agent, namespace: kube-system}", "name: tendril-agent, namespace: kube-system, labels: {app.kubernetes.io/part-of: tendril}}")
	manifests = strings.ReplaceAll(manifests, "RENEWED", "2026-01-01T00:00:00.000000Z")
	manifests = strings.Replace(manifests, "{name: agent, state", "{name: agent, restartCount: 1, state", 1)
	manifests += `---
{apiVersion: v1, kind: Secret, metadata: {name: tendril-authority, namespace: kube-system, labels: {app.kubernetes.io/part-of: tendril}}, data: {tls.key: c2VjcmV0}}
---
{apiVersion: v1, kind: Pod, metadata: {name: database, namespace: shop}, spec: {nodeName: n1, containers: [{name: c, env: [{name: PASSWORD, value: swordfish}]}]}}
---
{apiVersion: tendril.io/v1alpha1, kind: Identity, metadata: {name: 23d8331f, namespace: shop}, spec: {cluster: default, serviceAccount: default}}
---
{apiVersion: networking.k8s.io/v1, kind: NetworkPolicy, metadata: {name: web, namespace: shop, managedFields: [{manager: kubectl}]}, spec: {podSelector: {}}}
`
	kinds := map[schema.GroupVersionResource]string{}
	for _, kind := range dumpedObjects("kube-system") {
		resource, _ := meta.UnsafeGuessKindToResource(kind.GroupVersionKind)
		kinds[resource] = kind.Kind + "List"
	}
	client := fake.NewSimpleDynamicClientWithCustomListKinds(runtime.NewScheme(), kinds, objectsOf(t, manifests)...)
	client.PrependReactor("list", "*", func(action clienttesting.Action) (bool, runtime.Object, error) {
		resource := action.GetResource().GroupResource()
		switch {
		case resource.Group == "cilium.io":
			return true, nil, apierrors.NewNotFound(resource, "")
		case resource.Resource == "events":
			return true, nil, apierrors.NewForbidden(resource, "", errors.New("it is not yours"))
		}
		return false, nil, nil
	})
	return &cluster{
		client: client,
		exec: func(_ context.Context, in container, command ...string) ([]byte, error) {
			if in.pod != "a1" {
				return nil, &statusError{1, "tendril: nobody listens"}
			}
			if strings.HasSuffix(strings.Join(command, " "), "status -o json") {
				return protojson.Marshal(agentAt(7))
			}
			return []byte(strings.Join(command, " ")), nil
		},
		logs: func(_ context.Context, of container, lines int64, previous bool) ([]byte, error) {
			return fmt.Appendf(nil, "%s of %s, %d lines, previous %t", of.name, of.pod, lines, previous), nil
		},
	}
}

// untar reads an archive's files by name.
func untar(t *testing.T, archive io.Reader) map[string]string {
	t.Helper()
	plain, err := gzip.NewReader(archive)
	if err != nil {
		t.Fatal(err)
	}
	files := map[string]string{}
	for reader := tar.NewReader(plain); ; {
		header, err := reader.Next()
		if errors.Is(err, io.EOF) {
			return files
		}
		if err != nil {
			t.Fatal(err)
		}
		text, err := io.ReadAll(reader)
		if err != nil {
			t.Fatal(err)
		}
		files[header.Name] = string(text)
	}
}

func dump(t *testing.T, nodes ...string) map[string]string {
	t.Helper()
	s := sysdump{app: &app{}, namespace: "kube-system", lines: 9, nodes: nodes, files: map[string][]byte{}}
	if err := s.collect(t.Context(), dumpedCluster(t), newProgress(io.Discard)); err != nil {
		t.Fatal(err)
	}
	var archive bytes.Buffer
	if err := s.write(&archive, "dump"); err != nil {
		t.Fatal(err)
	}
	return untar(t, &archive)
}

// What can be read is there, what cannot is named, and nothing is there that is none of a helper's business.
func TestASysdumpHasWhatCanBeReadAndNamesWhatCannot(t *testing.T) {
	files := dump(t)
	for name, want := range map[string]string{
		"dump/status":                      "nobody listens",
		"dump/status.json":                 `"ready": false`,
		"dump/objects/DaemonSet.apps.yaml": "name: tendril-agent",
		"dump/objects/NetworkPolicy.networking.k8s.io.yaml": "name: web",
		"dump/objects/Node.yaml":                            "name: n2",
		"dump/objects/Identity.tendril.io.yaml":             "name: 23d8331f",
		"dump/objects/Pod.yaml":                             "name: a2",
		"dump/logs/a1/agent":                                "agent of a1, 9 lines, previous false",
		"dump/logs/a1/agent.previous":                       "agent of a1, 9 lines, previous true",
		"dump/logs/a2/agent":                                "agent of a2, 9 lines, previous false",
		"dump/agents/n1/endpoint_list":                      "/tendril --socket /run/tendril/agent.sock endpoint list",
		"dump/agents/n1/observe_--last_1000":                "observe --last 1000",
		"dump/errors.txt":                                   "agents/n2/bpf_counters: tendril: nobody listens\n",
	} {
		if !strings.Contains(files[name], want) {
			t.Errorf("%s: got %q, want %q", name, files[name], want)
		}
	}
	if errors := files["dump/errors.txt"]; !strings.Contains(errors, "objects/Event.yaml: list events: ") || strings.Contains(errors, "ilium") {
		t.Errorf("errors: got %s, want events named, and no kind that the API server does not have", errors)
	}
	for name, text := range files {
		for _, not := range []string{"swordfish", "c2VjcmV0", "managedFields"} {
			if strings.Contains(text, not) {
				t.Errorf("%s has %s", name, not)
			}
		}
	}
	if _, has := files["dump/logs/a2/agent.previous"]; has {
		t.Error("a log of a container that never was")
	}
}

func TestASysdumpAsksTheNodesThatAreNamed(t *testing.T) {
	files := dump(t, "n2", "n7")
	for _, name := range slices.Sorted(maps.Keys(files)) {
		if strings.HasPrefix(name, "dump/agents/n1/") {
			t.Errorf("got %s", name)
		}
	}
	if errors := files["dump/errors.txt"]; !strings.Contains(errors, "agents/n2/status: ") || !strings.Contains(errors, "node n7: it has no agent's pod\n") {
		t.Errorf("got %s", errors)
	}
}

func TestASysdumpOfNothingIsNone(t *testing.T) {
	c := dumpedCluster(t)
	c.client.(*fake.FakeDynamicClient).PrependReactor("*", "*", func(clienttesting.Action) (bool, runtime.Object, error) {
		return true, nil, errors.New("connection refused")
	})
	s := sysdump{app: &app{}, namespace: "kube-system", files: map[string][]byte{}}
	if err := s.collect(t.Context(), c, newProgress(io.Discard)); err == nil || !strings.Contains(err.Error(), "connection refused") {
		t.Errorf("got %v", err)
	}
}
