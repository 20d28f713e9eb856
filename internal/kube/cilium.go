package kube

import (
	"slices"
	"strings"

	"k8s.io/apimachinery/pkg/util/validation/field"

	"tendril.io/tendril/api/cilium"
	"tendril.io/tendril/internal/label"
	"tendril.io/tendril/internal/policy"
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
	for _, rule := range ciliumRules(r, namespace, at) {
		// Where nothing comes of it, the rule still counts for isolation above: "ingress: [{}]" is how one writes that nobody
		// may come in.
		translated, wrong := rule.translate()
		spec.Rules, errs = append(spec.Rules, translated...), append(errs, wrong...)
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

// ciliumSubject translates endpointSelector, or nodeSelector. A namespaced policy selects in its own namespace only.
// A selector that names another namespace can select nothing, and is a mistake: a policy that looks as if it protected
// something and does not is worse than none.
func ciliumSubject(r *cilium.Rule, namespace string, at *field.Path) (label.Selector, field.ErrorList) {
	if r.NodeSelector != nil {
		return ciliumNodeSubject(r, namespace, at.Child("nodeSelector"))
	}
	here := at.Child("endpointSelector")
	if r.EndpointSelector == nil {
		return label.Selector{}, field.ErrorList{field.Required(here, "say which endpoints the rule is for; {} selects all")}
	}
	reqs, errs := requirements(r.EndpointSelector, ciliumKey, here)
	for _, req := range reqs {
		elsewhere := namespace != "" && req.Key == factKey(label.FactNamespace) &&
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

// ciliumNodeSubject translates nodeSelector: each node that it selects judges the traffic of its own network namespace,
// the host, which is one of the reserved identities.
func ciliumNodeSubject(r *cilium.Rule, namespace string, at *field.Path) (label.Selector, field.ErrorList) {
	reqs, errs := requirements(r.NodeSelector, nodeKey, at)
	if r.EndpointSelector != nil {
		errs = append(errs, field.Forbidden(at, "nodeSelector and endpointSelector cannot be combined; write a rule for each"))
	}
	if namespace != "" {
		errs = append(errs, field.Forbidden(at, "nodes belong to no namespace; use a CiliumClusterwideNetworkPolicy"))
	}
	return selectorOf(append(reqs, label.FactIs(label.FactReserved, string(policy.EntityHost))), errs)
}

// ciliumRule is a rule of any of the four lists.
type ciliumRule struct {
	at        *field.Path
	direction policy.Direction
	action    policy.Action
	lists     []peerList          // those of peers; a rule uses at most one
	required  bool                // fromRequires or toRequires is used
	requires  []label.Requirement // what it says
	errs      field.ErrorList     // what is wrong with it

	ports          []cilium.PortRule
	icmps          []cilium.ICMPRule
	authentication *cilium.Authentication
}

// ciliumRules lists the rules of the four lists.
// Rules of one list are alternatives. The lists are read in the order in which they take effect, so that messages and
// explanations follow it as well.
func ciliumRules(r *cilium.Rule, namespace string, at *field.Path) []ciliumRule {
	return slices.Concat(
		each(r.IngressDeny, at.Child("ingressDeny"), func(x *cilium.IngressDenyRule, at *field.Path) ciliumRule {
			return fromRule(&x.From, namespace, at).with(policy.Deny, x.ToPorts, x.ICMPs, nil)
		}),
		each(r.Ingress, at.Child("ingress"), func(x *cilium.IngressRule, at *field.Path) ciliumRule {
			return fromRule(&x.From, namespace, at).with(policy.Allow, x.ToPorts, x.ICMPs, x.Authentication)
		}),
		each(r.EgressDeny, at.Child("egressDeny"), func(x *cilium.EgressDenyRule, at *field.Path) ciliumRule {
			return toRule(&x.To, namespace, at).with(policy.Deny, x.ToPorts, x.ICMPs, nil)
		}),
		each(r.Egress, at.Child("egress"), func(x *cilium.EgressRule, at *field.Path) ciliumRule {
			return toRule(&x.To, namespace, at).with(policy.Allow, x.ToPorts, x.ICMPs, x.Authentication)
		}),
	)
}

// each reads the members of a list, which differ from those of its siblings in the names of their fields.
func each[In, Out any](list []In, at *field.Path, read func(*In, *field.Path) Out) []Out {
	out := make([]Out, len(list))
	for i := range list {
		out[i] = read(&list[i], at.Index(i))
	}
	return out
}

// fromRule takes the peers of an ingress rule, or deny rule.
func fromRule(f *cilium.From, namespace string, at *field.Path) ciliumRule {
	requires, errs := ciliumRequires(f.FromRequires, namespace, at.Child("fromRequires"))
	return ciliumRule{
		at: at, direction: policy.Ingress, required: len(f.FromRequires) > 0, requires: requires, errs: errs,
		lists: []peerList{
			listOf(at.Child("fromEndpoints"), f.FromEndpoints, ciliumEndpoints(namespace, requires)),
			listOf(at.Child("fromCIDR"), f.FromCIDR, ciliumCIDR),
			listOf(at.Child("fromCIDRSet"), f.FromCIDRSet, ciliumCIDRRule),
			listOf(at.Child("fromEntities"), f.FromEntities, ciliumEntity),
			listOf(at.Child("fromNodes"), f.FromNodes, ciliumNodes),
			listOf(at.Child("fromGroups"), f.FromGroups, ciliumCloudGroup),
		},
	}
}

// toRule is the same for egress, where more can be named.
func toRule(t *cilium.To, namespace string, at *field.Path) ciliumRule {
	requires, errs := ciliumRequires(t.ToRequires, namespace, at.Child("toRequires"))
	return ciliumRule{
		at: at, direction: policy.Egress, required: len(t.ToRequires) > 0, requires: requires, errs: errs,
		lists: []peerList{
			listOf(at.Child("toEndpoints"), t.ToEndpoints, ciliumEndpoints(namespace, requires)),
			listOf(at.Child("toCIDR"), t.ToCIDR, ciliumCIDR),
			listOf(at.Child("toCIDRSet"), t.ToCIDRSet, ciliumCIDRRule),
			listOf(at.Child("toEntities"), t.ToEntities, ciliumEntity),
			listOf(at.Child("toServices"), t.ToServices, ciliumService),
			listOf(at.Child("toNodes"), t.ToNodes, ciliumNodes),
			listOf(at.Child("toGroups"), t.ToGroups, ciliumCloudGroup),
			listOf(at.Child("toFQDNs"), t.ToFQDNs, ciliumFQDN),
		},
	}
}

// with adds what rules of all lists call by the same names.
func (r ciliumRule) with(action policy.Action, ports []cilium.PortRule, icmps []cilium.ICMPRule, authentication *cilium.Authentication) ciliumRule {
	r.action, r.ports, r.icmps, r.authentication = action, ports, icmps, authentication
	return r
}

// translate gives the rule in the ordered model: a rule for each thing that is asked beyond L4, and one for what the
// requirements keep out. It gives none where nobody is meant.
func (r *ciliumRule) translate() ([]policy.Rule, field.ErrorList) {
	errs := append(r.errs, r.refusals()...)
	peers, wrong := r.peers()
	errs = append(errs, wrong...)
	groups, wrong := r.portGroups()
	errs = append(errs, wrong...)
	var rules []policy.Rule
	if out := outsiders(r.requires); len(out) > 0 {
		rules = append(rules, policy.Rule{Place: r.at.Child(r.side() + "Requires").String(), Direction: r.direction, Action: policy.Deny, Peers: out})
	}
	if len(peers) == 0 {
		return rules, errs
	}
	for _, g := range groups {
		rules = append(rules, policy.Rule{
			Place: g.place, Direction: r.direction, Action: r.action, Peers: peers, Ports: g.ports, L7: g.l7,
		})
	}
	return rules, errs
}

// side is how the fields of peers begin.
func (r *ciliumRule) side() string { return []string{"from", "to"}[r.direction] }

// refusals names what would have to be left out.
// Authentication that is "disabled" asks for nothing and is the only mode that can be honoured. Requirements in a deny
// rule narrow what other policies deny, which would open what their authors closed. A deny of names would let pass every
// address that DNS has not been asked for.
func (r *ciliumRule) refusals() field.ErrorList {
	var errs field.ErrorList
	if r.authentication != nil && r.authentication.Mode != "disabled" {
		errs = append(errs, field.Forbidden(r.at.Child("authentication", "mode"), notYet))
	}
	if r.action != policy.Deny {
		return errs
	}
	if r.required {
		errs = append(errs, field.Forbidden(r.at.Child(r.side()+"Requires"),
			"a deny rule has no requirements; write the labels into its "+r.side()+"Endpoints"))
	}
	for _, list := range r.lists {
		if list.used && list.name() == "toFQDNs" {
			errs = append(errs, field.Forbidden(list.at, "names are for allow rules; to deny a name, allow the others"))
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
//	{fromRequires: [...], ...}        nobody but whom another list names: requirements give no access
//
// NetworkPolicy reads the first and the third as anyone.
func (r *ciliumRule) peers() ([]policy.Peer, field.ErrorList) {
	var names []string
	var peers []policy.Peer
	var errs field.ErrorList
	for _, list := range r.lists {
		if list.used {
			more, wrong := list.translate()
			names, peers, errs = append(names, list.name()), append(peers, more...), append(errs, wrong...)
		}
	}
	switch {
	// Cilium's validation refuses pairs too: whether the lists add up or narrow each other cannot be read off them.
	case len(names) > 1:
		errs = append(errs, field.Forbidden(r.at, strings.Join(names, " and ")+" cannot be combined in one rule; write a rule for each"))
	case len(names) == 0 && len(r.ports)+len(r.icmps) > 0 && !r.required:
		peers = []policy.Peer{{Any: true}}
	}
	return peers, errs
}
