/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/*
 * The packet in hand: what its journey has learnt of it so far. It lies in memory of the CPU, because it would
 * take a third of the stack, and is passed to every step. A step returns GO_ON, or the reason for which the journey ends (enum reason).
 */
#pragma once

#include <linux/bpf.h>
#include <linux/pkt_cls.h>
#include <stdbool.h>
#include <stddef.h>
#include <bpf/bpf_endian.h>
#include <bpf/bpf_helpers.h>

#include "maps.h"
#include "protocol.h"

#define GO_ON (-1)
#define SECOND 1000000000ULL /* of the clocks, which count ns */
#define PACKET_BY_FRAGS 0xffff /* gso_size of SCTP's large packets, a list of segments of any size (GSO_BY_FRAGS of the kernel) */

/* Constants of the node; the loader sets them before the verifier sees the program. */
const volatile struct node_config config;

enum packet_flag {
	PACKET_IPV4 = 1,
	PACKET_FIRST_FRAGMENT = 2,
	PACKET_LATER_FRAGMENT = 4,  /* has no transport header: its ports are those of its first */
	PACKET_ICMP_ERROR = 8,
	PACKET_ICMP_ECHO = 16,      /* its ports are its id */
	PACKET_REPLY = 32,          /* against the direction in which the flow was opened */
	PACKET_SELF = 64,           /* a pod talks to itself through its service */
	PACKET_RELATED = 128,       /* ICMP error about a known flow */
};

struct packet {
	union address source;       /* addresses as they are in the packet now */
	union address destination;
	union address alias;        /* what the source is called by whom the packet goes to; zero: as it is */
	union address service;      /* frontend that the packet was addressed to; zero: none */
	struct peer_info from;      /* what is known of source; valid once `from.flags` or `from.peer` is set */
	struct peer_info to;
	__u32 length;               /* bytes of the IP packet */
	__u32 mtu;                  /* that the packet did not fit; valid with DROP_FRAG_NEEDED */
	__u32 device;               /* ifindex that the packet leaves by, once a route was found */
	__u32 gateway;              /* egress gateway that a new flow leaves by; 0: none */
	__u32 gateway_epoch;        /* as of which that was found */
	__u32 backend;              /* of the service that the packet is for; 0: it is for none */
	__u32 egress_rule;          /* what the verdicts said, for the record */
	__u32 ingress_rule;
	__u32 staged_egress_rule;   /* and what those of staged policies would have said */
	__u32 staged_ingress_rule;
	__be16 source_port;
	__be16 destination_port;
	__be16 alias_port;
	__be16 service_port;
	__u16 transport;            /* bytes from the Ethernet header to the transport header */
	__be16 ethertype;
	__u8 protocol;
	__u8 hook;                  /* enum hook */
	__u8 flags;                 /* enum packet_flag */
	__u8 tcp_flags;
	__u8 icmp_type;
	__u8 ttl;
	__u8 egress_action;         /* enum action */
	__u8 ingress_action;
	__u8 staged_egress_action;
	__u8 staged_ingress_action;
	__u8 transport_length;      /* bytes of the transport header, options included */
	__u8 option;                /* bytes that the packet will grow by before it leaves (dsr.h) */
	bool chosen;                /* the backend was, for a new connection, and is not remembered yet */
};

/* 0 -> the packet in hand; private to each version of the datapath, one per CPU: programs of a CPU do not interrupt each other. */
struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct packet);
} packet_slot SEC(".maps");

/* packet_of_node tells whether the hook sees what the node's own stack sends off, or to itself. */
static __always_inline bool packet_of_node(const struct packet *p)
{
	return p->hook == HOOK_NET_OUT || p->hook == HOOK_LOOP_OUT;
}

/* packet_begin is an empty packet. */
static __always_inline struct packet *packet_begin(__u8 hook)
{
	__u32 zero = 0;
	struct packet *p = bpf_map_lookup_elem(&packet_slot, &zero);

	if (!p)
		return NULL;
	__builtin_memset(p, 0, sizeof(*p));
	p->hook = hook;
	return p;
}

/* address_equal tells whether two addresses are one. */
static __always_inline bool address_equal(const union address *a, const union address *b)
{
	return a->half[0] == b->half[0] && a->half[1] == b->half[1];
}

/* address_set tells an address from none. */
static __always_inline bool address_set(const union address *a)
{
	return a->half[0] || a->half[1];
}

/* address_from4 is the 16-byte form of an IPv4 address. */
static __always_inline void address_from4(union address *a, __be32 v4)
{
	a->half[0] = 0;
	a->word[2] = bpf_htonl(0xffff);
	a->word[3] = v4;
}

/* address_mapped tells whether an address is the 16-byte form of an IPv4 one. */
static __always_inline bool address_mapped(const union address *a)
{
	return !a->half[0] && a->word[2] == bpf_htonl(0xffff);
}

/* feature_on is known at load: what depends on a feature that is off is cut away. */
static __always_inline bool feature_on(__u32 feature)
{
	return config.features & feature;
}

/* tally_add counts an occurrence of an enum tally. */
static __always_inline void tally_add(__u32 tally)
{
	__u64 *count = bpf_map_lookup_elem(&tallies, &tally);

	if (count)
		(*count)++;
}

/* endpoint_at is a pod of this node, or NULL where the record is not in use. */
static __always_inline struct endpoint *endpoint_at(__u32 index)
{
	struct endpoint *endpoint = bpf_map_lookup_elem(&endpoints, &index);

	return endpoint && endpoint->ifindex ? endpoint : NULL;
}
