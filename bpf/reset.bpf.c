//go:build ignore
/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/*
 * The clients of backends that are gone, at the socket: the agent reads these iterators in every network namespace that
 * has some, and they end the sockets that were connected to such a backend through a service. A stream's process gets a
 * reset, a datagram's an error at its next call; both then ask again, and are led to a backend that is there.
 *
 * Kernels before 6.5 have no bpf_sock_destroy: there the sockets wait until they time out. The agent's list of features says
 * so (kfunc-sock-destroy).
 */
#include "lib/packet.h"

char module_license[] SEC("license") = "Dual BSD/GPL";

/* The kernel's; its members do not matter here, but a type has to have some. */
struct sock_common {
	unsigned short skc_family;
} __attribute__((preserve_access_index));

struct udp_sock;
struct bpf_iter_meta;

/* Arguments of the kernel's iterators over sockets (net/ipv4/tcp_ipv4.c, udp.c); of a pointer only whether it is set is used. */
struct bpf_iter__tcp {
	__bpf_md_ptr(struct bpf_iter_meta *, meta);
	__bpf_md_ptr(struct sock_common *, socket);
};

struct bpf_iter__udp {
	__bpf_md_ptr(struct bpf_iter_meta *, meta);
	__bpf_md_ptr(struct udp_sock *, socket);
};

extern int bpf_sock_destroy(struct sock_common *sk) __ksym __weak;

/* reset_due tells whether a socket was led to a backend that is no more, or whose number is another's by now. */
static __always_inline bool reset_due(const struct socket_service *service)
{
	__u32 index = service->backend_index;
	struct backend *backend = bpf_map_lookup_elem(&backends, &index);

	return !backend || backend->state == BACKEND_GONE || backend->port != service->backend_port ||
	       !address_equal(&backend->address, &service->backend);
}

SEC("iter/tcp")
int reset_tcp(struct bpf_iter__tcp *ctx)
{
	struct sock_common *socket = ctx->socket;
	struct socket_service *service;

	if (!socket || !bpf_sock_destroy)
		return 0;
	service = bpf_sk_storage_get(&socket_services, socket, 0, 0);
	if (service && reset_due(service) && !bpf_sock_destroy(socket))
		tally_add(TALLY_CLIENTS_RESET);
	return 0;
}

SEC("iter/udp")
int reset_udp(struct bpf_iter__udp *ctx)
{
	struct udp_sock *socket = ctx->socket;
	struct socket_service *service;

	if (!socket || !bpf_sock_destroy)
		return 0;
	service = bpf_sk_storage_get(&socket_services, socket, 0, 0);
	if (service && reset_due(service) && !bpf_sock_destroy((struct sock_common *)socket))
		tally_add(TALLY_CLIENTS_RESET);
	return 0;
}
