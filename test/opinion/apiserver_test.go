package opinion

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"reflect"
	"strings"
	"sync"
	"testing"
	"time"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/util/httpstream"
	"k8s.io/apimachinery/pkg/util/httpstream/spdy"
	"sigs.k8s.io/controller-runtime/pkg/client"
)

// apiServer is what the conformance suite of network-policy-api sees of a cluster: a client for objects, and a server
// that runs commands in pods. Objects take effect in a world; the one command that there is, agnhost connect, gets the
// world's verdict. What the suite does not need is left nil, and would panic.
type apiServer struct {
	client.Client
	world   *world
	family  int // of the pods' addresses: 0: IPv4, 1: IPv6
	objects map[string]map[string]any
	mu      sync.Mutex // commands run on goroutines of the server
	asked   map[bool]int
}

// nodeOf spreads a set's pods over two nodes.
func nodeOf(ordinal int) string { return fmt.Sprint("node", 1+ordinal%2) }

func newAPIServer(w *world, family int) *apiServer {
	return &apiServer{world: w, family: family, objects: map[string]map[string]any{}, asked: map[bool]int{}}
}

// nameOf is an object's name in the store.
func nameOf(kind string, key client.ObjectKey) string { return kind + " " + key.String() }

// kindOf is that of a typed object by its Go type, of others by what they say.
func kindOf(object client.Object) string {
	if u, ok := object.(*unstructured.Unstructured); ok {
		return u.GetKind()
	}
	return reflect.TypeOf(object).Elem().Name()
}

func (a *apiServer) Get(_ context.Context, key client.ObjectKey, object client.Object, _ ...client.GetOption) error {
	content, ok := a.objects[nameOf(kindOf(object), key)]
	if !ok {
		return apierrors.NewNotFound(schema.GroupResource{Resource: kindOf(object)}, key.String())
	}
	content = runtime.DeepCopyJSON(content)
	if u, ok := object.(*unstructured.Unstructured); ok {
		u.Object = content
		return nil
	}
	return runtime.DefaultUnstructuredConverter.FromUnstructured(content, object)
}

func (a *apiServer) Create(_ context.Context, object client.Object, _ ...client.CreateOption) error {
	return a.put(object)
}

func (a *apiServer) Update(_ context.Context, object client.Object, _ ...client.UpdateOption) error {
	return a.put(object)
}

// Patch takes the object for what the patch makes of it: the suite makes its patches from whole objects.
func (a *apiServer) Patch(_ context.Context, object client.Object, _ client.Patch, _ ...client.PatchOption) error {
	return a.put(object)
}

func (a *apiServer) Delete(_ context.Context, object client.Object, _ ...client.DeleteOption) error {
	delete(a.objects, nameOf(kindOf(object), client.ObjectKeyFromObject(object)))
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.world.removePolicy(kindOf(object), object.GetNamespace(), object.GetName())
}

// put stores an object and lets it take effect.
func (a *apiServer) put(object client.Object) error {
	content, err := runtime.DefaultUnstructuredConverter.ToUnstructured(object)
	if err != nil {
		return err
	}
	content["kind"] = kindOf(object)
	if content["apiVersion"] == nil {
		content["apiVersion"] = a.objects[nameOf(kindOf(object), client.ObjectKeyFromObject(object))]["apiVersion"]
	}
	a.objects[nameOf(kindOf(object), client.ObjectKeyFromObject(object))] = content
	if kindOf(object) == "StatefulSet" {
		return a.runSet(content)
	}
	delete(content, "status")
	manifest, err := json.Marshal(content)
	if err != nil {
		return err
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.world.apply(manifest)
}

// runSet makes the pods of a StatefulSet, as its controller would. Pods of the host's network have their node's address.
func (a *apiServer) runSet(content map[string]any) error {
	var set appsv1.StatefulSet
	if err := runtime.DefaultUnstructuredConverter.FromUnstructured(content, &set); err != nil {
		return err
	}
	for i := range int(*set.Spec.Replicas) {
		pod := &corev1.Pod{ObjectMeta: *set.Spec.Template.ObjectMeta.DeepCopy(), Spec: *set.Spec.Template.Spec.DeepCopy()}
		pod.Name, pod.Namespace, pod.Spec.NodeName = fmt.Sprintf("%s-%d", set.Name, i), set.Namespace, nodeOf(i)
		addrs, err := a.world.setPod(pod, nil)
		if err != nil {
			return err
		}
		pod.Status.PodIP = addrs[a.family].String()
		fields, err := runtime.DefaultUnstructuredConverter.ToUnstructured(pod)
		if err != nil {
			return err
		}
		a.objects[nameOf("Pod", client.ObjectKeyFromObject(pod))] = fields
	}
	return unstructured.SetNestedField(content, int64(*set.Spec.Replicas), "status", "readyReplicas")
}

// serve starts the server of commands and returns its URL.
func (a *apiServer) serve(t *testing.T) string {
	mux := http.NewServeMux()
	mux.HandleFunc("POST /api/v1/namespaces/{namespace}/pods/{pod}/exec", func(w http.ResponseWriter, r *http.Request) {
		if err := a.exec(w, r); err != nil {
			t.Errorf("%s: %v", r.URL, err)
		}
	})
	server := httptest.NewServer(mux)
	t.Cleanup(server.Close)
	return server.URL
}

// exec speaks the kubelet's side of "kubectl exec" (k8s.io/client-go/tools/remotecommand): SPDY, and in it one stream
// each for the output, the errors and the status.
func (a *apiServer) exec(w http.ResponseWriter, r *http.Request) error {
	const version = "v4.channel.k8s.io"
	if _, err := httpstream.Handshake(r, w, []string{version}); err != nil {
		return err
	}
	opened := make(chan httpstream.Stream, 3)
	conn := spdy.NewResponseUpgrader().UpgradeResponse(w, r, func(stream httpstream.Stream, _ <-chan struct{}) error {
		opened <- stream
		return nil
	})
	if conn == nil {
		return fmt.Errorf("not upgraded to %s", version)
	}
	defer conn.Close()
	streams := map[string]httpstream.Stream{}
	for range cap(opened) {
		select {
		case stream := <-opened:
			streams[stream.Headers().Get(corev1.StreamType)] = stream
		case <-time.After(10 * time.Second):
			return fmt.Errorf("%d streams, want %d", len(streams), cap(opened))
		}
	}
	passes, err := a.connect(r.PathValue("namespace")+"/"+r.PathValue("pod"), r.URL.Query()["command"])
	if err != nil {
		return err
	}
	status := metav1.Status{Status: metav1.StatusSuccess}
	if !passes {
		if _, err := io.WriteString(streams[corev1.StreamTypeStderr], "TIMEOUT\n"); err != nil {
			return err
		}
		status = metav1.Status{
			Status: metav1.StatusFailure, Reason: "NonZeroExitCode", Message: "exit code 1",
			Details: &metav1.StatusDetails{Causes: []metav1.StatusCause{{Type: "ExitCode", Message: "1"}}},
		}
	}
	for _, name := range []string{corev1.StreamTypeStdout, corev1.StreamTypeStderr} {
		if err := streams[name].Close(); err != nil {
			return err
		}
	}
	if err := json.NewEncoder(streams[corev1.StreamTypeError]).Encode(status); err != nil {
		return err
	}
	_ = streams[corev1.StreamTypeError].Close() // the client may be gone: it knows all it wanted to know
	return nil
}

// connect answers for "/agnhost connect --timeout=3s --protocol=tcp ADDRESS:PORT" in a pod.
func (a *apiServer) connect(pod string, command []string) (bool, error) {
	if len(command) != 5 || command[0] != "/agnhost" || command[1] != "connect" {
		return false, fmt.Errorf("command %q: is none that pods here know", command)
	}
	to, err := netip.ParseAddrPort(command[4])
	if err != nil {
		return false, err
	}
	protocol, err := protocolNumber(strings.TrimPrefix(command[3], "--protocol="))
	if err != nil {
		return false, err
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	from, ok := a.world.pods[pod]
	if !ok {
		return false, fmt.Errorf("pod %s: not there", pod)
	}
	v, err := a.world.judge(from.addrs[a.family], to.Addr(), protocol, to.Port())
	a.asked[v.passes()]++
	return v.passes(), err
}
