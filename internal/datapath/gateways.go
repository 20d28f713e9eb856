package datapath

import (
	"fmt"
	"net/netip"
	"sync/atomic"

	"tendril.io/tendril/bpf"
	"tendril.io/tendril/internal/egress"
)

// GatewaySets makes the kernel know the pods that egress gateways select, by address and set (0: none), and the routes of all sets.
// Routes that are there and not wanted stay unless removes is set. Routes come first, so that no pod is of a set without.
func (d *Datapath) GatewaySets(pods map[netip.Addr]uint32, routes []egress.Route, removes bool) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	there, err := known[bpf.GatewayRoute, uint32](d.set.maps["gateway_routes"])
	if err != nil {
		return fmt.Errorf("read map gateway_routes: %w", err)
	}
	wanted := make(map[bpf.GatewayRoute]bool, len(routes))
	for _, route := range routes {
		key := bpf.GatewayRouteOf(route.Set, route.Prefix)
		wanted[key] = true
		if err := putRow(d, writeGateway, "gateway_routes", d.set.maps["gateway_routes"], there, key, route.Gateway); err != nil {
			return fmt.Errorf("route egress to %s: %w", route.Prefix, err)
		}
	}
	for addr, set := range pods {
		key := bpf.AddressOf(addr)
		if set == 0 {
			err = deleteRow(d, writeGateway, "gateway_pods", &key)
		} else {
			err = putRow(d, writeGateway, "gateway_pods", d.set.maps["gateway_pods"], nil, key, set)
		}
		if err != nil {
			return fmt.Errorf("select pod at %s: %w", addr, err)
		}
	}
	for key := range there {
		if !removes || wanted[key] {
			continue
		}
		if err := deleteRow(d, writeGateway, "gateway_routes", &key); err != nil {
			return err
		}
	}
	d.nextGateways()
	return nil
}

// PruneGateways removes the pods and gateways that are not wanted.
func (d *Datapath) PruneGateways(pods map[netip.Addr]uint32, gateways map[uint32]bool) error {
	goneRows, err := pruneRows[bpf.Address, uint32](d, writeGateway, "gateway_pods", func(key *bpf.Address) bool { return pods[key.Addr()] != 0 })
	if err != nil {
		return err
	}
	goneGateways, err := pruneRows[uint32, bpf.Gateway](d, writeGateway, "gateways", func(key *uint32) bool { return gateways[*key] })
	if goneRows+goneGateways > 0 {
		d.mu.Lock()
		defer d.mu.Unlock()
		d.nextGateways()
	}
	return err
}

// SetGateways makes the kernel know egress gateways by number. What is known stays, unless it is named in gone.
func (d *Datapath) SetGateways(rows map[uint32]bpf.Gateway, gone []uint32) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	for number, row := range rows {
		if err := putRow(d, writeGateway, "gateways", d.set.maps["gateways"], nil, number, row); err != nil {
			return fmt.Errorf("write egress gateway: %w", err)
		}
	}
	for _, number := range gone {
		if err := deleteRow(d, writeGateway, "gateways", &number); err != nil {
			return err
		}
	}
	d.nextGateways()
	return nil
}

// Gateways lists the egress gateways that the kernel knows.
func (d *Datapath) Gateways() (map[uint32]bpf.Gateway, error) {
	rows, err := known[uint32, bpf.Gateway](d.set.maps["gateways"])
	if err != nil {
		return nil, fmt.Errorf("read map gateways: %w", err)
	}
	return rows, nil
}

// nextGateways makes every flow ask again by which node it leaves. 0 says that there never were any gateways, so it is passed over.
func (d *Datapath) nextGateways() {
	word := d.arenas.control.half(uint32(bpf.ControlGatewayEpoch))
	if atomic.AddUint32(word, 1) == 0 {
		atomic.AddUint32(word, 1)
	}
}
