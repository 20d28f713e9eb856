package flow

import (
	"testing"

	"github.com/google/go-cmp/cmp"
	"google.golang.org/protobuf/testing/protocmp"
	"pgregory.net/rapid"

	agentv1 "tendril.io/tendril/api/agent/v1"
	"tendril.io/tendril/bpf"
)

// Whatever is counted, the books balance, and nothing that is unknown counts as forwarded.
func TestTheLedgerBalances(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		var c Counters
		var in uint64
		for range rapid.IntRange(0, 50).Draw(t, "counts") {
			reason := rapid.Uint32Range(0, uint32(bpf.ReasonCount)-1).Draw(t, "reason")
			hook := rapid.SampledFrom(bpf.Hooks()).Draw(t, "hook")
			packets := rapid.Uint64Range(0, 1000).Draw(t, "packets")
			values := []bpf.Counter{{Packets: packets, Bytes: 60 * packets}, {Packets: 1, Bytes: 60}}
			if err := c.AddCPUs(reason*uint32(bpf.HookCount)+uint32(hook), values); err != nil {
				t.Fatal(err)
			}
			in += packets + 1
		}
		var sum uint64
		for _, hook := range bpf.Hooks() {
			l := c.Ledger(hook)
			out := l.Forwarded.Packets + l.ToStack.Packets + l.Proxied.Packets + l.Answered.Packets + l.Dropped.Packets
			if l.In.Packets != out || l.In.Bytes != 60*out {
				t.Fatalf("%v: %d packets in, %d accounted for", hook, l.In.Packets, out)
			}
			sum += l.In.Packets
		}
		if sum != in {
			t.Fatalf("%d packets in all hooks, want %d", sum, in)
		}
	})
}

func TestCountersAreToldByReasonAndHook(t *testing.T) {
	var c Counters
	c[bpf.ReasonForwarded][bpf.HookFromPod] = bpf.Counter{Packets: 10, Bytes: 600}
	c[bpf.DropPolicyDeny][bpf.HookNetIn] = bpf.Counter{Packets: 2, Bytes: 120}
	c[63][bpf.HookNetIn] = bpf.Counter{Packets: 1, Bytes: 1}
	want := []*agentv1.CountersResponse_Counter{
		{Reason: "forwarded", Hook: "from-pod", Packets: 10, Bytes: 600, About: "redirected to a device by the datapath"},
		{Reason: "policy-deny", Hook: "net-in", Packets: 2, Bytes: 120, Drop: true, About: "a deny rule matched"},
		{Reason: "reason-63", Hook: "net-in", Packets: 1, Bytes: 1, Drop: true},
	}
	if diff := cmp.Diff(want, c.Rows(), protocmp.Transform()); diff != "" {
		t.Errorf("rows (-want +got):\n%s", diff)
	}
}

func TestACounterThatDoesNotExistIsRefused(t *testing.T) {
	var c Counters
	if err := c.AddCPUs(uint32(bpf.ReasonCount)*uint32(bpf.HookCount), nil); err == nil {
		t.Error("an index behind the last was taken")
	}
}
