package endpoint

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"slices"
	"time"

	"tendril.io/tendril/bpf"
	"tendril.io/tendril/internal/cni"
	"tendril.io/tendril/internal/netlink"
	"tendril.io/tendril/internal/policy"
	"tendril.io/tendril/internal/table"
)

const (
	// labelPatience is how long ADD waits for a pod's labels before it lets the pod start as reserved:init.
	labelPatience = 2 * time.Second
	// judgePatience is how long ADD waits for any verdict; longer means that nobody judges.
	judgePatience = 10 * time.Second
)

// Add attaches a container. Asked again for an attachment that is complete, it gives the same result if the namespace
// and the pod are the same, otherwise an error.
func (m *Manager) Add(ctx context.Context, request *cni.Request) (*cni.Result, error) {
	previous, err := request.Previous()
	if err == nil {
		err = m.ready()
	}
	if err != nil {
		return nil, err
	}
	unlock, err := m.locks.lock(ctx, request.Attachment())
	if err != nil {
		return nil, err
	}
	defer unlock()
	switch existing := m.lookup(request.Attachment()); {
	case existing != nil && existing.Complete:
		return m.repeated(existing, request, previous)
	case existing != nil: // an earlier ADD failed, and so did undoing it
		if err := m.dismantle(existing); err != nil {
			return nil, fmt.Errorf("remove what an earlier attempt left: %w", err)
		}
	}
	e, err := m.choose(request, previous)
	if err != nil {
		return nil, err
	}
	if err := m.build(ctx, e, request.Netns); err != nil {
		m.config.Log.Warn("add endpoint; undone", "endpoint", e.owner(), "container", request.ContainerID, "error", err)
		return nil, err
	}
	if notes := e.notes(); len(notes) > 0 {
		m.config.Log.Warn("not all that the pod asks for holds", "endpoint", e.owner(), "notes", notes)
	}
	m.config.Log.Info("endpoint added", "endpoint", e.owner(), "id", e.ID, "addresses", e.Addrs)
	return m.result(e, previous), nil
}

// result is what the runtime is told: of a chained pod what the plugin before told it.
func (m *Manager) result(e *endpoint, previous *cni.Previous) *cni.Result {
	if previous != nil {
		return &cni.Result{Previous: previous.Raw}
	}
	return e.result(m.routers())
}

// repeated answers an ADD for what is there already.
func (m *Manager) repeated(e *endpoint, request *cni.Request, previous *cni.Previous) (*cni.Result, error) {
	same := e.NetnsPath == request.NetnsPath && e.Namespace == request.Args.Namespace && e.Pod == request.Args.Pod &&
		e.Network == request.Config.Name && e.Chained == (previous != nil) && (previous == nil || slices.Equal(e.Addrs, previous.Addrs))
	if !same {
		return nil, cni.Errorf(cni.CodeInvalidEnvironment, "container is attached already",
			"container %s, device %s belongs to %s in %s: delete it first",
			request.ContainerID, request.IfName, e.owner(), e.NetnsPath)
	}
	return m.result(e, previous), nil
}

// choose is step 1: addresses and a generation.
func (m *Manager) choose(request *cni.Request, previous *cni.Previous) (*endpoint, error) {
	if err := m.checkHostPorts(request); err != nil {
		return nil, err
	}
	now := time.Now()
	m.mutex.Lock()
	defer m.mutex.Unlock()
	if err := m.claimable(request); err != nil {
		return nil, err
	}
	addrs, err := m.addresses(request, previous, now)
	if err != nil {
		return nil, err
	}
	m.last++
	e := &endpoint{record: record{
		Attachment: request.Attachment(), Network: request.Config.Name, Generation: m.last,
		Namespace: request.Args.Namespace, Pod: request.Args.Pod, PodUID: request.Args.UID,
		Addrs: addrs, NetnsPath: request.NetnsPath, Created: now,
		DeviceMTU: m.config.MTUs.Device, RouteMTU: m.config.MTUs.Route,
		Labels: labelSet(m.config.Cluster, request.Args), Ports: request.Args.NamedPorts, HostPorts: request.Args.HostPorts,
		Bandwidth: request.Args.Bandwidth, Chained: previous != nil,
	}}
	e.mayBeKnown = e.Chained // whoever chose its addresses may have given them to another just before
	m.claim(e)
	return e, nil
}

// addresses takes an address a family out of the node's pools, or notes those that the plugin before has given. The caller holds mutex.
func (m *Manager) addresses(request *cni.Request, previous *cni.Previous, now time.Time) ([]netip.Addr, error) {
	if previous == nil {
		addrs, err := m.book.Allocate(owner(request), now)
		if err != nil {
			return nil, cni.Errorf(cni.CodeTryAgainLater, "no address for the pod", "%v", err)
		}
		return addrs, nil
	}
	if err := m.book.Claim(previous.Addrs, owner(request), now); err != nil {
		return nil, cni.Errorf(cni.CodeInvalidConfig, "prevResult has an address that the pod cannot have", "%v", err)
	}
	return previous.Addrs, nil
}

// claimed are the host ports of an endpoint, from choose until its addresses are free again.
type claimed struct {
	owner string
	ports []cni.HostPort
}

// checkHostPorts fails if a host port is at an address that is not the node's: a pod must not be able to take what is
// sent to somebody else, such as a service.
func (m *Manager) checkHostPorts(request *cni.Request) error {
	for _, port := range request.Args.HostPorts {
		if port.Addr.IsValid() && !m.config.IsNodeAddress(port.Addr) {
			return cni.Errorf(cni.CodeInvalidEnvironment, "host port at an address that is not this node's",
				"pod %s, hostPort %s: use an address of node %s, or none for all", owner(request), port, m.config.Node)
		}
	}
	return nil
}

// claimable fails if a host port is another pod's. The caller holds mutex.
func (m *Manager) claimable(request *cni.Request) error {
	for _, port := range request.Args.HostPorts {
		for _, other := range m.claims {
			if slices.ContainsFunc(other.ports, port.Overlaps) {
				return cni.Errorf(cni.CodeTryAgainLater, "host port is taken",
					"hostPort %s of pod %s is used by pod %s: give one of them another port or node", port, owner(request), other.owner)
			}
		}
	}
	return nil
}

// claim notes an endpoint's host ports. The caller holds mutex.
func (m *Manager) claim(e *endpoint) {
	if len(e.HostPorts) > 0 {
		m.claims[e.Attachment] = claimed{e.owner(), e.HostPorts}
	}
}

// step is a part of adding an endpoint, and what takes it back.
type step struct {
	name string
	do   func() error
	undo func() error
}

// build takes an endpoint through its steps. If one fails, it and those before it are undone, last first. If undoing
// fails, too, the endpoint stays known as incomplete, so that DEL, the next ADD or the next start finish the work.
func (m *Manager) build(ctx context.Context, e *endpoint, netns *os.File) error {
	steps := []step{
		{"keep addresses", nothing, func() error { return m.free(e) }},
		{"write journal", func() error { return m.record(e) }, nothing},
		{"assign number", func() error { return m.assign(e) }, func() error { return m.release(e) }},
		{"create devices", func() error { return m.create(e, netns) }, func() error { return m.unlink(e) }},
		{"attach stubs", func() error { return m.attach(e) }, nothing},
		{"publish addresses", func() error { return m.publish(e) }, nothing},
		{"insert row", func() error { return m.insert(e) }, func() error { return m.delete(e) }},
		{"await verdict", func() error { return m.awaitVerdict(ctx, e) }, nothing},
		{"connect", func() error { return m.connect(e) }, nothing},
		{"complete journal", func() error { return m.complete(e) }, nothing},
	}
	for i, s := range steps {
		err := s.do()
		if err == nil {
			continue
		}
		err = fmt.Errorf("%s: %w", s.name, err)
		for _, done := range slices.Backward(steps[:i+1]) {
			if failed := done.undo(); failed != nil {
				m.keep(e)
				return errors.Join(err, fmt.Errorf("undo %s: %w", done.name, failed))
			}
		}
		return err
	}
	return nil
}

// nothing takes back a step that needs no taking back: a later step's undoing does it, or the device's end.
func nothing() error { return nil }

// record is step 2: from here on a restart finds what to clean up.
func (m *Manager) record(e *endpoint) error {
	written := e.record
	if err := m.journal.append(entry{Put: &written}); err != nil {
		return err
	}
	e.journaled = true
	return nil
}

// assign asks for the endpoint's number: the same one for the same attachment as long as nobody released it.
func (m *Manager) assign(e *endpoint) error {
	id, err := m.config.Numbers.Assign(policy.KindEndpoint, numberDigest(e.Attachment), 1)
	if err != nil {
		return err // a restored endpoint keeps its old number: programs carry it
	}
	e.ID = id
	return nil
}

// release gives the number back. It may be another endpoint's from here on: see delete.
func (m *Manager) release(e *endpoint) error {
	m.config.Numbers.Release(policy.KindEndpoint, numberDigest(e.Attachment))
	return nil
}

// create is step 3. The device of a chained pod is there, and up: from here until stubs are on it the pod is as open as the plugin before
// has left it.
func (m *Manager) create(e *endpoint, netns *os.File) (err error) {
	if e.Chained {
		err = m.find(e, netns)
	} else {
		e.ifindex, err = m.links.CreatePair(netlink.Pair{
			Device: e.device(), IfName: e.Attachment.IfName, Netns: netns, HostMAC: e.hostMAC(), PodMAC: e.podMAC(),
			Addrs: e.Addrs, Routers: m.routers(), DeviceMTU: e.DeviceMTU, RouteMTU: e.RouteMTU,
		})
	}
	if err != nil {
		return err
	}
	e.NetnsCookie, err = m.links.NetnsCookie(netns)
	return err
}

// find takes over the device that another plugin made. It is in the journal before anything is on it: a restart must find it.
func (m *Manager) find(e *endpoint, netns *os.File) error {
	found, err := m.links.FindPair(netns, e.Attachment.IfName)
	if err != nil {
		return cni.Errorf(cni.CodeUnsupportedField, "the device of the plugin before cannot be taken over", "%v", err)
	}
	e.Adopted, e.ifindex, e.DeviceMTU, e.RouteMTU = &found, found.IfIndex, found.MTU, found.MTU
	return m.record(e)
}

// connect is step 8.
func (m *Manager) connect(e *endpoint) error {
	if e.Adopted != nil {
		return m.links.NotePod(*e.Adopted)
	}
	return m.links.ConnectPair(e.ifindex, e.podMAC(), e.Addrs)
}

// unlink removes the pod's devices. That of a chained pod is its maker's to remove: it is closed and left.
func (m *Manager) unlink(e *endpoint) error {
	switch {
	case e.Adopted != nil:
		return m.links.ReleasePair(*e.Adopted)
	case e.Chained:
		return nil
	}
	return m.links.RemovePair(e.device())
}

// attach is step 4: loads both stubs and puts them on the host's end. What the pod sends is what that end receives.
func (m *Manager) attach(e *endpoint) error {
	from, err := m.config.LoadStub(e.ID, e.Generation, bpf.EntryFromPod)
	if err != nil {
		return err
	}
	defer from.Close() // the device holds what is attached to it
	to, err := m.config.LoadStub(e.ID, e.Generation, bpf.EntryToPod)
	if err != nil {
		return err
	}
	defer to.Close()
	return m.links.AttachClassifiers(e.ifindex,
		netlink.Classifier{Direction: netlink.Ingress, FD: from.FD(), Name: programFromPod},
		netlink.Classifier{Direction: netlink.Egress, FD: to.FD(), Name: programToPod})
}

// Names of the programs on a pod's device, as tc shows them.
const (
	programFromPod = "tendril_from_pod"
	programToPod   = "tendril_to_pod"
)

// ProgramNames are the names of the programs on a pod's device, by which one is found that another plugin has made.
func ProgramNames() []string { return []string{programFromPod, programToPod} }

// publish is step 5. Once the first address may have been published all of them count as known to others.
func (m *Manager) publish(e *endpoint) error {
	e.mayBeKnown = true
	for _, addr := range e.Addrs {
		if err := m.config.Publisher.Publish(e.published(m.config.Node, addr)); err != nil {
			return err
		}
	}
	return nil
}

// insert is step 6.
func (m *Manager) insert(e *endpoint) error {
	endpoints := m.config.Tables.Endpoints
	txn := m.config.Tables.DB.WriteTxn(endpoints)
	defer txn.Abort()
	if _, _, err := endpoints.Insert(txn, e.row()); err != nil {
		return err
	}
	txn.Commit()
	return nil
}

// delete removes the endpoint's row, and not that of another one that has its number now.
func (m *Manager) delete(e *endpoint) error {
	endpoints := m.config.Tables.Endpoints
	txn := m.config.Tables.DB.WriteTxn(endpoints)
	defer txn.Abort()
	if row, _, found := endpoints.Get(txn, table.EndpointByID(e.ID)); !found || row.Generation != e.Generation {
		return nil
	}
	if _, _, err := endpoints.Delete(txn, &table.Endpoint{ID: e.ID}); err != nil {
		return err
	}
	txn.Commit()
	return nil
}

// awaitVerdict is step 7: Ready at best, Init when the labels are late.
func (m *Manager) awaitVerdict(ctx context.Context, e *endpoint) error {
	ctx, cancel := context.WithTimeout(ctx, judgePatience)
	defer cancel()
	late := time.NewTimer(labelPatience)
	defer late.Stop()
	tables, isLate := m.config.Tables, false
	for {
		row, _, changed, found := tables.Endpoints.GetWatch(tables.DB.ReadTxn(), table.EndpointByID(e.ID))
		switch {
		case !found:
			return fmt.Errorf("endpoint %d: its row was removed", e.ID)
		case row.State == table.EndpointReady, row.State == table.EndpointInit && isLate:
			return nil
		}
		select {
		case <-changed:
		case <-late.C:
			isLate = true
		case <-ctx.Done():
			return cni.Errorf(cni.CodeTryAgainLater, "the pod's policy is not in force; try again later",
				"endpoint %d is %s: %v", e.ID, row.State, ctx.Err())
		}
	}
}

// complete is step 9.
func (m *Manager) complete(e *endpoint) error {
	e.Complete = true
	if err := m.record(e); err != nil {
		e.Complete = false
		return err
	}
	m.keep(e)
	return nil
}

// keep makes the endpoint one that commands find.
func (m *Manager) keep(e *endpoint) {
	m.mutex.Lock()
	defer m.mutex.Unlock()
	m.endpoints[e.Attachment] = e
}
