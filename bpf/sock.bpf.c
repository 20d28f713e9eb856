//go:build ignore
/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
#include "lib/maps.h"
const volatile struct node_config config;
SEC("cgroup/connect4") int connect4(struct bpf_sock_addr *ctx)
{
	return config.vni ? 1 : 1;
}
char module_license[] SEC("license") = "Dual BSD/GPL";
