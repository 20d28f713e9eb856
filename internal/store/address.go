package store

import (
	"fmt"
	random "math/rand/v2"
	"slices"
	"strings"
	"sync"
	"time"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	clientv3 "go.etcd.io/etcd/client/v3"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/keepalive"
	"google.golang.org/grpc/resolver"
	"google.golang.org/grpc/resolver/manual"
)

// addresses are where the store and the Publish service may be asked, for who makes connections of his own.
type addresses struct {
	mu             sync.Mutex
	store, publish []string
}

func (a *addresses) get() (store, publish []string) {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.store, a.publish
}

// Move has the client go to other addresses from now on. Connections to addresses that stay are kept. Of several stores that keep one cluster, one
// answers at a time: its leader's.
func (c *Client) Move(endpoints, publish []string) error {
	moved := c.config
	moved.Endpoints, moved.Publish = endpoints, publish
	if err := moved.Validate(); err != nil {
		return err
	}
	c.addresses.mu.Lock()
	gone := slices.ContainsFunc(c.addresses.store, func(addr string) bool { return !slices.Contains(endpoints, addr) })
	c.addresses.store, c.addresses.publish = endpoints, publish
	c.etcd.SetEndpoints(endpoints...)
	c.publish.several.UpdateState(stateOf(publish))
	c.addresses.mu.Unlock()
	c.mu.Lock()
	f := c.feed
	c.mu.Unlock()
	if gone && f != nil {
		f.endSession() // what is open would stay so for as long as the old store answers
	}
	return nil
}

// server is the one that a session of a feed is with. The client's own connection asks all servers in turn: of two operators who both believe to lead
// each would answer every other request, and no session would come to an end with either.
type server struct {
	kv    clientv3.KV
	conn  *grpc.ClientConn
	close func()
}

// dialServer makes a connection to the server that answered at addr. Of one address there is one server, and one behind a name cannot be told.
func dialServer(client *clientv3.Client, addr string) (server, error) {
	endpoints := client.Endpoints()
	at := slices.IndexFunc(endpoints, func(endpoint string) bool { return endpoint[strings.LastIndex(endpoint, "/")+1:] == addr })
	if len(endpoints) == 1 || at < 0 {
		return server{client, client.ActiveConnection(), func() {}}, nil
	}
	conn, err := client.Dial(endpoints[at])
	if err != nil {
		return server{}, fmt.Errorf("dial the store at %s: %w", addr, err)
	}
	kv := clientv3.NewKVFromKVClient(pb.NewKVClient(conn), client)
	return server{kv, conn, func() { _ = conn.Close() }}, nil
}

// publishConn is a connection to the Publish service at one of several addresses.
type publishConn struct {
	*grpc.ClientConn
	several *manual.Resolver
}

// dialPublish makes a connection to whoever of several answers; each call goes to another one, so that one whose own way to the store is broken
// is not asked again and again. A nil identity: plaintext.
func dialPublish(addrs []string, identity Identity) (*publishConn, error) {
	creds := insecure.NewCredentials()
	if identity != nil {
		creds = NewCredentials(identity)
	}
	several := manual.NewBuilderWithScheme("publish")
	several.InitialState(stateOf(addrs))
	conn, err := grpc.NewClient("publish:///"+addrs[0], grpc.WithResolvers(several), grpc.WithTransportCredentials(creds), reconnect(),
		grpc.WithDefaultServiceConfig(`{"loadBalancingConfig": [{"round_robin": {}}]}`),
		grpc.WithKeepaliveParams(keepalive.ClientParameters{Time: 20 * time.Second, Timeout: 5 * time.Second}))
	if err != nil {
		return nil, fmt.Errorf("dial publish servers %v: %w", addrs, err)
	}
	return &publishConn{conn, several}, nil
}

// stateOf lists addresses in an order that differs from node to node.
func stateOf(addrs []string) (state resolver.State) {
	for _, i := range random.Perm(len(addrs)) {
		state.Addresses = append(state.Addresses, resolver.Address{Addr: addrs[i], ServerName: addrs[i]})
	}
	return state
}
