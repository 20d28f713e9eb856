/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/*
 * The last step of every journey: count it, report a drop, and say to the kernel what becomes of the packet.
 */
#pragma once

#include "event.h"
#include "packet.h"

/* finish_quiet tells drops that are the daily noise of a link: counted, not reported. */
static __always_inline bool finish_quiet(int reason)
{
	return reason == DROP_MULTICAST;
}

static __always_inline int finish(struct __sk_buff *ctx, struct packet *p, int reason)
{
	__u32 index = (__u32)reason % REASON_COUNT * HOOK_COUNT + p->hook;
	struct counter *counter = bpf_map_lookup_elem(&counters, &index);

	if (counter) {
		counter->packets++;
		counter->bytes += p->length;
	}
	switch (reason) {
	case REASON_FORWARDED:
	case REASON_ANSWERED:
		return TC_ACT_REDIRECT;
	case REASON_TO_STACK:
	case REASON_PASSED:
		return TC_ACT_OK;
	}
	if (!finish_quiet(reason))
		event_drop(p, reason);
	return TC_ACT_SHOT;
}
