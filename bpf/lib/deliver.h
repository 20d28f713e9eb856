/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/*
 * Step 7: send the packet on. By what is known of the destination:
 *
 *   deliver_local     a pod of this node: straight into its namespace
 *   (to the stack)    an address of this node
 *   deliver_tunnel    a pod of another node, through the overlay device
 *   deliver_away      a pod of another node, or the node itself, by its next hop
 *     deliver_route   anything else, by the kernel's routes, with the node's address where that is wanted
 */
#pragma once

#include "address.h"
#include "dsr.h"
#include "mtu.h"
#include "nat.h"
#include "packet.h"
#include "rewrite.h"

/* deliver_rename gives the source the name that the receiver knows it by, where it has one. */
static __always_inline int deliver_rename(struct __sk_buff *ctx, struct packet *p)
{
	union address alias = p->alias;

	if (!address_set(&alias))
		return GO_ON;
	return rewrite_packet(ctx, p, REWRITE_SOURCE, &alias, p->alias_port);
}

/* deliver_hop counts the node as a hop, in the packet. */
static __always_inline int deliver_hop(void *data, void *end, const struct packet *p)
{
	struct ipv6hdr *ip6 = data + ETH_HLEN;
	struct iphdr *ip4 = data + ETH_HLEN;
	__u32 check;

	if (p->flags & PACKET_IPV4) {
		if ((void *)(ip4 + 1) > end)
			return DROP_INVALID_PACKET;
		check = ip4->check + bpf_htons(0x0100); /* RFC 1141 */
		ip4->check = check + (check >= 0xffff);
		ip4->ttl--;
		return GO_ON;
	}
	if ((void *)(ip6 + 1) > end)
		return DROP_INVALID_PACKET;
	ip6->hop_limit--;
	return GO_ON;
}

/* deliver_prepare does what all ways on have in common. Checks come first: a packet that is answered is as it was sent. */
static __always_inline int deliver_prepare(struct __sk_buff *ctx, struct packet *p, __u32 mtu, __u32 device)
{
	int reason;

	if (p->ttl <= 1)
		return DROP_TTL_EXPIRED;
	reason = mtu_check(ctx, p, mtu, device);
	if (reason != GO_ON)
		return reason;
	reason = deliver_rename(ctx, p);
	if (reason == GO_ON)
		reason = deliver_hop((void *)(long)ctx->data, (void *)(long)ctx->data_end, p);
	return reason == GO_ON && p->option ? dsr_write(ctx, p) : reason;
}

/* deliver_link addresses a packet to a pod's device, on the link between it and the node. */
static __always_inline int deliver_link(struct __sk_buff *ctx, const struct endpoint *endpoint)
{
	struct ethhdr *ethernet = (void *)(long)ctx->data;

	if ((void *)(ethernet + 1) > (void *)(long)ctx->data_end)
		return DROP_INVALID_PACKET;
	__builtin_memcpy(ethernet->h_dest, endpoint->pod_mac, ETH_ALEN);
	__builtin_memcpy(ethernet->h_source, endpoint->host_mac, ETH_ALEN);
	return GO_ON;
}

/* deliver_local hands a packet to a pod of this node, past the host's stack and the pod's own to_pod. */
static __always_inline int deliver_local(struct __sk_buff *ctx, struct packet *p)
{
	struct endpoint *endpoint = endpoint_at(p->to.endpoint);
	int reason;

	if (!endpoint || !address_of_endpoint(endpoint, &p->destination))
		return DROP_UNKNOWN_DESTINATION;
	reason = deliver_prepare(ctx, p, endpoint->mtu, endpoint->ifindex);
	if (reason == GO_ON)
		reason = deliver_link(ctx, endpoint);
	if (reason != GO_ON)
		return reason;
	if (ctx->pkt_type != 0 /* PACKET_HOST */)
		bpf_skb_change_type(ctx, 0);
	return bpf_redirect_peer(endpoint->ifindex, 0) == TC_ACT_REDIRECT ? REASON_FORWARDED : DROP_NO_ROUTE;
}

/*
 * deliver_back sends an answer where the packet came from: into a pod (endpoint not NULL), back to the wire, or into the device that
 * the node's own stack was sending by.
 */
static __always_inline int deliver_back(struct __sk_buff *ctx, const struct packet *p, const struct endpoint *endpoint)
{
	struct ethhdr *ethernet = (void *)(long)ctx->data;
	__u8 sender[ETH_ALEN];

	if ((void *)(ethernet + 1) > (void *)(long)ctx->data_end)
		return 0;
	if (endpoint) {
		__builtin_memcpy(ethernet->h_dest, endpoint->pod_mac, ETH_ALEN);
		__builtin_memcpy(ethernet->h_source, endpoint->host_mac, ETH_ALEN);
		return bpf_redirect_peer(endpoint->ifindex, 0) == TC_ACT_REDIRECT;
	}
	__builtin_memcpy(sender, ethernet->h_source, ETH_ALEN);
	__builtin_memcpy(ethernet->h_source, ethernet->h_dest, ETH_ALEN);
	__builtin_memcpy(ethernet->h_dest, sender, ETH_ALEN);
	if (packet_of_node(p))
		return bpf_redirect(ctx->ifindex, BPF_F_INGRESS) == TC_ACT_REDIRECT;
	ctx->mark = MARK_FORWARDED;
	return bpf_redirect(ctx->ifindex, 0) == TC_ACT_REDIRECT;
}

/* tunnel_key_set writes the outer header's addresses. */
static __always_inline int tunnel_key_set(struct __sk_buff *ctx, const union address *remote)
{
	struct bpf_tunnel_key key = {.tunnel_id = config.vni, .tunnel_ttl = 64};
	__u64 flags = BPF_F_ZERO_CSUM_TX;

	if (address_mapped(remote)) {
		key.remote_ipv4 = bpf_ntohl(remote->word[3]);
	} else {
		__builtin_memcpy(key.remote_ipv6, remote, 16);
		flags |= BPF_F_TUNINFO_IPV6;
	}
	return bpf_skb_set_tunnel_key(ctx, &key, sizeof(key), flags) ? DROP_TUNNEL_KEY : GO_ON;
}

/* deliver_tunnel sends a packet to another node through the overlay device. */
__noinline int deliver_tunnel(struct __sk_buff *ctx, struct packet *p)
{
	struct node *node;
	__u32 index;
	int reason;

	if (!p)
		return DROP_TUNNEL_KEY;
	index = p->to.node;
	node = bpf_map_lookup_elem(&nodes, &index);
	if (!node || !address_set(&node->tunnel))
		return DROP_UNKNOWN_NODE;
	reason = deliver_prepare(ctx, p, config.tunnel_mtu, config.overlay_ifindex);
	if (reason != GO_ON)
		return reason;
	reason = tunnel_key_set(ctx, &node->tunnel);
	if (reason != GO_ON)
		return reason;
	ctx->mark = MARK_FORWARDED;
	bpf_redirect(config.overlay_ifindex, 0);
	return REASON_FORWARDED;
}

/* deliver_neighbour leaves by a device towards a next hop; the kernel knows or finds the link address. */
static __always_inline int deliver_neighbour(struct __sk_buff *ctx, __u32 ifindex, struct bpf_redir_neigh *hop)
{
	ctx->mark = MARK_FORWARDED;
	return bpf_redirect_neigh(ifindex, hop, sizeof(*hop), 0) == TC_ACT_REDIRECT ? REASON_FORWARDED :
										     DROP_NO_NEIGHBOUR;
}

/* deliver_lookup asks the kernel's routes for device and next hop. */
__noinline int deliver_lookup(struct __sk_buff *ctx, struct packet *p, struct bpf_redir_neigh *hop)
{
	struct bpf_fib_lookup route = {};
	long result;

	if (!p || !hop)
		return DROP_NO_ROUTE;
	route.family = p->flags & PACKET_IPV4 ? FAMILY_IPV4 : FAMILY_IPV6;
	route.ifindex = ctx->ingress_ifindex ? ctx->ingress_ifindex : ctx->ifindex;
	route.l4_protocol = p->protocol;
	route.sport = p->source_port;
	route.dport = p->destination_port;
	route.tot_len = mtu_size(ctx, p);
	if (p->flags & PACKET_IPV4) {
		route.ipv4_src = p->source.word[3];
		route.ipv4_dst = p->destination.word[3];
	} else {
		__builtin_memcpy(route.ipv6_src, &p->source, 16);
		__builtin_memcpy(route.ipv6_dst, &p->destination, 16);
	}
	result = bpf_fib_lookup(ctx, &route, sizeof(route), 0);
	if (result == BPF_FIB_LKUP_RET_FRAG_NEEDED) {
		p->mtu = route.mtu_result - p->option;
		return DROP_FRAG_NEEDED;
	}
	if (result != BPF_FIB_LKUP_RET_SUCCESS && result != BPF_FIB_LKUP_RET_NO_NEIGH)
		return DROP_NO_ROUTE;
	p->device = route.ifindex;
	hop->nh_family = route.family;
	__builtin_memcpy(hop->ipv6_nh, route.ipv6_dst, 16);
	return GO_ON;
}

/* deliver_masqueraded tells whether the packet leaves the cluster under the node's address. An answer goes by the name that was asked. */
static __always_inline bool deliver_masqueraded(const struct packet *p)
{
	return p->gateway || (feature_on(FEATURE_MASQUERADE) && !(p->to.flags & (ADDRESS_CLUSTER | ADDRESS_NO_MASQUERADE)) &&
			      !(p->flags & PACKET_REPLY));
}

/* deliver_route sends a packet by the kernel's routes. */
static __always_inline int deliver_route(struct __sk_buff *ctx, struct packet *p, const struct flow_key *key,
					 struct bpf_redir_neigh *hop)
{
	int reason = deliver_lookup(ctx, p, hop);

	if (reason != GO_ON)
		return reason;
	if (p->ttl <= 1)
		return DROP_TTL_EXPIRED;
	if (deliver_masqueraded(p) && !address_set(&p->alias) && !(p->flags & PACKET_ICMP_ERROR)) {
		reason = nat_open(ctx, p, key, p->device);
		if (reason != GO_ON)
			return reason;
	}
	reason = deliver_prepare(ctx, p, 0, p->device);
	return reason == GO_ON ? deliver_neighbour(ctx, p->device, hop) : reason;
}

/* deliver_away sends a packet off the node: to another node by its next hop, or by the kernel's routes. */
static __always_inline int deliver_away(struct __sk_buff *ctx, struct packet *p, const struct flow_key *key)
{
	struct node *node = p->to.node ? bpf_map_lookup_elem(&nodes, &p->to.node) : NULL;
	struct bpf_redir_neigh hop = {};
	const union address *next;
	int reason;

	if (!node)
		return p->to.node ? DROP_UNKNOWN_NODE : deliver_route(ctx, p, key, &hop);
	next = p->flags & PACKET_IPV4 ? &node->next_hop4 : &node->next_hop6;
	if (!address_set(next) || !node->ifindex)
		return p->to.flags & ADDRESS_GATEWAY ? DROP_NO_GATEWAY : deliver_route(ctx, p, key, &hop);
	reason = deliver_prepare(ctx, p, config.pod_mtu, node->ifindex);
	if (reason != GO_ON)
		return reason;
	hop.nh_family = address_mapped(next) ? FAMILY_IPV4 : FAMILY_IPV6;
	if (address_mapped(next))
		hop.ipv4_nh = next->word[3];
	else
		__builtin_memcpy(hop.ipv6_nh, next, 16);
	return deliver_neighbour(ctx, node->ifindex, &hop);
}

/* deliver sends the packet on, and returns how it ended. */
static __always_inline int deliver(struct __sk_buff *ctx, struct packet *p, const struct flow_key *key)
{
	int reason;

	if (p->to.flags & ADDRESS_UNKNOWN)
		return DROP_UNKNOWN_DESTINATION;
	if (p->to.flags & ADDRESS_LOCAL_POD)
		return deliver_local(ctx, p);
	if (p->to.flags & ADDRESS_HOST) {
		reason = deliver_rename(ctx, p);
		return reason == GO_ON ? REASON_TO_STACK : reason;
	}
	if (feature_on(FEATURE_TUNNEL) && p->to.flags & ADDRESS_TUNNEL)
		return deliver_tunnel(ctx, p);
	return deliver_away(ctx, p, key);
}
