package datapath

import (
	"context"
	"fmt"
	"net/netip"

	"github.com/cilium/ebpf"

	"tendril.io/tendril/bpf"
	"tendril.io/tendril/internal/service"
)

// Wanted is everything that the agent's complete state wants in the kernel. A nil field is not pruned.
type Wanted struct {
	Addresses map[netip.Prefix]bool // single addresses and prefixes, as in policy.Delta
	Frontends map[service.FrontendKey]bool
	Guards    map[service.GuardRow]bool
	Nodes     map[uint32]bool
	Endpoints map[uint32]bool
	Uplinks   map[uint32]bool // by device index
}

// Pruned counts what was removed.
type Pruned struct {
	Addresses, Prefixes, Frontends, Guards, Nodes, Endpoints, Uplinks int
}

// Prune removes from the kernel what nobody wants: call it when the agent's state is known to be complete and
// published, and never before. It then puts a waiting version in force, whose maps are now filled.
func (d *Datapath) Prune(ctx context.Context, want Wanted) (Pruned, error) {
	var p Pruned
	for _, step := range []func(Wanted, *Pruned) error{d.pruneAddresses, d.pruneFrontends, d.pruneGuards, d.pruneEndpoints, d.pruneNodes, d.pruneUplinks} {
		if err := ctx.Err(); err != nil {
			return p, fmt.Errorf("prune: %w", err)
		}
		if err := step(want, &p); err != nil {
			return p, fmt.Errorf("prune: %w", err)
		}
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.staged == nil {
		return p, nil
	}
	if err := d.putInForce(ctx, d.staged); err != nil {
		return p, fmt.Errorf("prune: %w", err)
	}
	return p, nil
}

// pruneRows removes the rows of a hash or trie that are not wanted.
func pruneRows[K comparable, V any](d *Datapath, kind write, name string, wanted func(*K) bool) (int, error) {
	var gone []K
	err := walk(d.set.maps[name], func(keys []K, _ []V) error {
		for i := range keys {
			if !wanted(&keys[i]) {
				gone = append(gone, keys[i])
			}
		}
		return nil
	})
	if err != nil {
		return 0, fmt.Errorf("read map %s: %w", name, err)
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	for i := range gone {
		if err := deleteRow(d, kind, name, &gone[i]); err != nil {
			return i, err
		}
	}
	return len(gone), nil
}

func (d *Datapath) pruneAddresses(want Wanted, p *Pruned) (err error) {
	if want.Addresses == nil {
		return nil
	}
	addresses, prefixes := map[bpf.Address]bool{}, map[bpf.Prefix]bool{}
	for prefix := range want.Addresses {
		if prefix.IsSingleIP() {
			addresses[bpf.AddressOf(prefix.Addr())] = true
		} else {
			prefixes[bpf.PrefixOf(prefix)] = true
		}
	}
	p.Addresses, err = pruneRows[bpf.Address, bpf.PeerInfo](d, writeAddress, "addresses", func(k *bpf.Address) bool { return addresses[*k] })
	if err != nil {
		return err
	}
	p.Prefixes, err = pruneRows[bpf.Prefix, bpf.PeerInfo](d, writePrefix, "prefixes", func(k *bpf.Prefix) bool { return prefixes[*k] })
	return err
}

func (d *Datapath) pruneFrontends(want Wanted, p *Pruned) (err error) {
	if want.Frontends == nil {
		return nil
	}
	keys := make(map[bpf.FrontendKey]bool, len(want.Frontends))
	for key := range want.Frontends {
		keys[frontendKey(key)] = true
	}
	p.Frontends, err = pruneRows[bpf.FrontendKey, bpf.Frontend](d, writeFrontend, "frontends", func(k *bpf.FrontendKey) bool { return keys[*k] })
	return err
}

func (d *Datapath) pruneGuards(want Wanted, p *Pruned) (err error) {
	if want.Guards == nil {
		return nil
	}
	keys := make(map[bpf.Guard]bool, len(want.Guards))
	for row := range want.Guards {
		keys[bpf.GuardOf(row.Service, row.Prefix)] = true
	}
	p.Guards, err = pruneRows[bpf.Guard, uint32](d, writeGuard, "guards", func(k *bpf.Guard) bool { return keys[*k] })
	return err
}

func (d *Datapath) pruneUplinks(want Wanted, p *Pruned) (err error) {
	if want.Uplinks == nil {
		return nil
	}
	p.Uplinks, err = pruneRows[uint32, bpf.Uplink](d, writeUplink, "uplinks", func(k *uint32) bool { return want.Uplinks[*k] })
	return err
}

func (d *Datapath) pruneEndpoints(want Wanted, p *Pruned) (err error) {
	p.Endpoints, err = pruneIndexes(d.set.maps["endpoints"], want.Endpoints, d.DeleteEndpoint, bpf.Endpoint{})
	return err
}

func (d *Datapath) pruneNodes(want Wanted, p *Pruned) (err error) {
	p.Nodes, err = pruneIndexes(d.set.maps["nodes"], want.Nodes, d.DeleteNode, bpf.Node{})
	return err
}

// pruneIndexes empties the rows of an array that are not wanted and not empty.
func pruneIndexes[V comparable](m *ebpf.Map, want map[uint32]bool, remove func(uint32) error, empty V) (int, error) {
	if want == nil {
		return 0, nil
	}
	var gone []uint32
	err := walk(m, func(keys []uint32, values []V) error {
		for i, key := range keys {
			if values[i] != empty && !want[key] {
				gone = append(gone, key)
			}
		}
		return nil
	})
	if err != nil {
		return 0, err
	}
	for i, key := range gone {
		if err := remove(key); err != nil {
			return i, err
		}
	}
	return len(gone), nil
}
