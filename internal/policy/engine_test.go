package policy_test

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"tendril.io/tendril/internal/identity"
	"tendril.io/tendril/internal/label"
	"tendril.io/tendril/internal/policy"
	"tendril.io/tendril/internal/policy/policytest"
)

const tcp, udp = 6, 17

func app(name string) policy.Workload {
	return policy.Workload{Cluster: "lab", Namespace: "shop", Labels: label.SetOf(map[string]string{"app": name})}
}

func pods(name string) policy.Peer {
	s := label.MustSelector(label.Equals("app", name), label.FactIs(label.FactNamespace, "shop"))
	return policy.Peer{Selector: &s}
}

// address puts a workload at an address.
func address(e *policy.Engine, addr string, w policy.Workload) {
	e.SetAddress(netip.MustParsePrefix(addr), policy.AddressFact{Workload: &w, Flags: 8})
}

// allow is a policy that isolates the ingress of an application and allows one rule.
func allow(name, to string, rule policy.Rule) policy.Policy {
	rule.Action, rule.Place = policy.Allow, "spec.ingress[0]"
	return policy.Policy{
		Key: policy.Key{Kind: "NetworkPolicy", Namespace: "shop", Name: name}, Source: name + ".yaml",
		Specs: []policy.Spec{{
			Place: "spec", Tier: policy.TierNormal, Isolates: [2]bool{policy.Ingress: true},
			Subject: label.MustSelector(label.Equals("app", to), label.FactIs(label.FactNamespace, "shop")),
			Rules:   []policy.Rule{rule},
		}},
	}
}

func mustSet(t testing.TB, e *policy.Engine, p policy.Policy) {
	t.Helper()
	if err := e.SetPolicy(p); err != nil {
		t.Fatal(err)
	}
}

// A rule change recomputes the endpoints that it selects and no others.
func TestRuleThatSelectsThreeOfAHundredEndpointsRecomputesThree(t *testing.T) {
	n := newNode()
	for i := range uint32(100) {
		w := app(fmt.Sprint("other", i))
		if i < 3 {
			w = policy.Workload{Cluster: "lab", Namespace: "shop", Labels: label.SetOf(map[string]string{"app": "db", "n": fmt.Sprint(i)})}
		}
		n.told.Subjects[i+1] = w
		n.engine.SetSubject(i+1, w)
	}
	n.flush(t, nil)
	mustSet(t, n.engine, allow("db", "db", policy.Rule{Peers: []policy.Peer{pods("web")}}))
	delta := n.flush(t, nil)
	if got, want := delta.Work.SubjectsRecomputed, 3; got != want {
		t.Errorf("endpoints recomputed: got %d, want %d", got, want)
	}
	if got, want := len(delta.Programs), 3; got != want {
		t.Errorf("descriptors written: got %d, want %d (egress did not change)", got, want)
	}
	if got, want := len(delta.Contents), 1; got != want {
		t.Errorf("contents written: got %d, want %d: equal programs share their cells", got, want)
	}
	if len(delta.Peers)+len(delta.Set)+len(delta.Subjects) != 0 {
		t.Errorf("got %+v, want no row of a peer, address or endpoint", delta)
	}
	if got, want := n.engine.Selected(policy.Key{Kind: "NetworkPolicy", Namespace: "shop", Name: "db"}), 3; got != want {
		t.Errorf("endpoints selected: got %d, want %d", got, want)
	}
}

// crowd makes a node with many rules about one endpoint, each about another application at another port.
func crowd(t testing.TB, rules int) *node {
	n := newNode()
	n.told.Subjects[1] = app("db")
	n.engine.SetSubject(1, n.told.Subjects[1])
	for i := range rules {
		mustSet(t, n.engine, allow(fmt.Sprint("rule", i), "db", policy.Rule{
			Peers: []policy.Peer{pods(fmt.Sprint("app", i))}, Ports: []policy.Port{{Protocol: tcp, First: uint16(i), Last: uint16(i)}},
		}))
	}
	n.flush(t, nil)
	return n
}

// stranger is an identity that nobody has had yet, and where it lives.
func stranger(i int) (netip.Prefix, policy.AddressFact) {
	w := policy.Workload{Cluster: "lab", Namespace: "shop", Labels: label.SetOf(map[string]string{"app": fmt.Sprint("app", i%1000), "n": fmt.Sprint(i)})}
	w.Identity = identity.Of(w.Cluster, w.Namespace, w.ServiceAccount, w.Labels)
	return netip.PrefixFrom(netip.AddrFrom4([4]byte{10, 1, byte(i >> 8), byte(i)}), 32), policy.AddressFact{Workload: &w, Flags: 8}
}

// An identity that appears costs at most a class, a peer and an address, whatever the rules; and little thought.
func TestIdentityThatAppearsCostsThreeWrites(t *testing.T) {
	n := crowd(t, 1000)
	most, thought := 0, 0
	for i := range 10000 {
		n.engine.SetAddress(stranger(i))
		delta, err := n.engine.Flush()
		if err != nil {
			t.Fatal(err)
		}
		most, thought = max(most, delta.Work.KernelWrites), max(thought, delta.Work.SelectorsEvaluated)
		if delta.Work.ProgramsCompiled+delta.Work.SubjectsRecomputed != 0 {
			t.Fatalf("identity %d: got %+v, want no program compiled", i, delta.Work)
		}
	}
	if most > 3 {
		t.Errorf("an identity cost %d kernel writes, want at most 3", most)
	}
	if thought > 4 {
		t.Errorf("an identity was compared with %d selectors of 1000, want those of its application and the general ones", thought)
	}
}

func TestIdentityThatGoesCostsOneWrite(t *testing.T) {
	n := crowd(t, 100)
	prefix, fact := stranger(7)
	n.engine.SetAddress(prefix, fact)
	n.flush(t, nil)
	n.engine.DeleteAddress(prefix)
	delta := n.flush(t, nil)
	if got, want := delta.Work.KernelWrites, 1; got != want {
		t.Errorf("got %d kernel writes, want %d: %+v", got, want, delta)
	}
}

// A relabelled namespace is looked at again; other namespaces are not.
func TestNamespaceRelabelTouchesItsOwnPeersOnly(t *testing.T) {
	n := newNode()
	n.engine.SetSubject(1, app("db"))
	n.told.Subjects[1] = app("db")
	team := label.MustSelector(label.NamespaceEquals("team", "a"), label.Requirement{Key: label.Key{Scope: label.ScopeFact, Name: label.FactNamespace}, Operator: label.Exists})
	mustSet(t, n.engine, allow("team", "db", policy.Rule{Peers: []policy.Peer{{Selector: &team}}}))
	for i := range 200 {
		prefix, fact := stranger(i)
		fact.Workload.Namespace, fact.Workload.Identity = fmt.Sprint("ns", i%100), identity.ID{}
		n.engine.SetAddress(prefix, fact)
	}
	n.flush(t, nil)
	n.engine.SetNamespace("ns7", map[string]string{"team": "a"})
	delta := n.flush(t, nil)
	if got, want := len(delta.Peers), 2; got != want || len(delta.Set)+len(delta.Programs) != 0 {
		t.Errorf("got %d peers moved, want %d and nothing else: %+v", got, want, delta)
	}
	if got := delta.Work.SelectorsEvaluated; got > 8 {
		t.Errorf("got %d selectors evaluated, want those of two peers", got)
	}
	if !delta.Changed {
		t.Error("verdicts changed and the delta does not say so")
	}
}

// A new range moves the addresses inside it and no others.
func TestNewRangeTouchesTheAddressesInsideIt(t *testing.T) {
	n := crowd(t, 1)
	for i := range 1000 {
		n.engine.SetAddress(stranger(i))
	}
	n.flush(t, nil)
	inside := netip.MustParsePrefix("10.1.2.0/28")
	mustSet(t, n.engine, allow("range", "db", policy.Rule{Peers: []policy.Peer{{CIDR: &policy.CIDR{Prefix: inside}}}}))
	delta := n.flush(t, nil)
	if got, want := len(delta.Set), 17; got != want {
		t.Errorf("got %d address rows, want the 16 addresses inside and the range itself", got)
	}
	for _, row := range delta.Set {
		if !inside.Overlaps(row.Prefix) {
			t.Errorf("address %s was written and is not inside %s", row.Prefix, inside)
		}
	}
}

func TestNothingStagedMeansNothingToWrite(t *testing.T) {
	n := crowd(t, 3)
	if n.engine.Pending() {
		t.Error("something is pending, want nothing")
	}
	delta := n.flush(t, nil)
	if !delta.Empty() || delta.Changed {
		t.Errorf("got %+v, want an empty delta", delta)
	}
	n.engine.SetSubject(1, app("db")) // what it knows already
	mustSet(t, n.engine, allow("rule0", "db", policy.Rule{
		Peers: []policy.Peer{pods("app0")}, Ports: []policy.Port{{Protocol: tcp}},
	}))
	if delta := n.flush(t, nil); !delta.Empty() || delta.Changed {
		t.Errorf("after hearing the same again: got %+v, want an empty delta", delta)
	}
}

// Selectors that a change leaves unused keep their bits until the change is published, and lose them then.
func TestUnusedSelectorGoesOneFlushLater(t *testing.T) {
	n := crowd(t, 1)
	n.engine.SetAddress(stranger(0))
	n.flush(t, nil)
	before := len(n.engine.Selectors())
	n.engine.DeletePolicy(policy.Key{Kind: "NetworkPolicy", Namespace: "shop", Name: "rule0"})
	if delta := n.flush(t, nil); len(delta.Peers) != 0 || !delta.Changed {
		t.Errorf("got %+v, want programs to change and peers to keep their bits", delta)
	}
	if got := len(n.engine.Selectors()); got != before {
		t.Errorf("got %d selectors, want still %d", got, before)
	}
	if !n.engine.Pending() {
		t.Fatal("nothing is pending, want a selector to tidy away")
	}
	if delta := n.flush(t, nil); len(delta.Peers) == 0 || delta.Changed {
		t.Errorf("got %+v, want peers to lose a bit that no verdict depends on", delta)
	}
	if got, want := len(n.engine.Selectors()), before-1; got != want {
		t.Errorf("got %d selectors, want %d", got, want)
	}
}

// A policy that does not fit is refused whole, by name; the others, and its earlier version, stay in force.
func TestPolicyThatDoesNotFitIsRefusedWhole(t *testing.T) {
	n := crowd(t, 2)
	n.numbers.Room[policy.KindSelector] = uint32(n.numbers.Held(policy.KindSelector)) + 2
	var peers []policy.Peer
	for i := range 5 {
		peers = append(peers, pods(fmt.Sprint("wide", i)))
	}
	mustSet(t, n.engine, allow("rule1", "db", policy.Rule{Peers: peers}))
	mustSet(t, n.engine, allow("small", "db", policy.Rule{Peers: []policy.Peer{pods("new")}}))
	n.quiet(t)
	if refused := n.engine.Refused(); len(refused) != 1 || refused[0].Key.Name != "rule1" {
		t.Fatalf("got refused %v, want the large one alone", refused)
	}
	want := "policy NetworkPolicy/shop/rule1: does not fit: the node needs 10 selectors, have 6: "
	if got := n.engine.Refused()[0]; !strings.HasPrefix(got.Reason.Error(), want) || got.Isolates {
		t.Errorf("got %+v, want %q, and the earlier version in force", got, want)
	}
	var texts []string
	for _, s := range n.engine.Selectors() {
		texts = append(texts, s.Text)
	}
	got := strings.Join(texts, "\n")
	if strings.Contains(got, "wide") || !strings.Contains(got, "app=app1,") || !strings.Contains(got, "app=new,") {
		t.Errorf("got selectors\n%s\nwant those of rule1's earlier version and of small, none of the refused version", got)
	}
	delete(n.numbers.Room, policy.KindSelector)
	n.come(2, app("other"))
	n.quiet(t)
	if got := n.engine.Refused(); len(got) != 1 {
		t.Errorf("a pod that comes makes no room, got refused %v", got)
	}
	n.leave(2)
	n.quiet(t)
	if got := n.engine.Refused(); len(got) != 0 {
		t.Errorf("there is room now, got refused %v", got)
	}
}

// A program larger than its cell numbers reach is refused, quickly, rather than cut short.
func TestPolicyTooLargeForAProgramIsRefused(t *testing.T) {
	n := crowd(t, 0)
	var ports []policy.Port
	for i := range 400 {
		ports = append(ports, policy.Port{Protocol: tcp, First: uint16(i), Last: uint16(60000 - i*7)})
	}
	p := allow("huge", "db", policy.Rule{})
	p.Specs[0].Rules = nil
	for i := range 400 {
		p.Specs[0].Rules = append(p.Specs[0].Rules, policy.Rule{
			Place: fmt.Sprintf("spec.ingress[%d]", i), Action: policy.Allow, Peers: []policy.Peer{pods(fmt.Sprint("a", i))}, Ports: ports[i : i+1],
		})
	}
	mustSet(t, n.engine, p)
	n.flush(t, nil)
	if got := fmt.Sprint(n.engine.Refused()); !strings.Contains(got, "NetworkPolicy/shop/huge: does not fit") || !strings.Contains(got, "its program for 1 endpoint needs 91,202 cells, have 65,535: merge") {
		t.Errorf("got %s, want the policy refused for its cells", got)
	}
}

func packetTo(endpoint uint32, from string, port uint16) policytest.Packet {
	return policytest.Packet{Endpoint: endpoint, Direction: policy.Ingress, Peer: netip.MustParseAddr(from), Protocol: tcp, Port: port}
}

func TestInvalidPolicyIsRefusedByFieldAndTheVersionInForceStays(t *testing.T) {
	bad := func(change func(*policy.Rule)) policy.Policy {
		r := policy.Rule{Peers: []policy.Peer{{Any: true}}}
		change(&r)
		p := allow("rule0", "db", r)
		p.Specs[0].Rules[0].Action = r.Action
		return p
	}
	cidr := func(prefix string, except ...string) []policy.Peer {
		c := &policy.CIDR{Prefix: netip.MustParsePrefix(prefix)}
		for _, x := range except {
			c.Except = append(c.Except, netip.MustParsePrefix(x))
		}
		return []policy.Peer{{CIDR: c}}
	}
	tier := bad(func(*policy.Rule) {})
	tier.Specs[0].Tier = policy.TierBuiltin
	for want, p := range map[string]policy.Policy{
		"spec: tier 0 is not for policies":                    tier,
		"spec.ingress[0]: peer 0: give exactly one of":        bad(func(r *policy.Rule) { r.Peers = []policy.Peer{{}} }),
		"peer 0: no such entity \"mars\"":                     bad(func(r *policy.Rule) { r.Peers = []policy.Peer{{Entity: "mars"}} }),
		"except 11.0.0.0/8 does not lie inside":               bad(func(r *policy.Rule) { r.Peers = cidr("10.0.0.0/8", "11.0.0.0/8") }),
		"except 8.0.0.0/5 does not lie inside":                bad(func(r *policy.Rule) { r.Peers = cidr("10.0.0.0/8", "8.0.0.0/5") }),
		"range ::ffff:10.0.0.0/104: want an IPv4 or IPv6":     bad(func(r *policy.Rule) { r.Peers = cidr("::ffff:10.0.0.0/104") }),
		"port 0: ports 9-8: the last is below the first":      bad(func(r *policy.Rule) { r.Ports = []policy.Port{{First: 9, Last: 8}} }),
		"port 0: port \"http\": give a name or numbers":       bad(func(r *policy.Rule) { r.Ports = []policy.Port{{Name: "http", Last: 8}} }),
		"spec.ingress[0]: a redirect needs a proxy port":      bad(func(r *policy.Rule) { r.Action = policy.Redirect }),
		"spec.ingress[0]: no such direction 0 or action 9":    bad(func(r *policy.Rule) { r.Action = 9 }),
		"policy NetworkPolicy/shop/rule0: spec.ingress[0]: p": bad(func(r *policy.Rule) { r.Peers = []policy.Peer{{}} }),
	} {
		n := crowd(t, 1)
		before := n.table()
		if err := n.engine.SetPolicy(p); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("got error %v, want %q", err, want)
		}
		if refused := n.engine.Refused(); len(refused) != 1 || refused[0].Key != p.Key {
			t.Errorf("got refused %v, want %s", refused, p.Key)
		}
		n.flush(t, nil)
		if got := n.table(); got != before {
			t.Errorf("tables changed:\n%s", cmp.Diff(before, got))
		}
	}
}

// Two ways to write an address are one address.
func TestMappedAddressesAreIPv4(t *testing.T) {
	n := newNode()
	w := app("web")
	n.engine.SetAddress(netip.MustParsePrefix("::ffff:10.0.0.1/128"), policy.AddressFact{Workload: &w})
	n.flush(t, nil)
	if _, ok := n.kernel.Rows[netip.MustParsePrefix("10.0.0.1/32")]; !ok {
		t.Errorf("got rows %v, want 10.0.0.1/32 among them", n.kernel.Rows)
	}
	n.engine.DeleteAddress(netip.MustParsePrefix("10.0.0.1/32"))
	n.flush(t, nil)
	var rows []string
	for prefix := range n.kernel.Rows {
		rows = append(rows, prefix.String())
	}
	slices.Sort(rows)
	if diff := cmp.Diff([]string{"0.0.0.0/0", "::/0"}, rows); diff != "" {
		t.Errorf("rows (-want +got):\n%s", diff)
	}
}

// A rule keeps its name in records until its id stands for another.
func TestRuleIsRememberedAfterItsPolicyIsGone(t *testing.T) {
	n := crowd(t, 1)
	v, err := n.kernel.Judge(1, policy.Ingress, netip.MustParseAddr("10.1.0.1"), tcp, 0)
	if err != nil || v.Rule != 2 {
		t.Fatalf("got %+v, %v, want default deny", v, err)
	}
	n.engine.SetAddress(stranger(0))
	n.flush(t, nil)
	prefix, _ := stranger(0)
	v, err = n.kernel.Judge(1, policy.Ingress, prefix.Addr(), tcp, 0)
	if err != nil {
		t.Fatal(err)
	}
	n.engine.DeletePolicy(policy.Key{Kind: "NetworkPolicy", Namespace: "shop", Name: "rule0"})
	n.flush(t, nil)
	info, ok := n.engine.Rule(v.Rule)
	if want := "NetworkPolicy/shop/rule0 spec.ingress[0]"; !ok || info.Name != want || info.Source != "rule0.yaml" {
		t.Errorf("got %+v, %v, want %s", info, ok, want)
	}
	if _, ok := n.engine.Rule(12345); ok {
		t.Error("rule 12345 is known, want it not to be")
	}
}

func TestDefaultDenyNamesWhoIsolates(t *testing.T) {
	n := crowd(t, 2)
	want := []policy.Key{{Kind: "NetworkPolicy", Namespace: "shop", Name: "rule0"}, {Kind: "NetworkPolicy", Namespace: "shop", Name: "rule1"}}
	if diff := cmp.Diff(want, n.engine.Isolators(1, policy.Ingress)); diff != "" {
		t.Errorf("isolators (-want +got):\n%s", diff)
	}
	if got := n.engine.Isolators(1, policy.Egress); len(got) != 0 {
		t.Errorf("got egress isolated by %v, want nobody", got)
	}
	if got := n.engine.Isolators(99, policy.Egress); got != nil {
		t.Errorf("got %v for an endpoint that is not there, want nothing", got)
	}
}

// come and leave tell engine and reference of a pod.
func (n *node) come(endpoint uint32, w policy.Workload) {
	n.told.Subjects[endpoint] = w
	n.engine.SetSubject(endpoint, w)
}

func (n *node) leave(endpoint uint32) {
	delete(n.told.Subjects, endpoint)
	n.engine.DeleteSubject(endpoint)
}

// apply tells both of a policy.
func (n *node) apply(t testing.TB, p policy.Policy) {
	t.Helper()
	n.told.Policies[p.Key] = p
	mustSet(t, n.engine, p)
}

// The group of the pods that have gone keeps its programs for one flush more, without care: what changed in between must
// not be missing when a pod of the same labels comes.
func TestAPodThatComesRightAfterTheLastOfItsKindIsJudgedByWhatChangedMeanwhile(t *testing.T) {
	n := newNode()
	n.come(1, app("web"))
	n.flush(t, nil)
	n.leave(1)
	n.apply(t, allow("web", "web", policy.Rule{Peers: []policy.Peer{pods("client")}}))
	n.flush(t, nil)
	n.come(2, app("web"))
	n.flush(t, nil)
	want := policytest.Answer{Action: "deny", Builtin: "builtin/default-deny"}
	if got := n.judge(t, packetTo(2, "192.0.2.1", 80)); got != want {
		t.Errorf("got %+v, want %+v", got, want)
	}
	n.agree(t)
}

// A pod that goes and one of its kind that comes in the same flush share nothing but the programs.
func TestAPodThatIsReplacedInOneFlushKeepsItsGroup(t *testing.T) {
	n := newNode()
	n.apply(t, allow("web", "web", policy.Rule{Peers: []policy.Peer{pods("client")}}))
	n.come(1, app("web"))
	n.flush(t, nil)
	n.leave(1)
	n.come(2, app("web"))
	delta := n.flush(t, nil)
	if len(delta.Programs)+len(delta.Contents) != 0 || len(delta.Subjects) != 1 {
		t.Errorf("delta %+v, want one endpoint and no program", delta)
	}
	n.quiet(t)
	want := policytest.Answer{Action: "deny", Builtin: "builtin/default-deny"}
	if got := n.judge(t, packetTo(2, "192.0.2.1", 80)); got != want {
		t.Errorf("got %+v, want %+v after the flush that clears away", got, want)
	}
}

// A group that one pod leaves and another joins in the same flush is like any other: when it is left again, its programs
// stay until what they judged has others.
func TestAGroupThatChangesHandsInOneFlushKeepsItsProgramsWhenItIsLeft(t *testing.T) {
	n := newNode()
	become := func(names ...string) {
		for i, name := range names {
			n.come(uint32(i+1), app(name))
		}
		n.flush(t, nil)
	}
	become("web", "db")
	become("db", "web")
	become("db", "db") // the model of the kernel refuses to end a program that judges an endpoint
}

// A namespace that is relabelled takes its pods out of the policies that selected them by its labels, and into others.
func TestAPodIsJudgedByWhatItsNamespaceIsCalledNow(t *testing.T) {
	n := newNode()
	relabel := func(team string) {
		n.told.Namespaces["shop"] = map[string]string{"team": team}
		n.engine.SetNamespace("shop", n.told.Namespaces["shop"])
		n.flush(t, nil)
	}
	p := allow("red", "web", policy.Rule{Peers: []policy.Peer{pods("client")}})
	p.Specs[0].Subject = label.MustSelector(label.NamespaceEquals("team", "red"))
	n.apply(t, p)
	n.come(1, app("web"))
	for _, step := range []struct{ team, want string }{{"blue", "allow"}, {"red", "deny"}, {"blue", "allow"}} {
		relabel(step.team)
		if got := n.judge(t, packetTo(1, "192.0.2.1", 80)); got.Action != step.want {
			t.Errorf("team %s: got %+v, want %s", step.team, got, step.want)
		}
	}
}

// What is known of a prefix holds for the narrower borders that policies draw in it, also when it changes.
func TestABorderInsideAPrefixFollowsWhatIsKnownOfThePrefix(t *testing.T) {
	n := newNode()
	whole := netip.MustParsePrefix("192.0.2.0/24")
	p := allow("web", "web", policy.Rule{Peers: []policy.Peer{
		{Entity: policy.EntityWorld}, {CIDR: &policy.CIDR{Prefix: netip.MustParsePrefix("192.0.2.0/30"), OutsideOnly: true}},
	}})
	n.apply(t, p)
	n.come(1, app("web"))
	for _, step := range []struct {
		owner identity.Reserved
		want  string
	}{{identity.World, "allow"}, {identity.RemoteNode, "deny"}, {identity.World, "allow"}} {
		n.told.Addresses[whole] = policy.AddressFact{Reserved: step.owner}
		n.engine.SetAddress(whole, n.told.Addresses[whole])
		n.flush(t, nil)
		if got := n.judge(t, packetTo(1, "192.0.2.1", 80)); got.Action != step.want {
			t.Errorf("%s: got %+v, want %s", step.owner, got, step.want)
		}
	}
}
