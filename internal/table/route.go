package table

import "net/netip"

// Route is a route of the node, from the kernel.
type Route struct {
	Prefix netip.Prefix
	Via    netip.Addr // invalid: directly on the device
	Source netip.Addr // preferred source, invalid if none
	Device string
	Table  uint32 // the kernel's routing table, 254 being main
	MTU    uint32 // 0: the device's
}

// RouteWanted is a route that the node should have; netlink makes the kernel's equal to it.
type RouteWanted Route
