package policy_test

import (
	"errors"
	"fmt"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"

	"tendril.io/tendril/internal/label"
	"tendril.io/tendril/internal/policy"
	"tendril.io/tendril/internal/policy/policytest"
)

// wide is a policy that needs a selector for each of its peers.
func wide(name string, peers int) policy.Policy {
	var r policy.Rule
	for i := range peers {
		r.Peers = append(r.Peers, pods(fmt.Sprint(name, i)))
	}
	return allow(name, "db", r)
}

func TestLackOfRoomIsToldInNumbers(t *testing.T) {
	for kind, want := range map[policy.Kind]policy.RoomError{
		policy.KindSelector: {Unit: "selectors", Needs: 15, Has: 8}, // any, host, web, batch's are the shop's own
		policy.KindProgram:  {Unit: "programs", Needs: 4, Has: 3},
		policy.KindRule:     {Unit: "rules", Needs: 2, Has: 1},
	} {
		n := shop(t)
		n.numbers.Room[kind] = uint32(want.Has)
		n.engine.SetSubject(2, app("db2"))
		mustSet(t, n.engine, wide("big", 12))
		if kind == policy.KindProgram { // nobody's policy
			_, err := n.engine.Flush()
			room, ok := errors.AsType[*policy.RoomError](err)
			if !ok || room.Policy == (policy.Key{}) && room.Needs != want.Needs {
				t.Errorf("got %v, want a need of %d programs", err, want.Needs)
			}
			continue
		}
		n.engine.Flush()
		refused := n.engine.Refused()
		if len(refused) != 1 {
			t.Fatalf("%s: got refused %v, want big", kind, refused)
		}
		room, ok := errors.AsType[*policy.RoomError](refused[0].Reason)
		if !ok {
			t.Fatalf("%s: got %v, want a RoomError", kind, refused[0].Reason)
		}
		want.Policy, want.What, want.Remedy = dbKey("big"), "the node", room.Remedy
		if diff := cmp.Diff(&want, room); diff != "" {
			t.Errorf("%s (-want +got):\n%s", kind, diff)
		}
	}
}

// What does not fit, or cannot be read, and was never in force is closed, and says so, until it fits or can be read.
func TestPolicyThatWasNeverInForceIsClosedUntilItIs(t *testing.T) {
	big := wide("big", 12)
	deny := wide("big", 12)
	deny.Specs[0].Isolates = [2]bool{}
	deny.Specs[0].Rules[0].Action = policy.Deny
	invalid := allow("big", "db", policy.Rule{Peers: []policy.Peer{{}}})
	for sentence, test := range map[string]struct {
		refuse    func(n *node)
		elsewhere string // verdict on another application of the namespace, that the policy does not select
		web       string // verdict on what another policy allows
	}{
		"too large, isolates": {func(n *node) { mustSet(t, n.engine, big) }, "allow", "allow"},
		"too large, denies":   {func(n *node) { mustSet(t, n.engine, deny) }, "allow", "deny"},
		"not valid": {func(n *node) {
			if n.engine.SetPolicy(invalid) == nil {
				t.Error("got no error for an invalid policy")
			}
		}, "deny", "allow"},
		"not readable": {func(n *node) {
			n.engine.RefusePolicy(policy.Policy{Key: dbKey("big"), Revision: 7}, errors.New("no such field"))
		}, "deny", "allow"},
	} {
		t.Run(sentence, func(t *testing.T) {
			n := shop(t)
			n.engine.SetSubject(2, app("elsewhere"))
			n.engine.SetSubject(3, app("db"))
			n.told.Subjects[2], n.told.Subjects[3] = app("elsewhere"), app("db")
			n.numbers.Room[policy.KindSelector] = 6
			test.refuse(n)
			n.quiet(t)
			refused := n.engine.Refused()
			if len(refused) != 1 || !refused[0].Isolates {
				t.Fatalf("got refused %+v, want big, and that it isolates", refused)
			}
			for packet, want := range map[policytest.Packet]string{
				packetTo(2, "10.0.0.3", 80): test.elsewhere, packetTo(3, "10.0.0.3", 80): "deny", packetTo(3, "10.0.0.2", 5432): test.web,
				packetTo(3, "192.168.0.1", 80): "allow", // the node's probes
			} {
				if got := n.judge(t, packet).Action; got != want {
					t.Errorf("%+v: got %s, want %s", packet, got, want)
				}
			}
			delete(n.numbers.Room, policy.KindSelector)
			mustSet(t, n.engine, allow("big", "db", policy.Rule{Peers: []policy.Peer{pods("batch")}}))
			n.quiet(t)
			if got := n.judge(t, packetTo(3, "10.0.0.3", 80)).Action; got != "allow" || len(n.engine.Refused()) != 0 {
				t.Errorf("when it fits: got %s, refused %v, want it in force", got, n.engine.Refused())
			}
		})
	}
}

func TestUnreadableVersionLeavesTheOneBeforeInForce(t *testing.T) {
	for sentence, flush := range map[string]bool{"in force": true, "staged": false} {
		n := shop(t)
		mustSet(t, n.engine, allow("more", "db", policy.Rule{Peers: []policy.Peer{pods("batch")}}))
		if flush {
			n.quiet(t)
		}
		n.engine.RefusePolicy(policy.Policy{Key: dbKey("more")}, errors.New("no such field"))
		n.quiet(t)
		if got := n.judge(t, packetTo(1, "10.0.0.3", 80)).Action; got != "allow" {
			t.Errorf("%s: got %s, want the version before", sentence, got)
		}
		if got := n.engine.Refused(); len(got) != 1 || got[0].Isolates {
			t.Errorf("%s: got refused %+v, want it refused and nobody isolated", sentence, got)
		}
		n.engine.DeletePolicy(dbKey("more"))
		n.quiet(t)
		if got := n.judge(t, packetTo(1, "10.0.0.3", 80)).Action; got != "deny" || len(n.engine.Refused()) != 0 {
			t.Errorf("%s, deleted: got %s, refused %v", sentence, got, n.engine.Refused())
		}
	}
}

// An endpoint that comes to be selected by more than a program holds is closed by the largest of the policies.
func TestPoliciesThatAreTooLargeTogetherDoNotStopTheNode(t *testing.T) {
	n := newNode()
	for i := range 3 {
		p := allow(fmt.Sprint("half", i), "db", policy.Rule{})
		p.Specs[0].Subject = app2selector(i)
		p.Specs[0].Rules = nil
		for j := range 200 + i {
			p.Specs[0].Rules = append(p.Specs[0].Rules, policy.Rule{
				Place: fmt.Sprintf("spec.ingress[%d]", j), Action: policy.Allow, Peers: []policy.Peer{pods(fmt.Sprint("a", j))},
				Ports: []policy.Port{{Protocol: tcp, First: uint16(j), Last: uint16(60000 - j*7 - i)}},
			})
		}
		mustSet(t, n.engine, p)
	}
	n.quiet(t)
	all := app("db")
	all.Labels = labelsOf("x0", "1", "x1", "1", "x2", "1")
	n.engine.SetSubject(1, all)
	n.told.Subjects[1] = all
	n.quiet(t)
	refused := n.engine.Refused()
	if len(refused) == 0 || !refused[0].Isolates || !strings.Contains(refused[0].Reason.Error(), "its program for 1 endpoint needs") {
		t.Fatalf("got refused %+v, want one of the policies, isolating", refused)
	}
	if got := n.judge(t, packetTo(1, "10.1.0.1", 80)).Action; got != "deny" {
		t.Errorf("got %s, want deny", got)
	}
}

// At a start without room, nothing is allowed that would not be allowed with room.
func TestNothingFailsOpenForWantOfRoom(t *testing.T) {
	kinds := []policy.Kind{policy.KindSelector, policy.KindCells, policy.KindRule, policy.KindClass, policy.KindPeer}
	rapid.Check(t, func(rt *rapid.T) {
		drawn := newNode()
		drawn.told.Seed(rt, drawn.engine)
		drawn.flush(rt, nil)
		kind := rapid.SampledFrom(kinds).Draw(rt, "kind")
		n := newNode()
		n.told = drawn.told
		n.numbers.Room[kind] = uint32(rapid.IntRange(2, max(2, drawn.numbers.Held(kind))).Draw(rt, "room"))
		if err := n.told.Tell(n.engine); err != nil {
			rt.Fatal(err)
		}
		delta, err := n.engine.Flush()
		if err != nil {
			return // nobody is judged at all
		}
		if err := n.kernel.Apply(delta, nil); err != nil {
			rt.Fatal(err)
		}
		for _, p := range n.told.Packets() {
			if got, want := n.judge(rt, p), n.told.Judge(p); got.Action != "deny" && want.Action == "deny" || got.Action == "allow" && want.Action == "redirect" {
				rt.Fatalf("packet %+v\ngot       %+v\nwith room %+v\nrefused   %v", p, got, want, n.engine.Refused())
			}
		}
	})
}

func labelsOf(pairs ...string) label.Set {
	m := map[string]string{}
	for i := 0; i < len(pairs); i += 2 {
		m[pairs[i]] = pairs[i+1]
	}
	return label.SetOf(m)
}

func app2selector(i int) label.Selector {
	return label.MustSelector(label.Equals(fmt.Sprint("x", i), "1"))
}

// Many policies that do not fit are asked about twice, however many they are: once, and once when what the others had
// taken is free. A pod that comes does not ask about them again.
func TestManyPoliciesThatDoNotFitAreNotTriedForEver(t *testing.T) {
	n := newNode()
	n.come(1, app("db"))
	n.quiet(t)
	n.numbers.Room[policy.KindSelector] = 4
	for i := range 200 {
		mustSet(t, n.engine, allow(fmt.Sprint("p", i), "db", policy.Rule{Peers: []policy.Peer{pods(fmt.Sprint("a", i))}}))
	}
	flushes := 0
	for ; n.engine.Pending(); flushes++ {
		n.flush(t, nil)
	}
	refused := len(n.engine.Refused())
	if flushes > 4 || refused < 190 || refused == 200 {
		t.Errorf("%d flushes, %d of 200 refused, want at most 4, and most of them", flushes, refused)
	}
	n.come(2, app("db"))
	if delta := n.flush(t, nil); delta.Work.ProgramsCompiled != 0 {
		t.Errorf("%d programs compiled for a pod of a known group, want none", delta.Work.ProgramsCompiled)
	}
}
