/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/*
 * ARP (RFC 826) and neighbour discovery (RFC 4861) between a pod and its gateway. The datapath answers for the gateway's
 * addresses with the link address of the pod's own device; the pod's answers to the node go to the stack; the
 * rest is dropped quietly, because a pod has no other neighbour. A chained pod believes that it has, such as the other
 * ports of a bridge: it is answered for every address but its own, so that all it sends is routed here.
 */
#pragma once

#include "address.h"
#include "packet.h"
#include "parse.h"

#define ND_SOLICITATION 135 /* RFC 4861 4.3 */
#define ND_ADVERTISEMENT 136
#define ND_FLAGS bpf_htonl(0xe0000000) /* router, solicited, override */
#define ND_TARGET_LINK_ADDRESS 2

/* A neighbour advertisement with its one option. */
struct nd_advertisement {
	__u8 type;
	__u8 code;
	__sum16 check;
	__be32 flags;
	union address target;
	__u8 option;
	__u8 option_length;         /* in 8 bytes */
	__u8 link_address[6];
} __attribute__((packed, aligned(4)));

/* neighbour_send turns the frame round, from the host's device to the pod's. */
static __always_inline int neighbour_send(struct __sk_buff *ctx, const struct endpoint *endpoint)
{
	struct ethhdr *ethernet = (void *)(long)ctx->data;

	if ((void *)(ethernet + 1) > (void *)(long)ctx->data_end)
		return DROP_INVALID_PACKET;
	__builtin_memcpy(ethernet->h_dest, endpoint->pod_mac, ETH_ALEN);
	__builtin_memcpy(ethernet->h_source, endpoint->host_mac, ETH_ALEN);
	if (ctx->pkt_type != 0 /* PACKET_HOST */)
		bpf_skb_change_type(ctx, 0); /* the question was a broadcast or multicast, the answer is not */
	return bpf_redirect_peer(endpoint->ifindex, 0) == TC_ACT_REDIRECT ? REASON_ANSWERED : DROP_NO_ROUTE;
}

/* neighbour_answered tells whether the datapath answers a pod that asks who has an address. */
static __always_inline bool neighbour_answered(const struct endpoint *endpoint, const union address *target, const union address *router)
{
	if (!address_set(target))
		return false;
	return endpoint->flags & ENDPOINT_CHAINED ? !address_of_endpoint(endpoint, target) : address_equal(target, router);
}

/* neighbour_on_link makes a frame that goes on to the stack, or to a bridge, one from the pod, and, unless it is an answer to a neighbour's
 * question, one to this node: a bridge then takes it nowhere else. What the pod wrote does not count. */
static __always_inline int neighbour_on_link(struct __sk_buff *ctx, const struct endpoint *endpoint, bool answer)
{
	struct ethhdr *ethernet = (void *)(long)ctx->data;

	if ((void *)(ethernet + 1) > (void *)(long)ctx->data_end)
		return DROP_INVALID_PACKET;
	__builtin_memcpy(ethernet->h_source, endpoint->pod_mac, ETH_ALEN);
	if (answer)
		return REASON_TO_STACK;
	__builtin_memcpy(ethernet->h_dest, endpoint->host_mac, ETH_ALEN);
	if (ctx->pkt_type != 0 /* PACKET_HOST */)
		bpf_skb_change_type(ctx, 0);
	return REASON_TO_STACK;
}

/* arp_follow answers a pod's question for its gateway. */
static __always_inline int arp_follow(struct __sk_buff *ctx, const struct endpoint *endpoint)
{
	struct arp_packet *arp = (void *)(long)ctx->data + ETH_HLEN;
	union address target, router = config.router4;
	__be32 asker;

	if ((void *)(arp + 1) > (void *)(long)ctx->data_end || arp->protocol != bpf_htons(ETH_P_IP))
		return DROP_INVALID_PACKET;
	if (arp->sender != endpoint->address4.word[3])
		return arp->sender ? DROP_SPOOFED_SOURCE : DROP_MULTICAST; /* none: a pod asks whether its address is free */
	if (arp->operation == bpf_htons(ARP_REPLY))
		return REASON_TO_STACK;
	target = (union address){.word = {0, 0, bpf_htonl(0xffff), arp->target}};
	if (!arp->target || !neighbour_answered(endpoint, &target, &router))
		return DROP_MULTICAST;
	asker = arp->sender;
	arp->operation = bpf_htons(ARP_REPLY);
	__builtin_memcpy(arp->target_mac, arp->sender_mac, ETH_ALEN);
	__builtin_memcpy(arp->sender_mac, endpoint->host_mac, ETH_ALEN);
	arp->sender = arp->target;
	arp->target = asker;
	return neighbour_send(ctx, endpoint);
}

/* What an advertisement says, and to whom. */
struct nd_answer {
	union address target;
	union address asker;
	__be32 flags;
	__u8 link_address[6];
	__u8 reserved[2];
};

/* nd_checksum is the ICMPv6 checksum of an advertisement (RFC 8200 8.1). */
static __always_inline __sum16 nd_checksum(const struct nd_answer *ends, const struct nd_advertisement *answer)
{
	__be32 rest[2] = {bpf_htonl(sizeof(*answer)), bpf_htonl(IPPROTO_ICMPV6)};
	__s64 sum = bpf_csum_diff(NULL, 0, (__be32 *)ends->asker.word, 16, 0);

	sum = bpf_csum_diff(NULL, 0, (__be32 *)ends->target.word, 16, sum);
	sum = bpf_csum_diff(NULL, 0, rest, sizeof(rest), sum);
	sum = bpf_csum_diff(NULL, 0, (__be32 *)answer, sizeof(*answer), sum);
	sum = (sum & 0xffff) + (sum >> 16);
	sum = (sum & 0xffff) + (sum >> 16);
	return ~sum;
}

/* nd_write writes the advertisement over the solicitation, which has no extension headers. */
__noinline int nd_write(struct __sk_buff *ctx, struct nd_answer *answer)
{
	__u32 transport = ETH_HLEN + sizeof(struct ipv6hdr);
	__be16 length = bpf_htons(sizeof(struct nd_advertisement));
	struct nd_advertisement message = {
		.type = ND_ADVERTISEMENT,
		.option = ND_TARGET_LINK_ADDRESS,
		.option_length = 1,
	};

	if (!answer)
		return DROP_REWRITE;
	message.flags = answer->flags;
	message.target = answer->target;
	__builtin_memcpy(message.link_address, answer->link_address, ETH_ALEN);
	message.check = nd_checksum(answer, &message);
	if (bpf_skb_change_tail(ctx, transport + sizeof(message), 0) ||
	    bpf_skb_store_bytes(ctx, transport, &message, sizeof(message), 0) ||
	    bpf_skb_store_bytes(ctx, ETH_HLEN + offsetof(struct ipv6hdr, payload_len), &length, sizeof(length), 0) ||
	    bpf_skb_store_bytes(ctx, ETH_HLEN + offsetof(struct ipv6hdr, saddr), &answer->target, 16, 0) ||
	    bpf_skb_store_bytes(ctx, ETH_HLEN + offsetof(struct ipv6hdr, daddr), &answer->asker, 16, 0))
		return DROP_REWRITE;
	return GO_ON;
}

/* nd_message tells the messages of neighbour discovery and multicast listeners, which never go further than the link. */
static __always_inline bool nd_message(const struct packet *p)
{
	if (p->protocol != IPPROTO_ICMPV6)
		return false;
	return (p->icmp_type >= 130 && p->icmp_type <= 137) || p->icmp_type == 143;
}

/* nd_target reads whom a message is about. RFC 4861 7.1: a hop limit of 255 shows that no router has forwarded it. */
static __always_inline bool nd_target(struct __sk_buff *ctx, const struct packet *p, union address *target)
{
	return p->ttl == 255 && p->transport == ETH_HLEN + sizeof(struct ipv6hdr) &&
	       !bpf_skb_load_bytes(ctx, ETH_HLEN + sizeof(struct ipv6hdr) + 8, target, sizeof(*target));
}

/* nd_follow answers a pod's question for its gateway. */
static __always_inline int nd_follow(struct __sk_buff *ctx, struct packet *p, const struct endpoint *endpoint)
{
	union address target, router = config.router6;
	struct nd_answer answer;
	int reason;

	if (p->icmp_type != ND_SOLICITATION && p->icmp_type != ND_ADVERTISEMENT)
		return DROP_MULTICAST;
	if (!nd_target(ctx, p, &target))
		return DROP_INVALID_PACKET;
	if (p->icmp_type == ND_ADVERTISEMENT) {
		if (packet_multicast(p))
			return DROP_MULTICAST;
		return address_equal(&target, &endpoint->address6) ? REASON_TO_STACK : DROP_SPOOFED_SOURCE;
	}
	if (!address_set(&p->source) || !neighbour_answered(endpoint, &target, &router))
		return DROP_MULTICAST;
	answer = (struct nd_answer){.target = target, .asker = p->source, .flags = ND_FLAGS};
	__builtin_memcpy(answer.link_address, endpoint->host_mac, ETH_ALEN);
	reason = nd_write(ctx, &answer);
	return reason == GO_ON ? neighbour_send(ctx, endpoint) : reason;
}
