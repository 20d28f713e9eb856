package server

import (
	"context"
	"path"
	"strings"
	"time"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	clientv3 "go.etcd.io/etcd/client/v3"
	"go.etcd.io/etcd/server/v3/etcdserver"
	"go.etcd.io/etcd/server/v3/etcdserver/api/v3rpc"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/keepalive"
	"google.golang.org/grpc/status"

	"tendril.io/tendril/internal/store"
)

// newReaderServer serves etcd's own services to whoever has a certificate, to read and for nothing else. etcd's users and roles
// would say the same, but need a user for every node, and the addition of each one would end the others' requests with an old
// revision of them.
func newReaderServer(etcd *etcdserver.EtcdServer, read readable, identity store.Identity) *grpc.Server {
	return v3rpc.Server(etcd, nil, read.call, grpc.Creds(store.NewCredentials(identity)), grpc.ChainStreamInterceptor(read.stream), patience())
}

// patience is with agents' pings on a quiet watch, one in 10 s: without it they would be sent away after half a minute.
func patience() grpc.ServerOption {
	return grpc.KeepaliveEnforcementPolicy(keepalive.EnforcementPolicy{MinTime: pingTime})
}

// pingTime is how often a client may ask at most whether its connection is alive.
const pingTime = 5 * time.Second

// readable is the part of etcd that nodes may read: keys that begin so. An etcd outside may hold what is others'.
type readable string

// call lets ranges pass, alone or in transactions.
func (r readable) call(ctx context.Context, request any, info *grpc.UnaryServerInfo, handle grpc.UnaryHandler) (any, error) {
	allowed := false
	switch request := request.(type) {
	case *pb.RangeRequest:
		allowed = r.covers(request.Key, request.RangeEnd)
	case *pb.TxnRequest:
		allowed = r.onlyRead(request)
	}
	if !allowed {
		return nil, r.refuse(info.FullMethod)
	}
	return handle(ctx, request)
}

// covers is for a key, and the end of a range that begins with it (empty: none).
func (r readable) covers(key, end []byte) bool {
	return strings.HasPrefix(string(key), string(r)) && string(end) <= clientv3.GetPrefixRangeEnd(string(r)) && string(end) != "\x00" // without end
}

// onlyRead looks into nested transactions as well.
func (r readable) onlyRead(txn *pb.TxnRequest) bool {
	for _, condition := range txn.Compare {
		if !r.covers(condition.Key, condition.RangeEnd) {
			return false
		}
	}
	for _, list := range [][]*pb.RequestOp{txn.Success, txn.Failure} {
		for _, op := range list {
			one, nested := op.GetRequestRange(), op.GetRequestTxn()
			if (one == nil || !r.covers(one.Key, one.RangeEnd)) && (nested == nil || !r.onlyRead(nested)) {
				return false
			}
		}
	}
	return true
}

// stream lets watches pass. The one other stream that nodes could open would hand them a copy of the whole store.
func (r readable) stream(service any, stream grpc.ServerStream, info *grpc.StreamServerInfo, handle grpc.StreamHandler) error {
	if info.FullMethod != "/etcdserverpb.Watch/Watch" {
		return r.refuse(info.FullMethod)
	}
	return handle(service, watched{stream, r})
}

// watched is a stream of requests to watch.
type watched struct {
	grpc.ServerStream
	readable readable
}

// RecvMsg ends the stream at a request that is not allowed.
func (w watched) RecvMsg(message any) error {
	if err := w.ServerStream.RecvMsg(message); err != nil {
		return err
	}
	request, ok := message.(*pb.WatchRequest)
	if ok && request.GetCreateRequest() != nil && !w.readable.covers(request.GetCreateRequest().Key, request.GetCreateRequest().RangeEnd) {
		return w.readable.refuse("/etcdserverpb.Watch/Watch")
	}
	return nil
}

func (r readable) refuse(method string) error {
	return status.Errorf(codes.PermissionDenied,
		"%s: here the store can only be read, and only below %s; nodes write through the Publish service, people at etcd itself", path.Base(method), string(r))
}
