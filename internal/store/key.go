package store

import (
	"encoding/hex"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"unicode/utf8"
)

// Kind is what a key's record is: the first part of the key.
type Kind string

// The kinds. Each comment says who writes it.
const (
	KindEpoch      Kind = "epoch"          // operator
	KindSynced     Kind = "synced"         // operator; its node for ips/<node>
	KindCounter    Kind = "counters"       // operator
	KindNode       Kind = "nodes"          // its agent
	KindAlive      Kind = "alive"          // its agent; the only leased key
	KindPod        Kind = "pods"           // operator
	KindIP         Kind = "ips"            // its agent
	KindLabels     Kind = "labels"         // operator
	KindNamespace  Kind = "namespaces"     // operator
	KindNodeLabels Kind = "nodelabels"     // operator
	KindCIDRGroup  Kind = "cidrgroups"     // operator
	KindPool       Kind = "pools"          // operator
	KindEgress     Kind = "egressgateways" // operator
	KindService    Kind = "services"       // operator
	KindEndpoints  Kind = "endpoints"      // operator
	KindPolicy     Kind = "policies"       // operator
	KindAck        Kind = "acks"           // its agent
)

// errUnknownKind marks keys of kinds that a newer version may have brought; readers pass over them.
var errUnknownKind = errors.New("unknown kind of key")

// maxName bounds each part of a key; Kubernetes' own limit for names is 253.
const maxName = 253

// noNamespace stands for the absent namespace of a cluster-wide policy.
const noNamespace = "-"

// Key names a record below /tendril/v1/<cluster>/. Keys are comparable; the zero value is no key. Make one with the
// functions below or ParseKey: both refuse names that would change the key's shape.
type Key struct {
	Kind Kind
	// Parts after the kind, in the order of the key; unused ones are empty.
	First, Second, Third string
}

// NodeKey is nodes/<node>.
func NodeKey(node string) Key { return Key{Kind: KindNode, First: node} }

// AliveKey is alive/<node>.
func AliveKey(node string) Key { return Key{Kind: KindAlive, First: node} }

// AckKey is acks/<node>.
func AckKey(node string) Key { return Key{Kind: KindAck, First: node} }

// IPKey is ips/<node>/<ip>.
func IPKey(node string, addr netip.Addr) Key {
	return Key{Kind: KindIP, First: node, Second: addr.Unmap().String()}
}

// PodKey is pods/<node>/<namespace>/<name>.
func PodKey(node, namespace, name string) Key {
	return Key{KindPod, node, namespace, name}
}

// LabelsKey is labels/<hash>, the hash in hex.
func LabelsKey(hash [16]byte) Key {
	return Key{Kind: KindLabels, First: hex.EncodeToString(hash[:])}
}

// NamespaceKey is namespaces/<namespace>.
func NamespaceKey(namespace string) Key { return Key{Kind: KindNamespace, First: namespace} }

// NodeLabelsKey is nodelabels/<node>.
func NodeLabelsKey(node string) Key { return Key{Kind: KindNodeLabels, First: node} }

// CIDRGroupKey is cidrgroups/<name>.
func CIDRGroupKey(name string) Key { return Key{Kind: KindCIDRGroup, First: name} }

// PoolKey is pools/<name>.
func PoolKey(name string) Key { return Key{Kind: KindPool, First: name} }

// EgressKey is egressgateways/<name>.
func EgressKey(name string) Key { return Key{Kind: KindEgress, First: name} }

// ServiceKey is services/<namespace>/<name>.
func ServiceKey(namespace, name string) Key {
	return Key{Kind: KindService, First: namespace, Second: name}
}

// EndpointsKey is endpoints/<namespace>/<service>/<slice>.
func EndpointsKey(namespace, service, slice string) Key {
	return Key{KindEndpoints, namespace, service, slice}
}

// PolicyKey is policies/<kind>/<namespace or ->/<name>; namespace is empty for cluster-wide kinds.
func PolicyKey(kind, namespace, name string) Key {
	if namespace == "" {
		namespace = noNamespace
	}
	return Key{KindPolicy, kind, namespace, name}
}

// syncedKey is synced/<epoch>/<kind>: everything of that kind has been written.
func syncedKey(epoch string, kind Kind) Key {
	return Key{Kind: KindSynced, First: epoch, Second: string(kind)}
}

// syncedNodeKey is synced/<epoch>/ips/<node>: the node has written all its own keys, or the operator deleted it.
func syncedNodeKey(epoch, node string) Key {
	return Key{KindSynced, epoch, string(KindIP), node}
}

// String is the key without the cluster's prefix.
func (k Key) String() string {
	text := string(k.Kind)
	for _, part := range [...]string{k.First, k.Second, k.Third} {
		if part == "" {
			break
		}
		text += "/" + part
	}
	return text
}

// Node is the node that the record belongs to, empty if it belongs to none.
func (k Key) Node() string {
	switch k.Kind {
	case KindNode, KindAlive, KindAck, KindIP, KindPod:
		return k.First
	case KindSynced:
		return k.Third
	}
	return ""
}

// Check says what is wrong with the key, naming it.
func (k Key) Check() error {
	parts := []string{k.First, k.Second, k.Third}
	// Only the end may be empty: a gap in the middle is a part without a name.
	for len(parts) > 0 && parts[len(parts)-1] == "" {
		parts = parts[:len(parts)-1]
	}
	if err := checkParts(k.Kind, parts); err != nil {
		return fmt.Errorf("key %q: %w", k.String(), err)
	}
	return nil
}

// CheckOwner says why a node's agent must not write the key, if so: it writes its own keys and nothing else.
func (k Key) CheckOwner(node string) error {
	switch k.Kind {
	case KindNode, KindAlive, KindAck, KindIP, KindSynced:
		if k.Node() == node {
			return nil
		}
		return fmt.Errorf("key %q: not under node %q", k, node)
	}
	return fmt.Errorf("key %q: agents do not write %s", k, k.Kind)
}

// ParseKey reads a key without the cluster's prefix. Every key has one spelling: what parses prints the same.
func ParseKey(text string) (Key, error) {
	kind, rest, more := strings.Cut(text, "/")
	key := Key{Kind: Kind(kind)}
	var parts [4]string
	count := 0
	// One part more than any key has, so that too long a key is noticed.
	for ; more && count < len(parts); count++ {
		parts[count], rest, more = strings.Cut(rest, "/")
	}
	if err := checkParts(key.Kind, parts[:count]); err != nil {
		return Key{}, fmt.Errorf("key %q: %w", text, err)
	}
	key.First, key.Second, key.Third = parts[0], parts[1], parts[2]
	return key, nil
}

// checkParts judges the shape of a key and the spelling of each part.
func checkParts(kind Kind, parts []string) error {
	want, known := shape(kind, parts)
	if !known {
		return errUnknownKind
	}
	if len(parts) != want {
		return fmt.Errorf("want %d names after %q, have %d", want, kind, len(parts))
	}
	for _, part := range parts {
		if err := CheckName(part); err != nil {
			return err
		}
	}
	switch kind {
	case KindIP:
		return checkAddr(parts[1])
	case KindLabels:
		_, err := parseHash(parts[0])
		return err
	}
	return nil
}

// shape is the number of names after the kind.
func shape(kind Kind, parts []string) (count int, known bool) {
	switch kind {
	case KindEpoch:
		return 0, true
	case KindNode, KindAlive, KindAck, KindLabels, KindNamespace, KindNodeLabels, KindCIDRGroup, KindPool, KindEgress, KindCounter:
		return 1, true
	case KindIP, KindService:
		return 2, true
	case KindPod, KindEndpoints, KindPolicy:
		return 3, true
	case KindSynced: // of a kind, or of a node
		if len(parts) > 1 && parts[1] == string(KindIP) {
			return 3, true
		}
		return 2, true
	}
	return 0, false
}

// CheckName refuses what would change a key's shape or could not be printed.
func CheckName(name string) error {
	switch {
	case name == "":
		return errors.New("a name is empty")
	case len(name) > maxName:
		return fmt.Errorf("a name has %d bytes, the limit is %d", len(name), maxName)
	case !utf8.ValidString(name):
		return errors.New("a name is not UTF-8")
	case strings.ContainsRune(name, '/'):
		return fmt.Errorf("name %q contains a slash", name)
	case strings.ContainsFunc(name, func(r rune) bool { return r <= ' ' || r == 0x7f }):
		return fmt.Errorf("name %q contains a space or a control character", name)
	}
	return nil
}

func checkAddr(text string) error {
	addr, err := netip.ParseAddr(text)
	if err != nil {
		return err
	}
	// Two spellings of one address would be two keys.
	if canonical := addr.Unmap().WithZone("").String(); canonical != text {
		return fmt.Errorf("address %q must be written %q", text, canonical)
	}
	return nil
}

func parseHash(text string) (hash [16]byte, err error) {
	bytes, err := hex.DecodeString(text)
	if err != nil || len(bytes) != len(hash) || text != strings.ToLower(text) {
		return hash, fmt.Errorf("%q is not a label-set hash of 32 lower-case hex digits", text)
	}
	return [16]byte(bytes), nil
}

// Filled lists the kinds that the operator writes in full, in the order in which a reader wants them: what is
// referred to before what refers to it.
func Filled() []Kind {
	return []Kind{
		KindLabels, KindNamespace, KindNodeLabels, KindCIDRGroup, KindPool, KindEgress, KindService, KindEndpoints, KindPolicy, KindPod,
	}
}

// isFilled says whether the operator writes the kind.
func isFilled(kind Kind) bool { return slices.Contains(Filled(), kind) }

// Prefix is what all keys of a cluster begin with.
func Prefix(cluster string) string { return "/tendril/v1/" + cluster + "/" }
