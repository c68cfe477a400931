//! The rules in iptables. Pure. Mirrors plugins/meta/portmap/portmap_iptables.go of containernetworking/plugins 1.10.0.

use std::{collections::BTreeMap, net::IpAddr};

use ipnetwork::IpNetwork;

use super::portmap_keys::{Mapping, Portmap};
use crate::rules::{
    chain_name,
    iptables::{Plan, Rule},
};

/// What leads the ports to `address`, the container's of one family.
pub(super) fn plan(
    network: &str,
    container_id: &str,
    config: &Portmap,
    address: IpNetwork,
) -> Plan {
    let own = chain_name(network, container_id, OWN);
    let mut rules = Vec::new();
    for mapping in config.mappings.iter().filter(|mapping| mapping.applies_to(address)) {
        rules.extend(of_mapping(&own, config, mapping, address));
    }
    rules.extend(entries(network, container_id, &own, config, address));
    let mut plan = Plan {
        shared_chains: vec![DNAT.to_owned()],
        shared_rules: vec![
            Rule::new("PREROUTING", &["-m", "addrtype", "--dst-type", "LOCAL", "-j", DNAT]),
            Rule::new("OUTPUT", &["-m", "addrtype", "--dst-type", "LOCAL", "-j", DNAT]),
        ],
        chain: own,
        rules,
        entry_chain: DNAT,
    };
    if config.snat && config.external_set_mark_chain.is_none() {
        plan.shared_chains.extend([SET_MARK.to_owned(), MASQUERADE.to_owned()]);
        plan.shared_rules.extend(masquerading(config.mark_bit));
    }
    plan
}

/// What masquerades packets with a mark, and what gives them the mark.
fn masquerading(mark_bit: u32) -> [Rule; 3] {
    let mark = format!("{0:#x}/{0:#x}", 1_u32 << mark_bit);
    let about = ["-m", "comment", "--comment"];
    let set = [&about[..], &["CNI portfwd masquerade mark", "-j", "MARK", "--set-xmark", &mark]];
    let entry = [&about[..], &["CNI portfwd requiring masquerade", "-j", MASQUERADE]];
    [
        Rule::new(SET_MARK, &set.concat()),
        Rule::new(MASQUERADE, &["-m", "mark", "--mark", &mark, "-j", "MASQUERADE"]),
        // Behind the rules that masquerade containers, it would not be reached.
        Rule { first: true, ..Rule::new("POSTROUTING", &entry.concat()) },
    ]
}

/// Marks what has to be masqueraded, and sends the rest on.
fn of_mapping(own: &str, config: &Portmap, mapping: &Mapping, address: IpNetwork) -> Vec<Rule> {
    let (port, protocol) = (mapping.host_port.to_string(), mapping.protocol_name());
    // An unspecified address is any.
    let to = mapping.host_ip.filter(|it| !it.is_unspecified()).map(|it| it.to_string());
    let mut base = vec!["-p", protocol, "--dport", &port];
    base.extend(to.iter().flat_map(|to| ["-d", to]));
    let rule = |more: &[&str]| Rule::new(own, &[&base[..], more].concat());
    let set_mark = config.external_set_mark_chain.as_deref().unwrap_or(SET_MARK);
    let itself = address.to_string();
    let sources: &[&str] = match (config.snat, config.masquerade_all, address.is_ipv4()) {
        (false, _, _) => &[],
        (true, true, true) => &["0.0.0.0/0"],
        (true, true, false) => &["::/0"],
        (true, false, true) => &[&itself, "127.0.0.1"],
        (true, false, false) => &[&itself],
    };
    let marks = sources.iter().map(|source| rule(&["-s", source, "-j", set_mark]));
    let destination = match address.ip() {
        IpAddr::V4(v4) => format!("{v4}:{}", mapping.container_port),
        IpAddr::V6(v6) => format!("[{v6}]:{}", mapping.container_port),
    };
    let translate = rule(&["-j", "DNAT", "--to-destination", &destination]);
    marks.chain([translate]).collect()
}

/// The rules that lead to the container's chain. One has up to 15 ports.
fn entries(
    network: &str,
    container_id: &str,
    own: &str,
    config: &Portmap,
    address: IpNetwork,
) -> Vec<Rule> {
    let mut comment = format!("{}{container_id}\"", comment_of(network));
    if comment.len() > MOST_COMMENT_BYTES {
        comment.truncate(MOST_COMMENT_BYTES - 3);
        comment.push_str("...");
    }
    let mut ports: BTreeMap<&str, Vec<String>> = BTreeMap::new();
    for mapping in &config.mappings {
        ports.entry(mapping.protocol_name()).or_default().push(mapping.host_port.to_string());
    }
    let conditions = config.conditions(address);
    let about = ["-m", "comment", "--comment", &comment, "-m", "multiport"];
    let all = ports.iter().flat_map(|(protocol, ports)| {
        ports.chunks(15).map(|ports| {
            let ports = ports.join(",");
            let mut words = about.to_vec();
            words.extend(["-p", protocol, "--destination-ports", &ports]);
            words.extend(conditions.iter().map(String::as_str));
            words.extend(["-j", own]);
            Rule::new(DNAT, &words)
        })
    });
    all.collect()
}

/// What the comments of a network's containers begin with.
pub(super) fn comment_of(network: &str) -> String {
    format!("dnat name: \"{network}\" id: \"")
}

/// Where packets to all ports go.
pub(super) const DNAT: &str = "CNI-HOSTPORT-DNAT";
/// What the names of containers' chains have.
pub(super) const OWN: &str = "DN-";
/// The same of versions before 0.8.
pub(super) const OLD_SNAT: &str = "CNI-HOSTPORT-SNAT";
pub(super) const OLD_OWN: &str = "SN-";
const SET_MARK: &str = "CNI-HOSTPORT-SETMARK";
const MASQUERADE: &str = "CNI-HOSTPORT-MASQ";
/// As iptables has it.
const MOST_COMMENT_BYTES: usize = 255;
