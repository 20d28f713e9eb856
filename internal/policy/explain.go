package policy

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"tendril.io/tendril/internal/identity"
	"tendril.io/tendril/internal/label"
)

// Party describes the owner of an address as Explain wants it.
func (e *Engine) Party(addr netip.Addr) Party {
	addr = addr.Unmap()
	fact := worldFact()
	for p := range e.places.covering(netip.PrefixFrom(addr, addr.BitLen())) {
		if p.fact != nil {
			fact = p.fact
		}
	}
	party := Party{
		Address: addr, Workload: fact.Workload, Reserved: fact.Reserved, Endpoint: fact.Endpoint, Flags: fact.Flags, APIServer: fact.APIServer,
	}
	if e.subjects[fact.Endpoint] == nil {
		party.Endpoint = 0
	}
	return party
}

// Explain proves the verdicts on a packet: the source's egress first, then the destination's ingress. A side that is
// not an endpoint of this node is named, not guessed.
func (e *Engine) Explain(from, to Party, protocol uint8, port uint16) []Proof {
	return []Proof{
		e.prove(Egress, from, to, protocol, port),
		e.prove(Ingress, to, from, protocol, port),
	}
}

func (e *Engine) prove(d Direction, endpoint, other Party, protocol uint8, port uint16) Proof {
	proof := Proof{Direction: d, Endpoint: endpoint.describe(), Peer: other.describe()}
	s := e.subjects[endpoint.Endpoint]
	if s == nil {
		return proof
	}
	k := &packet{peer: e.candidate(other), name: other.describe(), address: other.Address.Unmap(), protocol: protocol, port: port, groups: e.addressGroups}
	p := s.group.programs[d]
	proof.Judged, proof.Isolators = true, p.isolators
	nearest := maxDistance
	proof.Action, proof.Rule = e.walk(s.group, p, k, func(l *line, what looked) {
		step := e.step(&proof, l)
		switch what {
		case lookedSkipped:
			step.Why = "an earlier rule passed on to the next tier"
		case lookedMatched:
			step.Matched = true
		case lookedMissed:
			m := s.group.compare(l, k)
			step.Why = m.why
			if m.distance < nearest && l.rule.Action != Deny && l.spec.spec.Tier != TierBuiltin {
				nearest = m.distance
				proof.Nearest = step.Rule.Name + ": " + m.why
			}
		}
		proof.Steps = append(proof.Steps, step)
	})
	if n := len(proof.Steps); n > 0 && proof.Steps[n-1].Matched && proof.Steps[n-1].Action != Pass {
		proof.Nearest = ""
	}
	if p := s.group.staged[d]; p.publishedNumber() != 0 {
		action, rule := e.walk(s.group, p, k, nil)
		proof.Staged = &Judgement{Direction: d, Judged: true, Action: action, Rule: rule}
	}
	return proof
}

// step begins the account of a line that comes next in a proof.
func (e *Engine) step(proof *Proof, l *line) Step {
	return Step{
		Rank: uint32(len(proof.Steps)), Rule: e.lineInfo(l), Selector: describePeers(l.selectors), Ports: describePorts(l.rule.Ports),
		Action: l.rule.Action,
	}
}

// miss says how far a rule is from matching; a part that matches is at distance 0.
type miss struct {
	distance int
	why      string
}

// Distances of what can differ. A rule that differs in one small thing is nearer than one that differs in who is meant.
const (
	distancePort        = 1
	distanceProtocol    = 2
	distanceRequirement = 2 // each
	distanceException   = 4
	distancePeer        = 8
	maxDistance         = 1 << 20
)

// compare says what differs between a rule and a packet that it does not match, and by how much.
func (g *group) compare(l *line, k *packet) miss {
	best := miss{maxDistance, "the rule names no peer that can exist"}
	ports := g.comparePort(l.rule, k)
	for _, s := range l.selectors {
		m := comparePeer(s, k)
		m.distance += ports.distance
		m.why = strings.Trim(m.why+"; "+ports.why, "; ")
		if m.distance < best.distance {
			best = m
		}
	}
	return best
}

func comparePeer(s *selector, k *packet) miss {
	switch {
	case s.matches(k.peer):
		return miss{}
	case k.peer.isUnknown():
		return miss{distancePeer, "no pod owns the peer's address"}
	case s.labels != nil:
		return compareLabels(s, k)
	case s.group != nil && !k.knows(&s.group.ref):
		return miss{distancePeer, fmt.Sprintf("the rule wants %s, which this node does not know: is there such an object?", s.text)}
	case s.isRange() && s.outsideOnly() && !k.peer.outside:
		return miss{distancePeer, fmt.Sprintf("the peer is inside the cluster, the rule wants %s", s.text)}
	case s.isRange():
		return compareRange(s, k)
	}
	return miss{distancePeer, fmt.Sprintf("peer %s is not of %s", k.name, s.text)}
}

// knows says whether there is a group of the reference's name; labels may well select none.
func (k *packet) knows(ref *GroupRef) bool {
	if ref.Name == "" {
		return true
	}
	for _, g := range k.groups {
		if ref.holds(g) {
			return true
		}
	}
	return false
}

// compareRange tells an address that an exception leaves out, which is nearer, from one that is outside altogether.
func compareRange(s *selector, k *packet) miss {
	if s.cidr != nil && s.cidr.Prefix.Contains(k.address) {
		for _, except := range s.cidr.Except {
			if except.Contains(k.address) {
				return miss{distanceException, fmt.Sprintf("peer %s is in %s, which the rule excepts from %s", k.name, except, s.cidr.Prefix)}
			}
		}
	}
	return miss{distancePeer, fmt.Sprintf("peer %s is not in %s", k.name, s.text)}
}

func compareLabels(s *selector, k *packet) miss {
	if k.peer.isReserved() && !asksForReserved(s.labels) {
		return miss{distancePeer, fmt.Sprintf("peer %s is not a pod, the rule wants %s", k.name, s.text)}
	}
	m := miss{}
	var why []string
	for _, r := range s.labels.Requirements() {
		if !r.Matches(k.peer) {
			m.distance += distanceRequirement
			why = append(why, differs(r, k.peer))
		}
	}
	m.why = strings.Join(why, "; ")
	return m
}

// differs says what the peer has where a requirement wants something else.
func differs(r label.Requirement, p *peer) string {
	what := "label " + r.Key.Name
	switch r.Key.Scope {
	case label.ScopeNamespace:
		what = "namespace label " + r.Key.Name
	case label.ScopeFact:
		what = r.Key.Name
	case label.ScopeNode:
		what = "node label " + r.Key.Name
	}
	value, ok := p.Attribute(r.Key)
	if !ok {
		return fmt.Sprintf("the peer has no %s, the rule wants %s", what, r)
	}
	return fmt.Sprintf("the peer's %s is %q, the rule wants %s", what, value, r)
}

// comparePort looks at the ports alone.
func (g *group) comparePort(r *Rule, k *packet) miss {
	if g.speaksOf(r, k) {
		return miss{}
	}
	if why := g.lacksName(r, k); why != "" {
		return miss{distancePort, why}
	}
	wants := ", the rule wants " + describePorts(r.Ports)
	other := *k
	for _, p := range r.Ports {
		if p.Protocol == k.protocol || p.Protocol == 0 && slices.Contains(portProtocols(), k.protocol) {
			return miss{distancePort, fmt.Sprintf("the port is %d", k.port) + wants}
		}
		other.protocol = p.Protocol
		if g.speaksOf(r, &other) {
			return miss{distanceProtocol, "the protocol is " + protocolName(k.protocol) + wants}
		}
	}
	return miss{distanceProtocol + distancePort, fmt.Sprintf("protocol %s port %d", protocolName(k.protocol), k.port) + wants}
}

// lacksName says which port name the destination does not have, if names are all that a rule gives and it has none.
func (g *group) lacksName(r *Rule, k *packet) string {
	destination, who := g.workload.NamedPorts, "the pod"
	if r.Direction == Egress {
		destination, who = k.peer.ports, "the peer"
	}
	for _, p := range r.Ports {
		if p.Name == "" || slices.ContainsFunc(destination, func(n NamedPort) bool { return n.Name == p.Name }) {
			return ""
		}
	}
	return fmt.Sprintf("%s has no port of that name, the rule wants %s", who, describePorts(r.Ports))
}

// candidate is a peer for one question: it is not interned, and ranges are asked for its address.
func (e *Engine) candidate(p Party) *peer {
	fact := &AddressFact{Workload: p.Workload, Reserved: p.Reserved, Flags: p.Flags, APIServer: p.APIServer}
	if fact.Workload != nil {
		w := fact.Workload.canonical()
		fact.Workload = &w
	}
	c := newPeer(fact)
	if addr := p.Address.Unmap(); addr.IsValid() {
		c.cidrs = e.rangesAround(netip.PrefixFrom(addr, addr.BitLen()), c.outside)
	}
	c.space = e.namespaces[c.workload.Namespace]
	if c.space == nil {
		c.space = &namespace{}
	}
	return c
}

// describe names a party for people.
func (p Party) describe() string {
	switch {
	case p.Name != "":
		return p.Name
	case p.Workload != nil && p.Workload.Reserved != 0:
		return p.Workload.Reserved.String()
	case p.Workload != nil:
		return p.Workload.Namespace + "/{" + p.Workload.Labels.String() + "}"
	case p.Address.IsValid() && p.Reserved == identity.World:
		return p.Address.String()
	}
	return p.Reserved.String()
}

func describePeers(selectors []*selector) string {
	var out []string
	for _, s := range selectors {
		out = append(out, s.text)
	}
	if len(out) == 0 {
		return "nobody"
	}
	return strings.Join(out, "; or ")
}

func describePorts(ports []Port) string {
	var out []string
	for _, p := range ports {
		out = append(out, p.String())
	}
	if len(out) == 0 {
		return "any port"
	}
	return strings.Join(slices.Compact(out), ", ")
}

// String prints a port as 80/TCP, 8000-8100/TCP, http/TCP or any/UDP.
func (p Port) String() string {
	port := fmt.Sprint(p.First)
	switch {
	case p.Name != "":
		port = p.Name
	case p.First == 0 && p.Last == 65535:
		port = "any"
	case p.First != p.Last:
		port = fmt.Sprintf("%d-%d", p.First, p.Last)
	}
	return port + "/" + protocolName(p.Protocol)
}
