package main

import (
	"context"
	"errors"
	"fmt"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/client-go/dynamic"
	"k8s.io/client-go/tools/clientcmd"
	clientcmdapi "k8s.io/client-go/tools/clientcmd/api"
)

// cluster is a Kubernetes cluster by its API server.
type cluster struct {
	client dynamic.Interface
	server string // its URL
	exec   execFunc
	logs   logsFunc
}

// dialCluster follows a kubeconfig as kubectl does; nothing is asked yet.
func dialCluster(kubeconfig string) (*cluster, error) {
	rules := clientcmd.NewDefaultClientConfigLoadingRules()
	rules.ExplicitPath = kubeconfig
	config, err := clientcmd.NewNonInteractiveDeferredLoadingClientConfig(rules, nil).ClientConfig()
	if clientcmd.IsEmptyConfig(err) {
		return nil, errors.New("no kubeconfig leads to a cluster: give one by --kubeconfig or KUBECONFIG")
	}
	if err != nil {
		return nil, fmt.Errorf("way to the API server: %w", err)
	}
	client, err := dynamic.NewForConfig(config)
	if err != nil {
		return nil, fmt.Errorf("client of the API server: %w", err)
	}
	config, pods, err := coreClient(config)
	if err != nil {
		return nil, err
	}
	return &cluster{client, config.Host, execBy(config, pods), logsBy(pods)}, nil
}

// hasKubeconfig says whether there is any that leads somewhere.
func hasKubeconfig() bool {
	config, err := clientcmd.NewDefaultClientConfigLoadingRules().Load()
	return err == nil && !clientcmdapi.IsConfigEmpty(config)
}

// resourceOf names the resource of a kind that is asked for.
func resourceOf(kind schema.GroupVersionKind) (schema.GroupVersionResource, bool) {
	resource, known := map[string]string{
		"Node": "nodes", "Namespace": "namespaces", "Pod": "pods", "Service": "services", "NetworkPolicy": "networkpolicies",
		"ConfigMap": "configmaps", "Secret": "secrets", "ServiceAccount": "serviceaccounts", "Lease": "leases",
		"DaemonSet": "daemonsets", "Deployment": "deployments",
		"ClusterRole": "clusterroles", "ClusterRoleBinding": "clusterrolebindings", "Role": "roles", "RoleBinding": "rolebindings",
		"CustomResourceDefinition": "customresourcedefinitions",
	}[kind.Kind]
	return kind.GroupVersion().WithResource(resource), known
}

// at is where an object is at the API server.
func (c *cluster) at(object *unstructured.Unstructured) (dynamic.ResourceInterface, error) {
	resource, known := resourceOf(object.GroupVersionKind())
	if !known {
		return nil, fmt.Errorf("%s: a kind that tendril does not know how to ask for", nameOf(object))
	}
	if object.GetNamespace() == "" {
		return c.client.Resource(resource), nil
	}
	return c.client.Resource(resource).Namespace(object.GetNamespace()), nil
}

// list is all objects of a kind in a namespace; "": in all, or of the cluster.
func (c *cluster) list(ctx context.Context, kind schema.GroupVersionKind, namespace string, options metav1.ListOptions) ([]unstructured.Unstructured, error) {
	resource, _ := meta.UnsafeGuessKindToResource(kind)
	list, err := c.client.Resource(resource).Namespace(namespace).List(ctx, options)
	if err != nil {
		return nil, fmt.Errorf("list %s: %w", resource.Resource, err)
	}
	return list.Items, nil
}

// get reads an object into its Go type.
func get[T any](ctx context.Context, c *cluster, kind schema.GroupVersionKind, namespace, name string) (*T, error) {
	resource, _ := resourceOf(kind)
	object, err := c.client.Resource(resource).Namespace(namespace).Get(ctx, name, metav1.GetOptions{})
	if err != nil {
		return nil, fmt.Errorf("%s %s/%s: %w", kind.Kind, namespace, name, err)
	}
	into := new(T)
	return into, runtime.DefaultUnstructuredConverter.FromUnstructured(object.Object, into)
}

// listAs is list, into the objects' Go type.
func listAs[T any](ctx context.Context, c *cluster, kind schema.GroupVersionKind, namespace string, options metav1.ListOptions) ([]T, error) {
	objects, err := c.list(ctx, kind, namespace, options)
	if err != nil {
		return nil, err
	}
	all := make([]T, len(objects))
	for i := range objects {
		if err := runtime.DefaultUnstructuredConverter.FromUnstructured(objects[i].Object, &all[i]); err != nil {
			return nil, fmt.Errorf("%s: %w", nameOf(&objects[i]), err)
		}
	}
	return all, nil
}

// apply makes an object what the manifest says, and leaves what others wrote in it.
func (c *cluster) apply(ctx context.Context, object *unstructured.Unstructured) error {
	at, err := c.at(object)
	if err != nil {
		return err
	}
	if _, err = at.Apply(ctx, object.GetName(), object, metav1.ApplyOptions{FieldManager: "tendril", Force: true}); err != nil {
		return fmt.Errorf("apply %s: %w", nameOf(object), err)
	}
	return nil
}

// has says whether an object is there.
func (c *cluster) has(ctx context.Context, object *unstructured.Unstructured) (bool, error) {
	at, err := c.at(object)
	if err != nil {
		return false, err
	}
	_, err = at.Get(ctx, object.GetName(), metav1.GetOptions{})
	if apierrors.IsNotFound(err) {
		return false, nil
	}
	if err != nil {
		return false, fmt.Errorf("%s: %w", nameOf(object), err)
	}
	return true, nil
}

// remove deletes an object and waits until it is gone, with what belongs to it. One that is not there is as good.
func (c *cluster) remove(ctx context.Context, object *unstructured.Unstructured) error {
	at, err := c.at(object)
	if err != nil {
		return err
	}
	policy := metav1.DeletePropagationForeground
	err = at.Delete(ctx, object.GetName(), metav1.DeleteOptions{PropagationPolicy: &policy})
	for err == nil {
		if _, err = at.Get(ctx, object.GetName(), metav1.GetOptions{}); err == nil {
			err = pause(ctx)
		}
	}
	if apierrors.IsNotFound(err) {
		return nil
	}
	return fmt.Errorf("delete %s: %w", nameOf(object), err)
}

// pollEvery is how often the API server is asked for what is waited for.
const pollEvery = 500 * time.Millisecond

func pause(ctx context.Context) error {
	select {
	case <-ctx.Done():
		return context.Cause(ctx)
	case <-time.After(pollEvery):
		return nil
	}
}

// await asks for an object until done says so, or why it is not.
func (c *cluster) await(ctx context.Context, object *unstructured.Unstructured, done func(*unstructured.Unstructured) string) error {
	at, err := c.at(object)
	if err != nil {
		return err
	}
	for {
		now, err := at.Get(ctx, object.GetName(), metav1.GetOptions{})
		if err != nil {
			return fmt.Errorf("wait for %s: %w", nameOf(object), err)
		}
		missing := done(now)
		if missing == "" {
			return nil
		}
		if err := pause(ctx); err != nil {
			return fmt.Errorf("wait for %s: %s: %w: see `kubectl -n %s describe pods -l app.kubernetes.io/part-of=tendril`",
				nameOf(object), missing, err, object.GetNamespace())
		}
	}
}

// awaitRollout waits until all pods of a deployment or daemon set are of its last state and ready.
func (c *cluster) awaitRollout(ctx context.Context, object *unstructured.Unstructured) error {
	fields := map[string][3]string{ // wanted, updated, ready
		"DaemonSet":  {"desiredNumberScheduled", "updatedNumberScheduled", "numberReady"},
		"Deployment": {"replicas", "updatedReplicas", "readyReplicas"},
	}[object.GetKind()]
	if fields[0] == "" {
		return nil
	}
	return c.await(ctx, object, func(now *unstructured.Unstructured) string {
		status := func(field string) int64 {
			n, _, _ := unstructured.NestedInt64(now.Object, "status", field)
			return n
		}
		wanted, updated, ready := status(fields[0]), status(fields[1]), status(fields[2])
		if status("observedGeneration") < now.GetGeneration() || wanted == 0 || updated < wanted || ready < wanted {
			return fmt.Sprintf("%d of %d pods updated, %d ready", updated, wanted, ready)
		}
		return ""
	})
}

// awaitEnd waits until a pod has done its work.
func (c *cluster) awaitEnd(ctx context.Context, pod *unstructured.Unstructured) error {
	return c.await(ctx, pod, func(now *unstructured.Unstructured) string {
		phase, _, _ := unstructured.NestedString(now.Object, "status", "phase")
		if phase == "Succeeded" {
			return ""
		}
		return "it is " + phase
	})
}
