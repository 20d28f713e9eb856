package service

import (
	"cmp"
	"net/netip"
	"slices"

	"tendril.io/tendril/internal/table"
)

// backendKey is what makes a backend: services that list the same one share its number.
type backendKey struct {
	addr  netip.Addr
	port  uint16
	proto uint8
}

// compare orders backends. Slots stand in this order, so it must not depend on numbers, which history gives out.
func (k backendKey) compare(other backendKey) int {
	return cmp.Or(k.addr.Compare(other.addr), cmp.Compare(k.port, other.port), cmp.Compare(k.proto, other.proto))
}

// endpoint is a backend as a service's slices describe it.
type endpoint struct {
	key        backendKey
	node, zone string
	ready      bool
	draining   bool // terminating, but still answering
}

// backendSet is what stands behind one or more frontends of a service: endpoints in order of their keys.
type backendSet []endpoint

// frontendPlan is a frontend and which of the plan's sets stands behind it.
type frontendPlan struct {
	key      FrontendKey
	external bool
	set      int
}

// plan is what a service should be in the kernel, in names rather than numbers.
type plan struct {
	frontends []frontendPlan
	sets      []backendSet
	members   []endpoint // every endpoint behind some frontend's port and of its family, sorted, chosen or not
	problems  []Problem
}

// serviceAddresses lists the addresses at which a service answers, inside the cluster or outside it.
func serviceAddresses(service *table.Service, external bool) []netip.Addr {
	switch {
	case service.Type == "ExternalName":
		return nil
	case !external:
		return service.ClusterIPs
	case len(service.SourceRanges) > 0:
		return service.ExternalIPs // load-balancer addresses stay closed: see unsupported
	default:
		return slices.Concat(service.ExternalIPs, service.LoadBalancerIPs)
	}
}

// wantedFrontends lists what a service asks for, sorted and distinct.
func wantedFrontends(service *table.Service) []FrontendKey {
	var keys []FrontendKey
	for _, external := range []bool{false, true} {
		for _, addr := range serviceAddresses(service, external) {
			for i := range service.Ports {
				if key, ok := frontendKey(addr, &service.Ports[i]); ok {
					keys = append(keys, key)
				}
			}
		}
	}
	slices.SortFunc(keys, FrontendKey.Compare)
	return slices.Compact(keys)
}

// frontendKey joins an address and a port. Headless services have the unspecified address, or none: no frontend.
func frontendKey(addr netip.Addr, port *table.ServicePort) (FrontendKey, bool) {
	addr = addr.Unmap()
	ok := addr.IsValid() && !addr.IsUnspecified() && port.Port != 0 && port.Protocol != 0
	return FrontendKey{addr, port.Port, port.Protocol}, ok
}

// plan derives what a service should be from what was put in.
func (b *Brain) plan(key serviceKey, r *record) plan {
	var p plan
	if r.service == nil {
		return p
	}
	p.problems = unsupported(key, r.service)
	// Ports are in the outer loop, so that the endpoints of a port are collected once for all its frontends.
	taken := make([]bool, len(r.claims))
	for i := range r.service.Ports {
		port := portPlan{brain: b, record: r, port: &r.service.Ports[i], plan: &p}
		for _, external := range []bool{false, true} {
			for _, addr := range serviceAddresses(r.service, external) {
				frontend, ok := frontendKey(addr, port.port)
				if !ok {
					continue
				}
				at, _ := slices.BinarySearchFunc(r.claims, frontend, FrontendKey.Compare)
				if taken[at] {
					continue // an earlier port of this service has it
				}
				taken[at] = true
				if owner := b.owner(frontend); owner != key {
					p.problems = append(p.problems, conflict(key, owner, frontend))
					continue
				}
				p.frontends = append(p.frontends, frontendPlan{frontend, external, port.set(frontend.Addr.Is4(), external)})
			}
		}
		port.finish()
	}
	// Two ports of a service can lead to the same endpoint port: it is one backend.
	slices.SortFunc(p.members, func(x, y endpoint) int { return x.key.compare(y.key) })
	p.members = slices.CompactFunc(p.members, func(x, y endpoint) bool { return x.key == y.key })
	return p
}

// portPlan is the planning of one port of a service. Sets are shared by the frontends for which they are the same.
type portPlan struct {
	brain     *Brain
	record    *record
	port      *table.ServicePort
	plan      *plan
	endpoints []endpoint // of the port, sorted; nil until asked for
	families  [2]bool    // IPv4, IPv6: some frontend has it
	sets      [2][2]int  // by family and locality: 1 + index into plan.sets; 0: not made yet
}

// set returns the index of the set behind a frontend of the family, making it if it is the first such frontend.
func (p *portPlan) set(is4, external bool) int {
	if p.endpoints == nil {
		p.endpoints = p.record.endpoints(p.port)
	}
	family, locality := 0, 0
	if !is4 {
		family = 1
	}
	local := external && p.record.service.ExternalLocal || !external && p.record.service.InternalLocal
	if local {
		locality = 1
	}
	p.families[family] = true
	if p.sets[family][locality] == 0 {
		p.plan.sets = append(p.plan.sets, p.brain.choose(p.endpoints, is4, local, p.record.service.TrafficDistribution))
		p.sets[family][locality] = len(p.plan.sets)
	}
	return p.sets[family][locality] - 1
}

// finish lists the port's endpoints as members: those of a family that some frontend has.
func (p *portPlan) finish() {
	for _, e := range p.endpoints {
		if e.key.addr.Is4() && p.families[0] || !e.key.addr.Is4() && p.families[1] {
			p.plan.members = append(p.plan.members, e)
		}
	}
}

// endpoints collects the endpoints of a service port from all slices, matched by the port's name and protocol, sorted
// and each once. An endpoint that moves between slices can be in two for a while: the better state counts.
func (r *record) endpoints(port *table.ServicePort) []endpoint {
	var all []endpoint
	for _, slice := range r.slices {
		for _, named := range slice.Ports {
			if named.Name != port.Name || named.Protocol != port.Protocol || named.Port == 0 {
				continue
			}
			for i := range slice.Backends {
				all = appendEndpoints(all, &slice.Backends[i], named, r.service.PublishNotReady)
			}
		}
	}
	slices.SortFunc(all, func(x, y endpoint) int {
		return cmp.Or(x.key.compare(y.key), y.rank()-x.rank(), cmp.Compare(x.node, y.node), cmp.Compare(x.zone, y.zone))
	})
	return slices.CompactFunc(all, func(x, y endpoint) bool { return x.key == y.key })
}

// rank orders states of one endpoint: ready before draining before neither.
func (e endpoint) rank() int {
	switch {
	case e.ready:
		return 2
	case e.draining:
		return 1
	default:
		return 0
	}
}

// appendEndpoints appends the first address of each family of a row.
func appendEndpoints(all []endpoint, row *table.Backend, port table.NamedPort, publishNotReady bool) []endpoint {
	var seen [2]bool
	for _, addr := range row.Addrs {
		addr = addr.Unmap()
		family := 0
		if addr.Is6() {
			family = 1
		}
		if !addr.IsValid() || seen[family] {
			continue
		}
		seen[family] = true
		all = append(all, endpoint{
			key:      backendKey{addr, port.Port, port.Protocol},
			node:     row.Node,
			zone:     row.Zone,
			ready:    row.Ready || publishNotReady,
			draining: row.Terminating && row.Serving,
		})
	}
	return all
}

// choose picks the endpoints that get new connections: ready ones, or if there are none those that drain; on this node
// only if the traffic policy is local; the near ones if the service prefers them and there are any.
func (b *Brain) choose(endpoints []endpoint, is4, local bool, distribution string) backendSet {
	pick := func(good func(endpoint) bool) backendSet {
		var set backendSet
		for _, e := range endpoints {
			if e.key.addr.Is4() == is4 && (!local || e.node == b.config.NodeName) && good(e) {
				set = append(set, e)
			}
		}
		return set
	}
	// KEP-1669 (ProxyTerminatingEndpoints): draining endpoints serve only when there is nothing better.
	set := pick(func(e endpoint) bool { return e.ready })
	if len(set) == 0 {
		set = pick(func(e endpoint) bool { return e.draining })
	}
	switch distribution {
	case "PreferSameNode":
		set = set.prefer(func(e endpoint) bool { return b.config.NodeName != "" && e.node == b.config.NodeName }, b.sameZone)
	case "PreferClose", "PreferSameZone":
		set = set.prefer(b.sameZone)
	}
	return set
}

// sameZone says that an endpoint is in this node's zone.
func (b *Brain) sameZone(e endpoint) bool {
	return b.config.Zone != "" && cmp.Or(e.zone, b.nodes[e.node].zone) == b.config.Zone
}

// prefer narrows a set to the first preference that some endpoint meets; if none does it stays whole.
func (s backendSet) prefer(preferences ...func(endpoint) bool) backendSet {
	for _, near := range preferences {
		if slices.ContainsFunc(s, near) {
			return slices.DeleteFunc(slices.Clone(s), func(e endpoint) bool { return !near(e) })
		}
	}
	return s
}
