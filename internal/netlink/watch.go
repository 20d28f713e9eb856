package netlink

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"slices"
	"time"

	lib "github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
	"tendril.io/tendril/internal/table"
)

// Snapshot is what the kernel has: devices by index, routes of all tables by table, prefix and device.
type Snapshot struct {
	Devices []table.Device
	Routes  []table.Route
}

// settle is how long changes are collected before the kernel is read again: adding 100 pods makes hundreds.
const settle = 100 * time.Millisecond

// Watch hands over what the kernel has, first at once and then after changes, until the context ends. Changes are only
// a sign to read again, so that a lost one cannot leave a wrong picture behind.
func (h *Handle) Watch(ctx context.Context, changed func(Snapshot)) error {
	announcements, err := h.subscribe()
	if err != nil {
		return err
	}
	defer announcements.Close()
	stop := context.AfterFunc(ctx, func() { _ = announcements.SetReadDeadline(time.Unix(1, 0)) })
	defer stop()
	for {
		snapshot, err := h.Snapshot()
		switch {
		case errors.Is(err, lib.ErrDumpInterrupted): // changes go on, and each is announced: there will be another reading
		case err != nil:
			return err
		default:
			changed(snapshot)
		}
		if err := awaitChange(ctx, announcements); err != nil {
			return err
		}
		if ctx.Err() != nil {
			return nil
		}
	}
}

// subscribe opens a socket that gets the kernel's announcements.
func (h *Handle) subscribe() (*os.File, error) {
	const groups = 1<<(unix.RTNLGRP_LINK-1) |
		1<<(unix.RTNLGRP_IPV4_IFADDR-1) | 1<<(unix.RTNLGRP_IPV6_IFADDR-1) |
		1<<(unix.RTNLGRP_IPV4_ROUTE-1) | 1<<(unix.RTNLGRP_IPV6_ROUTE-1)
	var socket int
	err := enter(h.namespace, func() (err error) {
		socket, err = unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, unix.NETLINK_ROUTE)
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("subscribe to devices: %w", err)
	}
	if err := unix.Bind(socket, &unix.SockaddrNetlink{Family: unix.AF_NETLINK, Groups: groups}); err != nil {
		unix.Close(socket)
		return nil, fmt.Errorf("subscribe to devices: %w", err)
	}
	return os.NewFile(uintptr(socket), "netlink announcements"), nil
}

// awaitChange returns when something was announced and then settled, or the context ended. What was announced is not
// looked at; ENOBUFS says that some of it was lost, which is one more reason to read again.
func awaitChange(ctx context.Context, announcements *os.File) error {
	buffer := make([]byte, 64<<10)
	_, err := announcements.Read(buffer)
	if err != nil && !errors.Is(err, unix.ENOBUFS) && ctx.Err() == nil {
		return fmt.Errorf("wait for devices: %w", err)
	}
	select {
	case <-ctx.Done():
		return nil
	case <-time.After(settle):
	}
	return discard(announcements, buffer)
}

// discard empties the socket.
func discard(announcements *os.File, buffer []byte) error {
	conn, err := announcements.SyscallConn()
	if err != nil {
		return err
	}
	for err == nil || errors.Is(err, unix.ENOBUFS) || errors.Is(err, unix.EINTR) {
		failed := conn.Control(func(fd uintptr) { _, _, err = unix.Recvfrom(int(fd), buffer, 0) })
		if failed != nil {
			return failed
		}
	}
	if errors.Is(err, unix.EAGAIN) {
		return nil
	}
	return fmt.Errorf("read announcements: %w", err)
}

// Snapshot reads devices and routes now.
func (h *Handle) Snapshot() (Snapshot, error) {
	links, err := h.dumpLinks()
	if err != nil {
		return Snapshot{}, err
	}
	addrs, err := again(func() ([]lib.Addr, error) { return h.lib.AddrList(nil, lib.FAMILY_ALL) })
	if err != nil {
		return Snapshot{}, fmt.Errorf("list addresses: %w", err)
	}
	routes, err := again(func() ([]lib.Route, error) {
		return h.lib.RouteListFiltered(lib.FAMILY_ALL, &lib.Route{Table: unix.RT_TABLE_UNSPEC}, lib.RT_FILTER_TABLE)
	})
	if err != nil {
		return Snapshot{}, fmt.Errorf("list routes: %w", err)
	}
	devices := deviceRows(links, addrs)
	return Snapshot{Devices: devices, Routes: routeRows(routes, devices)}, nil
}

func (h *Handle) dumpLinks() ([]lib.Link, error) {
	links, err := again(h.lib.LinkList)
	if err != nil {
		return nil, fmt.Errorf("list devices: %w", err)
	}
	return links, nil
}

// again repeats a dump that changes interrupted. A torn one misses rows, and what is missing would be taken for gone: so
// none is returned, and after some tries the error stays lib.ErrDumpInterrupted.
func again[Row any](list func() ([]Row, error)) ([]Row, error) {
	const tries = 5
	for try := 1; ; try++ {
		rows, err := list()
		if err == nil {
			return rows, nil
		}
		if !errors.Is(err, lib.ErrDumpInterrupted) || try == tries {
			return nil, err
		}
	}
}

// deviceRows joins two dumps that were not made at one instant: an address of a device that only the second knows waits
// for the next reading. Rows are sorted, so that equal states are equal snapshots.
func deviceRows(links []lib.Link, addrs []lib.Addr) []table.Device {
	of := make(map[int][]netip.Prefix)
	for _, addr := range addrs {
		of[addr.LinkIndex] = append(of[addr.LinkIndex], prefixOf(addr.IPNet))
	}
	devices := make([]table.Device, 0, len(links))
	for _, link := range links {
		attrs := link.Attrs()
		device := table.Device{
			Index: uint32(attrs.Index), Name: attrs.Name, Type: link.Type(), MTU: uint32(attrs.MTU),
			Up: attrs.Flags&net.FlagUp != 0, Addrs: of[attrs.Index],
		}
		copy(device.MAC[:], attrs.HardwareAddr)
		slices.SortFunc(device.Addrs, func(a, b netip.Prefix) int {
			return cmp.Or(a.Addr().Compare(b.Addr()), cmp.Compare(a.Bits(), b.Bits()))
		})
		devices = append(devices, device)
	}
	slices.SortFunc(devices, func(a, b table.Device) int { return cmp.Compare(a.Index, b.Index) })
	return devices
}

// routeRows translates routes. The name is empty where no device was dumped: unreachable and blackhole routes have
// none.
func routeRows(routes []lib.Route, devices []table.Device) []table.Route {
	names := make(map[int]string)
	for _, device := range devices {
		names[int(device.Index)] = device.Name
	}
	rows := make([]table.Route, 0, len(routes))
	for _, route := range routes {
		row := table.Route{
			Prefix: routePrefix(&route), Device: names[route.LinkIndex], Table: uint32(route.Table), MTU: uint32(route.MTU),
		}
		via, _ := netip.AddrFromSlice(route.Gw)
		source, _ := netip.AddrFromSlice(route.Src)
		row.Via, row.Source = via.Unmap(), source.Unmap()
		rows = append(rows, row)
	}
	slices.SortFunc(rows, func(a, b table.Route) int {
		return cmp.Or(cmp.Compare(a.Table, b.Table), a.Prefix.Addr().Compare(b.Prefix.Addr()),
			cmp.Compare(a.Prefix.Bits(), b.Prefix.Bits()), cmp.Compare(a.Device, b.Device))
	})
	return rows
}

// routePrefix is a route's destination; none is the default route of the route's family.
func routePrefix(route *lib.Route) netip.Prefix {
	if route.Dst != nil {
		return prefixOf(route.Dst)
	}
	if route.Family == lib.FAMILY_V6 {
		return netip.PrefixFrom(netip.IPv6Unspecified(), 0)
	}
	return netip.PrefixFrom(netip.IPv4Unspecified(), 0)
}
