package node

import (
	"context"
	"fmt"
	"log/slog"
	"net/netip"
	"slices"
	"sync"
	"sync/atomic"

	"github.com/cilium/statedb"

	"tendril.io/tendril/internal/identity"
	"tendril.io/tendril/internal/kube"
	"tendril.io/tendril/internal/policy"
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
	known     map[netip.Prefix]struct{} // what the engine has been told of
	endpoints map[uint32]struct{}       // subjects to look up again
	subjects  map[uint32]struct{}       // what the engine judges
	refused   map[policy.Key]refusal    // policies that could not even be translated
	wanted    uint64                    // highest policy revision seen
	inForce   atomic.Uint64             // highest policy revision that the kernel enforces
	latest    atomic.Uint64             // wanted, for readers

	unpublished *publication          // computed, not yet in the kernel
	written     map[netip.Prefix]bool // addresses in the kernel that are wanted; nil once an earlier agent's were pruned
}

// publication is one step's outcome on its way to the kernel.
type publication struct {
	delta    policy.Delta
	judged   map[uint32]table.EndpointState // endpoints and the state they are in once it is published
	gone     []uint32                       // endpoints whose record goes after that
	revision uint64
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
}

func newPolicyLoop(tables *table.Tables, facts *facts, engine *policy.Engine, publisher policyPublisher, nodes nodeWriter, log *slog.Logger) *policyLoop {
	return &policyLoop{
		tables: tables, facts: facts, publisher: publisher, nodes: nodes, log: log, engine: engine,
		prefixes: make(map[netip.Prefix]struct{}), known: make(map[netip.Prefix]struct{}),
		endpoints: make(map[uint32]struct{}), subjects: make(map[uint32]struct{}),
		refused: make(map[policy.Key]refusal), written: make(map[netip.Prefix]bool),
	}
}

// Run follows the tables until ctx ends. It starts once loaded is closed: before that nothing is known of policies, and
// an endpoint judged without them would be open. first is called when the kernel first agrees with the tables.
func (l *policyLoop) Run(ctx context.Context, loaded <-chan struct{}, first func()) error {
	select {
	case <-loaded:
	case <-ctx.Done():
		return nil
	}
	if err := l.start(); err != nil {
		return err
	}
	defer l.feeds.close()
	for prefix := range l.facts.fixed {
		l.prefixes[prefix] = struct{}{}
	}
	watches := statedb.NewWatchSet()
	done := first
	for ctx.Err() == nil {
		l.mu.Lock()
		settled, err := l.round(ctx, watches)
		l.mu.Unlock()
		if err != nil {
			l.log.Error("publish policy; will try again", "error", err)
			if !sleep(ctx, jittered(reconcileBackoffMin*4)) {
				return nil
			}
			continue
		}
		if !settled {
			continue
		}
		if done != nil {
			done()
			done = nil
		}
		if _, err := watches.Wait(ctx, 0); err != nil {
			return nil
		}
	}
	return nil
}

// round takes what has changed to the kernel. It reports whether nothing is left to do. The caller holds mu.
func (l *policyLoop) round(ctx context.Context, watches *statedb.WatchSet) (settled bool, err error) {
	txn := l.tables.DB.ReadTxn()
	l.feeds.pull(txn, watches)
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

func (l *policyLoop) start() error {
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
	add(watch(t.DB, t.Namespaces, l.namespaceChanged))
	add(watch(t.DB, t.Policies, l.policyChanged))
	add(watch(t.DB, t.LabelSets, l.labelSetChanged))
	add(watch(t.DB, t.Pods, l.podChanged))
	add(watch(t.DB, t.IPs, func(row *table.IP, _ bool) { l.prefixes[exact(row.Addr)] = struct{}{} }))
	add(watch(t.DB, t.Endpoints, func(row *table.Endpoint, _ bool) { l.endpointChanged(row) }))
	return problem
}

// setSelf notes what this node knows of itself, whatever the store says of it.
func (l *policyLoop) setSelf(row *table.Node) {
	l.noteNode(row, false)
}

func (l *policyLoop) nodeChanged(row *table.Node, deleted bool) {
	if row.Name != l.facts.self {
		l.noteNode(row, deleted)
	}
}

func (l *policyLoop) noteNode(row *table.Node, deleted bool) {
	write := l.nodes.SetNode
	if deleted {
		write = l.nodes.DeleteNode
	}
	if err := write(row); err != nil {
		l.log.Error("write node", "node", row.Name, "error", err)
	}
	for _, prefix := range l.facts.setNode(row, deleted) {
		l.prefixes[prefix] = struct{}{}
	}
}

func (l *policyLoop) namespaceChanged(row *table.Namespace, deleted bool) {
	if deleted {
		l.engine.DeleteNamespace(row.Name)
		return
	}
	l.engine.SetNamespace(row.Name, row.Labels)
}

func (l *policyLoop) policyChanged(row *table.Policy, deleted bool) {
	key := policy.Key{Kind: row.Kind, Namespace: row.Namespace, Name: row.Name}
	delete(l.refused, key)
	l.wanted = max(l.wanted, row.Revision)
	l.latest.Store(l.wanted)
	if deleted {
		l.engine.DeletePolicy(key)
		return
	}
	parsed, err := kube.ParsePolicy(row.Kind, row.Object, row.Source)
	if err == nil {
		parsed.Revision = row.Revision
		err = l.engine.SetPolicy(parsed)
	}
	if err != nil {
		l.refused[key] = refusal{key, row.Revision, err.Error()}
		l.log.Warn("policy refused; an earlier version stays in force", "policy", key.String(), "error", err)
	}
}

func (l *policyLoop) labelSetChanged(row *table.LabelSet, _ bool) {
	txn := l.tables.DB.ReadTxn()
	for pod := range l.tables.Pods.List(txn, table.PodByLabels(row.Hash)) {
		l.podChanged(pod, false)
	}
}

func (l *policyLoop) podChanged(row *table.Pod, _ bool) {
	txn := l.tables.DB.ReadTxn()
	if row.UID != "" {
		for ip := range l.tables.IPs.List(txn, table.IPByPodUID(row.UID)) {
			l.prefixes[exact(ip.Addr)] = struct{}{}
		}
	}
	for endpoint := range l.tables.Endpoints.List(txn, table.EndpointByPod(row.Namespace, row.Name)) {
		l.endpointChanged(endpoint)
	}
}

func (l *policyLoop) endpointChanged(row *table.Endpoint) {
	l.endpoints[row.ID] = struct{}{}
	for _, addr := range row.Addrs {
		l.prefixes[exact(addr)] = struct{}{}
	}
}

// step takes what has changed to the kernel. It reports whether nothing is left to do. A delta that could not be
// published is kept and published again before the engine is asked for the next: deltas build on each other.
func (l *policyLoop) step(ctx context.Context, txn statedb.ReadTxn) (settled bool, err error) {
	if l.unpublished == nil {
		l.stageAddresses(txn)
		judged, gone := l.stageSubjects(txn)
		delta, err := l.engine.Flush()
		if err != nil {
			return false, fmt.Errorf("compute policy: %w", err)
		}
		clear(l.prefixes)
		clear(l.endpoints)
		l.unpublished = &publication{delta, judged, gone, l.wanted}
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
	l.unpublished = nil
	return len(l.prefixes)+len(l.endpoints) == 0 && !l.engine.Pending(), nil
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

// takeWritten returns the addresses that are wanted, once.
func (l *policyLoop) takeWritten() map[netip.Prefix]bool {
	written := l.written
	l.written = nil
	return written
}

func (l *policyLoop) stageAddresses(txn statedb.ReadTxn) {
	for prefix := range l.prefixes {
		fact, ok := l.facts.address(txn, prefix)
		if ok {
			l.engine.SetAddress(prefix, fact)
			l.known[prefix] = struct{}{}
		} else if _, was := l.known[prefix]; was {
			l.engine.DeleteAddress(prefix)
			delete(l.known, prefix)
		}
	}
}

// stageSubjects stages the endpoints that have changed. It returns those that will be judged, with the state they will
// then be in, and those that are gone.
func (l *policyLoop) stageSubjects(txn statedb.ReadTxn) (judged map[uint32]table.EndpointState, gone []uint32) {
	judged = make(map[uint32]table.EndpointState, len(l.endpoints))
	for id := range l.endpoints {
		row, _, ok := l.tables.Endpoints.Get(txn, table.EndpointByID(id))
		if !ok || row.State == table.EndpointLeaving {
			if _, was := l.subjects[id]; was {
				l.engine.DeleteSubject(id)
				delete(l.subjects, id)
				gone = append(gone, id)
			}
			continue
		}
		if err := l.publisher.WriteEndpoint(row); err != nil {
			l.log.Error("write endpoint; it stays closed", "endpoint", id, "pod", row.Namespace+"/"+row.Pod, "error", err)
			continue
		}
		workload := l.facts.endpoint(txn, row)
		l.engine.SetSubject(id, workload)
		l.subjects[id] = struct{}{}
		judged[id] = table.EndpointReady
		if workload.Reserved == identity.Init {
			judged[id] = table.EndpointInit
		}
	}
	return judged, gone
}

// markJudged writes back what now judges each endpoint; whoever waits for an endpoint to be ready watches its row.
func (l *policyLoop) markJudged(judged map[uint32]table.EndpointState, subjects []policy.SubjectRow) {
	if len(judged)+len(subjects) == 0 {
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
			l.tables.Endpoints.Insert(txn, &changed)
		}
	}
	for _, subject := range subjects {
		modify(subject.Endpoint, func(row *table.Endpoint) {
			row.Peer, row.Ingress, row.Egress = subject.Peer, subject.Ingress, subject.Egress
		})
	}
	for id, state := range judged {
		modify(id, func(row *table.Endpoint) { row.State = state })
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

// Refused lists the policies that are not in force as written, sorted by key.
func (l *policyLoop) Refused() []refusal {
	l.mu.RLock()
	defer l.mu.RUnlock()
	var all []refusal
	for _, r := range l.refused {
		all = append(all, r)
	}
	for _, r := range l.engine.Refused() {
		all = append(all, refusal{r.Key, r.Revision, r.Reason.Error()})
	}
	slices.SortFunc(all, func(a, b refusal) int { return a.Key.Compare(b.Key) })
	return all
}
