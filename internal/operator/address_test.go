package operator

import (
	"encoding/json"
	"net/netip"
	"strings"
	"sync"
	"testing"

	"github.com/google/go-cmp/cmp"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	clienttesting "k8s.io/client-go/testing"

	storev1 "tendril.io/tendril/api/store/v1"
	"tendril.io/tendril/internal/store"
)

// balancer is a service of type LoadBalancer, with addresses in its status that a manager wrote.
func balancer(manager string, addrs ...string) *unstructured.Unstructured {
	var ingress []any
	for _, addr := range addrs {
		ingress = append(ingress, map[string]any{"ip": addr, "ipMode": "VIP"})
	}
	object := &unstructured.Unstructured{Object: map[string]any{
		"apiVersion": "v1", "kind": "Service",
		"metadata": map[string]any{"namespace": "shop", "name": "web", "uid": "u"},
		"spec": map[string]any{"type": "LoadBalancer", "clusterIP": "10.96.0.9", "clusterIPs": []any{"10.96.0.9"},
			"ports": []any{map[string]any{"port": int64(80), "protocol": "TCP"}}},
	}}
	if len(addrs) > 0 {
		object.Object["status"] = map[string]any{"loadBalancer": map[string]any{"ingress": ingress}}
		owned := map[string]any{"f:status": map[string]any{"f:loadBalancer": map[string]any{"f:ingress": map[string]any{}}}}
		object.Object["metadata"].(map[string]any)["managedFields"] = []any{
			map[string]any{"manager": "kubectl", "operation": "Update", "fieldsV1": map[string]any{"f:spec": map[string]any{}}},
			map[string]any{"manager": manager, "operation": "Apply", "subresource": "status", "fieldsV1": owned},
		}
	}
	return object
}

// serveStatus has the fake API server take what is applied to the status of Services, as a real one does; refuse may say why not.
func serveStatus(c *cluster, refuse func() error) (applied func() []string) {
	var mu sync.Mutex
	var bodies []string
	c.objects.PrependReactor("patch", "services", func(action clienttesting.Action) (bool, runtime.Object, error) {
		patch := action.(clienttesting.PatchActionImpl)
		var body struct {
			Status corev1.ServiceStatus `json:"status"`
		}
		if err := json.Unmarshal(patch.Patch, &body); err != nil || patch.Subresource != "status" || patch.PatchOptions.FieldManager != fieldManager {
			c.t.Errorf("patch %+v: %v", patch, err)
		}
		mu.Lock()
		bodies = append(bodies, strings.TrimSpace(string(patch.Patch)))
		mu.Unlock()
		if err := refuse(); err != nil {
			return true, nil, err
		}
		var addrs []string
		for _, ingress := range body.Status.LoadBalancer.Ingress {
			addrs = append(addrs, ingress.IP)
		}
		object := balancer(fieldManager, addrs...)
		return true, object, c.objects.Tracker().Update(patch.GetResource(), object, "shop")
	})
	return func() []string {
		mu.Lock()
		defer mu.Unlock()
		return bodies
	}
}

// give writes the addresses of a service into the store, as pools do.
func (m *memory) give(t *testing.T, addrs ...string) {
	t.Helper()
	balancer := &storev1.LoadBalancer{Families: []uint32{4}}
	for _, addr := range addrs {
		balancer.Grants = append(balancer.Grants, &storev1.Grant{Address: netip.MustParseAddr(addr).AsSlice(), Pool: "p"})
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	m.records["services/shop/web"] = &storev1.Service{Type: storev1.Service_LOAD_BALANCER, LoadBalancer: balancer}
	m.state.Addresses++
}

func (c *cluster) status() []string {
	object, err := c.in("services", "shop").Get(c.t.Context(), "web", metav1.GetOptions{})
	if err != nil {
		c.t.Fatal(err)
	}
	moveGranted(object.Object)
	return grantedTo(object)
}

func TestAServiceSaysWhichAddressesItWasGiven(t *testing.T) {
	c := prepare(t, balancer(""))
	refusals := 1
	applied := serveStatus(c, func() error {
		if refusals--; refusals >= 0 {
			return apierrors.NewInternalError(errAway)
		}
		return nil
	})
	c.run()
	c.await(0, "services/shop/web")
	c.memory.give(t, "192.0.2.1")
	c.until(func() string { return cmp.Diff([]string{"192.0.2.1"}, c.status()) })
	c.memory.give(t, "192.0.2.1", "2001:db8::1")
	c.until(func() string { return cmp.Diff([]string{"192.0.2.1", "2001:db8::1"}, c.status()) })
	c.memory.give(t)
	c.until(func() string { return cmp.Diff([]string(nil), c.status()) })
	want := `{"apiVersion":"v1","kind":"Service","metadata":{"name":"web","namespace":"shop","uid":"u"},"status":`
	if diff := cmp.Diff([]string{
		want + `{"loadBalancer":{"ingress":[{"ip":"192.0.2.1"}]}}}`,
		want + `{"loadBalancer":{"ingress":[{"ip":"192.0.2.1"}]}}}`, // once more, as it was refused
		want + `{"loadBalancer":{"ingress":[{"ip":"192.0.2.1"},{"ip":"2001:db8::1"}]}}}`,
		want + `{}}`,
	}, applied()); diff != "" {
		t.Errorf("applied (-want +got):\n%s", diff)
	}
}

func TestAStatusThatIsRightIsNotWritten(t *testing.T) {
	c := prepare(t, balancer(fieldManager, "192.0.2.1"))
	applied := serveStatus(c, func() error { return nil })
	c.run()
	c.await(0, "services/shop/web")
	c.memory.give(t, "192.0.2.1")
	lists := c.memory.listed()
	c.until(func() string {
		if c.memory.listed() == lists {
			return "the operator has not looked"
		}
		return ""
	})
	c.memory.give(t, "192.0.2.2")
	c.until(func() string { return cmp.Diff([]string{"192.0.2.2"}, c.status()) })
	if got := len(applied()); got != 1 {
		t.Errorf("%d writes, want 1: %q", got, applied())
	}
}

func TestAFilledStoreHearsWhatServicesWereGivenBefore(t *testing.T) {
	c := start(t, balancer(fieldManager, "192.0.2.1"))
	c.await(0, "services/shop/web")
	got := c.memory.get("services/shop/web").(*storev1.Service)
	if grants := got.GetLoadBalancer().GetGrants(); len(grants) != 1 || netip.AddrFrom4([4]byte(grants[0].GetAddress())).String() != "192.0.2.1" {
		t.Errorf("grants %v, want the address of the status", grants)
	}
	if len(got.GetLoadBalancerIps()) > 0 {
		t.Errorf("the operator takes its own address for another's: %v", got)
	}
}

func TestAnAddressThatAnotherControllerGaveIsItsOwn(t *testing.T) {
	c := start(t, balancer("cloud", "192.0.2.1"))
	c.await(0, "services/shop/web")
	got := c.memory.get("services/shop/web").(*storev1.Service)
	if got.GetLoadBalancer() != nil || len(got.GetLoadBalancerIps()) != 1 {
		t.Errorf("got %v, want the address as given and nothing asked of pools", got)
	}
}

func TestATrimmedServiceIsTrimmedAgainToTheSame(t *testing.T) {
	trim := trimmer(schema.GroupVersionKind{Version: "v1", Kind: "Service"})
	once, err := trim(balancer(fieldManager, "192.0.2.1"))
	if err != nil {
		t.Fatal(err)
	}
	before := once.(*unstructured.Unstructured).DeepCopy()
	twice, err := trim(once)
	if diff := cmp.Diff(before, twice); err != nil || diff != "" {
		t.Errorf("(-once +twice), %v:\n%s", err, diff)
	}
	if got := grantedTo(before); len(got) != 1 {
		t.Errorf("granted %v, want one address", got)
	}
}

func TestAStoreThatLostEverythingIsFilledAtOnce(t *testing.T) {
	c := start(t, node(), pod("a"))
	c.await(1, "nodelabels/n1", "pods/n1/shop/a")
	c.memory.mu.Lock()
	c.memory.records, c.memory.state = nil, store.State{}
	c.memory.mu.Unlock()
	c.await(1, "nodelabels/n1", "pods/n1/shop/a")
}
