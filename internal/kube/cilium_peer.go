package kube

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/validation"
	"k8s.io/apimachinery/pkg/util/validation/field"

	"tendril.io/tendril/api/cilium"
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
		return label.Requirement{Key: factKey(fact), Operator: op, Values: values}, ""
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

// factKey is the key of one of the label package's facts.
func factKey(fact string) label.Key { return label.Key{Scope: label.ScopeFact, Name: fact} }

// reservedKey turns the presence of a reserved label, which has no value, into the value of one fact.
// Whom a peer's address belongs to is one fact with one value here, where Cilium has a label for each. To have the label
// is to have that value; not to have it (NotIn, DoesNotExist) is any other value, or none as pods have. An API server can
// be anyone besides, so that is a fact of its own.
func reservedKey(name string, op label.Operator, values []string) (label.Requirement, string) {
	if _, ok := entityOf(name); !ok || slices.Contains([]string{"all", "cluster", "none", "world-ipv4", "world-ipv6"}, name) {
		return label.Requirement{}, "no such reserved label; known are host, world, remote-node, kube-apiserver, health, init, unmanaged and ingress; other entities are named in fromEntities and toEntities"
	}
	if (op == label.In || op == label.NotIn) && !slices.Equal(values, []string{""}) {
		return label.Requirement{}, "reserved labels have no value; write \"\""
	}
	req := label.FactIs(label.FactReserved, name)
	if name == string(policy.EntityKubeAPIServer) {
		req = label.FactIs(label.FactAPIServer, "true")
	}
	if op == label.NotIn || op == label.DoesNotExist {
		req.Operator = label.NotIn
	}
	return req, ""
}

// isReserved tells whether a requirement asks for a reserved label to be there.
// Only a positive condition does: "not of the world" is true of pods.
func isReserved(r label.Requirement) bool {
	return r.Operator == label.In && (r.Key == factKey(label.FactReserved) || r.Key == factKey(label.FactAPIServer))
}

// namesReserved tells whether the requirements ask for a reserved identity, which has no namespace.
func namesReserved(reqs []label.Requirement) bool { return slices.ContainsFunc(reqs, isReserved) }

// asEntity gives the entity that is meant if one reserved label is all that is asked for.
func asEntity(reqs []label.Requirement) (policy.Entity, bool) {
	if len(reqs) != 1 || !isReserved(reqs[0]) {
		return policy.EntityNone, false
	}
	if reqs[0].Key == factKey(label.FactAPIServer) {
		return policy.EntityKubeAPIServer, true
	}
	return policy.Entity(reqs[0].Values[0]), true
}

// namesNamespace tells whether the requirements say which namespaces they mean.
func namesNamespace(reqs []label.Requirement) bool {
	return slices.ContainsFunc(reqs, func(r label.Requirement) bool {
		return r.Key.Scope == label.ScopeNamespace || r.Key == factKey(label.FactNamespace)
	})
}

// nodeKey reads a key as a label of a node. Nodes have none of what Kubernetes keeps of pods: a selector that asks for
// it would match no node, in a deny rule as well.
func nodeKey(key string, op label.Operator, values []string) (label.Requirement, string) {
	req, wrong := ciliumKey(key, op, values)
	switch {
	case wrong != "":
		return req, wrong
	case req.Key.Scope == label.ScopePod:
		req.Key.Scope = label.ScopeNode
		return req, ""
	}
	return req, "nodes are selected by their own labels, and have no such one"
}

// groupKey reads a key as a label of a service or of a group of ranges.
func groupKey(key string, op label.Operator, values []string) (label.Requirement, string) {
	req, wrong := ciliumKey(key, op, values)
	if wrong == "" && req.Key.Scope != label.ScopePod {
		return req, "the object is selected by its own labels, and has no such one"
	}
	return req, wrong
}

// peerList is one of the lists in which a rule can name its peers.
type peerList struct {
	at        *field.Path
	used      bool // it is there, even if it is empty
	translate func() ([]policy.Peer, field.ErrorList)
}

// name is the field's own name.
func (l peerList) name() string {
	path := l.at.String()
	return path[strings.LastIndexByte(path, '.')+1:]
}

// listOf makes a list whose members are translated one by one.
func listOf[T any](at *field.Path, members []T, one func(T, *field.Path) (policy.Peer, field.ErrorList)) peerList {
	return peerList{at: at, used: members != nil, translate: func() ([]policy.Peer, field.ErrorList) {
		var peers []policy.Peer
		var errs field.ErrorList
		for i, member := range members {
			peer, wrong := one(member, at.Index(i))
			peers, errs = append(peers, peer), append(errs, wrong...)
		}
		return peers, errs
	}}
}

// ciliumEndpoints translates a selector of peers: of the policy's own namespace unless it speaks of namespaces; of all
// namespaces in a clusterwide policy; never of what is outside the cluster. The rule's requirements join each selector.
func ciliumEndpoints(namespace string, requires []label.Requirement) func(metav1.LabelSelector, *field.Path) (policy.Peer, field.ErrorList) {
	return func(s metav1.LabelSelector, at *field.Path) (policy.Peer, field.ErrorList) {
		reqs, errs := ciliumRequirements(&s, namespace, at)
		reqs = append(reqs, requires...)
		if entity, ok := asEntity(reqs); ok && len(errs) == 0 {
			// As an entity it shares its selector, and the bit of every class, with fromEntities.
			return policy.Peer{Entity: entity}, nil
		}
		selector, errs := selectorOf(reqs, errs)
		return policy.Peer{Selector: &selector}, errs
	}
}

// ciliumRequirements reads a selector of peers with the namespace that it means.
// "Speaks of namespaces" is a condition on io.kubernetes.pod.namespace or on a namespace's labels; any operator will do,
// which is how one writes "of every namespace": that key with Exists.
func ciliumRequirements(s *metav1.LabelSelector, namespace string, at *field.Path) ([]label.Requirement, field.ErrorList) {
	reqs, errs := requirements(s, ciliumKey, at)
	switch {
	case namesReserved(reqs):
	case namespace != "" && !namesNamespace(reqs):
		reqs = append(reqs, label.FactIs(label.FactNamespace, namespace))
	default:
		reqs = append(reqs, inAnyNamespace())
	}
	return reqs, errs
}

// ciliumRequires joins the selectors of fromRequires or toRequires into one conjunction.
func ciliumRequires(list []metav1.LabelSelector, namespace string, at *field.Path) ([]label.Requirement, field.ErrorList) {
	var all []label.Requirement
	var errs field.ErrorList
	for i := range list {
		reqs, wrong := ciliumRequirements(&list[i], namespace, at.Index(i))
		all, errs = append(all, reqs...), append(errs, wrong...)
	}
	return all, errs
}

// outsiders are the pods that miss one of the requirements.
// By the comments of Cilium's api.IngressRule a requirement gives no access, and holds for all rules that select the same
// endpoint, of other policies as well. So it is a deny rule about whoever does not meet it: not(a and b) is not(a) or not(b),
// a peer for each. Like the selectors that it joins in Cilium it is about pods.
func outsiders(requires []label.Requirement) []policy.Peer {
	var peers []policy.Peer
	for _, r := range requires {
		if r.Key == inAnyNamespace().Key && r.Operator == label.Exists {
			continue // every pod has a namespace
		}
		r.Operator = map[label.Operator]label.Operator{
			label.In: label.NotIn, label.NotIn: label.In, label.Exists: label.DoesNotExist, label.DoesNotExist: label.Exists,
		}[r.Operator]
		if selector, err := label.NewSelector(r, inAnyNamespace()); err == nil { // what is wrong with it has been reported
			peers = append(peers, policy.Peer{Selector: &selector})
		}
	}
	return peers
}

// ciliumNodes translates a selector of nodes.
func ciliumNodes(s metav1.LabelSelector, at *field.Path) (policy.Peer, field.ErrorList) {
	return nodes(&s, nodeKey, at)
}

// ciliumCIDR translates a range, or one address, outside the cluster.
// By Cilium's documentation ranges are for peers that neither are its endpoints nor nodes of the cluster: such an address
// inside the range is no match, whatever the range. So 0.0.0.0/0 here is the IPv4 outside, where an ipBlock of it is everybody with
// an IPv4 address.
func ciliumCIDR(text string, at *field.Path) (policy.Peer, field.ErrorList) {
	p, errs := prefixOrAddress(text, at)
	return policy.Peer{CIDR: &policy.CIDR{Prefix: p, OutsideOnly: true}}, errs
}

// prefixOrAddress reads a range, or an address as the range of that address alone.
func prefixOrAddress(text string, at *field.Path) (netip.Prefix, field.ErrorList) {
	if addr, err := netip.ParseAddr(text); err == nil && !addr.Is4In6() && addr.Zone() == "" {
		return netip.PrefixFrom(addr, addr.BitLen()), nil
	}
	return prefix(text, at)
}

// ciliumCIDRRule translates a range, or a group of ranges, with exceptions.
// A group is an object that changes on its own, so it stays a name in the model; one that is not there is empty.
func ciliumCIDRRule(c cilium.CIDRRule, at *field.Path) (policy.Peer, field.ErrorList) {
	given := 0
	for _, is := range []bool{c.CIDR != "", c.CIDRGroupRef != "", c.CIDRGroupSelector != nil} {
		if is {
			given++
		}
	}
	switch {
	case given == 0:
		return policy.Peer{}, field.ErrorList{field.Required(at, "give cidr, cidrGroupRef or cidrGroupSelector")}
	case given > 1:
		return policy.Peer{}, field.ErrorList{field.Forbidden(at, "give only one of cidr, cidrGroupRef and cidrGroupSelector; write an entry for each")}
	case c.CIDR != "":
		cidr, errs := rangeOf(c.CIDR, c.Except, true, at)
		return policy.Peer{CIDR: cidr}, errs
	}
	group := &policy.GroupRef{Kind: policy.GroupCIDR, Name: c.CIDRGroupRef, OutsideOnly: true}
	errs := subdomain(c.CIDRGroupRef, at.Child("cidrGroupRef"))
	if c.CIDRGroupSelector != nil {
		group.Labels, errs = groupLabels(c.CIDRGroupSelector, at.Child("cidrGroupSelector"))
	}
	for i, text := range c.Except {
		part, wrong := prefix(text, at.Child("except").Index(i))
		group.Except, errs = append(group.Except, part), append(errs, wrong...)
	}
	return policy.Peer{Group: group}, errs
}

// groupLabels translates a selector of groups or services by their own labels.
func groupLabels(s *metav1.LabelSelector, at *field.Path) (*label.Selector, field.ErrorList) {
	reqs, errs := requirements(s, groupKey, at)
	selector, errs := selectorOf(reqs, errs)
	return &selector, errs
}

// subdomain checks the name of an object, if one is given.
func subdomain(name string, at *field.Path) (errs field.ErrorList) {
	if name == "" {
		return nil
	}
	for _, text := range validation.IsDNS1123Subdomain(name) {
		errs = append(errs, field.Invalid(at, name, text))
	}
	return errs
}

// ciliumService translates an entry of toServices to the addresses of the backends.
// In Cilium an entry without namespace holds for services of any, even in a namespaced policy.
func ciliumService(s cilium.Service, at *field.Path) (policy.Peer, field.ErrorList) {
	group := &policy.GroupRef{Kind: policy.GroupService}
	var errs field.ErrorList
	switch {
	case s.K8sService == nil && s.K8sServiceSelector == nil:
		return policy.Peer{}, field.ErrorList{field.Required(at, "give k8sService or k8sServiceSelector")}
	case s.K8sService != nil && s.K8sServiceSelector != nil:
		return policy.Peer{}, field.ErrorList{field.Forbidden(at, "give only one of k8sService and k8sServiceSelector; write an entry for each")}
	case s.K8sService != nil:
		at = at.Child("k8sService")
		group.Name, group.Namespace = s.K8sService.ServiceName, s.K8sService.Namespace
		if errs = subdomain(group.Name, at.Child("serviceName")); group.Name == "" {
			errs = append(errs, field.Required(at.Child("serviceName"), "name the service"))
		}
	default:
		at = at.Child("k8sServiceSelector")
		group.Labels, errs = groupLabels(&s.K8sServiceSelector.Selector, at.Child("selector"))
		group.Namespace = s.K8sServiceSelector.Namespace
	}
	return policy.Peer{Group: group}, append(errs, subdomain(group.Namespace, at.Child("namespace"))...)
}

// ciliumCloudGroup refuses what only the API of a cloud provider could resolve.
func ciliumCloudGroup(_ any, at *field.Path) (policy.Peer, field.ErrorList) {
	return policy.Peer{}, field.ErrorList{field.Forbidden(at,
		"no cloud provider is asked for its groups; list the ranges in a CiliumCIDRGroup and name it with cidrGroupRef")}
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
