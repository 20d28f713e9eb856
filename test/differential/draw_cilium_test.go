package differential_test

import (
	"strconv"

	"pgregory.net/rapid"
)

// drawCilium draws the spec or the specs of a policy of cilium.io.
func drawCilium(t *rapid.T, o object, clusterwide bool) {
	if chance(t, "specs", 4) {
		o["specs"] = several(t, "specs", 1, 2, func(t *rapid.T) any { return ciliumSpec(t, clusterwide) })
		return
	}
	o["spec"] = ciliumSpec(t, clusterwide)
}

func ciliumSpec(t *rapid.T, clusterwide bool) object {
	subject := podSelector(t)
	if clusterwide && chance(t, "of one namespace", 2) {
		subject["matchLabels"] = object{"k8s:io.kubernetes.pod.namespace": pick(t, "namespace", namespaces()...)}
	}
	spec := object{"endpointSelector": subject}
	if clusterwide && chance(t, "of nodes", 4) {
		spec = object{"nodeSelector": nodeSelector(t)}
	}
	for _, name := range []string{"ingress", "ingressDeny", "egress", "egressDeny"} {
		most, peers := 2, "to"
		if name == "ingressDeny" || name == "egressDeny" {
			most = 1
		}
		if name[0] == 'i' {
			peers = "from"
		}
		if rules := several(t, name, 0, most, func(t *rapid.T) any { return ciliumRule(t, peers, most == 1) }); len(rules) > 0 {
			spec[name] = rules
		}
	}
	if len(spec) == 1 { // a rule has to say something
		spec["ingress"] = list{object{}}
	}
	isolates := object{}
	for _, way := range []string{"ingress", "egress"} {
		if chance(t, "default deny "+way, 4) {
			isolates[way] = rapid.Bool().Draw(t, "isolates")
		}
	}
	if len(isolates) > 0 {
		spec["enableDefaultDeny"] = isolates
	}
	return spec
}

// ciliumRule draws a rule whose lists begin with a word, from or to.
func ciliumRule(t *rapid.T, word string, isDeny bool) any {
	r := object{}
	switch pick(t, "peers", "Endpoints", "Entities", "CIDR", "CIDRSet", "Nodes", "Services", "none") {
	case "Endpoints":
		r[word+"Endpoints"] = several(t, "endpoints", 0, 2, ciliumEndpoints)
	case "Entities":
		r[word+"Entities"] = several(t, "entities", 1, 2, func(t *rapid.T) any {
			return pick(t, "entity", "all", "world", "world-ipv4", "world-ipv6", "cluster", "host", "remote-node", "kube-apiserver", "none")
		})
	case "CIDR":
		r[word+"CIDR"] = several(t, "ranges", 1, 2, func(t *rapid.T) any { return pick(t, "range", append(ranges(), "192.0.2.7", "2001:db8::7")...) })
	case "CIDRSet":
		r[word+"CIDRSet"] = several(t, "ranges", 1, 2, ciliumSet)
	case "Nodes":
		r[word+"Nodes"] = several(t, "nodes", 1, 2, func(t *rapid.T) any { return nodeSelector(t) })
	case "Services":
		if word == "to" {
			r["toServices"] = several(t, "services", 1, 2, ciliumService)
		}
	}
	if !isDeny && chance(t, "requires", 8) {
		r[word+"Requires"] = several(t, "requires", 0, 1, ciliumEndpoints)
	}
	switch pick(t, "ports", "none", "ports", "icmps") {
	case "ports":
		r["toPorts"] = several(t, "toPorts", 1, 2, func(t *rapid.T) any { return object{"ports": several(t, "ports", 1, 2, ciliumPort)} })
	case "icmps":
		r["icmps"] = list{object{"fields": several(t, "fields", 1, 2, icmpField)}}
	}
	return r
}

// ciliumEndpoints draws a selector by the labels that endpoints have, with sources and without.
func ciliumEndpoints(t *rapid.T) any {
	s := drawSelector(t, []string{"app", "k8s:tier", "any:app"}, []string{"a", "b", ""})
	extra := pick(t, "fact", "", "", "io.kubernetes.pod.namespace", "k8s:io.kubernetes.pod.namespace", "k8s:io.cilium.k8s.namespace.labels.team", "io.cilium.k8s.policy.serviceaccount", "reserved")
	switch extra {
	case "":
		return s
	case "reserved":
		return object{"matchLabels": object{"reserved:" + pick(t, "reserved", "host", "remote-node", "world", "kube-apiserver"): ""}}
	}
	labels, ok := s["matchLabels"].(object)
	if !ok {
		labels = object{}
	}
	switch extra {
	case "k8s:io.cilium.k8s.namespace.labels.team":
		labels[extra] = pick(t, "team", "x", "y")
	case "io.cilium.k8s.policy.serviceaccount":
		labels[extra] = pick(t, "account", "default", "bot")
	default:
		labels[extra] = pick(t, "namespace", namespaces()...)
	}
	s["matchLabels"] = labels
	return s
}

// ciliumSet draws a range, or groups of them by name or by labels.
func ciliumSet(t *rapid.T) any {
	cidr, except := drawRange(t, 2)
	set := object{"cidr": cidr}
	switch pick(t, "by", "range", "group", "labels") {
	case "group":
		set = object{"cidrGroupRef": pick(t, "group", append(groupNames(), "unknown")...)}
	case "labels":
		set = object{"cidrGroupSelector": drawSelector(t, []string{"trust"}, []string{"x", "y"})}
	}
	if len(except) > 0 {
		set["except"] = except
	}
	return set
}

func ciliumService(t *rapid.T) any {
	ref := object{}
	if chance(t, "by labels", 2) {
		ref["selector"] = drawSelector(t, []string{"kind"}, []string{"x", "y"})
	} else {
		ref["serviceName"] = pick(t, "service", serviceNames()...)
	}
	if chance(t, "of a namespace", 2) {
		ref["namespace"] = pick(t, "namespace", namespaces()...)
	}
	if _, byName := ref["serviceName"]; byName {
		return object{"k8sService": ref}
	}
	return object{"k8sServiceSelector": ref}
}

func ciliumPort(t *rapid.T) any {
	p := object{}
	if chance(t, "has protocol", 2) {
		p["protocol"] = pick(t, "protocol", "TCP", "UDP", "SCTP", "ANY")
	}
	switch pick(t, "kind of port", "number", "range", "name", "all") {
	case "number":
		p["port"] = strconv.Itoa(portNumber(t))
	case "range":
		first, last := drawSpan(t)
		p["port"], p["endPort"] = strconv.Itoa(first), last
	case "name":
		p["port"] = pick(t, "port name", "http", "dns")
	case "all":
		p["port"] = "0"
	}
	return p
}

func icmpField(t *rapid.T) any {
	if chance(t, "IPv6", 2) {
		return object{"family": "IPv6", "type": pick[any](t, "type", 128, "EchoRequest", 1)}
	}
	return object{"type": pick[any](t, "type", 8, "EchoRequest", 3)}
}
