//! Sets the loopback interface of a container up.

use flannel_netlink::{
    LinkChange, alter_link, link_by_name, list_addresses,
    state::{Address, AddressFilter, Link},
};

use crate::{
    plugin::Call,
    protocol::{AddResult, Code, Error, Interface, Ip, Verb},
};

pub(crate) async fn execute(call: &Call) -> Result<Option<AddResult>, Error> {
    match call.environment.verb {
        Verb::Add => add(call).await.map(Some),
        Verb::Check => check(call).await.map(|()| None),
        Verb::Del => del(call).await.map(|()| None),
        Verb::Gc | Verb::Status | Verb::Version => Ok(None),
    }
}

async fn add(call: &Call) -> Result<AddResult, Error> {
    let sandbox = call.existing_sandbox()?;
    let ((), mut connection) = sandbox.connect(|| ())?;
    let lo = loopback(&mut connection).await?;
    set_up(&mut connection, &lo, true).await?;
    let filter = AddressFilter { link: Some(lo.index) };
    let addresses = list_addresses(&mut connection, filter).await.map_err(|error| {
        Error::new(Code::Kernel, format!("cannot list the addresses of {NAME}: {error}"))
    })?;
    if let Some(odd) = addresses.iter().find(|it| !it.address.ip().is_loopback()) {
        let message = format!("loopback interface found with non-loopback address {}", odd.address);
        return Err(Error::new(Code::Kernel, message));
    }
    // What came before in the chain is passed on.
    if let Some(previous) = call.config.previous()? {
        return Ok(previous);
    }
    let mut result = AddResult::default();
    result.interfaces.push(Interface {
        name: NAME.to_owned(),
        mac: "00:00:00:00:00:00".to_owned(),
        sandbox: sandbox.path,
        ..Interface::default()
    });
    for ipv4 in [true, false] {
        let first = addresses.iter().find(|it: &&Address| it.address.is_ipv4() == ipv4);
        let ip = |it: &Address| Ip { interface: Some(0), address: it.address, gateway: None };
        result.ips.extend(first.map(ip));
    }
    Ok(result)
}

async fn check(call: &Call) -> Result<(), Error> {
    let ((), mut connection) = call.existing_sandbox()?.connect(|| ())?;
    match loopback(&mut connection).await?.up {
        true => Ok(()),
        false => Err(Error::new(Code::NotAsExpected, "loopback interface is down")),
    }
}

async fn del(call: &Call) -> Result<(), Error> {
    let Some(sandbox) = call.sandbox()? else { return Ok(()) };
    let ((), mut connection) = sandbox.connect(|| ())?;
    let lo = loopback(&mut connection).await?;
    set_up(&mut connection, &lo, false).await
}

async fn loopback(connection: &mut flannel_netlink::Connection) -> Result<Link, Error> {
    let found = link_by_name(connection, NAME).await;
    let found = found.map_err(|error| error.to_string());
    found.and_then(|link| link.ok_or_else(|| "there is none".to_owned())).map_err(|reason| {
        Error::new(Code::Kernel, format!("cannot look up interface {NAME}: {reason}"))
    })
}

async fn set_up(
    connection: &mut flannel_netlink::Connection,
    lo: &Link,
    up: bool,
) -> Result<(), Error> {
    let change = LinkChange { up: Some(up), ..LinkChange::default() };
    alter_link(connection, lo.index, &change).await.map_err(|error| {
        let state = if up { "up" } else { "down" };
        Error::new(Code::Kernel, format!("cannot set {NAME} {state}: {error}"))
    })
}

const NAME: &str = "lo";
