/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/*
 * Step 5: the verdict of one policy program about one peer. Layout of programs: structs.h.
 *
 *   policy_judge      finds the up to three lists of entries that concern the packet's protocol and port
 *   policy_round      finds the match of lowest rank in them
 *   policy_list       finds the first match of one list
 *   policy_block      tests eight of its selectors
 *
 * Everything that is missing or inconsistent is a denial.
 */
#pragma once

#include "packet.h"

#define POLICY_SHORT 8 /* blocks of a list that are looked at without a loop's overhead: 64 entries */
#define RANK_NONE 0xffffffff

_Static_assert(sizeof(((union policy_cell *)0)->selector) == SELECTORS_PER_CELL * sizeof(__u16), "a cell of selectors");
_Static_assert(sizeof(struct class_row) * 8 == CAP_SELECTORS, "a row of class_bits");

/* What one evaluation carries along. Ranks: lower wins; floor is raised by PASS. */
struct judgement {
	__u32 base;                 /* cell of the program's header */
	__u32 class;                /* row of class_bits */
	__u32 floor;                /* entries of lower rank have been passed over */
	__u32 rank;                 /* of the best match so far */
	__u32 rule;
	__u32 argument;
	__u32 action;               /* ACTION_NONE: no match so far */
	__u32 list;                 /* the list in hand: its first cell, */
	__u32 length;               /* and its number of entries */
	__u16 first[3];             /* the lists */
	__u16 count[3];
};

static __always_inline union policy_cell *policy_cell_at(__u32 cell)
{
	return bpf_map_lookup_elem(&policy_cells, &cell);
}

/* policy_row_of is the class's selectors. The key lies on the stack: 6.1 takes none out of an argument's memory. */
static __always_inline struct class_row *policy_row_of(const struct judgement *j)
{
	__u32 class = j->class;

	return bpf_map_lookup_elem(&class_bits, &class);
}

/* policy_take looks at an entry whose selector matches; it returns true where nothing better can follow in its list. */
static __always_inline bool policy_take(struct judgement *j, __u32 at)
{
	union policy_cell *cell = policy_cell_at(at);

	if (!cell || cell->entry.rank >= j->rank)
		return true;
	if (cell->entry.rank < j->floor)
		return false;
	j->rank = cell->entry.rank;
	j->rule = cell->entry.rule;
	j->argument = cell->entry.argument;
	j->action = cell->entry.action;
	return true;
}

/*
 * policy_block tests the selectors of one cell of the list in hand; it returns 1 where nothing better can follow. Selectors
 * that match are few, so their rank is looked at only then. The mask is there for the verifier: no selector is beyond
 * the row. What can be read again is not kept: kernel 6.1 counts the stack of a whole journey.
 */
static __always_inline long policy_block(struct judgement *j, const struct class_row *row, __u32 block)
{
	union policy_cell *cell = policy_cell_at(j->list + block);
	const __u32 mask = (config.class_words - 1) * 8;

	if (!cell)
		return 1;
	for (__u32 i = 0; i < SELECTORS_PER_CELL; i++) {
		__u32 selector = cell->selector[i];
		__u32 at = block * SELECTORS_PER_CELL + i;
		__u64 bits = *(__u64 *)((void *)row + (selector / 8 & mask));

		if (!(bits >> (selector & 63) & 1))
			continue;
		if (at >= j->length || policy_take(j, j->list + (j->length + SELECTORS_PER_CELL - 1) / SELECTORS_PER_CELL + at))
			return 1;
	}
	return 0;
}

/* policy_short looks at the first blocks of the list in hand. It returns 1 if that was all there is to do. */
__noinline int policy_short(struct judgement *j)
{
	struct class_row *row;

	if (!j)
		return 1;
	row = policy_row_of(j);
	if (!row)
		return 1;
	for (__u32 block = 0; block < POLICY_SHORT; block++) {
		if (block * SELECTORS_PER_CELL >= j->length || policy_block(j, row, block))
			return 1;
	}
	return j->length <= POLICY_SHORT * SELECTORS_PER_CELL;
}

/* policy_later looks at one block behind the first ones; a function of its own, so that a verifier need not follow it through a loop. */
__noinline int policy_later(struct judgement *j, __u32 block)
{
	struct class_row *row;

	if (!j)
		return 1;
	row = policy_row_of(j);
	return row ? policy_block(j, row, block) : 1;
}

/* policy_scan is the loop over what is long. */
static long policy_scan(__u64 index, void *context)
{
	return policy_later(context, POLICY_SHORT + index) != 0;
}

/* policy_list finds a list's first match. */
static __always_inline void policy_list(struct judgement *j, __u32 first, __u32 count)
{
	j->list = first;
	j->length = count;
	if (!policy_short(j))
		bpf_loop((count - 1) / SELECTORS_PER_CELL + 1 - POLICY_SHORT, policy_scan, j, 0);
}

/* policy_round finds the match of lowest rank at or above the floor. */
static __always_inline void policy_round(struct judgement *j)
{
	j->rank = RANK_NONE;
	j->action = ACTION_NONE;
	for (int i = 0; i < 3; i++) {
		if (j->count[i])
			policy_list(j, j->base + j->first[i], j->count[i]);
	}
}

/* policy_find searches sorted disjoint segments for the one that holds a protocol and port: 16 halvings cover 65535. */
static __always_inline void policy_find(struct judgement *j, int list, __u32 low, __u32 count, __u32 wanted)
{
	__u32 high = low + count;

	for (int i = 0; i < 17 && low < high; i++) {
		__u32 middle = (low + high) / 2;
		union policy_cell *cell = policy_cell_at(j->base + middle);
		struct policy_segment *segment;

		if (!cell)
			return;
		segment = &cell->segment;
		if (wanted < ((__u32)segment->protocol << 16 | segment->first_port)) {
			high = middle;
		} else if (wanted > ((__u32)segment->protocol << 16 | segment->last_port)) {
			low = middle + 1;
		} else {
			j->first[list] = segment->entries_first;
			j->count[list] = segment->entries_count;
			return;
		}
	}
}

/*
 * policy_judge asks a program about a peer. wanted is protocol << 16 | port (ICMP: type). The epoch of out is the
 * caller's, read before.
 */
__noinline int policy_judge(__u32 program, __u32 peer, __u32 wanted, struct verdict *out)
{
	struct judgement j = {};
	__u64 *descriptor = bpf_map_lookup_elem(&policy_programs, &program);
	__u32 *class = bpf_map_lookup_elem(&peer_class, &peer);
	struct policy_header *header;
	union policy_cell *cell;
	__u64 word;

	if (!out)
		return 0;
	out->rule = RULE_NONE;
	out->action = ACTION_DENY;
	out->argument = 0;
	if (!descriptor || !class)
		return 0;
	tally_add(TALLY_JUDGED);
	word = *(volatile __u64 *)descriptor;
	j.base = (__u32)word;
	cell = policy_cell_at(j.base);
	if (!(word >> 63) || !cell)
		return 0;
	header = &cell->header;
	j.class = *(volatile __u32 *)class;
	policy_find(&j, 0, 1, header->segments, wanted);
	policy_find(&j, 1, 1 + header->segments, header->protocols, wanted);
	j.first[2] = header->any_first;
	j.count[2] = header->any_count;
	for (int i = 0; i < PASS_ROUNDS; i++) {
		policy_round(&j);
		if (j.action != ACTION_PASS)
			break;
		j.floor = j.argument;
	}
	if (j.action == ACTION_PASS) /* passed on too often: a program that nobody should have written */
		return 0;
	out->rule = j.action == ACTION_NONE ? header->default_rule : j.rule;
	out->action = j.action == ACTION_NONE ? header->default_action : j.action;
	out->argument = j.action == ACTION_REDIRECT ? j.argument : 0;
	return 0;
}
