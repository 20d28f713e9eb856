package identity

import (
	"fmt"

	"tendril.io/tendril/bpf"
)

// Reserved is the identity of what has no labels. The numbers are those of enum reserved_peer in the datapath, which
// is their home.
type Reserved uint32

// The reserved identities.
const (
	Unknown       Reserved = Reserved(bpf.PeerUnknown)    // an address of a pod CIDR that no pod owns
	Host          Reserved = Reserved(bpf.PeerHost)       // this node's own network namespace
	World         Reserved = Reserved(bpf.PeerWorld)      // outside the cluster
	RemoteNode    Reserved = Reserved(bpf.PeerRemoteNode) // another node's own network namespace
	KubeAPIServer Reserved = Reserved(bpf.PeerKubeAPIServer)
	Health        Reserved = Reserved(bpf.PeerHealth)
	Init          Reserved = Reserved(bpf.PeerInit) // a pod whose labels have not arrived yet
	Unmanaged     Reserved = Reserved(bpf.PeerUnmanaged)
	Ingress       Reserved = Reserved(bpf.PeerIngress)

	// FirstFree is the first peer number that is not reserved.
	FirstFree = uint32(bpf.PeerFirstFree)
)

// AllReserved lists the reserved identities in the order of their numbers.
func AllReserved() []Reserved {
	return []Reserved{Unknown, Host, World, RemoteNode, KubeAPIServer, Health, Init, Unmanaged, Ingress}
}

// Name is the name without its prefix, for example "remote-node": the value of label.FactReserved.
func (r Reserved) Name() string {
	switch r {
	case Unknown:
		return "unknown"
	case Host:
		return "host"
	case World:
		return "world"
	case RemoteNode:
		return "remote-node"
	case KubeAPIServer:
		return "kube-apiserver"
	case Health:
		return "health"
	case Init:
		return "init"
	case Unmanaged:
		return "unmanaged"
	case Ingress:
		return "ingress"
	}
	return fmt.Sprintf("%d", uint32(r))
}

// String is the name as people write it, for example "reserved:world".
func (r Reserved) String() string { return "reserved:" + r.Name() }

// ParseReserved reads the form that String prints.
func ParseReserved(text string) (Reserved, error) {
	for _, r := range AllReserved() {
		if text == r.String() {
			return r, nil
		}
	}
	return Unknown, fmt.Errorf("identity %q: no such reserved identity", text)
}
