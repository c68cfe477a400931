//! The rules. Pure. Mirrors plugins/meta/portmap/portmap_nftables.go of containernetworking/plugins 1.10.0.

use flannel_firewall::nftables::{Batch, Expression, Hook, RuleInfo, Verdict};
use ipnetwork::IpNetwork;

use super::portmap_keys::Portmap;
use crate::rules::{
    compare_port, compare_protocol, family_of, host, keep_rules, local_destination, short_hash,
    translate, with_address,
};

/// Adds to `batch` what leads the ports to `address`, the container's of one family. It is added to what other containers have, of
/// which `listed` is what they share. The comment says which container it is, and the tag which network, for `GC`.
pub(super) fn add(
    batch: &mut Batch,
    network: &str,
    container_id: &str,
    config: &Portmap,
    address: IpNetwork,
    listed: &[RuleInfo],
) {
    let (family, tag) = (family_of(address), short_hash(network));
    batch.add_table(family, TABLE, 0, Some("CNI portmap plugin"));
    for chain in [PORTS, HOST_IP_PORTS, ALL] {
        batch.add_chain(family, TABLE, chain, None, None);
    }
    let jump = |chain: &str| Expression::Verdict(Verdict::Jump(chain.to_owned()));
    let all = [vec![jump(HOST_IP_PORTS)], vec![jump(PORTS)]];
    keep_rules(batch, family, TABLE, ALL, listed, &all);
    for (chain, number) in [(PREROUTING, Hook::PREROUTING), (OUTPUT, Hook::OUTPUT)] {
        let hook = Hook { kind: "nat".into(), number, priority: Hook::PRIORITY_DSTNAT };
        batch.add_chain(family, TABLE, chain, Some(&hook), None);
        // With conditions, it is nft that writes the rule.
        if config.conditions(address).is_empty() {
            let rule = [local_destination(), vec![jump(ALL)]].concat();
            keep_rules(batch, family, TABLE, chain, listed, &[rule]);
        }
    }
    if config.snat {
        let number = Hook::POSTROUTING;
        let hook = Hook { kind: "nat".into(), number, priority: Hook::PRIORITY_SRCNAT };
        batch.add_chain(family, TABLE, MASQUERADING, Some(&hook), None);
    }
    for mapping in config.mappings.iter().filter(|mapping| mapping.applies_to(address)) {
        // An unspecified address is any.
        let to = mapping.host_ip.filter(|it| !it.is_unspecified()).map(IpNetwork::from);
        let rule = [
            with_address(None, to, false),
            compare_protocol(mapping.protocol),
            compare_port(mapping.host_port),
            translate(address, mapping.container_port),
        ];
        batch.add_tagged_rule(family, TABLE, PORTS, &rule.concat(), container_id, &tag);
    }
    for from in masquerades(config, address) {
        let mut rule = with_address(Some(from), Some(host(address)), false);
        rule.push(Expression::Masquerade { flags: 0 });
        batch.add_tagged_rule(family, TABLE, MASQUERADING, &rule, container_id, &tag);
    }
}

/// What has packets to addresses like this one fulfil the conditions of the configuration, for nft, in whose language they are. As
/// upstream's, they count for all containers, until another is connected.
pub(super) fn conditions(config: &Portmap, address: IpNetwork) -> Option<String> {
    let conditions = config.conditions(address);
    if conditions.is_empty() {
        return None;
    }
    let (family, conditions) = (family_of(address), conditions.join(" "));
    let script = [PREROUTING, OUTPUT].map(|chain| {
        format!(
            "flush chain {family} {TABLE} {chain}\n\
             add rule {family} {TABLE} {chain} {conditions} fib daddr type local jump {ALL}\n"
        )
    });
    Some(script.concat())
}

/// The first chain that lacks rules that lead the ports to `address`, of those that are `listed`.
pub(super) fn incomplete(
    listed: &[RuleInfo],
    container_id: &str,
    config: &Portmap,
    address: IpNetwork,
) -> Option<&'static str> {
    let jumps = [(PREROUTING, ALL), (OUTPUT, ALL), (ALL, PORTS)];
    let jump_is_there = |chain: &str, to: &str| {
        listed.iter().any(|rule| rule.chain == chain && rule.target() == Some(to))
    };
    let expected = [
        (PORTS, config.mappings.iter().filter(|it| it.applies_to(address)).count()),
        (MASQUERADING, masquerades(config, address).len()),
    ];
    let of_container = |chain: &str| {
        let of_chain = listed.iter().filter(|rule| rule.chain == chain);
        of_chain.filter(|rule| rule.comment.as_deref() == Some(container_id)).count()
    };
    let shared = jumps.into_iter().find(|(chain, to)| !jump_is_there(chain, to));
    let own = expected.into_iter().find(|(chain, count)| of_container(chain) < *count);
    shared.map(|(chain, _)| chain).or_else(|| own.map(|(chain, _)| chain))
}

/// Whose packets to the container get the node's address: the container's own, and those of the node's loopback.
fn masquerades(config: &Portmap, address: IpNetwork) -> Vec<IpNetwork> {
    let block = |text: &str| text.parse::<IpNetwork>().expect("it is a block");
    match (config.snat, config.masquerade_all, address.is_ipv4()) {
        (false, _, _) => Vec::new(),
        (true, true, true) => vec![block("0.0.0.0/0")],
        (true, true, false) => vec![block("::/0")],
        (true, false, true) => vec![host(address), block("127.0.0.1/32")],
        (true, false, false) => vec![host(address)],
    }
}

pub(super) const TABLE: &str = "cni_hostport";
const PORTS: &str = "hostports";
/// Upstream's from before, which its `DEL` looks into.
const HOST_IP_PORTS: &str = "hostip_hostports";
const ALL: &str = "hostports_all";
const PREROUTING: &str = "prerouting";
const OUTPUT: &str = "output";
/// Those whose rules all containers share.
pub(super) const SHARED: [&str; 3] = [ALL, PREROUTING, OUTPUT];
const MASQUERADING: &str = "masquerading";
