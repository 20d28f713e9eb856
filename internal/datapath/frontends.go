package datapath

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"

	"github.com/cilium/ebpf"

	"tendril.io/tendril/bpf"
	"tendril.io/tendril/internal/service"
)

// Frontend is a service address as the kernel has it.
type Frontend struct {
	Key             service.FrontendKey
	Flags           bpf.FrontendFlag
	AffinitySeconds uint32
	Inside, Outside []netip.AddrPort // backends, each once
	Slots           uint32           // of Inside
}

// Frontends lists service addresses by address and port: those at addr or with a backend at it, or all.
func (d *Datapath) Frontends(addr netip.Addr) ([]Frontend, error) {
	var out []Frontend
	err := walk(d.set.maps["frontends"], func(keys []bpf.FrontendKey, values []bpf.Frontend) error {
		for i := range keys {
			f := Frontend{
				Key:   service.FrontendKey{Addr: netip.AddrFrom16(keys[i].Address).Unmap(), Port: bpf.Port(keys[i].Port), Proto: keys[i].Protocol},
				Flags: values[i].Flags, AffinitySeconds: values[i].AffinitySeconds, Slots: values[i].Inside.Count,
				Inside: d.backendsIn(values[i].Inside), Outside: d.backendsIn(values[i].Outside),
			}
			at := func(b netip.AddrPort) bool { return b.Addr() == addr }
			if !addr.IsValid() || f.Key.Addr == addr || slices.ContainsFunc(f.Inside, at) || slices.ContainsFunc(f.Outside, at) {
				out = append(out, f)
			}
		}
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("list frontends: %w", err)
	}
	slices.SortFunc(out, func(a, b Frontend) int { return a.Key.Compare(b.Key) })
	return out, nil
}

// backendsIn lists the backends in a range of slots, each once.
func (d *Datapath) backendsIn(slots bpf.SlotRange) []netip.AddrPort {
	var all []netip.AddrPort
	seen := make(map[uint32]bool)
	for i := range slots.Count {
		if !d.arenas.slots.holds(int(slots.First+i), 1) {
			break
		}
		index := *d.arenas.slots.half(slots.First + i)
		var row bpf.Backend
		if seen[index] || d.set.maps["backends"].Lookup(&index, &row) != nil {
			continue
		}
		seen[index] = true
		all = append(all, netip.AddrPortFrom(row.Address.Addr(), bpf.Port(row.Port)))
	}
	return all
}

// FlushAffinities forgets which backend a client had, or all clients, and counts what it forgot.
func (d *Datapath) FlushAffinities(client netip.Addr) (int, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	m := d.set.maps["affinities"]
	var gone []bpf.AffinityKey
	err := walk(m, func(keys []bpf.AffinityKey, _ []bpf.Affinity) error {
		for _, key := range keys {
			if !client.IsValid() || key.Client.Addr() == client {
				gone = append(gone, key)
			}
		}
		return nil
	})
	if err != nil {
		return 0, fmt.Errorf("flush affinities: %w", err)
	}
	for i := range gone {
		if err := m.Delete(&gone[i]); err != nil && !errors.Is(err, ebpf.ErrKeyNotExist) {
			return i, fmt.Errorf("flush affinities: %w", err)
		}
	}
	return len(gone), nil
}
