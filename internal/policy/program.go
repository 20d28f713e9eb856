package policy

import (
	"cmp"
	"errors"
	"fmt"
	"math"
	"slices"

	"tendril.io/tendril/bpf"
	"tendril.io/tendril/internal/identity"
	"tendril.io/tendril/internal/label"
)

// group is what policies can tell apart among local endpoints: subjects of one identity and equal named ports share
// an ingress and an egress program, and where staged policies select them, a second one that holds these as well.
type group struct {
	digest   Digest
	workload Workload
	space    *namespace // nil for reserved identities
	subjects map[uint32]*subject
	specs    []*specState // that select it, in the order of policies and places
	programs [2]*program
	staged   [2]*program // nil: no staged policy speaks of the direction
}

// subject is a local endpoint.
type subject struct {
	endpoint uint32
	workload Workload
	group    *group
	peer     *peer
	row      SubjectRow // as published; zero: not yet
}

// policyState is a policy in force.
type policyState struct {
	policyInput
	specs []*specState
}

// specState is one spec of a policy in force.
type specState struct {
	policy *policyState
	index  int
	spec   *Spec
	peers  [][]*selector // of each rule, not interned; made when the spec first selects somebody
}

// program is one direction of a group: a row of policy_programs, with all that it keeps alive.
type program struct {
	digest    Digest
	number    uint32
	content   *content
	selectors []*selector
	views     []*view
	rules     []*ruleState
	isolators []Key
	ended     bool   // a staged program that no subject is asked by any more; it goes one flush later
	lines     []line // builtin/local-host included, in the order in which they are looked at
}

// content is what cells hold. Programs of equal content share it. It is never changed in place.
type content struct {
	digest   Digest
	first    uint32
	cells    [][16]byte
	segments int
	refs     int // programs
}

// ruleState is a rule that some program names.
type ruleState struct {
	digest Digest
	id     uint32
	refs   int // programs
}

func (g *group) isReserved() bool { return g.workload.Reserved != 0 }

// Attribute answers label selectors.
func (g *group) Attribute(key label.Key) (string, bool) { return attribute(&g.workload, g.space, key) }

// line is a rule that applies to a group in a direction; lines stand in the order in which rules are looked at.
type line struct {
	spec      *specState
	rule      *Rule
	at        int         // index of the rule in its spec
	selectors []*selector // of its peers, not interned
}

// linesOf returns the rules that apply, the policies that isolate, and whether the default is a deny. Isolation ends
// the tier that it stands in: later tiers are not reached, not even by a pass.
func (g *group) linesOf(d Direction, staged bool) (lines []line, isolators []Key) {
	last := TierBaseline
	for _, s := range g.specs {
		if s.counts(staged) && s.spec.Isolates[d] {
			last = min(last, s.spec.Tier)
		}
	}
	for _, s := range g.specs {
		if !s.counts(staged) {
			continue
		}
		if s.spec.Isolates[d] && s.spec.Tier == last && !slices.Contains(isolators, s.policy.policy.Key) {
			isolators = append(isolators, s.policy.policy.Key)
		}
		if s.spec.Tier > last {
			continue
		}
		for i := range s.spec.Rules {
			if r := &s.spec.Rules[i]; r.Direction == d {
				lines = append(lines, line{s, r, i, s.selectors(i)})
			}
		}
	}
	slices.SortStableFunc(lines, compareLines)
	return lines, isolators
}

// counts says whether a spec is part of an enforced program, or of a staged one.
func (s *specState) counts(staged bool) bool { return staged || !s.isStaged() }

func (s *specState) isStaged() bool { return s.policy.policy.Staged }

// speaksOf says whether a spec has anything to say of a direction.
func (s *Spec) speaksOf(d Direction) bool {
	return s.Isolates[d] || slices.ContainsFunc(s.Rules, func(r Rule) bool { return r.Direction == d })
}

// isStaged says whether some staged policy speaks of the group's direction.
func (g *group) isStaged(d Direction) bool {
	return slices.ContainsFunc(g.specs, func(s *specState) bool { return s.isStaged() && s.spec.speaksOf(d) })
}

// selectors returns the distinct selectors of a rule's peers.
func (s *specState) selectors(at int) []*selector {
	if s.peers == nil {
		s.peers = make([][]*selector, len(s.spec.Rules))
		for i := range s.spec.Rules {
			s.peers[i] = selectorsOf(s.spec.Rules[i].Peers)
		}
	}
	return s.peers[at]
}

// localHostLine is builtin/local-host in the form of a rule: the node's probes reach its own pods, ahead of every policy.
func localHostLine() line {
	rule := &Rule{Direction: Ingress, Action: Allow, Peers: []Peer{{Entity: EntityHost}}}
	spec := &specState{policy: &policyState{}, spec: &Spec{Tier: TierBuiltin, Rules: []Rule{*rule}}}
	return line{spec, rule, 0, spec.selectors(0)}
}

// compareLines is the order of precedence: by tier and priority; in TierNormal then by action; between equals, by the
// policies' keys and by the rules' places in them, so that every node agrees.
func compareLines(a, b line) int {
	byAction := 0
	if a.spec.spec.Tier == TierNormal {
		byAction = cmp.Compare(a.rule.Action, b.rule.Action)
	}
	return cmp.Or(
		cmp.Compare(a.spec.spec.Tier, b.spec.spec.Tier),
		cmp.Compare(a.spec.spec.Priority, b.spec.spec.Priority),
		byAction,
		compareSpecs(a.spec, b.spec),
		cmp.Compare(a.at, b.at),
	)
}

func compareSpecs(a, b *specState) int {
	return cmp.Or(a.policy.policy.Key.Compare(b.policy.policy.Key), cmp.Compare(a.index, b.index))
}

// Compare orders keys by kind, namespace and name.
func (k Key) Compare(other Key) int {
	return cmp.Or(cmp.Compare(k.Kind, other.Kind), cmp.Compare(k.Namespace, other.Namespace), cmp.Compare(k.Name, other.Name))
}

// String prints a key as Kind/namespace/name, or Kind/name for cluster-wide kinds.
func (k Key) String() string {
	if k.Namespace == "" {
		return k.Kind + "/" + k.Name
	}
	return k.Kind + "/" + k.Namespace + "/" + k.Name
}

// defaultOf says what happens when no rule matches, and the builtin rule that says so.
func (g *group) defaultOf(isolators []Key) (bpf.Action, bpf.BuiltinRule) {
	switch {
	case len(isolators) > 0:
		return bpf.ActionDeny, bpf.RuleDefaultDeny
	case g.workload.Reserved == identity.Init:
		return bpf.ActionDeny, bpf.RuleInitDeny
	}
	return bpf.ActionAllow, bpf.RuleDefaultAllow
}

// alternative is a set of peers with the ports at which a rule speaks of them.
type alternative struct {
	selector *selector // not interned
	ranges   []portRange
	view     Port // egress only: a named port still to be resolved among the selector's peers; ranges is then empty
}

// alternativesOf resolves a rule for a group. Named ports of ingress rules are the group's own.
func (g *group) alternativesOf(l *line) []alternative {
	r := l.rule
	var ranges []portRange
	var views []Port
	for _, p := range r.Ports {
		switch {
		case p.Name == "":
			ranges = append(ranges, rangesOf(p)...)
		case r.Direction == Egress:
			views = append(views, p)
		default:
			ranges = append(ranges, g.resolve(p)...)
		}
	}
	if len(r.Ports) == 0 {
		ranges = []portRange{{0, 0, math.MaxUint16}}
	}
	ranges = mergeRanges(ranges)
	var out []alternative
	for _, s := range l.selectors {
		if len(ranges) > 0 {
			out = append(out, alternative{selector: s, ranges: ranges})
		}
		for _, v := range views {
			out = append(out, alternative{selector: s, view: v})
		}
	}
	return out
}

// resolve returns the numbers that the group's pods give to a named port.
func (g *group) resolve(p Port) []portRange {
	var out []portRange
	for _, own := range g.workload.NamedPorts {
		if own.Name == p.Name && (p.Protocol == 0 || p.Protocol == own.Protocol) {
			out = append(out, portRange{own.Protocol, own.Port, own.Port})
		}
	}
	return out
}

// selectorsOf returns the distinct selectors of a rule's peers; if one of them is everybody, only that.
func selectorsOf(peers []Peer) []*selector {
	var out []*selector
	for _, p := range peers {
		s := selectorOf(p)
		switch {
		case s == nil:
		case s.any:
			return []*selector{s}
		case !slices.ContainsFunc(out, func(x *selector) bool { return x.digest == s.digest }):
			out = append(out, s)
		}
	}
	return out
}

// compile makes a program of a group and direction anew, with references to all it uses.
func (e *Engine) compile(g *group, d Direction, staged bool) (*program, error) {
	what, old := "policy.program/1", g.programs[d]
	if staged {
		what, old = "policy.staged/1", g.staged[d]
	}
	lines, isolators := g.linesOf(d, staged)
	p := &program{digest: digestOf(what, string(g.digest[:]), fmt.Sprint(d)), isolators: isolators}
	b := &builder{}
	action, rule := g.defaultOf(isolators)
	b.header = bpf.PolicyHeader{DefaultAction: action, DefaultRule: uint32(rule)}
	if d == Ingress && !e.config.DenyLocalHost && !g.workload.isNode() {
		lines = slices.Insert(lines, 0, localHostLine())
	}
	p.lines = lines
	for i := range lines {
		if err := e.compileLine(g, p, b, &lines[i]); err != nil {
			return nil, err
		}
	}
	cells, err := b.layout()
	if err != nil {
		return nil, err
	}
	if p.content, err = e.contentOf(cells, int(b.header.Segments)); err != nil {
		return nil, err
	}
	if old != nil {
		p.number = old.number
		return p, nil
	}
	p.number, err = e.number(KindProgram, p.digest, 1)
	return p, err
}

// compileLine adds the entries of one rule.
func (e *Engine) compileLine(g *group, p *program, b *builder, l *line) error {
	alternatives := g.alternativesOf(l)
	if len(alternatives) == 0 {
		return nil
	}
	id, err := e.useRule(p, l)
	if err != nil {
		return err
	}
	entry := bpf.PolicyEntry{Action: cellAction(l.rule.Action), Rule: id}
	if l.rule.Action == Redirect {
		entry.Argument = uint32(l.rule.ProxyPort)
	}
	for _, a := range alternatives {
		s, err := e.use(p, a.selector)
		if err != nil {
			return err
		}
		if a.view.Name == "" {
			entry.Selector = uint16(s.bit)
			b.add(entry, l.spec.spec.Tier, a.ranges)
			continue
		}
		v := e.viewOf(s, a.view, g)
		p.views = append(p.views, v)
		for _, port := range v.numbers() {
			narrow, err := e.use(p, withPort(s, port))
			if err != nil {
				return err
			}
			entry.Selector = uint16(narrow.bit)
			b.add(entry, l.spec.spec.Tier, []portRange{{port.Protocol, port.Port, port.Port}})
		}
	}
	return nil
}

// use interns a selector on behalf of a program.
func (e *Engine) use(p *program, s *selector) (*selector, error) {
	known, err := e.intern(s)
	if err == nil {
		p.selectors = append(p.selectors, known)
	}
	return known, err
}

// useRule returns the id of a rule on behalf of a program. Rules at one place of a policy are one rule.
func (e *Engine) useRule(p *program, l *line) (uint32, error) {
	if l.spec.spec.Tier == TierBuiltin {
		return uint32(bpf.RuleLocalHost), nil
	}
	digest := ruleDigest(l.spec.policy.policy.Key, l.rule.Place)
	r := e.rules[digest]
	if r == nil {
		id, err := e.number(KindRule, digest, 1)
		if err != nil {
			return 0, err
		}
		r = &ruleState{digest: digest, id: id}
		put(e.plan, e.rules, digest, r)
	}
	set(e.plan, &r.refs, r.refs+1)
	put(e.plan, e.ruleInfos, r.id, infoOf(r.id, l))
	p.rules = append(p.rules, r)
	return r.id, nil
}

func ruleDigest(key Key, place string) Digest {
	return digestOf("policy.rule/1", key.Kind, key.Namespace, key.Name, place)
}

// infoOf describes a rule to people.
func infoOf(id uint32, l *line) RuleInfo {
	name := l.rule.Name
	if name == "" {
		name = l.rule.Place
	}
	key := l.spec.policy.policy.Key
	return RuleInfo{
		Rule: id, Key: key, Place: l.rule.Place, Name: key.String() + " " + name,
		Action: l.rule.Action, Source: l.spec.policy.policy.Source, Staged: l.spec.isStaged(),
	}
}

// contentOf returns cells that hold the content, with one more reference.
func (e *Engine) contentOf(cells [][16]byte, segments int) (*content, error) {
	digest := contentDigest(cells)
	c := e.contents[digest]
	if c == nil {
		first, err := e.number(KindCells, digest, uint32(len(cells)))
		if err != nil {
			return nil, err
		}
		c = &content{digest: digest, first: first, cells: cells, segments: segments}
		put(e.plan, e.contents, digest, c)
		e.plan.fresh.put(digest, c)
	}
	set(e.plan, &c.refs, c.refs+1)
	e.plan.contents.put(c, struct{}{})
	return c, nil
}

// letGo gives up what a program uses. Its number stays with the group.
func (e *Engine) letGo(g *group, p *program) {
	for _, s := range p.selectors {
		e.unref(s)
	}
	for _, v := range p.views {
		e.leaveView(v, g)
	}
	for _, r := range p.rules {
		set(e.plan, &r.refs, r.refs-1)
		e.plan.rules.put(r, struct{}{})
	}
	set(e.plan, &p.content.refs, p.content.refs-1)
	e.plan.contents.put(p.content, struct{}{})
}

// settleGroups compiles the marked groups, in a fixed order so that a lack of room always shows at the same place.
// Staged programs come last: what is enforced has the room first.
func (e *Engine) settleGroups() error {
	e.plan.groups.sort(func(a, b *group) int { return compareDigests(a.digest, b.digest) })
	marked := e.plan.groups.take()
	for _, staged := range []bool{false, true} {
		for _, mark := range marked {
			g := mark.key
			if len(g.subjects) == 0 {
				continue // nobody is judged by it any more
			}
			e.plan.recomputed.put(g, struct{}{})
			if err := e.settleGroup(g, staged); err != nil {
				return err
			}
		}
	}
	return nil
}

func (e *Engine) settleGroup(g *group, staged bool) error {
	for _, d := range []Direction{Ingress, Egress} {
		if staged && !g.isStaged(d) {
			e.endStaged(g, d)
			continue
		}
		at := &g.programs[d]
		if staged {
			at = &g.staged[d]
		}
		if err := e.recompile(g, at, d, staged); err != nil {
			return err
		}
	}
	return nil
}

// recompile replaces a program of a group.
func (e *Engine) recompile(g *group, at **program, d Direction, staged bool) error {
	e.plan.compiling = compiling{g, staged}
	next, err := e.compile(g, d, staged)
	if large, ok := errors.AsType[*programTooLarge](err); ok {
		err = e.tooLarge(e.plan.compiling, large)
	}
	if e.plan.compiling = (compiling{}); err != nil {
		return err
	}
	e.plan.delta.Work.ProgramsCompiled++
	// After compile: what both use must not drop to no reference in between.
	old := *at
	if old != nil {
		e.letGo(g, old)
	}
	set(e.plan, at, next)
	// Equal cells: the descriptor in force already leads there, and the verdict epoch need not rise.
	if old == nil || old.content != next.content {
		e.plan.programs.put(next.number, next)
	}
	if old.publishedNumber() != next.publishedNumber() {
		e.markSubjects(g)
	}
	return nil
}

// endStaged takes subjects away from a staged program that has nothing to say any more. It goes with the next flush,
// when no subject's record names it.
func (e *Engine) endStaged(g *group, d Direction) {
	p := g.staged[d]
	if p.publishedNumber() == 0 {
		return
	}
	set(e.plan, &p.ended, true)
	put(e.plan, e.ended, g, struct{}{})
	e.markSubjects(g)
}

// removeEnded lets the ended programs of a group go.
func (e *Engine) removeEnded(g *group) {
	drop(e.plan, e.ended, g)
	for d, p := range g.staged {
		if p != nil && p.ended {
			e.removeProgram(g, &g.staged[d])
		}
	}
}

func (e *Engine) removeProgram(g *group, at **program) {
	p := *at
	e.letGo(g, p)
	e.release(KindProgram, p.digest, 1)
	e.plan.programs.put(p.number, nil)
	set(e.plan, at, nil)
}

func (e *Engine) markSubjects(g *group) {
	for _, s := range g.subjects {
		e.plan.subjects.put(s, struct{}{})
	}
}

// publishedNumber is the number that subjects name; 0: none.
func (p *program) publishedNumber() uint32 {
	if p == nil || p.ended {
		return 0
	}
	return p.number
}

// removeGroup lets a group go that was left by its last subject in an earlier flush.
func (e *Engine) removeGroup(g *group) {
	drop(e.plan, e.groups, g.digest)
	if g.space != nil {
		drop(e.plan, g.space.groups, g)
		e.plan.spaces.put(g.space, struct{}{})
	}
	for d := range g.programs {
		for _, at := range []**program{&g.programs[d], &g.staged[d]} {
			if *at != nil {
				e.removeProgram(g, at)
			}
		}
	}
}

// sweepContents gives up cells and rules that no program uses any more.
func (e *Engine) sweepContents() {
	for _, mark := range e.plan.contents.entries {
		if c := mark.key; c.refs == 0 {
			drop(e.plan, e.contents, c.digest)
			e.plan.fresh.drop(c.digest)
			e.release(KindCells, c.digest, uint32(len(c.cells)))
		}
	}
	for _, mark := range e.plan.rules.entries {
		if r := mark.key; r.refs == 0 {
			drop(e.plan, e.rules, r.digest)
			e.release(KindRule, r.digest, 1)
		}
	}
}

// descriptor is the word of policy_programs that puts a program in force.
func (p *program) descriptor() uint64 {
	if p == nil {
		return 0
	}
	return 1<<63 | uint64(p.content.segments)<<32 | uint64(p.content.first)
}
