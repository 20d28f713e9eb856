/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/*
 * The node's own processes as clients of services over SCTP, which the hooks at sockets do not know: translated where their
 * packets leave, as the routes towards a service's address say: by an uplink or, at an address of the node itself, by the loopback
 * device. By where the backend is:
 *
 *   client_remote   elsewhere: under the node's address, with a mapping like that of a client outside, by which its answers come back
 *   client_local    a pod of this node: out of the pod's device, where to_pod judges and counts; its answers are renamed by from_pod
 *   client_self     a process of the node: by the loopback device, where its answers are renamed (client_answer)
 *
 * A name that is the node's own comes in by any device: accept_local says so to the kernel (ip-sysctl).
 */
#pragma once

#include "conntrack.h"
#include "deliver.h"
#include "fragment.h"
#include "host.h"
#include "nat.h"
#include "packet.h"
#include "service.h"

#define CLIENT_LOOPBACK 1    /* the loopback device's index in every network namespace (LOOPBACK_IFINDEX of the kernel) */

/*
 * client_unroute takes the route to the service's address off the packet, by one that leads nowhere: the kernel sends what waited for a
 * next hop's link address by the packet's own route (neigh_update).
 */
static __always_inline int client_unroute(struct __sk_buff *ctx)
{
	struct bpf_tunnel_key nowhere = {};

	return bpf_skb_set_tunnel_key(ctx, &nowhere, sizeof(nowhere), 0) ? DROP_NO_ROUTE : GO_ON;
}

/* client_remote sends a packet to a backend elsewhere. Between nodes' own addresses traffic stays on the wire. */
static __always_inline int client_remote(struct __sk_buff *ctx, struct packet *p, struct flow_key *key, struct flow *flow, __u64 now)
{
	int reason = flow_track(p, key, flow, now);

	if (p->to.flags & ADDRESS_REMOTE_NODE)
		p->to.flags &= ~ADDRESS_TUNNEL;
	if (reason == GO_ON && !address_set(&p->alias))
		reason = nat_open(ctx, p, key, config.uplink_ifindex);
	if (reason != GO_ON)
		return reason;
	if (feature_on(FEATURE_TUNNEL) && p->to.flags & ADDRESS_TUNNEL)
		return deliver_tunnel(ctx, p);
	reason = client_unroute(ctx);
	return reason == GO_ON ? deliver_away(ctx, p, key) : reason;
}

/* client_open makes the flow of a pod's first packet, which to_pod will count. */
static __always_inline int client_open(struct packet *p, struct flow_key *key, __u64 now)
{
	int reason = flow_track(p, key, NULL, now);
	struct flow *flow;

	if (reason != GO_ON)
		return reason;
	flow = bpf_map_lookup_elem(&flows, key);
	if (flow)
		flow->forward = (struct traffic){};
	return GO_ON;
}

/* client_local sends a packet to a pod of this node. A device's egress has no bpf_redirect_peer. */
static __always_inline int client_local(struct __sk_buff *ctx, struct packet *p, struct flow_key *key, const struct flow *flow, __u64 now)
{
	struct endpoint *endpoint = endpoint_at(p->to.endpoint);
	int reason = GO_ON;

	if (!endpoint || !address_of_endpoint(endpoint, &p->destination))
		return DROP_UNKNOWN_DESTINATION;
	if (!flow)
		reason = client_open(p, key, now);
	else if (p->chosen)
		reason = flow_remember(p);
	if (reason == GO_ON)
		reason = mtu_check(ctx, p, endpoint->mtu, endpoint->ifindex);
	if (reason == GO_ON)
		reason = deliver_link(ctx, endpoint);
	if (reason != GO_ON)
		return reason;
	return bpf_redirect(endpoint->ifindex, 0) == TC_ACT_REDIRECT ? REASON_FORWARDED : DROP_NO_ROUTE;
}

/* client_self sends a packet to a process of the node: it goes on as it is by the loopback device, or is taken back in by that. */
static __always_inline int client_self(struct __sk_buff *ctx, struct packet *p, struct flow_key *key, struct flow *flow, __u64 now)
{
	struct ethhdr *ethernet;
	int reason = flow_track(p, key, flow, now);

	if (reason != GO_ON)
		return reason;
	if (p->hook == HOOK_LOOP_OUT)
		return REASON_PASSED;
	ethernet = (void *)(long)ctx->data;
	if ((void *)(ethernet + 1) > (void *)(long)ctx->data_end)
		return DROP_INVALID_PACKET;
	__builtin_memset(ethernet, 0, 2 * ETH_ALEN); /* the loopback device's addresses */
	return bpf_redirect(CLIENT_LOOPBACK, BPF_F_INGRESS) == TC_ACT_REDIRECT ? REASON_FORWARDED : DROP_NO_ROUTE;
}

/* client_answer gives an answer of the node to itself the name that its client asked for. */
static __always_inline int client_answer(struct __sk_buff *ctx, struct packet *p, struct flow_key *key, struct flow *flow, __u64 now)
{
	int reason = flow_track(p, key, flow, now);

	if (reason == GO_ON)
		reason = deliver_rename(ctx, p);
	return reason == GO_ON ? REASON_PASSED : reason;
}

/* client_service is the journey of a packet of SCTP that the node sends. GO_ON: no service has to do with it. */
static __always_inline int client_service(struct __sk_buff *ctx, struct packet *p)
{
	__u64 now = flow_now();
	struct flow_key key;
	struct flow *flow;
	int reason = GO_ON;

	if (!host_named(p))
		return GO_ON;
	if (packet_is_fragment(p))
		reason = fragment_follow(ctx, p);
	if (reason != GO_ON)
		return reason;
	flow = flow_find(p, &key, now);
	if (flow && !flow->backend && p->flags & PACKET_REPLY && p->hook == HOOK_LOOP_OUT)
		return client_answer(ctx, p, &key, flow, now);
	if (flow && (!flow->backend || p->flags & PACKET_REPLY))
		return GO_ON;
	reason = service_translate(ctx, p, flow, now);
	if (reason != GO_ON || !p->service_port)
		return reason;
	flow = flow_find(p, &key, now);
	address_find(&p->destination, &p->to);
	if (p->to.flags & ADDRESS_UNKNOWN)
		return DROP_UNKNOWN_DESTINATION;
	if (p->to.flags & ADDRESS_HOST)
		return client_self(ctx, p, &key, flow, now);
	if (p->to.flags & ADDRESS_LOCAL_POD)
		return client_local(ctx, p, &key, flow, now);
	return client_remote(ctx, p, &key, flow, now);
}
