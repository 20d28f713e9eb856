package flow

import (
	"fmt"

	agentv1 "tendril.io/tendril/api/agent/v1"
	"tendril.io/tendril/bpf"
)

// Counters is the number of packets and bytes by reason and hook, summed over CPUs: what the `counters` map holds.
type Counters [bpf.ReasonCount][bpf.HookCount]bpf.Counter

// AddCPUs adds the values that the CPUs have for one index of the map, which is reason * HOOK_COUNT + hook.
func (c *Counters) AddCPUs(index uint32, values []bpf.Counter) error {
	if index >= uint32(bpf.ReasonCount)*uint32(bpf.HookCount) {
		return fmt.Errorf("counter %d: there are %d reasons times %d hooks", index, bpf.ReasonCount, bpf.HookCount)
	}
	sum := &c[index/uint32(bpf.HookCount)][index%uint32(bpf.HookCount)]
	for _, v := range values {
		sum.Packets += v.Packets
		sum.Bytes += v.Bytes
	}
	return nil
}

// Ledger is the balance of a hook: what came in is what was forwarded, handed on, answered or dropped.
type Ledger struct {
	In, Forwarded, ToStack, Proxied, Answered, Dropped bpf.Counter
}

// Ledger draws up the balance of one hook.
func (c *Counters) Ledger(hook bpf.Hook) Ledger {
	var l Ledger
	for reason := range c {
		count := c[reason][hook]
		add(&l.In, count)
		switch bpf.Reason(reason) {
		case bpf.ReasonForwarded:
			add(&l.Forwarded, count)
		case bpf.ReasonToStack:
			add(&l.ToStack, count)
		case bpf.ReasonProxy:
			add(&l.Proxied, count)
		case bpf.ReasonAnswered:
			add(&l.Answered, count)
		default:
			add(&l.Dropped, count) // a reason that nobody has named is no reason to forward
		}
	}
	return l
}

// add adds one count to another.
func add(sum *bpf.Counter, count bpf.Counter) {
	sum.Packets += count.Packets
	sum.Bytes += count.Bytes
}

// Rows lists the counts that are not zero, by reason and hook.
func (c *Counters) Rows() []*agentv1.CountersResponse_Counter {
	var rows []*agentv1.CountersResponse_Counter
	for reason := range c {
		for hook, count := range c[reason] {
			if count.Packets == 0 {
				continue
			}
			r := bpf.Reason(reason)
			rows = append(rows, &agentv1.CountersResponse_Counter{
				Reason: reasonName(r), Hook: bpf.Hook(hook).String(), Packets: count.Packets, Bytes: count.Bytes,
				Drop: r > bpf.ReasonAnswered, About: r.About(),
			})
		}
	}
	return rows
}
