/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/*
 * Step 3: services, for what the socket hooks did not translate. A frontend's packets go to the backend that the first of
 * them chose, remembered by a service entry in `flows`: its key is (client, frontend), its value names the backend.
 * The flow proper has the key (client, backend) and remembers the frontend, by which its replies are renamed.
 *
 * A pod that reaches itself sees a loopback source (config.loopback4 or 6) and answers to that.
 */
#pragma once

#include "backend.h"
#include "conntrack.h"
#include "packet.h"
#include "rewrite.h"

/* service_frontend finds the frontend that a packet is addressed to, and fills its key. Node ports are at any address. */
static __always_inline struct frontend *service_frontend(struct packet *p, struct frontend_key *key)
{
	struct frontend *frontend;

	if (p->protocol != IPPROTO_TCP && p->protocol != IPPROTO_UDP && p->protocol != IPPROTO_SCTP)
		return NULL;
	key->address = p->destination;
	key->port = p->destination_port;
	key->protocol = p->protocol;
	frontend = bpf_map_lookup_elem(&frontends, key);
	if (frontend)
		return frontend;
	if (!p->to.flags && !p->to.peer)
		address_find(&p->destination, &p->to);
	if (!(p->to.flags & ADDRESS_NODE_PORT))
		return NULL;
	frontend_anywhere(&key->address);
	return bpf_map_lookup_elem(&frontends, key);
}

/*
 * service_taken tells whether the client's port has a connection with a backend already, under another name or none: the two would
 * be one flow, and one connection for the backend. A datagram's answer has the name that was asked for last (flow_rename).
 */
__noinline int service_taken(const struct packet *p, __u32 index, __u64 now)
{
	struct backend *backend = bpf_map_lookup_elem(&backends, &index);
	struct flow_key key;
	struct flow *flow;

	if (!p || !backend || p->protocol == IPPROTO_UDP)
		return false;
	flow_key_of(&key, &p->source, p->source_port, &backend->address, backend->port, p->protocol);
	flow = bpf_map_lookup_elem(&flows, &key);
	if (!flow || flow_over(flow, p, now))
		return false;
	return flow->service_port != p->destination_port || !address_equal(&flow->service, &p->destination);
}

/*
 * service_untaken picks a backend with which the client's port has no connection yet: the first of some slots in a row that begin
 * anywhere. Where it finds none the client's next SYN looks elsewhere.
 */
static __always_inline int service_untaken(const struct packet *p, const struct slot_range *range, __u64 now, __u32 *index)
{
	__u32 first = bpf_get_prandom_u32();

	for (int i = 0; i < CLASH_TRIES && range->count; i++) {
		*index = slot_backend(range, (first + i) % range->count);
		if (backend_takes(*index) && !service_taken(p, *index, now))
			return GO_ON;
	}
	return DROP_PORT_TAKEN;
}

/* service_choose picks a backend for a new connection. index stays 0 if the packet is for no frontend. */
static __always_inline int service_choose(struct packet *p, __u64 now, __u32 *index)
{
	struct choice choice = {.key.client = p->source, .client_port = p->source_port};
	struct frontend *frontend = service_frontend(p, &choice.key.frontend);
	bool outside = p->hook != HOOK_FROM_POD && !packet_of_node(p);

	if (!frontend || frontend->flags & FRONTEND_LOOPBACK || (outside && !(frontend->flags & FRONTEND_EXTERNAL)))
		return GO_ON;
	if (!frontend_admits(frontend, &choice.key.client))
		return DROP_SOURCE_RANGE;
	choice.range = outside ? frontend->outside : frontend->inside;
	*index = backend_pick(frontend, &choice);
	if (!*index)
		return DROP_NO_BACKEND;
	return service_taken(p, *index, now) ? service_untaken(p, &choice.range, now, index) : GO_ON;
}

/*
 * service_keeps tells whether a remembered backend still takes the packet: all but a new connection to one that is leaving.
 * One that is gone may have left its number to another.
 */
static __always_inline bool service_keeps(const struct packet *p, const struct flow *entry)
{
	__u32 index = entry->backend;
	struct backend *backend = bpf_map_lookup_elem(&backends, &index);
	bool opening = p->protocol == IPPROTO_TCP && (p->tcp_flags & (TCP_SYN | TCP_ACK)) == TCP_SYN;

	if (!backend || backend->state == BACKEND_GONE || backend->port != entry->service_port ||
	    !address_equal(&backend->address, &entry->service))
		return false;
	return backend->state == BACKEND_ACTIVE || !opening;
}

/* service_prolong lets a remembered backend live on with its connection; a SYN does not show that there is one. */
static __always_inline void service_prolong(const struct packet *p, struct flow *entry, __u64 now)
{
	if (p->protocol != IPPROTO_TCP || !(p->tcp_flags & TCP_SYN))
		entry->expires = now + flow_lifetime(p->protocol, FLOW_ESTABLISHED);
}

/*
 * service_backend finds the backend of a packet to a frontend: the remembered one, or a fresh choice for a new connection, which is
 * remembered once the packet is allowed (flow_track).
 */
static __always_inline int service_backend(struct packet *p, struct flow *entry, __u64 now, __u32 *index)
{
	bool opening = p->protocol != IPPROTO_TCP || p->tcp_flags & TCP_SYN;
	int reason;

	if (entry && service_keeps(p, entry)) {
		*index = entry->backend;
		service_prolong(p, entry, now);
		return GO_ON;
	}
	if (entry && !opening)
		return DROP_NO_BACKEND; /* its backend is gone: another one would not know the connection */
	reason = service_choose(p, now, index);
	if (reason != GO_ON || !*index)
		return reason == GO_ON && entry ? DROP_NO_BACKEND : reason;
	p->chosen = true;
	return GO_ON;
}

/*
 * service_translate sends a packet for a frontend to its backend. It returns GO_ON also for a packet that is for no
 * frontend; p->service tells the two apart.
 */
__noinline int service_translate(struct __sk_buff *ctx, struct packet *p, struct flow *entry, __u64 now)
{
	struct backend *backend;
	union address address;
	__u32 index = 0;
	int reason;

	if (!p)
		return DROP_NO_BACKEND;
	reason = service_backend(p, entry, now, &index);
	if (reason != GO_ON || !index)
		return reason;
	p->backend = index;
	backend = bpf_map_lookup_elem(&backends, &index);
	if (!backend)
		return DROP_NO_BACKEND;
	p->service = p->destination;
	p->service_port = p->destination_port;
	p->to = (struct peer_info){}; /* of the frontend, if it is known at all */
	address = backend->address;
	if (address_equal(&address, &p->source) && p->hook == HOOK_FROM_POD) {
		p->flags |= PACKET_SELF;
		p->alias = p->flags & PACKET_IPV4 ? config.loopback4 : config.loopback6;
		p->alias_port = p->source_port;
	}
	return rewrite_packet(ctx, p, REWRITE_DESTINATION, &address, backend->port);
}

/* service_self_reply turns a pod's answer to its own loopback source into one to itself. */
static __always_inline int service_self_reply(struct __sk_buff *ctx, struct packet *p)
{
	__u64 high = p->flags & PACKET_IPV4 ? config.loopback4.half[0] : config.loopback6.half[0];
	__u64 low = p->flags & PACKET_IPV4 ? config.loopback4.half[1] : config.loopback6.half[1];
	union address own;

	if (!low || p->destination.half[0] != high || p->destination.half[1] != low)
		return GO_ON;
	own = p->source;
	p->flags |= PACKET_SELF;
	return rewrite_packet(ctx, p, REWRITE_DESTINATION, &own, p->destination_port);
}
