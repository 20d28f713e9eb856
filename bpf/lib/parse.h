/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/*
 * Step 1: read the headers. Numbers that come from the packet are checked against the packet's end before use;
 * what does not add up is DROP_INVALID_PACKET.
 */
#pragma once

#include "packet.h"

#define IP_MORE_FRAGMENTS 0x2000 /* RFC 791 */
#define IP_FRAGMENT_OFFSET 0x1fff
#define PARSE_LINEAR 128         /* bytes that have to be in the linear part: Ethernet, IPv6, some extensions, TCP */

/* The first bytes of any transport header that we read. */
struct transport_start {
	__be16 source_port;         /* ICMP: type and code */
	__be16 destination_port;    /* ICMP: checksum */
	__be16 id;                  /* ICMP echo */
	__be16 sequence;
};

/* IPv6 fragment extension header, RFC 8200 4.5. */
struct fragment_header {
	__u8 next;
	__u8 reserved;
	__be16 offset;              /* bits 3..15: offset in 8 bytes; bit 0: more fragments */
	__be32 id;
};

/*
 * parse_needed is how many bytes have to be in the linear part. Of plain TCP and UDP that is the headers, which the stack
 * keeps there: pulling more would copy payload, and the head with it, of every segment that a pod sends.
 */
static __always_inline __u32 parse_needed(const struct __sk_buff *ctx)
{
	struct ethhdr *ethernet = (void *)(long)ctx->data;
	struct ipv6hdr *ip6 = (void *)(ethernet + 1);
	struct iphdr *ip4 = (void *)(ethernet + 1);
	__u8 protocol = 0;
	__u32 headers = 0;

	if ((void *)(ip6 + 1) > (void *)(long)ctx->data_end)
		return PARSE_LINEAR;
	if (ethernet->h_proto == bpf_htons(ETH_P_IP) && ip4->ihl == 5) {
		protocol = ip4->protocol;
		headers = ETH_HLEN + sizeof(*ip4) + 20;
	} else if (ethernet->h_proto == bpf_htons(ETH_P_IPV6)) {
		protocol = ip6->nexthdr;
		headers = ETH_HLEN + sizeof(*ip6) + 20;
	}
	return protocol == IPPROTO_TCP || protocol == IPPROTO_UDP ? headers : PARSE_LINEAR;
}

/*
 * parse_linear makes sure that the headers lie in the linear part, as drivers that fill pages do not. Those of a list of segments do; to
 * pull from its segments is to break it, and with it the kernel that cuts it (skb_segment).
 */
static __always_inline void parse_linear(struct __sk_buff *ctx)
{
	__u32 linear = ctx->data_end - ctx->data;

	if (linear < PARSE_LINEAR && ctx->gso_size != PACKET_BY_FRAGS && linear < ctx->len && linear < parse_needed(ctx))
		bpf_skb_pull_data(ctx, ctx->len < PARSE_LINEAR ? ctx->len : PARSE_LINEAR);
}

/* parse_icmp classifies an ICMP message: echo, error, or another that is its own flow. */
static __always_inline void parse_icmp(struct packet *p, const struct transport_start *t)
{
	bool v4 = p->flags & PACKET_IPV4;

	p->icmp_type = *(const __u8 *)t;
	if (v4 ? p->icmp_type == ICMP_ECHO || p->icmp_type == ICMP_ECHOREPLY :
		 p->icmp_type == ICMPV6_ECHO_REQUEST || p->icmp_type == ICMPV6_ECHO_REPLY) {
		p->flags |= PACKET_ICMP_ECHO;
		p->source_port = p->destination_port = t->id;
		return;
	}
	if (v4 ? p->icmp_type == ICMP_DEST_UNREACH || p->icmp_type == ICMP_TIME_EXCEEDED ||
		 p->icmp_type == ICMP_PARAMETERPROB : p->icmp_type < ICMPV6_ECHO_REQUEST)
		p->flags |= PACKET_ICMP_ERROR;
}

/* parse_transport reads ports, TCP flags or the ICMP type. Fragments without a transport header are left to fragment.h. */
static __always_inline int parse_transport(void *data, void *end, struct packet *p)
{
	__u32 offset = p->transport & 0x1ff;
	struct transport_start *t = data + offset;

	if (p->flags & PACKET_LATER_FRAGMENT)
		return GO_ON;
	switch (p->protocol) {
	case IPPROTO_TCP:
		if ((void *)t + 20 > end)
			return DROP_INVALID_PACKET;
		p->tcp_flags = ((__u8 *)t)[13];
		p->transport_length = (((__u8 *)t)[12] >> 4) * 4;
		break;
	case IPPROTO_UDP:
	case IPPROTO_SCTP:
	case IPPROTO_ICMP:
	case IPPROTO_ICMPV6:
		if ((void *)(t + 1) > end)
			return DROP_INVALID_PACKET;
		p->transport_length = sizeof(*t);
		break;
	default:
		return GO_ON;
	}
	if (p->protocol == IPPROTO_ICMP || p->protocol == IPPROTO_ICMPV6) {
		if ((p->protocol == IPPROTO_ICMP) != !!(p->flags & PACKET_IPV4))
			return DROP_INVALID_PACKET;
		parse_icmp(p, t);
		return GO_ON;
	}
	p->source_port = t->source_port;
	p->destination_port = t->destination_port;
	return GO_ON;
}

/* parse_ipv4 reads the header. length: of the frame; segments: it is a GSO packet, whose header does not say its length. */
static __always_inline int parse_ipv4(void *data, void *end, __u32 length, bool segments, struct packet *p)
{
	struct iphdr *ip = data + ETH_HLEN;
	__u16 fragment;

	if ((void *)(ip + 1) > end || ip->version != 4 || ip->ihl < 5)
		return DROP_INVALID_PACKET;
	p->length = bpf_ntohs(ip->tot_len);
	if (segments)
		p->length = length - ETH_HLEN;
	if (p->length < 20 || p->length > length - ETH_HLEN)
		return DROP_INVALID_PACKET;
	p->flags |= PACKET_IPV4;
	address_from4(&p->source, ip->saddr);
	address_from4(&p->destination, ip->daddr);
	p->protocol = ip->protocol;
	p->ttl = ip->ttl;
	p->transport = ETH_HLEN + ip->ihl * 4;
	fragment = bpf_ntohs(ip->frag_off);
	if (fragment & IP_FRAGMENT_OFFSET)
		p->flags |= PACKET_LATER_FRAGMENT;
	else if (fragment & IP_MORE_FRAGMENTS)
		p->flags |= PACKET_FIRST_FRAGMENT;
	return GO_ON;
}

/*
 * parse_extensions walks IPv6 extension headers, rare enough to be read by a helper. It returns the transport's
 * offset << 16 | fragment flags << 8 | protocol, or 0 where the chain is broken or too long.
 */
__noinline int parse_extensions(struct __sk_buff *ctx, __u32 next)
{
	__u32 offset = ETH_HLEN + sizeof(struct ipv6hdr), flags = 0;
	struct fragment_header header;

	for (int i = 0; i < EXTENSION_HEADERS; i++) {
		switch (next) {
		case IPPROTO_HOPOPTS:
		case IPPROTO_ROUTING:
		case IPPROTO_DSTOPTS:
		case IPPROTO_FRAGMENT:
			break;
		default:
			return offset << 16 | flags << 8 | next;
		}
		if (bpf_skb_load_bytes(ctx, offset, &header, sizeof(header)))
			return 0;
		if (next == IPPROTO_FRAGMENT) {
			offset += sizeof(header);
			flags = bpf_ntohs(header.offset) & ~7 ? PACKET_LATER_FRAGMENT : flags;
			if (!flags && bpf_ntohs(header.offset) & 1)
				flags = PACKET_FIRST_FRAGMENT;
		} else {
			offset += (header.reserved + 1) * 8; /* the length field lies where a fragment header has none */
		}
		next = header.next;
		if (flags == PACKET_LATER_FRAGMENT)
			return offset << 16 | flags << 8 | next;
		if (offset > 0x1ff)
			return 0;
	}
	return 0;
}

/* parse_ipv6 reads the fixed header, as parse_ipv4 does. */
static __always_inline int parse_ipv6(void *data, void *end, __u32 length, bool segments, struct packet *p)
{
	struct ipv6hdr *ip = data + ETH_HLEN;

	if ((void *)(ip + 1) > end || ip->version != 6)
		return DROP_INVALID_PACKET;
	p->length = bpf_ntohs(ip->payload_len) + sizeof(*ip);
	if (segments)
		p->length = length - ETH_HLEN;
	if (p->length > length - ETH_HLEN)
		return DROP_INVALID_PACKET;
	__builtin_memcpy(&p->source, &ip->saddr, sizeof(p->source));
	__builtin_memcpy(&p->destination, &ip->daddr, sizeof(p->destination));
	if (address_mapped(&p->source) || address_mapped(&p->destination))
		return DROP_MAPPED_ADDRESS;
	p->ttl = ip->hop_limit;
	p->protocol = ip->nexthdr;
	p->transport = ETH_HLEN + sizeof(*ip);
	return GO_ON;
}

/* parse_beyond goes on to the transport header, if extensions stand before it. */
static __always_inline int parse_beyond(struct __sk_buff *ctx, struct packet *p)
{
	__u32 found;

	switch (p->protocol) {
	case IPPROTO_HOPOPTS:
	case IPPROTO_ROUTING:
	case IPPROTO_DSTOPTS:
	case IPPROTO_FRAGMENT:
		found = parse_extensions(ctx, p->protocol);
		if (!found)
			return DROP_INVALID_PACKET;
		p->protocol = found & 0xff;
		p->flags |= found >> 8 & 0xff;
		p->transport = found >> 16;
	}
	return GO_ON;
}

/* packet_parse fills the packet from its headers. ARP and unknown ethertypes are left to the caller. */
static __always_inline int packet_parse(struct __sk_buff *ctx, struct packet *p)
{
	struct ethhdr *ethernet;
	void *data, *end;
	int reason;

	parse_linear(ctx);
	ethernet = data = (void *)(long)ctx->data;
	end = (void *)(long)ctx->data_end;
	if ((void *)(ethernet + 1) > end)
		return DROP_INVALID_PACKET;
	p->ethertype = ethernet->h_proto;
	p->length = ctx->len - ETH_HLEN;
	switch (p->ethertype) {
	case bpf_htons(ETH_P_IP):
		reason = feature_on(FEATURE_IPV4) ? parse_ipv4(data, end, ctx->len, ctx->gso_size, p) : DROP_UNSUPPORTED_PROTOCOL;
		break;
	case bpf_htons(ETH_P_IPV6):
		reason = feature_on(FEATURE_IPV6) ? parse_ipv6(data, end, ctx->len, ctx->gso_size, p) : DROP_UNSUPPORTED_PROTOCOL;
		if (reason == GO_ON)
			reason = parse_beyond(ctx, p);
		break;
	default:
		return GO_ON;
	}
	return reason == GO_ON ? parse_transport((void *)(long)ctx->data, (void *)(long)ctx->data_end, p) : reason;
}

/* packet_is_ip tells what packet_parse understood from what it left alone. */
static __always_inline bool packet_is_ip(const struct packet *p)
{
	return p->ethertype == bpf_htons(ETH_P_IP) || p->ethertype == bpf_htons(ETH_P_IPV6);
}

/* packet_multicast tells multicast and broadcast destinations. */
static __always_inline bool packet_multicast(const struct packet *p)
{
	if (p->flags & PACKET_IPV4)
		return (p->destination.bytes[12] & 0xf0) == 0xe0 || p->destination.word[3] == 0xffffffff;
	return p->destination.bytes[0] == 0xff;
}
