package endpoint

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"time"

	"tendril.io/tendril/internal/cni"
	"tendril.io/tendril/internal/ipam"
)

// Del detaches a container. It succeeds if there is nothing to detach; after an error it may be asked again.
func (m *Manager) Del(ctx context.Context, request *cni.Request) error {
	return m.remove(ctx, request.Attachment())
}

// remove is DEL of one attachment, for whoever asks: the runtime, its garbage collection, the queue.
func (m *Manager) remove(ctx context.Context, a cni.Attachment) error {
	if err := m.ready(); err != nil {
		return err
	}
	unlock, err := m.locks.lock(ctx, a)
	if err != nil {
		return err
	}
	defer unlock()
	e := m.lookup(a)
	if e == nil {
		return nil
	}
	if err := m.dismantle(e); err != nil {
		return fmt.Errorf("remove endpoint %d of %s: %w", e.ID, e.owner(), err)
	}
	m.config.Log.Info("endpoint removed", "endpoint", e.owner(), "id", e.ID, "addresses", e.Addrs)
	return nil
}

// dismantle goes from what others see to what only we know. Until the journal has the last word, a restart finds the
// endpoint and goes on. A failure leaves an endpoint that is known but not complete; dismantling it again does only what
// is left to do, because its number and addresses may be others' by then.
func (m *Manager) dismantle(e *endpoint) error {
	e.Complete = false
	if err := m.delete(e); err != nil {
		return err
	}
	if err := m.unlink(e); err != nil {
		return err
	}
	if err := m.release(e); err != nil {
		return err
	}
	e.mayBeKnown = true
	if err := m.free(e); err != nil {
		return err
	}
	m.mutex.Lock()
	defer m.mutex.Unlock()
	delete(m.endpoints, e.Attachment)
	return nil
}

// free gives the endpoint's addresses back, once, and tells the cluster of those that it may have heard of; nobody
// else's wait for that.
func (m *Manager) free(e *endpoint) (err error) {
	if !e.freed {
		if err := m.drop(e); err != nil {
			return err // the addresses stay taken: a restart would find them so
		}
		if e.freed = true; e.mayBeKnown {
			e.unsaid = e.Addrs
		}
	}
	e.unsaid, err = m.withdraw(e.unsaid)
	return err
}

// drop takes the endpoint out of the journal and its addresses out of use: at rest if others may know them.
func (m *Manager) drop(e *endpoint) error {
	dropped, now := entry{Drop: &e.Attachment}, time.Now()
	if e.mayBeKnown {
		for _, addr := range e.Addrs {
			dropped.Addresses = append(dropped.Addresses,
				ipam.Address{Addr: addr, Owner: e.owner(), State: ipam.Released, Since: now})
		}
	}
	if e.journaled {
		if err := m.journal.append(dropped); err != nil {
			return err
		}
	}
	m.mutex.Lock()
	defer m.mutex.Unlock()
	delete(m.claims, e.Attachment)
	for _, addr := range e.Addrs {
		if e.mayBeKnown {
			m.book.Release(addr, now)
		} else {
			m.book.Forget(addr)
		}
	}
	return nil
}

// withdraw tells the cluster, and starts the addresses' rest when it knows. It returns those that it could not tell of.
func (m *Manager) withdraw(addrs []netip.Addr) (unsaid []netip.Addr, err error) {
	var failed []error
	for _, addr := range addrs {
		if err := m.config.Publisher.Withdraw(addr, func(at time.Time) { m.rest(addr, at) }); err != nil {
			unsaid, failed = append(unsaid, addr), append(failed, err)
		}
	}
	return unsaid, errors.Join(failed...)
}

// rest notes that the store knows of a release. If the journal cannot be written the address is withdrawn again at the
// next start.
func (m *Manager) rest(addr netip.Addr, at time.Time) {
	m.mutex.Lock()
	m.book.Committed(addr, at)
	address, taken := m.book.Lookup(addr)
	m.mutex.Unlock()
	if !taken { // another plugin's: nobody waits for its rest, but the journal need not name it any longer
		address = ipam.Address{Addr: addr, State: ipam.Cooling, Since: at}
	}
	if address.State != ipam.Cooling {
		return
	}
	if err := m.journal.append(entry{Addresses: []ipam.Address{address}}); err != nil {
		m.config.Log.Warn("note that an address rests", "address", addr, "error", err)
	}
}

// GC detaches everything of the request's network that the runtime does not know.
func (m *Manager) GC(ctx context.Context, request *cni.Request) error {
	if err := m.ready(); err != nil {
		return err
	}
	valid := make(map[cni.Attachment]bool)
	for _, a := range request.Config.ValidAttachments {
		valid[a] = true
	}
	var failed []error
	for _, a := range m.attachments(request.Config.Name) {
		if !valid[a] {
			failed = append(failed, m.remove(ctx, a))
		}
	}
	return errors.Join(failed...)
}

// attachments lists those of a network.
func (m *Manager) attachments(network string) []cni.Attachment {
	m.mutex.Lock()
	defer m.mutex.Unlock()
	var list []cni.Attachment
	for a, e := range m.endpoints {
		if e.Network == network {
			list = append(list, a)
		}
	}
	return list
}
