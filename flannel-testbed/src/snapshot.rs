use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
};

use flannel_netlink::{
    Connection, KernelError, Monitor, Notice, Request, Subject, list_addresses, list_forwarding,
    list_links, list_neighbours, list_nexthops,
    state::{
        Address, AddressFilter, ForwardingEntry, Link, LinkKind, Neighbour, Nexthop, Object, Route,
        RouteKind, Via,
    },
};

use crate::{Host, TestbedError};

/// The network state of a host at one moment: devices, addresses, routes of all tables, nexthop objects, and the
/// neighbours and forwarding entries that somebody set by hand.
///
/// What the kernel learns and forgets by itself is left out, so two snapshots are equal when nobody altered anything in
/// between. A device that was deleted and made anew is another one, because its index is in the snapshot.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Snapshot {
    lines: BTreeSet<String>,
}

impl Snapshot {
    /// One line per object, sorted.
    pub fn lines(&self) -> impl Iterator<Item = &str> {
        self.lines.iter().map(String::as_str)
    }

    /// What is different in `later`: lost lines with a minus sign, new ones with a plus sign. Empty when they are equal.
    pub fn difference(&self, later: &Self) -> Vec<String> {
        let lost = self.lines.difference(&later.lines).map(|line| format!("- {line}"));
        let new = later.lines.difference(&self.lines).map(|line| format!("+ {line}"));
        lost.chain(new).collect()
    }
}

impl fmt::Display for Snapshot {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.lines.iter().try_for_each(|line| writeln!(f, "{line}"))
    }
}

/// What is there.
impl Host {
    /// Reads the network state of the host.
    ///
    /// # Errors
    ///
    /// [`TestbedError::Kernel`].
    ///
    /// # Cancel safety
    ///
    /// Reads only.
    pub async fn snapshot(&self) -> Result<Snapshot, TestbedError> {
        let mut connection = self.kernel().connection().await;
        let found = Found::read(&mut connection).await;
        let found = found.map_err(|source| {
            TestbedError::kernel("list the network state", self.name(), source)
        })?;
        Ok(Snapshot { lines: found.lines() })
    }

    /// Awaits `work` and returns its value with what was changed in the host's namespace meanwhile, by whomever.
    ///
    /// An empty list after a sync shows that it wrote nothing. What the kernel learns about neighbours by itself is left out.
    ///
    /// # Errors
    ///
    /// [`TestbedError::Namespace`] or [`TestbedError::Monitor`].
    ///
    /// # Cancel safety
    ///
    /// As `work`.
    pub async fn changes_during<T>(
        &self,
        work: impl Future<Output = T>,
    ) -> Result<(T, Vec<Notice>), TestbedError> {
        let mut monitor = Monitor::open(self.namespace())
            .map_err(|source| TestbedError::socket(self.name(), source))?;
        let heard = monitor.during(work).await;
        let (value, mut changes) = heard
            .map_err(|source| TestbedError::Monitor { place: self.name().to_owned(), source })?;
        changes.retain(|notice| !learned(notice));
        Ok((value, changes))
    }
}

#[derive(Debug, Default)]
struct Found {
    links: Vec<Link>,
    addresses: Vec<Address>,
    forwarding: Vec<ForwardingEntry>,
    neighbours: Vec<Neighbour>,
    nexthops: Vec<Nexthop>,
    routes: Vec<Route>,
}

impl Found {
    async fn read(connection: &mut Connection) -> Result<Self, KernelError> {
        let mut found = Self {
            links: list_links(connection).await?,
            addresses: list_addresses(connection, AddressFilter::default()).await?,
            nexthops: list_nexthops(connection).await?,
            ..Self::default()
        };
        for link in &found.links {
            found.forwarding.extend(list_forwarding(connection, link.index).await?);
            found.neighbours.extend(list_neighbours(connection, link.index).await?);
        }
        for family in [AF_INET, AF_INET6] {
            let mut body = [0; RTMSG_BYTES];
            body[0] = family;
            let every_table = Request::new(RTM_GETROUTE, 0, &body);
            found.routes.extend(connection.dump(&every_table, Route::parse).await?);
        }
        Ok(found)
    }

    fn lines(&self) -> BTreeSet<String> {
        let names: BTreeMap<_, _> =
            self.links.iter().map(|link| (link.index, link.name.as_str())).collect();
        let name = |index: u32| names.get(&index).copied().unwrap_or("?");
        let mut lines = BTreeSet::new();
        lines.extend(self.links.iter().map(|link| link_line(link, name)));
        lines.extend(self.addresses.iter().map(|address| {
            let route = if address.no_prefix_route { " no prefix route" } else { "" };
            format!(
                "address {} dev {} scope {}{route}",
                address.address,
                name(address.link),
                address.scope
            )
        }));
        // Every device has entries for the groups it listens to.
        let by_hand = |entry: &&ForwardingEntry| {
            entry.permanent && (entry.mac.is_unicast() || entry.remote.is_some())
        };
        lines.extend(self.forwarding.iter().filter(by_hand).map(|entry| {
            let remote = entry.remote.map(|remote| format!(" to {remote}")).unwrap_or_default();
            format!("forwarding {} dev {}{remote}", entry.mac, name(entry.link))
        }));
        lines.extend(self.neighbours.iter().filter(|entry| entry.permanent).map(|entry| {
            let mac = entry.mac.map(|mac| format!(" is {mac}")).unwrap_or_default();
            format!("neighbour {} dev {}{mac}", entry.address, name(entry.link))
        }));
        lines.extend(self.nexthops.iter().map(|nexthop| {
            let onlink = if nexthop.onlink { " onlink" } else { "" };
            format!(
                "nexthop {} via {} dev {} proto {}{onlink}",
                nexthop.id,
                nexthop.gateway,
                name(nexthop.link),
                nexthop.protocol
            )
        }));
        lines.extend(self.routes.iter().map(|route| route_line(route, name)));
        lines
    }
}

/// Whether it is about a neighbour that nobody set by hand.
const fn learned(notice: &Notice) -> bool {
    let (Notice::Added { subject, .. } | Notice::Removed { subject, .. }) = notice else {
        return false;
    };
    matches!(subject, Subject::Object(Object::Neighbour(entry)) if !entry.permanent)
}

fn link_line<'a>(link: &Link, name: impl Fn(u32) -> &'a str) -> String {
    let kind = match &link.kind {
        LinkKind::Bridge => "bridge".to_owned(),
        LinkKind::Other(kind) => kind.clone(),
        LinkKind::Veth => "veth".to_owned(),
        LinkKind::Vxlan(vxlan) => format!("{vxlan:?}"),
        other => format!("{other:?}"),
    };
    let state = if link.up { "up" } else { "down" };
    let mac = link.mac.map(|mac| format!(" mac {mac}")).unwrap_or_default();
    let bridge = link.controller.map(|index| format!(" on {}", name(index))).unwrap_or_default();
    format!(
        "device {} index {} {kind} {state} mtu {}{mac}{bridge}",
        link.name, link.index, link.mtu
    )
}

fn route_line<'a>(route: &Route, name: impl Fn(u32) -> &'a str) -> String {
    let kind = match route.kind {
        RouteKind::Blackhole => "blackhole ".to_owned(),
        RouteKind::Other(kind) => format!("kind {kind} "),
        _ => String::new(),
    };
    let via = match route.via {
        Via::Direct => String::new(),
        Via::Gateway(gateway) => format!(" via {gateway}"),
        Via::Nexthop(id) => format!(" via nexthop {id}"),
        _ => " via several".to_owned(),
    };
    let device = route.link.map(|index| format!(" dev {}", name(index))).unwrap_or_default();
    let source = route.source.map(|source| format!(" src {source}")).unwrap_or_default();
    let onlink = if route.onlink { " onlink" } else { "" };
    format!(
        "route {kind}{}{via}{device}{source} table {} proto {} metric {} scope {}{onlink}",
        route.destination, route.table, route.protocol, route.metric, route.scope
    )
}

// linux/rtnetlink.h
const RTM_GETROUTE: u16 = 26;
const RTMSG_BYTES: usize = 12;
const AF_INET: u8 = 2;
const AF_INET6: u8 = 10;
