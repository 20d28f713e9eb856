package main

import (
	"context"
	"errors"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
)

// onNodes is a test whose pods run, on so many nodes, and a cluster in which exec answers.
func onNodes(exec execFunc, nodes ...string) *connectivity {
	c := &connectivity{
		app: &app{}, cluster: &cluster{exec: exec}, nodes: nodes, agents: "kube-system", agent: map[string]string{}, within: time.Nanosecond,
		pods:    map[string]*corev1.Pod{},
		service: &corev1.Service{Spec: corev1.ServiceSpec{ClusterIPs: []string{"10.96.0.9"}, Ports: []corev1.ServicePort{{NodePort: 30080}}}},
		told:    func(checkResult) {},
	}
	for i, node := range nodes {
		c.agent[node] = "agent-" + node
		for _, role := range []string{"server", "client", "other", "stranger", "host"} {
			pod := &corev1.Pod{Spec: corev1.PodSpec{NodeName: node}}
			pod.Status.PodIPs = []corev1.PodIP{{IP: "10.0.0." + string(rune('1'+i))}}
			pod.Status.HostIPs = []corev1.HostIP{{IP: "192.0.2." + string(rune('1'+i))}, {IP: "2001:db8::1"}}
			c.pods[role+"-"+string(rune('1'+i))] = pod
		}
	}
	return c
}

// unanswered is what a question that ran in a pod and found nobody comes to.
var unanswered = &statusError{1, "deadline exceeded"}

func TestACheckFailsForEveryOtherAnswerAndSaysWhatAgentsDropped(t *testing.T) {
	for _, c := range []struct {
		name    string
		denied  bool
		answers []error // in turn; the last one again and again
		want    bool
		asked   int
	}{
		{"an answer where one must be", false, []error{nil}, true, 1},
		{"none where one must be", false, []error{unanswered}, false, 1},
		{"none where none must be, three times", true, []error{unanswered}, true, 3},
		{"an answer between them counts anew, and the time is over", true, []error{unanswered, nil}, false, 2},
		{"a question that could not be asked is no denial", true, []error{errors.New("the API server is away")}, false, 1},
	} {
		t.Run(c.name, func(t *testing.T) {
			asked := 0
			test := onNodes(func(_ context.Context, in container, command ...string) ([]byte, error) {
				if in.namespace == "kube-system" {
					return []byte("dropped by AdminNetworkPolicy/x\n"), nil
				}
				err := c.answers[min(asked, len(c.answers)-1)]
				asked++
				return []byte("server-1 sees 10.0.0.1:1"), err
			}, "n1", "n2")
			if err := test.check(t.Context(), check{what: "it", from: "client-1", to: "server-2", target: "10.0.0.2:8080", denied: c.denied}); err != nil {
				t.Fatal(err)
			}
			got := test.results[0]
			if got.OK != c.want || asked != c.asked {
				t.Errorf("ok is %v after %d questions, want %v after %d: %+v", got.OK, asked, c.want, c.asked, got)
			}
			if want := []string{"n1: dropped by AdminNetworkPolicy/x", "n2: dropped by AdminNetworkPolicy/x"}; !c.want && strings.Join(got.Drops, "\n") != strings.Join(want, "\n") {
				t.Errorf("drops %q, want %q", got.Drops, want)
			}
			if !c.want && got.Why == "" {
				t.Error("it does not say why")
			}
		})
	}
}

// Whatever policy is to deny must have been open before, between the same two.
func TestWhatIsDeniedWasOpenBefore(t *testing.T) {
	for _, nodes := range [][]string{{"n1"}, {"n1", "n2"}} {
		c := onNodes(nil, nodes...)
		open := map[string]bool{}
		for _, one := range c.openChecks() {
			open[one.from+" "+one.target] = true
			if strings.Contains(one.target, "2001:db8") {
				t.Errorf("%s asks %s, and the service has no IPv6", one.from, one.target)
			}
		}
		denied := 0
		for _, one := range c.policyChecks() {
			if c.pods[one.from] == nil {
				t.Errorf("%d nodes: there is no pod %s", len(nodes), one.from)
			}
			if one.denied {
				denied++
			}
			if one.denied && one.to != "" && !open[one.from+" "+one.target] {
				t.Errorf("%d nodes: %s asks %s in vain, which was not seen to be open", len(nodes), one.from, one.target)
			}
		}
		if denied != 3 {
			t.Errorf("%d nodes: %d denials, want 3", len(nodes), denied)
		}
	}
}

// With one node all else is checked, and what was not is named with its reason and counts neither as passed nor as failed.
func TestWhatNeedsTwoNodesIsSkippedWithOne(t *testing.T) {
	answered := func(context.Context, container, ...string) ([]byte, error) { return nil, nil }
	for _, c := range []struct {
		nodes   []string
		skipped int
		want    string
	}{
		{[]string{"n1"}, 3, "all 1 checks passed, and what needs two nodes was skipped\n"},
		{[]string{"n1", "n2"}, 0, "all 1 checks passed\n"},
	} {
		test, skipped := onNodes(answered, c.nodes...), 0
		test.told = func(r checkResult) {
			if r.Skipped != "" {
				skipped++
			}
			if r.Skipped != "" && (r.OK || !strings.Contains(r.Skipped, "n1 is the only node")) {
				t.Errorf("%+v", r)
			}
		}
		test.skip()
		if err := test.check(t.Context(), check{what: "it", from: "client-1", to: "server-1", target: "10.0.0.1:8080"}); err != nil {
			t.Fatal(err)
		}
		var got strings.Builder
		if err := test.sum(&got); err != nil || got.String() != c.want || skipped != c.skipped {
			t.Errorf("%v: got %q, %v, %d skipped, want %q, %d", c.nodes, got.String(), err, skipped, c.want, c.skipped)
		}
		kinds := map[string]bool{}
		for _, one := range append(test.openChecks(), test.policyChecks()...) {
			kinds[one.what] = true
		}
		if got := kinds["pod to pod between nodes"] || kinds["ingress policy lets clients in, of the last node"]; got != (len(c.nodes) > 1) {
			t.Errorf("%v: checks between nodes: %t", c.nodes, got)
		}
	}
}
