package kube

import (
	"cmp"
	"fmt"
	"net/netip"
	"slices"
	"strconv"
	"strings"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/validation/field"

	"tendril.io/tendril/api/cilium"
	"tendril.io/tendril/internal/ipproto"
	"tendril.io/tendril/internal/label"
	"tendril.io/tendril/internal/policy"
)

// Label keys with a meaning of their own in cilium.io selectors, without their source.
// They are those that Cilium's agent puts on endpoints (its package pkg/k8s/apis/cilium.io), so that existing policies keep their meaning. Here they are facts of the pod and not labels: a pod cannot give itself one.
const (
	keyPodNamespace    = "io.kubernetes.pod.namespace"
	keyServiceAccount  = "io.cilium.k8s.policy.serviceaccount"
	keyCluster         = "io.cilium.k8s.policy.cluster"
	keyNamespaceLabels = "io.cilium.k8s.namespace.labels."
)

// notYet is the end of every refusal of what the datapath cannot enforce so far. Leaving the field out would change what the
// policy allows, so the whole object is refused.
const notYet = "not supported yet; remove the field, or the rule that has it"

// ciliumSpecs translates both kinds; a clusterwide policy has no namespace.
// The kinds share one type: what differs is the namespace, which is empty for CiliumClusterwideNetworkPolicy and then
// limits neither subject nor peers. An object may have spec and specs at once; its rules are independent of each other.
func ciliumSpecs(cnp *cilium.NetworkPolicy, namespace string) ([]policy.Spec, field.ErrorList) {
	if cnp.Spec == nil && len(cnp.Specs) == 0 {
		return nil, field.ErrorList{field.Required(field.NewPath("spec"), "give spec or specs")}
	}
	var specs []policy.Spec
	var errs field.ErrorList
	if cnp.Spec != nil {
		spec, wrong := ciliumSpec(cnp.Spec, namespace, field.NewPath("spec"))
		specs, errs = append(specs, spec), append(errs, wrong...)
	}
	for i := range cnp.Specs {
		spec, wrong := ciliumSpec(&cnp.Specs[i], namespace, field.NewPath("specs").Index(i))
		specs, errs = append(specs, spec), append(errs, wrong...)
	}
	return specs, errs
}

// ciliumSpec translates one rule of the object: subject, default, then the four lists in the order of precedence.
// Source: the documentation of Cilium's network policy language ("Layer 3 Examples", "Policy Enforcement Modes", "Deny
// Policies") and the comments of its type api.Rule. Deny comes first within all policies of a tier, not only within the
// object; internal/policy decides that order, here the rules merely say which they are.
func ciliumSpec(r *cilium.Rule, namespace string, at *field.Path) (policy.Spec, field.ErrorList) {
	spec := policy.Spec{Place: at.String(), Tier: policy.TierNormal}
	var errs field.ErrorList
	spec.Subject, errs = ciliumSubject(r, namespace, at)
	if len(r.Ingress)+len(r.IngressDeny)+len(r.Egress)+len(r.EgressDeny) == 0 {
		errs = append(errs, field.Required(at, "a rule without ingress, ingressDeny, egress and egressDeny does nothing; "+
			"to isolate the endpoints write ingress: [{}]"))
	}
	spec.Isolates[policy.Ingress] = isolates(r.EnableDefaultDeny.Ingress, len(r.Ingress)+len(r.IngressDeny))
	spec.Isolates[policy.Egress] = isolates(r.EnableDefaultDeny.Egress, len(r.Egress)+len(r.EgressDeny))
	for _, rule := range ciliumRules(r, at) {
		translated, wrong := rule.translate(namespace)
		errs = append(errs, wrong...)
		// The rule still counts for isolation above: "ingress: [{}]" is how one writes that nobody may come in.
		if len(translated.Peers) > 0 { // without peers it matches nobody
			spec.Rules = append(spec.Rules, translated)
		}
	}
	return spec, errs
}

// isolates applies the default of enableDefaultDeny: true where the direction has rules.
// Deny rules count: a deny list alone isolates, and since nothing is allowed then, it denies everything. Whoever wants
// only the deny writes enableDefaultDeny: false. That the field is a pointer matters: false is not absent. Isolation by
// one policy is not undone by another's false: the model asks whether any policy isolates.
func isolates(wanted *bool, rules int) bool {
	if wanted != nil {
		return *wanted
	}
	return rules > 0
}

// ciliumSubject translates endpointSelector. A namespaced policy selects in its own namespace only.
// A selector that names another namespace can select nothing, and is a mistake: a policy that looks as if it protected
// something and does not is worse than none.
func ciliumSubject(r *cilium.Rule, namespace string, at *field.Path) (label.Selector, field.ErrorList) {
	if r.NodeSelector != nil {
		return label.Selector{}, field.ErrorList{field.Forbidden(at.Child("nodeSelector"), "policies for nodes are "+notYet)}
	}
	here := at.Child("endpointSelector")
	if r.EndpointSelector == nil {
		return label.Selector{}, field.ErrorList{field.Required(here, "say which endpoints the rule is for; {} selects all")}
	}
	reqs, errs := requirements(r.EndpointSelector, ciliumKey, here)
	for _, req := range reqs {
		elsewhere := namespace != "" && req.Key == label.Key{Scope: label.ScopeFact, Name: label.FactNamespace} &&
			req.Operator == label.In && !slices.Contains(req.Values, namespace)
		if elsewhere {
			errs = append(errs, field.Invalid(here, strings.Join(req.Values, ","),
				"the policy is of namespace "+namespace+" and selects there only; move it or use a CiliumClusterwideNetworkPolicy"))
		}
	}
	switch {
	// Both conditions may name the namespace; to say it twice changes nothing.
	case namespace != "":
		reqs = append(reqs, label.FactIs(label.FactNamespace, namespace))
		// Endpoints that have no labels yet (reserved:init) have no namespace either, and can only be selected by that name.
	case !namesReserved(reqs):
		reqs = append(reqs, inAnyNamespace())
	}
	return selectorOf(reqs, errs)
}

// ciliumKey reads a key with its source: k8s:, any: and none are labels of the pod or one of the keys with a meaning
// of their own; reserved: is an entity.
// A key without source is of any source (api.EndpointSelector). Sources such as container and cidr exist in Cilium; no
// workload here has such labels, so that a selector of one would silently match nobody, and is refused.
func ciliumKey(key string, op label.Operator, values []string) (label.Requirement, string) {
	source, name, hasSource := strings.Cut(key, ":")
	if !hasSource {
		source, name = "any", key
	}
	fact := func(fact string) (label.Requirement, string) {
		return label.Requirement{Key: label.Key{Scope: label.ScopeFact, Name: fact}, Operator: op, Values: values}, ""
	}
	switch {
	case source == "reserved":
		return reservedKey(name, op, values)
	case source != "k8s" && source != "any":
		return label.Requirement{}, fmt.Sprintf("labels of source %q are %s; known sources are k8s, any and reserved", source, notYet)
	case name == keyPodNamespace:
		return fact(label.FactNamespace)
	case name == keyServiceAccount:
		return fact(label.FactServiceAccount)
	case name == keyCluster:
		return fact(label.FactCluster)
	case strings.HasPrefix(name, keyNamespaceLabels):
		return namespaceKey(strings.TrimPrefix(name, keyNamespaceLabels), op, values)
	}
	return podKey(name, op, values)
}

// reservedKey turns the presence of a reserved label, which has no value, into the value of one fact.
// Whom a peer's address belongs to is one fact with one value here, where Cilium has a label for each. To have the label
// is to have that value; not to have it (NotIn, DoesNotExist) is any other value, or none as pods have.
func reservedKey(name string, op label.Operator, values []string) (label.Requirement, string) {
	if _, ok := entityOf(name); !ok || name == "all" || name == "cluster" || name == "none" {
		return label.Requirement{}, "no such reserved label; known are host, world, remote-node, kube-apiserver, health, init, unmanaged and ingress"
	}
	if (op == label.In || op == label.NotIn) && !slices.Equal(values, []string{""}) {
		return label.Requirement{}, "reserved labels have no value; write \"\""
	}
	positive := op == label.In || op == label.Exists
	if positive {
		return label.FactIs(label.FactReserved, name), ""
	}
	req := label.FactIs(label.FactReserved, name)
	req.Operator = label.NotIn
	return req, ""
}

// namesReserved tells whether the requirements ask for a reserved identity, which has no namespace.
// Only a positive condition does: "not of the world" is true of pods, and those have a namespace.
func namesReserved(reqs []label.Requirement) bool {
	return slices.ContainsFunc(reqs, func(r label.Requirement) bool {
		return r.Key == label.Key{Scope: label.ScopeFact, Name: label.FactReserved} && r.Operator == label.In
	})
}

// namesNamespace tells whether the requirements say which namespaces they mean.
func namesNamespace(reqs []label.Requirement) bool {
	return slices.ContainsFunc(reqs, func(r label.Requirement) bool {
		return r.Key.Scope == label.ScopeNamespace || r.Key == label.Key{Scope: label.ScopeFact, Name: label.FactNamespace}
	})
}

// ciliumRule is a rule of any of the four lists, with the names that its fields have there.
type ciliumRule struct {
	at        *field.Path
	direction policy.Direction
	action    policy.Action
	side      string // from or to: how the fields of peers begin

	endpoints      []metav1.LabelSelector
	cidrs          []string
	cidrSet        []cilium.CIDRRule
	entities       []string
	refused        []refusedField
	ports          []cilium.PortRule
	icmps          []cilium.ICMPRule
	authentication *cilium.Authentication
}

// refusedField is a field that is understood but cannot be enforced.
type refusedField struct {
	name string
	used bool
}

// ciliumRules lists the rules of the four lists.
// Rules of one list are alternatives. The lists are read in the order in which they take effect, so that messages and
// explanations follow it as well.
func ciliumRules(r *cilium.Rule, at *field.Path) []ciliumRule {
	var rules []ciliumRule
	for i, x := range r.IngressDeny {
		rule := fromRule(x.From, x.ToPorts, x.ICMPs, at.Child("ingressDeny").Index(i))
		rule.action = policy.Deny
		rules = append(rules, rule)
	}
	for i, x := range r.Ingress {
		rule := fromRule(x.From, x.ToPorts, x.ICMPs, at.Child("ingress").Index(i))
		rule.authentication = x.Authentication
		rules = append(rules, rule)
	}
	for i, x := range r.EgressDeny {
		rule := toRule(x.To, x.ToPorts, x.ICMPs, at.Child("egressDeny").Index(i))
		rule.action = policy.Deny
		rules = append(rules, rule)
	}
	for i, x := range r.Egress {
		rule := toRule(x.To, x.ToPorts, x.ICMPs, at.Child("egress").Index(i))
		rule.authentication = x.Authentication
		rules = append(rules, rule)
	}
	return rules
}

// fromRule takes the fields of an ingress rule, or deny rule, by their common names.
func fromRule(f cilium.From, ports []cilium.PortRule, icmps []cilium.ICMPRule, at *field.Path) ciliumRule {
	return ciliumRule{
		at: at, direction: policy.Ingress, action: policy.Allow, side: "from", ports: ports, icmps: icmps,
		endpoints: f.FromEndpoints, cidrs: f.FromCIDR, cidrSet: f.FromCIDRSet, entities: f.FromEntities,
		refused: []refusedField{
			{"fromNodes", f.FromNodes != nil}, {"fromGroups", f.FromGroups != nil}, {"fromRequires", f.FromRequires != nil},
		},
	}
}

// toRule is the same for egress, where more fields are refused.
// toServices and toFQDNs stand for sets of addresses that change: they need a watcher of services and of DNS answers.
func toRule(t cilium.To, ports []cilium.PortRule, icmps []cilium.ICMPRule, at *field.Path) ciliumRule {
	return ciliumRule{
		at: at, direction: policy.Egress, action: policy.Allow, side: "to", ports: ports, icmps: icmps,
		endpoints: t.ToEndpoints, cidrs: t.ToCIDR, cidrSet: t.ToCIDRSet, entities: t.ToEntities,
		refused: []refusedField{
			{"toServices", t.ToServices != nil}, {"toNodes", t.ToNodes != nil}, {"toGroups", t.ToGroups != nil},
			{"toFQDNs", t.ToFQDNs != nil}, {"toRequires", t.ToRequires != nil},
		},
	}
}

// translate gives the rule in the ordered model. A rule without peers in the result matches nobody.
func (r *ciliumRule) translate(namespace string) (policy.Rule, field.ErrorList) {
	errs := r.refusals()
	peers, wrong := r.peers(namespace)
	errs = append(errs, wrong...)
	ports, wrong := r.portList()
	errs = append(errs, wrong...)
	return policy.Rule{
		Place: r.at.String(), Direction: r.direction, Action: r.action, Peers: peers, Ports: ports,
	}, errs
}

// refusals names what would have to be left out.
// A field counts as used if it is there, even if empty: to drop an empty toFQDNs could turn "nobody" into "anyone at
// these ports". The rules of toPorts are filters of requests; without them the whole port would
// be open. Authentication that is "disabled" asks for nothing and is the only mode that can be honoured.
func (r *ciliumRule) refusals() field.ErrorList {
	var errs field.ErrorList
	for _, f := range r.refused {
		if f.used {
			errs = append(errs, field.Forbidden(r.at.Child(f.name), notYet))
		}
	}
	if r.authentication != nil && r.authentication.Mode != "disabled" {
		errs = append(errs, field.Forbidden(r.at.Child("authentication", "mode"), notYet))
	}
	for i, p := range r.ports {
		at := r.at.Child("toPorts").Index(i)
		for _, f := range []refusedField{
			{"rules", p.Rules != nil}, {"terminatingTLS", p.TerminatingTLS != nil}, {"originatingTLS", p.OriginatingTLS != nil},
			{"serverNames", p.ServerNames != nil}, {"listener", p.Listener != nil},
		} {
			if f.used {
				errs = append(errs, field.Forbidden(at.Child(f.name), notYet))
			}
		}
	}
	return errs
}

// peers translates the one list of peers that the rule uses. Without any, ports alone mean anyone and nothing at all means nobody; a
// list that is there but empty means nobody, too.
// nil is absent and an empty slice is there: encoding/json keeps the two apart, and api/cilium has the fields as slices
// for that reason. This is the trap of the dialect:
//
//	{}                                nobody
//	{toPorts: [...]}                  anyone at these ports
//	{fromEndpoints: []}               nobody
//	{fromEndpoints: [], toPorts: ...} nobody
//	{fromEndpoints: [{}]}             the pods that ciliumEndpoints says
//
// NetworkPolicy reads the first and the third as anyone.
func (r *ciliumRule) peers(namespace string) ([]policy.Peer, field.ErrorList) {
	var used []string
	for _, f := range []refusedField{
		{"Endpoints", r.endpoints != nil}, {"CIDR", r.cidrs != nil}, {"CIDRSet", r.cidrSet != nil}, {"Entities", r.entities != nil},
	} {
		if f.used {
			used = append(used, r.side+f.name)
		}
	}
	switch {
	// Cilium's validation refuses pairs too: whether the lists add up or narrow each other cannot be read off them.
	case len(used) > 1:
		return nil, field.ErrorList{field.Forbidden(r.at, strings.Join(used, " and ")+" cannot be combined in one rule; write a rule for each")}
	case len(used) == 0 && len(r.ports)+len(r.icmps) > 0:
		return []policy.Peer{{Any: true}}, nil
	}
	var peers []policy.Peer
	var errs field.ErrorList
	for i := range r.endpoints {
		peer, wrong := ciliumEndpoints(&r.endpoints[i], namespace, r.at.Child(r.side+"Endpoints").Index(i))
		peers, errs = append(peers, peer), append(errs, wrong...)
	}
	for i, text := range r.cidrs {
		peer, wrong := ciliumCIDR(text, r.at.Child(r.side+"CIDR").Index(i))
		peers, errs = append(peers, peer), append(errs, wrong...)
	}
	for i := range r.cidrSet {
		peer, wrong := ciliumCIDRRule(&r.cidrSet[i], r.at.Child(r.side+"CIDRSet").Index(i))
		peers, errs = append(peers, peer), append(errs, wrong...)
	}
	for i, name := range r.entities {
		peer, wrong := ciliumEntity(name, r.at.Child(r.side+"Entities").Index(i))
		peers, errs = append(peers, peer), append(errs, wrong...)
	}
	return peers, errs
}

// ciliumEndpoints translates a selector of peers: of the policy's own namespace unless it speaks of namespaces; of all
// namespaces in a clusterwide policy; never of what is outside the cluster.
// "Speaks of namespaces" is a condition on io.kubernetes.pod.namespace or on a namespace's labels; any operator will do,
// which is how one writes "of every namespace": that key with Exists.
func ciliumEndpoints(s *metav1.LabelSelector, namespace string, at *field.Path) (policy.Peer, field.ErrorList) {
	reqs, errs := requirements(s, ciliumKey, at)
	if len(errs) == 0 && len(reqs) == 1 && namesReserved(reqs) {
		// As an entity it shares its selector, and the bit of every class, with fromEntities.
		return policy.Peer{Entity: policy.Entity(reqs[0].Values[0])}, nil
	}
	switch {
	case namesReserved(reqs):
	case namespace != "" && !namesNamespace(reqs):
		reqs = append(reqs, label.FactIs(label.FactNamespace, namespace))
	default:
		reqs = append(reqs, inAnyNamespace())
	}
	selector, errs := selectorOf(reqs, errs)
	return policy.Peer{Selector: &selector}, errs
}

// ciliumCIDR translates a range, or one address, outside the cluster.
// By Cilium's documentation ranges are for peers that neither are its endpoints nor nodes of the cluster: such an address
// inside the range is no match, whatever the range. So 0.0.0.0/0 here is the IPv4 outside, where an ipBlock of it is everybody with
// an IPv4 address.
func ciliumCIDR(text string, at *field.Path) (policy.Peer, field.ErrorList) {
	if addr, err := netip.ParseAddr(text); err == nil && !addr.Is4In6() && addr.Zone() == "" {
		return policy.Peer{CIDR: &policy.CIDR{Prefix: netip.PrefixFrom(addr, addr.BitLen()), OutsideOnly: true}}, nil
	}
	p, errs := prefix(text, at)
	return policy.Peer{CIDR: &policy.CIDR{Prefix: p, OutsideOnly: true}}, errs
}

// ciliumCIDRRule translates a range with exceptions. Groups of ranges are objects of their own, which nobody reads yet;
// without its members such a rule would match nobody, so it is refused.
func ciliumCIDRRule(c *cilium.CIDRRule, at *field.Path) (policy.Peer, field.ErrorList) {
	switch {
	case c.CIDRGroupRef != "":
		return policy.Peer{}, field.ErrorList{field.Forbidden(at.Child("cidrGroupRef"), notYet)}
	case c.CIDRGroupSelector != nil:
		return policy.Peer{}, field.ErrorList{field.Forbidden(at.Child("cidrGroupSelector"), notYet)}
	}
	cidr, errs := rangeOf(c.CIDR, c.Except, true, at)
	return policy.Peer{CIDR: cidr}, errs
}

// entityOf maps the names of entities; "all" has no entity of its own, it is every peer.
// world-ipv4 and world-ipv6 are halves of world; cluster is every pod and node but not the outside; "all" includes both,
// and "none" nobody. Names are as in the documentation of Cilium's entities.
func entityOf(name string) (policy.Entity, bool) {
	switch e := policy.Entity(name); e {
	case policy.EntityWorld, policy.EntityWorldIPv4, policy.EntityWorldIPv6, policy.EntityCluster, policy.EntityHost,
		policy.EntityRemoteNode, policy.EntityKubeAPIServer, policy.EntityHealth, policy.EntityInit,
		policy.EntityUnmanaged, policy.EntityIngress, policy.EntityNobody:
		return e, true
	}
	return policy.EntityNone, name == "all"
}

// ciliumEntity translates an entity by name. A name that is misspelt is a mistake, and never nobody: in a deny rule
// that would allow.
func ciliumEntity(name string, at *field.Path) (policy.Peer, field.ErrorList) {
	entity, ok := entityOf(name)
	if !ok {
		return policy.Peer{}, field.ErrorList{field.NotSupported(at, name, []string{
			"all", "cluster", "health", "host", "ingress", "init", "kube-apiserver", "none", "remote-node", "unmanaged",
			"world", "world-ipv4", "world-ipv6",
		})}
	}
	return policy.Peer{Any: name == "all", Entity: entity}, nil
}

// portList translates toPorts or icmps; none means any port of any protocol.
// The several lists of toPorts are alternatives like the ports within one; the split matters only to the filters and TLS
// contexts that are refused. ICMP types travel as ports, so a rule has either.
func (r *ciliumRule) portList() ([]policy.Port, field.ErrorList) {
	if len(r.ports) > 0 && len(r.icmps) > 0 {
		return nil, field.ErrorList{field.Forbidden(r.at.Child("icmps"), "toPorts and icmps cannot be combined in one rule; write a rule for each")}
	}
	var ports []policy.Port
	var errs field.ErrorList
	for i, rule := range r.ports {
		at := r.at.Child("toPorts").Index(i).Child("ports")
		if len(rule.Ports) == 0 {
			errs = append(errs, field.Required(at, `list at least one port; "0" is any port`))
		}
		for j := range rule.Ports {
			more, wrong := ciliumPort(&rule.Ports[j], at.Index(j))
			ports, errs = append(ports, more...), append(errs, wrong...)
		}
	}
	for i, rule := range r.icmps {
		at := r.at.Child("icmps").Index(i).Child("fields")
		if len(rule.Fields) == 0 {
			errs = append(errs, field.Required(at, "list at least one ICMP type"))
		}
		for j := range rule.Fields {
			port, wrong := ciliumICMP(&rule.Fields[j], at.Index(j))
			ports, errs = append(ports, port), append(errs, wrong...)
		}
	}
	return ports, errs
}

// ciliumPort translates a port. Protocol ANY means each protocol that has ports.
// In this dialect a port is a string, number or name. "0" is any port (api.PortProtocol), the only port that protocols
// without ports can have; an absent port is accepted for those. A range cannot begin at a name.
func ciliumPort(p *cilium.PortProtocol, at *field.Path) ([]policy.Port, field.ErrorList) {
	protocols, errs := ciliumProtocols(p.Protocol, at.Child("protocol"))
	// 32 bits and a sign, so that 99999 and -1 are ports out of range, not names of ports.
	number, err := strconv.ParseInt(p.Port, 10, 32)
	named := err != nil
	switch {
	case p.Port == "" && p.EndPort != 0, named && p.EndPort != 0:
		errs = append(errs, field.Forbidden(at.Child("endPort"), "a range starts at a number; set port to it or remove endPort"))
	case p.Port == "" && !slices.ContainsFunc(protocols, hasNoPorts):
		errs = append(errs, field.Required(at.Child("port"), `give a number or a name; "0" is any port`))
	case p.Port != "" && (named || number != 0) && slices.ContainsFunc(protocols, hasNoPorts):
		errs = append(errs, field.Forbidden(at.Child("port"), "protocol "+p.Protocol+` has no ports; write "0" or use icmps`))
	}
	if len(errs) > 0 {
		return nil, errs
	}
	var ports []policy.Port
	for _, protocol := range protocols {
		var port policy.Port
		var wrong field.ErrorList
		switch {
		case p.Port == "" || !named && number == 0 && p.EndPort == 0:
			port = anyPort(protocol)
		case named:
			port, wrong = namedPort(protocol, p.Port, at.Child("port"))
		default:
			port, wrong = portRange(protocol, int32(number), p.EndPort, at)
		}
		if len(wrong) > 0 {
			return nil, wrong
		}
		ports = append(ports, port)
	}
	return ports, nil
}

// hasNoPorts says that a port of the protocol cannot be named.
func hasNoPorts(protocol uint8) bool { return !ipproto.HasPorts(protocol) }

// ciliumProtocols gives the numbers that a protocol's name stands for.
// ANY is not every IP protocol: in Cilium it stands for those that have ports. Names are read whatever their case.
func ciliumProtocols(name string, at *field.Path) ([]uint8, field.ErrorList) {
	switch strings.ToUpper(cmp.Or(name, "ANY")) {
	case "ANY":
		return []uint8{ipproto.TCP, ipproto.UDP, ipproto.SCTP}, nil
	case "TCP":
		return []uint8{ipproto.TCP}, nil
	case "UDP":
		return []uint8{ipproto.UDP}, nil
	case "SCTP":
		return []uint8{ipproto.SCTP}, nil
	case "ICMP":
		return []uint8{ipproto.ICMP}, nil
	case "ICMPV6":
		return []uint8{ipproto.ICMPv6}, nil
	case "VRRP":
		return []uint8{ipproto.VRRP}, nil
	case "IGMP":
		return []uint8{ipproto.IGMP}, nil
	}
	return nil, field.ErrorList{field.NotSupported(at, name, []string{"TCP", "UDP", "SCTP", "ICMP", "ICMPv6", "VRRP", "IGMP", "ANY"})}
}
