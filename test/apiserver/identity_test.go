package apiserver

import (
	"context"
	"fmt"
	"maps"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/types"

	"tendril.io/tendril/api/tendril"
	"tendril.io/tendril/internal/identity"
	"tendril.io/tendril/internal/lab"
	"tendril.io/tendril/internal/label"
)

var identities = schema.GroupVersionResource{Group: "tendril.io", Version: "v1alpha1", Resource: "identities"}

// identitiesNow reads the objects that labels select, by namespace/name; each must be what its name is the hash of.
func (c *cluster) identitiesNow(ctx context.Context, selector string) (map[string]tendril.Identity, error) {
	list, err := c.objects.Resource(identities).List(ctx, metav1.ListOptions{LabelSelector: selector})
	if err != nil {
		return nil, err
	}
	found := map[string]tendril.Identity{}
	for i := range list.Items {
		var one tendril.Identity
		if err := runtime.DefaultUnstructuredConverter.FromUnstructured(list.Items[i].Object, &one); err != nil {
			return nil, err
		}
		if diff := cmp.Diff(one.Labels, one.Spec.Labels); diff != "" {
			return nil, fmt.Errorf("%s: labels of the object and in it:\n%s", one.Name, diff)
		}
		if hash := identity.Of(one.Spec.Cluster, one.Namespace, one.Spec.ServiceAccount, label.SetOf(one.Spec.Labels)); hash.String() != one.Name {
			return nil, fmt.Errorf("%s has the hash %s", one.Name, hash)
		}
		found[one.Namespace+"/"+one.Name] = one
	}
	return found, nil
}

// identitiesOfPods are the hashes of those that are on a node, have not ended and are in a network of their own.
func (c *cluster) identitiesOfPods(ctx context.Context) ([]string, error) {
	pods, err := c.typed.CoreV1().Pods("").List(ctx, metav1.ListOptions{})
	if err != nil {
		return nil, err
	}
	names := map[string]bool{}
	for _, pod := range pods.Items {
		if pod.Spec.NodeName != "" && !pod.Spec.HostNetwork && pod.Status.Phase != corev1.PodSucceeded {
			hash := identity.Of(lab.Cluster, pod.Namespace, pod.Spec.ServiceAccountName, label.SetOf(pod.Labels))
			names[pod.Namespace+"/"+hash.String()] = true
		}
	}
	return slices.Sorted(maps.Keys(names)), nil
}

// areThosePodsHave waits until there is an object for each identity of a pod, and no other.
func (c *cluster) areThosePodsHave(t *testing.T) (found map[string]tendril.Identity) {
	eventually(t, "identities to be those of pods", func(ctx context.Context) error {
		want, err := c.identitiesOfPods(ctx)
		if err != nil {
			return err
		}
		if found, err = c.identitiesNow(ctx, ""); err != nil {
			return err
		}
		return differ(cmp.Diff(want, slices.Sorted(maps.Keys(found))))
	})
	return found
}

func (c *cluster) identified(t *testing.T) {
	found := c.areThosePodsHave(t)
	if len(found) != 3 {
		t.Errorf("%d identities, want 3: of web-1, of web-2 in the other zone, and of client", len(found))
	}
	known, err := c.CLI(t.Context(), "--node", "node2", "db", "show", "labelsets")
	if err != nil {
		t.Fatal(err)
	}
	c.who = map[string]types.UID{}
	for name, one := range found {
		c.who[name] = one.UID
		if line := regexp.MustCompile(one.Name + ` +\S+ +` + one.Namespace + ` +` + one.Spec.ServiceAccount + ` `); !line.MatchString(known) {
			t.Errorf("agents do not know %s: %s", name, known)
		}
	}
	web, err := c.identitiesNow(t.Context(), "app=web,topology.kubernetes.io/zone=a")
	if err != nil || len(web) != 1 {
		t.Fatalf("selected %v, %v, want the one of web-1", web, err)
	}
	for _, one := range web {
		c.readAndRefused(t, one)
	}
}

// readAndRefused wants what `kubectl get` prints of an identity, and that nobody can make it another.
func (c *cluster) readAndRefused(t *testing.T, one tendril.Identity) {
	header, cells := c.columns(t, "/apis/tendril.io/v1alpha1/namespaces/shop/identities/"+one.Name)
	want := []string{one.Name, "baker", `{"app":"web","team":"red","topology.kubernetes.io/zone":"a"}`}
	if diff := cmp.Diff([]string{"Name", "ServiceAccount", "Labels", "Age"}, header) + cmp.Diff(want, cells[:3]); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
	other := &unstructured.Unstructured{Object: map[string]any{}}
	other.SetGroupVersionKind(identities.GroupVersion().WithKind(tendril.KindIdentity))
	other.SetNamespace(one.Namespace)
	other.SetName(one.Name)
	for field, value := range map[string]any{"serviceAccount": "other", "labels": map[string]any{"app": "other"}} {
		other.Object["spec"] = map[string]any{"cluster": one.Spec.Cluster, "serviceAccount": one.Spec.ServiceAccount, field: value}
		_, err := c.objects.Resource(identities).Namespace(one.Namespace).Apply(t.Context(), one.Name, other, metav1.ApplyOptions{FieldManager: "test", Force: true})
		if err == nil || !strings.Contains(err.Error(), "another is another object") {
			t.Errorf("another %s: got %v, want it refused", field, err)
		}
	}
}

func (c *cluster) identifiedStill(t *testing.T) {
	kept := 0
	for name, one := range c.areThosePodsHave(t) {
		if before, was := c.who[name]; was {
			if kept++; before != one.UID {
				t.Errorf("%s was made anew", name)
			}
		}
	}
	if kept != 1 { // web-2 is gone and client has other labels
		t.Errorf("%d identities are there that were, want that of web-1", kept)
	}
}

// unidentified waits for the grace, and looks at what all identities have cost.
func (c *cluster) unidentified(t *testing.T) {
	if found := c.areThosePodsHave(t); len(found) > 0 {
		t.Errorf("there is still %v", found)
	}
	did := map[string]map[string]int{"patch": {}, "delete": {}}
	for _, r := range c.requests(t) {
		_, name, _ := strings.Cut(r.RequestURI, "/identities/")
		if name, _, _ = strings.Cut(name, "?"); name != "" && r.User.Username == "system:serviceaccount:kube-system:tendril-operator" {
			if did[r.Verb] == nil {
				t.Errorf("the operator asked to %s %s", r.Verb, r.RequestURI)
				continue
			}
			did[r.Verb][name]++
		}
	}
	for verb, names := range did {
		if len(names) != 5 { // of the three, of the client's other labels, and of the pod that was made under the second leader
			t.Errorf("%s: %d identities, want 5", verb, len(names))
		}
		for name, times := range names {
			if times != 1 {
				t.Errorf("%s of %s: %d times, want one", verb, name, times)
			}
		}
	}
}
