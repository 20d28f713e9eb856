package operator

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"go.uber.org/goleak"
	"google.golang.org/protobuf/proto"
	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	networkingv1 "k8s.io/api/networking/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	fakediscovery "k8s.io/client-go/discovery/fake"
	"k8s.io/client-go/dynamic"
	fakedynamic "k8s.io/client-go/dynamic/fake"
	clienttesting "k8s.io/client-go/testing"

	"tendril.io/tendril/api/cilium"
	storev1 "tendril.io/tendril/api/store/v1"
	"tendril.io/tendril/internal/store"
)

// TestMain fails the run if a goroutine outlives the tests.
func TestMain(m *testing.M) {
	goleak.VerifyTestMain(m,
		// libraries of the embedded etcd, whose goroutines live as long as the process
		goleak.IgnoreTopFunction("go.opencensus.io/stats/view.(*worker).start"),
		goleak.IgnoreTopFunction("github.com/golang/glog.(*fileSink).flushDaemon"))
}

// memory is a store that can be away.
type memory struct {
	mu      sync.Mutex
	away    bool
	records map[string]proto.Message
	calls   int
	nodes   map[string]bool // whether each is alive
	looked  int
	lists   int
	acks    map[string]uint64
	// Of every policy, and of the counter.
	revision uint64
	extra    map[string]*storev1.Node // of agents
	state    store.State

	fillings int
}

// errAway is what a store that is away answers.
var errAway = errors.New("away")

func (m *memory) State(context.Context) (store.State, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.state, nil
}

func (m *memory) List(_ context.Context, kind store.Kind) (records []store.Record, err error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.lists++
	for node, revision := range m.acks {
		if kind == store.KindAck {
			records = append(records, store.Record{Key: "acks/" + node, Value: &storev1.Ack{PolicyRevision: revision}})
		}
	}
	for node, record := range m.extra {
		if kind == store.KindNode {
			records = append(records, store.Record{Key: "nodes/" + node, Value: record})
		}
	}
	for key, value := range m.records {
		if strings.HasPrefix(key, string(kind)+"/") {
			if policy, ok := value.(*storev1.Policy); ok {
				policy = proto.CloneOf(policy)
				policy.Revision = m.revision
				value = policy
			}
			records = append(records, store.Record{Key: key, Value: value})
		}
	}
	return records, nil
}

func (m *memory) PolicyRevision(context.Context) (uint64, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.revision, nil
}

func (m *memory) listed() int {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.lists
}

func (m *memory) Nodes(context.Context) (map[string]bool, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.looked++
	return maps.Clone(m.nodes), nil
}

func (m *memory) DeleteDeadNode(_ context.Context, node string) (bool, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	delete(m.nodes, node)
	return true, nil
}

func (m *memory) nodesNow() map[string]bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	return maps.Clone(m.nodes)
}

func (m *memory) looks() int {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.looked
}

func (m *memory) Apply(_ context.Context, records []store.Record) (store.Result, error) {
	return m.write(records, false)
}

func (m *memory) Fill(_ context.Context, records []store.Record, unknown ...string) (store.Result, error) {
	return m.write(records, true, unknown...)
}

func (m *memory) write(records []store.Record, whole bool, unknown ...string) (store.Result, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.calls++
	if m.away {
		return store.Result{}, errAway
	}
	if m.state.Epoch == "" {
		m.fillings++
		m.state.Epoch = fmt.Sprintf("e%d", m.fillings)
	}
	if m.records == nil {
		m.records = map[string]proto.Message{}
	}
	maps.DeleteFunc(m.records, func(key string, _ proto.Message) bool {
		return whole && !slices.ContainsFunc(unknown, func(prefix string) bool { return strings.HasPrefix(key, prefix) })
	})
	for _, record := range records {
		if m.records[record.Key] = record.Value; record.Value == nil {
			delete(m.records, record.Key)
		}
	}
	return store.Result{Epoch: m.state.Epoch}, nil
}

func (m *memory) setAway(away bool) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.away = away
}

func (m *memory) count() int {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.calls
}

// keys lists the keys but those of label sets, of which it says how many there are.
func (m *memory) keys() (keys []string, sets int) {
	m.mu.Lock()
	defer m.mu.Unlock()
	for _, key := range slices.Sorted(maps.Keys(m.records)) {
		if strings.HasPrefix(key, "labels/") {
			sets++
			continue
		}
		keys = append(keys, key)
	}
	return keys, sets
}

func (m *memory) get(key string) proto.Message {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.records[key]
}

// cluster is an operator at work on a fake API server.
type cluster struct {
	t       *testing.T
	objects *fakedynamic.FakeDynamicClient
	memory  *memory
	config  Config
}

func start(t *testing.T, objects ...runtime.Object) *cluster {
	t.Helper()
	c := prepare(t, objects...)
	c.run()
	return c
}

// prepare makes everything but the operator itself.
func prepare(t *testing.T, objects ...runtime.Object) *cluster {
	t.Helper()
	scheme := runtime.NewScheme()
	for _, add := range []func(*runtime.Scheme) error{corev1.AddToScheme, discoveryv1.AddToScheme, networkingv1.AddToScheme} {
		if err := add(scheme); err != nil {
			t.Fatal(err)
		}
	}
	ciliumKind := schema.FromAPIVersionAndKind(cilium.APIVersion, cilium.KindNetworkPolicy)
	scheme.AddKnownTypeWithName(ciliumKind, &unstructured.Unstructured{})
	scheme.AddKnownTypeWithName(ciliumKind.GroupVersion().WithKind(ciliumKind.Kind+"List"), &unstructured.UnstructuredList{})
	c := &cluster{t: t, objects: fakedynamic.NewSimpleDynamicClient(scheme, objects...), memory: &memory{}}
	kinds := &fakediscovery.FakeDiscovery{Fake: &clienttesting.Fake{}}
	kinds.Resources = []*metav1.APIResourceList{
		resources("v1", "Namespace", "Node", "Pod", "Service"),
		resources("discovery.k8s.io/v1", "EndpointSlice"),
		{GroupVersion: cilium.APIVersion, APIResources: []metav1.APIResource{
			{Name: "ciliumnetworkpolicies", Kind: cilium.KindNetworkPolicy, Verbs: []string{"list", "watch"}}}},
		{GroupVersion: "networking.k8s.io/v1", APIResources: []metav1.APIResource{
			{Name: "networkpolicies", Kind: "NetworkPolicy", Verbs: []string{"list", "watch"}}}},
	}
	c.config = Config{Cluster: "default", Objects: c.objects, Kinds: kinds, Store: c.memory, Logger: slog.New(slog.DiscardHandler)}
	return c
}

// run starts the operator, until the test ends.
func (c *cluster) run() {
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- Run(ctx, c.config) }()
	c.t.Cleanup(func() {
		cancel()
		if err := <-ended; err != nil {
			c.t.Errorf("operator ended: %v", err)
		}
	})
}

func resources(version string, kinds ...string) *metav1.APIResourceList {
	list := &metav1.APIResourceList{GroupVersion: version}
	for _, kind := range kinds {
		name := strings.ToLower(kind) + "s"
		list.APIResources = append(list.APIResources,
			metav1.APIResource{Name: name, Kind: kind, Verbs: []string{"list", "watch"}},
			metav1.APIResource{Name: name + "/status", Kind: kind, Verbs: []string{"get"}})
	}
	return list
}

// await waits until the store has the keys and the number of label sets.
func (c *cluster) await(sets int, want ...string) {
	c.t.Helper()
	c.until(func() string {
		got, number := c.memory.keys()
		return cmp.Diff(sets, number) + cmp.Diff(want, got)
	})
}

// until waits until a check has nothing to say.
func (c *cluster) until(check func() string) {
	c.t.Helper()
	deadline := time.Now().Add(10 * time.Second)
	for {
		wrong := check()
		if wrong == "" {
			return
		}
		if time.Now().After(deadline) {
			c.t.Fatal(wrong)
		}
		time.Sleep(5 * time.Millisecond)
	}
}

func (c *cluster) in(resource, namespace string) dynamic.ResourceInterface {
	groups := map[string]schema.GroupVersionResource{
		"ciliumnetworkpolicies": {Group: "cilium.io", Version: "v2", Resource: resource},
		"networkpolicies":       {Group: "networking.k8s.io", Version: "v1", Resource: resource},
		"endpointslices":        {Group: "discovery.k8s.io", Version: "v1", Resource: resource},
	}
	gvr, ok := groups[resource]
	if !ok {
		gvr = schema.GroupVersionResource{Version: "v1", Resource: resource}
	}
	if namespace == "" {
		return c.objects.Resource(gvr)
	}
	return c.objects.Resource(gvr).Namespace(namespace)
}

func (c *cluster) update(resource string, object runtime.Object) {
	c.t.Helper()
	u := raw(c.t, object)
	if _, err := c.in(resource, u.GetNamespace()).Update(c.t.Context(), u, metav1.UpdateOptions{}); err != nil {
		c.t.Fatal(err)
	}
}

func (c *cluster) remove(resource, namespace, name string) {
	c.t.Helper()
	if err := c.in(resource, namespace).Delete(c.t.Context(), name, metav1.DeleteOptions{}); err != nil {
		c.t.Fatal(err)
	}
}

func raw(t *testing.T, object runtime.Object) *unstructured.Unstructured {
	t.Helper()
	if u, ok := object.(*unstructured.Unstructured); ok {
		return u
	}
	fields, err := runtime.DefaultUnstructuredConverter.ToUnstructured(object)
	if err != nil {
		t.Fatal(err)
	}
	return &unstructured.Unstructured{Object: fields}
}

func pod(name string) *corev1.Pod {
	return &corev1.Pod{
		TypeMeta:   metav1.TypeMeta{APIVersion: "v1", Kind: "Pod"},
		ObjectMeta: metav1.ObjectMeta{Namespace: "shop", Name: name, UID: "uid", Labels: map[string]string{"app": "web"}},
		Spec:       corev1.PodSpec{NodeName: "n1", Containers: []corev1.Container{{Name: "c", Image: "i"}}},
	}
}

func node() *corev1.Node {
	return &corev1.Node{
		TypeMeta:   metav1.TypeMeta{APIVersion: "v1", Kind: "Node"},
		ObjectMeta: metav1.ObjectMeta{Name: "n1", Labels: map[string]string{"zone": "a"}},
	}
}

func TestTheStoreFollowsTheCluster(t *testing.T) {
	ended, waiting := pod("ended"), pod("waiting")
	ended.Status.Phase, waiting.Spec.NodeName = corev1.PodSucceeded, ""
	c := start(t, node(), pod("a"), pod("b"), ended, waiting)
	c.await(1, "nodelabels/n1", "pods/n1/shop/a", "pods/n1/shop/b")

	// Two pods of one label set: it goes with the last.
	c.remove("pods", "shop", "a")
	c.await(1, "nodelabels/n1", "pods/n1/shop/b")
	c.remove("pods", "shop", "b")
	c.await(0, "nodelabels/n1")

	waiting.Spec.NodeName = "n1"
	c.update("pods", waiting)
	c.await(1, "nodelabels/n1", "pods/n1/shop/waiting")
}

func TestAServiceOfAnotherProxyIsNotServed(t *testing.T) {
	service := func(name string, labels map[string]string) *corev1.Service {
		return &corev1.Service{
			TypeMeta:   metav1.TypeMeta{APIVersion: "v1", Kind: "Service"},
			ObjectMeta: metav1.ObjectMeta{Namespace: "shop", Name: name, UID: "uid", Labels: labels},
			Spec:       corev1.ServiceSpec{ClusterIP: "10.96.0.7", Ports: []corev1.ServicePort{{Port: 80}}},
		}
	}
	// Their values do not matter.
	other := map[string]string{"service.kubernetes.io/service-proxy-name": "other"}
	nobodys := map[string]string{"service.kubernetes.io/headless": ""}
	c := start(t, service("web", nil), service("other", other), service("nobodys", nobodys))
	c.await(0, "services/shop/web")

	c.update("services", service("web", nobodys))
	c.await(0)
	c.update("services", service("web", nil))
	c.await(0, "services/shop/web")
	c.update("services", service("web", other))
	c.await(0)
}

func TestAHeartbeatIsNoWrite(t *testing.T) {
	c := start(t, node(), pod("a"))
	c.await(1, "nodelabels/n1", "pods/n1/shop/a")
	before := c.memory.count()

	beat := node()
	beat.Status.Conditions = []corev1.NodeCondition{{Type: corev1.NodeReady, LastHeartbeatTime: metav1.Now()}}
	beat.Annotations = map[string]string{"seen": "now"}
	c.update("nodes", beat)
	image := pod("a")
	image.Spec.Containers[0].Image = "other"
	c.update("pods", image)
	// What is written after the two proves that they were read.
	labels := node()
	labels.Labels["zone"] = "b"
	c.update("nodes", labels)
	c.until(func() string {
		return cmp.Diff("b", c.memory.get("nodelabels/n1").(*storev1.NodeLabels).Labels["zone"])
	})
	if got := c.memory.count() - before; got != 1 {
		t.Errorf("got %d writes, want 1", got)
	}
}

func TestAPolicyThatNobodyCanReadIsHandedToAgents(t *testing.T) {
	policy := func(field string) *unstructured.Unstructured {
		return &unstructured.Unstructured{Object: map[string]any{
			"apiVersion": "networking.k8s.io/v1", "kind": "NetworkPolicy",
			"metadata": map[string]any{"namespace": "shop", "name": "p"},
			"spec":     map[string]any{field: map[string]any{}},
		}}
	}
	c := start(t, policy("podSelector"))
	const key = "policies/NetworkPolicy/shop/p"
	c.await(0, key)
	c.update("networkpolicies", policy("ofTheFuture"))
	c.until(func() string {
		if !strings.Contains(string(c.memory.get(key).(*storev1.Policy).Object), "ofTheFuture") {
			return "the store still has the version before"
		}
		return ""
	})
}

func TestAStoreThatWasAwayIsWholeAgain(t *testing.T) {
	c := start(t, node(), pod("a"))
	c.await(1, "nodelabels/n1", "pods/n1/shop/a")
	c.memory.setAway(true)
	before := c.memory.count()
	c.remove("pods", "shop", "a")
	c.until(func() string {
		if c.memory.count() == before {
			return "the store was not asked"
		}
		return ""
	})
	// It comes back with nothing of what it had.
	c.memory.mu.Lock()
	c.memory.away, c.memory.records = false, map[string]proto.Message{"services/shop/old": nil}
	c.memory.mu.Unlock()
	c.await(0, "nodelabels/n1")
}

func TestAKindThatCannotBeListedHoldsUpNoOther(t *testing.T) {
	c := prepare(t, node(), pod("a"))
	var refused atomic.Bool
	refused.Store(true)
	c.objects.PrependReactor("list", "pods", func(clienttesting.Action) (bool, runtime.Object, error) {
		if refused.Load() {
			return true, nil, apierrors.NewForbidden(schema.GroupResource{Resource: "pods"}, "", errAway)
		}
		return false, nil, nil
	})
	// The store knows of a pod that is gone, and of one that is not.
	c.memory.records = map[string]proto.Message{"pods/n1/shop/gone": &storev1.Pod{}, "services/shop/gone": &storev1.Service{}}
	c.config.patience = 50 * time.Millisecond
	c.run()
	c.await(0, "nodelabels/n1", "pods/n1/shop/gone")
	refused.Store(false)
	c.await(1, "nodelabels/n1", "pods/n1/shop/a")
}

func TestNothingIsKeptThatNoRecordIsMadeOf(t *testing.T) {
	kept := pod("a")
	kept.Spec.Containers[0].Env = []corev1.EnvVar{{Name: "SECRET", Value: "x"}}
	kept.ManagedFields = []metav1.ManagedFieldsEntry{{Manager: "kubelet"}}
	got, err := trimmer(schema.GroupVersionKind{Version: "v1", Kind: "Pod"})(raw(t, kept))
	if err != nil {
		t.Fatal(err)
	}
	want := map[string]any{
		"apiVersion": "v1", "kind": "Pod",
		"metadata": map[string]any{"namespace": "shop", "name": "a", "uid": "uid", "labels": map[string]any{"app": "web"}},
		"spec":     map[string]any{"nodeName": "n1", "containers": []any{map[string]any{"name": "c"}}},
		"status":   map[string]any{},
	}
	if diff := cmp.Diff(want, got.(*unstructured.Unstructured).Object); diff != "" {
		t.Error(diff)
	}
}
