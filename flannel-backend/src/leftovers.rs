//! Devices and filters of ours that an earlier configuration has left.

use flannel_core::BackendError;
use flannel_netlink::{
    Connection, Message, Namespace, delete_link, list_addresses, list_links,
    state::{Address, AddressFilter, IpFamily, Link, LinkKind},
};
use ipnetwork::IpNetwork;
use tracing::info;

use crate::{
    filter::{self, Direction, Label},
    network_number,
};

/// Removes the devices that another backend or another VNI of ours has left in `namespace`, except those named in `keep`, and
/// returns their names. Routes need no such care: they carry our mark.
///
/// A device is ours if it is a VXLAN device with [our name](vxlan_device) for its VNI, a TUN device of the name `flannel` with a number
/// that nobody is attached to, or a WireGuard device or such a TUN device of the name `flannel-wg`, `flannel-wg-v6`, `flannel-wg2` or
/// `flannel-wg2-v6`; it is no port of a bridge, and it has addresses of single hosts inside of `networks` and no others, link-local
/// ones aside.
///
/// Filters whose [`Label`] names these networks go first, but for those that give packets to a device in `keep`.
///
/// # Errors
///
/// [`BackendError::Kernel`] if the kernel cannot be asked or refuses.
///
/// # Cancel safety
///
/// Dropping it leaves a part of them; another call removes the rest.
pub async fn remove_leftovers(
    namespace: &Namespace,
    networks: &[IpNetwork],
    keep: &[String],
) -> Result<Vec<String>, BackendError> {
    let mut connection =
        Connection::open(namespace).map_err(|error| refused("list devices", error))?;
    let links =
        list_links(&mut connection).await.map_err(|error| refused("list devices", error))?;
    for link in &links {
        remove_filters(&mut connection, link, networks, keep).await?;
    }
    let mut removed = Vec::new();
    for link in links.into_iter().filter(|link| !keep.contains(&link.name)) {
        if !is_named(&link) {
            continue;
        }
        let filter = AddressFilter { link: Some(link.index) };
        let addresses = list_addresses(&mut connection, filter).await;
        let addresses = addresses.map_err(|error| refused("list addresses", error))?;
        if !has_our_addresses(&addresses, networks) || is_attached(&mut connection, &link).await? {
            continue;
        }
        delete_link(&mut connection, link.index)
            .await
            .map_err(|error| refused(&format!("delete {link}"), error))?;
        info!(device = link.name, "device of an earlier configuration removed");
        removed.push(link.name);
    }
    Ok(removed)
}

/// The name of the VXLAN device of a family: flannel's, `flannel.VNI` or `flannel-v6.VNI`; where that is longer than the kernel takes,
/// which is from 10,000,000 and 10,000 on, `fl-v4.VNI` or `fl-v6.VNI`.
pub fn vxlan_device(family: IpFamily, vni: u32) -> String {
    let (usual, short) = match family {
        IpFamily::V4 => ("flannel", "fl-v4"),
        IpFamily::V6 => ("flannel-v6", "fl-v6"),
    };
    let name = format!("{usual}.{vni}");
    if name.len() <= LONGEST_NAME { name } else { format!("{short}.{vni}") }
}

/// Whether a process is attached to a TUN device. [`Link::running`] says so up to a second longer than it is true.
async fn is_attached(connection: &mut Connection, link: &Link) -> Result<bool, BackendError> {
    if !matches!(&link.kind, LinkKind::Other(kind) if kind == "tun") {
        return Ok(false);
    }
    match connection.get(&Link::by_index(link.index), has_carrier).await {
        Err(error) if error.not_found() => Ok(false),
        answer => answer.map_err(|error| refused("look at a device", error)),
    }
}

/// The flag by which the kernel tells of a carrier at once.
fn has_carrier(message: &Message<'_>) -> Option<bool> {
    let (header, _) = message.split(IFINFOMSG_BYTES)?;
    let flags = header.get(8..)?.first_chunk().map(|bytes| u32::from_ne_bytes(*bytes))?;
    Some(flags & IFF_LOWER_UP != 0)
}

async fn remove_filters(
    connection: &mut Connection,
    link: &Link,
    networks: &[IpNetwork],
    keep: &[String],
) -> Result<(), BackendError> {
    let listed = filter::list_filters(connection, link.index, Direction::In).await;
    let number = network_number(networks);
    for filter in listed.map_err(|error| refused("list filters", error))? {
        let Some(label) = filter.label.as_ref().and_then(|label| label.parse::<Label>().ok())
        else {
            continue;
        };
        let is_left = filter.priority == filter::PRIORITY
            && label.network == number
            && !keep.contains(&label.device);
        if is_left {
            filter::remove_filter(
                connection,
                link.index,
                Direction::In,
                filter.handle,
                label.made_qdisc,
            )
            .await
            .map_err(|error| refused(&format!("delete a filter of {link}"), error))?;
            info!(device = link.name, "filter of an earlier configuration removed");
        }
    }
    Ok(())
}

fn refused(operation: &str, error: impl std::error::Error + Send + Sync + 'static) -> BackendError {
    BackendError::Kernel { operation: operation.to_owned(), source: error.into() }
}

/// Those of both names of the backend.
const WIREGUARD_DEVICES: [&str; 4] =
    ["flannel-wg", "flannel-wg-v6", "flannel-wg2", "flannel-wg2-v6"];

fn is_named(link: &Link) -> bool {
    let is_wireguards = || WIREGUARD_DEVICES.contains(&&*link.name);
    let is_named = match &link.kind {
        LinkKind::Other(kind) if kind == "tun" => {
            let number = link.name.strip_prefix("flannel").unwrap_or_default();
            let is_udps = !number.is_empty() && number.bytes().all(|c| c.is_ascii_digit());
            is_udps || is_wireguards()
        }
        LinkKind::Other(kind) if kind == "wireguard" => is_wireguards(),
        LinkKind::Vxlan(vxlan) => {
            IpFamily::ALL.iter().any(|family| vxlan_device(*family, vxlan.vni) == link.name)
        }
        _ => false,
    };
    is_named && link.controller.is_none()
}

fn has_our_addresses(addresses: &[Address], networks: &[IpNetwork]) -> bool {
    let link_local = |address: &&Address| match address.address {
        IpNetwork::V4(_) => false,
        IpNetwork::V6(v6) => v6.ip().is_unicast_link_local(),
    };
    let mut others = addresses.iter().filter(|address| !link_local(address)).peekable();
    let ours = |address: &Address| {
        let single = match address.address {
            IpNetwork::V4(v4) => v4.prefix() == 32,
            IpNetwork::V6(v6) => v6.prefix() == 128,
        };
        single && networks.iter().any(|network| network.contains(address.address.ip()))
    };
    others.peek().is_some() && others.all(ours)
}

/// `IFNAMSIZ` without the zero at its end.
const LONGEST_NAME: usize = 15;

// linux/if.h and linux/rtnetlink.h
const IFF_LOWER_UP: u32 = 1 << 16;
const IFINFOMSG_BYTES: usize = 16;

#[cfg(test)]
mod tests {
    use flannel_netlink::state::Vxlan;

    use super::*;

    fn link(name: &str, kind: LinkKind) -> Link {
        Link {
            index: 7,
            name: name.into(),
            kind,
            mac: None,
            mtu: 1450,
            queue: 0,
            up: true,
            running: true,
            loopback: false,
            controller: None,
            parent: None,
            link_local: false,
        }
    }

    #[test]
    fn only_a_vxlan_device_with_its_own_vni_in_the_name_is_named_like_ours() {
        let vxlan = || LinkKind::Vxlan(Vxlan::new(7));
        assert!(is_named(&link("flannel.7", vxlan())));
        assert!(is_named(&link("flannel-v6.7", vxlan())));
        for (name, kind) in [
            ("flannel.8", vxlan()),
            ("flannel.07", vxlan()),
            ("flannel.7x", vxlan()),
            ("vxlan.7", vxlan()),
            ("flannel.7", LinkKind::Bridge),
        ] {
            assert!(!is_named(&link(name, kind)), "{name}");
        }
        assert!(!is_named(&Link { controller: Some(3), ..link("flannel.7", vxlan()) }));
    }

    #[test]
    fn the_name_of_a_device_fits_whatever_its_vni() {
        for (vni, v4, v6) in [
            (1, "flannel.1", "flannel-v6.1"),
            (9999, "flannel.9999", "flannel-v6.9999"),
            (10_000, "flannel.10000", "fl-v6.10000"),
            (9_999_999, "flannel.9999999", "fl-v6.9999999"),
            (10_000_000, "fl-v4.10000000", "fl-v6.10000000"),
            ((1 << 24) - 1, "fl-v4.16777215", "fl-v6.16777215"),
        ] {
            let names = IpFamily::ALL.map(|family| vxlan_device(family, vni));
            assert_eq!(names, [v4, v6]);
            assert!(names.iter().all(|name| name.len() <= LONGEST_NAME), "{names:?}");
            assert!(is_named(&link(v6, LinkKind::Vxlan(Vxlan::new(vni)))));
        }
    }

    #[test]
    fn only_a_tun_device_with_a_number_or_of_wireguards_names_is_named_like_ours() {
        let tun = |name: &str| link(name, LinkKind::Other("tun".into()));
        assert!(is_named(&tun("flannel0")));
        assert!(is_named(&tun("flannel12")));
        assert!(WIREGUARD_DEVICES.iter().all(|name| is_named(&tun(name))));
        for name in ["flannel", "flannelx", "flannel-1", "tun0", "0"] {
            assert!(!is_named(&tun(name)), "{name}");
        }
        assert!(!is_named(&link("flannel0", LinkKind::Bridge)));
    }

    #[test]
    fn only_a_wireguard_device_of_our_names_is_named_like_ours() {
        let wireguard = |name: &str| link(name, LinkKind::Other("wireguard".into()));
        assert!(WIREGUARD_DEVICES.iter().all(|name| is_named(&wireguard(name))));
        for name in ["wg0", "flannel-wg0", "flannel-wg1", "flannel0", "flannel.1"] {
            assert!(!is_named(&wireguard(name)), "{name}");
        }
        assert!(!is_named(&link("flannel-wg", LinkKind::Bridge)));
    }

    #[test]
    fn only_single_addresses_inside_of_the_network_are_like_ours() {
        let networks = ["10.244.0.0/16".parse().unwrap(), "fd00:10:244::/48".parse().unwrap()];
        let ours = |addresses: &[&str]| {
            let addresses: Vec<_> =
                addresses.iter().map(|text| Address::new(7, text.parse().unwrap())).collect();
            has_our_addresses(&addresses, &networks)
        };
        assert!(ours(&["10.244.1.0/32"]));
        assert!(ours(&["fe80::1/64", "fd00:10:244:1::/128"]));
        assert!(!ours(&[]), "nothing says whose it is");
        assert!(!ours(&["fe80::1/64"]));
        assert!(!ours(&["10.244.1.0/32", "192.0.2.1/32"]), "somebody uses it for more");
        assert!(!ours(&["10.244.1.1/24"]));
        assert!(!ours(&["10.245.1.0/32"]));
    }
}
