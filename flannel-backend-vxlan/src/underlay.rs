//! Which peers are on the link: the facts that direct routing is decided by.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
    time::Duration,
};

use flannel_core::{BackendError, Lease, Peers};
use flannel_netlink::{
    Connection, KernelError, Message, Monitor, Namespace, Notice, OpenError, Request, Subject,
    Topic, list_routes,
    state::{IpFamily, Object, Route, RouteKind, Via},
};
use ipnetwork::IpNetwork;
use tokio::time::{Instant, timeout_at};

use crate::family::Family;

/// Whose routes are not of the underlay.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(crate) struct Overlay {
    pub(crate) protocol: u8,
    pub(crate) networks: Vec<IpNetwork>,
}

/// How the main table reaches addresses outside of the overlay.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub(crate) struct OnLink {
    /// Destinations with the device that they are on the link of, if any; the longest prefix first, and then the lowest metric.
    routes: Vec<(IpNetwork, Option<u32>)>,
    /// The same for single addresses, where there are rules by which the main table alone does not decide.
    by_rules: BTreeMap<IpAddr, Option<u32>>,
}

impl OnLink {
    /// What these routes say.
    pub(crate) fn new(routes: impl IntoIterator<Item = Route>, overlay: &Overlay) -> Self {
        let mut routes: Vec<_> = routes.into_iter().filter(|route| !overlay.has(route)).collect();
        routes.sort_by_key(|route| {
            (u8::MAX - route.destination.prefix(), route.destination, route.metric)
        });
        let direct = |route: &Route| {
            let is_direct = route.kind == RouteKind::Unicast && route.via == Via::Direct;
            (route.destination, route.link.filter(|_| is_direct))
        };
        Self { routes: routes.iter().map(direct).collect(), by_rules: BTreeMap::new() }
    }

    /// Whether `address` is reached on the link of the device `link` itself, without a gateway.
    pub(crate) fn contains(&self, address: IpAddr, link: u32) -> bool {
        if let Some(direct) = self.by_rules.get(&address) {
            return *direct == Some(link);
        }
        let best = self.routes.iter().find(|(destination, _)| destination.contains(address));
        best.is_some_and(|(_, direct)| *direct == Some(link))
    }
}

impl Overlay {
    /// Whether the route is one of ours, or one that the kernel makes for an address of our devices: their changes say nothing
    /// about the underlay.
    fn has(&self, route: &Route) -> bool {
        let inside = |network: &IpNetwork| network.contains(route.destination.ip());
        let single = match route.destination {
            IpNetwork::V4(v4) => v4.prefix() == 32,
            IpNetwork::V6(v6) => v6.prefix() == 128,
        };
        let ours = route.protocol == self.protocol || single && route.protocol == RTPROT_KERNEL;
        ours && self.networks.iter().any(inside)
    }
}

/// Tells when the facts are others.
#[derive(Debug)]
pub(crate) struct UnderlayWatch {
    connection: Connection,
    monitor: Monitor,
    overlay: Overlay,
    current: OnLink,
    has_rules: bool,
    check_at: Option<Instant>,
}

impl UnderlayWatch {
    /// Reads the facts in `namespace` and watches them.
    pub(crate) async fn open(
        namespace: &Namespace,
        overlay: Overlay,
    ) -> Result<Self, BackendError> {
        let closed = |error: OpenError| unreadable(error);
        // The monitor first, so that no change falls between the listing and it.
        let monitor = Monitor::open_for(namespace, &TOPICS).map_err(closed)?;
        let mut connection = Connection::open(namespace).map_err(closed)?;
        let current = read(&mut connection, &overlay).await.map_err(unreadable)?;
        let has_rules = list_rules(&mut connection).await.map_err(unreadable)?;
        Ok(Self { connection, monitor, overlay, current, has_rules, check_at: None })
    }

    /// The facts as they were read last.
    pub(crate) const fn current(&self) -> &OnLink {
        &self.current
    }

    /// Asks the kernel where packets to the peers go, if there are rules that may send them elsewhere than the main table says.
    ///
    /// # Cancel safety
    ///
    /// Dropping the future leaves the facts as they were.
    pub(crate) async fn ask_about(&mut self, peers: &Peers) -> Result<(), BackendError> {
        let mut answers = BTreeMap::new();
        if self.has_rules {
            let publics = |peer: &Lease| Family::ALL.map(|family| family.public(&peer.attrs));
            let publics: BTreeSet<_> = peers.iter().flat_map(publics).flatten().collect();
            for public in publics {
                let route = self.connection.get(&Route::lookup_match(public), Route::parse).await;
                let direct = match route {
                    Ok(route) if route.kind == RouteKind::Unicast && route.via == Via::Direct => {
                        route.link
                    }
                    // No way at all, or one that cannot be understood: not on the link.
                    _ => None,
                };
                answers.insert(public, direct);
            }
        }
        self.current.by_rules = answers;
        Ok(())
    }

    /// Resolves when the facts are others than before.
    ///
    /// # Cancel safety
    ///
    /// Dropping the future loses nothing: the next call tells the difference.
    pub(crate) async fn changed(&mut self) -> Result<(), BackendError> {
        loop {
            let notice = match self.check_at {
                Some(at) => timeout_at(at, self.monitor.next()).await.ok(),
                None => Some(self.monitor.next().await),
            };
            match notice {
                Some(notice) => {
                    if concerns(&notice.map_err(unreadable)?, &self.overlay) {
                        self.check_at.get_or_insert_with(|| Instant::now() + GATHER);
                    }
                }
                None => {
                    let read = read(&mut self.connection, &self.overlay).await;
                    let rules = list_rules(&mut self.connection).await;
                    self.check_at = None;
                    let (read, had_rules) = (read.map_err(unreadable)?, self.has_rules);
                    self.has_rules = rules.map_err(unreadable)?;
                    if read.routes != self.current.routes || had_rules || self.has_rules {
                        self.current.routes = read.routes;
                        return Ok(());
                    }
                }
            }
        }
    }
}

/// Whether there are rules beside those that every host has: `local`, `main` and `default`.
async fn list_rules(connection: &mut Connection) -> Result<bool, KernelError> {
    let list = Request::new(RTM_GETRULE, 0, &[0; RULE_HEADER]);
    let is_usual = |message: &Message<'_>| {
        let (header, attributes) = message.split(RULE_HEADER)?;
        // Those of multicast routing do not matter.
        if ![AF_INET, AF_INET6].contains(&header[0]) {
            return None;
        }
        let (mut priority, mut table) = (0, header[4].into());
        for attribute in attributes {
            match attribute.kind {
                FRA_PRIORITY => priority = attribute.u32()?,
                FRA_TABLE => table = attribute.u32()?,
                _ => {}
            }
        }
        Some([(0, 255), (32_766, Route::MAIN), (32_767, 253)].contains(&(priority, table)))
    };
    match connection.dump(&list, is_usual).await {
        // A kernel without them.
        Err(error) if error.unsupported() => Ok(false),
        rules => Ok(rules?.contains(&false)),
    }
}

async fn read(connection: &mut Connection, overlay: &Overlay) -> Result<OnLink, KernelError> {
    let mut routes = Vec::new();
    for family in IpFamily::ALL {
        routes.extend(list_routes(connection, Route::MAIN, family).await?);
    }
    Ok(OnLink::new(routes, overlay))
}

/// Whether the facts may be others now. The kernel removes IPv4 routes with their device or address without a word about the routes.
fn concerns(notice: &Notice, overlay: &Overlay) -> bool {
    match notice {
        Notice::Lost => true,
        Notice::Added { subject, .. } | Notice::Removed { subject, .. } => match subject {
            Subject::Link(_) | Subject::Rule | Subject::Object(Object::Address(_)) => true,
            Subject::Object(Object::Route(route)) => {
                route.table == Route::MAIN && !overlay.has(route)
            }
            Subject::Object(_) | Subject::Other(_) => false,
            _ => false,
        },
        _ => false,
    }
}

fn unreadable(error: impl std::error::Error + Send + Sync + 'static) -> BackendError {
    BackendError::Kernel {
        operation: "read the routes of the underlay".into(),
        source: error.into(),
    }
}

/// All that [`concerns`] looks at.
const TOPICS: [Topic; 4] = [Topic::Addresses, Topic::Links, Topic::Routes, Topic::Rules];

// linux/rtnetlink.h, linux/fib_rules.h
const AF_INET: u8 = 2;
const AF_INET6: u8 = 10;
const RTM_GETRULE: u16 = 34;
/// The size of `struct fib_rule_hdr`.
const RULE_HEADER: usize = 12;
const FRA_PRIORITY: u16 = 6;
const FRA_TABLE: u16 = 15;

/// Routes that come with an address, linux/rtnetlink.h.
const RTPROT_KERNEL: u8 = 2;
/// Changes come in groups: a device, its addresses, its routes.
const GATHER: Duration = Duration::from_millis(50);

#[cfg(test)]
mod tests {
    use super::*;

    const NIC: u32 = 7;

    fn facts(routes: Vec<Route>) -> OnLink {
        let networks = vec!["10.244.0.0/16".parse().unwrap()];
        OnLink::new(routes, &Overlay { protocol: 241, networks })
    }

    fn route(destination: &str) -> Route {
        Route::new(destination.parse().unwrap(), 2)
    }

    fn ip(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    #[test]
    fn the_longest_prefix_decides() {
        let facts = facts(vec![
            route("0.0.0.0/0").via_gateway(ip("192.0.2.254"), NIC),
            route("192.0.2.0/24").direct(NIC),
            route("192.0.2.64/26").via_gateway(ip("192.0.2.254"), NIC),
            route("192.0.2.65/32").direct(NIC),
            route("192.0.2.66/32").blackhole(),
            route("198.51.100.0/24").direct(9),
            route("2001:db8::/64").direct(NIC),
        ]);
        assert!(facts.contains(ip("192.0.2.2"), NIC));
        assert!(facts.contains(ip("192.0.2.65"), NIC));
        assert!(facts.contains(ip("2001:db8::2"), NIC));
        assert!(!facts.contains(ip("192.0.2.66"), NIC), "dropped");
        assert!(!facts.contains(ip("192.0.2.67"), NIC), "behind a gateway");
        assert!(!facts.contains(ip("203.0.113.1"), NIC), "behind the default gateway");
        assert!(!facts.contains(ip("198.51.100.1"), NIC), "on another link");
        assert!(!facts.contains(ip("2001:db8:1::1"), NIC), "not reached at all");
    }

    #[test]
    fn of_equal_prefixes_the_lowest_metric_decides() {
        let behind =
            Route { metric: 10, ..route("192.0.2.0/24").via_gateway(ip("192.0.2.254"), NIC) };
        let direct = Route { metric: 100, ..route("192.0.2.0/24").direct(NIC) };
        assert!(!facts(vec![direct, behind]).contains(ip("192.0.2.2"), NIC));
        assert!(
            facts(vec![Route { metric: 200, ..behind }, direct]).contains(ip("192.0.2.2"), NIC)
        );
    }

    #[test]
    fn our_own_routes_are_no_facts() {
        let ours = Route { protocol: 241, ..route("10.244.7.0/24").direct(NIC) };
        assert!(!facts(vec![ours]).contains(ip("10.244.7.1"), NIC));
        let address = route("10.244.7.0/32").direct(NIC);
        assert_eq!(facts(vec![ours, address]), OnLink::default());
    }
}
