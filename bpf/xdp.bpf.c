//go:build ignore
/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/*
 * The uplink before the kernel has made a packet of the frame: what goes out again by the device it came by.
 *
 *   xdp_in    a client's packet to a backend of another node, and the backend's answer, of a connection that net_in opened
 *
 * Nothing is decided here: no flow is made, judged or ended, no backend is chosen, nothing is dropped. A packet that is not of such a
 * flow, or whose verdicts are of another epoch, passes to net_in as it came. Its flow is counted and followed as there.
 *
 * JOURNEY.md numbers the steps.
 */
#include "lib/address.h"
#include "lib/arrive.h"
#include "lib/conntrack.h"
#include "lib/deliver.h"
#include "lib/finish.h"
#include "lib/host.h"
#include "lib/packet.h"
#include "lib/parse.h"

char module_license[] SEC("license") = "Dual BSD/GPL";

/* The ends of a packet, as checksums see them: addresses in 16-byte form, whose differences are those of the header's. */
struct ends {
	union address source;
	union address destination;
	__be16 source_port;
	__be16 destination_port;
	__u32 reserved;             /* zero: it is summed */
};

/* xdp_ends are the ends that a packet has now. */
static __always_inline struct ends xdp_ends(const struct packet *p)
{
	return (struct ends){p->source, p->destination, p->source_port, p->destination_port, 0};
}

/* xdp_difference is what the first words of the ends add to a sum that had those of before: a sum of 32-bit words, not folded. */
static __always_inline __u64 xdp_difference(const struct ends *was, const struct ends *now, __u32 words)
{
	const __u32 *old = (void *)was, *new = (void *)now;
	__u64 sum = 0;

	for (__u32 i = 0; i < words; i++)
		sum += (__u64)(__u32)~old[i] + new[i];
	return sum;
}

/* xdp_checksum corrects a checksum by a difference (RFC 1624). */
static __always_inline __u16 xdp_checksum(__u16 check, __u64 difference)
{
	__u64 sum = (__u16)~check + (difference & 0xffffffff) + (difference >> 32);

	sum = (sum & 0xffff) + (sum >> 16 & 0xffff) + (sum >> 32);
	sum = (sum & 0xffff) + (sum >> 16);
	sum = (sum & 0xffff) + (sum >> 16);
	return ~sum;
}

/* xdp_parse reads a plain TCP or UDP packet; options, extensions and fragments are not for here. */
static __always_inline bool xdp_parse(void *data, void *end, struct packet *p)
{
	struct ethhdr *ethernet = data;
	__u32 length = end - data, plain = ETH_HLEN + sizeof(struct ipv6hdr);
	int reason = REASON_PASSED;

	if ((void *)(ethernet + 1) > end)
		return false;
	p->ethertype = ethernet->h_proto;
	if (p->ethertype == bpf_htons(ETH_P_IP) && feature_on(FEATURE_IPV4)) {
		plain = ETH_HLEN + sizeof(struct iphdr);
		reason = parse_ipv4(data, end, length, false, p);
	} else if (p->ethertype == bpf_htons(ETH_P_IPV6) && feature_on(FEATURE_IPV6)) {
		reason = parse_ipv6(data, end, length, false, p);
	}
	if (reason != GO_ON || p->transport != plain || p->flags & (PACKET_FIRST_FRAGMENT | PACKET_LATER_FRAGMENT))
		return false;
	if (p->protocol != IPPROTO_TCP && p->protocol != IPPROTO_UDP)
		return false;
	return !packet_multicast(p) && parse_transport(data, end, p) == GO_ON;
}

/* xdp_forward leads a packet for a frontend to the backend that its entry remembers. */
static __always_inline bool xdp_forward(struct packet *p, const struct flow *entry)
{
	if (p->protocol == IPPROTO_TCP && p->tcp_flags & TCP_SYN)
		return false;
	if (!service_keeps(p, entry) || address_equal(&entry->service, &p->source))
		return false;
	p->service = p->destination;
	p->service_port = p->destination_port;
	p->destination = entry->service;
	p->destination_port = entry->service_port;
	return true;
}

/* xdp_back leads a backend's answer to the client that a mapping says. */
static __always_inline bool xdp_back(struct packet *p)
{
	struct nat_mapping *mapping = p->to.flags & ADDRESS_HOST ? nat_find(p) : NULL;

	if (!mapping)
		return false;
	p->destination = mapping->pod;
	if (mapping->pod_port)
		p->destination_port = mapping->pod_port;
	return true;
}

/* xdp_receiver finds whom a packet is for, under the conditions of net_in: both ends elsewhere, and not by tunnel. */
static __always_inline bool xdp_receiver(struct packet *p, const struct flow *entry)
{
	address_find(&p->source, &p->from);
	address_find(&p->destination, &p->to);
	if (p->from.flags & (ADDRESS_LOCAL_POD | ADDRESS_HOST | ADDRESS_TUNNEL) ||
	    p->to.flags & (ADDRESS_LOCAL_POD | ADDRESS_UNKNOWN))
		return false;
	if (entry ? !xdp_forward(p, entry) : !xdp_back(p))
		return false;
	p->to = (struct peer_info){};
	address_find(&p->destination, &p->to);
	if (p->to.flags & ADDRESS_REMOTE_NODE)
		p->to.flags &= ~ADDRESS_TUNNEL;
	return !(p->to.flags & (ADDRESS_LOCAL_POD | ADDRESS_HOST | ADDRESS_UNKNOWN | ADDRESS_TUNNEL));
}

/* xdp_settled tells a flow that needs no decision: alive, judged by the policy in force, allowed, and led through this node. */
static __always_inline bool xdp_settled(const struct packet *p, const struct flow *flow, bool answer, __u64 now)
{
	__u32 epoch = flow_epoch();

	return flow && !flow->backend && !flow_over(flow, p, now) && answer == !!(p->flags & PACKET_REPLY) &&
	       flow->egress.epoch == epoch && flow->ingress.epoch == epoch && flow->egress.action == ACTION_ALLOW &&
	       flow->ingress.action == ACTION_ALLOW && address_set(&flow->nat_address) && address_set(&flow->service);
}

/* xdp_route asks the kernel for the link addresses of the next hop, by the device that the packet came by. */
static __always_inline bool xdp_route(struct xdp_md *ctx, const struct packet *p, struct bpf_fib_lookup *route)
{
	struct node *node = p->to.node ? bpf_map_lookup_elem(&nodes, &p->to.node) : NULL;
	const union address *next = &p->destination;
	union address source = p->source;
	bool hop = false;

	if (p->to.node && !node)
		return false;
	if (node) {
		const union address *known = p->flags & PACKET_IPV4 ? &node->next_hop4 : &node->next_hop6;

		hop = address_set(known) && node->ifindex;
		next = hop ? known : next;
	}
	if (hop && (node->ifindex != ctx->ingress_ifindex || (config.pod_mtu && p->length > config.pod_mtu)))
		return false;
	route->family = address_mapped(next) ? FAMILY_IPV4 : FAMILY_IPV6;
	route->ifindex = ctx->ingress_ifindex;
	route->tot_len = hop ? 0 : p->length;
	if (!hop) {
		route->l4_protocol = p->protocol;
		route->sport = p->source_port;
		route->dport = p->destination_port;
	}
	if (hop)
		source = address_mapped(next) ? config.node4 : config.node6;
	if (address_mapped(next)) {
		route->ipv4_src = source.word[3];
		route->ipv4_dst = next->word[3];
	} else {
		__builtin_memcpy(route->ipv6_src, &source, 16);
		__builtin_memcpy(route->ipv6_dst, next, 16);
	}
	return bpf_fib_lookup(ctx, route, sizeof(*route), 0) == BPF_FIB_LKUP_RET_SUCCESS && route->ifindex == ctx->ingress_ifindex;
}

/* xdp_write4 puts the packet's ends into an IPv4 header. */
static __always_inline void xdp_write4(struct iphdr *ip, const struct packet *p, __u64 difference)
{
	ip->saddr = p->source.word[3];
	ip->daddr = p->destination.word[3];
	ip->check = xdp_checksum(ip->check, difference);
}

/* xdp_write_transport puts ports and checksum into a transport header. A datagram without checksum stays so. */
static __always_inline bool xdp_write_transport(void *transport, void *end, const struct packet *p, __u64 difference)
{
	struct transport_start *ports = transport;
	__u16 *check = transport + (p->protocol == IPPROTO_TCP ? 16 : 6);

	if (transport + 8 > end || (void *)(check + 1) > end)
		return false;
	ports->source_port = p->source_port;
	ports->destination_port = p->destination_port;
	if (p->protocol == IPPROTO_UDP && !*check)
		return true;
	*check = xdp_checksum(*check, difference);
	if (p->protocol == IPPROTO_UDP && !*check)
		*check = 0xffff;
	return true;
}

/* xdp_write makes the frame what the packet has become. Before it fails it has changed nothing. */
static __always_inline bool xdp_write(struct xdp_md *ctx, const struct packet *p, struct ends *was, const struct bpf_fib_lookup *route)
{
	void *data = (void *)(long)ctx->data, *end = (void *)(long)ctx->data_end;
	__u32 size = p->flags & PACKET_IPV4 ? sizeof(struct iphdr) : sizeof(struct ipv6hdr);
	struct ends now = xdp_ends(p);
	struct ethhdr *ethernet = data;
	struct ipv6hdr *ip6 = data + ETH_HLEN;

	if (data + ETH_HLEN + size > end)
		return false;
	if (!xdp_write_transport(data + ETH_HLEN + size, end, p, xdp_difference(was, &now, sizeof(now) / 4)))
		return false;
	if (p->flags & PACKET_IPV4) {
		xdp_write4(data + ETH_HLEN, p, xdp_difference(was, &now, 8)); /* the addresses */
	} else if ((void *)(ip6 + 1) <= end) {
		__builtin_memcpy(&ip6->saddr, &p->source, 16);
		__builtin_memcpy(&ip6->daddr, &p->destination, 16);
	}
	__builtin_memcpy(ethernet->h_dest, route->dmac, ETH_ALEN);
	__builtin_memcpy(ethernet->h_source, route->smac, ETH_ALEN);
	return deliver_hop(data, end, p) == GO_ON;
}

/* xdp_addressed tells a frame for this node: links that flood, and devices that take everything, bring other machines' (PACKET_OTHERHOST). */
static __always_inline bool xdp_addressed(struct xdp_md *ctx, const struct bpf_fib_lookup *route)
{
	struct ethhdr *ethernet = (void *)(long)ctx->data;

	return (void *)(ethernet + 1) <= (void *)(long)ctx->data_end && !__builtin_memcmp(ethernet->h_dest, route->smac, ETH_ALEN);
}

/* xdp_carry is the journey of a packet that goes out again. It returns false, and has changed nothing, where net_in has to see it. */
static __always_inline bool xdp_carry(struct xdp_md *ctx, struct packet *p, struct ends *was)
{
	struct flow *entry, *flow;
	struct bpf_fib_lookup route = {};
	__u64 now = flow_now();
	struct flow_key key;

	entry = flow_entry(p, &key);
	if (entry && (!entry->backend || flow_over(entry, p, now)))
		return false;
	if (!xdp_receiver(p, entry))
		return false;
	flow = flow_entry(p, &key);
	if (!xdp_settled(p, flow, !entry, now))
		return false;
	if (p->ttl <= 1 || !xdp_route(ctx, p, &route) || !xdp_addressed(ctx, &route))
		return false;
	if (entry)
		service_prolong(p, entry, now);
	flow_carry(p, flow, now);
	p->source = p->alias;
	p->source_port = p->alias_port;
	return xdp_write(ctx, p, was, &route);
}

SEC("xdp")
int xdp_in(struct xdp_md *ctx)
{
	struct packet *p = packet_begin(HOOK_XDP);
	struct ends was;

	if (!p || !feature_on(FEATURE_SERVICES) || host_judged())
		return XDP_PASS;
	if (!xdp_parse((void *)(long)ctx->data, (void *)(long)ctx->data_end, p))
		return XDP_PASS;
	was = xdp_ends(p);
	if (!xdp_carry(ctx, p, &was))
		return XDP_PASS;
	finish_count(REASON_FORWARDED, HOOK_XDP, p->length);
	return XDP_TX;
}
