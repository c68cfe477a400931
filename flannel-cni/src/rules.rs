//! Rules in nf_tables that containers have: those of containernetworking's plugins, in their tables and chains and with their
//! comments, so that either one's `DEL` ends the other's `ADD`.

mod backend;
mod expressions;
pub(crate) mod iptables;
mod iptables_chains;
pub(crate) mod masquerade;
mod masquerade_iptables;
mod names;
pub(crate) mod nft;
pub(crate) mod spoof_check;

use flannel_firewall::nftables::{Batch, Client, Expression, Family, RuleInfo};
use flannel_netlink::{KernelError, Namespace};
use ipnetwork::IpNetwork;

pub(crate) use self::{
    backend::Backend,
    expressions::{compare_port, compare_protocol, local_destination, translate, with_address},
    iptables_chains::{Removal, plan_removals, remove_legacy_chains},
    names::{chain_name, short_hash},
};
use crate::{
    kernel::refused,
    protocol::{Code, Error},
    sandbox::chain,
};

/// A socket to the rules of the node.
pub(crate) fn connect(host: &Namespace) -> Result<Client, Error> {
    Client::open(host).map_err(|error| Error::new(Code::Io, chain(&error)))
}

/// Writes what `plan` says after it looked at what there is. If somebody changes anything meanwhile, it looks again.
pub(crate) async fn update(
    client: &mut Client,
    what: &str,
    plan: impl AsyncFn(&mut Client) -> Result<Batch, KernelError>,
) -> Result<(), Error> {
    for _ in 0..ATTEMPTS {
        match update_once(client, &plan).await {
            Err(error) if error.outdated() => {}
            result => return result.map_err(|error| refused(what, &error)),
        }
    }
    let message = format!("{what}: others keep changing the rules of this node");
    Err(Error::new(Code::TryAgainLater, message))
}

/// As [`update`], for what is only removed: a kernel without nf_tables has nothing of it.
pub(crate) async fn update_existing(
    host: &Namespace,
    what: &str,
    plan: impl AsyncFn(&mut Client) -> Result<Batch, KernelError>,
) -> Result<(), Error> {
    let mut client = match Client::open(host) {
        Err(error) if error.unsupported() => return Ok(()),
        opened => opened.map_err(|error| Error::new(Code::Io, chain(&error)))?,
    };
    match client.generation().await {
        Err(error) if is_without_tables(&error) => Ok(()),
        _ => update(&mut client, what, plan).await,
    }
}

/// Whether a kernel that is asked about nf_tables and says this has none: what nfnetlink answers for a subsystem that is not there.
const fn is_without_tables(answer: &KernelError) -> bool {
    answer.invalid() || answer.unsupported()
}

async fn update_once(
    client: &mut Client,
    plan: &impl AsyncFn(&mut Client) -> Result<Batch, KernelError>,
) -> Result<(), KernelError> {
    let generation = client.generation().await?;
    let batch = plan(client).await?;
    client.apply_at(generation, &batch).await
}

/// Adds to `batch` what makes `chain` have these rules and no others, of which `listed` are there. Rules that are right stay: once
/// something was deleted, the next process that has to do with rules may have to wait for the kernel.
pub(crate) fn keep_rules(
    batch: &mut Batch,
    family: Family,
    table: &str,
    chain: &str,
    listed: &[RuleInfo],
    wanted: &[Vec<Expression>],
) {
    let there = listed.iter().filter(|rule| rule.chain == chain).map(|rule| &rule.expressions);
    if there.eq(wanted) {
        return;
    }
    batch.delete_rules(family, table, chain, None);
    wanted.iter().for_each(|rule| batch.add_rule(family, table, chain, rule));
}

/// Adds to `batch` what removes the rules that `unwanted` takes, which is asked with the comment.
pub(crate) fn remove_rules(
    batch: &mut Batch,
    family: Family,
    table: &str,
    listed: &[RuleInfo],
    unwanted: impl Fn(&RuleInfo, &str) -> bool,
) {
    for rule in listed {
        if rule.comment.as_ref().is_some_and(|comment| unwanted(rule, comment)) {
            batch.delete_rules(family, table, &rule.chain, Some(rule.handle));
        }
    }
}

/// Where in the network header source and destination of a family are.
pub(crate) const fn offsets(address: IpNetwork) -> (u32, u32) {
    match address {
        IpNetwork::V4(_) => (12, 16),
        IpNetwork::V6(_) => (8, 24),
    }
}

/// The family of a table for addresses like this one.
pub(crate) const fn family_of(address: IpNetwork) -> Family {
    match address {
        IpNetwork::V4(_) => Family::IPV4,
        IpNetwork::V6(_) => Family::IPV6,
    }
}

/// The block that has this address alone.
pub(crate) fn host(address: IpNetwork) -> IpNetwork {
    address.ip().into()
}

/// How often rules are looked at again because others changed theirs: a node that starts a hundred containers at once needs a few.
const ATTEMPTS: usize = 100;

#[cfg(test)]
mod tests {
    use super::*;

    // linux/errno.h
    #[test]
    fn only_a_kernel_that_knows_no_tables_is_taken_to_have_none() {
        for (errno, expected) in [
            (22, true),
            (95, true),
            (1, false),
            (13, false),
            (11, false),
            (12, false),
            (105, false),
        ] {
            assert_eq!(is_without_tables(&KernelError::new(errno)), expected, "{errno}");
        }
    }
}
