package store

import (
	"cmp"
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
	"google.golang.org/protobuf/proto"

	storev1 "tendril.io/tendril/api/store/v1"
)

// Writer writes what the operator owns: it is what the operator, the lab and `tendril apply` share. Records that do not
// differ from the store's are not written, and fields of a newer version than the writer's are kept.
type Writer struct {
	// Of a role that may write; agents have none.
	client *clientv3.Client
	// Of the cluster, see Prefix.
	prefix string
	// Of the leader that keeps the store.
	term   uint64
	logger *slog.Logger
}

// Record is a key, without the cluster's prefix, and its value; a nil value removes the key.
type Record struct {
	Key   string
	Value proto.Message
}

// Result says what a call wrote.
type Result struct {
	Written, Deleted, Unchanged int
	Revision                    int64  // of the store, after the last write
	Epoch                       string // of the filling that was written to
	PolicyRevision              uint64 // of the last policy written or removed, 0 if none was
	Looked                      int    // at services, to give addresses: what the writing cost
}

// policyCounter is the key whose value is the highest policy revision given out.
func policyCounter() Key { return Key{Kind: KindCounter, First: string(KindPolicy)} }

// writeBatch leaves room for the two counters in a transaction.
const writeBatch = MaxWrites - 2

// writeTries is how often a batch is tried anew because another writer was faster.
const writeTries = 16

// NewWriter connects a writer. Close it.
func NewWriter(config WriterConfig) (*Writer, error) {
	if len(config.Endpoints) == 0 {
		return nil, errors.New("store writer: endpoints is empty; give at least one host:port of etcd")
	}
	if err := checkCluster(config.Cluster); err != nil {
		return nil, err
	}
	if config.Logger == nil {
		config.Logger = slog.New(slog.DiscardHandler)
	}
	if err := config.TLS.Validate(); err != nil {
		return nil, fmt.Errorf("store writer: %w", err)
	}
	client, err := DialEtcd(config.Endpoints, config.TLS, config.Logger)
	if err != nil {
		return nil, err
	}
	return &Writer{client, Prefix(config.Cluster), config.Term, config.Logger}, nil
}

// Close ends the connection.
func (w *Writer) Close() error { return w.client.Close() }

// change is a checked record.
type change struct {
	key   Key
	value proto.Message // nil: remove
}

// Apply writes and removes records, and leaves all others alone. Nothing is written if a record is bad. Records arrive
// in transactions of up to 126, what others refer to first.
func (w *Writer) Apply(ctx context.Context, records []Record) (Result, error) {
	changes, err := checkRecords(records)
	if err != nil {
		return Result{}, err
	}
	epoch, err := w.ensureEpoch(ctx)
	if err != nil {
		return Result{}, err
	}
	result, err := w.write(ctx, changes)
	result.Epoch = epoch
	return result, err
}

// Fill makes the operator's part of the store exactly the records, and then marks it as complete: readers forget what
// is not in it. Interrupted, it leaves no new marker and can be repeated.
//
// Unknown are beginnings of keys of which the caller does not know all that there should be. What the store has there stays,
// and kinds with such keys are not marked, so that readers forget nothing of them either.
func (w *Writer) Fill(ctx context.Context, records []Record, unknown ...string) (Result, error) {
	changes, err := checkRecords(records)
	if err != nil {
		return Result{}, err
	}
	epoch, err := w.ensureEpoch(ctx)
	if err != nil {
		return Result{}, err
	}
	gone, err := w.gone(ctx, changes, unknown)
	if err != nil {
		return Result{}, err
	}
	result, err := w.write(ctx, append(changes, gone...))
	result.Epoch = epoch
	if err != nil {
		return result, err
	}
	return result, w.markFilled(ctx, epoch, &result, unknown)
}

// List reads all records of a kind, sorted by key.
func (w *Writer) List(ctx context.Context, kind Kind) ([]Record, error) {
	if newMessage(kind) == nil {
		return nil, fmt.Errorf("list %q: %w", kind, errUnknownKind)
	}
	var records []Record
	err := w.each(ctx, kind, func(text string, value []byte) error {
		message := newMessage(kind)
		if err := proto.Unmarshal(value, message); err != nil {
			return fmt.Errorf("key %q: %w", text, err)
		}
		records = append(records, Record{text, message})
		return nil
	})
	return records, err
}

// PolicyRevision is the number of the last policy written or removed; 0: there was none.
func (w *Writer) PolicyRevision(ctx context.Context) (uint64, error) {
	key := policyCounter().String()
	response, err := w.client.Get(ctx, w.prefix+key)
	if err != nil {
		return 0, fmt.Errorf("read key %q: %w", key, err)
	}
	var counter storev1.Synced
	for _, kv := range response.Kvs { // one or none
		if err := proto.Unmarshal(kv.Value, &counter); err != nil {
			return 0, fmt.Errorf("key %q: %w", key, err)
		}
	}
	return counter.GetRevision(), nil
}

// DeleteNode removes a node that will not come back: its record, addresses, acknowledgements and pods. The marker that
// stays says to readers that nothing of it is left, even to those who were away.
func (w *Writer) DeleteNode(ctx context.Context, node string) error {
	if err := NodeKey(node).Check(); err != nil {
		return err
	}
	_, err := w.deleteNode(ctx, node, nil, w.under(KindPod, node), clientv3.OpDelete(w.prefix+AliveKey(node).String()))
	return err
}

// DeleteDeadNode removes what the agent of a node has published, unless the node is alive, and says whether it did. Pods stay:
// whether they are gone is not for the node to say.
func (w *Writer) DeleteDeadNode(ctx context.Context, node string) (bool, error) {
	if err := NodeKey(node).Check(); err != nil {
		return false, err
	}
	// It may have come back since somebody looked.
	dead := clientv3.Compare(clientv3.CreateRevision(w.prefix+AliveKey(node).String()), "=", 0)
	return w.deleteNode(ctx, node, []clientv3.Cmp{dead})
}

// deleteNode removes what the agent of a node has published but its sign of life, and more, and leaves the marker.
func (w *Writer) deleteNode(ctx context.Context, node string, conditions []clientv3.Cmp, more ...clientv3.Op) (bool, error) {
	epoch, err := w.ensureEpoch(ctx)
	if err != nil {
		return false, err
	}
	marker, err := proto.Marshal(&storev1.Synced{})
	if err != nil {
		return false, err
	}
	ops := append(more,
		clientv3.OpDelete(w.prefix+AckKey(node).String()), w.under(KindIP, node), clientv3.OpDelete(w.prefix+NodeKey(node).String()),
		clientv3.OpPut(w.prefix+syncedNodeKey(epoch, node).String(), string(marker)),
	)
	response, err := w.client.Txn(ctx).If(conditions...).Then(ops...).Commit()
	if err != nil {
		return false, fmt.Errorf("delete node %q: %w", node, err)
	}
	return response.Succeeded, nil
}

// under removes the keys of a kind that lie under a node: with the slash, so that n1 does not take n10 along.
func (w *Writer) under(kind Kind, node string) clientv3.Op {
	return clientv3.OpDelete(w.prefix+string(kind)+"/"+node+"/", clientv3.WithPrefix())
}

// State is what a leader looks at to see whether the store is still as it was left.
type State struct {
	Epoch     string // of this filling; empty: there is none
	Addresses uint64 // rises with each write that had a say in load balancers' addresses
}

// State reads it.
func (w *Writer) State(ctx context.Context) (state State, err error) {
	response, err := w.client.Txn(ctx).Then(
		clientv3.OpGet(w.prefix+string(KindEpoch)), clientv3.OpGet(w.prefix+addressCounter().String()),
	).Commit()
	if err != nil {
		return State{}, fmt.Errorf("read the store's epoch and counter: %w", err)
	}
	for _, kv := range response.Responses[0].GetResponseRange().GetKvs() { // one or none, as below
		epoch, err := ReadEpoch(kv.Value)
		if err != nil {
			return State{}, err
		}
		state.Epoch = epoch.GetId()
	}
	for _, kv := range response.Responses[1].GetResponseRange().GetKvs() {
		var counter storev1.Synced
		if err := proto.Unmarshal(kv.Value, &counter); err != nil {
			return State{}, fmt.Errorf("key %q: %w", addressCounter(), err)
		}
		state.Addresses = counter.GetRevision()
	}
	return state, nil
}

// Nodes lists the nodes whose agents have published something that stands in the store, and whether each is alive.
func (w *Writer) Nodes(ctx context.Context) (map[string]bool, error) {
	nodes := map[string]bool{}
	// Signs of life are read last: a node that comes up meanwhile is seen alive.
	for _, kind := range []Kind{KindNode, KindAck, KindIP, KindAlive} {
		err := w.each(ctx, kind, func(text string, _ []byte) error {
			if key, err := ParseKey(text); err == nil { // a malformed key is not ours to judge: readers report it
				nodes[key.First] = kind == KindAlive
			}
			return nil
		}, clientv3.WithKeysOnly())
		if err != nil {
			return nil, err
		}
	}
	return nodes, nil
}

// checkRecords refuses the whole list, naming each bad key, and sorts what remains in the order of Filled.
func checkRecords(records []Record) ([]change, error) {
	changes := make([]change, 0, len(records))
	seen := make(map[Key]bool, len(records))
	var bad []error
	for _, record := range records {
		key, err := ParseKey(record.Key)
		if err == nil {
			err = checkRecord(key, record.Value)
		}
		if err == nil && seen[key] {
			err = fmt.Errorf("key %q: given twice", record.Key)
		}
		if err != nil {
			bad = append(bad, err)
			continue
		}
		seen[key] = true
		changes = append(changes, change{key, record.Value})
	}
	slices.SortStableFunc(changes, func(a, b change) int { return cmp.Compare(order(a), order(b)) })
	return changes, errors.Join(bad...)
}

// order writes what is referred to before what refers to it, and removes the other way round.
func order(c change) int {
	place := slices.Index(Filled(), c.key.Kind)
	if c.value == nil {
		return 2*len(Filled()) - place
	}
	return place
}

// checkRecord refuses what readers would keep out.
func checkRecord(key Key, value proto.Message) error {
	if !isFilled(key.Kind) {
		return fmt.Errorf("key %q: %s are not the operator's to write", key, key.Kind)
	}
	if value == nil {
		return nil
	}
	if err := checkMessage(key, value); err != nil {
		return err
	}
	return checkRow(key, value)
}

// ensureEpoch returns the store's epoch, starting one if the store is empty.
func (w *Writer) ensureEpoch(ctx context.Context) (string, error) {
	name := w.prefix + string(KindEpoch)
	value, err := proto.Marshal(&storev1.Epoch{Id: newEpoch(), Term: w.term})
	if err != nil {
		return "", err
	}
	response, err := w.client.Txn(ctx).
		// Of two writers that find the store empty, one gives the epoch and both use it.
		If(clientv3.Compare(clientv3.CreateRevision(name), "=", 0)).
		Then(clientv3.OpPut(name, string(value)), clientv3.OpGet(name)).
		Else(clientv3.OpGet(name)).Commit()
	if err != nil {
		return "", fmt.Errorf("read or start the store's epoch: %w", err)
	}
	last := response.Responses[len(response.Responses)-1].GetResponseRange()
	epoch, err := ReadEpoch(last.Kvs[0].Value)
	return epoch.GetId(), err
}

// newEpoch is a random id; two fillings never share one.
func newEpoch() string {
	var id [8]byte
	rand.Read(id[:]) // never fails
	return hex.EncodeToString(id[:])
}

// gone lists the removals that make the operator's part of the store no more than the changes, and what is not known.
func (w *Writer) gone(ctx context.Context, changes []change, unknown []string) (gone []change, err error) {
	wanted := make(map[string]bool, len(changes))
	for _, c := range changes {
		wanted[c.key.String()] = true
	}
	for _, kind := range Filled() {
		err := w.each(ctx, kind, func(text string, _ []byte) error {
			key, err := ParseKey(text)
			spared := slices.ContainsFunc(unknown, func(prefix string) bool { return strings.HasPrefix(text, prefix) })
			if err == nil && !wanted[text] && !spared {
				gone = append(gone, change{key: key})
			}
			return nil // a malformed key is not ours to judge: readers report it
		})
		if err != nil {
			return nil, err
		}
	}
	slices.SortStableFunc(gone, func(a, b change) int { return cmp.Compare(order(a), order(b)) })
	return gone, nil
}

// each reads the records of a kind, page by page, at one revision.
func (w *Writer) each(ctx context.Context, kind Kind, do func(text string, value []byte) error, options ...clientv3.OpOption) error {
	from := w.prefix + string(kind) + "/"
	if kind == KindEpoch {
		from = w.prefix + string(kind)
	}
	end := clientv3.GetPrefixRangeEnd(from)
	revision := int64(0)
	for {
		page, err := w.client.Get(ctx, from, append(options, clientv3.WithRange(end), clientv3.WithLimit(pageSize), clientv3.WithRev(revision))...)
		if err != nil {
			return fmt.Errorf("read %s: %w", kind, err)
		}
		revision = page.Header.Revision
		for _, kv := range page.Kvs {
			if err := do(string(kv.Key[len(w.prefix):]), kv.Value); err != nil {
				return err
			}
		}
		if !page.More {
			return nil
		}
		from = string(page.Kvs[len(page.Kvs)-1].Key) + "\x00"
	}
}

// write applies changes in batches.
func (w *Writer) write(ctx context.Context, changes []change) (result Result, err error) {
	// Each batch holds or fails as a whole. In between, readers see references that lead somewhere: see order.
	var known *claims
	for batch := range slices.Chunk(changes, writeBatch) {
		for more := true; more; batch = nil {
			r, err := w.writeOne(ctx, batch, known, &result)
			if err != nil {
				return result, err
			}
			known, more = r.claims, r.more
		}
	}
	return result, nil
}

// writeOne writes one batch in one transaction, again if another writer came between reading and writing. What the batch
// means for services besides it may not fit into the transaction: the round then says that there is more, for a call without a
// batch. known is what the round before had read and written, if it has a say in addresses; it may be behind the store.
func (w *Writer) writeOne(ctx context.Context, batch []change, known *claims, result *Result) (*round, error) {
	backoff := Backoff{Min: 2 * time.Millisecond, Max: 200 * time.Millisecond}
	// Optimistic: another writer makes the transaction fail, not wait.
	for range writeTries {
		r, err := w.read(ctx, batch, known)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", nameBatch(batch), err)
		}
		plan, err := planWrites(w.prefix, r)
		if err != nil {
			return nil, err
		}
		done, err := w.commit(ctx, plan)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", nameBatch(batch), err)
		}
		if done > 0 {
			result.add(plan, done)
			if c := r.claims; c != nil {
				result.Looked, c.looked = result.Looked+c.looked, 0
			}
			return r, r.committed(plan, done)
		}
		known = nil
		if !sleep(ctx, backoff.Next()) {
			return nil, ctx.Err()
		}
	}
	return nil, fmt.Errorf("%s: other writers were faster %d times; try again", nameBatch(batch), writeTries)
}

// nameBatch says in errors what was being written.
func nameBatch(batch []change) string {
	if len(batch) == 0 {
		return "give addresses to services"
	}
	return fmt.Sprintf("write %d records from key %q on", len(batch), batch[0].key)
}

// read reads what a batch is compared with.
func (w *Writer) read(ctx context.Context, batch []change, known *claims) (*round, error) {
	current, err := w.current(ctx, batch)
	if err != nil {
		return nil, err
	}
	if concerned(batch, current) {
		return w.allotRound(ctx, batch, current, known)
	}
	return &round{changes: batch, current: current}, nil
}

// stored is what the store has under a key; revision 0: nothing.
type stored struct {
	value    []byte
	revision int64
}

// current reads the batch's keys and, last, the policy counter.
func (w *Writer) current(ctx context.Context, batch []change) ([]stored, error) {
	ops := make([]clientv3.Op, 0, len(batch)+1)
	for _, c := range batch {
		ops = append(ops, clientv3.OpGet(w.prefix+c.key.String()))
	}
	ops = append(ops, clientv3.OpGet(w.prefix+policyCounter().String()))
	response, err := w.client.Txn(ctx).Then(ops...).Commit()
	if err != nil {
		return nil, fmt.Errorf("read: %w", err)
	}
	current := make([]stored, len(ops))
	for i, r := range response.Responses {
		if kvs := r.GetResponseRange().GetKvs(); len(kvs) > 0 {
			current[i] = stored{kvs[0].Value, kvs[0].ModRevision}
		}
	}
	return current, nil
}

// plan is a transaction and what it does.
type plan struct {
	conditions []clientv3.Cmp
	ops        []clientv3.Op
	puts       []planned
	result     Result
}

// planned is a record that a plan writes.
type planned struct {
	key   Key
	value []byte
}

// planWrites compares a round's changes with what is there. It is pure.
func planWrites(prefix string, r *round) (*plan, error) {
	p := &plan{}
	var counter storev1.Synced
	at := r.current[len(r.changes)]
	if err := proto.Unmarshal(at.value, &counter); err != nil {
		return nil, fmt.Errorf("key %q: %w", policyCounter(), err)
	}
	// The counter is a condition of the transaction too, if it moves: no two policies get one revision.
	before := counter.GetRevision()
	for i, c := range r.changes {
		if err := p.plan(prefix, c, r.current[i], &counter); err != nil {
			return nil, err
		}
	}
	if r.claims != nil && len(p.ops) > 0 {
		moved := &storev1.Synced{Revision: r.claims.counter.GetRevision() + 1}
		if err := p.put(prefix, addressCounter(), moved, r.claims.moved); err != nil {
			return nil, err
		}
	}
	if counter.GetRevision() == before {
		return p, nil
	}
	p.result.PolicyRevision = counter.GetRevision()
	return p, p.put(prefix, policyCounter(), &counter, at.revision)
}

// plan adds one change, if it changes anything.
func (p *plan) plan(prefix string, c change, now stored, counter *storev1.Synced) error {
	name := prefix + c.key.String()
	if c.value == nil {
		if now.revision == 0 {
			p.result.Unchanged++
			return nil
		}
		// The removal of a policy is a change of policy: agents acknowledge it by its number.
		if c.key.Kind == KindPolicy {
			counter.Revision++
		}
		p.conditions = append(p.conditions, clientv3.Compare(clientv3.ModRevision(name), "=", now.revision))
		p.ops = append(p.ops, clientv3.OpDelete(name))
		p.result.Deleted++
		return nil
	}
	wanted, differs := merge(c, now, counter)
	if !differs {
		p.result.Unchanged++
		return nil
	}
	p.result.Written++
	return p.put(prefix, c.key, wanted, now.revision)
}

func (p *plan) put(prefix string, key Key, value proto.Message, revision int64) error {
	bytes, err := proto.MarshalOptions{Deterministic: true}.Marshal(value)
	if err != nil {
		return fmt.Errorf("key %q: %w", key, err)
	}
	name := prefix + key.String()
	p.conditions = append(p.conditions, clientv3.Compare(clientv3.ModRevision(name), "=", revision))
	p.ops = append(p.ops, clientv3.OpPut(name, string(bytes)))
	p.puts = append(p.puts, planned{key, bytes})
	return nil
}

// merge is the record to write: the wanted fields, and the fields of what is there that this version does not know. A
// policy that differs takes the next revision. A record that cannot be read is overwritten.
func merge(c change, now stored, counter *storev1.Synced) (wanted proto.Message, differs bool) {
	wanted = proto.Clone(c.value)
	existing := newMessage(c.key.Kind)
	// What cannot be read has no fields worth keeping.
	readable := now.revision > 0 && proto.Unmarshal(now.value, existing) == nil
	if readable {
		// A newer writer's fields: an older one that applies the same manifest must not take them away.
		if unknown := existing.ProtoReflect().GetUnknown(); len(unknown) > 0 {
			wanted.ProtoReflect().SetUnknown(unknown)
		}
	}
	policy, isPolicy := wanted.(*storev1.Policy)
	if isPolicy {
		// The manifest does not know its revision, so it must not count as a difference.
		policy.Revision = existing.(*storev1.Policy).GetRevision()
	}
	if readable && proto.Equal(existing, wanted) {
		return nil, false
	}
	if isPolicy {
		counter.Revision++
		policy.Revision = counter.Revision
	}
	return wanted, true
}

// commit writes a plan and returns the store's revision, 0 if a condition did not hold.
func (w *Writer) commit(ctx context.Context, p *plan) (int64, error) {
	response, err := w.client.Txn(ctx).If(p.conditions...).Then(p.ops...).Commit()
	if err != nil || !response.Succeeded {
		return 0, err
	}
	return response.Header.Revision, nil
}

// add counts a plan that was committed.
func (r *Result) add(p *plan, revision int64) {
	r.Written += p.result.Written
	r.Deleted += p.result.Deleted
	r.Unchanged += p.result.Unchanged
	r.PolicyRevision = max(r.PolicyRevision, p.result.PolicyRevision)
	r.Revision = revision
}

// markFilled writes the markers of all kinds of which everything is known, and removes those of past fillings.
func (w *Writer) markFilled(ctx context.Context, epoch string, result *Result, unknown []string) error {
	marker, err := proto.Marshal(&storev1.Synced{Revision: uint64(result.Revision)})
	if err != nil {
		return err
	}
	all := w.prefix + string(KindSynced) + "/"
	// Two ranges around this epoch's markers, so that they are never absent in between.
	mine := all + epoch + "/"
	ops := []clientv3.Op{
		clientv3.OpDelete(all, clientv3.WithRange(mine)),
		clientv3.OpDelete(clientv3.GetPrefixRangeEnd(mine), clientv3.WithRange(clientv3.GetPrefixRangeEnd(all))),
	}
	for _, kind := range Filled() {
		if slices.ContainsFunc(unknown, func(prefix string) bool { return kindOf(prefix) == kind }) {
			continue
		}
		ops = append(ops, clientv3.OpPut(w.prefix+syncedKey(epoch, kind).String(), string(marker)))
	}
	response, err := w.client.Txn(ctx).Then(ops...).Commit()
	if err != nil {
		return fmt.Errorf("mark the store as filled: %w", err)
	}
	result.Revision = response.Header.Revision
	return nil
}
