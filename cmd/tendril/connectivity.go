package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"text/template"
	"time"

	"github.com/spf13/cobra"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"sigs.k8s.io/yaml"
)

// connectivity is what `tendril connectivity test` is asked, and what it finds.
type connectivity struct {
	*app
	kubeconfig string
	agents     string // their namespace
	image      string
	timeout    time.Duration
	within     time.Duration // what was just made is in force

	cluster *cluster
	nodes   []string               // at most two, each with an agent
	pods    map[string]*corev1.Pod // by name
	service *corev1.Service        // before the servers
	agent   map[string]string      // pod of each node's agent
	told    func(checkResult)      // each result as it comes
	results []checkResult
}

// Names of what a test makes.
const (
	testNamespace = "tendril-connectivity-test"
	testLabel     = "app.kubernetes.io/part-of" // of the namespace, whose name it has
	testPort      = 8080
)

// newConnectivityCommand proves a cluster with pods of its own.
func newConnectivityCommand(a *app) *cobra.Command {
	c := &connectivity{app: a}
	test := &cobra.Command{
		Use:   "test",
		Short: "Prove that a Kubernetes cluster is connected, with pods of its own",
		Long: `Prove that a Kubernetes cluster is connected: pods on two nodes, and processes of a node, ask each other, a Service at its addresses, at node
ports and by its name; then policies must let through and keep out what they say. Where one node alone has an agent that is ready, what needs two is
skipped, and said to be. The pods run the agents' own image and are in
the namespace ` + testNamespace + `, which is deleted at the end, also after an interruption. Each check is shown as it is made. Of one that fails the
agents of both nodes are asked what they dropped. The exit status is 1 if one failed.`,
		Example: `  tendril connectivity test
  tendril connectivity test --kubeconfig admin.kubeconfig -o json`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error { return c.run(cmd) },
	}
	flags := test.Flags()
	flags.StringVar(&c.kubeconfig, "kubeconfig", "", "file that leads to the API server (default: $KUBECONFIG, else ~/.kube/config)")
	flags.StringVar(&c.agents, "namespace", "kube-system", "namespace of agents and operator")
	flags.StringVar(&c.image, "image", "", "image of the pods, with /tendril in it (default: the agents')")
	flags.DurationVar(&c.timeout, "timeout", 2*time.Minute, "how long pods may take to start, and to go")
	flags.DurationVar(&c.within, "within", 10*time.Second, "how long what the test has just made may take to be in force")
	command := holder("connectivity", "Prove that a Kubernetes cluster is connected", test)
	command.GroupID = groupSee
	return command
}

func (c *connectivity) run(cmd *cobra.Command) (err error) {
	ctx := cmd.Context()
	if c.cluster, err = dialCluster(c.kubeconfig); err != nil {
		return err
	}
	if err := c.look(ctx); err != nil {
		return err
	}
	c.told = c.teller(cmd.OutOrStdout())
	told := newProgress(cmd.ErrOrStderr())
	if err := c.removeLeftovers(ctx); err != nil {
		return err
	}
	defer func() {
		told.end()
		err = errors.Join(err, c.removeNamespace(context.WithoutCancel(ctx)))
	}()
	told.say("pods on " + strings.Join(c.nodes, " and "))
	if err := c.start(ctx); err != nil {
		return err
	}
	told.end()
	if err := c.checkAll(ctx); err != nil {
		return err
	}
	if c.json() {
		if err := printJSON(cmd.OutOrStdout(), c.results); err != nil {
			return err
		}
	}
	return c.sum(cmd.OutOrStdout())
}

// sum says what came of all checks that were made.
func (c *connectivity) sum(out io.Writer) error {
	made, failed := 0, 0
	for _, result := range c.results {
		if result.Skipped != "" {
			continue
		}
		made++
		if !result.OK {
			failed++
		}
	}
	if failed > 0 {
		return fmt.Errorf("%d of %d checks failed", failed, made)
	}
	if !c.json() {
		fmt.Fprintf(out, "all %d checks passed", made)
		if made < len(c.results) {
			fmt.Fprint(out, ", and what needs two nodes was skipped")
		}
		fmt.Fprintln(out)
	}
	return nil
}

// look finds the agents, their image, and two nodes that have one.
func (c *connectivity) look(ctx context.Context) error {
	status, err := c.cluster.status(ctx, c.agents)
	if err != nil {
		return err
	}
	c.agent = map[string]string{}
	for _, node := range status.Nodes {
		if node.Ready && len(c.nodes) < 2 {
			c.nodes = append(c.nodes, node.Name)
			c.agent[node.Name] = node.Pod
		}
	}
	if len(c.nodes) == 0 {
		return fmt.Errorf("no node has an agent that is ready: %w; see `tendril status --cluster`", status.lacks())
	}
	if c.image == "" {
		pod, err := get[corev1.Pod](ctx, c.cluster, corev1.SchemeGroupVersion.WithKind("Pod"), c.agents, c.agent[c.nodes[0]])
		if err != nil {
			return err
		}
		c.image = pod.Spec.Containers[slices.IndexFunc(pod.Spec.Containers, func(one corev1.Container) bool { return one.Name == "agent" })].Image
	}
	return nil
}

// removeLeftovers takes away what a test left that could not, and nothing that somebody else made.
func (c *connectivity) removeLeftovers(ctx context.Context) error {
	there, err := get[corev1.Namespace](ctx, c.cluster, corev1.SchemeGroupVersion.WithKind("Namespace"), "", testNamespace)
	if apierrors.IsNotFound(err) {
		return nil
	}
	if err != nil {
		return err
	}
	if there.Labels[testLabel] != testNamespace {
		return fmt.Errorf("namespace %s: it is not of a connectivity test, its label %s is %q: delete or rename it", testNamespace, testLabel, there.Labels[testLabel])
	}
	return c.removeNamespace(ctx)
}

// removeNamespace takes all away that a test makes.
func (c *connectivity) removeNamespace(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, c.timeout)
	defer cancel()
	namespace := &unstructured.Unstructured{}
	namespace.SetAPIVersion("v1")
	namespace.SetKind("Namespace")
	namespace.SetName(testNamespace)
	return c.cluster.remove(ctx, namespace)
}

// testObjects are the pods and the service. They tolerate all that a node may be tainted with, since the test is of nodes.
var testObjects = template.Must(template.New("").Parse(`apiVersion: v1
kind: Namespace
metadata: {name: {{.Namespace}}, labels: { {{.Label}}: {{.Namespace}}, pod-security.kubernetes.io/enforce: privileged}}
---
apiVersion: v1
kind: Service
metadata: {name: server, namespace: {{.Namespace}}}
spec: {type: NodePort, ipFamilyPolicy: PreferDualStack, selector: {role: server}, ports: [{port: 80, targetPort: {{.Port}}}]}
{{- range .Pods}}
---
apiVersion: v1
kind: Pod
metadata: {name: {{.Name}}, namespace: {{$.Namespace}}, labels: {role: {{.Role}}}}
spec:
  nodeName: {{.Node}}
  hostNetwork: {{.Host}}
  automountServiceAccountToken: false
  enableServiceLinks: false
  terminationGracePeriodSeconds: 0
  tolerations: [{operator: Exists}]
  containers:
  - name: probe
    image: {{$.Image}}
    command: [/tendril, probe, serve, {{.Name}}, "--listen={{if .Host}}127.0.0.1{{end}}:{{if .Host}}0{{else}}{{$.Port}}{{end}}"]
    securityContext: {allowPrivilegeEscalation: false, readOnlyRootFilesystem: true, runAsNonRoot: true, runAsUser: 65532, capabilities: {drop: [ALL]}}
{{- end}}
`))

// testPod is one pod of a test.
type testPod struct {
	Name, Role, Node string
	Host             bool
}

// start makes everything and waits until it runs.
func (c *connectivity) start(ctx context.Context) error {
	var pods []testPod
	for i, node := range c.nodes {
		for _, role := range []string{"server", "client", "other", "stranger", "host"} {
			pods = append(pods, testPod{fmt.Sprintf("%s-%d", role, i+1), role, node, role == "host"})
		}
	}
	if err := c.apply(ctx, testObjects, map[string]any{"Pods": pods, "Image": c.image}); err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, c.timeout)
	defer cancel()
	c.pods = map[string]*corev1.Pod{}
	var err error
	for _, pod := range pods {
		if c.pods[pod.Name], err = c.awaitPod(ctx, pod.Name); err != nil {
			return err
		}
	}
	c.service, err = get[corev1.Service](ctx, c.cluster, corev1.SchemeGroupVersion.WithKind("Service"), testNamespace, "server")
	return err
}

// awaitPod waits until a pod runs and has its addresses.
func (c *connectivity) awaitPod(ctx context.Context, name string) (*corev1.Pod, error) {
	for {
		pod, err := get[corev1.Pod](ctx, c.cluster, corev1.SchemeGroupVersion.WithKind("Pod"), testNamespace, name)
		if err != nil {
			return nil, err
		}
		why := whyNotRunning(pod)
		if why == "" && len(pod.Status.PodIPs) > 0 {
			return pod, nil
		}
		if err := pause(ctx); err != nil {
			return nil, fmt.Errorf("pod %s on node %s: %s: %w: see `kubectl -n %s describe pod %s`", name, pod.Spec.NodeName, why, err, testNamespace, name)
		}
	}
}

// apply makes the objects of a template.
func (c *connectivity) apply(ctx context.Context, from *template.Template, with map[string]any) error {
	with["Namespace"], with["Label"], with["Port"] = testNamespace, testLabel, testPort
	var text bytes.Buffer
	if err := from.Execute(&text, with); err != nil {
		return err
	}
	for document := range strings.SplitSeq(text.String(), "\n---\n") {
		object := &unstructured.Unstructured{}
		if err := yaml.Unmarshal([]byte(document), &object.Object); err != nil {
			return err
		}
		if err := c.cluster.apply(ctx, object); err != nil {
			return err
		}
	}
	return nil
}

// teller shows each result as it comes; JSON waits for all.
func (c *connectivity) teller(out io.Writer) func(checkResult) {
	v := newView(out)
	return func(r checkResult) {
		if c.json() {
			return
		}
		state := v.right.Render("ok    ")
		switch {
		case r.Skipped != "":
			v.line("skip   %s: %s", r.Check, r.Skipped)
			return
		case !r.OK:
			state = v.wrong.Render("FAILED")
		}
		v.line("%s %s", state, r.Check)
		if !r.OK {
			v.line("       %s", r.Why)
			for _, line := range r.Drops {
				v.line("       %s", line)
			}
		}
	}
}
