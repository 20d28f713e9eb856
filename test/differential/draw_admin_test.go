package differential_test

import "pgregory.net/rapid"

// drawClusterPolicy draws the spec of a ClusterNetworkPolicy.
func drawClusterPolicy(t *rapid.T) object {
	spec := object{
		"tier": pick(t, "tier", "Admin", "Baseline"), "priority": rapid.IntRange(0, 2).Draw(t, "priority"), "subject": adminPods(t),
	}
	adminRules(t, spec, []string{"Accept", "Deny", "Pass"}, "protocols", clusterProtocol)
	return spec
}

// drawAdminPolicy draws the spec of an AdminNetworkPolicy.
func drawAdminPolicy(t *rapid.T) object {
	spec := object{"priority": rapid.IntRange(0, 2).Draw(t, "priority"), "subject": adminPods(t)}
	adminRules(t, spec, []string{"Allow", "Deny", "Pass"}, "ports", adminPort)
	return spec
}

// drawBaselinePolicy draws the spec of a BaselineAdminNetworkPolicy.
func drawBaselinePolicy(t *rapid.T) object {
	spec := object{"subject": adminPods(t)}
	adminRules(t, spec, []string{"Allow", "Deny"}, "ports", adminPort)
	return spec
}

// adminRules draws the rules of both directions; kinds differ in the names of actions and in how ports are written.
func adminRules(t *rapid.T, spec object, actions []string, ports string, port func(t *rapid.T, named bool) any) {
	for _, names := range [][2]string{{"ingress", "from"}, {"egress", "to"}} {
		way, peers := names[0], names[1]
		rules := several(t, way, 0, 3, func(t *rapid.T) any {
			r := object{"action": pick(t, "action", actions...)}
			named := true // ports of nodes and networks have no names
			r[peers] = several(t, "peers", 1, 2, func(t *rapid.T) any {
				if way == "ingress" || chance(t, "pods", 2) {
					return adminPods(t)
				}
				named = false
				return adminAddresses(t)
			})
			if chance(t, "has ports", 2) {
				r[ports] = several(t, "ports", 1, 2, func(t *rapid.T) any { return port(t, named) })
			}
			return r
		})
		if len(rules) > 0 {
			spec[way] = rules
		}
	}
}

func adminPods(t *rapid.T) object {
	if chance(t, "by namespace", 2) {
		return object{"namespaces": namespaceSelector(t)}
	}
	return object{"pods": object{"namespaceSelector": namespaceSelector(t), "podSelector": podSelector(t)}}
}

func adminAddresses(t *rapid.T) object {
	if chance(t, "nodes", 2) {
		return object{"nodes": nodeSelector(t)}
	}
	return object{"networks": rapid.SliceOfNDistinct(rapid.SampledFrom(ranges()), 1, 2, rapid.ID).Draw(t, "networks")}
}

// clusterProtocol draws an entry of protocols; a name asks for whatever protocol the port has that bears it.
func clusterProtocol(t *rapid.T, named bool) any {
	if named && chance(t, "by name", 3) {
		return object{"destinationNamedPort": pick(t, "port name", "http", "dns")}
	}
	at := object{"number": portNumber(t)}
	if chance(t, "is range", 2) {
		first, last := drawSpan(t)
		at = object{"range": object{"start": first, "end": last}}
	}
	return object{pick(t, "protocol", "tcp", "udp", "sctp"): object{"destinationPort": at}}
}

func adminPort(t *rapid.T, named bool) any {
	if named && chance(t, "by name", 3) {
		return object{"namedPort": pick(t, "port name", "http", "dns")}
	}
	protocol := pick(t, "protocol", "TCP", "UDP", "SCTP")
	if chance(t, "is range", 2) {
		first, last := drawSpan(t)
		return object{"portRange": object{"protocol": protocol, "start": first, "end": last}}
	}
	return object{"portNumber": object{"protocol": protocol, "port": portNumber(t)}}
}
