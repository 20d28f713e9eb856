//go:build ignore
/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
#include "lib/maps.h"
const volatile struct node_config config;
SEC("syscall") int sweep(void *ctx)
{
	return config.vni ? 0 : 0;
}
char module_license[] SEC("license") = "Dual BSD/GPL";
