package table

import (
	"encoding/hex"
	"fmt"
	"maps"
	"net"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"time"

	"tendril.io/tendril/internal/ipproto"
)

// Cells print absent values as "-", lists with commas, addresses bare, hashes in hex.

// TableHeader names the columns.
func (*Node) TableHeader() []string {
	return []string{"Name", "Addresses", "PodCIDRs", "Tunnel", "Routers", "Healths", "Zone", "Boot", "Versions"}
}

// TableRow prints the row.
func (n *Node) TableRow() []string {
	versions := fmt.Sprintf("%d-%d", n.MinVersion, n.MaxVersion)
	return []string{
		n.Name, list(n.Addresses), list(n.PodCIDRs), addr(n.Tunnel), list(n.Routers), list(n.Healths),
		some(n.Zone), some(n.BootID), versions,
	}
}

// TableHeader names the columns.
func (*Pod) TableHeader() []string {
	return []string{"Node", "Namespace", "Name", "UID", "Labels", "Ports", "Flags"}
}

// TableRow prints the row.
func (p *Pod) TableRow() []string {
	flags := flagged(word{"host-network", p.HostNetwork})
	return []string{p.Node, p.Namespace, p.Name, some(p.UID), hash(p.Labels), list(p.NamedPorts), flags}
}

// String is name:port/protocol, as in a manifest.
func (p NamedPort) String() string {
	return fmt.Sprintf("%s:%d/%s", p.Name, p.Port, ipproto.ManifestName(p.Protocol))
}

// TableHeader names the columns.
func (*IP) TableHeader() []string { return []string{"Node", "Address", "Pod", "UID", "Sandbox"} }

// TableRow prints the row.
func (ip *IP) TableRow() []string {
	return []string{ip.Node, addr(ip.Addr), named(ip.Namespace, ip.Pod), some(ip.PodUID), some(ip.Sandbox)}
}

// TableHeader names the columns.
func (*LabelSet) TableHeader() []string {
	return []string{"Hash", "Cluster", "Namespace", "ServiceAccount", "Labels"}
}

// TableRow prints the row.
func (l *LabelSet) TableRow() []string {
	return []string{hash(l.Hash), some(l.Cluster), some(l.Namespace), some(l.ServiceAccount), labels(l.Labels)}
}

// TableHeader names the columns.
func (*Namespace) TableHeader() []string { return []string{"Name", "Labels"} }

// TableRow prints the row.
func (n *Namespace) TableRow() []string { return []string{n.Name, labels(n.Labels)} }

// TableHeader names the columns.
func (*NodeLabels) TableHeader() []string { return []string{"Node", "Labels"} }

// TableRow prints the row.
func (n *NodeLabels) TableRow() []string { return []string{n.Node, labels(n.Labels)} }

// TableHeader names the columns.
func (*Alive) TableHeader() []string { return []string{"Node", "BootID", "Started"} }

// TableRow prints the row.
func (a *Alive) TableRow() []string {
	started := ""
	if a.Started != 0 {
		started = time.Unix(a.Started, 0).UTC().Format(time.RFC3339)
	}
	return []string{a.Node, some(a.BootID), some(started)}
}

// TableHeader names the columns.
func (*CIDRGroup) TableHeader() []string { return []string{"Name", "Prefixes", "Labels"} }

// TableRow prints the row.
func (g *CIDRGroup) TableRow() []string { return []string{g.Name, list(g.Prefixes), labels(g.Labels)} }

// TableHeader names the columns.
func (*EgressGateway) TableHeader() []string {
	return []string{"Name", "Pods", "Namespaces", "Destinations", "Exceptions", "Nodes"}
}

// TableRow prints the row.
func (g *EgressGateway) TableRow() []string {
	return []string{
		g.Name, some(g.Pods.String()), some(g.Namespaces.String()), list(g.Destinations), list(g.Exceptions), list(g.Nodes),
	}
}

// String is the name or the selector, and the addresses behind an equals sign.
func (n EgressNodes) String() string {
	text := n.Node
	if text == "" {
		text = n.Selector.String()
	}
	for i, addr := range n.Addrs {
		text += []string{"=", "+"}[min(i, 1)] + addr.String()
	}
	return text
}

// TableHeader names the columns.
func (*Service) TableHeader() []string {
	return []string{"Namespace", "Name", "Type", "ClusterIPs", "Ports", "External", "Sources", "Options", "Labels"}
}

// TableRow prints the row.
func (s *Service) TableRow() []string {
	external := list(slices.Concat(s.ExternalIPs, s.LoadBalancerIPs))
	return []string{
		s.Namespace, s.Name, some(s.Type), list(s.ClusterIPs), list(s.Ports), external, list(s.SourceRanges), s.options(),
		labels(s.Labels),
	}
}

// options prints what differs from a service with defaults.
func (s *Service) options() string {
	flags := []word{
		{"internal-local", s.InternalLocal},
		{"external-local", s.ExternalLocal},
		{"publish-not-ready", s.PublishNotReady},
		{fmt.Sprintf("affinity=%ds", s.AffinitySeconds), s.AffinitySeconds > 0},
		{fmt.Sprintf("health-port=%d", s.HealthCheckNodePort), s.HealthCheckNodePort > 0},
		{"distribution=" + s.TrafficDistribution, s.TrafficDistribution != ""},
		{"algorithm=" + s.Algorithm, s.Algorithm != ""},
		{"forwarding=" + s.Forwarding, s.Forwarding != ""},
	}
	return flagged(flags...)
}

// String is name:port/protocol, with the node port behind an arrow where there is one.
func (p ServicePort) String() string {
	text := fmt.Sprintf("%d/%s", p.Port, ipproto.ManifestName(p.Protocol))
	if p.Name != "" {
		text = p.Name + ":" + text
	}
	if p.NodePort != 0 {
		text += "<-" + strconv.Itoa(int(p.NodePort))
	}
	return text
}

// TableHeader names the columns.
func (*Backends) TableHeader() []string {
	return []string{"Namespace", "Service", "Slice", "Ports", "Backends"}
}

// TableRow prints the row.
func (b *Backends) TableRow() []string {
	return []string{b.Namespace, b.Service, b.Slice, list(b.Ports), list(b.Backends)}
}

// String is the addresses, the node and what is wrong with it, if anything.
func (b Backend) String() string {
	parts := make([]string, 0, len(b.Addrs)+2)
	for _, a := range b.Addrs {
		parts = append(parts, a.String())
	}
	text := strings.Join(parts, "+")
	if b.Node != "" {
		text += "@" + b.Node
	}
	switch {
	case b.Terminating && b.Serving:
		text += "(draining)"
	case b.Terminating:
		text += "(terminating)"
	case !b.Ready:
		text += "(not-ready)"
	}
	return text
}

// TableHeader names the columns.
func (*Counter) TableHeader() []string { return []string{"Kind", "Revision"} }

// TableRow prints the row.
func (c *Counter) TableRow() []string { return []string{c.Kind, strconv.FormatUint(c.Revision, 10)} }

// TableHeader names the columns.
func (*Policy) TableHeader() []string {
	return []string{"Kind", "Namespace", "Name", "Revision", "Bytes", "Source"}
}

// TableRow prints the row.
func (p *Policy) TableRow() []string {
	return []string{
		p.Kind, some(p.Namespace), p.Name, strconv.FormatUint(p.Revision, 10), strconv.Itoa(len(p.Object)), some(p.Source),
	}
}

// TableHeader names the columns.
func (*Endpoint) TableHeader() []string {
	return []string{
		"ID", "Pod", "State", "Addresses", "Device", "MAC", "Peer", "Ingress", "Egress", "MTU", "UID", "Sandbox", "Created",
	}
}

// TableRow prints the row.
func (e *Endpoint) TableRow() []string {
	device := fmt.Sprintf("%s(%d)", some(e.Device), e.IfIndex)
	created := "-"
	if !e.Created.IsZero() {
		created = e.Created.UTC().Format(time.RFC3339)
	}
	return []string{
		fmt.Sprintf("%d.%d", e.ID, e.Generation), named(e.Namespace, e.Pod), some(string(e.State)), list(e.Addrs),
		device, net.HardwareAddr(e.PodMAC[:]).String(), count(e.Peer), count(e.Ingress), count(e.Egress),
		count(e.MTU), some(e.PodUID), some(e.Sandbox), created,
	}
}

// TableHeader names the columns.
func (*Device) TableHeader() []string {
	return []string{"Index", "Name", "Type", "State", "MTU", "MAC", "Addresses"}
}

// TableRow prints the row.
func (d *Device) TableRow() []string {
	state := "down"
	if d.Up {
		state = "up"
	}
	mac := net.HardwareAddr(d.MAC[:]).String()
	return []string{count(d.Index), d.Name, some(d.Type), state, count(d.MTU), mac, list(d.Addrs)}
}

// TableHeader names the columns.
func (*Route) TableHeader() []string {
	return []string{"Table", "Prefix", "Via", "Device", "Source", "MTU"}
}

// TableRow prints the row.
func (r *Route) TableRow() []string {
	return []string{count(r.Table), r.Prefix.String(), addr(r.Via), some(r.Device), addr(r.Source), count(r.MTU)}
}

// TableHeader names the columns.
func (*RouteWanted) TableHeader() []string { return (*Route)(nil).TableHeader() }

// TableRow prints the row.
func (r *RouteWanted) TableRow() []string { return (*Route)(r).TableRow() }

// some prints a string that may be absent.
func some(text string) string {
	if text == "" {
		return "-"
	}
	return text
}

// addr prints an address that may be absent.
func addr(a netip.Addr) string {
	if !a.IsValid() {
		return "-"
	}
	return a.String()
}

// list prints elements with commas.
func list[T fmt.Stringer](elements []T) string {
	texts := make([]string, 0, len(elements))
	for _, element := range elements {
		texts = append(texts, element.String())
	}
	return some(strings.Join(texts, ","))
}

// labels prints a map as key=value, sorted by key.
func labels(set map[string]string) string {
	texts := make([]string, 0, len(set))
	for _, key := range slices.Sorted(maps.Keys(set)) {
		texts = append(texts, key+"="+set[key])
	}
	return some(strings.Join(texts, ","))
}

// hash prints a content hash; none is all zero.
func hash(sum [16]byte) string {
	if sum == [16]byte{} {
		return "-"
	}
	return hex.EncodeToString(sum[:])
}

// named prints namespace/name.
func named(namespace, name string) string {
	if namespace == "" && name == "" {
		return "-"
	}
	return namespace + "/" + name
}

// count prints a 32-bit number.
func count(n uint32) string { return strconv.FormatUint(uint64(n), 10) }

// word is one that is printed when it holds.
type word struct {
	text  string
	holds bool
}

// flagged prints the words that hold.
func flagged(flags ...word) string {
	var words []string
	for _, f := range flags {
		if f.holds {
			words = append(words, f.text)
		}
	}
	return some(strings.Join(words, ","))
}
