// Package store is the one client of the cluster's store: an etcd whose keys lie under /tendril/v1/<cluster>/ and whose
// values are the records of api/store/v1.
//
// Reading (feed.go, applier.go, shelf.go, record.go, podreader.go): a Client keeps the tables equal to the store by one watch over the
// whole cluster. The store may be away for days, come back empty, be filled anew or lose its last writes. Then:
//
//   - a watch is resumed by revision only from a store of the same cluster id and epoch that is not behind us; all else
//     is read whole and applied as a difference
//   - no row is removed before the store says that its kind is complete (synced/<epoch>/<kind>), or its node's agent that
//     all its own keys are (synced/<epoch>/ips/<node>)
//   - a record that cannot be a row is kept out and reported; the last good row stays
//   - what was last known is on disk and in the tables before the store answers
//   - of several addresses one is the leader's (address.go); the store of a leader who was replaced is not followed, by the term in its epoch, with
//     which each leader begins (term.go)
//
// Writing by agents (publisher.go, send.go): a Publisher takes the node's own keys, writes them to a journal and sends them
// in order to the Publish service (package server), which checks that they are the node's own, and for the epoch that it keeps. When the store has a new epoch,
// all of them are sent again, and then the marker. When the marker comes back by the watch, addresses under this node that
// the publisher does not know, left by a lost journal or brought back by a backup, are removed.
//
// alive/<node> is the one leased key. Agents hold no lease, because they may only read: the Publish service does.
//
// Writing by the operator, the lab and `tendril apply` (writer.go): a Writer writes what differs and nothing else.
// Where a write has a say in load balancers' addresses, it gives them in the same transaction (pool.go).
//
// Who is who: credential.go is TLS with certificates that may be replaced at any time; enrolment.go has the node's own issued and renewed.
//
// Both files, snapshot and journal, are a log (log.go) that may be torn at any byte.
//
// The pace of everything is here and not at the callers: a limit on the rate of requests, back-off that doubles, intervals
// that grow with the logarithm of the cluster, jitter in all of them (pace.go, calls.go).
//
// Traps: etcd says nothing to a watch that asks for a revision from the future, so feed speaks the Watch protocol itself
// and asks who the store is before each; the header of a watch that catches up is newer than its events; a server that was
// wiped can have the same cluster id as before, only the epoch tells.
package store
