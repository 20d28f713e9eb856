package datapath

import (
	"errors"
	"fmt"
	"time"

	"github.com/cilium/ebpf"
	"golang.org/x/sys/unix"

	"tendril.io/tendril/bpf"
)

// Flushing ends connections on request. Deleting rows from here would lose a packet's count, leave a half-open place
// taken and report no end; the sweep program does all of that, so flushing only chooses keys and hands them over.

// FlushFlows ends the connections that match (nil: all) and returns how many they were. Their next packets are judged
// as new: a connection that policy no longer allows ends, any other goes on as a new entry, though a connection through
// a service may then reach another backend, and one that is masqueraded another port.
func (d *Datapath) FlushFlows(match func(*FlowEntry) bool) (int, error) {
	keys, err := d.flowKeys(func(entry *FlowEntry) bool { return match == nil || match(entry) })
	if err != nil {
		return 0, fmt.Errorf("flush connections: %w", err)
	}
	ended, err := d.endFlows(keys)
	if err != nil {
		return ended, fmt.Errorf("flush connections: %w", err)
	}
	return ended, nil
}

// FlushMappings removes the source translations that match (nil: all), with the connections that they translate, and
// returns how many translations that were.
func (d *Datapath) FlushMappings(match func(Mapping) bool) (int, error) {
	flushed, err := d.flushMappings(match)
	if err != nil {
		return flushed, fmt.Errorf("flush NAT mappings: %w", err)
	}
	return flushed, nil
}

func (d *Datapath) flushMappings(match func(Mapping) bool) (int, error) {
	chosen, err := d.chooseMappings(match)
	if err != nil || len(chosen) == 0 {
		return 0, err
	}
	keys, err := d.flowKeys(func(entry *FlowEntry) bool {
		key, translated := mappingKey(&entry.Key, &entry.Flow)
		_, wanted := chosen[key]
		if !translated || !wanted {
			return false
		}
		delete(chosen, key) // the sweep program removes it with its connection
		return true
	})
	if err != nil {
		return 0, err
	}
	ended, err := d.endFlows(keys)
	if err != nil {
		return ended, err
	}
	// A translation outlives its connection only where a program or an agent broke off in between.
	for key, age := range chosen {
		if age < settledMapping {
			continue
		}
		switch err := d.set.maps["nat"].Delete(&key); {
		case err == nil:
			ended++
		case !errors.Is(err, ebpf.ErrKeyNotExist):
			return ended, err
		}
	}
	return ended, nil
}

// settledMapping is the age from which a translation without a connection is a leftover: programs write the translation
// first, and its connection microseconds later.
const settledMapping = time.Second

// chooseMappings lists the translations that match, with their ages.
func (d *Datapath) chooseMappings(match func(Mapping) bool) (map[bpf.NATKey]time.Duration, error) {
	chosen := map[bpf.NATKey]time.Duration{}
	now := monotonic()
	err := walk(d.set.maps["nat"], func(keys []bpf.NATKey, values []bpf.NATMapping) error {
		for i := range keys {
			mapping := mappingOf(&keys[i], &values[i], now)
			if match == nil || match(mapping) {
				chosen[keys[i]] = mapping.Age
			}
		}
		return nil
	})
	return chosen, err
}

// mappingKey is the key of the translation that a connection's packets go through, as flow_forget_mapping in
// bpf/lib/conntrack.h makes it; false: they are not translated.
func mappingKey(key *bpf.FlowKey, flow *bpf.Flow) (bpf.NATKey, bool) {
	if flow.NATAddress == (bpf.Address{}) || flow.Flags&bpf.FlowSelf != 0 {
		return bpf.NATKey{}, false
	}
	out := bpf.NATKey{
		Remote: key.Low, RemotePort: key.LowPort, Node: flow.NATAddress, NodePort: flow.NATPort, Protocol: key.Protocol,
	}
	if flow.Flags&bpf.FlowLowIsSource != 0 {
		out.Remote, out.RemotePort = key.High, key.HighPort
	}
	if key.Protocol == unix.IPPROTO_ICMP || key.Protocol == unix.IPPROTO_ICMPV6 {
		out.RemotePort = 0 // echo has one number, the node's
	}
	return out, true
}

// flowKeys lists the keys of the connections that match.
func (d *Datapath) flowKeys(match func(*FlowEntry) bool) ([]bpf.FlowKey, error) {
	var keys []bpf.FlowKey
	for entry, err := range d.Flows() {
		if err != nil {
			return nil, err
		}
		if match(entry) {
			keys = append(keys, entry.Key)
		}
	}
	return keys, nil
}

// endFlows has connections removed, expired or not, and counts those that were still there. The lock is given back
// between batches, so that publications do not wait for a long list.
func (d *Datapath) endFlows(keys []bpf.FlowKey) (int, error) {
	ended := 0
	for len(keys) > 0 {
		due := bpf.Sweep{Force: 1}
		n := copy(due.Keys[:], keys)
		due.Count, keys = uint32(n), keys[n:]
		if err := d.runSweep(&due); err != nil {
			return ended, err
		}
		ended += int(due.Removed)
	}
	return ended, nil
}
