package policy

import (
	"cmp"
	"maps"
	"slices"
)

// view watches which numbers the peers of a selector give to a port's name. Programs whose egress rules use the name
// are compiled again when the set of numbers changes, not when merely another peer with a known number appears.
type view struct {
	key      viewKey
	base     *selector
	members  map[*peer][]NamedPort
	counts   map[NamedPort]int
	watchers map[*group]int
}

// viewKey names a view; protocol 0 is any.
type viewKey struct {
	base     Digest
	name     string
	protocol uint8
}

// viewOf returns the view of a port name among the peers of base, with g as one more watcher. base must be interned.
func (e *Engine) viewOf(base *selector, port Port, g *group) *view {
	key := viewKey{base.digest, port.Name, port.Protocol}
	v := e.views[key]
	if v == nil {
		v = &view{key: key, base: base, members: map[*peer][]NamedPort{}, counts: map[NamedPort]int{}, watchers: map[*group]int{}}
		put(e.plan, e.views, key, v)
		insert(e.viewsByName, key.name, v)
		e.plan.undo = append(e.plan.undo, func() { extract(e.viewsByName, key.name, v) })
		set(e.plan, &base.refs, base.refs+1)
		for p := range maps.Values(e.peers) {
			e.recount(v, p, v.contribution(p))
		}
	}
	put(e.plan, v.watchers, g, v.watchers[g]+1)
	return v
}

// leaveView takes a watcher away; a view without any goes.
func (e *Engine) leaveView(v *view, g *group) {
	if v.watchers[g] > 1 {
		put(e.plan, v.watchers, g, v.watchers[g]-1)
		return
	}
	drop(e.plan, v.watchers, g)
	if len(v.watchers) == 0 {
		drop(e.plan, e.views, v.key)
		extract(e.viewsByName, v.key.name, v)
		e.plan.undo = append(e.plan.undo, func() { insert(e.viewsByName, v.key.name, v) })
		e.unref(v.base)
	}
}

// numbers lists the distinct ports, sorted.
func (v *view) numbers() []NamedPort {
	return slices.SortedFunc(maps.Keys(v.counts), func(a, b NamedPort) int {
		return cmp.Or(cmp.Compare(a.Protocol, b.Protocol), cmp.Compare(a.Port, b.Port))
	})
}

// contribution lists the ports of that name that a peer has, if it is a peer of the selector.
func (v *view) contribution(p *peer) []NamedPort {
	var out []NamedPort
	for _, port := range p.ports {
		if port.Name == v.key.name && (v.key.protocol == 0 || v.key.protocol == port.Protocol) && !slices.Contains(out, port) {
			out = append(out, port)
		}
	}
	if len(out) > 0 && !v.base.matches(p) {
		return nil
	}
	return out
}

// watch looks again at what a new or changed peer contributes.
func (e *Engine) watch(p *peer) {
	e.eachView(p, func(v *view) { e.recount(v, p, v.contribution(p)) })
}

// eachView calls do with the views of the names that a peer has for its ports.
func (e *Engine) eachView(p *peer, do func(*view)) {
	for i := range p.ports {
		if i == 0 || p.ports[i].Name != p.ports[i-1].Name {
			for v := range e.viewsByName[p.ports[i].Name] {
				do(v)
			}
		}
	}
}

// unwatch forgets a peer.
func (e *Engine) unwatch(p *peer) {
	e.eachView(p, func(v *view) { e.recount(v, p, nil) })
}

// recount replaces a peer's contribution and marks the watchers if the set of numbers changed.
func (e *Engine) recount(v *view, p *peer, ports []NamedPort) {
	old := v.members[p]
	if slices.Equal(old, ports) {
		return
	}
	changed := false
	for _, port := range old {
		if v.counts[port] == 1 {
			drop(e.plan, v.counts, port)
			changed = true
		} else {
			put(e.plan, v.counts, port, v.counts[port]-1)
		}
	}
	for _, port := range ports {
		changed = changed || v.counts[port] == 0
		put(e.plan, v.counts, port, v.counts[port]+1)
	}
	if len(ports) == 0 {
		drop(e.plan, v.members, p)
	} else {
		put(e.plan, v.members, p, ports)
	}
	if changed {
		for g := range v.watchers {
			e.plan.groups.put(g, struct{}{})
		}
	}
}
