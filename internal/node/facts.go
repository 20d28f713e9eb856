package node

import (
	"cmp"
	"crypto/sha256"
	"maps"
	"net/netip"
	"slices"

	"github.com/cilium/statedb"

	"tendril.io/tendril/bpf"
	"tendril.io/tendril/internal/identity"
	"tendril.io/tendril/internal/label"
	"tendril.io/tendril/internal/policy"
	"tendril.io/tendril/internal/table"
)

// facts answers, from a snapshot of the tables, what the policy engine must know of an address or an endpoint. It
// keeps only what tables cannot be asked: which prefixes each node contributes.
type facts struct {
	tables  *table.Tables
	self    string // this node's name
	cluster string
	tunnel  bool // pods of other nodes are reached through the overlay
	fixed   map[netip.Prefix]policy.AddressFact
	// nodePorts are the prefixes of the node's addresses at which node ports answer; none: all of them.
	nodePorts []netip.Prefix

	byNode map[string][]netip.Prefix      // prefixes that a node's row contributes
	claims map[netip.Prefix][]nodeAddress // and the other way round; the first counts (see claim)
	number func(node string) uint32

	devices map[uint32][]netip.Addr // addresses of this node's devices, by index

	apiServers map[netip.Addr]bool // addresses at which the cluster's API servers answer
}

func newFacts(tables *table.Tables, config Config, number func(node string) uint32) *facts {
	f := &facts{
		tables: tables, self: config.Node, cluster: config.Cluster, tunnel: config.Mode == ModeVXLAN, number: number,
		byNode: make(map[string][]netip.Prefix), claims: make(map[netip.Prefix][]nodeAddress),
		devices: make(map[uint32][]netip.Addr),
	}
	f.configure(&config)
	return f
}

// configure takes over what the configuration says of addresses, and returns the prefixes whose facts may have changed.
func (f *facts) configure(config *Config) []netip.Prefix {
	var changed []netip.Prefix
	fixed := make(map[netip.Prefix]policy.AddressFact)
	for _, prefix := range config.NoMasquerade {
		fixed[prefix] = policy.AddressFact{Reserved: identity.World, Flags: uint32(bpf.AddressFlagNoMasquerade)}
	}
	if !maps.Equal(f.fixed, fixed) {
		changed = slices.AppendSeq(changed, maps.Keys(f.fixed))
		changed = slices.AppendSeq(changed, maps.Keys(fixed))
		for addr := range f.apiServers { // outside looks them up
			changed = append(changed, exact(addr))
		}
		f.fixed = fixed
	}
	if !slices.Equal(f.nodePorts, config.NodePortAddresses) {
		f.nodePorts = config.NodePortAddresses
		changed = append(changed, f.byNode[f.self]...)
		for _, addrs := range f.devices {
			for _, addr := range addrs {
				changed = append(changed, exact(addr))
			}
		}
	}
	return changed
}

// nodeAddress is a prefix of a node that is not a pod's.
type nodeAddress struct {
	node string
	kind addressKind
}

type addressKind uint8

const (
	kindAddress addressKind = iota // the node's own
	kindRouter                     // a gateway or health address out of its pod CIDR
	kindPodCIDR
)

// setNode notes what a node's row contributes and returns the prefixes whose facts may have changed.
func (f *facts) setNode(row *table.Node, deleted bool) []netip.Prefix {
	before := f.byNode[row.Name]
	for _, prefix := range before {
		f.disclaim(prefix, row.Name)
	}
	delete(f.byNode, row.Name)
	if deleted {
		return before
	}
	var mine []netip.Prefix
	add := func(prefix netip.Prefix, kind addressKind) {
		f.claim(prefix, nodeAddress{row.Name, kind})
		mine = append(mine, prefix)
	}
	for _, cidr := range row.PodCIDRs {
		add(cidr.Masked(), kindPodCIDR) // the engine's tree takes no host bits, whoever wrote them
	}
	for _, addr := range slices.Concat(row.Routers, row.Healths) {
		add(exact(addr), kindRouter)
	}
	for _, addr := range row.Addresses {
		add(exact(addr), kindAddress)
	}
	f.byNode[row.Name] = mine
	return slices.Concat(before, mine)
}

// servicesDevice is where kube-proxy in its mode ipvs puts the addresses of all services, which are no node's.
const servicesDevice = "kube-ipvs0"

// setDevice notes the addresses of a device of this node, which it is reached at, too, and returns those whose facts may have changed.
// Other nodes do not hear of them: a bridge may have the same on each.
func (f *facts) setDevice(row *table.Device, deleted bool) []netip.Prefix {
	before := f.devices[row.Index]
	var now []netip.Addr
	for _, prefix := range row.Addrs {
		addr := prefix.Addr()
		if !deleted && row.Name != servicesDevice && addr.IsGlobalUnicast() {
			now = append(now, addr)
		}
	}
	if slices.Equal(before, now) {
		return nil
	}
	if f.devices[row.Index] = now; len(now) == 0 {
		delete(f.devices, row.Index)
	}
	var changed []netip.Prefix
	for _, addr := range slices.Concat(before, now) {
		changed = append(changed, exact(addr))
	}
	return changed
}

// onDevice says whether a device of this node has an address.
func (f *facts) onDevice(addr netip.Addr) bool {
	for _, addrs := range f.devices {
		if slices.Contains(addrs, addr) {
			return true
		}
	}
	return false
}

// claim notes that a prefix is a node's. Two rows may claim one prefix for a while, when a machine comes back under
// another name: then this node's own row counts, else that of the lowest name, in whatever order they came.
func (f *facts) claim(prefix netip.Prefix, by nodeAddress) {
	claims := append(f.claims[prefix], by)
	slices.SortFunc(claims, func(a, b nodeAddress) int {
		return cmp.Or(-compareBools(a.node == f.self, b.node == f.self), cmp.Compare(a.node, b.node), cmp.Compare(a.kind, b.kind))
	})
	f.claims[prefix] = claims
}

// disclaim takes a node's claims to a prefix back; those of others stay.
func (f *facts) disclaim(prefix netip.Prefix, node string) {
	left := slices.DeleteFunc(f.claims[prefix], func(claim nodeAddress) bool { return claim.node == node })
	if f.claims[prefix] = left; len(left) == 0 {
		delete(f.claims, prefix)
	}
}

// owner is the node that a prefix belongs to. What nodes say of themselves comes before what this one's devices have besides.
func (f *facts) owner(prefix netip.Prefix) (nodeAddress, bool) {
	if claims := f.claims[prefix]; len(claims) > 0 {
		return claims[0], true
	}
	return nodeAddress{f.self, kindAddress}, prefix.IsSingleIP() && f.onDevice(prefix.Addr())
}

// compareBools orders false before true.
func compareBools(a, b bool) int {
	switch {
	case a == b:
		return 0
	case b:
		return -1
	}
	return 1
}

// ownAddresses lists the addresses of this node's own, without those of its pods and their gateways.
func (f *facts) ownAddresses() (mine []netip.Addr) {
	for _, prefix := range f.byNode[f.self] {
		if at, _ := f.owner(prefix); at == (nodeAddress{f.self, kindAddress}) {
			mine = append(mine, prefix.Addr())
		}
	}
	return mine
}

// address says what is known of a prefix; false: nothing.
func (f *facts) address(txn statedb.ReadTxn, prefix netip.Prefix) (policy.AddressFact, bool) {
	fact, ok := f.ownerFact(txn, prefix)
	if !prefix.IsSingleIP() || !f.apiServers[prefix.Addr()] {
		return fact, ok
	}
	if !ok {
		fact, ok = f.outside(prefix.Addr())
	}
	fact.APIServer = ok
	return fact, ok
}

// ownerFact says who owns a prefix.
func (f *facts) ownerFact(txn statedb.ReadTxn, prefix netip.Prefix) (policy.AddressFact, bool) {
	if prefix.IsSingleIP() {
		if fact, ok := f.pod(txn, prefix.Addr()); ok {
			return fact, true
		}
	}
	if at, ok := f.owner(prefix); ok {
		fact := f.nodeFact(txn, at)
		if fact.Flags&uint32(bpf.AddressFlagHost) != 0 && f.hasNodePorts(prefix.Addr()) {
			fact.Flags |= uint32(bpf.AddressFlagNodePort)
		}
		return fact, true
	}
	fact, ok := f.fixed[prefix]
	return fact, ok
}

// outside is the fact of an address outside the cluster; false: it is inside, and nobody's.
func (f *facts) outside(addr netip.Addr) (policy.AddressFact, bool) {
	for prefix := range f.claims {
		if prefix.Contains(addr) {
			return policy.AddressFact{}, false
		}
	}
	fact, longest := policy.AddressFact{Reserved: identity.World}, -1
	for prefix, fixed := range f.fixed {
		if prefix.Contains(addr) && prefix.Bits() > longest {
			fact, longest = fixed, prefix.Bits()
		}
	}
	return fact, true
}

// setAPIServers notes where API servers answer and returns the addresses whose facts may have changed.
func (f *facts) setAPIServers(addrs map[netip.Addr]bool) []netip.Prefix {
	var changed []netip.Prefix
	for addr := range addrs {
		if !f.apiServers[addr] {
			changed = append(changed, exact(addr))
		}
	}
	for addr := range f.apiServers {
		if !addrs[addr] {
			changed = append(changed, exact(addr))
		}
	}
	f.apiServers = addrs
	return changed
}

// hasNodePorts says whether node ports answer at an address of this node.
func (f *facts) hasNodePorts(addr netip.Addr) bool {
	return len(f.nodePorts) == 0 || slices.ContainsFunc(f.nodePorts, func(p netip.Prefix) bool { return p.Contains(addr) })
}

func (f *facts) nodeFact(txn statedb.ReadTxn, at nodeAddress) policy.AddressFact {
	fact := policy.AddressFact{Node: f.number(at.node), Flags: uint32(bpf.AddressFlagCluster)}
	local := at.node == f.self
	switch {
	case at.kind == kindPodCIDR:
		fact.Reserved = identity.Unknown
		fact.Flags |= uint32(bpf.AddressFlagUnknown)
	case local: // of no node: packets to it go to the stack, not to a next hop
		fact.Node, fact.Reserved = 0, identity.Host
		fact.Flags |= uint32(bpf.AddressFlagHost)
	default:
		fact.Reserved = identity.RemoteNode
		fact.Flags |= uint32(bpf.AddressFlagRemoteNode)
	}
	if row, _, ok := f.tables.NodeLabels.Get(txn, table.NodeLabelsByNode(at.node)); ok && at.kind != kindPodCIDR {
		fact.Workload = &policy.Workload{Reserved: fact.Reserved, Labels: label.SetOf(row.Labels)}
	}
	if f.tunnel && !local { // a node's own address too: the underlay need not know pods' addresses
		fact.Flags |= uint32(bpf.AddressFlagTunnel)
	}
	return fact
}

// pod says which pod an address is. The node's own endpoints are believed before the store, which hears of them later.
func (f *facts) pod(txn statedb.ReadTxn, addr netip.Addr) (policy.AddressFact, bool) {
	if row, _, ok := f.tables.Endpoints.Get(txn, table.EndpointByIP(addr)); ok && row.State != table.EndpointLeaving {
		workload := f.endpoint(txn, row)
		return policy.AddressFact{
			Workload: &workload, Node: f.number(f.self), Endpoint: row.ID,
			Flags: uint32(bpf.AddressFlagLocalPod | bpf.AddressFlagCluster),
		}, true
	}
	row, _, ok := f.tables.IPs.Get(txn, table.IPByAddr(addr))
	if !ok || row.Node == f.self { // our own address without an endpoint: a pod that has gone
		return policy.AddressFact{}, false
	}
	workload := f.workload(txn, row.PodUID, row.Namespace, row.Pod, nil, nil)
	fact := policy.AddressFact{Workload: &workload, Node: f.number(row.Node), Flags: uint32(bpf.AddressFlagCluster)}
	if f.tunnel {
		fact.Flags |= uint32(bpf.AddressFlagTunnel)
	}
	return fact, true
}

// endpoint says what policies know of a pod of this node.
func (f *facts) endpoint(txn statedb.ReadTxn, row *table.Endpoint) policy.Workload {
	return f.workload(txn, row.PodUID, row.Namespace, row.Pod, row.ArgLabels, row.ArgPorts)
}

// workload joins a pod with its labels. What the operator says counts; labels from the CNI arguments stand in where
// it has said nothing; with neither the pod is reserved:init.
func (f *facts) workload(txn statedb.ReadTxn, uid, namespace, name string, arg *table.LabelSet, argPorts []table.NamedPort) policy.Workload {
	pod, ok := f.findPod(txn, uid, namespace, name)
	if ok {
		if set, _, found := f.tables.LabelSets.Get(txn, table.LabelSetByHash(pod.Labels)); found {
			return f.labelled(set, pod.NamedPorts)
		}
	}
	if arg != nil {
		return f.labelled(arg, argPorts)
	}
	return policy.Workload{Reserved: identity.Init}
}

// findPod finds the pod by uid, and by name only where no uid is given: a name may already belong to a successor.
func (f *facts) findPod(txn statedb.ReadTxn, uid, namespace, name string) (*table.Pod, bool) {
	if uid != "" {
		pod, _, ok := f.tables.Pods.Get(txn, table.PodByUID(uid))
		return pod, ok
	}
	pod, _, ok := f.tables.Pods.Get(txn, table.PodByName(namespace, name))
	return pod, ok
}

func (f *facts) labelled(set *table.LabelSet, ports []table.NamedPort) policy.Workload {
	cluster := set.Cluster
	if cluster == "" {
		cluster = f.cluster
	}
	workload := policy.Workload{
		Identity: set.Hash, Cluster: cluster, Namespace: set.Namespace, ServiceAccount: set.ServiceAccount,
		Labels: label.SetOf(set.Labels),
	}
	for _, port := range ports {
		workload.NamedPorts = append(workload.NamedPorts, policy.NamedPort{Name: port.Name, Protocol: port.Protocol, Port: port.Port})
	}
	return workload
}

// exact is the prefix that holds one address.
func exact(addr netip.Addr) netip.Prefix { return netip.PrefixFrom(addr, addr.BitLen()) }

// nodeDigest names a node for the allocator of numbers.
func nodeDigest(name string) policy.Digest {
	sum := sha256.Sum256([]byte("node\x00" + name))
	return policy.Digest(sum[:16])
}
