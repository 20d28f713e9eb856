package service

import (
	"cmp"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strings"

	"tendril.io/tendril/internal/label"
	"tendril.io/tendril/internal/table"
)

// Pool is a LoadBalancerPool: addresses for services of type LoadBalancer.
type Pool struct {
	Name       string
	Prefixes   []netip.Prefix
	Services   label.Selector // of the services that it is for, by their own labels
	Namespaces label.Selector // the same, by their namespaces' labels
}

// Request is what one service asks of the pools.
type Request struct {
	Namespace, Name string
	Labels          label.Set
	NamespaceLabels label.Set
	Families        []int        // 4 and 6, the first one first
	Prefer          bool         // the second family may be missing
	Wishes          []netip.Addr // these and no others, at most one a family
	Held            []Grant      // what it was given before
}

// Grant is an address that a pool gave.
type Grant struct {
	Addr netip.Addr
	Pool string
}

// Allotment is the answer to a request.
type Allotment struct {
	Grants     []Grant           // in the order of the request's families
	Shortfalls []table.Shortfall // why a family has none
}

// Occupied is what no pool gives, whatever its ranges say: address -> whose it is, and the pods' prefixes.
type Occupied struct {
	Addrs    map[netip.Addr]string
	Prefixes []netip.Prefix
}

// Allotter gives addresses to services, those of one call after another, and knows whose each address is.
type Allotter struct {
	pools    []Pool                // sorted by name
	taken    map[netip.Addr]string // given: address -> whose it is
	occupied Occupied
	next     map[netip.Prefix]netip.Addr // below it, nothing of the prefix is free
}

// NewAllotter returns one that has given nothing yet.
func NewAllotter(pools []Pool, occupied Occupied) *Allotter {
	addrs := make(map[netip.Addr]string, len(occupied.Addrs))
	maps.Copy(addrs, occupied.Addrs)
	occupied.Addrs = addrs
	return &Allotter{
		pools: slices.SortedFunc(slices.Values(pools), func(x, y Pool) int { return strings.Compare(x.Name, y.Name) }),
		taken: make(map[netip.Addr]string), occupied: occupied, next: make(map[netip.Prefix]netip.Addr),
	}
}

// Allot gives addresses to services; answers stand in the order of the requests. It depends on what it is given and not on
// its order: no address is given twice, what a service holds stays its own for as long as a pool that selects it has the
// address, wishes come before those who take any, and the rest is by name: of the first pool the lowest free address.
//
// Where everybody has what was asked for, or nothing was released, a call for more services gives the same as one new
// Allotter asked for all of them, who hold what they were given.
//
// A network's first and last address are never given: hosts of the link take them for the network itself and for everybody
// (RFC 919; for IPv6, the first is that of any router, RFC 4291 2.6.1).
func (a *Allotter) Allot(requests []Request) []Allotment {
	answers := make([]Allotment, len(requests))
	order := make([]int, len(requests))
	for i := range order {
		order[i] = i
	}
	slices.SortFunc(order, func(x, y int) int { return requests[x].key().compare(requests[y].key()) })
	for _, give := range []func(*Request, int) (Grant, bool){a.keep, a.wish, a.any} {
		for _, i := range order {
			for _, family := range requests[i].Families {
				if answers[i].has(family) {
					continue
				}
				if grant, ok := give(&requests[i], family); ok {
					a.taken[grant.Addr] = "service " + requests[i].key().String()
					answers[i].Grants = append(answers[i].Grants, grant)
				}
			}
		}
	}
	for i := range requests {
		answers[i].finish(a, &requests[i])
	}
	return answers
}

// Gave says whether an address was given and not released.
func (a *Allotter) Gave(addr netip.Addr) bool { return a.taken[addr] != "" }

// Release takes back what was given.
func (a *Allotter) Release(addr netip.Addr) {
	delete(a.taken, addr)
	for prefix, next := range a.next {
		if prefix.Contains(addr) && (!next.IsValid() || addr.Less(next)) {
			a.next[prefix] = addr
		}
	}
}

// Occupy notes an address that is not to be given from now on.
func (a *Allotter) Occupy(addr netip.Addr, owner string) { a.occupied.Addrs[addr] = owner }

// key names the service.
func (r *Request) key() serviceKey { return serviceKey{r.Namespace, r.Name} }

// wished returns the address that the service wants in a family, if it wants a particular one.
func (r *Request) wished(family int) (netip.Addr, bool) {
	at := slices.IndexFunc(r.Wishes, func(addr netip.Addr) bool { return familyOf(addr) == family })
	if at < 0 {
		return netip.Addr{}, false
	}
	return r.Wishes[at], true
}

// familyOf is 4 or 6.
func familyOf(addr netip.Addr) int {
	if addr.Is4() {
		return 4
	}
	return 6
}

// has says whether there is an address of a family.
func (a *Allotment) has(family int) bool {
	return slices.ContainsFunc(a.Grants, func(g Grant) bool { return familyOf(g.Addr) == family })
}

// finish puts the grants in order and says what is missing.
func (a *Allotment) finish(from *Allotter, r *Request) {
	slices.SortFunc(a.Grants, func(x, y Grant) int {
		return cmp.Compare(slices.Index(r.Families, familyOf(x.Addr)), slices.Index(r.Families, familyOf(y.Addr)))
	})
	for i, family := range r.Families {
		_, wishes := r.wished(family)
		if a.has(family) || (r.Prefer && i > 0 && !wishes) {
			continue
		}
		if short, is := from.shortfall(r, family); is {
			a.Shortfalls = append(a.Shortfalls, short)
		}
	}
}

// selecting lists the pools that select a service, sorted by name.
func (a *Allotter) selecting(r *Request) []*Pool {
	var pools []*Pool
	for i := range a.pools {
		p := &a.pools[i]
		if p.Services.Matches(ownLabels{r.Labels}) && p.Namespaces.Matches(namespaceLabels{r.NamespaceLabels, r.Namespace}) {
			pools = append(pools, p)
		}
	}
	return pools
}

// holder returns the pool, of those that select a service, that may give it an address; nil: none may.
func (a *Allotter) holder(r *Request, addr netip.Addr) *Pool {
	for _, p := range a.selecting(r) {
		for _, prefix := range p.Prefixes {
			if prefix.Contains(addr) && givable(prefix, addr) {
				return p
			}
		}
	}
	return nil
}

// keep lets a service keep what it has.
func (a *Allotter) keep(r *Request, family int) (Grant, bool) {
	wish, wishes := r.wished(family)
	for _, held := range r.Held {
		if familyOf(held.Addr) != family || (wishes && held.Addr != wish) || a.taken[held.Addr] != "" {
			continue
		}
		if pool := a.holder(r, held.Addr); pool != nil {
			return Grant{held.Addr, pool.Name}, true
		}
	}
	return Grant{}, false
}

// wish gives a service the address that it wants.
func (a *Allotter) wish(r *Request, family int) (Grant, bool) {
	addr, wishes := r.wished(family)
	if !wishes || a.owner(addr) != "" {
		return Grant{}, false
	}
	pool := a.holder(r, addr)
	if pool == nil {
		return Grant{}, false
	}
	return Grant{addr, pool.Name}, true
}

// any gives a service the next free address.
func (a *Allotter) any(r *Request, family int) (Grant, bool) {
	if _, wishes := r.wished(family); wishes {
		return Grant{}, false
	}
	for _, pool := range a.selecting(r) {
		for _, prefix := range pool.Prefixes {
			if familyOf(prefix.Addr()) != family {
				continue
			}
			if addr, ok := a.lowest(prefix); ok {
				return Grant{addr, pool.Name}, true
			}
		}
	}
	return Grant{}, false
}

// lowest finds the lowest free address of a prefix.
func (a *Allotter) lowest(prefix netip.Prefix) (netip.Addr, bool) {
	addr, begun := a.next[prefix]
	if !begun {
		addr = prefix.Addr()
	}
	for addr.IsValid() && prefix.Contains(addr) {
		if within := a.within(addr); within.IsValid() {
			addr = lastOf(within).Next() // past all of it at once
			continue
		}
		if givable(prefix, addr) && a.owner(addr) == "" {
			break
		}
		addr = addr.Next()
	}
	if !addr.IsValid() {
		addr = lastOf(prefix).Next() // the end of all addresses; invalid again if the prefix ends there
	}
	a.next[prefix] = addr
	return addr, addr.IsValid() && prefix.Contains(addr)
}

// owner says whose an address is; empty: nobody's.
func (a *Allotter) owner(addr netip.Addr) string {
	if owner := a.taken[addr]; owner != "" {
		return owner
	}
	if owner := a.occupied.Addrs[addr]; owner != "" {
		return owner
	}
	if within := a.within(addr); within.IsValid() {
		return "the pods' range " + within.String()
	}
	return ""
}

// within returns the pods' prefix that an address lies in, an invalid one if none.
func (a *Allotter) within(addr netip.Addr) netip.Prefix {
	for _, prefix := range a.occupied.Prefixes {
		if prefix.Contains(addr) {
			return prefix
		}
	}
	return netip.Prefix{}
}

// shortfall says why a service has no address of a family. Where nobody has made a pool and nobody wishes anything, another
// controller may give the addresses, and nothing is wrong.
func (a *Allotter) shortfall(r *Request, family int) (short table.Shortfall, is bool) {
	wish, wishes := r.wished(family)
	var names []string
	for _, pool := range a.selecting(r) {
		if slices.ContainsFunc(pool.Prefixes, func(p netip.Prefix) bool { return familyOf(p.Addr()) == family }) {
			names = append(names, pool.Name)
		}
	}
	switch {
	case wishes && a.holder(r, wish) == nil:
		return table.Shortfall{
			Message: fmt.Sprintf("no LoadBalancerPool that selects it may give it %s, which it asks for", wish),
			Remedy:  "ask for another address, or put this one into a pool (never as the first or last of a network)",
		}, true
	case wishes:
		return table.Shortfall{
			Message: fmt.Sprintf("%s, which it asks for, is of %s", wish, a.owner(wish)),
			Remedy:  "ask for another address, or for none in particular",
		}, true
	case len(names) > 0:
		return table.Shortfall{
			Message: fmt.Sprintf("no IPv%d address is left in LoadBalancerPool %s", family, strings.Join(names, ", ")),
			Remedy:  "widen the pool or delete services; an address that comes free is given at once",
		}, true
	case len(a.pools) > 0:
		return table.Shortfall{
			Message: fmt.Sprintf("no LoadBalancerPool with IPv%d addresses selects it", family),
			Remedy:  "make a pool that does, or change the labels or ipFamilies of the service",
		}, true
	}
	return short, false
}

// givable says whether a service may have an address of a prefix, which contains it.
func givable(prefix netip.Prefix, addr netip.Addr) bool {
	if prefix.Addr().BitLen()-prefix.Bits() <= 1 { // a single address, or a point-to-point link (RFC 3021, RFC 6164)
		return true
	}
	return addr != prefix.Addr() && (addr.Is6() || addr != lastOf(prefix))
}

// lastOf is the last address of a prefix.
func lastOf(prefix netip.Prefix) netip.Addr {
	bytes := prefix.Addr().AsSlice()
	for bit := prefix.Bits(); bit < len(bytes)*8; bit++ {
		bytes[bit/8] |= 0x80 >> (bit % 8)
	}
	last, _ := netip.AddrFromSlice(bytes)
	return last
}

// ownLabels answers for a service's labels, in the scope that is a pod's elsewhere.
type ownLabels struct{ set label.Set }

// Attribute implements label.Attributes.
func (l ownLabels) Attribute(key label.Key) (string, bool) { return l.set.Get(key.Name) }

// namespaceLabels answers for a namespace's labels; its own name is one of them, whoever wrote them (Kubernetes sees to that).
type namespaceLabels struct {
	set  label.Set
	name string
}

// Attribute implements label.Attributes.
func (l namespaceLabels) Attribute(key label.Key) (string, bool) {
	if key.Name == label.MetadataName {
		return l.name, true
	}
	return l.set.Get(key.Name)
}
