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

// Every mistake is refused before anything is applied, with the value's path and what it should be.
func TestValuesThatCannotBeAreRefused(t *testing.T) {
	for assignment, want := range map[string]string{
		"agent.config.mode=vxlam":                     `agent.config.mode: "vxlam" is not one of native, vxlan`,
		"agent.config.flow_recrods=true":              "agent.config.flow_recrods: there is no such value; there are ",
		"agent.config.cgroup=/x":                      "agent.config.cgroup: there is no such value; there are ", // the chart gives it: the key would be there twice
		"agent.config.masquerade=maybe":               `agent.config.masquerade: "maybe" is not true or false`,
		"agent.config.vni=1.5":                        "agent.config.vni: 1.5 is not a whole number",
		"agent.config.no_masquerade=[10.0.0.0]":       `agent.config.no_masquerade[0]: "10.0.0.0" is not a prefix`,
		"agent.config.map_sizes={flows: many}":        `agent.config.map_sizes.flows: "many" is not a whole number`,
		"agent.config=3":                              "agent.config: 3 is not an object of the agent's settings",
		"agent.readyPort=70000":                       "agent.readyPort: 70000 is not a port from 1 to 65535",
		"agent.maxUnavailable=0":                      "agent.maxUnavailable: 0 is not a number from 1, or a percentage",
		"agent.maxUnavailable=some":                   `agent.maxUnavailable: "some" is not a number from 1, or a percentage`,
		"operator.nodeGrace=10x":                      `operator.nodeGrace: "10x" is not a duration, as in "10m"`,
		"operator.identities=maybe":                   `operator.identities: "maybe" is not true or false`,
		"operator.identityGrace=1":                    `operator.identityGrace: 1 is not a duration, as in "10m"`,
		"operator.podPools=[\"default=10.0.0.0/16\"]": `operator.podPools[0]: "default=10.0.0.0/16" is not a pool`,
		"operator.replicas=[{node: n1}]":              "operator.replicas[0].address: required: an IPv4 address",
		"operator.replicas=n1":                        `operator.replicas: "n1" is not a list of nodes`,
		"operator.address=fd00::1":                    `operator.address: "fd00::1" is not an IPv4 address`,
		"operator.node=3":                             "operator.node: 3 is not the name of a node",
		"operator.publishPort=2379":                   "operator.publishPort: another port than operator.storePort",
		"store.external.secret=etcd":                  "store.external.endpoints: the addresses of the etcd",
		"image.pullPolicy=Sometimes":                  `image.pullPolicy: "Sometimes" is not one of Always, IfNotPresent, Never`,
		"image.agent=":                                "image.agent: required: the name of an image",
		"cluster=a: b":                                "cluster: ",
		"cgroup=":                                     "cgroup: required: a folder, an absolute path",
		"cni.binDir=opt":                              `cni.binDir: "opt" is not a folder, an absolute path`,
	} {
		if _, err := tryRender(assignment); err == nil || !strings.HasPrefix(err.Error(), want) {
			t.Errorf("%s: got %v, want %q", assignment, err, want)
		}
	}
	for _, assignment := range []string{
		"agent.maxUnavailable=25%", "agent.config.uplink=", `agent.config.map_sizes={flows: 1048576}`, "operator.nodeGrace=1h30m", "operator.nodeGrace=",
		`operator.podPools=["default=10.0.0.0/16:24,fd00:10::/48:64"]`, "image.agent=registry.example:5000/tendril/agent@sha256:00", "cluster=eu-1.prod_a",
	} {
		if _, err := tryRender(assignment); err != nil {
			t.Errorf("%s: %v", assignment, err)
		}
	}
}

// A value that is not set is the default, also for Helm with --reuse-values, which leaves out those that an earlier chart had not.
func TestWhoWritesNoIdentitiesMayOnlyRemoveThem(t *testing.T) {
	for assignment, want := range map[string]struct {
		verbs, argument string
		given           bool
	}{
		"operator.identities=true":    {"verbs:[list create patch delete]", "--identities", false},
		"operator.identities=":        {"verbs:[list create patch delete]", "--identities", false},
		"operator.identities=false":   {"verbs:[list delete]", "--identities=false", true},
		"operator.identityGrace=5m":   {"verbs:[list create patch delete]", "--identity-grace=5m", true},
		"operator.identityGrace=\"\"": {"verbs:[list create patch delete]", "--identity-grace", false},
	} {
		objects := render(t, assignment)
		if rules := fmt.Sprint(find(t, objects, "ClusterRole", "tendril-operator")["rules"]); !strings.Contains(rules, "resources:[identities] "+want.verbs) {
			t.Errorf("%s: rights are %s, want %s", assignment, rules, want.verbs)
		}
		if text := fmt.Sprint(find(t, objects, "Deployment", "tendril-operator")); strings.Contains(text, want.argument) != want.given {
			t.Errorf("%s: %s is given: %t, want %t", assignment, want.argument, !want.given, want.given)
		}
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
