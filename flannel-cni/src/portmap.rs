//! Leads ports of the node to ports of a container, as containernetworking's `portmap` does.
//!
//! It comes behind a plugin that gave the container its addresses. With nftables, one transaction makes the rules of both families,
//! without any program; with iptables, one run of `iptables-restore` does for each.

mod conntrack;
mod localnet;
mod port_chains;
mod port_rules;
mod portmap_keys;

use std::{collections::HashSet, slice};

use flannel_firewall::{
    Family,
    nftables::{Batch, Client, Family as TableFamily, RuleInfo},
};
use flannel_netlink::{KernelError, Namespace};
use ipnetwork::IpNetwork;

use self::portmap_keys::Portmap;
use crate::{
    kernel::refused,
    plugin::Call,
    protocol::{AddResult, Code, Config, Error, Verb},
    rules::{
        Backend, Removal, chain_name, connect, family_of, iptables, nft, plan_removals,
        remove_legacy_chains, remove_rules, short_hash, update, update_existing,
    },
};

pub(crate) async fn execute(call: &Call) -> Result<Option<AddResult>, Error> {
    let read = || Portmap::read(&call.config, &call.environment.interface);
    match call.environment.verb {
        Verb::Add => add(call, &read()?).await.map(Some),
        Verb::Check => check(call, &read()?).await.map(|()| None),
        Verb::Del => del(call).await.map(|()| None),
        Verb::Gc => gc(call).await.map(|()| None),
        Verb::Status => status(call, &read()?).await.map(|()| None),
        Verb::Version => Ok(None),
    }
}

async fn add(call: &Call, config: &Portmap) -> Result<AddResult, Error> {
    let Some(previous) = call.config.previous()? else {
        return Err(Error::new(Code::InvalidConfig, "must be called as chained plugin"));
    };
    if config.mappings.is_empty() {
        return Ok(previous);
    }
    let added = async {
        match config.backend(&call.host).await? {
            Backend::Iptables => {
                for (family, plan) in plans(call, config) {
                    iptables::add(&call.host, family, &plan).await?;
                }
                Ok(())
            }
            Backend::Nftables => add_rules(call, config).await,
        }
    };
    if let Err(error) = added.await {
        // What failed is what the runtime is told.
        let _ = del(call).await;
        return Err(error);
    }
    conntrack::forget(&call.host, &config.mappings).await;
    if config.snat {
        for address in config.addresses.iter().filter(|address| address.is_ipv4()) {
            localnet::allow(call, address.ip()).await?;
        }
    }
    Ok(previous)
}

/// What iptables has to have, for each family of the container.
fn plans(call: &Call, config: &Portmap) -> Vec<(Family, iptables::Plan)> {
    let plan = |address: &IpNetwork| {
        let family = if address.is_ipv4() { Family::Ipv4 } else { Family::Ipv6 };
        let id = &call.environment.container_id;
        (family, port_chains::plan(&call.config.name, id, config, *address))
    };
    config.addresses.iter().map(plan).collect()
}

async fn add_rules(call: &Call, config: &Portmap) -> Result<(), Error> {
    let what = "unable to set up nftables rules for port mappings";
    update(&mut connect(&call.host)?, what, async |client| {
        let mut batch = Batch::default();
        for address in &config.addresses {
            let listed = shared_rules(client, *address).await?;
            let id = &call.environment.container_id;
            port_rules::add(&mut batch, &call.config.name, id, config, *address, &listed);
        }
        Ok(batch)
    })
    .await?;
    let scripts = config.addresses.iter();
    let scripts = scripts.filter_map(|address| port_rules::conditions(config, *address));
    match scripts.collect::<String>() {
        script if script.is_empty() => Ok(()),
        script => nft::run(&call.host, script).await,
    }
}

/// The rules of the chains that all containers share, in the family of `address`.
async fn shared_rules(
    client: &mut Client,
    address: IpNetwork,
) -> Result<Vec<RuleInfo>, KernelError> {
    let mut listed = Vec::new();
    for chain in port_rules::SHARED {
        listed.extend(client.chain_rules(family_of(address), port_rules::TABLE, chain).await?);
    }
    Ok(listed)
}

async fn check(call: &Call, config: &Portmap) -> Result<(), Error> {
    if call.config.previous()?.is_none() {
        return Err(Error::new(Code::InvalidConfig, "Required prevResult missing"));
    }
    if config.mappings.is_empty() {
        return Ok(());
    }
    if config.backend(&call.host).await? == Backend::Iptables {
        for (family, plan) in plans(call, config) {
            iptables::check(&call.host, family, &plan).await?;
        }
        return Ok(());
    }
    let mut client = connect(&call.host)?;
    for address in &config.addresses {
        let listed = client.rules(family_of(*address), port_rules::TABLE).await;
        let listed = listed.map_err(|error| refused("cannot list hostport rules", &error))?;
        let id = &call.environment.container_id;
        if let Some(chain) = port_rules::incomplete(&listed, id, config, *address) {
            let message = format!("missing hostport rules in {chain:?} chain");
            return Err(Error::new(Code::NotAsExpected, message));
        }
    }
    Ok(())
}

/// Whatever the runtime still knows of the ports, and whichever plugin made them in whichever way, the container's rules go.
async fn del(call: &Call) -> Result<(), Error> {
    let id = &*call.environment.container_id;
    let chain = |prefix| chain_name(&call.config.name, id, prefix);
    let removals = [
        Removal::named(port_chains::DNAT, &chain(port_chains::OWN)),
        Removal::named(port_chains::OLD_SNAT, &chain(port_chains::OLD_OWN)),
    ];
    remove(call, &removals, |_, comment| comment == id).await?;
    conntrack::forget(&call.host, &portmap_keys::readable_mappings(&call.config)).await;
    Ok(())
}

/// Removes the rules of this network's containers that the runtime does not know. Rules in nftables that another plugin made do not
/// say which network they are of, and stay.
async fn gc(call: &Call) -> Result<(), Error> {
    let (network, valid) = (&*call.config.name, call.config.valid_attachments()?);
    let ids: HashSet<&str> = valid.iter().map(|it| &*it.container_id).collect();
    let chains = ids.iter().map(|id| chain_name(network, id, port_chains::OWN)).collect();
    let removal = Removal::stale(port_chains::DNAT, port_chains::comment_of(network), chains);
    let tag = short_hash(network);
    remove(call, slice::from_ref(&removal), |rule, comment| {
        rule.tag.as_ref() == Some(&tag) && !ids.contains(comment)
    })
    .await
}

/// Removes rules of nftables, and chains of iptables.
async fn remove(
    call: &Call,
    chains: &[Removal],
    unwanted: impl Fn(&RuleInfo, &str) -> bool,
) -> Result<(), Error> {
    let what = "cannot remove the rules for port mappings";
    let removed = update_existing(&call.host, what, async |client| {
        let mut batch = Batch::default();
        for family in [TableFamily::IPV4, TableFamily::IPV6] {
            let listed = client.rules(family, port_rules::TABLE).await?;
            remove_rules(&mut batch, family, port_rules::TABLE, &listed, &unwanted);
        }
        plan_removals(client, &mut batch, chains).await.map(|()| batch)
    })
    .await;
    Error::of_all([removed, remove_legacy_chains(&call.host, chains).await])
}

/// Whether there is what the rules are to be kept by. Which families pods have is not known.
async fn status(call: &Call, config: &Portmap) -> Result<(), Error> {
    let found = match (config.backend(&call.host).await?, config.with_conditions()) {
        (Backend::Iptables, wanted) => find_iptables(&call.host, wanted).await,
        (Backend::Nftables, (false, false)) => ask_tables(&call.host).await,
        (Backend::Nftables, _) => ask_tables(&call.host).await.and_then(|()| nft::find().map(drop)),
    };
    found.map_err(|error| Error { code: Code::NotAvailable, ..error })
}

/// Whether the kernel answers for its nf_tables.
async fn ask_tables(host: &Namespace) -> Result<(), Error> {
    let answer = connect(host)?.generation().await;
    answer.map(drop).map_err(|error| refused("the kernel's nf_tables cannot be used", &error))
}

/// Whether there is iptables for the wanted ones of IPv4 and IPv6, or else for one of them.
async fn find_iptables(host: &Namespace, wanted: (bool, bool)) -> Result<(), Error> {
    let ipv4 = iptables::find(host, Family::Ipv4).await.map(drop);
    let ipv6 = iptables::find(host, Family::Ipv6).await.map(drop);
    match wanted {
        (false, false) if ipv6.is_ok() => Ok(()),
        (true, true) => ipv4.and(ipv6),
        (false, true) => ipv6,
        _ => ipv4,
    }
}

/// For [`fuzzing`](crate::fuzzing).
pub(crate) fn read(config: &Config) {
    let _ = portmap_keys::readable_mappings(config);
    let Ok(portmap) = Portmap::read(config, "eth0") else { return };
    for address in &portmap.addresses {
        port_rules::add(&mut Batch::default(), &config.name, "c1", &portmap, *address, &[]);
        port_chains::plan(&config.name, "c1", &portmap, *address);
    }
}
