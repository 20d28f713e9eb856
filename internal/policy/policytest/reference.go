package policytest

import (
	"maps"
	"net/netip"
	"slices"

	"tendril.io/tendril/internal/identity"
	"tendril.io/tendril/internal/label"
	"tendril.io/tendril/internal/policy"
)

// Facts is all that an engine was told: the input of the reference.
type Facts struct {
	DenyLocalHost bool
	Namespaces    map[string]map[string]string
	Policies      map[policy.Key]policy.Policy
	Addresses     map[netip.Prefix]policy.AddressFact
	Subjects      map[uint32]policy.Workload
	Groups        map[GroupName]policy.Group
}

// GroupName names a group of addresses.
type GroupName struct {
	Kind            policy.GroupKind
	Namespace, Name string
}

// NewFacts returns no facts.
func NewFacts() *Facts {
	return &Facts{
		Namespaces: map[string]map[string]string{}, Policies: map[policy.Key]policy.Policy{},
		Addresses: map[netip.Prefix]policy.AddressFact{}, Subjects: map[uint32]policy.Workload{},
		Groups: map[GroupName]policy.Group{},
	}
}

// Packet is one question: an endpoint, and the other side.
type Packet struct {
	Endpoint  uint32
	Direction policy.Direction
	Peer      netip.Addr
	Protocol  uint8
	Port      uint16 // of the destination; ICMP: the type
}

// Answer is a verdict and who made it: a policy and the place in it, or a builtin rule.
type Answer struct {
	Action    string
	Key       policy.Key
	Place     string
	Builtin   string
	ProxyPort uint16
}

// party is the other side of a packet.
type party struct {
	addr    netip.Addr
	fact    policy.AddressFact
	nobody  bool // an address of a pod CIDR that no pod owns
	outside bool
}

// Judge answers a packet by reading all policies from the first to the last, but for the staged ones.
func (f *Facts) Judge(p Packet) Answer {
	return f.judge(p, f.selected(f.Subjects[p.Endpoint], false))
}

// JudgeStaged answers it as if the staged policies were in force; false: none of them speaks of the direction.
func (f *Facts) JudgeStaged(p Packet) (Answer, bool) {
	all := f.selected(f.Subjects[p.Endpoint], true)
	for _, s := range all {
		speaks := func(r policy.Rule) bool { return r.Direction == p.Direction }
		if f.Policies[s.key].Staged && (s.spec.Isolates[p.Direction] || slices.ContainsFunc(s.spec.Rules, speaks)) {
			return f.judge(p, all), true
		}
	}
	return Answer{}, false
}

func (f *Facts) judge(p Packet, selected []selection) Answer {
	subject := f.Subjects[p.Endpoint]
	other := f.party(p.Peer)
	toPod := subject.Reserved == 0 || subject.Reserved == identity.Init
	if p.Direction == policy.Ingress && !f.DenyLocalHost && toPod && other.is(identity.Host) {
		return Answer{Action: "allow", Builtin: "builtin/local-host"}
	}
	for tier := policy.TierAdmin; tier <= policy.TierBaseline; tier++ {
		isolated := false
		var winner *candidate
		for _, s := range selected {
			if s.spec.Tier != tier {
				continue
			}
			isolated = isolated || s.spec.Isolates[p.Direction]
			for i := range s.spec.Rules {
				c := candidate{s, &s.spec.Rules[i]}
				if c.rule.Direction == p.Direction && f.matches(c.rule, subject, other, p) && (winner == nil || c.before(winner)) {
					winner = &c
				}
			}
		}
		if winner != nil && winner.rule.Action != policy.Pass {
			return winner.answer()
		}
		if isolated {
			return Answer{Action: "deny", Builtin: "builtin/default-deny"}
		}
	}
	if subject.Reserved == identity.Init {
		return Answer{Action: "deny", Builtin: "builtin/init-deny"}
	}
	return Answer{Action: "allow", Builtin: "builtin/default-allow"}
}

// selection is a spec that selects a subject.
type selection struct {
	key  policy.Key
	spec *policy.Spec
}

// candidate is a rule that matches.
type candidate struct {
	selection
	rule *policy.Rule
}

// before says whether c wins over an earlier candidate of the same tier: lower priority, then, in the normal tier, deny,
// allow, redirect and pass in this order. Otherwise the earlier one, by key and place, stays.
func (c candidate) before(earlier *candidate) bool {
	if c.spec.Priority != earlier.spec.Priority {
		return c.spec.Priority < earlier.spec.Priority
	}
	return c.spec.Tier == policy.TierNormal && c.rule.Action < earlier.rule.Action
}

func (c candidate) answer() Answer {
	a := Answer{Action: map[policy.Action]string{policy.Allow: "allow", policy.Deny: "deny", policy.Redirect: "redirect"}[c.rule.Action]}
	a.Key, a.Place = c.key, c.rule.Place
	if c.rule.Action == policy.Redirect {
		a.ProxyPort = c.rule.ProxyPort
	}
	return a
}

// selected lists the specs that apply to a subject, by key and place.
func (f *Facts) selected(subject policy.Workload, staged bool) []selection {
	var out []selection
	for _, key := range slices.SortedFunc(maps.Keys(f.Policies), policy.Key.Compare) {
		p := f.Policies[key]
		for i := range p.Specs {
			if (staged || !p.Staged) && f.selects(p.Specs[i].Subject, &subject, false) {
				out = append(out, selection{key, &p.Specs[i]})
			}
		}
	}
	return out
}

// party finds who owns an address: the longest prefix that something is known of, else the world.
func (f *Facts) party(addr netip.Addr) party {
	p := party{addr: addr, fact: policy.AddressFact{Reserved: identity.World}}
	longest := -1
	for prefix, fact := range f.Addresses {
		if prefix.Contains(addr) && prefix.Bits() > longest {
			longest, p.fact = prefix.Bits(), fact
		}
	}
	p.nobody = p.fact.Workload == nil && p.fact.Reserved == identity.Unknown
	p.outside = p.is(identity.World) || p.is(identity.KubeAPIServer) && p.fact.Flags&8 == 0
	return p
}

// is says whether the party is a reserved identity.
func (p party) is(r identity.Reserved) bool { return !p.nobody && p.reserved() == r }

func (p party) reserved() identity.Reserved {
	if p.fact.Workload != nil {
		return p.fact.Workload.Reserved
	}
	return p.fact.Reserved
}

func (p party) isAPIServer() bool { return p.fact.APIServer || p.is(identity.KubeAPIServer) }

func (f *Facts) matches(r *policy.Rule, subject policy.Workload, other party, p Packet) bool {
	destination := subject
	if r.Direction == policy.Egress {
		destination = policy.Workload{}
		if other.fact.Workload != nil && other.fact.Workload.Reserved == 0 {
			destination = *other.fact.Workload
		}
	}
	port := func(want policy.Port) bool { return speaksOf(want, destination, p) }
	peer := func(want policy.Peer) bool { return f.holds(want, other) }
	return slices.ContainsFunc(r.Peers, peer) && (len(r.Ports) == 0 || slices.ContainsFunc(r.Ports, port))
}

// speaksOf says whether a port of a rule is the packet's.
func speaksOf(want policy.Port, destination policy.Workload, p Packet) bool {
	if want.Protocol != 0 && want.Protocol != p.Protocol {
		return false
	}
	if want.Name != "" {
		return destination.Reserved == 0 && slices.Contains(destination.NamedPorts, policy.NamedPort{Name: want.Name, Protocol: p.Protocol, Port: p.Port})
	}
	if want.First == 0 && want.Last == 65535 {
		return true
	}
	hasPorts := p.Protocol == 6 || p.Protocol == 17 || p.Protocol == 132
	return (want.Protocol != 0 || hasPorts) && want.First <= p.Port && p.Port <= want.Last
}

// holds says whether a peer of a rule is the other side.
func (f *Facts) holds(want policy.Peer, other party) bool {
	switch {
	case other.nobody:
		return false
	case want.Any:
		return true
	case want.Selector != nil:
		w := other.fact.Workload
		if w == nil {
			w = &policy.Workload{Reserved: other.fact.Reserved}
		}
		return f.selects(*want.Selector, w, other.isAPIServer())
	case want.CIDR != nil:
		out := slices.ContainsFunc(want.CIDR.Except, func(x netip.Prefix) bool { return x.Contains(other.addr) })
		return want.CIDR.Prefix.Contains(other.addr) && !out && (other.outside || !want.CIDR.OutsideOnly)
	}
	if want.Group != nil {
		return f.isInGroup(want.Group, other)
	}
	switch want.Entity {
	case policy.EntityWorld:
		return other.outside
	case policy.EntityWorldIPv4:
		return other.outside && other.addr.Is4()
	case policy.EntityWorldIPv6:
		return other.outside && other.addr.Is6()
	case policy.EntityCluster:
		return !other.outside
	case policy.EntityKubeAPIServer:
		return other.isAPIServer()
	}
	return other.reserved() != 0 && other.reserved().Name() == string(want.Entity)
}

// isInGroup says whether a group that is meant has the party's address.
func (f *Facts) isInGroup(want *policy.GroupRef, other party) bool {
	contains := func(p netip.Prefix) bool { return p.Contains(other.addr) }
	if slices.ContainsFunc(want.Except, contains) || want.OutsideOnly && !other.outside {
		return false
	}
	for name, g := range f.Groups {
		meant := name.Kind == want.Kind && (want.Namespace == "" || name.Namespace == want.Namespace)
		if want.Labels != nil {
			meant = meant && f.selects(*want.Labels, &policy.Workload{Labels: g.Labels}, false)
		} else {
			meant = meant && name.Name == want.Name
		}
		if meant && slices.ContainsFunc(g.Prefixes, contains) {
			return true
		}
	}
	return false
}

// selects says whether a label selector holds a workload. One that does not speak of reserved identities or of API
// servers means pods.
func (f *Facts) selects(s label.Selector, w *policy.Workload, apiServer bool) bool {
	have := map[label.Key]string{}
	if apiServer {
		have[label.Key{Scope: label.ScopeFact, Name: label.FactAPIServer}] = "true"
	}
	if w.Reserved != 0 {
		have[label.Key{Scope: label.ScopeFact, Name: label.FactReserved}] = w.Reserved.Name()
		for key, value := range w.Labels.All() {
			have[label.Key{Scope: label.ScopeNode, Name: key}] = value
		}
	} else {
		for key, value := range w.Labels.All() {
			have[label.Key{Name: key}] = value
		}
		have[label.Key{Scope: label.ScopeNamespace, Name: "kubernetes.io/metadata.name"}] = w.Namespace
		for key, value := range f.Namespaces[w.Namespace] {
			have[label.Key{Scope: label.ScopeNamespace, Name: key}] = value
		}
		have[label.Key{Scope: label.ScopeFact, Name: label.FactNamespace}] = w.Namespace
		if w.ServiceAccount != "" {
			have[label.Key{Scope: label.ScopeFact, Name: label.FactServiceAccount}] = w.ServiceAccount
		}
		if w.Cluster != "" {
			have[label.Key{Scope: label.ScopeFact, Name: label.FactCluster}] = w.Cluster
		}
	}
	pods := true
	for _, r := range s.Requirements() {
		value, ok := have[r.Key]
		in := ok && slices.Contains(r.Values, value)
		if r.Operator == label.In && !in || r.Operator == label.NotIn && in ||
			r.Operator == label.Exists && !ok || r.Operator == label.DoesNotExist && ok {
			return false
		}
		pods = pods && r.Key.Name != label.FactReserved && r.Key.Name != label.FactAPIServer
	}
	return w.Reserved == 0 || !pods
}
