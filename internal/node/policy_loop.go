package node

import (
	"context"
	"fmt"
	"log/slog"
	"maps"
	"net/netip"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/cilium/statedb"

	"tendril.io/tendril/internal/identity"
	"tendril.io/tendril/internal/kube"
	"tendril.io/tendril/internal/policy"
	"tendril.io/tendril/internal/store"
	"tendril.io/tendril/internal/table"
)

// policyLoop is a policy's journey on this node: rows -> facts -> engine -> delta -> kernel -> rows that say so.
type policyLoop struct {
	tables    *table.Tables
	facts     *facts
	publisher policyPublisher
	nodes     nodeWriter
	log       *slog.Logger

	mu     sync.RWMutex // guards engine: the loop writes, the API reads
	engine *policy.Engine

	feeds     feeds                     // of the tables that facts come from
	prefixes  map[netip.Prefix]struct{} // facts to look up again
	endpoints map[uint32]struct{}       // subjects to look up again
	subjects  map[uint32]uint32         // what the engine judges, with the generation of its record
	unplaced  map[string]unplaced       // nodes that could not be written, by name
	unwritten map[uint32]error          // endpoints whose records could not be written
	trouble   error                     // why the kernel does not agree with the tables; nil: it does, or soon will
	gone      *departed[netip.Addr]     // who had an address, for flow records that are read later
	gonePods  *departed[string]         // and who had a uid: a pod's rows go one by one, in any order
	wanted    uint64                    // how far the store has counted changes of policies, as the tables have it
	inForce   atomic.Uint64             // how far the kernel is
	latest    atomic.Uint64             // wanted, for readers

	configured func() (*Config, <-chan struct{}) // nil: the configuration does not change
	config     *Config                           // that the loop goes by; nil: as it was made

	egress *egressGateways // told of pods before they may send; nil: there are no egress gateways

	host  hostSide // the node itself, as what is judged
	trial *trial   // which host policies are in force, and which were rolled back

	unpublished *publication          // computed, not yet in the kernel
	written     map[netip.Prefix]bool // addresses in the kernel that are wanted; nil once an earlier agent's were pruned
}

// publication is one step's outcome on its way to the kernel.
type publication struct {
	delta    policy.Delta
	judged   map[uint32]judged // endpoints, and the state they are in once it is published
	gone     []uint32          // endpoints whose record goes after that
	revision uint64
	tried    bool // it changes which host policies are in force: to be noted before they are
}

// judged is the state that an endpoint will be in.
type judged struct {
	state      table.EndpointState
	generation uint32 // of the row that was looked at: another one has not been judged
}

// unplaced is a node that the kernel does not know, and why.
type unplaced struct {
	row *table.Node
	err error
}

// refusal is why a policy is not in force as written.
type refusal struct {
	Key      policy.Key
	Revision uint64
	Message  string
}

// policyPublisher makes the kernel agree with deltas and with the records of endpoints.
type policyPublisher interface {
	Publish(ctx context.Context, delta *policy.Delta) error
	WriteEndpoint(row *table.Endpoint) error
	DeleteEndpoint(id uint32) error
}

// nodeWriter makes the kernel know a node, before addresses refer to it.
type nodeWriter interface {
	SetNode(row *table.Node) error
	DeleteNode(row *table.Node) error
	// ReleaseNode says that no row names the node any more.
	ReleaseNode(name string)
}

func newPolicyLoop(tables *table.Tables, facts *facts, engine *policy.Engine, publisher policyPublisher, nodes nodeWriter, log *slog.Logger) *policyLoop {
	return &policyLoop{
		tables: tables, facts: facts, publisher: publisher, nodes: nodes, log: log, engine: engine,
		prefixes: make(map[netip.Prefix]struct{}), endpoints: make(map[uint32]struct{}), subjects: make(map[uint32]uint32),
		unplaced: make(map[string]unplaced), unwritten: make(map[uint32]error), written: make(map[netip.Prefix]bool), gone: newDeparted[netip.Addr](), gonePods: newDeparted[string](),
		host: hostSide{stale: true, tried: make(chan struct{}, 1)}, trial: newTrial(0),
	}
}

// Run follows the tables until ctx ends. It starts once loaded is closed: before that nothing is known of policies, and
// an endpoint judged without them would be open. first is called when the kernel first agrees with the tables.
func (l *policyLoop) Run(ctx context.Context, loaded <-chan struct{}, first func()) error {
	return follow(ctx, l, loaded, first)
}

// attempt implements loop.
func (l *policyLoop) attempt(ctx context.Context, watches *statedb.WatchSet) (settled bool, err error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	settled, err = l.round(ctx, watches)
	if l.trouble = err; err != nil {
		l.log.Error("publish policy; will try again", "error", err)
	}
	return settled, err
}

// round takes what has changed to the kernel. It reports whether nothing is left to do. The caller holds mu.
func (l *policyLoop) round(ctx context.Context, watches *statedb.WatchSet) (settled bool, err error) {
	txn := l.tables.DB.ReadTxn()
	l.feeds.pull(txn, watches)
	l.configure(watches)
	l.tryAgain()
	return l.step(ctx, txn)
}

// catchUp brings the kernel to where the tables are. The caller holds mu.
func (l *policyLoop) catchUp(ctx context.Context) error {
	for {
		settled, err := l.round(ctx, statedb.NewWatchSet())
		if settled || err != nil {
			return err
		}
	}
}

// start implements loop.
func (l *policyLoop) start() error {
	for prefix := range l.facts.fixed {
		l.prefixes[prefix] = struct{}{}
	}
	t := l.tables
	var problem error
	add := func(f feed, err error) {
		if err != nil {
			problem = err
			return
		}
		l.feeds = append(l.feeds, f)
	}
	add(watch(t.DB, t.Nodes, l.nodeChanged))
	add(watch(t.DB, t.Devices, l.deviceChanged))
	add(watch(t.DB, t.NodeLabels, l.nodeLabelsChanged))
	add(watch(t.DB, t.CIDRGroups, l.cidrGroupChanged))
	add(watch(t.DB, t.Services, l.serviceChanged))
	add(watch(t.DB, t.Backends, l.backendsChanged))
	add(watch(t.DB, t.Namespaces, l.namespaceChanged))
	add(watch(t.DB, t.Policies, l.policyChanged))
	add(watch(t.DB, t.Counters, l.counterChanged)) // after the policies: its word is the last
	add(watch(t.DB, t.LabelSets, l.labelSetChanged))
	if l.egress != nil {
		add(watch(t.DB, t.EgressGateways, l.egress.objectChanged))
		add(watch(t.DB, t.Namespaces, l.egress.namespaceChanged))
	}
	add(watch(t.DB, t.Pods, l.podChanged))
	add(watch(t.DB, t.IPs, l.addressChanged))
	add(watch(t.DB, t.Endpoints, l.endpointChanged))
	return problem
}

// stop implements loop.
func (l *policyLoop) stop() { l.feeds.close() }

// setSelf notes what this node knows of itself, whatever the store says of it.
func (l *policyLoop) setSelf(row *table.Node) {
	l.noteNode(row, false)
}

// configure goes by the configuration in force, if it is another.
func (l *policyLoop) configure(watches *statedb.WatchSet) {
	if l.configured == nil {
		return
	}
	config, changed := l.configured()
	watches.Add(changed)
	if config == l.config {
		return
	}
	l.config = config
	for _, prefix := range l.facts.configure(config) {
		l.prefixes[prefix] = struct{}{}
	}
	l.engine.SetDenyLocalHost(config.DenyLocalHost)
	l.trial.period = time.Duration(config.HostTrialSeconds) * time.Second
}

func (l *policyLoop) nodeChanged(row *table.Node, deleted bool) {
	if row.Name != l.facts.self {
		l.noteNode(row, deleted)
	}
}

func (l *policyLoop) deviceChanged(row *table.Device, deleted bool) {
	for _, prefix := range l.facts.setDevice(row, deleted) {
		l.prefixes[prefix] = struct{}{}
	}
}

func (l *policyLoop) noteNode(row *table.Node, deleted bool) {
	for _, prefix := range l.facts.setNode(row, deleted) {
		l.prefixes[prefix] = struct{}{}
	}
	if !deleted {
		l.placeNode(row)
		return
	}
	delete(l.unplaced, row.Name)
	if err := l.nodes.DeleteNode(row); err != nil {
		l.log.Error("forget node", "node", row.Name, "error", err)
	}
	l.releaseNode(row.Name)
}

// placeNode writes a node, and looks again at its pods' addresses if it could not be written before: they then have no
// node to be reached through.
func (l *policyLoop) placeNode(row *table.Node) {
	_, before := l.unplaced[row.Name]
	if err := l.nodes.SetNode(row); err != nil {
		if !before {
			l.log.Error("write node; its pods are not reached until that works", "node", row.Name, "error", err)
		}
		l.unplaced[row.Name] = unplaced{row, err}
		return
	}
	if !before {
		return
	}
	delete(l.unplaced, row.Name)
	for _, prefix := range l.facts.setNode(row, false) {
		l.prefixes[prefix] = struct{}{}
	}
	for ip := range l.tables.IPs.Prefix(l.tables.DB.ReadTxn(), table.IPByNode(row.Name)) {
		l.prefixes[exact(ip.Addr)] = struct{}{}
	}
}

// tryAgain looks again at what could not be written, each time that something has changed: room may have come free.
func (l *policyLoop) tryAgain() {
	for _, name := range slices.Sorted(maps.Keys(l.unplaced)) {
		l.placeNode(l.unplaced[name].row)
	}
	for id := range l.unwritten {
		l.endpoints[id] = struct{}{}
	}
}

// releaseNode gives up the number of a node that no row names any more: neither its own nor one of its addresses.
func (l *policyLoop) releaseNode(name string) {
	txn := l.tables.DB.ReadTxn()
	if _, _, ok := l.tables.Nodes.Get(txn, table.NodeByName(name)); ok || name == l.facts.self {
		return
	}
	for range l.tables.IPs.Prefix(txn, table.IPByNode(name)) {
		return
	}
	l.nodes.ReleaseNode(name)
}

func (l *policyLoop) namespaceChanged(row *table.Namespace, deleted bool) {
	if deleted {
		l.engine.DeleteNamespace(row.Name)
		return
	}
	l.engine.SetNamespace(row.Name, row.Labels)
}

// policyChanged hands a policy to the engine, or tells it of one that this agent cannot read in full (see
// policy.Engine.RefusePolicy for what then holds).
func (l *policyLoop) policyChanged(row *table.Policy, deleted bool) {
	key := policy.Key{Kind: row.Kind, Namespace: row.Namespace, Name: row.Name}
	if deleted {
		l.deletePolicy(key)
		return
	}
	// The counter says so too; but where the whole store is read, it comes last.
	l.want(max(l.wanted, row.Revision))
	parsed, err := kube.ParsePolicy(row.Kind, row.Object, row.Source)
	if err == nil && parsed.Key != key {
		err = fmt.Errorf("the object calls itself %s: delete it and apply the manifest again", parsed.Key)
	}
	if err != nil {
		l.engine.RefusePolicy(policy.Policy{Key: key, Revision: row.Revision, Source: row.Source}, err)
	} else {
		parsed.Revision = row.Revision
		if parsed.Validate() == nil {
			parsed = l.withTrial(parsed, row)
		}
		err = l.engine.SetPolicy(parsed)
	}
	if err != nil {
		l.log.Error("policy refused; an earlier version stays in force, or what it may select is isolated", "policy", key.String(), "error", err)
	}
}

// counterChanged notes how far the store has counted changes of policies. A removal has no row that could say so.
func (l *policyLoop) counterChanged(row *table.Counter, deleted bool) {
	if deleted || row.Kind != string(store.KindPolicy) {
		return
	}
	if row.Revision < l.wanted {
		// The store was filled anew and counts from the start: what is in force by the old numbers says nothing.
		l.inForce.Store(0)
		if l.unpublished != nil {
			l.unpublished.revision = 0
		}
	}
	l.want(row.Revision)
}

func (l *policyLoop) want(revision uint64) {
	l.wanted = revision
	l.latest.Store(revision)
}

func (l *policyLoop) labelSetChanged(row *table.LabelSet, _ bool) {
	txn := l.tables.DB.ReadTxn()
	for pod := range l.tables.Pods.List(txn, table.PodByLabels(row.Hash)) {
		l.podChanged(pod, false)
	}
}

func (l *policyLoop) podChanged(row *table.Pod, deleted bool) {
	txn := l.tables.DB.ReadTxn()
	if row.UID != "" {
		for ip := range l.tables.IPs.List(txn, table.IPByPodUID(row.UID)) {
			l.prefixes[exact(ip.Addr)] = struct{}{}
		}
		if deleted {
			l.gonePods.note(row.UID, l.facts.named(txn, row))
		}
	}
	for endpoint := range l.tables.Endpoints.List(txn, table.EndpointByPod(row.Namespace, row.Name)) {
		l.endpointChanged(endpoint, false)
	}
}

func (l *policyLoop) addressChanged(row *table.IP, deleted bool) {
	l.prefixes[exact(row.Addr)] = struct{}{}
	if !deleted {
		return
	}
	l.gone.note(row.Addr, l.party(l.tables.DB.ReadTxn(), row.PodUID, row.Namespace, row.Pod, row.Node, nil))
	if _, known := l.facts.byNode[row.Node]; !known {
		l.releaseNode(row.Node)
	}
}

func (l *policyLoop) endpointChanged(row *table.Endpoint, deleted bool) {
	l.endpoints[row.ID] = struct{}{}
	for _, addr := range row.Addrs {
		l.prefixes[exact(addr)] = struct{}{}
		if deleted {
			l.gone.note(addr, l.party(l.tables.DB.ReadTxn(), row.PodUID, row.Namespace, row.Pod, l.facts.self, row.ArgLabels))
		}
	}
}

// step takes what has changed to the kernel. It reports whether nothing is left to do. A delta that could not be
// published is kept and published again before the engine is asked for the next: deltas build on each other.
func (l *policyLoop) step(ctx context.Context, txn statedb.ReadTxn) (settled bool, err error) {
	if l.unpublished == nil {
		l.stageAddresses(txn)
		staged := l.stageSubjects(txn)
		l.stageHost(txn)
		delta, err := l.engine.Flush()
		if err != nil {
			return false, fmt.Errorf("compute policy: %w", err)
		}
		clear(l.prefixes)
		clear(l.endpoints)
		for _, id := range staged.again {
			l.endpoints[id] = struct{}{}
		}
		l.narrowHost(&delta)
		tried := l.trial.prepare(l.engine.JudgedBy(hostEndpoint), l.host.isReachable())
		l.unpublished = &publication{delta, staged.judged, staged.gone, l.wanted, tried}
	}
	if l.unpublished.tried {
		if err := l.noteTrial(); err != nil {
			return false, err
		}
	}
	if l.egress != nil { // first: a pod that may send is already sent by its gateway
		if err := l.egress.publish(); err != nil {
			return false, err
		}
	}
	if err := l.publisher.Publish(ctx, &l.unpublished.delta); err != nil {
		return false, err
	}
	for _, id := range l.unpublished.gone {
		if err := l.publisher.DeleteEndpoint(id); err != nil {
			return false, err
		}
	}
	l.noteWritten(&l.unpublished.delta)
	l.inForce.Store(l.unpublished.revision)
	l.markJudged(l.unpublished.judged, l.unpublished.delta.Subjects)
	l.beginTrial()
	l.unpublished = nil
	return len(l.prefixes)+len(l.endpoints) == 0 && !l.engine.Pending() && l.inForce.Load() == l.wanted, nil
}

// noteWritten keeps what pruning must not remove.
func (l *policyLoop) noteWritten(delta *policy.Delta) {
	if l.written == nil {
		return
	}
	for _, row := range delta.Set {
		l.written[row.Prefix] = true
	}
	for _, prefix := range delta.Unset {
		delete(l.written, prefix)
	}
}

// stageAddresses asks for facts again. Of a prefix that nobody speaks of the engine may know nothing either.
func (l *policyLoop) stageAddresses(txn statedb.ReadTxn) {
	for prefix := range l.prefixes {
		fact, ok := l.facts.address(txn, prefix)
		if l.egress != nil {
			l.egress.setPod(prefix, fact, ok)
		}
		if ok {
			l.engine.SetAddress(prefix, fact)
		} else {
			l.engine.DeleteAddress(prefix)
		}
	}
}

// stagedSubjects is what stageSubjects found.
type stagedSubjects struct {
	judged map[uint32]judged // will be judged by what the next delta says
	gone   []uint32          // have left; their records go after the delta
	again  []uint32          // to be looked at again in the next round
}

// stageSubjects stages the endpoints that have changed.
func (l *policyLoop) stageSubjects(txn statedb.ReadTxn) stagedSubjects {
	s := stagedSubjects{judged: make(map[uint32]judged, len(l.endpoints))}
	for id := range l.endpoints {
		row, _, ok := l.tables.Endpoints.Get(txn, table.EndpointByID(id))
		ok = ok && row.State != table.EndpointLeaving
		if generation, was := l.subjects[id]; was && (!ok || generation != row.Generation) {
			// Another pod with the same number starts with an empty record: to the engine, too, it must be another.
			l.engine.DeleteSubject(id)
			delete(l.subjects, id)
			s.gone = append(s.gone, id)
			if ok {
				s.again = append(s.again, id)
			}
			continue
		}
		if !ok {
			delete(l.unwritten, id)
			continue
		}
		if err := l.publisher.WriteEndpoint(row); err != nil {
			l.log.Error("write endpoint; it stays as it was", "endpoint", id, "pod", row.Namespace+"/"+row.Pod, "error", err)
			l.unwritten[id] = err
			continue
		}
		delete(l.unwritten, id)
		workload := l.facts.endpoint(txn, row)
		l.engine.SetSubject(id, workload)
		l.subjects[id] = row.Generation
		s.judged[id] = judged{table.EndpointReady, row.Generation}
		if workload.Reserved == identity.Init {
			s.judged[id] = judged{table.EndpointInit, row.Generation}
		}
	}
	return s
}

// markJudged writes back what now judges each endpoint; whoever waits for an endpoint to be ready watches its row.
func (l *policyLoop) markJudged(states map[uint32]judged, subjects []policy.SubjectRow) {
	if len(states)+len(subjects) == 0 {
		return
	}
	txn := l.tables.DB.WriteTxn(l.tables.Endpoints)
	defer txn.Commit()
	modify := func(id uint32, change func(row *table.Endpoint)) {
		row, _, ok := l.tables.Endpoints.Get(txn, table.EndpointByID(id))
		if !ok || row.State == table.EndpointLeaving {
			return
		}
		changed := *row
		change(&changed)
		if changed.State != row.State || changed.Peer != row.Peer || changed.Ingress != row.Ingress || changed.Egress != row.Egress {
			if _, _, err := l.tables.Endpoints.Insert(txn, &changed); err != nil {
				l.log.Error("note what judges an endpoint", "endpoint", id, "error", err)
			}
		}
	}
	for _, subject := range subjects {
		modify(subject.Endpoint, func(row *table.Endpoint) {
			row.Peer, row.Ingress, row.Egress = subject.Peer, subject.Ingress, subject.Egress
		})
	}
	for id, now := range states {
		modify(id, func(row *table.Endpoint) {
			if row.Generation == now.generation {
				row.State = now.state
			}
		})
	}
}

// Rule says what a rule id in a flow record stands for.
func (l *policyLoop) Rule(id uint32) (policy.RuleInfo, bool) {
	l.mu.RLock()
	defer l.mu.RUnlock()
	return l.engine.Rule(id)
}

// Read calls do with the engine, which it may ask but not change.
func (l *policyLoop) Read(do func(engine *policy.Engine)) {
	l.mu.RLock()
	defer l.mu.RUnlock()
	do(l.engine)
}

// Trouble says what keeps the kernel from agreeing with the tables: objects by name, and the loop as a whole.
func (l *policyLoop) Trouble() (objects map[string]error, loop error) {
	l.mu.RLock()
	defer l.mu.RUnlock()
	objects = make(map[string]error, len(l.unplaced)+len(l.unwritten))
	for name, u := range l.unplaced {
		objects["Node/"+name] = u.err
	}
	for id, err := range l.unwritten {
		objects[fmt.Sprintf("endpoint %d", id)] = err
	}
	for key := range l.trial.trying {
		if l.trial.state(key) == stateUnconfirmed {
			objects[key.String()] = errUnconfirmed
		}
	}
	return objects, l.trouble
}

// Refused lists the policies that are not in force as written, sorted by key.
func (l *policyLoop) Refused() []refusal {
	l.mu.RLock()
	defer l.mu.RUnlock()
	var all []refusal
	for _, r := range l.engine.Refused() {
		message := r.Reason.Error()
		if r.Isolates {
			message += "; no earlier version is in force, and what it may select is isolated until it can be"
		}
		all = append(all, refusal{r.Key, r.Revision, message})
	}
	for key := range l.trial.undone {
		if l.trial.state(key) == stateRolledBack {
			all = append(all, refusal{key, l.trial.wanted[key].Revision, l.rolledBack()})
		}
	}
	slices.SortFunc(all, func(a, b refusal) int { return a.Key.Compare(b.Key) })
	return all
}
