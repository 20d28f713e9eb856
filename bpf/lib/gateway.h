/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/*
 * Egress gateways: selected pods reach some destinations outside the cluster through a node of which outside sees one known
 * address.
 *
 *   gateway_follow  on the pod's node: by which node a flow leaves. It keeps that while the node is alive; the next packet after
 *                   that goes by another, as a new flow. With none alive nothing leaves.
 *   gateway_arrive  on the gateway: what another node's pod sends to the outside gets the gateway's address (nat.h), or ends here.
 *
 * A flow knows its gateway, so both cost a packet of a known flow one comparison: of the epoch that the agent raises when it
 * changes anything about gateways. Only a new flow to the outside, or one of an older epoch, asks the tables: whether the pod
 * is selected, and if so what covers the destination.
 */
#pragma once

#include "address.h"
#include "backend.h"
#include "conntrack.h"
#include "packet.h"

/* gateway_epoch is read before the tables, so that nothing is taken for newer than it is. */
static __always_inline __u32 gateway_epoch(void)
{
	__u32 index = CONTROL_GATEWAY_EPOCH;
	volatile __u32 *epoch = bpf_map_lookup_elem(&control, &index);

	return epoch ? *epoch : 0;
}

/* gateway_unnamed tells a flow that leaves by this node and never got its address: no port was free. */
static __always_inline bool gateway_unnamed(const struct flow *flow)
{
	return flow->flags & FLOW_GATEWAY && !flow->node && !address_set(&flow->nat_address);
}

/* gateway_settled tells whether a flow goes the way that it should as of an epoch. */
static __always_inline bool gateway_settled(const struct flow *flow, __u32 epoch)
{
	return flow->gateway_epoch == epoch && !gateway_unnamed(flow);
}

/* gateway_number is the gateway for what a pod sends to a destination outside; 0: none. */
static __always_inline __u32 gateway_number(const struct packet *p)
{
	struct gateway_route route = {.length = 8 * (sizeof(route) - sizeof(route.length))};
	union address pod = p->source;
	__u32 *found = bpf_map_lookup_elem(&gateway_pods, &pod);

	if (!found)
		return 0;
	route.set = *found;
	__builtin_memcpy(route.address, &p->destination, sizeof(route.address));
	found = bpf_map_lookup_elem(&gateway_routes, &route);
	return found ? *found : 0;
}

/* gateway_hash spreads flows over slots, the same flow always to the same. */
static __always_inline __u32 gateway_hash(const struct packet *p)
{
	__u64 hash = backend_mix((__u64)p->source_port << 32 | (__u64)p->destination_port << 16 | p->protocol);

	hash = backend_mix(hash ^ p->source.half[0]);
	hash = backend_mix(hash ^ p->source.half[1]);
	hash = backend_mix(hash ^ p->destination.half[0]);
	return backend_mix(hash ^ p->destination.half[1]) >> 32;
}

/* gateway_keeps tells whether the node by which a flow leaves still serves; gateway: NULL if it should leave like any other. */
static __always_inline bool gateway_keeps(const struct gateway *gateway, const struct flow *flow)
{
	__u32 node = flow->node ? flow->node : GATEWAY_SELF;

	if (!gateway || !(flow->flags & FLOW_GATEWAY))
		return !gateway && !(flow->flags & FLOW_GATEWAY);
	if (node == GATEWAY_SELF && !address_equal(&gateway->address, &flow->nat_address))
		return false;
	for (__u32 i = 0; i < GATEWAY_SLOTS; i++) {
		if (i < gateway->count && gateway->slots[i] == node)
			return true;
	}
	return false;
}

/* gateway_pick gives a new flow its node. */
static __always_inline int gateway_pick(struct packet *p, __u32 number, const struct gateway *gateway)
{
	__u32 count = gateway ? gateway->count : 0, node;

	if (!count)
		return DROP_NO_GATEWAY;
	node = gateway->slots[gateway_hash(p) % count % GATEWAY_SLOTS];
	p->gateway = number;
	if (node == GATEWAY_SELF)
		return GO_ON; /* nat_open gives it the address when it leaves */
	p->to.node = node;
	p->to.flags = ADDRESS_CLUSTER | ADDRESS_GATEWAY | (feature_on(FEATURE_TUNNEL) ? ADDRESS_TUNNEL : 0);
	return GO_ON;
}

/* gateway_choose finds out by which node a pod's packet leaves. flow: its flow, if it has one; it ends if it goes another way. */
__noinline int gateway_choose(struct packet *p, struct flow *flow, __u32 epoch)
{
	struct gateway *gateway = NULL;
	struct flow_key key;
	__u32 number;

	if (!p)
		return DROP_NO_GATEWAY;
	if (!p->to.flags && !p->to.peer)
		address_find(&p->destination, &p->to);
	p->gateway_epoch = epoch;
	number = p->to.flags & ~ADDRESS_NO_MASQUERADE ? 0 : gateway_number(p);
	if (number)
		gateway = bpf_map_lookup_elem(&gateways, &number);
	if (flow && (!number || gateway) && gateway_keeps(gateway, flow)) {
		flow->gateway_epoch = epoch;
		p->to = (struct peer_info){}; /* the flow knows */
		return GO_ON;
	}
	if (flow) {
		flow_key_of(&key, &p->source, p->source_port, &p->destination, p->destination_port, p->protocol);
		flow_remove(&key, flow, p->hook);
	}
	return number ? gateway_pick(p, number, gateway) : GO_ON;
}

/* gateway_follow is the step on the pod's node. What the pod was asked it answers by the way that it was asked. */
static __always_inline int gateway_follow(struct packet *p, struct flow **flow)
{
	__u32 epoch = gateway_epoch();
	int reason;

	if (*flow ? p->flags & PACKET_REPLY || gateway_settled(*flow, epoch) : !epoch)
		return GO_ON;
	reason = gateway_choose(p, *flow, epoch);
	if (*flow && (*flow)->flags & FLOW_ENDED)
		*flow = NULL;
	return reason;
}

/*
 * gateway_serve is for what another node's pod sends to the outside by this node. flow: the packet's, if it has one; it ends if
 * outside knows it by another address. No pod's own address leaves a cluster that masquerades.
 */
__noinline int gateway_serve(struct packet *p, struct flow *flow, __u32 epoch)
{
	struct gateway *gateway;
	struct flow_key key;
	__u32 number;

	if (!p || p->to.flags & ~ADDRESS_NO_MASQUERADE)
		return REASON_TO_STACK;
	address_find(&p->source, &p->from);
	if (!p->from.node || !(p->from.flags & ADDRESS_CLUSTER) || p->from.flags & ADDRESS_REMOTE_NODE)
		return REASON_TO_STACK;
	number = gateway_number(p);
	if (!number)
		return p->hook == HOOK_NET_IN && feature_on(FEATURE_MASQUERADE) && !(p->to.flags & ADDRESS_NO_MASQUERADE) ?
			       DROP_NO_GATEWAY : REASON_TO_STACK;
	gateway = bpf_map_lookup_elem(&gateways, &number);
	if (!gateway || !address_set(&gateway->address))
		return DROP_NO_GATEWAY;
	p->gateway = number;
	p->gateway_epoch = epoch;
	if (flow && flow->flags & FLOW_GATEWAY && address_equal(&flow->nat_address, &gateway->address)) {
		flow->gateway_epoch = epoch;
	} else if (flow && !flow->backend) {
		flow_key_of(&key, &p->source, p->source_port, &p->destination, p->destination_port, p->protocol);
		flow_remove(&key, flow, p->hook);
	}
	return GO_ON;
}

/* gateway_known tells whether a flow that leaves by this node is to go on as it is. */
static __always_inline bool gateway_known(const struct packet *p, const struct flow *flow)
{
	return flow->flags & FLOW_GATEWAY && !(p->flags & PACKET_REPLY) && gateway_settled(flow, gateway_epoch());
}
