package node

import (
	"context"
	"errors"
	"path/filepath"
	"testing"
	"time"

	"tendril.io/tendril/bpf"
	"tendril.io/tendril/internal/policy"
	"tendril.io/tendril/internal/table"
)

// hostPolicyObject is a policy for the nodes with the label role=edge that lets the world in at one port.
func hostPolicyObject(port string) []byte {
	return []byte(`{"apiVersion":"cilium.io/v2","kind":"CiliumClusterwideNetworkPolicy","metadata":{"name":"edge"},"spec":{
"nodeSelector":{"matchLabels":{"role":"edge"}},"ingress":[{"fromEntities":["world"],"toPorts":[{"ports":[{"port":"` + port + `","protocol":"TCP"}]}]}]}}`)
}

func (n *node1) hostPolicy(revision uint64, port string) {
	insert(n, n.tables.Policies, &table.Policy{
		Kind: "CiliumClusterwideNetworkPolicy", Name: "edge", Revision: revision, Object: hostPolicyObject(port), Source: "edge.yaml",
	})
}

// hostRow is what the kernel was told of the node.
func (n *node1) hostRow() (row policy.SubjectRow) {
	n.datapath.with(func() { row = n.datapath.kernel.Subjects[hostEndpoint] })
	return row
}

func (n *node1) hostState() (state string) {
	key := policy.Key{Kind: "CiliumClusterwideNetworkPolicy", Name: "edge"}
	n.loop.Read(func(*policy.Engine) { state = n.loop.trial.state(key) })
	return state
}

func (n *node1) hostJudges(port uint16) bpf.Action {
	return n.datapath.judge(hostEndpoint, "8.8.8.8", port)
}

func TestTheNodeIsJudgedWhileAPolicySelectsIt(t *testing.T) {
	n := startNode1(t)
	close(n.loaded)
	n.hostPolicy(7, "80")
	eventually(t, "the policy is in force", func() bool { return n.loop.inForce.Load() == 7 })
	if row := n.hostRow(); row.Ingress|row.Egress != 0 {
		t.Errorf("the node is judged by %+v, which no policy selects", row)
	}
	insert(n, n.tables.NodeLabels, &table.NodeLabels{Node: "node1", Labels: map[string]string{"role": "edge"}})
	eventually(t, "the node is judged", func() bool { return n.hostRow().Ingress != 0 })
	if row := n.hostRow(); row.Egress != 0 {
		t.Errorf("what the node sends is judged by %+v, of which the policy says nothing", row)
	}
	if n.hostJudges(80) != bpf.ActionAllow || n.hostJudges(22) != bpf.ActionDeny {
		t.Errorf("port 80: %v, port 22: %v", n.hostJudges(80), n.hostJudges(22))
	}
	insert(n, n.tables.NodeLabels, &table.NodeLabels{Node: "node1", Labels: map[string]string{"role": "core"}})
	eventually(t, "the node is not judged any more", func() bool { return n.hostRow().Ingress == 0 })
}

// superviseWith makes the loop ask a store that answers or not.
func (n *node1) superviseWith(period time.Duration, answer *error, reachable bool) {
	n.loop.trial.period, n.loop.host.reachable = period, func() bool { return reachable }
	n.loop.host.note = filepath.Join(n.t.TempDir(), "host-policies.json")
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() {
		defer close(done)
		_ = n.loop.superviseTrials(ctx, func(context.Context) error {
			n.datapath.mu.Lock()
			defer n.datapath.mu.Unlock()
			return *answer
		})
	}()
	n.t.Cleanup(func() { cancel(); <-done })
}

func TestAHostPolicyThatCutsTheStoreOffIsRolledBack(t *testing.T) {
	n := startNode1(t)
	var answer error
	n.superviseWith(300*time.Millisecond, &answer, true)
	close(n.loaded)
	insert(n, n.tables.NodeLabels, &table.NodeLabels{Node: "node1", Labels: map[string]string{"role": "edge"}})
	n.hostPolicy(7, "80")
	eventually(t, "the first version is confirmed", func() bool { return n.hostRow().Ingress != 0 && n.hostState() == "" })
	n.datapath.with(func() { answer = errors.New("no route") })
	n.hostPolicy(8, "81")
	eventually(t, "the second version is tried", func() bool { return n.hostState() == stateTrial && n.hostJudges(81) == bpf.ActionAllow })
	eventually(t, "and rolled back", func() bool { return n.hostState() == stateRolledBack && n.hostJudges(81) == bpf.ActionDeny })
	if n.hostJudges(80) != bpf.ActionAllow {
		t.Error("what was confirmed has not been put back")
	}
	want := "rolled back: the store could not be reached within 300ms of its being in force"
	if refused := n.loop.Refused(); len(refused) != 1 || refused[0].Message != want || refused[0].Revision != 8 {
		t.Errorf("refused %+v, want revision 8 %s", refused, want)
	}
	// A start after that knows it before the store says anything.
	next := newTrial(time.Second)
	loop := &policyLoop{trial: next, host: hostSide{note: n.loop.host.note}}
	if interrupted, err := loop.loadTrial(); err != nil || interrupted {
		t.Errorf("load: %v, interrupted %v", err, interrupted)
	}
	key := policy.Key{Kind: "CiliumClusterwideNetworkPolicy", Name: "edge"}
	if len(next.confirmed[key].Specs) != 1 || next.undone[key] == "" {
		t.Errorf("noted %+v, undone %v", next.confirmed, next.undone)
	}
	n.datapath.with(func() { answer = nil })
	n.hostPolicy(9, "82")
	eventually(t, "another version is tried and confirmed", func() bool { return n.hostState() == "" && n.hostJudges(82) == bpf.ActionAllow })
}

func TestATrialThatAnAgentDidNotSurviveIsRolledBack(t *testing.T) {
	n := startNode1(t)
	answer := errors.New("no route")
	n.superviseWith(time.Hour, &answer, true)
	close(n.loaded)
	insert(n, n.tables.NodeLabels, &table.NodeLabels{Node: "node1", Labels: map[string]string{"role": "edge"}})
	n.hostPolicy(7, "80")
	eventually(t, "the policy is tried", func() bool { return n.hostState() == stateTrial })
	loop := &policyLoop{trial: newTrial(time.Second), host: hostSide{note: n.loop.host.note}}
	if interrupted, err := loop.loadTrial(); err != nil || !interrupted {
		t.Fatalf("load: %v, interrupted %v, want an interrupted trial", err, interrupted)
	}
	row := &table.Policy{Kind: "CiliumClusterwideNetworkPolicy", Name: "edge", Revision: 7, Object: hostPolicyObject("80")}
	parsed := policy.Policy{Key: keyOf(row), Specs: n.loop.trial.wanted[keyOf(row)].Specs}
	if got := loop.withTrial(parsed, row); len(got.Specs) != 0 {
		t.Errorf("the next agent enforces %+v", got.Specs)
	}
}

func TestAStoreThatWasAwayBlamesNobody(t *testing.T) {
	n := startNode1(t)
	answer := errors.New("no route")
	n.superviseWith(10*time.Millisecond, &answer, false)
	close(n.loaded)
	insert(n, n.tables.NodeLabels, &table.NodeLabels{Node: "node1", Labels: map[string]string{"role": "edge"}})
	n.hostPolicy(7, "80")
	eventually(t, "it is in force, unconfirmed", func() bool { return n.hostState() == stateUnconfirmed && n.hostJudges(80) == bpf.ActionAllow })
	time.Sleep(50 * time.Millisecond)
	if objects, _ := n.loop.Trouble(); n.hostState() != stateUnconfirmed || objects["CiliumClusterwideNetworkPolicy/edge"] == nil {
		t.Errorf("state %q, problems %v", n.hostState(), objects)
	}
}
