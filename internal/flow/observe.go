package flow

import (
	"context"
	"math"

	agentv1 "tendril.io/tendril/api/agent/v1"
	"tendril.io/tendril/bpf"
)

// Query is what an observer asks for.
type Query struct {
	Filter Filter
	Last   int  // how many past records; 0 with Follow: none; 0 without: all kept
	Follow bool // go on with new records until the context ends
}

// ParseQuery checks a request. Errors name the field and what it may be.
func ParseQuery(r *agentv1.ObserveRequest) (Query, error) {
	filter, err := ParseFilter(r)
	return Query{Filter: filter, Last: int(r.GetLast()), Follow: r.GetFollow()}, err
}

// Observe sends the records that a query asks for, past ones first, in the order of events. It returns the first error
// of send, and nil when the context ends or the past is told and the query does not follow. Record.Lost counts all
// events missed since the record before, wanted or not: nobody knows what they were.
func (r *Ring) Observe(ctx context.Context, q Query, d *Decoder, send func(*agentv1.Flow) error) error {
	o := observer{query: q, decoder: d, send: send, follower: r.Follow(q.Follow && q.Last == 0)}
	o.until, _ = r.Totals()
	if err := o.sendPast(ctx); err != nil || !q.Follow {
		return err
	}
	for o.until = math.MaxUint64; ctx.Err() == nil; {
		more, err := o.step(send)
		if err != nil {
			return err
		}
		if !more && o.follower.Wait(ctx) != nil {
			return nil
		}
	}
	return nil
}

// observer is one caller's way through the ring.
type observer struct {
	query    Query
	decoder  *Decoder
	send     func(*agentv1.Flow) error
	follower *Follower
	until    uint64 // sequence number of the first event that is not read: a busy ring would never let go
	lost     uint64 // not told yet
	buf      [64]bpf.Event
}

// step reads some events and gives wanted ones to take; it says whether there were any.
func (o *observer) step(take func(*agentv1.Flow) error) (bool, error) {
	left := o.until - min(o.until, o.follower.next)
	n, lost := o.follower.Read(o.buf[:min(left, uint64(len(o.buf)))])
	o.lost += lost
	for i := range o.buf[:n] {
		// Numbers first: most events of a busy node are not wanted, and names cost forty times a copy.
		e := &o.buf[i]
		if !o.query.Filter.wantsEvent(e, o.decoder.BootUnixNano) {
			continue
		}
		flow := o.decoder.Flow(e)
		if !o.query.Filter.wantsFlow(flow) {
			continue
		}
		flow.Lost, o.lost = o.lost, 0
		if err := take(flow); err != nil {
			return false, err
		}
	}
	return n > 0, nil
}

// sendPast sends what the query asks for of the records that are kept now.
func (o *observer) sendPast(ctx context.Context) error {
	if o.query.Last > 0 {
		return o.sendLast()
	}
	for ctx.Err() == nil {
		if more, err := o.step(o.send); err != nil || !more {
			return err
		}
	}
	return nil
}

// sendLast sends the last so many of the wanted records that are kept now. What was lost ahead of the first of them is
// not told.
func (o *observer) sendLast() error {
	var last []*agentv1.Flow
	keep := func(flow *agentv1.Flow) error {
		// Compacted now and then rather than shifted each time: constant work a record.
		if len(last) == 2*o.query.Last {
			last = last[:copy(last, last[o.query.Last:])]
		}
		last = append(last, flow)
		return nil
	}
	for more := true; more; {
		var err error
		if more, err = o.step(keep); err != nil {
			return err
		}
	}
	last = last[max(0, len(last)-o.query.Last):]
	for i, flow := range last {
		if i == 0 {
			flow.Lost = 0
		}
		if err := o.send(flow); err != nil {
			return err
		}
	}
	return nil
}
