// Package netlink owns the agent's talk with rtnetlink: pods' devices, classifiers, the overlay device, routes,
// sysctls of the network, and watching what the kernel has.
//
// A Handle belongs to one network namespace and never to "the current one": sockets stay in the namespace they were
// opened in, and whatever needs a thread inside it (opening sockets, /proc/sys/net) goes through enter.
//
// A pod's device may be another plugin's (adopt.go): it is found, carries our programs, and is closed and left, never removed.
//
// Adding a pod is hot, and most of its time is the kernel's RTNL lock. So its messages are written here by hand and
// sent in batches (conn.go), nothing is dumped, and a device is named, numbered and placed into its namespace by
// the one message that makes it. Everything else uses the netlink library's own calls.
//
// Traps: a batch is not a transaction, later messages run even if an earlier one failed; a route is refused while its
// device is down; a fresh TCX link waits for an RCU grace period under RTNL, which is why classifiers are cls_bpf.
package netlink
