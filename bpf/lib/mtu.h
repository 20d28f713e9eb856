/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/*
 * Does the packet fit? Of a GSO packet the segments have to fit that it will be cut into.
 */
#pragma once

#include "packet.h"

/* mtu_size is the length of the largest IP packet that will be on the wire. */
static __always_inline __u32 mtu_size(const struct __sk_buff *ctx, const struct packet *p)
{
	__u32 headers = p->transport - ETH_HLEN + p->transport_length;

	return (ctx->gso_size ? ctx->gso_size + headers : p->length) + p->option;
}

/* mtu_check ends the journey of what is too large, and notes the size that would have been right. */
static __always_inline int mtu_check(const struct __sk_buff *ctx, struct packet *p, __u32 mtu)
{
	if (!mtu || mtu_size(ctx, p) <= mtu)
		return GO_ON;
	p->mtu = mtu - p->option;
	return DROP_FRAG_NEEDED;
}
