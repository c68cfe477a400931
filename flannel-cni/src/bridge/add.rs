use flannel_netlink::{
    Connection, LinkChange, Monitor, Namespace, Topic, alter_link, delete_link, link_by_name,
    state::Link,
};
use tokio::time::{Duration, timeout};

use super::{
    ask_ipam, bandwidth,
    bridge_keys::Bridge,
    del, ensure, gateways,
    pair::{self, Pair},
    pod, vlans,
};
use crate::{
    delegate::{self, Role},
    kernel::{self, Port, refused},
    plugin::Call,
    protocol::{AddResult, Code, Error, Interface, Verb},
    rules::{masquerade, spoof_check},
    sandbox::Sandbox,
};

pub(super) async fn add(call: &Call, bridge: &Bridge) -> Result<AddResult, Error> {
    let sandbox = call.existing_sandbox()?;
    let given = match &bridge.ipam {
        Some(plugin) => delegate::add(call, Role::Ipam, plugin, call.config.object.clone()).await?,
        None => AddResult::default(),
    };
    let added = match bridge.ipam.is_some() && given.ips.is_empty() {
        true => Err(Error::new(Code::Delegate, "IPAM plugin returned missing IP config")),
        false => connect(call, bridge, &sandbox, given).await,
    };
    if added.is_err() {
        // What failed first is what the runtime is told; what is left now goes with DEL.
        let _ = ask_ipam(call, bridge.ipam.as_deref(), Verb::Del).await;
    }
    added
}

async fn connect(
    call: &Call,
    bridge: &Bridge,
    sandbox: &Sandbox,
    given: AddResult,
) -> Result<AddResult, Error> {
    let mut host = kernel::connect(&call.host)?;
    let master = ensure::bridge(&mut host, call, bridge).await?;
    // What is looked for in its packets has to be known before it can send any.
    let mac = bridge.mac.or_else(|| bridge.spoof_check.then(kernel::random_mac));
    let pair = Pair {
        peer: &call.environment.interface,
        peer_namespace: &sandbox.namespace,
        peer_mac: mac,
        mtu: bridge.mtu,
        port: Port { hairpin: bridge.hairpin, isolated: bridge.isolated },
    };
    let name = pair::make(&mut host, &master, &pair).await?;
    let wired = async {
        if let Some(mac) = mac.filter(|_| bridge.spoof_check) {
            let network = &call.config.name;
            spoof_check::add(&call.host, network, &call.attachment(), &name, mac).await?;
        }
        wire(&mut host, call, bridge, &master, &name, sandbox, given).await
    };
    let wired = wired.await;
    if wired.is_err() {
        if let Ok(Some(link)) = link_by_name(&mut host, &name).await {
            let _ = delete_link(&mut host, link.index).await;
        }
        let _ = del::rules(call).await;
    }
    wired
}

async fn wire(
    host: &mut Connection,
    call: &Call,
    bridge: &Bridge,
    master: &Link,
    name: &str,
    sandbox: &Sandbox,
    given: AddResult,
) -> Result<AddResult, Error> {
    let AddResult { ips, routes, dns, .. } = given;
    let mut result = AddResult { ips, routes, dns, ..AddResult::default() };
    let of_bridge = gateways::complete(&mut result, bridge, 2);
    let port = existing(host, name).await?;
    vlans::join(host, &port, &bridge.vlans).await?;
    bandwidth::set(host, &port, bridge.bandwidth).await?;
    let (interface, mut inside) = pod::configure(call, bridge, sandbox, &result).await?;
    let gateway = match bridge.vlans.id {
        0 => None,
        _ if of_bridge.is_empty() => None,
        _ => Some(vlans::gateway(host, call, bridge, master).await?),
    };
    let with_addresses = gateway.as_ref().unwrap_or(master);
    ensure::addresses(host, with_addresses, &of_bridge, bridge.force_address).await?;
    ensure::forwarding(call, &of_bridge)?;
    if bridge.masquerade && !result.ips.is_empty() {
        let addresses: Vec<_> = result.ips.iter().map(|ip| ip.address).collect();
        let (backend, name) = (bridge.masquerade_backend, &call.config.name);
        masquerade::add(&call.host, backend, name, &call.attachment(), &addresses).await?;
    }
    let port = match bridge.container_interface {
        true => {
            until_running(&mut inside, &sandbox.namespace, &interface.name).await?;
            until_running(host, &call.host, name).await?
        }
        false => port,
    };
    let master = existing(host, &bridge.name).await?;
    result.interfaces = vec![of(&master), of(&port), interface];
    result.interfaces.extend(gateway.as_ref().map(of));
    if !bridge.dns.is_empty() {
        result.dns = bridge.dns.clone();
    }
    Ok(result)
}

/// Waits until the kernel says that this end of the pair carries packets.
pub(super) async fn until_running(
    connection: &mut Connection,
    namespace: &Namespace,
    name: &str,
) -> Result<Link, Error> {
    let link = existing(connection, name).await?;
    if link.running {
        return Ok(link);
    }
    let failed = |error: &dyn std::error::Error| {
        let message = format!("cannot watch interface {name}: {}", crate::sandbox::chain(error));
        Error::new(Code::Io, message)
    };
    let mut monitor =
        Monitor::open_for(namespace, &[Topic::Links]).map_err(|error| failed(&error))?;
    let running = async {
        loop {
            let link = existing(connection, name).await?;
            if link.running {
                return Ok(link);
            }
            monitor.next().await.map_err(|error| failed(&error))?;
        }
    };
    timeout(PORT_DEADLINE, running).await.unwrap_or_else(|_| {
        let message = format!("interface {name} did not come up within {PORT_DEADLINE:?}");
        Err(Error::new(Code::Kernel, message))
    })
}

/// Sets an interface up that is not by what gives it addresses.
pub(super) async fn set_up(connection: &mut Connection, link: &Link) -> Result<(), Error> {
    let change = LinkChange { up: Some(true), ..LinkChange::default() };
    alter_link(connection, link.index, &change)
        .await
        .map_err(|error| refused(format!("failed to set {:?} up", link.name), &error))
}

/// The interface of this name, which has to be there.
pub(super) async fn existing(connection: &mut Connection, name: &str) -> Result<Link, Error> {
    match link_by_name(connection, name).await {
        Ok(Some(link)) => Ok(link),
        Ok(None) => {
            Err(Error::new(Code::Kernel, format!("failed to lookup {name:?}: it is not there")))
        }
        Err(error) => Err(refused(format!("failed to lookup {name:?}"), &error)),
    }
}

fn of(link: &Link) -> Interface {
    let mac = link.mac.map(|mac| mac.to_string()).unwrap_or_default();
    Interface { name: link.name.clone(), mac, ..Interface::default() }
}

/// Twice what containernetworking's plugin waits.
const PORT_DEADLINE: Duration = Duration::from_secs(5);
