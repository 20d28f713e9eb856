package store

import (
	"net/netip"
	"slices"
	"strings"
	"testing"

	"google.golang.org/protobuf/proto"

	storev1 "tendril.io/tendril/api/store/v1"
)

// PodRecord is a ready pod. This and what follows is for tests of this package and of store_test alike.
func PodRecord(node, name string) Record {
	hash := [16]byte{1, 2, 3}
	return Record{PodKey(node, "default", name).String(), &storev1.Pod{Uid: "uid-" + name, Labels: hash[:]}}
}

// NamespaceRecord is a namespace with the label team.
func NamespaceRecord(name, value string) Record {
	return Record{NamespaceKey(name).String(), &storev1.Namespace{Labels: map[string]string{"team": value}}}
}

// NodeLabelsRecord is a node with the label role.
func NodeLabelsRecord(node, value string) Record {
	return Record{NodeLabelsKey(node).String(), &storev1.NodeLabels{Labels: map[string]string{"role": value}}}
}

// CIDRGroupRecord is a group of ranges.
func CIDRGroupRecord(name string, prefixes ...string) Record {
	return Record{CIDRGroupKey(name).String(), &storev1.CIDRGroup{Prefixes: prefixes}}
}

// PolicyRecord is a NetworkPolicy of the namespace default.
func PolicyRecord(name, object string) Record {
	return Record{PolicyKey("NetworkPolicy", "default", name).String(), &storev1.Policy{Object: []byte(object)}}
}

// NodeValue is a node with an IPv4 address.
func NodeValue(addr string) *storev1.Node {
	bytes := netip.MustParseAddr(addr).As4()
	return &storev1.Node{Addresses: [][]byte{bytes[:]}, PodCidrs: []string{"10.1.0.0/24"}, MinVersion: 1, MaxVersion: 1}
}

// IPValue is an address of a pod.
func IPValue(name string) *storev1.IP {
	return &storev1.IP{PodUid: "uid-" + name, Sandbox: "box-" + name, Namespace: "default", Pod: name}
}

// AddrKey is IPKey of an address as text.
func AddrKey(node, addr string) Key { return IPKey(node, netip.MustParseAddr(addr)) }

// Encoded is a record as the store holds it.
func Encoded(t testing.TB, m proto.Message) []byte {
	t.Helper()
	bytes, err := proto.Marshal(m)
	if err != nil {
		t.Fatal(err)
	}
	return bytes
}

// Own returns the keys that the node has set and not deleted, published or not, sorted.
func (p *Publisher) Own() []Key {
	p.mu.Lock()
	defer p.mu.Unlock()
	keys := make([]Key, 0, len(p.own))
	for key, o := range p.own {
		if !o.remove {
			keys = append(keys, key)
		}
	}
	slices.SortFunc(keys, func(a, b Key) int { return strings.Compare(a.String(), b.String()) })
	return keys
}
