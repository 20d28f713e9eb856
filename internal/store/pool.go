package store

import (
	"bytes"
	"context"
	"fmt"
	"net/netip"
	"slices"
	"strings"

	clientv3 "go.etcd.io/etcd/client/v3"
	"google.golang.org/protobuf/proto"

	storev1 "tendril.io/tendril/api/store/v1"
	"tendril.io/tendril/internal/label"
	"tendril.io/tendril/internal/service"
	"tendril.io/tendril/internal/table"
)

// addressCounter is the key that every write with a say in load balancers' addresses moves: pools, namespaces, services of
// that type. Each such write has the counter that it read as a condition, so that of two writers at once the slower one
// starts over with what the faster one wrote, and no address is given twice.
func addressCounter() Key { return Key{Kind: KindCounter, First: string(KindPool)} }

// claims is everything that has a say in who gets which address, at one revision of the store.
type claims struct {
	counter    storev1.Synced
	moved      int64 // revision at which the counter last moved; 0: never
	pools      map[Key]*storev1.LoadBalancerPool
	namespaces map[string]map[string]string
	services   map[Key]claimant
	nodes      []*storev1.Node

	given *service.Allotter // of all that the records say; nil: they may not say yet what everybody is to have
	short bool              // somebody has less than it asks for

	looked int // how many services were read or answered so far
}

// claimant is a service as it is in the store.
type claimant struct {
	stored
	record *storev1.Service
}

// concerned says whether a batch has a say in addresses. An empty one has: it is there to give what others left undone.
func concerned(batch []change, current []stored) bool {
	for i, c := range batch {
		switch c.key.Kind {
		case KindPool, KindNamespace:
			return true
		case KindService:
			if asks(c.value) || asks(readService(current[i].value)) {
				return true
			}
		}
	}
	return len(batch) == 0
}

// asks says whether a record asks for an address.
func asks(value proto.Message) bool {
	m, ok := value.(*storev1.Service)
	return ok && m.GetLoadBalancer() != nil
}

// readService decodes a service. What cannot be read asks for nothing, and is overwritten.
func readService(value []byte) *storev1.Service {
	m := &storev1.Service{}
	if proto.Unmarshal(value, m) != nil {
		return &storev1.Service{}
	}
	return m
}

// readClaims reads all of them.
func (w *Writer) readClaims(ctx context.Context) (*claims, error) {
	all := func(kind Kind) clientv3.Op { return clientv3.OpGet(w.prefix+string(kind)+"/", clientv3.WithPrefix()) }
	response, err := w.client.Txn(ctx).Then(
		clientv3.OpGet(w.prefix+addressCounter().String()), all(KindPool), all(KindNamespace), all(KindNode), all(KindService),
	).Commit()
	if err != nil {
		return nil, fmt.Errorf("read what has a say in load balancers' addresses: %w", err)
	}
	c := &claims{
		pools: map[Key]*storev1.LoadBalancerPool{}, namespaces: map[string]map[string]string{}, services: map[Key]claimant{},
	}
	for _, r := range response.Responses {
		for _, kv := range r.GetResponseRange().GetKvs() {
			key, err := ParseKey(string(kv.Key[len(w.prefix):]))
			if err != nil {
				continue // a malformed key is not ours to judge: readers report it
			}
			if err := c.add(key, kv.Value, kv.ModRevision); err != nil {
				return nil, fmt.Errorf("key %q: %w", key, err)
			}
		}
	}
	return c, nil
}

// add takes a record of the store. A counter that cannot be read is an error: to start over would be to lose the order of
// writes. Other records that cannot be read have no say.
func (c *claims) add(key Key, value []byte, revision int64) error {
	switch key.Kind {
	case KindCounter:
		c.moved = revision
		return proto.Unmarshal(value, &c.counter)
	case KindService:
		c.services[key] = claimant{stored{value, revision}, readService(value)}
		c.looked++
		return nil
	}
	message := newMessage(key.Kind)
	if proto.Unmarshal(value, message) == nil {
		c.put(key, message)
	}
	return nil
}

// put takes a record as it will be; nil: it will be gone.
func (c *claims) put(key Key, value proto.Message) {
	switch m := value.(type) {
	case *storev1.LoadBalancerPool:
		c.pools[key] = m
	case *storev1.Namespace:
		c.namespaces[key.First] = m.GetLabels()
	case *storev1.Node:
		c.nodes = append(c.nodes, m)
	case *storev1.Service:
		c.services[key] = claimant{c.services[key].stored, m}
	case nil:
		delete(c.pools, key)
		delete(c.services, key)
		if key.Kind == KindNamespace {
			delete(c.namespaces, key.First)
		}
	}
}

// allot answers every service that asks. What it holds is in its record.
func (c *claims) allot() (map[Key]service.Allotment, *service.Allotter, error) {
	var pools []service.Pool
	for key, m := range c.pools {
		pool, err := poolOf(key, m)
		if err != nil {
			return nil, nil, fmt.Errorf("key %q: %w", key, err)
		}
		pools = append(pools, *pool)
	}
	keys := make([]Key, 0, len(c.services))
	for key := range c.services {
		keys = append(keys, key)
	}
	allotter := service.NewAllotter(pools, c.occupied())
	c.short = false
	return c.ask(allotter, keys), allotter, nil
}

// ask has services answered, those of them that ask.
func (c *claims) ask(allotter *service.Allotter, keys []Key) map[Key]service.Allotment {
	var asking []Key
	var requests []service.Request
	for _, key := range keys {
		if record := c.services[key].record; asks(record) {
			request := requestOf(key, record.GetLoadBalancer())
			request.NamespaceLabels = label.SetOf(c.namespaces[key.First])
			asking, requests = append(asking, key), append(requests, request)
		}
	}
	c.looked += len(requests)
	answers := make(map[Key]service.Allotment, len(asking))
	for i, answer := range allotter.Allot(requests) {
		answers[asking[i]] = answer
		c.short = c.short || len(answer.Grants) < len(requests[i].Families)
	}
	return answers
}

// occupied is what belongs to nodes, and what services have been given otherwise.
func (c *claims) occupied() service.Occupied {
	o := service.Occupied{Addrs: map[netip.Addr]string{}}
	note := func(owner string, lists ...[][]byte) {
		for _, bytes := range slices.Concat(lists...) {
			if addr, ok := netip.AddrFromSlice(bytes); ok {
				o.Addrs[addr] = owner
			}
		}
	}
	for _, node := range c.nodes {
		note("a node", node.GetAddresses(), node.GetRouterAddresses(), node.GetHealthAddresses())
		if cidrs, err := prefixes("pod_cidrs", node.GetPodCidrs()); err == nil {
			o.Prefixes = append(o.Prefixes, cidrs...)
		}
	}
	for key, s := range c.services {
		note(ownerOf(key), fixedAddresses(s.record)...)
	}
	return o
}

func ownerOf(key Key) string { return "service " + key.First + "/" + key.Second }

// fixedAddresses are a service's addresses that no pool gave.
func fixedAddresses(m *storev1.Service) [][][]byte {
	return [][][]byte{m.GetClusterIps(), m.GetExternalIps(), m.GetLoadBalancerIps()}
}

// round is what one transaction of the writer is about.
type round struct {
	changes []change
	current []stored // what the store has of them and, last, the policy counter
	claims  *claims  // nil: the changes have no say in addresses
	more    bool     // services are left whose answer is another now
}

// allotRound completes a batch with what its services are given, and with the services besides it whose answer is another
// now.
func (w *Writer) allotRound(ctx context.Context, batch []change, current []stored, c *claims) (*round, error) {
	if c == nil {
		var err error
		if c, err = w.readClaims(ctx); err != nil {
			return nil, err
		}
	}
	r := &round{changes: slices.Clone(batch), current: slices.Clone(current[:len(batch)]), claims: c}
	alone := c.apart(batch)
	for i, change := range batch {
		if m, ok := change.value.(*storev1.Service); ok {
			r.changes[i].value = c.withHeld(change.key, m, readService(current[i].value))
		}
	}
	if alone {
		r.allotBatch()
	} else if err := r.allotAll(); err != nil {
		return nil, err
	}
	r.current = append(r.current, current[len(batch)])
	return r, nil
}

// apart says whether a batch changes no answer but those of its own services. Otherwise each of many batches would ask for
// everybody, which is quadratic. Only what somebody lacks can come to him from another: a service that goes, or comes, or asks
// for something else, matters to those who have all that they ask for in nothing.
func (c *claims) apart(batch []change) bool {
	if c.given == nil {
		return false
	}
	return !slices.ContainsFunc(batch, func(change change) bool {
		now, known := c.services[change.key]
		m, isService := change.value.(*storev1.Service)
		switch {
		case change.key.Kind == KindPool || change.key.Kind == KindNamespace:
			return true
		case !known:
			return false
		case !isService: // it goes
			return c.short
		}
		return c.short && !asksTheSame(now.record, m) || !slices.EqualFunc(fixedAddresses(now.record), fixedAddresses(m), equalAddresses)
	})
}

func equalAddresses(a, b [][]byte) bool { return slices.EqualFunc(a, b, bytes.Equal) }

// asksTheSame compares two records of a service by what they ask for, not by what they were given.
func asksTheSame(a, b *storev1.Service) bool {
	question := func(m *storev1.Service) proto.Message {
		question := proto.CloneOf(m.GetLoadBalancer())
		if question != nil {
			question.Grants, question.Shortfalls = nil, nil
		}
		return question
	}
	return proto.Equal(question(a), question(b))
}

// allotBatch answers the services of a batch that is apart.
func (r *round) allotBatch() {
	c := r.claims
	keys := make([]Key, 0, len(r.changes))
	for _, change := range r.changes {
		for _, g := range c.services[change.key].record.GetLoadBalancer().GetGrants() {
			if addr, ok := netip.AddrFromSlice(g.GetAddress()); ok {
				c.given.Release(addr)
			}
		}
	}
	for _, change := range r.changes {
		c.put(change.key, change.value)
		m, ok := change.value.(*storev1.Service)
		if !ok {
			continue
		}
		keys = append(keys, change.key)
		for _, bytes := range slices.Concat(fixedAddresses(m)...) {
			if addr, ok := netip.AddrFromSlice(bytes); ok {
				c.given.Occupy(addr, ownerOf(change.key))
			}
		}
	}
	r.answer(c.ask(c.given, keys))
}

// allotAll answers everybody. Where those outside the batch whose answer is another do not all fit, addresses are given back
// first: at no revision do two records have one.
func (r *round) allotAll() error {
	c, batch := r.claims, len(r.changes)
	for _, change := range r.changes {
		c.put(change.key, change.value)
	}
	answers, allotter, err := c.allot()
	if err != nil {
		return err
	}
	others := c.differing(answers, r.changes)
	c.given = allotter
	if r.more = batch+len(others) > writeBatch; r.more {
		c.given = nil
	}
	if losers := slices.DeleteFunc(slices.Clone(others), func(key Key) bool { return !c.loses(key, answers[key]) }); r.more && len(losers) > 0 {
		others = losers
		for key, answer := range answers {
			answers[key] = c.kept(key, answer)
		}
	}
	r.answer(answers)
	for _, key := range others[:min(len(others), writeBatch-batch)] {
		r.changes = append(r.changes, change{key, withAnswer(c.services[key].record, answers[key])})
		r.current = append(r.current, c.services[key].stored)
	}
	return nil
}

// answer writes answers into the records of the batch.
func (r *round) answer(answers map[Key]service.Allotment) {
	for i, change := range r.changes {
		if answer, ok := answers[change.key]; ok {
			r.changes[i].value = withAnswer(change.value.(*storev1.Service), answer)
			r.claims.put(change.key, r.changes[i].value)
		}
	}
}

// committed has the round's claims be those of the store after its plan, so that the next round need not read them all.
func (r *round) committed(p *plan, revision int64) error {
	if r.claims == nil {
		return nil
	}
	for _, put := range p.puts {
		if put.key.Kind == KindCounter && put.key != addressCounter() {
			continue
		}
		if err := r.claims.add(put.key, put.value, revision); err != nil {
			return fmt.Errorf("key %q: %w", put.key, err)
		}
	}
	return nil
}

// differing lists the services outside a batch whose answer is not what their record says, sorted.
func (c *claims) differing(answers map[Key]service.Allotment, batch []change) []Key {
	inside := make(map[Key]bool, len(batch))
	for _, change := range batch {
		inside[change.key] = true
	}
	var keys []Key
	for key, answer := range answers {
		if !inside[key] && !says(c.services[key].record.GetLoadBalancer(), answer) {
			keys = append(keys, key)
		}
	}
	slices.SortFunc(keys, func(a, b Key) int { return strings.Compare(a.String(), b.String()) })
	return keys
}

// says tells whether a record has an answer already. Every service is asked in every round, so nothing is copied.
func says(m *storev1.LoadBalancer, answer service.Allotment) bool {
	sameGrant := func(m *storev1.Grant, g service.Grant) bool {
		addr, ok := netip.AddrFromSlice(m.GetAddress())
		return ok && addr == g.Addr && m.GetPool() == g.Pool
	}
	sameShortfall := func(m *storev1.Shortfall, s table.Shortfall) bool {
		return m.GetMessage() == s.Message && m.GetRemedy() == s.Remedy
	}
	return slices.EqualFunc(m.GetGrants(), answer.Grants, sameGrant) && slices.EqualFunc(m.GetShortfalls(), answer.Shortfalls, sameShortfall)
}

// loses says whether an answer takes an address away from its service.
func (c *claims) loses(key Key, answer service.Allotment) bool {
	return len(c.kept(key, answer).Grants) < len(c.services[key].record.GetLoadBalancer().GetGrants())
}

// kept is what a service is given of what it has already.
func (c *claims) kept(key Key, answer service.Allotment) service.Allotment {
	held := requestOf(key, c.services[key].record.GetLoadBalancer()).Held
	answer.Grants = slices.DeleteFunc(slices.Clone(answer.Grants), func(g service.Grant) bool {
		return !slices.ContainsFunc(held, func(h service.Grant) bool { return h.Addr == g.Addr })
	})
	return answer
}

// withHeld is a service as its author wrote it, with what it was given before. A record that comes with grants of its own,
// as when a store is filled from another one, keeps those that the store has at nobody.
func (c *claims) withHeld(key Key, m, before *storev1.Service) *storev1.Service {
	asks, held := m.GetLoadBalancer(), before.GetLoadBalancer().GetGrants()
	if asks == nil || len(held)+len(asks.GetGrants()) == 0 {
		return m
	}
	if len(held) == 0 {
		held = slices.DeleteFunc(slices.Clone(asks.GetGrants()), func(g *storev1.Grant) bool { return c.isHeld(g, key) })
	}
	m = proto.CloneOf(m)
	m.LoadBalancer.Grants = held
	return m
}

// isHeld says whether a service besides the one of a key has an address.
func (c *claims) isHeld(grant *storev1.Grant, except Key) bool {
	if c.given != nil { // it knows without asking everybody
		addr, ok := netip.AddrFromSlice(grant.GetAddress())
		return ok && c.given.Gave(addr)
	}
	for key, s := range c.services {
		for _, g := range s.record.GetLoadBalancer().GetGrants() {
			if key != except && bytes.Equal(g.GetAddress(), grant.GetAddress()) {
				return true
			}
		}
	}
	return false
}

// withAnswer is a service with what it is given now.
func withAnswer(m *storev1.Service, answer service.Allotment) *storev1.Service {
	m = proto.CloneOf(m)
	m.LoadBalancer.Grants, m.LoadBalancer.Shortfalls = nil, nil
	for _, g := range answer.Grants {
		m.LoadBalancer.Grants = append(m.LoadBalancer.Grants, &storev1.Grant{Address: g.Addr.AsSlice(), Pool: g.Pool})
	}
	for _, s := range answer.Shortfalls {
		m.LoadBalancer.Shortfalls = append(m.LoadBalancer.Shortfalls, &storev1.Shortfall{Message: s.Message, Remedy: s.Remedy})
	}
	return m
}

// poolOf reads a pool.
func poolOf(key Key, m *storev1.LoadBalancerPool) (*service.Pool, error) {
	pool := &service.Pool{Name: key.First}
	var err error
	if pool.Prefixes, err = prefixes("prefixes", m.GetPrefixes()); err != nil {
		return nil, err
	}
	if pool.Services, err = selector("service_selector", label.ScopePod, m.GetServiceSelector()); err != nil {
		return nil, err
	}
	pool.Namespaces, err = selector("namespace_selector", label.ScopeNamespace, m.GetNamespaceSelector())
	return pool, err
}

// selector reads conditions on labels.
func selector(field string, scope label.Scope, list []*storev1.Requirement) (label.Selector, error) {
	var all []label.Requirement
	for _, m := range list {
		operators := []label.Operator{label.In, label.NotIn, label.Exists, label.DoesNotExist}
		at := slices.IndexFunc(operators, func(o label.Operator) bool { return o.String() == m.GetOperator() })
		if at < 0 {
			return label.Selector{}, fmt.Errorf("%s: operator %q is not known to this version", field, m.GetOperator())
		}
		all = append(all, label.Requirement{Key: label.Key{Scope: scope, Name: m.GetKey()}, Operator: operators[at], Values: m.GetValues()})
	}
	s, err := label.NewSelector(all...)
	if err != nil {
		return s, fmt.Errorf("%s: %w", field, err)
	}
	return s, nil
}

// requestOf reads what a service asks for. Addresses that are none were kept out when the record was written.
func requestOf(key Key, m *storev1.LoadBalancer) service.Request {
	r := service.Request{Namespace: key.First, Name: key.Second, Labels: label.SetOf(m.GetLabels()), Prefer: m.GetPrefer()}
	for _, family := range m.GetFamilies() {
		r.Families = append(r.Families, int(family))
	}
	for _, bytes := range m.GetWishes() {
		if addr, ok := netip.AddrFromSlice(bytes); ok {
			r.Wishes = append(r.Wishes, addr)
		}
	}
	for _, g := range m.GetGrants() {
		if addr, ok := netip.AddrFromSlice(g.GetAddress()); ok {
			r.Held = append(r.Held, service.Grant{Addr: addr, Pool: g.GetPool()})
		}
	}
	return r
}
