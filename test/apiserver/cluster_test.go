package apiserver

import (
	"context"
	"encoding/json"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	authenticationv1 "k8s.io/api/authentication/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/types"

	"tendril.io/tendril/deploy/helm"
	"tendril.io/tendril/internal/lab"
	"tendril.io/tendril/internal/operator"
	"tendril.io/tendril/internal/store"
	"tendril.io/tendril/internal/testkit"
)

// kubernetesVariable names the folder of kube-apiserver.
const kubernetesVariable = "TENDRIL_KUBE"

// binariesVariable names the folder of the binaries, once TestMain has built them, or if somebody else has.
const binariesVariable = "TENDRIL_BIN"

// logLines is how much of a program's output a test shows that failed.
const logLines = 30

// patience is for everything that is waited for. Nothing here is about how long it takes.
const patience = 3 * time.Minute

func TestMain(m *testing.M) { os.Exit(runTests(m)) }

// runTests builds the binaries from this checkout, unless they are there, and takes them away again.
func runTests(m *testing.M) int {
	if os.Getenv(kubernetesVariable) == "" {
		return m.Run() // the test says why it is skipped
	}
	return testkit.WithBinaries(filepath.Join("..", ".."), binariesVariable, m.Run)
}

func binaries() string { return os.Getenv(binariesVariable) }

// cluster is an API server, and the product beside it.
type cluster struct {
	*lab.Lab
	*server
	chart     map[string]*unstructured.Unstructured // by kind/name
	operators map[string]*lab.Process               // by node
	settings  map[string]map[string]any             // of agents, by node
	who       map[string]types.UID                  // objects of identities, by namespace/name, as they were first seen
	leader    string                                // node whose operator leads, as far as the story has come
}

const (
	namespace = "kube-system" // of agents and operator
	agentName = "tendril-agent"
	storeDir  = "store" // of operators' stores, in the server's folder; both nodes have one file system
)

// up starts nodes and an API server that knows them and the chart's objects, and nothing of the product yet.
func up(t *testing.T) *cluster {
	t.Helper()
	if os.Getenv(kubernetesVariable) == "" {
		t.Skipf("%s is not set; `make test` builds kube-apiserver and sets it", kubernetesVariable)
	}
	if os.Geteuid() != 0 {
		t.Skip("needs root: it makes namespaces, cgroups and BPF programs")
	}
	config := lab.Config{Name: fmt.Sprint("kube", os.Getpid()), Nodes: 2, BinDir: binaries(), NoAgents: true}
	t.Cleanup(func() {
		if err := lab.Down(context.Background(), config.Name); err != nil {
			t.Error(err)
		}
		if left := lab.Leftovers(config.Name); len(left) > 0 {
			t.Errorf("after down there is still %v", left)
		}
	})
	l, err := lab.Up(t.Context(), config)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := l.Close(); err != nil {
			t.Error(err)
		}
	})
	c := &cluster{Lab: l, server: startServer(t, l), chart: map[string]*unstructured.Unstructured{}, operators: map[string]*lab.Process{}, settings: map[string]map[string]any{}}
	c.install(t)
	return c
}

// start starts a program and shows the end of what it printed where the test fails.
func start(t *testing.T, l *lab.Lab, place lab.Place, name string, argv ...string) *lab.Process {
	t.Helper()
	process, err := l.Start(place, name, argv...)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if t.Failed() {
			t.Logf("%s:\n%s", name, testkit.LastLines(process.Output(), logLines))
		}
	})
	return process
}

// eventually polls and fails the test where the time runs out.
func eventually(t *testing.T, what string, check func(context.Context) error) {
	t.Helper()
	if err := lab.Wait(t.Context(), what, patience, check); err != nil {
		t.Fatal(err)
	}
}

// nodeAddress is a node's own, as it is in testdata/nodes.yaml.
func (c *cluster) nodeAddress(t *testing.T, node string) string {
	t.Helper()
	object := &unstructured.Unstructured{Object: map[string]any{"apiVersion": "v1", "kind": "Node", "metadata": map[string]any{"name": node}}}
	list, _, _ := unstructured.NestedSlice(c.get(t, object).Object, "status", "addresses")
	return list[0].(map[string]any)["address"].(string)
}

// install applies nodes and chart. Some of the server's own objects are made by it in its first seconds.
func (c *cluster) install(t *testing.T) {
	t.Helper()
	for _, node := range manifests(t, testdata(t, "nodes.yaml")) {
		if err := c.apply(t.Context(), node); err != nil {
			t.Fatal(err)
		}
	}
	values, err := helm.Defaults()
	if err != nil {
		t.Fatal(err)
	}
	for _, assignment := range []string{
		"apiServer.host=" + c.host, "operator.storeDir=" + c.path(storeDir),
		fmt.Sprintf(`operator.replicas=[{node: node1, address: %s}, {node: node2, address: %s}]`, c.nodeAddress(t, "node1"), c.nodeAddress(t, "node2")),
		"operator.nodeGrace=1s", "operator.identityGrace=5s", "operator.authoritySpread=10s", `operator.podPools=["default=10.244.0.0/16:24,fd44::/48:64", "other=10.245.0.0/16:25"]`,
		"agent.config.alive_lease_seconds=10",
	} {
		if err := values.Set(assignment); err != nil {
			t.Fatal(err)
		}
	}
	objects, err := helm.Render(values, namespace)
	if err != nil {
		t.Fatal(err)
	}
	for _, object := range objects {
		c.chart[object.GetKind()+"/"+object.GetName()] = object
		c.mustApply(t, object)
	}
}

func testdata(t *testing.T, name string) []byte {
	t.Helper()
	text, err := os.ReadFile(filepath.Join("testdata", name))
	if err != nil {
		t.Fatal(err)
	}
	return text
}

// template is the pod that a workload of the chart would make.
func (c *cluster) template(t *testing.T, kind, name string) map[string]any {
	t.Helper()
	template, _, err := unstructured.NestedMap(c.chart[kind+"/"+name].Object, "spec", "template")
	if err != nil || template == nil {
		t.Fatalf("%s %s has no template: %v", kind, name, err)
	}
	return template
}

// startOperator starts a replica on a node, with the arguments that the chart gives it and the rights of its account.
func (c *cluster) startOperator(t *testing.T, node, replica string) {
	t.Helper()
	containers, _, _ := unstructured.NestedSlice(c.template(t, "Deployment", operator.LeaseName), "spec", "containers")
	argv := []string{filepath.Join(binaries(), "tendril-operator"), "--kubeconfig", c.kubeconfig(t, namespace, "tendril-operator")}
	known := strings.NewReplacer("$(POD_NAME)", replica, "$(HOST_ADDRESS)", c.nodeAddress(t, node), c.path(storeDir), c.storeOf(node))
	for _, argument := range containers[0].(map[string]any)["args"].([]any) {
		argv = append(argv, known.Replace(argument.(string)))
	}
	place, err := c.Node(node)
	if err != nil {
		t.Fatal(err)
	}
	c.operators[node] = start(t, c.Lab, place, replica, argv...)
}

// storeOf is the folder of the store of a node's operator.
func (c *cluster) storeOf(node string) string { return c.path(storeDir + "-" + node) }

// endOperator ends a node's in order, as kubelet does, or at once.
func (c *cluster) endOperator(t *testing.T, node string, signal syscall.Signal) {
	t.Helper()
	if err := c.operators[node].Signal(signal); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	if status, err := c.operators[node].Wait(ctx); err != nil || status != 0 && signal == syscall.SIGTERM {
		t.Errorf("the operator of %s ended with status %d, %v", node, status, err)
	}
}

// startAgent makes the agent's pod on a node and starts the agent, with the chart's configuration and a token of that pod. Only where things are on this
// machine is the lab's word.
func (c *cluster) startAgent(t *testing.T, node string) {
	t.Helper()
	template := c.template(t, "DaemonSet", agentName)
	pod := &unstructured.Unstructured{Object: map[string]any{"apiVersion": "v1", "kind": "Pod", "metadata": template["metadata"], "spec": template["spec"]}}
	pod.SetNamespace(namespace)
	pod.SetName(agentName + "-" + node)
	_ = unstructured.SetNestedField(pod.Object, node, "spec", "nodeName")
	if err := c.apply(t.Context(), pod); err != nil {
		t.Fatal(err)
	}
	seconds := int64(3600)
	token, err := c.typed.CoreV1().ServiceAccounts(namespace).CreateToken(t.Context(), agentName, &authenticationv1.TokenRequest{
		Spec: authenticationv1.TokenRequestSpec{
			Audiences: []string{operator.TokenAudience}, ExpirationSeconds: &seconds,
			BoundObjectRef: &authenticationv1.BoundObjectReference{APIVersion: "v1", Kind: "Pod", Name: pod.GetName(), UID: c.get(t, pod).GetUID()},
		},
	}, metav1.CreateOptions{})
	if err != nil {
		t.Fatal(err)
	}
	c.write(t, node+".token", token.Status.Token)
	c.write(t, "ca.crt", c.authority(t))
	settings := map[string]any{}
	config, _, _ := unstructured.NestedString(c.chart["ConfigMap/tendril"].Object, "data", "agent.json")
	if err := json.Unmarshal([]byte(config), &settings); err != nil {
		t.Fatal(err)
	}
	for _, place := range []string{"cgroup", "cni_bin_dir", "cni_conf_dir"} {
		delete(settings, place)
	}
	settings["store_token"], settings["store_ca"], settings["pod_cidrs"] = c.path(node+".token"), c.path("ca.crt"), nil
	c.settings[node] = settings
	if err := c.StartAgentWith(t.Context(), node, settings); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if t.Failed() {
			t.Logf("agent of %s:\n%s", node, testkit.LastLines(c.AgentLog(node), logLines))
		}
	})
}

// authority is the certificate that kubelet would mount for agents, once the operator has made it.
func (c *cluster) authority(t *testing.T) (certificate string) {
	t.Helper()
	eventually(t, "the authority's certificate", func(ctx context.Context) error {
		held, err := c.typed.CoreV1().ConfigMaps(namespace).Get(ctx, "tendril-authority", metav1.GetOptions{})
		if err != nil {
			return err
		}
		if certificate = held.Data["ca.crt"]; certificate == "" {
			return fmt.Errorf("the ConfigMap is empty")
		}
		return nil
	})
	return certificate
}

// stored lists what the store has of a kind, by key, past all certificates.
func (c *cluster) stored(ctx context.Context, kind store.Kind) (map[string]store.Record, error) {
	writer, err := store.NewWriter(store.WriterConfig{Endpoints: []string{"unix://" + filepath.Join(c.storeOf(c.leader), "store.sock")}, Cluster: lab.Cluster})
	if err != nil {
		return nil, err
	}
	defer writer.Close()
	records, err := writer.List(ctx, kind)
	byKey := map[string]store.Record{}
	for _, record := range records {
		byKey[record.Key] = record
	}
	return byKey, err
}

// isFrom says whether somebody at an address asked.
func isFrom(r request, address string) bool {
	for _, source := range r.SourceIPs {
		if net.ParseIP(source).Equal(net.ParseIP(address)) {
			return true
		}
	}
	return false
}
