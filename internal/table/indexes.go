package table

import (
	"encoding/binary"
	"net/netip"

	"github.com/cilium/statedb"
	"github.com/cilium/statedb/index"
)

// A composite key is its parts joined by a slash, which no part contains: the store refuses such names.

// Names of the primary indexes whose queries are on the path of every event.
const (
	podKey = "key"
	ipsKey = "key"
)

// NodeByName finds the node of a name.
func NodeByName(name string) statedb.Query[*Node] { return nodeByName().Query(name) }

// PodByKey finds a pod by node/namespace/name, the end of its key in the store. It allocates nothing.
func PodByKey(key string) statedb.Query[*Pod] {
	return statedb.Index[*Pod, string]{Name: podKey}.QueryFromKey(index.String(key))
}

// PodByName finds the pods of a name: more than one only while a pod moves.
func PodByName(namespace, name string) statedb.Query[*Pod] {
	return podByName().Query(joined(namespace, name))
}

// PodByUID finds the pod of a Kubernetes uid.
func PodByUID(uid string) statedb.Query[*Pod] { return podByUID().Query(uid) }

// PodByLabels finds the pods that have a label set.
func PodByLabels(hash [16]byte) statedb.Query[*Pod] { return podByLabels().Query(hash) }

// IPByKey finds an address as one node published it.
func IPByKey(node string, addr netip.Addr) statedb.Query[*IP] {
	return statedb.Index[*IP, string]{Name: ipsKey}.QueryFromKey(ipKey(node, addr))
}

// IPByAddr finds an address: more than one row only if nodes disagree.
func IPByAddr(addr netip.Addr) statedb.Query[*IP] { return ipByAddr().Query(addr) }

// IPByPodUID finds the addresses of a pod.
func IPByPodUID(uid string) statedb.Query[*IP] { return ipByPodUID().Query(uid) }

// IPByNode finds the addresses that a node published; it is a query for Prefix, not for List.
func IPByNode(node string) statedb.Query[*IP] {
	return statedb.Index[*IP, string]{Name: ipsKey}.QueryFromKey(index.String(node + "/"))
}

// LabelSetByHash finds a label set.
func LabelSetByHash(hash [16]byte) statedb.Query[*LabelSet] { return labelSetByHash().Query(hash) }

// NamespaceByName finds a namespace.
func NamespaceByName(name string) statedb.Query[*Namespace] { return namespaceByName().Query(name) }

// NodeLabelsByNode finds the labels of a node.
func NodeLabelsByNode(node string) statedb.Query[*NodeLabels] { return nodeLabelsByNode().Query(node) }

// AliveByNode finds the sign of life of a node.
func AliveByNode(node string) statedb.Query[*Alive] { return aliveByNode().Query(node) }

// CIDRGroupByName finds a group of ranges.
func CIDRGroupByName(name string) statedb.Query[*CIDRGroup] { return cidrGroupByName().Query(name) }

// EgressGatewayByName finds an egress gateway.
func EgressGatewayByName(name string) statedb.Query[*EgressGateway] {
	return egressGatewayByName().Query(name)
}

// ServiceByName finds a service.
func ServiceByName(namespace, name string) statedb.Query[*Service] {
	return serviceByName().Query(joined(namespace, name))
}

// BackendsByKey finds one slice of a service's backends.
func BackendsByKey(namespace, service, slice string) statedb.Query[*Backends] {
	return backendsByKey().Query(joined(namespace, service, slice))
}

// CounterByKind finds how far a kind of record has been counted.
func CounterByKind(kind string) statedb.Query[*Counter] {
	return counterByKind().Query(kind)
}

// PolicyByKey finds a policy; namespace is empty for cluster-wide kinds.
func PolicyByKey(kind, namespace, name string) statedb.Query[*Policy] {
	return policyByKey().Query(joined(kind, namespace, name))
}

// EndpointByID finds an endpoint of this node.
func EndpointByID(id uint32) statedb.Query[*Endpoint] { return endpointByID().Query(id) }

// EndpointByIP finds the endpoint that has an address.
func EndpointByIP(addr netip.Addr) statedb.Query[*Endpoint] { return endpointByIP().Query(addr) }

// EndpointByPod finds the endpoints of a pod by name.
func EndpointByPod(namespace, name string) statedb.Query[*Endpoint] {
	return endpointByPod().Query(joined(namespace, name))
}

// DeviceByIndex finds a device.
func DeviceByIndex(ifindex uint32) statedb.Query[*Device] { return deviceByIndex().Query(ifindex) }

func nodeByName() statedb.Index[*Node, string] {
	return text("name", true, func(n *Node) string { return n.Name })
}

func podByKey() statedb.Index[*Pod, string] {
	return text(podKey, true, func(p *Pod) string { return joined(p.Node, p.Namespace, p.Name) })
}

func podByName() statedb.Index[*Pod, string] {
	return text("name", false, func(p *Pod) string { return joined(p.Namespace, p.Name) })
}

func podByUID() statedb.Index[*Pod, string] {
	return text("uid", false, func(p *Pod) string { return p.UID })
}

func podByLabels() statedb.Index[*Pod, [16]byte] {
	return statedb.Index[*Pod, [16]byte]{
		Name:       "labels",
		FromObject: func(p *Pod) index.KeySet { return index.NewKeySet(p.Labels[:]) },
		FromKey:    func(hash [16]byte) index.Key { return hash[:] },
		FromString: index.FromString,
	}
}

func ipByKey() statedb.Index[*IP, string] {
	return statedb.Index[*IP, string]{
		Name:       ipsKey,
		FromObject: func(ip *IP) index.KeySet { return index.NewKeySet(ipKey(ip.Node, ip.Addr)) },
		FromKey:    index.String,
		FromString: index.FromString,
		Unique:     true,
	}
}

// ipKey is a node's name, a slash and 16 bytes.
func ipKey(node string, addr netip.Addr) index.Key {
	bytes := addr.As16()
	key := make(index.Key, 0, len(node)+1+len(bytes))
	key = append(key, node...)
	key = append(key, '/')
	return append(key, bytes[:]...)
}

func ipByAddr() statedb.Index[*IP, netip.Addr] {
	return statedb.Index[*IP, netip.Addr]{
		Name:       "addr",
		FromObject: func(ip *IP) index.KeySet { return index.NewKeySet(index.NetIPAddr(ip.Addr)) },
		FromKey:    index.NetIPAddr,
		FromString: index.NetIPAddrString,
	}
}

func ipByPodUID() statedb.Index[*IP, string] {
	return text("pod-uid", false, func(ip *IP) string { return ip.PodUID })
}

func labelSetByHash() statedb.Index[*LabelSet, [16]byte] {
	return statedb.Index[*LabelSet, [16]byte]{
		Name:       "hash",
		FromObject: func(l *LabelSet) index.KeySet { return index.NewKeySet(l.Hash[:]) },
		FromKey:    func(hash [16]byte) index.Key { return hash[:] },
		FromString: index.FromString,
		Unique:     true,
	}
}

func namespaceByName() statedb.Index[*Namespace, string] {
	return text("name", true, func(n *Namespace) string { return n.Name })
}

func nodeLabelsByNode() statedb.Index[*NodeLabels, string] {
	return text("node", true, func(n *NodeLabels) string { return n.Node })
}

func aliveByNode() statedb.Index[*Alive, string] {
	return text("node", true, func(a *Alive) string { return a.Node })
}

func cidrGroupByName() statedb.Index[*CIDRGroup, string] {
	return text("name", true, func(g *CIDRGroup) string { return g.Name })
}

func egressGatewayByName() statedb.Index[*EgressGateway, string] {
	return text("name", true, func(g *EgressGateway) string { return g.Name })
}

func serviceByName() statedb.Index[*Service, string] {
	return text("name", true, func(s *Service) string { return joined(s.Namespace, s.Name) })
}

func backendsByKey() statedb.Index[*Backends, string] {
	return text("key", true, func(b *Backends) string { return joined(b.Namespace, b.Service, b.Slice) })
}

func counterByKind() statedb.Index[*Counter, string] {
	return text("kind", true, func(c *Counter) string { return c.Kind })
}

func policyByKey() statedb.Index[*Policy, string] {
	return text("key", true, func(p *Policy) string { return joined(p.Kind, p.Namespace, p.Name) })
}

func endpointByID() statedb.Index[*Endpoint, uint32] {
	return number("id", true, func(e *Endpoint) uint32 { return e.ID })
}

func endpointByIP() statedb.Index[*Endpoint, netip.Addr] {
	return statedb.Index[*Endpoint, netip.Addr]{
		Name: "ip",
		FromObject: func(e *Endpoint) index.KeySet {
			keys := make([]index.Key, 0, len(e.Addrs))
			for _, addr := range e.Addrs {
				keys = append(keys, index.NetIPAddr(addr))
			}
			return index.NewKeySet(keys...)
		},
		FromKey:    index.NetIPAddr,
		FromString: index.NetIPAddrString,
	}
}

func endpointByPod() statedb.Index[*Endpoint, string] {
	return text("pod", false, func(e *Endpoint) string { return joined(e.Namespace, e.Pod) })
}

func deviceByIndex() statedb.Index[*Device, uint32] {
	return number("index", true, func(d *Device) uint32 { return d.Index })
}

func routeByKey() statedb.Index[*Route, string] {
	return text("key", true, routeKey)
}

func routeWantedByKey() statedb.Index[*RouteWanted, string] {
	return text("key", true, func(r *RouteWanted) string { return routeKey((*Route)(r)) })
}

// routeKey tells routes apart as the kernel does: by table, prefix and device.
func routeKey(r *Route) string {
	table := binary.BigEndian.AppendUint32(nil, r.Table)
	return string(append(table, index.NetIPPrefix(r.Prefix)...)) + r.Device
}

// text is an index by a string.
func text[Row any](name string, unique bool, key func(Row) string) statedb.Index[Row, string] {
	return statedb.Index[Row, string]{
		Name:       name,
		FromObject: func(row Row) index.KeySet { return index.NewKeySet(index.String(key(row))) },
		FromKey:    index.String,
		FromString: index.FromString,
		Unique:     unique,
	}
}

// number is an index by a 32-bit number.
func number[Row any](name string, unique bool, key func(Row) uint32) statedb.Index[Row, uint32] {
	return statedb.Index[Row, uint32]{
		Name:       name,
		FromObject: func(row Row) index.KeySet { return index.NewKeySet(index.Uint32(key(row))) },
		FromKey:    index.Uint32,
		FromString: index.Uint32String,
		Unique:     unique,
	}
}

// joined makes a composite key.
func joined(parts ...string) string {
	size := len(parts) - 1
	for _, part := range parts {
		size += len(part)
	}
	key := make([]byte, 0, size)
	for i, part := range parts {
		if i > 0 {
			key = append(key, '/')
		}
		key = append(key, part...)
	}
	return string(key)
}
