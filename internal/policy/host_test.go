package policy_test

import (
	"net/netip"
	"strings"
	"testing"

	"tendril.io/tendril/internal/identity"
	"tendril.io/tendril/internal/label"
	"tendril.io/tendril/internal/policy"
)

func nodeOf(r identity.Reserved, zone string) policy.Workload {
	labels := map[string]string{}
	if zone != "" {
		labels["zone"] = zone
	}
	return policy.Workload{Reserved: r, Labels: label.SetOf(labels)}
}

func zoneIs(zone string) label.Requirement {
	return label.Requirement{Key: label.Key{Scope: label.ScopeNode, Name: "zone"}, Operator: label.In, Values: []string{zone}}
}

func nodes(requirements ...label.Requirement) policy.Peer {
	s := label.MustSelector(append(requirements, label.FactIs(label.FactReserved, "host", "remote-node"))...)
	return policy.Peer{Selector: &s}
}

func (n *node) setAddress(prefix string, fact policy.AddressFact) {
	n.told.Addresses[netip.MustParsePrefix(prefix)] = fact
	n.engine.SetAddress(netip.MustParsePrefix(prefix), fact)
}

func (n *node) peerAt(addr string) uint32 { return n.kernel.Peer(netip.MustParseAddr(addr)) }

func TestNodesAreToldApartByTheirLabels(t *testing.T) {
	n := shop(t)
	east, west, bare := nodeOf(identity.RemoteNode, "east"), nodeOf(identity.RemoteNode, "west"), nodeOf(identity.RemoteNode, "")
	n.setAddress("192.168.0.2/32", policy.AddressFact{Workload: &east, Flags: 8})
	n.setAddress("192.168.0.3/32", policy.AddressFact{Workload: &west, Flags: 8})
	n.setAddress("192.168.0.4/32", policy.AddressFact{Workload: &bare, Flags: 8})
	mustSet(t, n.engine, allow("db", "db", policy.Rule{Peers: []policy.Peer{nodes(zoneIs("east"))}}))
	n.flush(t, nil)
	for addr, want := range map[string]string{"192.168.0.2": "allow", "192.168.0.3": "deny", "192.168.0.4": "deny", "10.0.0.2": "deny"} {
		if got := n.judge(t, packetTo(1, addr, 80)).Action; got != want {
			t.Errorf("from %s: got %s, want %s", addr, got, want)
		}
	}
	if n.peerAt("192.168.0.2") < identity.FirstFree || n.peerAt("192.168.0.4") != uint32(identity.RemoteNode) {
		t.Errorf("got peers %d and %d, want one of its own for the node with labels, the reserved one for that without",
			n.peerAt("192.168.0.2"), n.peerAt("192.168.0.4"))
	}
	if got, want := n.ingressProof("192.168.0.3", tcp, 80).Nearest, `the peer's node label zone is "west", the rule wants node:zone=east`; !strings.Contains(got, want) {
		t.Errorf("got nearest %q, want %q", got, want)
	}
}

func TestNodeIsASubjectOfPoliciesThatAskForIt(t *testing.T) {
	n := shop(t)
	n.told.Subjects[2] = nodeOf(identity.Host, "east")
	n.engine.SetSubject(2, n.told.Subjects[2])
	everybody := allow("everybody", "db", policy.Rule{})
	everybody.Specs[0].Subject = label.MustSelector()
	mustSet(t, n.engine, everybody)
	n.flush(t, nil)
	if got := n.judge(t, packetTo(2, "10.0.0.3", 22)); got.Action != "allow" || got.Builtin != "builtin/default-allow" {
		t.Errorf("got %+v, want the node open: no policy of pods selects it", got)
	}
	p := allow("node", "db", policy.Rule{Peers: []policy.Peer{pods("web")}})
	p.Specs[0].Subject = label.MustSelector(label.FactIs(label.FactReserved, "host"), zoneIs("east"))
	mustSet(t, n.engine, p)
	n.flush(t, nil)
	for addr, want := range map[string]string{"10.0.0.2": "allow", "10.0.0.3": "deny", "192.168.0.1": "deny"} {
		if got := n.judge(t, packetTo(2, addr, 22)).Action; got != want {
			t.Errorf("from %s to the node: got %s, want %s", addr, got, want)
		}
	}
	n.engine.SetSubject(2, nodeOf(identity.Host, "west"))
	n.flush(t, nil)
	if got := n.judge(t, packetTo(2, "10.0.0.3", 22)).Action; got != "allow" {
		t.Errorf("after the node was relabelled: got %s, want allow", got)
	}
}

// Wherever an API server answers, on a node, in a pod or outside, its entity holds it, and so does whatever else it is.
func TestAPIServersAreFoundWhereTheyAre(t *testing.T) {
	n := shop(t)
	host := nodeOf(identity.RemoteNode, "")
	n.setAddress("192.168.0.2/32", policy.AddressFact{Workload: &host, Flags: 8, APIServer: true})
	n.setAddress("9.9.9.9/32", policy.AddressFact{Reserved: identity.World, APIServer: true})
	web := app("web")
	n.setAddress("10.0.0.2/32", policy.AddressFact{Workload: &web, Flags: 8, APIServer: true})
	ask := label.MustSelector(label.FactIs(label.FactAPIServer, "true"))
	for sentence, peer := range map[string]policy.Peer{"entity": {Entity: policy.EntityKubeAPIServer}, "selector": {Selector: &ask}} {
		mustSet(t, n.engine, allow("db", "db", policy.Rule{Peers: []policy.Peer{peer}}))
		n.flush(t, nil)
		for addr, want := range map[string]string{"192.168.0.2": "allow", "9.9.9.9": "allow", "10.0.0.2": "allow", "10.0.0.3": "deny", "8.8.8.8": "deny"} {
			if got := n.judge(t, packetTo(1, addr, 80)).Action; got != want {
				t.Errorf("%s, from %s: got %s, want %s", sentence, addr, got, want)
			}
		}
	}
	for entity, addr := range map[policy.Entity]string{policy.EntityRemoteNode: "192.168.0.2", policy.EntityWorld: "9.9.9.9"} {
		mustSet(t, n.engine, allow("db", "db", policy.Rule{Peers: []policy.Peer{{Entity: entity}}}))
		n.flush(t, nil)
		if got := n.judge(t, packetTo(1, addr, 80)).Action; got != "allow" {
			t.Errorf("entity %s, from %s: got %s, want allow", entity, addr, got)
		}
	}
	n.setAddress("9.9.9.9/32", policy.AddressFact{Reserved: identity.World})
	n.flush(t, nil)
	if got := n.peerAt("9.9.9.9"); got != uint32(identity.World) {
		t.Errorf("got peer %d for what is no API server any more, want the world", got)
	}
}
