package flow

import (
	"testing"
	"time"

	"tendril.io/tendril/bpf"
)

// Each kind of event, as a person reads it.
func TestARecordReadsAs(t *testing.T) {
	const allow, deny = bpf.ActionAllow, bpf.ActionDeny
	const open, outside = uint32(bpf.RuleDefaultAllow), uint32(bpf.RuleOutsideScope)
	for _, c := range []struct {
		name  string
		event bpf.Event
		want  string
	}{
		{"allowed by a rule", event("10.0.0.1", "10.0.0.2", judged(allow, open, allow, 64)),
			"12:00:01.123 allowed  default/client:43210 (c11e) -> shop/web:80 (0eb0) tcp  by ingress networkpolicy shop/allow-client spec.ingress[0]"},
		{"allowed because nothing restricts it", event("10.0.0.1", "10.0.0.2", nil),
			"12:00:01.123 allowed  default/client:43210 (c11e) -> shop/web:80 (0eb0) tcp  no policy restricts egress"},
		{"judged on other nodes", event("10.0.0.1", "10.0.0.2", judged(allow, outside, allow, outside)),
			"12:00:01.123 allowed  default/client:43210 (c11e) -> shop/web:80 (0eb0) tcp"},
		{"denied by a rule", event("10.0.0.2", "192.0.2.7", judged(deny, 65, bpf.ActionNone, 0)),
			"12:00:01.123 dropped  shop/web:43210 (0eb0) -> 192.0.2.7:80 (world) tcp  policy-deny by egress ciliumnetworkpolicy shop/no-world spec.egressDeny[0]"},
		{"denied since no rule matched", event("fd00::9", "fd00::2", func(e *bpf.Event) {
			judged(bpf.ActionAllow, outside, deny, uint32(bpf.RuleDefaultDeny))(e)
			e.Reason = bpf.DropPolicyDefault
		}), "12:00:01.123 dropped  [fd00::9]:43210 (world) -> shop/web:80 (0eb0) tcp  policy-default by ingress builtin/default-deny"},
		{"dropped for another reason", event("10.0.0.1", "10.0.0.9", func(e *bpf.Event) {
			e.Kind, e.Reason, e.DestinationPeer = bpf.EventDrop, bpf.DropUnknownDestination, uint32(bpf.PeerUnknown)
			e.EgressAction, e.IngressAction = bpf.ActionNone, bpf.ActionNone
		}), "12:00:01.123 dropped  default/client:43210 (c11e) -> 10.0.0.9:80 (unknown) tcp  unknown-destination: an address of a pod CIDR that no pod owns"},
		{"dropped before its addresses were read", event("", "", func(e *bpf.Event) {
			e.Kind, e.Reason, e.Protocol = bpf.EventDrop, bpf.DropInvalidPacket, 0
			e.SourcePort, e.DestinationPort = 0, 0
		}), "12:00:01.123 dropped  ? -> ? 0  invalid-packet: truncated or malformed headers"},
		{"through a service", event("10.0.0.1", "10.0.0.2", func(e *bpf.Event) {
			judged(allow, open, allow, 64)(e)
			e.Service, e.ServicePort = address("10.96.0.1"), bpf.NetPort(80)
		}), "12:00:01.123 allowed  default/client:43210 (c11e) -> shop/web:80 (0eb0) tcp for service shop/web at 10.96.0.1:80  by ingress networkpolicy shop/allow-client spec.ingress[0]"},
		{"through a service that has gone", event("10.0.0.1", "10.0.0.2", func(e *bpf.Event) {
			e.Service, e.ServicePort = address("10.96.0.3"), bpf.NetPort(80)
		}), "12:00:01.123 allowed  default/client:43210 (c11e) -> shop/web:80 (0eb0) tcp for service 10.96.0.3:80  no policy restricts egress"},
		{"to the outside", event("10.0.0.1", "192.0.2.7", func(e *bpf.Event) { e.NATPort = bpf.NetPort(43211) }),
			"12:00:01.123 allowed  default/client:43210 (c11e) -> 192.0.2.7:80 (world) tcp  no policy restricts egress  masqueraded as port 43211"},
		{"an echo, whose id is no port", event("10.0.0.1", "10.0.0.2", func(e *bpf.Event) { e.Protocol = 1 }),
			"12:00:01.123 allowed  default/client (c11e) -> shop/web (0eb0) icmp  no policy restricts egress"},
		{"redirected", event("10.0.0.1", "10.0.0.2", judged(bpf.ActionRedirect, 64, allow, open)),
			"12:00:01.123 proxied  default/client:43210 (c11e) -> shop/web:80 (0eb0) tcp  by egress networkpolicy shop/allow-client spec.ingress[0]"},
		{"judged again", event("10.0.0.1", "10.0.0.2", func(e *bpf.Event) {
			judged(allow, open, allow, 64)(e)
			e.Kind = bpf.EventFlowVerdict
		}), "12:00:01.123 rejudged default/client:43210 (c11e) -> shop/web:80 (0eb0) tcp  by ingress networkpolicy shop/allow-client spec.ingress[0]"},
		{"by a rule whose policy has gone", event("10.0.0.1", "10.0.0.2", judged(allow, open, allow, 99)),
			"12:00:01.123 allowed  default/client:43210 (c11e) -> shop/web:80 (0eb0) tcp  by ingress rule 99"},
		{"allowed, and staged policies would deny", event("10.0.0.1", "10.0.0.2", func(e *bpf.Event) {
			judged(allow, open, allow, open)(e)
			staged(allow, open, deny, uint32(bpf.RuleDefaultDeny))(e)
		}), "12:00:01.123 allowed  default/client:43210 (c11e) -> shop/web:80 (0eb0) tcp  no policy restricts egress or ingress  staged: would be denied by ingress builtin/default-deny"},
		{"denied, and staged policies would allow", event("10.0.0.1", "10.0.0.2", func(e *bpf.Event) {
			judged(deny, 65, deny, 65)(e)
			staged(deny, 65, allow, 64)(e)
		}), "12:00:01.123 dropped  default/client:43210 (c11e) -> shop/web:80 (0eb0) tcp  policy-deny by egress ciliumnetworkpolicy shop/no-world spec.egressDeny[0]  staged: would be allowed by ingress networkpolicy shop/allow-client spec.ingress[0]"},
		{"allowed by another rule if staged policies were in force", event("10.0.0.1", "10.0.0.2", func(e *bpf.Event) {
			judged(allow, open, allow, 64)(e)
			staged(allow, 64, allow, open)(e)
		}), "12:00:01.123 allowed  default/client:43210 (c11e) -> shop/web:80 (0eb0) tcp  by ingress networkpolicy shop/allow-client spec.ingress[0]"},
		{"answered", event("10.0.0.1", "10.0.0.2", func(e *bpf.Event) { e.Kind = bpf.EventFlowEstablished }),
			"12:00:01.123 replied  default/client:43210 (c11e) -> shop/web:80 (0eb0) tcp"},
		{"ended", event("10.0.0.1", "10.0.0.2", func(e *bpf.Event) {
			e.Kind, e.Duration = bpf.EventFlowEnd, 1_500_000_000
			e.Forward, e.Reverse = bpf.Traffic{Packets: 1, Bytes: 60}, bpf.Traffic{Packets: 900, Bytes: 1_300_000}
		}), "12:00:01.123 ended    default/client:43210 (c11e) -> shop/web:80 (0eb0) tcp  after 1.5s: 1 packet (60 B) sent, 900 packets (1.2 MiB) received"},
	} {
		t.Run(c.name, func(t *testing.T) {
			if got := Describe(decoder.Flow(&c.event), time.UTC).String(); got != c.want {
				t.Errorf("got  %s\nwant %s", got, c.want)
			}
		})
	}
}

func TestBytesAreSaidInTheirUnit(t *testing.T) {
	for n, want := range map[uint64]string{0: "0 B", 1023: "1023 B", 1024: "1.0 KiB", 1536: "1.5 KiB", 1 << 20: "1.0 MiB", 1 << 40: "1.0 TiB", 1<<64 - 1: "16.0 EiB"} {
		if got := BytesText(n); got != want {
			t.Errorf("%d bytes are %q, want %q", n, got, want)
		}
	}
}
