package service

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"tendril.io/tendril/internal/table"
)

// Problem is something about a service that a person should act on.
type Problem struct {
	Object  string // "service namespace/name"
	Message string
	Remedy  string
}

// String is the problem in one line: object, message, remedy.
func (p Problem) String() string { return p.Object + ": " + p.Message + ": " + p.Remedy }

// Problems lists what a person should act on, sorted by service.
func (b *Brain) Problems() []Problem {
	var problems []Problem
	for _, r := range b.services {
		problems = append(problems, r.problems...)
	}
	slices.SortFunc(problems, func(x, y Problem) int { return strings.Compare(x.String(), y.String()) })
	return problems
}

// addressless adds the slices of a service that list endpoints without an address. The others of a slice serve.
func (p *plan) addressless(key serviceKey, r *record) {
	before := len(p.problems)
	for name, slice := range r.slices {
		rows := 0
		for i := range slice.Backends {
			if !slices.ContainsFunc(slice.Backends[i].Addrs, netip.Addr.IsValid) {
				rows++
			}
		}
		if rows > 0 {
			p.problems = append(p.problems, addressless(key, name, rows))
		}
	}
	slices.SortFunc(p.problems[before:], func(x, y Problem) int { return strings.Compare(x.Message, y.Message) })
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
	remedy := "raise the map's size or remove services"
	if table := (*tableError)(nil); errors.As(err, &table) {
		remedy = "raise maglev_size, or take the annotation for maglev away"
	}
	return Problem{"service " + key.String(), err.Error(), "what it had stays in force; " + remedy}
}

// nodesAddress says that a cluster's address is a node's, which would have the node's own ports answered by backends.
func nodesAddress(key serviceKey, addr netip.Addr, node string) Problem {
	return Problem{"service " + key.String(), fmt.Sprintf("clusterIP %s is an address of node %s", addr, node), "give the service another one"}
}

// shadowed says that a node port answers at all addresses of nodes but one, where another service does.
func shadowed(key, owner serviceKey, at FrontendKey) Problem {
	return Problem{"service " + key.String(), fmt.Sprintf("its node port does not answer at %s, which service %s has", at, owner), "give one of them another port"}
}

// unknownProtocol says that the datapath does not know where such packets have their ports.
func unknownProtocol(key serviceKey, port *table.ServicePort) Problem {
	return Problem{"service " + key.String(), fmt.Sprintf("port %d has IP protocol %d, which is not served", port.Port, port.Protocol), "use TCP, UDP or SCTP"}
}

// addressless says that a slice lists endpoints that nobody can be led to.
func addressless(key serviceKey, slice string, rows int) Problem {
	return Problem{"service " + key.String(), fmt.Sprintf("endpoint slice %s has %d endpoints without an address", slice, rows), "give each an address, or take them out"}
}

// healthConflict says that a service's health checks cannot be answered.
func healthConflict(key, owner serviceKey, health FrontendKey) Problem {
	return Problem{
		Object:  "service " + key.String(),
		Message: fmt.Sprintf("healthCheckNodePort %d is taken by service %s", health.Port, owner),
		Remedy:  "give one of them another port",
	}
}
