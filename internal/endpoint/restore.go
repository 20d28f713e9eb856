package endpoint

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"os"
	"slices"
	"strings"

	"tendril.io/tendril/bpf"
	"tendril.io/tendril/internal/cni"
	"tendril.io/tendril/internal/ipam"
	"tendril.io/tendril/internal/netlink"
)

// Restore puts back what the journal says, once, before the first command: addresses that are used or rest, and
// endpoints whose device is still there, with their traffic left alone. Endpoints that were half made, or lost their
// device, are removed. Then it does the deletions that were queued while the agent was away; call it when the agent
// listens (see cni.Queue). Commands are served even if single endpoints could not be restored; the error names them.
func (m *Manager) Restore(ctx context.Context, queue cni.Queue) error {
	was := m.journal.snapshot()
	m.mutex.Lock()
	m.last = was.generation
	m.mutex.Unlock()
	failed := []error{m.restoreAddresses(was)}
	byID := func(a, b *record) int { return cmp.Compare(a.ID, b.ID) }
	for _, r := range slices.SortedFunc(maps.Values(was.records), byID) {
		e := &endpoint{record: *r, journaled: true, mayBeKnown: true}
		if err := m.restore(e); err != nil {
			failed = append(failed, fmt.Errorf("restore endpoint %d of %s: %w", e.ID, e.owner(), err))
		}
	}
	m.mutex.Lock()
	m.restored = true
	m.mutex.Unlock()
	return errors.Join(append(failed, m.Drain(ctx, queue))...)
}

// Drain does the deletions that were queued while the agent was away. What could not be done stays in the queue; call
// it again later.
func (m *Manager) Drain(ctx context.Context, queue cni.Queue) error {
	return queue.Drain(func(request *cni.Request) error { return m.Del(ctx, request) })
}

// restoreAddresses takes every address that the journal names out of the pool before any is given out, and withdraws
// once more those whose release the store may not know.
func (m *Manager) restoreAddresses(was contents) error {
	var failed []error
	var released []netip.Addr
	m.mutex.Lock()
	for _, r := range was.records {
		e := endpoint{record: *r}
		m.claim(&e)
		if r.Chained {
			failed = append(failed, m.book.Claim(r.Addrs, e.owner(), r.Created))
			continue
		}
		for _, addr := range r.Addrs {
			used := ipam.Address{Addr: addr, Owner: e.owner(), State: ipam.Used, Since: r.Created}
			failed = append(failed, m.book.Restore(used))
		}
	}
	for _, address := range was.addresses {
		if !m.book.Contains(address.Addr) { // of a pod CIDR that the node no longer has, or another plugin's
			if address.State == ipam.Released {
				released = append(released, address.Addr)
			}
			continue
		}
		failed = append(failed, m.book.Restore(address))
		if address.State == ipam.Released {
			released = append(released, address.Addr)
		}
	}
	m.mutex.Unlock()
	_, err := m.withdraw(released) // what it could not tell of, the next start withdraws
	return errors.Join(append(failed, err)...)
}

// restore brings one endpoint back, or removes it if it cannot live on.
func (m *Manager) restore(e *endpoint) error {
	m.keep(e)
	state, err := m.inspect(e, nil)
	if err != nil {
		return err
	}
	e.ifindex = state.IfIndex
	if !e.Complete || state.IfIndex == 0 {
		m.config.Log.Info("endpoint did not survive; removing it", "endpoint", e.owner(), "complete", e.Complete,
			"device", e.device(), "device_exists", state.IfIndex != 0)
		return m.dismantle(e)
	}
	renumbered, err := m.renumber(e)
	if err != nil {
		return err
	}
	adopted, err := m.adopt(e, state.Programs)
	if err != nil {
		return err
	}
	if renumbered || !adopted {
		if err := m.attach(e); err != nil {
			return fmt.Errorf("attach stubs: %w", err)
		}
	}
	if err := m.publish(e); err != nil {
		return fmt.Errorf("publish addresses: %w", err)
	}
	if err := m.insert(e); err != nil {
		return err
	}
	if state.Up || e.Chained { // who made it says whether it is up
		return nil
	}
	return m.links.ConnectPair(e.ifindex, e.podMAC(), e.Addrs)
}

// inspect reads the endpoint's devices. A device that has the name of another plugin's by chance is none of the endpoint's.
func (m *Manager) inspect(e *endpoint, netns *os.File) (netlink.PairState, error) {
	if e.Chained && e.Adopted == nil {
		return netlink.PairState{}, nil
	}
	state, err := m.links.InspectPair(e.device(), netns, e.Attachment.IfName)
	if err != nil || e.Adopted == nil || state.IfIndex == e.Adopted.IfIndex && state.HostMAC == e.Adopted.HostMAC {
		return state, err
	}
	return netlink.PairState{}, nil
}

// adopt says whether the device carries both stubs as they would be made now.
func (m *Manager) adopt(e *endpoint, programs [2]uint32) (bool, error) {
	for i, entry := range []bpf.Entry{bpf.EntryFromPod, bpf.EntryToPod} {
		if programs[i] == 0 {
			return false, nil
		}
		same, err := m.config.AdoptStub(programs[i], e.ID, e.Generation, entry)
		if err != nil || !same {
			return false, err
		}
	}
	return true, nil
}

// renumber asks for the endpoint's number again. It is another one only if the pinned assignments were lost; stubs that
// carry the old one must then be replaced, and are told apart by a new generation.
func (m *Manager) renumber(e *endpoint) (changed bool, err error) {
	before := e.ID
	if err := m.assign(e); err != nil {
		return false, fmt.Errorf("assign number: %w", err)
	}
	if e.ID == before {
		return false, nil
	}
	m.mutex.Lock()
	m.last++
	e.Generation = m.last
	m.mutex.Unlock()
	return true, m.record(e)
}

// Check fails if an attachment is not as Add left it, and names everything that differs.
func (m *Manager) Check(ctx context.Context, request *cni.Request) error {
	if err := m.ready(); err != nil {
		return err
	}
	unlock, err := m.locks.lock(ctx, request.Attachment())
	if err != nil {
		return err
	}
	defer unlock()
	e := m.lookup(request.Attachment())
	if e == nil || !e.Complete {
		return cni.Errorf(cni.CodeUnknownContainer, "container is not attached", "container %s, device %s: add it first",
			request.ContainerID, request.IfName)
	}
	state, err := m.inspect(e, request.Netns)
	if err != nil {
		return err
	}
	ours, err := m.adopt(e, state.Programs)
	if err != nil {
		return err
	}
	var wrong []string
	note := func(bad bool, format string, args ...any) {
		if bad {
			wrong = append(wrong, fmt.Sprintf(format, args...))
		}
	}
	note(state.IfIndex != e.ifindex, "device %s has index %d, not %d", e.device(), state.IfIndex, e.ifindex)
	note(!state.Up, "device %s is down", e.device())
	note(!ours, "device %s lacks a program, or carries another", e.device())
	note(!state.Joined, "device %s in the pod is not the other end of %s", e.Attachment.IfName, e.device())
	note(!state.PodUp, "device %s in the pod is missing or down", e.Attachment.IfName)
	note(state.PodMAC != e.podMAC(), "device %s in the pod has MAC %s, not %s", e.Attachment.IfName,
		macText(state.PodMAC), macText(e.podMAC()))
	for _, addr := range e.Addrs {
		note(!slices.Contains(state.PodAddrs, addr), "device %s in the pod lacks address %s", e.Attachment.IfName, addr)
	}
	if len(wrong) > 0 {
		return cni.Errorf(cni.CodeInternal, "container's network was changed", "%s: delete and add the container",
			strings.Join(wrong, "; "))
	}
	return nil
}
