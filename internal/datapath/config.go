package datapath

import (
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"net/netip"
	"path/filepath"
	"slices"
	"strings"

	"tendril.io/tendril/bpf"
)

// Config says what a node's datapath is made of.
type Config struct {
	// Root is the node's folder in a mounted bpffs, e.g. /sys/fs/bpf/tendril. One agent owns it.
	Root string
	// Cgroup is the cgroup v2 folder whose processes the socket hooks translate for; empty: no socket hooks.
	Cgroup string
	// Node is the programs' configuration. NetnsCookie 0: that of the caller's network namespace. ClassWords, a
	// power of two, 0: the default.
	Node bpf.NodeConfig
	// Sizes are entries by map name, where they differ from the compiled ones. The connection and NAT tables keep
	// the size they were first made with.
	Sizes map[string]uint32
	// Logger hears of what is done in the background; nil: nobody does.
	Logger *slog.Logger
}

// Validate names the first field that cannot be.
func (c *Config) Validate() error {
	switch {
	case !filepath.IsAbs(c.Root) || filepath.Clean(c.Root) == "/":
		return fmt.Errorf("datapath config: root %q: give an absolute folder below a mounted bpffs, e.g. /sys/fs/bpf/tendril", c.Root)
	case strings.Contains(filepath.Base(c.Root), "."):
		return fmt.Errorf("datapath config: root %q: bpffs allows no dot in a name", c.Root)
	case c.Cgroup != "" && !filepath.IsAbs(c.Cgroup):
		return fmt.Errorf("datapath config: cgroup %q: give an absolute folder of a cgroup v2 hierarchy", c.Cgroup)
	case c.Node.ClassWords > 512 || c.Node.ClassWords&(c.Node.ClassWords-1) != 0:
		return fmt.Errorf("datapath config: node.class_words %d: give a power of two, at most 512 (32768 selectors)", c.Node.ClassWords)
	}
	for _, name := range slices.Sorted(maps.Keys(c.Sizes)) {
		if c.Sizes[name] == 0 {
			return fmt.Errorf("datapath config: sizes[%s] is 0: leave it out for the default", name)
		}
	}
	return validateNode(&c.Node)
}

func validateNode(n *bpf.NodeConfig) error {
	switch {
	case n.Features&bpf.FeatureMasquerade != 0 && (n.NATPortMin == 0 || n.NATPortMin > n.NATPortMax):
		return fmt.Errorf("datapath config: node.nat_port_min %d and nat_port_max %d: give a range from 1 to 65535", n.NATPortMin, n.NATPortMax)
	case n.Features&bpf.FeatureTunnel != 0 && n.OverlayIfIndex == 0:
		return errors.New("datapath config: node.overlay_ifindex is 0 though feature tunnel is on: create the overlay device first")
	case n.Features&(bpf.FeatureIPv4|bpf.FeatureIPv6) == 0:
		return errors.New("datapath config: node.features has neither ipv4 nor ipv6: turn at least one on")
	}
	return nil
}

// Uplink is an outward device of the node.
type Uplink struct {
	Name    string
	IfIndex uint32
	Addr4   netip.Addr // source of masqueraded IPv4 traffic; invalid: none
	Addr6   netip.Addr
	MTU     uint32
}

// Node is a row of the nodes map.
type Node struct {
	Number   uint32
	Tunnel   netip.Addr // outer address of its tunnel
	NextHop4 netip.Addr // invalid: ask the kernel's routes
	NextHop6 netip.Addr
	IfIndex  uint32 // outward device towards it; 0: ask the kernel's routes
	Flags    uint32
}
