package helm_test

import (
	"fmt"
	"slices"
	"strings"
	"testing"

	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"

	"tendril.io/tendril/deploy/helm"
	"tendril.io/tendril/internal/operator"
)

// render sets values and renders.
func render(t *testing.T, assignments ...string) []*unstructured.Unstructured {
	t.Helper()
	objects, err := tryRender(assignments...)
	if err != nil {
		t.Fatal(err)
	}
	return objects
}

func tryRender(assignments ...string) ([]*unstructured.Unstructured, error) {
	values, err := helm.Defaults()
	if err != nil {
		return nil, err
	}
	for _, assignment := range append([]string{"operator.node=n1", "operator.address=192.0.2.1"}, assignments...) {
		if err := values.Set(assignment); err != nil {
			return nil, err
		}
	}
	return helm.Render(values, "kube-system")
}

// find is the one object of a kind and name.
func find(t *testing.T, objects []*unstructured.Unstructured, kind, name string) map[string]any {
	t.Helper()
	for _, object := range objects {
		if object.GetKind() == kind && object.GetName() == name {
			return object.Object
		}
	}
	t.Fatalf("no %s %s", kind, name)
	return nil
}

func kinds(objects []*unstructured.Unstructured) (names []string) {
	for _, object := range objects {
		names = append(names, object.GetKind())
	}
	return names
}

func TestPodsComeAfterWhatTheyNeed(t *testing.T) {
	got := kinds(render(t))
	first := min(slices.Index(got, "DaemonSet"), slices.Index(got, "Deployment"))
	for _, kind := range []string{"ConfigMap", "ServiceAccount", "ClusterRole", "ClusterRoleBinding", "Role", "RoleBinding"} {
		if at := slices.Index(got, kind); at < 0 || at > first {
			t.Errorf("%s is at place %d of %v, want it before pods", kind, at, got)
		}
	}
}

func TestEveryContainerDropsAllRightsAndNoAgentMayAskTheAPIServer(t *testing.T) {
	objects := render(t)
	for kind, name := range map[string]string{"DaemonSet": "tendril-agent", "Deployment": "tendril-operator"} {
		object := find(t, objects, kind, name)
		for _, list := range []string{"initContainers", "containers"} {
			containers, _, _ := unstructured.NestedSlice(object, "spec", "template", "spec", list)
			for _, container := range containers {
				drop, _, _ := unstructured.NestedStringSlice(container.(map[string]any), "securityContext", "capabilities", "drop")
				privileged, _, _ := unstructured.NestedBool(container.(map[string]any), "securityContext", "privileged")
				if !slices.Equal(drop, []string{"ALL"}) || privileged {
					t.Errorf("a container of %s drops %v, privileged %t", name, drop, privileged)
				}
			}
		}
	}
	token, found, _ := unstructured.NestedBool(find(t, objects, "DaemonSet", "tendril-agent"), "spec", "template", "spec", "automountServiceAccountToken")
	if token || !found {
		t.Error("agents have a token")
	}
	for _, kind := range []string{"ClusterRoleBinding", "RoleBinding"} {
		if subjects := fmt.Sprint(find(t, objects, kind, "tendril-operator")["subjects"]); strings.Contains(subjects, "agent") {
			t.Errorf("%s is for agents: %s", kind, subjects)
		}
	}
}

func TestAgentsHaveATokenForTheStoreAloneAndWaitForItsAuthority(t *testing.T) {
	objects := render(t)
	volumes, _, _ := unstructured.NestedSlice(find(t, objects, "DaemonSet", "tendril-agent"), "spec", "template", "spec", "volumes")
	at := slices.IndexFunc(volumes, func(v any) bool { return v.(map[string]any)["name"] == "token" })
	if at < 0 {
		t.Fatal("there is no token")
	}
	text := fmt.Sprint(volumes[at])
	for _, want := range []string{"audience:" + operator.TokenAudience, "items:[map[key:ca.crt path:ca.crt]]"} {
		if !strings.Contains(text, want) {
			t.Errorf("the token's volume has no %s: %s", want, text)
		}
	}
	if strings.Contains(text, "optional") {
		t.Error("agents start without the authority's certificate, and kubelet takes a minute to bring it")
	}
	find(t, objects, "Secret", "tendril-authority")
	find(t, objects, "ConfigMap", "tendril-authority")
}

func TestSeveralOperatorsStandBeforeAStoreOutside(t *testing.T) {
	replicas := `operator.replicas=[{node: n1, address: 192.0.2.1}, {node: n2, address: 192.0.2.2}]`
	objects := render(t, replicas, "store.external.endpoints=[e1:2379, e2:2379]", "store.external.secret=etcd", "operator.node=", "operator.address=")
	deployment := fmt.Sprint(find(t, objects, "Deployment", "tendril-operator"))
	for _, want := range []string{
		"replicas:2", "maxSurge:0", "values:[n1 n2]", "secretName:etcd", "--store=e1:2379 --store=e2:2379 --store-ca=/etc/tendril-store/ca.crt",
		"--listen=$(HOST_ADDRESS):2379", "--authority=tendril-authority",
	} {
		if !strings.Contains(deployment, want) {
			t.Errorf("the operators have no %s: %s", want, deployment)
		}
	}
	for _, not := range []string{"hostPath", "nodeSelector:map[", "--store-dir"} {
		if strings.Contains(deployment, not) {
			t.Errorf("the operators have %s, as with a store of their own: %s", not, deployment)
		}
	}
	text := fmt.Sprint(find(t, objects, "ConfigMap", "tendril")["data"])
	for _, want := range []string{`"store": ["192.0.2.1:2379", "192.0.2.2:2379"]`, `"publish": ["192.0.2.1:2380", "192.0.2.2:2380"]`} {
		if !strings.Contains(text, want) {
			t.Errorf("agents are told %s, want %s", text, want)
		}
	}
	if _, err := tryRender("store.external.endpoints=[e1:2379]"); err == nil || !strings.Contains(err.Error(), "operator.replicas: ") {
		t.Errorf("a store outside alone: got %v, want operator.replicas named", err)
	}
}

func TestSeveralOperatorsHaveAStoreEach(t *testing.T) {
	objects := render(t, `operator.replicas=[{node: n1, address: 192.0.2.1}, {node: n2, address: 192.0.2.2}]`, "operator.node=", "operator.address=")
	deployment := fmt.Sprint(find(t, objects, "Deployment", "tendril-operator"))
	for _, want := range []string{
		"replicas:2", "maxSurge:0", "maxUnavailable:1", "values:[n1 n2]", "podAntiAffinity", "--store-dir=/var/lib/tendril-store",
		"--listen=$(HOST_ADDRESS):2379", "--publish=$(HOST_ADDRESS):2380", "hostPath:map[path:/var/lib/tendril-store", "mountPath:/var/lib/tendril-store",
	} {
		if !strings.Contains(deployment, want) {
			t.Errorf("the operators have no %s: %s", want, deployment)
		}
	}
	for _, not := range []string{"--store=", "--store-ca", "secretName", "nodeSelector:map["} {
		if strings.Contains(deployment, not) {
			t.Errorf("the operators have %s, as before a store outside: %s", not, deployment)
		}
	}
	text := fmt.Sprint(find(t, objects, "ConfigMap", "tendril")["data"])
	if want := `"store": ["192.0.2.1:2379", "192.0.2.2:2379"]`; !strings.Contains(text, want) {
		t.Errorf("agents are told %s, want %s", text, want)
	}
}

func TestANodeIsCleanedByAPodInPlaceOfItsAgent(t *testing.T) {
	objects := render(t, "remove.nodes=[n1, n2]")
	if got, want := fmt.Sprint(kinds(objects)), "[ConfigMap Pod Pod]"; got != want {
		t.Errorf("got %s, want %s", got, want)
	}
	pod := find(t, objects, "Pod", "tendril-remove-n2")
	if node, _, _ := unstructured.NestedString(pod, "spec", "nodeName"); node != "n2" {
		t.Errorf("it runs on %q, want n2", node)
	}
}

func TestValuesThatWouldDoNothingAreRefused(t *testing.T) {
	values, err := helm.Defaults()
	if err != nil {
		t.Fatal(err)
	}
	for assignment, want := range map[string]string{
		"agent.confg.mode=vxlan": "agent.confg.mode: the chart has no such value; there are config, ",
		"cgroup.path=/":          "cgroup.path: cgroup holds no other values",
		"cgroup":                 "write name=value",
		"agent.config=[":         "agent.config: ",
	} {
		if err := values.Set(assignment); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: got %v, want %q", assignment, err, want)
		}
	}
	if _, err := helm.Render(values, "kube-system"); err == nil || !strings.Contains(err.Error(), "operator.address: the host address") {
		t.Errorf("without the operator's address: %v", err)
	}
}

func TestMoreOfTheAgentsConfigurationIsHandedOn(t *testing.T) {
	objects := render(t, "agent.config.mode=vxlan", `agent.config.no_masquerade=["10.9.0.0/16"]`)
	text, _, _ := unstructured.NestedString(find(t, objects, "ConfigMap", "tendril"), "data", "agent.json")
	for _, want := range []string{`"mode": "vxlan",`, `"no_masquerade": ["10.9.0.0/16"],`, `"masquerade": true,`, `"store": ["192.0.2.1:2379"],`} {
		if !strings.Contains(text, want) {
			t.Errorf("agent.json has no %s:\n%s", want, text)
		}
	}
}
