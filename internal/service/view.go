package service

import (
	"cmp"
	"maps"
	"net/netip"
	"slices"
	"strings"

	"tendril.io/tendril/bpf"
	"tendril.io/tendril/internal/ipproto"
)

// View is one frontend of a service as the kernel has it; a service without frontends has one view with none.
type View struct {
	Namespace, Name string
	Type            string
	Frontend        netip.AddrPort // invalid: the service has no frontend
	Port            string         // its name
	Proto           uint8
	Backends        []BackendView // every endpoint of its port and family, chosen or not
	Problems        []Problem     // of the whole service
}

// BackendView is an endpoint of a frontend's port. What the kernel leads clients to is chosen, whatever the inputs ask for.
type BackendView struct {
	Addr       netip.AddrPort
	State      Readiness
	Inside     Choice // for clients of this node
	Outside    Choice // for packets that arrive
	Node, Zone string
	Weight     uint32 // 0: unlisted
}

// Chosen says whether some client is led to it.
func (b BackendView) Chosen() bool { return b.Inside == Chosen || b.Outside == Chosen }

// Views lists the services that were put in, sorted by name and frontend; name, as in shop/web, picks one: "" is for all.
func (b *Brain) Views(name string) []View {
	var views []View
	if name != "" {
		key := serviceKey{}
		key.namespace, key.name, _ = strings.Cut(name, "/")
		if r := b.services[key]; r != nil && r.service != nil {
			views = b.appendViews(views, key, r)
		}
		return views
	}
	keys := make([]serviceKey, 0, len(b.services))
	for key, r := range b.services {
		if r.service != nil {
			keys = append(keys, key)
		}
	}
	slices.SortFunc(keys, serviceKey.compare)
	for _, key := range keys {
		views = b.appendViews(views, key, b.services[key])
	}
	return views
}

// appendViews appends the views of one service. The plan is made again, since it is not kept: it says why an endpoint is
// not chosen.
func (b *Brain) appendViews(views []View, key serviceKey, r *record) []View {
	view := View{Namespace: key.namespace, Name: key.name, Type: r.service.Type, Problems: r.problems}
	before := len(views)
	p := b.plan(key, r)
	for _, frontend := range r.published.frontends {
		state := b.frontends[frontend]
		if state.owner != key {
			continue
		}
		view.Frontend, view.Proto = netip.AddrPortFrom(frontend.Addr, frontend.Port), frontend.Proto
		view.Port, view.Backends = "", nil
		inside, outside := r.published.indexes(state.row.Inside), r.published.indexes(state.row.Outside)
		if at := slices.IndexFunc(p.frontends, func(f frontendPlan) bool { return f.key == frontend }); at >= 0 {
			view.Port = p.frontends[at].port
			view.Backends = b.planned(key, &p, &p.frontends[at], inside, outside)
		}
		view.Backends = append(view.Backends, r.published.unlisted(inside, outside)...)
		views = append(views, view)
	}
	if len(views) == before {
		views = append(views, view)
	}
	return views
}

// indexes are the numbers of the backends in a range of slots.
func (p *publication) indexes(slots bpf.SlotRange) map[uint32]bool {
	set := make(map[uint32]bool)
	for _, held := range p.ranges {
		if held.slots() == slots {
			for _, index := range held.backends {
				set[index] = true
			}
		}
	}
	return set
}

// planned lists what the plan has for a frontend, and takes it out of the numbers that the kernel has.
func (b *Brain) planned(key serviceKey, p *plan, f *frontendPlan, inside, outside map[uint32]bool) []BackendView {
	var views []BackendView
	from := p.sets[f.inside].from
	for i := range from {
		e := &from[i]
		view := BackendView{
			Addr: netip.AddrPortFrom(e.key.addr, e.key.port), State: e.readiness, Node: e.node, Zone: b.zone(e), Weight: e.weight,
			Inside: p.sets[f.inside].choices[i],
		}
		if f.place.external {
			view.Outside = p.sets[f.outside].choices[i]
		}
		if view.Inside == OtherFamily {
			continue
		}
		state := b.backends[backendName{key, e.key}]
		view.Inside, view.Outside = state.choice(view.Inside, inside), state.choice(view.Outside, outside)
		views = append(views, view)
	}
	return views
}

// choice is what the kernel has of a choice, whose backends are in the set: a backend is taken out of it.
func (s *backendState) choice(planned Choice, set map[uint32]bool) Choice {
	if s != nil && set[s.index] {
		delete(set, s.index)
		return Chosen
	}
	if planned == Chosen {
		return NoRoom
	}
	return planned
}

// unlisted are the backends that the kernel still leads clients to, since there is no room for what should be.
func (p *publication) unlisted(inside, outside map[uint32]bool) []BackendView {
	var views []BackendView
	for _, m := range p.members {
		s := m.backend
		view := BackendView{Addr: netip.AddrPortFrom(s.name.key.addr, s.name.key.port), Node: s.node}
		view.Inside, view.Outside = s.choice(NotAsked, inside), s.choice(NotAsked, outside)
		if view.Chosen() {
			views = append(views, view)
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

// FrontendService names the service that has a frontend, for flow records.
func (b *Brain) FrontendService(key FrontendKey) (namespace, name string, ok bool) {
	state, ok := b.frontends[key]
	return state.owner.namespace, state.owner.name, ok
}

// String prints address, port and protocol, as in [fd00::1]:53/udp.
func (k FrontendKey) String() string {
	return netip.AddrPortFrom(k.Addr, k.Port).String() + "/" + ipproto.Name(k.Proto)
}
