package endpoint

import (
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"maps"
	"net/netip"
	"slices"

	"tendril.io/tendril/internal/cni"
	"tendril.io/tendril/internal/identity"
	"tendril.io/tendril/internal/label"
	"tendril.io/tendril/internal/policy"
	"tendril.io/tendril/internal/table"
)

// DevicePrefix begins the names of all host ends of pods' devices.
const DevicePrefix = "tnd"

// endpoint is a record and what of it is in the kernel. It belongs to whoever holds the lock of its attachment.
type endpoint struct {
	record
	ifindex    uint32
	journaled  bool // the journal has the record
	mayBeKnown bool // an address may have been published
	freed      bool // the journal has dropped it and the book taken its addresses back; what follows is left to do
	unsaid     []netip.Addr
}

// digest is what the endpoint's number stands for, and the source of its device's name and MACs: all are the same
// again after a restart, whatever else was lost.
func digest(a cni.Attachment) [sha256.Size]byte {
	return sha256.Sum256([]byte("endpoint/" + a.ContainerID + "/" + a.IfName))
}

// numberDigest is what the allocator knows the endpoint by.
func numberDigest(a cni.Attachment) policy.Digest {
	sum := digest(a)
	return policy.Digest(sum[:16])
}

// deviceName has 15 bytes, the most that the kernel takes: 48 random bits, so that among 250 pods of a node two share a
// name once in 10^10 nodes.
func deviceName(a cni.Attachment) string {
	sum := digest(a)
	return DevicePrefix + hex.EncodeToString(sum[:6])
}

// device is empty for a chained pod whose device was not found yet.
func (e *endpoint) device() string {
	switch {
	case e.Adopted != nil:
		return e.Adopted.Device
	case e.Chained:
		return ""
	}
	return deviceName(e.Attachment)
}

// podMAC is the address of the pod's end; the datapath answers for the gateway and writes this one as destination.
func (e *endpoint) podMAC() [6]byte {
	if e.Adopted != nil {
		return e.Adopted.PodMAC
	}
	sum := digest(e.Attachment)
	return localMAC(sum[16:22])
}

// hostMAC is the address of the host's end, and what pods learn as their gateway's.
func (e *endpoint) hostMAC() [6]byte {
	if e.Adopted != nil {
		return e.Adopted.HostMAC
	}
	sum := digest(e.Attachment)
	return localMAC(sum[22:28])
}

// localMAC marks an address as unicast and locally administered (IEEE 802, section 8.4).
func localMAC(random []byte) [6]byte {
	mac := [6]byte(random)
	mac[0] = mac[0]&^1 | 2
	return mac
}

// owner is what IPAM lists as the owner of the endpoint's addresses.
func owner(request *cni.Request) string {
	if request.Args.Pod == "" {
		return request.ContainerID
	}
	return request.Args.Namespace + "/" + request.Args.Pod
}

// owner is the same of an endpoint that exists.
func (e *endpoint) owner() string {
	if e.Pod == "" {
		return e.Attachment.ContainerID
	}
	return e.Namespace + "/" + e.Pod
}

// row is the endpoint before it is judged.
func (e *endpoint) row() *table.Endpoint {
	row := &table.Endpoint{
		ID: e.ID, Generation: e.Generation, Namespace: e.Namespace, Pod: e.Pod, PodUID: e.PodUID,
		Sandbox: e.Attachment.ContainerID, IfName: e.Attachment.IfName, Device: e.device(), IfIndex: e.ifindex,
		PodMAC: e.podMAC(), HostMAC: e.hostMAC(), Addrs: e.Addrs, MTU: e.DeviceMTU, NetnsPath: e.NetnsPath, NetnsCookie: e.NetnsCookie,
		Created: e.Created, State: table.EndpointAttaching, ArgLabels: e.Labels,
		Chained: e.Chained, Notes: e.notes(),
	}
	for _, port := range e.Ports {
		row.ArgPorts = append(row.ArgPorts, table.NamedPort(port))
	}
	for _, port := range e.HostPorts {
		row.HostPorts = append(row.HostPorts, table.HostPort(port))
	}
	return row
}

// notes say what was asked for and does not hold.
func (e *endpoint) notes() (notes []string) {
	for annotation, rate := range map[string]int64{"ingress": e.Bandwidth.IngressRate, "egress": e.Bandwidth.EgressRate} {
		if rate > 0 {
			notes = append(notes, fmt.Sprintf("kubernetes.io/%s-bandwidth of %d bit/s is not enforced", annotation, rate))
		}
	}
	slices.Sort(notes)
	return notes
}

// published is how the cluster knows one of the endpoint's addresses.
func (e *endpoint) published(node string, addr netip.Addr) table.IP {
	return table.IP{
		Node: node, Addr: addr, PodUID: e.PodUID, Sandbox: e.Attachment.ContainerID, Namespace: e.Namespace, Pod: e.Pod,
	}
}

// labelSet is what the CNI arguments say about the pod, nil if nothing.
func labelSet(cluster string, args cni.Args) *table.LabelSet {
	if args.Labels == nil {
		return nil
	}
	account := args.ServiceAccount
	if account == "" {
		account = "default" // what Kubernetes gives a pod that asks for none
	}
	return &table.LabelSet{
		Hash:    identity.Of(cluster, args.Namespace, account, label.SetOf(args.Labels)),
		Cluster: cluster, Namespace: args.Namespace, ServiceAccount: account, Labels: maps.Clone(args.Labels),
	}
}

// result is what the runtime is told.
func (e *endpoint) result(routers []netip.Addr) *cni.Result {
	result := &cni.Result{Interfaces: []cni.Interface{
		{Name: e.device(), MAC: macText(e.hostMAC()), MTU: e.DeviceMTU},
		{Name: e.Attachment.IfName, MAC: macText(e.podMAC()), MTU: e.DeviceMTU, Sandbox: e.NetnsPath},
	}}
	for _, addr := range e.Addrs {
		gateway := gatewayOf(addr, routers)
		result.IPs = append(result.IPs, cni.IP{
			Address: netip.PrefixFrom(addr, addr.BitLen()), Gateway: gateway, Interface: 1,
		})
		everything, _ := gateway.Prefix(0)
		result.Routes = append(result.Routes, cni.Route{Dst: everything, Via: gateway, MTU: e.RouteMTU})
	}
	return result
}

// gatewayOf picks the router of an address's family; without one the runtime is told of no gateway.
func gatewayOf(addr netip.Addr, routers []netip.Addr) netip.Addr {
	at := slices.IndexFunc(routers, func(router netip.Addr) bool { return router.Is4() == addr.Is4() })
	if at < 0 {
		return netip.Addr{}
	}
	return routers[at]
}

// macText is the usual spelling, without going through package net's slices.
func macText(mac [6]byte) string {
	out := make([]byte, 0, 17)
	for i, b := range mac {
		if i > 0 {
			out = append(out, ':')
		}
		out = hex.AppendEncode(out, []byte{b})
	}
	return string(out)
}
