package node

import (
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"sync"

	"github.com/cilium/statedb"

	"tendril.io/tendril/internal/datapath"
	"tendril.io/tendril/internal/policy"
	"tendril.io/tendril/internal/table"
)

// numbering gives nodes their node-local numbers, which address rows and backends name them by. A name has its number
// from the first row that mentions it, be that the node's own or an address of one of its pods, until the last such row
// is gone, and keeps it over restarts. A number that went earlier could become another node's while addresses still
// lead to it.
type numbering struct {
	numbers policy.Numbers

	mu    sync.Mutex
	known map[string]uint32
}

// number returns the number of a node, 0 (no node) where there is no room: its addresses then have no node to be
// reached through, which is counted as a drop, and the agent's status says why.
func (n *numbering) number(node string) uint32 {
	n.mu.Lock()
	defer n.mu.Unlock()
	if number, ok := n.known[node]; ok {
		return number
	}
	number, err := n.numbers.Assign(policy.KindNode, nodeDigest(node), 1)
	if err != nil {
		return 0
	}
	n.known[node] = number
	return number
}

// all lists the numbers in use.
func (n *numbering) all() map[uint32]bool {
	n.mu.Lock()
	defer n.mu.Unlock()
	numbers := make(map[uint32]bool, len(n.known))
	for _, number := range n.known {
		numbers[number] = true
	}
	return numbers
}

// lookup returns the number that a node has, 0 if none, and gives out no new one.
func (n *numbering) lookup(node string) uint32 {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.known[node]
}

// release gives a node's number back. It is another's only after the next publication, which has to take out the last
// rows that lead to it.
func (n *numbering) release(node string) {
	n.mu.Lock()
	defer n.mu.Unlock()
	delete(n.known, node)
	n.numbers.Release(policy.KindNode, nodeDigest(node))
}

// nodeRows writes the nodes of the cluster into the datapath and wants the routes towards their pods.
type nodeRows struct {
	tables    *table.Tables
	datapath  nodeKernel
	numbering *numbering
	self      string
	uplink    uplink
	overlay   string                              // name of the overlay device; empty: native routing
	wanted    map[string][]*table.RouteWanted     // by node
	shown     map[netip.Prefix]*table.RouteWanted // those of them that are in the table: one a prefix
}

// nodeKernel is the kernel's table of nodes.
type nodeKernel interface {
	WriteNode(row *datapath.Node) error
	DeleteNode(number uint32) error
}

// mainTable is the kernel's main routing table (RT_TABLE_MAIN, linux/rtnetlink.h).
const mainTable = 254

// uplink is the device towards other nodes.
type uplink struct {
	name     string
	kind     string // as the kernel names the driver of a virtual device
	ifindex  uint32
	mtu      int
	mac      [6]byte
	addr4    netip.Addr
	addr6    netip.Addr
	networks []netip.Prefix // on-link through it
}

// onLink says whether an address is reached without a gateway.
func (u uplink) onLink(addr netip.Addr) bool {
	return slices.ContainsFunc(u.networks, func(network netip.Prefix) bool { return network.Contains(addr) })
}

// SetNode implements nodeWriter.
func (n *nodeRows) SetNode(row *table.Node) error {
	number := n.numbering.number(row.Name)
	if number == 0 {
		return fmt.Errorf("node %s: no number is free; raise map_sizes.nodes", row.Name)
	}
	entry := datapath.Node{Number: number, Tunnel: row.Tunnel}
	if row.Name != n.self {
		for _, addr := range row.Addresses {
			switch {
			case !n.uplink.onLink(addr):
			case addr.Is4() && !entry.NextHop4.IsValid():
				entry.NextHop4, entry.IfIndex = addr, n.uplink.ifindex
			case addr.Is6() && !entry.NextHop6.IsValid():
				entry.NextHop6, entry.IfIndex = addr, n.uplink.ifindex
			}
		}
	}
	if err := n.datapath.WriteNode(&entry); err != nil {
		return err
	}
	return n.wantRoutes(row)
}

// DeleteNode implements nodeWriter: nothing is sent to the node any more, by tunnel or by next hop.
func (n *nodeRows) DeleteNode(row *table.Node) error {
	gone := *row
	gone.PodCIDRs = nil
	err := n.wantRoutes(&gone)
	if number := n.numbering.lookup(row.Name); number != 0 {
		err = errors.Join(err, n.datapath.DeleteNode(number))
	}
	return err
}

// ReleaseNode implements nodeWriter.
func (n *nodeRows) ReleaseNode(name string) { n.numbering.release(name) }

// wantRoutes makes the wanted routes towards a node's pods equal to what its row says. Where two nodes claim one pod
// CIDR, the later row has the route, and the other gets it back when that one goes.
func (n *nodeRows) wantRoutes(row *table.Node) error {
	if row.Name == n.self {
		return nil
	}
	txn := n.tables.DB.WriteTxn(n.tables.RoutesWanted)
	defer txn.Commit()
	before := n.wanted[row.Name]
	delete(n.wanted, row.Name)
	for _, old := range before {
		if err := n.dropRoute(txn, old); err != nil {
			return err
		}
	}
	wanted := n.routes(row)
	if len(wanted) > 0 {
		n.wanted[row.Name] = wanted
	}
	for _, route := range wanted {
		if err := n.showRoute(txn, route); err != nil {
			return err
		}
	}
	return nil
}

// dropRoute no longer wants a node's route, unless the row in the table is another node's.
func (n *nodeRows) dropRoute(txn statedb.WriteTxn, old *table.RouteWanted) error {
	if n.shown[old.Prefix] != old {
		return nil
	}
	delete(n.shown, old.Prefix)
	if _, _, err := n.tables.RoutesWanted.Delete(txn, old); err != nil {
		return fmt.Errorf("no longer want route %s: %w", old.Prefix, err)
	}
	for _, name := range slices.Sorted(maps.Keys(n.wanted)) {
		at := slices.IndexFunc(n.wanted[name], func(r *table.RouteWanted) bool { return r.Prefix == old.Prefix })
		if at < 0 {
			continue
		}
		return n.showRoute(txn, n.wanted[name][at])
	}
	return nil
}

func (n *nodeRows) showRoute(txn statedb.WriteTxn, route *table.RouteWanted) error {
	if _, _, err := n.tables.RoutesWanted.Insert(txn, route); err != nil {
		return fmt.Errorf("want route %s: %w", route.Prefix, err)
	}
	n.shown[route.Prefix] = route
	return nil
}

func (n *nodeRows) routes(row *table.Node) []*table.RouteWanted {
	var wanted []*table.RouteWanted
	for _, cidr := range row.PodCIDRs {
		route := &table.RouteWanted{Prefix: cidr, Table: mainTable, Device: n.uplink.name}
		route.Source = n.uplink.addr4
		if cidr.Addr().Is6() {
			route.Source = n.uplink.addr6
		}
		if n.overlay != "" {
			route.Device = n.overlay
		} else if route.Via = gateway(row.Addresses, cidr.Addr().Is6()); !route.Via.IsValid() {
			continue // no address of that family: such pods cannot be reached natively
		}
		wanted = append(wanted, route)
	}
	return wanted
}

func gateway(addrs []netip.Addr, six bool) netip.Addr {
	for _, addr := range addrs {
		if addr.Is6() == six {
			return addr
		}
	}
	return netip.Addr{}
}

var _ nodeWriter = (*nodeRows)(nil)
