/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/*
 * Constants shared by the datapath and the agent. Go sees every enum of this file through the
 * generated bindings, documentation included: a number has one home, and this is it.
 */
#pragma once

#include <linux/types.h>

/* Sizes of maps on defaults. The agent may resize a map at load; programs never assume these numbers. */
enum capacity {
	CAP_PEERS = 131072,         /* interned peers: about one per distinct label set */
	CAP_CLASSES = 8192,         /* distinct sets of selectors that match some peer */
	CAP_SELECTORS = 4096,       /* selector bits; a row of class_bits is CAP_SELECTORS/64 words */
	CAP_PROGRAMS = 8192,        /* policy programs, two for each distinct local label set */
	CAP_POLICY_CELLS = 262144,  /* 16-byte cells of policy content, 4 MiB */
	CAP_ENDPOINTS = 4096,       /* pods of one node */
	CAP_NODES = 16384,          /* nodes of the cluster */
	CAP_ADDRESSES = 262144,     /* exact addresses */
	CAP_PREFIXES = 1048576,     /* CIDRs */
	CAP_FLOWS = 524288,         /* conntrack entries */
	CAP_MAPPINGS = 131072,      /* SNAT mappings */
	CAP_FRAGMENTS = 8192,       /* datagrams whose first fragment was seen */
	CAP_FRONTENDS = 131072,     /* service address, port and protocol */
	CAP_SLOTS = 262144,         /* backend references of all frontends */
	CAP_BACKENDS = 131072,      /* backends */
	CAP_GUARDS = 65536,         /* source ranges of services */
	CAP_AFFINITIES = 8192,      /* clients that have a backend of their own */
	CAP_BACKEND_CLIENTS = 65536, /* pairs of a backend and a namespace with clients of it */
	CAP_UPLINKS = 64,           /* outward devices */
	CAP_ANNOUNCEMENTS = 4096,   /* addresses that the node answers for on its link */
	CAP_GATEWAY_PODS = 262144,  /* addresses of pods that egress gateways select */
	CAP_GATEWAY_ROUTES = 65536, /* their destinations, one for each distinct set of gateway objects */
	CAP_GATEWAYS = 4096,        /* egress gateway objects, one for each family */
	CAP_RIVALS = 256,           /* of those, the ones that somebody else answers for, too */
	CAP_EVENT_BYTES = 2097152,  /* ring buffer */
};

/* Load-time switches in node_config.features. A feature that is off is cut away by the verifier. */
enum feature {
	FEATURE_TUNNEL = 1,         /* pods of other nodes are reached through the overlay device */
	FEATURE_MASQUERADE = 2,     /* what leaves the cluster gets the node's address */
	FEATURE_SERVICES = 4,       /* per-packet service translation */
	FEATURE_FLOW_RECORDS = 8,   /* events for connections, not only for drops */
	FEATURE_IPV4 = 16,
	FEATURE_IPV6 = 32,
	FEATURE_SOCK_DIAG = 64,     /* sockets are named to the agent even where the kernel has bpf_sock_destroy: for tests */
};

/* Indexes of the prog array `entries`: the only program references shared between datapath versions. */
enum entry {
	ENTRY_FROM_POD = 0,         /* host side of a pod's device, ingress: what the pod sends */
	ENTRY_TO_POD = 1,           /* host side of a pod's device, egress: what the host stack sends to the pod */
	ENTRY_NET_IN = 2,           /* uplink, ingress */
	ENTRY_NET_OUT = 3,          /* uplink, egress */
	ENTRY_TUNNEL_IN = 4,        /* overlay device, ingress, after decapsulation */
	ENTRY_TUNNEL_OUT = 5,       /* overlay device, egress, before encapsulation */
	ENTRY_LOOP_OUT = 6,         /* loopback device, egress: what the node sends to itself */
	ENTRY_COUNT = 8,
};

/* Words of skb->cb that a stub fills before it tail-calls an entry. */
enum stub_word {
	STUB_ENDPOINT = 0,          /* index into `endpoints`; for the node's own devices: 0 */
	STUB_GENERATION = 1,        /* must equal endpoint.generation, else DROP_STALE_ENDPOINT */
};

/* Peers with fixed numbers: index into peer_class, and the display form of a reserved identity. */
enum reserved_peer {
	PEER_UNKNOWN = 0,           /* an address of a pod CIDR that no pod owns: never allowed */
	PEER_HOST = 1,              /* this node's own network namespace */
	PEER_WORLD = 2,             /* outside the cluster, no CIDR selector matches */
	PEER_REMOTE_NODE = 3,       /* another node's own network namespace */
	PEER_KUBE_APISERVER = 4,
	PEER_HEALTH = 5,
	PEER_INIT = 6,              /* a pod whose labels have not arrived yet */
	PEER_UNMANAGED = 7,
	PEER_INGRESS = 8,
	PEER_FIRST_FREE = 16,
};

/* Endpoints with fixed numbers: index into endpoints. */
enum reserved_endpoint {
	ENDPOINT_HOST = 4095,       /* the node itself; the last of CAP_ENDPOINTS, so that no smaller table has a pod there */
};

/* Flags of an endpoint. */
enum endpoint_flag {
	ENDPOINT_CHAINED = 1,       /* another plugin made its device and gave it addresses: any address may be on its link */
};

/* What a policy entry does, and what a verdict says. */
enum action {
	ACTION_NONE = 0,            /* not judged: never an allow */
	ACTION_ALLOW = 1,
	ACTION_DENY = 2,
	ACTION_REDIRECT = 3,        /* to the proxy at verdict.argument */
	ACTION_PASS = 4,            /* only in entries: go on at the rank in entry.argument */
};

/* Rule ids with a fixed meaning; the agent numbers the rules of policies from RULE_FIRST_FREE. */
enum builtin_rule {
	RULE_NONE = 0,              /* not judged */
	RULE_DEFAULT_ALLOW = 1,     /* no policy selects the endpoint in this direction */
	RULE_DEFAULT_DENY = 2,      /* some policy isolates the endpoint and no rule matched */
	RULE_LOCAL_HOST = 3,        /* builtin/local-host: the node may reach its own pods */
	RULE_SELF = 4,              /* an endpoint may always reach itself */
	RULE_REPLY = 5,             /* the packet belongs to an allowed connection */
	RULE_ICMP_RELATED = 6,      /* an ICMP error about an allowed connection */
	RULE_INIT_DENY = 7,         /* the endpoint's labels have not arrived yet */
	RULE_OUTSIDE_SCOPE = 8,     /* the side is not an endpoint of this node: judged elsewhere or not at all */
	RULE_OVERLAY = 9,           /* the overlay's own packets between nodes: what they carry is judged, they are not */
	RULE_FIRST_FREE = 64,
};

/* Flags of an address. */
enum address_flag {
	ADDRESS_LOCAL_POD = 1,      /* endpoint is valid */
	ADDRESS_HOST = 2,           /* an address of this node: goes to the stack */
	ADDRESS_REMOTE_NODE = 4,    /* an address of another node */
	ADDRESS_CLUSTER = 8,        /* inside the cluster: not masqueraded */
	ADDRESS_NO_MASQUERADE = 16, /* outside, but configured as not to be masqueraded */
	ADDRESS_TUNNEL = 32,        /* reached through the overlay device; node is valid */
	ADDRESS_UNKNOWN = 64,       /* of a pod CIDR, owned by nobody: DROP_UNKNOWN_DESTINATION */
	ADDRESS_NODE_PORT = 128,    /* of this node, and node ports answer at it */
	ADDRESS_GATEWAY = 256,      /* of a packet in hand only: outside, and reached through the egress gateway at node */
};

/* Nodes with fixed numbers in the slots of an egress gateway. */
enum reserved_gateway {
	GATEWAY_SELF = 0x7fffffff,  /* this node */
};

/* Flags of a frontend. */
enum frontend_flag {
	FRONTEND_HASH = 1,          /* the slot is chosen by a hash of the connection's tuple (Maglev), not at random */
	FRONTEND_EXTERNAL = 2,      /* clients outside the cluster use it, too */
	FRONTEND_GUARDED = 4,       /* only for clients in the service's source ranges */
	FRONTEND_DSR = 8,           /* backends' nodes answer clients outside the cluster themselves; of a FRONTEND_EXTERNAL only */
	FRONTEND_LOOPBACK = 16,     /* for sockets of the node's namespace alone: a packet with the address was made by hand */
};

/* Kinds of event. */
enum event_kind {
	EVENT_FLOW_NEW = 1,         /* first packet of an allowed connection */
	EVENT_FLOW_END = 2,         /* connection closed or expired; counters are final */
	EVENT_FLOW_VERDICT = 3,     /* an established connection was judged again and its verdict's rule changed */
	EVENT_DROP = 4,
	EVENT_FLOW_ESTABLISHED = 5, /* first reply seen */
};

/* The hook that saw an event or counted a packet. */
enum hook {
	HOOK_FROM_POD = 0,
	HOOK_TO_POD = 1,
	HOOK_NET_IN = 2,
	HOOK_NET_OUT = 3,
	HOOK_TUNNEL_IN = 4,
	HOOK_TUNNEL_OUT = 5,
	HOOK_SOCKET = 6,
	HOOK_SWEEP = 7,
	HOOK_XDP = 8,
	HOOK_LOOP_OUT = 9,
	HOOK_COUNT = 10,
};

/* States of a conntrack entry (RFC 9293 reduced to what lifetimes need). */
enum flow_state {
	FLOW_NEW = 1,               /* half-open: no reply yet, or TCP's handshake is not done; counted against a quota */
	FLOW_ESTABLISHED = 2,
	FLOW_CLOSING = 3,           /* FIN seen from one side or both */
	FLOW_CLOSED = 4,            /* RST, or FIN from both sides */
};

/*
 * Why a packet ended. REASON_FORWARDED .. REASON_PASSED are not drops; everything from DROP_FIRST on is.
 * One line of comment each: it is what `tendril observe` and docs/drops.md print.
 */
enum reason {
	REASON_FORWARDED = 0,       /* redirected to a device by the datapath */
	REASON_TO_STACK = 1,        /* handed to the node's network stack */
	REASON_PROXY = 2,           /* handed to the proxy */
	REASON_ANSWERED = 3,        /* answered by the datapath itself (ARP, ND) */
	REASON_PASSED = 4,          /* left to go out of the device that it was leaving by */
	DROP_FIRST = 16,
	DROP_POLICY_DENY = 16,      /* a deny rule matched */
	DROP_POLICY_DEFAULT = 17,   /* a policy isolates the endpoint and no rule allows the packet */
	DROP_INVALID_PACKET = 18,   /* truncated or malformed headers */
	DROP_SPOOFED_SOURCE = 19,   /* the source address does not belong to the sender */
	DROP_UNKNOWN_DESTINATION = 20, /* an address of a pod CIDR that no pod owns */
	DROP_UNKNOWN_SOURCE = 21,   /* a source address of a pod CIDR that no pod owns */
	DROP_STALE_ENDPOINT = 22,   /* the device's endpoint record was reused or is gone */
	DROP_TAIL_CALL = 23,        /* an entry or stage of the datapath is missing */
	DROP_UNSUPPORTED_PROTOCOL = 24, /* neither IPv4, IPv6, ARP nor a protocol that is passed through */
	DROP_MAPPED_ADDRESS = 25,   /* a v4-mapped IPv6 address on the wire */
	DROP_MULTICAST = 26,        /* multicast or broadcast that no neighbour protocol needs */
	DROP_FRAG_ORDER = 27,       /* a later fragment came ahead of its first */
	DROP_FRAG_NEEDED = 28,      /* larger than the path's MTU; a packet-too-big answer was sent */
	DROP_TTL_EXPIRED = 29,      /* hop limit reached zero */
	DROP_FLOW_TABLE_FULL = 30,  /* no room for a conntrack entry */
	DROP_HALF_OPEN_QUOTA = 31,  /* the endpoint has too many half-open connections */
	DROP_NAT_EXHAUSTED = 32,    /* no source port is free towards that destination */
	DROP_NAT_TABLE_FULL = 33,   /* no room for a NAT mapping */
	DROP_NO_BACKEND = 34,       /* the service has no backend */
	DROP_NO_ROUTE = 35,         /* the node has no route to the destination */
	DROP_NO_NEIGHBOUR = 36,     /* the next hop's link address is not known */
	DROP_TUNNEL_KEY = 37,       /* the tunnel header could not be set or read */
	DROP_REWRITE = 38,          /* a header could not be rewritten */
	DROP_NO_PROXY = 39,         /* policy redirects to a proxy that is not listening */
	DROP_UNKNOWN_NODE = 40,     /* the tunnel's sender is not a node of the cluster */
	DROP_ICMP_UNRELATED = 41,   /* an ICMP error about no known connection */
	DROP_SOURCE_RANGE = 48,     /* the client is in none of the service's source ranges */
	DROP_NO_GATEWAY = 49,       /* no egress gateway that is alive serves the pod for that destination */
	DROP_OUTSIDE_QUOTA = 50,    /* clients outside the cluster have too many half-open connections */
	DROP_PORT_TAKEN = 51,       /* the client's port has connections with the service's backends already, by another service */
	REASON_COUNT = 64,
};

/* Sizes that loops and layouts depend on. */
enum bound {
	SWEEP_KEYS = 64,            /* keys of one run of sweep_keys */
	NAT_TRIES = 65536,          /* ports tried for a mapping: all that there are */
	NAT_PAUSE = 1,              /* seconds for which a destination without a free port is not searched again: a search takes milliseconds */
	SELECTORS_PER_CELL = 8,     /* selectors of a list of policy entries that one cell holds */
	PASS_ROUNDS = 4,            /* times a verdict may pass on to a later tier */
	BACKEND_TRIES = 4,          /* slots tried for a backend that takes new connections */
	CLASH_TRIES = 8,            /* slots tried for a backend that the client's port has no connection with yet */
	AFFINITY_SCAN = 131072,     /* slots looked through for a client's backend once the frontend's slots have changed */
	UNREACHABLE_RATE = 100,     /* port unreachables a second that a CPU sends in the long run */
	UNREACHABLE_BURST = 50,     /* and at once */
	EXTENSION_HEADERS = 6,      /* IPv6 extension headers looked behind */
	GATEWAY_SLOTS = 64,         /* shares of an egress gateway's flows, and so the most nodes that serve at a time */
};

/* Seconds a flow lives after its last packet, by what it has come to. */
enum lifetime {
	LIFETIME_SYN = 30,          /* TCP, handshake not done */
	LIFETIME_NEW = 60,          /* other protocols without ports, no reply yet */
	LIFETIME_DATAGRAM_NEW = 30, /* UDP, no reply yet */
	LIFETIME_DATAGRAM = 120,    /* UDP and others, answered */
	LIFETIME_TCP = 28800,       /* TCP, handshake done: 8 hours */
	LIFETIME_CLOSING = 3600,    /* TCP, one side has sent FIN: half-closed connections may go on for long */
	LIFETIME_CLOSING_UNSEEN = 60, /* the same where only that side is seen: as a rule the other has sent FIN, too (dsr.h) */
	LIFETIME_CLOSED = 10,       /* TCP, RST or FIN from both sides: room for late segments */
	LIFETIME_REFUSED = 1,       /* TCP, RST before the handshake was done: there are none */
};

/* skb->mark of what the datapath sends out itself, so that the hooks of the device it leaves by let it pass. */
enum mark {
	MARK_FORWARDED = 0x7d000000,
};
