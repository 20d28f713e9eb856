/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/*
 * Every map, with one line saying what it maps to what and who writes it. All are pinned by name under the
 * node's bpffs folder and shared by all programs; sizes are defaults (constants.h) that the loader may change.
 */
#pragma once

#include <linux/bpf.h>
#include <bpf/bpf_helpers.h>

#include "constants.h"
#include "structs.h"

/* enum entry -> program of the datapath version in force; written by the loader. */
struct {
	__uint(type, BPF_MAP_TYPE_PROG_ARRAY);
	__uint(max_entries, ENTRY_COUNT);
	__type(key, __u32);
	__type(value, __u32);
} entries SEC(".maps");

/* enum control_word -> word; written by the agent through memory. */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, CONTROL_COUNT);
	__uint(map_flags, BPF_F_MMAPABLE);
	__type(key, __u32);
	__type(value, __u32);
} control SEC(".maps");

/* endpoint index -> pod of this node; written by the agent. */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, CAP_ENDPOINTS);
	__type(key, __u32);
	__type(value, struct endpoint);
} endpoints SEC(".maps");

/* endpoint index -> counters of its use; written by programs. */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, CAP_ENDPOINTS);
	__type(key, __u32);
	__type(value, struct endpoint_use);
} endpoint_uses SEC(".maps");

/* exact address -> what is known of it; written by the agent. */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, CAP_ADDRESSES);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, union address);
	__type(value, struct peer_info);
} addresses SEC(".maps");

/* prefix -> what is known of its addresses; asked only when `addresses` has no answer; written by the agent. */
struct {
	__uint(type, BPF_MAP_TYPE_LPM_TRIE);
	__uint(max_entries, CAP_PREFIXES);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, struct prefix);
	__type(value, struct peer_info);
} prefixes SEC(".maps");

/* node index -> node of the cluster; written by the agent. */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, CAP_NODES);
	__type(key, __u32);
	__type(value, struct node);
} nodes SEC(".maps");

/* ifindex -> outward device; written by the agent. */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, CAP_UPLINKS);
	__type(key, __u32);
	__type(value, struct uplink);
} uplinks SEC(".maps");

/* address -> until when the node answers for it on its link; written by the agent. */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, CAP_ANNOUNCEMENTS);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, union address);
	__type(value, struct announcement);
} announcements SEC(".maps");

/* address of `announcements` -> who else said to have it; written by programs. */
struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__uint(max_entries, CAP_RIVALS);
	__type(key, union address);
	__type(value, struct rival);
} rivals SEC(".maps");

/* address of a pod that some egress gateway selects -> its set; written by the agent. */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, CAP_GATEWAY_PODS);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, union address);
	__type(value, __u32);
} gateway_pods SEC(".maps");

/* set and destination -> number of its gateway, 0: none; written by the agent. */
struct {
	__uint(type, BPF_MAP_TYPE_LPM_TRIE);
	__uint(max_entries, CAP_GATEWAY_ROUTES);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, struct gateway_route);
	__type(value, __u32);
} gateway_routes SEC(".maps");

/* number -> egress gateway; written by the agent. */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, CAP_GATEWAYS);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, __u32);
	__type(value, struct gateway);
} gateways SEC(".maps");

/* peer -> class; written by the agent through memory. */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, CAP_PEERS);
	__uint(map_flags, BPF_F_MMAPABLE);
	__type(key, __u32);
	__type(value, __u32);
} peer_class SEC(".maps");

/* class -> its selector bits; written by the agent through memory. The loader cuts the rows to class_words words. */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, CAP_CLASSES);
	__uint(map_flags, BPF_F_MMAPABLE);
	__type(key, __u32);
	__type(value, struct class_row);
} class_bits SEC(".maps");

/* program index -> descriptor (see structs.h); written by the agent through memory, one word at a time. */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, CAP_PROGRAMS);
	__uint(map_flags, BPF_F_MMAPABLE);
	__type(key, __u32);
	__type(value, __u64);
} policy_programs SEC(".maps");

/* cell -> content of policy programs; written by the agent through memory, never where a program can see it. */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, CAP_POLICY_CELLS);
	__uint(map_flags, BPF_F_MMAPABLE);
	__type(key, __u32);
	__type(value, union policy_cell);
} policy_cells SEC(".maps");

/* two ends and protocol -> connection; written by programs, removed by the sweeper. */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, CAP_FLOWS);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, struct flow_key);
	__type(value, struct flow);
} flows SEC(".maps");

/* what outside sees -> pod; made and removed with its flow, by programs. */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, CAP_MAPPINGS);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, struct nat_key);
	__type(value, struct nat_mapping);
} nat SEC(".maps");

/* destination (a key without node_port) -> ns until which it has no free port; written by programs. */
struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__uint(max_entries, 256);
	__type(key, struct nat_key);
	__type(value, __u64);
} nat_pauses SEC(".maps");

/* datagram -> ports of its first fragment; written by programs. */
struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__uint(max_entries, CAP_FRAGMENTS);
	__type(key, struct fragment_key);
	__type(value, struct fragment);
} fragments SEC(".maps");

/* service address -> slots; written by the agent. */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, CAP_FRONTENDS);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, struct frontend_key);
	__type(value, struct frontend);
} frontends SEC(".maps");

/* slot -> backend index; written by the agent through memory. */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, CAP_SLOTS);
	__uint(map_flags, BPF_F_MMAPABLE);
	__type(key, __u32);
	__type(value, __u32);
} slots SEC(".maps");

/* backend index -> backend; written by the agent through memory. */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, CAP_BACKENDS);
	__uint(map_flags, BPF_F_MMAPABLE);
	__type(key, __u32);
	__type(value, struct backend);
} backends SEC(".maps");

/* service and source range -> 1; written by the agent. */
struct {
	__uint(type, BPF_MAP_TYPE_LPM_TRIE);
	__uint(max_entries, CAP_GUARDS);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, struct guard);
	__type(value, __u32);
} guards SEC(".maps");

/* client and frontend -> backend it had last; written by the socket hooks and per packet. Losing one costs a client its backend. */
struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__uint(max_entries, CAP_AFFINITIES);
	__type(key, struct affinity_key);
	__type(value, struct affinity);
} affinities SEC(".maps");

/* cookie of a pod's network namespace -> endpoint index; written by the agent. */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, CAP_ENDPOINTS);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, __u64);
	__type(value, __u32);
} namespaces SEC(".maps");

/* socket -> service it was connected to; written by the socket hooks. */
struct {
	__uint(type, BPF_MAP_TYPE_SK_STORAGE);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, int);
	__type(value, struct socket_service);
} socket_services SEC(".maps");

/* backend and namespace that has clients of it -> 1; written by the socket hooks, removed by the agent with the backend. */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, CAP_BACKEND_CLIENTS);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, struct backend_client);
	__type(value, __u32);
} backend_clients SEC(".maps");

/* socket and backend -> service its datagrams were meant for; written by the socket hooks. */
struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__uint(max_entries, 16384);
	__type(key, struct datagram_key);
	__type(value, struct datagram_service);
} datagram_services SEC(".maps");

/* reason * HOOK_COUNT + hook -> packets and bytes; written by programs. */
struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, REASON_COUNT * HOOK_COUNT);
	__type(key, __u32);
	__type(value, struct counter);
} counters SEC(".maps");

/* 0 -> the instant up to which places for port unreachables are taken; one per CPU; written by programs. */
struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, __u64);
} unreachable_pace SEC(".maps");

/* enum tally -> count; written by programs. */
struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, TALLY_COUNT);
	__type(key, __u32);
	__type(value, __u64);
} tallies SEC(".maps");

/* events for the agent; written by programs, never waking the reader per event. */
struct {
	__uint(type, BPF_MAP_TYPE_RINGBUF);
	__uint(max_entries, CAP_EVENT_BYTES);
} events SEC(".maps");

/* what a number stands for -> the number; written and read by the agent only, pinned so that a restart keeps it. */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 262144);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, struct assignment_key);
	__type(value, struct assignment);
} assignments SEC(".maps");

/* 0 -> a flow while it is being made, too large for the stack; written by programs, one per CPU. */
struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct flow);
} drafts SEC(".maps");
