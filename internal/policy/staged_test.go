package policy_test

import (
	"fmt"
	"strings"
	"testing"

	"pgregory.net/rapid"

	"tendril.io/tendril/internal/policy"
	"tendril.io/tendril/internal/policy/policytest"
)

func staged(p policy.Policy) policy.Policy {
	p.Staged = true
	return p
}

func dbKey(name string) policy.Key {
	return policy.Key{Kind: "NetworkPolicy", Namespace: "shop", Name: name}
}

func TestStagedPolicyChangesWhatRecordsSayAndNothingElse(t *testing.T) {
	n := shop(t)
	before := n.kernel.Subjects[1]
	deny := allow("deny", "db", policy.Rule{Peers: []policy.Peer{pods("web")}})
	deny.Specs[0].Rules[0].Action = policy.Deny
	mustSet(t, n.engine, staged(deny))
	delta := n.flush(t, nil)
	after := n.kernel.Subjects[1]
	if !delta.Changed || len(delta.Programs) != 1 || delta.Programs[0].Program != after.StagedIngress || after.StagedEgress != 0 {
		t.Errorf("got %+v, record %+v, want one program more, that of staged ingress, and a new verdict epoch", delta, after)
	}
	if after.Ingress != before.Ingress || after.Egress != before.Egress || len(n.engine.Isolators(1, policy.Ingress)) != 1 {
		t.Errorf("got record %+v, before %+v, want the same enforced programs and isolators", after, before)
	}
	p := packetTo(1, "10.0.0.2", 5432)
	if got := n.judge(t, p); got.Action != "allow" || got.Key != dbKey("db") {
		t.Errorf("got %+v, want still allowed by db", got)
	}
	if got, asked := n.judgeStaged(t, p); !asked || got.Action != "deny" || got.Key != dbKey("deny") {
		t.Errorf("staged: got %+v, %v, want denied by deny", got, asked)
	}
	proof := n.ingressProof("10.0.0.2", tcp, 5432)
	if s := proof.Staged; proof.Action != policy.Allow || proof.Rule.Staged || s == nil || s.Action != policy.Deny || !s.Rule.Staged {
		t.Errorf("got proof %+v, staged %+v, want allowed, and denied by a staged rule beside it", proof, proof.Staged)
	}
	mustSet(t, n.engine, deny)
	n.flush(t, nil)
	if got := n.judge(t, p); got.Action != "deny" {
		t.Errorf("in force: got %+v, want denied", got)
	}
	if got := n.kernel.Subjects[1].StagedIngress; got != 0 {
		t.Errorf("in force: got staged program %d, want none", got)
	}
	if proof := n.ingressProof("10.0.0.2", tcp, 5432); proof.Staged != nil || proof.Rule.Staged {
		t.Errorf("in force: got %+v, want nothing staged", proof)
	}
}

// A staged program goes when no record names it, and comes back under its number if it is wanted again before.
func TestStagedProgramGoesOneFlushLater(t *testing.T) {
	n := shop(t)
	mustSet(t, n.engine, staged(allow("more", "db", policy.Rule{Peers: []policy.Peer{pods("batch")}})))
	n.quiet(t)
	number := n.kernel.Subjects[1].StagedIngress
	n.engine.DeletePolicy(dbKey("more"))
	if n.flush(t, nil); n.kernel.Programs[number]>>63 != 1 {
		t.Error("the program went with the record that named it, want it to stay")
	}
	if !n.engine.Pending() {
		t.Fatal("nothing is pending, want a program to tidy away")
	}
	mustSet(t, n.engine, staged(allow("other", "db", policy.Rule{Peers: []policy.Peer{pods("batch")}})))
	if n.flush(t, nil); n.kernel.Subjects[1].StagedIngress != number || n.kernel.Programs[number]>>63 != 1 {
		t.Errorf("got staged program %d of %x, want %d again", n.kernel.Subjects[1].StagedIngress, n.kernel.Programs[number], number)
	}
	n.engine.DeletePolicy(dbKey("other"))
	n.quiet(t)
	if n.kernel.Programs[number] != 0 || n.numbers.Held(policy.KindProgram) != 2 {
		t.Errorf("got descriptor %x, %d programs, want the staged one gone", n.kernel.Programs[number], n.numbers.Held(policy.KindProgram))
	}
}

// Where the room does not suffice for both, what is enforced has it, even if the staged policy was there first.
func TestStagedPolicyGivesWayToWhatIsEnforced(t *testing.T) {
	n := shop(t)
	n.numbers.Room[policy.KindCells] = 20
	mustSet(t, n.engine, staged(wide("staged", 5)))
	n.quiet(t)
	if got := n.engine.Refused(); len(got) != 0 {
		t.Fatalf("got refused %v, want room for a small staged policy", got)
	}
	mustSet(t, n.engine, wide("enforced", 4))
	n.quiet(t)
	if got := fmt.Sprint(n.engine.Refused()); !strings.Contains(got, "shop/staged: does not fit") || strings.Contains(got, "shop/enforced:") {
		t.Errorf("got refused %s, want the staged policy", got)
	}
	if got := n.kernel.Subjects[1].StagedIngress; got != 0 {
		t.Errorf("got staged program %d, want none", got)
	}
}

// Whatever is staged, enforced programs, records and isolators are those without it.
func TestStagedPoliciesNeverTouchWhatIsEnforced(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		with, without := newNode(), newNode()
		with.told.Seed(rt, with.engine)
		for key, p := range with.told.Policies {
			if p.Staged {
				delete(with.told.Policies, key)
			}
		}
		without.told = with.told
		if err := with.told.Tell(without.engine); err != nil {
			rt.Fatal(err)
		}
		for _, p := range rapid.SliceOfN(rapid.Custom(policytest.DrawPolicy), 1, 3).Draw(rt, "staged policies") {
			p.Staged, p.Key.Namespace = true, "green"
			if err := with.engine.SetPolicy(p); err != nil {
				rt.Fatal(err)
			}
		}
		for _, key := range []string{"one", "two", "three", "four"} {
			if _, ok := with.told.Policies[policy.Key{Kind: "NetworkPolicy", Namespace: "blue", Name: key}]; !ok {
				with.engine.DeletePolicy(policy.Key{Kind: "NetworkPolicy", Namespace: "blue", Name: key})
			}
		}
		with.quiet(rt)
		without.quiet(rt)
		for _, p := range with.told.Packets() {
			if got, want := with.judge(rt, p), without.judge(rt, p); got != want {
				rt.Fatalf("packet %+v\nwith staged policies %+v\nwithout             %+v", p, got, want)
			}
		}
	})
}
