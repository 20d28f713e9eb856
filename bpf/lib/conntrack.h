/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/*
 * Step 4: the flow that a packet belongs to. One lookup; where there is none, or where policy has changed since the
 * flow was judged, step 5 (policy.h) is asked for both ends that are endpoints of this node: its pods, and the node itself.
 *
 *   flow_find       the packet's flow, if it has a living one
 *   flow_open       no flow: judge, and make one if both sides allow it
 *   flow_recheck    a flow judged at another epoch: judge again, and keep the answer in it
 *   flow_follow     a packet of a flow: count it and move the flow's state
 *   flow_remove     the end of a flow: whoever calls it first reports it, everybody else does nothing
 */
#pragma once

#include "address.h"
#include "event.h"
#include "packet.h"
#include "policy.h"

/* flow_now is cheap and good to 4 ms: lifetimes need no better. */
static __always_inline __u64 flow_now(void)
{
	return bpf_ktime_get_coarse_ns();
}

/* flow_epoch is read before judging, so that a verdict is never taken for newer than it is. */
static __always_inline __u32 flow_epoch(void)
{
	__u32 index = CONTROL_VERDICT_EPOCH;
	volatile __u32 *epoch = bpf_map_lookup_elem(&control, &index);

	return epoch ? *epoch : 0;
}

/* address_before orders addresses as their bytes stand, so that every reader of a key finds the same order. */
static __always_inline bool address_before(const union address *a, const union address *b)
{
	if (a->half[0] != b->half[0])
		return bpf_be64_to_cpu(a->half[0]) < bpf_be64_to_cpu(b->half[0]);
	return bpf_be64_to_cpu(a->half[1]) < bpf_be64_to_cpu(b->half[1]);
}

/* flow_key_of makes the key of a packet's two ends. It returns whether the source is the low one. */
static __always_inline bool flow_key_of(struct flow_key *key, const union address *source,
					__be16 source_port, const union address *destination, __be16 destination_port, __u8 protocol)
{
	bool low = address_before(source, destination) ||
		   (address_equal(source, destination) && bpf_ntohs(source_port) <= bpf_ntohs(destination_port));

	key->low = low ? *source : *destination;
	key->high = low ? *destination : *source;
	key->low_port = low ? source_port : destination_port;
	key->high_port = low ? destination_port : source_port;
	key->protocol = protocol;
	__builtin_memset(key->reserved, 0, sizeof(key->reserved));
	return low;
}

/* flow_uncount gives back a half-open flow's place in its endpoint's quota, once. */
static __always_inline void flow_uncount(struct flow *flow)
{
	struct endpoint_use *use;
	__u32 index;

	if (!(flow->flags & FLOW_HALF_OPEN_COUNTED))
		return;
	if (!(__sync_fetch_and_and(&flow->flags, ~FLOW_HALF_OPEN_COUNTED) & FLOW_HALF_OPEN_COUNTED))
		return;
	index = flow->source_endpoint;
	use = bpf_map_lookup_elem(&endpoint_uses, &index);
	if (use)
		__sync_fetch_and_add(&use->half_open, -1);
}

/* flow_forget_mapping removes the SNAT mapping of a flow that is being removed. */
static __always_inline void flow_forget_mapping(const struct flow_key *key, const struct flow *flow, bool low)
{
	struct nat_key mapping = {.protocol = key->protocol};

	if (!address_set(&flow->nat_address) || flow->flags & FLOW_SELF)
		return;
	mapping.remote = low ? key->high : key->low;
	mapping.remote_port = low ? key->high_port : key->low_port;
	if (key->protocol == IPPROTO_ICMP || key->protocol == IPPROTO_ICMPV6)
		mapping.remote_port = 0;
	mapping.node = flow->nat_address;
	mapping.node_port = flow->nat_port;
	if (!bpf_map_delete_elem(&nat, &mapping))
		tally_add(TALLY_NAT_REMOVED);
}

/* flow_forget_service removes the service entry that chose the backend of a flow that is being removed. */
static __always_inline void flow_forget_service(const struct flow_key *key, const struct flow *flow, bool low)
{
	struct flow_key entry;

	if (!address_set(&flow->service) || flow->backend)
		return;
	flow_key_of(&entry, low ? &key->low : &key->high, low ? key->low_port : key->high_port, &flow->service,
		    flow->service_port, key->protocol);
	if (!bpf_map_delete_elem(&flows, &entry))
		tally_add(TALLY_FLOWS_REMOVED);
}

/* flow_remove ends a flow: its place in the quota, its mapping and its record. It returns 1 if it was the one to do so. */
__noinline int flow_remove(const struct flow_key *key, struct flow *flow, __u32 hook)
{
	struct flow_key copy;
	bool low;

	if (!key || !flow)
		return 0;
	if (__sync_fetch_and_or(&flow->flags, FLOW_ENDED) & FLOW_ENDED)
		return 0;
	copy = *key;
	low = flow->flags & FLOW_LOW_IS_SOURCE;
	flow_uncount(flow);
	flow_forget_mapping(&copy, flow, low);
	flow_forget_service(&copy, flow, low);
	if (!flow->backend)
		event_flow(&copy, flow, EVENT_FLOW_END | hook << 8);
	tally_add(TALLY_FLOWS_REMOVED);
	bpf_map_delete_elem(&flows, &copy);
	return 1;
}

/* flow_over tells whether a packet finds only what is left of an earlier connection of its two ends. */
static __always_inline bool flow_over(const struct flow *flow, const struct packet *p, __u64 now)
{
	if (now > flow->expires || flow->flags & FLOW_ENDED)
		return true;
	return flow->state == FLOW_CLOSED && (p->tcp_flags & (TCP_SYN | TCP_ACK)) == TCP_SYN;
}

/* flow_entry looks for the packet's flow, dead or alive, and learns the packet's direction from it. */
static __always_inline struct flow *flow_entry(struct packet *p, struct flow_key *key)
{
	bool low = flow_key_of(key, &p->source, p->source_port, &p->destination, p->destination_port, p->protocol);
	struct flow *flow = bpf_map_lookup_elem(&flows, key);

	p->flags &= ~PACKET_REPLY;
	if (flow && low != !!(flow->flags & FLOW_LOW_IS_SOURCE))
		p->flags |= PACKET_REPLY;
	return flow;
}

/* flow_find looks for the packet's living flow, and ends a dead one. */
static __always_inline struct flow *flow_find(struct packet *p, struct flow_key *key, __u64 now)
{
	struct flow *flow = flow_entry(p, key);

	if (flow && flow_over(flow, p, now)) {
		p->flags &= ~PACKET_REPLY;
		flow_remove(key, flow, p->hook);
		return NULL;
	}
	return flow;
}

/* flow_denied is the reason of a verdict's refusal. A redirect without a proxy must not become an allow. */
static __always_inline int flow_denied(const struct verdict *verdict)
{
	if (verdict->action == ACTION_ALLOW)
		return GO_ON;
	if (verdict->action == ACTION_REDIRECT)
		return DROP_NO_PROXY;
	return verdict->rule < RULE_FIRST_FREE ? DROP_POLICY_DEFAULT : DROP_POLICY_DENY;
}

/* flow_wanted is what policy is asked for: protocol << 16 | port, as the end that opened the flow meant it. */
static __always_inline __u32 flow_wanted(const struct packet *p)
{
	__be16 port = p->flags & PACKET_REPLY ? p->source_port : p->destination_port;

	switch (p->protocol) {
	case IPPROTO_ICMP:
		return IPPROTO_ICMP << 16 | (p->icmp_type == ICMP_ECHOREPLY ? ICMP_ECHO : p->icmp_type);
	case IPPROTO_ICMPV6:
		return IPPROTO_ICMPV6 << 16 |
		       (p->icmp_type == ICMPV6_ECHO_REPLY ? ICMPV6_ECHO_REQUEST : p->icmp_type);
	}
	return (__u32)p->protocol << 16 | bpf_ntohs(port);
}

/* flow_judge_staged asks what the staged policies of an end would say. It changes nothing but the record. */
__noinline int flow_judge_staged(__u32 program, __u32 peer, __u32 wanted, struct verdict *verdict)
{
	struct verdict staged = {};

	if (!verdict)
		return 0;
	policy_judge(program, peer, wanted, &staged);
	verdict->staged_rule = staged.rule;
	verdict->staged_action = staged.action;
	return 0;
}

/*
 * flow_judge_by is the record whose programs judge an end: a pod's, or the node's own while a policy selects it. NULL with
 * verdict left alone: the end is not judged here.
 */
static __always_inline struct endpoint *flow_judge_by(const struct peer_info *who)
{
	if (who->flags & ADDRESS_LOCAL_POD)
		return endpoint_at(who->endpoint);
	return who->flags & ADDRESS_HOST ? endpoint_at(ENDPOINT_HOST) : NULL;
}

/* flow_judge_side asks one end's program about the other end. An end that is no endpoint of this node is judged elsewhere. */
static __always_inline void flow_judge_side(const struct peer_info *own, const struct peer_info *other, __u32 wanted,
					    bool ingress, struct verdict *verdict)
{
	struct endpoint *endpoint = flow_judge_by(own);
	__u32 program, staged;

	verdict->rule = RULE_OUTSIDE_SCOPE;
	verdict->action = ACTION_ALLOW;
	if (!(own->flags & ADDRESS_LOCAL_POD) && !endpoint)
		return;
	if (own->flags & other->flags & ADDRESS_HOST ||
	    (own->flags & ADDRESS_LOCAL_POD && own->endpoint == other->endpoint && other->flags & ADDRESS_LOCAL_POD)) {
		verdict->rule = RULE_SELF;
		return;
	}
	program = endpoint ? (ingress ? endpoint->ingress : endpoint->egress) : 0;
	if (program || own->flags & ADDRESS_LOCAL_POD) {
		verdict->rule = RULE_NONE;
		verdict->action = ACTION_DENY;
	}
	if (!endpoint)
		return;
	if (program)
		policy_judge(program, other->peer, wanted, verdict);
	staged = ingress ? endpoint->staged_ingress : endpoint->staged_egress;
	if (staged)
		flow_judge_staged(staged, other->peer, wanted, verdict);
}

/*
 * flow_peer makes a pod of this node the peer of its address: a range may hold one of a pod's addresses and not the
 * other, and the endpoint's record knows neither.
 */
static __always_inline void flow_peer(const union address *address, struct peer_info *who)
{
	struct peer_info found = {};

	address_find(address, &found);
	if (found.flags & ADDRESS_LOCAL_POD && found.endpoint == who->endpoint)
		who->peer = found.peer;
}

/* flow_note keeps for the record what the verdicts of both ends are, and returns what they say together. */
static __always_inline int flow_note(struct packet *p, const struct verdict *egress, const struct verdict *ingress)
{
	int reason = flow_denied(egress);

	p->egress_rule = egress->rule;
	p->egress_action = egress->action;
	p->staged_egress_rule = egress->staged_rule;
	p->staged_egress_action = egress->staged_action;
	p->ingress_rule = ingress->rule;
	p->ingress_action = ingress->action;
	p->staged_ingress_rule = ingress->staged_rule;
	p->staged_ingress_action = ingress->staged_action;
	return reason == GO_ON ? flow_denied(ingress) : reason;
}

/* flow_judge judges both ends of the packet's flow, whichever way the packet goes, and returns what they say together. */
static __always_inline int flow_judge(struct packet *p, __u32 epoch, struct verdict *egress, struct verdict *ingress)
{
	bool reply = p->flags & PACKET_REPLY;
	const struct peer_info *source = reply ? &p->to : &p->from;
	const struct peer_info *destination = reply ? &p->from : &p->to;
	__u32 wanted = flow_wanted(p);

	*egress = (struct verdict){.epoch = epoch};
	*ingress = (struct verdict){.epoch = epoch};
	if (flow_judge_by(&p->from) && flow_judge_by(&p->to)) {
		flow_peer(&p->source, &p->from);
		flow_peer(&p->destination, &p->to);
	}
	flow_judge_side(source, destination, wanted, false, egress);
	flow_judge_side(destination, source, wanted, true, ingress);
	return flow_note(p, egress, ingress);
}

/* flow_ends looks up the ends that are not known yet and refuses addresses that nobody owns. */
static __always_inline int flow_ends(struct packet *p)
{
	if (!p->from.flags && !p->from.peer)
		address_find(&p->source, &p->from);
	if (!p->to.flags && !p->to.peer)
		address_find(&p->destination, &p->to);
	if (p->from.flags & ADDRESS_UNKNOWN)
		return DROP_UNKNOWN_SOURCE;
	return p->to.flags & ADDRESS_UNKNOWN ? DROP_UNKNOWN_DESTINATION : GO_ON;
}

/* flow_lifetime is how long a flow lives after a packet. */
static __always_inline __u64 flow_lifetime(__u8 protocol, __u8 state)
{
	if (protocol == IPPROTO_TCP) {
		switch (state) {
		case FLOW_NEW:
			return LIFETIME_SYN * SECOND;
		case FLOW_ESTABLISHED:
			return LIFETIME_TCP * SECOND;
		case FLOW_CLOSING:
			return LIFETIME_CLOSING * SECOND;
		}
		return LIFETIME_CLOSED * SECOND;
	}
	if (state != FLOW_NEW)
		return LIFETIME_DATAGRAM * SECOND;
	return (protocol == IPPROTO_UDP ? LIFETIME_DATAGRAM_NEW : LIFETIME_NEW) * SECOND;
}

/*
 * flow_quota takes a place in the sender's quota of half-open flows. It returns the flag to set in the flow. Clients outside the
 * cluster can be anybody, under any address: all of them together have the quota of index 0, which is no endpoint's.
 */
static __always_inline int flow_quota(const struct packet *p, __u32 *flags)
{
	bool pod = p->from.flags & ADDRESS_LOCAL_POD;
	__u32 index = pod ? p->from.endpoint : 0;
	struct endpoint_use *use;

	if (!pod && (p->flags & PACKET_REPLY || p->from.flags & (ADDRESS_CLUSTER | ADDRESS_HOST | ADDRESS_REMOTE_NODE)))
		return GO_ON;
	use = bpf_map_lookup_elem(&endpoint_uses, &index);
	if (!use)
		return GO_ON;
	if (use->half_open >= (pod ? config.half_open_limit : config.outside_half_open_limit))
		return pod ? DROP_HALF_OPEN_QUOTA : DROP_OUTSIDE_QUOTA;
	__sync_fetch_and_add(&use->half_open, 1);
	*flags |= FLOW_HALF_OPEN_COUNTED;
	return GO_ON;
}

/* flow_draft is zeroed memory in which to make a flow. */
static __always_inline struct flow *flow_draft(void)
{
	__u32 zero = 0;
	struct flow *flow = bpf_map_lookup_elem(&drafts, &zero);

	if (flow)
		__builtin_memset(flow, 0, sizeof(*flow));
	return flow;
}

/* flow_other_end records how the end that is not local is reached, so that no packet need ask again. */
static __always_inline __u32 flow_other_end(const struct packet *p, struct flow *flow)
{
	const struct peer_info *other = p->to.flags & ADDRESS_LOCAL_POD ? &p->from : &p->to;
	bool host = (p->from.flags | p->to.flags) & ADDRESS_HOST; /* what it sends and gets goes by the stack */

	flow->node = host || other->flags & ADDRESS_LOCAL_POD ? 0 : other->node;
	return flow->node && other->flags & ADDRESS_TUNNEL ? FLOW_TUNNEL : 0;
}

/* flow_endpoint is the number of a local end; 0: it is not local. */
static __always_inline __u32 flow_endpoint(const struct peer_info *who)
{
	if (who->flags & ADDRESS_LOCAL_POD)
		return who->endpoint;
	return who->flags & ADDRESS_HOST ? ENDPOINT_HOST : 0;
}

/* flow_fill puts what is known of the first packet into the draft; judged verdicts are there already. */
static __always_inline void flow_fill(const struct packet *p, const struct flow_key *key, struct flow *flow, __u32 flags)
{
	bool reply = p->flags & PACKET_REPLY; /* the flow of a connection that is older than the policy (host.h) */
	const struct peer_info *source = reply ? &p->to : &p->from;
	const struct peer_info *destination = reply ? &p->from : &p->to;
	struct traffic first = {.packets = 1, .bytes = p->length};

	flow->created = bpf_ktime_get_ns();
	flow->state = reply ? FLOW_ESTABLISHED : FLOW_NEW;
	flow->hook = p->hook;
	flow->expires = flow->created + flow_lifetime(p->protocol, flow->state);
	if (reply)
		flow->reverse = first;
	else
		flow->forward = first;
	if (reply)
		flow->tcp_reverse = p->tcp_flags;
	else
		flow->tcp_forward = p->tcp_flags;
	flow->service = p->service;
	flow->service_port = p->service_port;
	flow->nat_address = p->alias;
	flow->nat_port = p->alias_port;
	flow->source_endpoint = flow_endpoint(source);
	flow->destination_endpoint = flow_endpoint(destination);
	flow->source_peer = source->peer;
	flow->destination_peer = destination->peer;
	if (reply != (address_equal(&key->low, &p->source) && key->low_port == p->source_port))
		flags |= FLOW_LOW_IS_SOURCE;
	if (p->flags & PACKET_SELF)
		flags |= FLOW_SELF;
	if (p->gateway)
		flags |= FLOW_GATEWAY;
	flow->gateway_epoch = p->gateway_epoch;
	flow->flags = flags | flow_other_end(p, flow);
}

/*
 * flow_open judges the first packet of a flow and makes the flow if it is allowed. With PACKET_REPLY it is the first that is
 * seen of a connection which its receiver opened.
 */
__noinline int flow_open(struct packet *p, const struct flow_key *key, __u32 epoch)
{
	struct flow *flow = flow_draft();
	struct flow_key copy;
	__u32 flags = 0;
	int reason;

	if (!p || !key || !flow)
		return DROP_FLOW_TABLE_FULL;
	reason = flow_ends(p);
	if (reason != GO_ON)
		return reason;
	reason = flow_judge(p, epoch, &flow->egress, &flow->ingress);
	if (reason != GO_ON)
		return reason;
	reason = flow_quota(p, &flags);
	if (reason != GO_ON)
		return reason;
	copy = *key;
	flow_fill(p, &copy, flow, flags);
	if (bpf_map_update_elem(&flows, &copy, flow, BPF_ANY)) {
		flow_uncount(flow);
		return DROP_FLOW_TABLE_FULL;
	}
	tally_add(TALLY_FLOWS_CREATED);
	event_flow(key, flow, EVENT_FLOW_NEW | (__u32)p->hook << 8);
	return GO_ON;
}

/* verdict_replace stores a verdict, its epoch last: whoever sees the epoch sees the verdict that belongs to it. */
static __always_inline void verdict_replace(struct verdict *stored, const struct verdict *verdict)
{
	stored->action = verdict->action;
	stored->rule = verdict->rule;
	stored->argument = verdict->argument;
	stored->staged_rule = verdict->staged_rule;
	stored->staged_action = verdict->staged_action;
	*(volatile __u32 *)&stored->epoch = verdict->epoch;
}

/* verdict_differs tells whether a verdict is worth a record: another rule made it, or would have made it. */
static __always_inline bool verdict_differs(const struct verdict *a, const struct verdict *b)
{
	return a->rule != b->rule || a->staged_rule != b->staged_rule;
}

/* flow_host marks the end that is known to be the node, be it under an address that no table has. */
static __always_inline void flow_host(struct packet *p, const struct flow *flow)
{
	bool reply = p->flags & PACKET_REPLY;

	if ((reply ? flow->destination_endpoint : flow->source_endpoint) == ENDPOINT_HOST)
		p->from.flags |= ADDRESS_HOST;
	if ((reply ? flow->source_endpoint : flow->destination_endpoint) == ENDPOINT_HOST)
		p->to.flags |= ADDRESS_HOST;
}

/* flow_recheck judges a known flow again. The answer stays in the flow, a denial too: then nothing passes until policy changes again. */
__noinline int flow_recheck(struct packet *p, const struct flow_key *key, struct flow *flow, __u32 epoch)
{
	struct verdict egress, ingress;
	bool changed;
	int reason;

	if (!p || !key || !flow)
		return DROP_POLICY_DEFAULT;
	reason = flow_ends(p);
	if (reason != GO_ON)
		return reason;
	flow_host(p, flow);
	reason = flow_judge(p, epoch, &egress, &ingress);
	changed = verdict_differs(&egress, &flow->egress) || verdict_differs(&ingress, &flow->ingress);
	verdict_replace(&flow->egress, &egress);
	verdict_replace(&flow->ingress, &ingress);
	if (!(flow->flags & FLOW_GATEWAY)) /* gateway.h says how it is reached */
		flow_other_end(p, flow);
	if (changed)
		event_flow(key, flow, EVENT_FLOW_VERDICT | (__u32)p->hook << 8);
	return reason;
}

/*
 * flow_opens tells whether a packet shows that both ends want the flow. TCP's answer to a SYN does not: whoever forges his address
 * gets as far. What follows it does (RFC 9293 3.5: SYN-RECEIVED ends with the acknowledgment); a receiver resets what was guessed.
 */
static __always_inline bool flow_opens(const struct packet *p, const struct flow *flow)
{
	bool reply = p->flags & PACKET_REPLY;

	if (p->protocol != IPPROTO_TCP)
		return reply;
	return !(p->tcp_flags & (TCP_SYN | TCP_RST)) && (reply || flow->reverse.packets);
}

/* flow_follow counts a packet and moves the flow on. Counters are plain additions: a flow's packets rarely meet. */
static __always_inline void flow_follow(struct packet *p, struct flow *flow, __u64 now)
{
	bool reply = p->flags & PACKET_REPLY;
	struct traffic *traffic = reply ? &flow->reverse : &flow->forward;
	__u8 *seen = reply ? &flow->tcp_reverse : &flow->tcp_forward;
	__u8 state = flow->state;
	bool opened;

	if (state == FLOW_NEW && flow_opens(p, flow))
		state = FLOW_ESTABLISHED;
	opened = state != FLOW_NEW && !(flow->flags & FLOW_HALF_OPEN_COUNTED && state == FLOW_CLOSED);
	traffic->packets++;
	traffic->bytes += p->length;
	if (p->protocol == IPPROTO_TCP && (*seen | p->tcp_flags) != *seen)
		*seen |= p->tcp_flags;
	if (p->protocol == IPPROTO_TCP && (flow->tcp_forward | flow->tcp_reverse) & (TCP_FIN | TCP_RST)) {
		bool closed = (flow->tcp_forward | flow->tcp_reverse) & TCP_RST ||
			      flow->tcp_forward & flow->tcp_reverse & TCP_FIN;

		if (closed || opened)
			state = closed ? FLOW_CLOSED : FLOW_CLOSING;
	}
	flow->expires = now + (state == FLOW_CLOSED && !opened ? LIFETIME_REFUSED * SECOND : flow_lifetime(p->protocol, state));
	if (state == flow->state)
		return;
	flow->state = state;
	if (opened) /* else it keeps its place until it is removed: SYN and RST cost as much as SYN alone */
		flow_uncount(flow);
}

/* flow_destination fills p->to from the flow, without asking the address table where the flow already knows. */
static __always_inline void flow_destination(struct packet *p, const struct flow *flow)
{
	__u32 index = p->flags & PACKET_REPLY ? flow->source_endpoint : flow->destination_endpoint;
	struct endpoint *endpoint;

	if (p->to.flags || p->to.peer)
		return;
	p->to.peer = p->flags & PACKET_REPLY ? flow->source_peer : flow->destination_peer;
	if (index == ENDPOINT_HOST) {
		p->to.flags = ADDRESS_HOST | ADDRESS_CLUSTER;
		return;
	} else if (index) {
		endpoint = endpoint_at(index);
		if (endpoint && address_of_endpoint(endpoint, &p->destination)) {
			p->to.endpoint = index;
			p->to.flags = ADDRESS_LOCAL_POD | ADDRESS_CLUSTER;
			return;
		}
	} else if (flow->node) {
		p->to.node = flow->node;
		p->to.flags = ADDRESS_CLUSTER | (flow->flags & FLOW_TUNNEL ? ADDRESS_TUNNEL : 0) |
			      (flow->flags & FLOW_GATEWAY ? ADDRESS_GATEWAY : 0);
		return;
	} else if (address_set(&flow->nat_address)) {
		return; /* masqueraded: outside */
	}
	address_find(&p->destination, &p->to);
}

/*
 * flow_rename keeps the name by which a client knows the other end: that which it asked for last, since a socket may ask one
 * backend by several services, or have the port of a socket that did. A connection has one name for life.
 */
static __always_inline void flow_rename(const struct packet *p, struct flow *flow)
{
	if (p->protocol != IPPROTO_UDP ||
	    (flow->service_port == p->service_port && address_equal(&flow->service, &p->service)))
		return;
	flow->service = p->service;
	flow->service_port = p->service_port;
}

/* flow_carry takes a packet of a flow that is allowed: counters, and the name its source goes by from here. */
static __always_inline void flow_carry(struct packet *p, struct flow *flow, __u64 now)
{
	flow_follow(p, flow, now);
	flow_destination(p, flow);
	if (p->flags & PACKET_REPLY) {
		p->alias = flow->service;
		p->alias_port = flow->service_port;
	} else {
		flow_rename(p, flow);
		p->alias = flow->nat_address;
		p->alias_port = flow->nat_port;
	}
}

/* flow_pass takes a packet of a known flow, if its verdict lets it. */
static __always_inline int flow_pass(struct packet *p, struct flow_key *key, struct flow *flow, __u64 now)
{
	__u32 epoch = flow_epoch();
	int reason;

	if (flow->egress.epoch != epoch || flow->ingress.epoch != epoch) {
		reason = flow_recheck(p, key, flow, epoch);
		if (reason != GO_ON)
			return reason;
	}
	if (flow->egress.action != ACTION_ALLOW || flow->ingress.action != ACTION_ALLOW) {
		p->from.peer = p->flags & PACKET_REPLY ? flow->destination_peer : flow->source_peer;
		p->to.peer = p->flags & PACKET_REPLY ? flow->source_peer : flow->destination_peer;
		return flow_note(p, &flow->egress, &flow->ingress);
	}
	flow_carry(p, flow, now);
	return GO_ON;
}

/*
 * flow_remember makes the service entry that sends later packets to the same backend. It comes after the flow: who is denied, or
 * has no place left in his quota, leaves no entry behind. A new flow needs one also where one was found: an earlier flow of the same ends took it
 * along (flow_forget_service), when the client opened a connection from the same port again.
 */
__noinline int flow_remember(struct packet *p)
{
	struct flow *entry = flow_draft();
	struct flow_key key;
	bool known;

	if (!p || !entry)
		return DROP_FLOW_TABLE_FULL;
	if (flow_key_of(&key, &p->source, p->source_port, &p->service, p->service_port, p->protocol))
		entry->flags = FLOW_LOW_IS_SOURCE;
	entry->created = bpf_ktime_get_ns();
	entry->expires = entry->created + flow_lifetime(p->protocol, FLOW_NEW);
	entry->state = FLOW_NEW;
	entry->backend = p->backend;
	entry->service = p->destination;
	entry->service_port = p->destination_port;
	entry->hook = p->hook;
	entry->source_endpoint = p->from.endpoint;
	known = bpf_map_lookup_elem(&flows, &key);
	if (bpf_map_update_elem(&flows, &key, entry, BPF_ANY))
		return DROP_FLOW_TABLE_FULL;
	if (!known)
		tally_add(TALLY_FLOWS_CREATED);
	return GO_ON;
}

/* flow_track is the whole step. */
static __always_inline int flow_track(struct packet *p, struct flow_key *key, struct flow *flow, __u64 now)
{
	int reason = flow ? flow_pass(p, key, flow, now) : flow_open(p, key, flow_epoch());

	return reason == GO_ON && (flow ? p->chosen : p->backend) ? flow_remember(p) : reason;
}
