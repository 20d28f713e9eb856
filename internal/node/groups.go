package node

import (
	"net/netip"

	"tendril.io/tendril/internal/label"
	"tendril.io/tendril/internal/policy"
	"tendril.io/tendril/internal/table"
)

// The groups of addresses that policies name: ranges with a name, and the backends of services.

// The service whose backends are the cluster's API servers.
const (
	apiServerNamespace = "default"
	apiServerService   = "kubernetes"
)

// nodeLabelsChanged looks again at the addresses of a node, and at the node itself if it is this one.
func (l *policyLoop) nodeLabelsChanged(row *table.NodeLabels, _ bool) {
	l.host.stale = l.host.stale || row.Node == l.facts.self
	for _, prefix := range l.facts.byNode[row.Node] {
		l.prefixes[prefix] = struct{}{}
	}
}

func (l *policyLoop) cidrGroupChanged(row *table.CIDRGroup, deleted bool) {
	if deleted {
		l.engine.DeleteGroup(policy.GroupCIDR, "", row.Name)
		return
	}
	l.setGroup(policy.Group{Kind: policy.GroupCIDR, Name: row.Name, Labels: label.SetOf(row.Labels), Prefixes: row.Prefixes})
}

// backendsChanged puts together what the slices of a service say.
func (l *policyLoop) backendsChanged(row *table.Backends, _ bool) {
	group := policy.Group{Kind: policy.GroupService, Namespace: row.Namespace, Name: row.Service}
	addrs, slices := map[netip.Addr]bool{}, 0
	for slice := range l.tables.Backends.Prefix(l.tables.DB.ReadTxn(), table.BackendsByKey(row.Namespace, row.Service, "")) {
		slices++
		for _, backend := range slice.Backends {
			for _, addr := range backend.Addrs {
				addrs[addr.Unmap()] = true
			}
		}
	}
	if row.Namespace == apiServerNamespace && row.Service == apiServerService {
		for _, prefix := range l.facts.setAPIServers(addrs) {
			l.prefixes[prefix] = struct{}{}
		}
	}
	if slices == 0 {
		l.engine.DeleteGroup(group.Kind, group.Namespace, group.Name)
		return
	}
	for addr := range addrs {
		group.Prefixes = append(group.Prefixes, exact(addr))
	}
	l.setGroup(group)
}

func (l *policyLoop) setGroup(group policy.Group) {
	if err := l.engine.SetGroup(group); err != nil {
		l.log.Error("group of addresses refused; it stays as it was", "error", err)
	}
}
