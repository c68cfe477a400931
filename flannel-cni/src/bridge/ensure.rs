//! The node's side: what containers share. It is looked at for each of them, and written where it is not right.

use flannel_netlink::{
    Connection, link_by_name, list_addresses,
    state::{Address, AddressFilter, Link, LinkKind, MacAddress},
};
use ipnetwork::IpNetwork;

use super::{add::existing, bridge_keys::Bridge};
use crate::{
    kernel::{self, BridgeSpec, refused, sysctl},
    plugin::Call,
    protocol::{Code, Error},
    sandbox::chain,
};

/// Makes the bridge, or takes the one that is there.
pub(super) async fn bridge(
    host: &mut Connection,
    call: &Call,
    bridge: &Bridge,
) -> Result<Link, Error> {
    let name = &*bridge.name;
    let what = || format!("failed to create bridge {name:?}");
    let found = link_by_name(host, name).await.map_err(|error| refused(what(), &error))?;
    let link = match found {
        Some(link) => link,
        None => {
            let spec = BridgeSpec {
                name,
                mtu: bridge.mtu,
                mac: kernel::random_mac(),
                promiscuous: bridge.promiscuous,
                vlan_filtering: bridge.vlans.filtering,
            };
            match host.apply_one(kernel::bridge(&spec)).await {
                // Another container came first.
                Err(error) if !error.exists() => return Err(bridge.vlans.refused(what(), &error)),
                _ => {
                    if !bridge.detect_duplicates {
                        // Until its own address is settled, it would not ask for containers on behalf of other hosts.
                        let setting = format!("ipv6/conf/{name}/accept_dad");
                        in_host(call, || sysctl::try_set(&setting, "0"))?;
                    }
                    existing(host, name).await?
                }
            }
        }
    };
    if link.kind != LinkKind::Bridge {
        let message = format!("{}: {name:?} already exists but is not a bridge", what());
        return Err(Error::new(Code::Kernel, message));
    }
    if !link.up || bridge.promiscuous {
        let request = kernel::set_flags(link.index, true, bridge.promiscuous);
        host.apply_one(request)
            .await
            .map_err(|error| refused(format!("failed to set {name:?} up"), &error))?;
    }
    let setting = format!("ipv6/conf/{name}/accept_ra");
    // Its routes are ours.
    in_host(call, || sysctl::try_set(&setting, "0"))?;
    Ok(link)
}

/// Gives the bridge these addresses. A bridge that gets its first one keeps its Ethernet address from then on.
pub(super) async fn addresses(
    host: &mut Connection,
    link: &Link,
    wanted: &[IpNetwork],
    force: bool,
) -> Result<(), Error> {
    let filter = AddressFilter { link: Some(link.index) };
    let what = format!("could not get list of IP addresses of {:?}", link.name);
    let found = list_addresses(host, filter).await.map_err(|error| refused(what, &error))?;
    let mut steps = Vec::new();
    let is_there = |address: IpNetwork| found.iter().any(|it| it.address == address);
    let missing: Vec<_> = wanted.iter().filter(|address| !is_there(**address)).collect();
    for other in found.iter().filter(|it| !wanted.contains(&it.address)) {
        if let Some(address) = missing.iter().find(|address| conflict(other, ***address)) {
            if !force {
                let message =
                    format!("{:?} already has an IP address different from {address}", link.name);
                return Err(Error::new(Code::Kernel, message).with_details(format!(
                    "it has {}; remove that, or the bridge, or set forceAddress",
                    other.address
                )));
            }
            let what =
                format!("could not remove IP address {} from {:?}", other.address, link.name);
            steps.push((other.delete(), what));
        }
    }
    for address in missing {
        let what = format!("could not add IP address {address} to {:?}", link.name);
        steps.push((kernel::add_address(link.index, *address, false), what));
    }
    if steps.is_empty() {
        return Ok(());
    }
    let mac =
        link.mac.filter(|mac: &MacAddress| mac.is_unicast()).unwrap_or_else(kernel::random_mac);
    let what = format!("could not set the MAC of {:?}", link.name);
    steps.insert(0, (kernel::pin_mac(link.index, mac), what));
    match kernel::apply(host, steps).await {
        // Another container's plugin may have been quicker.
        Err(error) => {
            let now = list_addresses(host, filter).await.unwrap_or_default();
            match wanted.iter().all(|address| now.iter().any(|it| it.address == *address)) {
                true => Ok(()),
                false => Err(error),
            }
        }
        done => done,
    }
}

/// Of IPv4 one address is enough; of IPv6 those of other subnets may stay.
fn conflict(found: &Address, wanted: IpNetwork) -> bool {
    match (found.address, wanted) {
        (IpNetwork::V4(_), IpNetwork::V4(_)) => true,
        (IpNetwork::V6(found), IpNetwork::V6(wanted)) => {
            found.contains(wanted.ip()) || wanted.contains(found.ip())
        }
        _ => false,
    }
}

/// Has the node forward packets of the families of these addresses.
pub(super) fn forwarding(call: &Call, addresses: &[IpNetwork]) -> Result<(), Error> {
    for (setting, ipv4) in [("ipv4/ip_forward", true), ("ipv6/conf/all/forwarding", false)] {
        if addresses.iter().any(|address| address.is_ipv4() == ipv4) {
            in_host(call, || sysctl::ensure(setting, "1"))?.map_err(|error| {
                let name = format!("net.{}", setting.replace('/', "."));
                Error::new(Code::Io, format!("failed to enable forwarding: {name}: {error}"))
                    .with_details(format!("set it outside of this program: sysctl -w {name}=1"))
            })?;
        }
    }
    Ok(())
}

/// Runs `f` in the node's namespace.
pub(super) fn in_host<T: Send>(call: &Call, f: impl FnOnce() -> T + Send) -> Result<T, Error> {
    call.host.run(f).map_err(|error| Error::new(Code::Io, chain(&error)))
}
