package store

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"time"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/mvccpb"
	clientv3 "go.etcd.io/etcd/client/v3"
	"google.golang.org/grpc"
	"google.golang.org/grpc/peer"
	"google.golang.org/protobuf/proto"

	storev1 "tendril.io/tendril/api/store/v1"
)

// A feed keeps the tables equal to the store. One session after another:
//
//  1. ask the store who it is: cluster id, epoch, revision
//  2. if it is the one we know and not behind us, watch from our revision on; else read all of it and settle
//  3. watch the whole cluster's prefix until the stream breaks, is compacted away or the epoch changes
//
// It speaks etcd's Watch itself instead of through the client library's watcher, which reconnects and resumes by
// revision on its own, and so would wait without a word at a store that was wiped meanwhile.
type feed struct {
	// Finds a server that answers, of all addresses.
	client *clientv3.Client
	// What the session at hand is with; for its goroutine only.
	server server
	prefix string
	// Where records go; guarded by mu as well.
	applier *applier
	file    *logFile // nil: none is kept
	calls   *calls
	logger  *slog.Logger
	// Size of the cluster, for intervals.
	nodes func() int
	// told, outside the lock: the store has this epoch; force: it lost writes that we may have made, or this node's record.
	onEpoch func(epoch string, force bool)
	// told, under the lock: these are the keys of this node's addresses that the store has.
	onOwn func(addresses []Key)

	// Who the store was when it last answered, and how far we have followed it.
	mu          sync.Mutex // guards what follows and the applier
	cluster     uint64
	epoch       string
	term        uint64 // of the leader that keeps the store, see Epoch
	revision    int64  // of the last event applied; 0: none, a snapshot is due
	behind      bool   // the store went back in time; cleared once its kinds are marked complete again
	answered    time.Time
	isConnected bool
	lastError   string
	leave       context.CancelFunc // ends the session at hand
	loaded      chan struct{}      // closed once the tables hold the last known records
	synced      chan struct{}      // closed once the tables are complete for an epoch
	// Used again for each event, so that none costs an allocation.
	epochRecord storev1.Epoch
	scratch     []byte

	events []event // of the answer at hand; for the goroutine that receives only
}

// Keys of the snapshot file that are no keys of the store.
const (
	fileCluster  = "@cluster"
	fileRevision = "@revision"
)

const (
	pageSize      = 2000 // records a page of a snapshot
	callTimeout   = 10 * time.Second
	progressEvery = 30 * time.Second // an idle watch is asked for its revision, x log2(nodes)
)

// errEpochChanged ends a session that is followed at once by another.
var errEpochChanged = errors.New("the store was filled anew")

// errOther ends a session in which two stores answered: one that was replaced meanwhile, or those of two who both believe to lead.
var errOther = errors.New("the store is not the one that answered before")

// run goes from session to session until the context ends.
func (f *feed) run(ctx context.Context) error {
	var backoff Backoff
	for {
		backoff.Max = longest(retryMax, f.nodes())
		err := f.oneSession(ctx, &backoff)
		f.disconnected(err)
		if ctx.Err() != nil {
			return nil
		}
		// Nothing is wrong with the store, so there is nothing to wait for.
		if errors.Is(err, errEpochChanged) {
			continue
		}
		f.logger.Warn("store session ended", "error", err)
		if !sleep(ctx, backoff.Next()) {
			return nil
		}
	}
}

// oneSession is a session that endSession ends.
func (f *feed) oneSession(ctx context.Context, backoff *Backoff) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	f.mu.Lock()
	f.leave = cancel
	f.mu.Unlock()
	return f.session(ctx, backoff)
}

// endSession has another session begin.
func (f *feed) endSession() {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.leave != nil {
		f.leave()
	}
}

// session is steps 1 to 3.
func (f *feed) session(ctx context.Context, backoff *Backoff) error {
	head, record, addr, err := f.head(ctx)
	if err == nil {
		err = f.follows(record)
	}
	if err != nil {
		return err
	}
	if f.server, err = dialServer(f.client, addr); err != nil {
		return err
	}
	defer f.server.close()
	epoch := record.GetId()
	if f.resumable(head, epoch) {
		err = f.resume(ctx, head.ClusterId, epoch)
	} else {
		err = f.snapshot(ctx, head, epoch)
	}
	if err != nil {
		return err
	}
	backoff.Reset()
	f.connected()
	return f.watch(ctx)
}

// head asks whatever server answers who the store is, and says at which address that was. The answer is linearizable: a member that lags cannot give it.
func (f *feed) head(ctx context.Context) (*pb.ResponseHeader, *storev1.Epoch, string, error) {
	var response *pb.RangeResponse
	var from peer.Peer
	err := f.calls.read(ctx, "range", func(ctx context.Context) (err error) {
		request := &pb.RangeRequest{Key: []byte(f.prefix + string(KindEpoch))}
		response, err = pb.NewKVClient(f.client.ActiveConnection()).Range(ctx, request, grpc.Peer(&from))
		return err
	})
	if err != nil {
		return nil, nil, "", fmt.Errorf("ask the store for its epoch: %w", err)
	}
	f.touch()
	if len(response.Kvs) == 0 {
		return response.Header, nil, from.Addr.String(), nil
	}
	epoch, err := ReadEpoch(response.Kvs[0].Value)
	return response.Header, epoch, from.Addr.String(), err
}

// follows refuses the store of a leader who has been replaced and does not know it yet: it would lead back in time. A store that has no epoch is being
// filled, and takes nothing away.
func (f *feed) follows(epoch *storev1.Epoch) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	if epoch == nil {
		return nil
	}
	if epoch.GetTerm() != 0 && epoch.GetTerm() < f.term {
		return fmt.Errorf("the store that answered is of term %d, and that of term %d is known: another operator leads by now", epoch.GetTerm(), f.term)
	}
	f.term = epoch.GetTerm()
	return nil
}

// ReadEpoch decodes the value of the key epoch: the id of this filling of the store, and whose it is.
func ReadEpoch(value []byte) (*storev1.Epoch, error) {
	var m storev1.Epoch
	if err := proto.Unmarshal(value, &m); err != nil {
		return nil, fmt.Errorf("key %q: %w", KindEpoch, err)
	}
	if err := CheckName(m.GetId()); err != nil {
		return nil, fmt.Errorf("key %q: %w", KindEpoch, err)
	}
	return &m, nil
}

func (f *feed) get(ctx context.Context, key string, options ...clientv3.OpOption) (*clientv3.GetResponse, error) {
	var response *clientv3.GetResponse
	err := f.calls.read(ctx, "range", func(ctx context.Context) (err error) {
		response, err = f.server.kv.Get(ctx, key, options...)
		return err
	})
	if err == nil {
		f.touch()
	}
	return response, err
}

// resumable is the rule of when a revision means the same to the store as to us.
func (f *feed) resumable(head *pb.ResponseHeader, epoch string) bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.revision > 0 && f.cluster == head.ClusterId && f.epoch == epoch && head.Revision >= f.revision
}

// resume asks for the markers where they are not known, which is so after a start from the file.
func (f *feed) resume(ctx context.Context, cluster uint64, epoch string) error {
	f.calls.resumes.Add(1)
	f.mu.Lock()
	// Within one run the watch brings the markers; only a start from the file has none.
	known, lost := f.applier.complete(), !f.applier.hasSelf()
	f.mu.Unlock()
	if !known && epoch != "" {
		if err := f.readMarkers(ctx, cluster, epoch); err != nil {
			return err
		}
	}
	if epoch != "" {
		f.onEpoch(epoch, lost)
	}
	return nil
}

// readMarkers asks which kinds are complete for the epoch. Nothing is stale in a table that came from the file alone, so
// the answer can be newer than our revision.
func (f *feed) readMarkers(ctx context.Context, cluster uint64, epoch string) error {
	var reads []clientv3.Op
	for _, kind := range Filled() {
		reads = append(reads, clientv3.OpGet(f.prefix+syncedKey(epoch, kind).String(), clientv3.WithKeysOnly()))
	}
	var response *clientv3.TxnResponse
	err := f.calls.read(ctx, "txn", func(ctx context.Context) (err error) {
		response, err = f.server.kv.Txn(ctx).Then(reads...).Commit()
		return err
	})
	if err != nil {
		return fmt.Errorf("ask the store what is complete: %w", err)
	}
	if response.Header.GetClusterId() != cluster {
		return errOther
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.behind || len(f.applier.stale) > 0 {
		return nil
	}
	for i, kind := range Filled() {
		if len(response.Responses[i].GetResponseRange().GetKvs()) > 0 {
			f.applier.marks[syncedKey(epoch, kind)] = true
		}
	}
	f.saved()
	return nil
}

// snapshot reads the whole store at one revision and applies it as a difference.
func (f *feed) snapshot(ctx context.Context, head *pb.ResponseHeader, epoch string) error {
	f.mu.Lock()
	same := f.cluster == head.ClusterId && f.epoch == epoch
	f.behind = same && (f.behind || head.Revision < f.revision)
	behind, known := f.behind, f.epoch
	// Whatever is still wrong with the store is found again.
	clear(f.applier.problems)
	f.mu.Unlock()
	f.calls.snapshots.Add(1)
	f.logger.Info("reading the whole store", "revision", head.Revision, "epoch", epoch, "known_epoch", known, "behind", behind)

	// Keys, not rows: a bad record is in the store as well, and its last good row must not become stale.
	seen := map[Key]bool{}
	counters, err := f.pages(ctx, head, seen)
	if err != nil {
		return fmt.Errorf("read the store: %w", err)
	}
	f.mu.Lock()
	f.applier.settle(epoch, seen, !behind, f.keep)
	f.applier.apply(counters, f.keep)
	f.reportOwn()
	// All pages are of this revision; what was written since comes by the watch.
	f.cluster, f.epoch, f.revision = head.ClusterId, epoch, head.Revision
	_, has := seen[NodeKey(f.applier.self)]
	f.saved()
	f.mu.Unlock()
	if epoch != "" {
		f.onEpoch(epoch, behind || !has)
	}
	return nil
}

// pages reads all records at the revision of head and applies each page as it comes, except for the counters: those say how far
// the tables are, so they are for when the last page is in and what the store no longer has is out.
func (f *feed) pages(ctx context.Context, head *pb.ResponseHeader, seen map[Key]bool) (counters []event, err error) {
	from, end := f.prefix, clientv3.GetPrefixRangeEnd(f.prefix)
	for {
		page, err := f.get(ctx, from, clientv3.WithRange(end), clientv3.WithLimit(pageSize), clientv3.WithRev(head.Revision))
		if err != nil {
			return nil, err
		}
		if page.Header.GetClusterId() != head.ClusterId {
			return nil, errOther
		}
		events := make([]event, 0, len(page.Kvs))
		for _, kv := range page.Kvs {
			e := f.event(kv)
			if key, err := ParseKey(e.key); err == nil {
				seen[key] = true
				switch key.Kind {
				case KindSynced: // counts only once all pages are in: see settle
					continue
				case KindCounter:
					counters = append(counters, e)
					continue
				}
			}
			events = append(events, e)
		}
		f.take(events)
		if !page.More {
			return counters, nil
		}
		// The first key after the last one.
		from = string(page.Kvs[len(page.Kvs)-1].Key) + "\x00"
	}
}

// take applies events.
func (f *feed) take(events []event) {
	if len(events) == 0 {
		return
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	f.applier.apply(events, f.keep)
	f.calls.events.Add(uint64(len(events)))
	f.reportOwn()
}

// reportOwn tells the publisher what the store has under this node, once the node's marker shows that nothing of it is
// still on its way. It comes before saved: a start after a crash in between reads the marker again.
func (f *feed) reportOwn() {
	if f.applier.takeSelfDone() {
		f.onOwn(f.applier.ownAddresses())
	}
}

// keep writes an event that changed the tables to the snapshot file.
func (f *feed) keep(e event) {
	if f.file == nil {
		return
	}
	if err := f.file.append(0, e.key, e.value, e.remove); err != nil {
		f.logger.Warn("snapshot file", "error", err)
	}
}

// saved notes in the file up to where it is true. While rows are stale it does not, so that an agent that starts now
// reads the whole store again and knows them for stale.
func (f *feed) saved() {
	if f.applier.complete() {
		f.behind = false
		closeOnce(f.synced)
	}
	if f.epoch != "" {
		closeOnce(f.loaded)
	}
	if f.file == nil || len(f.applier.stale) > 0 || f.behind {
		return
	}
	f.epochRecord.Id, f.epochRecord.Term = f.epoch, f.term
	f.scratch, _ = proto.MarshalOptions{}.MarshalAppend(f.scratch[:0], &f.epochRecord)
	f.keep(event{key: string(KindEpoch), value: f.scratch})
	f.scratch = binary.LittleEndian.AppendUint64(f.scratch[:0], f.cluster)
	f.keep(event{key: fileCluster, value: f.scratch})
	f.scratch = binary.LittleEndian.AppendUint64(f.scratch[:0], uint64(f.revision))
	f.keep(event{key: fileRevision, value: f.scratch})
}

// closeOnce closes a channel that only the holder of the lock closes.
func closeOnce(done chan struct{}) {
	select {
	case <-done:
	default:
		close(done)
	}
}

// watch is step 3. It returns an error in every case: a watch that ends has no other reason.
func (f *feed) watch(ctx context.Context) error {
	ctx, cancel := context.WithCancel(clientv3.WithRequireLeader(ctx))
	defer cancel()
	// A stream of our own: see the type.
	stream, err := pb.NewWatchClient(f.server.conn).Watch(ctx, grpc.WaitForReady(false))
	if err != nil {
		return fmt.Errorf("open watch: %w", err)
	}
	f.mu.Lock()
	from := f.revision + 1
	f.mu.Unlock()
	create := &pb.WatchCreateRequest{
		Key: []byte(f.prefix), RangeEnd: []byte(clientv3.GetPrefixRangeEnd(f.prefix)), StartRevision: from,
	}
	err = stream.Send(&pb.WatchRequest{RequestUnion: &pb.WatchRequest_CreateRequest{CreateRequest: create}})
	if err != nil {
		return fmt.Errorf("create watch: %w", err)
	}
	answers := make(chan struct{}, 1)
	// Whoever of the two ends first ends the other, and poll's reason is the better one: it knows of a silence.
	done := make(chan error, 1)
	go func() { done <- f.poll(ctx, stream, answers, cancel) }()
	err = f.receive(stream, answers)
	cancel()
	if polled := <-done; polled != nil {
		return polled
	}
	return err
}

// receive takes what the stream brings.
func (f *feed) receive(stream pb.Watch_WatchClient, answers chan<- struct{}) error {
	for {
		response, err := stream.Recv()
		if err != nil {
			return fmt.Errorf("watch: %w", err)
		}
		f.touch()
		select {
		case answers <- struct{}{}:
		default:
		}
		if err := f.response(response); err != nil {
			return err
		}
	}
}

// response applies one answer of the watch.
func (f *feed) response(r *pb.WatchResponse) error {
	f.mu.Lock()
	other := r.Header.GetClusterId() != f.cluster || (r.Created && r.Header.GetRevision() < f.revision)
	f.mu.Unlock()
	switch {
	case other:
		return fmt.Errorf("watch: %w", errOther)
	case r.Canceled && r.CompactRevision > 0:
		f.mu.Lock()
		f.revision = 0 // what we missed is gone: read everything
		f.mu.Unlock()
		return fmt.Errorf("watch: compacted up to revision %d", r.CompactRevision)
	case r.Canceled:
		return fmt.Errorf("watch: cancelled by the store: %s", r.CancelReason)
	}
	return f.changes(r)
}

// changes applies the events of an answer. Where the epoch changes among them, nothing is removed: the removals may be
// those of a wipe, and the snapshot that follows tells.
func (f *feed) changes(r *pb.WatchResponse) error {
	changed := f.changesEpoch(r.Events)
	events := f.events[:0]
	defer func() { f.events = emptied(events) }()
	for _, e := range r.Events {
		remove := e.Type == mvccpb.DELETE
		if changed && (remove || hasKind(e.Kv.Key[len(f.prefix):], KindSynced)) {
			continue
		}
		change := f.event(e.Kv)
		change.remove = remove
		events = append(events, change)
	}
	f.take(events)
	if changed {
		return errEpochChanged
	}
	f.followed(r)
	f.answerLoss()
	return nil
}

// event copies a key. A pod's value is copied with it, as one string: nothing else comes and goes as often.
func (f *feed) event(kv *mvccpb.KeyValue) event {
	key := kv.Key[len(f.prefix):]
	if !hasKind(key, KindPod) {
		return event{key: string(key), value: kv.Value}
	}
	f.scratch = append(append(f.scratch[:0], key...), kv.Value...)
	both := string(f.scratch)
	return event{key: both[:len(key)], text: both[len(key):], value: kv.Value}
}

// emptied keeps the room of a list for the next answer, unless it was one of the rare large ones, and nothing of what was in it.
func emptied(events []event) []event {
	if cap(events) > MaxWrites {
		return nil
	}
	clear(events)
	return events
}

// answerLoss has this node's keys published again if its record was removed: the operator took the node for gone.
func (f *feed) answerLoss() {
	f.mu.Lock()
	lost, epoch := f.applier.takeSelfLost() && !f.applier.hasSelf(), f.epoch
	f.mu.Unlock()
	if lost && epoch != "" {
		f.onEpoch(epoch, true)
	}
}

// followed notes how far an answer of the watch leads.
func (f *feed) followed(r *pb.WatchResponse) {
	f.mu.Lock()
	defer f.mu.Unlock()
	revision := r.Header.GetRevision()
	if len(r.Events) > 0 { // a watch that catches up has a header from the future
		revision = r.Events[len(r.Events)-1].Kv.ModRevision
	}
	// The answer to the creation has the store's revision, and none of the events up to it.
	if revision > f.revision && !r.Created {
		f.revision = revision
		f.saved()
	}
}

func hasKind(key []byte, kind Kind) bool {
	return len(key) > len(kind) && key[len(kind)] == '/' && string(key[:len(kind)]) == string(kind)
}

func (f *feed) changesEpoch(events []*mvccpb.Event) bool {
	for _, e := range events {
		if string(e.Kv.Key[len(f.prefix):]) != string(KindEpoch) {
			continue
		}
		epoch, err := ReadEpoch(e.Kv.Value)
		if e.Type == mvccpb.DELETE || err != nil || epoch.GetId() != f.epoch || epoch.GetTerm() != f.term {
			return true
		}
	}
	return false
}

// poll asks an idle watch for its revision now and then, and ends it if no answer comes: a store that is gone without
// a word would otherwise look like one where nothing happens.
func (f *feed) poll(ctx context.Context, stream pb.Watch_WatchClient, answers <-chan struct{}, end func()) error {
	ask := &pb.WatchRequest{RequestUnion: &pb.WatchRequest_ProgressRequest{ProgressRequest: &pb.WatchProgressRequest{}}}
	for {
		if !sleep(ctx, Interval(progressEvery, f.nodes())) {
			return nil
		}
		select { // drop answers to what came before the question
		case <-answers:
		default:
		}
		if err := stream.Send(ask); err != nil {
			return nil // receive has the reason
		}
		select {
		case <-answers:
		case <-ctx.Done():
			return nil
		// The connection may be up and the store hang.
		case <-time.After(callTimeout):
			end()
			return fmt.Errorf("watch: no answer within %v", callTimeout)
		}
	}
}

// maintain writes the snapshot file out and compacts it, at intervals that grow with the cluster.
func (f *feed) maintain(ctx context.Context) error {
	for sleep(ctx, Interval(2*time.Second, f.nodes())) {
		if err := f.flush(); err != nil {
			f.logger.Warn("snapshot file", "error", err)
		}
	}
	return nil
}

func (f *feed) flush() error {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.file == nil {
		return nil
	}
	if f.file.bloated() {
		return f.file.compact(func(uint64) bool { return false })
	}
	return f.file.flush()
}

// sleep waits, and says whether the context still goes on.
func sleep(ctx context.Context, d time.Duration) bool {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-ctx.Done():
		return false
	case <-timer.C:
		return true
	}
}

func (f *feed) touch() {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.answered = time.Now()
}

func (f *feed) connected() {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.isConnected, f.lastError = true, ""
}

func (f *feed) disconnected(err error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	// The revision stays: the next session decides whether it still means anything.
	f.isConnected = false
	f.lastError = err.Error()
}

// load fills the tables from the snapshot file, before the store answers.
func (f *feed) load(path string) error {
	// The last write of a key counts. The file is read whole first, so that a row is made once.
	last := map[string][]byte{}
	var err error
	var torn int64
	f.file, torn, err = openLog(path, func(_ uint64, w *storev1.Write) {
		if w.GetRemove() {
			delete(last, w.GetKey())
			return
		}
		last[w.GetKey()] = w.GetValue()
	})
	if err != nil {
		return err
	}
	if torn > 0 {
		f.logger.Warn("snapshot file was torn", "path", path, "bytes_lost", torn)
	}
	f.restore(last)
	return nil
}

// restore takes what the file held. Markers are not in it: they are asked of the store.
func (f *feed) restore(last map[string][]byte) {
	f.mu.Lock()
	defer f.mu.Unlock()
	// Without all three the rows still count, and the store is read whole.
	if epoch, err := ReadEpoch(last[string(KindEpoch)]); err == nil && len(last[fileCluster]) == 8 && len(last[fileRevision]) == 8 {
		f.epoch, f.term = epoch.GetId(), epoch.GetTerm()
		f.cluster = binary.LittleEndian.Uint64(last[fileCluster])
		f.revision = int64(binary.LittleEndian.Uint64(last[fileRevision]))
		f.applier.epoch = f.epoch
	}
	events := make([]event, 0, len(last))
	for key, value := range last {
		// Not the three above, and nothing of a kind that this version does not know.
		if kind := kindOf(key); f.applier.shelves[kind] != nil {
			events = append(events, event{key: key, value: value})
		}
	}
	if len(events) > 0 {
		f.applier.apply(events, func(event) {})
		closeOnce(f.loaded)
	}
}
