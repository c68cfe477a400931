//! Masquerading in iptables. Pure. Mirrors pkg/ip/ipmasq_iptables_linux.go of containernetworking/plugins 1.10.0, which leaves the
//! interface out of account.

use ipnetwork::IpNetwork;

use super::{
    chain_name,
    iptables::{Plan, Rule},
};

/// What masquerades the addresses of one family.
pub(super) fn plan<'a>(
    network: &str,
    container_id: &str,
    addresses: impl Iterator<Item = &'a IpNetwork>,
) -> Plan {
    let chain = chain_name(network, container_id, "");
    let comment = format!("{}{container_id}\"", comment_of(network));
    let about = ["-m", "comment", "--comment", &comment];
    let (mut inside, mut entries) = (Vec::new(), Vec::new());
    for address in addresses {
        let multicast = if address.is_ipv4() { "224.0.0.0/4" } else { "ff00::/8" };
        let (subnet, itself) = (address.to_string(), address.ip().to_string());
        let rule = |chain: &str, words: &[&str]| Rule::new(chain, &[words, &about].concat());
        let masquerade = rule(&chain, &["!", "-d", multicast, "-j", "MASQUERADE"]);
        inside.push(rule(&chain, &["-d", &subnet, "-j", "ACCEPT"]));
        if !inside.contains(&masquerade) {
            inside.push(masquerade);
        }
        entries.push(rule(POSTROUTING, &["-s", &itself, "-j", &chain]));
    }
    inside.extend(entries);
    Plan {
        shared_chains: Vec::new(),
        shared_rules: Vec::new(),
        chain,
        rules: inside,
        entry_chain: POSTROUTING,
    }
}

/// What the comments of a network's containers begin with.
pub(super) fn comment_of(network: &str) -> String {
    format!("name: \"{network}\" id: \"")
}

pub(super) const POSTROUTING: &str = "POSTROUTING";
