package server

import (
	"context"
	"path"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/server/v3/etcdserver"
	"go.etcd.io/etcd/server/v3/etcdserver/api/v3rpc"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"tendril.io/tendril/internal/store"
)

// newReaderServer serves etcd's own services to whoever has a certificate, to read and for nothing else. etcd's users and roles
// would say the same, but need a user for every node, and the addition of each one would end the others' requests with an old
// revision of them.
func newReaderServer(etcd *etcdserver.EtcdServer, identity store.Identity) *grpc.Server {
	return v3rpc.Server(etcd, nil, readOnlyCall, grpc.Creds(store.NewCredentials(identity)), grpc.ChainStreamInterceptor(readOnlyStream))
}

// readOnlyCall lets ranges pass, alone or in transactions.
func readOnlyCall(ctx context.Context, request any, info *grpc.UnaryServerInfo, handle grpc.UnaryHandler) (any, error) {
	switch r := request.(type) {
	case *pb.RangeRequest:
		return handle(ctx, request)
	case *pb.TxnRequest:
		if readsOnly(r) {
			return handle(ctx, request)
		}
	}
	return nil, refuse(info.FullMethod)
}

// readsOnly looks into nested transactions as well.
func readsOnly(txn *pb.TxnRequest) bool {
	for _, list := range [][]*pb.RequestOp{txn.Success, txn.Failure} {
		for _, op := range list {
			nested := op.GetRequestTxn()
			if op.GetRequestRange() == nil && (nested == nil || !readsOnly(nested)) {
				return false
			}
		}
	}
	return true
}

// readOnlyStream lets watches pass. The one other stream that nodes could open would hand them a copy of the whole store.
func readOnlyStream(service any, stream grpc.ServerStream, info *grpc.StreamServerInfo, handle grpc.StreamHandler) error {
	if info.FullMethod != "/etcdserverpb.Watch/Watch" {
		return refuse(info.FullMethod)
	}
	return handle(service, stream)
}

func refuse(method string) error {
	return status.Errorf(codes.PermissionDenied,
		"%s: here the store can only be read; nodes write through the Publish service, people on the store's own machine through its unix socket", path.Base(method))
}
