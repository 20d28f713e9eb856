package flow

import (
	"net/netip"

	"tendril.io/tendril/bpf"
)

// names is a Resolver with a small cluster: two pods, one service, one policy.
type names struct{}

func (names) Party(addr netip.Addr, peer, _ uint32) PartyInfo {
	switch addr.String() {
	case "10.0.0.1", "fd00::1":
		return PartyInfo{Namespace: "default", Pod: "client", Identity: "c11e", Node: "n1", Labels: []string{"app=client"}}
	case "10.0.0.2", "fd00::2":
		return PartyInfo{Namespace: "shop", Pod: "web", Identity: "0eb0", Node: "n2"}
	}
	return PartyInfo{}
}

func (names) Rule(id uint32) RuleInfo {
	switch id {
	case 64:
		return RuleInfo{Name: "networkpolicy shop/allow-client", Place: "spec.ingress[0]"}
	case 65:
		return RuleInfo{Name: "ciliumnetworkpolicy shop/no-world", Place: "spec.egressDeny[0]"}
	}
	return RuleInfo{}
}

func (names) Service(frontend netip.AddrPort, protocol uint8) string {
	if frontend.String() == "10.96.0.1:80" && protocol == 6 {
		return "shop/web"
	}
	return ""
}

// boot is when CLOCK_MONOTONIC began, in tests: 2026-01-02 12:00:00 UTC.
const boot = 1767355200_000000000

var decoder = &Decoder{Resolver: names{}, Node: "n1", BootUnixNano: boot}

func address(text string) bpf.Address {
	if text == "" {
		return bpf.Address{}
	}
	return bpf.AddressOf(netip.MustParseAddr(text))
}

// event is a TCP connection from source to destination that both sides' policies leave alone; change makes it another.
func event(source, destination string, change func(*bpf.Event)) bpf.Event {
	e := bpf.Event{
		Time: 1_123_000_000, Source: address(source), Destination: address(destination),
		SourcePort: bpf.NetPort(43210), DestinationPort: bpf.NetPort(80),
		SourcePeer: uint32(bpf.PeerWorld), DestinationPeer: uint32(bpf.PeerWorld),
		EgressAction: bpf.ActionAllow, EgressRule: uint32(bpf.RuleDefaultAllow),
		IngressAction: bpf.ActionAllow, IngressRule: uint32(bpf.RuleOutsideScope),
		Kind: bpf.EventFlowNew, Protocol: 6, Forward: bpf.Traffic{Packets: 1, Bytes: 60},
	}
	if change != nil {
		change(&e)
	}
	return e
}

// staged adds what staged policies would say; ACTION_NONE where none selects the side.
func staged(egressAction bpf.Action, egress uint32, ingressAction bpf.Action, ingress uint32) func(*bpf.Event) {
	return func(e *bpf.Event) {
		e.StagedEgressAction, e.StagedEgressRule, e.StagedIngressAction, e.StagedIngressRule = egressAction, egress, ingressAction, ingress
	}
}

func judged(egressAction bpf.Action, egress uint32, ingressAction bpf.Action, ingress uint32) func(*bpf.Event) {
	return func(e *bpf.Event) {
		e.EgressAction, e.EgressRule, e.IngressAction, e.IngressRule = egressAction, egress, ingressAction, ingress
		if egressAction == bpf.ActionDeny || ingressAction == bpf.ActionDeny {
			e.Kind, e.Reason = bpf.EventDrop, bpf.DropPolicyDeny
		}
	}
}
