package datapath

import (
	"encoding/binary"
	"fmt"
	"sync/atomic"
	"unsafe"

	"github.com/cilium/ebpf"
	"golang.org/x/sys/unix"
)

// arena is the memory of a BPF_F_MMAPABLE array. All accesses are of aligned 64-bit words (32-bit for the control
// words), which the machine does not tear; programs read words of the same size.
type arena struct {
	name   string
	mem    []byte
	stride int // bytes from one value to the next: the value's size rounded up to 8 (kernel, array_map_alloc)
}

// mapArena maps an array into memory.
func mapArena(name string, m *ebpf.Map) (*arena, error) {
	stride := int(m.ValueSize()+7) / 8 * 8
	page := unix.Getpagesize()
	length := (stride*int(m.MaxEntries()) + page - 1) / page * page
	mem, err := unix.Mmap(m.FD(), 0, length, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
	if err != nil {
		return nil, fmt.Errorf("map %s into memory: %w", name, err)
	}
	return &arena{name: name, mem: mem[: stride*int(m.MaxEntries()) : length], stride: stride}, nil
}

// close unmaps the memory; the arena must not be used after it.
func (a *arena) close() error {
	mem := a.mem[:cap(a.mem)]
	a.mem = nil
	if mem == nil {
		return nil
	}
	return unix.Munmap(mem)
}

// values is how many values the arena holds.
func (a *arena) values() int { return len(a.mem) / a.stride }

// word is the 64-bit word at a byte offset, which must be a multiple of 8.
func (a *arena) word(offset int) *uint64 {
	return (*uint64)(unsafe.Pointer(&a.mem[offset : offset+8][0]))
}

// half is the 32-bit word that begins value i.
func (a *arena) half(i uint32) *uint32 {
	offset := int(i) * a.stride
	return (*uint32)(unsafe.Pointer(&a.mem[offset : offset+4][0]))
}

// store64 makes word number i of the arena v and says whether it was different.
func (a *arena) store64(i int, v uint64) bool {
	p := a.word(i * 8)
	if atomic.LoadUint64(p) == v {
		return false
	}
	atomic.StoreUint64(p, v)
	return true
}

// store32 makes value number i of an arena of 32-bit values v and says whether it was different.
func (a *arena) store32(i, v uint32) bool {
	p := a.half(i)
	if atomic.LoadUint32(p) == v {
		return false
	}
	atomic.StoreUint32(p, v)
	return true
}

// storeBytes makes the bytes of value i, a multiple of 8 long, b, word by word, and counts the words that differed.
func (a *arena) storeBytes(i uint32, b []byte) int {
	changed := 0
	for offset := 0; offset < len(b); offset += 8 {
		if a.store64((int(i)*a.stride+offset)/8, binary.NativeEndian.Uint64(b[offset:])) {
			changed++
		}
	}
	return changed
}

// holds says whether values first to first+count-1 exist.
func (a *arena) holds(first, count int) bool {
	return first >= 0 && first+count <= a.values()
}
