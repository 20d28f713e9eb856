package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"golang.org/x/sync/errgroup"
	"google.golang.org/protobuf/encoding/protojson"
	appsv1 "k8s.io/api/apps/v1"
	coordinationv1 "k8s.io/api/coordination/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	agentv1 "tendril.io/tendril/api/agent/v1"
)

// Names that the chart gives.
const (
	agentName    = "tendril-agent"
	operatorName = "tendril-operator" // of the lease, too
)

// clusterStatus is what is in force in a whole cluster: what the API server says of objects, and what each agent says of itself.
type clusterStatus struct {
	Ready     bool             `json:"ready"`
	Missing   []string         `json:"missing"` // why it is not ready
	Operator  operatorStatus   `json:"operator"`
	Authority *authorityStatus `json:"authority"` // null: there is none
	Agents    agentsStatus     `json:"agents"`
	Nodes     []memberStatus   `json:"nodes"` // by name
	Problems  []problem        `json:"problems"`
}

// operatorStatus is the operator by its Deployment and its lease.
type operatorStatus struct {
	Replicas   int32  `json:"replicas"` // wanted
	Ready      int32  `json:"ready"`
	Leader     string `json:"leader"` // empty: nobody
	RenewedAgo int64  `json:"renewed_seconds_ago"`
	Heard      *int64 `json:"api_server_silent_ms"` // since it last heard from the API server, by the agents; null: none of them knows
	silent     bool   // the lease has run out
}

// agentsStatus sums up what agents say.
type agentsStatus struct {
	Wanted         int      `json:"wanted"` // one a node
	Ready          int      `json:"ready"`
	Connected      int      `json:"store_connected"`
	Enforcing      int      `json:"enforcing"` // the last policy revision that any of them knows of
	PolicyRevision uint64   `json:"policy_revision"`
	Policies       uint32   `json:"policies"`
	Services       uint32   `json:"services"`
	Pods           uint32   `json:"pods"`
	Versions       []string `json:"versions"`
	Modes          []string `json:"modes"`
	Epochs         []string `json:"store_epochs"` // more than one: some have not seen that the store was filled anew
}

// memberStatus is one node.
type memberStatus struct {
	Name            string `json:"name"`
	Pod             string `json:"pod"` // of its agent
	Ready           bool   `json:"ready"`
	Why             string `json:"why"` // it is not ready
	Version         string `json:"version"`
	StoreConnected  bool   `json:"store_connected"`
	PolicyRevision  uint64 `json:"policy_revision"`
	DatapathVersion uint32 `json:"datapath_version"`
	Pods            uint32 `json:"pods"`
	answered        bool
}

// problem is something that a person should act on, and the nodes that say so.
type problem struct {
	Object  string   `json:"object"`
	Message string   `json:"message"`
	Remedy  string   `json:"remedy"`
	Nodes   []string `json:"nodes"`
}

// asksAtOnce is how many agents are asked at the same time: each question is a process in the agent's pod.
const asksAtOnce = 16

// status asks the API server, and through it every agent.
func (c *cluster) status(ctx context.Context, namespace string) (*clusterStatus, error) {
	daemons, err := get[appsv1.DaemonSet](ctx, c, appsv1.SchemeGroupVersion.WithKind("DaemonSet"), namespace, agentName)
	if apierrors.IsNotFound(err) {
		return nil, fmt.Errorf("no agents in namespace %s of this cluster: `tendril install` puts them there, --namespace says where else they are", namespace)
	}
	if err != nil {
		return nil, err
	}
	s := &clusterStatus{Missing: []string{}, Problems: []problem{}} // empty lists, not null, for scripts
	if s.Operator, err = c.operator(ctx, namespace, time.Now()); err != nil {
		return nil, err
	}
	if s.Authority, err = c.authority(ctx, namespace, time.Now()); err != nil {
		return nil, err
	}
	nodes, err := listAs[corev1.Node](ctx, c, corev1.SchemeGroupVersion.WithKind("Node"), "", metav1.ListOptions{})
	if err != nil {
		return nil, err
	}
	pods, err := listAs[corev1.Pod](ctx, c, corev1.SchemeGroupVersion.WithKind("Pod"), namespace, metav1.ListOptions{LabelSelector: "app.kubernetes.io/name=" + agentName})
	if err != nil {
		return nil, err
	}
	if s.Authority != nil && s.Authority.problem != "" {
		s.Problems = append(s.Problems, problem{Object: "authority", Message: s.Authority.problem, Remedy: "the operator goes on with what it had read until then, and one that starts cannot begin", Nodes: []string{}})
	}
	says := c.askAgents(ctx, pods)
	for i := range nodes {
		s.Nodes = append(s.Nodes, newMemberStatus(&nodes[i], podOn(pods, nodes[i].Name), says))
	}
	slices.SortFunc(s.Nodes, func(a, b memberStatus) int { return strings.Compare(a.Name, b.Name) })
	s.sum(says)
	s.judge(daemons)
	return s, nil
}

// operator is its Deployment and its lease. A lease counts as run out only well after its time, since this machine's clock may be another
// than the cluster's.
func (c *cluster) operator(ctx context.Context, namespace string, now time.Time) (o operatorStatus, err error) {
	deployment, err := get[appsv1.Deployment](ctx, c, appsv1.SchemeGroupVersion.WithKind("Deployment"), namespace, operatorName)
	if err != nil {
		return o, err
	}
	o.Replicas, o.Ready = 1, deployment.Status.ReadyReplicas
	if deployment.Spec.Replicas != nil {
		o.Replicas = *deployment.Spec.Replicas
	}
	lease, err := get[coordinationv1.Lease](ctx, c, coordinationv1.SchemeGroupVersion.WithKind("Lease"), namespace, operatorName)
	if apierrors.IsNotFound(err) {
		return o, nil
	}
	if err != nil {
		return o, err
	}
	const skew = 30 * time.Second
	if lease.Spec.HolderIdentity != nil && lease.Spec.RenewTime != nil && lease.Spec.LeaseDurationSeconds != nil {
		o.Leader = *lease.Spec.HolderIdentity
		age := now.Sub(lease.Spec.RenewTime.Time)
		o.RenewedAgo = int64(max(0, age) / time.Second)
		o.silent = age > time.Duration(*lease.Spec.LeaseDurationSeconds)*time.Second+skew
	}
	return o, nil
}

// agentAnswer is what came of the question to one agent.
type agentAnswer struct {
	status *agentv1.StatusResponse
	err    error
}

// askAgents asks the agents whose container runs, in their pods, by the pods' names.
func (c *cluster) askAgents(ctx context.Context, pods []corev1.Pod) map[string]agentAnswer {
	answers := make([]agentAnswer, len(pods))
	var group errgroup.Group
	group.SetLimit(asksAtOnce)
	for i := range pods {
		if whyNotRunning(&pods[i]) != "" {
			continue
		}
		group.Go(func() error {
			answers[i].status, answers[i].err = c.askPod(ctx, &pods[i])
			return nil
		})
	}
	_ = group.Wait() // each answer has its own error
	all := make(map[string]agentAnswer, len(pods))
	for i := range pods {
		all[pods[i].Name] = answers[i]
	}
	return all
}

// askPod has the command line in an agent's pod ask the agent.
func (c *cluster) askPod(ctx context.Context, pod *corev1.Pod) (*agentv1.StatusResponse, error) {
	ctx, cancel := context.WithTimeout(ctx, askTimeout)
	defer cancel()
	text, err := c.inAgent(ctx, pod.Namespace, pod.Name, "status", "-o", "json")
	if err != nil {
		return nil, err
	}
	status := &agentv1.StatusResponse{}
	// An agent of a later version may know more.
	if err := (protojson.UnmarshalOptions{DiscardUnknown: true}).Unmarshal(text, status); err != nil {
		return nil, fmt.Errorf("answer of the agent in pod %s: %w", pod.Name, err)
	}
	return status, nil
}

// inAgent runs the command line in an agent's pod.
func (c *cluster) inAgent(ctx context.Context, namespace, pod string, arguments ...string) ([]byte, error) {
	return c.exec(ctx, container{namespace, pod, "agent"}, append([]string{"/tendril"}, arguments...)...)
}

// podOn is the agent's pod on a node: one that stays before one that is ending.
func podOn(pods []corev1.Pod, node string) *corev1.Pod {
	var found *corev1.Pod
	for i := range pods {
		if pod := &pods[i]; pod.Spec.NodeName == node && (found == nil || pod.DeletionTimestamp == nil) {
			found = pod
		}
	}
	return found
}

func newMemberStatus(node *corev1.Node, pod *corev1.Pod, says map[string]agentAnswer) memberStatus {
	s := memberStatus{Name: node.Name}
	if pod == nil {
		s.Why = "there is no agent's pod on this node: see `kubectl describe daemonset " + agentName + "`"
		return s
	}
	s.Pod = pod.Name
	if s.Why = whyNotRunning(pod); s.Why != "" {
		return s
	}
	answer := says[pod.Name]
	if answer.err != nil {
		s.Why = answer.err.Error()
		return s
	}
	a := answer.status
	s.answered = true
	s.Version, s.StoreConnected, s.Pods = a.GetVersion(), a.GetStoreConnected(), a.GetEndpoints()
	s.PolicyRevision, s.DatapathVersion = a.GetPolicyRevision(), a.GetDatapathVersion()
	if err := notReady(a); err != nil {
		s.Why = err.Error()
		return s
	}
	s.Why = cmp.Or(whyUnready(pod), whyNodeUnready(node))
	s.Ready = s.Why == ""
	return s
}

// whyNotRunning says why the agent's process does not run, or nothing.
func whyNotRunning(pod *corev1.Pod) string {
	for _, c := range slices.Concat(pod.Status.InitContainerStatuses, pod.Status.ContainerStatuses) {
		last := ""
		if t := c.LastTerminationState.Terminated; t != nil {
			last = fmt.Sprintf("; it ended with status %d: see `kubectl -n %s logs -p %s -c %s`", t.ExitCode, pod.Namespace, pod.Name, c.Name)
		}
		switch w, t := c.State.Waiting, c.State.Terminated; {
		case w != nil && (w.Reason != "PodInitializing" || last != ""):
			return strings.TrimSuffix(fmt.Sprintf("container %s: %s: %s", c.Name, w.Reason, w.Message), ": ") + last
		case t != nil && (t.ExitCode != 0 || c.Name == "agent"):
			return fmt.Sprintf("container %s ended with status %d: see `kubectl -n %s logs %s -c %s`", c.Name, t.ExitCode, pod.Namespace, pod.Name, c.Name)
		}
	}
	running := slices.ContainsFunc(pod.Status.ContainerStatuses, func(c corev1.ContainerStatus) bool { return c.State.Running != nil })
	if !running {
		return fmt.Sprintf("its agent's pod %s is being started (%s)", pod.Name, cmp.Or(string(pod.Status.Phase), "unknown"))
	}
	return ""
}

// whyUnready says why a pod that runs is not ready, or nothing.
func whyUnready(pod *corev1.Pod) string {
	if pod.DeletionTimestamp != nil {
		return "its agent's pod " + pod.Name + " is ending"
	}
	for _, condition := range pod.Status.Conditions {
		if condition.Type == corev1.PodReady && condition.Status != corev1.ConditionTrue {
			return strings.TrimSuffix("its agent's pod is not ready: "+condition.Message, ": ")
		}
	}
	return ""
}

// whyNodeUnready says why Kubernetes sends no pods to a node, or nothing.
func whyNodeUnready(node *corev1.Node) string {
	for _, condition := range node.Status.Conditions {
		if condition.Type == corev1.NodeReady && condition.Status != corev1.ConditionTrue {
			return "the agent is ready, but Kubernetes says that the node is not: " + condition.Message
		}
	}
	return ""
}

// sum counts what the agents say.
func (s *clusterStatus) sum(says map[string]agentAnswer) {
	a := &s.Agents
	a.Wanted = len(s.Nodes)
	problems := map[string]*problem{}
	for _, node := range s.Nodes {
		if node.Ready {
			a.Ready++
		}
		status := says[node.Pod].status
		if status == nil {
			continue
		}
		if heard := status.ApiServerSilentMs; heard != nil && (s.Operator.Heard == nil || *heard < *s.Operator.Heard) { // of several replicas one leads
			s.Operator.Heard = heard
		}
		if status.GetStoreConnected() {
			a.Connected++
			a.Epochs = append(a.Epochs, status.GetStoreEpoch())
		}
		a.PolicyRevision = max(a.PolicyRevision, status.GetPolicyRevisionWanted())
		a.Policies, a.Services = max(a.Policies, status.GetPolicies()), max(a.Services, status.GetServices())
		a.Pods += status.GetEndpoints()
		a.Versions, a.Modes = append(a.Versions, status.GetVersion()), append(a.Modes, status.GetMode())
		for _, p := range status.GetProblems() {
			key := p.GetObject() + "\x00" + p.GetMessage()
			if problems[key] == nil {
				problems[key] = &problem{Object: p.GetObject(), Message: p.GetMessage(), Remedy: p.GetRemedy()}
			}
			problems[key].Nodes = append(problems[key].Nodes, node.Name)
		}
	}
	for _, list := range []*[]string{&a.Versions, &a.Modes, &a.Epochs} {
		slices.Sort(*list)
		*list = slices.Compact(*list)
	}
	for _, p := range problems {
		s.Problems = append(s.Problems, *p)
	}
	slices.SortFunc(s.Problems, func(a, b problem) int {
		return cmp.Or(strings.Compare(a.Object, b.Object), strings.Compare(a.Message, b.Message))
	})
}

// judge says what is missing.
func (s *clusterStatus) judge(daemons *appsv1.DaemonSet) {
	missing := func(format string, args ...any) { s.Missing = append(s.Missing, fmt.Sprintf(format, args...)) }
	switch o := s.Operator; {
	case o.Ready < o.Replicas:
		missing("operator: %d of %d replicas are ready: see `kubectl -n %s describe pods -l app.kubernetes.io/name=%s`", o.Ready, o.Replicas, daemons.Namespace, operatorName)
	case o.Leader == "":
		missing("operator: nobody leads, no replica holds the lease %s", operatorName)
	case o.silent:
		missing("operator: nobody leads, %s renewed the lease %s ago", o.Leader, ago(time.Duration(o.RenewedAgo)*time.Second))
	}
	if s.Authority != nil && s.Authority.missing != "" {
		missing("authority: %s", s.Authority.missing)
	}
	if len(s.Nodes) == 0 {
		missing("agents: the cluster has no node")
	}
	for i := range s.Nodes {
		node := &s.Nodes[i]
		// What any agent has seen of the store, all must enforce.
		behind := node.PolicyRevision < s.Agents.PolicyRevision
		if node.answered && !behind {
			s.Agents.Enforcing++
		}
		if node.Ready && behind {
			node.Ready, node.Why = false, fmt.Sprintf("policy revision %d is in force, others know of %d", node.PolicyRevision, s.Agents.PolicyRevision)
			s.Agents.Ready--
		}
		if !node.Ready {
			missing("node %s: %s", node.Name, node.Why)
		}
	}
	if len(s.Agents.Epochs) > 1 {
		missing("store: agents know %d fillings of it, %s", len(s.Agents.Epochs), strings.Join(s.Agents.Epochs, " and "))
	}
	if d := daemons.Status; d.ObservedGeneration < daemons.Generation || d.UpdatedNumberScheduled < d.DesiredNumberScheduled {
		missing("agents: %d of %d pods are of the last configuration of DaemonSet %s", d.UpdatedNumberScheduled, d.DesiredNumberScheduled, agentName)
	}
	s.Ready = len(s.Missing) == 0
}

// lacks is what is missing as an error, or nil.
func (s *clusterStatus) lacks() error {
	switch n := len(s.Missing); {
	case n == 0:
		return nil
	case n > 1:
		return fmt.Errorf("%s (and %d more)", s.Missing[0], n-1)
	}
	return errors.New(s.Missing[0])
}
