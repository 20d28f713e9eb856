/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/*
 * What comes from another machine, by wire or by tunnel, to an address that is no pod's: whom it is for.
 *
 *   nat_restore        an answer to what left under the node's address
 *   service_translate  a node port, an external or a load balancer's address
 *   (to the stack)     the node itself
 *
 * A backend of this node sees the true client. Any other is reached under the node's address (arrive_source), since its
 * answers have to come back through here, unless its node is told to answer itself (dsr.h). They are renamed twice, from one flow: its key
 * is (client, backend).
 *
 * Between nodes' own addresses traffic stays on the wire, also where pods' goes by tunnel.
 */
#pragma once

#include "dsr.h"
#include "icmp.h"
#include "nat.h"
#include "service.h"

/* arrive_destination finds whom a packet is for; p->to says. entry: the service entry of the packet, if it has one. */
static __always_inline int arrive_destination(struct __sk_buff *ctx, struct packet *p, const struct flow_key *key,
					      struct flow *entry, __u64 now)
{
	int reason = REASON_TO_STACK;

	if (!entry && p->to.flags & ADDRESS_HOST && (feature_on(FEATURE_MASQUERADE) || feature_on(FEATURE_SERVICES)))
		reason = p->flags & PACKET_ICMP_ERROR ? icmp_follow(ctx, p, true) : nat_restore(ctx, p);
	if (reason == REASON_TO_STACK && feature_on(FEATURE_SERVICES)) {
		reason = service_translate(ctx, p, entry, now);
		if (reason == GO_ON && !p->service_port)
			return REASON_TO_STACK;
	}
	if (reason != GO_ON)
		return reason == DROP_INVALID_PACKET ? REASON_TO_STACK : reason;
	address_find(&p->destination, &p->to);
	if (p->to.flags & ADDRESS_REMOTE_NODE)
		p->to.flags &= ~ADDRESS_TUNNEL;
	return GO_ON;
}

/*
 * arrive_moved tells the flow of a connection of the node that was moved to another port (host_leave): what arrives for its tuple
 * is not the node's, but of whoever has the tuple by a mapping.
 */
static __always_inline bool arrive_moved(const struct packet *p, const struct flow *flow)
{
	__u32 receiver = p->flags & PACKET_REPLY ? flow->source_endpoint : flow->destination_endpoint;

	return receiver == ENDPOINT_HOST && address_set(&flow->nat_address);
}

/* arrive_known refuses what a mapping sends on without a flow: to nobody but a pod of this node, or the node itself. */
static __always_inline int arrive_known(const struct packet *p, const struct flow *flow)
{
	/* a mapping of an address of the node is one that host_leave moved to another port */
	return flow || p->service_port || p->gateway || p->to.flags & (ADDRESS_LOCAL_POD | ADDRESS_HOST) ? GO_ON : DROP_UNKNOWN_DESTINATION;
}

/*
 * arrive_source gives a packet to a backend elsewhere the node's address, if that node is not to answer the client itself; later ones of
 * the flow find it there.
 */
static __always_inline int arrive_source(struct __sk_buff *ctx, struct packet *p, const struct flow_key *key,
					 struct flow *flow, __u64 now)
{
	if (!p->service_port || p->to.flags & (ADDRESS_LOCAL_POD | ADDRESS_HOST))
		return GO_ON;
	if (dsr_applies(p, flow)) {
		dsr_send(p, flow, now);
		return GO_ON;
	}
	return flow ? GO_ON : nat_open(ctx, p, key, config.uplink_ifindex);
}
