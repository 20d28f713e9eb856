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
#define SCTP_HEADER 12
#define SCTP_CHUNKS 4        /* looked at for the one that does not end in a first fragment: it is the first, or follows an AUTH (RFC 4895) */
#define CRC32C_POLYNOMIAL 0x82f63b78U
#define CRC32C_ONE 0x80000000U  /* x^0 */
#define CRC32C_BYTE 0x00800000U /* x^8 */

/*
 * crc32c_if is a value for 1, 0 for 0: a product, behind the compiler's back. It would make a branch of a choice, and the
 * verifier would follow both ways; of a mask too.
 */
static __always_inline __u32 crc32c_if(__u32 bit, __u32 value)
{
	asm volatile("" : "+r"(bit));
	return bit * value;
}

/* crc32c_times multiplies modulo the polynomial. */
static __always_inline __u32 crc32c_times(__u32 a, __u32 b)
{
	__u32 product = 0;

	for (int i = 0; i < 32; i++) {
		product ^= crc32c_if(a >> 31, b);
		a <<= 1;
		b = b >> 1 ^ crc32c_if(b & 1, CRC32C_POLYNOMIAL);
	}
	return product;
}

/*
 * crc32c_change is the CRC, started from zero, of two bytes and so many zero bytes behind them. difference has the first byte
 * low: that goes first, its low bit ahead.
 */
static __always_inline __u32 crc32c_change(__u32 difference, __u32 zeros)
{
	__u32 crc = difference & 0xffff, power = CRC32C_BYTE; /* what 2^i zero bytes do */

	for (int i = 0; i < 16; i++)
		crc = crc >> 1 ^ crc32c_if(crc & 1, CRC32C_POLYNOMIAL);
	for (int i = 0; i < 16; i++) {
		__u32 bit = zeros >> i & 1;

		crc = crc32c_times(crc, crc32c_if(bit, power) + crc32c_if(!bit, CRC32C_ONE));
		power = crc32c_times(power, power);
	}
	return crc;
}

/*
 * sctp_length is how long the whole is of which the packet is the first fragment, from its transport header on; 0: it does not say.
 * Chunks that share a packet have to fit the path (RFC 9260, 6.10), so the whole ends with the one that does not end in here.
 */
static __always_inline __u32 sctp_length(struct __sk_buff *ctx, __u32 transport, __u32 here)
{
	struct {
		__u8 type;
		__u8 flags;
		__be16 length;
	} chunk;
	__u32 at = SCTP_HEADER;

	for (int i = 0; i < SCTP_CHUNKS; i++) {
		if (bpf_skb_load_bytes(ctx, transport + at, &chunk, sizeof(chunk)) || bpf_ntohs(chunk.length) < sizeof(chunk))
			return 0;
		at += (bpf_ntohs(chunk.length) + 3) & ~3;
		if (at > here)
			return at;
	}
	return 0;
}

/* sctp_port puts another port at an offset of the header. A checksum of zero is still to be filled in, by a device. */
static __always_inline int sctp_port(struct __sk_buff *ctx, const struct packet *p, __u32 at, __be16 was, __be16 port)
{
	__u32 transport = p->transport & 0x1ff;
	__u32 length = p->length + ETH_HLEN - transport;
	__le32 checksum = 0;
	__u32 difference, change;

	if (p->flags & PACKET_FIRST_FRAGMENT)
		length = sctp_length(ctx, transport, length);
	if (!length || length > 0xffff ||
	    bpf_skb_load_bytes(ctx, transport + SCTP_CHECKSUM, &checksum, sizeof(checksum)) ||
	    bpf_skb_store_bytes(ctx, transport + at, &port, sizeof(port), BPF_F_RECOMPUTE_CSUM))
		return -1;
	if (!checksum)
		return 0;
	difference = bpf_ntohs(was ^ port);
	change = crc32c_change(difference >> 8 | (difference & 0xff) << 8, length - at - sizeof(port));
	checksum ^= __builtin_bswap32(bpf_htonl(change)); /* the field is little-endian */
	return bpf_skb_store_bytes(ctx, transport + SCTP_CHECKSUM, &checksum, sizeof(checksum), BPF_F_RECOMPUTE_CSUM);
}
