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

func (l *policyLoop) serviceChanged(row *table.Service, _ bool) {
	l.setService(row.Namespace, row.Name)
}

func (l *policyLoop) backendsChanged(row *table.Backends, _ bool) {
	l.setService(row.Namespace, row.Service)
}

// setService puts together what the slices of a service and its object say. Either may be there without the other: then
// the service has no backends yet, or no labels.
func (l *policyLoop) setService(namespace, name string) {
	txn := l.tables.DB.ReadTxn()
	service, _, known := l.tables.Services.Get(txn, table.ServiceByName(namespace, name))
	addrs := map[netip.Addr]bool{}
	for slice := range l.tables.Backends.Prefix(txn, table.BackendsByKey(namespace, name, "")) {
		known = true
		for _, backend := range slice.Backends {
			for _, addr := range backend.Addrs {
				addrs[addr.Unmap()] = true
			}
		}
	}
	if namespace == apiServerNamespace && name == apiServerService {
		for _, prefix := range l.facts.setAPIServers(addrs) {
			l.prefixes[prefix] = struct{}{}
		}
	}
	if !known {
		l.engine.DeleteGroup(policy.GroupService, namespace, name)
		return
	}
	group := policy.Group{Kind: policy.GroupService, Namespace: namespace, Name: name}
	if service != nil {
		group.Labels = label.SetOf(service.Labels)
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
