/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/*
 * Numbers and layouts of protocols. The kernel's own headers for ICMP and ARP pull in the C library, which a program
 * in the kernel has no use for.
 */
#pragma once

#include <linux/icmpv6.h>
#include <linux/if_ether.h>
#include <linux/in.h>
#include <linux/in6.h>
#include <linux/ip.h>
#include <linux/ipv6.h>

#define TCP_FIN 0x01 /* RFC 9293 3.1 */
#define TCP_SYN 0x02
#define TCP_RST 0x04
#define TCP_ACK 0x10

/* ICMP types and codes, RFC 792 and RFC 4443. */
enum icmp_number {
	ICMP_ECHOREPLY = 0,
	ICMP_DEST_UNREACH = 3,
	ICMP_PORT_UNREACH = 3,      /* codes of DEST_UNREACH */
	ICMP_FRAG_NEEDED = 4,
	ICMP_ECHO = 8,
	ICMP_TIME_EXCEEDED = 11,
	ICMP_PARAMETERPROB = 12,
	ICMP6_UNREACHABLE = 1,
	ICMP6_PORT_UNREACHABLE = 4, /* code of UNREACHABLE */
	ICMP6_PACKET_TOO_BIG = 2,
	ICMP6_TIME_EXCEEDED = 3,
};

/* An ICMP header, RFC 792; rest is the id and sequence of an echo, or holds the MTU in its second half. */
struct icmp_header {
	__u8 type;
	__u8 code;
	__sum16 check;
	__be16 rest[2];
};

/* ARP for IPv4 over Ethernet, RFC 826. */
struct arp_packet {
	__be16 hardware;
	__be16 protocol;
	__u8 hardware_length;
	__u8 protocol_length;
	__be16 operation;
	__u8 sender_mac[6];
	__be32 sender;
	__u8 target_mac[6];
	__be32 target;
} __attribute__((packed));

enum arp_operation {
	ARP_REQUEST = 1,
	ARP_REPLY = 2,
};

#define FAMILY_IPV4 2 /* AF_INET and AF_INET6 of <sys/socket.h>, which is not for the kernel's side */
#define FAMILY_IPV6 10
