package node

import (
	"context"
	"log/slog"
	"net/netip"
	"slices"
	"sync"
	"time"

	"github.com/cilium/statedb"

	agentv1 "tendril.io/tendril/api/agent/v1"
	"tendril.io/tendril/bpf"
	"tendril.io/tendril/internal/egress"
	"tendril.io/tendril/internal/label"
	"tendril.io/tendril/internal/policy"
	"tendril.io/tendril/internal/table"
)

const (
	// egressProbeEvery is how often a node with selected pods asks each of their gateways whether it is alive.
	egressProbeEvery = 200 * time.Millisecond
	// egressMissed is how many questions in a row a gateway leaves without answer before it counts as dead.
	egressMissed = 3
)

// egressGateways has the kernel know which pods leave by which egress gateways. The policy loop tells it of pods, ahead of what
// lets them send; it follows the objects and the nodes itself. Whether a gateway is alive is asked of its kernel, by ICMP echo:
// that goes on without the agent, as the gateway does, and ends with the node or the link. Only nodes with selected pods ask.
type egressGateways struct {
	tables *table.Tables
	self   string
	kernel egressKernel
	number func(node string) uint32
	ping   pinger
	log    *slog.Logger

	mu       sync.Mutex // guards all below
	plan     *egress.Plan
	complete bool // what is in the kernel and not wanted may go
	nodes    map[string][]egressNode
	health   map[string]*egressHealth // by node
	rows     map[uint32]bpf.Gateway   // as the kernel has them
}

// egressKernel is the part of the datapath that is used.
type egressKernel interface {
	GatewaySets(pods map[netip.Addr]uint32, routes []egress.Route, removes bool) error
	SetGateways(rows map[uint32]bpf.Gateway, gone []uint32) error
	PruneGateways(pods map[netip.Addr]uint32, gateways map[uint32]bool) error
}

// pinger asks nodes for a sign of life.
type pinger interface {
	Ask(addr netip.Addr) error
	// Answered returns who has answered since the last call.
	Answered() []netip.Addr
}

// egressNode is a node of an object.
type egressNode struct {
	name    string
	probe   netip.Addr
	alive   bool // by its lease
	addr4   netip.Addr
	addr6   netip.Addr
	problem string // why it does not serve
}

// egressHealth is what probes say of a node.
type egressHealth struct {
	dead     bool
	answered bool // the last question
	missed   int
}

// setPod takes what is known of an address. Called by the policy loop.
func (e *egressGateways) setPod(prefix netip.Prefix, fact policy.AddressFact, known bool) {
	e.mu.Lock()
	defer e.mu.Unlock()
	if !known || fact.Workload == nil || fact.Workload.Reserved != 0 || !prefix.IsSingleIP() {
		e.plan.DeletePod(prefix.Addr())
		return
	}
	e.plan.SetPod(prefix.Addr(), egress.Pod{
		Namespace: fact.Workload.Namespace, Labels: fact.Workload.Labels, Local: fact.Flags&uint32(bpf.AddressFlagLocalPod) != 0,
	})
}

// objectChanged, namespaceChanged: the same for the other sources.
func (e *egressGateways) objectChanged(row *table.EgressGateway, deleted bool) {
	e.mu.Lock()
	defer e.mu.Unlock()
	if deleted {
		e.plan.DeleteObject(row.Name)
	} else {
		e.plan.SetObject(row)
	}
}

func (e *egressGateways) namespaceChanged(row *table.Namespace, deleted bool) {
	e.mu.Lock()
	defer e.mu.Unlock()
	labels := row.Labels
	if deleted {
		labels = nil
	} else if labels == nil {
		labels = map[string]string{}
	}
	e.plan.SetNamespace(row.Name, labels)
}

// publish takes pods and routes to the kernel. What could not be written is written again the next time.
func (e *egressGateways) publish() error {
	e.mu.Lock()
	defer e.mu.Unlock()
	pods, moved := e.plan.Flush()
	if len(pods) == 0 && !moved {
		return nil
	}
	err := e.kernel.GatewaySets(pods, e.plan.Routes(), e.complete)
	if err != nil {
		e.plan.Unsure(pods)
	}
	return err
}

// prune removes what an earlier agent left, once all that is wanted is known and written.
func (e *egressGateways) prune() error {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.complete = true
	if err := e.kernel.GatewaySets(nil, e.plan.Routes(), true); err != nil {
		return err
	}
	gateways := make(map[uint32]bool)
	for _, object := range e.plan.Objects() {
		gateways[e.plan.Gateway(object.Name, true)], gateways[e.plan.Gateway(object.Name, false)] = true, true
	}
	return e.kernel.PruneGateways(e.plan.Placed(), gateways)
}

// Run follows objects, nodes and their health until ctx ends.
func (e *egressGateways) Run(ctx context.Context, loaded <-chan struct{}) error {
	select {
	case <-loaded:
	case <-ctx.Done():
		return nil
	}
	var tables []<-chan struct{}
	asked := time.Now().Add(-egressProbeEvery)
	for ctx.Err() == nil {
		if tables == nil {
			tables = e.findNodes()
		}
		next := time.Hour
		if wait := time.Until(asked.Add(egressProbeEvery)); wait <= 0 {
			asked = time.Now()
			if e.probe() {
				next = egressProbeEvery
			}
		} else {
			next = wait
		}
		if err := e.write(); err != nil {
			e.log.Error("write egress gateways; will try again", "error", err)
			next = min(next, loopBackoff)
		}
		watches := statedb.NewWatchSet()
		watches.Add(tables...)
		timed, cancel := context.WithTimeout(ctx, next)
		if fired, err := watches.Wait(timed, 0); err == nil && len(fired) > 0 {
			tables = nil
		}
		cancel()
	}
	return nil
}

// findNodes finds the nodes of every object, and returns what is closed when they may have changed.
func (e *egressGateways) findNodes() []<-chan struct{} {
	t, txn := e.tables, e.tables.DB.ReadTxn()
	objects, changed1 := t.EgressGateways.AllWatch(txn)
	nodes, changed2 := t.Nodes.AllWatch(txn)
	_, changed3 := t.NodeLabels.AllWatch(txn)
	_, changed4 := t.Alive.AllWatch(txn)
	_, changed5 := t.Devices.AllWatch(txn)
	_, changed6 := t.Endpoints.AllWatch(txn) // the first selected pod is when to begin to ask
	found := make(map[string][]egressNode)
	for object := range objects {
		for row := range nodes {
			if n, ok := e.nodeOf(txn, object, row); ok {
				found[object.Name] = append(found[object.Name], n)
			}
		}
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	e.nodes = found
	return []<-chan struct{}{changed1, changed2, changed3, changed4, changed5, changed6}
}

// nodeOf says how a node serves an object; false: it is none of its nodes. The first entry that names it counts.
func (e *egressGateways) nodeOf(txn statedb.ReadTxn, object *table.EgressGateway, row *table.Node) (n egressNode, ok bool) {
	var labels map[string]string
	if found, _, ok := e.tables.NodeLabels.Get(txn, table.NodeLabelsByNode(row.Name)); ok {
		labels = found.Labels
	}
	at := slices.IndexFunc(object.Nodes, func(entry table.EgressNodes) bool {
		return entry.Node == row.Name || (entry.Node == "" && entry.Selector.Matches(nodeLabels(labels)))
	})
	if at < 0 || len(row.Addresses) == 0 {
		return n, false
	}
	_, _, n.alive = e.tables.Alive.Get(txn, table.AliveByNode(row.Name))
	n.name, n.probe = row.Name, row.Addresses[0]
	if row.Tunnel.IsValid() {
		n.probe = row.Tunnel // the way that packets take
	}
	addrs := object.Nodes[at].Addrs
	if len(addrs) == 0 {
		addrs = row.Addresses
	}
	for _, addr := range addrs {
		if row.Name == e.self && !e.hasAddress(txn, addr) {
			n.problem = addr.String() + " is on no device of the node; add it there"
			continue
		}
		if addr.Is4() && !n.addr4.IsValid() {
			n.addr4 = addr
		} else if addr.Is6() && !n.addr6.IsValid() {
			n.addr6 = addr
		}
	}
	return n, true
}

// hasAddress says whether a device of this node has an address.
func (e *egressGateways) hasAddress(txn statedb.ReadTxn, addr netip.Addr) bool {
	for device := range e.tables.Devices.All(txn) {
		if slices.ContainsFunc(device.Addrs, func(p netip.Prefix) bool { return p.Addr() == addr }) {
			return true
		}
	}
	return false
}

// nodeLabels are what selectors of nodes look at.
type nodeLabels map[string]string

// Attribute implements label.Attributes.
func (l nodeLabels) Attribute(key label.Key) (string, bool) {
	value, is := l[key.Name]
	return value, is
}

// probe takes the answers to the last questions and asks again. It reports whether there is anybody to ask.
func (e *egressGateways) probe() bool {
	e.mu.Lock()
	defer e.mu.Unlock()
	wanted := make(map[string]egressNode)
	for object, nodes := range e.nodes {
		if len(e.plan.Pods(object)) == 0 {
			continue
		}
		for _, n := range nodes {
			if n.name != e.self {
				wanted[n.name] = n
			}
		}
	}
	answers := e.ping.Answered()
	for name, h := range e.health {
		n, stays := wanted[name]
		if !stays {
			delete(e.health, name)
			continue
		}
		e.judge(n, h, slices.Contains(answers, n.probe))
	}
	for name, n := range wanted {
		if e.health[name] == nil {
			e.health[name] = &egressHealth{dead: !n.alive}
		}
		if err := e.ping.Ask(n.probe); err != nil {
			e.log.Debug("ask an egress gateway whether it is alive", "node", name, "error", err) // an answer will be missed
		}
	}
	return len(wanted) > 0
}

// judge takes what came of the last question. Back to life comes only who has a living agent, too: a node that has just booted
// answers before it serves.
func (e *egressGateways) judge(n egressNode, h *egressHealth, answered bool) {
	h.answered = answered
	switch {
	case answered:
		h.missed = 0
		if h.dead && n.alive {
			h.dead = false
			e.log.Info("egress gateway is alive", "node", n.name)
		}
	case h.missed < egressMissed:
		if h.missed++; h.missed == egressMissed && !h.dead {
			h.dead = true
			e.log.Warn("egress gateway does not answer; its flows go by others", "node", n.name)
		}
	}
}

// write makes the kernel know the gateways as they are now.
func (e *egressGateways) write() error {
	e.mu.Lock()
	defer e.mu.Unlock()
	wanted := make(map[uint32]bpf.Gateway)
	for object, nodes := range e.nodes {
		for _, is4 := range []bool{true, false} {
			wanted[e.plan.Gateway(object, is4)] = e.row(nodes, is4)
		}
	}
	changed := make(map[uint32]bpf.Gateway)
	for number, row := range wanted {
		if before, there := e.rows[number]; !there || before != row {
			changed[number] = row
		}
	}
	var gone []uint32
	for number := range e.rows {
		if _, stays := wanted[number]; !stays {
			gone = append(gone, number)
		}
	}
	if len(changed)+len(gone) == 0 {
		return nil
	}
	if err := e.kernel.SetGateways(changed, gone); err != nil {
		return err
	}
	e.rows = wanted
	return nil
}

// row is an object in one family: the address of this node if it serves, and a slot for each share of those that are alive.
func (e *egressGateways) row(nodes []egressNode, is4 bool) (row bpf.Gateway) {
	var alive []uint32
	for _, n := range nodes {
		addr := n.addr6
		if is4 {
			addr = n.addr4
		}
		switch h := e.health[n.name]; {
		case !addr.IsValid():
		case n.name == e.self:
			row.Address = bpf.AddressOf(addr)
			alive = append(alive, uint32(bpf.GatewaySelf))
		case h == nil && n.alive, h != nil && !h.dead:
			if number := e.number(n.name); number != 0 {
				alive = append(alive, number)
			}
		}
	}
	slices.Sort(alive)
	if len(alive) == 0 {
		return row
	}
	alive = alive[:min(len(alive), len(row.Slots))]
	row.Count = uint32(len(row.Slots) / len(alive) * len(alive)) // equal shares
	for i := range row.Count {
		row.Slots[i] = alive[int(i)%len(alive)]
	}
	return row
}

// list describes the objects, their pods of this node, and their nodes.
func (e *egressGateways) list() []*agentv1.EgressGateway {
	e.mu.Lock()
	defer e.mu.Unlock()
	var all []*agentv1.EgressGateway
	txn := e.tables.DB.ReadTxn()
	for _, object := range e.plan.Objects() {
		message := &agentv1.EgressGateway{
			Name: object.Name, Destinations: textsOf(object.Destinations), Exceptions: textsOf(object.Exceptions),
		}
		for _, addr := range e.plan.Pods(object.Name) {
			row, _, ok := e.tables.Endpoints.Get(txn, table.EndpointByIP(addr))
			if ok && !slices.Contains(message.Pods, row.Namespace+"/"+row.Pod) {
				message.Pods = append(message.Pods, row.Namespace+"/"+row.Pod)
			}
		}
		slices.Sort(message.Pods)
		for _, n := range e.nodes[object.Name] {
			message.Nodes = append(message.Nodes, e.describe(n))
		}
		all = append(all, message)
	}
	return all
}

// describe is a node of an object in words.
func (e *egressGateways) describe(n egressNode) *agentv1.EgressGateway_Node {
	message := &agentv1.EgressGateway_Node{Name: n.name, Problem: n.problem, State: "gone"}
	for _, addr := range []netip.Addr{n.addr4, n.addr6} {
		if addr.IsValid() {
			message.Addresses = append(message.Addresses, addr.String())
		}
	}
	switch h := e.health[n.name]; {
	case n.name == e.self:
		message.State = "self"
	case h != nil && h.dead:
		message.State = "dead"
	case h != nil:
		message.State = "alive"
	case n.alive:
		message.State = "leased"
	}
	return message
}

func textsOf(ranges []netip.Prefix) []string {
	var texts []string
	for _, r := range ranges {
		texts = append(texts, r.String())
	}
	return texts
}
