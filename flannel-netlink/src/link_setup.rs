//! Making, finding, altering and deleting devices.

mod link_requests;

use std::{
    net::IpAddr,
    os::fd::{AsFd, AsRawFd},
};

use netlink_packet_route::{RouteNetlinkMessage, link::LinkAttribute};
use rtnetlink::{LinkUnspec, LinkVxlan};

use self::link_requests::{create, no_link_local, with_group, with_local};
use crate::{
    Connection, KernelError, Namespace, Request,
    state::{Link, LinkKind, MacAddress, Vxlan},
};

/// A device as it should be.
#[derive(Clone, Debug)]
pub struct LinkSpec {
    /// Its name, at most 15 bytes.
    pub name: String,
    /// What it is.
    pub kind: LinkSpecKind,
    /// Its Ethernet address; `None` leaves it to the kernel or as it is.
    pub mac: Option<MacAddress>,
    /// The largest packet it takes, bytes; `None` leaves it to the kernel or as it is.
    pub mtu: Option<u32>,
    /// Whether it is set up.
    pub up: bool,
    /// Whether the kernel is kept from giving it an IPv6 link-local address. One that it has stays.
    pub no_link_local: bool,
}

impl LinkSpec {
    /// A device that is up, with the kernel's choice of the rest.
    pub fn new(name: impl Into<String>, kind: LinkSpecKind) -> Self {
        Self { name: name.into(), kind, mac: None, mtu: None, up: true, no_link_local: false }
    }
}

/// What a device to make is.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub enum LinkSpecKind {
    /// A bridge.
    Bridge,
    /// A pair, whose other end may be made in another namespace.
    Veth {
        /// The name of the other end.
        peer: String,
        /// Where the other end goes.
        peer_namespace: Option<Namespace>,
    },
    /// A VXLAN device.
    Vxlan(Vxlan),
    /// A WireGuard device, see [`wireguard`](crate::wireguard).
    Wireguard,
}

/// How [`ensure_link`] came to the device.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
#[non_exhaustive]
pub enum Ensured {
    /// It was there and right.
    Adopted,
    /// It was there and was altered in place.
    Altered,
    /// It was not there.
    Created,
    /// What was there could not become it, so it was deleted and made anew.
    Recreated,
}

/// What to alter on a device. `None` leaves it as it is.
#[derive(Clone, Debug, Default)]
pub struct LinkChange {
    /// Set it up or down.
    pub up: Option<bool>,
    /// The largest packet, bytes.
    pub mtu: Option<u32>,
    /// How many packets may wait for whoever takes them on.
    pub queue: Option<u32>,
    /// The Ethernet address.
    pub mac: Option<MacAddress>,
    /// The index of the bridge it becomes a port of; 0 takes it out.
    pub controller: Option<u32>,
    /// The new name. Older kernels want the device down.
    pub name: Option<String>,
    /// Where it moves. The kernel sets it down and removes its addresses.
    pub namespace: Option<Namespace>,
    /// Make no IPv6 link-local address by itself.
    pub no_link_local: bool,
}

/// All devices of the connection's namespace.
///
/// # Errors
///
/// What the kernel said.
///
/// # Cancel safety
///
/// Reads only.
pub async fn list_links(connection: &mut Connection) -> Result<Vec<Link>, KernelError> {
    connection.dump(&Link::list(), Link::parse).await
}

/// The device of this name, if there is one.
///
/// # Errors
///
/// What the kernel said, other than that there is none.
///
/// # Cancel safety
///
/// Reads only.
pub async fn link_by_name(
    connection: &mut Connection,
    name: &str,
) -> Result<Option<Link>, KernelError> {
    found(connection.get(&Link::by_name(name), Link::parse).await)
}

/// The device of this index, if there is one.
///
/// # Errors
///
/// What the kernel said, other than that there is none.
///
/// # Cancel safety
///
/// Reads only.
pub async fn link_by_index(
    connection: &mut Connection,
    index: u32,
) -> Result<Option<Link>, KernelError> {
    found(connection.get(&Link::by_index(index), Link::parse).await)
}

/// Makes the device of `spec.name` what `spec` says: takes it over when it fits, alters what can be
/// altered in place, and deletes and makes it anew when it is of another kind or has attributes
/// that cannot change.
///
/// Of a VXLAN device the identifier, group policy and reporting of unknown addresses must be equal;
/// port, group, parent and the family of the local address only where both sides set them. Learning,
/// the type of service, the time to live and the local address are altered in place, and a group is taken away. Of a veth pair only the kind is compared.
///
/// # Errors
///
/// What the kernel said about the first step that failed.
///
/// # Cancel safety
///
/// Dropping the future may leave the device missing or half altered; another call finishes it.
pub async fn ensure_link(
    connection: &mut Connection,
    spec: &LinkSpec,
) -> Result<(Link, Ensured), KernelError> {
    let existing = link_by_name(connection, &spec.name).await?;
    let mut ensured = Ensured::Created;
    if let Some(existing) = &existing {
        ensured = Ensured::Adopted;
        if !can_become(existing, &spec.kind) {
            delete_link(connection, existing.index).await?;
            ensured = Ensured::Recreated;
        }
    }
    let link = match existing {
        Some(existing) if ensured == Ensured::Adopted => existing,
        _ => {
            connection.apply_one(create(spec)).await?;
            read_back(connection, &spec.name).await?
        }
    };
    if !alter(connection, &link, spec).await? {
        return Ok((link, ensured));
    }
    if ensured == Ensured::Adopted {
        ensured = Ensured::Altered;
    }
    Ok((read_back(connection, &spec.name).await?, ensured))
}

/// Alters the device of this index.
///
/// # Errors
///
/// What the kernel said. Earlier parts of the change may be done.
///
/// # Cancel safety
///
/// Dropping the future leaves the change done, undone or half done.
pub async fn alter_link(
    connection: &mut Connection,
    index: u32,
    change: &LinkChange,
) -> Result<(), KernelError> {
    let mut link = LinkUnspec::new_with_index(index);
    if let Some(up) = change.up {
        link = if up { link.up() } else { link.down() };
    }
    if let Some(mtu) = change.mtu {
        link = link.mtu(mtu);
    }
    if let Some(mac) = change.mac {
        link = link.address(mac.octets().to_vec());
    }
    if let Some(controller) = change.controller {
        link = link.controller(controller);
    }
    if let Some(name) = &change.name {
        link = link.name(name.clone());
    }
    if let Some(queue) = change.queue {
        link = link.txqueuelen(queue);
    }
    if let Some(namespace) = &change.namespace {
        link = link.setns_by_fd(namespace.as_fd().as_raw_fd());
    }
    let mut requests = Vec::new();
    if change.no_link_local {
        requests.push(no_link_local(index));
    }
    requests.push(Request::from_message(RouteNetlinkMessage::SetLink(link.build()), 0));
    connection.apply(&requests).await.into_iter().collect()
}

/// Deletes the device of this index; fine if it is gone already.
///
/// # Errors
///
/// What the kernel said.
///
/// # Cancel safety
///
/// Dropping the future leaves the device there or gone.
pub async fn delete_link(connection: &mut Connection, index: u32) -> Result<(), KernelError> {
    match connection.apply_one(Link::delete(index)).await {
        Err(error) if error.not_found() => Ok(()),
        result => result,
    }
}

async fn read_back(connection: &mut Connection, name: &str) -> Result<Link, KernelError> {
    link_by_name(connection, name).await?.ok_or_else(|| {
        KernelError::with_message(nix::libc::ENODEV, "the device vanished right after it was made")
    })
}

fn found(result: Result<Link, KernelError>) -> Result<Option<Link>, KernelError> {
    match result {
        Ok(link) => Ok(Some(link)),
        Err(error) if error.not_found() => Ok(None),
        Err(error) => Err(error),
    }
}

/// Whether the device can be used for `kind` without making it anew.
fn can_become(link: &Link, kind: &LinkSpecKind) -> bool {
    match (&link.kind, kind) {
        (LinkKind::Bridge, LinkSpecKind::Bridge) | (LinkKind::Veth, LinkSpecKind::Veth { .. }) => {
            true
        }
        (LinkKind::Other(kind), LinkSpecKind::Wireguard) => kind == "wireguard",
        (LinkKind::Vxlan(actual), LinkSpecKind::Vxlan(wanted)) => {
            fn agree<T: PartialEq>(actual: Option<T>, wanted: Option<T>) -> bool {
                actual.is_none() || wanted.is_none() || actual == wanted
            }
            actual.vni == wanted.vni
                && agree(actual.port, wanted.port)
                && agree(
                    actual.local.map(|local| local.is_ipv4()),
                    wanted.local.map(|local| local.is_ipv4()),
                )
                // The kernel does not unbind a device.
                && match wanted.parent {
                    Some(0) => actual.parent.is_none(),
                    wanted => agree(actual.parent, wanted),
                }
                && (wanted.group.is_some_and(|group| group.is_unspecified())
                    || agree(actual.group, wanted.group))
                && (actual.gbp, actual.l2miss, actual.l3miss, actual.proxy, actual.rsc)
                    == (wanted.gbp, wanted.l2miss, wanted.l3miss, wanted.proxy, wanted.rsc)
        }
        _ => false,
    }
}

/// Brings what can change to what `spec` says; true if anything was written.
async fn alter(
    connection: &mut Connection,
    link: &Link,
    spec: &LinkSpec,
) -> Result<bool, KernelError> {
    let change = LinkChange {
        up: (link.up != spec.up).then_some(spec.up),
        mtu: spec.mtu.filter(|mtu| *mtu != link.mtu),
        mac: spec.mac.filter(|mac| Some(*mac) != link.mac),
        no_link_local: spec.no_link_local && link.link_local,
        ..LinkChange::default()
    };
    let mut written = false;
    if let (LinkKind::Vxlan(actual), LinkSpecKind::Vxlan(wanted)) = (&link.kind, &spec.kind) {
        // The kernel takes another address in the place of one, and none in the place of none.
        let local = wanted.local.filter(|local| actual.local.is_some_and(|it| it != *local));
        let is_other = |group: &IpAddr| match actual.group {
            Some(actual) => actual != *group,
            None => !group.is_unspecified(),
        };
        let group = wanted.group.filter(is_other);
        let compared = |vxlan: &Vxlan| (vxlan.learning, vxlan.ttl, vxlan.tos);
        let (learning, ttl, tos) = compared(wanted);
        if compared(actual) != compared(wanted) || local.is_some() || group.is_some() {
            let message = LinkVxlan::new(&spec.name, wanted.vni).index(link.index);
            let message =
                with_group(with_local(message.learning(learning).ttl(ttl).tos(tos), local), group);
            let mut message = message.build();
            // Linux before 6.2 takes the name for a new one even if it is the same, and renames no device that is up.
            message.attributes.retain(|it| !matches!(it, LinkAttribute::IfName(_)));
            let request = Request::from_message(RouteNetlinkMessage::NewLink(message), 0);
            connection.apply_one(request).await?;
            written = true;
        }
    }
    let LinkChange { up, mtu, mac, no_link_local, .. } = &change;
    if up.is_some() || mtu.is_some() || mac.is_some() || *no_link_local {
        alter_link(connection, link.index, &change).await?;
        written = true;
    }
    Ok(written)
}
