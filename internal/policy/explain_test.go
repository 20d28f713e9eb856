package policy_test

import (
	"net/netip"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"

	"tendril.io/tendril/internal/identity"
	"tendril.io/tendril/internal/label"
	"tendril.io/tendril/internal/policy"
	"tendril.io/tendril/internal/policy/policytest"
)

// shop is a node with a database that only the web may reach, at one port, and the node itself.
func shop(t testing.TB) *node {
	n := newNode()
	n.told.Subjects[1] = app("db")
	n.engine.SetSubject(1, n.told.Subjects[1])
	db := app("db")
	n.engine.SetAddress(netip.MustParsePrefix("10.0.0.1/32"), policy.AddressFact{Workload: &db, Endpoint: 1, Flags: 9})
	address(n.engine, "10.0.0.2/32", app("web"))
	address(n.engine, "10.0.0.3/32", app("batch"))
	n.engine.SetAddress(netip.MustParsePrefix("192.168.0.1/32"), policy.AddressFact{Reserved: identity.Host, Flags: 10})
	n.engine.SetAddress(netip.MustParsePrefix("10.0.0.0/24"), policy.AddressFact{Reserved: identity.Unknown, Flags: 72})
	mustSet(t, n.engine, allow("db", "db", policy.Rule{
		Name: "from-web", Peers: []policy.Peer{pods("web")}, Ports: []policy.Port{{Protocol: tcp, First: 5432, Last: 5432}},
	}))
	n.flush(t, nil)
	return n
}

func (n *node) ingressProof(from string, protocol uint8, port uint16) policy.Proof {
	return n.engine.Explain(n.engine.Party(netip.MustParseAddr(from)), n.engine.Party(netip.MustParseAddr("10.0.0.1")), protocol, port)[1]
}

func TestProofNamesTheRuleThatAllows(t *testing.T) {
	p := shop(t).ingressProof("10.0.0.2", tcp, 5432)
	if !p.Judged || p.Action != policy.Allow || p.Rule.Name != "NetworkPolicy/shop/db from-web" || p.Nearest != "" {
		t.Errorf("got %+v, want allowed by from-web", p)
	}
	if len(p.Steps) != 2 || p.Steps[0].Rule.Name != "builtin/local-host" || p.Steps[0].Matched || !p.Steps[1].Matched {
		t.Errorf("got steps %+v, want local-host looked at first, then from-web", p.Steps)
	}
}

func TestProofNamesTheOneFieldThatDiffers(t *testing.T) {
	n := shop(t)
	for sentence, test := range map[string]struct {
		from     string
		protocol uint8
		port     uint16
		want     string
	}{
		"another port":              {"10.0.0.2", tcp, 80, "from-web: the port is 80, the rule wants 5432/TCP"},
		"another protocol":          {"10.0.0.2", udp, 5432, "from-web: the protocol is UDP, the rule wants 5432/TCP"},
		"another label":             {"10.0.0.3", tcp, 5432, `from-web: the peer's label app is "batch", the rule wants app=web`},
		"a peer that is not a pod":  {"8.8.8.8", tcp, 5432, "from-web: peer 8.8.8.8 is not a pod, the rule wants pods app=web,@namespace=shop"},
		"an address that is nobody": {"10.0.0.9", tcp, 5432, "from-web: no pod owns the peer's address"},
	} {
		t.Run(sentence, func(t *testing.T) {
			p := n.ingressProof(test.from, test.protocol, test.port)
			if p.Action != policy.Deny || p.Rule.Name != "builtin/default-deny" || !strings.Contains(p.Nearest, test.want) {
				t.Errorf("got %v by %s, nearest %q, want denied by default, nearest %q", p.Action, p.Rule.Name, p.Nearest, test.want)
			}
			if len(p.Isolators) != 1 || p.Isolators[0].Name != "db" {
				t.Errorf("got isolators %v, want db", p.Isolators)
			}
		})
	}
}

// The admin tier goes by the order in which the rules stand, the normal tier by their actions.
func TestRulesOfOrderedTiersAreLookedAtInTheirOrder(t *testing.T) {
	for tier, want := range map[policy.Tier]string{
		policy.TierAdmin: "allow deny pass", policy.TierNormal: "deny allow pass", policy.TierBaseline: "allow deny pass",
	} {
		n := shop(t)
		n.engine.DeletePolicy(policy.Key{Kind: "NetworkPolicy", Namespace: "shop", Name: "db"})
		p := allow("ordered", "db", policy.Rule{})
		p.Specs[0].Tier, p.Specs[0].Rules = tier, nil
		for _, action := range []policy.Action{policy.Allow, policy.Deny, policy.Pass} {
			p.Specs[0].Rules = append(p.Specs[0].Rules, policy.Rule{Place: action.String(), Action: action, Peers: []policy.Peer{pods("nobody")}})
		}
		mustSet(t, n.engine, p)
		n.flush(t, nil)
		var got []string
		for _, step := range n.ingressProof("10.0.0.2", tcp, 80).Steps[1:] {
			got = append(got, step.Action.String())
		}
		if got := strings.Join(got, " "); got != want {
			t.Errorf("tier %d: got %s, want %s", tier, got, want)
		}
	}
}

func TestProofShowsThatTheNodeReachesItsOwnPods(t *testing.T) {
	p := shop(t).ingressProof("192.168.0.1", tcp, 80)
	if p.Action != policy.Allow || p.Rule.Name != "builtin/local-host" || len(p.Steps) != 1 {
		t.Errorf("got %+v, want allowed by builtin/local-host at the first step", p)
	}
}

func TestProofDoesNotGuessForASideThatIsNotHere(t *testing.T) {
	n := shop(t)
	p := n.engine.Explain(n.engine.Party(netip.MustParseAddr("10.0.0.2")), n.engine.Party(netip.MustParseAddr("10.0.0.1")), tcp, 80)[0]
	if p.Judged || p.Direction != policy.Egress || p.Endpoint != "shop/{app=web}" || p.Peer != "shop/{app=db}" {
		t.Errorf("got %+v, want an egress proof of shop/{app=web} that claims nothing", p)
	}
}

func TestJudgementDoesNotGuessForASideThatIsNotHere(t *testing.T) {
	n := shop(t)
	got := n.engine.Judge(n.engine.Party(netip.MustParseAddr("10.0.0.2")), n.engine.Party(netip.MustParseAddr("10.0.0.1")), tcp, 80)
	if got[0].Judged || got[0].Direction != policy.Egress || !got[1].Judged || got[1].Action != policy.Deny || got[1].Rule.Name != "builtin/default-deny" {
		t.Errorf("got %+v, want nothing about the egress of a pod that is elsewhere, and ingress denied by default", got)
	}
}

func TestProofDescribesReservedPartiesAndPorts(t *testing.T) {
	n := shop(t)
	host := policy.Party{Reserved: identity.RemoteNode}
	p := n.engine.Explain(host, n.engine.Party(netip.MustParseAddr("10.0.0.1")), 1, 8)[1]
	if p.Peer != "reserved:remote-node" || !strings.Contains(p.Nearest, "protocol ICMP port 8, the rule wants 5432/TCP") {
		t.Errorf("got peer %q, nearest %q", p.Peer, p.Nearest)
	}
	for want, port := range map[string]policy.Port{
		"80/TCP": {Protocol: tcp, First: 80, Last: 80}, "80-90/UDP": {Protocol: udp, First: 80, Last: 90}, "http/any": {Name: "http"},
		"any/SCTP": {Protocol: 132, Last: 65535}, "1/47": {Protocol: 47, First: 1, Last: 1}, "3/ICMPv6": {Protocol: 58, First: 3, Last: 3},
	} {
		if got := port.String(); got != want {
			t.Errorf("got %q, want %q", got, want)
		}
	}
}

// The proof comes to the verdict that the compiled form gives, by the same rule, for every packet.
func TestProofAgreesWithReference(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		n := newNode()
		n.told.Seed(rt, n.engine)
		n.flush(rt, nil)
		for _, p := range rapid.SliceOfN(rapid.SampledFrom(n.told.Packets()), 50, 50).Draw(rt, "packets") {
			w := n.told.Subjects[p.Endpoint]
			own, other := policy.Party{Endpoint: p.Endpoint, Workload: &w}, n.engine.Party(p.Peer)
			other.Endpoint = 0
			from, to := other, own
			if p.Direction == policy.Egress {
				from, to = own, other
			}
			proof := n.engine.Explain(from, to, p.Protocol, p.Port)[1-p.Direction]
			want := n.told.Judge(p)
			if got := proof.Action.String(); !proof.Judged || got != want.Action || proof.Rule.Key != want.Key || proof.Rule.Place != want.Place {
				rt.Fatalf("packet %+v\nproof     %v by %+v\nreference %+v", p, proof.Action, proof.Rule, want)
			}
			if decided := want.Builtin == "" || want.Builtin == "builtin/local-host"; decided != (len(proof.Steps) > 0 && proof.Steps[len(proof.Steps)-1].Matched && proof.Steps[len(proof.Steps)-1].Action != policy.Pass) {
				rt.Fatalf("packet %+v: the last step of %+v should have decided: %v", p, proof, decided)
			}
			staged, asked := n.told.JudgeStaged(p)
			if (proof.Staged != nil) != asked || asked && (proof.Staged.Action.String() != staged.Action || proof.Staged.Rule.Key != staged.Key) {
				rt.Fatalf("packet %+v\nstaged proof %+v\nreference    %+v, %v", p, proof.Staged, staged, asked)
			}
			judged := n.engine.Judge(from, to, p.Protocol, p.Port)[1-p.Direction]
			if diff := cmp.Diff(policy.Judgement{Direction: proof.Direction, Judged: true, Action: proof.Action, Rule: proof.Rule}, judged); diff != "" {
				rt.Fatalf("packet %+v: proof (-) and judgement (+):\n%s", p, diff)
			}
			if proof.Rule.Rule == 0 {
				rt.Fatalf("packet %+v: the proof's rule has no id: %+v", p, proof.Rule)
			}
		}
	})
}

// Selectors that ask for reserved identities hold them; others mean pods.
func TestSelectorsMeanPodsUnlessTheyAskForReservedIdentities(t *testing.T) {
	n := shop(t)
	everybody, host := label.MustSelector(), label.MustSelector(label.FactIs(label.FactReserved, "host"))
	mustSet(t, n.engine, allow("db", "db", policy.Rule{Peers: []policy.Peer{{Selector: &everybody}}}))
	n.flush(t, nil)
	if got := n.ingressProof("8.8.8.8", tcp, 1).Action; got != policy.Deny {
		t.Errorf("world under a selector of all pods: got %s, want deny", got)
	}
	if got := n.ingressProof("10.0.0.3", tcp, 1).Action; got != policy.Allow {
		t.Errorf("pod under a selector of all pods: got %s, want allow", got)
	}
	mustSet(t, n.engine, allow("db", "db", policy.Rule{Peers: []policy.Peer{{Selector: &host}}}))
	n.flush(t, nil)
	if got := n.judge(t, policytest.Packet{Endpoint: 1, Peer: netip.MustParseAddr("10.0.0.3"), Protocol: tcp, Port: 1}).Action; got != "deny" {
		t.Errorf("pod under a selector of the host: got %s, want deny", got)
	}
}

// The nearest miss names the field that differs, and no other.
func TestNearestMissNamesTheFieldThatDiffers(t *testing.T) {
	office := policy.Peer{CIDR: &policy.CIDR{Prefix: netip.MustParsePrefix("192.0.2.0/24"), Except: []netip.Prefix{netip.MustParsePrefix("192.0.2.8/29")}}}
	in := func(namespace, tier string) policy.Workload {
		return policy.Workload{Cluster: "lab", Namespace: namespace, Labels: label.SetOf(map[string]string{"app": "web", "tier": tier})}
	}
	front := label.MustSelector(label.Equals("app", "web"), label.Equals("tier", "front"), label.FactIs(label.FactNamespace, "shop"))
	for sentence, test := range map[string]struct {
		rule     policy.Rule
		from     string
		protocol uint8
		port     uint16
		want     string
	}{
		"the label":     {policy.Rule{Peers: []policy.Peer{{Selector: &front}}}, "10.0.0.2", tcp, 80, `: the peer's label tier is "back", the rule wants tier=front`},
		"the namespace": {policy.Rule{Peers: []policy.Peer{{Selector: &front}}}, "10.0.0.3", tcp, 80, `: the peer's namespace is "bank", the rule wants @namespace=shop`},
		"two fields": {policy.Rule{Peers: []policy.Peer{{Selector: &front}}}, "10.0.0.4", tcp, 80,
			`: the peer's label tier is "back", the rule wants tier=front; the peer's namespace is "bank", the rule wants @namespace=shop`},
		"the port": {policy.Rule{Peers: []policy.Peer{{Any: true}}, Ports: []policy.Port{{Protocol: tcp, First: 80, Last: 80}}}, "10.0.0.2", tcp, 81,
			": the port is 81, the rule wants 80/TCP"},
		"the protocol": {policy.Rule{Peers: []policy.Peer{{Any: true}}, Ports: []policy.Port{{Protocol: tcp, First: 80, Last: 80}}}, "10.0.0.2", udp, 80,
			": the protocol is UDP, the rule wants 80/TCP"},
		"a range that it is not in":  {policy.Rule{Peers: []policy.Peer{office}}, "198.51.100.1", tcp, 80, ": peer 198.51.100.1 is not in 192.0.2.0/24 except 192.0.2.8/29"},
		"an exception that it is in": {policy.Rule{Peers: []policy.Peer{office}}, "192.0.2.9", tcp, 80, ": peer 192.0.2.9 is in 192.0.2.8/29, which the rule excepts from 192.0.2.0/24"},
		"a port name that nobody has": {policy.Rule{Peers: []policy.Peer{{Any: true}}, Ports: []policy.Port{{Protocol: tcp, Name: "http"}}}, "10.0.0.2", tcp, 80,
			": the pod has no port of that name, the rule wants http/TCP"},
		"the number of a port name": {policy.Rule{Peers: []policy.Peer{{Any: true}}, Ports: []policy.Port{{Protocol: tcp, Name: "sql"}}}, "10.0.0.2", tcp, 80,
			": the port is 80, the rule wants sql/TCP"},
	} {
		t.Run(sentence, func(t *testing.T) {
			n := newNode()
			db := app("db")
			db.NamedPorts = []policy.NamedPort{{Name: "sql", Protocol: tcp, Port: 5432}}
			n.told.Subjects[1] = db
			n.engine.SetSubject(1, db)
			n.engine.SetAddress(netip.MustParsePrefix("10.0.0.1/32"), policy.AddressFact{Workload: &db, Endpoint: 1, Flags: 9})
			address(n.engine, "10.0.0.2/32", in("shop", "back"))
			address(n.engine, "10.0.0.3/32", in("bank", "front"))
			address(n.engine, "10.0.0.4/32", in("bank", "back"))
			mustSet(t, n.engine, allow("db", "db", test.rule))
			n.flush(t, nil)
			p := n.ingressProof(test.from, test.protocol, test.port)
			if want := "NetworkPolicy/shop/db spec.ingress[0]" + test.want; p.Action != policy.Deny || p.Nearest != want {
				t.Errorf("got %v, nearest\n%q, want\n%q", p.Action, p.Nearest, want)
			}
		})
	}
}
