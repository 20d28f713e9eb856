/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/*
 * The node as an endpoint of its own: ENDPOINT_HOST, whose record is in use while some policy selects the node. Then
 * the node's traffic has flows like a pod's, made by the hooks of the devices that it passes:
 *
 *   host_judged    whether that is so: one array lookup, and all that the node's packets cost where it is not
 *   host_owns      whether the node is an end of a packet, be it under an address that no table has
 *   host_overlay   the overlay's own packets between nodes, which are never judged (RULE_OVERLAY)
 *   host_port      a client of a node port, whose packets are a pod's by the time that they have a flow
 *   host_track     the flow of the node's packet; of one that has none, who spoke first
 *   host_leave     what the node's stack sends off the node, judged or not
 *
 * Connections that are older than the policy have no flow. Which end opened them is asked of the node's sockets, so that the
 * program of the right direction judges them, and so that nobody gets in by calling his packet an answer.
 */
#pragma once

#include "conntrack.h"
#include "deliver.h"
#include "fragment.h"
#include "icmp.h"
#include "nat.h"
#include "packet.h"

/* host_judged tells whether some policy selects the node. */
static __always_inline bool host_judged(void)
{
	return endpoint_at(ENDPOINT_HOST);
}

/* host_link_local tells addresses that no router forwards (RFC 4291 2.5.6). */
static __always_inline bool host_link_local(const union address *address)
{
	return address->bytes[0] == 0xfe && (address->bytes[1] & 0xc0) == 0x80;
}

/* host_routed tells whether the kernel would forward what is sent to an address: then it is not the node's. */
static __always_inline bool host_routed(struct __sk_buff *ctx, const union address *address)
{
	struct bpf_fib_lookup route = {.ifindex = ctx->ifindex};

	if (host_link_local(address))
		return false;
	route.family = address_mapped(address) ? FAMILY_IPV4 : FAMILY_IPV6;
	if (address_mapped(address))
		route.ipv4_dst = address->word[3];
	else
		__builtin_memcpy(route.ipv6_dst, address, 16);
	return bpf_fib_lookup(ctx, &route, sizeof(route), BPF_FIB_LOOKUP_SKIP_NEIGH) != BPF_FIB_LKUP_RET_NOT_FWDED;
}

/* host_owns tells whether the node is the packet's sender, or its receiver. */
__noinline int host_owns(struct __sk_buff *ctx, struct packet *p, __u32 sender)
{
	union address address;
	struct peer_info who = {};

	if (!p)
		return 0;
	address = sender ? p->source : p->destination;
	address_find(&address, &who);
	if (!(who.flags & ~ADDRESS_NO_MASQUERADE) && !host_routed(ctx, &address))
		who = (struct peer_info){.peer = PEER_HOST, .flags = ADDRESS_HOST | ADDRESS_CLUSTER};
	if (!(who.flags & ADDRESS_HOST))
		return 0;
	if (sender)
		p->from = who;
	else
		p->to = who;
	return 1;
}

/* host_overlay tells the overlay's packets, which carry judged ones, between this node and another one's tunnel address. */
static __always_inline bool host_overlay(const struct packet *p, const union address *address, struct peer_info *other)
{
	struct node *node;

	if (!feature_on(FEATURE_TUNNEL) || p->protocol != IPPROTO_UDP ||
	    p->destination_port != bpf_htons(config.overlay_port) || !(other->flags & ADDRESS_REMOTE_NODE))
		return false;
	node = bpf_map_lookup_elem(&nodes, &other->node);
	return node && address_equal(&node->tunnel, address);
}

/*
 * host_socket is the state of the node's socket for a tuple of TCP or UDP; 0: there is none. Of UDP, BPF_TCP_ESTABLISHED is a
 * socket that is connected to the tuple's other end.
 */
static __always_inline __u32 host_socket(struct __sk_buff *ctx, const struct nat_key *key, __u8 protocol)
{
	struct bpf_sock_tuple tuple = {};
	bool v4 = nat_socket_tuple(key, &tuple) == sizeof(tuple.ipv4);
	struct bpf_sock *socket;
	__u32 state;

	if (protocol == IPPROTO_TCP)
		socket = v4 ? bpf_skc_lookup_tcp(ctx, &tuple, sizeof(tuple.ipv4), BPF_F_CURRENT_NETNS, 0) :
			      bpf_skc_lookup_tcp(ctx, &tuple, sizeof(tuple.ipv6), BPF_F_CURRENT_NETNS, 0);
	else
		socket = v4 ? bpf_sk_lookup_udp(ctx, &tuple, sizeof(tuple.ipv4), BPF_F_CURRENT_NETNS, 0) :
			      bpf_sk_lookup_udp(ctx, &tuple, sizeof(tuple.ipv6), BPF_F_CURRENT_NETNS, 0);
	if (!socket)
		return 0;
	state = socket->state;
	bpf_sk_release(socket);
	return state;
}

/*
 * host_opened tells whether the node opened the connection of a TCP packet that is no SYN: it has the connection's socket, and
 * no listener at that port, which would have taken the connection in. Without a socket the sender is to blame.
 */
static __always_inline bool host_opened(struct __sk_buff *ctx, struct nat_key *key, bool sent)
{
	__u32 state = host_socket(ctx, key, IPPROTO_TCP);

	if (!state || state == BPF_TCP_LISTEN)
		return sent;
	key->remote_port = 0; /* nobody's: only a listener is found */
	return host_socket(ctx, key, IPPROTO_TCP) != BPF_TCP_LISTEN;
}

/* host_answers tells whether a packet without a flow belongs to a connection that its receiver opened. sent: by the node. */
__noinline int host_answers(struct __sk_buff *ctx, struct packet *p, __u32 sent)
{
	struct nat_key key = {};

	if (!p)
		return 0;
	key.remote = sent ? p->destination : p->source;
	key.node = sent ? p->source : p->destination;
	key.remote_port = sent ? p->destination_port : p->source_port;
	key.node_port = sent ? p->source_port : p->destination_port;
	switch (p->protocol) {
	case IPPROTO_ICMP:
		return p->icmp_type == ICMP_ECHOREPLY;
	case IPPROTO_ICMPV6:
		return p->icmp_type == ICMPV6_ECHO_REPLY;
	case IPPROTO_UDP: /* a socket that is not connected does not tell; then whoever speaks is the first */
		return !sent && host_socket(ctx, &key, IPPROTO_UDP) == BPF_TCP_ESTABLISHED;
	case IPPROTO_TCP:
		if ((p->tcp_flags & (TCP_SYN | TCP_ACK)) == TCP_SYN)
			return 0;
		if (sent && p->tcp_flags & TCP_SYN)
			return 1;
		return host_opened(ctx, &key, sent) != sent;
	}
	return 0;
}

/* host_error judges an ICMP error that is about no known flow. It makes none. */
__noinline int host_error(struct packet *p)
{
	struct verdict egress, ingress;
	int reason;

	if (!p)
		return DROP_INVALID_PACKET;
	reason = flow_ends(p);
	return reason == GO_ON ? flow_judge(p, flow_epoch(), &egress, &ingress) : reason;
}

/*
 * host_port judges a packet for a node port by the rules for the node, at the port that was asked for: each packet anew,
 * since its flow is one between client and backend. Where the node is the backend, the flow's verdict is enough.
 */
static __always_inline int host_port(struct packet *p)
{
	struct verdict verdict = {};
	struct peer_info at = {};
	union address service;
	int reason;

	if (!p->service_port || !host_judged() || p->to.flags & ADDRESS_HOST)
		return GO_ON;
	service = p->service;
	address_find(&service, &at);
	if (!(at.flags & ADDRESS_HOST))
		return GO_ON;
	flow_judge_side(&at, &p->from, (__u32)p->protocol << 16 | bpf_ntohs(p->service_port), true, &verdict);
	reason = flow_denied(&verdict);
	if (reason != GO_ON) {
		p->ingress_rule = verdict.rule;
		p->ingress_action = verdict.action;
	}
	return reason;
}

/* host_track is the step for a packet of which the node is an end. */
static __always_inline int host_track(struct __sk_buff *ctx, struct packet *p, struct flow_key *key, struct flow *flow,
				      __u64 now, bool sent)
{
	int reason;

	if (p->flags & PACKET_ICMP_ERROR) {
		reason = icmp_follow(ctx, p, false);
		return reason == DROP_ICMP_UNRELATED || reason == DROP_INVALID_PACKET ? host_error(p) : reason;
	}
	if (!flow && host_answers(ctx, p, sent))
		p->flags |= PACKET_REPLY;
	return flow_track(p, key, flow, now);
}

/* host_translated tells whether the node's connections may be a service's, or have to make room for others under its address. */
static __always_inline bool host_translated(void)
{
	return feature_on(FEATURE_MASQUERADE) || feature_on(FEATURE_SERVICES);
}

/* host_named tells whether a packet bears an address of the node. */
static __always_inline bool host_named(const struct packet *p)
{
	union address source = p->source;
	struct peer_info *who = bpf_map_lookup_elem(&addresses, &source);

	return who && who->flags & ADDRESS_HOST;
}

/* host_collides tells whether the packet's tuple is that of a mapping: its replies would go to whose that is. */
static __always_inline bool host_collides(const struct packet *p)
{
	struct nat_key key = {
		.remote = p->destination,
		.node = p->source,
		.remote_port = nat_by_id(p) ? 0 : p->destination_port,
		.node_port = p->source_port,
		.protocol = p->protocol,
	};
	struct nat_mapping *mapping = bpf_map_lookup_elem(&nat, &key);

	return mapping && (mapping->pod_port != p->source_port || !address_equal(&mapping->pod, &p->source));
}

/* host_sends tells whether the packet is the node's and a policy selects the node. */
static __always_inline bool host_sends(struct __sk_buff *ctx, struct packet *p)
{
	if (!host_judged() || !host_owns(ctx, p, true))
		return false;
	if (!p->to.flags && !p->to.peer)
		address_find(&p->destination, &p->to);
	return !host_overlay(p, &p->destination, &p->to);
}

/*
 * host_leave is the journey of what the node's stack sends, by wire or by tunnel. It is left alone, unless a policy selects the
 * node, or it answers for a service, or somebody was given its tuple before: then the node's connection is moved to another port, by
 * a flow and a mapping like a pod's. uplink: the device under whose address that is.
 */
static __always_inline int host_leave(struct __sk_buff *ctx, struct packet *p, __u32 uplink)
{
	bool judged = host_sends(ctx, p), error = p->flags & PACKET_ICMP_ERROR, moved;
	__u64 now = flow_now();
	struct flow_key key;
	struct flow *flow;
	int reason = GO_ON;

	if (!judged && (error || !host_translated() || !host_named(p)))
		return REASON_PASSED;
	if (packet_is_fragment(p))
		reason = fragment_follow(ctx, p);
	if (reason != GO_ON)
		return reason;
	flow = error ? NULL : flow_find(p, &key, now);
	if (flow && flow->backend) /* from a service's port: its client knows the service there, and no process */
		return judged ? DROP_UNKNOWN_SOURCE : REASON_PASSED;
	moved = !flow && host_translated() && !error && host_collides(p);
	if (!flow && !judged && !moved)
		return REASON_PASSED;
	reason = judged ? host_track(ctx, p, &key, flow, now, true) : flow_track(p, &key, flow, now);
	if (reason == GO_ON && moved)
		reason = nat_open(ctx, p, &key, uplink);
	if (reason == GO_ON)
		reason = deliver_rename(ctx, p);
	return reason == GO_ON ? REASON_PASSED : reason;
}
