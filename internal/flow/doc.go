// Package flow is the memory and the voice of the datapath's events: it keeps them, filters them, and says in names
// what they mean.
//
// An event's way, in the order of the files:
//
//	event.go    bytes of the ring buffer become a bpf.Event
//	ring.go     the last so many events are kept as they came; followers read them at their own pace and learn what
//	            they missed
//	filter.go   what a follower does not want is passed over, by numbers first and by names last
//	record.go   numbers become names through a Resolver: an agentv1.Flow, the record that leaves the agent
//	observe.go  the whole way for one caller
//	text.go     a record as one line for people
//	ledger.go   the counters' side: every packet in is forwarded, handed on or dropped for a reason
//
// Storing an event costs a copy and no allocation; names are resolved only for records that somebody reads. The price:
// a record is told with the names of the moment of reading, so a Resolver should remember what left a little longer.
//
// The package is pure but for one mutex and one wake-up channel in Ring: it reads no clock and starts no goroutine.
package flow
