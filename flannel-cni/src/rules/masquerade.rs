//! Gives what a container sends out of its subnet the node's address. Mirrors pkg/ip/ipmasq_nftables_linux.go of
//! containernetworking/plugins 1.10.0.

use std::collections::HashSet;

use flannel_firewall::nftables::{Batch, Client, Expression, Family, Hook, RuleInfo, Verdict};
use flannel_netlink::shortened;
use ipnetwork::IpNetwork;

use super::{
    chain_name, expressions, family_of, host, keep_rules, remove_chain, remove_rules, short_hash,
    update,
};
use crate::protocol::{Attachment, Error};

/// Masquerades what `addresses` send out of their subnets.
pub(crate) async fn add(
    client: &mut Client,
    network: &str,
    attachment: &Attachment,
    addresses: &[IpNetwork],
) -> Result<(), Error> {
    let what = format!("cannot masquerade {}", attachment.container_id);
    update(client, &what, async |client| {
        let listed = client.rules(Family::INET, TABLE).await?;
        Ok(rules(network, attachment, addresses, &listed))
    })
    .await
}

/// Removes the rules of a container, whoever made them and in whichever way.
pub(crate) async fn remove(
    client: &mut Client,
    network: &str,
    attachment: &Attachment,
) -> Result<(), Error> {
    let what = format!("cannot end masquerading of {}", attachment.container_id);
    let chain = chain_name(network, &attachment.container_id, "");
    update(client, &what, async |client| {
        let listed = client.rules(Family::INET, TABLE).await?;
        let mut batch = Batch::default();
        remove_rules_of(&mut batch, network, attachment, &listed);
        for family in [Family::IPV4, Family::IPV6] {
            remove_chain(client, &mut batch, family, &chain).await?;
        }
        Ok(batch)
    })
    .await
}

/// Removes the rules of containers of `network` that are not in `valid`.
pub(crate) async fn retain(
    client: &mut Client,
    network: &str,
    valid: &[Attachment],
) -> Result<(), Error> {
    let valid: HashSet<String> = valid.iter().map(|it| instance(network, it)).collect();
    let prefix = short_hash(network);
    let what = format!("cannot end masquerading of containers that are gone from {network}");
    update(client, &what, async |client| {
        let listed = client.rules(Family::INET, TABLE).await?;
        let mut batch = Batch::default();
        remove_rules(&mut batch, Family::INET, TABLE, &listed, |chain, comment| {
            let instance = comment.split(',').next().unwrap_or_default();
            chain == CHAIN && comment.starts_with(&prefix) && !valid.contains(instance)
        });
        Ok(batch)
    })
    .await
}

fn remove_rules_of(batch: &mut Batch, network: &str, attachment: &Attachment, listed: &[RuleInfo]) {
    let ours = instance(network, attachment);
    remove_rules(batch, Family::INET, TABLE, listed, |chain, comment| {
        chain == CHAIN && comment.starts_with(&ours)
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
    batch.add_table(Family::INET, TABLE, 0, Some(about));
    let about =
        "Masquerade traffic from certain IPs to any (non-multicast) IP outside their subnet";
    batch.add_chain(Family::INET, TABLE, CHAIN, None, Some(about));
    let hook =
        Hook { kind: "nat".into(), number: Hook::POSTROUTING, priority: Hook::PRIORITY_SRCNAT };
    batch.add_chain(Family::INET, TABLE, BASE_CHAIN, Some(&hook), None);
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
    keep_rules(&mut batch, Family::INET, TABLE, BASE_CHAIN, listed, &[ipv4, ipv6, on]);
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
        batch.add_commented_rule(Family::INET, TABLE, CHAIN, &rule.concat(), Some(&comment));
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
