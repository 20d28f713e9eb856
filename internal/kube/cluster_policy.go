package kube

import (
	"fmt"
	"math"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/validation/field"
	"sigs.k8s.io/network-policy-api/apis/v1alpha1"
	"sigs.k8s.io/network-policy-api/apis/v1alpha2"

	"tendril.io/tendril/internal/ipproto"
	"tendril.io/tendril/internal/label"
	"tendril.io/tendril/internal/policy"
)

// Kinds of policy.networking.k8s.io: ClusterNetworkPolicy (v1alpha2), and the two that it took the place of (v1alpha1).
// Sources: the comments of the types in module sigs.k8s.io/network-policy-api. What they settle here:
//
//   - The rules of a policy hold in the order in which they are written; nothing isolates: where no rule decides, the next
//     tier does, and after the last one the traffic passes.
//   - Pods and namespaces never mean pods in the network of their node, nor nodes: those have no namespace here.
//   - Networks mean whoever has the address, pods and nodes included.
//   - A peer without a field that is known makes the object useless; it is refused whole, which keeps its last version.
const (
	policyGroup = "policy.networking.k8s.io/"

	kindClusterNetworkPolicy       = "ClusterNetworkPolicy"
	kindAdminNetworkPolicy         = "AdminNetworkPolicy"
	kindBaselineAdminNetworkPolicy = "BaselineAdminNetworkPolicy"

	maxPriority = 1000
	// behindAll is the priority of the one BaselineAdminNetworkPolicy there can be: it has none of its own, and whoever writes
	// ClusterNetworkPolicies beside it has moved on.
	behindAll = maxPriority + 1
)

// clusterPolicy is a policy of any of the three kinds, by common names.
type clusterPolicy struct {
	tier       policy.Tier
	priority   int32
	namespaces *metav1.LabelSelector // subject
	pods       *podSelectors
	rules      []clusterRule
}

// clusterRule is a rule of any of them. Lists keep the difference between absent and empty.
type clusterRule struct {
	at        *field.Path
	direction policy.Direction
	name      string
	action    string
	peers     []clusterPeer
	ports     []clusterPort
	hasPorts  bool
	portsAt   *field.Path
}

// clusterPeer is a peer of any of them; exactly one field is to be set.
type clusterPeer struct {
	namespaces *metav1.LabelSelector
	pods       *podSelectors
	nodes      *metav1.LabelSelector
	networks   []string
	names      []string
}

// podSelectors selects pods by their own and their namespace's labels.
type podSelectors struct{ namespace, pod metav1.LabelSelector }

// clusterPort is ports of any of them: a name, or a range of one protocol.
type clusterPort struct {
	at          *field.Path
	given       int // how many of the alternatives
	name        string
	nameAt      *field.Path
	protocol    corev1.Protocol // empty: TCP
	protocolAt  *field.Path
	first, last int32
	firstAt     *field.Path
	lastAt      *field.Path // nil: first alone
}

// clusterNetworkPolicySpecs translates v1alpha2 ClusterNetworkPolicy.
func clusterNetworkPolicySpecs(p *v1alpha2.ClusterNetworkPolicy) ([]policy.Spec, field.ErrorList) {
	at := field.NewPath("spec")
	common := clusterPolicy{priority: p.Spec.Priority, namespaces: p.Spec.Subject.Namespaces, pods: podsOf2(p.Spec.Subject.Pods)}
	errs := checkPriority(p.Spec.Priority, at.Child("priority"))
	switch p.Spec.Tier {
	case v1alpha2.AdminTier:
		common.tier = policy.TierAdmin
	case v1alpha2.BaselineTier:
		common.tier = policy.TierBaseline
	default:
		errs = append(errs, field.NotSupported(at.Child("tier"), p.Spec.Tier, []v1alpha2.Tier{v1alpha2.AdminTier, v1alpha2.BaselineTier}))
	}
	common.rules = slices.Concat(
		each(p.Spec.Ingress, at.Child("ingress"), func(r *v1alpha2.ClusterNetworkPolicyIngressRule, at *field.Path) clusterRule {
			from := each(r.From, at, func(x *v1alpha2.ClusterNetworkPolicyIngressPeer, _ *field.Path) clusterPeer {
				return clusterPeer{namespaces: x.Namespaces, pods: podsOf2(x.Pods)}
			})
			return clusterRule{at: at, direction: policy.Ingress, name: r.Name, action: string(r.Action), peers: from}.atProtocols(r.Protocols)
		}),
		each(p.Spec.Egress, at.Child("egress"), func(r *v1alpha2.ClusterNetworkPolicyEgressRule, at *field.Path) clusterRule {
			to := each(r.To, at, func(x *v1alpha2.ClusterNetworkPolicyEgressPeer, _ *field.Path) clusterPeer {
				return clusterPeer{x.Namespaces, podsOf2(x.Pods), x.Nodes, texts(x.Networks), texts(x.DomainNames)}
			})
			return clusterRule{at: at, direction: policy.Egress, name: r.Name, action: string(r.Action), peers: to}.atProtocols(r.Protocols)
		}),
	)
	specs, wrong := common.specs(at, map[string]policy.Action{"Accept": policy.Allow, "Deny": policy.Deny, "Pass": policy.Pass})
	return specs, append(errs, wrong...)
}

// adminNetworkPolicySpecs translates v1alpha1 AdminNetworkPolicy.
func adminNetworkPolicySpecs(p *v1alpha1.AdminNetworkPolicy) ([]policy.Spec, field.ErrorList) {
	at := field.NewPath("spec")
	common := clusterPolicy{
		tier: policy.TierAdmin, priority: p.Spec.Priority, namespaces: p.Spec.Subject.Namespaces, pods: podsOf1(p.Spec.Subject.Pods),
	}
	common.rules = slices.Concat(
		each(p.Spec.Ingress, at.Child("ingress"), func(r *v1alpha1.AdminNetworkPolicyIngressRule, at *field.Path) clusterRule {
			return clusterRule{at: at, direction: policy.Ingress, name: r.Name, action: string(r.Action), peers: adminSources(r.From)}.atPorts(r.Ports)
		}),
		each(p.Spec.Egress, at.Child("egress"), func(r *v1alpha1.AdminNetworkPolicyEgressRule, at *field.Path) clusterRule {
			to := each(r.To, at, func(x *v1alpha1.AdminNetworkPolicyEgressPeer, _ *field.Path) clusterPeer {
				return clusterPeer{x.Namespaces, podsOf1(x.Pods), x.Nodes, texts(x.Networks), texts(x.DomainNames)}
			})
			return clusterRule{at: at, direction: policy.Egress, name: r.Name, action: string(r.Action), peers: to}.atPorts(r.Ports)
		}),
	)
	specs, errs := common.specs(at, map[string]policy.Action{"Allow": policy.Allow, "Deny": policy.Deny, "Pass": policy.Pass})
	return specs, append(checkPriority(p.Spec.Priority, at.Child("priority")), errs...)
}

// baselineAdminNetworkPolicySpecs translates v1alpha1 BaselineAdminNetworkPolicy, of which a cluster has one.
func baselineAdminNetworkPolicySpecs(p *v1alpha1.BaselineAdminNetworkPolicy) ([]policy.Spec, field.ErrorList) {
	at := field.NewPath("spec")
	common := clusterPolicy{
		tier: policy.TierBaseline, priority: behindAll, namespaces: p.Spec.Subject.Namespaces, pods: podsOf1(p.Spec.Subject.Pods),
	}
	var errs field.ErrorList
	if p.Name != "default" {
		errs = append(errs, field.Invalid(field.NewPath("metadata", "name"), p.Name, "a cluster has one such policy, and it is called default"))
	}
	common.rules = slices.Concat(
		each(p.Spec.Ingress, at.Child("ingress"), func(r *v1alpha1.BaselineAdminNetworkPolicyIngressRule, at *field.Path) clusterRule {
			return clusterRule{at: at, direction: policy.Ingress, name: r.Name, action: string(r.Action), peers: adminSources(r.From)}.atPorts(r.Ports)
		}),
		each(p.Spec.Egress, at.Child("egress"), func(r *v1alpha1.BaselineAdminNetworkPolicyEgressRule, at *field.Path) clusterRule {
			to := each(r.To, at, func(x *v1alpha1.BaselineAdminNetworkPolicyEgressPeer, _ *field.Path) clusterPeer {
				return clusterPeer{namespaces: x.Namespaces, pods: podsOf1(x.Pods), nodes: x.Nodes, networks: texts(x.Networks)}
			})
			return clusterRule{at: at, direction: policy.Egress, name: r.Name, action: string(r.Action), peers: to}.atPorts(r.Ports)
		}),
	)
	specs, wrong := common.specs(at, map[string]policy.Action{"Allow": policy.Allow, "Deny": policy.Deny})
	return specs, append(errs, wrong...)
}

// adminSources are the sources of a rule of v1alpha1.
func adminSources(from []v1alpha1.AdminNetworkPolicyIngressPeer) []clusterPeer {
	return each(from, nil, func(x *v1alpha1.AdminNetworkPolicyIngressPeer, _ *field.Path) clusterPeer {
		return clusterPeer{namespaces: x.Namespaces, pods: podsOf1(x.Pods)}
	})
}

func checkPriority(p int32, at *field.Path) field.ErrorList {
	if p < 0 || p > maxPriority {
		return field.ErrorList{field.Invalid(at, p, fmt.Sprintf("a priority is a number from 0 to %d", maxPriority))}
	}
	return nil
}

func podsOf2(p *v1alpha2.NamespacedPod) *podSelectors {
	if p == nil {
		return nil
	}
	return &podSelectors{p.NamespaceSelector, p.PodSelector}
}

func podsOf1(p *v1alpha1.NamespacedPod) *podSelectors {
	if p == nil {
		return nil
	}
	return &podSelectors{p.NamespaceSelector, p.PodSelector}
}

// texts gives a list as plain strings; one that is absent stays so.
func texts[T ~string](list []T) []string {
	if list == nil {
		return nil
	}
	plain := make([]string, len(list))
	for i, x := range list {
		plain[i] = string(x)
	}
	return plain
}

// atProtocols adds the ports of a rule of v1alpha2.
func (r clusterRule) atProtocols(protocols []v1alpha2.ClusterNetworkPolicyProtocol) clusterRule {
	r.hasPorts, r.portsAt = protocols != nil, r.at.Child("protocols")
	r.ports = each(protocols, r.portsAt, func(p *v1alpha2.ClusterNetworkPolicyProtocol, at *field.Path) clusterPort {
		port := clusterPort{at: at, name: p.DestinationNamedPort, nameAt: at.Child("destinationNamedPort")}
		if p.DestinationNamedPort != "" {
			port.given++
		}
		if p.TCP != nil {
			port.number(corev1.ProtocolTCP, p.TCP.DestinationPort, at.Child("tcp", "destinationPort"))
		}
		if p.UDP != nil {
			port.number(corev1.ProtocolUDP, p.UDP.DestinationPort, at.Child("udp", "destinationPort"))
		}
		if p.SCTP != nil {
			port.number(corev1.ProtocolSCTP, p.SCTP.DestinationPort, at.Child("sctp", "destinationPort"))
		}
		return port
	})
	return r
}

// number takes a port, or a range, of v1alpha2. What is absent stays 0, which is no port.
func (c *clusterPort) number(protocol corev1.Protocol, p *v1alpha2.Port, at *field.Path) {
	c.given++
	c.protocol, c.firstAt = protocol, at
	if p == nil {
		return
	}
	c.first, c.firstAt = p.Number, at.Child("number")
	if p.Range == nil {
		return
	}
	if p.Number != 0 {
		c.given++
	}
	c.first, c.firstAt = p.Range.Start, at.Child("range", "start")
	c.last, c.lastAt = p.Range.End, at.Child("range", "end")
}

// atPorts adds the ports of a rule of v1alpha1.
func (r clusterRule) atPorts(ports *[]v1alpha1.AdminNetworkPolicyPort) clusterRule {
	r.hasPorts, r.portsAt = ports != nil, r.at.Child("ports")
	if ports == nil {
		return r
	}
	r.ports = each(*ports, r.portsAt, func(p *v1alpha1.AdminNetworkPolicyPort, at *field.Path) clusterPort {
		port := clusterPort{at: at, nameAt: at.Child("namedPort")}
		if p.NamedPort != nil {
			port.given++
			port.name = *p.NamedPort
		}
		if n := p.PortNumber; n != nil {
			port.given++
			port.protocol, port.protocolAt = n.Protocol, at.Child("portNumber", "protocol")
			port.first, port.firstAt = n.Port, at.Child("portNumber", "port")
		}
		if r := p.PortRange; r != nil {
			port.given++
			port.protocol, port.protocolAt = r.Protocol, at.Child("portRange", "protocol")
			port.first, port.firstAt = r.Start, at.Child("portRange", "start")
			port.last, port.lastAt = r.End, at.Child("portRange", "end")
		}
		return port
	})
	return r
}

// specs translates the policy, which has one spec.
func (c *clusterPolicy) specs(at *field.Path, actions map[string]policy.Action) ([]policy.Spec, field.ErrorList) {
	spec := policy.Spec{Place: at.String(), Tier: c.tier, Priority: uint32(c.priority)}
	subject, errs := podsPeer(c.namespaces, c.pods, at.Child("subject"))
	if subject != nil {
		spec.Subject = *subject
	} else if len(errs) == 0 {
		errs = append(errs, field.Required(at.Child("subject"), "say which pods the policy is for: namespaces or pods; namespaces: {} is all"))
	}
	for i := range c.rules {
		rule, wrong := c.rules[i].translate(actions)
		spec.Rules, errs = append(spec.Rules, rule), append(errs, wrong...)
	}
	return []policy.Spec{spec}, errs
}

// podsPeer translates the two ways of selecting pods; nil: neither is given.
func podsPeer(namespaces *metav1.LabelSelector, pods *podSelectors, at *field.Path) (*label.Selector, field.ErrorList) {
	var reqs []label.Requirement
	var errs field.ErrorList
	switch {
	case namespaces != nil && pods != nil:
		return nil, field.ErrorList{field.Forbidden(at, "give only one of namespaces and pods; pods has a namespaceSelector of its own")}
	case namespaces != nil:
		reqs, errs = requirements(namespaces, namespaceKey, at.Child("namespaces"))
	case pods != nil:
		at = at.Child("pods")
		reqs, errs = requirements(&pods.namespace, namespaceKey, at.Child("namespaceSelector"))
		more, wrong := requirements(&pods.pod, podKey, at.Child("podSelector"))
		reqs, errs = append(reqs, more...), append(errs, wrong...)
	default:
		return nil, nil
	}
	selector, errs := selectorOf(append(reqs, inAnyNamespace()), errs)
	return &selector, errs
}

// translate gives the rule in the ordered model.
func (r *clusterRule) translate(actions map[string]policy.Action) (policy.Rule, field.ErrorList) {
	rule := policy.Rule{Place: r.at.String(), Name: r.name, Direction: r.direction}
	var errs field.ErrorList
	action, ok := actions[r.action]
	if !ok {
		errs = append(errs, field.NotSupported(r.at.Child("action"), r.action, keys(actions)))
	}
	rule.Action = action
	side := r.at.Child([]string{"from", "to"}[r.direction])
	if len(r.peers) == 0 {
		errs = append(errs, field.Required(side, "name at least one peer; namespaces: {} is every pod"))
	}
	for i := range r.peers {
		peers, wrong := r.peers[i].translate(side.Index(i))
		rule.Peers, errs = append(rule.Peers, peers...), append(errs, wrong...)
	}
	if r.hasPorts && len(r.ports) == 0 {
		errs = append(errs, field.Required(r.portsAt, "list at least one; without the field the rule is for all ports"))
	}
	for i := range r.ports {
		ports, wrong := r.ports[i].translate()
		rule.Ports, errs = append(rule.Ports, ports...), append(errs, wrong...)
	}
	return rule, append(errs, r.contradictions(rule.Action, side)...)
}

// contradictions finds peers that the rest of the rule cannot be about: nobody but a pod names its ports, and a name in DNS
// cannot be denied, since there are always addresses of it that nobody has asked for yet.
func (r *clusterRule) contradictions(action policy.Action, side *field.Path) (errs field.ErrorList) {
	for i, p := range r.peers {
		if p.names != nil && action != policy.Allow {
			errs = append(errs, field.Forbidden(side.Index(i).Child("domainNames"), "names are for rules that allow; write the rule the other way round"))
		}
		for j := range r.ports {
			if r.ports[j].name != "" && (p.nodes != nil || p.networks != nil || p.names != nil) {
				errs = append(errs, field.Forbidden(r.ports[j].nameAt, fmt.Sprintf("only pods name their ports, and %s is none; give the number", side.Index(i))))
			}
		}
	}
	return errs
}

// translate gives the peers that one entry stands for: a range or a name each, where it lists several.
func (p *clusterPeer) translate(at *field.Path) ([]policy.Peer, field.ErrorList) {
	var given []string
	for _, f := range []struct {
		name string
		used bool
	}{{"namespaces", p.namespaces != nil}, {"pods", p.pods != nil}, {"nodes", p.nodes != nil}, {"networks", p.networks != nil}, {"domainNames", p.names != nil}} {
		if f.used {
			given = append(given, f.name)
		}
	}
	switch {
	case len(given) == 0:
		return nil, field.ErrorList{field.Required(at, "an empty peer matches nobody; give namespaces, pods, or on egress nodes, networks or domainNames")}
	case len(given) > 1:
		return nil, field.ErrorList{field.Forbidden(at, strings.Join(given, " and ")+" cannot be combined in one peer; write a peer for each")}
	case p.nodes != nil:
		peer, errs := nodes(p.nodes, nodeLabelKey, at.Child("nodes"))
		return []policy.Peer{peer}, errs
	case p.networks != nil:
		return networkPeers(p.networks, at.Child("networks"))
	case p.names != nil:
		return domainPeers(p.names, at.Child("domainNames"))
	}
	selector, errs := podsPeer(p.namespaces, p.pods, at)
	return []policy.Peer{{Selector: selector}}, errs
}

// nodeLabelKey reads a key as a label of a node.
func nodeLabelKey(key string, op label.Operator, values []string) (label.Requirement, string) {
	return label.Requirement{Key: label.Key{Scope: label.ScopeNode, Name: key}, Operator: op, Values: values}, ""
}

func networkPeers(list []string, at *field.Path) (peers []policy.Peer, errs field.ErrorList) {
	if len(list) == 0 {
		return nil, field.ErrorList{field.Required(at, "list at least one range; 0.0.0.0/0 and ::/0 are all addresses")}
	}
	for i, text := range list {
		p, wrong := prefix(text, at.Index(i))
		peers, errs = append(peers, policy.Peer{CIDR: &policy.CIDR{Prefix: p}}), append(errs, wrong...)
	}
	return peers, errs
}

// domainPeers translates names. A star may only be the first label, and stands for one label or more; the model writes
// that with two.
func domainPeers(list []string, at *field.Path) (peers []policy.Peer, errs field.ErrorList) {
	if len(list) == 0 {
		return nil, field.ErrorList{field.Required(at, "list at least one name")}
	}
	for i, text := range list {
		rest, isPattern := strings.CutPrefix(text, "*.")
		name, wrong := domain(rest, false, at.Index(i))
		if len(wrong) == 0 && !strings.Contains(name, ".") {
			wrong = field.ErrorList{field.Invalid(at.Index(i), text, "a name has two labels at least; write one like www.example.com or *.example.com")}
		}
		names := policy.FQDN{Name: name}
		if isPattern {
			names = policy.FQDN{Pattern: "**." + name}
		}
		peers, errs = append(peers, policy.Peer{FQDN: &names}), append(errs, wrong...)
	}
	return peers, errs
}

// translate gives the ports that one entry stands for. A name is not of a protocol, so it stands for one of each that has
// ports.
func (c *clusterPort) translate() (ports []policy.Port, errs field.ErrorList) {
	switch {
	case c.given == 0:
		return nil, field.ErrorList{field.Required(c.at, "an empty entry matches no port; give a number, a range or a name")}
	case c.given > 1:
		return nil, field.ErrorList{field.Forbidden(c.at, "give only one number, range or name; write an entry for each")}
	case c.firstAt == nil:
		for _, protocol := range []uint8{ipproto.TCP, ipproto.UDP, ipproto.SCTP} {
			port, wrong := namedPort(protocol, c.name, c.nameAt)
			ports, errs = append(ports, port), wrong
		}
		return ports, errs
	}
	protocol, errs := protocolOrTCP(c.protocol, c.protocolAt)
	if c.first < 1 || c.first > math.MaxUint16 {
		errs = append(errs, field.Invalid(c.firstAt, c.first, "a port is a number from 1 to 65535"))
	}
	last := c.first
	if c.lastAt != nil {
		last = c.last
		if last <= c.first || last > math.MaxUint16 {
			errs = append(errs, field.Invalid(c.lastAt, last, fmt.Sprintf("the last port of a range lies behind the first (%d), up to 65535", c.first)))
		}
	}
	if len(errs) > 0 {
		return nil, errs
	}
	return []policy.Port{{Protocol: uint8(protocol), First: uint16(c.first), Last: uint16(last)}}, nil
}
