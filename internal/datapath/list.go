package datapath

import (
	"cmp"
	"errors"
	"fmt"
	"iter"
	"maps"
	"net/netip"
	"reflect"
	"slices"
	"time"

	"github.com/cilium/ebpf"

	"tendril.io/tendril/bpf"
)

// Mapping is a source translation in use.
type Mapping struct {
	Protocol uint8
	Pod      netip.AddrPort
	Node     netip.AddrPort
	Remote   netip.AddrPort
	Endpoint uint32 // owner
	Age      time.Duration
}

// Mappings lists source translations, by pod and remote.
func (d *Datapath) Mappings() ([]Mapping, error) {
	now, out := monotonic(), []Mapping{}
	err := walk(d.set.maps["nat"], func(keys []bpf.NATKey, values []bpf.NATMapping) error {
		for i := range keys {
			out = append(out, mappingOf(&keys[i], &values[i], now))
		}
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("list NAT mappings: %w", err)
	}
	slices.SortFunc(out, func(a, b Mapping) int {
		return cmp.Or(a.Pod.Compare(b.Pod), a.Remote.Compare(b.Remote), cmp.Compare(a.Protocol, b.Protocol), a.Node.Compare(b.Node))
	})
	return out, nil
}

func mappingOf(k *bpf.NATKey, v *bpf.NATMapping, now uint64) Mapping {
	return Mapping{
		Protocol: k.Protocol,
		Pod:      netip.AddrPortFrom(v.Pod.Addr(), bpf.Port(v.PodPort)),
		Node:     netip.AddrPortFrom(k.Node.Addr(), bpf.Port(k.NodePort)),
		Remote:   netip.AddrPortFrom(k.Remote.Addr(), bpf.Port(k.RemotePort)),
		Endpoint: v.Endpoint,
		Age:      time.Duration(now - min(now, v.Created)),
	}
}

// FlowEntry is a connection as the kernel has it.
type FlowEntry struct {
	Key     bpf.FlowKey
	Flow    bpf.Flow
	Expires time.Duration // from now; negative: the sweeper has not come yet
	Age     time.Duration
}

// Flows lists connections in the kernel's order. The pointer is only valid until the next one.
func (d *Datapath) Flows() iter.Seq2[*FlowEntry, error] {
	return func(yield func(*FlowEntry, error) bool) {
		now := monotonic()
		var entry FlowEntry
		err := walk(d.set.maps["flows"], func(keys []bpf.FlowKey, values []bpf.Flow) error {
			for i := range keys {
				entry = FlowEntry{keys[i], values[i], time.Duration(values[i].Expires - now), time.Duration(now - min(now, values[i].Created))}
				if !yield(&entry, nil) {
					return errStop
				}
			}
			return nil
		})
		if err != nil && !errors.Is(err, errStop) {
			yield(nil, fmt.Errorf("list connections: %w", err))
		}
	}
}

// errStop ends a walk early.
var errStop = errors.New("stop")

// Counter is packets and bytes that ended for one reason at one hook.
type Counter struct {
	Reason  bpf.Reason
	Hook    bpf.Hook
	Packets uint64
	Bytes   uint64
}

// Counters lists the counters that are not zero, summed over CPUs.
func (d *Datapath) Counters() ([]Counter, error) {
	var out []Counter
	for _, reason := range bpf.Reasons() {
		for _, hook := range bpf.Hooks() {
			var perCPU []bpf.Counter
			index := uint32(reason)*uint32(bpf.HookCount) + uint32(hook)
			if err := d.set.maps["counters"].Lookup(&index, &perCPU); err != nil {
				return nil, fmt.Errorf("read counters: %w", err)
			}
			row := Counter{Reason: reason, Hook: hook}
			for _, c := range perCPU {
				row.Packets += c.Packets
				row.Bytes += c.Bytes
			}
			if row.Packets > 0 {
				out = append(out, row)
			}
		}
	}
	return out, nil
}

// Tallies are the one-off counters, summed over CPUs.
func (d *Datapath) Tallies() (map[bpf.Tally]uint64, error) {
	out := map[bpf.Tally]uint64{}
	for _, tally := range bpf.Tallies() {
		n, err := d.tally(tally)
		if err != nil {
			return nil, err
		}
		out[tally] = n
	}
	return out, nil
}

func (d *Datapath) tally(tally bpf.Tally) (uint64, error) {
	var perCPU []uint64
	index := uint32(tally)
	if err := d.set.maps["tallies"].Lookup(&index, &perCPU); err != nil {
		return 0, fmt.Errorf("read tally %s: %w", tally, err)
	}
	var sum uint64
	for _, n := range perCPU {
		sum += n
	}
	return sum, nil
}

// EventsLost is how many events found the ring buffer full since it was made.
func (d *Datapath) EventsLost() (uint64, error) { return d.tally(bpf.TallyEventsLost) }

// MapUse is a map's fill and memory.
type MapUse struct {
	Name     string
	Entries  uint64 // of hashes and tries; of numbered tables, the numbers given out; others: 0
	Capacity uint64
	Bytes    uint64 // as the kernel accounts them
}

// MapUse lists every shared map. Hashes and tries are counted by reading them, about 0.25 us an entry.
func (d *Datapath) MapUse() ([]MapUse, error) {
	numbered := map[string]uint64{}
	for _, use := range d.numbers.useByMap() {
		numbered[use.name] = use.entries
	}
	var out []MapUse
	for _, name := range slices.Sorted(maps.Keys(d.set.maps)) {
		m := d.set.maps[name]
		info, err := m.Info()
		if err != nil {
			return nil, fmt.Errorf("map %s: %w", name, err)
		}
		memory, _ := info.Memlock()
		row := MapUse{Name: name, Entries: numbered[name], Capacity: uint64(m.MaxEntries()), Bytes: memory}
		if m.Type() == ebpf.Hash || m.Type() == ebpf.LPMTrie {
			if row.Entries, err = countEntries(m); err != nil {
				return nil, fmt.Errorf("map %s: %w", name, err)
			}
		}
		out = append(out, row)
	}
	return out, nil
}

// countBatch is how many entries one system call counts.
const countBatch = 4096

// countEntries counts a map's entries of whatever type: batches cost a system call for thousands of entries, where
// asking for one key after the other costs one each. The kernel keeps no count that a reader could have.
func countEntries(m *ebpf.Map) (uint64, error) {
	batch := min(int(m.MaxEntries()), countBatch)
	buffer := func(size uint32) any {
		return reflect.MakeSlice(reflect.SliceOf(reflect.ArrayOf(int(size), reflect.TypeFor[byte]())), batch, batch).Interface()
	}
	keys, values := buffer(m.KeySize()), buffer(m.ValueSize())
	var cursor ebpf.MapBatchCursor
	total := uint64(0)
	for {
		n, err := m.BatchLookup(&cursor, keys, values, nil)
		if err != nil && !errors.Is(err, ebpf.ErrKeyNotExist) {
			return 0, err
		}
		total += uint64(n)
		if err != nil {
			return total, nil
		}
	}
}
