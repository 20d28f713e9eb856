package opinion

import (
	"fmt"
	"math/rand/v2"
	"net/netip"
	"strings"
	"testing"

	"github.com/mattfenwick/cyclonus/pkg/connectivity"
	"github.com/mattfenwick/cyclonus/pkg/connectivity/probe"
	"github.com/mattfenwick/cyclonus/pkg/generator"
	"github.com/mattfenwick/cyclonus/pkg/matcher"
	"github.com/sirupsen/logrus"
	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
)

// The world that cyclonus' cases assume: the defaults of its command line.
func namespaceNames() []string { return []string{"x", "y", "z"} }
func podNames() []string       { return []string{"a", "b", "c"} }
func servedPorts() []int       { return []int{80, 81} }

// furtherPorts are asked about too where nobody has to serve them: what policies of the cases name, and its neighbours.
func furtherPorts() []int { return []int{52, 53, 79, 82, 84, 85, 7981} }

// stage is a cluster with the world of the cases, and what cyclonus knows of it.
type stage struct {
	*cluster
	state connectivity.TestCaseState
	base  *probe.Resources // without what cases change
}

func setStage(t *testing.T, at place, protocols ...corev1.Protocol) *stage {
	t.Helper()
	logrus.SetLevel(logrus.ErrorLevel)
	c := newCluster(at)
	base, err := probe.NewDefaultResources(c, namespaceNames(), podNames(), servedPorts(), protocols, nil, 5, false, "")
	if err != nil {
		t.Fatal(err)
	}
	return &stage{cluster: c, base: base}
}

// reset makes the world what it was before the first case, and has cyclonus check it.
func (s *stage) reset(t *testing.T) {
	t.Helper()
	s.state = connectivity.TestCaseState{Kubernetes: s.cluster, Resources: s.base}
	if err := s.state.ResetClusterState(); err != nil {
		t.Fatal(err)
	}
	if err := s.state.VerifyClusterState(); err != nil {
		t.Fatal(err)
	}
}

// act carries out an action of a case, as cyclonus' own interpreter does.
func (s *stage) act(a *generator.Action) error {
	switch {
	case a.CreatePolicy != nil:
		return s.state.CreatePolicy(a.CreatePolicy.Policy)
	case a.UpdatePolicy != nil:
		return s.state.UpdatePolicy(a.UpdatePolicy.Policy)
	case a.DeletePolicy != nil:
		return s.state.DeletePolicy(a.DeletePolicy.Namespace, a.DeletePolicy.Name)
	case a.CreateNamespace != nil:
		return s.state.CreateNamespace(a.CreateNamespace.Namespace, a.CreateNamespace.Labels)
	case a.SetNamespaceLabels != nil:
		return s.state.SetNamespaceLabels(a.SetNamespaceLabels.Namespace, a.SetNamespaceLabels.Labels)
	case a.DeleteNamespace != nil:
		return s.state.DeleteNamespace(a.DeleteNamespace.Namespace)
	case a.ReadNetworkPolicies != nil:
		return s.state.ReadPolicies(a.ReadNetworkPolicies.Namespaces)
	case a.CreatePod != nil:
		return s.state.CreatePod(a.CreatePod.Namespace, a.CreatePod.Pod, a.CreatePod.Labels)
	case a.SetPodLabels != nil:
		return s.state.SetPodLabels(a.SetPodLabels.Namespace, a.SetPodLabels.Pod, a.SetPodLabels.Labels)
	case a.DeletePod != nil:
		return s.state.DeletePod(a.DeletePod.Namespace, a.DeletePod.Pod)
	}
	return fmt.Errorf("action %+v: is of no kind that is known", a)
}

// party is one end of a connection: a pod, or with a nil pod somebody outside the cluster.
type party struct {
	pod   *probe.Pod
	addrs [2]netip.Addr
}

func (p party) String() string {
	if p.pod == nil {
		return "outside"
	}
	return p.pod.Namespace + "/" + p.pod.Name
}

// cell is one question of a truth table.
type cell struct {
	from, to party
	family   int // 0: IPv4, 1: IPv6, as in party.addrs
	protocol corev1.Protocol
	port     int
}

func (c cell) String() string {
	return fmt.Sprintf("%s to %s at %d/%s, IPv%d", c.from, c.to, c.port, strings.ToLower(string(c.protocol)), 4+2*c.family)
}

// parties lists the pods that there are now.
func (s *stage) parties() []party {
	var all []party
	for _, pod := range s.state.Resources.Pods {
		all = append(all, party{pod, s.addrs[pod.Namespace+"/"+pod.Name]})
	}
	return all
}

// tableOf lists all questions about parties.
func tableOf(parties []party, protocols []corev1.Protocol, ports []int) []cell {
	var cells []cell
	for _, from := range parties {
		for _, to := range parties {
			for family := range from.addrs {
				for _, protocol := range protocols {
					for _, port := range ports {
						cells = append(cells, cell{from, to, family, protocol, port})
					}
				}
			}
		}
	}
	return cells
}

// policies compiles what is in force now as cyclonus does.
func (s *stage) policies() *matcher.Policy {
	return matcher.BuildNetworkPolicies(true, s.state.Policies)
}

// opinion is cyclonus' verdict on a connection.
func (s *stage) opinion(policies *matcher.Policy, c cell) verdict {
	traffic := &matcher.Traffic{
		Source: s.trafficPeer(c.from, c.family), Destination: s.trafficPeer(c.to, c.family),
		ResolvedPort: c.port, ResolvedPortName: c.portName(), Protocol: c.protocol,
	}
	allowed := policies.IsTrafficAllowed(traffic)
	return verdict{egress: allowed.Egress.IsAllowed(), ingress: allowed.Ingress.IsAllowed()}
}

func (s *stage) trafficPeer(p party, family int) *matcher.TrafficPeer {
	peer := &matcher.TrafficPeer{IP: p.addrs[family].String()}
	if p.pod != nil {
		peer.Internal = &matcher.InternalPeer{
			PodLabels: p.pod.Labels, NamespaceLabels: s.state.Resources.Namespaces[p.pod.Namespace], Namespace: p.pod.Namespace,
		}
	}
	return peer
}

// portName is the name that the destination gives to the port, if it does.
func (c cell) portName() string {
	if c.to.pod == nil {
		return ""
	}
	for _, container := range c.to.pod.Containers {
		if container.Port == c.port && container.Protocol == c.protocol {
			return container.PortName
		}
	}
	return ""
}

// casesFor generates all cases around the address of pod z/c, as cyclonus' command line does.
func casesFor(podAddr netip.Addr, allowDNS bool) []*generator.TestCase {
	return generator.NewTestCaseGenerator(allowDNS, podAddr.String(), namespaceNames(), nil, nil).GenerateTestCases()
}

// outsider is nobody of the cluster. Its addresses lie in the ranges that the cases make around z/c, not in their exceptions.
func outsider() party {
	return party{nil, [2]netip.Addr{netip.MustParseAddr("10.42.1.250"), netip.MustParseAddr("fd42::1:fa")}}
}

// tally counts what was compared.
type tally struct{ cases, steps, cells, denied int }

// The compiled tables say what cyclonus' matcher says: of every case that it generates, after each step, in both
// directions and both families, pods asking themselves included. The second round of cases has ranges of IPv6, and no
// rule that lets DNS through.
func TestCompiledTablesAgreeWithCyclonus(t *testing.T) {
	protocols := []corev1.Protocol{corev1.ProtocolTCP, corev1.ProtocolUDP, corev1.ProtocolSCTP}
	w := newWorld()
	s := setStage(t, w, protocols...)
	ports := append(servedPorts(), furtherPorts()...)
	var sum tally
	defer func() { sum.report(t) }()
	for family, round := range []string{"IPv4", "IPv6"} {
		for i, c := range casesFor(s.addrs["z/c"][family], family == 0) {
			t.Run(fmt.Sprintf("%s/%d %s", round, i+1, c.Description), func(t *testing.T) {
				sum.cases++
				s.reset(t)
				for number, step := range c.Steps {
					sum.steps++
					for _, action := range step.Actions {
						if err := s.act(action); err != nil {
							t.Fatal(err)
						}
					}
					w.compare(t, s, number+1, tableOf(append(s.parties(), outsider()), protocols, ports), &sum)
				}
			})
		}
	}
}

// Policies add up, and their order does not matter to either: the policies of several cases at once, of which many
// select the same pods.
func TestCompiledTablesAgreeWithCyclonusOnManyPoliciesAtOnce(t *testing.T) {
	protocols := []corev1.Protocol{corev1.ProtocolTCP, corev1.ProtocolUDP, corev1.ProtocolSCTP}
	const worlds, together = 80, 5
	w := newWorld()
	s := setStage(t, w, protocols...)
	cases := append(casesFor(s.addrs["z/c"][0], true), casesFor(s.addrs["z/c"][1], false)...)
	random := rand.New(rand.NewPCG(1, 2)) // the same worlds every time
	var sum tally
	defer func() { sum.report(t) }()
	for i := range worlds {
		s.reset(t)
		sum.cases++
		for range together {
			for j, action := range cases[random.IntN(len(cases))].Steps[0].Actions {
				if action.CreatePolicy == nil {
					continue
				}
				p := action.CreatePolicy.Policy.DeepCopy()
				p.Name = fmt.Sprintf("p%d-%d-%d", i, len(s.state.Policies), j)
				if err := s.state.CreatePolicy(p); err != nil {
					t.Fatal(err)
				}
			}
		}
		sum.steps++
		w.compare(t, s, 1, tableOf(append(s.parties(), outsider()), protocols, append(servedPorts(), 53, 79)), &sum)
	}
}

// add counts the cells of a table.
func (y *tally) add(table []cell, passes []bool) {
	y.cells += len(table)
	for _, passes := range passes {
		if !passes {
			y.denied++
		}
	}
}

// report prints the counts, and fails where all verdicts were the same: then nothing was judged.
func (y *tally) report(t *testing.T) {
	t.Helper()
	t.Logf("%d cases, %d steps, %d cells, of which %d are denied", y.cases, y.steps, y.cells, y.denied)
	if y.denied == 0 || y.denied == y.cells {
		t.Error("every cell has the same verdict")
	}
}

// compare asks both about every cell.
func (w *world) compare(t *testing.T, s *stage, step int, cells []cell, sum *tally) {
	t.Helper()
	policies := s.policies()
	wrong := 0
	for _, c := range cells {
		protocol, err := protocolNumber(string(c.protocol))
		if err != nil {
			t.Fatal(err)
		}
		got, err := w.judge(c.from.addrs[c.family], c.to.addrs[c.family], protocol, uint16(c.port))
		if err != nil {
			t.Fatal(err)
		}
		want := s.opinion(policies, c)
		sum.cells++
		if !want.passes() {
			sum.denied++
		}
		if got != want {
			if wrong++; wrong <= 5 {
				t.Errorf("step %d: %s: tables say %+v, cyclonus %+v", step, c, got, want)
			}
		}
	}
	if wrong > 0 {
		t.Errorf("step %d: %d of %d cells differ, under %s", step, wrong, len(cells), describe(s.state.Policies))
	}
}

// describe prints policies for people.
func describe(policies []*networkingv1.NetworkPolicy) string {
	var text strings.Builder
	for _, p := range policies {
		fmt.Fprintf(&text, "\n%s/%s: %s", p.Namespace, p.Name, p.Spec.String())
	}
	return text.String()
}
