//! Keys and objects in a third of their memory or less, for pictures of ten thousands.

use std::{
    cmp::Ordering,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
};

use ipnetwork::IpNetwork;

use crate::state::{
    Address, ForwardingEntry, Key, Kind, MacAddress, Neighbour, Nexthop, Object, Route, RouteKind,
    Via,
};

/// A [`Key`]. Ordered by kind, then by family, then by the rest.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) struct PackedKey<const N: usize = KEY_BYTES>([u8; N]);

/// What an object has beyond its key.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) struct PackedRest<const N: usize = REST_BYTES>([u8; N]);

impl<const N: usize> Ord for PackedKey<N> {
    // Also where code is to be small: nothing else is done as often.
    #[inline(always)]
    fn cmp(&self, other: &Self) -> Ordering {
        // As the bytes are ordered. Numbers are compared several times faster than bytes; the last may repeat some of what
        // was equal.
        let mut at = 0;
        loop {
            let order = number(&self.0, at).cmp(&number(&other.0, at));
            if order.is_ne() || at == N - NUMBER {
                return order;
            }
            at = (at + NUMBER).min(N - NUMBER);
        }
    }
}

impl<const N: usize> PartialOrd for PackedKey<N> {
    #[inline(always)]
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl<const N: usize> PackedKey<N> {
    /// The same in another size; `None` if that has no room for it.
    #[inline]
    pub(crate) fn resized<const M: usize>(&self) -> Option<PackedKey<M>> {
        resized(&self.0).map(PackedKey)
    }

    /// As much of it as another size has room for.
    pub(crate) fn cut<const M: usize>(&self) -> PackedKey<M> {
        PackedKey(cut_or_filled(&self.0))
    }
}

impl<const N: usize> PackedRest<N> {
    /// The same in another size; `None` if that has no room for it.
    pub(crate) fn resized<const M: usize>(&self) -> Option<PackedRest<M>> {
        resized(&self.0).map(PackedRest)
    }
}

impl PackedKey {
    pub(crate) fn of(key: &Key) -> Self {
        let mut out = Writer::new();
        match key {
            Key::Address(link, address) => {
                out.put([tag(ADDRESS, address.ip())]);
                out.put(link.to_be_bytes());
                out.ip(address.ip());
                out.put([address.prefix()]);
            }
            Key::Nexthop(id) => {
                out.put([NEXTHOP]);
                out.put(id.to_be_bytes());
            }
            Key::ForwardingEntry(link, mac) => {
                out.put([FORWARDING_ENTRY]);
                out.put(link.to_be_bytes());
                out.put(mac.octets());
            }
            Key::Neighbour(link, address) => {
                out.put([tag(NEIGHBOUR, *address)]);
                out.put(link.to_be_bytes());
                out.ip(*address);
            }
            Key::Route(destination, table, metric) => {
                out.put([tag(ROUTE, destination.ip())]);
                out.ip(destination.ip());
                out.put([destination.prefix()]);
                out.put(table.to_be_bytes());
                out.put(metric.to_be_bytes());
            }
        }
        Self(out.bytes)
    }

    /// The bytes that tell it from others of its kind; [`read`](Self::read) finds their end.
    pub(crate) fn bytes(&self) -> &[u8] {
        &self.0[..len_of(self.0[0])]
    }

    /// The first of several keys whose [`bytes`](Self::bytes) follow each other, and those behind it.
    pub(crate) fn read(bytes: &[u8]) -> Option<(Self, &[u8])> {
        let (own, behind) = bytes.split_at_checked(len_of(*bytes.first()?))?;
        let mut key = [0; KEY_BYTES];
        key[..own.len()].copy_from_slice(own);
        Some((Self(key), behind))
    }

    /// What comes before all keys of this kind, and behind all of those before.
    pub(crate) fn before_all(kind: Kind) -> Self {
        let mut out = Writer::new();
        out.put([2 * kind as u8]);
        Self(out.bytes)
    }

    pub(crate) fn is_of(&self, kind: Kind) -> bool {
        self.0[0] & !IPV6 == 2 * kind as u8
    }

    pub(crate) fn key(&self) -> Key {
        let mut bytes = Reader(&self.0);
        let [tag] = bytes.take();
        let is_ipv6 = tag & IPV6 != 0;
        match tag & !IPV6 {
            ADDRESS => Key::Address(bytes.u32(), bytes.network(is_ipv6)),
            NEXTHOP => Key::Nexthop(bytes.u32()),
            FORWARDING_ENTRY => Key::ForwardingEntry(bytes.u32(), MacAddress::new(bytes.take())),
            NEIGHBOUR => Key::Neighbour(bytes.u32(), bytes.ip(is_ipv6)),
            _ => Key::Route(bytes.network(is_ipv6), bytes.u32(), bytes.u32()),
        }
    }
}

impl PackedRest {
    /// `None` for an object with parts that hardly any has: there is no room for them.
    pub(crate) fn of(object: &Object) -> Option<Self> {
        let mut out = Writer::new();
        match object {
            Object::Address(it) => {
                let flags = [
                    it.no_prefix_route,
                    it.no_duplicate_detection,
                    it.deprecated,
                    it.permanent,
                    it.temporary,
                    it.tentative,
                ];
                out.put([it.scope]);
                out.put(flags.map(u8::from));
            }
            Object::ForwardingEntry(it) => {
                out.put([it.permanent.into(), it.port.is_some().into()]);
                out.put(it.port.unwrap_or(0).to_be_bytes());
                out.maybe_ip(it.remote);
            }
            Object::Neighbour(it) => {
                out.put([it.permanent.into(), it.mac.is_some().into()]);
                out.put(it.mac.map_or([0; 6], MacAddress::octets));
            }
            Object::Nexthop(it) => {
                out.put([it.protocol, it.onlink.into()]);
                out.put(it.link.to_be_bytes());
                out.maybe_ip(Some(it.gateway));
            }
            Object::Route(it) => {
                if it.source.is_some() || it.mtu.is_some() {
                    return None;
                }
                let flags = [it.kind == RouteKind::Blackhole, it.onlink, it.has_metrics];
                let flags = flags.into_iter().chain([it.link.is_some()]).enumerate();
                let flags = flags.map(|(bit, flag)| u8::from(flag) << bit).sum();
                out.put([it.protocol, it.scope, flags]);
                out.put(it.link.unwrap_or(0).to_be_bytes());
                match (it.kind, it.via) {
                    (RouteKind::Other(_), _) | (_, Via::Other | Via::Program(_)) => return None,
                    (_, Via::Direct) => out.maybe_ip(None),
                    (_, Via::Gateway(gateway)) => out.maybe_ip(Some(gateway)),
                    (_, Via::Nexthop(id)) => {
                        out.put([VIA_NEXTHOP]);
                        out.put(id.to_be_bytes());
                    }
                }
            }
        }
        Some(Self(out.bytes))
    }

    /// The object with this key.
    pub(crate) fn object(&self, key: &PackedKey) -> Object {
        let mut bytes = Reader(&self.0);
        match key.key() {
            Key::Address(link, address) => {
                let [scope] = bytes.take();
                let [a, b, c, d, e, f] = bytes.take().map(|flag: u8| flag != 0);
                let mut it = Address::new(link, address);
                it.scope = scope;
                (it.no_prefix_route, it.no_duplicate_detection) = (a, b);
                (it.deprecated, it.permanent, it.temporary, it.tentative) = (c, d, e, f);
                it.into()
            }
            Key::ForwardingEntry(link, mac) => {
                let [permanent, has_port] = bytes.take().map(|flag: u8| flag != 0);
                let port = u16::from_be_bytes(bytes.take());
                let remote = bytes.maybe_ip();
                ForwardingEntry { link, mac, remote, port: has_port.then_some(port), permanent }
                    .into()
            }
            Key::Neighbour(link, address) => {
                let [permanent, has_mac] = bytes.take().map(|flag: u8| flag != 0);
                let mac = has_mac.then(|| MacAddress::new(bytes.take()));
                Neighbour { link, address, mac, permanent }.into()
            }
            Key::Nexthop(id) => {
                let [protocol, onlink] = bytes.take();
                let link = bytes.u32();
                let gateway = bytes.maybe_ip().expect("a nexthop was packed with its gateway");
                Nexthop { id, link, gateway, onlink: onlink != 0, protocol }.into()
            }
            Key::Route(destination, table, metric) => {
                let [protocol, scope, flags] = bytes.take();
                let [blackhole, onlink, has_metrics, has_link] =
                    [1, 2, 4, 8].map(|bit| flags & bit != 0);
                let link = bytes.u32();
                let via = if bytes.0[0] == VIA_NEXTHOP {
                    let [_] = bytes.take();
                    Via::Nexthop(bytes.u32())
                } else {
                    bytes.maybe_ip().map_or(Via::Direct, Via::Gateway)
                };
                Route {
                    destination,
                    table,
                    metric,
                    kind: if blackhole { RouteKind::Blackhole } else { RouteKind::Unicast },
                    protocol,
                    scope,
                    link: has_link.then_some(link),
                    via,
                    onlink,
                    source: None,
                    mtu: None,
                    has_metrics,
                }
                .into()
            }
        }
    }
}

/// The number that some bytes of a key are.
#[inline(always)]
fn number(key: &[u8], at: usize) -> u64 {
    u64::from_be_bytes(*key[at..].first_chunk().expect("a key is longer than a number"))
}

/// Parts in another size; `None` if that has no room for them. Behind them are zeros.
#[inline]
fn resized<const N: usize, const M: usize>(parts: &[u8; N]) -> Option<[u8; M]> {
    let cut = &parts[N.min(M)..];
    (*cut == [0; KEY_BYTES][..cut.len()]).then(|| cut_or_filled(parts))
}

#[inline]
fn cut_or_filled<const N: usize, const M: usize>(parts: &[u8; N]) -> [u8; M] {
    let (mut out, len) = ([0; M], N.min(M));
    out[..len].copy_from_slice(&parts[..len]);
    out
}

const fn tag(kind: u8, address: IpAddr) -> u8 {
    match address {
        IpAddr::V4(_) => kind,
        IpAddr::V6(_) => kind | IPV6,
    }
}

/// How many bytes the parts of a key take that begins with `tag`.
const fn len_of(tag: u8) -> usize {
    let address = if tag & IPV6 == 0 { 4 } else { 16 };
    match tag & !IPV6 {
        ADDRESS => 1 + 4 + address + 1,
        NEXTHOP => 1 + 4,
        FORWARDING_ENTRY => 1 + 4 + 6,
        NEIGHBOUR => 1 + 4 + address,
        _ => 1 + address + 1 + 4 + 4,
    }
}

struct Writer<const N: usize> {
    bytes: [u8; N],
    at: usize,
}

impl<const N: usize> Writer<N> {
    const fn new() -> Self {
        Self { bytes: [0; N], at: 0 }
    }

    fn put<const M: usize>(&mut self, bytes: [u8; M]) {
        self.bytes[self.at..self.at + M].copy_from_slice(&bytes);
        self.at += M;
    }

    fn ip(&mut self, address: IpAddr) {
        match address {
            IpAddr::V4(v4) => self.put(v4.octets()),
            IpAddr::V6(v6) => self.put(v6.octets()),
        }
    }

    fn maybe_ip(&mut self, address: Option<IpAddr>) {
        match address {
            None => self.put([NO_ADDRESS]),
            Some(address) => {
                self.put([if address.is_ipv4() { V4_ADDRESS } else { V6_ADDRESS }]);
                self.ip(address);
            }
        }
    }
}

/// Reads what [`Writer`] wrote, in the same order.
struct Reader<'a>(&'a [u8]);

impl Reader<'_> {
    fn take<const M: usize>(&mut self) -> [u8; M] {
        let (taken, rest) = self.0.split_first_chunk().expect("it was written with this part");
        self.0 = rest;
        *taken
    }

    fn u32(&mut self) -> u32 {
        u32::from_be_bytes(self.take())
    }

    fn ip(&mut self, is_ipv6: bool) -> IpAddr {
        if is_ipv6 {
            Ipv6Addr::from(self.take::<16>()).into()
        } else {
            Ipv4Addr::from(self.take::<4>()).into()
        }
    }

    fn maybe_ip(&mut self) -> Option<IpAddr> {
        match self.take() {
            [NO_ADDRESS] => None,
            [family] => Some(self.ip(family == V6_ADDRESS)),
        }
    }

    fn network(&mut self, is_ipv6: bool) -> IpNetwork {
        let address = self.ip(is_ipv6);
        let [prefix] = self.take();
        IpNetwork::new(address, prefix).expect("it was packed from a network")
    }
}

/// An IPv6 route's: tag, address, prefix length, table, metric.
pub(crate) const KEY_BYTES: usize = 1 + 16 + 1 + 4 + 4;
/// An IPv6 route's with a gateway: protocol, scope, flags, device, family and address.
pub(crate) const REST_BYTES: usize = 1 + 1 + 1 + 4 + 1 + 16;

/// As many bytes of a key are compared at once.
const NUMBER: usize = size_of::<u64>();

/// The same without IPv6.
pub(crate) const NARROW_KEY: usize = KEY_BYTES - 12;
pub(crate) const NARROW_REST: usize = REST_BYTES - 12;

// Twice the kind, and whether it is about IPv6.
const ADDRESS: u8 = 2 * Kind::Address as u8;
const NEXTHOP: u8 = 2 * Kind::Nexthop as u8;
const FORWARDING_ENTRY: u8 = 2 * Kind::ForwardingEntry as u8;
const NEIGHBOUR: u8 = 2 * Kind::Neighbour as u8;
const ROUTE: u8 = 2 * Kind::Route as u8;
const IPV6: u8 = 1;

const NO_ADDRESS: u8 = 0;
const V4_ADDRESS: u8 = 1;
const V6_ADDRESS: u8 = 2;
const VIA_NEXTHOP: u8 = 3;

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::state::{Program, testing::object};

    proptest! {
        #[test]
        fn what_was_packed_is_unpacked(object in object()) {
            let key = PackedKey::of(&object.key());
            prop_assert_eq!(key.key(), object.key());
            // Hardly any route has an MTU of its own, and those that have are kept as they are.
            let has_mtu = matches!(object, Object::Route(route) if route.mtu.is_some());
            let rest = PackedRest::of(&object);
            prop_assert_eq!(rest.is_none(), has_mtu, "we write only what has room");
            prop_assert!(rest.is_none_or(|rest| rest.object(&key) == object));
        }

        #[test]
        fn what_has_room_in_less_is_the_same_there(object in object()) {
            let key = PackedKey::of(&object.key());
            if let Some(narrow) = key.resized::<NARROW_KEY>() {
                prop_assert_eq!(narrow.resized(), Some(key));
            }
            let is_ipv6 = match object {
                Object::Address(it) => it.address.is_ipv6(),
                Object::ForwardingEntry(it) => it.remote.is_some_and(|ip| ip.is_ipv6()),
                Object::Neighbour(it) => it.address.is_ipv6(),
                Object::Nexthop(it) => it.gateway.is_ipv6(),
                Object::Route(it) => it.destination.is_ipv6(),
            };
            let Some(rest) = PackedRest::of(&object) else { return Ok(()) };
            let narrow = (key.resized::<NARROW_KEY>(), rest.resized::<NARROW_REST>());
            prop_assert!(is_ipv6 || matches!(narrow, (Some(_), Some(_))), "{:?}", object);
        }

        #[test]
        fn packed_keys_are_ordered_as_their_bytes(one in object(), other in object(), copied: u8) {
            let (one, mut other) = (PackedKey::of(&one.key()), PackedKey::of(&other.key()));
            // Long common starts are rare among random keys.
            let copied = usize::from(copied) % (KEY_BYTES + 1);
            other.0[..copied].copy_from_slice(&one.0[..copied]);
            prop_assert_eq!(one.cmp(&other), one.0.cmp(&other.0));
        }
    }

    #[test]
    fn what_hardly_any_has_has_no_room() {
        let route = Route::new("10.0.0.0/8".parse().unwrap(), 90).direct(7);
        assert!(PackedRest::of(&route.into()).is_some());
        for odd in [
            Route { source: "192.0.2.1".parse().ok(), ..route },
            Route { mtu: Some(1400), ..route },
            Route { via: Via::Other, ..route },
            Route { via: Via::Program(Program { number: 7, descriptor: None }), ..route },
            Route { kind: RouteKind::Other(7), ..route },
        ] {
            assert_eq!(PackedRest::of(&odd.into()), None, "{odd:?}");
        }
    }
}
