/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/*
 * The choice of a backend, which sockets (sock.bpf.c) and packets (service.h) make alike: any slot of the frontend with
 * equal chance. A slot whose backend is leaving is passed over, a few times at most; the agent takes such slots out soon.
 */
#pragma once

#include "maps.h"

/* backend_pick chooses a backend that takes new connections. It returns its index, or 0. */
static __always_inline __u32 backend_pick(const struct frontend *frontend)
{
	__u32 count = frontend->slot_count, first = frontend->first_slot;

	for (int i = 0; i < BACKEND_TRIES && count; i++) {
		__u32 slot = first + bpf_get_prandom_u32() % count;
		__u32 *index = bpf_map_lookup_elem(&slots, &slot);
		struct backend *backend = index ? bpf_map_lookup_elem(&backends, index) : NULL;

		if (backend && backend->state == BACKEND_ACTIVE)
			return *index;
	}
	return 0;
}
