//go:build ignore
/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
#include <linux/pkt_cls.h>
#include "lib/maps.h"
const volatile struct node_config config;
SEC("tc") int net_in(struct __sk_buff *ctx)
{
	return config.vni ? TC_ACT_SHOT : TC_ACT_SHOT;
}
SEC("tc") int net_out(struct __sk_buff *ctx)
{
	return config.vni ? TC_ACT_SHOT : TC_ACT_SHOT;
}
char module_license[] SEC("license") = "Dual BSD/GPL";
