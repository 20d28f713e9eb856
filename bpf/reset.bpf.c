//go:build ignore
/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/*
 * The clients of backends that are gone, at the socket: the agent reads these iterators in every network namespace that
 * has some, and they end the sockets that were connected to such a backend through a service. A stream's process gets a
 * reset, a datagram's an error at its next call; both then ask again, and are led to a backend that is there.
 *
 * Kernels before 6.5 have no bpf_sock_destroy (kfunc-sock-destroy in the agent's list of features). There the iterators name
 * the sockets to the agent, which has sock_diag end them (sock-diag-destroy).
 */
#include <linux/in6.h>
#include "lib/packet.h"

char module_license[] SEC("license") = "Dual BSD/GPL";

/* The kernel's (include/net/sock.h): the members that are used, wherever they lie. */
struct sock_common {
	unsigned short skc_family;
	__be32 skc_daddr;
	__be32 skc_rcv_saddr;
	__be16 skc_dport;
	__u16 skc_num;
	int skc_bound_dev_if;
	struct in6_addr skc_v6_daddr;
	struct in6_addr skc_v6_rcv_saddr;
} __attribute__((preserve_access_index));

struct udp_sock;
struct seq_file;

struct bpf_iter_meta {
	__bpf_md_ptr(struct seq_file *, seq);
} __attribute__((preserve_access_index));

/* Arguments of the kernel's iterators over sockets (net/ipv4/tcp_ipv4.c, udp.c). */
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

/* reset_name tells the agent which socket it is to end. What does not fit the reader's buffer is asked for again. */
static __always_inline void reset_name(struct bpf_iter_meta *meta, struct sock_common *socket)
{
	struct due_socket due = {
		.cookie = bpf_get_socket_cookie(socket), .local_port = bpf_htons(socket->skc_num), .remote_port = socket->skc_dport,
		.device = socket->skc_bound_dev_if,
	};

	if (socket->skc_family == FAMILY_IPV4) {
		address_from4(&due.local, socket->skc_rcv_saddr);
		address_from4(&due.remote, socket->skc_daddr);
	} else {
		bpf_probe_read_kernel(&due.local, sizeof(due.local), &socket->skc_v6_rcv_saddr);
		bpf_probe_read_kernel(&due.remote, sizeof(due.remote), &socket->skc_v6_daddr);
	}
	bpf_seq_write(meta->seq, &due, sizeof(due));
}

SEC("iter/tcp")
int reset_tcp(struct bpf_iter__tcp *ctx)
{
	struct sock_common *socket = ctx->socket;
	struct socket_service *service;

	if (!socket)
		return 0;
	service = bpf_sk_storage_get(&socket_services, socket, 0, 0);
	if (!service || !reset_due(service))
		return 0;
	if (feature_on(FEATURE_SOCK_DIAG) || !bpf_sock_destroy)
		reset_name(ctx->meta, socket);
	else if (bpf_sock_destroy(socket))
		return 0;
	tally_add(TALLY_CLIENTS_RESET);
	return 0;
}

SEC("iter/udp")
int reset_udp(struct bpf_iter__udp *ctx)
{
	struct udp_sock *socket = ctx->socket;
	struct socket_service *service;

	if (!socket)
		return 0;
	service = bpf_sk_storage_get(&socket_services, socket, 0, 0);
	if (!service || !reset_due(service))
		return 0;
	if (feature_on(FEATURE_SOCK_DIAG) || !bpf_sock_destroy)
		reset_name(ctx->meta, (struct sock_common *)socket);
	else if (bpf_sock_destroy((struct sock_common *)socket))
		return 0;
	tally_add(TALLY_CLIENTS_RESET);
	return 0;
}
