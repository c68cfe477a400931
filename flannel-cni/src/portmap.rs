//! Leads ports of the node to ports of a container, as containernetworking's `portmap` does with its nftables backend.
//!
//! It comes behind a plugin that gave the container its addresses. One transaction of nf_tables makes the rules of both families,
//! without any program.

mod config;
mod conntrack;
mod localnet;
mod rules;

use flannel_firewall::nftables::{Batch, Client, Family};
use ipnetwork::IpNetwork;

use self::config::Portmap;
use crate::{
    kernel::refused,
    plugin::Call,
    protocol::{AddResult, Code, Config, Error, Verb},
    rules::{chain_name, connect, family_of, remove_chain, remove_rules, update},
};

pub(crate) async fn execute(call: &Call) -> Result<Option<AddResult>, Error> {
    let config = match call.environment.verb {
        Verb::Del => Portmap::read_for_removal(&call.config)?,
        _ => Portmap::read(&call.config, &call.environment.interface)?,
    };
    match call.environment.verb {
        Verb::Add => add(call, &config).await.map(Some),
        Verb::Check => check(call, &config).await.map(|()| None),
        Verb::Del => del(call, &config).await.map(|()| None),
        Verb::Status => status(call).await.map(|()| None),
        // The rules say which container they are for, and not of which network it is.
        Verb::Gc | Verb::Version => Ok(None),
    }
}

async fn add(call: &Call, config: &Portmap) -> Result<AddResult, Error> {
    let Some(previous) = call.config.previous()? else {
        return Err(Error::new(Code::InvalidConfig, "must be called as chained plugin"));
    };
    if config.mappings.is_empty() {
        return Ok(previous);
    }
    let mut client = connect(&call.host)?;
    let what = "unable to set up nftables rules for port mappings";
    update(&mut client, what, async |client| {
        let mut batch = Batch::default();
        for address in &config.addresses {
            let mut listed = Vec::new();
            for chain in rules::SHARED {
                listed.extend(client.chain_rules(family_of(*address), rules::TABLE, chain).await?);
            }
            let id = &call.environment.container_id;
            rules::add(&mut batch, id, config, *address, &listed);
        }
        Ok(batch)
    })
    .await?;
    conntrack::forget(client.connection(), config).await;
    if config.snat {
        for address in config.addresses.iter().filter(|address| address.is_ipv4()) {
            localnet::allow(call, address.ip()).await?;
        }
    }
    Ok(previous)
}

async fn check(call: &Call, config: &Portmap) -> Result<(), Error> {
    if call.config.previous()?.is_none() {
        return Err(Error::new(Code::InvalidConfig, "Required prevResult missing"));
    }
    if config.mappings.is_empty() {
        return Ok(());
    }
    let mut client = connect(&call.host)?;
    for address in &config.addresses {
        check_family(&mut client, call, config, *address).await?;
    }
    Ok(())
}

/// Counts the rules of the container.
async fn check_family(
    client: &mut Client,
    call: &Call,
    config: &Portmap,
    address: IpNetwork,
) -> Result<(), Error> {
    let listed = client.rules(family_of(address), rules::TABLE).await;
    let listed = listed.map_err(|error| refused("cannot list hostport rules", &error))?;
    let id = &*call.environment.container_id;
    let expected = [
        (rules::PORTS, config.mappings.iter().filter(|it| it.applies_to(address)).count()),
        (rules::MASQUERADING, rules::masquerades(config, address).len()),
    ];
    for (chain, expected) in expected {
        let of_container =
            listed.iter().filter(|rule| rule.chain == chain && rule.comment.as_deref() == Some(id));
        if of_container.count() < expected {
            let message = format!("missing hostport rules in {chain:?} chain");
            return Err(Error::new(Code::NotAsExpected, message));
        }
    }
    Ok(())
}

/// Whatever the runtime still knows of the ports, the container's rules go, also those that the other plugin made with iptables.
async fn del(call: &Call, config: &Portmap) -> Result<(), Error> {
    let mut client = connect(&call.host)?;
    let id = &*call.environment.container_id;
    let chain = chain_name(&call.config.name, id, "DN-");
    update(&mut client, "cannot remove the rules for port mappings", async |client| {
        let mut batch = Batch::default();
        for family in [Family::IPV4, Family::IPV6] {
            let listed = client.rules(family, rules::TABLE).await?;
            remove_rules(&mut batch, family, rules::TABLE, &listed, |_, comment| comment == id);
            remove_chain(client, &mut batch, family, &chain).await?;
        }
        Ok(batch)
    })
    .await?;
    conntrack::forget(client.connection(), config).await;
    Ok(())
}

/// Whether the kernel has nf_tables.
async fn status(call: &Call) -> Result<(), Error> {
    let found = connect(&call.host)?.table(Family::IPV4, rules::TABLE).await;
    found.map(drop).map_err(|error| {
        let refused = refused("the kernel's nf_tables cannot be used", &error);
        Error { code: Code::NotAvailable, ..refused }
    })
}

/// For [`fuzzing`](crate::fuzzing).
pub(crate) fn read(config: &Config) {
    let _ = Portmap::read_for_removal(config);
    let Ok(portmap) = Portmap::read(config, "eth0") else { return };
    for address in &portmap.addresses {
        rules::add(&mut Batch::default(), "c1", &portmap, *address, &[]);
    }
}
