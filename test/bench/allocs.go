package main

import (
	"context"
	"fmt"
	"net/netip"
	"runtime"
	"strings"

	storev1 "tendril.io/tendril/api/store/v1"
	"tendril.io/tendril/internal/identity"
	"tendril.io/tendril/internal/label"
	"tendril.io/tendril/internal/store"
)

// allocEvents is how many events are counted: new pods, or new nodes.
const allocEvents = 100

// allocations counts what the agent's side of the store allocates for an event, from the decoded answer of the watch to the row in its
// table, the row itself included: every single allocation, by who made it.
func (b *bench) allocations(ctx context.Context, p *plane) error {
	for _, kind := range []struct {
		name   string
		record func(int) store.Record
	}{{"pod", podRecord}, {"node", nodeRecord}} {
		records := make([]store.Record, allocEvents)
		for i := range records {
			records[i] = kind.record(i)
		}
		// What all events share is made for the first ones.
		if err := p.write(ctx, []store.Record{kind.record(allocEvents), kind.record(allocEvents + 1)}); err != nil {
			return err
		}
		before := p.wire.bytes.Load()
		counted, err := profiled(func() error { return p.write(ctx, records) })
		if err != nil {
			return err
		}
		b.results["allocs_per_"+kind.name+"_event"] = float64(counted.own) / allocEvents
		b.results["allocs_per_"+kind.name+"_event_table"] = float64(counted.table) / allocEvents
		b.results["store_wire_bytes_per_"+kind.name+"_event"] = float64(p.wire.bytes.Load()-before) / allocEvents
	}
	return nil
}

// podRecord is what the operator makes of a pod.
func podRecord(i int) store.Record {
	pod := newPod(i)
	hash := identity.Of(storeCluster, pod.Namespace, pod.Spec.ServiceAccountName, label.SetOf(pod.Labels))
	return store.Record{Key: store.PodKey("worker-1", pod.Namespace, pod.Name).String(), Value: &storev1.Pod{
		Uid: string(pod.UID), Labels: hash[:], NamedPorts: []*storev1.NamedPort{{Name: "http", Port: 8080, Protocol: 6}},
	}}
}

// nodeRecord is what an agent says of its node, with two families.
func nodeRecord(i int) store.Record {
	name := fmt.Sprintf("worker-%04d", i)
	four := func(a, b byte) []byte { return netip.AddrFrom4([4]byte{a, b, byte(i >> 8), byte(i)}).AsSlice() }
	six := func(a byte) []byte {
		return netip.AddrFrom16([16]byte{0xfd, a, 14: byte(i >> 8), 15: byte(i)}).AsSlice()
	}
	return store.Record{Key: store.NodeKey(name).String(), Value: &storev1.Node{
		Addresses: [][]byte{four(192, 168), six(1)}, Tunnel: four(192, 168), BootId: fmt.Sprintf("6f1c1f0e-7a3c-4b52-9e55-%012d", i), MaxVersion: 1,
		PodCidrs:        []string{fmt.Sprintf("10.%d.%d.0/24", 1+i>>8, byte(i)), fmt.Sprintf("fd44:%x::/64", i+1)},
		RouterAddresses: [][]byte{four(10, 1), six(2)}, HealthAddresses: [][]byte{four(10, 2), six(3)},
	}}
}

// allocated are allocations of the agent's side of the store, by who made them.
type allocated struct {
	own   int64
	table int64 // by the tables' database
}

// profiled counts what is allocated while f runs. The profile has every allocation, with where it was made.
func profiled(f func() error) (sum allocated, err error) {
	rate := runtime.MemProfileRate
	runtime.MemProfileRate = 1
	defer func() { runtime.MemProfileRate = rate }()
	before := allocationsNow()
	err = f()
	for stack, count := range allocationsNow() {
		count -= before[stack]
		own, table := place(stack[:])
		switch {
		case own && table:
			sum.table += count
		case own:
			sum.own += count
		}
	}
	return sum, err
}

// allocationsNow is the profile: numbers of allocations by stack.
func allocationsNow() map[[32]uintptr]int64 {
	runtime.GC() // the profile is that of the end of the collection before the last one
	runtime.GC()
	var records []runtime.MemProfileRecord
	for n, ok := runtime.MemProfile(nil, true); !ok; {
		records = make([]runtime.MemProfileRecord, n+50)
		n, ok = runtime.MemProfile(records, true)
		records = records[:min(n, len(records))]
	}
	counts := make(map[[32]uintptr]int64, len(records))
	for _, record := range records {
		counts[record.Stack0] += record.AllocObjects
	}
	return counts
}

// place tells whether an allocation was made on the way of an event into the tables, and whether by their database.
func place(stack []uintptr) (own, table bool) {
	end := len(stack)
	for end > 0 && stack[end-1] == 0 {
		end--
	}
	frames := runtime.CallersFrames(stack[:end])
	for {
		frame, more := frames.Next()
		own = own || strings.HasSuffix(frame.Function, "internal/store.(*feed).response")
		table = table || strings.HasPrefix(frame.Function, "github.com/cilium/statedb")
		if !more {
			return own, table
		}
	}
}
