package flow

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"

	agentv1 "tendril.io/tendril/api/agent/v1"
	"tendril.io/tendril/bpf"
)

// Filter says which records are wanted: those for which every field that is set holds. The zero value wants all.
type Filter struct {
	Pod       string       // namespace/name of either side
	FromPod   string       // namespace/name of the source
	ToPod     string       // namespace/name of the destination
	Namespace string       // of either side
	Verdict   string       // VerdictForwarded, ...
	IPs       netip.Prefix // of either side, or of the service
	Port      uint16       // of either side, or of the service
	Protocol  uint8        // IP protocol number
	Kind      string       // new, established, end, verdict, drop
	Since     int64        // Unix nanoseconds
	Staged    bool         // only what staged policies would treat otherwise
}

// Verdicts and kinds that a filter may name, and what people also call them.
func verdictNamed(text string) (string, bool) {
	switch strings.ToLower(text) {
	case "":
		return "", true
	case VerdictForwarded, "allowed", "allow":
		return VerdictForwarded, true
	case VerdictDropped, "denied", "deny", "drop":
		return VerdictDropped, true
	case VerdictRedirected, "redirect", "proxied":
		return VerdictRedirected, true
	}
	return "", false
}

// ParseFilter checks the filters of a request. Errors name the field and what it may be.
func ParseFilter(r *agentv1.ObserveRequest) (Filter, error) {
	f := Filter{Namespace: r.GetNamespace(), Kind: r.GetKind(), Since: r.GetSinceUnixNano(), Staged: r.GetStaged()}
	// Pods may be given by name alone, as kubectl takes them.
	var err error
	for _, pod := range []struct {
		field string
		text  string
		into  *string
	}{{"pod", r.GetPod(), &f.Pod}, {"from-pod", r.GetFromPod(), &f.FromPod}, {"to-pod", r.GetToPod(), &f.ToPod}} {
		if *pod.into, err = podName(pod.text); err != nil {
			return Filter{}, fmt.Errorf("%s %w", pod.field, err)
		}
	}
	var known bool
	if f.Verdict, known = verdictNamed(r.GetVerdict()); !known {
		return Filter{}, fmt.Errorf("verdict %q: must be allowed, dropped or redirected", r.GetVerdict())
	}
	if kinds := []string{"", "new", "established", "end", "verdict", "drop"}; !slices.Contains(kinds, f.Kind) {
		return Filter{}, fmt.Errorf("kind %q: must be %s", f.Kind, strings.Join(kinds[1:], ", "))
	}
	if f.IPs, err = parsePrefix(r.GetIp()); err != nil {
		return Filter{}, err
	}
	if r.GetPort() > 65535 {
		return Filter{}, fmt.Errorf("port %d: must be from 1 to 65535", r.GetPort())
	}
	f.Port = uint16(r.GetPort())
	if f.Protocol, err = ParseProtocol(r.GetProtocol()); err != nil {
		return Filter{}, err
	}
	return f, nil
}

// podName completes a pod's name: without a namespace it is in "default".
func podName(text string) (string, error) {
	namespace, name, found := strings.Cut(text, "/")
	switch {
	case text == "":
		return "", nil
	case !found:
		return "default/" + text, nil
	case namespace == "" || name == "" || strings.Contains(name, "/"):
		return "", fmt.Errorf("%q: must be namespace/name", text)
	}
	return text, nil
}

// parsePrefix reads an address or a CIDR; the empty string gives the zero Prefix, which means any.
func parsePrefix(text string) (netip.Prefix, error) {
	if text == "" {
		return netip.Prefix{}, nil
	}
	// A lone address is the range that holds nothing else.
	if addr, err := netip.ParseAddr(text); err == nil {
		addr = addr.Unmap()
		return netip.PrefixFrom(addr, addr.BitLen()), nil
	}
	prefix, err := netip.ParsePrefix(text)
	if err != nil {
		return netip.Prefix{}, fmt.Errorf("ip %q: must be an address or a CIDR, as in 10.0.0.1 or fd00::/64", text)
	}
	if prefix.Addr().Is4In6() {
		// Addresses of records are unmapped, so that a mapped range would silently find nothing.
		return netip.Prefix{}, fmt.Errorf("ip %q: an IPv4 range written as IPv6; write it as in 10.0.0.0/8", text)
	}
	return prefix.Masked(), nil
}

// wantsEvent judges an event by what needs no names: false means that its record is not wanted either.
func (f *Filter) wantsEvent(e *bpf.Event, bootUnixNano int64) bool {
	switch {
	case f.Since != 0 && bootUnixNano+int64(e.Time) < f.Since,
		f.Protocol != 0 && e.Protocol != f.Protocol,
		f.Kind != "" && kindName(e.Kind) != f.Kind,
		f.Verdict != "" && verdict(e) != f.Verdict,
		f.IPs.IsValid() && !f.wantsAddress(e),
		f.Port != 0 && !f.wantsPort(e),
		f.Staged && !stagedDiffers(e.EgressAction, e.StagedEgressAction) && !stagedDiffers(e.IngressAction, e.StagedIngressAction):
		return false
	}
	return true
}

// stagedDiffers says that staged policies select a side and would treat it otherwise than those in force.
func stagedDiffers(action, staged bpf.Action) bool {
	return staged != bpf.ActionNone && staged != action
}

// wantsAddress says that one of the event's addresses is in the wanted range.
func (f *Filter) wantsAddress(e *bpf.Event) bool {
	return f.IPs.Contains(e.Source.Addr()) || f.IPs.Contains(e.Destination.Addr()) || f.IPs.Contains(e.Service.Addr())
}

// wantsPort says that one of the event's ports is the wanted one. The fields of protocols without ports are no ports.
func (f *Filter) wantsPort(e *bpf.Event) bool {
	port := bpf.NetPort(f.Port)
	return hasPorts(uint32(e.Protocol)) && (e.SourcePort == port || e.DestinationPort == port || e.ServicePort == port)
}

// wantsFlow judges a record by its names.
func (f *Filter) wantsFlow(flow *agentv1.Flow) bool {
	source, destination := partyPod(flow.GetSource()), partyPod(flow.GetDestination())
	switch {
	case f.Pod != "" && f.Pod != source && f.Pod != destination,
		f.FromPod != "" && f.FromPod != source,
		f.ToPod != "" && f.ToPod != destination,
		f.Namespace != "" && f.Namespace != flow.GetSource().GetNamespace() && f.Namespace != flow.GetDestination().GetNamespace():
		return false
	}
	return true
}

// partyPod is namespace/name of a side that is a pod.
func partyPod(p *agentv1.Party) string {
	if p.GetPod() == "" {
		return ""
	}
	return p.GetNamespace() + "/" + p.GetPod()
}
