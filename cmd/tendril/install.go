package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"net/url"
	"time"

	"github.com/spf13/cobra"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"sigs.k8s.io/yaml"

	"tendril.io/tendril/deploy/helm"
)

// installation is what `tendril install` and `tendril uninstall` are asked.
type installation struct {
	kubeconfig string
	namespace  string
	set        []string
	dryRun     bool
	timeout    time.Duration
}

// flags are those of both commands.
func (i *installation) flags(cmd *cobra.Command) {
	flags := cmd.Flags()
	flags.StringVar(&i.kubeconfig, "kubeconfig", "", "file that leads to the API server (default: $KUBECONFIG, else ~/.kube/config)")
	flags.StringVar(&i.namespace, "namespace", "kube-system", "namespace of agents and operator")
	flags.StringArrayVar(&i.set, "set", nil, "set a value of the chart, as in agent.config.mode=vxlan; may be repeated")
	flags.DurationVar(&i.timeout, "timeout", 5*time.Minute, "how long to wait for the cluster")
}

// newInstallCommand puts tendril into a Kubernetes cluster.
func newInstallCommand() *cobra.Command {
	var i installation
	cmd := &cobra.Command{
		Use:     "install",
		GroupID: groupApply,
		Short:   "Install tendril in a Kubernetes cluster, or bring an installation up to date",
		Long: `Install renders the chart of deploy/helm/tendril, which is inside this program, applies it and waits until every node has an agent that is
ready. What the chart has to know of the cluster, and is not set, it asks the API server for: the nodes that an operator runs on (up to three of the
control plane, else the first node), their addresses, and the API server's own.`,
		Example: `  tendril install
  tendril install --set agent.config.mode=vxlan --set cgroup=/sys/fs/cgroup/unified
  tendril install --dry-run | kubectl apply -f -`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error { return i.install(cmd.Context(), cmd.OutOrStdout()) },
	}
	i.flags(cmd)
	cmd.Flags().BoolVar(&i.dryRun, "dry-run", false, "print the manifests and change nothing")
	return cmd
}

// values are the chart's, with what was set and what the cluster says.
func (i *installation) values(ctx context.Context) (helm.Values, *cluster, error) {
	values, err := helm.Defaults()
	if err != nil {
		return nil, nil, err
	}
	if err := i.setIn(values); err != nil {
		return nil, nil, err
	}
	if i.dryRun && isComplete(values) {
		return values, nil, nil
	}
	c, err := dialCluster(i.kubeconfig)
	if err != nil {
		return nil, nil, err
	}
	return values, c, c.fill(ctx, values)
}

// setIn gives the values what the flags say.
func (i *installation) setIn(values helm.Values) error {
	for _, assignment := range i.set {
		if err := values.Set(assignment); err != nil {
			return fmt.Errorf("flag --set: %w", err)
		}
	}
	return nil
}

// isComplete says whether the cluster need not be asked.
func isComplete(values helm.Values) bool {
	return values.Text("apiServer.host") != "" && knowsOperator(values)
}

// knowsOperator says whether the operator's nodes are set.
func knowsOperator(values helm.Values) bool {
	replicas, _, _ := unstructured.NestedSlice(values, "operator", "replicas")
	return len(replicas) > 0 || values.Text("operator.node") != "" && values.Text("operator.address") != ""
}

func (i *installation) install(ctx context.Context, out io.Writer) error {
	ctx, cancel := context.WithTimeout(ctx, i.timeout)
	defer cancel()
	values, c, err := i.values(ctx)
	if err != nil {
		return err
	}
	objects, err := helm.Render(values, i.namespace)
	if err != nil {
		return err
	}
	if i.dryRun {
		return printManifests(out, objects)
	}
	// What it says is no reason to stop: the cluster may have had such policies all along.
	if err := preflight(ctx, c, out); err != nil {
		fmt.Fprintf(out, "warning: %v\n", err)
	}
	for _, object := range objects {
		if err := c.apply(ctx, object); err != nil {
			return err
		}
		fmt.Fprintf(out, "applied %s\n", nameOf(object))
	}
	for _, object := range objects {
		if err := c.awaitRollout(ctx, object); err != nil {
			return err
		}
	}
	fmt.Fprintln(out, "tendril runs on every node")
	return nil
}

func printManifests(out io.Writer, objects []*unstructured.Unstructured) error {
	for _, object := range objects {
		text, err := yaml.Marshal(object.Object)
		if err != nil {
			return err
		}
		if _, err := fmt.Fprintf(out, "---\n%s", text); err != nil {
			return err
		}
	}
	return nil
}

func nameOf(object *unstructured.Unstructured) string {
	return object.GetKind() + " " + object.GetName()
}

// fill asks the cluster for what a value that is not set should be.
func (c *cluster) fill(ctx context.Context, values helm.Values) error {
	if values.Text("apiServer.host") == "" {
		host, port, err := reachable(c.server)
		if err != nil {
			return err
		}
		if err := errors.Join(values.Set("apiServer.host="+host), values.Set("apiServer.port="+port)); err != nil {
			return err
		}
	}
	if knowsOperator(values) {
		return nil
	}
	nodes, err := c.list(ctx, corev1.SchemeGroupVersion.WithKind("Node"), "", metav1.ListOptions{})
	if err != nil {
		return err
	}
	return placeOperators(nodes, values)
}

// placeOperators says which nodes have an operator, and where agents find it.
func placeOperators(nodes []unstructured.Unstructured, values helm.Values) error {
	places := operatorNodes(nodes, values.Text("operator.node"))
	if len(places) == 0 {
		return errors.New("the cluster has no node for the operator: join one, or name one that is there with --set operator.node=NAME")
	}
	if address := values.Text("operator.address"); address != "" { // of one node, which is not among several
		return values.Set("operator.node=" + places[0].GetName())
	}
	type replica struct {
		Node    string `json:"node"`
		Address string `json:"address"`
	}
	var replicas []replica
	for _, node := range places {
		address := internalIP(node)
		if address == "" {
			return fmt.Errorf("node %s has no address yet: set one with --set operator.node=%s --set operator.address=ADDRESS", node.GetName(), node.GetName())
		}
		replicas = append(replicas, replica{node.GetName(), address})
	}
	outside, _, _ := unstructured.NestedSlice(values, "store", "external", "endpoints")
	if len(replicas) == 1 && len(outside) == 0 {
		return errors.Join(values.Set("operator.node="+replicas[0].Node), values.Set("operator.address="+replicas[0].Address))
	}
	text, err := json.Marshal(replicas)
	if err != nil {
		return err
	}
	return values.Set("operator.replicas=" + string(text))
}

// reachable takes the API server's address from the kubeconfig's. Pods on other nodes cannot use one that means this machine.
func reachable(server string) (host, port string, err error) {
	at, err := url.Parse(server)
	if err != nil {
		return "", "", fmt.Errorf("the kubeconfig's server: %w", err)
	}
	host, port = at.Hostname(), at.Port()
	if ip, err := netip.ParseAddr(host); host == "localhost" || err == nil && ip.IsLoopback() {
		return "", "", fmt.Errorf("the kubeconfig's server %s is this machine: give the address that nodes reach it at with --set apiServer.host=ADDRESS", server)
	}
	if port == "" {
		port = "443"
	}
	return host, port, nil
}

// mostOperators is how many operators there are without being asked for: the first may be updated while the second is away.
const mostOperators = 3

// operatorNodes picks the node that is named, else nodes of the control plane, else the first node.
func operatorNodes(nodes []unstructured.Unstructured, name string) (places []*unstructured.Unstructured) {
	for i := range nodes {
		_, control := nodes[i].GetLabels()["node-role.kubernetes.io/control-plane"]
		if nodes[i].GetName() == name || name == "" && control && len(places) < mostOperators {
			places = append(places, &nodes[i])
		}
	}
	if len(places) == 0 && name == "" && len(nodes) > 0 {
		places = append(places, &nodes[0])
	}
	return places
}

// internalIP is the address of a node that other nodes reach it at.
func internalIP(node *unstructured.Unstructured) string {
	addresses, _, _ := unstructured.NestedSlice(node.Object, "status", "addresses")
	for _, entry := range addresses {
		address, _ := entry.(map[string]any)
		if text, _ := address["address"].(string); address["type"] == "InternalIP" && net.ParseIP(text) != nil {
			return text
		}
	}
	return ""
}
