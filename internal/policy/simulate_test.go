package policy_test

import (
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"pgregory.net/rapid"

	"tendril.io/tendril/internal/identity"
	"tendril.io/tendril/internal/label"
	"tendril.io/tendril/internal/policy"
	"tendril.io/tendril/internal/policy/policytest"
)

// drawChange draws policies that come, replace others, and go; it is also made in a copy of the facts.
func drawChange(t *rapid.T, told *policytest.Facts) (policy.Change, *policytest.Facts) {
	after := *told
	after.Policies = maps.Clone(told.Policies)
	var change policy.Change
	for range rapid.IntRange(0, 2).Draw(t, "policies that come") {
		p := policytest.DrawPolicy(t)
		if _, twice := after.Policies[p.Key]; !twice || told.Policies[p.Key].Key == p.Key {
			change.Set = slices.DeleteFunc(change.Set, func(x policy.Policy) bool { return x.Key == p.Key })
			change.Set, after.Policies[p.Key] = append(change.Set, p), p
		}
	}
	for _, key := range slices.SortedFunc(maps.Keys(told.Policies), policy.Key.Compare) {
		set := slices.ContainsFunc(change.Set, func(p policy.Policy) bool { return p.Key == key })
		if !set && rapid.IntRange(0, 3).Draw(t, "goes") == 0 {
			change.Delete = append(change.Delete, key)
			delete(after.Policies, key)
		}
	}
	return change, &after
}

// What a simulation says of each packet is what the reference says of it before and after.
func TestSimulatedVerdictsAreThoseBeforeAndAfter(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		n := newNode()
		n.told.Seed(rt, n.engine)
		n.flush(rt, nil)
		change, after := drawChange(rt, n.told)
		s := n.engine.Simulation()
		if err := s.Run(change); err != nil {
			rt.Fatal(err)
		}
		for _, p := range n.told.Packets() {
			subject, other := policy.Party{Endpoint: p.Endpoint}, n.engine.Party(p.Peer)
			from, to := subject, other
			if p.Direction == policy.Ingress {
				from, to = other, subject
			}
			now, then := s.Judge(from, to, p.Protocol, p.Port)
			side := 0
			if p.Direction == policy.Ingress {
				side = 1
			}
			for _, c := range []struct {
				got  policy.Judgement
				want policytest.Answer
			}{{now[side], n.told.Judge(p)}, {then[side], after.Judge(p)}} {
				if got := judged(c.got); got != answered(c.want) {
					rt.Fatalf("packet %+v: got %s, want %s", p, got, answered(c.want))
				}
			}
		}
	})
}

func judged(j policy.Judgement) string {
	name := j.Rule.Name
	if j.Rule.Key != (policy.Key{}) {
		name = j.Rule.Key.String() + " " + j.Rule.Place
	}
	return j.Action.String() + " " + name
}

func answered(a policytest.Answer) string {
	name := a.Builtin
	if name == "" {
		name = a.Key.String() + " " + a.Place
	}
	return a.Action + " " + name
}

// world is a cluster whose residents have an address each, with the facts that a reference reads before and after.
type world struct {
	residents     []policy.Resident
	before, after *policytest.Facts
}

func drawWorld(t *rapid.T, n *node) *world {
	w := &world{}
	for i, prefix := range slices.SortedFunc(maps.Keys(n.told.Addresses), netip.Prefix.Compare) {
		if !prefix.IsSingleIP() {
			continue
		}
		r := policy.Resident{Name: prefix.Addr().String(), Workload: policytest.DrawWorkload(t), Addrs: []netip.Addr{prefix.Addr()}}
		if i%4 == 3 {
			r.Workload = policy.Workload{Reserved: identity.RemoteNode, Labels: label.SetOf(map[string]string{"app": "a"})}
		}
		w.residents = append(w.residents, r)
	}
	return w
}

// factOf is what is known of an address that is of a crowd's kind.
func (w *world) factOf(kind policy.CrowdKind, addr netip.Addr) (policy.AddressFact, policy.Workload) {
	if kind == policy.CrowdWorld {
		return policy.AddressFact{Reserved: identity.World}, policy.Workload{}
	}
	at := slices.IndexFunc(w.residents, func(r policy.Resident) bool { return r.Addrs[0] == addr })
	load := w.residents[at].Workload
	judgedAs := load
	switch kind {
	case policy.CrowdOwnNode:
		load.Reserved, judgedAs.Reserved = identity.Host, identity.Host
	case policy.CrowdOtherNodes:
		load.Reserved, judgedAs.Reserved = identity.RemoteNode, identity.Host
	}
	return policy.AddressFact{Workload: &load, Flags: 8}, judgedAs
}

// verdict is the reference's, of both sides.
func (w *world) verdict(told *policytest.Facts, from, to *policy.Crowd, source, destination netip.Addr, protocol uint8, port uint16) policy.Action {
	facts := *told
	facts.Addresses, facts.Subjects = map[netip.Prefix]policy.AddressFact{}, map[uint32]policy.Workload{}
	for i, end := range []struct {
		crowd *policy.Crowd
		addr  netip.Addr
	}{{from, source}, {to, destination}} {
		fact, load := w.factOf(end.crowd.Kind, end.addr)
		facts.Addresses[netip.PrefixFrom(end.addr, end.addr.BitLen())] = fact
		facts.Subjects[uint32(i+1)] = load
	}
	answers := [2]policytest.Answer{{Action: "allow"}, {Action: "allow"}}
	if from.Kind != policy.CrowdWorld {
		answers[0] = facts.Judge(policytest.Packet{Endpoint: 1, Direction: policy.Egress, Peer: destination, Protocol: protocol, Port: port})
	}
	if to.Kind != policy.CrowdWorld {
		answers[1] = facts.Judge(policytest.Packet{Endpoint: 2, Direction: policy.Ingress, Peer: source, Protocol: protocol, Port: port})
	}
	for action, text := range map[policy.Action]string{policy.Deny: "deny"} {
		if answers[0].Action == text || answers[1].Action == text {
			return action
		}
	}
	if answers[0].Action == "redirect" || answers[1].Action == "redirect" {
		return policy.Redirect
	}
	return policy.Allow
}

// addressesOf lists the addresses that stand for a crowd: its members', or those outside whose narrowest border is one
// of its own.
func addressesOf(crowds []*policy.Crowd, c *policy.Crowd) (out []netip.Addr) {
	if c.Kind != policy.CrowdWorld {
		for _, m := range c.Members {
			out = append(out, netip.MustParseAddr(m))
		}
		return out
	}
	for _, text := range []string{"9.9.9.8", "9.9.8.1", "9.1.1.2", "8.8.8.8", "10.0.0.77", "10.0.1.99", "10.7.7.7", "2001:db8::1", "2a00::1", "fd00::5", "192.168.0.77"} {
		addr := netip.MustParseAddr(text)
		best, owner := -1, (*policy.Crowd)(nil)
		for _, other := range crowds {
			for _, m := range other.Members {
				if other.Kind != policy.CrowdWorld {
					continue
				}
				if p := netip.MustParsePrefix(m); p.Contains(addr) && p.Bits() > best {
					best, owner = p.Bits(), other
				}
			}
		}
		if owner == c {
			out = append(out, addr)
		}
	}
	return out
}

// The list of changes between all pairs is what brute force finds by asking the reference about every packet.
func TestPairsChangeWhereBruteForceSaysSo(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		n := newNode()
		n.told.Seed(rt, n.engine)
		n.flush(rt, nil)
		w := drawWorld(rt, n)
		change, after := drawChange(rt, n.told)
		w.before, w.after = n.told, after
		s := n.engine.ClusterSimulation(w.residents)
		if err := s.Run(change); err != nil {
			rt.Fatal(err)
		}
		for _, from := range s.Crowds() {
			changes := s.Changes(from, false)
			for _, to := range s.Crowds() {
				w.agree(rt, s.Crowds(), changes, from, to)
			}
		}
	})
}

func (w *world) agree(t *rapid.T, crowds []*policy.Crowd, changes []policy.PairChange, from, to *policy.Crowd) {
	node := func(c *policy.Crowd) bool { return c.Kind == policy.CrowdOwnNode || c.Kind == policy.CrowdOtherNodes }
	if node(from) && node(to) {
		return
	}
	for _, source := range addressesOf(crowds, from) {
		for _, destination := range addressesOf(crowds, to) {
			if source == destination || source.Is4() != destination.Is4() {
				continue
			}
			for protocol, ports := range map[uint8][]uint16{6: {0, 1, 2, 3, 4, 5, 8, 9, 65534, 65535}, 17: {1, 3, 4, 80}, 1: {0, 3, 8}, 132: {2}, 47: {0}} {
				for _, port := range ports {
					before := w.verdict(w.before, from, to, source, destination, protocol, port)
					after := w.verdict(w.after, from, to, source, destination, protocol, port)
					listed := slices.ContainsFunc(changes, func(c policy.PairChange) bool { return c.To == to && c.Ports.Contains(protocol, port) })
					if listed != (before != after) {
						t.Fatalf("%v %s -> %v %s, protocol %d port %d: %v before, %v after, listed: %v\n%s", from.Kind, source, to.Kind, destination,
							protocol, port, before, after, listed, printed(changes))
					}
				}
			}
		}
	}
}

func printed(changes []policy.PairChange) string {
	var b strings.Builder
	for _, c := range changes {
		now, _ := policy.Decide(c.Now)
		then, _ := policy.Decide(c.Then)
		fmt.Fprintf(&b, "%v -> %v at %s: %v -> %v\n", c.From.Members, c.To.Members, c.Ports, now, then)
	}
	return b.String()
}

// What replaces a rule at its own place differs from it in one field.
func TestPairsChangeWithEveryFieldOfARule(t *testing.T) {
	base := func() policy.Policy {
		return allow("web", "web", policy.Rule{Peers: []policy.Peer{pods("client")}, Ports: []policy.Port{{Protocol: tcp, First: 80, Last: 80}}})
	}
	var residents []policy.Resident
	for i, name := range []string{"web", "client", "other"} {
		residents = append(residents, policy.Resident{
			Name: name, Workload: app(name), Addrs: []netip.Addr{netip.AddrFrom4([4]byte{10, 0, 0, byte(i)}), netip.AddrFrom16([16]byte{0xfd, 15: byte(i)})},
		})
	}
	for sentence, test := range map[string]struct {
		edit func(*policy.Policy)
		want string
	}{
		"nothing":       {func(*policy.Policy) {}, ""},
		"another file":  {func(p *policy.Policy) { p.Source = "b.yaml"; p.Revision = 7 }, ""},
		"the port":      {func(p *policy.Policy) { p.Specs[0].Rules[0].Ports[0].Last = 81 }, "[client] -> [web] at 81/TCP: deny -> allow\n"},
		"the protocol":  {func(p *policy.Policy) { p.Specs[0].Rules[0].Ports[0].Protocol = udp }, "[client] -> [web] at 80/TCP: allow -> deny\n[client] -> [web] at 80/UDP: deny -> allow\n"},
		"all ports":     {func(p *policy.Policy) { p.Specs[0].Rules[0].Ports = nil }, "[client] -> [web] at any port but 80/TCP: deny -> allow\n"},
		"the action":    {func(p *policy.Policy) { p.Specs[0].Rules[0].Action = policy.Deny }, "[client] -> [web] at 80/TCP: allow -> deny\n"},
		"the peers":     {func(p *policy.Policy) { p.Specs[0].Rules[0].Peers = []policy.Peer{pods("other")} }, "[client] -> [web] at 80/TCP: allow -> deny\n[other] -> [web] at 80/TCP: deny -> allow\n"},
		"the isolation": {func(p *policy.Policy) { p.Specs[0].Isolates = [2]bool{} }, "[client] -> [web] at any port but 80/TCP: deny -> allow\n[other] -> [web] at any port: deny -> allow\n[0.0.0.0/0 ::/0] -> [web] at any port: deny -> allow\n"},
		"a tier that a pass skips": {func(p *policy.Policy) {
			p.Specs[0].Tier = policy.TierBaseline
		}, ""},
		"a range outside": {func(p *policy.Policy) {
			p.Specs[0].Rules[0].Peers = append(p.Specs[0].Rules[0].Peers, policy.Peer{CIDR: &policy.CIDR{Prefix: netip.MustParsePrefix("192.0.2.0/24"), Except: []netip.Prefix{netip.MustParsePrefix("192.0.2.8/29")}}})
		}, "[192.0.2.0/24] -> [web] at 80/TCP: deny -> allow\n"},
	} {
		t.Run(sentence, func(t *testing.T) {
			e := policy.New(policy.Config{}, policytest.NewNumbers())
			mustSet(t, e, base())
			if _, err := e.Flush(); err != nil {
				t.Fatal(err)
			}
			next := base()
			test.edit(&next)
			s := e.ClusterSimulation(residents)
			if err := s.Run(policy.Change{Set: []policy.Policy{next}}); err != nil {
				t.Fatal(err)
			}
			var all []policy.PairChange
			for _, c := range s.Crowds() {
				all = append(all, s.Changes(c, false)...)
			}
			if got := printed(all); got != test.want {
				t.Errorf("got\n%swant\n%s", got, test.want)
			}
		})
	}
}

// huge is a policy that needs more cells than a program may have: each port is a segment of its own.
func huge() policy.Policy {
	p := allow("huge", "db", policy.Rule{Peers: []policy.Peer{pods("web")}})
	odd := policy.Rule{Place: "spec.ingress[1]", Action: policy.Allow, Peers: []policy.Peer{pods("batch")}}
	for port := range 65535 {
		rule := &p.Specs[0].Rules[0]
		if port%2 == 1 {
			rule = &odd
		}
		rule.Ports = append(rule.Ports, policy.Port{Protocol: tcp, First: uint16(port), Last: uint16(port)})
	}
	p.Specs[0].Rules = append(p.Specs[0].Rules, odd)
	return p
}

func TestAChangeThatWouldBeRefusedIsNotSimulated(t *testing.T) {
	n := shop(t)
	for sentence, test := range map[string]struct {
		change policy.Change
		want   string
	}{
		"a policy that is not there cannot go": {policy.Change{Delete: []policy.Key{{Kind: "NetworkPolicy", Namespace: "shop", Name: "none"}}},
			"policy NetworkPolicy/shop/none: there is none to delete"},
		"a policy that does not fit": {policy.Change{Set: []policy.Policy{huge()}},
			"would be refused: policy NetworkPolicy/shop/huge: does not fit: its program for 1 endpoint needs 65,5"},
		"an invalid rule": {policy.Change{Set: []policy.Policy{allow("bad", "db", policy.Rule{Peers: []policy.Peer{{}}})}},
			"policy NetworkPolicy/shop/bad"},
	} {
		t.Run(sentence, func(t *testing.T) {
			err := n.engine.Simulation().Run(test.change)
			if err == nil || !strings.Contains(err.Error(), test.want) {
				t.Errorf("got %v, want %q", err, test.want)
			}
		})
	}
	if err := n.engine.Simulation().Run(policy.Change{}); err != nil {
		t.Errorf("no change: %v", err)
	}
}

func TestASimulationLeavesTheEngineAsItWas(t *testing.T) {
	n := shop(t)
	before := n.table()
	s := n.engine.Simulation()
	if err := s.Run(policy.Change{Delete: []policy.Key{{Kind: "NetworkPolicy", Namespace: "shop", Name: "db"}}}); err != nil {
		t.Fatal(err)
	}
	batch, db := n.engine.Party(netip.MustParseAddr("10.0.0.3")), n.engine.Party(netip.MustParseAddr("10.0.0.1"))
	now, then := s.Judge(batch, db, tcp, 5432)
	if now[1].Action != policy.Deny || then[1].Action != policy.Allow {
		t.Errorf("now %+v, then %+v: want denied, then allowed", now[1], then[1])
	}
	if n.engine.Pending() || n.table() != before {
		t.Errorf("the engine has changed:\n%s\nit was\n%s", n.table(), before)
	}
}

// town is a cluster of so many pods in so many groups, each group reached by the one before it.
func town(size, groups int) (*policy.Engine, []policy.Resident) {
	e := policy.New(policy.Config{}, policytest.NewNumbers())
	for g := range groups {
		p := allow(fmt.Sprint("group", g), fmt.Sprint("g", g), policy.Rule{
			Peers: []policy.Peer{pods(fmt.Sprint("g", (g+1)%groups))}, Ports: []policy.Port{{Protocol: tcp, First: 8080, Last: 8080}, {Protocol: udp, First: 53, Last: 53}},
		})
		if err := e.SetPolicy(p); err != nil {
			panic(err)
		}
	}
	if _, err := e.Flush(); err != nil {
		panic(err)
	}
	var residents []policy.Resident
	for i := range size {
		residents = append(residents, policy.Resident{
			Name: fmt.Sprint("shop/pod-", i), Workload: app(fmt.Sprint("g", i%groups)),
			Addrs: []netip.Addr{netip.AddrFrom4([4]byte{10, byte(i >> 16), byte(i >> 8), byte(i)})},
		})
	}
	return e, residents
}

// The worst change: a policy that selects every group. A change of one group costs a hundredth.
func BenchmarkAllPairsOf10kPodsIn200Groups(b *testing.B) {
	e, residents := town(10_000, 200)
	everyone := policy.Policy{Key: policy.Key{Kind: "CiliumClusterwideNetworkPolicy", Name: "everyone"}, Specs: []policy.Spec{{
		Place: "spec", Tier: policy.TierNormal, Isolates: [2]bool{true, true},
		Rules: []policy.Rule{{Place: "spec.ingressDeny[0]", Direction: policy.Ingress, Action: policy.Deny, Peers: []policy.Peer{{Any: true}},
			Ports: []policy.Port{{Protocol: tcp, First: 22, Last: 22}}}},
	}}}
	for name, change := range map[string]policy.Change{
		"all groups":     {Set: []policy.Policy{everyone}},
		"one group":      {Delete: []policy.Key{{Kind: "NetworkPolicy", Namespace: "shop", Name: "group7"}}},
		"nothing at all": {},
	} {
		b.Run(name, func(b *testing.B) {
			found := 0
			for b.Loop() {
				begun := time.Now()
				s := e.ClusterSimulation(residents)
				if err := s.Run(change); err != nil {
					b.Fatal(err)
				}
				b.ReportMetric(float64(time.Since(begun).Milliseconds()), "ms-engines")
				found = 0
				for _, c := range s.Crowds() {
					found += len(s.Changes(c, false))
				}
			}
			b.ReportMetric(float64(found), "changes")
		})
	}
}
