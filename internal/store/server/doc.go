// Package server is the store's other side: an etcd embedded in the process (server.go) or the way to one outside (relay.go), and the Publish
// service through which agents write (publish.go). Any number of servers may stand before one etcd outside.
//
// With TLS, agents read through reader.go, where etcd's own services answer what reads and refuse the rest; the embedded etcd itself listens at a
// unix socket for root. What agents write goes through Publish, which lets a node write the keys under its own name and nothing else. Who a
// node is, its certificate says, which authority.go may have issued; without TLS, in the lab, the claimed name counts.
//
// A heartbeat of alive/<node> renews the key's lease. The lease is looked up at the key, not remembered, so that any replica
// of the service can renew it.
//
// It is a package of its own because agents must not carry an etcd server along: only what runs a store imports it.
package server
