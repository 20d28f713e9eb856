package main

import (
	"bytes"
	"encoding/json"
	"slices"
	"strings"
	"testing"

	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/client-go/dynamic/fake"
	clienttesting "k8s.io/client-go/testing"

	"tendril.io/tendril/deploy/helm"
)

// installedWith is what the chart makes of values that are not the defaults.
func installedWith(t *testing.T, remove bool) (objects []runtime.Object) {
	t.Helper()
	values, err := helm.Defaults()
	if err != nil {
		t.Fatal(err)
	}
	set := []string{
		"operator.node=n1", "operator.address=192.0.2.9", "image.agent=registry.example/agent:7", "image.pullPolicy=Always", "cni.binDir=/usr/libexec/cni",
		"cni.confDir=/var/net.d", "operator.storeDir=/srv/store", "agent.config.bpf_root=/sys/fs/bpf/other",
	}
	if remove {
		set = append(set, "remove.nodes=[n1]")
	}
	for _, assignment := range set {
		if err := values.Set(assignment); err != nil {
			t.Fatal(err)
		}
	}
	rendered, err := helm.Render(values, "kube-system")
	if err != nil {
		t.Fatal(err)
	}
	for _, object := range rendered {
		objects = append(objects, object)
	}
	return objects
}

// Whoever uninstalls need not know how it was installed: by whom, with which values, and whether somebody has tried before.
func TestUninstallCleansWhatWasInstalled(t *testing.T) {
	for name, test := range map[string]struct {
		objects []runtime.Object
		set     []string
		want    string // image, pull policy, folders
	}{
		"by its workloads":           {installedWith(t, false), nil, "registry.example/agent:7 Always /usr/libexec/cni /var/net.d /srv/store"},
		"by the pods of another try": {installedWith(t, true), nil, "registry.example/agent:7 Always /usr/libexec/cni /var/net.d /srv/store"},
		"by what is said":            {installedWith(t, false), []string{"cni.confDir=/etc/other"}, "registry.example/agent:7 Always /usr/libexec/cni /etc/other /srv/store"},
		"by the defaults":            {nil, nil, "tendril.io/agent:dev IfNotPresent /opt/cni/bin /etc/cni/net.d /var/lib/tendril-store"},
	} {
		t.Run(name, func(t *testing.T) {
			c := &cluster{client: fake.NewSimpleDynamicClient(runtime.NewScheme(), append(test.objects, podsOfAnother(t)...)...)}
			i := installation{namespace: "kube-system", set: test.set}
			values, err := i.asInstalled(t.Context(), c)
			if err != nil {
				t.Fatal(err)
			}
			var got []string
			for _, value := range []string{"image.agent", "image.pullPolicy", "cni.binDir", "cni.confDir", "operator.storeDir"} {
				got = append(got, values.Text(value))
			}
			if text := strings.Join(got, " "); text != test.want {
				t.Errorf("got %s, want %s", text, test.want)
			}
			if _, err := helm.Render(values, "kube-system"); err != nil { // nobody was asked for the operator's address
				t.Error(err)
			}
		})
	}
}

func podsOfAnother(t *testing.T) []runtime.Object {
	t.Helper()
	return objectsOf(t, `{apiVersion: v1, kind: Pod, metadata: {name: other, namespace: kube-system}, spec: {containers: [{name: agent, image: "other:1"}]}}`)
}

// What the agents were told stays until the nodes are clean, for it says where they put what.
func TestUninstallLeavesTheConfigurationToThePodsThatClean(t *testing.T) {
	for name, test := range map[string]struct {
		without string // an object
		want    string // what is applied
	}{
		"all there":                    {"", "pods/tendril-remove-n1"},
		"the configuration is deleted": {"ConfigMap tendril", "configmaps/tendril pods/tendril-remove-n1"},
	} {
		t.Run(name, func(t *testing.T) {
			objects := slices.DeleteFunc(installedWith(t, false), func(o runtime.Object) bool { return nameOf(o.(*unstructured.Unstructured)) == test.without })
			client := fake.NewSimpleDynamicClient(runtime.NewScheme(), slices.Concat(objects, podsOfAnother(t), objectsOf(t, "{apiVersion: v1, kind: Node, metadata: {name: n1}}"))...)
			var applied []string
			client.PrependReactor("patch", "*", func(action clienttesting.Action) (bool, runtime.Object, error) {
				patch := action.(clienttesting.PatchAction)
				applied = append(applied, action.GetResource().Resource+"/"+patch.GetName())
				object := &unstructured.Unstructured{}
				if err := json.Unmarshal(patch.GetPatch(), &object.Object); err != nil {
					return true, nil, err
				}
				if object.GetKind() == "Pod" { // it has done its work at once
					_ = unstructured.SetNestedField(object.Object, "Succeeded", "status", "phase")
				}
				return true, object, client.Tracker().Create(action.GetResource(), object, object.GetNamespace())
			})
			c, i, out := &cluster{client: client}, installation{namespace: "kube-system"}, &bytes.Buffer{}
			values, err := i.asInstalled(t.Context(), c)
			if err != nil {
				t.Fatal(err)
			}
			if err := i.clean(t.Context(), out, c, values); err != nil {
				t.Fatal(err)
			}
			if got := strings.Join(applied, " "); got != test.want || out.String() != "cleaned node of Pod tendril-remove-n1\n" {
				t.Errorf("applied %s, want %s; said %q", got, test.want, out)
			}
		})
	}
}

// Whose objects are the users' is theirs to remove.
func TestUninstallLeavesTheKindsOfUsersAndNothingOfItsOwn(t *testing.T) {
	installed := installedWith(t, false)
	there := slices.Concat(installed, objectsOf(t, `
{apiVersion: coordination.k8s.io/v1, kind: Lease, metadata: {name: tendril-operator, namespace: kube-system}}
---
{apiVersion: apiextensions.k8s.io/v1, kind: CustomResourceDefinition, metadata: {name: identities.tendril.io}}
---
{apiVersion: apiextensions.k8s.io/v1, kind: CustomResourceDefinition, metadata: {name: loadbalancerpools.tendril.io}}
`))
	client := fake.NewSimpleDynamicClient(runtime.NewScheme(), there...)
	var objects []*unstructured.Unstructured
	for _, object := range installed {
		objects = append(objects, object.(*unstructured.Unstructured))
	}
	c, i := &cluster{client: client}, installation{namespace: "kube-system"}
	if err := i.forget(t.Context(), c, objects); err != nil {
		t.Fatal(err)
	}
	for _, object := range there {
		has, err := c.has(t.Context(), object.(*unstructured.Unstructured))
		if err != nil {
			t.Fatal(err)
		}
		name := nameOf(object.(*unstructured.Unstructured))
		if want := strings.Contains(name, "loadbalancerpools"); has != want {
			t.Errorf("%s is there: %t, want %t", name, has, want)
		}
	}
}
