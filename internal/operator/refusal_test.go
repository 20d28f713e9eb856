package operator

import (
	"fmt"
	"log/slog"
	"net/http"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/client-go/dynamic"
	"k8s.io/client-go/rest"
)

// A status is written by server-side apply, once the time of Retry-After is over and not before, be it 429 or an overloaded 503.
func TestARefusedWriteWithRetryAfterIsWaitedOutAndArrives(t *testing.T) {
	t.Parallel()
	const path = "/api/v1/namespaces/default/services/web/status"
	s := newAPIServer(t)
	refusals := []int{http.StatusTooManyRequests, http.StatusServiceUnavailable} // the requests come one by one
	arrived := 0
	s.set(func(w http.ResponseWriter, r *http.Request) bool {
		w.Header().Set("Content-Type", "application/json")
		switch {
		case r.Method != http.MethodPatch || r.URL.Path != path || !strings.Contains(r.Header.Get("Content-Type"), "apply-patch"):
			t.Errorf("got %s %s, want the status applied", r.Method, r.URL.Path)
		case len(refusals) > 0:
			w.Header().Set("Retry-After", "1")
			s.refuse(w, refusals[0], "TooManyRequests")
			refusals = refusals[1:]
			return true
		}
		arrived++
		fmt.Fprint(w, `{"kind":"Service","apiVersion":"v1","metadata":{"name":"web","namespace":"default"}}`)
		return true
	})
	objects, err := dynamic.NewForConfig(&rest.Config{Host: s.server.URL})
	if err != nil {
		t.Fatal(err)
	}
	service := &unstructured.Unstructured{Object: map[string]any{}}
	service.SetNamespace(metav1.NamespaceDefault)
	service.SetName("web")
	service.SetUID("u")
	a := &addresses{Config: Config{Objects: objects, Logger: slog.New(slog.DiscardHandler)}}
	if err := a.apply(t.Context(), service, []string{"198.51.100.1"}); err != nil {
		t.Fatal(err)
	}
	asked := s.asked("PATCH " + path)
	if len(asked) != 3 || arrived != 1 {
		t.Fatalf("%d requests, %d of them heard, want 3 and 1", len(asked), arrived)
	}
	for i := range asked[1:] {
		if waited := asked[i+1].Sub(asked[i]); waited < 900*time.Millisecond {
			t.Errorf("asked again after %v, want the 1 s of Retry-After", waited)
		}
	}
}

// Without Retry-After the operator itself waits longer each time: at least three quarters of 1 s, then of 2 s.
func TestAWriteThatTheServerFailsIsTriedAgainLessAndLess(t *testing.T) {
	t.Parallel()
	c := prepare(t, balancer(""))
	var mu sync.Mutex
	var tries []time.Time
	serveStatus(c, func() error {
		mu.Lock()
		defer mu.Unlock()
		if tries = append(tries, time.Now()); len(tries) <= 2 {
			return apierrors.NewInternalError(errAway)
		}
		return nil
	})
	c.run()
	c.await(0, "services/shop/web")
	c.memory.give(t, "192.0.2.1")
	c.until(func() string { return cmp.Diff([]string{"192.0.2.1"}, c.status()) })
	mu.Lock()
	defer mu.Unlock()
	if len(tries) != 3 {
		t.Fatalf("%d tries, want 3", len(tries))
	}
	for i, least := range []time.Duration{750 * time.Millisecond, 1500 * time.Millisecond} {
		if waited := tries[i+1].Sub(tries[i]); waited < least {
			t.Errorf("try %d came after %v, want at least %v", i+2, waited, least)
		}
	}
}
