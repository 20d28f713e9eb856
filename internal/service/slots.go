package service

import (
	"crypto/sha256"
	"encoding/binary"
	"fmt"

	"tendril.io/tendril/internal/policy"
)

// AlgorithmMaglev is the value of table.Service.Algorithm that asks for a Maglev table; anything else is random.
const AlgorithmMaglev = "maglev"

// ForwardingDSR is the value of table.Service.Forwarding that has backends of other nodes answer clients outside themselves. Empty leaves it
// to the node; anything else is through the node that was asked.
const ForwardingDSR = "dsr"

// slotOrder returns which member of the set stands in each slot. Random: each as often as it weighs in lowest terms, which is
// once where all weigh the same, in the order of the set: a uniform choice among slots is a fair choice among backends.
// Maglev: a table of maglevSize slots.
func slotOrder(set backendSet, algorithm string, maglevSize uint32) ([]uint32, error) {
	if len(set) == 0 {
		return nil, nil
	}
	if algorithm != AlgorithmMaglev {
		return repeat(set.weights()), nil
	}
	if len(set) > int(maglevSize) {
		return nil, &tableError{maglevSize, len(set)}
	}
	walks := make([]maglevWalk, len(set))
	for i, weight := range set.weights() {
		walks[i] = newMaglevWalk(set[i].key.digest(), weight, maglevSize)
	}
	return fillMaglev(walks, maglevSize), nil
}

// tableError says that a Maglev table is too small.
type tableError struct {
	slots    uint32
	backends int
}

// Error names need and room.
func (e *tableError) Error() string {
	return fmt.Sprintf("maglev table of %d slots cannot hold %d backends", e.slots, e.backends)
}

// weights are those of the set's members in lowest terms: a slot is not spent on what all have in common.
func (s backendSet) weights() []uint32 {
	var common uint32
	for _, e := range s {
		common = gcd(e.weight, common)
	}
	weights := make([]uint32, len(s))
	for i, e := range s {
		weights[i] = e.weight / common
	}
	return weights
}

// gcd is Euclid's.
func gcd(a, b uint32) uint32 {
	for b != 0 {
		a, b = b, a%b
	}
	return a
}

// repeat lists each index as often as its weight says.
func repeat(weights []uint32) []uint32 {
	order := make([]uint32, 0, len(weights))
	for i, weight := range weights {
		for range weight {
			order = append(order, uint32(i))
		}
	}
	return order
}

// maglevWalk is a backend's permutation of the slots: it starts somewhere and takes equal strides. The table's size is a
// prime, so every stride below it visits every slot. (Eisenbud et al., "Maglev", NSDI 2016, section 3.4)
type maglevWalk struct {
	at, stride uint32
	weight     uint32
	credit     uint32 // what the walk has saved up towards its next turn
}

// newMaglevWalk derives start and stride from two independent halves of the backend's digest, which depends on its
// address, port and protocol only: all nodes build the same table.
func newMaglevWalk(d policy.Digest, weight, size uint32) maglevWalk {
	return maglevWalk{
		weight: weight,
		at:     uint32(binary.LittleEndian.Uint64(d[:8]) % uint64(size)),
		stride: uint32(binary.LittleEndian.Uint64(d[8:])%uint64(size-1)) + 1,
	}
}

// fillMaglev lets the backends take turns; at its turn, each takes the first free slot of its walk. Thus shares differ by
// one slot at most, and a backend that goes leaves nearly all other slots as they were. Where weights differ, the heaviest
// backend has a turn in every round, and each other one in as many of the rounds as its weight is a share of the heaviest's.
func fillMaglev(walks []maglevWalk, size uint32) []uint32 {
	// No backend has this place: a set is smaller than the table.
	const free = ^uint32(0)
	slots := make([]uint32, size)
	for i := range slots {
		slots[i] = free
	}
	var heaviest uint32
	for _, w := range walks {
		heaviest = max(heaviest, w.weight)
	}
	for filled := uint32(0); ; {
		for i := range walks {
			w := &walks[i]
			if w.credit += w.weight; w.credit < heaviest {
				continue
			}
			w.credit -= heaviest
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
