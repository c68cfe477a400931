use flannel_netlink::{
    Connection, list_addresses, list_routes,
    state::{AddressFilter, IpFamily, Link, LinkKind, Via},
};

use super::{add::existing, ask_ipam, bridge_keys::Bridge};
use crate::{
    kernel::{self, refused},
    plugin::Call,
    protocol::{AddResult, Code, Error, Interface, Verb},
};

/// Compares what is there with what `ADD` answered.
pub(super) async fn check(call: &Call, bridge: &Bridge) -> Result<(), Error> {
    let sandbox = call.existing_sandbox()?;
    ask_ipam(call, bridge.ipam.as_deref(), Verb::Check).await?;
    let Some(previous) = &call.config.previous()? else {
        return Err(Error::new(Code::InvalidConfig, "Required prevResult missing"));
    };
    let interface = &*call.environment.interface;
    let named = |name: &str, sandbox: &str| {
        let found = previous.interfaces.iter().find(|it| it.name == name && it.sandbox == sandbox);
        found.ok_or_else(|| differs(format!("prevResult has no interface {name:?} in {sandbox:?}")))
    };
    let mut host = kernel::connect(&call.host)?;
    let expected = named(&bridge.name, "")?;
    let master = existing(&mut host, &bridge.name).await.map_err(as_differs)?;
    if master.kind != LinkKind::Bridge {
        return Err(differs(format!("interface {:?} is not a bridge", master.name)));
    }
    same_mac(expected, &master)?;
    let ((), mut pod) = sandbox.connect(|| ())?;
    let expected = named(interface, &sandbox.path)?;
    let link = existing(&mut pod, interface).await.map_err(as_differs)?;
    if link.kind != LinkKind::Veth {
        return Err(differs(format!("container interface {interface:?} is not of type veth")));
    }
    if bridge.container_interface && !link.up {
        return Err(differs(format!("container interface {interface:?} is down")));
    }
    same_mac(expected, &link)?;
    check_port(&mut host, previous, &master, &link).await?;
    check_addresses(&mut pod, previous, &link).await?;
    check_routes(&mut pod, previous).await
}

/// One of the node's interfaces is the other end, and a port of the bridge.
async fn check_port(
    host: &mut Connection,
    previous: &AddResult,
    master: &Link,
    link: &Link,
) -> Result<(), Error> {
    let ports = previous.interfaces.iter().filter(|it| it.sandbox.is_empty());
    for expected in ports.filter(|it| it.name != master.name) {
        let port = existing(host, &expected.name).await.map_err(as_differs)?;
        let other_ends = (port.parent, link.parent) == (Some(link.index), Some(port.index));
        if port.kind == LinkKind::Veth && other_ends && port.controller == Some(master.index) {
            return same_mac(expected, &port);
        }
    }
    let message = format!("no port of bridge {:?} leads to {:?}", master.name, link.name);
    Err(differs(message))
}

async fn check_addresses(
    pod: &mut Connection,
    previous: &AddResult,
    link: &Link,
) -> Result<(), Error> {
    let filter = AddressFilter { link: Some(link.index) };
    let what = format!("cannot list the addresses of {:?}", link.name);
    let found = list_addresses(pod, filter).await.map_err(|error| refused(what, &error))?;
    let of_link = previous.ips.iter().filter(|ip| {
        let interface = ip.interface.and_then(|index| previous.interfaces.get(index));
        interface.is_none_or(|interface| interface.name == link.name)
    });
    for ip in of_link {
        if !found.iter().any(|it| it.address == ip.address) {
            let message = format!("interface {:?} does not have {}", link.name, ip.address);
            return Err(differs(message));
        }
    }
    Ok(())
}

async fn check_routes(pod: &mut Connection, previous: &AddResult) -> Result<(), Error> {
    for route in &previous.routes {
        let family = if route.dst.is_ipv4() { IpFamily::V4 } else { IpFamily::V6 };
        let table = route.table.unwrap_or(254);
        let found = list_routes(pod, table, family).await;
        let found = found.map_err(|error| refused("cannot list routes", &error))?;
        let fits = found.iter().any(|it| {
            let gateway = route.gw.is_none_or(|gw| it.via == Via::Gateway(gw));
            (it.destination.network(), it.destination.prefix())
                == (route.dst.network(), route.dst.prefix())
                && gateway
        });
        if !fits {
            let via = route.gw.map(|gw| format!(" via {gw}")).unwrap_or_default();
            return Err(differs(format!("the container has no route {}{via}", route.dst)));
        }
    }
    Ok(())
}

fn same_mac(expected: &Interface, link: &Link) -> Result<(), Error> {
    let mac = link.mac.map(|mac| mac.to_string()).unwrap_or_default();
    if expected.mac.is_empty() || expected.mac.eq_ignore_ascii_case(&mac) {
        return Ok(());
    }
    Err(differs(format!("interface {:?} has MAC {mac}, not {}", link.name, expected.mac)))
}

fn differs(message: String) -> Error {
    Error::new(Code::NotAsExpected, message)
}

fn as_differs(error: Error) -> Error {
    Error { code: Code::NotAsExpected, ..error }
}
