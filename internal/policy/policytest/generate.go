package policytest

import (
	"fmt"
	"net/netip"
	"slices"

	"pgregory.net/rapid"

	"tendril.io/tendril/internal/identity"
	"tendril.io/tendril/internal/label"
	"tendril.io/tendril/internal/policy"
)

// The world of the generator is small, so that rules and packets often meet: a handful of label values, three
// namespaces, two pod ranges, and an outside of a few addresses.

// Endpoints is the highest endpoint number that the generator uses.
const Endpoints = 4

func namespaceNames() []string { return []string{"blue", "green", "red"} }

// addresses that facts are set for.
func hosts() []string {
	return []string{"10.0.0.1", "10.0.0.2", "10.0.0.3", "10.0.1.1", "fd00::1", "fd00::2", "fd00::1:1", "192.168.0.1", "192.168.0.2", "fd01::1", "9.9.9.9", "9.1.1.1"}
}

// ranges that facts are set for: pod CIDRs, and an outside range with flags of its own.
func podRanges() []string { return []string{"10.0.0.0/24", "10.0.1.0/24", "fd00::/112", "9.9.0.0/16"} }

// borders of ranges in policies; they nest, overlap and touch the ranges above.
func borders() []string {
	return []string{
		"0.0.0.0/0", "10.0.0.0/8", "10.0.0.0/24", "10.0.0.0/30", "10.0.0.2/32", "10.0.1.0/25", "192.168.0.0/16", "9.0.0.0/8",
		"9.9.9.0/24", "9.9.9.8/29", "9.9.9.9/32", "::/0", "fd00::/16", "fd00::/112", "fd00::1/128", "2000::/3", "2001:db8::/32",
	}
}

func outsiders() []string {
	return []string{"9.9.9.8", "9.9.8.1", "9.1.1.1", "8.8.8.8", "10.0.0.77", "10.0.1.99", "10.7.7.7", "2001:db8::1", "2a00::1", "fd00::5", "192.168.0.77"}
}

func oneOf(t *rapid.T, what string, of ...string) string { return rapid.SampledFrom(of).Draw(t, what) }

func labels(t *rapid.T) map[string]string {
	return rapid.MapOfN(rapid.SampledFrom([]string{"app", "tier"}), rapid.SampledFrom([]string{"a", "b", ""}), 0, 2).Draw(t, "labels")
}

// DrawWorkload draws a pod, or now and then one whose labels have not arrived.
func DrawWorkload(t *rapid.T) policy.Workload {
	if rapid.IntRange(0, 9).Draw(t, "init") == 0 {
		return policy.Workload{Reserved: identity.Init}
	}
	w := policy.Workload{Cluster: "lab", Namespace: oneOf(t, "namespace", namespaceNames()...), Labels: label.SetOf(labels(t))}
	if rapid.Bool().Draw(t, "has ports") {
		w.NamedPorts = rapid.SliceOfN(rapid.Custom(func(t *rapid.T) policy.NamedPort {
			return policy.NamedPort{
				Name: oneOf(t, "port name", "http", "dns"), Protocol: rapid.SampledFrom([]uint8{6, 17}).Draw(t, "protocol"),
				Port: uint16(rapid.IntRange(1, 4).Draw(t, "number")),
			}
		}), 1, 2).Draw(t, "ports")
	}
	return w
}

// DrawSubject draws a local endpoint: a pod, or now and then the node itself.
func DrawSubject(t *rapid.T) policy.Workload {
	if rapid.IntRange(0, 5).Draw(t, "is the node") == 0 {
		return policy.Workload{Reserved: identity.Host, Labels: label.SetOf(labels(t))}
	}
	return DrawWorkload(t)
}

// DrawSelector draws a label selector over pods, namespaces and facts.
func DrawSelector(t *rapid.T) label.Selector {
	requirements := rapid.SliceOfN(rapid.Custom(drawRequirement), 0, 2).Draw(t, "requirements")
	if rapid.IntRange(0, 7).Draw(t, "of nodes") == 0 {
		requirements = append(requirements, label.FactIs(label.FactReserved, "host", "remote-node"))
	}
	return label.MustSelector(requirements...)
}

func drawRequirement(t *rapid.T) label.Requirement {
	switch rapid.IntRange(0, 19).Draw(t, "reserved") {
	case 0:
		return label.FactIs(label.FactReserved, oneOf(t, "reserved name", "init", "host", "world"))
	case 1:
		return label.FactIs(label.FactAPIServer, "true")
	}
	if rapid.IntRange(0, 2).Draw(t, "fact") == 0 {
		return label.FactIs(label.FactNamespace, oneOf(t, "namespace", namespaceNames()...))
	}
	r := label.Requirement{
		Key: label.Key{
			Scope: rapid.SampledFrom([]label.Scope{label.ScopePod, label.ScopePod, label.ScopeNamespace, label.ScopeNamespace, label.ScopeNode}).Draw(t, "scope"),
			Name:  oneOf(t, "key", "app", "tier", "kubernetes.io/metadata.name"),
		},
		Operator: rapid.SampledFrom([]label.Operator{label.In, label.In, label.NotIn, label.Exists, label.DoesNotExist}).Draw(t, "operator"),
	}
	if r.Operator == label.In || r.Operator == label.NotIn {
		r.Values = rapid.SliceOfN(rapid.SampledFrom([]string{"a", "b", "", "blue"}), 1, 2).Draw(t, "values")
	}
	return r
}

func drawPeer(t *rapid.T) policy.Peer {
	switch rapid.IntRange(0, 9).Draw(t, "kind of peer") {
	case 0:
		return policy.Peer{Any: true}
	case 1, 2, 3:
		s := DrawSelector(t)
		return policy.Peer{Selector: &s}
	case 4:
		return policy.Peer{Entity: rapid.SampledFrom([]policy.Entity{
			policy.EntityWorld, policy.EntityWorldIPv4, policy.EntityWorldIPv6, policy.EntityCluster, policy.EntityHost,
			policy.EntityRemoteNode, policy.EntityKubeAPIServer, policy.EntityInit, policy.EntityNobody,
		}).Draw(t, "entity")}
	case 5, 6:
		return drawGroupRef(t)
	}
	c := policy.CIDR{Prefix: netip.MustParsePrefix(oneOf(t, "range", borders()...)), OutsideOnly: rapid.Bool().Draw(t, "outside")}
	for _, text := range rapid.SliceOfN(rapid.SampledFrom(borders()), 0, 3).Draw(t, "except") {
		if x := netip.MustParsePrefix(text); c.Prefix.Overlaps(x) && x.Bits() >= c.Prefix.Bits() {
			c.Except = append(c.Except, x)
		}
	}
	return policy.Peer{CIDR: &c}
}

// DrawGroup draws a group of addresses; its name is one of a few.
func DrawGroup(t *rapid.T) policy.Group {
	g := policy.Group{Kind: policy.GroupCIDR, Name: oneOf(t, "group", "x", "y"), Labels: label.SetOf(labels(t))}
	if rapid.Bool().Draw(t, "is service") {
		g.Kind, g.Namespace = policy.GroupService, oneOf(t, "namespace", namespaceNames()...)
	}
	for _, text := range rapid.SliceOfN(rapid.SampledFrom(borders()), 0, 3).Draw(t, "prefixes") {
		g.Prefixes = append(g.Prefixes, netip.MustParsePrefix(text))
	}
	return g
}

func drawGroupRef(t *rapid.T) policy.Peer {
	g := DrawGroup(t)
	r := policy.GroupRef{Kind: g.Kind, Namespace: g.Namespace, Name: g.Name, Except: g.Prefixes, OutsideOnly: rapid.Bool().Draw(t, "outside")}
	if rapid.IntRange(0, 2).Draw(t, "in any namespace") == 0 {
		r.Namespace = ""
	}
	if rapid.IntRange(0, 2).Draw(t, "by labels") == 0 {
		s := label.MustSelector(label.Equals(oneOf(t, "key", "app", "tier"), oneOf(t, "value", "a", "b")))
		r.Name, r.Labels = "", &s
	}
	return policy.Peer{Group: &r}
}

func drawPort(t *rapid.T) policy.Port {
	protocol := rapid.SampledFrom([]uint8{0, 1, 6, 6, 17, 58, 132, 47}).Draw(t, "protocol")
	switch rapid.IntRange(0, 5).Draw(t, "kind of port") {
	case 0:
		return policy.Port{Protocol: protocol, Last: 65535}
	case 1:
		return policy.Port{Protocol: protocol, Name: oneOf(t, "port name", "http", "dns")}
	}
	first := rapid.SampledFrom([]uint16{0, 1, 2, 3, 4, 8, 65534, 65535}).Draw(t, "first")
	last := rapid.SampledFrom([]uint16{0, 1, 2, 3, 5, 65535}).Draw(t, "last")
	return policy.Port{Protocol: protocol, First: first, Last: max(first, last)}
}

// DrawPolicy draws a policy; its key is one of a few, so that later ones replace earlier ones.
func DrawPolicy(t *rapid.T) policy.Policy {
	p := policy.Policy{Key: DrawKey(t), Source: "generator", Staged: rapid.IntRange(0, 3).Draw(t, "staged") == 0}
	for i := range rapid.IntRange(1, 2).Draw(t, "specs") {
		s := policy.Spec{
			Place: fmt.Sprintf("specs[%d]", i), Subject: DrawSelector(t),
			Tier:     rapid.SampledFrom([]policy.Tier{policy.TierAdmin, policy.TierNormal, policy.TierNormal, policy.TierBaseline}).Draw(t, "tier"),
			Priority: uint32(rapid.IntRange(0, 1).Draw(t, "priority")),
			Isolates: [2]bool{rapid.Bool().Draw(t, "isolates ingress"), rapid.Bool().Draw(t, "isolates egress")},
		}
		for j := range rapid.IntRange(0, 4).Draw(t, "rules") {
			s.Rules = append(s.Rules, drawRule(t, fmt.Sprintf("specs[%d].rules[%d]", i, j)))
		}
		p.Specs = append(p.Specs, s)
	}
	return p
}

// DrawKey draws one of the keys that DrawPolicy uses.
func DrawKey(t *rapid.T) policy.Key {
	return policy.Key{Kind: "NetworkPolicy", Namespace: "blue", Name: oneOf(t, "policy", "one", "two", "three", "four")}
}

func drawRule(t *rapid.T, place string) policy.Rule {
	r := policy.Rule{
		Place:     place,
		Direction: policy.Direction(rapid.IntRange(0, 1).Draw(t, "direction")),
		Action:    rapid.SampledFrom([]policy.Action{policy.Allow, policy.Allow, policy.Deny, policy.Redirect, policy.Pass}).Draw(t, "action"),
		Peers:     rapid.SliceOfN(rapid.Custom(drawPeer), 0, 3).Draw(t, "peers"),
		Ports:     rapid.SliceOfN(rapid.Custom(drawPort), 0, 3).Draw(t, "rule ports"),
	}
	if r.Action == policy.Redirect {
		r.ProxyPort = uint16(rapid.IntRange(10000, 10003).Draw(t, "proxy port"))
	}
	return r
}

// DrawAddress draws an address and what is known of it.
func DrawAddress(t *rapid.T) (netip.Prefix, policy.AddressFact) {
	if rapid.IntRange(0, 5).Draw(t, "is range") == 0 {
		prefix := netip.MustParsePrefix(oneOf(t, "pod range", podRanges()...))
		if prefix.Addr() == netip.MustParseAddr("9.9.0.0") {
			return prefix, policy.AddressFact{Reserved: identity.World, Flags: 16}
		}
		return prefix, policy.AddressFact{Reserved: identity.Unknown, Flags: 64 | 8}
	}
	addr := netip.MustParseAddr(oneOf(t, "host", hosts()...))
	prefix := netip.PrefixFrom(addr, addr.BitLen())
	if rapid.IntRange(0, 2).Draw(t, "is node") == 0 {
		fact := policy.AddressFact{
			Reserved: rapid.SampledFrom([]identity.Reserved{
				identity.Host, identity.RemoteNode, identity.KubeAPIServer, identity.Health, identity.World,
			}).Draw(t, "node"),
			Flags:     rapid.SampledFrom([]uint32{0, 8}).Draw(t, "in cluster"),
			APIServer: rapid.Bool().Draw(t, "API server"),
		}
		if fact.Reserved == identity.Host || fact.Reserved == identity.RemoteNode {
			fact.Workload = &policy.Workload{Reserved: fact.Reserved, Labels: label.SetOf(labels(t))}
		}
		return prefix, fact
	}
	w := DrawWorkload(t)
	return prefix, policy.AddressFact{Workload: &w, Flags: 8, Node: uint32(rapid.IntRange(0, 2).Draw(t, "node number"))}
}

// Packets returns every packet worth asking about: each endpoint and direction, to and from addresses of all kinds,
// at ports on and beside the edges of what policies name.
func (f *Facts) Packets() []Packet {
	var out []Packet
	for _, endpoint := range slices.Sorted(mapKeys(f.Subjects)) {
		for _, direction := range []policy.Direction{policy.Ingress, policy.Egress} {
			for _, addr := range slices.Concat(hosts(), outsiders()) {
				for _, p := range []struct {
					protocol uint8
					ports    []uint16
				}{{6, []uint16{0, 1, 2, 3, 4, 5, 8, 9, 65533, 65534, 65535}}, {17, []uint16{1, 3, 4}}, {1, []uint16{0, 3, 8}}, {58, []uint16{1}}, {132, []uint16{2}}, {47, []uint16{0}}, {0, []uint16{0}}} {
					for _, port := range p.ports {
						out = append(out, Packet{endpoint, direction, netip.MustParseAddr(addr), p.protocol, port})
					}
				}
			}
		}
	}
	return out
}

func mapKeys[K comparable, V any](m map[K]V) func(func(K) bool) {
	return func(yield func(K) bool) {
		for k := range m {
			if !yield(k) {
				return
			}
		}
	}
}

// Edit draws one change, makes it in the facts and tells the engine.
func (f *Facts) Edit(t *rapid.T, e *policy.Engine) {
	endpoint := uint32(rapid.IntRange(1, Endpoints).Draw(t, "endpoint"))
	switch rapid.IntRange(0, 12).Draw(t, "kind of edit") {
	case 0:
		name, labels := oneOf(t, "namespace", namespaceNames()...), labels(t)
		f.Namespaces[name] = labels
		e.SetNamespace(name, labels)
	case 1:
		name := oneOf(t, "namespace", namespaceNames()...)
		delete(f.Namespaces, name)
		e.DeleteNamespace(name)
	case 2, 3, 4:
		f.setPolicy(t, e, DrawPolicy(t))
	case 5:
		key := DrawKey(t)
		delete(f.Policies, key)
		e.DeletePolicy(key)
	case 6, 7:
		prefix, fact := DrawAddress(t)
		f.Addresses[prefix] = fact
		e.SetAddress(prefix, fact)
	case 8:
		prefix, _ := DrawAddress(t)
		delete(f.Addresses, prefix)
		e.DeleteAddress(prefix)
	case 9:
		f.editSubject(t, e, endpoint)
	case 10, 11:
		f.EditGroup(t, e)
	case 12:
		f.DenyLocalHost = !f.DenyLocalHost
		e.SetDenyLocalHost(f.DenyLocalHost)
	}
}

// EditGroup draws a change of a group of addresses.
func (f *Facts) EditGroup(t *rapid.T, e *policy.Engine) {
	g := DrawGroup(t)
	name := GroupName{g.Kind, g.Namespace, g.Name}
	if rapid.IntRange(0, 3).Draw(t, "delete") == 0 {
		delete(f.Groups, name)
		e.DeleteGroup(g.Kind, g.Namespace, g.Name)
		return
	}
	f.Groups[name] = g
	if err := e.SetGroup(g); err != nil {
		t.Fatalf("the generator made a group that is not valid: %v", err)
	}
}

func (f *Facts) setPolicy(t *rapid.T, e *policy.Engine, p policy.Policy) {
	if err := e.SetPolicy(p); err != nil {
		t.Fatalf("the generator made a policy that is not valid: %v", err)
	}
	f.Policies[p.Key] = p
}

func (f *Facts) editSubject(t *rapid.T, e *policy.Engine, endpoint uint32) {
	if rapid.IntRange(0, 3).Draw(t, "delete") == 0 {
		delete(f.Subjects, endpoint)
		e.DeleteSubject(endpoint)
		return
	}
	w := DrawSubject(t)
	f.Subjects[endpoint] = w
	e.SetSubject(endpoint, w)
}

// Seed draws a first state: some of everything.
func (f *Facts) Seed(t *rapid.T, e *policy.Engine) {
	for endpoint := uint32(1); endpoint <= Endpoints; endpoint++ {
		w := DrawSubject(t)
		f.Subjects[endpoint] = w
		e.SetSubject(endpoint, w)
	}
	for range rapid.IntRange(3, 12).Draw(t, "addresses") {
		prefix, fact := DrawAddress(t)
		f.Addresses[prefix] = fact
		e.SetAddress(prefix, fact)
	}
	for range rapid.IntRange(0, 4).Draw(t, "groups") {
		f.EditGroup(t, e)
	}
	for range rapid.IntRange(1, 3).Draw(t, "policies") {
		f.setPolicy(t, e, DrawPolicy(t))
	}
}

// Tell tells an engine all facts, in an order that depends on chance alone (that of Go's maps).
func (f *Facts) Tell(e *policy.Engine) error {
	e.SetDenyLocalHost(f.DenyLocalHost)
	for endpoint, w := range f.Subjects {
		e.SetSubject(endpoint, w)
	}
	for prefix, fact := range f.Addresses {
		e.SetAddress(prefix, fact)
	}
	for _, p := range f.Policies {
		if err := e.SetPolicy(p); err != nil {
			return err
		}
	}
	for _, g := range f.Groups {
		if err := e.SetGroup(g); err != nil {
			return err
		}
	}
	for name, labels := range f.Namespaces {
		e.SetNamespace(name, labels)
	}
	return nil
}
