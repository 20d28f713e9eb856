/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/*
 * Step 6, on the way out: the node's address instead of the pod's. The mapping is made with the first packet that
 * leaves, and goes with its flow. A source port is kept if neither another mapping nor a socket of the node has
 * it towards that destination, and no service has it for its node port; otherwise the range is gone through from a random
 * start. Towards a destination for which none is free, that is done once a second.
 *
 * On the way in, nat_restore finds the pod behind the node's address and port.
 */
#pragma once

#include "backend.h"
#include "conntrack.h"
#include "packet.h"
#include "rewrite.h"

/* A search for a free port. */
struct nat_search {
	struct __sk_buff *ctx;
	struct nat_key key;
	struct nat_mapping mapping;
	__u32 port;                 /* to try next, host byte order */
	int reason;                 /* GO_ON: found */
};

/* nat_port_of is the port that tells mappings to one destination apart; the id of an ICMP echo. */
static __always_inline bool nat_by_id(const struct packet *p)
{
	return p->protocol == IPPROTO_ICMP || p->protocol == IPPROTO_ICMPV6;
}

/* nat_socket_tuple puts a mapping's outside tuple into the form in which sockets are looked up. It returns the size. */
static __always_inline __u32 nat_socket_tuple(const struct nat_key *key, struct bpf_sock_tuple *tuple)
{
	if (address_mapped(&key->node)) {
		tuple->ipv4.saddr = key->remote.word[3];
		tuple->ipv4.daddr = key->node.word[3];
		tuple->ipv4.sport = key->remote_port;
		tuple->ipv4.dport = key->node_port;
		return sizeof(tuple->ipv4);
	}
	__builtin_memcpy(tuple->ipv6.saddr, &key->remote, 16);
	__builtin_memcpy(tuple->ipv6.daddr, &key->node, 16);
	tuple->ipv6.sport = key->remote_port;
	tuple->ipv6.dport = key->node_port;
	return sizeof(tuple->ipv6);
}

/* nat_host_uses tells whether a socket of the node would take packets of that tuple for its own. */
static __always_inline bool nat_host_uses(struct __sk_buff *ctx, const struct nat_key *key)
{
	struct bpf_sock_tuple tuple = {};
	__u32 size = nat_socket_tuple(key, &tuple);
	bool v4 = size == sizeof(tuple.ipv4);
	struct bpf_sock *socket = NULL;

	if (key->protocol == IPPROTO_TCP)
		socket = v4 ? bpf_skc_lookup_tcp(ctx, &tuple, sizeof(tuple.ipv4), BPF_F_CURRENT_NETNS, 0) :
			      bpf_skc_lookup_tcp(ctx, &tuple, sizeof(tuple.ipv6), BPF_F_CURRENT_NETNS, 0);
	else if (key->protocol == IPPROTO_UDP)
		socket = v4 ? bpf_sk_lookup_udp(ctx, &tuple, sizeof(tuple.ipv4), BPF_F_CURRENT_NETNS, 0) :
			      bpf_sk_lookup_udp(ctx, &tuple, sizeof(tuple.ipv6), BPF_F_CURRENT_NETNS, 0);
	if (!socket)
		return false;
	bpf_sk_release(socket);
	return true;
}

/* nat_node_port tells whether a port of the node is a service's: an answer to it would be taken for a new client. */
static __always_inline bool nat_node_port(const struct nat_key *key)
{
	struct frontend_key frontend = {.address = key->node, .port = key->node_port, .protocol = key->protocol};

	if (!feature_on(FEATURE_SERVICES))
		return false;
	frontend_anywhere(&frontend.address);
	return bpf_map_lookup_elem(&frontends, &frontend);
}

/* nat_try takes one port if it is free; it stops the loop once there is an answer. */
static long nat_try(__u64 index, void *context)
{
	struct nat_search *search = context;
	long error;

	search->key.node_port = bpf_htons(search->port);
	error = bpf_map_lookup_elem(&nat, &search->key) ? -17 /* EEXIST */ :
		bpf_map_update_elem(&nat, &search->key, &search->mapping, BPF_NOEXIST);
	if (!error && !nat_node_port(&search->key) && !nat_host_uses(search->ctx, &search->key)) {
		search->reason = GO_ON;
		return 1;
	}
	if (!error) {
		bpf_map_delete_elem(&nat, &search->key);
	} else if (error != -17) {
		search->reason = DROP_NAT_TABLE_FULL;
		return 1;
	}
	tally_add(TALLY_NAT_PORT_SEARCHES);
	search->port = search->port < config.nat_port_min || search->port >= config.nat_port_max ?
			       config.nat_port_min : search->port + 1;
	return 0;
}

/* nat_search_port finds a free outside port: the pod's own, or one of the node's range. */
static __always_inline int nat_search_port(struct nat_search *search, struct packet *p)
{
	__u32 range = config.nat_port_max - config.nat_port_min + 1;
	struct nat_key pause = search->key;
	__u64 now = bpf_ktime_get_ns(), *until, end;

	search->reason = DROP_NAT_EXHAUSTED;
	search->port = bpf_ntohs(p->source_port);
	nat_try(0, search);
	if (search->reason != DROP_NAT_EXHAUSTED || !p->source_port)
		return search->reason; /* without a port there is nothing to vary */
	until = bpf_map_lookup_elem(&nat_pauses, &pause);
	if (until && now < *until)
		return search->reason;
	search->port = config.nat_port_min + bpf_get_prandom_u32() % range;
	bpf_loop(range < NAT_TRIES ? range : NAT_TRIES, nat_try, search, 0);
	if (search->reason == DROP_NAT_EXHAUSTED) {
		end = now + NAT_PAUSE * SECOND;
		bpf_map_update_elem(&nat_pauses, &pause, &end, BPF_ANY);
	}
	return search->reason;
}

/* nat_name is the address that a packet leaves under: the egress gateway's, or the uplink's. It returns GO_ON with none if addresses stay. */
static __always_inline int nat_name(struct packet *p, __u32 ifindex)
{
	struct uplink *uplink;
	struct gateway *gateway;
	__u32 number = p->gateway;

	if (number) {
		gateway = bpf_map_lookup_elem(&gateways, &number);
		if (!gateway || !address_set(&gateway->address))
			return DROP_NO_GATEWAY;
		p->alias = gateway->address;
		return GO_ON;
	}
	uplink = bpf_map_lookup_elem(&uplinks, &ifindex);
	if (!uplink)
		return GO_ON; /* not an outward device */
	p->alias = p->flags & PACKET_IPV4 ? uplink->address4 : uplink->address6;
	return address_set(&p->alias) ? GO_ON : DROP_NO_ROUTE;
}

/* nat_known tells whether who is outside has answered a pod under its own address: the connection began before it was to be masqueraded. */
static __always_inline bool nat_known(const struct packet *p, const struct flow *flow)
{
	return flow->reverse.packets && p->from.flags & ADDRESS_LOCAL_POD && !p->gateway;
}

/*
 * nat_open makes the mapping for a packet that leaves by an uplink, and notes it in the packet's flow. A connection goes on as it
 * began: under another address the other end would not know it.
 */
__noinline int nat_open(struct __sk_buff *ctx, struct packet *p, const struct flow_key *key, __u32 ifindex)
{
	struct nat_search search = {.ctx = ctx};
	struct flow_key copy;
	struct flow *flow;
	int reason;

	if (!p || !key)
		return GO_ON;
	copy = *key;
	flow = bpf_map_lookup_elem(&flows, &copy);
	if (flow && nat_known(p, flow))
		return GO_ON;
	reason = nat_name(p, ifindex);
	if (reason != GO_ON || !address_set(&p->alias))
		return reason;
	if (!flow)
		return DROP_FLOW_TABLE_FULL;
	search.key.remote = p->destination;
	search.key.node = p->alias;
	search.key.remote_port = nat_by_id(p) ? 0 : p->destination_port;
	search.key.protocol = p->protocol;
	search.mapping.pod = p->source;
	search.mapping.pod_port = p->source_port;
	search.mapping.endpoint = p->from.endpoint;
	search.mapping.created = bpf_ktime_get_ns();
	reason = nat_search_port(&search, p);
	if (reason != GO_ON)
		return reason;
	tally_add(TALLY_NAT_CREATED);
	p->alias_port = search.key.node_port;
	flow->nat_port = p->alias_port;
	flow->nat_address = p->alias;
	return GO_ON;
}

/* nat_find is the mapping that a packet for the node's address is for. */
static __always_inline struct nat_mapping *nat_find(const struct packet *p)
{
	struct nat_key key = {
		.remote = p->source,
		.node = p->destination,
		.remote_port = nat_by_id(p) ? 0 : p->source_port,
		.node_port = p->destination_port,
		.protocol = p->protocol,
	};

	return bpf_map_lookup_elem(&nat, &key);
}

/* nat_restore gives a packet that came for the node's address to the pod behind it, if there is one. */
static __always_inline int nat_restore(struct __sk_buff *ctx, struct packet *p)
{
	struct nat_mapping *mapping = nat_find(p);
	union address pod;

	if (!mapping)
		return REASON_TO_STACK;
	pod = mapping->pod;
	return rewrite_packet(ctx, p, REWRITE_DESTINATION, &pod, mapping->pod_port);
}
