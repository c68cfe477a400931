//! The rules of legacy iptables, as they are for some packets.

use ipnetwork::IpNetwork;

use super::{
    packet::{Flow, PacketPath},
    ternary::Ternary,
    walk::{Chain, Place, Rule, Step, Table},
    xt_matches::target,
};
use crate::{
    iptables::{Listing, Words},
    names::overlap,
    nftables::Hook,
};

/// All tables that packets on `path` meet.
pub(super) fn tables(listing: &Listing, path: &PacketPath) -> Vec<Table> {
    let keyword = path.family().keyword();
    let tables = listing.tables.iter().map(|(name, table)| {
        let chains = table.chains.iter().map(|(chain, found)| {
            let (place, drops) = (place(name, chain), found.policy == "DROP");
            let rules = found.rules.iter().enumerate();
            let rules = rules.map(|(at, text)| read(at + 1, text, path, place)).collect();
            (chain.clone(), Chain { place, drops, rules })
        });
        Table { name: format!("{keyword} {name} of legacy iptables"), chains: chains.collect() }
    });
    tables.collect()
}

/// Where a built-in chain is.
fn place(table: &str, chain: &str) -> Option<Place> {
    let hook = match chain {
        "PREROUTING" => Hook::PREROUTING,
        "INPUT" => Hook::INPUT,
        "FORWARD" => Hook::FORWARD,
        "OUTPUT" => Hook::OUTPUT,
        "POSTROUTING" => Hook::POSTROUTING,
        _ => return None,
    };
    // linux/netfilter_ipv4.h
    let priority = match table {
        "raw" => -300,
        "mangle" => -150,
        "nat" if hook == Hook::PREROUTING || hook == Hook::OUTPUT => -100,
        "nat" => 100,
        _ => 0,
    };
    Some(Place { hook, priority, translates: table == "nat" })
}

/// What a rule is to the packets.
fn read(number: usize, text: &str, path: &PacketPath, place: Option<Place>) -> Rule {
    let mut words = Words(text);
    let (mut fits, mut step) = (Ternary::True, Step::Continue);
    let mut negated = false;
    let hook = place.map(|place| place.hook);
    let port = |text: &str, of: fn(Flow) -> u16| match path.flow {
        Some(flow) => ports(text, of(flow)),
        None => Ternary::Unknown,
    };
    while let Some(word) = words.next() {
        let was_negated = std::mem::take(&mut negated);
        let mut value = || words.next().unwrap_or_default();
        let holds = match word.as_str() {
            "!" => {
                negated = true;
                continue;
            }
            "-s" => inside(&value(), path.source),
            "-d" => inside(&value(), path.destination),
            "-i" => device(&value(), false, hook, path),
            "-o" => device(&value(), true, hook, path),
            "-p" => protocol(&value(), path.flow),
            "--dport" | "--dports" => port(&value(), |flow| flow.destination_port),
            "--sport" | "--sports" => port(&value(), |flow| flow.source_port),
            "-m" | "--comment" | "--log-prefix" | "--to-source" | "--to-destination" => {
                value();
                continue;
            }
            "--mark" => mark(&value()),
            "--ctstate" | "--state" => value().split(',').any(|state| state == "NEW").into(),
            "-j" => {
                step = match value().as_str() {
                    name if name.chars().any(char::is_lowercase) => Step::Jump(name.to_owned()),
                    name => match target(name) {
                        // A chain, or a target that changes something else: of the latter there is no chain.
                        Step::Continue => Step::Jump(name.to_owned()),
                        step => step,
                    },
                };
                continue;
            }
            "-g" => {
                step = Step::Goto(value());
                continue;
            }
            // A target's own words, or a condition that nobody here knows.
            _ if step != Step::Continue => continue,
            _ => Ternary::Unknown,
        };
        fits = fits.and(holds.not_if(was_negated));
    }
    Rule { number, fits, step }
}

fn inside(block: &str, addresses: IpNetwork) -> Ternary {
    match block.parse::<IpNetwork>() {
        Ok(block) if block.contains(addresses.ip()) && block.prefix() <= addresses.prefix() => {
            Ternary::True
        }
        Ok(block) if !overlap(block, addresses) => Ternary::False,
        _ => Ternary::Unknown,
    }
}

fn device(name: &str, leaves: bool, hook: Option<u32>, path: &PacketPath) -> Ternary {
    match name.strip_suffix('+') {
        Some(prefix) => path.is_on(leaves, hook, prefix, true),
        None => path.is_on(leaves, hook, name, false),
    }
}

fn protocol(name: &str, flow: Option<Flow>) -> Ternary {
    let number = match name {
        "all" => return Ternary::True,
        "icmp" => 1,
        "tcp" => 6,
        "udp" => 17,
        "ipv6-icmp" | "icmpv6" => 58,
        "sctp" => 132,
        other => match other.parse() {
            Ok(number) => number,
            Err(_) => return Ternary::Unknown,
        },
    };
    flow.map_or(Ternary::Unknown, |flow| Ternary::from(flow.protocol == number))
}

/// Whether the port is one of those: `22,80:90`.
fn ports(text: &str, port: u16) -> Ternary {
    let each = text.split(',').map(|range| {
        let (from, to) = range.split_once(':').unwrap_or((range, range));
        match (from.parse::<u16>(), to.parse::<u16>()) {
            (Ok(from), Ok(to)) => Ternary::from((from..=to).contains(&port)),
            // Without a number it begins with the first, or ends with the last.
            _ => Ternary::Unknown,
        }
    });
    each.fold(Ternary::False, Ternary::or)
}

/// The packet has none.
fn mark(text: &str) -> Ternary {
    let value = text.split('/').next().unwrap_or_default();
    let zero = value.trim_start_matches("0x").chars().all(|digit| digit == '0');
    Ternary::from(zero)
}

#[cfg(test)]
#[path = "save_rules_tests.rs"]
mod tests;
