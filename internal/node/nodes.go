package node

import (
	"fmt"
	"net/netip"
	"slices"
	"sync"

	"tendril.io/tendril/internal/datapath"
	"tendril.io/tendril/internal/policy"
	"tendril.io/tendril/internal/table"
)

// numbering gives nodes their node-local numbers. A name keeps its number for as long as the agent has heard of it,
// and over restarts.
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

func (n *numbering) release(node string) {
	n.mu.Lock()
	defer n.mu.Unlock()
	delete(n.known, node)
	n.numbers.Release(policy.KindNode, nodeDigest(node))
}

// nodeRows writes the nodes of the cluster into the datapath and wants the routes towards their pods.
type nodeRows struct {
	tables    *table.Tables
	datapath  *datapath.Datapath
	numbering *numbering
	self      string
	uplink    uplink
	overlay   string                          // name of the overlay device; empty: native routing
	wanted    map[string][]*table.RouteWanted // by node
}

// mainTable is the kernel's main routing table (RT_TABLE_MAIN, linux/rtnetlink.h).
const mainTable = 254

// uplink is the device towards other nodes.
type uplink struct {
	name     string
	ifindex  uint32
	mtu      int
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

// DeleteNode implements nodeWriter. The entry itself goes when its number is given back.
func (n *nodeRows) DeleteNode(row *table.Node) error {
	n.numbering.release(row.Name)
	gone := *row
	gone.PodCIDRs = nil
	return n.wantRoutes(&gone)
}

// wantRoutes makes the wanted routes towards a node's pods equal to what its row says.
func (n *nodeRows) wantRoutes(row *table.Node) error {
	if row.Name == n.self {
		return nil
	}
	txn := n.tables.DB.WriteTxn(n.tables.RoutesWanted)
	defer txn.Commit()
	for _, old := range n.wanted[row.Name] {
		if _, _, err := n.tables.RoutesWanted.Delete(txn, old); err != nil {
			return fmt.Errorf("no longer want route %s: %w", old.Prefix, err)
		}
	}
	n.wanted[row.Name] = n.routes(row)
	for _, route := range n.wanted[row.Name] {
		if _, _, err := n.tables.RoutesWanted.Insert(txn, route); err != nil {
			return fmt.Errorf("want route %s: %w", route.Prefix, err)
		}
	}
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
