// Package operator keeps the store equal to a Kubernetes cluster: it is the one reader of the Kubernetes API, so that agents
// ask the API server for nothing.
//
// An object's way, a file each:
//
//  1. trim.go: an informer hands every object over as the API server sent it; what no record is made of is thrown away
//     before the object is kept in memory.
//  2. watch.go: which kinds the API server has, an informer for each, and the names of what changed.
//  3. mirror.go: objects become records by internal/kube, and only records that differ from what was last written become
//     writes. A node's heartbeat or a pod's new condition ends here.
//  4. operator.go: the leader writes them. The first writing, and any after a failure, is a whole one: it also
//     removes what the cluster no longer has, but for kinds that cannot be listed. The store is looked at every second.
//
// Beside them, and each at its own pace: crd.go defines kinds, address.go writes the addresses of load balancers into the status
// of Services, rollout.go into that of policies where they are in force, podpool.go gives nodes the prefixes of their pods, identity.go writes down who pods are,
// authority.go keeps the authority of the store's certificates and replaces it, certificate.go knows which node an agent's token proves, and
// departed.go removes what agents of gone nodes have left. liveness.go listens below all of them whether the API server is there. All that is written to the API server is server-side applied as one
// field manager, so that what belongs to others stays theirs.
//
// Replicas take turns by a lease (lead.go). Two that both believe to lead do no harm: with one store outside they write the same, and each write is
// conditional on what was read (internal/store, writer.go); of two stores agents follow the one of the later term (internal/store, term.go).
package operator
