//! The rules of legacy iptables, as they are for one packet.

use ipnetwork::IpNetwork;

use super::{
    kernel::target,
    passage::{Chain, Hook, Passage, Rule, Step, Table, Truth},
};
use crate::iptables::{Listing, Words};

/// All tables that `passage` meets.
pub(super) fn tables(listing: &Listing, passage: &Passage) -> Vec<Table> {
    let keyword = passage.family().keyword();
    let tables = listing.tables.iter().map(|(name, table)| {
        let chains = table.chains.iter().map(|(chain, found)| {
            let drops = found.policy == "DROP";
            let rules = found.rules.iter().map(|text| read(text, passage)).collect();
            (chain.clone(), Chain { hook: hook(name, chain), drops, rules })
        });
        Table { name: format!("{keyword} {name} of legacy iptables"), chains: chains.collect() }
    });
    tables.collect()
}

/// Where a built-in chain is.
fn hook(table: &str, chain: &str) -> Option<Hook> {
    let number = match chain {
        "PREROUTING" => 0,
        "FORWARD" => 2,
        "POSTROUTING" => 4,
        _ => return None,
    };
    // linux/netfilter_ipv4.h
    let priority = match table {
        "raw" => -300,
        "mangle" => -150,
        "nat" if number == 0 => -100,
        "nat" => 100,
        _ => 0,
    };
    Some(Hook { number, priority, translates: table == "nat" })
}

/// What a rule is to the packet.
fn read(text: &str, passage: &Passage) -> Rule {
    let mut words = Words(text);
    let (mut fits, mut step) = (Truth::Yes, Step::Continue);
    let mut negated = false;
    while let Some(word) = words.next() {
        let was_negated = std::mem::take(&mut negated);
        let mut value = || words.next().unwrap_or_default();
        let holds = match word.as_str() {
            "!" => {
                negated = true;
                continue;
            }
            "-s" => inside(&value(), passage.source),
            "-d" => inside(&value(), passage.destination),
            "-i" => device(&value(), false, passage),
            "-o" => device(&value(), true, passage),
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
            _ => Truth::Maybe,
        };
        fits = fits.and(holds.not_if(was_negated));
    }
    Rule { fits, step }
}

fn inside(block: &str, address: std::net::IpAddr) -> Truth {
    block.parse::<IpNetwork>().map_or(Truth::Maybe, |block| block.contains(address).into())
}

fn device(name: &str, leaves: bool, passage: &Passage) -> Truth {
    match name.strip_suffix('+') {
        Some(prefix) => passage.is_on(leaves, prefix, true),
        None => passage.is_on(leaves, name, false),
    }
}

/// The packet has none.
fn mark(text: &str) -> Truth {
    let value = text.split('/').next().unwrap_or_default();
    let zero = value.trim_start_matches("0x").chars().all(|digit| digit == '0');
    Truth::from(zero)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::inspect::passage::obstacles;

    fn passage() -> Passage {
        Passage {
            source: "10.244.7.2".parse().unwrap(),
            destination: "10.244.8.2".parse().unwrap(),
            enters: Some("cni0".into()),
            leaves: Some("flannel.1".into()),
        }
    }

    #[test]
    fn a_listing_of_iptables_save_is_understood() {
        let told = |filter: &str, nat: &str| {
            let text = format!(
                "*filter\n:FORWARD DROP [0:0]\n:OURS - [0:0]\n{filter}\nCOMMIT\n*nat\n:POSTROUTING ACCEPT [0:0]\n{nat}\nCOMMIT\n"
            );
            let all = obstacles(&tables(&Listing::parse(&text), &passage()));
            all.iter().map(ToString::to_string).collect::<Vec<_>>().join("; ")
        };
        let table = "of table ip filter of legacy iptables";
        let accepts =
            "-A OURS -s 10.244.0.0/16 -m comment --comment \"a b\" -j ACCEPT\n-A FORWARD -j OURS";
        assert_eq!(told(accepts, ""), "");
        for nothing in [
            "-A FORWARD -s 10.9.0.0/16 -j ACCEPT",
            "-A FORWARD ! -s 10.244.0.0/16 -j ACCEPT",
            "-A FORWARD -i docker0 -j ACCEPT",
            "-A FORWARD -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT",
            "-A FORWARD -m mark --mark 0x4000/0x4000 -j ACCEPT",
            "-A FORWARD -p tcp -m tcp --dport 80 -j ACCEPT",
        ] {
            assert_eq!(
                told(nothing, ""),
                format!("chain FORWARD {table} drops these packets by its policy"),
                "{nothing}"
            );
        }
        let drop = format!("-A FORWARD -i cni+ -j DROP\n{accepts}");
        assert_eq!(told(&drop, ""), format!("chain FORWARD {table} drops these packets by rule 1"));
        let perhaps =
            format!("-A FORWARD -p tcp -j REJECT --reject-with icmp-port-unreachable\n{accepts}");
        assert_eq!(
            told(&perhaps, ""),
            format!("chain FORWARD {table} may drop these packets by rule 1")
        );
        let masquerade = "-A POSTROUTING -o flannel.1 -j MASQUERADE --random-fully";
        assert_eq!(
            told(accepts, masquerade),
            "chain POSTROUTING of table ip nat of legacy iptables masquerades these packets by rule 1"
        );
        assert_eq!(told(accepts, "-A POSTROUTING -o eth0 -j MASQUERADE"), "");
    }

    proptest! {
        #[test]
        fn no_text_panics(text in "(-[a-z]|!|--[a-z]{1,9}|[A-Z]{1,5}|\"|\\\\|[0-9./]{1,12}| ){0,20}") {
            let _ = read(&text, &passage());
        }
    }
}
