package server

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"slices"
	"sync/atomic"
	"time"

	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	clientv3 "go.etcd.io/etcd/client/v3"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/peer"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"

	storev1 "tendril.io/tendril/api/store/v1"
	"tendril.io/tendril/internal/store"
)

// publishService is where agents write. It lets a node write its own keys and nothing else; the values go to the store
// byte for byte, so that fields of a newer version than the server's survive.
type publishService struct {
	storev1.UnimplementedPublishServer
	// May write everything; what follows is the only check.
	client *clientv3.Client
	// Of the cluster's keys; callers name keys without it.
	prefix string
	// named: a node must show a certificate of its name. Without it, in the lab, the claimed name counts.
	named bool
	// When what the store is filled from last said anything; may be nil.
	heard func() time.Time
	// The store's epoch as it was last read; nil: it was not, or has changed since. Every request has it for a condition.
	epoch atomic.Pointer[readEpoch]
}

// readEpoch is the key epoch as the store has it.
type readEpoch struct {
	id       string
	revision int64 // of its last change
}

// maxValue bounds what one key of an agent may hold.
const maxValue = 64 << 10

// Put applies writes of one node in one transaction.
func (s *publishService) Put(ctx context.Context, r *storev1.PutRequest) (*storev1.PutResponse, error) {
	if err := s.authenticate(ctx, r.GetNode()); err != nil {
		return nil, status.Error(codes.PermissionDenied, err.Error())
	}
	keys, code, err := checkWrites(r)
	if err != nil {
		return nil, status.Error(code, err.Error())
	}
	answer, err := s.commit(ctx, r, keys)
	if err != nil {
		return nil, grpcError(err)
	}
	return answer, nil
}

// Source implements the service.
func (s *publishService) Source(ctx context.Context, r *storev1.SourceRequest) (*storev1.SourceResponse, error) {
	if err := s.authenticate(ctx, r.GetNode()); err != nil {
		return nil, status.Error(codes.PermissionDenied, err.Error())
	}
	answer := &storev1.SourceResponse{}
	if s.heard != nil {
		answer.SilentMs = proto.Int64(time.Since(s.heard()).Milliseconds())
	}
	return answer, nil
}

// authenticate compares the claimed node with the certificate.
func (s *publishService) authenticate(ctx context.Context, node string) error {
	if err := store.CheckName(node); err != nil {
		return fmt.Errorf("node: %w", err)
	}
	if !s.named {
		return nil
	}
	caller, _ := peer.FromContext(ctx)
	leaf := store.Leaf(caller.AuthInfo)
	switch {
	case leaf == nil:
		return fmt.Errorf("node %q: no verified certificate; show one of an authority that the store believes", node)
	case leaf.Subject.CommonName != node && !slices.Contains(leaf.DNSNames, node):
		return fmt.Errorf("node %q: the certificate is of %q; a node writes under its own name only", node, leaf.Subject.CommonName)
	}
	return nil
}

// checkWrites refuses a request as a whole, naming the first key at fault, with the code to answer.
func checkWrites(r *storev1.PutRequest) ([]store.Key, codes.Code, error) {
	if n := len(r.GetWrites()); n == 0 || n > store.MaxWrites {
		return nil, codes.InvalidArgument, fmt.Errorf("node %q: %d writes, want 1 to %d", r.GetNode(), n, store.MaxWrites)
	}
	// All is judged before anything is written.
	keys := make([]store.Key, 0, len(r.GetWrites()))
	for _, w := range r.GetWrites() {
		key, err := store.ParseKey(w.GetKey())
		if err != nil {
			return nil, codes.InvalidArgument, err
		}
		if err := key.CheckOwner(r.GetNode()); err != nil {
			return nil, codes.PermissionDenied, err
		}
		// etcd would refuse it as well, but not say which.
		if slices.Contains(keys, key) {
			return nil, codes.InvalidArgument, fmt.Errorf("key %q: written twice in one transaction", key)
		}
		if err := checkValue(key, w); err != nil {
			return nil, codes.InvalidArgument, err
		}
		keys = append(keys, key)
	}
	return keys, codes.OK, nil
}

// checkValue refuses what readers could not read.
func checkValue(key store.Key, w *storev1.Write) error {
	if w.GetRemove() {
		if key.Kind == store.KindSynced {
			return fmt.Errorf("key %q: a marker is not removed by a node", key)
		}
		return nil
	}
	if len(w.GetValue()) > maxValue {
		return fmt.Errorf("key %q: %d bytes, the limit is %d", key, len(w.GetValue()), maxValue)
	}
	return store.CheckValue(key, w.GetValue())
}

var errEpochGone = errors.New("the store's epoch is another one")

// commit writes the transaction. What is for an epoch is written only while that is the store's.
func (s *publishService) commit(ctx context.Context, r *storev1.PutRequest, keys []store.Key) (*storev1.PutResponse, error) {
	answer := &storev1.PutResponse{}
	conditions, err := s.conditions(ctx, r, keys)
	if err != nil {
		return nil, err
	}
	var ops []clientv3.Op
	for i, w := range r.GetWrites() {
		name := s.prefix + keys[i].String()
		if w.GetRemove() {
			ops = append(ops, clientv3.OpDelete(name))
			continue
		}
		// Only a sign of life goes away by itself; all other keys outlive their agent.
		var options []clientv3.OpOption
		if keys[i].Kind == store.KindAlive {
			lease, seconds, same, err := s.lease(ctx, name, w.GetValue())
			if err != nil {
				return nil, err
			}
			answer.LeaseSeconds = uint32(seconds)
			if same { // all watchers would hear of each beat
				continue
			}
			options = append(options, clientv3.WithLease(lease))
		}
		ops = append(ops, clientv3.OpPut(name, string(w.GetValue()), options...))
	}
	response, err := s.client.Txn(ctx).If(conditions...).Then(ops...).Commit()
	switch {
	case err != nil:
		return nil, fmt.Errorf("node %q: write to the store: %w", r.GetNode(), err)
	case !response.Succeeded:
		s.epoch.Store(nil)
		return nil, errEpochGone
	}
	answer.Revision = response.Header.Revision
	return answer, nil
}

// conditions of a request: what a node has published to a store that has been replaced would be taken for published to the one that replaced it, and
// a marker that was long on its way would vouch for a filling that its node has not seen.
func (s *publishService) conditions(ctx context.Context, r *storev1.PutRequest, keys []store.Key) (conditions []clientv3.Cmp, err error) {
	var epochs []string
	if r.GetEpoch() != "" {
		epochs = append(epochs, r.GetEpoch())
	}
	for i, w := range r.GetWrites() {
		if keys[i].Kind == store.KindSynced && !w.GetRemove() {
			epochs = append(epochs, keys[i].First)
		}
	}
	slices.Sort(epochs)
	for _, epoch := range slices.Compact(epochs) {
		condition, err := s.epochIs(ctx, epoch)
		if err != nil {
			return nil, err
		}
		conditions = append(conditions, condition)
	}
	return conditions, nil
}

// epochIs is the condition that the store is still in an epoch. It is read only where another one was known: the transaction itself sees whether what
// is known is old.
func (s *publishService) epochIs(ctx context.Context, epoch string) (clientv3.Cmp, error) {
	name := s.prefix + string(store.KindEpoch)
	known := s.epoch.Load()
	if known == nil || known.id != epoch {
		response, err := s.client.Get(ctx, name, clientv3.WithSerializable())
		if err != nil {
			return clientv3.Cmp{}, fmt.Errorf("read epoch: %w", err)
		}
		if len(response.Kvs) == 0 {
			return clientv3.Cmp{}, errEpochGone
		}
		now, err := store.ReadEpoch(response.Kvs[0].Value)
		if err != nil || now.GetId() != epoch {
			return clientv3.Cmp{}, errEpochGone
		}
		known = &readEpoch{epoch, response.Kvs[0].ModRevision}
		s.epoch.Store(known)
	}
	return clientv3.Compare(clientv3.ModRevision(name), "=", known.revision), nil
}

// lease renews the lease of alive/<node>, or grants one. It tells how long the lease lasts and whether the store has the value
// under it already. The lease belongs to the key, not to this server: another replica finds it there.
func (s *publishService) lease(ctx context.Context, name string, value []byte) (id clientv3.LeaseID, seconds int64, same bool, err error) {
	current, err := s.client.Get(ctx, name)
	if err != nil {
		return 0, 0, false, fmt.Errorf("read %s: %w", name, err)
	}
	want, asked, err := s.leaseTime(ctx, name, value)
	if err != nil {
		return 0, 0, false, err
	}
	if len(current.Kvs) > 0 && current.Kvs[0].Lease != 0 {
		same = bytes.Equal(current.Kvs[0].Value, value)
		id = clientv3.LeaseID(current.Kvs[0].Lease)
		renewed, err := s.client.KeepAliveOnce(ctx, id)
		if err != nil && !errors.Is(err, rpctypes.ErrLeaseNotFound) {
			return 0, 0, false, fmt.Errorf("renew lease of %s: %w", name, err)
		}
		// Else the cluster has outgrown it, or the node asks for another. etcd may have granted more than was asked for.
		if err == nil && renewed.TTL >= want/2 && (same || renewed.TTL == want || !asked && renewed.TTL <= 2*want) {
			return id, renewed.TTL, same, nil
		}
	}
	granted, err := s.client.Grant(ctx, want)
	if err != nil {
		return 0, 0, false, fmt.Errorf("grant lease for %s: %w", name, err)
	}
	return granted.ID, granted.TTL, false, nil
}

// leaseTime is how many seconds a sign of life should last, and whether the node asked for it.
func (s *publishService) leaseTime(ctx context.Context, name string, value []byte) (seconds int64, asked bool, err error) {
	var alive storev1.Alive
	if err := proto.Unmarshal(value, &alive); err != nil {
		return 0, false, fmt.Errorf("%s: %w", name, err)
	}
	if alive.GetLeaseSeconds() > 0 {
		return int64(alive.GetLeaseSeconds()), true, nil
	}
	count, err := s.client.Get(ctx, s.prefix+string(store.KindNode)+"/", clientv3.WithPrefix(), clientv3.WithCountOnly())
	if err != nil {
		return 0, false, fmt.Errorf("count nodes: %w", err)
	}
	// Heartbeats are rarer in a large cluster, so leases must last longer.
	return int64(store.AliveTime(int(count.Count)) / time.Second), false, nil
}

// grpcError keeps apart what a caller must not repeat.
func grpcError(err error) error {
	// The node publishes to the new epoch once it has heard of it, or comes to the store that has this one.
	if errors.Is(err, errEpochGone) {
		return status.Error(codes.FailedPrecondition, err.Error())
	}
	// All else may be better in a while.
	return status.Error(codes.Unavailable, err.Error())
}
