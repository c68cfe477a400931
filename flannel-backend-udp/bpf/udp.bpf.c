// SPDX-License-Identifier: MIT OR GPL-2.0-only
//
// The data path of the eBPF engine: two tc programs and their maps.
//
//   flannel_encap  egress of the tunnel device, after routing and NAT: puts outer IP and UDP headers in front of a packet to a
//                  peer that decapsulates in its kernel, and sends it to the next hop of the kernel's own route to the peer.
//   flannel_decap  ingress of the uplink: removes the outer headers of a datagram from a peer and has the tunnel device receive
//                  the packet, so that conntrack and the firewall see it there. Lets the kernel learn path MTUs of routers.
//
// Whatever they do not handle continues unchanged: to the tunnel device or to the socket, where the userspace engine takes it.
// Only packets that break a rule of the source check end here.
//
// Compiled by bpf/build.sh into udp.bpf.o. The layouts of maps are repeated in src/bpf/layout.rs.
//
// Nodes have CAP_BPF and CAP_NET_ADMIN. To who has no CAP_PERFMON, verifiers of older kernels refuse more:
//
// - That of 5.15, to compare a pointer with the end of a packet: helpers read and write packets.
// - That of 6.1, to write a part of a word of the stack, if its first bytes were written with a value of known bounds: words of 64 bits
//   are written whole (write_whole, copy6).
// - That of 6.12, what would be wrong behind a condition that never holds, because processors speculate: what may be null is tested
//   once.

#include <linux/bpf.h>

#define SEC(name) __attribute__((section(name), used))
#define OFFSET(type, field) __builtin_offsetof(type, field)
#define ALIGNED __attribute__((aligned(8)))
#define INLINE static inline __attribute__((always_inline))

#if __BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__
#define BE16(x) __builtin_bswap16(x)
#define BE32(x) __builtin_bswap32(x)
#define WORD(first, second) ((first) | (__u64)(second) << 32) // as in memory
#define SECOND(word) ((__u32)((word) >> 32))
#else
#define BE16(x) (x)
#define BE32(x) (x)
#define WORD(first, second) ((__u64)(first) << 32 | (second))
#define SECOND(word) ((__u32)(word))
#endif

static void *(*map_lookup)(const void *map, const void *key) = (void *)BPF_FUNC_map_lookup_elem;
static long (*skb_adjust_room)(struct __sk_buff *skb, __s32 diff, __u32 mode, __u64 flags) = (void *)BPF_FUNC_skb_adjust_room;
static long (*skb_change_head)(struct __sk_buff *skb, __u32 len, __u64 flags) = (void *)BPF_FUNC_skb_change_head;
static long (*skb_store_bytes)(struct __sk_buff *skb, __u32 at, const void *from, __u32 len, __u64 flags) =
	(void *)BPF_FUNC_skb_store_bytes;
static long (*skb_load_bytes)(const struct __sk_buff *skb, __u32 at, void *to, __u32 len) = (void *)BPF_FUNC_skb_load_bytes;
static long (*redirect)(__u32 device, __u64 flags) = (void *)BPF_FUNC_redirect;
static long (*redirect_neigh)(__u32 device, struct bpf_redir_neigh *next, int len, __u64 flags) = (void *)BPF_FUNC_redirect_neigh;
static long (*fib_lookup)(struct __sk_buff *skb, struct bpf_fib_lookup *params, int len, __u32 flags) =
	(void *)BPF_FUNC_fib_lookup;
static __u32 (*hash_recalc)(struct __sk_buff *skb) = (void *)BPF_FUNC_get_hash_recalc;
static __u32 (*random)(void) = (void *)BPF_FUNC_get_prandom_u32;

struct map {
	__u32 type, key_size, value_size, max_entries, flags;
};

// Addresses are in network byte order, IPv4 ones as ::ffff:a.b.c.d. The key of a map begins at the length.
struct prefix {
	__u32 padding, len;
	__u64 address[2];
};
#define KEY_SIZE (sizeof(struct prefix) - 4)
// A peer's block, by longest prefix.
struct endpoint {
	__u64 address[2];
	__u16 port;	   // in network byte order
	__u16 is_kernel; // the peer decapsulates in its kernel; others read a socket, and need finished checksums and small packets
	__u32 zero;
};
// Packets on the wire, and their bytes without outer headers.
struct traffic {
	__u64 packets, bytes;
};
// A peer, by its address.
struct peer {
	struct traffic sent, received, spoofed, failed;
};
// The only entry of `config`.
struct config {
	__u32 tunnel; // the tunnel device
	__u32 flags;
	__u64 local6[2];
	__u32 local4;
	__u16 port; // in network byte order, as all of these
	__u16 zero;
};
#define CHECK_PEER 1u	       // only what a known peer sends
#define CHECK_SUBNET 2u	       // only sources inside of the peer's subnet
#define NO_LINK_HEADER 4u      // the uplink has no Ethernet header
#define PATH_MTU_DISCOVERY 8u // what nobody may fragment inside nobody may fragment outside

SEC("maps") struct map endpoints = {
	BPF_MAP_TYPE_LPM_TRIE, KEY_SIZE, sizeof(struct endpoint), 1 << 20, BPF_F_NO_PREALLOC,
};
SEC("maps") struct map peers = {
	BPF_MAP_TYPE_LPM_TRIE, KEY_SIZE, sizeof(struct peer), 1 << 20, BPF_F_NO_PREALLOC,
};
SEC("maps") struct map config = { BPF_MAP_TYPE_ARRAY, 4, sizeof(struct config), 1, 0 };
// What unknown sources sent, dropped and received, for each processor.
SEC("maps") struct map unknown = { BPF_MAP_TYPE_PERCPU_ARRAY, 4, sizeof(struct traffic), 2, 0 };

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
	__u64 from[2], to[2];
};
struct udp {
	__u16 from, to, len, check;
};
struct outer4 {
	struct ipv4 ip;
	struct udp udp;
};
struct outer6 {
	struct ipv6 ip;
	struct udp udp;
};
struct icmp {
	__u8 type, code;
	__u16 check;
	__u32 mtu;
};

#define ETHERNET 14
#define PLAIN_IPV4 0x45 // version 4, five words: no options
#define ICMP 1
#define TCP 6
#define UDP 17
#define ICMPV6 58
#define UNREACHABLE 3 // RFC 792
#define FRAGMENTATION_NEEDED 4
#define PACKET_TOO_BIG 2 // RFC 4443
#define DONT_FRAGMENT BE16(0x4000)
#define FRAGMENT_BITS BE16(0x3fff) // more fragments, and the offset
#define TTL 64
#define ETH_IPV4 BE16(0x0800)
#define ETH_IPV6 BE16(0x86dd)
#define MAX_LEN 0xffff
#define DYNAMIC_PORTS 0xc000
#define MAPPED BE32(0xffff)
#define AF_INET 2
#define AF_INET6 10
#define LOOPBACK 1 // in every namespace: routes as for packets of the host itself
#define TC_ACT_UNSPEC -1 // linux/pkt_cls.h: on to the next filter
#define TC_ACT_SHOT 2
#define TC_ACT_REDIRECT 7

// Writes 28, 48 or 64 bytes of fields, which the compiler has in registers until then.
INLINE void write_whole(volatile __u64 *to, const void *fields, int size)
{
	const __u64 *from = fields;
	to[0] = from[0];
	to[1] = from[1];
	to[2] = from[2];
	if (size == 28)
		*(volatile __u32 *)(to + 3) = *(const __u32 *)(from + 3);
	if (size < 48)
		return;
	to[3] = from[3];
	to[4] = from[4];
	to[5] = from[5];
	if (size < 64)
		return;
	to[6] = from[6];
	to[7] = from[7];
}

INLINE void copy6(__u64 *to, const __u64 *from)
{
	to[0] = from[0];
	to[1] = from[1];
}

INLINE int same6(const __u64 *a, const __u64 *b)
{
	return ((a[0] ^ b[0]) | (a[1] ^ b[1])) == 0;
}

INLINE void map4(__u64 *to, __u32 address)
{
	to[0] = 0;
	to[1] = WORD(MAPPED, address);
}

INLINE struct config *settings(void)
{
	__u32 zero = 0;
	return map_lookup(&config, &zero);
}

INLINE void *find(void *map, const __u64 *address)
{
	struct prefix whole;
	whole.len = 128;
	copy6(whole.address, address);
	return map_lookup(map, &whole.len);
}

// A packet that is still to be segmented counts as its segments, each of which gets these bytes of headers.
INLINE void add(struct traffic *traffic, __u32 bytes, __u32 gso_size, __u32 headers)
{
	__u32 more = gso_size && bytes > headers ? (bytes - headers - 1) / gso_size : 0;
	__sync_fetch_and_add(&traffic->packets, 1 + more);
	__sync_fetch_and_add(&traffic->bytes, bytes + more * headers);
}

// The word of a header from the TTL to the checksum, for one hop less, with the checksum updated by RFC 1624.
INLINE __u32 decrement_ttl4(const struct ipv4 *ip)
{
	struct ipv4 after = *ip;
	__u32 check = after.check;
	check += BE16(0x0100);
	after.check = check + (check >= 0xffff);
	after.ttl -= 1;
	return *(const __u32 *)&after.ttl;
}

INLINE __u16 checksum4(const struct ipv4 *ip)
{
	const __u16 *words = (const void *)ip;
	__u32 sum = 0;
#pragma unroll
	for (int i = 0; i < 10; i++)
		sum += words[i];
	sum = (sum & 0xffff) + (sum >> 16);
	sum = (sum & 0xffff) + (sum >> 16);
	return ~sum;
}

// The length of a TCP header, options included, which ends that of a packet that is still to be segmented. 0 if it is not all there.
INLINE __u32 tcp_header(struct __sk_buff *skb, __u32 at)
{
	__u8 data_offset;
	return skb_load_bytes(skb, at + 12, &data_offset, 1) ? 0 : (data_offset >> 4) * 4;
}

// The largest datagram that is to be sent, without the outer headers: that of a segment, or of the packet. 0 if it cannot be told, or
// if it is not TCP that is still to be segmented: when it is decapsulated it remains a tunnel's packet for the kernel, which then takes
// an inner UDP header for the tunnel's.
INLINE __u32 largest(struct __sk_buff *skb, __u8 protocol, __u32 header)
{
	if (!skb->gso_size)
		return skb->len;
	__u32 tcp = protocol == TCP ? tcp_header(skb, header) : 0;
	return tcp ? header + tcp + skb->gso_size : 0;
}

INLINE int from_own_socket(struct __sk_buff *skb, __u8 protocol, __u32 at, const struct config *own)
{
	struct udp udp;
	return protocol == UDP && (skb_load_bytes(skb, at, &udp, sizeof(udp)) || udp.from == own->port);
}

// Asks for the next hop. Negative unless the kernel sends packets of that size there, and not back into the tunnel; else whether it
// knows the next hop's link address.
INLINE long lookup(struct __sk_buff *skb, struct bpf_fib_lookup *to, struct bpf_fib_lookup *asked, __u32 size)
{
	if (size > MAX_LEN)
		return -1;
	asked->l4_protocol = UDP;
	asked->tot_len = size;
	asked->ifindex = LOOPBACK;
	write_whole((__u64 *)to, asked, sizeof(*to));
	long answer = fib_lookup(skb, to, sizeof(*to), 0);
	if ((answer != BPF_FIB_LKUP_RET_SUCCESS && answer != BPF_FIB_LKUP_RET_NO_NEIGH) || to->ifindex == skb->ifindex)
		return -1;
	return answer == BPF_FIB_LKUP_RET_SUCCESS;
}

// Fails where the packet is one of a tunnel already, or one that is still to be segmented in a way that no tunnel allows. The link
// header that comes in front is needed by bpf_redirect_neigh.
INLINE long make_room(struct __sk_buff *skb, __u32 len, __u64 family)
{
	return skb_adjust_room(skb, len, BPF_ADJ_ROOM_MAC, BPF_F_ADJ_ROOM_FIXED_GSO | BPF_F_ADJ_ROOM_ENCAP_L4_UDP | family);
}

INLINE int send(const struct bpf_fib_lookup *route, __u32 family, long is_resolved, struct peer *peer, __u32 bytes, __u32 gso_size,
		__u32 headers)
{
	struct {
		__u32 padding, family;
		__u64 address[2];
	} next;
	next.family = family;
	copy6(next.address, (const __u64 *)route->ipv6_dst);
	// While the link address is being resolved the packet waits with its route, which still is that into the tunnel: without a next hop
	// it gets a new one.
	long verdict = is_resolved ? redirect_neigh(route->ifindex, (void *)&next.family, sizeof(struct bpf_redir_neigh), 0) :
				     redirect_neigh(route->ifindex, 0, 0, 0);
	if (verdict == TC_ACT_REDIRECT)
		add(&peer->sent, bytes, gso_size, headers);
	return verdict;
}

INLINE int encap4(struct __sk_buff *skb)
{
	struct ipv4 ip;
	struct config *own = settings();
	if (!own || skb_load_bytes(skb, 0, &ip, sizeof(ip)) || ip.version_len != PLAIN_IPV4 || ip.ttl <= 1)
		return TC_ACT_UNSPEC;
	if (skb->len + sizeof(struct outer4) > MAX_LEN || BE16(ip.len) != skb->len)
		return TC_ACT_UNSPEC;
	__u64 address[2];
	map4(address, ip.to);
	struct endpoint *to = find(&endpoints, address);
	if (!to || !to->is_kernel || (ip.from == own->local4 && from_own_socket(skb, ip.protocol, sizeof(ip), own)))
		return TC_ACT_UNSPEC;
	struct peer *peer = find(&peers, to->address);
	__u32 size = largest(skb, ip.protocol, sizeof(ip));
	__u32 peer4 = SECOND(to->address[1]);
	struct bpf_fib_lookup route ALIGNED, asked = { .family = AF_INET, .ipv4_src = own->local4, .ipv4_dst = peer4 };
	if (!peer || !size)
		return TC_ACT_UNSPEC;
	long is_resolved = lookup(skb, &route, &asked, size + sizeof(struct outer4));
	if (is_resolved < 0)
		return TC_ACT_UNSPEC;
	__u32 bytes = skb->len, gso_size = skb->gso_size;
	__u16 len = bytes + sizeof(struct outer4), from = DYNAMIC_PORTS | (hash_recalc(skb) & ~DYNAMIC_PORTS);
	struct outer4 headers = {
		// Routers may fragment it, so each has an identification.
		.ip = { PLAIN_IPV4, 0, BE16(len), (__u16)random(), 0, TTL, UDP, 0, own->local4, peer4 },
		.udp = { BE16(from), to->port, BE16((__u16)(len - sizeof(struct ipv4))), 0 },
	};
	if (own->flags & PATH_MTU_DISCOVERY)
		headers.ip.fragment = ip.fragment & DONT_FRAGMENT;
	headers.ip.check = checksum4(&headers.ip);
	__u64 outer[4];
	write_whole(outer, &headers, sizeof(headers));
	__u32 hop = decrement_ttl4(&ip);
	if (make_room(skb, sizeof(headers), BPF_F_ADJ_ROOM_ENCAP_L3_IPV4))
		return TC_ACT_UNSPEC;
	if (skb_change_head(skb, ETHERNET, 0) || skb_store_bytes(skb, ETHERNET, outer, sizeof(headers), 0) ||
	    skb_store_bytes(skb, ETHERNET + sizeof(headers) + OFFSET(struct ipv4, ttl), &hop, sizeof(hop), 0)) {
		add(&peer->failed, bytes, gso_size, size - gso_size);
		return TC_ACT_SHOT;
	}
	return send(&route, route.family, is_resolved, peer, bytes, gso_size, size - gso_size);
}

INLINE int encap6(struct __sk_buff *skb)
{
	struct ipv6 ip;
	struct config *own = settings();
	if (!own || skb_load_bytes(skb, 0, &ip, sizeof(ip)) || ip.version >> 4 != 6 || ip.ttl <= 1)
		return TC_ACT_UNSPEC;
	if (skb->len + sizeof(struct outer6) > MAX_LEN || BE16(ip.len) + sizeof(ip) != skb->len)
		return TC_ACT_UNSPEC;
	struct endpoint *to = find(&endpoints, ip.to);
	if (!to || !to->is_kernel || (same6(ip.from, own->local6) && from_own_socket(skb, ip.protocol, sizeof(ip), own)))
		return TC_ACT_UNSPEC;
	struct peer *peer = find(&peers, to->address);
	__u32 size = largest(skb, ip.protocol, sizeof(ip));
	struct bpf_fib_lookup route ALIGNED, asked = { .family = AF_INET6 };
	__builtin_memcpy(asked.ipv6_src, own->local6, sizeof(asked.ipv6_src));
	__builtin_memcpy(asked.ipv6_dst, to->address, sizeof(asked.ipv6_dst));
	if (!peer || !size)
		return TC_ACT_UNSPEC;
	long is_resolved = lookup(skb, &route, &asked, size + sizeof(struct outer6));
	if (is_resolved < 0)
		return TC_ACT_UNSPEC;
	__u32 bytes = skb->len, gso_size = skb->gso_size;
	__u16 len = bytes + sizeof(struct udp), from = DYNAMIC_PORTS | (hash_recalc(skb) & ~DYNAMIC_PORTS);
	struct outer6 headers = {
		.ip = { .version = 6 << 4, .len = BE16(len), .protocol = UDP, .ttl = TTL },
		// Without a checksum, as RFC 6935 allows tunnels: the inner packet has its own.
		.udp = { BE16(from), to->port, BE16(len), 0 },
	};
	copy6(headers.ip.from, own->local6);
	copy6(headers.ip.to, to->address);
	__u64 outer[6];
	write_whole(outer, &headers, sizeof(headers));
	__u8 ttl = ip.ttl - 1;
	if (make_room(skb, sizeof(outer), BPF_F_ADJ_ROOM_ENCAP_L3_IPV6))
		return TC_ACT_UNSPEC;
	if (skb_change_head(skb, ETHERNET, 0) || skb_store_bytes(skb, ETHERNET, &outer, sizeof(outer), 0) ||
	    skb_store_bytes(skb, ETHERNET + sizeof(outer) + OFFSET(struct ipv6, ttl), &ttl, 1, 0)) {
		add(&peer->failed, bytes, gso_size, size - gso_size);
		return TC_ACT_SHOT;
	}
	return send(&route, route.family, is_resolved, peer, bytes, gso_size, size - gso_size);
}

SEC("classifier") int flannel_encap(struct __sk_buff *skb)
{
	if (skb->protocol == ETH_IPV4)
		return encap4(skb);
	return skb->protocol == ETH_IPV6 ? encap6(skb) : TC_ACT_UNSPEC;
}

// The tunnel device receives the packet without its `outer` bytes of headers.
INLINE int receive(struct __sk_buff *skb, const struct config *own, __u32 outer, struct traffic *traffic, __u32 size, __u32 gso_size,
		   __u32 header)
{
	if (skb_adjust_room(skb, -(__s32)outer, BPF_ADJ_ROOM_MAC, BPF_F_ADJ_ROOM_FIXED_GSO))
		return TC_ACT_UNSPEC;
	add(traffic, size, gso_size, header);
	return redirect(own->tunnel, BPF_F_INGRESS);
}

// Receives the packet if the source check lets it pass. `source` is the inner one, `size` that of the packet, and `payload` where that
// of its IP header of `header` bytes begins.
INLINE int deliver(struct __sk_buff *skb, const struct config *own, const __u64 *outer_source, const __u64 *source, __u32 outer,
		   __u32 size, __u32 header, __u32 payload)
{
	struct peer *peer = find(&peers, outer_source);
	__u32 gso_size = skb->gso_size, accepts = !(own->flags & CHECK_PEER);
	// Nothing but TCP is still to be segmented in here.
	if (gso_size)
		header += tcp_header(skb, payload);
	if (!peer) {
		struct traffic *traffic = map_lookup(&unknown, &accepts);
		if (!traffic)
			return TC_ACT_UNSPEC;
		if (accepts)
			return receive(skb, own, outer, traffic, size, gso_size, header);
		add(traffic, size, gso_size, header);
		return TC_ACT_SHOT;
	}
	// Who checks this checks that peers are known.
	if (own->flags & CHECK_SUBNET) {
		struct endpoint *sender = find(&endpoints, source);
		if (!sender || !same6(sender->address, outer_source)) {
			add(&peer->spoofed, size, gso_size, header);
			return TC_ACT_SHOT;
		}
	}
	return receive(skb, own, outer, &peer->received, size, gso_size, header);
}

// A datagram with a checksum comes from a socket. Over veth and virtio it may be unfinished, and the kernel would take what is left to
// do for a matter of the inner packet: it is for our socket.
//
// Whether the datagram carries one whole packet: several that the kernel has joined are the socket's.
INLINE int is_whole(const struct __sk_buff *skb, __u32 at, __u32 all, __u32 datagram, __u32 inside, __u32 outer)
{
	return all == inside + outer && datagram == inside + sizeof(struct udp) && all + at <= skb->len;
}

// A router that finds a datagram too big quotes it, with a source port that no socket has. With that of our socket the kernel learns the
// path MTU from it. `at` is where the ICMP header is, and `quoted_at` where the quoted UDP header.
INLINE void name_socket(struct __sk_buff *skb, const struct config *own, __u32 at, const struct icmp *icmp, __u32 quoted_at,
			const struct udp *quoted)
{
	__u16 port = own->port;
	if (quoted->to != port || BE16(quoted->from) < DYNAMIC_PORTS)
		return;
	// RFC 1624.
	__u32 sum = (__u16)~icmp->check + (__u16)~quoted->from + port;
	sum = (sum & 0xffff) + (sum >> 16);
	__u16 check = ~((sum & 0xffff) + (sum >> 16));
	skb_store_bytes(skb, at + OFFSET(struct icmp, check), &check, sizeof(check), 0);
	skb_store_bytes(skb, quoted_at, &port, sizeof(port), 0);
}

INLINE int error4(struct __sk_buff *skb, const struct config *own, __u32 at)
{
	struct {
		struct ipv4 ip;
		struct icmp icmp;
		struct outer4 quoted;
	} packet;
	if (skb_load_bytes(skb, at, &packet, sizeof(packet)))
		return TC_ACT_UNSPEC;
	struct ipv4 *ip = &packet.ip, *quoted = &packet.quoted.ip;
	if (ip->version_len == PLAIN_IPV4 && !(ip->fragment & FRAGMENT_BITS) && packet.icmp.type == UNREACHABLE &&
	    packet.icmp.code == FRAGMENTATION_NEEDED && quoted->version_len == PLAIN_IPV4 && quoted->from == own->local4 &&
	    quoted->protocol == UDP)
		name_socket(skb, own, at + sizeof(*ip), &packet.icmp, at + sizeof(packet) - sizeof(struct udp), &packet.quoted.udp);
	return TC_ACT_UNSPEC;
}

INLINE int error6(struct __sk_buff *skb, const struct config *own, __u32 at)
{
	struct {
		struct ipv6 ip;
		struct icmp icmp;
		struct outer6 quoted;
	} packet;
	if (skb_load_bytes(skb, at, &packet, sizeof(packet)))
		return TC_ACT_UNSPEC;
	struct ipv6 *quoted = &packet.quoted.ip;
	if (packet.icmp.type == PACKET_TOO_BIG && same6(quoted->from, own->local6) && quoted->protocol == UDP)
		name_socket(skb, own, at + sizeof(packet.ip), &packet.icmp, at + sizeof(packet) - sizeof(struct udp), &packet.quoted.udp);
	return TC_ACT_UNSPEC;
}

INLINE int decap4(struct __sk_buff *skb, const struct config *own, __u32 at)
{
	struct {
		struct outer4 outer;
		struct ipv4 ip;
	} packet;
	if (skb_load_bytes(skb, at, &packet, sizeof(packet)))
		return TC_ACT_UNSPEC;
	struct ipv4 *outer = &packet.outer.ip, *ip = &packet.ip;
	if (outer->protocol == ICMP)
		return error4(skb, own, at);
	if (outer->version_len != PLAIN_IPV4 || outer->to != own->local4 || outer->protocol != UDP ||
	    packet.outer.udp.to != own->port || packet.outer.udp.check || outer->fragment & FRAGMENT_BITS)
		return TC_ACT_UNSPEC;
	if (ip->version_len != PLAIN_IPV4 || ip->ttl <= 1 ||
	    !is_whole(skb, at, BE16(outer->len), BE16(packet.outer.udp.len), BE16(ip->len), sizeof(struct outer4)))
		return TC_ACT_UNSPEC;
	__u64 outer_source[2], source[2];
	map4(outer_source, outer->from);
	map4(source, ip->from);
	__u32 hop = decrement_ttl4(ip);
	if (skb_store_bytes(skb, at + sizeof(struct outer4) + OFFSET(struct ipv4, ttl), &hop, sizeof(hop), 0))
		return TC_ACT_UNSPEC;
	return deliver(skb, own, outer_source, source, sizeof(struct outer4), BE16(ip->len), sizeof(*ip), at + sizeof(packet));
}

INLINE int decap6(struct __sk_buff *skb, const struct config *own, __u32 at)
{
	struct {
		struct outer6 outer;
		struct ipv6 ip;
	} packet;
	if (skb_load_bytes(skb, at, &packet, sizeof(packet)))
		return TC_ACT_UNSPEC;
	struct ipv6 *outer = &packet.outer.ip, *ip = &packet.ip;
	if (outer->protocol == ICMPV6)
		return error6(skb, own, at);
	if (!same6(outer->to, own->local6) || outer->protocol != UDP || packet.outer.udp.to != own->port || packet.outer.udp.check)
		return TC_ACT_UNSPEC;
	__u32 size = BE16(ip->len) + sizeof(*ip);
	if (ip->version >> 4 != 6 || ip->ttl <= 1 ||
	    !is_whole(skb, at, BE16(outer->len) + sizeof(*outer), BE16(packet.outer.udp.len), size, sizeof(struct outer6)))
		return TC_ACT_UNSPEC;
	__u8 ttl = ip->ttl - 1;
	if (skb_store_bytes(skb, at + sizeof(struct outer6) + OFFSET(struct ipv6, ttl), &ttl, 1, BPF_F_RECOMPUTE_CSUM))
		return TC_ACT_UNSPEC;
	return deliver(skb, own, outer->from, ip->from, sizeof(struct outer6), size, sizeof(*ip), at + sizeof(packet));
}

SEC("classifier") int flannel_decap(struct __sk_buff *skb)
{
	struct config *own = settings();
	if (!own || !own->port)
		return TC_ACT_UNSPEC;
	__u32 at = own->flags & NO_LINK_HEADER ? 0 : ETHERNET;
	if (skb->protocol == ETH_IPV4)
		return decap4(skb, own, at);
	return skb->protocol == ETH_IPV6 ? decap6(skb, own, at) : TC_ACT_UNSPEC;
}

SEC("license") char terms[] = "Dual MIT/GPL";
