/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/*
 * Events for the agent. A reader is woken only when config.event_wakeup_bytes wait unread, never per event; what
 * does not fit is counted in TALLY_EVENTS_LOST.
 */
#pragma once

#include "packet.h"

/* Events whose wake-up may coincide when several CPUs pass the mark at once. */
#define EVENT_WAKEUP_WINDOW (4 * (sizeof(struct event) + 8))

static __always_inline struct event *event_reserve(void)
{
	struct event *event = bpf_ringbuf_reserve(&events, sizeof(*event), 0);

	if (!event) /* tested once: kernel 6.1 does not see that a second test has the same answer */
		tally_add(TALLY_EVENTS_LOST);
	return event;
}

/* event_submit publishes an event, and wakes the reader each time that another event_wakeup_bytes have piled up. */
static __always_inline void event_submit(struct event *event)
{
	__u64 unread = bpf_ringbuf_query(&events, BPF_RB_AVAIL_DATA);
	__u32 mark = config.event_wakeup_bytes;
	bool wake = !mark || (unread >= mark && unread % mark < EVENT_WAKEUP_WINDOW);

	tally_add(TALLY_EVENTS_SENT);
	bpf_ringbuf_submit(event, wake ? BPF_RB_FORCE_WAKEUP : BPF_RB_NO_WAKEUP);
}

/* event_flow reports a flow in the direction in which it was opened. what is an enum event_kind | hook << 8. */
__noinline int event_flow(const struct flow_key *key, const struct flow *flow, __u32 what)
{
	struct event *event;
	bool low;

	if (!key || !flow || !feature_on(FEATURE_FLOW_RECORDS))
		return 0;
	event = event_reserve();
	if (!event)
		return 0;
	low = flow->flags & FLOW_LOW_IS_SOURCE;
	event->time = bpf_ktime_get_ns();
	event->source = low ? key->low : key->high;
	event->destination = low ? key->high : key->low;
	event->source_port = low ? key->low_port : key->high_port;
	event->destination_port = low ? key->high_port : key->low_port;
	event->protocol = key->protocol;
	event->service = flow->service;
	event->service_port = flow->service_port;
	event->nat_port = flow->nat_port;
	event->forward = flow->forward;
	event->reverse = flow->reverse;
	event->duration = event->time - flow->created;
	event->source_peer = flow->source_peer;
	event->destination_peer = flow->destination_peer;
	event->source_endpoint = flow->source_endpoint;
	event->destination_endpoint = flow->destination_endpoint;
	event->egress_rule = flow->egress.rule;
	event->ingress_rule = flow->ingress.rule;
	event->staged_egress_rule = flow->egress.staged_rule;
	event->staged_ingress_rule = flow->ingress.staged_rule;
	event->egress_action = flow->egress.action;
	event->ingress_action = flow->ingress.action;
	event->staged_egress_action = flow->egress.staged_action;
	event->staged_ingress_action = flow->ingress.staged_action;
	event->kind = what & 0xff;
	event->hook = what >> 8;
	event->reason = REASON_FORWARDED;
	event->tcp_flags = flow->tcp_forward | flow->tcp_reverse;
	event->state = flow->state;
	__builtin_memset(event->reserved, 0, sizeof(event->reserved));
	event_submit(event);
	return 0;
}

/* event_drop reports the end of a packet's journey. */
__noinline int event_drop(const struct packet *p, __u32 reason)
{
	struct event *event;

	if (!p)
		return 0;
	event = event_reserve();
	if (!event)
		return 0;
	event->time = bpf_ktime_get_ns();
	event->source = p->source;
	event->destination = p->destination;
	event->source_port = p->source_port;
	event->destination_port = p->destination_port;
	event->protocol = p->protocol;
	event->service = p->service;
	event->service_port = p->service_port;
	event->nat_port = 0;
	event->forward = (struct traffic){.packets = 1, .bytes = p->length};
	event->reverse = (struct traffic){};
	event->duration = 0;
	event->source_peer = p->from.peer;
	event->destination_peer = p->to.peer;
	event->source_endpoint = p->from.endpoint;
	event->destination_endpoint = p->to.endpoint;
	event->egress_rule = p->egress_rule;
	event->ingress_rule = p->ingress_rule;
	event->staged_egress_rule = p->staged_egress_rule;
	event->staged_ingress_rule = p->staged_ingress_rule;
	event->egress_action = p->egress_action;
	event->ingress_action = p->ingress_action;
	event->staged_egress_action = p->staged_egress_action;
	event->staged_ingress_action = p->staged_ingress_action;
	event->kind = EVENT_DROP;
	event->hook = p->hook;
	event->reason = reason;
	event->tcp_flags = p->tcp_flags;
	event->state = 0;
	__builtin_memset(event->reserved, 0, sizeof(event->reserved));
	event_submit(event);
	return 0;
}
