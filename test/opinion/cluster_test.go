package opinion

import (
	"fmt"
	"maps"
	"net/netip"
	"slices"

	"github.com/mattfenwick/cyclonus/pkg/kube"
	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// place is where a cluster's objects take effect: the compiled tables, or a lab.
type place interface {
	apply(manifest []byte) error
	// setPod makes a pod, or changes its labels. The labels of its namespace come along.
	setPod(pod *corev1.Pod, namespace map[string]string) ([2]netip.Addr, error)
	removePod(namespace, name string) error
	removeNamespace(name string) error
	removePolicy(kind, namespace, name string) error
}

// cluster is the API server that cyclonus sees. What it does not need is left nil, and would panic.
type cluster struct {
	kube.IKubernetes
	place
	namespaces map[string]*corev1.Namespace
	pods       map[string]*corev1.Pod // by namespace/name, like all below
	addrs      map[string][2]netip.Addr
	services   map[string]*corev1.Service
	policies   map[string]*networkingv1.NetworkPolicy
}

func newCluster(at place) *cluster {
	return &cluster{
		place: at, namespaces: map[string]*corev1.Namespace{}, pods: map[string]*corev1.Pod{}, addrs: map[string][2]netip.Addr{},
		services: map[string]*corev1.Service{}, policies: map[string]*networkingv1.NetworkPolicy{},
	}
}

func (c *cluster) CreateNamespace(n *corev1.Namespace) (*corev1.Namespace, error) {
	return c.SetNamespaceLabels(n.Name, n.Labels)
}

func (c *cluster) GetNamespace(name string) (*corev1.Namespace, error) {
	return find(c.namespaces, name)
}

// SetNamespaceLabels replaces a namespace's labels, but for the one that the API server keeps there itself.
func (c *cluster) SetNamespaceLabels(name string, labels map[string]string) (*corev1.Namespace, error) {
	labels = maps.Clone(labels)
	labels[kube.DefaultNamespaceLabel] = name
	if old, ok := c.namespaces[name]; ok && maps.Equal(old.Labels, labels) {
		return old, nil // as no API server tells anybody about what is no change
	}
	n := &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: name, Labels: labels}}
	manifest, err := manifestOf("v1", "Namespace", n)
	if err != nil {
		return nil, err
	}
	c.namespaces[name] = n
	return n, c.place.apply(manifest)
}

// DeleteNamespace takes what is in the namespace along.
func (c *cluster) DeleteNamespace(name string) error {
	for _, pod := range inNamespace(c.pods, name) {
		if err := c.DeletePod(name, pod.Name); err != nil {
			return err
		}
	}
	delete(c.namespaces, name)
	return c.place.removeNamespace(name)
}

func (c *cluster) GetAllNamespaces() (*corev1.NamespaceList, error) {
	list := &corev1.NamespaceList{}
	for _, n := range c.namespaces {
		list.Items = append(list.Items, *n)
	}
	return list, nil
}

func (c *cluster) CreateNetworkPolicy(p *networkingv1.NetworkPolicy) (*networkingv1.NetworkPolicy, error) {
	return c.UpdateNetworkPolicy(p)
}

func (c *cluster) UpdateNetworkPolicy(p *networkingv1.NetworkPolicy) (*networkingv1.NetworkPolicy, error) {
	manifest, err := manifestOf("networking.k8s.io/v1", "NetworkPolicy", p)
	if err != nil {
		return nil, err
	}
	c.policies[p.Namespace+"/"+p.Name] = p
	return p, c.place.apply(manifest)
}

func (c *cluster) DeleteNetworkPolicy(namespace, name string) error {
	delete(c.policies, namespace+"/"+name)
	return c.place.removePolicy("NetworkPolicy", namespace, name)
}

func (c *cluster) DeleteAllNetworkPoliciesInNamespace(namespace string) error {
	for _, p := range inNamespace(c.policies, namespace) {
		if err := c.DeleteNetworkPolicy(namespace, p.Name); err != nil {
			return err
		}
	}
	return nil
}

func (c *cluster) GetNetworkPoliciesInNamespace(namespace string) ([]networkingv1.NetworkPolicy, error) {
	return values(inNamespace(c.policies, namespace)), nil
}

func (c *cluster) CreateService(s *corev1.Service) (*corev1.Service, error) {
	c.services[s.Namespace+"/"+s.Name] = s
	return s, nil
}

func (c *cluster) GetService(namespace, name string) (*corev1.Service, error) {
	return find(c.services, namespace+"/"+name)
}

func (c *cluster) DeleteService(namespace, name string) error {
	delete(c.services, namespace+"/"+name)
	return nil
}

// CreatePod makes a pod, which runs at once.
func (c *cluster) CreatePod(pod *corev1.Pod) (*corev1.Pod, error) {
	pod = pod.DeepCopy()
	pod.Spec.NodeName = "node1"
	addrs, err := c.setPod(pod)
	if err != nil {
		return nil, err
	}
	pod.Status = corev1.PodStatus{Phase: corev1.PodRunning, PodIP: addrs[0].String()}
	c.pods[pod.Namespace+"/"+pod.Name], c.addrs[pod.Namespace+"/"+pod.Name] = pod, addrs
	return pod, nil
}

func (c *cluster) GetPod(namespace, name string) (*corev1.Pod, error) {
	return find(c.pods, namespace+"/"+name)
}

func (c *cluster) DeletePod(namespace, name string) error {
	delete(c.pods, namespace+"/"+name)
	delete(c.addrs, namespace+"/"+name)
	return c.place.removePod(namespace, name)
}

func (c *cluster) SetPodLabels(namespace, name string, labels map[string]string) (*corev1.Pod, error) {
	pod, err := c.GetPod(namespace, name)
	if err != nil {
		return nil, err
	}
	if maps.Equal(pod.Labels, labels) {
		return pod, nil
	}
	pod.Labels = maps.Clone(labels)
	_, err = c.setPod(pod)
	return pod, err
}

func (c *cluster) setPod(pod *corev1.Pod) ([2]netip.Addr, error) {
	namespace, err := c.GetNamespace(pod.Namespace)
	if err != nil {
		return [2]netip.Addr{}, err
	}
	return c.place.setPod(pod, namespace.Labels)
}

func (c *cluster) GetPodsInNamespace(namespace string) ([]corev1.Pod, error) {
	return values(inNamespace(c.pods, namespace)), nil
}

// find looks an object up by its name.
func find[T any](objects map[string]*T, name string) (*T, error) {
	if object, ok := objects[name]; ok {
		return object, nil
	}
	return nil, fmt.Errorf("%T %s: not there", *new(T), name)
}

// inNamespace lists the objects of a namespace by name.
func inNamespace[T metav1.Object](objects map[string]T, namespace string) []T {
	var own []T
	for _, name := range slices.Sorted(maps.Keys(objects)) {
		if objects[name].GetNamespace() == namespace {
			own = append(own, objects[name])
		}
	}
	return own
}

func values[T any](objects []*T) []T {
	var all []T
	for _, object := range objects {
		all = append(all, *object)
	}
	return all
}
