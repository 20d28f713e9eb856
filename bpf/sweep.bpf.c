//go:build ignore
/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/*
 * The end of flows that nobody closes by sending: run by the agent with BPF_PROG_RUN. Here, and not in user space, since
 * only here can a flow be looked at again and removed with no packet in between that is lost from its counters.
 *
 *   sweep_keys   the flows whose keys the argument carries
 *   sweep_all    the whole table, in one walk of about 30 ns a flow: cheaper than reading it out
 *
 * Both take a struct sweep; without force only expired flows go.
 */
#include "lib/conntrack.h"
#include "lib/packet.h"

char module_license[] SEC("license") = "Dual BSD/GPL";

/* What a walk carries along. */
struct sweep_walk {
	__u64 now;
	__u32 force;
	__u32 removed;
	__u32 kept;
	__u32 reserved;
};

/* sweep_flow removes a flow if it is due. */
static __always_inline void sweep_flow(struct sweep_walk *walk, const struct flow_key *key, struct flow *flow)
{
	if (!walk->force && flow->expires >= walk->now)
		walk->kept++;
	else
		walk->removed += flow_remove(key, flow, HOOK_SWEEP);
}

/* sweep_key looks at one flow by its key. It returns 1 if it removed it. */
__noinline int sweep_key(const struct flow_key *key, __u32 force)
{
	struct sweep_walk walk = {.now = bpf_ktime_get_ns(), .force = force};
	struct flow_key copy;
	struct flow *flow;

	if (!key)
		return 0;
	copy = *key;
	flow = bpf_map_lookup_elem(&flows, &copy);
	if (flow)
		sweep_flow(&walk, &copy, flow);
	return walk.removed;
}

SEC("syscall")
int sweep_keys(struct sweep *sweep)
{
	__u32 removed = 0, count = sweep->count, force = sweep->force;

	if (count > SWEEP_KEYS)
		count = SWEEP_KEYS;
	/* Unrolled, since the verifier allows no variable offset here, and without a branch, since it follows each one. */
#pragma unroll
	for (int i = 0; i < SWEEP_KEYS; i++) {
		struct flow_key key;

		if ((__u32)i >= count)
			break;
		key = sweep->keys[i];
		removed += sweep_key(&key, force);
	}
	sweep->removed = removed;
	sweep->kept = count - removed;
	return 0;
}

struct bpf_map;

/* sweep_step looks at one flow of the walk. */
static long sweep_step(struct bpf_map *map, const struct flow_key *key, struct flow *flow, struct sweep_walk *walk)
{
	struct flow_key copy = *key; /* the map's own key may not be handed on */

	sweep_flow(walk, &copy, flow);
	return 0;
}

SEC("syscall")
int sweep_all(struct sweep *sweep)
{
	struct sweep_walk walk = {.now = bpf_ktime_get_ns(), .force = sweep->force};

	bpf_for_each_map_elem(&flows, sweep_step, &walk, 0);
	sweep->removed = walk.removed;
	sweep->kept = walk.kept;
	return 0;
}
