package netlink

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"strings"

	lib "github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"
)

// parallel bounds how many threads wait for RTNL at a time: the kernel serves one.
const parallel = 4

// Handle is rtnetlink in one network namespace. It may be used by many goroutines.
type Handle struct {
	namespace *os.File
	lib       *lib.Handle
	conns     chan *conn    // idle sockets
	turns     chan struct{} // held while the kernel is at work
	removals  removals
}

// Open returns a handle of the network namespace of the calling process.
func Open() (*Handle, error) {
	namespace, err := os.Open("/proc/thread-self/ns/net")
	if err != nil {
		return nil, fmt.Errorf("open network namespace: %w", err)
	}
	return open(namespace)
}

// OpenAt returns a handle of the network namespace behind an open file, which stays the caller's.
func OpenAt(namespace *os.File) (*Handle, error) {
	fd, err := unix.FcntlInt(namespace.Fd(), unix.F_DUPFD_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("keep network namespace %s: %w", namespace.Name(), err)
	}
	return open(os.NewFile(uintptr(fd), namespace.Name()))
}

// open takes over the file: it is closed if the handle cannot be made, and with the handle otherwise.
func open(namespace *os.File) (*Handle, error) {
	library, err := lib.NewHandleAt(netns.NsHandle(namespace.Fd()), unix.NETLINK_ROUTE)
	if err != nil {
		namespace.Close()
		return nil, fmt.Errorf("open netlink in %s: %w", namespace.Name(), err)
	}
	return &Handle{
		namespace: namespace, lib: library,
		conns: make(chan *conn, parallel), turns: make(chan struct{}, parallel),
	}, nil
}

// Close ends the handle. Nothing in the kernel changes.
func (h *Handle) Close() error {
	h.lib.Close()
	for {
		select {
		case idle := <-h.conns:
			idle.close()
		default:
			return h.namespace.Close()
		}
	}
}

// do sends a batch in the handle's namespace.
func (h *Handle) do(batch ...message) ([][]byte, error) {
	h.turns <- struct{}{}
	defer func() { <-h.turns }()
	c, err := h.conn()
	if err != nil {
		return nil, err
	}
	replies, err := c.do(batch...)
	h.release(c)
	return replies, err
}

// conn takes an idle socket or opens one.
func (h *Handle) conn() (*conn, error) {
	select {
	case idle := <-h.conns:
		return idle, nil
	default:
	}
	var made *conn
	err := enter(h.namespace, func() (err error) {
		made, err = dial(unix.NETLINK_ROUTE)
		return err
	})
	return made, err
}

// release keeps a socket for later, unless it may hold answers that nobody read.
func (h *Handle) release(c *conn) {
	if c.spoilt {
		c.close()
		return
	}
	select {
	case h.conns <- c:
	default:
		c.close()
	}
}

// Within runs do on a thread that is inside a network namespace.
func Within(netns *os.File, do func() error) error { return enter(netns, do) }

// enter runs do on a thread that is inside a network namespace. If the thread cannot be brought back it is given up,
// never reused.
func enter(namespace *os.File, do func() error) error {
	runtime.LockOSThread()
	home, err := os.Open("/proc/thread-self/ns/net")
	if err != nil {
		runtime.UnlockOSThread()
		return fmt.Errorf("open own network namespace: %w", err)
	}
	defer home.Close()
	if err := unix.Setns(int(namespace.Fd()), unix.CLONE_NEWNET); err != nil {
		runtime.UnlockOSThread()
		return fmt.Errorf("enter network namespace %s: %w", namespace.Name(), err)
	}
	err = do()
	if back := unix.Setns(int(home.Fd()), unix.CLONE_NEWNET); back != nil {
		return errors.Join(err, fmt.Errorf("leave network namespace %s: %w", namespace.Name(), back))
	}
	runtime.UnlockOSThread()
	return err
}

// SetSysctl writes a value below /proc/sys/net of the handle's namespace; name is like ipv4/ip_forward.
func (h *Handle) SetSysctl(name, value string) error {
	return enter(h.namespace, func() error { return setSysctl(name, value) })
}

// Sysctl reads a value below /proc/sys/net of the handle's namespace.
func (h *Handle) Sysctl(name string) (string, error) {
	var value []byte
	err := enter(h.namespace, func() (err error) {
		value, err = os.ReadFile(filepath.Join("/proc/sys/net", name))
		return err
	})
	return strings.TrimSpace(string(value)), err
}

// setSysctl writes with a plain write: creating a file is not allowed there.
func setSysctl(name, value string) error {
	file, err := os.OpenFile(filepath.Join("/proc/sys/net", name), os.O_WRONLY, 0)
	if err != nil {
		return fmt.Errorf("set sysctl: %w", err)
	}
	_, err = file.WriteString(value)
	return errors.Join(err, file.Close())
}

// openSysctls makes /proc/sys writable in this process's view. Container runtimes mount it read-only for whatever is not
// privileged; with CAP_SYS_ADMIN, which an agent needs anyway to enter its pods' namespaces, that is its own to undo.
func openSysctls() error {
	var at unix.Statfs_t
	if err := unix.Statfs("/proc/sys", &at); err != nil {
		return fmt.Errorf("look at /proc/sys: %w", err)
	}
	if at.Flags&unix.ST_RDONLY == 0 {
		return nil
	}
	const keep = unix.MS_NOSUID | unix.MS_NODEV | unix.MS_NOEXEC
	if err := unix.Mount("", "/proc/sys", "", unix.MS_BIND|unix.MS_REMOUNT|keep, ""); err != nil {
		return fmt.Errorf("/proc/sys is read-only: %w: give the agent CAP_SYS_ADMIN, or mount it writable", err)
	}
	return nil
}

// PrepareNode sets what the datapath needs of the node's own namespace: forwarding in both families; no strict
// reverse-path filter, because a reply may come back by another device than the route says (the datapath checks sources
// itself); no proxy ARP, because the datapath answers for the gateway; and no redirects to pods, whose path is not the
// kernel's to shorten. Devices that learn their IPv6 routes from a router go on doing so, which forwarding would end.
func (h *Handle) PrepareNode() error {
	settings := []struct{ name, value string }{
		{"ipv4/ip_forward", "1"},
		{"ipv4/conf/all/rp_filter", "0"},
		{"ipv4/conf/default/rp_filter", "0"},
		{"ipv4/conf/all/proxy_arp", "0"},
		{"ipv4/conf/default/proxy_arp", "0"},
		{"ipv4/conf/all/send_redirects", "0"},
		{"ipv4/conf/default/send_redirects", "0"},
		{"ipv4/conf/all/accept_local", "1"},
		{"ipv6/conf/all/disable_ipv6", "0"},
		{"ipv6/conf/all/forwarding", "1"},
		{"ipv6/conf/default/forwarding", "1"},
	}
	if err := openSysctls(); err != nil {
		return err
	}
	return enter(h.namespace, func() error {
		if err := keepAdvertisedRoutes(); err != nil {
			return err
		}
		for _, s := range settings {
			if err := setSysctl(s.name, s.value); err != nil {
				return err
			}
		}
		return nil
	})
}

// keepAdvertisedRoutes has devices that take router advertisements while they do not forward take them always
// (Documentation/networking/ip-sysctl.rst, accept_ra).
func keepAdvertisedRoutes() error {
	devices, err := os.ReadDir("/proc/sys/net/ipv6/conf")
	if err != nil {
		return fmt.Errorf("list devices' IPv6 settings: %w", err)
	}
	for _, device := range devices {
		name := "ipv6/conf/" + device.Name() + "/accept_ra"
		value, err := os.ReadFile(filepath.Join("/proc/sys/net", name))
		if err != nil || strings.TrimSpace(string(value)) != "1" || device.Name() == "all" || device.Name() == "default" {
			continue // a device that is gone by now needs nothing
		}
		if err := setSysctl(name, "2"); err != nil && !errors.Is(err, os.ErrNotExist) {
			return err
		}
	}
	return nil
}

// NetnsCookie returns the number by which BPF programs know a network namespace (SO_NETNS_COOKIE).
func (h *Handle) NetnsCookie(netns *os.File) (uint64, error) {
	var cookie uint64
	err := enter(netns, func() error {
		fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
		if err != nil {
			return err
		}
		defer unix.Close(fd)
		cookie, err = unix.GetsockoptUint64(fd, unix.SOL_SOCKET, unix.SO_NETNS_COOKIE)
		return err
	})
	if err != nil {
		return 0, fmt.Errorf("ask network namespace's cookie: %w", err)
	}
	return cookie, nil
}
