package node

import (
	"net/netip"
	"testing"

	"tendril.io/tendril/bpf"
	"tendril.io/tendril/internal/identity"
	"tendril.io/tendril/internal/policy"
	"tendril.io/tendril/internal/table"
)

func TestNodeIsKnownByItsLabels(t *testing.T) {
	f := testFacts(t, Config{Mode: ModeNative})
	f.setNode(&table.Node{Name: "node2", Addresses: addrs("172.30.0.2")}, false)
	txn := f.tables.DB.WriteTxn(f.tables.NodeLabels)
	if _, _, err := f.tables.NodeLabels.Insert(txn, &table.NodeLabels{Node: "node2", Labels: map[string]string{"zone": "east"}}); err != nil {
		t.Fatal(err)
	}
	txn.Commit()
	got := f.fact(t, "172.30.0.2").Workload
	if got == nil || got.Reserved != identity.RemoteNode || got.Labels.String() != "zone=east" {
		t.Errorf("got %+v, want a remote node with its labels", got)
	}
}

func TestAPIServersAreKnownWhereverTheyAnswer(t *testing.T) {
	f := testFacts(t, Config{Mode: ModeNative})
	f.setNode(&table.Node{Name: "node2", Addresses: addrs("172.30.0.2"), PodCIDRs: []netip.Prefix{netip.MustParsePrefix("10.1.0.0/24")}}, false)
	changed := f.setAPIServers(map[netip.Addr]bool{
		netip.MustParseAddr("172.30.0.2"): true, netip.MustParseAddr("9.9.9.9"): true, netip.MustParseAddr("10.1.0.9"): true,
	})
	if len(changed) != 3 {
		t.Errorf("got %d addresses to look at again, want 3", len(changed))
	}
	if got := f.fact(t, "172.30.0.2"); !got.APIServer || got.Reserved != identity.RemoteNode {
		t.Errorf("on a node: got %+v, want the node, and an API server", got)
	}
	if got := f.fact(t, "9.9.9.9"); !got.APIServer || got.Reserved != identity.World {
		t.Errorf("outside: got %+v, want the world, and an API server", got)
	}
	if got := f.fact(t, "10.1.0.9"); got.APIServer {
		t.Errorf("at a pod's address that no pod has: got %+v, want nothing", got)
	}
	if changed := f.setAPIServers(map[netip.Addr]bool{netip.MustParseAddr("172.30.0.2"): true}); len(changed) != 2 {
		t.Errorf("got %v to look at again, want the two that went", changed)
	}
	if got := f.fact(t, "9.9.9.9"); got.APIServer {
		t.Errorf("after it went: got %+v", got)
	}
}

// ciliumGroups lets a CIDR group, API servers and the nodes of a zone reach the pod.
const ciliumGroups = `{"apiVersion":"cilium.io/v2","kind":"CiliumNetworkPolicy","metadata":{"namespace":"shop","name":"web"},
"spec":{"endpointSelector":{},"ingress":[{"fromCIDRSet":[{"cidrGroupRef":"office"}]},{"fromEntities":["kube-apiserver"]},
{"fromNodes":[{"matchLabels":{"zone":"east"}}]}]}}`

func TestGroupsAndNodesThatPoliciesNameFollowTheTables(t *testing.T) {
	n := startWeb(t)
	insert(n, n.tables.Policies, &table.Policy{Kind: "CiliumNetworkPolicy", Namespace: "shop", Name: "web", Object: []byte(ciliumGroups), Revision: 2})
	insert(n, n.tables.Nodes, &table.Node{Name: "node2", Addresses: addrs("172.30.0.2")})
	become := func(from string, want bpf.Action) {
		t.Helper()
		eventually(t, from+" becomes "+want.String(), func() bool { return n.datapath.judge(1, from, 80) == want })
	}
	for _, from := range []string{"9.9.9.9", "8.8.8.8", "172.30.0.2"} {
		become(from, bpf.ActionDeny)
	}
	office := &table.CIDRGroup{Name: "office", Prefixes: []netip.Prefix{netip.MustParsePrefix("9.9.0.0/16")}}
	server := &table.Backends{Namespace: "default", Service: "kubernetes", Slice: "a", Backends: []table.Backend{{Addrs: addrs("8.8.8.8")}}}
	east := &table.NodeLabels{Node: "node2", Labels: map[string]string{"zone": "east"}}
	insert(n, n.tables.CIDRGroups, office)
	insert(n, n.tables.Backends, server)
	insert(n, n.tables.NodeLabels, east)
	for _, from := range []string{"9.9.9.9", "8.8.8.8", "172.30.0.2"} {
		become(from, bpf.ActionAllow)
	}
	remove(n, n.tables.CIDRGroups, office)
	remove(n, n.tables.Backends, server)
	remove(n, n.tables.NodeLabels, east)
	for _, from := range []string{"9.9.9.9", "8.8.8.8", "172.30.0.2"} {
		become(from, bpf.ActionDeny)
	}
}

// ciliumServices lets the pod speak with the backends of one service by its name, and of others by their labels.
const ciliumServices = `{"apiVersion":"cilium.io/v2","kind":"CiliumNetworkPolicy","metadata":{"namespace":"shop","name":"web"},
"spec":{"endpointSelector":{},"egress":[{"toServices":[{"k8sService":{"serviceName":"mail","namespace":"office"}}]},
{"toServices":[{"k8sServiceSelector":{"selector":{"matchLabels":{"tier":"db"}}}}]}]}}`

func TestServicesThatPoliciesNameFollowTheTables(t *testing.T) {
	n := startWeb(t)
	become := func(to string, want bpf.Action) {
		t.Helper()
		eventually(t, to+" becomes "+want.String(), func() bool { return n.datapath.judgeAt(1, policy.Egress, to, 80) == want })
	}
	const named, labelled = "9.9.9.9", "8.8.8.8"
	become(named, bpf.ActionAllow)
	insert(n, n.tables.Policies, &table.Policy{Kind: "CiliumNetworkPolicy", Namespace: "shop", Name: "web", Object: []byte(ciliumServices), Revision: 2})
	become(named, bpf.ActionDeny)
	become(labelled, bpf.ActionDeny)

	mail := &table.Backends{Namespace: "office", Service: "mail", Slice: "a", Backends: []table.Backend{{Addrs: addrs(named)}}}
	insert(n, n.tables.Backends, mail)
	become(named, bpf.ActionAllow)

	// The labels are of the object and the addresses of its slices, which come in any order.
	insert(n, n.tables.Backends, &table.Backends{Namespace: "shop", Service: "sql", Slice: "a", Backends: []table.Backend{{Addrs: addrs(labelled)}}})
	insert(n, n.tables.Services, &table.Service{Namespace: "shop", Name: "sql", Labels: map[string]string{"tier": "db"}})
	become(labelled, bpf.ActionAllow)
	insert(n, n.tables.Services, &table.Service{Namespace: "shop", Name: "sql", Labels: map[string]string{"tier": "web"}})
	become(labelled, bpf.ActionDeny)
	sql := &table.Service{Namespace: "shop", Name: "sql", Labels: map[string]string{"tier": "db"}}
	insert(n, n.tables.Services, sql)
	become(labelled, bpf.ActionAllow)
	remove(n, n.tables.Services, sql)
	become(labelled, bpf.ActionDeny)
	remove(n, n.tables.Backends, mail)
	become(named, bpf.ActionDeny)
}
