package policy_test

import (
	"fmt"
	"testing"

	"tendril.io/tendril/internal/policy"
)

// Where 1000 rules are in force on 100 endpoints, a rule that selects 3 of them costs these 3.
func TestRuleChangeAmongAThousandCostsTheEndpointsThatItSelects(t *testing.T) {
	n := crowd(t, 1000)
	for i := range uint32(99) {
		w := app(fmt.Sprint("other", i/3))
		w.Labels = labelsOf("app", fmt.Sprint("other", i/3), "n", fmt.Sprint(i))
		n.told.Subjects[i+2] = w
		n.engine.SetSubject(i+2, w)
	}
	n.quiet(t)
	mustSet(t, n.engine, allow("change", "other7", policy.Rule{Peers: []policy.Peer{pods("app7")}}))
	delta := n.flush(t, nil)
	if delta.Work.SubjectsRecomputed != 3 || delta.Work.ProgramsCompiled != 6 || delta.Work.KernelWrites > 4 {
		t.Errorf("got %+v, want 3 endpoints, their 6 programs, and a content and 3 descriptors written", delta.Work)
	}
}

// Many rules that come to many peers at once compare each peer with the few selectors that may hold it.
func TestManyNewSelectorsAreComparedWithFewPeersEach(t *testing.T) {
	n := crowd(t, 0)
	const peers = 2000
	for i := range peers {
		n.engine.SetAddress(stranger(i))
	}
	n.flush(t, nil)
	for i := range 1000 {
		mustSet(t, n.engine, allow(fmt.Sprint("rule", i), "db", policy.Rule{Peers: []policy.Peer{pods(fmt.Sprint("app", i))}}))
	}
	if got := n.flush(t, nil).Work.SelectorsEvaluated; got > 3*peers {
		t.Errorf("got %d comparisons of 1000 selectors with %d peers, want at most 3 a peer", got, peers)
	}
}
