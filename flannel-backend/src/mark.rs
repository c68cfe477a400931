//! The marks by which our kernel objects are known.

use std::{collections::BTreeMap, ops::RangeInclusive};

use flannel_core::BackendError;
use flannel_netlink::{
    Connection, KernelError, Namespace, OpenError, list_nexthops, list_routes,
    state::{IpFamily, Via},
};
use ipnetwork::IpNetwork;

/// The routing protocol number of our routes and nexthop objects: 241, which `/etc/iproute2/rt_protos` gives to nobody.
pub const PROTOCOL: u8 = 241;

/// The same of a backend that works beside another one of the same node: 242, which that file gives to nobody either.
pub const SECOND_PROTOCOL: u8 = 242;

/// Both numbers, by which what is ours is known.
pub const PROTOCOLS: [u8; 2] = [PROTOCOL, SECOND_PROTOCOL];

/// Those of `ids`, which are a network's, that are for nexthop objects with this protocol number: two backends of one node, which work
/// beside each other, have a half each.
pub fn nexthop_ids_of(protocol: u8, ids: RangeInclusive<u32>) -> RangeInclusive<u32> {
    let (first, last) = ids.into_inner();
    let middle = first + (last - first) / 2;
    if protocol == SECOND_PROTOCOL { middle + 1..=last } else { first..=middle }
}

/// The ids of nexthop objects for a network in `namespace`, with routes in this table.
///
/// Ids are shared by all programs of a namespace. Each network has a block of 2^20 in the upper half of the numbers, where no
/// routing daemon counts up to. The block is chosen by a hash of the network; if another network of ours has routes through
/// objects of that block, it is the next one that the hash leads to. A network that is there already keeps its block.
///
/// # Errors
///
/// [`BackendError::Kernel`] if the kernel cannot be asked.
///
/// # Cancel safety
///
/// Reads only.
pub async fn nexthop_ids(
    namespace: &Namespace,
    networks: &[IpNetwork],
    table: u32,
) -> Result<RangeInclusive<u32>, BackendError> {
    let refused = |source: Box<dyn std::error::Error + Send + Sync>| BackendError::Kernel {
        operation: "list nexthop objects".into(),
        source,
    };
    let opened = Connection::open(namespace).map_err(|error: OpenError| refused(error.into()));
    let routes = users(&mut opened?, table).await;
    let routes = routes.map_err(|error: KernelError| refused(error.into()))?;
    let is_ours =
        |destination: &IpNetwork| networks.iter().any(|network| network.contains(destination.ip()));
    let users = routes.iter().map(|(id, destination)| (*id, is_ours(destination)));
    Ok(choose_block(networks, users))
}

/// The ids of nexthop objects of ours that routes lead through, with the destinations of the routes.
async fn users(
    connection: &mut Connection,
    table: u32,
) -> Result<Vec<(u32, IpNetwork)>, KernelError> {
    let nexthops = list_nexthops(connection).await?;
    if !nexthops.iter().any(|nexthop| PROTOCOLS.contains(&nexthop.protocol)) {
        return Ok(Vec::new());
    }
    let mut users = Vec::new();
    for family in IpFamily::ALL {
        for route in list_routes(connection, table, family).await? {
            if let Via::Nexthop(id) = route.via {
                users.push((id, route.destination));
            }
        }
    }
    Ok(users)
}

/// The block for `networks`, where `users` are the ids that routes lead through, and whether these routes are inside of `networks`.
fn choose_block(
    networks: &[IpNetwork],
    users: impl IntoIterator<Item = (u32, bool)>,
) -> RangeInclusive<u32> {
    let mut used: BTreeMap<u32, bool> = BTreeMap::new();
    for (id, is_ours) in users {
        *used.entry(id & BLOCK).or_default() |= is_ours;
    }
    let number = network_number(networks);
    let blocks = || (0..ATTEMPTS).map(|attempt| block(number, attempt));
    let free = || blocks().find(|block| !used.contains_key(block));
    let ours = match used.values().any(|is_ours| *is_ours) {
        true => blocks().find(|block| used.get(block) == Some(&true)),
        false => None,
    };
    let first = ours.or_else(free).unwrap_or_else(|| block(number, 0));
    first..=first | !BLOCK
}

/// The first id of a block for the network with this number.
fn block(number: u32, attempt: u32) -> u32 {
    let hash = number.wrapping_add(attempt.wrapping_mul(0x9e37_79b9));
    1 << 31 | (hash ^ hash >> 16) << 20 & BLOCK
}

/// The number of a network, for what has no address of it.
pub fn network_number(networks: &[IpNetwork]) -> u32 {
    let bytes = networks.iter().flat_map(|network| network.to_string().into_bytes());
    // FNV-1a, 32 bits.
    bytes.fold(0x811c_9dc5_u32, |hash, byte| (hash ^ u32::from(byte)).wrapping_mul(0x0100_0193))
}

/// The bits of an id that tell its block.
const BLOCK: u32 = !0x000f_ffff;
/// More than there are blocks, so that nearly all of them are tried.
const ATTEMPTS: u32 = 1 << 14;

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn network(text: &str) -> Vec<IpNetwork> {
        vec![text.parse().unwrap()]
    }

    #[test]
    fn a_block_is_in_the_upper_half_and_stays_what_it_was() {
        let ids = choose_block(&network("10.3.0.0/16"), []);
        assert_eq!((*ids.start(), ids.end() - ids.start()), (0x88d0_0000, (1 << 20) - 1));
    }

    #[test]
    fn two_backends_of_one_network_share_no_id() {
        let ids = choose_block(&network("10.3.0.0/16"), []);
        let [first, second] = PROTOCOLS.map(|protocol| nexthop_ids_of(protocol, ids.clone()));
        assert_eq!((first.start(), second.end()), (ids.start(), ids.end()));
        assert_eq!(first.end() + 1, *second.start());
    }

    #[test]
    fn of_the_usual_networks_no_two_share_a_block() {
        let second = (0..=255).map(|n| format!("10.{n}.0.0/16"));
        let others = (16..32).map(|n| format!("172.{n}.0.0/16"));
        let mut users = Vec::new();
        for text in second.chain(others).chain(["10.0.0.0/8".into(), "192.168.0.0/16".into()]) {
            let ids = choose_block(&network(&text), users.iter().map(|id| (*id, false)));
            assert!(!users.iter().any(|id| ids.contains(id)), "{text}");
            users.push(ids.start() + 7);
        }
    }

    proptest! {
        /// Whichever networks there are, each gets a block that no other uses, and keeps it.
        #[test]
        fn networks_never_share_a_block(prefixes in prop::collection::btree_set(any::<u16>(), 1..40)) {
            let mut chosen: Vec<(u16, u32)> = Vec::new();
            let of = |prefix: u16, chosen: &[(u16, u32)]| {
                let [a, b] = prefix.to_be_bytes();
                let users = chosen.iter().map(|(other, id)| (*id, *other == prefix));
                choose_block(&network(&format!("{a}.{b}.0.0/16")), users)
            };
            for prefix in prefixes {
                let ids = of(prefix, &chosen);
                prop_assert!(chosen.iter().all(|(_, id)| !ids.contains(id)));
                chosen.push((prefix, *ids.end()));
            }
            for (prefix, id) in &chosen {
                prop_assert!(of(*prefix, &chosen).contains(id));
            }
        }
    }
}
