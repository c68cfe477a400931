use flannel_netlink::{
    Connection, LinkChange, Monitor, Namespace, Topic, alter_link, delete_link, link_by_name,
    state::Link,
};
use tokio::time::{Duration, timeout};

use super::{ask_ipam, config::Bridge, del, ensure, gateways, pod};
use crate::{
    delegate::{self, Role},
    kernel::{self, Port, VethSpec, refused},
    plugin::Call,
    protocol::{AddResult, Code, Error, Interface, Verb},
    rules::masquerade,
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
        let _ = ask_ipam(call, bridge, Verb::Del).await;
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
    let name = make_pair(&mut host, call, bridge, &master, sandbox).await?;
    let wired = wire(&mut host, call, bridge, &master, &name, sandbox, given).await;
    if wired.is_err() {
        if let Ok(Some(link)) = link_by_name(&mut host, &name).await {
            let _ = delete_link(&mut host, link.index).await;
        }
        let _ = del::rules(call, bridge).await;
    }
    wired
}

/// Makes the pair, and returns the name of the node's end.
async fn make_pair(
    host: &mut Connection,
    call: &Call,
    bridge: &Bridge,
    master: &Link,
    sandbox: &Sandbox,
) -> Result<String, Error> {
    let peer = &*call.environment.interface;
    for _ in 0..NAME_ATTEMPTS {
        let name = format!("veth{:08x}", kernel::random() as u32);
        let spec = VethSpec {
            name: &name,
            bridge: master.index,
            peer,
            peer_namespace: &sandbox.namespace,
            peer_mac: bridge.mac,
            mtu: bridge.mtu,
        };
        let port = Port { hairpin: bridge.hairpin, isolated: bridge.isolated };
        let results = host.apply(&[kernel::veth(&spec), port.request(&name)]).await;
        match &results[..] {
            [Ok(()), Ok(())] => return Ok(name),
            [Ok(()), Err(error)] => {
                if let Ok(Some(link)) = link_by_name(host, &name).await {
                    let _ = delete_link(host, link.index).await;
                }
                return Err(refused(
                    format!("cannot set up port {name} of {}", bridge.name),
                    error,
                ));
            }
            [Err(error), ..] if !error.exists() => {
                return Err(refused("failed to make veth pair", error));
            }
            // Of the two names, is it the one that was drawn?
            [Err(_), ..] if matches!(link_by_name(host, &name).await, Ok(Some(_))) => {}
            _ => {
                let message = format!(
                    "container veth name ({peer:?}) peer provided ({name:?}) already exists"
                );
                return Err(Error::new(Code::Kernel, message)
                    .with_details("the container has such an interface"));
            }
        }
    }
    Err(Error::new(Code::Kernel, "failed to find a unique veth name"))
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
    let (interface, mut inside) = pod::configure(call, bridge, sandbox, &result).await?;
    ensure::addresses(host, master, &of_bridge, bridge.force_address).await?;
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
    if !bridge.dns.is_empty() {
        result.dns = bridge.dns.clone();
    }
    Ok(result)
}

/// Waits until the kernel says that this end of the pair carries packets.
async fn until_running(
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

/// Sets the interface of a container up that gets no address.
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

/// As containernetworking's plugin.
const NAME_ATTEMPTS: usize = 10;
/// Twice what containernetworking's plugin waits.
const PORT_DEADLINE: Duration = Duration::from_secs(5);
