package service

import (
	"cmp"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strings"

	"tendril.io/tendril/bpf"
	"tendril.io/tendril/internal/ipproto"
)

// Problem is something about a service that a person should act on.
type Problem struct {
	Object  string // "service namespace/name"
	Message string
	Remedy  string
}

// String is the problem in one line: object, message, remedy.
func (p Problem) String() string { return p.Object + ": " + p.Message + ": " + p.Remedy }

// View is one frontend of a service as the kernel has it; a service without frontends has one view with none.
type View struct {
	Namespace, Name string
	Type            string
	Frontend        netip.AddrPort // invalid: the service has no frontend
	Proto           uint8
	Backends        []BackendView
	Problems        []Problem // of the whole service
}

// BackendView is a backend behind a frontend.
type BackendView struct {
	Addr  netip.AddrPort
	State bpf.BackendState
	Node  string
}

// Views lists the services that were put in, sorted by name and frontend.
func (b *Brain) Views() []View {
	keys := make([]serviceKey, 0, len(b.services))
	for key, r := range b.services {
		if r.service != nil {
			keys = append(keys, key)
		}
	}
	slices.SortFunc(keys, serviceKey.compare)
	var views []View
	for _, key := range keys {
		views = b.appendViews(views, key, b.services[key])
	}
	return views
}

// appendViews appends the views of one service.
func (b *Brain) appendViews(views []View, key serviceKey, r *record) []View {
	view := View{Namespace: key.namespace, Name: key.name, Type: r.service.Type, Problems: r.problems}
	before := len(views)
	for _, frontend := range r.published.frontends {
		state := b.frontends[frontend]
		if state.owner != key {
			continue
		}
		view.Frontend, view.Proto = netip.AddrPortFrom(frontend.Addr, frontend.Port), frontend.Proto
		view.Backends = b.backendViews(r, state.row)
		views = append(views, view)
	}
	if len(views) == before {
		views = append(views, view)
	}
	return views
}

// backendViews lists the backends behind a frontend, each once.
func (b *Brain) backendViews(r *record, row FrontendRow) []BackendView {
	listed := make(map[uint32]bool)
	for _, held := range r.published.ranges {
		if held.slots() == row.Inside || held.slots() == row.Outside {
			for _, index := range held.backends {
				listed[index] = true
			}
		}
	}
	var views []BackendView
	for _, m := range r.published.members {
		s := m.backend
		if listed[s.index] {
			views = append(views, BackendView{netip.AddrPortFrom(s.name.key.addr, s.name.key.port), s.published.State, s.node})
		}
	}
	return views
}

// HealthCheck is what load balancers ask a node about a service whose externalTrafficPolicy is Local.
type HealthCheck struct {
	Namespace, Name string
	Port            uint16 // of the node
	Local           int    // backends of this node that are ready
}

// HealthChecks lists them, sorted by port.
func (b *Brain) HealthChecks() []HealthCheck {
	return slices.SortedFunc(maps.Values(b.health), func(x, y HealthCheck) int { return cmp.Compare(x.Port, y.Port) })
}

// Problems lists what a person should act on, sorted by service.
func (b *Brain) Problems() []Problem {
	var problems []Problem
	for _, r := range b.services {
		problems = append(problems, r.problems...)
	}
	slices.SortFunc(problems, func(x, y Problem) int { return strings.Compare(x.String(), y.String()) })
	return problems
}

// FrontendService names the service that has a frontend, for flow records.
func (b *Brain) FrontendService(key FrontendKey) (namespace, name string, ok bool) {
	state, ok := b.frontends[key]
	return state.owner.namespace, state.owner.name, ok
}

// conflict says that another service has a frontend.
func conflict(key, owner serviceKey, frontend FrontendKey) Problem {
	return Problem{
		Object:  "service " + key.String(),
		Message: fmt.Sprintf("%s is served by service %s, which asks for it too", frontend, owner),
		Remedy:  "give one of them another address or port",
	}
}

// noRoom says that a service could not be published.
func noRoom(key serviceKey, err error) Problem {
	return Problem{
		Object:  "service " + key.String(),
		Message: err.Error(),
		Remedy:  "what it had stays in force; raise the map's size or remove services",
	}
}

// healthConflict says that a service's health checks cannot be answered.
func healthConflict(key, owner serviceKey, health FrontendKey) Problem {
	return Problem{
		Object:  "service " + key.String(),
		Message: fmt.Sprintf("healthCheckNodePort %d is taken by service %s", health.Port, owner),
		Remedy:  "give one of them another port",
	}
}

// String prints address, port and protocol, as in [fd00::1]:53/udp.
func (k FrontendKey) String() string {
	return netip.AddrPortFrom(k.Addr, k.Port).String() + "/" + ipproto.Name(k.Proto)
}
