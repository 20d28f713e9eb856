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

/* target_refuse counts a call that may not go on, like a packet that is dropped. */
static __always_inline int target_refuse(int reason)
{
	__u32 index = (__u32)reason % REASON_COUNT * HOOK_COUNT + HOOK_SOCKET;
	struct counter *counter = bpf_map_lookup_elem(&counters, &index);

	if (counter)
		counter->packets++;
	bpf_set_retval(ERROR_REFUSED);
	return SOCKET_REFUSE;
}

/*
 * target_client is the address that the socket's packets will bear, so that a client is the same here and per packet: its
 * pod's or the node's. Of a namespace that is neither, only its cookie is known.
 */
static __always_inline void target_client(struct bpf_sock_addr *ctx, const struct target *t, union address *client)
{
	__u64 cookie = bpf_get_netns_cookie(ctx);
	__u32 *index = bpf_map_lookup_elem(&namespaces, &cookie);
	struct endpoint *endpoint = index ? endpoint_at(*index) : NULL;
	bool v4 = address_mapped(&t->address);

	if (endpoint)
		*client = v4 ? endpoint->address4 : endpoint->address6;
	else if (cookie == config.netns_cookie)
		*client = v4 ? config.node4 : config.node6;
	else
		client->half[1] = cookie;
}

/* target_loopback tells an address that only processes of one namespace reach. */
static __always_inline bool target_loopback(const union address *address)
{
	if (address_mapped(address))
		return address->bytes[12] == 127;
	return !address->half[0] && address->half[1] == bpf_cpu_to_be64(1);
}

/* target_frontend finds the frontend that is asked for. Node ports are at the node's addresses; loopback is the node's for its own sockets. */
static __always_inline struct frontend *target_frontend(struct bpf_sock_addr *ctx, struct frontend_key *key)
{
	bool loopback = target_loopback(&key->address);
	struct frontend *frontend;
	struct peer_info *at;

	if (loopback && bpf_get_netns_cookie(ctx) != config.netns_cookie)
		return NULL;
	frontend = bpf_map_lookup_elem(&frontends, key);
	if (frontend)
		return frontend;
	if (!loopback) {
		at = bpf_map_lookup_elem(&addresses, &key->address);
		if (!at || !(at->flags & ADDRESS_NODE_PORT))
			return NULL;
	}
	frontend_anywhere(&key->address);
	return bpf_map_lookup_elem(&frontends, key);
}

/* target_translate finds the backend for a service address. It returns its index, 0: no service, below 0: a reason to refuse. */
static __always_inline int target_translate(struct bpf_sock_addr *ctx, struct target *t)
{
	struct choice choice = {
		.key.frontend = {.address = t->address, .port = t->port, .protocol = t->protocol},
	};
	struct frontend *frontend = target_frontend(ctx, &choice.key.frontend);
	struct backend *backend;
	__u32 index;

	if (!frontend)
		return 0;
	choice.range = frontend->inside;
	if (frontend->affinity_seconds || frontend->flags & FRONTEND_GUARDED)
		target_client(ctx, t, &choice.key.client);
	if (!frontend_admits(frontend, &choice.key.client))
		return -DROP_SOURCE_RANGE;
	index = backend_pick(frontend, &choice);
	backend = index ? bpf_map_lookup_elem(&backends, &index) : NULL;
	if (!backend)
		return -DROP_NO_BACKEND;
	t->address = backend->address;
	t->port = backend->port;
	tally_add(TALLY_SOCKET_TRANSLATED);
	return index;
}

/* connect_remember keeps what the process asked for with the socket, for getpeername, recvmsg and the backend's end. */
static __always_inline void connect_remember(struct bpf_sock_addr *ctx, const struct target *asked,
					     const struct target *given, __u32 index)
{
	struct backend_client client = {.namespace = bpf_get_netns_cookie(ctx), .backend = index};
	struct socket_service *service;
	__u32 one = 1;

	service = bpf_sk_storage_get(&socket_services, ctx->sk, 0, BPF_SK_STORAGE_GET_F_CREATE);
	if (!service)
		return; /* no memory: names are not translated back, traffic still is */
	service->frontend = asked->address;
	service->frontend_port = asked->port;
	service->backend = given->address;
	service->backend_port = given->port;
	service->backend_index = index;
	if (!bpf_map_lookup_elem(&backend_clients, &client))
		bpf_map_update_elem(&backend_clients, &client, &one, BPF_ANY);
}

/* connect_translate is the step of both families; it returns 0 if the address stays as it is, 1 if not, below 0: refuse. */
static __always_inline int connect_translate(struct bpf_sock_addr *ctx, struct target *t)
{
	struct target asked = *t;
	int index = target_translate(ctx, t);

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
		return target_refuse(-translated);
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
		return target_refuse(-translated);
	if (translated)
		target_write6(ctx, &t);
	return SOCKET_ALLOW;
}

/* sendmsg_translate does for a datagram what connect does for a socket. */
static __always_inline int sendmsg_translate(struct bpf_sock_addr *ctx, struct target *t)
{
	struct datagram_service service = {.frontend = t->address, .frontend_port = t->port};
	struct datagram_key key = {.cookie = bpf_get_socket_cookie(ctx)};
	int index = target_translate(ctx, t);

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
		return target_refuse(-translated);
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
		return target_refuse(-translated);
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
