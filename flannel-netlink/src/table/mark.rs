use std::{collections::BTreeSet, ops::RangeInclusive};

use ipnetwork::IpNetwork;

use crate::state::{ForwardingEntry, Neighbour, Object, Route, Via};

/// How one owner's objects are told from everybody else's.
///
/// Two owners on one machine, such as two networks of one node, must differ in the protocol number,
/// the table or the networks, and in the range of nexthop numbers and the device names.
#[derive(Clone, Debug)]
pub struct Mark {
    /// The routing protocol number of our routes and nexthop objects.
    pub protocol: u8,
    /// The routing protocol number of another owner that agrees with us on who leads where, if there is one: its routes do not
    /// override ours.
    pub sibling: Option<u8>,
    /// The routing table that our routes are in.
    pub table: u32,
    /// The networks that our routes, and the addresses on our devices, are inside of.
    pub networks: Vec<IpNetwork>,
    /// The numbers of our nexthop objects.
    pub nexthops: RangeInclusive<u32>,
    /// The names of the devices that are ours. Permanent neighbours and forwarding entries there
    /// are ours, and addresses inside `networks`, and the routes that flanneld makes there.
    pub devices: BTreeSet<String>,
}

impl Mark {
    /// A mark for routes in the main table, without devices and nexthop objects.
    pub fn new(protocol: u8, networks: impl IntoIterator<Item = IpNetwork>) -> Self {
        Self {
            protocol,
            sibling: None,
            table: Route::MAIN,
            networks: networks.into_iter().collect(),
            // An empty range.
            #[expect(clippy::reversed_empty_ranges, reason = "no nexthop object is ours")]
            nexthops: 1..=0,
            devices: BTreeSet::new(),
        }
    }

    /// Whether `object` carries the mark. `our_devices` are the indexes of our devices now.
    pub(crate) fn owns(&self, object: &Object, our_devices: &BTreeSet<u32>) -> bool {
        match object {
            Object::Address(address) => {
                our_devices.contains(&address.link) && self.contains(address.address)
            }
            Object::ForwardingEntry(ForwardingEntry { link, mac, permanent, .. }) => {
                *permanent && mac.is_unicast() && our_devices.contains(link)
            }
            Object::Neighbour(Neighbour { link, permanent, .. }) => {
                *permanent && our_devices.contains(link)
            }
            Object::Nexthop(nexthop) => {
                nexthop.protocol == self.protocol && self.nexthops.contains(&nexthop.id)
            }
            Object::Route(route) => {
                (route.protocol == self.protocol || is_flannels(route, our_devices))
                    && route.table == self.table
                    && self.contains(route.destination)
            }
        }
    }

    /// Whether `network` is inside of ours.
    pub(crate) fn contains(&self, network: IpNetwork) -> bool {
        self.networks.iter().any(|outer| encloses(outer, &network))
    }
}

/// Whether all of `inner` is in `outer`.
pub(crate) fn encloses(outer: &IpNetwork, inner: &IpNetwork) -> bool {
    match (outer, inner) {
        (IpNetwork::V4(outer), IpNetwork::V4(inner)) => inner.is_subnet_of(*outer),
        (IpNetwork::V6(outer), IpNetwork::V6(inner)) => inner.is_subnet_of(*outer),
        _ => false,
    }
}

/// The blocks that `block` is in, from itself to that of all addresses.
pub fn blocks_around(block: IpNetwork) -> impl Iterator<Item = IpNetwork> {
    (0..=block.prefix()).rev().filter_map(move |len| {
        let around = IpNetwork::new(block.ip(), len).ok()?;
        IpNetwork::new(around.network(), len).ok()
    })
}

/// Whether flanneld has left the route on a device that is ours now: to a peer's block, through the first address of the block.
fn is_flannels(route: &Route, our_devices: &BTreeSet<u32>) -> bool {
    route.protocol == Route::BOOT
        && route.onlink
        && route.via == Via::Gateway(route.destination.ip())
        && route.link.is_some_and(|link| our_devices.contains(&link))
}

#[cfg(test)]
mod tests {
    use std::net::IpAddr;

    use super::*;
    use crate::state::{Address, MacAddress, Nexthop};

    const OURS: u32 = 3;
    const THEIRS: u32 = 4;

    fn mark() -> Mark {
        Mark {
            nexthops: 10..=20,
            devices: ["flannel.1".into()].into(),
            ..Mark::new(90, ["10.1.0.0/16".parse().unwrap(), "fd00:1::/48".parse().unwrap()])
        }
    }

    fn owns(object: impl Into<Object>) -> bool {
        mark().owns(&object.into(), &[OURS].into())
    }

    #[test]
    fn an_object_that_differs_in_one_thing_is_not_ours() {
        let gateway: IpAddr = "10.1.2.0".parse().unwrap();
        let address = |link, text: &str| Address::new(link, text.parse().unwrap());
        assert!(owns(address(OURS, "10.1.0.1/32")));
        assert!(!owns(address(THEIRS, "10.1.0.1/32")));
        assert!(!owns(address(OURS, "10.2.0.1/32")));
        assert!(!owns(address(OURS, "10.1.0.1/8")));

        let entry = |link, first| ForwardingEntry::new(link, MacAddress::new([first; 6]), gateway);
        assert!(owns(entry(OURS, 2)));
        assert!(!owns(entry(THEIRS, 2)));
        assert!(!owns(entry(OURS, 1)), "of a group");
        assert!(!owns(ForwardingEntry { permanent: false, ..entry(OURS, 2) }));

        let neighbour = |link| Neighbour::new(link, gateway, MacAddress::new([2; 6]));
        assert!(owns(neighbour(OURS)));
        assert!(!owns(neighbour(THEIRS)));
        assert!(!owns(Neighbour { permanent: false, ..neighbour(OURS) }));

        let nexthop = |id, protocol| Nexthop::new(id, THEIRS, gateway, protocol);
        assert!(owns(nexthop(20, 90)));
        assert!(!owns(nexthop(21, 90)));
        assert!(!owns(nexthop(20, 91)));
    }

    #[test]
    fn a_route_is_ours_by_its_protocol_or_as_flanneld_makes_it_on_our_device() {
        let route = |text: &str| Route::new(text.parse().unwrap(), 90);
        for ours in ["10.1.2.0/24", "10.1.0.0/16", "fd00:1::/64"] {
            assert!(owns(route(ours)), "{ours}");
        }
        for theirs in ["10.2.0.0/24", "10.0.0.0/8", "fd00:2::/64", "0.0.0.0/0"] {
            assert!(!owns(route(theirs)), "{theirs}");
        }
        assert!(!owns(Route { table: 100, ..route("10.1.2.0/24") }));
        let boot = Route { protocol: Route::BOOT, ..route("10.1.2.0/24") };
        assert!(!owns(boot));
        let by = |last, link| boot.via_gateway([10, 1, 2, last].into(), link);
        let flannels = Route { onlink: true, ..by(0, OURS) };
        assert!(owns(flannels));
        assert!(!owns(Route { onlink: true, ..by(0, THEIRS) }));
        assert!(!owns(Route { onlink: true, ..by(1, OURS) }));
        assert!(!owns(by(0, OURS)), "not onlink");
        assert!(!owns(Route { protocol: Route::BOOT + 1, ..flannels }));
    }
}
