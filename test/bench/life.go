package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"strconv"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/types"
	fakediscovery "k8s.io/client-go/discovery/fake"
	"k8s.io/client-go/dynamic"
	fakedynamic "k8s.io/client-go/dynamic/fake"
	clienttesting "k8s.io/client-go/testing"

	storev1 "tendril.io/tendril/api/store/v1"
	"tendril.io/tendril/internal/operator"
	"tendril.io/tendril/internal/store"
)

// Names as long as Kubernetes makes them.
const (
	podNode      = "worker-17"
	podNamespace = "production"
	marker       = "marker"
)

// lifePods live at once: what a fake watch holds at most is 100 events.
const lifePods = 60

// podCluster is an operator, and the fake API server with the pods that it reads.
type podCluster struct {
	*plane
	pods dynamic.ResourceInterface
	live []*corev1.Pod
	// Of the object that says how far the operator has read.
	mark int
}

// lives has pods of three deployments live from their creation to their end, with all the changes that their objects see from
// scheduler and kubelet, and counts what is written to the store for it: by the operator, and by the agent of their node.
func (b *bench) lives(ctx context.Context, p *plane) error {
	scheme := runtime.NewScheme()
	if err := corev1.AddToScheme(scheme); err != nil {
		return err
	}
	objects := fakedynamic.NewSimpleDynamicClient(scheme)
	kinds := &fakediscovery.FakeDiscovery{Fake: &clienttesting.Fake{}}
	kinds.Resources = []*metav1.APIResourceList{{GroupVersion: "v1", APIResources: []metav1.APIResource{
		{Name: "pods", Kind: "Pod", Verbs: []string{"list", "watch"}}}}}
	operating, stop := context.WithCancel(ctx)
	ended := make(chan error, 1)
	go func() {
		ended <- operator.Run(operating, operator.Config{
			Cluster: storeCluster, Objects: objects, Kinds: kinds, Store: p.writer, Logger: slog.New(slog.DiscardHandler),
		})
	}()
	c := &podCluster{plane: p, pods: objects.Resource(corev1.SchemeGroupVersion.WithResource("pods")).Namespace(podNamespace)}
	err := c.life(ctx, b)
	stop()
	return errors.Join(err, <-ended)
}

// life takes the pods through their life, a step at a time for all of them.
func (c *podCluster) life(ctx context.Context, b *bench) error {
	if err := c.settle(ctx); err != nil {
		return err
	}
	before := c.agent.Status().Revision
	for i := range lifePods {
		c.live = append(c.live, newPod(i))
	}
	for i, step := range podSteps() {
		if err := c.all(ctx, i, step); err != nil {
			return fmt.Errorf("step %d: %w", i, err)
		}
	}
	changes, err := c.changes(ctx, before)
	if err != nil {
		return err
	}
	var writes, podPuts, podBytes float64
	for _, change := range changes {
		if kind := change.key.Kind; change.key.Third == marker || kind != store.KindPod && kind != store.KindLabels && kind != store.KindIP {
			continue
		}
		writes++
		if change.key.Kind == store.KindPod && !change.removed {
			podPuts, podBytes = podPuts+1, podBytes+float64(change.bytes)
		}
	}
	b.results["store_writes_per_pod_life"] = writes / lifePods
	b.results["store_bytes_per_pod_event"] = podBytes / podPuts
	return nil
}

// newPod is a pod as a deployment makes it, before it has a node.
func newPod(i int) *corev1.Pod {
	app := fmt.Sprintf("frontend-%d", i%3)
	hash := fmt.Sprintf("7d4b9c6f%d", i%3)
	pod := &corev1.Pod{}
	pod.Namespace, pod.Name, pod.UID = podNamespace, fmt.Sprintf("%s-%s-x%04d", app, hash, i), types.UID(fmt.Sprintf("6f1c1f0e-7a3c-4b52-9e55-%012d", i))
	pod.Labels = map[string]string{"app": app, "pod-template-hash": hash}
	pod.Spec.ServiceAccountName = app
	pod.Spec.Containers = []corev1.Container{{Name: "server", Image: "registry.example/server:1", Ports: []corev1.ContainerPort{{Name: "http", ContainerPort: 8080}}}}
	pod.Status.Phase = corev1.PodPending
	return pod
}

// podStep is one change of a pod's object; what the agent of its node does then is done with it.
type podStep struct {
	change func(*corev1.Pod)
	agent  func(c *podCluster, i int, pod *corev1.Pod) error
}

// podSteps are what kubectl get pods --watch shows of a pod's life, the first being its creation, and then its object goes.
func podSteps() []podStep {
	condition := func(kind corev1.PodConditionType, status corev1.ConditionStatus) func(*corev1.Pod) {
		return func(pod *corev1.Pod) {
			pod.Status.Conditions = append(pod.Status.Conditions, corev1.PodCondition{Type: kind, Status: status})
		}
	}
	return []podStep{
		{change: func(*corev1.Pod) {}},
		{change: func(pod *corev1.Pod) { pod.Spec.NodeName = podNode }},
		{change: condition(corev1.PodInitialized, corev1.ConditionTrue)},
		{change: func(pod *corev1.Pod) {
			pod.Status.PodIP, pod.Status.Phase = "10.0.0.1", corev1.PodRunning
		}, agent: (*podCluster).publish},
		{change: condition(corev1.PodReady, corev1.ConditionTrue)},
		{change: func(pod *corev1.Pod) { pod.Annotations = map[string]string{"example.org/seen": "yes"} }},
		{change: func(pod *corev1.Pod) { pod.DeletionTimestamp = &metav1.Time{} }},
		{change: func(pod *corev1.Pod) {
			pod.Status.Conditions[len(pod.Status.Conditions)-1].Status = corev1.ConditionFalse
		}, agent: (*podCluster).withdraw},
		{change: nil},
	}
}

// all takes every pod through a step, and waits until the operator has read it and the agent has heard of it.
func (c *podCluster) all(ctx context.Context, number int, step podStep) error {
	for i, pod := range c.live {
		var err error
		if step.change == nil {
			err = c.pods.Delete(ctx, pod.Name, metav1.DeleteOptions{})
		} else {
			step.change(pod)
			err = c.put(ctx, pod, number == 0)
		}
		if err == nil && step.agent != nil {
			err = step.agent(c, i, pod)
		}
		if err != nil {
			return err
		}
	}
	if err := c.settle(ctx); err != nil {
		return err
	}
	return c.until(ctx, "the agent's own keys are in the store", func() bool { return c.agent.Status().Counters.Pending == 0 })
}

// put gives the API server an object.
func (c *podCluster) put(ctx context.Context, pod *corev1.Pod, isNew bool) error {
	fields, err := runtime.DefaultUnstructuredConverter.ToUnstructured(pod)
	if err != nil {
		return err
	}
	object := &unstructured.Unstructured{Object: fields}
	object.SetGroupVersionKind(corev1.SchemeGroupVersion.WithKind("Pod"))
	if isNew {
		_, err = c.pods.Create(ctx, object, metav1.CreateOptions{})
	} else {
		_, err = c.pods.Update(ctx, object, metav1.UpdateOptions{})
	}
	return err
}

// settle waits until the operator has read all changes so far: it reads those of a kind in their order, and one more pod, which is not
// counted, shows how far it is.
func (c *podCluster) settle(ctx context.Context) error {
	c.mark++
	pod := newPod(0)
	pod.Name, pod.Labels, pod.Spec.NodeName = marker, map[string]string{"app": marker}, podNode
	pod.Spec.Containers[0].Ports[0].ContainerPort = int32(c.mark)
	if err := c.put(ctx, pod, c.mark == 1); err != nil {
		return err
	}
	key := store.Prefix(storeCluster) + store.PodKey(podNode, podNamespace, marker).String()
	return c.until(ctx, "the operator has written mark "+strconv.Itoa(c.mark), func() bool {
		answer, err := c.raw.Get(ctx, key)
		return err == nil && len(answer.Kvs) == 1 && answer.Kvs[0].Version == int64(c.mark)
	})
}

// address is what the node gives to a pod.
func address(i int) netip.Addr { return netip.AddrFrom4([4]byte{10, 0, 17, byte(i + 2)}) }

// publish is what the node's agent does when the pod gets its address.
func (c *podCluster) publish(i int, pod *corev1.Pod) error {
	return c.agent.Publisher().Set(store.IPKey(podNode, address(i)), &storev1.IP{
		PodUid: string(pod.UID), Sandbox: fmt.Sprintf("%064x", i), Namespace: pod.Namespace, Pod: pod.Name,
	})
}

// withdraw is what it does when the sandbox is removed.
func (c *podCluster) withdraw(i int, _ *corev1.Pod) error {
	return c.agent.Publisher().Delete(store.IPKey(podNode, address(i)))
}
