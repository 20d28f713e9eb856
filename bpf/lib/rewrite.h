/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/*
 * Translation of addresses and ports in the packet, checksums included. One path for both families: the difference of
 * two 16-byte addresses is that of their last 4 bytes if both are IPv4.
 *
 * SCTP's checksum is another one: sctp.h.
 */
#pragma once

#include "packet.h"
#include "parse.h"
#include "sctp.h"

enum rewrite_end {
	REWRITE_SOURCE = 0,
	REWRITE_DESTINATION = 1,
};

/* rewrite_checksum is the offset of the transport checksum from the transport header, -1: the protocol has none. */
static __always_inline int rewrite_checksum(__u8 protocol)
{
	switch (protocol) {
	case IPPROTO_TCP:
		return 16;
	case IPPROTO_UDP:
		return 6;
	case IPPROTO_ICMP:
	case IPPROTO_ICMPV6:
		return 2;
	}
	return -1;
}

/* rewrite_address puts an address into the IP header and corrects the IP checksum. */
static __always_inline int rewrite_address(struct __sk_buff *ctx, __u32 ip, bool v4, __u32 end,
					   const union address *address, __s64 difference)
{
	__u32 offset = ip + (v4 ? 12 : 8) + (end == REWRITE_DESTINATION ? (v4 ? 4 : 16) : 0);

	if (!v4)
		return bpf_skb_store_bytes(ctx, offset, address, 16, BPF_F_RECOMPUTE_CSUM);
	if (bpf_skb_store_bytes(ctx, offset, &address->word[3], 4, 0))
		return -1;
	return bpf_l3_csum_replace(ctx, ip + offsetof(struct iphdr, check), 0, difference, 0);
}

/* rewrite_port puts a port, or the id of an ICMP echo, into the transport header. */
static __always_inline int rewrite_port(struct __sk_buff *ctx, struct packet *p, __u32 end, __be16 was, __be16 port)
{
	__u32 transport = p->transport & 0x1ff;
	__u32 offset = transport + (end == REWRITE_DESTINATION ? 2 : 0);
	int checksum = rewrite_checksum(p->protocol);

	if (p->protocol == IPPROTO_SCTP)
		return sctp_port(ctx, p, offset - transport, was, port);
	if (p->flags & PACKET_ICMP_ECHO)
		offset = transport + 4;
	if (bpf_skb_store_bytes(ctx, offset, &port, sizeof(port), 0))
		return -1;
	return bpf_l4_csum_replace(ctx, transport + checksum, was, port,
				   sizeof(port) | (p->protocol == IPPROTO_UDP ? BPF_F_MARK_MANGLED_0 : 0));
}

/* rewrite_packet changes one end of the packet to an address and port; p follows. */
__noinline int rewrite_packet(struct __sk_buff *ctx, struct packet *p, __u32 end, const union address *to, __u32 port)
{
	union address *at, address;
	int checksum, difference;
	__be16 was;

	if (!p || !to)
		return DROP_REWRITE;
	address = *to;
	at = end == REWRITE_SOURCE ? &p->source : &p->destination;
	was = end == REWRITE_SOURCE ? p->source_port : p->destination_port;
	checksum = rewrite_checksum(p->protocol);
	difference = bpf_csum_diff(at->word, 16, address.word, 16, 0);
	if (rewrite_address(ctx, ETH_HLEN, p->flags & PACKET_IPV4, end, &address, difference))
		return DROP_REWRITE;
	*at = address;
	if (p->flags & PACKET_LATER_FRAGMENT || (checksum < 0 && p->protocol != IPPROTO_SCTP))
		return GO_ON;
	if (checksum >= 0 && p->protocol != IPPROTO_ICMP &&
	    bpf_l4_csum_replace(ctx, (p->transport & 0x1ff) + checksum, 0, difference,
				BPF_F_PSEUDO_HDR | (p->protocol == IPPROTO_UDP ? BPF_F_MARK_MANGLED_0 : 0)))
		return DROP_REWRITE;
	if (!port || port == was || p->flags & PACKET_ICMP_ERROR)
		return GO_ON;
	if (rewrite_port(ctx, p, end, was, port))
		return DROP_REWRITE;
	if (p->flags & PACKET_ICMP_ECHO)
		p->source_port = p->destination_port = port;
	else if (end == REWRITE_SOURCE)
		p->source_port = port;
	else
		p->destination_port = port;
	return GO_ON;
}
