package operator

import (
	"context"
	"encoding/json"
	"fmt"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"k8s.io/client-go/discovery"
	"k8s.io/client-go/dynamic"
	"k8s.io/client-go/rest"
)

// apiServer is one that speaks HTTP and has namespaces only. What it does with a request may be changed.
type apiServer struct {
	t      *testing.T
	server *httptest.Server
	memory *memory

	mu       sync.Mutex
	revision int
	names    map[string]int // name -> revision
	requests []request
	// intercept answers a request in place of the server, if it says so.
	intercept func(w http.ResponseWriter, r *http.Request) bool
	// changed is closed and made anew at each change; cut ends all watches.
	changed chan struct{}
	cut     chan struct{}
}

// request is when what was asked for.
type request struct {
	what string
	at   time.Time
}

func newAPIServer(t *testing.T, names ...string) *apiServer {
	s := &apiServer{t: t, revision: 100, names: map[string]int{}, memory: &memory{}, changed: make(chan struct{}), cut: make(chan struct{})}
	for _, name := range names {
		s.names[name] = s.revision
	}
	s.server = httptest.NewServer(s)
	t.Cleanup(s.server.Close)
	return s
}

// operate starts an operator on it.
func (s *apiServer) operate() { s.operateBy(&rest.Config{Host: s.server.URL}) }

// operateBy starts an operator that takes a way to it.
func (s *apiServer) operateBy(config *rest.Config) {
	s.t.Helper()
	config.QPS, config.Burst = 1000, 1000
	objects, err := dynamic.NewForConfig(config)
	if err != nil {
		s.t.Fatal(err)
	}
	kinds, err := discovery.NewDiscoveryClientForConfig(config)
	if err != nil {
		s.t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() {
		ended <- Run(ctx, Config{Cluster: "c", Objects: objects, Kinds: kinds, Store: s.memory, Logger: slog.New(slog.DiscardHandler)})
	}()
	s.t.Cleanup(func() {
		cancel()
		if err := <-ended; err != nil {
			s.t.Errorf("operator ended: %v", err)
		}
	})
}

func (s *apiServer) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	watch := r.URL.Query().Get("watch") == "true"
	what := r.Method + " " + r.URL.Path
	if watch {
		what = "WATCH " + r.URL.Path
	}
	s.mu.Lock()
	s.requests = append(s.requests, request{what, time.Now()})
	intercept := s.intercept
	s.mu.Unlock()
	if intercept != nil && intercept(w, r) {
		return
	}
	w.Header().Set("Content-Type", "application/json")
	switch {
	case what == "GET /api/v1":
		fmt.Fprint(w, `{"kind":"APIResourceList","groupVersion":"v1","resources":[{"name":"namespaces","kind":"Namespace","verbs":["list","watch"]}]}`)
	case what == "GET /api/v1/namespaces":
		s.list(w)
	case watch && r.URL.Query().Get("sendInitialEvents") == "true":
		s.refuse(w, http.StatusUnprocessableEntity, "Invalid") // as servers without streamed lists do
	case watch:
		s.watch(w, r)
	default:
		s.refuse(w, http.StatusNotFound, "NotFound")
	}
}

func (s *apiServer) refuse(w http.ResponseWriter, code int, reason string) {
	w.WriteHeader(code)
	fmt.Fprintf(w, `{"kind":"Status","apiVersion":"v1","status":"Failure","reason":%q,"code":%d}`, reason, code)
}

func namespaceText(name string, revision int) string {
	return fmt.Sprintf(`{"kind":"Namespace","apiVersion":"v1","metadata":{"name":%q,"uid":%q,"resourceVersion":"%d"}}`, name, name, revision)
}

func (s *apiServer) list(w http.ResponseWriter) {
	s.mu.Lock()
	defer s.mu.Unlock()
	var items []json.RawMessage
	for name, revision := range s.names {
		items = append(items, json.RawMessage(namespaceText(name, revision)))
	}
	text, err := json.Marshal(map[string]any{
		"kind": "NamespaceList", "apiVersion": "v1", "items": items,
		"metadata": map[string]string{"resourceVersion": fmt.Sprint(s.revision)},
	})
	if err != nil {
		s.t.Error(err)
	}
	w.Write(text)
}

// watch sends what is added after a revision until the request or the watch is cut.
func (s *apiServer) watch(w http.ResponseWriter, r *http.Request) {
	var from int
	fmt.Sscan(r.URL.Query().Get("resourceVersion"), &from)
	for {
		s.mu.Lock()
		for name, revision := range s.names {
			if revision > from {
				fmt.Fprintf(w, `{"type":"ADDED","object":%s}`+"\n", namespaceText(name, revision))
			}
		}
		from = s.revision
		changed, cut := s.changed, s.cut
		s.mu.Unlock()
		w.(http.Flusher).Flush()
		select {
		case <-changed:
		case <-cut:
			return
		case <-r.Context().Done():
			return
		}
	}
}

// add makes a namespace.
func (s *apiServer) add(name string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.revision++
	s.names[name] = s.revision
	close(s.changed)
	s.changed = make(chan struct{})
}

// cutWatches ends them all, as an API server does that stops or is behind a load balancer.
func (s *apiServer) cutWatches() {
	s.mu.Lock()
	defer s.mu.Unlock()
	close(s.cut)
	s.cut = make(chan struct{})
}

func (s *apiServer) set(intercept func(w http.ResponseWriter, r *http.Request) bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.intercept = intercept
}

// asked lists when something was asked for.
func (s *apiServer) asked(what string) (times []time.Time) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, r := range s.requests {
		if r.what == what {
			times = append(times, r.at)
		}
	}
	return times
}

func (s *apiServer) await(within time.Duration, want ...string) {
	s.t.Helper()
	deadline := time.Now().Add(within)
	for {
		got, _ := s.memory.keys()
		diff := cmp.Diff(want, got)
		if diff == "" {
			return
		}
		if time.Now().After(deadline) {
			s.t.Fatalf("the store (-want +got):\n%s", diff)
		}
		time.Sleep(5 * time.Millisecond)
	}
}

const (
	listing  = "GET /api/v1/namespaces"
	watching = "WATCH /api/v1/namespaces"
)

func TestAWatchThatEndsGoesOnWhereItWas(t *testing.T) {
	t.Parallel()
	s := newAPIServer(t, "a")
	s.operate()
	s.await(10*time.Second, "namespaces/a")
	s.add("b")
	s.await(5*time.Second, "namespaces/a", "namespaces/b")
	lists := len(s.asked(listing))
	s.cutWatches()
	s.add("c")
	s.await(10*time.Second, "namespaces/a", "namespaces/b", "namespaces/c")
	if got := len(s.asked(listing)); got != lists {
		t.Errorf("%d lists after the watch was cut, want none: the revision is known", got-lists)
	}
}

func TestARefusalWithRetryAfterIsWaitedOut(t *testing.T) {
	t.Parallel()
	s := newAPIServer(t, "a")
	var mu sync.Mutex
	var refused time.Time
	refusals := 2
	s.set(func(w http.ResponseWriter, r *http.Request) bool {
		if r.URL.Path != "/api/v1/namespaces" {
			return false
		}
		mu.Lock()
		defer mu.Unlock()
		if since := time.Since(refused); since < 1900*time.Millisecond {
			t.Errorf("asked again after %v, want the 2 s of Retry-After", since)
		}
		if refusals == 0 {
			refused = time.Time{}
			return false
		}
		refusals--
		refused = time.Now()
		w.Header().Set("Retry-After", "2")
		s.refuse(w, http.StatusTooManyRequests, "TooManyRequests")
		return true
	})
	s.operate()
	s.await(20*time.Second, "namespaces/a")
	mu.Lock()
	defer mu.Unlock()
	if refusals > 0 {
		t.Errorf("%d refusals were not needed", refusals)
	}
}

func TestASlowListIsWaitedForAndTheStoreNotTakenForEmpty(t *testing.T) {
	t.Parallel()
	s := newAPIServer(t, "a")
	held := make(chan struct{})
	s.set(func(_ http.ResponseWriter, r *http.Request) bool {
		if strings.HasSuffix(r.URL.Path, "/namespaces") {
			select {
			case <-held:
			case <-r.Context().Done():
			}
		}
		return false
	})
	s.operate()
	time.Sleep(300 * time.Millisecond)
	if got := s.memory.count(); got != 0 {
		t.Errorf("%d writes before the list came", got)
	}
	close(held)
	s.await(10*time.Second, "namespaces/a")
}

func TestAnAPIServerThatIsAwayTakesNothingAlong(t *testing.T) {
	t.Parallel()
	s := newAPIServer(t, "a")
	s.operate()
	s.await(10*time.Second, "namespaces/a")
	s.set(func(w http.ResponseWriter, _ *http.Request) bool {
		s.refuse(w, http.StatusServiceUnavailable, "ServiceUnavailable")
		return true
	})
	s.cutWatches()
	before := len(s.asked(watching)) + len(s.asked(listing))
	deadline := time.Now().Add(3 * time.Second)
	for time.Now().Before(deadline) {
		if got, _ := s.memory.keys(); len(got) != 1 {
			t.Fatalf("the store has %v while the API server is away", got)
		}
		time.Sleep(20 * time.Millisecond)
	}
	// With back-off: a few in three seconds.
	if tries := len(s.asked(watching)) + len(s.asked(listing)) - before; tries == 0 || tries > 20 {
		t.Errorf("%d requests in 3 s of absence, want a few", tries)
	}
	s.set(nil)
	s.add("b")
	s.await(40*time.Second, "namespaces/a", "namespaces/b")
}
