/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/*
 * Direct server return: the backend's node answers the client itself, so the node that chose the backend leaves the client's
 * address alone and says to that node which service was asked, in an option of the packet:
 *
 *   IPv4   an option of 8 bytes: type, length, port, address           (type 158 of RFC 4727: for experiments, copied)
 *   IPv6   a destination options header of 24 bytes with one option    (type 0x1e of RFC 4727: skipped by who knows it not)
 *
 * It stands right behind the fixed header, and in the inner packet where that goes by tunnel. Of a TCP connection only SYNs bear
 * it: from then on the backend's node has a flow. Datagrams all do, since any of them may be the first to arrive. The backend gets
 * the packet with the option, which its stack skips.
 *
 *   dsr_send    on the node that chose the backend: whether to, and what room it takes
 *   dsr_write   puts the option into the packet, once it is known to fit
 *   dsr_read    on the backend's node: the service that the flow's replies are named after
 *   dsr_again   the same of a datagram whose flow is known
 */
#pragma once

#include "address.h"
#include "backend.h"
#include "conntrack.h"
#include "packet.h"

#define DSR_TYPE4 158
#define DSR_TYPE6 0x1e

struct dsr_option4 {
	__u8 type;
	__u8 length;                /* bytes, of the whole option (RFC 791) */
	__be16 port;
	__be32 address;
};

struct dsr_option6 {
	__u8 next;                  /* the header is a packet's first extension */
	__u8 length;                /* 8 bytes each, without the first (RFC 8200 4.6) */
	__u8 type;
	__u8 option_length;         /* bytes of port and address */
	__be16 port;
	__u8 address[16];
	__u8 pad_type;              /* PadN of two bytes */
	__u8 pad_length;
};

/* dsr_client tells whether a sender, once looked up, is outside the cluster. */
static __always_inline bool dsr_client(const struct packet *p)
{
	return p->from.peer && !(p->from.flags & ~ADDRESS_NO_MASQUERADE);
}

/* dsr_wanted tells whether the frontend that was asked has its backends answer. */
static __always_inline bool dsr_wanted(const struct packet *p)
{
	struct frontend_key key = {.address = p->service, .port = p->service_port, .protocol = p->protocol};
	struct frontend *frontend = bpf_map_lookup_elem(&frontends, &key);

	if (!frontend) {
		frontend_anywhere(&key.address);
		frontend = bpf_map_lookup_elem(&frontends, &key);
	}
	return frontend && frontend->flags & FRONTEND_DSR;
}

/*
 * dsr_applies tells whether a packet for a service goes to its backend under the client's address: a pod of another node. What the
 * frontend says is for new flows, the others stay as they began. flow: NULL if this is its first packet.
 */
static __always_inline bool dsr_applies(const struct packet *p, const struct flow *flow)
{
	return p->hook == HOOK_NET_IN && dsr_client(p) && p->to.node &&
	       !(p->to.flags & ADDRESS_REMOTE_NODE) && !address_set(&p->alias) &&
	       (p->protocol == IPPROTO_TCP || p->protocol == IPPROTO_UDP) && (flow || dsr_wanted(p));
}

/*
 * dsr_follow moves the state of a flow whose answers go another way. A client who goes on was answered, and one who has said
 * FIN is as a rule done; a SYN after that opens a new connection. With the flow goes the memory of the backend.
 */
static __always_inline void dsr_follow(const struct packet *p, struct flow *flow, __u64 now)
{
	__u64 seconds = LIFETIME_CLOSING_UNSEEN;

	if (flow->state == FLOW_CLOSING && p->tcp_flags & TCP_SYN) {
		flow->state = FLOW_NEW;
		flow->tcp_forward = p->tcp_flags;
		seconds = LIFETIME_SYN;
	} else if (flow->state == FLOW_NEW && !(p->tcp_flags & TCP_SYN)) {
		bool leaving = p->protocol == IPPROTO_TCP && flow->tcp_forward & TCP_FIN;

		flow->state = leaving ? FLOW_CLOSING : FLOW_ESTABLISHED;
		flow_uncount(flow);
		if (!leaving)
			seconds = p->protocol == IPPROTO_TCP ? LIFETIME_TCP : LIFETIME_DATAGRAM;
	} else if (flow->state != FLOW_CLOSING) {
		return;
	}
	flow->expires = now + seconds * SECOND;
}

/* dsr_send decides on the option. flow: NULL if this is its first packet. */
static __always_inline void dsr_send(struct packet *p, struct flow *flow, __u64 now)
{
	bool opening = p->protocol != IPPROTO_TCP || (p->tcp_flags & (TCP_SYN | TCP_ACK)) == TCP_SYN;

	if (opening)
		p->option = p->flags & PACKET_IPV4 ? sizeof(struct dsr_option4) : sizeof(struct dsr_option6);
	if (flow)
		dsr_follow(p, flow, now);
}

/* dsr_write4 adds the IPv4 option: header length, total length and checksum follow. */
static __always_inline int dsr_write4(struct __sk_buff *ctx, const struct packet *p)
{
	struct {
		__u8 start[4];      /* version and header length, TOS, total length */
		struct dsr_option4 option;
	} now = {.option = {.type = DSR_TYPE4, .length = sizeof(now.option), .port = p->service_port, .address = p->service.word[3]}};
	__u32 length = p->length + sizeof(now.option);
	__s64 difference;
	__be32 was;

	if (bpf_skb_load_bytes(ctx, ETH_HLEN, &was, sizeof(was)))
		return DROP_REWRITE;
	__builtin_memcpy(now.start, &was, sizeof(was));
	if ((now.start[0] & 0xf) > 15 - sizeof(now.option) / 4 || length > 0xffff)
		return DROP_REWRITE; /* no room in the header */
	now.start[0] += sizeof(now.option) / 4;
	now.start[2] = length >> 8;
	now.start[3] = length;
	difference = bpf_csum_diff(&was, sizeof(was), (__be32 *)&now, sizeof(now), 0);
	if (bpf_skb_adjust_room(ctx, sizeof(now.option), BPF_ADJ_ROOM_NET, 0) ||
	    bpf_skb_store_bytes(ctx, ETH_HLEN, now.start, sizeof(now.start), 0) ||
	    bpf_skb_store_bytes(ctx, ETH_HLEN + sizeof(struct iphdr), &now.option, sizeof(now.option), 0) ||
	    bpf_l3_csum_replace(ctx, ETH_HLEN + offsetof(struct iphdr, check), 0, difference, 0))
		return DROP_REWRITE;
	return GO_ON;
}

/* dsr_write6 adds the IPv6 header. A hop-by-hop header would have to stay in front of it: such packets are not sent on. */
static __always_inline int dsr_write6(struct __sk_buff *ctx, const struct packet *p)
{
	struct dsr_option6 option = {
		.length = sizeof(option) / 8 - 1,
		.type = DSR_TYPE6,
		.option_length = sizeof(option.port) + sizeof(option.address),
		.port = p->service_port,
		.pad_type = 1,
	};
	__u32 payload = p->length - sizeof(struct ipv6hdr) + sizeof(option);
	struct {
		__be16 payload_length;
		__u8 next;
	} __attribute__((packed)) header = {.payload_length = bpf_htons(payload), .next = IPPROTO_DSTOPTS};

	__builtin_memcpy(option.address, &p->service, sizeof(option.address));
	if (payload > 0xffff ||
	    bpf_skb_load_bytes(ctx, ETH_HLEN + offsetof(struct ipv6hdr, nexthdr), &option.next, sizeof(option.next)) ||
	    option.next == IPPROTO_HOPOPTS ||
	    bpf_skb_adjust_room(ctx, sizeof(option), BPF_ADJ_ROOM_NET, 0) ||
	    bpf_skb_store_bytes(ctx, ETH_HLEN + offsetof(struct ipv6hdr, payload_len), &header, sizeof(header), 0) ||
	    bpf_skb_store_bytes(ctx, ETH_HLEN + sizeof(struct ipv6hdr), &option, sizeof(option), 0))
		return DROP_REWRITE;
	return GO_ON;
}

/* dsr_write is the last change of a packet before it leaves. */
__noinline int dsr_write(struct __sk_buff *ctx, struct packet *p)
{
	if (!p)
		return DROP_REWRITE;
	return p->flags & PACKET_IPV4 ? dsr_write4(ctx, p) : dsr_write6(ctx, p);
}

/* dsr_known tells whether clients outside may use what the option names: a frontend by its address, or a node port of another node. */
static __always_inline bool dsr_known(struct frontend_key *key)
{
	struct frontend *frontend = bpf_map_lookup_elem(&frontends, key);
	struct peer_info at = {};

	if (frontend)
		return frontend->flags & FRONTEND_EXTERNAL;
	address_find(&key->address, &at);
	if (!(at.flags & ADDRESS_REMOTE_NODE))
		return false;
	frontend_anywhere(&key->address);
	frontend = bpf_map_lookup_elem(&frontends, key);
	return frontend && frontend->flags & FRONTEND_EXTERNAL;
}

/* dsr_option reads the option where dsr_write puts it, and nowhere else. */
static __always_inline bool dsr_option(struct __sk_buff *ctx, const struct packet *p, struct frontend_key *key)
{
	struct dsr_option4 option4;
	struct dsr_option6 option6;
	__u8 next;

	if (p->flags & PACKET_IPV4) {
		if (p->transport < ETH_HLEN + sizeof(struct iphdr) + sizeof(option4) ||
		    bpf_skb_load_bytes(ctx, ETH_HLEN + sizeof(struct iphdr), &option4, sizeof(option4)))
			return false;
		address_from4(&key->address, option4.address);
		key->port = option4.port;
		return option4.type == DSR_TYPE4 && option4.length == sizeof(option4);
	}
	if (p->transport < ETH_HLEN + sizeof(struct ipv6hdr) + sizeof(option6) ||
	    bpf_skb_load_bytes(ctx, ETH_HLEN + offsetof(struct ipv6hdr, nexthdr), &next, sizeof(next)) ||
	    bpf_skb_load_bytes(ctx, ETH_HLEN + sizeof(struct ipv6hdr), &option6, sizeof(option6)))
		return false;
	__builtin_memcpy(&key->address, option6.address, sizeof(option6.address));
	key->port = option6.port;
	return next == IPPROTO_DSTOPTS && option6.length == sizeof(option6) / 8 - 1 && option6.type == DSR_TYPE6 &&
	       option6.option_length == sizeof(option6.port) + sizeof(option6.address);
}

/*
 * dsr_read takes the service from the option of a client's packet to a pod of this node. Anybody who reaches the pod can write
 * one: all he gets is an answer from the service's address, as if he had asked there. It returns whether there was one.
 */
__noinline int dsr_read(struct __sk_buff *ctx, struct packet *p)
{
	struct frontend_key key = {};
	struct frontend_key at;

	if (!p || !feature_on(FEATURE_SERVICES) || p->service_port || !dsr_client(p) || !(p->to.flags & ADDRESS_LOCAL_POD) ||
	    !dsr_option(ctx, p, &key))
		return 0;
	key.protocol = p->protocol;
	at = key;
	if (!dsr_known(&at))
		return 0;
	p->service = key.address;
	p->service_port = key.port;
	return 1;
}

/* dsr_again reads the option of a later datagram: a client's socket may ask a backend by several services (flow_rename). */
static __always_inline void dsr_again(struct __sk_buff *ctx, struct packet *p)
{
	__u32 fixed = p->flags & PACKET_IPV4 ? sizeof(struct iphdr) : sizeof(struct ipv6hdr);

	if (p->protocol != IPPROTO_UDP || p->flags & PACKET_REPLY || p->transport <= ETH_HLEN + fixed)
		return;
	address_find(&p->source, &p->from);
	address_find(&p->destination, &p->to);
	dsr_read(ctx, p);
}
