/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/*
 * SCTP's checksum is a CRC32c of the whole packet (RFC 9260, 6.8), and covers no address. A CRC is linear: another port
 * changes it by the CRC of the ports' difference, started from zero and followed by as many zero bytes as the packet
 * has behind it. Those are one multiplication by x^(8n) modulo the polynomial (ISO 3309; bits run from high to low
 * powers, as the wire has them), so no byte of the payload is read.
 */
#pragma once

#include "packet.h"

#define SCTP_CHECKSUM 8      /* offset in the header */
#define CRC32C_POLYNOMIAL 0x82f63b78U
#define CRC32C_ONE 0x80000000U
#define CRC32C_POWERS 16     /* as many as a length has bits */

/* x^(8 * 2^i): what 2^i zero bytes do. */
static const __u32 crc32c_powers[CRC32C_POWERS] = {
	0x00800000, 0x00008000, 0x82f63b78, 0x6ea2d55c, 0x18b8ea18, 0x510ac59a, 0xb82be955, 0xb8fdb1e7,
	0x88e56f72, 0x74c360a4, 0xe4172b16, 0x0d65762a, 0x35d73a62, 0x28461564, 0xbf455269, 0xe2ea32dc,
};

/* crc32c_times multiplies modulo the polynomial, without a branch: the verifier follows each one. */
static __always_inline __u32 crc32c_times(__u32 a, __u32 b)
{
	__u32 product = 0;

	for (int i = 0; i < 32; i++) {
		product ^= b & -(a >> 31);
		a <<= 1;
		b = b >> 1 ^ (CRC32C_POLYNOMIAL & -(b & 1));
	}
	return product;
}

/* crc32c_zeros is a CRC after that many more zero bytes. */
__noinline __u32 crc32c_zeros(__u32 crc, __u32 bytes)
{
	for (int i = 0; i < CRC32C_POWERS; i++) {
		__u32 taken = -(bytes >> i & 1);

		crc = crc32c_times(crc, (crc32c_powers[i] & taken) | (CRC32C_ONE & ~taken));
	}
	return crc;
}

/* crc32c_port is the CRC of the two bytes of a port, started from zero. */
static __always_inline __u32 crc32c_port(__be16 difference)
{
	__u32 crc = bpf_ntohs(difference);

	crc = crc >> 8 | (crc & 0xff) << 8; /* the first byte on the wire goes first, its low bit ahead */
	for (int i = 0; i < 16; i++)
		crc = crc >> 1 ^ (CRC32C_POLYNOMIAL & -(crc & 1));
	return crc;
}

/*
 * sctp_port puts another port at an offset of the header. A checksum of zero is still to be filled in, by a device. The
 * checksum of a fragment cannot be corrected: how long the whole is, it does not say.
 */
static __always_inline int sctp_port(struct __sk_buff *ctx, const struct packet *p, __u32 at, __be16 was, __be16 port)
{
	__u32 transport = p->transport & 0x1ff;
	__u32 length = p->length + ETH_HLEN - transport;
	__le32 checksum = 0;
	__u32 change;

	if (p->flags & PACKET_FIRST_FRAGMENT || length > 0xffff ||
	    bpf_skb_load_bytes(ctx, transport + SCTP_CHECKSUM, &checksum, sizeof(checksum)) ||
	    bpf_skb_store_bytes(ctx, transport + at, &port, sizeof(port), BPF_F_RECOMPUTE_CSUM))
		return -1;
	if (!checksum)
		return 0;
	change = crc32c_zeros(crc32c_port(was ^ port), length - at - sizeof(port));
	checksum ^= __builtin_bswap32(bpf_htonl(change)); /* the field is little-endian */
	return bpf_skb_store_bytes(ctx, transport + SCTP_CHECKSUM, &checksum, sizeof(checksum), BPF_F_RECOMPUTE_CSUM);
}
