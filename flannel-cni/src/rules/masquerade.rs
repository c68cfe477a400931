//! Gives what a container sends out of its subnet the node's address. Mirrors pkg/ip/ipmasq_linux.go and
//! pkg/ip/ipmasq_nftables_linux.go of containernetworking/plugins 1.10.0.

use std::{collections::HashSet, slice};

use flannel_firewall::{
    Family,
    nftables::{Batch, Expression, Family as TableFamily, Hook, RuleInfo, Verdict},
};
use flannel_netlink::{Namespace, shortened};
use ipnetwork::IpNetwork;

use super::{
    Backend, Removal, chain_name, connect, expressions, family_of, host, iptables, keep_rules,
    masquerade_iptables, plan_removals, remove_legacy_chains, remove_rules, short_hash, update,
    update_existing,
};
use crate::protocol::{Attachment, Error};

/// Masquerades what `addresses` send out of their subnets, with the backend that the configuration names.
pub(crate) async fn add(
    host: &Namespace,
    backend: Option<Backend>,
    network: &str,
    attachment: &Attachment,
    addresses: &[IpNetwork],
) -> Result<(), Error> {
    let backend = match backend {
        Some(backend) => backend,
        None => Backend::detect(host).await,
    };
    if backend == Backend::Iptables {
        for family in Family::ALL {
            let of_family = |address: &&IpNetwork| address.is_ipv4() == family.is_ipv4();
            let mut addresses = addresses.iter().filter(of_family).peekable();
            if addresses.peek().is_some() {
                let plan = masquerade_iptables::plan(network, &attachment.container_id, addresses);
                iptables::add(host, family, &plan).await?;
            }
        }
        return Ok(());
    }
    let what = format!("cannot masquerade {}", attachment.container_id);
    update(&mut connect(host)?, &what, async |client| {
        let listed = client.rules(TableFamily::INET, TABLE).await?;
        Ok(rules(network, attachment, addresses, &listed))
    })
    .await
}

/// Removes the rules of a container, whoever made them and in whichever way.
pub(crate) async fn remove(
    host: &Namespace,
    network: &str,
    attachment: &Attachment,
) -> Result<(), Error> {
    let what = format!("cannot end masquerading of {}", attachment.container_id);
    let chain = chain_name(network, &attachment.container_id, "");
    let removal = Removal::named(masquerade_iptables::POSTROUTING, &chain);
    let removed = update_existing(host, &what, async |client| {
        let listed = client.rules(TableFamily::INET, TABLE).await?;
        let mut batch = Batch::default();
        remove_rules_of(&mut batch, network, attachment, &listed);
        plan_removals(client, &mut batch, slice::from_ref(&removal)).await.map(|()| batch)
    })
    .await;
    Error::of_all([removed, remove_legacy_chains(host, &[removal]).await])
}

/// Removes the rules of containers of `network` that are not in `valid`.
pub(crate) async fn retain(
    host: &Namespace,
    network: &str,
    valid: &[Attachment],
) -> Result<(), Error> {
    let instances: HashSet<String> = valid.iter().map(|it| instance(network, it)).collect();
    let chains = valid.iter().map(|it| chain_name(network, &it.container_id, "")).collect();
    let comment = masquerade_iptables::comment_of(network);
    let removal = Removal::stale(masquerade_iptables::POSTROUTING, comment, chains);
    let prefix = short_hash(network);
    let what = format!("cannot end masquerading of containers that are gone from {network}");
    let removed = update_existing(host, &what, async |client| {
        let listed = client.rules(TableFamily::INET, TABLE).await?;
        let mut batch = Batch::default();
        remove_rules(&mut batch, TableFamily::INET, TABLE, &listed, |rule, comment| {
            let instance = comment.split(',').next().unwrap_or_default();
            rule.chain == CHAIN && comment.starts_with(&prefix) && !instances.contains(instance)
        });
        plan_removals(client, &mut batch, slice::from_ref(&removal)).await.map(|()| batch)
    })
    .await;
    Error::of_all([removed, remove_legacy_chains(host, &[removal]).await])
}

fn remove_rules_of(batch: &mut Batch, network: &str, attachment: &Attachment, listed: &[RuleInfo]) {
    let ours = instance(network, attachment);
    remove_rules(batch, TableFamily::INET, TABLE, listed, |rule, comment| {
        rule.chain == CHAIN && comment.starts_with(&ours)
    });
}

fn rules(
    network: &str,
    attachment: &Attachment,
    addresses: &[IpNetwork],
    listed: &[RuleInfo],
) -> Batch {
    let mut batch = Batch::default();
    let about = "Masquerading for plugins from github.com/containernetworking/plugins";
    batch.add_table(TableFamily::INET, TABLE, 0, Some(about));
    let about =
        "Masquerade traffic from certain IPs to any (non-multicast) IP outside their subnet";
    batch.add_chain(TableFamily::INET, TABLE, CHAIN, None, Some(about));
    let hook =
        Hook { kind: "nat".into(), number: Hook::POSTROUTING, priority: Hook::PRIORITY_SRCNAT };
    batch.add_chain(TableFamily::INET, TABLE, BASE_CHAIN, Some(&hook), None);
    let return_multicast = ["224.0.0.0/4", "ff00::/8"].map(|multicast| {
        let multicast: IpNetwork = multicast.parse().expect("it is a block");
        let rule = [
            expressions::of_family(family_of(multicast)),
            expressions::with_address(None, Some(multicast), false),
            vec![Expression::Verdict(Verdict::Return)],
        ];
        rule.concat()
    });
    let [ipv4, ipv6] = return_multicast;
    let on = vec![Expression::Verdict(Verdict::Goto(CHAIN.to_owned()))];
    keep_rules(&mut batch, TableFamily::INET, TABLE, BASE_CHAIN, listed, &[ipv4, ipv6, on]);
    // What an earlier container of this name left.
    remove_rules_of(&mut batch, network, attachment, listed);
    let comment = comment(network, attachment);
    for address in addresses {
        let subnet = IpNetwork::new(address.network(), address.prefix())
            .expect("the prefix is that of an address");
        let rule = [
            expressions::of_family(family_of(*address)),
            expressions::with_address(Some(host(*address)), Some(subnet), true),
            vec![Expression::Masquerade { flags: 0 }],
        ];
        batch.add_commented_rule(TableFamily::INET, TABLE, CHAIN, &rule.concat(), Some(&comment));
    }
    batch
}

/// What a comment begins with: it tells containers of all networks apart.
fn instance(network: &str, attachment: &Attachment) -> String {
    let Attachment { container_id, interface } = attachment;
    format!("{}-{}", short_hash(network), short_hash(&format!("{interface}:{container_id}")))
}

fn comment(network: &str, attachment: &Attachment) -> String {
    let Attachment { container_id, interface } = attachment;
    let hash = instance(network, attachment);
    let mut comment = format!("{hash}, net: {network}, if: {interface}, id: {container_id}");
    comment.retain(|it| it != '"');
    shortened(&comment, MOST_COMMENT_BYTES).to_owned()
}

const TABLE: &str = "cni_plugins_masquerade";
const CHAIN: &str = "masq_checks";
const BASE_CHAIN: &str = "postrouting";
/// As knftables has it.
const MOST_COMMENT_BYTES: usize = 128;

#[cfg(test)]
mod tests {
    use super::*;

    // Of ipmasq_nftables_linux_test.go of containernetworking/plugins 1.10.0.
    #[test]
    fn comments_are_those_of_upstream() {
        let attachment = Attachment { container_id: "one".into(), interface: "eth0".into() };
        let expected = "6fd94d501e58f0aa-287fc69eff0574a2, net: unit-test, if: eth0, id: one";
        assert_eq!(comment("unit-test", &attachment), expected);
    }

    #[test]
    fn a_long_comment_ends_between_characters() {
        let attachment = Attachment { container_id: "c1".into(), interface: "éé".into() };
        for length in 70..100 {
            let comment = comment(&"n".repeat(length), &attachment);
            assert!((120..=128).contains(&comment.len()), "{comment}");
        }
    }
}
