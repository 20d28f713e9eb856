/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/*
 * Step 2: who is at an address. Exact addresses are in a hash; only on a miss is the trie of prefixes asked, which
 * costs three times as much. An address that neither knows is the world's.
 */
#pragma once

#include "packet.h"

/* address_find tells what is known of an address. Written as one copy, so that a reader never holds a map's memory. */
__noinline int address_find(const union address *address, struct peer_info *found)
{
	struct peer_info *info;
	struct prefix prefix;
	union address key;

	if (!address || !found)
		return 0;
	key = *address; /* kernel 6.1 takes keys from the stack and from maps only */
	info = bpf_map_lookup_elem(&addresses, &key);
	if (!info) {
		prefix.length = 128;
		__builtin_memcpy(prefix.address, &key, sizeof(prefix.address));
		info = bpf_map_lookup_elem(&prefixes, &prefix);
	}
	if (info) {
		*found = *info;
		return 0;
	}
	*found = (struct peer_info){.peer = PEER_WORLD};
	return 0;
}

/* address_from_endpoint is the same for a sender whose endpoint is known by its device. */
static __always_inline void address_from_endpoint(const struct endpoint *endpoint, __u32 index, struct peer_info *found)
{
	*found = (struct peer_info){
		.peer = endpoint->peer,
		.endpoint = index,
		.flags = ADDRESS_LOCAL_POD | ADDRESS_CLUSTER,
	};
}

/* address_of_endpoint tells whether an endpoint has an address. */
static __always_inline bool address_of_endpoint(const struct endpoint *endpoint, const union address *address)
{
	return address_equal(address, address_mapped(address) ? &endpoint->address4 : &endpoint->address6);
}
