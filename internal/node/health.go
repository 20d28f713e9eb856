package node

import (
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/http"
	"strconv"
	"sync"
	"time"

	agentv1 "tendril.io/tendril/api/agent/v1"
	"tendril.io/tendril/internal/service"
)

// healthServers answer load balancers that ask whether this node has a backend of a service (healthCheckNodePort), in
// the form that kube-proxy does: a weight in a header, a few facts as JSON, 503 for none.
type healthServers struct {
	healthy func() bool // the kernel agrees with the tables

	pause time.Duration // before a port that is taken is tried again; 0: healthPause

	mu      sync.Mutex
	servers map[uint16]*healthServer
	failed  map[uint16]failedCheck
	again   chan struct{} // is closed when it is time to; nil: nobody has asked
}

// healthPause is the usual pause.
const healthPause = 5 * time.Second

// failedCheck is one that cannot be answered.
type failedCheck struct {
	check service.HealthCheck
	err   error
}

// healthServer answers at one port.
type healthServer struct {
	http http.Server

	mu    sync.Mutex
	check service.HealthCheck
}

// set makes what is answered equal to the checks. A port that is taken is tried again by the next call: see retry.
func (h *healthServers) set(checks []service.HealthCheck) {
	h.mu.Lock()
	defer h.mu.Unlock()
	wanted := make(map[uint16]bool, len(checks))
	h.failed = map[uint16]failedCheck{}
	for _, check := range checks {
		wanted[check.Port] = true
		if server := h.servers[check.Port]; server != nil {
			server.set(check)
			continue
		}
		if err := h.open(check); err != nil {
			h.failed[check.Port] = failedCheck{check, err}
		}
	}
	for port, server := range h.servers {
		if !wanted[port] {
			_ = server.http.Close() // of listeners that are ours: nothing to be done about an error
			delete(h.servers, port)
		}
	}
}

// retry is closed when set should be called again, for a port that was taken; nil: all are answered.
func (h *healthServers) retry() <-chan struct{} {
	h.mu.Lock()
	defer h.mu.Unlock()
	if len(h.failed) == 0 {
		return nil
	}
	if h.again == nil {
		h.again = make(chan struct{})
		time.AfterFunc(jittered(cmp.Or(h.pause, healthPause)), h.tryAgain)
	}
	return h.again
}

func (h *healthServers) tryAgain() {
	h.mu.Lock()
	defer h.mu.Unlock()
	close(h.again)
	h.again = nil
}

// open begins to answer a check.
func (h *healthServers) open(check service.HealthCheck) error {
	listener, err := net.Listen("tcp", ":"+strconv.Itoa(int(check.Port)))
	if err != nil {
		return err
	}
	server := &healthServer{check: check}
	server.http = http.Server{
		ReadHeaderTimeout: 5 * time.Second,
		Handler:           http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { server.answer(w, h.healthy()) }),
	}
	if h.servers == nil {
		h.servers = make(map[uint16]*healthServer)
	}
	h.servers[check.Port] = server
	go func() { _ = server.http.Serve(listener) }() // ends with Close
	return nil
}

// close ends all servers.
func (h *healthServers) close() { h.set(nil) }

// problems are the checks that cannot be answered.
func (h *healthServers) problems() []*agentv1.Problem {
	h.mu.Lock()
	defer h.mu.Unlock()
	var all []*agentv1.Problem
	for _, failed := range h.failed {
		all = append(all, failed.problem())
	}
	return all
}

// problem is that of a service, as in shop/web; nil: its check is answered, or it has none.
func (h *healthServers) problem(service string) *agentv1.Problem {
	h.mu.Lock()
	defer h.mu.Unlock()
	for _, failed := range h.failed {
		if failed.check.Namespace+"/"+failed.check.Name == service {
			return failed.problem()
		}
	}
	return nil
}

func (f failedCheck) problem() *agentv1.Problem {
	return &agentv1.Problem{
		Object:  "service " + f.check.Namespace + "/" + f.check.Name,
		Message: fmt.Sprintf("healthCheckNodePort %d cannot be answered: %v", f.check.Port, f.err),
		Remedy:  "end what listens there, or give the service another port",
	}
}

func (s *healthServer) set(check service.HealthCheck) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.check = check
}

// answer says how many backends are here.
func (s *healthServer) answer(w http.ResponseWriter, healthy bool) {
	s.mu.Lock()
	check := s.check
	s.mu.Unlock()
	type name struct {
		Namespace string `json:"namespace"`
		Name      string `json:"name"`
	}
	body, err := json.Marshal(struct {
		Service   name `json:"service"`
		Endpoints int  `json:"localEndpoints"`
		Healthy   bool `json:"serviceProxyHealthy"`
	}{name{check.Namespace, check.Name}, check.Local, healthy})
	if err != nil {
		http.Error(w, err.Error(), http.StatusInternalServerError)
		return
	}
	w.Header().Set("Content-Type", "application/json")
	w.Header().Set("X-Content-Type-Options", "nosniff")
	w.Header().Set("X-Load-Balancing-Endpoint-Weight", strconv.Itoa(check.Local))
	if check.Local == 0 || !healthy {
		w.WriteHeader(http.StatusServiceUnavailable)
	}
	if _, err := w.Write(body); err != nil && !errors.Is(err, http.ErrBodyNotAllowed) {
		return // whoever asked has gone
	}
}
