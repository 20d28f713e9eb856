/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/*
 * Structs that programs and the agent share. Everything is in host byte order unless its type is __be*.
 * An address is always 16 bytes: IPv6, or IPv4 as ::ffff:a.b.c.d (RFC 4291, 2.5.5.2), so that every
 * table serves both families and a feature cannot exist for one of them only.
 */
#pragma once

#include <linux/types.h>

union address {
	__u8 bytes[16];
	__be32 word[4];
	__u64 half[2];
};

/*
 * Constants of the node, set in .rodata before load and so known to the verifier.
 */
struct node_config {
	__u64 netns_cookie;         /* of the node's network namespace: "host" is a socket or packet of it */
	union address node4;        /* the node's address on the fabric, v4-mapped; zero: none */
	union address node6;        /* the same for IPv6 */
	union address router4;      /* the pods' gateway: answered by ARP */
	union address router6;      /* the pods' gateway: answered by ND */
	union address loopback4;    /* source a pod sees when it reaches itself through its service */
	union address loopback6;
	__u32 features;             /* enum feature */
	__u32 uplink_ifindex;       /* default outward device */
	__u32 overlay_ifindex;      /* collect-metadata tunnel device; 0: none */
	__u32 vni;                  /* of the cluster's overlay */
	__u32 pod_mtu;              /* bytes of IP packet that a pod's device carries */
	__u32 tunnel_mtu;           /* bytes of inner IP packet that the overlay carries */
	__u32 class_words;          /* __u64 words in a row of class_bits, a power of two */
	__u32 half_open_limit;      /* half-open flows an endpoint may have; 0 lets none open */
	__u32 outside_half_open_limit; /* that all clients outside the cluster may have together; 0 lets none open */
	__u16 nat_port_min;         /* first source port SNAT may pick */
	__u16 nat_port_max;         /* last */
	__u32 event_wakeup_bytes;   /* unread ring-buffer bytes above which a reader is woken */
	__u16 overlay_port;         /* UDP port of the overlay's own packets */
	__u16 reserved;
};

/* One word of `control`: written by the agent, read per packet. */
enum control_word {
	CONTROL_VERDICT_EPOCH = 0,  /* bumped after every publication that can change a verdict */
	CONTROL_GATEWAY_EPOCH = 1,  /* bumped after every change of egress gateways; 0: there never were any */
	CONTROL_COUNT = 8,
};

/*
 * A pod of this node; at ENDPOINT_HOST the node itself, while a policy selects it: then without addresses, and a program
 * that is 0 judges nothing. Index 0 is never used. Written by the agent.
 */
struct endpoint {
	union address address4;     /* zero: none */
	union address address6;
	__u8 pod_mac[6];            /* of the device inside the pod */
	__u8 host_mac[6];           /* of the device on the host: the pods' gateway answers with it */
	__u32 ifindex;              /* of the device on the host; 0: the record is not in use */
	__u32 generation;           /* of this use of the index */
	__u32 peer;                 /* the endpoint's own peer */
	__u32 ingress;              /* index into policy_programs */
	__u32 egress;
	__u32 flags;                /* enum endpoint_flag */
	__u32 mtu;                  /* bytes of IP packet */
	__u64 netns_cookie;         /* of the pod's network namespace; 0: unknown */
	__u32 staged_ingress;       /* program that is asked for the record only; 0: none */
	__u32 staged_egress;
};

/* Counters of an endpoint that programs write; beside `endpoints` so that records stay read-mostly. */
struct endpoint_use {
	__u32 half_open;            /* flows in FLOW_NEW that this endpoint originated; at index 0: that came from outside */
};

/* What is known of an address or prefix. Written by the agent. */
struct peer_info {
	__u32 peer;                 /* index into peer_class */
	__u32 node;                 /* index into nodes; 0: not of a node */
	__u32 endpoint;             /* index into endpoints if ADDRESS_LOCAL_POD */
	__u32 flags;                /* enum address_flag */
};

/* Key of the LPM trie; IPv4 prefixes are 96 bits longer than written. */
struct prefix {
	__u32 length;               /* bits, 0..128 */
	__u8 address[16];           /* right behind the length, as the trie wants it: hence not a union address */
};

/* A node of the cluster. Index 0 is never used. Written by the agent. */
struct node {
	union address tunnel;       /* outer address of its tunnel, v4-mapped or IPv6 */
	union address next_hop4;    /* how its IPv4 pods are reached without tunnel; zero: ask the kernel's routes */
	union address next_hop6;
	__u32 ifindex;              /* outward device towards it; 0: ask the kernel's routes */
	__u32 flags;
};

/* An outward device: what SNAT uses as source. Key: ifindex. Written by the agent. */
struct uplink {
	union address address4;
	union address address6;
	__u32 mtu;
	__u32 flags;
};

/*
 * An address that the node answers for on its uplink's link, by ARP and neighbour discovery, though no device has it.
 * Both instants are of CLOCK_BOOTTIME, which goes on while the machine sleeps, as the store's lease does. Written by the agent.
 */
struct announcement {
	__u64 until;                /* ns: silent from then on, whatever has become of the agent */
	__u64 yields;               /* ns; not 0: held without a lease, and silent if a rival was heard since */
	__u8 mac[6];                /* the answer */
	__u8 reserved[2];
};

/* Who else said on the link to have such an address. Written by programs. */
struct rival {
	__u64 seen;                 /* ns, CLOCK_BOOTTIME: the last time */
	__u8 mac[6];
	__u8 reserved[2];
};

/*
 * Policy. A program is a run of cells in `policy_cells`: one header, then segments sorted by (protocol, first
 * port) and disjoint, then entries. Cell numbers inside a program count from its header.
 *
 *   policy_programs[index] = one __u64: bits 0..31 the header's cell; bits 32..47 number of port segments;
 *   bit 63 set: in use. It is read and written as one word, so a program changes at one instant.
 *
 * A packet's candidates are up to three lists of entries, each in rising rank: that of its (protocol, port)
 * segment, that of its protocol at any port, and that of any protocol. The lowest rank among the first matches
 * of the lists wins. An entry matches if the peer's class has the bit of its selector. ICMP's type stands for the
 * port; protocols without ports have port 0.
 *
 * A list of n entries is the n selectors, SELECTORS_PER_CELL a cell and the last cell filled with any, then the n
 * entries: a verdict reads a cell for eight selectors that do not match, and the entry of one that does.
 */
struct policy_header {
	__u16 segments;             /* port segments, in the cells right behind the header */
	__u16 protocols;            /* any-port segments, one a protocol, behind the port segments */
	__u16 any_first;            /* cell of the list for any protocol */
	__u16 any_count;
	__u8 default_action;        /* enum action: ALLOW or DENY when nothing matches */
	__u8 reserved[3];
	__u32 default_rule;         /* who says so */
};

struct policy_segment {
	__u16 first_port;
	__u16 last_port;            /* inclusive; an any-port segment has 0..65535 */
	__u8 protocol;
	__u8 reserved[3];
	__u16 entries_first;        /* first cell of its list */
	__u16 entries_count;
	__u32 reserved2;
};

struct policy_entry {
	__u32 rank;                 /* unique within a program; lower wins */
	__u16 selector;             /* bit of class_bits: the same as among the list's selectors, for whoever reads entries */
	__u8 action;                /* enum action */
	__u8 flags;
	__u32 rule;                 /* rule id, for the record */
	__u32 argument;             /* REDIRECT: proxy port; PASS: rank to go on from */
};

union policy_cell {
	struct policy_header header;
	struct policy_segment segment;
	struct policy_entry entry;
	__u16 selector[8];          /* SELECTORS_PER_CELL */
	__u64 word[2];
};

/* A row of class_bits: bit n says whether selector n matches the peers of the class. */
struct class_row {
	__u64 word[64];             /* CAP_SELECTORS / 64 */
};

/* A judgement, as it is cached in a flow. */
struct verdict {
	__u32 epoch;                /* control[CONTROL_VERDICT_EPOCH] read before judging */
	__u32 rule;                 /* rule id */
	__u32 staged_rule;          /* what the staged policies would say; of no effect */
	__u16 argument;             /* proxy port of a redirect */
	__u8 action;                /* enum action; ACTION_NONE is never an allow */
	__u8 staged_action;         /* enum action; ACTION_NONE: no staged policy selects the side */
};

/*
 * Conntrack. One entry serves both directions: the key holds the two ends in a fixed order (the smaller address,
 * then the smaller port, first), the value says which end spoke first. ICMP echo: both ports are the id; protocols
 * without ports: 0. Frozen with the first release, hence the spare bytes. There are no more of them because the kernel
 * keeps an entry in 256 bytes, 96 of which are the key and its own: one more byte would double the table's memory.
 */
struct flow_key {
	union address low;
	union address high;
	__be16 low_port;
	__be16 high_port;
	__u8 protocol;
	__u8 reserved[3];
};

/* Packets and bytes of one direction; bytes count the IP packet. */
struct traffic {
	__u64 packets;
	__u64 bytes;
};

struct flow {
	__u64 created;              /* ns, CLOCK_MONOTONIC */
	__u64 expires;              /* ns; the sweeper removes the entry after it */
	struct traffic forward;     /* sent by the end that spoke first */
	struct traffic reverse;
	struct verdict egress;      /* of the source's egress program; RULE_OUTSIDE_SCOPE if nobody here judges it */
	struct verdict ingress;     /* of the destination's ingress program */
	union address service;      /* frontend that the source wanted; zero: no service (per-packet translation); of a service entry the backend */
	__be16 service_port;
	__be16 nat_port;            /* source port after SNAT; 0: none */
	__u8 state;                 /* enum flow_state */
	__u8 hook;                  /* enum hook: that saw its first packet */
	__u8 tcp_forward;           /* TCP flags seen, or-ed */
	__u8 tcp_reverse;
	union address nat_address;  /* source address after SNAT; of FLOW_SELF the loopback source; zero: none */
	__u32 source_endpoint;      /* local endpoint that spoke first, be it ENDPOINT_HOST; 0: none */
	__u32 destination_endpoint; /* local endpoint that was spoken to; 0: none */
	__u32 source_peer;
	__u32 destination_peer;
	__u32 backend;              /* of a service entry: index into backends; 0: this is no service entry */
	__u32 flags;                /* enum flow_flag; changed by atomic operations only */
	__u32 node;                 /* of the end that is not local, or of its egress gateway: index into nodes; 0: not of a node */
	__u32 gateway_epoch;        /* control[CONTROL_GATEWAY_EPOCH] as of which its egress gateway, or none, is right */
	__u8 spare[8];
};

enum flow_flag {
	FLOW_LOW_IS_SOURCE = 1,     /* the end in flow_key.low spoke first */
	FLOW_HALF_OPEN_COUNTED = 2, /* counted in endpoint_use.half_open of source_endpoint */
	FLOW_SELF = 4,              /* a pod reaches itself through its service */
	FLOW_TUNNEL = 8,            /* its other end is reached through the overlay device */
	FLOW_ENDED = 16,            /* its end was taken care of: nobody else may */
	FLOW_GATEWAY = 32,          /* leaves by an egress gateway: node, or this one */
};

/* SNAT, seen from outside: where a packet from remote to the node's address and port really goes. */
struct nat_key {
	union address remote;
	union address node;
	__be16 remote_port;
	__be16 node_port;
	__u8 protocol;
	__u8 reserved[3];
};

struct nat_mapping {
	union address pod;
	__be16 pod_port;
	__u16 reserved;
	__u32 endpoint;             /* owner */
	__u64 created;              /* ns, CLOCK_MONOTONIC */
	__u8 spare[16];
};

/*
 * Egress gateways. Pods that the same gateway objects select are a set; a set has destinations, and what is between them
 * (an exception) has number 0. An object has a number for each family. All are written by the agent.
 */
struct gateway_route {
	__u32 length;               /* bits: 32 for the set, and the prefix's; IPv4 prefixes are 96 bits longer than written */
	__u32 set;                  /* compared as a whole */
	__u8 address[16];
};

/* An egress gateway object in one family. */
struct gateway {
	union address address;      /* that pods' packets get if they leave by this node; zero: it does not serve */
	__u32 count;                /* slots in use; 0: no gateway is alive */
	__u32 slots[64];            /* GATEWAY_SLOTS: a serving node each, index into nodes, or GATEWAY_SELF */
	__u32 reserved;
};

/* Datagram whose first fragment was seen; later ones have no ports of their own. */
struct fragment_key {
	union address source;
	union address destination;
	__u32 id;
	__u32 protocol;
};

struct fragment {
	__be16 source_port;
	__be16 destination_port;
};

/* A service address: what clients connect to. */
struct frontend_key {
	union address address;
	__be16 port;
	__u8 protocol;
	__u8 reserved[5];
};

/* A run of slots: what one frontend leads its clients to. */
struct slot_range {
	__u32 first;                /* index into slots */
	__u32 count;                /* 0: no backend */
};

/*
 * The slots of a service address. Pods and processes of this node are one kind of client, what comes from other machines is
 * another: externalTrafficPolicy is for the second only. Written by the agent.
 */
struct frontend {
	struct slot_range inside;   /* for clients of this node */
	struct slot_range outside;  /* for packets that arrive; of a FRONTEND_EXTERNAL only */
	__u32 service;              /* number of the service, for records and source ranges */
	__u32 flags;                /* enum frontend_flag */
	__u32 affinity_seconds;     /* 0: none */
	__u32 reserved;
};

/* Clients that the guarded frontends of a service admit: key of an LPM trie, IPv4 prefixes 96 bits longer than written. */
struct guard {
	__u32 length;               /* bits: 32 for the service, and the prefix's */
	__u32 service;              /* number of the service, compared as a whole */
	__u8 address[16];
};

/* Which backend a client had last: its next connection goes there, too. Frozen with the first release, hence the spare bytes. */
struct affinity_key {
	union address client;       /* of a process without address yet: its pod's, or the node's */
	struct frontend_key frontend;
};

struct affinity {
	__u64 used;                 /* ns, CLOCK_MONOTONIC: the last choice */
	__u32 backend;              /* index into backends; trusted only while some slot of the frontend leads to it */
	__u32 slot;                 /* where it stood then, from the range's first */
	__u8 spare[16];
};

/* A backend. Index 0 is never used. */
struct backend {
	union address address;
	__be16 port;
	__u8 protocol;
	__u8 state;                 /* enum backend_state */
	__u32 node;                 /* index into nodes; 0: unknown */
};

enum backend_state {
	BACKEND_GONE = 0,
	BACKEND_ACTIVE = 1,
	BACKEND_TERMINATING = 2,    /* serves what it has, gets nothing new */
};

/* What a socket that was translated by connect() asked for; lives and dies with the socket. */
struct socket_service {
	union address frontend;
	union address backend;
	__be16 frontend_port;
	__be16 backend_port;
	__u32 backend_index;
};

/* A namespace in which some socket was connected to a backend: where to look for its clients once it is gone. */
struct backend_client {
	__u64 namespace;            /* cookie */
	__u32 backend;              /* index into backends */
	__u32 reserved;
};

/* A socket whose backend is gone, for the agent to end: what the kernel finds it by, and the cookie that says it is the one. */
struct due_socket {
	union address local;
	union address remote;
	__u64 cookie;
	__be16 local_port;
	__be16 remote_port;
	__u32 device;               /* that the socket is bound to; 0: none */
};

/* The same for datagrams of unconnected sockets, which talk to many. */
struct datagram_key {
	__u64 cookie;               /* of the socket */
	union address backend;
	__be16 backend_port;
	__u8 reserved[6];
};

struct datagram_service {
	union address frontend;
	__be16 frontend_port;
	__u8 reserved[6];
};

/* Packets and bytes by reason and hook: index reason * HOOK_COUNT + hook, one per CPU. */
struct counter {
	__u64 packets;
	__u64 bytes;
};

/* One-off counters, one per CPU. */
enum tally {
	TALLY_EVENTS_LOST = 0,      /* events that found the ring buffer full */
	TALLY_EVENTS_SENT = 1,
	TALLY_FLOWS_CREATED = 2,
	TALLY_FLOWS_REMOVED = 3,
	TALLY_NAT_CREATED = 4,
	TALLY_NAT_REMOVED = 5,
	TALLY_JUDGED = 6,           /* policy programs evaluated */
	TALLY_SOCKET_TRANSLATED = 7,/* connect() and sendmsg() calls sent to a backend */
	TALLY_NAT_PORT_SEARCHES = 8,/* extra ports tried because the wanted one was taken */
	TALLY_CLIENTS_RESET = 9,    /* sockets ended, or named to the agent to end, because their backend is gone */
	TALLY_UNREACHABLE_SENT = 10,/* clients of UDP services without backend that were told so */
	TALLY_UNREACHABLE_HELD = 11,/* and that were not, because too many were at once */
	TALLY_COUNT = 16,
};

/*
 * What the ring buffer carries. Fixed size. Of a flow, source is the end that spoke first; of a drop, the packet's sender, while
 * the egress rule is that of the end that spoke first.
 */
struct event {
	__u64 time;                 /* ns, CLOCK_MONOTONIC */
	union address source;
	union address destination;
	union address service;      /* frontend the source wanted; zero: none */
	struct traffic forward;     /* FLOW_END: totals; DROP: this packet */
	struct traffic reverse;
	__u64 duration;             /* ns since the flow was created */
	__be16 source_port;
	__be16 destination_port;
	__be16 service_port;
	__be16 nat_port;
	__u32 source_peer;
	__u32 destination_peer;
	__u32 source_endpoint;
	__u32 destination_endpoint;
	__u32 egress_rule;
	__u32 ingress_rule;
	__u32 staged_egress_rule;   /* what the staged policies would have said */
	__u32 staged_ingress_rule;
	__u8 egress_action;         /* enum action */
	__u8 ingress_action;        /* enum action */
	__u8 kind;                  /* enum event_kind */
	__u8 reason;                /* enum reason */
	__u8 hook;                  /* enum hook */
	__u8 protocol;
	__u8 tcp_flags;             /* of this packet; FLOW_END: all seen */
	__u8 state;                 /* enum flow_state */
	__u8 staged_egress_action;  /* enum action; ACTION_NONE: no staged policy selects the side */
	__u8 staged_ingress_action; /* enum action */
	__u8 reserved[6];
};

/* An assignment of a node-local number to a name, kept so that a restart never renumbers. */
struct assignment_key {
	__u8 digest[16];            /* of what the number stands for */
	__u32 kind;                 /* numbered by the agent (internal/datapath) */
};

struct assignment {
	__u32 first;
	__u32 count;
};

/* Argument of the sweep programs: what to look at, and what came of it. */
struct sweep {
	__u32 count;                /* sweep_keys: keys that follow, at most SWEEP_KEYS */
	__u32 force;                /* not 0: remove what has not expired either */
	__u32 removed;              /* out: flows removed */
	__u32 kept;                 /* out: flows that are alive */
	struct flow_key keys[64];   /* SWEEP_KEYS */
};
