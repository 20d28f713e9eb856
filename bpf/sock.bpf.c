//go:build ignore
/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/*
 * Services at the socket: an address is translated before there is a packet, for pods and the node's own processes
 * alike, and then costs nothing per packet.
 *
 *   connect      a stream, or a datagram socket that is given one peer: the choice lasts as long as the socket
 *   sendmsg      a datagram socket without a peer: each datagram is a choice
 *   recvmsg      the sender of a datagram gets back the address that the process wrote to
 *   getpeername  so does the peer of a connected socket
 *
 * An IPv4 address that comes through an IPv6 socket as v4-mapped is the same 16 bytes, and takes the same path.
 */
#include "lib/backend.h"
#include "lib/packet.h"

char module_license[] SEC("license") = "Dual BSD/GPL";

#define SOCKET_ALLOW 1
#define SOCKET_REFUSE 0
#define ERROR_REFUSED (-111) /* ECONNREFUSED of <errno.h> */

/* Where a socket call goes. */
struct target {
	union address address;
	__be16 port;
	__u8 protocol;
	__u8 reserved[5];
};

static __always_inline void target_read4(const struct bpf_sock_addr *ctx, struct target *t)
{
	address_from4(&t->address, ctx->user_ip4);
	t->port = ctx->user_port;
	t->protocol = ctx->protocol;
}

static __always_inline void target_read6(const struct bpf_sock_addr *ctx, struct target *t)
{
	t->address.word[0] = ctx->user_ip6[0];
	t->address.word[1] = ctx->user_ip6[1];
	t->address.word[2] = ctx->user_ip6[2];
	t->address.word[3] = ctx->user_ip6[3];
	t->port = ctx->user_port;
	t->protocol = ctx->protocol;
}

static __always_inline void target_write4(struct bpf_sock_addr *ctx, const struct target *t)
{
	ctx->user_ip4 = t->address.word[3];
	ctx->user_port = t->port;
}

static __always_inline void target_write6(struct bpf_sock_addr *ctx, const struct target *t)
{
	ctx->user_ip6[0] = t->address.word[0];
	ctx->user_ip6[1] = t->address.word[1];
	ctx->user_ip6[2] = t->address.word[2];
	ctx->user_ip6[3] = t->address.word[3];
	ctx->user_port = t->port;
}

/* target_refuse counts a call that found no backend, like a packet that is dropped. */
static __always_inline int target_refuse(void)
{
	__u32 index = DROP_NO_BACKEND * HOOK_COUNT + HOOK_SOCKET;
	struct counter *counter = bpf_map_lookup_elem(&counters, &index);

	if (counter)
		counter->packets++;
	bpf_set_retval(ERROR_REFUSED);
	return SOCKET_REFUSE;
}

/* target_translate finds the backend for a service address. It returns its index, 0: no service, -1: no backend. */
static __always_inline int target_translate(struct target *t)
{
	struct frontend_key key = {.address = t->address, .port = t->port, .protocol = t->protocol};
	struct frontend *frontend = bpf_map_lookup_elem(&frontends, &key);
	struct backend *backend;
	__u32 index;

	if (!frontend)
		return 0;
	index = backend_pick(frontend);
	backend = index ? bpf_map_lookup_elem(&backends, &index) : NULL;
	if (!backend)
		return -1;
	t->address = backend->address;
	t->port = backend->port;
	tally_add(TALLY_SOCKET_TRANSLATED);
	return index;
}

/* connect_remember keeps what the process asked for with the socket, for getpeername and recvmsg. */
static __always_inline void connect_remember(struct bpf_sock_addr *ctx, const struct target *asked,
					     const struct target *given, __u32 index)
{
	struct socket_service *service;

	service = bpf_sk_storage_get(&socket_services, ctx->sk, 0, BPF_SK_STORAGE_GET_F_CREATE);
	if (!service)
		return; /* no memory: names are not translated back, traffic still is */
	service->frontend = asked->address;
	service->frontend_port = asked->port;
	service->backend = given->address;
	service->backend_port = given->port;
	service->backend_index = index;
}

/* connect_translate is the step of both families; it returns 0 if the address stays as it is, 1 if not, -1: refuse. */
static __always_inline int connect_translate(struct bpf_sock_addr *ctx, struct target *t)
{
	struct target asked = *t;
	int index = target_translate(t);

	if (index > 0)
		connect_remember(ctx, &asked, t, index);
	return index > 0 ? 1 : index;
}

SEC("cgroup/connect4")
int connect4(struct bpf_sock_addr *ctx)
{
	struct target t = {};
	int translated;

	target_read4(ctx, &t);
	translated = connect_translate(ctx, &t);
	if (translated < 0)
		return target_refuse();
	if (translated)
		target_write4(ctx, &t);
	return SOCKET_ALLOW;
}

SEC("cgroup/connect6")
int connect6(struct bpf_sock_addr *ctx)
{
	struct target t = {};
	int translated;

	target_read6(ctx, &t);
	translated = connect_translate(ctx, &t);
	if (translated < 0)
		return target_refuse();
	if (translated)
		target_write6(ctx, &t);
	return SOCKET_ALLOW;
}

/* sendmsg_translate does for a datagram what connect does for a socket. */
static __always_inline int sendmsg_translate(struct bpf_sock_addr *ctx, struct target *t)
{
	struct datagram_service service = {.frontend = t->address, .frontend_port = t->port};
	struct datagram_key key = {.cookie = bpf_get_socket_cookie(ctx)};
	int index = target_translate(t);

	if (index <= 0)
		return index;
	key.backend = t->address;
	key.backend_port = t->port;
	bpf_map_update_elem(&datagram_services, &key, &service, BPF_ANY);
	return 1;
}

SEC("cgroup/sendmsg4")
int sendmsg4(struct bpf_sock_addr *ctx)
{
	struct target t = {};
	int translated;

	target_read4(ctx, &t);
	translated = sendmsg_translate(ctx, &t);
	if (translated < 0)
		return target_refuse();
	if (translated)
		target_write4(ctx, &t);
	return SOCKET_ALLOW;
}

SEC("cgroup/sendmsg6")
int sendmsg6(struct bpf_sock_addr *ctx)
{
	struct target t = {};
	int translated;

	target_read6(ctx, &t);
	translated = sendmsg_translate(ctx, &t);
	if (translated < 0)
		return target_refuse();
	if (translated)
		target_write6(ctx, &t);
	return SOCKET_ALLOW;
}

/* target_restore turns a backend back into the frontend that the process wrote or connected to. */
static __always_inline bool target_restore(struct bpf_sock_addr *ctx, struct target *t)
{
	struct datagram_key key = {
		.cookie = bpf_get_socket_cookie(ctx),
		.backend = t->address,
		.backend_port = t->port,
	};
	struct socket_service *connected = bpf_sk_storage_get(&socket_services, ctx->sk, 0, 0);
	struct datagram_service *datagram;

	if (connected && address_equal(&connected->backend, &t->address) && connected->backend_port == t->port) {
		t->address = connected->frontend;
		t->port = connected->frontend_port;
		return true;
	}
	datagram = t->protocol == IPPROTO_UDP ? bpf_map_lookup_elem(&datagram_services, &key) : NULL;
	if (!datagram)
		return false;
	t->address = datagram->frontend;
	t->port = datagram->frontend_port;
	return true;
}

SEC("cgroup/recvmsg4")
int recvmsg4(struct bpf_sock_addr *ctx)
{
	struct target t = {};

	target_read4(ctx, &t);
	if (target_restore(ctx, &t))
		target_write4(ctx, &t);
	return SOCKET_ALLOW;
}

SEC("cgroup/recvmsg6")
int recvmsg6(struct bpf_sock_addr *ctx)
{
	struct target t = {};

	target_read6(ctx, &t);
	if (target_restore(ctx, &t))
		target_write6(ctx, &t);
	return SOCKET_ALLOW;
}

SEC("cgroup/getpeername4")
int getpeername4(struct bpf_sock_addr *ctx)
{
	struct target t = {};

	target_read4(ctx, &t);
	if (target_restore(ctx, &t))
		target_write4(ctx, &t);
	return SOCKET_ALLOW;
}

SEC("cgroup/getpeername6")
int getpeername6(struct bpf_sock_addr *ctx)
{
	struct target t = {};

	target_read6(ctx, &t);
	if (target_restore(ctx, &t))
		target_write6(ctx, &t);
	return SOCKET_ALLOW;
}
