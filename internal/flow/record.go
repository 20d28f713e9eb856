package flow

import (
	"cmp"
	"net/netip"
	"strconv"
	"strings"

	agentv1 "tendril.io/tendril/api/agent/v1"
	"tendril.io/tendril/bpf"
)

// Verdicts of a record.
const (
	VerdictForwarded  = "forwarded"
	VerdictDropped    = "dropped"
	VerdictRedirected = "redirected" // handed to the proxy
)

// PartyInfo is what is known of one side of a flow. All fields may be empty.
type PartyInfo struct {
	Namespace, Pod string
	Labels         []string // key=value, sorted
	Identity       string   // label-set hash in hex, or reserved:world and the like
	Node           string
}

// RuleInfo names a rule.
type RuleInfo struct {
	Name  string // kind namespace/name, or a builtin
	Place string // field path inside the object, e.g. spec.ingress[0]
}

// Resolver knows what the datapath's numbers stand for. It is asked while a record is read, by the reader's goroutine.
type Resolver interface {
	// Party names the owner of an address that the datapath knew as peer (and endpoint, if not 0: a pod of this node).
	Party(addr netip.Addr, peer, endpoint uint32) PartyInfo
	// Rule names a rule of a policy; builtin rules need not be known.
	Rule(id uint32) RuleInfo
	// Service names the service, namespace/name, that answers at an address, or returns the empty string.
	Service(frontend netip.AddrPort, protocol uint8) string
}

// Decoder turns events into records.
type Decoder struct {
	Resolver     Resolver
	Node         string // where the events come from
	BootUnixNano int64  // wall-clock time at which CLOCK_MONOTONIC was 0
}

// Flow is the record of an event.
func (d *Decoder) Flow(e *bpf.Event) *agentv1.Flow {
	f := &agentv1.Flow{
		TimeUnixNano:   d.BootUnixNano + int64(e.Time),
		Kind:           kindName(e.Kind),
		Verdict:        verdict(e),
		Protocol:       uint32(e.Protocol),
		Source:         d.party(e.Source, e.SourcePort, e.SourcePeer, e.SourceEndpoint),
		Destination:    d.party(e.Destination, e.DestinationPort, e.DestinationPeer, e.DestinationEndpoint),
		Egress:         d.judgement(e.EgressAction, e.EgressRule),
		Ingress:        d.judgement(e.IngressAction, e.IngressRule),
		StagedEgress:   d.staged(e.StagedEgressAction, e.StagedEgressRule),
		StagedIngress:  d.staged(e.StagedIngressAction, e.StagedIngressRule),
		ForwardPackets: e.Forward.Packets,
		ForwardBytes:   e.Forward.Bytes,
		ReversePackets: e.Reverse.Packets,
		ReverseBytes:   e.Reverse.Bytes,
		DurationNs:     int64(e.Duration),
		Hook:           e.Hook.String(),
		TcpFlags:       uint32(e.TCPFlags),
		Node:           d.Node,
		NatPort:        uint32(bpf.Port(e.NATPort)),
	}
	if f.Verdict == VerdictDropped {
		f.Reason = reasonName(e.Reason)
	}
	// The destination is the backend; the service says what the source had asked for.
	if !e.Service.IsZero() {
		frontend := netip.AddrPortFrom(e.Service.Addr(), bpf.Port(e.ServicePort))
		f.ServiceIp, f.ServicePort = frontend.Addr().String(), uint32(frontend.Port())
		f.Destination.Service = d.Resolver.Service(frontend, e.Protocol)
	}
	return f
}

// party names one side of an event.
func (d *Decoder) party(address bpf.Address, port uint16, peer, endpoint uint32) *agentv1.Party {
	p := &agentv1.Party{Port: uint32(bpf.Port(port)), Peer: peer, Endpoint: endpoint}
	if address.IsZero() {
		return p // a packet too broken to say
	}
	addr := address.Addr()
	info := d.Resolver.Party(addr, peer, endpoint)
	p.Ip = addr.String()
	p.Namespace, p.Pod, p.Labels, p.Identity, p.Node = info.Namespace, info.Pod, info.Labels, info.Identity, info.Node
	if p.Identity == "" && peer < uint32(bpf.PeerFirstFree) {
		p.Identity = "reserved:" + cmp.Or(bpf.ReservedPeer(peer).String(), number(peer))
	}
	return p
}

// judgement names one direction's verdict.
func (d *Decoder) judgement(action bpf.Action, rule uint32) *agentv1.Judgement {
	j := &agentv1.Judgement{Action: action.String(), Rule: rule}
	// The resolver first: it may know a builtin better, such as which policies isolate the endpoint.
	info := d.Resolver.Rule(rule)
	j.RuleName, j.Place = info.Name, info.Place
	switch {
	case j.RuleName != "":
	case rule < uint32(bpf.RuleFirstFree):
		j.RuleName = "builtin/" + cmp.Or(bpf.BuiltinRule(rule).String(), number(rule))
	default:
		j.RuleName = "rule " + number(rule) // its policy is gone
	}
	return j
}

// staged names what staged policies would have said; nil where none selects the side.
func (d *Decoder) staged(action bpf.Action, rule uint32) *agentv1.Judgement {
	if action == bpf.ActionNone {
		return nil
	}
	return d.judgement(action, rule)
}

// number stands for what has no name, such as a reserved number that another version of the datapath gave a meaning.
func number(n uint32) string { return strconv.FormatUint(uint64(n), 10) }

// verdict is what became of the packet: the reason counts, since not every drop is policy's; a packet that nothing
// stopped was redirected if either side's policy says so.
func verdict(e *bpf.Event) string {
	switch {
	case e.Kind == bpf.EventDrop, e.Reason >= bpf.DropFirst:
		return VerdictDropped
	case e.Reason == bpf.ReasonProxy, e.EgressAction == bpf.ActionRedirect, e.IngressAction == bpf.ActionRedirect:
		return VerdictRedirected
	default:
		return VerdictForwarded
	}
}

// kindName is the kind of a record: new, established, end, verdict or drop.
func kindName(kind bpf.EventKind) string { return strings.TrimPrefix(kind.String(), "flow-") }

// reasonName is the name of a reason as in docs/drops.md, or its number.
func reasonName(reason bpf.Reason) string {
	if name := reason.String(); name != "" {
		return name
	}
	return "reason-" + strconv.Itoa(int(reason))
}
