// SPDX-License-Identifier: Apache-2.0
//
// The data path of the eBPF engine: three programs and their maps.
//
//   flannel_send     on the route of the network (lightweight tunnel, xmit): puts an outer IP and UDP header in front of a
//                    packet and routes it anew, to where the longest prefix says.
//   flannel_receive  on the network card (tc, ingress): takes the outer headers away and gives the packet to the tunnel device,
//                    as if it had come out of it.
//   flannel_return   on the detour device (tc, ingress): gives what comes to the tunnel device. See detour().
//
// All do the usual case only. What is unusual they leave to the userspace engine: flannel_send lets the packet on to the tunnel
// device, flannel_receive lets the datagram on to the socket. Only what a stranger sends ends here.
//
// Compiled by bpf/build.sh into udp.bpf.o. The layouts of maps are repeated in src/bpf/layout.rs.

#include <linux/bpf.h>

#define SEC(name) __attribute__((section(name), used))
#define INLINE static inline __attribute__((always_inline))

#if __BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__
#define BE16(x) __builtin_bswap16(x)
#define BE32(x) __builtin_bswap32(x)
#else
#define BE16(x) (x)
#define BE32(x) (x)
#endif

static void *(*map_lookup)(const void *map, const void *key) = (void *)BPF_FUNC_map_lookup_elem;
static long (*lwt_push_encap)(struct __sk_buff *skb, __u32 kind, void *header, __u32 len) = (void *)BPF_FUNC_lwt_push_encap;
static long (*skb_adjust_room)(struct __sk_buff *skb, __s32 diff, __u32 mode, __u64 flags) = (void *)BPF_FUNC_skb_adjust_room;
static long (*skb_store_bytes)(struct __sk_buff *skb, __u32 at, const void *from, __u32 len, __u64 flags) =
	(void *)BPF_FUNC_skb_store_bytes;
static long (*skb_pull_data)(struct __sk_buff *skb, __u32 len) = (void *)BPF_FUNC_skb_pull_data;
static long (*redirect)(__u32 device, __u64 flags) = (void *)BPF_FUNC_redirect;
static __u32 (*random)(void) = (void *)BPF_FUNC_get_prandom_u32;

struct map {
	__u32 type, key_size, value_size, max_entries, flags;
};

// Where packets go: longest prefix to endpoint.
struct prefix4 {
	__u32 len;
	__u32 address;
};
struct prefix6 {
	__u32 len;
	__u32 address[4];
};
struct endpoint4 {
	__u32 address;
	__u16 port;
	__u16 takes; // the largest packet that the path takes, if that is less than the network card does; in host byte order
};
struct endpoint6 {
	__u32 address[4];
	__u16 port;
	__u16 takes;
};

// The only entry of `config`. Addresses and the port in network byte order.
struct config {
	__u32 tunnel; // the tunnel device
	__u32 send, back; // for the loader: the numbers of flannel_send and flannel_return that go with these maps
	__u32 flags;
	__u32 local4;
	__u32 local6[4];
	__u16 port;
	__u16 detour_port;
	__u8 detour_mac[6];
	__u16 zero;
};
#define SOURCE_CHECK 1u // only what a known peer sends, from inside of its subnet
#define NO_LINK_HEADER 2u // the network card has no Ethernet header

#define DETOUR 4u // there is a detour device
#define PATH_MTU_DISCOVERY 8u // what nobody may cut inside nobody may cut outside

// What stands at each place in `counts`, for each processor.
struct tally {
	__u64 packets;
	__u64 bytes; // of inner packets
};
// Places in `counts`.
enum { SENT, SENT_ON, RECEIVED, RECEIVED_ON, SPOOFED_SOURCE, UNKNOWN_PEER, PATH_TOLD, DETOUR_PROBED, COUNTS };

SEC("maps") struct map endpoints4 = {
	BPF_MAP_TYPE_LPM_TRIE, sizeof(struct prefix4), sizeof(struct endpoint4), 1 << 20, BPF_F_NO_PREALLOC,
};
SEC("maps") struct map endpoints6 = {
	BPF_MAP_TYPE_LPM_TRIE, sizeof(struct prefix6), sizeof(struct endpoint6), 1 << 20, BPF_F_NO_PREALLOC,
};
// The addresses of all endpoints, to tell a stranger from a peer that lies. IPv4 ones as ::ffff:a.b.c.d. A hash map would have a
// place for each of as many as there might be, 16 MB, and who reads it would walk over all of them.
SEC("maps") struct map peers = { BPF_MAP_TYPE_LPM_TRIE, sizeof(struct prefix6), 4, 1 << 20, BPF_F_NO_PREALLOC };
SEC("maps") struct map config = { BPF_MAP_TYPE_ARRAY, 4, sizeof(struct config), 1, 0 };
SEC("maps") struct map counts = { BPF_MAP_TYPE_PERCPU_ARRAY, 4, sizeof(struct tally), COUNTS, 0 };

struct ipv4 {
	__u8 version_len, tos;
	__u16 len, id, fragment;
	__u8 ttl, protocol;
	__u16 check;
	__u32 from, to;
};
struct ipv6 {
	__u8 version, rest[3];
	__u16 len;
	__u8 protocol, ttl;
	__u32 from[4], to[4];
};
struct udp {
	__u16 from, to, len, check;
};
struct tcp {
	__u16 from, to;
	__u32 sequence, acknowledged;
	__u8 header, flags;
	__u16 window, check, urgent;
};
struct ethernet {
	__u8 to[6], from[6];
	__u16 kind;
} __attribute__((packed));

#define ETHERNET 14
#define PLAIN_IPV4 0x45 // version 4, five words: no options
#define IPV6_VERSION 6
#define ICMP 1
#define TCP 6
#define UDP 17
#define ICMP6 58
#define DONT_FRAGMENT BE16(0x4000)
#define FRAGMENT_BITS BE16(0x3fff) // more fragments, and the offset
#define TTL 64
#define ETH_IPV4 BE16(0x0800)
#define ETH_IPV6 BE16(0x86dd)
#define ETH_PROBE BE16(0x88b5) // for local experiments, IEEE 802
#define MAX_LEN 0xffff
#define OUTER4 (sizeof(struct ipv4) + sizeof(struct udp))
#define MAX_DETOUR (MAX_LEN - 30) // the headers of UDP, VXLAN and Ethernet are in the length as well
#define LOOPBACK 1 // in every namespace
#define TOO_BIG4 BE16(0x0304) // destination unreachable, fragmentation needed
#define TOO_BIG6 BE16(0x0200) // packet too big
// linux/pkt_cls.h: on to the next filter.
#define TC_ACT_UNSPEC -1
#define TC_ACT_OK 0
#define TC_ACT_SHOT 2

// A packet that is still to be cut counts as those that it will be.
INLINE void count(const struct __sk_buff *skb, __u32 what, __u32 bytes)
{
	struct tally *tally = map_lookup(&counts, &what);
	if (!tally)
		return;
	__u32 size = skb->gso_size;
	tally->packets += size ? (bytes + size - 1) / size : 1;
	tally->bytes += bytes;
}

INLINE struct config *settings(void)
{
	__u32 zero = 0;
	return map_lookup(&config, &zero);
}

INLINE int same6(const __u32 *a, const __u32 *b)
{
	return ((a[0] ^ b[0]) | (a[1] ^ b[1]) | (a[2] ^ b[2]) | (a[3] ^ b[3])) == 0;
}

INLINE void copy6(__u32 *to, const __u32 *from)
{
	to[0] = from[0];
	to[1] = from[1];
	to[2] = from[2];
	to[3] = from[3];
}

// One less, with the checksum updated by RFC 1624 as the kernel does when it forwards.
INLINE void decrement_ttl4(struct ipv4 *ip)
{
	__u32 check = ip->check;
	check += BE16(0x0100);
	ip->check = check + (check >= 0xffff);
	ip->ttl -= 1;
}

// A large packet that still has to be cut has to be TCP: the kernel cuts nothing else inside of UDP.
INLINE int is_cuttable(const struct __sk_buff *skb, __u8 protocol)
{
	return skb->gso_size == 0 || protocol == TCP;
}

// What the kernel writes as length of a packet that is still to be cut.
INLINE __u16 length(__u32 len)
{
	return len > MAX_LEN ? 0 : BE16((__u16)len);
}

// Whether the path takes a packet, or each of those that it is still to be cut into. What it does not take the userspace engine
// answers, or sends in fragments.
INLINE int fits(const struct __sk_buff *skb, __u32 takes, const void *payload, __u32 header)
{
	if (!takes || skb->len <= takes)
		return 1;
	if (!skb->gso_size)
		return 0;
	const struct tcp *tcp = payload;
	if ((void *)(tcp + 1) > (void *)(long)skb->data_end)
		return 0;
	return header + (tcp->header >> 4) * 4 + skb->gso_size <= takes;
}

// Sending. Until the headers are pushed, BPF_OK lets the packet on as it came.

// Our own datagrams must not go round and round.
INLINE int is_own_datagram(__u8 protocol, const struct udp *udp, const void *end, const struct config *own)
{
	return protocol == UDP && ((void *)(udp + 1) > end || udp->from == own->port);
}

INLINE int push(struct __sk_buff *skb, void *outer, __u32 len)
{
	return lwt_push_encap(skb, BPF_LWT_ENCAP_IP, outer, len) ? BPF_DROP : BPF_LWT_REROUTE;
}

INLINE int send4(struct __sk_buff *skb)
{
	void *data = (void *)(long)skb->data, *end = (void *)(long)skb->data_end;
	struct ipv4 *ip = data;
	struct udp *udp = (void *)(ip + 1);
	if ((void *)(ip + 1) > end || ip->version_len != PLAIN_IPV4 || ip->ttl <= 1 || !is_cuttable(skb, ip->protocol))
		return BPF_OK;
	struct config *own = settings();
	struct prefix4 to = { 32, ip->to };
	struct endpoint4 *peer = map_lookup(&endpoints4, &to);
	if (!own || !peer || !fits(skb, peer->takes, ip + 1, sizeof(*ip)))
		return BPF_OK;
	if (ip->from == own->local4 && is_own_datagram(ip->protocol, udp, end, own))
		return BPF_OK;
	__u32 len = skb->len + sizeof(struct ipv4) + sizeof(struct udp);
	if (len > MAX_LEN && skb->gso_size == 0)
		return BPF_OK;
	struct {
		struct ipv4 ip;
		struct udp udp;
	} outer = {
		// The kernel fills in the checksum. Routers may cut it, so each has a number.
		.ip = { PLAIN_IPV4, 0, length(len), (__u16)random(), 0, TTL, UDP, 0, own->local4, peer->address },
		.udp = { own->port, peer->port, length(len - sizeof(struct ipv4)), 0 },
	};
	if (own->flags & PATH_MTU_DISCOVERY)
		outer.ip.fragment = ip->fragment & DONT_FRAGMENT;
	decrement_ttl4(ip);
	return push(skb, &outer, sizeof(outer));
}

INLINE int send6(struct __sk_buff *skb)
{
	void *data = (void *)(long)skb->data, *end = (void *)(long)skb->data_end;
	struct ipv6 *ip = data;
	struct udp *udp = (void *)(ip + 1);
	if ((void *)(ip + 1) > end || ip->ttl <= 1 || !is_cuttable(skb, ip->protocol))
		return BPF_OK;
	struct config *own = settings();
	struct prefix6 to = { .len = 128 };
	copy6(to.address, ip->to);
	struct endpoint6 *peer = map_lookup(&endpoints6, &to);
	if (!own || !peer || !fits(skb, peer->takes, ip + 1, sizeof(*ip)))
		return BPF_OK;
	if (same6(ip->from, own->local6) && is_own_datagram(ip->protocol, udp, end, own))
		return BPF_OK;
	__u32 len = skb->len + sizeof(struct udp);
	if (len > MAX_LEN && skb->gso_size == 0)
		return BPF_OK;
	struct {
		struct ipv6 ip;
		struct udp udp;
	} outer = {
		.ip = { .version = IPV6_VERSION << 4, .len = length(len), .protocol = UDP, .ttl = TTL },
		// Without a checksum, as RFC 6935 allows tunnels: the inner packet has its own.
		.udp = { own->port, peer->port, length(len), 0 },
	};
	copy6(outer.ip.from, own->local6);
	copy6(outer.ip.to, peer->address);
	ip->ttl -= 1;
	return push(skb, &outer, sizeof(outer));
}

SEC("lwt_xmit") int flannel_send(struct __sk_buff *skb)
{
	int verdict = BPF_OK;
	__u32 bytes = skb->len;
	if (skb->protocol == ETH_IPV4)
		verdict = send4(skb);
	else if (skb->protocol == ETH_IPV6)
		verdict = send6(skb);
	count(skb, verdict == BPF_OK ? SENT_ON : SENT, bytes);
	return verdict;
}

// Receiving. TC_ACT_UNSPEC lets the packet on as it came: to the next filter, and to the socket in the end.

INLINE int is_peer(const __u32 *address)
{
	struct prefix6 whole = { .len = 128 };
	copy6(whole.address, address);
	return map_lookup(&peers, &whole) != 0;
}

INLINE int stranger(const struct __sk_buff *skb, const __u32 *from, __u32 outer)
{
	count(skb, is_peer(from) ? SPOOFED_SOURCE : UNKNOWN_PEER, skb->len - outer);
	return TC_ACT_SHOT;
}

// Whether so many bytes can be looked at, after making that so.
INLINE int has(struct __sk_buff *skb, __u32 len)
{
	if ((void *)(long)skb->data + len <= (void *)(long)skb->data_end)
		return 1;
	return skb->len >= len && skb_pull_data(skb, len) == 0;
}

INLINE int receive_on(const struct __sk_buff *skb, __u32 outer)
{
	count(skb, RECEIVED_ON, skb->len - outer);
	return TC_ACT_UNSPEC;
}

// Lets a packet go through the kernel's own unpacking of tunnels, on its way to flannel_return.
//
// Without that it counts as a tunnel's packet for ever after if it was handed over in one piece, and a bridge has it cut, which
// costs more than half of the throughput; and TCP segments that come one by one are not joined. Both is done by what receives
// VXLAN. So here is one more tunnel, by loopback, to a VXLAN device that takes packets from nowhere else.
INLINE int detour(struct __sk_buff *skb, const struct config *own, __u32 outer, __u32 size, __u16 kind)
{
	struct {
		struct ethernet link;
		struct ipv6 ip;
		struct udp udp;
		__u32 flags, vni;
		struct ethernet inner;
	} __attribute__((packed)) header = {};
	header.link.kind = ETH_IPV6;
	// So the header sums up to nothing, whether or not the kernel takes it out of the card's sum when it hands the packet over.
	*(__u16 *)&header.link.from[4] = (__u16)~ETH_IPV6;
	header.ip.version = IPV6_VERSION << 4;
	header.ip.len = BE16(size + MAX_LEN - MAX_DETOUR);
	header.ip.protocol = UDP;
	header.ip.ttl = TTL;
	header.ip.from[3] = header.ip.to[3] = BE32(1); // ::1
	header.udp.from = own->port;
	header.udp.to = own->detour_port;
	header.udp.len = header.ip.len;
	header.flags = BE32(0x08000000); // it has a VNI
	header.vni = BE32((__u32)BE16(own->port) << 8);
	header.inner.from[0] = 2;
	header.inner.kind = kind;
	__builtin_memcpy(header.inner.to, own->detour_mac, sizeof(header.inner.to));
	__s32 more = sizeof(header) - ETHERNET - outer;
	if (skb_adjust_room(skb, more, BPF_ADJ_ROOM_MAC, BPF_F_ADJ_ROOM_FIXED_GSO) ||
	    skb_store_bytes(skb, 0, &header.link, ETHERNET, 0) ||
	    skb_store_bytes(skb, ETHERNET, &header.ip, sizeof(header) - ETHERNET, BPF_F_RECOMPUTE_CSUM))
		return TC_ACT_SHOT;
	return redirect(LOOPBACK, BPF_F_INGRESS);
}

// To the tunnel device, without the outer headers. `size` is what is inside of them.
INLINE int received(struct __sk_buff *skb, const struct config *own, const __u32 at, __u32 outer, __u32 size, __u8 protocol)
{
	count(skb, RECEIVED, size);
	// All of a flow goes one way, to keep its order.
	if (protocol == TCP && own->flags & DETOUR && at == ETHERNET && size <= MAX_DETOUR)
		return detour(skb, own, outer, size, outer == OUTER4 ? ETH_IPV4 : ETH_IPV6);
	if (skb_adjust_room(skb, -(__s32)outer, BPF_ADJ_ROOM_MAC, 0))
		return TC_ACT_SHOT;
	return redirect(own->tunnel, BPF_F_INGRESS);
}

// Somebody on the way says how large a packet may be: the kernel notes it, and the engine is to ask the kernel.
INLINE int path_told(const struct __sk_buff *skb)
{
	count(skb, PATH_TOLD, 0);
	return TC_ACT_UNSPEC;
}

// Whether the headers have the lengths of one whole packet in one datagram. Those of a packet that is still to be cut are not on
// any wire.
INLINE int lengths_agree(const struct __sk_buff *skb, __u32 at, __u32 all, __u32 datagram, __u32 inside, __u32 outer)
{
	return skb->gso_size ||
	       (all == inside + outer && datagram == inside + sizeof(struct udp) && all + at <= skb->len);
}

INLINE int receive4(struct __sk_buff *skb, const struct config *own, const __u32 at)
{
	struct {
		struct ipv4 ip;
		struct udp udp;
	} *outer;
	if (!has(skb, at + sizeof(*outer)))
		return TC_ACT_UNSPEC;
	outer = (void *)(long)skb->data + at;
	if ((void *)(outer + 1) > (void *)(long)skb->data_end)
		return TC_ACT_UNSPEC;
	if (outer->ip.version_len != PLAIN_IPV4 || outer->ip.to != own->local4)
		return TC_ACT_UNSPEC;
	if (outer->ip.protocol == ICMP && outer->udp.from == TOO_BIG4)
		return path_told(skb);
	if (outer->ip.protocol != UDP || outer->udp.to != own->port || outer->ip.fragment & FRAGMENT_BITS)
		return TC_ACT_UNSPEC;
	__u32 from = outer->ip.from;
	__u16 len = outer->ip.len, udp_len = outer->udp.len;
	if (!has(skb, at + sizeof(*outer) + sizeof(struct ipv4)))
		return receive_on(skb, at + sizeof(*outer));
	struct ipv4 *ip = (void *)(long)skb->data + at + sizeof(*outer);
	if ((void *)(ip + 1) > (void *)(long)skb->data_end || ip->version_len != PLAIN_IPV4 || ip->ttl <= 1 ||
	    !is_cuttable(skb, ip->protocol))
		return receive_on(skb, at + sizeof(*outer));
	if (!lengths_agree(skb, at, BE16(len), BE16(udp_len), BE16(ip->len), sizeof(*outer)))
		return receive_on(skb, at + sizeof(*outer));
	if (own->flags & SOURCE_CHECK) {
		struct prefix4 source = { 32, ip->from };
		struct endpoint4 *peer = map_lookup(&endpoints4, &source);
		__u32 mapped[4] = { 0, 0, BE32(0x0000ffff), from };
		if (!peer || peer->address != from)
			return stranger(skb, mapped, at + sizeof(*outer));
	}
	__u8 protocol = ip->protocol;
	decrement_ttl4(ip);
	return received(skb, own, at, sizeof(*outer), skb->len - at - sizeof(*outer), protocol);
}

INLINE int receive6(struct __sk_buff *skb, const struct config *own, const __u32 at)
{
	struct {
		struct ipv6 ip;
		struct udp udp;
	} *outer;
	if (!has(skb, at + sizeof(*outer)))
		return TC_ACT_UNSPEC;
	outer = (void *)(long)skb->data + at;
	if ((void *)(outer + 1) > (void *)(long)skb->data_end)
		return TC_ACT_UNSPEC;
	if (!same6(outer->ip.to, own->local6))
		return TC_ACT_UNSPEC;
	if (outer->ip.protocol == ICMP6 && (outer->udp.from & BE16(0xff00)) == TOO_BIG6)
		return path_told(skb);
	if (outer->ip.protocol != UDP || outer->udp.to != own->port)
		return TC_ACT_UNSPEC;
	__u32 from[4];
	copy6(from, outer->ip.from);
	__u16 len = outer->ip.len, udp_len = outer->udp.len;
	if (!has(skb, at + sizeof(*outer) + sizeof(struct ipv6)))
		return receive_on(skb, at + sizeof(*outer));
	struct ipv6 *ip = (void *)(long)skb->data + at + sizeof(*outer);
	if ((void *)(ip + 1) > (void *)(long)skb->data_end || ip->version >> 4 != IPV6_VERSION || ip->ttl <= 1 ||
	    !is_cuttable(skb, ip->protocol))
		return receive_on(skb, at + sizeof(*outer));
	if (!lengths_agree(skb, at, BE16(len) + sizeof(struct ipv6), BE16(udp_len), BE16(ip->len) + sizeof(struct ipv6),
			   sizeof(*outer)))
		return receive_on(skb, at + sizeof(*outer));
	if (own->flags & SOURCE_CHECK) {
		struct prefix6 source = { .len = 128 };
		copy6(source.address, ip->from);
		struct endpoint6 *peer = map_lookup(&endpoints6, &source);
		if (!peer || !same6(peer->address, from))
			return stranger(skb, from, at + sizeof(*outer));
	}
	__u8 protocol = ip->protocol, ttl = ip->ttl - 1;
	// A network card may have summed up the packet, and nothing else in it changes along.
	if (skb_store_bytes(skb, at + sizeof(*outer) + __builtin_offsetof(struct ipv6, ttl), &ttl, 1, BPF_F_RECOMPUTE_CSUM))
		return TC_ACT_SHOT;
	return received(skb, own, at, sizeof(*outer), skb->len - at - sizeof(*outer), protocol);
}

INLINE int receive(struct __sk_buff *skb, const struct config *own, const __u32 at)
{
	if (skb->protocol == ETH_IPV4)
		return receive4(skb, own, at);
	if (skb->protocol == ETH_IPV6)
		return receive6(skb, own, at);
	return TC_ACT_UNSPEC;
}

SEC("tc") int flannel_receive(struct __sk_buff *skb)
{
	struct config *own = settings();
	if (!own)
		return TC_ACT_UNSPEC;
	// Each with a constant: nobody but CAP_PERFMON may add a variable to the address of a packet.
	if (own->flags & NO_LINK_HEADER)
		return receive(skb, own, 0);
	return receive(skb, own, ETHERNET);
}

SEC("tc_return") int flannel_return(struct __sk_buff *skb)
{
	struct config *own = settings();
	struct ethernet *link = (void *)(long)skb->data;
	if (!own || (void *)(link + 1) > (void *)(long)skb->data_end)
		return TC_ACT_SHOT;
	// Whoever does not know the address is not flannel_receive.
	for (int i = 0; i < 6; i++)
		if (link->to[i] != own->detour_mac[i])
			return TC_ACT_SHOT;
	// From the loader, to see that the way is open.
	if (link->kind == ETH_PROBE) {
		count(skb, DETOUR_PROBED, skb->len);
		return TC_ACT_SHOT;
	}
	return redirect(own->tunnel, BPF_F_INGRESS);
}

// The kernel asks for a licence. No helper used here is for GPL programs only.
SEC("license") char terms[] = "Apache-2.0";
