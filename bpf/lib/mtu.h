/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/*
 * Does the packet fit? Of a GSO packet the segments have to fit that it will be cut into. Those of SCTP are each of a size of its own, which
 * only the kernel knows.
 */
#pragma once

#include "packet.h"

/* mtu_size is the length of the largest IP packet that will be on the wire; 0: only the kernel knows. */
static __always_inline __u32 mtu_size(const struct __sk_buff *ctx, const struct packet *p)
{
	__u32 headers = p->transport - ETH_HLEN + p->transport_length;

	if (ctx->gso_size == PACKET_BY_FRAGS)
		return 0;
	return (ctx->gso_size ? ctx->gso_size + headers : p->length) + p->option;
}

/* mtu_list_fits asks the kernel whether a device takes each packet of a list of segments. */
static __always_inline bool mtu_list_fits(struct __sk_buff *ctx, __u32 device)
{
	__u32 length = 0; /* the packet's own */

	return bpf_check_mtu(ctx, device, &length, 0, BPF_MTU_CHK_SEGS) == BPF_MTU_CHK_RET_SUCCESS;
}

/* mtu_check ends the journey of what is too large, and notes the size that would have been right. mtu: of the device that it leaves by; 0: any */
static __always_inline int mtu_check(struct __sk_buff *ctx, struct packet *p, __u32 mtu, __u32 device)
{
	if (!mtu || (ctx->gso_size == PACKET_BY_FRAGS ? mtu_list_fits(ctx, device) : mtu_size(ctx, p) <= mtu))
		return GO_ON;
	p->mtu = mtu - p->option;
	return DROP_FRAG_NEEDED;
}
