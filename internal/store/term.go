package store

import (
	"context"
	"fmt"

	clientv3 "go.etcd.io/etcd/client/v3"
	"google.golang.org/protobuf/proto"

	storev1 "tendril.io/tendril/api/store/v1"
)

// BeginTerm makes a store that a leader keeps his own for a new term, before anybody reads it; it says whether what was in it stays. It does where it
// is of the term before, in which nobody else led; agents then go on where they were. Else others have led since: policies and addresses are in it that
// are gone by now, and must not come back to agents even for a moment, so all is removed and the store has another epoch.
func BeginTerm(ctx context.Context, client *clientv3.Client, cluster string, term, before uint64) (kept bool, err error) {
	prefix := Prefix(cluster)
	name := prefix + string(KindEpoch)
	response, err := client.Get(ctx, name)
	if err != nil {
		return false, fmt.Errorf("read the store's epoch: %w", err)
	}
	epoch := &storev1.Epoch{}
	for _, kv := range response.Kvs { // one or none; what cannot be read is not of the term before
		if read, err := ReadEpoch(kv.Value); err == nil {
			epoch = read
		}
	}
	var ops []clientv3.Op
	if kept = epoch.GetTerm() != 0 && (epoch.GetTerm() == before || epoch.GetTerm() == term); !kept {
		epoch = &storev1.Epoch{Id: newEpoch()}
		ops = append(ops, // all but the epoch: a transaction writes a key once
			clientv3.OpDelete(prefix, clientv3.WithRange(name)), clientv3.OpDelete(name+"\x00", clientv3.WithRange(clientv3.GetPrefixRangeEnd(prefix))))
	}
	epoch.Term = term
	value, err := proto.Marshal(epoch)
	if err != nil {
		return false, err
	}
	if _, err := client.Txn(ctx).Then(append(ops, clientv3.OpPut(name, string(value)))...).Commit(); err != nil {
		return false, fmt.Errorf("begin term %d in the store: %w", term, err)
	}
	return kept, nil
}
