package kube

import (
	"fmt"
	"net/netip"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	"k8s.io/apimachinery/pkg/util/validation/field"

	"google.golang.org/protobuf/proto"

	"tendril.io/tendril/api/cilium"
	storev1 "tendril.io/tendril/api/store/v1"
	"tendril.io/tendril/api/tendril"
)

// Record is one record of the store. Key is relative to the cluster's prefix, in the spelling of internal/store.
type Record struct {
	Key    string
	Value  proto.Message
	Object *Object // that the record stands for
	Shared bool    // label sets: others may refer to the record, so it is not deleted with the object
}

// Records translates objects to the records of a cluster. Policies are checked as the agent will check them, and two
// objects of the same name are a mistake; the error is a Mistakes with everything wrong, and then no record is returned.
func Records(objects []*Object, cluster string) ([]Record, error) {
	var records []Record
	var mistakes Mistakes
	first := map[string]*Object{}
	for _, object := range objects {
		if twin, ok := first[object.String()]; ok {
			err := fmt.Errorf("defined twice, first in %s document %d; remove one", twin.File, twin.Document)
			mistakes = append(mistakes, &Mistake{File: object.File, Document: object.Document, Object: object.String(), Err: err})
			continue
		}
		first[object.String()] = object
		more, err := object.records(cluster)
		if err != nil {
			mistakes = append(mistakes, err...)
			continue
		}
		records = append(records, more...)
	}
	if len(mistakes) > 0 {
		return nil, mistakes
	}
	return records, nil
}

// records translates one object.
// Keys are spelled out here, since mechanisms do not import each other; `tendril apply` has internal/store parse each of
// them before anything is written.
func (o *Object) records(cluster string) ([]Record, Mistakes) {
	switch object := o.value.(type) {
	case *corev1.Namespace:
		return o.record("namespaces/"+o.Name, &storev1.Namespace{Labels: object.Labels}, checkLabels(object.Labels))
	case *corev1.Node:
		cidrs, errs := podCIDRs(&object.Spec)
		return o.record("nodelabels/"+o.Name, &storev1.NodeLabels{Labels: object.Labels, PodCidrs: cidrs}, append(errs, checkLabels(object.Labels)...))
	case *cilium.CIDRGroup:
		value, errs := cidrGroupRecord(object)
		return o.record("cidrgroups/"+o.Name, value, errs)
	case *tendril.LoadBalancerPool:
		value, errs := poolRecord(object)
		return o.record("pools/"+o.Name, value, errs)
	case *tendril.EgressGateway:
		value, errs := egressRecord(object)
		return o.record("egressgateways/"+o.Name, value, errs)
	case *corev1.Service:
		value, errs := serviceRecord(object)
		return o.record("services/"+o.Namespace+"/"+o.Name, value, errs)
	case *discoveryv1.EndpointSlice:
		value, service, errs := endpointsRecord(object)
		return o.record("endpoints/"+o.Namespace+"/"+service+"/"+o.Name, value, errs)
	case *corev1.Pod:
		return o.podRecords(object, cluster)
	}
	return o.policyRecord()
}

// record makes the one record of an object, unless something was wrong with it.
func (o *Object) record(key string, value proto.Message, errs field.ErrorList) ([]Record, Mistakes) {
	if len(errs) > 0 {
		return nil, o.place(errs)
	}
	return []Record{{Key: key, Value: value, Object: o}}, nil
}

// podCIDRs are what Kubernetes gave a node for its pods; the old field holds the first of the new one.
func podCIDRs(spec *corev1.NodeSpec) ([]string, field.ErrorList) {
	given, at := spec.PodCIDRs, field.NewPath("spec", "podCIDRs")
	if len(given) == 0 && spec.PodCIDR != "" {
		given = []string{spec.PodCIDR}
	}
	var cidrs []string
	var errs field.ErrorList
	for i, text := range given {
		cidr, bad := prefix(text, at.Index(i))
		cidrs, errs = append(cidrs, cidr.String()), append(errs, bad...)
	}
	return cidrs, errs
}

// policyRecord keeps the policy as written, after translating it once to be sure that agents will accept it.
// The object is kept and not its translation, so that an agent of a newer version may read the same object better, and
// an older one can refuse what it does not know.
func (o *Object) policyRecord() ([]Record, Mistakes) {
	p, errs := o.translate()
	if errs = append(errs, noProxy(p.NeedsProxy())...); len(errs) > 0 {
		return nil, o.place(errs)
	}
	namespace := o.Namespace
	if namespace == "" {
		namespace = "-"
	}
	value := &storev1.Policy{Object: o.JSON, Source: o.File}
	return []Record{{Key: "policies/" + o.Kind + "/" + namespace + "/" + o.Name, Value: value, Object: o}}, nil
}

// noProxy refuses what only a proxy could enforce, place by place. Without the filter the ports would be open, or the
// names be nobody's, and the author had neither in mind.
func noProxy(places []string) field.ErrorList {
	errs := make(field.ErrorList, len(places))
	for i, place := range places {
		errs[i] = field.Forbidden(field.NewPath(place),
			"names in DNS and rules about requests need a proxy, which this version does not have; remove the rule")
	}
	return errs
}

// cidrGroupRecord translates a list of ranges. To name one twice changes nothing.
func cidrGroupRecord(g *cilium.CIDRGroup) (*storev1.CIDRGroup, field.ErrorList) {
	errs := checkLabels(g.Labels)
	at := field.NewPath("spec", "externalCIDRs")
	if len(g.Spec.ExternalCIDRs) == 0 {
		errs = append(errs, field.Required(at, "list at least one range"))
	}
	value := &storev1.CIDRGroup{Labels: g.Labels}
	for i, text := range g.Spec.ExternalCIDRs {
		p, wrong := prefixOrAddress(text, at.Index(i))
		value.Prefixes, errs = append(value.Prefixes, p.String()), append(errs, wrong...)
	}
	return value, errs
}

// address reads an IP address as records carry it: 4 or 16 bytes.
// 4 bytes or 16 tell the family, so IPv4 in IPv6 form would be of the wrong one. A zone is a link of one machine, and the
// record is for all of them.
func address(text string, at *field.Path) ([]byte, field.ErrorList) {
	addr, err := netip.ParseAddr(text)
	if err != nil || addr.Zone() != "" || addr.Is4In6() {
		return nil, field.ErrorList{field.Invalid(at, text, "not an IP address; write one like 10.1.2.3 or fd00::1")}
	}
	return addr.AsSlice(), nil
}

// addresses reads a list of them.
func addresses(texts []string, at *field.Path) ([][]byte, field.ErrorList) {
	var all [][]byte
	var errs field.ErrorList
	for i, text := range texts {
		addr, wrong := address(text, at.Index(i))
		all, errs = append(all, addr), append(errs, wrong...)
	}
	return all, errs
}
