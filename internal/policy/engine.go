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

// Engine turns facts and policies into what the kernel must hold. It is incremental and does not depend on the order
// in which it learns things: the same facts give the same tables up to numbering.
//
// Inputs are staged by the Set and Delete methods; Flush takes them all in at once. It is not safe for concurrent use.
type Engine struct {
	config  Config
	numbers Numbers
	staged  staged
	refused map[Key]refusal
	retry   []Key         // refused policies that may fit the next time
	held    [kinds]uint32 // numbers that are ours
	plan    *plan         // of this flush; empty between two

	// What is in force. Only apply changes it, and only through the plan.
	started    bool                        // the reserved peers are in force
	namespaces map[string]*namespace       // that somebody is in, or that have labels
	policies   map[Key]*policyState        // without those that were refused
	specs      specIndex                   // of policies, by the subjects that they may select
	selectors  registry                    // in use, idle ones included
	idle       map[*selector]struct{}      // that no program uses
	reserved   map[identity.Reserved]*peer // those that no range holds; their numbers are fixed
	peers      map[Digest]*peer            // all, the reserved included
	classes    map[Digest]*class
	holders    holders
	places     tree[place] // every prefix that a fact or a range speaks of
	// addressGroups are the lists of addresses that policies name, not to be confused with groups.
	addressGroups map[groupKey]*Group
	views         map[viewKey]*view             // named ports of egress rules
	viewsByName   map[string]map[*view]struct{} // the same, by the port that they are of
	groups        map[Digest]*group             // of local endpoints, emptied ones included
	emptied       map[*group]struct{}           // that the last flush left without subjects
	ended         map[*group]struct{}           // with staged programs that the last flush left without subjects
	subjects      map[uint32]*subject
	contents      map[Digest]*content   // by their cells: equal programs share them
	rules         map[Digest]*ruleState // that some program names
	ruleInfos     map[uint32]RuleInfo   // also of rules that are gone, until their id is used again: flows may name them
}

// policyInput is a policy to be in force.
type policyInput struct {
	policy  Policy
	standIn bool // it is not as it was given, which does not fit or cannot be read
}

// staged holds inputs until the next successful Flush. Where the value is nil, the thing is gone.
type staged struct {
	namespaces map[string]*label.Set
	policies   map[Key]*policyInput
	addresses  scratch[netip.Prefix, *AddressFact]
	subjects   map[uint32]*Workload

	addressGroups map[groupKey]*Group
	denyLocalHost *bool // nil: as before
}

func newStaged() staged {
	return staged{
		namespaces: map[string]*label.Set{}, policies: map[Key]*policyInput{}, subjects: map[uint32]*Workload{},
		addressGroups: map[groupKey]*Group{},
	}
}

// reset forgets the inputs once they are taken in.
func (s *staged) reset() {
	s.addresses.reset()
	s.denyLocalHost = nil
	if len(s.namespaces)+len(s.policies)+len(s.subjects)+len(s.addressGroups) > 0 {
		addresses := s.addresses
		*s = newStaged()
		s.addresses = addresses
	}
}

func (s *staged) empty() bool {
	return len(s.namespaces)+len(s.policies)+s.addresses.len()+len(s.subjects)+len(s.addressGroups) == 0 && s.denyLocalHost == nil
}

// New returns an engine that knows nothing yet. Its first Flush writes the reserved peers and the world.
func New(config Config, numbers Numbers) *Engine {
	return &Engine{
		config: config, numbers: numbers, staged: newStaged(), refused: map[Key]refusal{}, plan: &plan{},
		namespaces:  map[string]*namespace{},
		policies:    map[Key]*policyState{},
		specs:       specIndex{newIndex[*specState]()},
		selectors:   newRegistry(),
		idle:        map[*selector]struct{}{},
		reserved:    map[identity.Reserved]*peer{},
		peers:       map[Digest]*peer{},
		classes:     map[Digest]*class{},
		holders:     holders{},
		views:       map[viewKey]*view{},
		viewsByName: map[string]map[*view]struct{}{},
		groups:      map[Digest]*group{},
		emptied:     map[*group]struct{}{},
		ended:       map[*group]struct{}{},
		subjects:    map[uint32]*subject{},
		contents:    map[Digest]*content{},
		rules:       map[Digest]*ruleState{},
		ruleInfos:   builtinRules(),

		addressGroups: map[groupKey]*Group{},
	}
}

// words is the number of words in a row of class_bits.
func (e *Engine) words() int {
	if e.config.ClassWords > 0 {
		return e.config.ClassWords
	}
	return int(bpf.CapSelectors) / 64
}

// SetDenyLocalHost stages another Config.DenyLocalHost.
func (e *Engine) SetDenyLocalHost(deny bool) {
	e.staged.denyLocalHost = nil
	if deny != e.config.DenyLocalHost {
		e.staged.denyLocalHost = &deny
	}
}

// SetNamespace stages a namespace's labels.
func (e *Engine) SetNamespace(name string, labels map[string]string) {
	set := label.SetOf(labels)
	e.staged.namespaces[name] = &set
}

// DeleteNamespace stages that a namespace has no labels.
func (e *Engine) DeleteNamespace(name string) { e.staged.namespaces[name] = nil }

// SetPolicy stages a policy. One that is not valid is refused at once, as by RefusePolicy, with an error that names
// object and field.
func (e *Engine) SetPolicy(p Policy) error {
	if err := p.Validate(); err != nil {
		e.RefusePolicy(p, err)
		return err
	}
	delete(e.refused, p.Key)
	e.staged.policies[p.Key] = &policyInput{policy: p}
	return nil
}

// DeletePolicy stages that a policy is gone.
func (e *Engine) DeletePolicy(key Key) {
	delete(e.refused, key)
	e.staged.policies[key] = nil
}

// SetAddress stages what is known of an address (a prefix of full length) or of a prefix.
func (e *Engine) SetAddress(prefix netip.Prefix, fact AddressFact) {
	if fact.Workload != nil {
		w := fact.Workload.canonical()
		fact.Workload, fact.Reserved = &w, 0
	}
	e.staged.addresses.put(unmapped(prefix), &fact)
}

// DeleteAddress stages that nothing is known of an address or prefix any more.
func (e *Engine) DeleteAddress(prefix netip.Prefix) { e.staged.addresses.put(unmapped(prefix), nil) }

// unmapped returns a prefix in the one form that keys use: masked, IPv4 not mapped.
func unmapped(prefix netip.Prefix) netip.Prefix {
	if a := prefix.Addr(); a.Is4In6() && prefix.Bits() >= 96 {
		prefix = netip.PrefixFrom(a.Unmap(), prefix.Bits()-96)
	}
	return prefix.Masked()
}

// SetSubject stages a local endpoint, which is judged by the policies that select the workload.
func (e *Engine) SetSubject(endpoint uint32, w Workload) {
	w = w.canonical()
	e.staged.subjects[endpoint] = &w
}

// DeleteSubject stages that a local endpoint is gone. Its record in the kernel is the caller's to remove, before the
// Flush after the next: that one lets its programs go.
func (e *Engine) DeleteSubject(endpoint uint32) { e.staged.subjects[endpoint] = nil }

// Pending says whether Flush has something to do: staged inputs, or selectors and programs that the last Flush left
// unused. Call it until there is nothing, each time after the last delta is published.
func (e *Engine) Pending() bool {
	return !e.started || len(e.retry) > 0 || !e.staged.empty() || len(e.idle)+len(e.emptied)+len(e.ended) > 0
}

// Rule says what a rule id stands for. It also knows the builtin rules, and rules that are gone until their id is
// given to another.
func (e *Engine) Rule(id uint32) (RuleInfo, bool) {
	info, ok := e.ruleInfos[id]
	return info, ok
}

// builtinRules describes the rules with fixed ids.
func builtinRules() map[uint32]RuleInfo {
	out := map[uint32]RuleInfo{}
	for _, r := range []bpf.BuiltinRule{bpf.RuleDefaultAllow, bpf.RuleLocalHost, bpf.RuleSelf, bpf.RuleReply, bpf.RuleICMPRelated} {
		out[uint32(r)] = RuleInfo{Rule: uint32(r), Name: "builtin/" + r.String(), Action: Allow}
	}
	for _, r := range []bpf.BuiltinRule{bpf.RuleDefaultDeny, bpf.RuleInitDeny} {
		out[uint32(r)] = RuleInfo{Rule: uint32(r), Name: "builtin/" + r.String(), Action: Deny}
	}
	return out
}

// Isolators lists the policies that make an endpoint's default a deny, by key.
func (e *Engine) Isolators(endpoint uint32, direction Direction) []Key {
	s := e.subjects[endpoint]
	if s == nil {
		return nil
	}
	return slices.Clone(s.group.programs[direction].isolators)
}

// Selected says how many local endpoints a policy selects.
func (e *Engine) Selected(key Key) int {
	count := 0
	for _, g := range e.groups {
		if slices.ContainsFunc(g.specs, func(s *specState) bool { return s.policy.policy.Key == key }) {
			count += len(g.subjects)
		}
	}
	return count
}

// Validate checks what every dialect must have checked already, and the engine relies on.
func (p *Policy) Validate() error {
	if places := p.NeedsProxy(); len(places) > 0 {
		return fmt.Errorf("policy %s: %s: needs the proxy, which this node does not have: remove the rule", p.Key, strings.Join(places, ", "))
	}
	for i := range p.Specs {
		s := &p.Specs[i]
		if s.Tier == TierBuiltin || s.Tier > TierBaseline {
			return fmt.Errorf("policy %s: %s: tier %d is not for policies: use admin, normal or baseline", p.Key, s.Place, s.Tier)
		}
		for j := range s.Rules {
			if err := s.Rules[j].validate(); err != nil {
				return fmt.Errorf("policy %s: %s: %w", p.Key, s.Rules[j].Place, err)
			}
		}
	}
	return nil
}

func (r *Rule) validate() error {
	if r.Direction > Egress || r.Action > Pass {
		return fmt.Errorf("no such direction %d or action %d", r.Direction, r.Action)
	}
	if r.Action == Redirect && r.ProxyPort == 0 {
		return fmt.Errorf("a redirect needs a proxy port")
	}
	for i, peer := range r.Peers {
		if err := peer.validate(); err != nil {
			return fmt.Errorf("peer %d: %w", i, err)
		}
	}
	for i, port := range r.Ports {
		if err := port.validate(); err != nil {
			return fmt.Errorf("port %d: %w", i, err)
		}
	}
	return nil
}

func (p *Peer) validate() error {
	kinds := 0
	for _, has := range []bool{p.Any, p.Selector != nil, p.Entity != EntityNone, p.CIDR != nil, p.Group != nil, p.FQDN != nil} {
		if has {
			kinds++
		}
	}
	switch {
	case kinds != 1:
		return fmt.Errorf("give exactly one of any, selector, entity, CIDR, group and FQDN, not %d of them", kinds)
	case p.Entity != EntityNone && !p.Entity.valid():
		return fmt.Errorf("no such entity %q", p.Entity)
	case p.CIDR != nil:
		return p.CIDR.validate()
	case p.Group != nil:
		return p.Group.validate()
	}
	return nil
}

func (c *CIDR) validate() error {
	for _, p := range append([]netip.Prefix{c.Prefix}, c.Except...) {
		if err := validateRange(p); err != nil {
			return err
		}
	}
	for _, x := range c.Except {
		if !c.Prefix.Overlaps(x) || x.Bits() < c.Prefix.Bits() {
			return fmt.Errorf("range %s: except %s does not lie inside it", c.Prefix, x)
		}
	}
	return nil
}

func validateRange(p netip.Prefix) error {
	if !p.IsValid() || p.Addr().Is4In6() || p.Addr().Zone() != "" {
		return fmt.Errorf("range %s: want an IPv4 or IPv6 prefix such as 10.0.0.0/8 or fd00::/8", p)
	}
	return nil
}

func (p *Port) validate() error {
	switch {
	case p.Name != "" && (p.First != 0 || p.Last != 0):
		return fmt.Errorf("port %q: give a name or numbers, not both", p.Name)
	case p.First > p.Last:
		return fmt.Errorf("ports %d-%d: the last is below the first", p.First, p.Last)
	}
	return nil
}
