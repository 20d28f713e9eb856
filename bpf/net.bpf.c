//go:build ignore
/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/*
 * The node's own devices: outward ones, and the loopback device.
 *
 *   net_in     what comes from the wire: to a pod of this node, to the node itself, or to a masqueraded pod
 *   net_out    what the node's own stack sends, services over SCTP included; what other hooks send out is marked and passes
 *   loop_out   services over SCTP again, at addresses of the node itself; all other traffic of the node with itself passes
 *
 * JOURNEY.md numbers the steps.
 */
#include "lib/address.h"
#include "lib/announce.h"
#include "lib/arrive.h"
#include "lib/client.h"
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
#include "lib/reset.h"
#include "lib/unreachable.h"

char module_license[] SEC("license") = "Dual BSD/GPL";

/* net_in_source refuses senders that cannot be where the packet came from. */
static __always_inline int net_in_source(struct packet *p)
{
	address_find(&p->source, &p->from);
	if (p->from.flags & (ADDRESS_LOCAL_POD | ADDRESS_HOST))
		return DROP_SPOOFED_SOURCE;
	if (!feature_on(FEATURE_TUNNEL) || !(p->from.flags & ADDRESS_TUNNEL))
		return GO_ON;
	if (!(p->from.flags & ADDRESS_REMOTE_NODE) || (!p->service_port && p->to.flags & ADDRESS_LOCAL_POD))
		return DROP_SPOOFED_SOURCE; /* its packets come through the overlay device */
	/* another node's process asks for a service of this one, or answers what has this one's name: that goes by the wire both ways */
	p->from.flags &= ~ADDRESS_TUNNEL;
	return GO_ON;
}

/* net_in_destination finds the pod that a packet is for, whatever the address it was sent to; the rest is the stack's. */
static __always_inline int net_in_destination(struct __sk_buff *ctx, struct packet *p, const struct flow_key *key,
					      struct flow *entry, __u64 now)
{
	address_find(&p->destination, &p->to);
	if (p->to.flags & ADDRESS_UNKNOWN)
		return DROP_UNKNOWN_DESTINATION;
	if (p->to.flags & ADDRESS_LOCAL_POD)
		return GO_ON;
	return arrive_destination(ctx, p, key, entry, now);
}

/*
 * net_in_host is what remains of the journey of a packet for the node itself, while a policy selects the node. A pod that is
 * reached by tunnel does not send by the wire; another node does, whatever way its address is reached from pods.
 */
static __always_inline int net_in_host(struct __sk_buff *ctx, struct packet *p, struct flow_key *key, struct flow *flow,
				       __u64 now)
{
	int reason;

	address_find(&p->source, &p->from);
	if (p->from.flags & (ADDRESS_LOCAL_POD | ADDRESS_HOST))
		return DROP_SPOOFED_SOURCE;
	if (feature_on(FEATURE_TUNNEL) && p->from.flags & ADDRESS_TUNNEL && !(p->from.flags & ADDRESS_REMOTE_NODE))
		return DROP_SPOOFED_SOURCE;
	if (host_overlay(p, &p->source, &p->from))
		return REASON_TO_STACK;
	reason = host_track(ctx, p, key, flow, now, false);
	return reason == GO_ON ? REASON_TO_STACK : reason;
}

/* net_in_known tells whether the flow says all about the packet's receiver. */
static __always_inline bool net_in_known(const struct packet *p, const struct flow *flow)
{
	if (!flow || flow->flags & FLOW_TUNNEL || flow->backend || arrive_moved(p, flow))
		return false;
	if (gateway_known(p, flow))
		return true;
	return p->flags & PACKET_REPLY ? flow->source_endpoint : flow->destination_endpoint;
}

/* net_in_ip is the journey of an IP packet from the wire. */
static __always_inline int net_in_ip(struct __sk_buff *ctx, struct packet *p)
{
	__u64 now = flow_now();
	struct flow_key key;
	struct flow *flow;
	int reason = GO_ON;

	if (packet_multicast(p) || nd_message(p))
		return announce_nd(ctx, p);
	if (ctx->pkt_type == 3 /* PACKET_OTHERHOST */)
		return REASON_TO_STACK; /* a link that floods brings other machines' frames: to serve one here, too, breaks the connection */
	if (packet_is_fragment(p))
		reason = fragment_follow(ctx, p);
	if (reason != GO_ON)
		return reason;
	flow = p->flags & PACKET_ICMP_ERROR ? NULL : flow_find(p, &key, now);
	if (!net_in_known(p, flow)) {
		reason = net_in_destination(ctx, p, &key, flow && flow->backend ? flow : NULL, now);
		if (reason == REASON_TO_STACK && host_judged() && host_owns(ctx, p, false))
			return net_in_host(ctx, p, &key, flow, now);
		if (reason == REASON_TO_STACK)
			reason = gateway_serve(p, flow, gateway_epoch());
		if (reason == GO_ON)
			reason = net_in_source(p);
		if (reason == GO_ON)
			reason = host_port(p);
		if (reason != GO_ON)
			return reason;
		if (p->flags & PACKET_ICMP_ERROR && !(p->flags & PACKET_RELATED))
			reason = icmp_follow(ctx, p, false);
		if (reason != GO_ON || p->flags & PACKET_RELATED)
			return reason == GO_ON ? deliver(ctx, p, &key) : reason;
		dsr_read(ctx, p);
		flow = flow_find(p, &key, now);
		reason = arrive_known(p, flow);
	} else {
		dsr_again(ctx, p);
	}
	if (reason == GO_ON)
		reason = flow_track(p, &key, flow, now);
	if (reason == GO_ON)
		reason = arrive_source(ctx, p, &key, flow, now);
	return reason == GO_ON ? deliver(ctx, p, &key) : reason;
}

SEC("tc")
int net_in(struct __sk_buff *ctx)
{
	struct packet *p = packet_begin(HOOK_NET_IN);
	int reason, answered = 0;

	if (!p)
		return TC_ACT_SHOT;
	reason = packet_parse(ctx, p);
	if (reason == GO_ON)
		reason = packet_is_ip(p) ? net_in_ip(ctx, p) : announce_arp(ctx, p);
	if (reason == DROP_NO_BACKEND && unreachable_due(ctx, p, 0))
		answered = icmp_answer(ctx, p, 0, reason);
	else if (reason == DROP_NO_BACKEND)
		answered = reset_answer(ctx, p, 0);
	else if (reason == DROP_FRAG_NEEDED || reason == DROP_TTL_EXPIRED)
		answered = icmp_answer(ctx, p, 0, reason);
	reason = finish(ctx, p, reason);
	return answered ? TC_ACT_REDIRECT : reason; /* the packet is lost, what it has become goes back */
}

/* net_out_ip is the journey of an IP packet that the node's stack sends. */
static __always_inline int net_out_ip(struct __sk_buff *ctx, struct packet *p)
{
	int reason = GO_ON;

	if (packet_multicast(p) || nd_message(p))
		return announce_nd(ctx, p);
	if (feature_on(FEATURE_SERVICES) && p->protocol == IPPROTO_SCTP)
		reason = client_service(ctx, p);
	return reason == GO_ON ? host_leave(ctx, p, ctx->ifindex) : reason;
}

SEC("tc")
int net_out(struct __sk_buff *ctx)
{
	struct packet *p;
	int reason, answered = 0;

	if (ctx->mark == MARK_FORWARDED || (!host_translated() && !host_judged()))
		return finish_marked(ctx, HOOK_NET_OUT);
	p = packet_begin(HOOK_NET_OUT);
	if (!p)
		return TC_ACT_SHOT;
	reason = packet_parse(ctx, p);
	if (reason == GO_ON)
		reason = packet_is_ip(p) ? net_out_ip(ctx, p) : announce_arp(ctx, p);
	else if (reason != DROP_MAPPED_ADDRESS)
		reason = REASON_PASSED; /* not ours to judge */
	if (reason == REASON_TO_STACK)
		reason = REASON_PASSED;
	if (reason == REASON_PASSED && announce_unclaimed(ctx))
		reason = DROP_NO_ROUTE;
	if (reason == DROP_FRAG_NEEDED)
		answered = icmp_answer(ctx, p, 0, reason);
	reason = finish(ctx, p, reason);
	return answered ? TC_ACT_REDIRECT : reason; /* the packet is lost, what it has become goes back */
}

/* loop_concerns tells what a service may have to do with from what the hooks at sockets have seen, which is all but everything here. */
static __always_inline bool loop_concerns(struct __sk_buff *ctx)
{
	struct iphdr *ip4 = (void *)(long)ctx->data + ETH_HLEN; /* no shorter than what is read of IPv6's */
	struct ipv6hdr *ip6 = (void *)ip4;
	__u8 protocol;

	if ((void *)(ip4 + 1) > (void *)(long)ctx->data_end)
		return false;
	protocol = ctx->protocol == bpf_htons(ETH_P_IP) ? ip4->protocol : ip6->nexthdr;
	return protocol != IPPROTO_TCP && protocol != IPPROTO_UDP;
}

SEC("tc")
int loop_out(struct __sk_buff *ctx)
{
	struct packet *p;
	int reason, answered = 0;

	if (!feature_on(FEATURE_SERVICES) || !loop_concerns(ctx))
		return TC_ACT_OK;
	p = packet_begin(HOOK_LOOP_OUT);
	if (!p)
		return TC_ACT_SHOT;
	if (packet_parse(ctx, p) != GO_ON || p->protocol != IPPROTO_SCTP)
		return TC_ACT_OK;
	reason = client_service(ctx, p);
	if (reason == DROP_FRAG_NEEDED)
		answered = icmp_answer(ctx, p, 0, reason);
	reason = finish(ctx, p, reason == GO_ON ? REASON_PASSED : reason);
	return answered ? TC_ACT_REDIRECT : reason; /* the packet is lost, what it has become goes back */
}
