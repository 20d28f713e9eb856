/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/*
 * The choice of a backend, which sockets (sock.bpf.c) and packets (service.h) make alike:
 *
 *   affinity_find  the backend that the client had last, where the service wants that
 *   backend_hash   a Maglev table's slot, by the connection's tuple: the same on every node
 *   (random)       else any slot with equal chance
 *
 * A slot whose backend is leaving is passed over, a few times at most; the agent takes such slots out soon.
 */
#pragma once

#include "packet.h"

/* Who asks for a backend, and at which frontend. */
struct choice {
	struct affinity_key key;
	struct slot_range range;    /* what the frontend has for such a client */
	__be16 client_port;         /* 0: not known yet, as at connect() */
	__u16 reserved[3];
};

/* frontend_anywhere makes an address the one that stands for every address of the node in its family. */
static __always_inline void frontend_anywhere(union address *address)
{
	if (address_mapped(address))
		address->word[3] = 0;
	else
		address->half[0] = address->half[1] = 0;
}

/* frontend_admits tells whether a client may use a frontend at all. */
static __always_inline bool frontend_admits(const struct frontend *frontend, const union address *client)
{
	struct guard guard = {.length = 32 + 128, .service = frontend->service};

	if (!(frontend->flags & FRONTEND_GUARDED))
		return true;
	__builtin_memcpy(guard.address, client, sizeof(guard.address));
	return bpf_map_lookup_elem(&guards, &guard);
}

/* A search for a backend among slots. */
struct slot_search {
	struct slot_range range;
	__u32 backend;
	__u32 slot;                 /* where it was found */
};

/* slot_backend is the index of the backend in a slot of a range, 0: none. */
static __always_inline __u32 slot_backend(const struct slot_range *range, __u32 slot)
{
	__u32 at = range->first + slot;
	__u32 *index = slot < range->count ? bpf_map_lookup_elem(&slots, &at) : NULL;

	return index ? *index : 0;
}

/* slot_try looks at one slot; it stops the loop at the end of the range or where the backend is. */
static long slot_try(__u64 index, void *context)
{
	struct slot_search *search = context;

	search->slot = index;
	return index >= search->range.count || slot_backend(&search->range, index) == search->backend;
}

/* backend_takes tells whether a backend takes new connections. */
static __always_inline bool backend_takes(__u32 index)
{
	struct backend *backend = bpf_map_lookup_elem(&backends, &index);

	return index && backend && backend->state == BACKEND_ACTIVE;
}

/*
 * affinity_find is the index of the backend that the client had last, 0: none that still serves. It must stand in a slot:
 * by now it may be another service's, or its number another backend's.
 */
static __always_inline __u32 affinity_find(const struct frontend *frontend, const struct choice *choice, __u64 now)
{
	struct affinity *kept = bpf_map_lookup_elem(&affinities, &choice->key);
	struct slot_search search = {.range = choice->range};

	if (!kept || now > kept->used + frontend->affinity_seconds * SECOND || !backend_takes(kept->backend))
		return 0;
	search.backend = kept->backend;
	if (slot_backend(&search.range, kept->slot) != search.backend) {
		bpf_loop(AFFINITY_SCAN, slot_try, &search, 0);
		if (slot_backend(&search.range, search.slot) != search.backend)
			return 0;
		kept->slot = search.slot;
	}
	kept->used = now;
	return search.backend;
}

/* affinity_keep remembers a client's backend. Without room it is chosen anew the next time. */
static __always_inline void affinity_keep(const struct choice *choice, __u32 backend, __u32 slot, __u64 now)
{
	struct affinity kept = {.used = now, .backend = backend, .slot = slot};

	bpf_map_update_elem(&affinities, &choice->key, &kept, BPF_ANY);
}

/* backend_mix spreads a word's bits: the finalizer of MurmurHash3 (Austin Appleby, public domain). */
static __always_inline __u64 backend_mix(__u64 word)
{
	word = (word ^ word >> 33) * 0xff51afd7ed558ccdULL;
	word = (word ^ word >> 33) * 0xc4ceb9fe1a85ec53ULL;
	return word ^ word >> 33;
}

/* backend_hash stands for a connection: its bytes as they are on the wire, so that nodes of either byte order agree. */
static __always_inline __u32 backend_hash(const struct choice *choice)
{
	const struct frontend_key *to = &choice->key.frontend;
	__u64 hash;

	hash = backend_mix((__u64)bpf_ntohs(choice->client_port) << 24 | (__u64)bpf_ntohs(to->port) << 8 | to->protocol);
	hash = backend_mix(hash ^ bpf_be64_to_cpu(choice->key.client.half[0]));
	hash = backend_mix(hash ^ bpf_be64_to_cpu(choice->key.client.half[1]));
	hash = backend_mix(hash ^ bpf_be64_to_cpu(to->address.half[0]));
	return backend_mix(hash ^ bpf_be64_to_cpu(to->address.half[1])) >> 32;
}

/* backend_pick chooses a backend that takes new connections. It returns its index, or 0. */
static __always_inline __u32 backend_pick(const struct frontend *frontend, const struct choice *choice)
{
	bool hashed = frontend->flags & FRONTEND_HASH && choice->client_port;
	__u32 index, slot = hashed ? backend_hash(choice) : 0;
	__u64 now = frontend->affinity_seconds ? bpf_ktime_get_ns() : 0;

	if (now) {
		index = affinity_find(frontend, choice, now);
		if (index)
			return index;
	}
	for (int i = 0; i < BACKEND_TRIES && choice->range.count; i++) {
		slot = (hashed ? slot + !!i : bpf_get_prandom_u32()) % choice->range.count;
		index = slot_backend(&choice->range, slot);
		if (!backend_takes(index))
			continue;
		if (now)
			affinity_keep(choice, index, slot, now);
		return index;
	}
	return 0;
}
