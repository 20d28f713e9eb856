/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/*
 * Addresses that the node answers for on its uplink's link though no device has them: a load balancer's, an external one.
 * The agent says for how long (struct announcement); nobody answers any more when the agent does not say so again, be it
 * dead or without a lease. Who else says on the link to have such an address is noted (struct rival): it is a conflict while
 * the node has a lease, and takes the address over while it has none.
 *
 * The node itself asks like anybody, and is answered by its own hook on the way out: then what it sends to such an address gets as far
 * as net_out, where a service may have to do with it.
 */
#pragma once

#include "neighbour.h"
#include "packet.h"
#include "parse.h"

#define ANNOUNCE_SOLICITED bpf_htonl(0x60000000) /* RFC 4861 4.4: solicited, override */
#define ANNOUNCE_UNASKED bpf_htonl(0x20000000)   /* override; the answer to who has no address yet is not solicited, 7.2.4 */

/* announce_find is the announcement of an address if the node answers for it now. */
static __always_inline struct announcement *announce_find(const union address *address)
{
	struct announcement *announcement = bpf_map_lookup_elem(&announcements, address);
	struct rival *rival;

	if (!announcement || announcement->until <= bpf_ktime_get_boot_ns())
		return NULL;
	if (!announcement->yields)
		return announcement;
	rival = bpf_map_lookup_elem(&rivals, address);
	return rival && rival->seen >= announcement->yields ? NULL : announcement;
}

/* announce_heard notes that somebody else says to have an address. */
static __always_inline void announce_heard(const union address *address, const __u8 *mac)
{
	struct announcement *announcement = bpf_map_lookup_elem(&announcements, address);
	struct rival rival = {};

	if (!announcement || !__builtin_memcmp(announcement->mac, mac, ETH_ALEN))
		return;
	rival.seen = bpf_ktime_get_boot_ns();
	__builtin_memcpy(rival.mac, mac, ETH_ALEN);
	bpf_map_update_elem(&rivals, address, &rival, BPF_ANY);
}

/* announce_send returns the frame to whom it came from, or to all. */
static __always_inline int announce_send(struct __sk_buff *ctx, const struct packet *p, const struct announcement *announcement, bool all)
{
	struct ethhdr *ethernet = (void *)(long)ctx->data;

	if ((void *)(ethernet + 1) > (void *)(long)ctx->data_end)
		return DROP_INVALID_PACKET;
	__builtin_memcpy(ethernet->h_dest, ethernet->h_source, ETH_ALEN);
	__builtin_memcpy(ethernet->h_source, announcement->mac, ETH_ALEN);
	if (all) { /* 33:33 and the group's last four bytes, RFC 2464 7 */
		__builtin_memset(ethernet->h_dest, 0, ETH_ALEN);
		ethernet->h_dest[0] = ethernet->h_dest[1] = 0x33;
		ethernet->h_dest[5] = 1;
	}
	ctx->mark = MARK_FORWARDED;
	return bpf_redirect(ctx->ifindex, packet_of_node(p) ? BPF_F_INGRESS : 0) == TC_ACT_REDIRECT ? REASON_ANSWERED : DROP_NO_ROUTE;
}

/* announce_arp answers who asks for an announced address; all other ARP is the stack's, also what it says of such an address. */
__noinline int announce_arp(struct __sk_buff *ctx, const struct packet *p)
{
	struct arp_packet *arp = (void *)(long)ctx->data + ETH_HLEN;
	struct announcement *announcement;
	union address sender, target;
	__be32 asker;

	if (!p || ctx->protocol != bpf_htons(ETH_P_ARP) || (void *)(arp + 1) > (void *)(long)ctx->data_end ||
	    arp->protocol != bpf_htons(ETH_P_IP))
		return REASON_TO_STACK;
	address_from4(&sender, arp->sender);
	address_from4(&target, arp->target);
	announce_heard(&sender, arp->sender_mac);
	if (arp->operation != bpf_htons(ARP_REQUEST) || arp->sender == arp->target)
		return REASON_TO_STACK;
	announcement = announce_find(&target);
	if (!announcement)
		return REASON_TO_STACK;
	asker = arp->sender;
	arp->operation = bpf_htons(ARP_REPLY);
	__builtin_memcpy(arp->target_mac, arp->sender_mac, ETH_ALEN);
	__builtin_memcpy(arp->sender_mac, announcement->mac, ETH_ALEN);
	arp->sender = arp->target;
	arp->target = asker;
	return announce_send(ctx, p, announcement, false);
}

/* announce_nd does the same for neighbour discovery, and leaves all other multicast and messages of the link to the stack. */
__noinline int announce_nd(struct __sk_buff *ctx, struct packet *p)
{
	struct ethhdr *ethernet = (void *)(long)ctx->data;
	struct announcement *announcement;
	struct nd_answer answer = {};
	union address target;
	int reason;

	if (!p || p->protocol != IPPROTO_ICMPV6 || (p->icmp_type != ND_SOLICITATION && p->icmp_type != ND_ADVERTISEMENT))
		return REASON_TO_STACK;
	if ((void *)(ethernet + 1) > (void *)(long)ctx->data_end || !nd_target(ctx, p, &target))
		return REASON_TO_STACK;
	if (p->icmp_type == ND_ADVERTISEMENT) {
		announce_heard(&target, ethernet->h_source);
		return REASON_TO_STACK;
	}
	announcement = announce_find(&target);
	if (!announcement)
		return REASON_TO_STACK;
	answer.target = target;
	answer.asker = p->source;
	answer.flags = ANNOUNCE_SOLICITED;
	if (!address_set(&answer.asker)) { /* it asks whether the address is free: all nodes hear the answer */
		answer.asker.bytes[0] = 0xff;
		answer.asker.bytes[1] = 0x02;
		answer.asker.bytes[15] = 1;
		answer.flags = ANNOUNCE_UNASKED;
	}
	__builtin_memcpy(answer.link_address, announcement->mac, ETH_ALEN);
	reason = nd_write(ctx, &answer);
	return reason == GO_ON ? announce_send(ctx, p, announcement, !address_set(&p->source)) : reason;
}

/*
 * announce_unclaimed tells a frame that the node would send to itself by the wire: for an announced address, whose link address is the node's
 * own, at a port that is no service's.
 */
static __always_inline bool announce_unclaimed(struct __sk_buff *ctx)
{
	struct ethhdr *ethernet = (void *)(long)ctx->data;

	return (void *)(ethernet + 1) <= (void *)(long)ctx->data_end && !__builtin_memcmp(ethernet->h_dest, ethernet->h_source, ETH_ALEN);
}
