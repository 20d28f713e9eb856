package policy

import (
	"crypto/sha256"
	"encoding/binary"
	"fmt"
	"maps"
	"slices"

	"tendril.io/tendril/internal/identity"
	"tendril.io/tendril/internal/label"
)

// peer is what policies can tell apart: everything equal in identity, named ports and the ranges that hold its
// addresses is one peer. It is a row of peer_class.
type peer struct {
	digest   Digest
	number   uint32
	workload Workload // Reserved set: who it is; everything else is then empty
	space    *namespace
	ports    []NamedPort // sorted; empty for reserved identities
	outside  bool        // not of the cluster
	unknown  bool        // identity.Unknown, whose number is that of "not reserved"
	server   bool        // an API server answers there
	cidrs    []*selector // ranges that hold its addresses, sorted by digest
	bits     bitset      // selectors that match
	class    *class
	refs     int // rows and subjects
}

// namespace is what peers and subjects of one namespace share.
type namespace struct {
	name   string
	labels label.Set
	peers  map[*peer]struct{}
	groups map[*group]struct{}
}

// class is a distinct set of selectors: a row of class_bits, which is written once and never changes meaning.
type class struct {
	digest Digest
	number uint32
	bits   bitset
	refs   int // peers
}

func (p *peer) isReserved() bool { return p.workload.Reserved != 0 || p.unknown }

func (p *peer) isUnknown() bool { return p.unknown }

// Attribute answers label selectors.
func (p *peer) Attribute(key label.Key) (string, bool) {
	switch {
	case p.unknown:
		return "", false
	case key == apiServerKey:
		return "true", p.isAPIServer()
	}
	return attribute(&p.workload, p.space, key)
}

// isAPIServer says whether an API server answers at the peer's addresses.
func (p *peer) isAPIServer() bool { return p.server || p.workload.Reserved == identity.KubeAPIServer }

// attribute is the one place that says which attributes a workload has.
func attribute(w *Workload, space *namespace, key label.Key) (string, bool) {
	if w.Reserved != 0 {
		switch {
		case key == reservedKey:
			return w.Reserved.Name(), true
		case key.Scope == label.ScopeNode:
			return w.Labels.Get(key.Name)
		}
		return "", false
	}
	switch key.Scope {
	case label.ScopeNode:
		return "", false
	case label.ScopePod:
		return w.Labels.Get(key.Name)
	case label.ScopeNamespace:
		value, ok := space.labels.Get(key.Name)
		if !ok && key.Name == label.MetadataName {
			return w.Namespace, true
		}
		return value, ok
	}
	switch key.Name {
	case label.FactNamespace:
		return w.Namespace, w.Namespace != ""
	case label.FactServiceAccount:
		return w.ServiceAccount, w.ServiceAccount != ""
	case label.FactCluster:
		return w.Cluster, w.Cluster != ""
	}
	return "", false
}

// canonical returns the workload with its identity computed, its ports sorted, and nothing that does not count. Nodes
// with labels have an identity beside the reserved one: that of their labels.
func (w Workload) canonical() Workload {
	if w.Reserved != 0 {
		out := Workload{Reserved: w.Reserved}
		if w.isNode() && w.Labels.Len() > 0 {
			out.Labels, out.Identity = w.Labels, identity.Of("", "", "", w.Labels)
		}
		return out
	}
	if w.Identity.IsZero() {
		w.Identity = identity.Of(w.Cluster, w.Namespace, w.ServiceAccount, w.Labels)
	}
	if !slices.IsSortedFunc(w.NamedPorts, comparePorts) {
		w.NamedPorts = slices.SortedFunc(slices.Values(w.NamedPorts), comparePorts)
	}
	return w
}

// isNode says whether it stands for a node's own network namespace.
func (w *Workload) isNode() bool {
	return w.Reserved == identity.Host || w.Reserved == identity.RemoteNode
}

func comparePorts(a, b NamedPort) int {
	switch {
	case a.Name < b.Name:
		return -1
	case a.Name > b.Name:
		return 1
	case a.Protocol != b.Protocol:
		return int(a.Protocol) - int(b.Protocol)
	}
	return int(a.Port) - int(b.Port)
}

// digest of what makes a workload differ from another, apart from its namespace's labels.
func (w *Workload) digest(what string, more ...[]byte) Digest {
	h := sha256.New()
	fmt.Fprintf(h, "policy.%s/1 %d %x ", what, w.Reserved, w.Identity)
	for _, p := range w.NamedPorts {
		fmt.Fprintf(h, "%d:%s %d %d ", len(p.Name), p.Name, p.Protocol, p.Port)
	}
	h.Write([]byte{0})
	for _, part := range more {
		h.Write(part)
	}
	return Digest(h.Sum(nil)[:16])
}

// peerOf returns the peer of a fact in the ranges, creating it if it is new, with one more reference.
func (e *Engine) peerOf(f *AddressFact, cidrs []*selector) (*peer, error) {
	p := newPeer(f)
	p.cidrs = cidrs
	if number, ok := p.fixed(); ok {
		known := e.reserved[number]
		set(e.plan, &known.refs, known.refs+1)
		return known, nil
	}
	flags := []byte{0}
	if p.outside {
		flags[0] |= 1
	}
	if p.server {
		flags[0] |= 2
	}
	for _, s := range cidrs {
		flags = append(flags, s.digest[:]...)
	}
	p.digest = p.workload.digest("peer", flags)
	if known := e.peers[p.digest]; known != nil {
		set(e.plan, &known.refs, known.refs+1)
		e.plan.spent[known] = struct{}{}
		return known, nil
	}
	number, err := e.number(KindPeer, p.digest, 1)
	if err != nil {
		return nil, err
	}
	p.number, p.refs = number, 1
	e.addPeer(p)
	return p, nil
}

// newPeer describes a fact's owner; it is not interned.
func newPeer(f *AddressFact) *peer {
	p := &peer{server: f.APIServer}
	switch {
	case f.Workload != nil:
		p.workload = *f.Workload
	case f.Reserved == identity.Unknown:
		p.unknown = true
	default:
		p.workload = Workload{Reserved: f.Reserved}
	}
	p.ports = p.workload.NamedPorts
	p.outside = p.workload.Reserved == identity.World ||
		p.workload.Reserved == identity.KubeAPIServer && f.Flags&addressCluster == 0
	return p
}

// fixed returns the number of a reserved peer of which nothing more is known: no range holds it, it has no labels. An
// API server is meant to be of the cluster.
func (p *peer) fixed() (identity.Reserved, bool) {
	plain := len(p.cidrs) == 0 && !p.server && p.workload.Identity.IsZero() && p.outside == (p.workload.Reserved == identity.World)
	return p.workload.Reserved, p.unknown || p.isReserved() && plain
}

// addPeer makes the engine know a new peer.
func (e *Engine) addPeer(p *peer) {
	if !p.isReserved() {
		p.space = e.namespace(p.workload.Namespace)
		put(e.plan, p.space.peers, p, struct{}{})
	}
	put(e.plan, e.peers, p.digest, p)
	bits, tried := e.selectors.matching(p)
	e.plan.delta.Work.SelectorsEvaluated += tried
	e.plan.peers[p] = struct{}{}
	e.plan.spent[p] = struct{}{}
	p.bits = bits
	e.watch(p)
}

// releasePeer takes a reference away; a peer without any goes at the end of the plan.
func (e *Engine) releasePeer(p *peer) {
	set(e.plan, &p.refs, p.refs-1)
	e.plan.spent[p] = struct{}{}
}

// setBits changes the selectors that match a peer.
func (e *Engine) setBits(p *peer, bits bitset) {
	set(e.plan, &p.bits, bits)
	e.plan.peers[p] = struct{}{}
}

// namespace returns the record of a namespace, which is made when somebody first asks.
func (e *Engine) namespace(name string) *namespace {
	if known := e.namespaces[name]; known != nil {
		return known
	}
	fresh := &namespace{name: name, peers: map[*peer]struct{}{}, groups: map[*group]struct{}{}}
	put(e.plan, e.namespaces, name, fresh)
	return fresh
}

// relabel gives a namespace new labels and looks again at its peers and subjects, at nobody else.
func (e *Engine) relabel(name string, labels label.Set) {
	if known := e.namespaces[name]; known == nil && labels.Len() == 0 || known != nil && known.labels.Equal(labels) {
		return
	}
	space := e.namespace(name)
	set(e.plan, &space.labels, labels)
	e.plan.spaces[name] = space
	for p := range space.peers {
		bits, tried := e.selectors.matching(p)
		e.plan.delta.Work.SelectorsEvaluated += tried
		if !bits.equal(p.bits) {
			e.setBits(p, bits)
			e.plan.delta.Changed = true
		}
		e.watch(p)
	}
	for g := range space.groups {
		e.selectAgain(g)
	}
}

// sweepPeers lets peers go that nothing refers to any more.
func (e *Engine) sweepPeers() {
	for p := range e.plan.spent {
		if p.refs == 0 && !p.isFixed() && e.peers[p.digest] == p {
			e.removePeer(p)
		}
	}
	clear(e.plan.spent)
}

// settlePeers gives peers the class of their bits.
func (e *Engine) settlePeers() error {
	changed := slices.SortedFunc(maps.Keys(e.plan.peers), func(a, b *peer) int { return compareDigests(a.digest, b.digest) })
	for _, p := range changed {
		if e.peers[p.digest] != p {
			continue // gone again
		}
		if p.class != nil && p.bits.equal(p.class.bits) {
			continue
		}
		c, err := e.classOf(p.bits)
		if err != nil {
			return err
		}
		if p.class != nil {
			e.releaseClass(p.class)
		}
		set(e.plan, &p.class, c)
		e.plan.delta.Peers = append(e.plan.delta.Peers, PeerRow{Peer: p.number, Class: c.number})
	}
	for c := range e.plan.classes {
		if c.refs == 0 && c.number != 0 {
			drop(e.plan, e.classes, c.bits.key())
			e.release(KindClass, c.digest, 1)
		}
	}
	return nil
}

func (p *peer) isFixed() bool { return p.number < identity.FirstFree }

func (e *Engine) removePeer(p *peer) {
	e.unwatch(p)
	drop(e.plan, e.peers, p.digest)
	if p.space != nil {
		drop(e.plan, p.space.peers, p)
		e.plan.spaces[p.space.name] = p.space
	}
	if p.class != nil {
		e.releaseClass(p.class)
	}
	e.release(KindPeer, p.digest, 1)
}

// classOf returns the class of a set of selectors, with one more reference.
func (e *Engine) classOf(bits bitset) (*class, error) {
	if known := e.classes[bits.key()]; known != nil {
		set(e.plan, &known.refs, known.refs+1)
		return known, nil
	}
	// A class is never changed in place: packets are judged by the old row until their peer's word is stored.
	c := &class{digest: digestOf("policy.class/1", bits.key()), bits: bits, refs: 1}
	number, err := e.number(KindClass, c.digest, 1)
	if err != nil {
		return nil, err
	}
	c.number = number
	put(e.plan, e.classes, bits.key(), c)
	e.plan.delta.Classes = append(e.plan.delta.Classes, ClassRow{Class: number, Bits: bits})
	return c, nil
}

func (e *Engine) releaseClass(c *class) {
	set(e.plan, &c.refs, c.refs-1)
	e.plan.classes[c] = struct{}{}
}

// bitset is a set of selector numbers. It is immutable, and its last word is never 0, so that equal sets are equal slices.
type bitset []uint64

func (b bitset) has(bit uint32) bool {
	return int(bit/64) < len(b) && b[bit/64]&(1<<(bit%64)) != 0
}

func (b bitset) with(bit uint32) bitset {
	out := make(bitset, max(len(b), int(bit/64)+1))
	copy(out, b)
	out[bit/64] |= 1 << (bit % 64)
	return out
}

func (b bitset) without(bit uint32) bitset {
	if !b.has(bit) {
		return b
	}
	out := slices.Clone(b)
	out[bit/64] &^= 1 << (bit % 64)
	for len(out) > 0 && out[len(out)-1] == 0 {
		out = out[:len(out)-1]
	}
	return out
}

// union allocates only where it must.
func (b bitset) union(other bitset) bitset {
	if len(other) == 0 {
		return b
	}
	out := make(bitset, max(len(b), len(other)))
	copy(out, b)
	for i, word := range other {
		out[i] |= word
	}
	return out
}

func (b bitset) equal(other bitset) bool { return slices.Equal(b, other) }

// add is with for a set that nobody else has seen.
func (b *bitset) add(bit uint32) {
	for int(bit/64) >= len(*b) {
		*b = append(*b, 0)
	}
	(*b)[bit/64] |= 1 << (bit % 64)
}

// key is the set as a map key.
func (b bitset) key() string {
	out := make([]byte, 0, 8*len(b))
	for _, word := range b {
		out = binary.LittleEndian.AppendUint64(out, word)
	}
	return string(out)
}

func compareDigests(a, b Digest) int { return slices.Compare(a[:], b[:]) }
