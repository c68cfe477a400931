//! Rules in nf_tables that containers have: those of containernetworking's plugins, in their tables and chains and with their
//! comments, so that either one's `DEL` ends the other's `ADD`.

mod expressions;
mod iptables_chains;
pub(crate) mod masquerade;
mod names;

use flannel_firewall::nftables::{Batch, Client, Family};
use flannel_netlink::Namespace;
use ipnetwork::IpNetwork;

pub(crate) use self::{
    expressions::{compare_port, compare_protocol, local_destination, translate, with_address},
    iptables_chains::remove_chain,
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

/// Removes the rules of a table that `unwanted` takes by chain and comment. A table that is not there is fine.
pub(crate) async fn remove_rules(
    client: &mut Client,
    family: Family,
    table: &str,
    unwanted: impl Fn(&str, &str) -> bool,
) -> Result<(), Error> {
    let what = |verb| format!("cannot {verb} the rules of table {family} {table}");
    let rules = client.rules(family, table).await;
    let mut batch = Batch::default();
    for rule in rules.map_err(|error| refused(what("list"), &error))? {
        if rule.comment.as_ref().is_some_and(|comment| unwanted(&rule.chain, comment)) {
            batch.delete_rules(family, table, &rule.chain, Some(rule.handle));
        }
    }
    if batch.is_empty() {
        return Ok(());
    }
    client.apply(&batch).await.map_err(|error| refused(what("remove"), &error))
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
