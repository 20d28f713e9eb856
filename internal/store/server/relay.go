package server

import (
	"context"
	"errors"
	"io"
	"math"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	clientv3 "go.etcd.io/etcd/client/v3"
	"google.golang.org/grpc"
	"google.golang.org/grpc/metadata"

	"tendril.io/tendril/internal/store"
)

// newRelayServer serves what nodes may read of an etcd outside, message by message as it came: revisions, cluster id and errors are etcd's own. So
// nodes need no right at etcd and no certificate that it knows, and may read here whoever of the replicas they ask. A nil identity: plaintext.
func newRelayServer(etcd *clientv3.Client, read readable, identity store.Identity) *grpc.Server {
	options := []grpc.ServerOption{grpc.UnaryInterceptor(read.call), grpc.StreamInterceptor(read.stream), patience()}
	if identity != nil {
		options = append(options, grpc.Creds(store.NewCredentials(identity)))
	}
	server := grpc.NewServer(options...)
	conn := etcd.ActiveConnection()
	pb.RegisterKVServer(server, &relayedKV{client: pb.NewKVClient(conn)})
	pb.RegisterWatchServer(server, &relayedWatch{client: pb.NewWatchClient(conn)})
	return server
}

// whole is for answers of any size, as etcd's own client takes them.
func whole() grpc.CallOption { return grpc.MaxCallRecvMsgSize(math.MaxInt32) }

// onward has the caller's wish that its etcd member is part of a majority, and ends with the call.
func onward(ctx context.Context) context.Context {
	asked, _ := metadata.FromIncomingContext(ctx)
	if values := asked.Get(rpctypes.MetadataRequireLeaderKey); len(values) > 0 {
		return metadata.AppendToOutgoingContext(ctx, rpctypes.MetadataRequireLeaderKey, values[0])
	}
	return ctx
}

// relayedKV passes on what may be read.
type relayedKV struct {
	pb.UnimplementedKVServer
	client pb.KVClient
}

// Range implements etcd's.
func (r *relayedKV) Range(ctx context.Context, request *pb.RangeRequest) (*pb.RangeResponse, error) {
	return r.client.Range(onward(ctx), request, whole())
}

// Txn implements etcd's.
func (r *relayedKV) Txn(ctx context.Context, request *pb.TxnRequest) (*pb.TxnResponse, error) {
	return r.client.Txn(onward(ctx), request, whole())
}

// relayedWatch has a stream to etcd for each that nodes have open.
type relayedWatch struct {
	pb.UnimplementedWatchServer
	client pb.WatchClient
}

// Watch implements etcd's. When either side ends, so does the other.
func (r *relayedWatch) Watch(node pb.Watch_WatchServer) error {
	ctx, cancel := context.WithCancelCause(onward(node.Context()))
	defer cancel(nil)
	etcd, err := r.client.Watch(ctx, whole())
	if err != nil {
		return err
	}
	go func() { // until the call has ended
		for {
			request, err := node.Recv()
			if err == nil {
				err = etcd.Send(request)
			}
			if err != nil {
				cancel(err)
				return
			}
		}
	}()
	for {
		response, err := etcd.Recv()
		if cause := context.Cause(ctx); err != nil && cause != nil {
			err = cause // the node has ended, or asked for what it may not read
		}
		if err == nil {
			err = node.Send(response)
		}
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
	}
}
