//! Lets a container send with its own Ethernet address only. Mirrors pkg/link/spoofcheck.go of containernetworking/plugins 1.10.0.

use std::collections::{BTreeSet, HashSet};

use flannel_firewall::nftables::{Batch, Expression, Family, Hook, RuleInfo, Verdict};
use flannel_netlink::{Namespace, state::MacAddress};

use super::{connect, expressions, remove_rules, short_hash, update, update_existing};
use crate::protocol::{Attachment, Error};

/// The names that the rules of a container have.
struct Names {
    comment: String,
    /// What packets of its port are led to,
    port_chain: String,
    /// and then to this one, which drops those with another address.
    mac_chain: String,
}

impl Names {
    fn of(attachment: &Attachment) -> Self {
        let id = format!("{}-{}", attachment.container_id, attachment.interface);
        let port_chain = format!("cni-br-iface-{id}");
        Self {
            comment: format!("macspoofchk-{id}"),
            mac_chain: format!("{port_chain}-mac"),
            port_chain,
        }
    }
}

/// Drops what comes in by `port` from another address than `mac`.
pub(crate) async fn add(
    host: &Namespace,
    network: &str,
    attachment: &Attachment,
    port: &str,
    mac: MacAddress,
) -> Result<(), Error> {
    update(&mut connect(host)?, "failed to setup spoof-check", async |_| {
        Ok(rules(network, &Names::of(attachment), port, mac))
    })
    .await
}

/// Removes the rules of a container.
pub(crate) async fn remove(host: &Namespace, attachment: &Attachment) -> Result<(), Error> {
    let names = Names::of(attachment);
    update_existing(host, "failed to teardown spoof-check", async |client| {
        let mut batch = Batch::default();
        let listed = client.chain_rules(Family::BRIDGE, TABLE, BASE_CHAIN).await?;
        remove_rules(&mut batch, Family::BRIDGE, TABLE, &listed, |_, comment| {
            comment == names.comment
        });
        let chains = [&names.port_chain, &names.mac_chain];
        for chain in chains.into_iter().filter(|name| name.len() <= LONGEST_CHAIN_NAME) {
            if client.has_chain(Family::BRIDGE, TABLE, chain).await? {
                batch.delete_rules(Family::BRIDGE, TABLE, chain, None);
                batch.delete_chain(Family::BRIDGE, TABLE, chain);
            }
        }
        Ok(batch)
    })
    .await
}

/// Removes the rules of containers of `network` that are not in `valid`. Those that another plugin made do not say which network they
/// are of, and stay.
pub(crate) async fn retain(
    host: &Namespace,
    network: &str,
    valid: &[Attachment],
) -> Result<(), Error> {
    let valid: HashSet<String> = valid.iter().map(|it| Names::of(it).comment).collect();
    let tag = short_hash(network);
    let what = format!("cannot end the spoof-check of containers that are gone from {network}");
    update_existing(host, &what, async |client| {
        let listed = client.rules(Family::BRIDGE, TABLE).await?;
        let stale = |rule: &RuleInfo, comment: &str| {
            rule.tag.as_ref() == Some(&tag) && !valid.contains(comment)
        };
        let mut batch = Batch::default();
        remove_rules(&mut batch, Family::BRIDGE, TABLE, &listed, stale);
        let stale = listed.iter().filter(|rule| {
            rule.chain != BASE_CHAIN && rule.comment.as_ref().is_some_and(|it| stale(rule, it))
        });
        for chain in stale.map(|rule| &rule.chain).collect::<BTreeSet<_>>() {
            batch.delete_chain(Family::BRIDGE, TABLE, chain);
        }
        Ok(batch)
    })
    .await
}

/// The comment says which container they are of, and the tag which network, for `GC`.
fn rules(network: &str, names: &Names, port: &str, mac: MacAddress) -> Batch {
    let Names { comment, port_chain, mac_chain } = names;
    let tag = short_hash(network);
    let mut batch = Batch::default();
    batch.add_table(Family::BRIDGE, TABLE, 0, None);
    let hook = Hook { kind: "filter".into(), number: Hook::PREROUTING, priority: PRIORITY };
    batch.add_chain(Family::BRIDGE, TABLE, BASE_CHAIN, Some(&hook), None);
    for chain in [port_chain, mac_chain] {
        batch.add_chain(Family::BRIDGE, TABLE, chain, None, None);
        // What an earlier container of this name left.
        batch.delete_rules(Family::BRIDGE, TABLE, chain, None);
    }
    let jump = |chain: &String| Expression::Verdict(Verdict::Jump(chain.clone()));
    let mut from_port = expressions::compare_input(port);
    from_port.push(jump(port_chain));
    let mut from_mac = expressions::compare_source_mac(mac);
    from_mac.push(Expression::Verdict(Verdict::Return));
    for (chain, rule) in [
        (BASE_CHAIN, from_port),
        (port_chain, vec![jump(mac_chain)]),
        (mac_chain, from_mac),
        (mac_chain, vec![Expression::Verdict(Verdict::Drop)]),
    ] {
        batch.add_tagged_rule(Family::BRIDGE, TABLE, chain, &rule, comment, &tag);
    }
    batch
}

const TABLE: &str = "nat";
/// The kernel refuses to look for longer ones.
const LONGEST_CHAIN_NAME: usize = 255;
const BASE_CHAIN: &str = "PREROUTING";
/// Where ebtables translates destinations.
const PRIORITY: i32 = -300;
