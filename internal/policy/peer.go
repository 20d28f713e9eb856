package policy

import (
	"crypto/sha256"
	"encoding/binary"
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
	refs     int         // rows and subjects

	class      *class
	next, prev *peer // others of the class
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
	first  *peer // of those that have it
	count  int
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

// digest of what makes a workload differ from another, apart from its namespace's labels. What is hashed is injective:
// what it is for, the reserved identity, the identity, the count of ports and each port, then what the caller appends.
// Numbers that outlive the agent hang on it: another encoding needs another version.
func (w *Workload) digest(what string, more []byte) Digest {
	var buffer [512]byte // most encodings fit, so that no memory is asked for
	b := append(buffer[:0], "policy."...)
	b = append(append(b, what...), "/2 "...)
	b = binary.AppendUvarint(b, uint64(w.Reserved))
	b = append(b, w.Identity[:]...)
	b = binary.AppendUvarint(b, uint64(len(w.NamedPorts)))
	for _, p := range w.NamedPorts {
		b = append(binary.AppendUvarint(b, uint64(len(p.Name))), p.Name...)
		b = binary.BigEndian.AppendUint16(append(b, p.Protocol), p.Port)
	}
	sum := sha256.Sum256(append(b, more...))
	return Digest(sum[:16])
}

// meaning is the digest of what makes a peer.
func (p *peer) meaning() Digest {
	var buffer [1 + 8*len(Digest{})]byte // most are in fewer ranges
	more := append(buffer[:0], 0)
	if p.outside {
		more[0] |= 1
	}
	if p.server {
		more[0] |= 2
	}
	for _, s := range p.cidrs {
		more = append(more, s.digest[:]...)
	}
	return p.workload.digest("peer", more)
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
	p.digest = p.meaning()
	if known := e.peers[p.digest]; known != nil {
		set(e.plan, &known.refs, known.refs+1)
		e.plan.spent.put(known, struct{}{})
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
	p.ports, p.outside = p.workload.NamedPorts, f.isOutside()
	return p
}

// isOutside says whether what lives at an address is not of the cluster.
func (f *AddressFact) isOutside() bool {
	return f.Workload == nil && (f.Reserved == identity.World || f.Reserved == identity.KubeAPIServer && f.Flags&addressCluster == 0)
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
	e.plan.peers.put(p, struct{}{})
	e.plan.spent.put(p, struct{}{})
	p.bits = bits
	e.watch(p)
}

// releasePeer takes a reference away; a peer without any goes at the end of the plan.
func (e *Engine) releasePeer(p *peer) {
	set(e.plan, &p.refs, p.refs-1)
	e.plan.spent.put(p, struct{}{})
}

// setBits changes the selectors that match a peer.
func (e *Engine) setBits(p *peer, bits bitset) {
	set(e.plan, &p.bits, bits)
	e.plan.peers.put(p, struct{}{})
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
	e.plan.spaces.put(space, struct{}{})
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
	for _, mark := range e.plan.spent.take() {
		if p := mark.key; p.refs == 0 && !p.isFixed() && e.peers[p.digest] == p {
			e.removePeer(p)
		}
	}
}

// settlePeers gives peers the class of their bits.
func (e *Engine) settlePeers() error {
	e.plan.peers.sort(func(a, b *peer) int { return compareDigests(a.digest, b.digest) })
	for _, mark := range e.plan.peers.entries {
		p := mark.key
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
		e.move(p, c)
		e.plan.delta.Peers = append(e.plan.delta.Peers, PeerRow{Peer: p.number, Class: c.number})
	}
	for _, mark := range e.plan.classes.entries {
		if c := mark.key; c.count == 0 && c.number != 0 {
			e.removeClass(c)
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
		e.plan.spaces.put(p.space, struct{}{})
	}
	e.move(p, nil)
	e.release(KindPeer, p.digest, 1)
}

// classOf returns the class of a set of selectors.
func (e *Engine) classOf(bits bitset) (*class, error) {
	digest := bits.digest()
	if known := e.classes[digest]; known != nil {
		return known, nil
	}
	// A class is never changed in place: packets are judged by the old row until their peer's word is stored.
	c := &class{digest: digest, bits: bits}
	number, err := e.number(KindClass, digest, 1)
	if err != nil {
		return nil, err
	}
	c.number = number
	put(e.plan, e.classes, digest, c)
	e.holders.add(c)
	e.plan.undo = append(e.plan.undo, func() { e.holders.remove(c) })
	e.plan.delta.Classes = append(e.plan.delta.Classes, ClassRow{Class: number, Bits: bits})
	return c, nil
}

func (e *Engine) removeClass(c *class) {
	drop(e.plan, e.classes, c.digest)
	e.holders.remove(c)
	e.plan.undo = append(e.plan.undo, func() { e.holders.add(c) })
	e.release(KindClass, c.digest, 1)
}

// move gives a peer another class; nil: none, since it goes.
func (e *Engine) move(p *peer, c *class) {
	old := p.class
	if old != nil {
		e.plan.classes.put(old, struct{}{})
	}
	e.plan.undo = append(e.plan.undo, func() { p.join(old) })
	p.join(c)
}

// join links a peer with those of a class, and no longer with those of the one it was in.
func (p *peer) join(c *class) {
	if old := p.class; old != nil {
		if old.count--; p.prev != nil {
			p.prev.next = p.next
		} else {
			old.first = p.next
		}
		if p.next != nil {
			p.next.prev = p.prev
		}
	}
	p.class, p.next, p.prev = c, nil, nil
	if c == nil {
		return
	}
	if p.next = c.first; p.next != nil {
		p.next.prev = p
	}
	c.first = p
	c.count++
}

// holders are the classes by the bits that they have, so that a selector that goes finds its peers.
type holders map[uint32]map[*class]struct{}

func (h holders) add(c *class) {
	for bit := range c.bits.all() {
		insert(h, bit, c)
	}
}

func (h holders) remove(c *class) {
	for bit := range c.bits.all() {
		extract(h, bit, c)
	}
}

func compareDigests(a, b Digest) int { return slices.Compare(a[:], b[:]) }
