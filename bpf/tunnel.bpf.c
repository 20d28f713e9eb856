//go:build ignore
/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/*
 * The overlay device.
 *
 *   tunnel_in    what another node sent to a pod of this node, or to this node itself, after decapsulation
 *   tunnel_out   what this node's own stack sends to pods of other nodes; what from_pod sends is marked and passes
 *
 * JOURNEY.md numbers the steps.
 */
#include "lib/address.h"
#include "lib/arrive.h"
#include "lib/conntrack.h"
#include "lib/deliver.h"
#include "lib/dsr.h"
#include "lib/finish.h"
#include "lib/fragment.h"
#include "lib/gateway.h"
#include "lib/host.h"
#include "lib/icmp.h"
#include "lib/neighbour.h"
#include "lib/packet.h"
#include "lib/parse.h"

char module_license[] SEC("license") = "Dual BSD/GPL";

/* tunnel_sender reads the outer source and checks the overlay's number. */
static __always_inline int tunnel_sender(struct __sk_buff *ctx, union address *outer)
{
	struct bpf_tunnel_key key = {};

	if (!bpf_skb_get_tunnel_key(ctx, &key, sizeof(key), 0)) {
		address_from4(outer, bpf_htonl(key.remote_ipv4));
	} else if (!bpf_skb_get_tunnel_key(ctx, &key, sizeof(key), BPF_F_TUNINFO_IPV6)) {
		__builtin_memcpy(outer, key.remote_ipv6, sizeof(*outer));
	} else {
		return DROP_TUNNEL_KEY;
	}
	return key.tunnel_id == config.vni ? GO_ON : DROP_TUNNEL_KEY;
}

/* tunnel_in_source checks that the inner source is of the node that the outer header names. node: as a flow remembers it, or 0. */
__noinline int tunnel_in_source(struct __sk_buff *ctx, struct packet *p, __u32 index)
{
	struct peer_info sender;
	union address outer;
	struct node *node;
	int reason = tunnel_sender(ctx, &outer);

	if (reason != GO_ON || !p)
		return reason == GO_ON ? DROP_TUNNEL_KEY : reason;
	if (!index) {
		address_find(&p->source, &p->from);
		index = p->from.node;
	}
	node = bpf_map_lookup_elem(&nodes, &index);
	if (index && node && address_equal(&node->tunnel, &outer))
		return GO_ON;
	address_find(&outer, &sender);
	if (!(sender.flags & ADDRESS_REMOTE_NODE))
		return DROP_UNKNOWN_NODE;
	if (dsr_client(p))
		return GO_ON; /* tunnel_in_client looks closer */
	return p->from.flags & ADDRESS_UNKNOWN ? DROP_UNKNOWN_SOURCE : DROP_SPOOFED_SOURCE;
}

/*
 * tunnel_in_client lets pass what another node sends on in a client's name: packets to a pod that say which service was asked, later ones of
 * TCP's flows, and errors, which have to be about a flow.
 */
static __always_inline int tunnel_in_client(struct __sk_buff *ctx, struct packet *p, const struct flow *flow)
{
	bool known = flow && flow->hook == HOOK_TUNNEL_IN && address_set(&flow->service) && !flow->backend && !(p->flags & PACKET_REPLY);

	if (flow && (!known || p->protocol == IPPROTO_TCP))
		return known ? GO_ON : DROP_SPOOFED_SOURCE;
	address_find(&p->destination, &p->to);
	if (!(p->to.flags & ADDRESS_LOCAL_POD))
		return DROP_SPOOFED_SOURCE;
	return p->flags & PACKET_ICMP_ERROR || dsr_read(ctx, p) ? GO_ON : DROP_SPOOFED_SOURCE;
}

/* tunnel_in_destination finds whom a packet is for: a pod, the node, whoever is behind its address, or outside. */
static __always_inline int tunnel_in_destination(struct __sk_buff *ctx, struct packet *p, const struct flow_key *key,
						 struct flow *flow, __u64 now)
{
	int reason;

	address_find(&p->destination, &p->to);
	if (p->to.flags & ADDRESS_HOST)
		return arrive_destination(ctx, p, key, flow && flow->backend ? flow : NULL, now);
	if (!(p->to.flags & ADDRESS_LOCAL_POD)) {
		reason = gateway_serve(p, flow, gateway_epoch());
		if (reason != GO_ON)
			return reason == REASON_TO_STACK ? DROP_UNKNOWN_DESTINATION : reason;
	}
	return p->flags & PACKET_ICMP_ERROR ? icmp_follow(ctx, p, false) : GO_ON;
}

/* tunnel_in_host is what remains of the journey of a packet for the node itself, while a policy selects the node. */
static __always_inline int tunnel_in_host(struct __sk_buff *ctx, struct packet *p, struct flow_key *key, __u64 now)
{
	struct flow *flow = p->flags & PACKET_ICMP_ERROR ? NULL : flow_find(p, key, now);
	int reason = host_track(ctx, p, key, flow, now, false);

	return reason == GO_ON ? REASON_TO_STACK : reason;
}

/* tunnel_in_known tells whether the flow says all about the packet's receiver. */
static __always_inline bool tunnel_in_known(const struct packet *p, const struct flow *flow)
{
	if (!flow || flow->backend || arrive_moved(p, flow))
		return false;
	return !(flow->flags & FLOW_GATEWAY) || p->flags & PACKET_REPLY || gateway_known(p, flow);
}

/* tunnel_in_ip is the journey of an IP packet out of the tunnel. */
static __always_inline int tunnel_in_ip(struct __sk_buff *ctx, struct packet *p)
{
	__u64 now = flow_now();
	struct flow_key key;
	struct flow *flow;
	int reason;

	flow = p->flags & (PACKET_ICMP_ERROR | PACKET_LATER_FRAGMENT) ? NULL : flow_find(p, &key, now);
	reason = tunnel_in_source(ctx, p, flow ? flow->node : 0);
	if (reason == GO_ON && dsr_client(p))
		reason = tunnel_in_client(ctx, p, flow);
	if (reason != GO_ON)
		return reason;
	if (packet_multicast(p))
		return DROP_MULTICAST;
	if (packet_is_fragment(p))
		reason = fragment_follow(ctx, p);
	if (reason != GO_ON)
		return reason;
	if (!tunnel_in_known(p, flow)) {
		reason = tunnel_in_destination(ctx, p, &key, flow, now);
		if (reason == REASON_TO_STACK && host_judged())
			return tunnel_in_host(ctx, p, &key, now);
		if (reason == GO_ON)
			reason = host_port(p);
		if (reason != GO_ON)
			return reason;
		if (p->flags & PACKET_RELATED)
			return deliver(ctx, p, &key);
		flow = flow_find(p, &key, now);
		reason = arrive_known(p, flow);
	}
	if (reason == GO_ON)
		reason = flow_track(p, &key, flow, now);
	if (reason == GO_ON)
		reason = arrive_source(ctx, p, &key, flow, now);
	return reason == GO_ON ? deliver(ctx, p, &key) : reason;
}

SEC("tc")
int tunnel_in(struct __sk_buff *ctx)
{
	struct packet *p = packet_begin(HOOK_TUNNEL_IN);
	int reason;

	if (!p)
		return TC_ACT_SHOT;
	reason = packet_parse(ctx, p);
	if (reason == GO_ON)
		reason = packet_is_ip(p) ? tunnel_in_ip(ctx, p) : DROP_UNSUPPORTED_PROTOCOL;
	if (reason == REASON_TO_STACK && ctx->pkt_type != 0 /* PACKET_HOST */)
		bpf_skb_change_type(ctx, 0); /* the inner frame bears the sending node's link addresses */
	return finish(ctx, p, reason);
}

/*
 * tunnel_source_set changes the frame's source, which the stack made the overlay device's own address. That is the same
 * on every node, and vxlan drops a frame from its own address as a loop.
 */
static __always_inline int tunnel_source_set(struct __sk_buff *ctx)
{
	struct ethhdr *ethernet = (void *)(long)ctx->data;

	if ((void *)(ethernet + 1) > (void *)(long)ctx->data_end)
		return DROP_INVALID_PACKET;
	ethernet->h_source[5] ^= 1;
	return GO_ON;
}

/* tunnel_out_ip finds the node of a packet's destination and names it in the outer header. */
static __always_inline int tunnel_out_ip(struct __sk_buff *ctx, struct packet *p)
{
	struct node *node;
	int reason;

	if (packet_multicast(p) || nd_message(p))
		return DROP_MULTICAST;
	address_find(&p->destination, &p->to);
	if (p->to.flags & ADDRESS_UNKNOWN || !p->to.node)
		return DROP_UNKNOWN_DESTINATION;
	node = bpf_map_lookup_elem(&nodes, &p->to.node);
	if (!node || !address_set(&node->tunnel))
		return DROP_UNKNOWN_NODE;
	reason = host_leave(ctx, p, config.uplink_ifindex);
	if (reason == REASON_PASSED)
		reason = tunnel_source_set(ctx);
	if (reason == GO_ON)
		reason = tunnel_key_set(ctx, &node->tunnel);
	if (reason == GO_ON)
		ctx->mark = MARK_FORWARDED;
	return reason == GO_ON ? REASON_PASSED : reason;
}

SEC("tc")
int tunnel_out(struct __sk_buff *ctx)
{
	struct packet *p;
	int reason;

	if (ctx->mark == MARK_FORWARDED)
		return finish_marked(ctx, HOOK_TUNNEL_OUT);
	p = packet_begin(HOOK_TUNNEL_OUT);
	if (!p)
		return TC_ACT_SHOT;
	reason = packet_parse(ctx, p);
	if (reason == GO_ON)
		reason = packet_is_ip(p) ? tunnel_out_ip(ctx, p) : DROP_MULTICAST;
	return finish(ctx, p, reason);
}
