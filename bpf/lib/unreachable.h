/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/*
 * Whether the sender of a UDP packet is told that its service has no backend: by a port unreachable (icmp_answer), which the
 * socket sees as a refused connection, as TCP sees a reset. Anybody can make us send these, so they are paced.
 */
#pragma once

#include "icmp.h"
#include "packet.h"
#include "service.h"

/* unreachable_single tells a source that is one machine's from what an error must not go to (RFC 1122 3.2.2, RFC 4443 2.4 e). */
static __always_inline bool unreachable_single(const struct packet *p)
{
	const union address *source = &p->source;

	if (p->flags & PACKET_IPV4)
		return source->bytes[12] && source->bytes[12] != 127 && source->bytes[12] < 224;
	return address_set(source) && source->bytes[0] != 0xff;
}

/*
 * unreachable_paced takes a place among the errors that the CPU may send (RFC 1812 4.3.2.8, RFC 4443 2.4 f): UNREACHABLE_RATE a second, and
 * UNREACHABLE_BURST at once. `unreachable_pace` is the instant up to which places are taken (the virtual scheduling of ITU-T I.371).
 */
static __always_inline bool unreachable_paced(void)
{
	__u64 now = bpf_ktime_get_ns(), burst = UNREACHABLE_BURST * SECOND / UNREACHABLE_RATE;
	__u32 zero = 0;
	__u64 *taken = bpf_map_lookup_elem(&unreachable_pace, &zero);

	if (!taken)
		return false;
	if (*taken < now)
		*taken = now;
	if (*taken >= now + burst) {
		tally_add(TALLY_UNREACHABLE_HELD);
		return false;
	}
	*taken += SECOND / UNREACHABLE_RATE;
	return true;
}

/*
 * unreachable_due tells whether a packet of UDP that no backend takes is to be answered. From the wire (endpoint 0) only if the
 * service has none at all: a node without any of its own keeps silent, so that clients do not take it for the service.
 */
__noinline int unreachable_due(struct __sk_buff *ctx, struct packet *p, __u32 endpoint_index)
{
	struct frontend_key key = {};
	struct frontend *frontend;
	__u32 transport;

	if (!p || p->protocol != IPPROTO_UDP || packet_is_fragment(p) || !unreachable_single(p))
		return 0;
	transport = ETH_HLEN + (p->flags & PACKET_IPV4 ? sizeof(struct iphdr) : sizeof(struct ipv6hdr));
	if (p->transport != transport || ctx->pkt_type == 1 /* PACKET_BROADCAST */ || ctx->pkt_type == 2 /* PACKET_MULTICAST */)
		return 0;
	if (!endpoint_index) {
		frontend = service_frontend(p, &key);
		if (!frontend || frontend->inside.count)
			return 0;
	}
	if (!unreachable_paced())
		return 0;
	tally_add(TALLY_UNREACHABLE_SENT);
	return 1;
}
