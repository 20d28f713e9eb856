package apiserver

import (
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"

	storev1 "tendril.io/tendril/api/store/v1"
	"tendril.io/tendril/internal/operator"
	"tendril.io/tendril/internal/store"
)

var update = flag.Bool("update", false, "write what agents know to testdata/tables.txt")

// One cluster is told from its first object to its last. Each step needs those before it.
func TestOneClusterFromItsFirstObjectToItsLast(t *testing.T) {
	c := up(t)
	objects := append(manifests(t, testdata(t, "objects.yaml")), examples(t)...)
	steps := []struct {
		name string
		do   func(*testing.T)
	}{
		{"the operator gives nodes their pods' prefixes and agents their certificates", func(t *testing.T) { c.begin(t) }},
		{"what users apply is in the agents' tables", func(t *testing.T) { c.applied(t, objects) }},
		{"policies reach agents as their authors wrote them", func(t *testing.T) { c.policiesWhole(t, objects) }},
		{"the status of services and policies says what came of them", func(t *testing.T) { c.statuses(t, objects) }},
		{"preflight reads every policy, and names what cannot be honoured", func(t *testing.T) { c.preflight(t, objects) }},
		{"kubectl get shows what the definitions promise", func(t *testing.T) { c.printed(t) }},
		{"pods' identities are there to read, under the names that agents know", func(t *testing.T) { c.identified(t) }},
		{"the server refuses objects by our definitions", func(t *testing.T) { c.refused(t) }},
		{"a change of labels arrives", func(t *testing.T) { c.changed(t, objects) }},
		{"another operator leads at once, and finds what happened meanwhile", func(t *testing.T) { c.led(t) }},
		{"a leader is killed, and the operator of another node fills a store of its own", func(t *testing.T) { c.killed(t) }},
		{"identities are still those of pods, and none was made anew", func(t *testing.T) { c.identifiedStill(t) }},
		{"a leader goes on without the server, also for an agent that starts", func(t *testing.T) { c.serverAway(t) }},
		{"the way to the server swallows everything, and a leader finds out and comes back by itself", func(t *testing.T) { c.wayAway(t) }},
		{"the authority is replaced, and no agent is cut off", func(t *testing.T) { c.authorityReplaced(t) }},
		{"what is deleted leaves nothing", func(t *testing.T) { c.deleted(t, objects) }},
		{"identities go with the last pod", func(t *testing.T) { c.unidentified(t) }},
		{"a node that is gone is forgotten", func(t *testing.T) { c.departed(t) }},
		{"agents asked the server for nothing, and the operator for nothing that is not its right", func(t *testing.T) { c.asked(t) }},
	}
	for _, step := range steps {
		if !t.Run(step.name, step.do) {
			return
		}
	}
}

// examples are those of the folder that users try, each in its shipped form.
func examples(t *testing.T) (objects []*unstructured.Unstructured) {
	t.Helper()
	for _, pattern := range []string{"*.yaml", "policy/*.yaml"} {
		paths, err := filepath.Glob(filepath.Join("..", "..", "examples", pattern))
		if err != nil || len(paths) == 0 {
			t.Fatalf("examples %s: %v", pattern, err)
		}
		for _, path := range paths {
			text, err := os.ReadFile(path)
			if err != nil {
				t.Fatal(err)
			}
			objects = append(objects, manifests(t, text)...)
		}
	}
	return objects
}

func (c *cluster) begin(t *testing.T) {
	c.startOperator(t, "node1", "operator-1")
	c.leader = "node1"
	want := map[string]string{"node1": "10.244.0.0/24 fd44::/64", "node2": "10.244.1.0/24 fd44:0:0:1::/64", "other": "10.245.0.0/25"}
	eventually(t, "pod CIDRs of all nodes", func(ctx context.Context) error {
		nodes, err := c.typed.CoreV1().Nodes().List(ctx, metav1.ListOptions{})
		if err != nil {
			return err
		}
		got := map[string]string{}
		for _, node := range nodes.Items {
			got[node.Name] = strings.Join(node.Spec.PodCIDRs, " ")
		}
		return differ(cmp.Diff(want, got))
	})
	for _, node := range c.NodeNames() {
		c.startAgent(t, node)
	}
}

// differ is an error if there is a difference.
func differ(diff string) error {
	if diff == "" {
		return nil
	}
	return fmt.Errorf("(-want +got):\n%s", diff)
}

// applied compares all that the agent of node2 has from the store with what was written down.
func (c *cluster) applied(t *testing.T, objects []*unstructured.Unstructured) {
	for _, object := range objects {
		c.mustApply(t, object)
	}
	golden := filepath.Join("testdata", "tables.txt")
	if *update {
		if err := os.WriteFile(golden, []byte(c.settled(t)), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want := strings.Split(string(testdata(t, "tables.txt")), "\n")
	eventually(t, "agents to know it all", func(ctx context.Context) error {
		got, err := c.tables(ctx)
		if err != nil {
			return err
		}
		return differ(cmp.Diff(want, strings.Split(got, "\n")))
	})
}

// settled prints the tables once they have been the same for some seconds, which is for people who then read what they update.
func (c *cluster) settled(t *testing.T) string {
	before := ""
	for {
		now, err := c.tables(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		if now == before {
			return now
		}
		before = now
		time.Sleep(5 * time.Second)
	}
}

func isPolicy(object *unstructured.Unstructured) bool {
	return strings.HasSuffix(object.GetKind(), "Policy")
}

// What differs from run to run: uids, a node port that the server chose, and revisions and sizes of policies.
var (
	chosen     = regexp.MustCompile(`(edge .*<-)\d+`)
	uid        = regexp.MustCompile(`[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}`)
	ofPolicies = regexp.MustCompile(`(?m)^(\S+Policy +\S+ +\S+) .*$`)
	blanks     = regexp.MustCompile(`  +`)
)

// tables prints what the agent of node2 has of what the operator writes.
func (c *cluster) tables(ctx context.Context) (string, error) {
	var all strings.Builder
	for _, table := range []string{"nodelabels", "namespaces", "pods", "labelsets", "services", "backends", "cidrgroups", "egressgateways", "policies"} {
		text, err := c.CLI(ctx, "--node", "node2", "db", "show", table)
		if err != nil {
			return "", err
		}
		text = ofPolicies.ReplaceAllString(uid.ReplaceAllString(chosen.ReplaceAllString(text, "${1}PORT"), "UID"), "$1")
		fmt.Fprintf(&all, "-- %s --\n%s", table, blanks.ReplaceAllString(text, "  "))
	}
	return all.String(), nil
}

// shows wants parts of the tables' text to be there, or not.
func (c *cluster) shows(ctx context.Context, parts map[string]bool) error {
	text, err := c.tables(ctx)
	if err != nil {
		return err
	}
	for part, want := range parts {
		if got := strings.Contains(text, part); got != want {
			return fmt.Errorf("%q in the tables: got %t, want %t", part, got, want)
		}
	}
	return nil
}

// policiesWhole compares the records of policies with what the server says of the objects, who says more than their authors did.
func (c *cluster) policiesWhole(t *testing.T, objects []*unstructured.Unstructured) {
	records, err := c.stored(t.Context(), store.KindPolicy)
	if err != nil {
		t.Fatal(err)
	}
	seen := map[string]bool{}
	for _, object := range objects {
		if !isPolicy(object) {
			continue
		}
		seen[object.GetKind()] = true
		key := store.PolicyKey(object.GetKind(), object.GetNamespace(), object.GetName()).String()
		record, ok := records[key].Value.(*storev1.Policy)
		var got map[string]any
		if !ok || json.Unmarshal(record.Object, &got) != nil {
			t.Errorf("%s: no such record", key)
			continue
		}
		if diff := cmp.Diff(asJSON(t, c.get(t, object).Object["spec"]), asJSON(t, got["spec"])); diff != "" {
			t.Errorf("%s (-server +store):\n%s", key, diff)
		}
	}
	if len(seen) != 6 {
		t.Errorf("policies of %d kinds, want all six: %v", len(seen), seen)
	}
}

func asJSON(t *testing.T, value any) string {
	t.Helper()
	text, err := json.MarshalIndent(value, "", " ")
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}

func (c *cluster) statuses(t *testing.T, objects []*unstructured.Unstructured) {
	eventually(t, "addresses of the service of type LoadBalancer in its status", func(ctx context.Context) error {
		service, err := c.typed.CoreV1().Services("shop").Get(ctx, "edge", metav1.GetOptions{})
		if err != nil {
			return err
		}
		var got []string
		for _, ingress := range service.Status.LoadBalancer.Ingress {
			got = append(got, ingress.IP)
		}
		return differ(cmp.Diff([]string{"172.30.0.241", "fd30::f1"}, got))
	})
	for _, object := range objects {
		if !isPolicy(object) || object.GetKind() == "NetworkPolicy" { // whose API has no status
			continue
		}
		eventually(t, nameOf(object)+" to be in force on all nodes, by its status", func(context.Context) error {
			conditions, _, _ := unstructured.NestedSlice(c.get(t, object).Object, "status", "conditions")
			for _, condition := range conditions {
				if fields := condition.(map[string]any); fields["type"] == "tendril.io/Enforced" && fields["status"] == "True" {
					return nil
				}
			}
			return fmt.Errorf("conditions %v", conditions)
		})
	}
}

// preflight asks the command line as an administrator would before an update, of objects with all that the server adds to them.
func (c *cluster) preflight(t *testing.T, objects []*unstructured.Unstructured) {
	kubeconfig := c.writeKubeconfig(t, "admin", adminToken)
	ask := func() (string, error) { // on no node: those are not to ask the server
		return c.Control().Exec(t.Context(), filepath.Join(binaries(), "tendril"), "preflight", "--kubeconfig", kubeconfig)
	}
	policies := map[string]bool{}
	for _, object := range objects {
		if isPolicy(object) {
			policies[nameOf(object)] = true
		}
	}
	out, err := ask()
	if want := fmt.Sprintf("all %d policies can be honoured\n", len(policies)); err != nil || out != want {
		t.Errorf("preflight says %q, %v; want %q", out, err, want)
	}
	wrong := manifests(t, []byte(`{apiVersion: cilium.io/v2, kind: CiliumNetworkPolicy, metadata: {name: wrong, namespace: default},
spec: {endpointSelector: {}, ingress: [{fromEntities: [cluster], authentication: {mode: required}}]}}`))[0]
	c.mustApply(t, wrong)
	defer c.remove(t, wrong)
	out, err = ask()
	for _, want := range []string{"CiliumNetworkPolicy/default/wrong: ", "spec.ingress[0].authentication.mode", "every pod of namespace default"} {
		if err == nil || !strings.Contains(out, want) || strings.Contains(out, "shop") {
			t.Errorf("preflight says %q, %v; want %q and no other policy", out, err, want)
		}
	}
}

func (c *cluster) printed(t *testing.T) {
	for path, want := range map[string][]string{
		"/apis/tendril.io/v1alpha1/loadbalancerpools/edge": {
			"Name=edge", `CIDRs=["172.30.0.240/28","fd30::f0/124"]`, "Services=", `Namespaces={"matchLabels":{"kubernetes.io/metadata.name":"shop"}}`, "Age"},
		"/apis/tendril.io/v1alpha1/egressgateways/partners": {
			"Name=partners", `Destinations=["198.51.100.0/24","2001:db8:100::/64"]`, `Pods={"matchLabels":{"app":"client"}}`, "Age"},
		"/apis/cilium.io/v2/namespaces/shop/ciliumnetworkpolicies/web-guard": {"Name=web-guard", "Enforced=True", "Age"},
	} {
		header, cells := c.columns(t, path)
		var got []string
		for i, name := range header {
			if name != "Age" {
				name += "=" + strings.TrimPrefix(cells[i], "<nil>")
			}
			got = append(got, name)
		}
		if diff := cmp.Diff(want, got); diff != "" {
			t.Errorf("%s (-want +got):\n%s", path, diff)
		}
	}
}

func (c *cluster) refused(t *testing.T) {
	for _, object := range manifests(t, testdata(t, "refused.yaml")) {
		want := object.GetAnnotations()["want"]
		if err := c.apply(t.Context(), object); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: got %v, want %q", nameOf(object), err, want)
		}
	}
}

// changed has a namespace and a pod labelled anew: the store learns the namespace's labels, and another set of labels in place of the pod's.
func (c *cluster) changed(t *testing.T, objects []*unstructured.Unstructured) {
	for name, label := range map[string][2]string{"Namespace shop": {"tenant", "bank"}, "Pod client": {"app", "buyer"}} {
		i := slices.IndexFunc(objects, func(object *unstructured.Unstructured) bool { return nameOf(object) == name })
		object := objects[i].DeepCopy()
		object.SetLabels(map[string]string{label[0]: label[1]})
		c.mustApply(t, object)
	}
	eventually(t, "agents to know the new labels, and the old no more", func(ctx context.Context) error {
		return c.shows(ctx, map[string]bool{"tenant=bank": true, "default  app=buyer": true, "tenant=shop": false, "default  app=client": false})
	})
}

// holder is the replica that has the lease.
func (c *cluster) holder(ctx context.Context) string {
	lease, err := c.typed.CoordinationV1().Leases(namespace).Get(ctx, operator.LeaseName, metav1.GetOptions{})
	if err != nil || lease.Spec.HolderIdentity == nil {
		return fmt.Sprint("nobody: ", err)
	}
	return *lease.Spec.HolderIdentity
}

func (c *cluster) led(t *testing.T) {
	if got := c.holder(t.Context()); got != "operator-1" {
		t.Errorf("the lease is of %q, want operator-1", got)
	}
	c.endOperator(t, "node1", syscall.SIGTERM)
	if got := c.holder(t.Context()); got != "" {
		t.Errorf("operator-1 has ended in order and the lease is of %q, want nobody", got)
	}
	pod := manifests(t, []byte("{apiVersion: v1, kind: Pod, metadata: {name: web-2, namespace: shop}}"))[0]
	c.remove(t, pod)
	c.startOperator(t, "node1", "operator-2")
	eventually(t, "the pod to be gone that was deleted while nobody led", func(ctx context.Context) error {
		return c.shows(ctx, map[string]bool{"web-2  UID": false})
	})
	if got := c.holder(t.Context()); got != "operator-2" {
		t.Errorf("the lease is of %q, want operator-2", got)
	}
}

// epoch is the filling of the store that a node's agent follows.
func (c *cluster) epoch(ctx context.Context, node string) (string, error) {
	status, err := c.Status(ctx, node)
	if err == nil && !status.StoreConnected {
		err = fmt.Errorf("the agent of %s has no store", node)
	}
	return status.GetStoreEpoch(), err
}

// known is what the agent of node2 knows, and of which filling of a store.
func (c *cluster) known(t *testing.T) (tables, epoch string) {
	t.Helper()
	tables, err := c.tables(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if epoch, err = c.epoch(t.Context(), "node2"); err != nil {
		t.Fatal(err)
	}
	return tables, epoch
}

// killed has the leader killed. Agents have all that they had until the next leader's store is full, and what has changed by then.
func (c *cluster) killed(t *testing.T) {
	before, epoch := c.known(t)
	c.startOperator(t, "node2", "operator-3")
	c.endOperator(t, "node1", syscall.SIGKILL)
	c.leader = "node2"
	const pod = "{apiVersion: v1, kind: Pod, metadata: {name: fresh, namespace: shop, labels: {app: fresh}}, spec: {nodeName: node1, containers: [{name: c, image: i}]}}"
	c.mustApply(t, manifests(t, []byte(pod))[0])
	whole := strings.Split(before, "\n")
	eventually(t, "agents to follow the next leader, and to know what has changed", func(ctx context.Context) error {
		text, err := c.tables(ctx)
		if err != nil {
			return err
		}
		for _, line := range whole { // at every time of it
			if !strings.Contains(text, line) {
				t.Fatalf("lost on the way to the next leader: %s", line)
			}
		}
		for _, node := range c.NodeNames() {
			if now, err := c.epoch(ctx, node); err != nil || now == epoch {
				return fmt.Errorf("%s is at epoch %s, and was: %w", node, now, err)
			}
		}
		return c.shows(ctx, map[string]bool{"app=fresh": true})
	})
	if got := c.holder(t.Context()); got != "operator-3" {
		t.Errorf("the lease is of %q, want operator-3", got)
	}
	eventually(t, "agents to put back what is theirs", func(ctx context.Context) error {
		for _, kind := range []store.Kind{store.KindNode, store.KindAck, store.KindAlive} {
			records, err := c.stored(ctx, kind)
			if err == nil && len(records) != 2 {
				err = fmt.Errorf("%d records of %s, want 2", len(records), kind)
			}
			if err != nil {
				return err
			}
		}
		return nil
	})
}

// serverAway has nobody renew the lease for longer than it lasts.
func (c *cluster) serverAway(t *testing.T) {
	c.startOperator(t, "node1", "operator-4")
	before, epoch := c.known(t)
	back := c.pause(t)
	time.Sleep(20 * time.Second) // longer than the lease, and than client-go's elector would go on
	if err := c.KillAgent(t.Context(), "node2", syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	if err := os.Remove(filepath.Join(filepath.Dir(c.AgentFile("node2")), "state", "store.snapshot")); err != nil {
		t.Fatal(err) // with it the agent would know all without the store
	}
	if err := c.StartAgentWith(t.Context(), "node2", c.settings["node2"]); err != nil {
		t.Fatal(err)
	}
	eventually(t, "an agent that starts to have all", func(ctx context.Context) error {
		if now, err := c.epoch(ctx, "node2"); err != nil || now != epoch {
			return fmt.Errorf("epoch %s, want %s: %w", now, epoch, err)
		}
		text, err := c.tables(ctx)
		if err != nil {
			return err
		}
		return differ(cmp.Diff(before, text))
	})
	back()
	c.await(t)
	c.remove(t, manifests(t, []byte("{apiVersion: v1, kind: Pod, metadata: {name: fresh, namespace: shop}}"))[0])
	eventually(t, "agents to know what changes after it is back", func(ctx context.Context) error {
		return c.shows(ctx, map[string]bool{"app=fresh": false})
	})
	if got := c.holder(t.Context()); got != "operator-3" {
		t.Errorf("the lease is of %q, want operator-3, which went on", got)
	}
	if now, err := c.epoch(t.Context(), "node2"); err != nil || now != epoch {
		t.Errorf("epoch %s, %v; want %s", now, err, epoch)
	}
}

// silent is for how long the operator has heard nothing from the server, as the agent of node1 says, and what it makes of it.
func (c *cluster) silent(ctx context.Context) (time.Duration, string, error) {
	status, err := c.Status(ctx, "node1")
	if err != nil || status.ApiServerSilentMs == nil {
		return 0, "", fmt.Errorf("nobody knows when the server was heard: %w", err)
	}
	said := ""
	for _, p := range status.GetProblems() {
		if p.GetObject() == "Kubernetes API server" {
			said = p.GetMessage()
		}
	}
	return time.Duration(status.GetApiServerSilentMs()) * time.Millisecond, said, nil
}

// wayAway has what the server sends to nodes vanish, so that nothing is refused and no connection ends. It is the leader that makes them anew; kernels
// would send for a quarter of an hour what was on its way. No other replica can take the lease.
func (c *cluster) wayAway(t *testing.T) {
	change := func(ctx context.Context, verb string) (err error) {
		for _, node := range c.NodeNames() {
			_, failed := c.Control().Exec(ctx, "ip", "route", verb, "blackhole", c.nodeAddress(t, node))
			err = errors.Join(err, failed)
		}
		return err
	}
	eventually(t, "the operator to hear the server", func(ctx context.Context) error {
		silent, said, err := c.silent(ctx)
		if err == nil && (silent > 10*time.Second || said != "") {
			err = fmt.Errorf("silent for %v, and a problem %q", silent, said)
		}
		return err
	})
	before, epoch := c.known(t)
	if err := change(t.Context(), "add"); err != nil {
		t.Fatal(err)
	}
	back := sync.OnceFunc(func() {
		if err := change(context.WithoutCancel(t.Context()), "del"); err != nil {
			t.Error(err)
		}
	})
	t.Cleanup(back)
	pod := manifests(t, []byte("{apiVersion: v1, kind: Pod, metadata: {name: late, namespace: shop, labels: {app: late}}, spec: {nodeName: node1, containers: [{name: c, image: i}]}}"))[0]
	c.mustApply(t, pod)
	eventually(t, "agents to say that the server is silent", func(ctx context.Context) error {
		silent, said, err := c.silent(ctx)
		if err == nil && said == "" {
			err = fmt.Errorf("silent for %v", silent)
		}
		return err
	})
	eventually(t, "the leader to make its connections anew", func(context.Context) error {
		if !strings.Contains(c.operators[c.leader].Output(), "its connections are made anew") {
			return errors.New("it does not say so")
		}
		return nil
	})
	if after, now := c.known(t); after != before || now != epoch {
		t.Errorf("agents know something else while the server is silent (-before +after):\n%s", cmp.Diff(before, after))
	}
	back()
	eventually(t, "agents to know what happened meanwhile", func(ctx context.Context) error {
		return c.shows(ctx, map[string]bool{"app=late": true})
	})
	eventually(t, "the problem to be gone", func(ctx context.Context) error {
		_, said, err := c.silent(ctx)
		if err == nil && said != "" {
			err = errors.New(said)
		}
		return err
	})
	c.remove(t, pod)
}

// deleted leaves what the cluster had before its users came.
func (c *cluster) deleted(t *testing.T, objects []*unstructured.Unstructured) {
	for _, object := range slices.Backward(objects) {
		if object.GetKind() != "Node" && object.GetName() != "web-2" { // it went before
			c.remove(t, object)
		}
	}
	want := map[store.Kind][]string{
		store.KindPod:       {"pods/node1/kube-system/tendril-agent-node1", "pods/node2/kube-system/tendril-agent-node2"},
		store.KindNamespace: {"namespaces/default", "namespaces/kube-node-lease", "namespaces/kube-public", "namespaces/kube-system"},
		store.KindService:   {"services/default/kubernetes"}, store.KindEndpoints: {"endpoints/default/kubernetes/kubernetes"},
		store.KindPolicy: nil, store.KindCIDRGroup: nil, store.KindPool: nil, store.KindEgress: nil,
	}
	eventually(t, "the store to have nothing of users", func(ctx context.Context) error {
		for kind, keys := range want {
			records, err := c.stored(ctx, kind)
			if err != nil {
				return err
			}
			var got []string
			for key := range records {
				got = append(got, key)
			}
			slices.Sort(got)
			if diff := cmp.Diff(keys, got); diff != "" {
				return differ(diff)
			}
		}
		labels, err := c.stored(ctx, store.KindLabels)
		if err == nil && len(labels) != 2 { // of the agents' pods: the server gives pods the zones of their nodes
			err = fmt.Errorf("%d sets of labels, want 2", len(labels))
		}
		return err
	})
}

// departed has node2's agent killed and its Node deleted: its keys go once its sign of life has ended and the grace is over.
func (c *cluster) departed(t *testing.T) {
	if err := c.KillAgent(t.Context(), "node2", syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	for _, text := range []string{"{apiVersion: v1, kind: Node, metadata: {name: node2}}", "{apiVersion: v1, kind: Pod, metadata: {name: tendril-agent-node2, namespace: kube-system}}"} {
		c.remove(t, manifests(t, []byte(text))[0])
	}
	eventually(t, "the store to forget node2 and keep node1", func(ctx context.Context) error {
		for _, kind := range []store.Kind{store.KindNode, store.KindNodeLabels, store.KindAck} {
			records, err := c.stored(ctx, kind)
			if err != nil {
				return err
			}
			one, other := records[string(kind)+"/node1"].Key, records[string(kind)+"/node2"].Key
			if one == "" || other != "" {
				return fmt.Errorf("%s: %d records, of node2 %q", kind, len(records), other)
			}
		}
		return nil
	})
}

// asked looks through the audit log of the whole story.
func (c *cluster) asked(t *testing.T) {
	asked := map[string]int{}
	for _, r := range c.requests(t) {
		who := strings.TrimPrefix(r.User.Username, "system:serviceaccount:kube-system:")
		if who == "" && strings.HasPrefix(r.UserAgent, operator.LeaseName+"/") {
			continue // a server that has just started does not know its accounts yet, and refuses them; the operator asks again
		}
		asked[who]++
		if who == "tendril-operator" && r.ResponseStatus.Code == 403 {
			t.Errorf("the operator has no right to %s %s", r.Verb, r.RequestURI)
		}
		if who == "tendril-operator" && r.Verb == "update" {
			t.Errorf("the operator puts %s in the place of what is there", r.RequestURI)
		}
		if fromNode1, fromNode2 := isFrom(r, "172.30.0.1"), isFrom(r, "172.30.0.2"); (fromNode1 || fromNode2) && who != "tendril-operator" {
			t.Errorf("%s (%s) asked from a node, %v: %s %s, answer %d", r.User.Username, r.UserAgent, r.SourceIPs, r.Verb, r.RequestURI, r.ResponseStatus.Code)
		}
	}
	if asked["tendril-operator"] == 0 || asked[agentName] > 0 {
		t.Errorf("requests by account: %v", asked)
	}
	t.Logf("requests by account: %v", asked)
}
