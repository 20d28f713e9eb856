package policy

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"tendril.io/tendril/bpf"
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
	party := Party{Address: addr, Workload: fact.Workload, Reserved: fact.Reserved, Endpoint: fact.Endpoint, Flags: fact.Flags}
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

// packet is what a rule is compared with.
type packet struct {
	peer     *peer
	name     string // of the peer
	protocol uint8
	port     uint16
}

func (e *Engine) prove(d Direction, endpoint, other Party, protocol uint8, port uint16) Proof {
	proof := Proof{Direction: d, Endpoint: endpoint.describe(), Peer: other.describe()}
	s := e.subjects[endpoint.Endpoint]
	if s == nil {
		return proof
	}
	proof.Judged = true
	k := packet{peer: e.candidate(other), name: other.describe(), protocol: protocol, port: port}
	lines, isolators := s.group.linesOf(d)
	if d == Ingress && !e.config.DenyLocalHost {
		lines = append([]line{e.localHostLine()}, lines...)
	}
	proof.Isolators = isolators
	e.walk(&proof, s.group, lines, k)
	if proof.Rule.Rule == 0 {
		_, rule := s.group.defaultOf(isolators)
		proof.Rule = e.ruleInfos[uint32(rule)]
		proof.Action = proof.Rule.Action
	}
	return proof
}

// localHostLine is builtin/local-host in the form of a rule, so that it is proved like one.
func (e *Engine) localHostLine() line {
	rule := &Rule{Direction: Ingress, Action: Allow, Peers: []Peer{{Entity: EntityHost}}}
	return line{spec: &specState{policy: &policyState{}, spec: &Spec{Tier: TierBuiltin}}, rule: rule}
}

// walk looks at the rules in order until one decides, and remembers which of the others came nearest.
func (e *Engine) walk(proof *Proof, g *group, lines []line, k packet) {
	skip := TierBuiltin // tiers that a pass has ended
	nearest := miss{distance: maxDistance}
	rank := 0
	for _, l := range lines {
		info := e.lineInfo(l)
		step := Step{
			Rank: uint32(rank), Rule: info, Selector: describePeers(l.rule.Peers), Ports: describePorts(l.rule.Ports), Action: l.rule.Action,
		}
		rank++
		if l.spec.spec.Tier <= skip && skip != TierBuiltin {
			step.Why = "an earlier rule passed on to the next tier"
			proof.Steps = append(proof.Steps, step)
			continue
		}
		m := g.compare(l.rule, k)
		step.Matched, step.Why = m.distance == 0, m.why
		proof.Steps = append(proof.Steps, step)
		if step.Matched && l.rule.Action == Pass {
			skip = l.spec.spec.Tier
			continue
		}
		if step.Matched {
			proof.Action, proof.Rule, proof.Nearest = l.rule.Action, info, ""
			return
		}
		if m.distance < nearest.distance && l.rule.Action != Deny && l.spec.spec.Tier != TierBuiltin {
			nearest = m
			proof.Nearest = info.Name + ": " + m.why
		}
	}
}

// lineInfo describes a line's rule, with its id if some program has given it one.
func (e *Engine) lineInfo(l line) RuleInfo {
	key := l.spec.policy.policy.Key
	if key == (Key{}) {
		return e.ruleInfos[uint32(bpf.RuleLocalHost)]
	}
	info := infoOf(0, l)
	if r := e.rules[ruleDigest(key, l.rule.Place)]; r != nil {
		info.Rule = r.id
	}
	return info
}

// miss says how far a rule is from matching: 0 is a match.
type miss struct {
	distance int
	why      string
}

// Distances of what can differ. A rule that differs in one small thing is nearer than one that differs in who is meant.
const (
	distancePort        = 1
	distanceProtocol    = 2
	distanceRequirement = 2 // each
	distancePeer        = 8
	maxDistance         = 1 << 20
)

// compare says how a rule compares with a packet, and if it does not match, what differs.
func (g *group) compare(r *Rule, k packet) miss {
	best := miss{maxDistance, "the rule names no peer that can exist"}
	for _, p := range r.Peers {
		s := selectorOf(p)
		if s == nil {
			continue
		}
		m := comparePeer(s, k)
		ports := g.comparePort(r, k)
		m.distance += ports.distance
		m.why = strings.Trim(m.why+"; "+ports.why, "; ")
		if m.distance < best.distance {
			best = m
		}
	}
	return best
}

func comparePeer(s *selector, k packet) miss {
	switch {
	case s.matches(k.peer):
		return miss{}
	case k.peer.isUnknown():
		return miss{distancePeer, "no pod owns the peer's address"}
	case s.labels != nil:
		return compareLabels(s, k)
	case s.cidr != nil && s.cidr.OutsideOnly && !k.peer.outside:
		return miss{distancePeer, fmt.Sprintf("the peer is inside the cluster, the rule wants %s", s.text)}
	case s.cidr != nil:
		return miss{distancePeer, fmt.Sprintf("peer %s is not in %s", k.name, s.text)}
	}
	return miss{distancePeer, fmt.Sprintf("peer %s is not of %s", k.name, s.text)}
}

func compareLabels(s *selector, k packet) miss {
	if k.peer.isReserved() && !s.labels.Mentions(reservedKey) {
		return miss{distancePeer, fmt.Sprintf("peer %s is not a pod, the rule wants %s", k.name, s.text)}
	}
	m := miss{}
	for _, r := range s.labels.Requirements() {
		if r.Matches(k.peer) {
			continue
		}
		m.distance += distanceRequirement
		if m.why == "" {
			m.why = differs(r, k.peer)
		}
	}
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
	}
	value, ok := p.Attribute(r.Key)
	if !ok {
		return fmt.Sprintf("the peer has no %s, the rule wants %s", what, r)
	}
	return fmt.Sprintf("the peer's %s is %q, the rule wants %s", what, value, r)
}

// comparePort looks at the ports alone.
func (g *group) comparePort(r *Rule, k packet) miss {
	if len(r.Ports) == 0 {
		return miss{}
	}
	sameProtocol := false
	for _, p := range r.Ports {
		for _, have := range g.portsFor(r, p, k.peer) {
			if have.protocol != 0 && have.protocol != k.protocol {
				continue
			}
			if sameProtocol = true; have.first <= k.port && k.port <= have.last {
				return miss{}
			}
		}
	}
	if sameProtocol {
		return miss{distancePort, fmt.Sprintf("the port is %d, the rule wants %s", k.port, describePorts(r.Ports))}
	}
	return miss{distanceProtocol, fmt.Sprintf("protocol %s port %d, the rule wants %s", protocolName(k.protocol), k.port, describePorts(r.Ports))}
}

// portsFor resolves a port of a rule for one packet: names are the destination's.
func (g *group) portsFor(r *Rule, p Port, destination *peer) []portRange {
	if p.Name == "" {
		return rangesOf(p)
	}
	if r.Direction == Ingress {
		return g.resolve(p)
	}
	return (&group{workload: destination.workload}).resolve(p)
}

// candidate is a peer for one question: it is not interned, and ranges are asked for its address.
func (e *Engine) candidate(p Party) *peer {
	fact := &AddressFact{Workload: p.Workload, Reserved: p.Reserved, Flags: p.Flags}
	if fact.Workload != nil {
		w := fact.Workload.canonical()
		fact.Workload = &w
	}
	c := newPeer(fact)
	c.address = p.Address.Unmap()
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

func describePeers(peers []Peer) string {
	var out []string
	for _, s := range selectorsOf(peers) {
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
