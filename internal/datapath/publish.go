package datapath

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"sync/atomic"

	"github.com/cilium/ebpf"
	"golang.org/x/sys/unix"

	"tendril.io/tendril/bpf"
	"tendril.io/tendril/internal/policy"
)

// Publish makes the kernel equal to a delta: content nobody refers to yet, class bits, peer classes, addresses; then the
// descriptors, one store each; then endpoint records, removals and the verdict epoch. It returns when the new state is
// in force. What the delta's brain released is freed by Run, after a grace period.
//
// An impossible delta is refused whole. After another error the kernel may hold part of the delta; publishing the same
// delta again completes it, and until then nothing is freed.
func (d *Datapath) Publish(ctx context.Context, delta *policy.Delta) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	if err := d.checkDelta(delta); err != nil {
		return fmt.Errorf("publish policy: %w", err)
	}
	// What is released from here on belongs to the next delta, which this one knows nothing of.
	released := d.numbers.releasedOf(publicationPolicy)
	// The order is the contract of policy.Delta: content before what refers to it, and what may be missing last. An address
	// that is taken out falls back to the prefix around it, which is nobody's or the world's, never to another pod's.
	for _, step := range []func(*policy.Delta) error{
		d.writeContents, d.writeClasses, d.writePeers, d.setAddresses, d.writePrograms, d.writeSubjects, d.unsetAddresses,
	} {
		if err := errors.Join(ctx.Err(), step(delta)); err != nil {
			return fmt.Errorf("publish policy: %w", err)
		}
	}
	if err := d.clearReleased(released); err != nil {
		return fmt.Errorf("publish policy: %w", err)
	}
	// Only now: a packet that reads the new epoch must find the new state. One that judged by the old state under the old
	// epoch judges again with its next packet.
	if delta.Changed || d.fresh {
		if err := d.raiseEpoch(); err != nil {
			return fmt.Errorf("publish policy: %w", err)
		}
	}
	d.fresh = false // only once it succeeded: an agent before may have died between its state and its epoch
	d.numbers.retire(publicationPolicy, released)
	d.grace.queue(released)
	return nil
}

// checkDelta refuses rows that the maps cannot hold.
func (d *Datapath) checkDelta(delta *policy.Delta) error {
	words := int(d.node.ClassWords)
	for _, row := range delta.Classes {
		if len(row.Bits) > words || !d.arenas.classBits.holds(int(row.Class), 1) {
			return fmt.Errorf("class %d with %d words of selectors: there is room for %d classes of %d words",
				row.Class, len(row.Bits), d.arenas.classBits.values(), words)
		}
	}
	for _, row := range delta.Peers {
		if !d.arenas.peerClass.holds(int(row.Peer), 1) {
			return fmt.Errorf("peer %d: there is room for %d", row.Peer, d.arenas.peerClass.values())
		}
	}
	for _, row := range delta.Contents {
		if !d.arenas.cells.holds(int(row.FirstCell), len(row.Cells)) {
			return fmt.Errorf("policy cells %d to %d: there is room for %d", row.FirstCell, int(row.FirstCell)+len(row.Cells)-1, d.arenas.cells.values())
		}
	}
	for _, row := range delta.Programs {
		if !d.arenas.programs.holds(int(row.Program), 1) {
			return fmt.Errorf("policy program %d: there is room for %d", row.Program, d.arenas.programs.values())
		}
	}
	return d.checkReferences(delta)
}

// checkReferences refuses addresses that are none and endpoints that cannot be.
func (d *Datapath) checkReferences(delta *policy.Delta) error {
	for _, row := range delta.Set {
		if !row.Prefix.IsValid() {
			return errors.New("address row without an address")
		}
	}
	for _, prefix := range delta.Unset {
		if !prefix.IsValid() {
			return errors.New("removed address row without an address")
		}
	}
	for _, row := range delta.Subjects {
		if row.Endpoint == 0 || row.Endpoint >= d.set.sizes["endpoints"] {
			return fmt.Errorf("endpoint %d: there is room for 1 to %d", row.Endpoint, d.set.sizes["endpoints"]-1)
		}
	}
	return nil
}

func (d *Datapath) writeContents(delta *policy.Delta) error {
	for _, row := range delta.Contents {
		first := int(row.FirstCell) * 2
		if d.cellsEqual(first, row.Cells) {
			continue
		}
		if err := d.counts.step(writeContent); err != nil {
			return err
		}
		// No descriptor leads here yet (or again: a grace period has passed), so that the order within does not matter.
		for i, cell := range row.Cells {
			d.arenas.cells.store64(first+2*i, binary.NativeEndian.Uint64(cell[:8]))
			d.arenas.cells.store64(first+2*i+1, binary.NativeEndian.Uint64(cell[8:]))
		}
	}
	return nil
}

// cellsEqual spares a restarted agent the writes, and the count of them, that would change nothing.
func (d *Datapath) cellsEqual(first int, cells [][16]byte) bool {
	for i, cell := range cells {
		if *d.arenas.cells.word((first + 2*i) * 8) != binary.NativeEndian.Uint64(cell[:8]) ||
			*d.arenas.cells.word((first + 2*i + 1) * 8) != binary.NativeEndian.Uint64(cell[8:]) {
			return false
		}
	}
	return true
}

func (d *Datapath) writeClasses(delta *policy.Delta) error {
	for _, row := range delta.Classes {
		if err := d.writeClass(row.Class, row.Bits); err != nil {
			return err
		}
	}
	return nil
}

// writeClass writes one row of class_bits; words that bits does not have are 0.
func (d *Datapath) writeClass(class uint32, bits []uint64) error {
	words := int(d.node.ClassWords)
	counted := false
	for i := range words {
		var v uint64
		if i < len(bits) {
			v = bits[i]
		}
		at := int(class)*words + i
		if *d.arenas.classBits.word(at * 8) == v {
			continue
		}
		if !counted {
			if err := d.counts.step(writeClass); err != nil {
				return err
			}
			counted = true
		}
		d.arenas.classBits.store64(at, v)
	}
	return nil
}

func (d *Datapath) writePeers(delta *policy.Delta) error {
	for _, row := range delta.Peers {
		if err := d.store32(writePeer, d.arenas.peerClass, row.Peer, row.Class); err != nil {
			return err
		}
	}
	return nil
}

func (d *Datapath) writePrograms(delta *policy.Delta) error {
	for _, row := range delta.Programs {
		if err := d.store64(writeProgram, d.arenas.programs, int(row.Program), row.Descriptor); err != nil {
			return err
		}
	}
	return nil
}

// store32 and store64 change one word, if it differs.
func (d *Datapath) store32(kind write, a *arena, i, v uint32) error {
	if atomic.LoadUint32(a.half(i)) == v {
		return nil
	}
	if err := d.counts.step(kind); err != nil {
		return err
	}
	a.store32(i, v)
	return nil
}

func (d *Datapath) store64(kind write, a *arena, i int, v uint64) error {
	if atomic.LoadUint64(a.word(i*8)) == v {
		return nil
	}
	if err := d.counts.step(kind); err != nil {
		return err
	}
	a.store64(i, v)
	return nil
}

// diffFrom is from how many rows on the kernel's rows are read first and only differences written: after a restart
// nearly all rows are there already.
const diffFrom = 256

func (d *Datapath) setAddresses(delta *policy.Delta) error {
	addresses, prefixes := d.set.maps["addresses"], d.set.maps["prefixes"]
	knownAddresses, knownPrefixes, err := d.knownAddresses(len(delta.Set))
	if err != nil {
		return err
	}
	for i := range delta.Set {
		row := &delta.Set[i]
		info := bpf.PeerInfo{Peer: row.Peer, Node: row.Node, Endpoint: row.Endpoint, Flags: bpf.AddressFlag(row.Flags)}
		if row.Prefix.IsSingleIP() {
			key := bpf.AddressOf(row.Prefix.Addr())
			err = putRow(d, writeAddress, "addresses", addresses, knownAddresses, key, info)
		} else {
			err = putRow(d, writePrefix, "prefixes", prefixes, knownPrefixes, bpf.PrefixOf(row.Prefix), info)
		}
		if err != nil {
			return fmt.Errorf("address %s: %w", row.Prefix, err)
		}
	}
	return nil
}

// knownAddresses reads what is there, if rows are many.
func (d *Datapath) knownAddresses(rows int) (map[bpf.Address]bpf.PeerInfo, map[bpf.Prefix]bpf.PeerInfo, error) {
	if rows < diffFrom {
		return nil, nil, nil
	}
	addresses, err := known[bpf.Address, bpf.PeerInfo](d.set.maps["addresses"])
	if err != nil {
		return nil, nil, fmt.Errorf("read map addresses: %w", err)
	}
	prefixes, err := known[bpf.Prefix, bpf.PeerInfo](d.set.maps["prefixes"])
	if err != nil {
		return nil, nil, fmt.Errorf("read map prefixes: %w", err)
	}
	return addresses, prefixes, nil
}

// known reads a whole map.
func known[K, V comparable](m *ebpf.Map) (map[K]V, error) {
	out := map[K]V{}
	err := walk(m, func(keys []K, values []V) error {
		for i := range keys {
			out[keys[i]] = values[i]
		}
		return nil
	})
	return out, err
}

// putRow writes one row of a hash or trie unless it is known to be there. Both replace an element as a whole, so a
// program sees the old row or the new one.
func putRow[K, V comparable](d *Datapath, kind write, name string, m *ebpf.Map, known map[K]V, key K, value V) error {
	if before, ok := known[key]; ok && before == value {
		return nil
	}
	if err := d.counts.step(kind); err != nil {
		return err
	}
	if err := m.Put(&key, &value); err != nil {
		return fullMap(name, m, err)
	}
	return nil
}

// isFull says that a map has no room: hashes answer E2BIG, tries ENOSPC.
func isFull(err error) bool { return errors.Is(err, unix.E2BIG) || errors.Is(err, unix.ENOSPC) }

func (d *Datapath) unsetAddresses(delta *policy.Delta) error {
	for _, prefix := range delta.Unset {
		if err := d.unsetAddress(prefix); err != nil {
			return fmt.Errorf("address %s: %w", prefix, err)
		}
	}
	return nil
}

func (d *Datapath) unsetAddress(prefix netip.Prefix) error {
	if prefix.IsSingleIP() {
		key := bpf.AddressOf(prefix.Addr())
		return deleteRow(d, writeAddress, "addresses", &key)
	}
	key := bpf.PrefixOf(prefix)
	return deleteRow(d, writePrefix, "prefixes", &key)
}

// deleteRow removes a row; one that is gone is fine.
func deleteRow[K any](d *Datapath, kind write, name string, key *K) error {
	if err := d.counts.step(kind); err != nil {
		return err
	}
	if err := d.set.maps[name].Delete(key); err != nil && !errors.Is(err, ebpf.ErrKeyNotExist) {
		return fmt.Errorf("map %s: %w", name, err)
	}
	return nil
}

func (d *Datapath) writeSubjects(delta *policy.Delta) error {
	for _, row := range delta.Subjects {
		err := d.changeEndpoint(row.Endpoint, func(e *bpf.Endpoint) {
			e.Peer, e.Ingress, e.Egress = row.Peer, row.Ingress, row.Egress
			e.StagedIngress, e.StagedEgress = row.StagedIngress, row.StagedEgress
			if row.Endpoint == uint32(bpf.EndpointHost) {
				useHost(e)
			}
		})
		if err != nil {
			return err
		}
	}
	return nil
}

// loopback is the index of a network namespace's first device, lo.
const loopback = 1

// useHost puts the node's own record into use while a program judges the node, and out of use with the last. In between,
// the node's packets cost the one look that tells so.
func useHost(e *bpf.Endpoint) {
	if e.Ingress|e.Egress|e.StagedIngress|e.StagedEgress == 0 {
		*e = bpf.Endpoint{}
		return
	}
	e.IfIndex = loopback
}

// clearReleased makes released numbers lead nowhere, so that nothing old shows when they are given out again.
func (d *Datapath) clearReleased(released []retired) (err error) {
	for _, r := range released {
		switch r.kind() {
		case policy.KindProgram:
			err = d.store64(writeProgram, d.arenas.programs, int(r.first), 0)
		case policy.KindPeer:
			err = d.store32(writePeer, d.arenas.peerClass, r.first, 0)
		case policy.KindBackend:
			err = d.writeBackend(r.first, &bpf.Backend{})
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// raiseEpoch makes every cached verdict stale. The number may wrap after 2^32 publications: a flow would have to be
// silent for all of them to take an old verdict for a new one.
func (d *Datapath) raiseEpoch() error {
	if err := d.counts.step(writeEpoch); err != nil {
		return err
	}
	atomic.AddUint32(d.arenas.control.half(uint32(bpf.ControlVerdictEpoch)), 1)
	return nil
}
