/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/*
 * The answer to a TCP packet whose service has no backend for it: a reset, so that the client asks again instead of waiting
 * (RFC 9293, 3.5.2). The packet becomes the answer and goes back where it came from.
 *
 * What the sender has left to its device to fill in stays so: then the checksum field holds the sum of the pseudo
 * header, else a whole checksum. A program cannot ask which; reset_offloaded finds out.
 */
#pragma once

#include <linux/tcp.h>

#include "icmp.h"
#include "packet.h"

struct reset4 {
	struct iphdr ip;
	struct tcphdr tcp;
};

struct reset6 {
	struct ipv6hdr ip;
	struct tcphdr tcp;
};

/* reset_offloaded tells whether the packet's checksum is still to be filled in: then no helper corrects it. */
static __always_inline bool reset_offloaded(struct __sk_buff *ctx, __u32 checksum)
{
	__u16 before = 0, after = 0;

	return bpf_skb_load_bytes(ctx, checksum, &before, sizeof(before)) ||
	       bpf_l4_csum_replace(ctx, checksum, 1, 2, sizeof(__u16)) ||
	       bpf_skb_load_bytes(ctx, checksum, &after, sizeof(after)) || before == after;
}

/* reset_tcp_header makes the answer's TCP header but for the checksum. */
static __always_inline void reset_tcp_header(const struct packet *p, const struct tcphdr *asked, struct tcphdr *tcp)
{
	tcp->source = p->destination_port;
	tcp->dest = p->source_port;
	tcp->doff = sizeof(*tcp) / 4;
	tcp->rst = 1;
	if (asked->ack) {
		tcp->seq = asked->ack_seq;
	} else {
		tcp->ack = 1;
		tcp->ack_seq = bpf_htonl(bpf_ntohl(asked->seq) + asked->syn);
	}
}

/* reset_checksum is what belongs into the checksum field: addresses, protocol and length are in either way. */
static __always_inline __u16 reset_checksum(const struct packet *p, const struct tcphdr *tcp, bool offloaded)
{
	__be32 rest[2] = {bpf_htonl(sizeof(*tcp)), bpf_htonl(IPPROTO_TCP)};
	union address source = p->source, destination = p->destination;
	__s64 sum = bpf_csum_diff(NULL, 0, rest, sizeof(rest), 0);

	if (p->flags & PACKET_IPV4) {
		sum = bpf_csum_diff(NULL, 0, &source.word[3], 4, sum);
		sum = bpf_csum_diff(NULL, 0, &destination.word[3], 4, sum);
	} else {
		sum = bpf_csum_diff(NULL, 0, source.word, 16, sum);
		sum = bpf_csum_diff(NULL, 0, destination.word, 16, sum);
	}
	if (offloaded)
		return ~icmp_fold(sum);
	return icmp_fold(bpf_csum_diff(NULL, 0, (__be32 *)tcp, sizeof(*tcp), sum));
}

/* reset_write4 and reset_write6 put the answer in the packet's place. */
static __always_inline int reset_write4(struct __sk_buff *ctx, const struct packet *p, struct tcphdr *asked, bool offloaded)
{
	struct reset4 answer = {};

	reset_tcp_header(p, asked, &answer.tcp);
	answer.tcp.check = reset_checksum(p, &answer.tcp, offloaded);
	answer.ip.version = 4;
	answer.ip.ihl = 5;
	answer.ip.ttl = 64;
	answer.ip.protocol = IPPROTO_TCP;
	answer.ip.tot_len = bpf_htons(sizeof(answer));
	answer.ip.saddr = p->destination.word[3];
	answer.ip.daddr = p->source.word[3];
	answer.ip.check = icmp_fold(bpf_csum_diff(NULL, 0, (__be32 *)&answer.ip, sizeof(answer.ip), 0));
	return bpf_skb_change_tail(ctx, ETH_HLEN + sizeof(answer), 0) ||
	       bpf_skb_store_bytes(ctx, ETH_HLEN, &answer, sizeof(answer), BPF_F_RECOMPUTE_CSUM);
}

static __always_inline int reset_write6(struct __sk_buff *ctx, const struct packet *p, struct tcphdr *asked, bool offloaded)
{
	struct reset6 answer = {};

	reset_tcp_header(p, asked, &answer.tcp);
	answer.tcp.check = reset_checksum(p, &answer.tcp, offloaded);
	answer.ip.version = 6;
	answer.ip.hop_limit = 64;
	answer.ip.nexthdr = IPPROTO_TCP;
	answer.ip.payload_len = bpf_htons(sizeof(answer.tcp));
	__builtin_memcpy(&answer.ip.saddr, &p->destination, 16);
	__builtin_memcpy(&answer.ip.daddr, &p->source, 16);
	return bpf_skb_change_tail(ctx, ETH_HLEN + sizeof(answer), 0) ||
	       bpf_skb_store_bytes(ctx, ETH_HLEN, &answer, sizeof(answer), BPF_F_RECOMPUTE_CSUM);
}

/*
 * reset_answer turns a packet into a reset about itself. From the wire (endpoint 0) only a connection that was there is
 * answered: a node without backends keeps silent, so that clients do not take it for the service. It returns whether it did.
 */
__noinline int reset_answer(struct __sk_buff *ctx, struct packet *p, __u32 endpoint_index)
{
	struct endpoint *endpoint = endpoint_index ? endpoint_at(endpoint_index) : NULL;
	struct tcphdr asked = {};
	__u32 transport;
	bool offloaded;
	int failed;

	if (!p || p->protocol != IPPROTO_TCP || packet_is_fragment(p) || p->tcp_flags & TCP_RST ||
	    !!endpoint_index != !!endpoint || !(endpoint || p->tcp_flags & TCP_ACK))
		return 0;
	transport = ETH_HLEN + (p->flags & PACKET_IPV4 ? sizeof(struct iphdr) : sizeof(struct ipv6hdr));
	if (p->transport != transport || bpf_skb_load_bytes(ctx, transport, &asked, sizeof(asked)))
		return 0; /* options or extension headers: not worth the case */
	offloaded = reset_offloaded(ctx, transport + 16);
	failed = p->flags & PACKET_IPV4 ? reset_write4(ctx, p, &asked, offloaded) : reset_write6(ctx, p, &asked, offloaded);
	return failed ? 0 : deliver_back(ctx, p, endpoint);
}
