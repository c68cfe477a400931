//! The container's side.

use std::io;

use flannel_netlink::{
    Connection, Monitor, Topic, list_addresses,
    state::{AddressFilter, Link},
};
use tokio::time::{Duration, timeout};

use super::{add, bridge_keys::Bridge, gateways};
use crate::{
    kernel::{self, refused, sysctl},
    plugin::Call,
    protocol::{AddResult, Code, Error, Interface},
    sandbox::Sandbox,
};

/// Gives the interface its addresses, sets it up, and adds the routes. Returns the connection to the container's kernel as well.
pub(super) async fn configure(
    call: &Call,
    bridge: &Bridge,
    sandbox: &Sandbox,
    result: &AddResult,
) -> Result<(Interface, Connection), Error> {
    let name = &*call.environment.interface;
    let has_ipv6 = result.ips.iter().any(|ip| ip.address.is_ipv6());
    let with_addresses = !result.ips.is_empty();
    let (set, mut connection) = sandbox.connect(|| match with_addresses {
        true => settings(name, has_ipv6, bridge.detect_duplicates),
        false => Ok(()),
    })?;
    set.map_err(|(setting, error)| {
        Error::new(Code::Io, format!("failed to set {setting} in the container: {error}"))
    })?;
    let link = add::existing(&mut connection, name).await?;
    let mut steps = Vec::new();
    for ip in &result.ips {
        let request = kernel::add_address(link.index, ip.address, bridge.detect_duplicates);
        steps.push((request, format!("failed to add IP addr {} to {name:?}", ip.address)));
    }
    if with_addresses {
        steps.push((
            kernel::set_flags(link.index, true, false),
            format!("failed to set {name:?} UP"),
        ));
    } else if bridge.container_interface {
        add::set_up(&mut connection, &link).await?;
    }
    if has_ipv6 && bridge.detect_duplicates {
        // Only an address that is settled is one to send from.
        kernel::apply(&mut connection, std::mem::take(&mut steps)).await?;
        settle(&mut connection, sandbox, &link).await?;
    }
    for route in &result.routes {
        let route = gateways::with_gateway(route, &result.ips);
        let via = route.gw.map(|gw| format!(" via {gw}")).unwrap_or_default();
        let what = format!("failed to add route {}{via} dev {name}", route.dst);
        steps.push((kernel::add_route(link.index, &route), what));
    }
    kernel::apply(&mut connection, steps).await?;
    let mac = link.mac.map(|mac| mac.to_string()).unwrap_or_default();
    let sandbox = sandbox.path.clone();
    Ok((Interface { name: link.name, mac, sandbox, ..Interface::default() }, connection))
}

/// What an interface needs before it gets addresses.
fn settings(
    name: &str,
    has_ipv6: bool,
    detect_duplicates: bool,
) -> Result<(), (String, io::Error)> {
    let of_ipv6 = |setting: &str| format!("ipv6/conf/{name}/{setting}");
    if detect_duplicates {
        sysctl::try_set(&of_ipv6("enhanced_dad"), "1");
    }
    sysctl::try_set(&of_ipv6("accept_dad"), if detect_duplicates { "1" } else { "0" });
    // Neighbours learn at once that an address is elsewhere now.
    sysctl::try_set(&format!("ipv4/conf/{name}/arp_notify"), "1");
    if has_ipv6 {
        let ensure = |setting: String, value| {
            sysctl::ensure(&setting, value).map_err(|error| (format!("net/{setting}"), error))
        };
        ensure("ipv6/conf/lo/disable_ipv6".to_owned(), "0")?;
        ensure(of_ipv6("disable_ipv6"), "0")?;
        ensure(of_ipv6("keep_addr_on_down"), "1")?;
    }
    Ok(())
}

/// Waits until no address of the interface is being asked for any more.
async fn settle(connection: &mut Connection, sandbox: &Sandbox, link: &Link) -> Result<(), Error> {
    let failed = |error: &dyn std::error::Error| {
        let message = format!("failed to settle addresses: {}", crate::sandbox::chain(error));
        Error::new(Code::Kernel, message)
    };
    let topics = [Topic::Addresses];
    let mut monitor =
        Monitor::open_for(&sandbox.namespace, &topics).map_err(|error| failed(&error))?;
    let settled = async {
        loop {
            let filter = AddressFilter { link: Some(link.index) };
            let listed = list_addresses(connection, filter).await;
            let listed = listed.map_err(|error| refused("failed to settle addresses", &error))?;
            if let Some(address) = listed.iter().find(|address| address.duplicate) {
                let message = format!(
                    "link {} has address {} that another host has",
                    link.name, address.address
                );
                return Err(Error::new(Code::Kernel, message));
            }
            if !listed.iter().any(|address| address.tentative) {
                return Ok(());
            }
            monitor.next().await.map_err(|error| failed(&error))?;
        }
    };
    timeout(SETTLE_DEADLINE, settled).await.unwrap_or_else(|_| {
        let message =
            format!("addresses of {} are still tentative after {SETTLE_DEADLINE:?}", link.name);
        Err(Error::new(Code::Kernel, message))
    })
}

/// As containernetworking's plugins.
const SETTLE_DEADLINE: Duration = Duration::from_secs(5);
