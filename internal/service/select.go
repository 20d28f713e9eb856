package service

import (
	"cmp"
	"net/netip"
	"slices"
	"strings"

	"tendril.io/tendril/internal/table"
)

// backendKey is an address that services may send clients to.
type backendKey struct {
	addr  netip.Addr
	port  uint16
	proto uint8
}

// compare orders backends. Slots stand in this order, so it must not depend on numbers, which history gives out.
func (k backendKey) compare(other backendKey) int {
	return cmp.Or(k.addr.Compare(other.addr), cmp.Compare(k.port, other.port), cmp.Compare(k.proto, other.proto))
}

// backendName is what makes a backend: a service and an address. Services that list the same address have a number each,
// so that one of them can let it go and have its own clients told.
type backendName struct {
	service serviceKey
	key     backendKey
}

// endpoint is a backend as a service's slices describe it.
type endpoint struct {
	key        backendKey
	node, zone string
	hints      string // zones that it is for, each between commas; empty: nobody says
	weight     uint32 // at least 1
	readiness  Readiness
}

// Readiness is what an endpoint's conditions come to, the better the higher.
type Readiness uint8

// What endpoints can be. The API says that what serves and does not terminate is ready: there is no other way to serve.
const (
	Unlisted    Readiness = iota // no slice has it any more
	Terminating                  // on its way out, and not answering
	NotReady
	Draining // on its way out, but still answering
	Ready
)

// String is the readiness as people read it.
func (r Readiness) String() string {
	return [...]string{"unlisted", "terminating", "not ready", "draining", "ready"}[r]
}

// Choice is why an endpoint gets new connections from some clients, or none.
type Choice uint8

// Why an endpoint is left out. What comes first in choose is what is said.
const (
	NotAsked    Choice = iota // no client comes from there: a cluster's address from outside
	Chosen                    // it gets connections
	OtherFamily               // of addresses
	OutOfUse                  // neither ready nor draining
	OtherNode                 // than the client's or the one that was asked, and the traffic policy is Local
	BetterReady               // it drains, and another one is ready
	NearerNode                // trafficDistribution: one on this node will do
	NearerZone                // trafficDistribution or hints: one in this zone, or for it, will do
	NoRoom                    // it is to be chosen, but a table is full
)

// String is the choice as people read it.
func (c Choice) String() string {
	return [...]string{"", "chosen", "other family", "not ready", "local policy", "draining", "nearer node", "nearer zone", "no room"}[c]
}

// backendSet are endpoints in order of their keys.
type backendSet []endpoint

// selection is what stands behind one or more frontends of a service, and why the rest of a port's endpoints does not.
type selection struct {
	from    []endpoint // of both families, sorted; shared by the port's selections
	choices []Choice   // of each of them
}

// frontendPlan is a frontend and which of the plan's sets stand behind it.
type frontendPlan struct {
	key     FrontendKey
	port    string // name
	place   place
	inside  int // for clients of this node
	outside int // for packets that arrive; of an external place only
}

// plan is what a service should be in the kernel, in names rather than numbers.
type plan struct {
	frontends []frontendPlan
	sets      []selection
	guards    []netip.Prefix // source ranges, if some frontend has them
	members   []endpoint     // every endpoint behind some frontend's port and of its family, sorted, chosen or not
	health    *HealthCheck   // what load balancers may ask; nil: nothing
	problems  []Problem
}

// readyHere counts the addresses of this node among endpoints, of the family that has more.
func (b *Brain) readyHere(all []endpoint) int {
	var seen [2]map[netip.Addr]bool
	for _, e := range all {
		if e.readiness != Ready || e.node != b.config.NodeName {
			continue
		}
		family := 0
		if e.key.addr.Is6() {
			family = 1
		}
		if seen[family] == nil {
			seen[family] = make(map[netip.Addr]bool)
		}
		seen[family][e.key.addr] = true
	}
	return max(len(seen[0]), len(seen[1]))
}

// place is where one port of a service answers, and for whom.
type place struct {
	addr     netip.Addr // unspecified: every address of the node
	port     uint16
	external bool // for clients outside, too; not at a loopback address
	guarded  bool // loadBalancerSourceRanges say which
}

// places lists where a port of a service answers. Headless services have the unspecified address, or none: no place.
func places(service *table.Service, port *table.ServicePort) []place {
	var all []place
	add := func(addrs []netip.Addr, p place) {
		for _, addr := range addrs {
			p.addr = addr.Unmap()
			if p.port != 0 && p.addr.IsValid() && (p.port == port.NodePort || !p.addr.IsUnspecified()) {
				at := p
				at.external = p.external && !p.addr.IsLoopback()
				all = append(all, at)
			}
		}
	}
	if service.Type == "ExternalName" || !served(port.Protocol) {
		return nil
	}
	add(service.ClusterIPs, place{port: port.Port})
	var anywhere []netip.Addr
	for _, p := range all {
		anywhere = append(anywhere, unspecified(p.addr.Is4()))
	}
	add(service.ExternalIPs, place{port: port.Port, external: true})
	add(service.LoadBalancerIPs, place{port: port.Port, external: true, guarded: len(service.SourceRanges) > 0})
	add(anywhere, place{port: port.NodePort, external: true})
	return all
}

// served says whether the datapath knows where a protocol has its ports.
func served(protocol uint8) bool { return slices.Contains([]uint8{6, 17, 132}, protocol) } // IANA's TCP, UDP, SCTP

// unspecified stands for every address of the node in a family.
func unspecified(is4 bool) netip.Addr {
	if is4 {
		return netip.IPv4Unspecified()
	}
	return netip.IPv6Unspecified()
}

// frontend is the key of a place.
func (p place) frontend(port *table.ServicePort) FrontendKey {
	return FrontendKey{p.addr, p.port, port.Protocol}
}

// healthFrontend is the port at which load balancers ask whether this node has a backend; false: none asks. It is
// claimed like a node port, so that no two things answer there.
func healthFrontend(service *table.Service) (FrontendKey, bool) {
	const tcp = 6 // IANA's number
	asked := service.ExternalLocal && service.HealthCheckNodePort != 0 && service.Type == "LoadBalancer"
	return FrontendKey{netip.IPv4Unspecified(), service.HealthCheckNodePort, tcp}, asked
}

// wantedFrontends lists what a service asks for, sorted and distinct.
func wantedFrontends(service *table.Service) []FrontendKey {
	var keys []FrontendKey
	for i := range service.Ports {
		for _, at := range places(service, &service.Ports[i]) {
			keys = append(keys, at.frontend(&service.Ports[i]))
		}
	}
	if key, asked := healthFrontend(service); asked {
		keys = append(keys, key)
	}
	slices.SortFunc(keys, FrontendKey.Compare)
	return slices.Compact(keys)
}

// plan derives what a service should be from what was put in.
func (b *Brain) plan(key serviceKey, r *record) plan {
	var p plan
	if r.service == nil {
		return p
	}
	for _, short := range r.service.Shortfalls {
		p.problems = append(p.problems, Problem{"service " + key.String(), short.Message, short.Remedy})
	}
	p.addressless(key, r)
	// Ports are in the outer loop, so that the endpoints of a port are collected once for all its frontends.
	taken := make(map[FrontendKey]bool, len(r.claims))
	for i := range r.service.Ports {
		port := portPlan{brain: b, record: r, port: &r.service.Ports[i], plan: &p}
		for _, at := range places(r.service, port.port) {
			frontend := at.frontend(port.port)
			if taken[frontend] {
				continue // an earlier port of this service has it
			}
			taken[frontend] = true
			problems, withheld := b.rivalry(key, frontend, at)
			p.problems = append(p.problems, problems...)
			if !withheld {
				p.frontends = append(p.frontends, port.frontend(frontend, at))
			}
		}
		if r.service.Type != "ExternalName" && !served(port.port.Protocol) {
			p.problems = append(p.problems, unknownProtocol(key, port.port))
		}
		port.finish()
	}
	if health, asked := healthFrontend(r.service); asked {
		if owner := b.owner(health); taken[health] || owner != key {
			p.problems = append(p.problems, healthConflict(key, owner, health))
		} else {
			p.health = &HealthCheck{key.namespace, key.name, health.Port, b.readyHere(p.members)}
		}
	}
	p.guard(r.service)
	// Two ports of a service can lead to the same endpoint port: it is one backend.
	slices.SortFunc(p.members, func(x, y endpoint) int { return x.key.compare(y.key) })
	p.members = slices.CompactFunc(p.members, func(x, y endpoint) bool { return x.key == y.key })
	return p
}

// rivalry says what else is at a frontend's address, and whether that keeps the service from it.
func (b *Brain) rivalry(key serviceKey, frontend FrontendKey, at place) (problems []Problem, withheld bool) {
	if nodes := b.nodesAt[frontend.Addr]; len(nodes) > 0 && !at.external {
		return []Problem{nodesAddress(key, frontend.Addr, nodes[0])}, true
	}
	if owner := b.owner(frontend); owner != key {
		return []Problem{conflict(key, owner, frontend)}, true
	}
	// One address and all addresses: there the datapath asks for the one first, and names decide as among equals.
	for _, rival := range b.rivals(frontend) {
		owner := b.owner(rival)
		if owner == (serviceKey{}) || owner.compare(key) >= 0 {
			continue
		}
		if !frontend.Addr.IsUnspecified() {
			return []Problem{conflict(key, owner, frontend)}, true
		}
		problems = append(problems, shadowed(key, owner, rival))
	}
	return problems, false
}

// guard lists who may come, if some frontend asks for that.
func (p *plan) guard(service *table.Service) {
	if !slices.ContainsFunc(p.frontends, func(f frontendPlan) bool { return f.place.guarded }) {
		return
	}
	for _, prefix := range service.SourceRanges {
		p.guards = append(p.guards, netip.PrefixFrom(prefix.Addr().Unmap(), prefix.Bits()).Masked())
	}
	slices.SortFunc(p.guards, netip.Prefix.Compare)
	p.guards = slices.Compact(p.guards)
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

// frontend plans a frontend. Clients of this node do not come from outside, whatever address they use: for them,
// externalTrafficPolicy says nothing (KEP-2086 has internalTrafficPolicy for cluster addresses only).
func (p *portPlan) frontend(key FrontendKey, at place) frontendPlan {
	service, is4 := p.record.service, key.Addr.Is4()
	plan := frontendPlan{key: key, port: p.port.Name, place: at, inside: p.set(is4, service.InternalLocal && !at.external)}
	if at.external {
		plan.outside = p.set(is4, service.ExternalLocal)
	}
	return plan
}

// set returns the index of the set behind a frontend of the family, making it if it is the first such frontend.
func (p *portPlan) set(is4, local bool) int {
	if p.endpoints == nil {
		p.endpoints = p.record.endpoints(p.port)
	}
	family, locality := 0, 0
	if !is4 {
		family = 1
	}
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
				all = appendEndpoints(all, &slice.Backends[i], named, max(slice.Weight, 1), r.service.PublishNotReady)
			}
		}
	}
	slices.SortFunc(all, func(x, y endpoint) int {
		return cmp.Or(x.key.compare(y.key), cmp.Compare(y.readiness, x.readiness), cmp.Compare(y.weight, x.weight), cmp.Compare(x.node, y.node), cmp.Compare(x.zone, y.zone), cmp.Compare(x.hints, y.hints))
	})
	return slices.CompactFunc(all, func(x, y endpoint) bool { return x.key == y.key })
}

// hasHints says whether some slice has, as all or none of its endpoints should.
func (r *record) hasHints() bool {
	for _, slice := range r.slices {
		if len(slice.Backends) > 0 && len(slice.Backends[0].HintZones) > 0 {
			return true
		}
	}
	return false
}

// readiness is what a row's conditions come to.
func readiness(row *table.Backend, publishNotReady bool) Readiness {
	switch {
	case row.Ready || publishNotReady:
		return Ready
	case row.Terminating && row.Serving:
		return Draining
	case row.Terminating:
		return Terminating
	default:
		return NotReady
	}
}

// appendEndpoints appends the first address of each family of a row.
func appendEndpoints(all []endpoint, row *table.Backend, port table.NamedPort, weight uint32, publishNotReady bool) []endpoint {
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
		hints := ""
		if len(row.HintZones) > 0 {
			hints = "," + strings.Join(row.HintZones, ",") + ","
		}
		all = append(all, endpoint{
			hints:     hints,
			key:       backendKey{addr, port.Port, port.Protocol},
			node:      row.Node,
			zone:      row.Zone,
			weight:    weight,
			readiness: readiness(row, publishNotReady),
		})
	}
	return all
}

// choose picks the endpoints that get new connections: ready ones, or if there are none those that drain; on this node
// only if the traffic policy is local; the near ones if the service prefers them and there are any.
func (b *Brain) choose(endpoints []endpoint, is4, local bool, distribution string) selection {
	s := selection{endpoints, slices.Repeat([]Choice{Chosen}, len(endpoints))}
	s.require(OtherFamily, func(e *endpoint) bool { return e.key.addr.Is4() == is4 })
	s.require(OutOfUse, func(e *endpoint) bool { return e.readiness >= Draining })
	if local {
		s.require(OtherNode, func(e *endpoint) bool { return e.node == b.config.NodeName })
	}
	// KEP-1669 (ProxyTerminatingEndpoints): draining endpoints serve only when there is nothing better.
	s.prefer(BetterReady, func(e *endpoint) bool { return e.readiness == Ready })
	switch distribution {
	case "PreferSameNode":
		here := func(e *endpoint) bool { return b.config.NodeName != "" && e.node == b.config.NodeName }
		if !s.prefer(NearerNode, here) {
			s.prefer(NearerZone, b.sameZone)
		}
	case "PreferClose", "PreferSameZone":
		s.prefer(NearerZone, b.sameZone)
	default:
		if !local && s.all(func(e *endpoint) bool { return e.hints != "" }) {
			s.prefer(NearerZone, b.hinted)
		}
	}
	return s
}

// hinted says that an endpoint is for clients of this node's zone. Hints count only if all endpoints have one: else they are being written
// (KEP-2433, as kube-proxy does).
func (b *Brain) hinted(e *endpoint) bool {
	return b.home != "" && strings.Contains(e.hints, ","+b.home+",")
}

// zone is where an endpoint is; its node's counts where the slice names none.
func (b *Brain) zone(e *endpoint) string { return cmp.Or(e.zone, b.nodes[e.node].zone) }

// sameZone says that an endpoint is in this node's zone.
func (b *Brain) sameZone(e *endpoint) bool { return b.home != "" && b.zone(e) == b.home }

// require leaves out, for a reason, what is not good.
func (s *selection) require(reason Choice, good func(*endpoint) bool) {
	for i := range s.from {
		if s.choices[i] == Chosen && !good(&s.from[i]) {
			s.choices[i] = reason
		}
	}
}

// all says whether all that are left are good.
func (s *selection) all(good func(*endpoint) bool) bool {
	for i := range s.from {
		if s.choices[i] == Chosen && !good(&s.from[i]) {
			return false
		}
	}
	return true
}

// prefer does so if something is left that is good, and says whether there is.
func (s *selection) prefer(reason Choice, good func(*endpoint) bool) bool {
	for i := range s.from {
		if s.choices[i] == Chosen && good(&s.from[i]) {
			s.require(reason, good)
			return true
		}
	}
	return false
}

// chosen lists the endpoints that get new connections.
func (s *selection) chosen() backendSet {
	var set backendSet
	for i, choice := range s.choices {
		if choice == Chosen {
			set = append(set, s.from[i])
		}
	}
	return set
}
