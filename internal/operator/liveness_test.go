package operator

import (
	"context"
	"errors"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"sync"
	"testing"
	"time"

	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"
)

// relay stands before an API server. What goes through it can be silenced: connections stay open and carry nothing, as those to a machine that has
// lost its power.
type relay struct {
	t        *testing.T
	listener net.Listener
	server   string

	mu       sync.Mutex
	silenced chan struct{} // closed: the connections that were there are silent
	count    int           // connections so far
}

func newRelay(t *testing.T, server string) *relay {
	t.Helper()
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	r := &relay{t: t, listener: listener, server: server, silenced: make(chan struct{})}
	var carrying sync.WaitGroup
	carrying.Go(func() {
		for {
			client, err := listener.Accept()
			if err != nil {
				return
			}
			carrying.Go(func() { r.carry(client) })
		}
	})
	t.Cleanup(func() {
		listener.Close()
		carrying.Wait()
	})
	return r
}

// carry copies until the connection is silenced; then it only waits for the client to go.
func (r *relay) carry(client net.Conn) {
	r.mu.Lock()
	silenced := r.silenced
	r.count++
	r.mu.Unlock()
	defer client.Close()
	server, err := net.Dial("tcp", r.server)
	if err != nil {
		r.t.Error(err)
		return
	}
	defer server.Close()
	end := func() {
		client.Close()
		server.Close()
	}
	defer context.AfterFunc(r.t.Context(), end)()
	var copying sync.WaitGroup
	for _, way := range [][2]net.Conn{{client, server}, {server, client}} {
		copying.Go(func() {
			_, _ = io.Copy(audible{way[1], silenced}, way[0])
			select {
			case <-silenced: // nobody tells the client that the server has gone
			default:
				end()
			}
			if way[0] == client {
				end()
			}
		})
	}
	copying.Wait()
}

// audible loses what is written once it is silenced.
type audible struct {
	io.Writer
	silenced <-chan struct{}
}

func (a audible) Write(p []byte) (int, error) {
	select {
	case <-a.silenced:
		return len(p), nil
	default:
		return a.Writer.Write(p)
	}
}

// silence has all connections carry nothing that are there now.
func (r *relay) silence() {
	r.mu.Lock()
	defer r.mu.Unlock()
	close(r.silenced)
	r.silenced = make(chan struct{})
}

func (r *relay) connections() int {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.count
}

// listened makes clients of a server behind the relay whose liveness is judged in a thirtieth of the time; somebody asks all the time, as for the lease.
func listened(t *testing.T, config *rest.Config) *Liveness {
	t.Helper()
	l := NewLiveness(config, slog.New(slog.DiscardHandler))
	l.server, l.watch = serverSilence/30, watchSilence/240 // 500 ms, 750 ms
	own := rest.CopyConfig(config)
	own.QPS, own.Burst = 1000, 1000
	client, err := kubernetes.NewForConfig(own)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	var running sync.WaitGroup
	running.Go(func() { l.Run(ctx) })
	running.Go(func() {
		for pause(ctx, 50*time.Millisecond) == nil {
			one, end := context.WithTimeout(ctx, 300*time.Millisecond)
			_, _ = client.Discovery().RESTClient().Get().AbsPath("/api/v1").DoRaw(one)
			end()
		}
	})
	t.Cleanup(func() {
		cancel()
		running.Wait()
	})
	return l
}

// The server has gone without a word and another has taken its address: what was asked at the first fails, and is asked of the second.
func TestConnectionsThatLeadNowhereAreMadeAnew(t *testing.T) {
	t.Parallel()
	s := newAPIServer(t, "a")
	s.server.Close()
	s.server = httptest.NewUnstartedServer(s)
	s.server.EnableHTTP2 = true // one connection for all requests, new ones included
	s.server.StartTLS()
	t.Cleanup(s.server.Close)
	between := newRelay(t, s.server.Listener.Addr().String())
	config := &rest.Config{Host: "https://" + between.listener.Addr().String(), TLSClientConfig: rest.TLSClientConfig{Insecure: true}}
	l := listened(t, config)
	s.operateBy(config)
	s.await(10*time.Second, "namespaces/a")
	before := between.connections()
	time.Sleep(3 * l.server)
	if now := between.connections(); now != before {
		t.Fatalf("%d connections were made anew while the server answered", now-before)
	}
	silenced := time.Now()
	between.silence()
	s.add("b")
	s.await(20*time.Second, "namespaces/a", "namespaces/b")
	if between.connections() == before {
		t.Error("no connection was made anew: the relay carried what it should not")
	}
	if took := time.Since(silenced); took < l.server/2 {
		t.Errorf("they were made anew after %v, want patience", took)
	}
	if silent := time.Since(l.Heard()); silent > l.server {
		t.Errorf("silent for %v although it answers", silent)
	}
}

// Each watch has a connection of its own, as with proxies that speak HTTP/1.1 only. That of one leads nowhere: the server is heard all the while.
func TestASilentWatchGoesOnAsAnotherFromWhereItWas(t *testing.T) {
	t.Parallel()
	s := newAPIServer(t, "a")
	between := newRelay(t, s.server.Listener.Addr().String())
	config := &rest.Config{Host: "http://" + between.listener.Addr().String()}
	l := listened(t, config)
	s.operateBy(config)
	s.await(10*time.Second, "namespaces/a")
	s.add("b")
	s.await(5*time.Second, "namespaces/a", "namespaces/b")
	lists := len(s.asked(listing))
	between.silence()
	s.add("c")
	s.await(20*time.Second, "namespaces/a", "namespaces/b", "namespaces/c")
	if got := len(s.asked(listing)); got != lists {
		t.Errorf("%d lists, want none: the revision is known", got-lists)
	}
	if silent := time.Since(l.Heard()); silent > l.server {
		t.Errorf("silent for %v although it answers", silent)
	}
}

func TestAWatchThatGetsBookmarksIsLeftAlone(t *testing.T) {
	t.Parallel()
	s := newAPIServer(t, "a")
	config := &rest.Config{Host: s.server.URL}
	l := listened(t, config)
	s.set(func(w http.ResponseWriter, r *http.Request) bool {
		if r.URL.Query().Get("watch") != "true" || r.URL.Query().Get("sendInitialEvents") == "true" {
			return false
		}
		if r.URL.Query().Get("allowWatchBookmarks") != "true" {
			t.Error("a watch that wants no bookmarks")
		}
		w.Header().Set("Content-Type", "application/json")
		for {
			_, _ = io.WriteString(w, `{"type":"BOOKMARK","object":{"kind":"Namespace","apiVersion":"v1","metadata":{"resourceVersion":"100"}}}`+"\n")
			w.(http.Flusher).Flush()
			select {
			case <-r.Context().Done():
				return true
			case <-time.After(l.watch / 5):
			}
		}
	})
	s.operateBy(config)
	s.await(10*time.Second, "namespaces/a")
	watches := len(s.asked(watching))
	time.Sleep(4 * l.watch)
	if got := len(s.asked(watching)); got != watches {
		t.Errorf("%d more watches, want none", got-watches)
	}
}

// A balancer that answers for a server that is away, and a server that has lost its own store, say nothing of the cluster.
func TestAnswersOfFailureAreNoSignOfLife(t *testing.T) {
	t.Parallel()
	for status, counts := range map[int]bool{200: true, 404: true, 429: true, 500: false, 503: false} {
		server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(status) }))
		l := &Liveness{began: time.Now().Add(-time.Hour), watch: time.Hour}
		request, err := http.NewRequestWithContext(t.Context(), http.MethodGet, server.URL, nil)
		if err != nil {
			t.Fatal(err)
		}
		response, err := (&listening{http.DefaultTransport, l}).RoundTrip(request)
		if err != nil {
			t.Fatal(err)
		}
		_, err = io.ReadAll(response.Body)
		if err := errors.Join(err, response.Body.Close()); err != nil {
			t.Error(err)
		}
		if heard := time.Since(l.Heard()) < time.Minute; heard != counts {
			t.Errorf("status %d: heard %t, want %t", status, heard, counts)
		}
		server.Close()
	}
}
