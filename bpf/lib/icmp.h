/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/*
 * ICMP errors. Those that pass are about a flow: the quoted packet says which, and is translated back along with the
 * outer header. Those that the datapath makes itself tell a sender that its packet was too large, went too far, or that nobody is
 * behind the port.
 *
 * A quoted transport checksum is left as it is: receivers do not look at it, and often it was cut off.
 */
#pragma once

#include "conntrack.h"
#include "deliver.h"
#include "packet.h"
#include "parse.h"
#include "rewrite.h"

#define ICMP_QUOTE 20        /* bytes quoted behind the IP header: past any transport checksum still to be filled in */
#define ICMP_QUOTE_UDP 8     /* the same of what is UDP: all its header, so that the shortest packet has as much */

/* The packet that an ICMP error quotes. */
struct quote {
	union address source;
	union address destination;
	__be16 source_port;
	__be16 destination_port;
	__u16 network;              /* bytes from the Ethernet header to the quoted IP header */
	__u16 transport;            /* and to the quoted transport header */
	__u8 protocol;
	__u8 echo;                  /* not 0: its ports are the id of an ICMP echo */
	__u8 reserved[2];
};

/* quote_transport reads the quoted ports. */
static __always_inline int quote_transport(struct __sk_buff *ctx, struct quote *q)
{
	struct transport_start start = {};
	__u8 type;

	if (bpf_skb_load_bytes(ctx, q->transport & 0x3ff, &start, sizeof(start)))
		return DROP_INVALID_PACKET;
	type = *(__u8 *)&start;
	switch (q->protocol) {
	case IPPROTO_TCP:
	case IPPROTO_UDP:
	case IPPROTO_SCTP:
		q->source_port = start.source_port;
		q->destination_port = start.destination_port;
		return GO_ON;
	case IPPROTO_ICMP:
		q->echo = type == ICMP_ECHO || type == ICMP_ECHOREPLY;
		break;
	case IPPROTO_ICMPV6:
		q->echo = type == ICMPV6_ECHO_REQUEST || type == ICMPV6_ECHO_REPLY;
		break;
	}
	if (q->echo)
		q->source_port = q->destination_port = start.id;
	return GO_ON;
}

/* quote_read reads the quoted headers. An IPv6 quote with extension headers is not followed. */
static __always_inline int quote_read(struct __sk_buff *ctx, const struct packet *p, struct quote *q)
{
	struct ipv6hdr ip6;
	struct iphdr ip4;

	q->network = (p->transport & 0x1ff) + 8;
	if (p->flags & PACKET_IPV4) {
		if (bpf_skb_load_bytes(ctx, q->network & 0x3ff, &ip4, sizeof(ip4)) || ip4.ihl < 5)
			return DROP_INVALID_PACKET;
		address_from4(&q->source, ip4.saddr);
		address_from4(&q->destination, ip4.daddr);
		q->protocol = ip4.protocol;
		q->transport = q->network + ip4.ihl * 4;
		return quote_transport(ctx, q);
	}
	if (bpf_skb_load_bytes(ctx, q->network & 0x3ff, &ip6, sizeof(ip6)))
		return DROP_INVALID_PACKET;
	__builtin_memcpy(&q->source, &ip6.saddr, 16);
	__builtin_memcpy(&q->destination, &ip6.daddr, 16);
	q->protocol = ip6.nexthdr;
	q->transport = q->network + sizeof(ip6);
	return quote_transport(ctx, q);
}

/* quote_rewrite changes one end of the quoted packet, and the error's checksum with it. */
static __always_inline int quote_rewrite(struct __sk_buff *ctx, const struct packet *p, struct quote *q, __u32 end,
					 const union address *address, __be16 port)
{
	const union address *was = end == REWRITE_SOURCE ? &q->source : &q->destination;
	__be16 old_port = end == REWRITE_SOURCE ? q->source_port : q->destination_port;
	__u32 check = (p->transport & 0x1ff) + 2;
	__u32 network = q->network & 0x3ff;
	bool v4 = p->flags & PACKET_IPV4;
	__u32 offset = network + (v4 ? 12 : 8) + (end == REWRITE_DESTINATION ? (v4 ? 4 : 16) : 0);
	__s64 difference = bpf_csum_diff((__be32 *)was->word, 16, (__be32 *)address->word, 16, 0);

	if (v4) { /* the quoted IP checksum makes up for the address: the error's checksum stays right */
		if (bpf_skb_store_bytes(ctx, offset, &address->word[3], 4, 0) ||
		    bpf_l3_csum_replace(ctx, network + offsetof(struct iphdr, check), 0, difference, 0))
			return DROP_REWRITE;
	} else if (bpf_skb_store_bytes(ctx, offset, address, 16, 0) ||
		   bpf_l4_csum_replace(ctx, check, 0, difference, 0)) {
		return DROP_REWRITE;
	}
	if (!port || port == old_port)
		return GO_ON;
	offset = (q->transport & 0x3ff) + (q->echo ? 4 : end == REWRITE_DESTINATION ? 2 : 0);
	if (bpf_skb_store_bytes(ctx, offset, &port, sizeof(port), 0) ||
	    bpf_l4_csum_replace(ctx, check, old_port, port, sizeof(port)))
		return DROP_REWRITE;
	return GO_ON;
}

/* icmp_restore gives an error about a masqueraded packet to the pod that sent it. */
static __always_inline int icmp_restore(struct __sk_buff *ctx, struct packet *p, struct quote *q)
{
	struct nat_key key = {
		.remote = q->destination,
		.node = q->source,
		.remote_port = q->echo ? 0 : q->destination_port,
		.node_port = q->source_port,
		.protocol = q->protocol,
	};
	struct nat_mapping *mapping = bpf_map_lookup_elem(&nat, &key);
	union address pod;
	__be16 port;
	int reason;

	if (!mapping || !address_equal(&q->source, &p->destination))
		return REASON_TO_STACK;
	pod = mapping->pod;
	port = mapping->pod_port;
	reason = quote_rewrite(ctx, p, q, REWRITE_SOURCE, &pod, port);
	if (reason != GO_ON)
		return reason;
	q->source = pod;
	q->source_port = port;
	if (q->echo)
		q->destination_port = port;
	return rewrite_packet(ctx, p, REWRITE_DESTINATION, &pod, 0);
}

/* icmp_rename gives the quoted destination, and the sender if it is the same, the name that the error's receiver knows. */
static __always_inline int icmp_rename(struct __sk_buff *ctx, struct packet *p, struct quote *q, struct flow *flow)
{
	bool low = address_before(&q->source, &q->destination) ||
		   (address_equal(&q->source, &q->destination) &&
		    bpf_ntohs(q->source_port) <= bpf_ntohs(q->destination_port));
	bool forward = low == !!(flow->flags & FLOW_LOW_IS_SOURCE);
	union address name = forward ? flow->service : flow->nat_address;
	__be16 port = forward ? flow->service_port : flow->nat_port;

	if (!address_set(&name))
		return GO_ON;
	if (address_equal(&p->source, &q->destination))
		p->alias = name;
	return quote_rewrite(ctx, p, q, REWRITE_DESTINATION, &name, port);
}

/*
 * icmp_to_backend sends a client's error about a service's answer to the backend that gave it. entry: the service entry of
 * the quoted packet's ends.
 */
static __always_inline int icmp_to_backend(struct __sk_buff *ctx, struct packet *p, struct quote *q, const struct flow *entry)
{
	union address backend = entry->service;
	__be16 port = entry->service_port;
	int reason = quote_rewrite(ctx, p, q, REWRITE_SOURCE, &backend, port);

	if (reason != GO_ON)
		return reason;
	q->source = backend;
	q->source_port = port;
	p->to = (struct peer_info){};
	return rewrite_packet(ctx, p, REWRITE_DESTINATION, &backend, 0);
}

/* icmp_outside sends a pod's error about what came to it through an egress gateway back by the same. */
static __always_inline void icmp_outside(struct packet *p, const struct flow *flow)
{
	if (!(flow->flags & FLOW_GATEWAY) || !flow->node || p->to.flags & ~ADDRESS_NO_MASQUERADE)
		return;
	p->to.node = flow->node;
	p->to.flags = ADDRESS_CLUSTER | ADDRESS_GATEWAY | (feature_on(FEATURE_TUNNEL) ? ADDRESS_TUNNEL : 0);
}

/*
 * icmp_to_client tells an error for the node that is about what a process of it sent to a service (net_out made it): it goes by the
 * service's name already. entry: the service entry of the quoted packet's ends.
 */
static __always_inline bool icmp_to_client(const struct packet *p, const struct quote *q, const struct flow_key *key, const struct flow *entry)
{
	bool low = address_equal(&key->low, &q->source) && key->low_port == q->source_port;

	return p->hook == HOOK_NET_IN && p->to.flags & ADDRESS_HOST && low == !!(entry->flags & FLOW_LOW_IS_SOURCE);
}

/* icmp_follow lets an error pass that is about a known and allowed flow. translated: the node's address may stand for a pod. */
__noinline int icmp_follow(struct __sk_buff *ctx, struct packet *p, __u32 translated)
{
	struct quote q = {};
	struct flow_key key;
	struct flow *flow;
	int reason;

	if (!p)
		return DROP_ICMP_UNRELATED;
	reason = quote_read(ctx, p, &q);
	if (reason != GO_ON)
		return reason;
	flow_key_of(&key, &q.source, q.source_port, &q.destination, q.destination_port, q.protocol);
	flow = bpf_map_lookup_elem(&flows, &key);
	if (flow && flow->backend && icmp_to_client(p, &q, &key, flow))
		return REASON_TO_STACK;
	if (flow && flow->backend && address_equal(&q.source, &p->destination))
		reason = icmp_to_backend(ctx, p, &q, flow);
	else if (translated)
		reason = icmp_restore(ctx, p, &q);
	if (reason != GO_ON)
		return reason;
	flow_key_of(&key, &q.source, q.source_port, &q.destination, q.destination_port, q.protocol);
	flow = bpf_map_lookup_elem(&flows, &key);
	if (!flow || flow->backend || !address_equal(&q.source, &p->destination))
		return DROP_ICMP_UNRELATED;
	if (flow->egress.action != ACTION_ALLOW || flow->ingress.action != ACTION_ALLOW)
		return DROP_POLICY_DEFAULT;
	p->flags |= PACKET_RELATED;
	p->egress_rule = p->ingress_rule = RULE_ICMP_RELATED;
	reason = icmp_rename(ctx, p, &q, flow);
	if (reason == GO_ON && !p->to.flags && !p->to.peer)
		address_find(&p->destination, &p->to);
	icmp_outside(p, flow);
	return reason;
}

/* What an answer consists of: an IP header, an ICMP header, and the start of the packet that it is about. */
struct icmp_answer4 {
	struct iphdr ip;
	struct icmp_header icmp;
};

struct icmp_answer6 {
	struct ipv6hdr ip;
	struct icmp_header icmp;
};

/* icmp_fold makes a checksum of a sum. */
static __always_inline __sum16 icmp_fold(__s64 sum)
{
	sum = (sum & 0xffff) + (sum >> 16);
	sum = (sum & 0xffff) + (sum >> 16);
	return ~sum;
}

/* icmp_quoted is how many bytes behind the IP header an error quotes. */
static __always_inline __u32 icmp_quoted(int reason)
{
	return reason == DROP_NO_BACKEND ? ICMP_QUOTE_UDP : ICMP_QUOTE;
}

/*
 * icmp_error fills type and code by RFC 792 and RFC 4443 3, and the MTU (RFC 1191: the last 16 bits of the header; in ICMPv6 the
 * last 32, of which that many are needed).
 */
static __always_inline void icmp_error(struct icmp_header *icmp, const struct packet *p, int reason)
{
	bool v4 = p->flags & PACKET_IPV4;

	switch (reason) {
	case DROP_NO_BACKEND:
		icmp->type = v4 ? ICMP_DEST_UNREACH : ICMP6_UNREACHABLE;
		icmp->code = v4 ? ICMP_PORT_UNREACH : ICMP6_PORT_UNREACHABLE;
		return;
	case DROP_FRAG_NEEDED:
		icmp->type = v4 ? ICMP_DEST_UNREACH : ICMP6_PACKET_TOO_BIG;
		icmp->code = v4 ? ICMP_FRAG_NEEDED : 0;
		icmp->rest[1] = bpf_htons(p->mtu);
		return;
	}
	icmp->type = v4 ? ICMP_TIME_EXCEEDED : ICMP6_TIME_EXCEEDED;
}

/* icmp_by_router tells an error that a pod's gateway gives from one that comes in the name of whom the packet was for. */
static __always_inline bool icmp_by_router(const struct packet *p, int reason)
{
	return p->hook == HOOK_FROM_POD && reason != DROP_NO_BACKEND;
}

/* icmp_answer4 turns an IPv4 packet into an error about itself. What is not quoted stays zero, and does not count in sums. */
static __always_inline int icmp_answer_ipv4(struct __sk_buff *ctx, const struct packet *p, int reason)
{
	__u8 quote[sizeof(struct iphdr) + ICMP_QUOTE] = {};
	__u32 length = sizeof(struct iphdr) + icmp_quoted(reason);
	struct icmp_answer4 answer = {};
	__s64 sum;

	if (bpf_skb_change_tail(ctx, ETH_HLEN + length, 0) || bpf_skb_load_bytes(ctx, ETH_HLEN, quote, length) ||
	    bpf_skb_adjust_room(ctx, sizeof(answer), BPF_ADJ_ROOM_MAC, 0))
		return DROP_REWRITE;
	answer.ip.version = 4;
	answer.ip.ihl = 5;
	answer.ip.ttl = 64;
	answer.ip.protocol = IPPROTO_ICMP;
	answer.ip.tot_len = bpf_htons(sizeof(answer) + length);
	answer.ip.saddr = icmp_by_router(p, reason) ? config.router4.word[3] : p->destination.word[3];
	answer.ip.daddr = p->source.word[3];
	answer.ip.check = icmp_fold(bpf_csum_diff(NULL, 0, (__be32 *)&answer.ip, sizeof(answer.ip), 0));
	icmp_error(&answer.icmp, p, reason);
	sum = bpf_csum_diff(NULL, 0, (__be32 *)&answer.icmp, sizeof(answer.icmp), 0);
	answer.icmp.check = icmp_fold(bpf_csum_diff(NULL, 0, (__be32 *)quote, sizeof(quote), sum));
	return bpf_skb_store_bytes(ctx, ETH_HLEN, &answer, sizeof(answer), 0) ? DROP_REWRITE : GO_ON;
}

/* icmp_answer_ipv6 does the same for IPv6, where the checksum covers addresses, length and protocol as well. */
static __always_inline int icmp_answer_ipv6(struct __sk_buff *ctx, const struct packet *p, int reason)
{
	__u8 quote[sizeof(struct ipv6hdr) + ICMP_QUOTE] = {};
	__u32 length = sizeof(struct ipv6hdr) + icmp_quoted(reason);
	struct icmp_answer6 answer = {};
	__be32 rest[2] = {bpf_htonl(sizeof(answer.icmp) + length), bpf_htonl(IPPROTO_ICMPV6)};
	union address router = icmp_by_router(p, reason) ? config.router6 : p->destination;
	__s64 sum;

	if (bpf_skb_change_tail(ctx, ETH_HLEN + length, 0) || bpf_skb_load_bytes(ctx, ETH_HLEN, quote, length) ||
	    bpf_skb_adjust_room(ctx, sizeof(answer), BPF_ADJ_ROOM_MAC, 0))
		return DROP_REWRITE;
	answer.ip.version = 6;
	answer.ip.hop_limit = 64;
	answer.ip.nexthdr = IPPROTO_ICMPV6;
	answer.ip.payload_len = bpf_htons(sizeof(answer.icmp) + length);
	__builtin_memcpy(&answer.ip.saddr, &router, 16);
	__builtin_memcpy(&answer.ip.daddr, &p->source, 16);
	icmp_error(&answer.icmp, p, reason);
	sum = bpf_csum_diff(NULL, 0, router.word, 16, 0);
	sum = bpf_csum_diff(NULL, 0, (__be32 *)p->source.word, 16, sum);
	sum = bpf_csum_diff(NULL, 0, rest, sizeof(rest), sum);
	sum = bpf_csum_diff(NULL, 0, (__be32 *)&answer.icmp, sizeof(answer.icmp), sum);
	answer.icmp.check = icmp_fold(bpf_csum_diff(NULL, 0, (__be32 *)quote, sizeof(quote), sum));
	return bpf_skb_store_bytes(ctx, ETH_HLEN, &answer, sizeof(answer), 0) ? DROP_REWRITE : GO_ON;
}

/*
 * icmp_answer tells a pod why its packet ended: too large, too many hops, or no backend (unreachable_due says when). The packet becomes
 * the answer; what was translated in it is put back first. From the wire (endpoint 0) the client of a service is answered, in the
 * service's name. An error is never answered with an error (RFC 1122 3.2.2).
 */
__noinline int icmp_answer(struct __sk_buff *ctx, struct packet *p, __u32 endpoint_index, int reason)
{
	struct endpoint *endpoint = endpoint_index ? endpoint_at(endpoint_index) : NULL;
	union address service;
	int made;

	if (!p || (endpoint_index && !endpoint) || p->flags & (PACKET_ICMP_ERROR | PACKET_LATER_FRAGMENT))
		return 0;
	if (reason != DROP_NO_BACKEND &&
	    ((!endpoint && !p->service_port) || p->length < sizeof(struct ipv6hdr) + ICMP_QUOTE))
		return 0;
	service = p->service;
	if (address_set(&service) && rewrite_packet(ctx, p, REWRITE_DESTINATION, &service, p->service_port) != GO_ON)
		return 0;
	made = p->flags & PACKET_IPV4 ? icmp_answer_ipv4(ctx, p, reason) : icmp_answer_ipv6(ctx, p, reason);
	return made == GO_ON && deliver_back(ctx, p, endpoint);
}
