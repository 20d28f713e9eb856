package netlink

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"iter"
	"net"
	"net/netip"
	"slices"

	lib "github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
	"tendril.io/tendril/internal/table"
)

// Routes are marked with who made them (linux/rtnetlink.h leaves 100 and more to administrators).
const (
	ProtocolPod    = 116 // to a pod of this node; goes with its device
	ProtocolRemote = 117 // to other nodes' pods: those that Routes owns
)

// Routes makes the kernel's routes to other nodes equal to a table. Only routes with ProtocolRemote are touched. Its
// verbs may be repeated.
type Routes struct{ h *Handle }

// Routes returns the owner of the routes to other nodes.
func (h *Handle) Routes() Routes { return Routes{h} }

// Update adds a route, or changes the one of the same table, prefix and metric.
func (r Routes) Update(_ context.Context, wanted *table.RouteWanted) error {
	route, err := r.route(wanted)
	if err != nil {
		return err
	}
	if err := r.h.lib.RouteReplace(route); err != nil {
		return fmt.Errorf("set route to %s by %s: %w", wanted.Prefix, wanted.Device, err)
	}
	return nil
}

// Delete removes a route. It is no error if it is gone, or its device is.
func (r Routes) Delete(_ context.Context, unwanted *table.RouteWanted) error {
	route, err := r.route(unwanted)
	if missing := (lib.LinkNotFoundError{}); errors.As(err, &missing) {
		return nil
	}
	if err != nil {
		return err
	}
	return r.remove(route)
}

// Prune removes every route of ours that is not wanted. Nothing is removed unless devices and routes could be read whole.
func (r Routes) Prune(_ context.Context, wanted iter.Seq[*table.RouteWanted]) error {
	routes, err := r.list()
	if err != nil {
		return err
	}
	// After the routes: the devices of routes that are there have their names.
	links, err := again(r.h.lib.LinkList)
	if err != nil {
		return fmt.Errorf("list devices: %w", err)
	}
	devices := make(map[int]string, len(links))
	for _, link := range links {
		devices[link.Attrs().Index] = link.Attrs().Name
	}
	var failed []error
	for _, route := range unwanted(routes, devices, wanted) {
		failed = append(failed, r.remove(&route))
	}
	return errors.Join(failed...)
}

// routeKey tells routes apart as the rows do.
type routeKey struct {
	table  uint32
	prefix netip.Prefix
	device string
}

// unwanted picks the routes that no row asks for; devices gives names by index. A route whose device has no name is
// left alone: the device is new or on its way out, and takes its routes along.
func unwanted(routes []lib.Route, devices map[int]string, wanted iter.Seq[*table.RouteWanted]) []lib.Route {
	keep := make(map[routeKey]bool)
	for w := range wanted {
		keep[routeKey{cmp.Or(w.Table, unix.RT_TABLE_MAIN), w.Prefix, w.Device}] = true
	}
	return slices.DeleteFunc(routes, func(route lib.Route) bool {
		device, known := devices[route.LinkIndex]
		return !known || keep[routeKey{uint32(route.Table), routePrefix(&route), device}]
	})
}

// remove deletes a route. That it is gone already, alone or with its device, is as good.
func (r Routes) remove(route *lib.Route) error {
	err := r.h.lib.RouteDel(route)
	if err != nil && !errors.Is(err, unix.ESRCH) && !errors.Is(err, unix.ENODEV) {
		return fmt.Errorf("remove route to %s: %w", route.Dst, err)
	}
	return nil
}

// list returns all routes with our mark, of both families and all tables.
func (r Routes) list() ([]lib.Route, error) {
	filter := &lib.Route{Protocol: ProtocolRemote, Table: unix.RT_TABLE_UNSPEC}
	routes, err := again(func() ([]lib.Route, error) {
		return r.h.lib.RouteListFiltered(lib.FAMILY_ALL, filter, lib.RT_FILTER_PROTOCOL|lib.RT_FILTER_TABLE)
	})
	if err != nil {
		return nil, fmt.Errorf("list routes: %w", err)
	}
	return routes, nil
}

// route translates a row. Replacing needs prefix, table and mark to be those of the route in place.
func (r Routes) route(row *table.RouteWanted) (*lib.Route, error) {
	link, err := r.h.lib.LinkByName(row.Device)
	if err != nil {
		return nil, fmt.Errorf("route to %s: device %s: %w", row.Prefix, row.Device, err)
	}
	route := &lib.Route{
		LinkIndex: link.Attrs().Index, Dst: ipNet(row.Prefix), Protocol: ProtocolRemote,
		Table: int(row.Table), MTU: int(row.MTU),
	}
	if route.Table == 0 {
		route.Table = unix.RT_TABLE_MAIN
	}
	if row.Via.IsValid() {
		route.Gw = row.Via.AsSlice()
	} else if row.Prefix.Addr().Is4() {
		route.Scope = lib.SCOPE_LINK
	}
	if row.Source.IsValid() {
		route.Src = row.Source.AsSlice()
	}
	return route, nil
}

// ErrNoRoute says that the node has no route to where somebody wants to go.
var ErrNoRoute = errors.New("no route")

// NextHop is where the kernel would send a packet.
type NextHop struct {
	Via     netip.Addr // invalid: the destination is on the link
	Source  netip.Addr
	Device  string
	IfIndex uint32
	MTU     uint32 // the device's
}

// NextHop asks the kernel for the way to an address.
func (h *Handle) NextHop(to netip.Addr) (NextHop, error) {
	routes, err := h.lib.RouteGet(to.AsSlice())
	if errors.Is(err, unix.ENETUNREACH) || errors.Is(err, unix.EHOSTUNREACH) || err == nil && len(routes) == 0 {
		return NextHop{}, fmt.Errorf("way to %s: %w", to, ErrNoRoute)
	}
	if err != nil {
		return NextHop{}, fmt.Errorf("way to %s: %w", to, err)
	}
	return h.hop(&routes[0])
}

// Uplink finds the outward device: that of the default route, IPv4's before IPv6's, the lowest metric first.
func (h *Handle) Uplink() (NextHop, error) {
	for _, family := range []int{lib.FAMILY_V4, lib.FAMILY_V6} {
		filter := &lib.Route{Dst: nil, Table: unix.RT_TABLE_MAIN}
		routes, err := again(func() ([]lib.Route, error) {
			return h.lib.RouteListFiltered(family, filter, lib.RT_FILTER_DST|lib.RT_FILTER_TABLE)
		})
		if err != nil {
			return NextHop{}, fmt.Errorf("list default routes: %w", err)
		}
		best := -1
		for i, route := range routes {
			if route.LinkIndex != 0 && (best < 0 || route.Priority < routes[best].Priority) {
				best = i
			}
		}
		if best >= 0 {
			return h.hop(&routes[best])
		}
	}
	return NextHop{}, fmt.Errorf("default route: %w; name the uplink in the configuration", ErrNoRoute)
}

// hop translates the kernel's answer. The MTU is the device's: that of a route is ours to choose, from this one.
func (h *Handle) hop(route *lib.Route) (NextHop, error) {
	link, err := h.lib.LinkByIndex(route.LinkIndex)
	if err != nil {
		return NextHop{}, fmt.Errorf("device %d: %w", route.LinkIndex, err)
	}
	via, _ := netip.AddrFromSlice(route.Gw)
	source, _ := netip.AddrFromSlice(route.Src)
	attrs := link.Attrs()
	return NextHop{
		Via: via.Unmap(), Source: source.Unmap(),
		Device: attrs.Name, IfIndex: uint32(attrs.Index), MTU: uint32(attrs.MTU),
	}, nil
}

// ipNet is a prefix as the library wants it.
func ipNet(prefix netip.Prefix) *net.IPNet {
	return &net.IPNet{
		IP:   prefix.Addr().AsSlice(),
		Mask: net.CIDRMask(prefix.Bits(), prefix.Addr().BitLen()),
	}
}

// prefixOf is a prefix as the library has it: IPv4 in 16 bytes or in 4; the mask tells the family. It is not masked, so
// that a device's address keeps its host bits.
func prefixOf(n *net.IPNet) netip.Prefix {
	if n == nil {
		return netip.Prefix{}
	}
	addr, _ := netip.AddrFromSlice(n.IP)
	bits, size := n.Mask.Size()
	if size == 32 {
		addr = addr.Unmap()
	}
	return netip.PrefixFrom(addr, bits)
}
