package policy

import (
	"net/netip"
	"slices"

	"tendril.io/tendril/bpf"
)

// Judgement is one direction's verdict without its proof.
type Judgement struct {
	Direction Direction
	Judged    bool // false: the side is not an endpoint of this node and nothing is claimed
	Action    Action
	Rule      RuleInfo
}

// Judge gives the verdicts on a packet: the source's egress first, then the destination's ingress. It walks the same
// lines as Explain and builds no steps, so that it can be asked for every flow of a node.
func (e *Engine) Judge(from, to Party, protocol uint8, port uint16) [2]Judgement {
	return [2]Judgement{
		e.judge(Egress, from, to, protocol, port),
		e.judge(Ingress, to, from, protocol, port),
	}
}

func (e *Engine) judge(d Direction, endpoint, other Party, protocol uint8, port uint16) Judgement {
	s := e.subjects[endpoint.Endpoint]
	if s == nil {
		return Judgement{Direction: d}
	}
	k := packet{peer: e.candidate(other), protocol: protocol, port: port}
	action, rule := e.walk(s.group, s.group.programs[d], &k, nil)
	return Judgement{Direction: d, Judged: true, Action: action, Rule: rule}
}

// packet is what a rule is compared with.
type packet struct {
	peer     *peer
	name     string     // of the peer, for people
	address  netip.Addr // of the peer, to explain with; may be invalid
	protocol uint8
	port     uint16
	groups   map[groupKey]*Group // that the engine knows, for proofs
}

// looked says what came of looking at a line.
type looked uint8

const (
	lookedSkipped looked = iota // an earlier pass ended its tier
	lookedMissed
	lookedMatched
)

// walk looks at a program's lines in order until one decides, shows each to see, if it is there, and returns what
// holds: that line's action, or the default's.
func (e *Engine) walk(g *group, p *program, k *packet, see func(l *line, what looked)) (Action, RuleInfo) {
	if see == nil {
		see = func(*line, looked) {}
	}
	skip := TierBuiltin // tiers up to it are ended by a pass; no pass is builtin
	for i := range p.lines {
		l := &p.lines[i]
		tier := l.spec.spec.Tier
		switch {
		case tier <= skip && tier != TierBuiltin:
			see(l, lookedSkipped)
		case !g.matches(l, k):
			see(l, lookedMissed)
		default:
			see(l, lookedMatched)
			if l.rule.Action != Pass {
				return l.rule.Action, e.lineInfo(l)
			}
			skip = tier
		}
	}
	_, rule := g.defaultOf(p.isolators)
	info := e.ruleInfos[uint32(rule)]
	return info.Action, info
}

// matches says whether a rule speaks of a packet. It does not allocate.
func (g *group) matches(l *line, k *packet) bool {
	return g.speaksOf(l.rule, k) && slices.ContainsFunc(l.selectors, func(s *selector) bool { return s.matches(k.peer) })
}

// speaksOf says whether one of a rule's ports is the packet's. Names are the destination's.
func (g *group) speaksOf(r *Rule, k *packet) bool {
	if len(r.Ports) == 0 {
		return true
	}
	for i := range r.Ports {
		p := &r.Ports[i]
		if p.Protocol != 0 && p.Protocol != k.protocol {
			continue
		}
		switch {
		case p.Name != "":
			destination := g.workload.NamedPorts
			if r.Direction == Egress {
				destination = k.peer.ports
			}
			if slices.Contains(destination, NamedPort{p.Name, k.protocol, k.port}) {
				return true
			}
		case p.anyPort(), (p.Protocol != 0 || slices.Contains(portProtocols(), k.protocol)) && p.First <= k.port && k.port <= p.Last:
			return true
		}
	}
	return false
}

// lineInfo describes a line's rule, with its id if some program has given it one.
func (e *Engine) lineInfo(l *line) RuleInfo {
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
