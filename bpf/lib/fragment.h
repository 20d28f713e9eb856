/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/*
 * Step 3: fragments. Only the first has ports; the others follow it by (source, destination, id, protocol). One
 * that comes ahead of its first is dropped: it would pass unjudged otherwise.
 */
#pragma once

#include "packet.h"
#include "parse.h"

/* fragment_follow gives a later fragment the ports of its first, and remembers those of a first. */
__noinline int fragment_follow(struct __sk_buff *ctx, struct packet *p)
{
	struct fragment_key key = {};
	struct fragment *first, fresh;
	struct fragment_header header;
	__be16 id;

	if (!p)
		return DROP_INVALID_PACKET;
	key.source = p->source;
	key.destination = p->destination;
	key.protocol = p->protocol;
	if (p->flags & PACKET_IPV4) {
		if (bpf_skb_load_bytes(ctx, ETH_HLEN + offsetof(struct iphdr, id), &id, sizeof(id)))
			return DROP_INVALID_PACKET;
		key.id = id;
	} else {
		/* the fragment header of a later fragment is the last that was parsed, that of a first nearly always */
		if (bpf_skb_load_bytes(ctx, (p->transport & 0x1ff) - sizeof(header), &header, sizeof(header)))
			return DROP_INVALID_PACKET;
		key.id = header.id;
	}
	if (p->flags & PACKET_FIRST_FRAGMENT) {
		fresh = (struct fragment){.source_port = p->source_port, .destination_port = p->destination_port};
		bpf_map_update_elem(&fragments, &key, &fresh, BPF_ANY);
		return GO_ON;
	}
	first = bpf_map_lookup_elem(&fragments, &key);
	if (!first)
		return DROP_FRAG_ORDER;
	p->source_port = first->source_port;
	p->destination_port = first->destination_port;
	return GO_ON;
}

/* packet_is_fragment tells whether the step is needed at all. */
static __always_inline bool packet_is_fragment(const struct packet *p)
{
	return p->flags & (PACKET_FIRST_FRAGMENT | PACKET_LATER_FRAGMENT);
}
