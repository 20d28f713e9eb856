//go:build ignore
/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/*
 * The host side of a pod's device.
 *
 *   from_pod   everything that a pod sends
 *   to_pod     what the host's stack sends to a pod; what other hooks deliver does not come by here
 *
 * JOURNEY.md numbers the steps.
 */
#include "lib/address.h"
#include "lib/conntrack.h"
#include "lib/deliver.h"
#include "lib/finish.h"
#include "lib/fragment.h"
#include "lib/gateway.h"
#include "lib/icmp.h"
#include "lib/neighbour.h"
#include "lib/packet.h"
#include "lib/parse.h"
#include "lib/reset.h"
#include "lib/service.h"
#include "lib/unreachable.h"

char module_license[] SEC("license") = "Dual BSD/GPL";

/* endpoint_of_stub is the endpoint that the device's stub names, if the record is still of that use of the index. */
static __always_inline struct endpoint *endpoint_of_stub(struct __sk_buff *ctx)
{
	struct endpoint *endpoint = endpoint_at(ctx->cb[STUB_ENDPOINT]);

	return endpoint && endpoint->generation == ctx->cb[STUB_GENERATION] ? endpoint : NULL;
}

/* source_check refuses a source that is not the pod's. A link-local or no address only speaks to neighbours. */
static __always_inline int source_check(const struct packet *p, const struct endpoint *endpoint)
{
	if (address_of_endpoint(endpoint, &p->source))
		return GO_ON;
	if (!(p->flags & PACKET_IPV4) && nd_message(p) &&
	    (!address_set(&p->source) || (p->source.bytes[0] == 0xfe && (p->source.bytes[1] & 0xc0) == 0x80)))
		return GO_ON;
	return DROP_SPOOFED_SOURCE;
}

/* from_pod_service sends a packet for a service to its backend; flow becomes the packet's own. */
static __always_inline int from_pod_service(struct __sk_buff *ctx, struct packet *p, struct flow_key *key,
					    struct flow **flow, __u64 now)
{
	int reason;

	if (!feature_on(FEATURE_SERVICES) || (*flow && !(*flow)->backend))
		return GO_ON;
	reason = service_translate(ctx, p, *flow, now);
	if (reason != GO_ON || !p->service_port)
		return reason;
	*flow = flow_find(p, key, now);
	return GO_ON;
}

/* from_pod_ip is the journey of an IP packet from a pod. */
static __always_inline int from_pod_ip(struct __sk_buff *ctx, struct packet *p, struct endpoint *endpoint)
{
	__u64 now = flow_now();
	struct flow_key key;
	struct flow *flow;
	int reason = source_check(p, endpoint);

	if (reason != GO_ON)
		return reason;
	if (nd_message(p))
		return nd_follow(ctx, p, endpoint);
	if (packet_multicast(p))
		return DROP_MULTICAST;
	address_from_endpoint(endpoint, ctx->cb[STUB_ENDPOINT], &p->from);
	if (packet_is_fragment(p))
		reason = fragment_follow(ctx, p);
	else if (p->flags & PACKET_ICMP_ERROR)
		reason = icmp_follow(ctx, p, false);
	if (reason != GO_ON)
		return reason;
	if (p->flags & PACKET_RELATED)
		return deliver(ctx, p, &key);
	if (feature_on(FEATURE_SERVICES))
		reason = service_self_reply(ctx, p);
	if (reason != GO_ON)
		return reason;
	flow = flow_find(p, &key, now);
	if (p->flags & PACKET_SELF && !flow)
		return DROP_UNKNOWN_DESTINATION;
	reason = from_pod_service(ctx, p, &key, &flow, now);
	if (reason == GO_ON)
		reason = gateway_follow(p, &flow);
	if (reason == GO_ON)
		reason = flow_track(p, &key, flow, now);
	return reason == GO_ON ? deliver(ctx, p, &key) : reason;
}

SEC("tc")
int from_pod(struct __sk_buff *ctx)
{
	struct endpoint *endpoint = endpoint_of_stub(ctx);
	struct packet *p = packet_begin(HOOK_FROM_POD);
	int reason, answered = 0;

	if (!p)
		return TC_ACT_SHOT;
	reason = packet_parse(ctx, p);
	if (!endpoint)
		reason = DROP_STALE_ENDPOINT;
	else if (reason == GO_ON && packet_is_ip(p))
		reason = from_pod_ip(ctx, p, endpoint);
	else if (reason == GO_ON)
		reason = p->ethertype == bpf_htons(ETH_P_ARP) ? arp_follow(ctx, endpoint) : DROP_UNSUPPORTED_PROTOCOL;
	if (reason == REASON_TO_STACK && endpoint && endpoint->flags & ENDPOINT_CHAINED)
		reason = neighbour_on_link(ctx, endpoint, !packet_is_ip(p) || nd_message(p));
	if (reason == DROP_FRAG_NEEDED || reason == DROP_TTL_EXPIRED)
		answered = icmp_answer(ctx, p, ctx->cb[STUB_ENDPOINT], reason);
	else if (reason == DROP_NO_BACKEND && unreachable_due(ctx, p, ctx->cb[STUB_ENDPOINT]))
		answered = icmp_answer(ctx, p, ctx->cb[STUB_ENDPOINT], reason);
	else if (reason == DROP_NO_BACKEND)
		answered = reset_answer(ctx, p, ctx->cb[STUB_ENDPOINT]);
	reason = finish(ctx, p, reason);
	return answered ? TC_ACT_REDIRECT : reason; /* the packet is lost, what it has become goes back */
}

/* to_pod_ip is the journey of an IP packet that the stack sends to a pod. */
static __always_inline int to_pod_ip(struct __sk_buff *ctx, struct packet *p, struct endpoint *endpoint)
{
	__u64 now = flow_now();
	struct flow_key key;
	struct flow *flow;
	int reason = GO_ON;

	if (nd_message(p))
		return REASON_PASSED;
	if (packet_multicast(p))
		return DROP_MULTICAST;
	if (!address_of_endpoint(endpoint, &p->destination))
		return DROP_UNKNOWN_DESTINATION;
	address_from_endpoint(endpoint, ctx->cb[STUB_ENDPOINT], &p->to);
	if (packet_is_fragment(p))
		reason = fragment_follow(ctx, p);
	else if (p->flags & PACKET_ICMP_ERROR)
		reason = icmp_follow(ctx, p, false);
	if (reason != GO_ON)
		return reason;
	if (!(p->flags & PACKET_RELATED)) {
		flow = flow_find(p, &key, now);
		if (flow && flow->backend)
			return DROP_UNKNOWN_SOURCE; /* a service address as a source: nobody has it */
		reason = flow_track(p, &key, flow, now);
		if (reason != GO_ON)
			return reason;
	}
	reason = deliver_rename(ctx, p);
	return reason == GO_ON ? REASON_PASSED : reason;
}

SEC("tc")
int to_pod(struct __sk_buff *ctx)
{
	struct endpoint *endpoint = endpoint_of_stub(ctx);
	struct packet *p = packet_begin(HOOK_TO_POD);
	int reason;

	if (!p)
		return TC_ACT_SHOT;
	reason = packet_parse(ctx, p);
	if (!endpoint)
		reason = DROP_STALE_ENDPOINT;
	else if (reason == GO_ON && packet_is_ip(p))
		reason = to_pod_ip(ctx, p, endpoint);
	else if (reason == GO_ON)
		reason = p->ethertype == bpf_htons(ETH_P_ARP) ? REASON_PASSED : DROP_UNSUPPORTED_PROTOCOL;
	return finish(ctx, p, reason);
}
