package main

import (
	"bytes"
	"context"
	"strings"
	"testing"
	"time"

	"google.golang.org/protobuf/encoding/protojson"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/client-go/dynamic/fake"
	"sigs.k8s.io/yaml"

	agentv1 "tendril.io/tendril/api/agent/v1"
)

// twoNodes is a cluster where all is well.
const twoNodes = `
{apiVersion: v1, kind: Node, metadata: {name: n1}}
---
{apiVersion: v1, kind: Node, metadata: {name: n2}}
---
{apiVersion: apps/v1, kind: DaemonSet, metadata: {name: tendril-agent, namespace: kube-system}, status: {desiredNumberScheduled: 2, updatedNumberScheduled: 2}}
---
{apiVersion: apps/v1, kind: Deployment, metadata: {name: tendril-operator, namespace: kube-system}, spec: {replicas: 1}, status: {readyReplicas: 1}}
---
{apiVersion: coordination.k8s.io/v1, kind: Lease, metadata: {name: tendril-operator, namespace: kube-system},
 spec: {holderIdentity: op-1, leaseDurationSeconds: 15, renewTime: "RENEWED"}}
---
{apiVersion: v1, kind: Pod, metadata: {name: a1, namespace: kube-system, labels: {app.kubernetes.io/name: tendril-agent}}, spec: {nodeName: n1},
 status: {containerStatuses: [{name: agent, state: {running: {}}}]}}
---
{apiVersion: v1, kind: Pod, metadata: {name: a2, namespace: kube-system, labels: {app.kubernetes.io/name: tendril-agent}}, spec: {nodeName: n2},
 status: {containerStatuses: [{name: agent, state: {running: {}}}]}}
`

// objectsOf reads manifests as the API server has them.
func objectsOf(t *testing.T, manifests string) (objects []runtime.Object) {
	t.Helper()
	for text := range strings.SplitSeq(manifests, "---\n") {
		object := &unstructured.Unstructured{}
		if err := yaml.Unmarshal([]byte(text), &object.Object); err != nil {
			t.Fatal(err)
		}
		objects = append(objects, object)
	}
	return objects
}

// statusOf is the status of a cluster whose agents answer so, by pod.
func statusOf(t *testing.T, manifests string, answers map[string]*agentv1.StatusResponse) *clusterStatus {
	t.Helper()
	manifests = strings.ReplaceAll(manifests, "RENEWED", time.Now().UTC().Format("2006-01-02T15:04:05.000000Z"))
	c := &cluster{client: fake.NewSimpleDynamicClient(runtime.NewScheme(), objectsOf(t, manifests)...)}
	c.exec = func(_ context.Context, in container, _ ...string) ([]byte, error) {
		answer := answers[in.pod]
		if answer == nil {
			return nil, &statusError{1, "tendril: nobody listens"}
		}
		return protojson.Marshal(answer)
	}
	status, err := c.status(t.Context(), "kube-system")
	if err != nil {
		t.Fatal(err)
	}
	return status
}

func agentAt(revision uint64) *agentv1.StatusResponse {
	return &agentv1.StatusResponse{
		Version: "v1", StoreConnected: true, StoreEpoch: "e1", PolicyRevision: revision, PolicyRevisionWanted: revision, Endpoints: 3,
	}
}

// A cluster is ready when every part is, and else says which part is not, and why.
func TestClusterIsReadyWhenEveryPartIs(t *testing.T) {
	for name, test := range map[string]struct {
		change  [2]string // in the manifests
		answers map[string]*agentv1.StatusResponse
		want    string
	}{
		"all well":               {answers: map[string]*agentv1.StatusResponse{"a1": agentAt(7), "a2": agentAt(7)}},
		"one enforces less":      {answers: map[string]*agentv1.StatusResponse{"a1": agentAt(7), "a2": agentAt(6)}, want: "node n2: policy revision 6 is in force, others know of 7"},
		"one does not answer":    {answers: map[string]*agentv1.StatusResponse{"a1": agentAt(7)}, want: "node n2: tendril: nobody listens"},
		"one has no store":       {answers: map[string]*agentv1.StatusResponse{"a1": agentAt(7), "a2": {PolicyRevision: 7}}, want: "node n2: the store is not connected: does it run, and is its address right?"},
		"one has no pod":         {change: [2]string{"nodeName: n2", "nodeName: n3"}, answers: map[string]*agentv1.StatusResponse{"a1": agentAt(7), "a2": agentAt(7)}, want: "node n2: there is no agent's pod on this node: see `kubectl describe daemonset tendril-agent`"},
		"one cannot be started":  {change: [2]string{"nodeName: n2},\n status: {containerStatuses: [{name: agent, state: {running: {}}}]}", "nodeName: n2},\n status: {containerStatuses: [{name: agent, state: {waiting: {reason: ImagePullBackOff, message: no such image}}}]}"}, answers: map[string]*agentv1.StatusResponse{"a1": agentAt(7)}, want: "node n2: container agent: ImagePullBackOff: no such image"},
		"a node is not ready":    {change: [2]string{"metadata: {name: n2}", "metadata: {name: n2}, status: {conditions: [{type: Ready, status: \"False\", message: disk is full}]}"}, answers: map[string]*agentv1.StatusResponse{"a1": agentAt(7), "a2": agentAt(7)}, want: "node n2: the agent is ready, but Kubernetes says that the node is not: disk is full"},
		"the operator is away":   {change: [2]string{"readyReplicas: 1", "readyReplicas: 0"}, answers: map[string]*agentv1.StatusResponse{"a1": agentAt(7), "a2": agentAt(7)}, want: "operator: 0 of 1 replicas are ready: see `kubectl -n kube-system describe pods -l app.kubernetes.io/name=tendril-operator`"},
		"the lease has run out":  {change: [2]string{"RENEWED", "2020-01-01T00:00:00.000000Z"}, answers: map[string]*agentv1.StatusResponse{"a1": agentAt(7), "a2": agentAt(7)}, want: "operator: nobody leads, op-1 renewed the lease"},
		"no authority yet":       {change: [2]string{"---", "---\n{apiVersion: v1, kind: ConfigMap, metadata: {name: tendril-authority, namespace: kube-system}}\n---"}, answers: map[string]*agentv1.StatusResponse{"a1": agentAt(7), "a2": agentAt(7)}, want: "authority: the operator has put no certificate into ConfigMap tendril-authority yet, and agents wait for it: see `kubectl -n kube-system logs deployment/tendril-operator`"},
		"an update is under way": {change: [2]string{"updatedNumberScheduled: 2", "updatedNumberScheduled: 1"}, answers: map[string]*agentv1.StatusResponse{"a1": agentAt(7), "a2": agentAt(7)}, want: "agents: 1 of 2 pods are of the last configuration of DaemonSet tendril-agent"},
	} {
		t.Run(name, func(t *testing.T) {
			manifests := twoNodes
			if test.change[0] != "" {
				manifests = strings.Replace(twoNodes, test.change[0], test.change[1], 1)
				if manifests == twoNodes {
					t.Fatal("the change changes nothing")
				}
			}
			got := statusOf(t, manifests, test.answers)
			if text := strings.Join(got.Missing, "; "); !strings.HasPrefix(text, test.want) || (test.want == "") != got.Ready || test.want == "" && text != "" {
				t.Errorf("ready %v, missing %q, want %q", got.Ready, text, test.want)
			}
		})
	}
}

// What several nodes say is one problem, with their names; what is of the cluster has none. Of several replicas of the operator the one counts that hears.
func TestClusterScreenNamesProblemsAndWhenTheOperatorHeard(t *testing.T) {
	says := func(silent int64) *agentv1.StatusResponse {
		s := agentAt(7)
		s.ApiServerSilentMs, s.Problems = &silent, []*agentv1.Problem{{Object: "disk", Message: "full", Remedy: "make room"}}
		return s
	}
	manifests := twoNodes + "---\n{apiVersion: v1, kind: ConfigMap, metadata: {name: tendril-authority, namespace: kube-system}, data: {problem: the Secret is torn}}\n"
	status := statusOf(t, manifests, map[string]*agentv1.StatusResponse{"a1": says(90_000), "a2": says(1_500)})
	var screen bytes.Buffer
	if err := showCluster(newView(&screen), status, time.Now(), false); err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{
		", heard from the API server 1.5s ago\n", "problem: disk: full (on n1, n2)\n  make room\n",
		"problem: authority: the Secret is torn\n  the operator goes on with what it had read until then, and one that starts cannot begin\n",
	} {
		if !strings.Contains(screen.String(), want) {
			t.Errorf("want %q in\n%s", want, screen.String())
		}
	}
}
