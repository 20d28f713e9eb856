package differential_test

import (
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strconv"
	"strings"

	"pgregory.net/rapid"
	"sigs.k8s.io/yaml"
)

// The generator's world is small, so that what policies name and what packets carry often meet: three namespaces, a
// handful of labels, ports 1 to 6, and ranges whose borders run between the few addresses there are.

// object is a manifest before it is text.
type object = map[string]any

// list is one of its lists.
type list = []any

func pick[T any](t *rapid.T, what string, of ...T) T { return rapid.SampledFrom(of).Draw(t, what) }

// chance is true once in n times; shrinking makes it false.
func chance(t *rapid.T, what string, n int) bool { return rapid.IntRange(0, n-1).Draw(t, what) == n-1 }

// several draws between low and high members of a list.
func several(t *rapid.T, what string, low, high int, draw func(*rapid.T) any) list {
	out := list{}
	for range rapid.IntRange(low, high).Draw(t, what) {
		out = append(out, draw(t))
	}
	return out
}

func namespaces() []string { return []string{"blue", "green", "red"} }

func drawLabels(t *rapid.T, keys, values []string) object {
	out := object{}
	for _, key := range keys {
		if value := pick(t, "label "+key, append([]string{"-"}, values...)...); value != "-" {
			out[key] = value
		}
	}
	return out
}

func podLabels(t *rapid.T) object {
	return drawLabels(t, []string{"app", "tier"}, []string{"a", "b", ""})
}

// drawSelector draws a label selector over some keys and values, seldom a narrow one.
func drawSelector(t *rapid.T, keys, values []string) object {
	s := object{}
	if chance(t, "matchLabels", 2) {
		s["matchLabels"] = object{pick(t, "key", keys...): pick(t, "value", values...)}
	}
	if chance(t, "matchExpressions", 3) {
		e := object{"key": pick(t, "key", keys...), "operator": pick(t, "operator", "In", "NotIn", "Exists", "DoesNotExist")}
		if e["operator"] == "In" || e["operator"] == "NotIn" {
			e["values"] = several(t, "values", 1, 2, func(t *rapid.T) any { return pick(t, "value", values...) })
		}
		s["matchExpressions"] = list{e}
	}
	return s
}

func podSelector(t *rapid.T) object {
	return drawSelector(t, []string{"app", "tier"}, []string{"a", "b", ""})
}

func namespaceSelector(t *rapid.T) object {
	if chance(t, "by name", 3) {
		return object{"matchLabels": object{"kubernetes.io/metadata.name": pick(t, "namespace", namespaces()...)}}
	}
	return drawSelector(t, []string{"team"}, []string{"x", "y"})
}

func nodeSelector(t *rapid.T) object {
	return drawSelector(t, []string{"role"}, []string{"core", "edge"})
}

// ranges nest, overlap and end between the addresses of the town.
func ranges() []string {
	return []string{
		"0.0.0.0/0", "10.0.0.0/8", "10.1.0.0/16", "10.1.0.0/24", "10.1.0.0/30", "10.1.0.2/32", "10.1.1.0/29", "10.0.0.0/24", "10.0.0.2/32",
		"192.0.2.0/24", "192.0.2.0/28", "192.0.2.7/32", "192.0.0.0/16", "::/0", "fd00::/16", "fd00:1::/64", "fd00:1::2/128", "fd00:2::/126",
		"2001:db8::/32", "2001:db8::/120", "2001:db8::7/128",
	}
}

// drawRange draws a range and ranges strictly inside it.
func drawRange(t *rapid.T, most int) (string, list) {
	text := pick(t, "range", ranges()...)
	whole, except := netip.MustParsePrefix(text), list{}
	for _, other := range rapid.SliceOfNDistinct(rapid.SampledFrom(ranges()), 0, most, rapid.ID).Draw(t, "except") {
		if x := netip.MustParsePrefix(other); whole.Bits() < x.Bits() && whole.Overlaps(x) {
			except = append(except, other)
		}
	}
	return text, except
}

func portNumber(t *rapid.T) int { return rapid.IntRange(1, 6).Draw(t, "port") }

// drawSpan draws the two ends of a range of ports.
func drawSpan(t *rapid.T) (first, last int) {
	first = rapid.IntRange(1, 5).Draw(t, "first")
	return first, pick(t, "last", first+1, first+2, 65535)
}

// manifests is everything that a cluster says, as text, by what each object is in the town: a later town may have another
// policy, or another pod, in the same place.
type manifests map[string]string

// drawTown draws everything that a cluster says.
func drawTown(t *rapid.T) manifests {
	out := manifests{}
	add := func(place string, o object) {
		text, err := yaml.Marshal(o)
		if err != nil {
			t.Fatal(err)
		}
		out[place] = string(text)
	}
	for _, name := range namespaces() {
		add("namespace "+name, head("v1", "Namespace", "", name, drawLabels(t, []string{"team"}, []string{"x", "y"})))
	}
	for i, name := range []string{"here", "there"} {
		o := head("v1", "Node", "", name, drawLabels(t, []string{"role"}, []string{"core", "edge"}))
		o["status"] = object{"addresses": list{
			object{"type": "InternalIP", "address": fmt.Sprintf("10.0.0.%d", i+1)}, object{"type": "InternalIP", "address": fmt.Sprintf("fd00::%d", i+1)},
			object{"type": "ExternalIP", "address": fmt.Sprintf("10.0.0.%d", i+101)},
		}}
		add("node "+name, o)
	}
	for i := range endpoints {
		name := fmt.Sprintf("local%d", i+1)
		add("pod "+name, drawPod(t, name, "here", 0, i+1))
	}
	for i := range rapid.IntRange(1, 3).Draw(t, "remote pods") {
		name := fmt.Sprintf("remote%d", i+1)
		add("pod "+name, drawPod(t, name, "there", 1, i+1))
	}
	for i := range rapid.IntRange(1, 5).Draw(t, "policies") {
		name := fmt.Sprintf("p%d", i)
		add("policy "+name, drawPolicy(t, name))
	}
	if chance(t, "baseline", 3) { // there may be one, of this name
		o := head("policy.networking.k8s.io/v1alpha1", "BaselineAdminNetworkPolicy", "", "default", nil)
		o["spec"] = drawBaselinePolicy(t)
		add("policy baseline", o)
	}
	for _, name := range groupNames() {
		o := head("cilium.io/v2", "CiliumCIDRGroup", "", name, drawLabels(t, []string{"trust"}, []string{"x", "y"}))
		o["spec"] = object{"externalCIDRs": rapid.SliceOfNDistinct(rapid.SampledFrom(ranges()), 1, 2, rapid.ID).Draw(t, "ranges")}
		add("group "+name, o)
	}
	for _, name := range serviceNames() {
		addService(t, add, name)
	}
	return out
}

// change draws a town that differs from another in some places.
func (m manifests) change(t *rapid.T) manifests {
	out, other := maps.Clone(m), drawTown(t)
	for _, place := range slices.Sorted(maps.Keys(other)) {
		if chance(t, "change "+place, 3) {
			out[place] = other[place]
		}
	}
	for _, place := range slices.Sorted(maps.Keys(out)) {
		if strings.HasPrefix(place, "policy ") && chance(t, "delete "+place, 5) {
			delete(out, place)
		}
	}
	return out
}

func groupNames() []string { return []string{"near", "far"} }

func serviceNames() []string { return []string{"data", "mail"} }

// addService draws a service without a selector and what answers for it, pods and others.
func addService(t *rapid.T, add func(string, object), name string) {
	namespace := pick(t, "namespace", namespaces()...)
	o := head("v1", "Service", namespace, name, drawLabels(t, []string{"kind"}, []string{"x", "y"}))
	o["spec"] = object{"clusterIP": "10.96.0." + strconv.Itoa(1+slices.Index(serviceNames(), name)), "ports": list{object{"port": 80, "protocol": "TCP"}}}
	add("service "+name, o)
	s := head("discovery.k8s.io/v1", "EndpointSlice", namespace, name+"-1", object{"kubernetes.io/service-name": name})
	s["addressType"] = "IPv4"
	s["ports"] = list{object{"port": portNumber(t), "protocol": "TCP"}}
	s["endpoints"] = list{}
	backends := []string{"10.1.0.1", "10.1.0.2", "10.1.1.1", "10.0.0.2", "192.0.2.7", "203.0.113.1"}
	for _, addr := range rapid.SliceOfNDistinct(rapid.SampledFrom(backends), 0, 3, rapid.ID).Draw(t, "backends") {
		s["endpoints"] = append(s["endpoints"].(list), object{"addresses": list{addr}, "conditions": object{"ready": true}})
	}
	add("service "+name+" slice", s)
}

func head(version, kind, namespace, name string, labels object) object {
	meta := object{"name": name}
	if namespace != "" {
		meta["namespace"] = namespace
	}
	if len(labels) > 0 {
		meta["labels"] = labels
	}
	return object{"apiVersion": version, "kind": kind, "metadata": meta}
}

func drawPod(t *rapid.T, name, node string, subnet, number int) object {
	o := head("v1", "Pod", pick(t, "namespace", namespaces()...), name, podLabels(t))
	ports := several(t, "container ports", 0, 2, func(t *rapid.T) any {
		return object{"name": pick(t, "port name", "http", "dns"), "containerPort": portNumber(t), "protocol": pick(t, "protocol", "TCP", "UDP")}
	})
	if len(ports) == 2 && ports[0].(object)["name"] == ports[1].(object)["name"] { // a name is given once in a pod
		ports = ports[:1]
	}
	o["spec"] = object{
		"nodeName": node, "serviceAccountName": pick(t, "account", "default", "bot"),
		"containers": list{object{"name": "main", "image": "none", "ports": ports}},
	}
	o["status"] = object{"podIPs": list{
		object{"ip": fmt.Sprintf("10.1.%d.%d", subnet, number)}, object{"ip": fmt.Sprintf("fd00:%d::%d", subnet+1, number)},
	}}
	return o
}

// drawPolicy draws an object of any dialect.
func drawPolicy(t *rapid.T, name string) object {
	var o object
	switch pick(t, "dialect", dialects()...) {
	case "NetworkPolicy":
		o = head("networking.k8s.io/v1", "NetworkPolicy", pick(t, "namespace", namespaces()...), name, nil)
		o["spec"] = drawNetworkPolicy(t)
	case "CiliumNetworkPolicy":
		o = head("cilium.io/v2", "CiliumNetworkPolicy", pick(t, "namespace", namespaces()...), name, nil)
		drawCilium(t, o, false)
	case "CiliumClusterwideNetworkPolicy":
		o = head("cilium.io/v2", "CiliumClusterwideNetworkPolicy", "", name, nil)
		drawCilium(t, o, true)
	case "ClusterNetworkPolicy":
		o = head("policy.networking.k8s.io/v1alpha2", "ClusterNetworkPolicy", "", name, nil)
		o["spec"] = drawClusterPolicy(t)
	case "AdminNetworkPolicy":
		o = head("policy.networking.k8s.io/v1alpha1", "AdminNetworkPolicy", "", name, nil)
		o["spec"] = drawAdminPolicy(t)
	}
	if chance(t, "staged", 12) {
		o["metadata"].(object)["annotations"] = object{"tendril.io/stage": "true"}
	}
	return o
}

func dialects() []string {
	return []string{"NetworkPolicy", "CiliumNetworkPolicy", "CiliumClusterwideNetworkPolicy", "ClusterNetworkPolicy", "AdminNetworkPolicy"}
}

func drawNetworkPolicy(t *rapid.T) object {
	spec := object{"podSelector": podSelector(t)}
	if types := rapid.SliceOfNDistinct(rapid.SampledFrom([]string{"Ingress", "Egress"}), 0, 2, rapid.ID).Draw(t, "policyTypes"); len(types) > 0 {
		spec["policyTypes"] = types
	}
	for _, names := range [][2]string{{"ingress", "from"}, {"egress", "to"}} {
		way, peers := names[0], names[1]
		rules := several(t, way, 0, 2, func(t *rapid.T) any {
			r := object{}
			if !chance(t, "no peers", 4) {
				r[peers] = several(t, "peers", 0, 2, networkPeer)
			}
			if chance(t, "has ports", 2) {
				r["ports"] = several(t, "ports", 0, 2, networkPort)
			}
			return r
		})
		if len(rules) > 0 {
			spec[way] = rules
		}
	}
	return spec
}

func networkPeer(t *rapid.T) any {
	switch pick(t, "peer", "pods", "namespaces", "both", "block") {
	case "pods":
		return object{"podSelector": podSelector(t)}
	case "namespaces":
		return object{"namespaceSelector": namespaceSelector(t)}
	case "both":
		return object{"namespaceSelector": namespaceSelector(t), "podSelector": podSelector(t)}
	}
	cidr, except := drawRange(t, 2)
	block := object{"cidr": cidr}
	if len(except) > 0 {
		block["except"] = except
	}
	return object{"ipBlock": block}
}

func networkPort(t *rapid.T) any {
	p := object{}
	if chance(t, "has protocol", 2) {
		p["protocol"] = pick(t, "protocol", "TCP", "UDP", "SCTP")
	}
	switch pick(t, "kind of port", "number", "range", "name", "all") {
	case "number":
		p["port"] = portNumber(t)
	case "range":
		p["port"], p["endPort"] = drawSpan(t)
	case "name":
		p["port"] = pick(t, "port name", "http", "dns")
	}
	return p
}
