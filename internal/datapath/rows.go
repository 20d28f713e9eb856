package datapath

import (
	"errors"
	"fmt"

	"github.com/cilium/ebpf"

	"tendril.io/tendril/bpf"
	"tendril.io/tendril/internal/table"
)

// WriteEndpoint makes a pod's record what the row says. Peer and programs are Publish's to write: what it wrote for
// this use of the record stays; a record that was another pod's starts with none, which allows nothing.
func (d *Datapath) WriteEndpoint(row *table.Endpoint) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	if err := d.checkEndpoint(row); err != nil {
		return fmt.Errorf("write endpoint %s/%s: %w", row.Namespace, row.Pod, err)
	}
	var was uint64
	err := d.changeEndpoint(row.ID, func(e *bpf.Endpoint) {
		was = e.NetnsCookie
		next := bpf.Endpoint{
			PodMAC: row.PodMAC, HostMAC: row.HostMAC, IfIndex: row.IfIndex, Generation: row.Generation, MTU: row.MTU,
			NetnsCookie: row.NetnsCookie,
		}
		if row.Chained {
			next.Flags = bpf.EndpointChained
		}
		// Generation tells uses of a number apart: the stub on the device carries it, and packets of an older one are stale.
		if e.IfIndex == 0 || e.Generation == row.Generation {
			next.Peer, next.Ingress, next.Egress = e.Peer, e.Ingress, e.Egress
			next.StagedIngress, next.StagedEgress = e.StagedIngress, e.StagedEgress
		}
		for _, addr := range row.Addrs {
			if addr.Unmap().Is4() {
				next.Address4 = bpf.AddressOf(addr)
			} else {
				next.Address6 = bpf.AddressOf(addr)
			}
		}
		*e = next
	})
	if err != nil {
		return err
	}
	return d.nameNamespace(row.ID, was, row.NetnsCookie)
}

func (d *Datapath) checkEndpoint(row *table.Endpoint) error {
	if row.ID == 0 || row.ID >= d.set.sizes["endpoints"] {
		return fmt.Errorf("id %d: there is room for 1 to %d", row.ID, d.set.sizes["endpoints"]-1)
	}
	if row.IfIndex == 0 {
		return errors.New("no device: create the pod's device first")
	}
	return nil
}

// DeleteEndpoint empties a pod's record; packets of its device drop as stale from then on.
func (d *Datapath) DeleteEndpoint(id uint32) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	if id == 0 || id >= d.set.sizes["endpoints"] {
		return fmt.Errorf("delete endpoint %d: there is room for 1 to %d", id, d.set.sizes["endpoints"]-1)
	}
	d.ForgetStubs(id)
	var was uint64
	if err := d.changeEndpoint(id, func(e *bpf.Endpoint) { was, *e = e.NetnsCookie, bpf.Endpoint{} }); err != nil {
		return err
	}
	return d.nameNamespace(id, was, 0)
}

// Endpoint returns a record as it is in the kernel.
func (d *Datapath) Endpoint(id uint32) (bpf.Endpoint, error) {
	var e bpf.Endpoint
	if err := d.set.maps["endpoints"].Lookup(&id, &e); err != nil {
		return e, fmt.Errorf("endpoint %d: %w", id, err)
	}
	return e, nil
}

// changeEndpoint reads, changes and, if different, writes a record. The kernel copies whole words, so that a program
// sees each field old or new.
func (d *Datapath) changeEndpoint(id uint32, change func(*bpf.Endpoint)) error {
	before, err := d.Endpoint(id)
	if err != nil {
		return err
	}
	after := before
	change(&after)
	if after == before {
		return nil
	}
	return put(d, writeEndpoint, "endpoints", &id, &after)
}

// nameNamespace has sockets of a pod's namespace known as the pod's. What another endpoint has taken over since stays.
func (d *Datapath) nameNamespace(id uint32, before, after uint64) error {
	var holder uint32
	if before != 0 && before != after && d.set.maps["namespaces"].Lookup(&before, &holder) == nil && holder == id {
		if err := deleteRow(d, writeNamespace, "namespaces", &before); err != nil {
			return err
		}
	}
	if after == 0 {
		return nil
	}
	return putDifferent(d, writeNamespace, "namespaces", &after, &id)
}

// put writes a row.
func put[K, V any](d *Datapath, kind write, name string, key *K, value *V) error {
	if err := d.counts.step(kind); err != nil {
		return err
	}
	if err := d.set.maps[name].Put(key, value); err != nil {
		return fullMap(name, d.set.maps[name], err)
	}
	return nil
}

// putDifferent writes a row unless the kernel has it already.
func putDifferent[K, V comparable](d *Datapath, kind write, name string, key *K, value *V) error {
	var before V
	err := d.set.maps[name].Lookup(key, &before)
	if err == nil && before == *value {
		return nil
	}
	if err != nil && !errors.Is(err, ebpf.ErrKeyNotExist) {
		return fmt.Errorf("map %s: %w", name, err)
	}
	return put(d, kind, name, key, value)
}

// WriteNode makes a row of the nodes map what it says.
func (d *Datapath) WriteNode(row *Node) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	if row.Number == 0 || row.Number >= d.set.sizes["nodes"] {
		return fmt.Errorf("write node %d: there is room for 1 to %d", row.Number, d.set.sizes["nodes"]-1)
	}
	value := bpf.Node{
		Tunnel: bpf.AddressOf(row.Tunnel), NextHop4: bpf.AddressOf(row.NextHop4), NextHop6: bpf.AddressOf(row.NextHop6),
		IfIndex: row.IfIndex, Flags: row.Flags,
	}
	return putDifferent(d, writeNode, "nodes", &row.Number, &value)
}

// DeleteNode empties a row of the nodes map.
func (d *Datapath) DeleteNode(number uint32) error {
	return d.WriteNode(&Node{Number: number})
}

// WriteUplink makes the row of an outward device what it says.
func (d *Datapath) WriteUplink(row *Uplink) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	if row.IfIndex == 0 {
		return fmt.Errorf("write uplink %s: no device index: does the device exist?", row.Name)
	}
	value := bpf.Uplink{Address4: bpf.AddressOf(row.Addr4), Address6: bpf.AddressOf(row.Addr6), MTU: row.MTU}
	return putDifferent(d, writeUplink, "uplinks", &row.IfIndex, &value)
}

// DeleteUplink removes the row of a device; one that is gone is fine.
func (d *Datapath) DeleteUplink(ifIndex uint32) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	return deleteRow(d, writeUplink, "uplinks", &ifIndex)
}
