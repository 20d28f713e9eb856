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

/* finish_count counts a packet and its bytes. */
static __always_inline void finish_count(int reason, __u8 hook, __u32 length)
{
	__u32 index = (__u32)reason % REASON_COUNT * HOOK_COUNT + hook;
	struct counter *counter = bpf_map_lookup_elem(&counters, &index);

	if (counter) {
		counter->packets++;
		counter->bytes += length;
	}
}

/* finish_marked lets a packet pass that another hook has sent out. */
static __always_inline int finish_marked(const struct __sk_buff *ctx, __u8 hook)
{
	finish_count(REASON_PASSED, hook, ctx->len - ETH_HLEN);
	return TC_ACT_OK;
}

static __always_inline int finish(struct __sk_buff *ctx, struct packet *p, int reason)
{
	finish_count(reason, p->hook, p->length);
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
