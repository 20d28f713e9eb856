package node

import (
	"net/netip"
	"strings"
	"time"

	"github.com/cilium/statedb"
	"golang.org/x/sys/unix"

	"tendril.io/tendril/internal/flow"
	"tendril.io/tendril/internal/identity"
	"tendril.io/tendril/internal/policy"
	"tendril.io/tendril/internal/service"
	"tendril.io/tendril/internal/table"
)

// resolver gives names to the datapath's numbers, from the tables and brains of the moment, and for some minutes from
// what left them. The engine keeps the names of rules that are gone by itself.
type resolver struct{ a *Agent }

// Party implements flow.Resolver.
func (r resolver) Party(addr netip.Addr, peer, _ uint32) flow.PartyInfo {
	txn := r.a.tables.DB.ReadTxn()
	if peer < identity.FirstFree && identity.Reserved(peer) != identity.Init {
		return flow.PartyInfo{Identity: identity.Reserved(peer).String(), Node: r.nodeOf(addr)}
	}
	if who, ok := r.node(addr); ok {
		return who
	}
	loop, self := r.a.policies, r.a.config.Node
	if row, _, ok := r.a.tables.Endpoints.Get(txn, table.EndpointByIP(addr)); ok {
		return loop.party(txn, row.PodUID, row.Namespace, row.Pod, self, row.ArgLabels)
	}
	if row, _, ok := r.a.tables.IPs.Get(txn, table.IPByAddr(addr)); ok {
		return loop.party(txn, row.PodUID, row.Namespace, row.Pod, row.Node, nil)
	}
	if who, ok := r.nodeAt(addr); ok { // a node with labels, or of which policies know more
		return who
	}
	if who, ok := loop.gone.find(addr); ok {
		return who
	}
	return flow.PartyInfo{Identity: identity.World.String()}
}

// nodeAt names the node that has an address of its own, as what it is to this one.
func (r resolver) nodeAt(addr netip.Addr) (who flow.PartyInfo, found bool) {
	r.a.policies.Read(func(*policy.Engine) {
		at, ok := r.a.policies.facts.owner(exact(addr))
		if found = ok && at.kind != kindPodCIDR; found {
			who = flow.PartyInfo{Identity: identity.RemoteNode.String(), Node: at.node}
		}
		if at.node == r.a.config.Node {
			who.Identity = identity.Host.String()
		}
	})
	return who, found
}

// party names a pod for people, also when its record has gone ahead of its address.
func (l *policyLoop) party(txn statedb.ReadTxn, uid, namespace, name, node string, arg *table.LabelSet) flow.PartyInfo {
	workload := l.facts.workload(txn, uid, namespace, name, arg, nil)
	if workload.Reserved == identity.Init {
		if who, ok := l.gonePods.find(uid); ok {
			return who
		}
	}
	return partyOf(workload, namespace, name, node)
}

// named is party for a pod's row, which may be out of the table already.
func (f *facts) named(txn statedb.ReadTxn, pod *table.Pod) flow.PartyInfo {
	workload := policy.Workload{Reserved: identity.Init}
	if set, _, ok := f.tables.LabelSets.Get(txn, table.LabelSetByHash(pod.Labels)); ok {
		workload = f.labelled(set, nil)
	}
	return partyOf(workload, pod.Namespace, pod.Name, pod.Node)
}

func partyOf(workload policy.Workload, namespace, name, node string) flow.PartyInfo {
	info := flow.PartyInfo{Namespace: namespace, Pod: name, Node: node, Identity: identity.Init.String()}
	if workload.Reserved == identity.Unknown { // a pod with labels has no reserved identity
		info.Labels, info.Identity = workload.Labels.Strings(), workloadID(workload).String()
	}
	return info
}

// workloadID is the identity that the store gave, or the one that follows from the labels.
func workloadID(w policy.Workload) identity.ID {
	if !w.Identity.IsZero() {
		return w.Identity
	}
	return identity.Of(w.Cluster, w.Namespace, w.ServiceAccount, w.Labels)
}

// node tells a node with labels, whose peer has no fixed number.
func (r resolver) node(addr netip.Addr) (flow.PartyInfo, bool) {
	var at nodeAddress
	var ok bool
	r.a.policies.Read(func(*policy.Engine) { at, ok = r.a.policies.facts.owner(exact(addr)) })
	if !ok || at.kind == kindPodCIDR {
		return flow.PartyInfo{}, false
	}
	who := identity.RemoteNode
	if at.node == r.a.config.Node {
		who = identity.Host
	}
	return flow.PartyInfo{Identity: who.String(), Node: at.node}, true
}

// nodeOf names the node that has an address of its own.
func (r resolver) nodeOf(addr netip.Addr) string {
	var name string
	r.a.policies.Read(func(*policy.Engine) {
		at, _ := r.a.policies.facts.owner(exact(addr))
		name = at.node
	})
	return name
}

// Rule implements flow.Resolver.
func (r resolver) Rule(id uint32) flow.RuleInfo {
	info, ok := r.a.policies.Rule(id)
	if !ok {
		return flow.RuleInfo{}
	}
	return flow.RuleInfo{Name: ruleName(info), Place: info.Place}
}

// ruleName is what the object, or its author, calls a rule; the place in the object is told beside it.
func ruleName(info policy.RuleInfo) string { return strings.TrimSuffix(info.Name, " "+info.Place) }

// Service implements flow.Resolver.
func (r resolver) Service(frontend netip.AddrPort, protocol uint8) string {
	var parts []string
	r.a.services.Read(func(brain *service.Brain) {
		key := service.FrontendKey{Addr: frontend.Addr(), Port: frontend.Port(), Proto: protocol}
		if namespace, name, ok := brain.FrontendService(key); ok {
			parts = []string{namespace, name}
		}
	})
	return strings.Join(parts, "/")
}

// decoder turns events into records with this node's names.
func (a *Agent) decoder() *flow.Decoder {
	return &flow.Decoder{Resolver: resolver{a}, Node: a.config.Node, BootUnixNano: bootTime()}
}

// bootTime is the wall-clock time at which CLOCK_MONOTONIC was 0, in ns since 1970.
func bootTime() int64 {
	var monotonic unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_MONOTONIC, &monotonic); err != nil {
		return 0
	}
	return time.Now().UnixNano() - monotonic.Nano()
}
