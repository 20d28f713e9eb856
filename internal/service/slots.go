package service

import (
	"crypto/sha256"
	"encoding/binary"
	"fmt"

	"tendril.io/tendril/internal/policy"
)

// AlgorithmMaglev is the value of table.Service.Algorithm that asks for a Maglev table; anything else is random.
const AlgorithmMaglev = "maglev"

// slotOrder returns which member of the set stands in each slot. Random: each once, in the order of the set, so that a
// uniform choice among slots is a uniform choice among backends. Maglev: a table of maglevSize slots.
func slotOrder(set backendSet, algorithm string, maglevSize uint32) ([]uint32, error) {
	if len(set) == 0 {
		return nil, nil
	}
	if algorithm != AlgorithmMaglev {
		order := make([]uint32, len(set))
		for i := range order {
			order[i] = uint32(i)
		}
		return order, nil
	}
	if len(set) > int(maglevSize) {
		return nil, fmt.Errorf("maglev table of %d slots cannot hold %d backends", maglevSize, len(set))
	}
	walks := make([]maglevWalk, len(set))
	for i, e := range set {
		walks[i] = newMaglevWalk(e.key.digest(), maglevSize)
	}
	return fillMaglev(walks, maglevSize), nil
}

// maglevWalk is a backend's permutation of the slots: it starts somewhere and takes equal strides. The table's size is a
// prime, so every stride below it visits every slot. (Eisenbud et al., "Maglev", NSDI 2016, section 3.4)
type maglevWalk struct{ at, stride uint32 }

// newMaglevWalk derives start and stride from two independent halves of the backend's digest, which depends on its
// address, port and protocol only: all nodes build the same table.
func newMaglevWalk(d policy.Digest, size uint32) maglevWalk {
	return maglevWalk{
		at:     uint32(binary.LittleEndian.Uint64(d[:8]) % uint64(size)),
		stride: uint32(binary.LittleEndian.Uint64(d[8:])%uint64(size-1)) + 1,
	}
}

// fillMaglev lets the backends take turns; at its turn, each takes the first free slot of its walk. Thus shares differ by
// one slot at most, and a backend that goes leaves nearly all other slots as they were.
func fillMaglev(walks []maglevWalk, size uint32) []uint32 {
	// No backend has this place: a set is smaller than the table.
	const free = ^uint32(0)
	slots := make([]uint32, size)
	for i := range slots {
		slots[i] = free
	}
	for filled := uint32(0); ; {
		for i := range walks {
			w := &walks[i]
			for slots[w.at] != free {
				w.step(size)
			}
			slots[w.at] = uint32(i)
			if filled++; filled == size {
				return slots
			}
		}
	}
}

// step goes on to the next slot of the walk.
func (w *maglevWalk) step(size uint32) {
	w.at += w.stride
	if w.at >= size {
		w.at -= size
	}
}

// digest is what a Maglev walk stands for.
func (k backendKey) digest() policy.Digest { return hash(k.appendTo([]byte("backend:"))) }

// appendTo spells the address, of either family in 16 bytes as in the datapath.
func (k backendKey) appendTo(text []byte) []byte {
	addr := k.addr.As16()
	text = append(text, addr[:]...)
	return append(binary.BigEndian.AppendUint16(text, k.port), k.proto, 0)
}

// digest is what a backend's number stands for. The prefix keeps digests of other things apart, the zero byte ends the name.
func (n backendName) digest() policy.Digest {
	return hash(n.key.appendTo([]byte("backend of:" + n.service.String() + "\x00")))
}

// digest is what a service's number stands for.
func (k serviceKey) digest() policy.Digest {
	return hash([]byte("service:" + k.namespace + "/" + k.name))
}

// slotsDigest is what a range of slots stands for: its content, for one service. Equal content has equal digest, so a
// restart finds its ranges, and unequal content never shares a range.
func slotsDigest(key serviceKey, slots []uint32) policy.Digest {
	text := make([]byte, 0, len("slots:")+len(key.namespace)+len(key.name)+2+4*len(slots))
	text = append(text, "slots:"+key.namespace+"/"+key.name+"/"...)
	for _, backend := range slots {
		text = binary.LittleEndian.AppendUint32(text, backend)
	}
	return hash(text)
}

// hash shortens SHA-256 to a digest.
func hash(text []byte) policy.Digest {
	sum := sha256.Sum256(text)
	return policy.Digest(sum[:16])
}
