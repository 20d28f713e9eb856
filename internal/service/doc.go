// Package service is the service brain: it turns services and endpoint slices into frontends, slots and backends.
//
// Stages of a change, in the order of the files:
//
//	input.go    SetService, SetBackends, SetNode note what changed and who claims which frontend
//	select.go   which endpoints of a service's slices take part behind which frontends, and which only live on
//	slots.go    the order of backends behind a frontend: each once (random), or a Maglev table
//	publish.go  numbers for backends and slot ranges; the Delta between what the kernel has and what it should have
//	view.go     the same as rows for people
//	problem.go  what keeps the kernel from having what was asked for, and what to do
//
// Apart from that, pool.go says which pool gives which address to which service; the writer of the store asks it.
//
// A frontend refers to a range of slots, a slot to a backend's number. A range is never written while a frontend
// refers to it: other content gets another range, the frontend moves over in one write, and the old range is released.
// A frontend has two ranges: one for clients of its node, one for those of elsewhere, to which externalTrafficPolicy applies.
// What is published depends only on the inputs and not on their order; numbers alone depend on history.
//
// The package is pure: no I/O, clock, log or goroutine, and not safe for concurrent use. It is not for the choice of a
// slot: that is the datapath's, a random number or (FRONTEND_HASH) a hash of the connection's tuple, modulo the slot count.
package service
