package lab

import (
	"fmt"
	"net/netip"
	"path/filepath"
	"regexp"
)

// Where things are; every path ends in a part that carries the lab's name.
const (
	stateRoot   = "/run/tendril-lab" // <lab>/...: sockets, logs, records
	netnsRoot   = "/run/netns"       // the folder that ip-netns(8) looks into
	bpfRoot     = "/sys/fs/bpf"
	cgroupMark  = "tendril-lab-" // <cgroup v2 mount>/tendril-lab-<lab>
	netnsMark   = "tendril-"     // tendril-<lab>-<part>
	fabricPart  = "fabric"
	controlPart = "control"
	outsidePart = "outside"
	uplinkName  = "eth0" // the device of a node, of control and of outside towards the fabric
	storePort   = 2379
	publishPort = 2380
)

// Addresses of the fabric. The last byte tells who: nodes count from 1.
const (
	lastByteControl = 250
	lastByteOutside = 200
	maxNodes        = 199
)

// labName has no dash, so that the names of two labs' namespaces never begin alike.
var labName = regexp.MustCompile(`^[a-z][a-z0-9]{0,19}$`)

// podName is a DNS label or subdomain as Kubernetes has it, which also is a safe file name.
var podName = regexp.MustCompile(`^[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?$`)

// names derives every name of a lab from the lab's own.
type names struct{ lab string }

func (n names) state(parts ...string) string {
	return filepath.Join(append([]string{stateRoot, n.lab}, parts...)...)
}

// netns names a namespace; part is fabric, control, outside, a node, or pod-<namespace>.<name>.
func (n names) netns(part string) string { return netnsMark + n.lab + "-" + part }

func (n names) netnsPath(part string) string { return filepath.Join(netnsRoot, n.netns(part)) }

// podPart is a pod's part of names. A Kubernetes namespace has no dot, so the first dot divides.
func podPart(namespace, name string) string { return namespace + "." + name }

func (n names) podNetns(namespace, name string) string { return "pod-" + podPart(namespace, name) }

// cgroup is relative to the cgroup v2 mount.
func (n names) cgroup(parts ...string) string {
	return filepath.Join(append([]string{cgroupMark + n.lab}, parts...)...)
}

func (n names) pins(parts ...string) string {
	return filepath.Join(append([]string{bpfRoot, cgroupMark + n.lab}, parts...)...)
}

// nodeName is the name of the i-th node, counted from 1.
func nodeName(i int) string { return fmt.Sprintf("node%d", i) }

// fabricAddrs are the fabric addresses, IPv4 first, of whoever has that last byte.
func fabricAddrs(last byte) []netip.Prefix {
	v6 := [16]byte{0: 0xfd, 1: 0x30, 15: last}
	return []netip.Prefix{
		netip.PrefixFrom(netip.AddrFrom4([4]byte{172, 30, 0, last}), 24),
		netip.PrefixFrom(netip.AddrFrom16(v6), 64),
	}
}

// OutsideAddrs are addresses of the outside host beyond the fabric: nodes reach them by their default route, as they
// would the internet. They come from the documentation ranges (RFC 5737, RFC 3849).
func OutsideAddrs() []netip.Addr {
	return []netip.Addr{netip.MustParseAddr("198.51.100.10"), netip.MustParseAddr("2001:db8:100::10")}
}

// podCIDRs are the prefixes of the i-th node's pods, IPv4 first.
func podCIDRs(i byte) []netip.Prefix {
	v6 := [16]byte{0: 0xfd, 1: 0x44, 7: i}
	return []netip.Prefix{
		netip.PrefixFrom(netip.AddrFrom4([4]byte{10, 244, i, 0}), 24),
		netip.PrefixFrom(netip.AddrFrom16(v6), 64),
	}
}

// podAddr is the k-th address of a node's prefix; bare mode gives the pods' gateway k = 1.
func podAddr(prefix netip.Prefix, k int) netip.Addr {
	raw := prefix.Addr().As16()
	raw[14], raw[15] = raw[14]+byte(k>>8), raw[15]+byte(k)
	return netip.AddrFrom16(raw).Unmap()
}

// StoreAddr and PublishAddr are where the store and the Publish service listen, seen from the fabric.
func StoreAddr() string { return controlEndpoint(storePort) }

// PublishAddr is where agents send their writes.
func PublishAddr() string { return controlEndpoint(publishPort) }

func controlEndpoint(port uint16) string {
	return netip.AddrPortFrom(fabricAddrs(lastByteControl)[0].Addr(), port).String()
}
