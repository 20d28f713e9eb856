package datapath

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"

	"tendril.io/tendril/bpf"
	"tendril.io/tendril/internal/service"
)

// PublishServices makes the kernel equal to a delta of services: backends, slots nobody refers to yet, then frontends,
// each replaced as a whole, removals, and backends that are gone. The contract is that of [Datapath.Publish].
func (d *Datapath) PublishServices(ctx context.Context, delta *service.Delta) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	if err := d.checkServices(delta); err != nil {
		return fmt.Errorf("publish services: %w", err)
	}
	released := d.numbers.releasedOf(publicationServices)
	// Backends before the slots that name them, slots before the frontends that lead to them; what goes, the other way
	// round. A packet that meets the middle finds a whole old service or a whole new one.
	for _, step := range []func(*service.Delta) error{
		func(delta *service.Delta) error { return d.writeBackends(delta.Backends) },
		d.writeSlots, func(delta *service.Delta) error { return d.setGuards(delta.Guards) },
		d.setFrontends, d.unsetFrontends, func(delta *service.Delta) error { return d.unsetGuards(delta.Unguarded) },
		func(delta *service.Delta) error { return d.writeBackends(delta.Retired) },
	} {
		if err := errors.Join(ctx.Err(), step(delta)); err != nil {
			return fmt.Errorf("publish services: %w", err)
		}
	}
	if err := d.clearReleased(released); err != nil {
		return fmt.Errorf("publish services: %w", err)
	}
	d.numbers.retire(publicationServices, released)
	d.grace.queue(released)
	return nil
}

// checkServices refuses rows that the maps cannot hold.
func (d *Datapath) checkServices(delta *service.Delta) error {
	for _, rows := range [][]service.BackendRow{delta.Backends, delta.Retired} {
		for _, row := range rows {
			if row.Index == 0 || !d.arenas.backends.holds(int(row.Index), 1) {
				return fmt.Errorf("backend %d (%s): there is room for 1 to %d", row.Index, row.Addr, d.arenas.backends.values()-1)
			}
		}
	}
	for _, row := range delta.Slots {
		if !d.arenas.slots.holds(int(row.First), len(row.Backends)) {
			return fmt.Errorf("slots %d to %d: there is room for %d", row.First, int(row.First)+len(row.Backends)-1, d.arenas.slots.values())
		}
	}
	for _, row := range delta.Frontends {
		for _, slots := range []bpf.SlotRange{row.Inside, row.Outside} {
			if !d.arenas.slots.holds(int(slots.First), int(slots.Count)) {
				return fmt.Errorf("frontend %s port %d: slots %d to %d: there is room for %d",
					row.Addr, row.Port, slots.First, int(slots.First)+int(slots.Count)-1, d.arenas.slots.values())
			}
		}
	}
	return nil
}

func (d *Datapath) writeBackends(rows []service.BackendRow) error {
	for _, row := range rows {
		value := bpf.Backend{
			Address: bpf.AddressOf(row.Addr), Port: bpf.NetPort(row.Port), Protocol: row.Proto,
			State: row.State, Node: row.Node,
		}
		if err := d.writeBackend(row.Index, &value); err != nil {
			return err
		}
	}
	return nil
}

// writeBackend writes the address before the word with port and state: an index changes its address only while nobody
// refers to it, and its state at one instant.
func (d *Datapath) writeBackend(index uint32, value *bpf.Backend) error {
	row := backendBytes(value)
	equal := true
	for offset := 0; offset < len(row); offset += 8 {
		at := int(index)*d.arenas.backends.stride + offset
		equal = equal && *d.arenas.backends.word(at) == binary.NativeEndian.Uint64(row[offset:])
	}
	if equal {
		return nil
	}
	if err := d.counts.step(writeBackend); err != nil {
		return err
	}
	d.arenas.backends.storeBytes(index, row[:])
	return nil
}

// backendBytes is struct backend as memory has it.
func backendBytes(b *bpf.Backend) [24]byte {
	var row [24]byte
	copy(row[:16], b.Address[:])
	binary.NativeEndian.PutUint16(row[16:], b.Port)
	row[18], row[19] = b.Protocol, uint8(b.State)
	binary.NativeEndian.PutUint32(row[20:], b.Node)
	return row
}

func (d *Datapath) writeSlots(delta *service.Delta) error {
	for _, row := range delta.Slots {
		counted := false
		for i, backend := range row.Backends {
			at := row.First + uint32(i)
			if *d.arenas.slots.half(at) == backend {
				continue
			}
			if !counted {
				if err := d.counts.step(writeSlots); err != nil {
					return err
				}
				counted = true
			}
			d.arenas.slots.store32(at, backend)
		}
	}
	return nil
}

func (d *Datapath) setFrontends(delta *service.Delta) error {
	m := d.set.maps["frontends"]
	var there map[bpf.FrontendKey]bpf.Frontend
	if len(delta.Frontends) >= diffFrom {
		var err error
		if there, err = known[bpf.FrontendKey, bpf.Frontend](m); err != nil {
			return fmt.Errorf("read map frontends: %w", err)
		}
	}
	for _, row := range delta.Frontends {
		value := bpf.Frontend{
			Inside: row.Inside, Outside: row.Outside, Service: row.Service, Flags: row.Flags, AffinitySeconds: row.AffinitySeconds,
		}
		if err := putRow(d, writeFrontend, "frontends", m, there, frontendKey(row.FrontendKey), value); err != nil {
			return fmt.Errorf("frontend %s port %d: %w", row.Addr, row.Port, err)
		}
	}
	return nil
}

func (d *Datapath) unsetFrontends(delta *service.Delta) error {
	for _, row := range delta.Removed {
		key := frontendKey(row)
		if err := deleteRow(d, writeFrontend, "frontends", &key); err != nil {
			return err
		}
	}
	return nil
}

// setGuards adds source ranges before a frontend asks for them.
func (d *Datapath) setGuards(rows []service.GuardRow) error {
	for _, row := range rows {
		key, value := bpf.GuardOf(row.Service, row.Prefix), uint32(1)
		if err := putDifferent(d, writeGuard, "guards", &key, &value); err != nil {
			return fmt.Errorf("source range %s: %w", row.Prefix, err)
		}
	}
	return nil
}

func (d *Datapath) unsetGuards(rows []service.GuardRow) error {
	for _, row := range rows {
		key := bpf.GuardOf(row.Service, row.Prefix)
		if err := deleteRow(d, writeGuard, "guards", &key); err != nil {
			return err
		}
	}
	return nil
}

func frontendKey(k service.FrontendKey) bpf.FrontendKey {
	return bpf.FrontendKey{Address: bpf.AddressOf(k.Addr), Port: bpf.NetPort(k.Port), Protocol: k.Proto}
}
