package flow

import (
	"testing"
	"unsafe"

	"github.com/google/go-cmp/cmp"
	"google.golang.org/protobuf/testing/protocmp"

	agentv1 "tendril.io/tendril/api/agent/v1"
	"tendril.io/tendril/bpf"
)

func TestARecordHoldsAllOfItsEvent(t *testing.T) {
	e := event("10.0.0.1", "10.0.0.2", func(e *bpf.Event) {
		judged(bpf.ActionAllow, 8, bpf.ActionAllow, 64)(e)
		e.Service, e.ServicePort, e.NATPort = address("10.96.0.1"), bpf.NetPort(80), bpf.NetPort(7)
		e.SourcePeer, e.DestinationPeer, e.SourceEndpoint, e.DestinationEndpoint = 20, 21, 3, 4
		e.Forward, e.Reverse, e.Duration = bpf.Traffic{Packets: 1, Bytes: 2}, bpf.Traffic{Packets: 3, Bytes: 4}, 5
		e.Hook, e.TCPFlags = bpf.HookTunnelIn, 0x12
		staged(bpf.ActionNone, 0, bpf.ActionDeny, 65)(e)
	})
	want := &agentv1.Flow{
		TimeUnixNano: boot + 1_123_000_000, Kind: "new", Verdict: VerdictForwarded, Protocol: 6, Node: "n1", Hook: "tunnel-in",
		Source:         &agentv1.Party{Ip: "10.0.0.1", Port: 43210, Namespace: "default", Pod: "client", Labels: []string{"app=client"}, Identity: "c11e", Node: "n1", Peer: 20, Endpoint: 3},
		Destination:    &agentv1.Party{Ip: "10.0.0.2", Port: 80, Namespace: "shop", Pod: "web", Identity: "0eb0", Node: "n2", Peer: 21, Endpoint: 4, Service: "shop/web"},
		Egress:         &agentv1.Judgement{Action: "allow", Rule: 8, RuleName: "builtin/outside-scope"},
		Ingress:        &agentv1.Judgement{Action: "allow", Rule: 64, RuleName: "networkpolicy shop/allow-client", Place: "spec.ingress[0]"},
		StagedIngress:  &agentv1.Judgement{Action: "deny", Rule: 65, RuleName: "ciliumnetworkpolicy shop/no-world", Place: "spec.egressDeny[0]"},
		ForwardPackets: 1, ForwardBytes: 2, ReversePackets: 3, ReverseBytes: 4, DurationNs: 5,
		ServiceIp: "10.96.0.1", ServicePort: 80, TcpFlags: 0x12, NatPort: 7,
	}
	if diff := cmp.Diff(want, decoder.Flow(&e), protocmp.Transform()); diff != "" {
		t.Errorf("record (-want +got):\n%s", diff)
	}
}

// What the verdict of a record is, whatever policy and the rest of the datapath say of the packet.
func TestVerdictFollowsTheReasonThenTheActions(t *testing.T) {
	for _, c := range []struct {
		kind            bpf.EventKind
		reason          bpf.Reason
		egress, ingress bpf.Action
		verdict, named  string
	}{
		{bpf.EventFlowNew, bpf.ReasonForwarded, bpf.ActionAllow, bpf.ActionAllow, VerdictForwarded, ""},
		{bpf.EventFlowNew, bpf.ReasonToStack, bpf.ActionNone, bpf.ActionNone, VerdictForwarded, ""},
		{bpf.EventFlowNew, bpf.ReasonForwarded, bpf.ActionRedirect, bpf.ActionAllow, VerdictRedirected, ""},
		{bpf.EventFlowNew, bpf.ReasonProxy, bpf.ActionNone, bpf.ActionNone, VerdictRedirected, ""},
		{bpf.EventDrop, bpf.DropPolicyDeny, bpf.ActionDeny, bpf.ActionNone, VerdictDropped, "policy-deny"},
		{bpf.EventDrop, bpf.DropNoRoute, bpf.ActionAllow, bpf.ActionAllow, VerdictDropped, "no-route"},
		{bpf.EventDrop, bpf.DropNoProxy, bpf.ActionRedirect, bpf.ActionAllow, VerdictDropped, "no-proxy"},
		{bpf.EventDrop, bpf.ReasonForwarded, bpf.ActionAllow, bpf.ActionAllow, VerdictDropped, "forwarded"}, // never called allowed
		{bpf.EventDrop, 63, bpf.ActionAllow, bpf.ActionAllow, VerdictDropped, "reason-63"},
		{bpf.EventFlowVerdict, bpf.DropPolicyDeny, bpf.ActionDeny, bpf.ActionNone, VerdictDropped, "policy-deny"},
	} {
		e := bpf.Event{Kind: c.kind, Reason: c.reason, EgressAction: c.egress, IngressAction: c.ingress}
		f := decoder.Flow(&e)
		if f.Verdict != c.verdict || f.Reason != c.named {
			t.Errorf("%+v: got %s %q", c, f.Verdict, f.Reason)
		}
	}
}

func TestDecodeRefusesWhatNoDatapathWrites(t *testing.T) {
	good := event("10.0.0.1", "10.0.0.2", nil)
	raw := append([]byte(nil), bytesOf(&good)...)
	var got bpf.Event
	if err := Decode(raw, &got); err != nil || got != good {
		t.Errorf("Decode gives %+v, %v; want the event back", got, err)
	}
	before := got
	for name, bad := range map[string][]byte{
		"nothing": nil, "a byte less": raw[1:], "a byte more": append(raw[:len(raw):len(raw)], 0), "no kind": make([]byte, EventSize),
	} {
		if err := Decode(bad, &got); err == nil {
			t.Errorf("Decode took %s", name)
		}
		if got != before {
			t.Errorf("Decode of %s changed the event", name)
		}
	}
}

func bytesOf(e *bpf.Event) []byte { return unsafe.Slice((*byte)(unsafe.Pointer(e)), EventSize) }

// Whatever the bytes, they are refused or become a record that can be told.
func FuzzDecode(f *testing.F) {
	good := event("10.0.0.1", "fd00::2", judged(bpf.ActionDeny, 65, bpf.ActionAllow, 64))
	f.Add(bytesOf(&good))
	f.Add([]byte{})
	f.Add(make([]byte, EventSize))
	f.Fuzz(func(t *testing.T, raw []byte) {
		var e bpf.Event
		if err := Decode(raw, &e); err != nil {
			return
		}
		record := decoder.Flow(&e)
		if record.Verdict == "" || record.Kind == "" {
			t.Errorf("record without verdict or kind: %v", record)
		}
		if (record.Verdict == VerdictDropped) != (record.Reason != "") {
			t.Errorf("verdict %s with reason %q", record.Verdict, record.Reason)
		}
		if Describe(record, utc()).String() == "" {
			t.Error("record reads as nothing")
		}
	})
}

func TestWhatHasNoNameIsToldByItsNumber(t *testing.T) {
	e := event("192.0.2.7", "198.51.100.1", judged(bpf.ActionAllow, uint32(bpf.RuleFirstFree)-1, bpf.ActionAllow, 4711))
	e.SourcePeer = uint32(bpf.PeerFirstFree) - 1
	f := decoder.Flow(&e)
	got := []string{f.Source.Identity, f.Destination.Identity, f.Egress.RuleName, f.Ingress.RuleName}
	want := []string{"reserved:15", "reserved:world", "builtin/63", "rule 4711"}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("names (-want +got):\n%s", diff)
	}
}
