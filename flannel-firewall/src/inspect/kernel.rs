//! The rules of nf_tables, as they are for one packet.

use std::{collections::BTreeMap, net::IpAddr};

use flannel_netlink::KernelError;

use super::{
    passage::{Chain, Hook, Passage, Rule, Step, Table, Truth},
    protocols,
};
use crate::{
    netfilter::Netfilter,
    nftables::{Expression, NF_ACCEPT, NF_DROP, NFT_GOTO, NFT_JUMP, NFT_RETURN},
};

/// All tables that `passage` meets.
pub(super) fn tables(
    netfilter: &mut Netfilter,
    passage: &Passage,
) -> Result<Vec<Table>, KernelError> {
    let protocols = protocols(passage.family());
    let mut tables = BTreeMap::new();
    for placed in netfilter.chains()?.into_iter().filter(|it| protocols.contains(&it.family)) {
        let keyword = if placed.family == passage.family().protocol() {
            passage.family().keyword()
        } else {
            "inet"
        };
        let name = format!("{keyword} {}", placed.table);
        let table = tables
            .entry((placed.family, placed.table))
            .or_insert_with(|| Table { name, chains: BTreeMap::new() });
        let hook = placed.chain.hook.filter(|hook| PASSED.contains(&hook.number)).map(|hook| {
            Hook { number: hook.number, priority: hook.priority, translates: hook.kind == "nat" }
        });
        let chain = Chain { hook, drops: placed.chain.drops, rules: Vec::new() };
        table.chains.insert(placed.name, chain);
    }
    for ((family, name), table) in &mut tables {
        // Rules are read only where packets come by.
        if table.chains.values().all(|chain| chain.hook.is_none()) {
            continue;
        }
        for rule in netfilter.rules(*family, name)? {
            let chain = table.chains.entry(rule.chain).or_default();
            chain.rules.push(read(&rule.expressions, passage));
        }
    }
    Ok(tables.into_values().collect())
}

/// What a rule is to the packet.
fn read(expressions: &[Expression], passage: &Passage) -> Rule {
    let mut fits = Truth::Yes;
    let mut step = Step::Continue;
    // What the register holds, as far as that is known.
    let mut register: Option<Vec<u8>> = None;
    for expression in expressions {
        match expression {
            Expression::And { mask } => {
                register = register.map(|value| {
                    value.iter().zip(mask).map(|(value, mask)| value & mask).collect()
                });
            }
            Expression::Compare { negated, value } => {
                let holds = register.as_ref().filter(|held| held.len() >= value.len());
                let holds = holds.map_or(Truth::Maybe, |held| held.starts_with(value).into());
                fits = fits.and(holds.not_if(*negated));
            }
            Expression::LoadDevice { leaves } => {
                let device = if *leaves { &passage.leaves } else { &passage.enters };
                register = device.as_ref().map(|name| padded(name.as_bytes(), DEVICE_NAME));
            }
            Expression::LoadFamily => register = Some(vec![passage.family().protocol()]),
            Expression::LoadMark => register = Some(vec![0; 4]),
            Expression::LoadNetwork { offset, length } => {
                register = addresses(passage, *offset as usize, *length as usize);
            }
            Expression::LoadState => register = Some(NEW.to_ne_bytes().to_vec()),
            Expression::Masquerade { .. } | Expression::Nat { source: true } => {
                step = Step::Masquerade;
            }
            Expression::Match { name, info } => fits = fits.and(of_iptables(name, info)),
            Expression::Nat { source: false } | Expression::Comment(_) => {}
            Expression::Other(name) => match name.as_str() {
                "counter" | "log" | "notrack" => {}
                // Loads what another expression takes.
                "immediate" => register = None,
                "reject" => step = Step::Drop,
                _ => {
                    register = None;
                    fits = fits.and(Truth::Maybe);
                }
            },
            Expression::Target(name) => step = target(name),
            Expression::Verdict { code, chain } => {
                step = verdict(*code, chain.as_deref().unwrap_or_default());
            }
        }
    }
    Rule { fits, step }
}

fn verdict(code: i32, chain: &str) -> Step {
    match code {
        NF_ACCEPT => Step::Accept,
        NF_DROP => Step::Drop,
        NFT_GOTO => Step::Goto(chain.to_owned()),
        NFT_JUMP => Step::Jump(chain.to_owned()),
        NFT_RETURN => Step::Return,
        _ => Step::Continue,
    }
}

/// What a target of iptables does to packets.
pub(super) fn target(name: &str) -> Step {
    match name {
        "ACCEPT" => Step::Accept,
        "DROP" | "REJECT" => Step::Drop,
        "MASQUERADE" | "NETMAP" | "SNAT" => Step::Masquerade,
        "RETURN" => Step::Return,
        _ => Step::Continue,
    }
}

/// Bytes of the network header, if they are of addresses only.
fn addresses(passage: &Passage, offset: usize, length: usize) -> Option<Vec<u8>> {
    let (start, bytes) = match (passage.source, passage.destination) {
        (IpAddr::V4(from), IpAddr::V4(to)) => (12, [from.octets(), to.octets()].concat()),
        (IpAddr::V6(from), IpAddr::V6(to)) => (8, [from.octets(), to.octets()].concat()),
        _ => return None,
    };
    let from = offset.checked_sub(start)?;
    bytes.get(from..from.checked_add(length)?).map(<[u8]>::to_vec)
}

/// What a match of iptables says about a new flow without a mark.
fn of_iptables(name: &str, info: &[u8]) -> Truth {
    let word = |at: usize| Some(u32::from_ne_bytes(*info.get(at..)?.first_chunk()?));
    let half = |at: usize| Some(u16::from_ne_bytes(*info.get(at..)?.first_chunk()?));
    let known = match name {
        // struct xt_mark_mtinfo1: mark, mask, invert.
        "mark" => word(0).zip(info.get(8)).map(|(mark, invert)| (mark == 0) != (*invert != 0)),
        // struct xt_conntrack_mtinfo3, of which only the state is looked at.
        "conntrack" if half(CONNTRACK_FLAGS) == Some(XT_CONNTRACK_STATE) => {
            let inverted = half(CONNTRACK_FLAGS + 2).map(|flags| flags & XT_CONNTRACK_STATE != 0);
            let states = half(CONNTRACK_FLAGS + 4).map(|states| states & XT_STATE_NEW != 0);
            states.zip(inverted).map(|(new, inverted)| new != inverted)
        }
        // struct xt_state_info.
        "state" => word(0).map(|states| states & u32::from(XT_STATE_NEW) != 0),
        _ => None,
    };
    known.map_or(Truth::Maybe, Truth::from)
}

fn padded(bytes: &[u8], length: usize) -> Vec<u8> {
    let mut padded = bytes.to_vec();
    padded.resize(length, 0);
    padded
}

/// Prerouting, forward and postrouting, by `NF_INET_*` of linux/netfilter.h.
const PASSED: [u32; 3] = [0, 2, 4];
/// `IFNAMSIZ` of linux/if.h.
const DEVICE_NAME: usize = 16;
/// `NF_CT_STATE_BIT(IP_CT_NEW)` of linux/netfilter/nf_conntrack_common.h.
const NEW: u32 = 1 << 3;

// linux/netfilter/xt_conntrack.h
/// Where `match_flags` is: behind eight addresses, two times, and five numbers of protocol and ports.
const CONNTRACK_FLAGS: usize = 8 * 16 + 2 * 4 + 5 * 2;
const XT_CONNTRACK_STATE: u16 = 1;
const XT_STATE_NEW: u16 = 1 << 3;

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::{
        options::{FirewallOptions, Masquerade},
        rules::{Action, Family, Rules, testing::scope},
    };

    fn passage(source: &str, destination: &str) -> Passage {
        let (enters, leaves) = (Some("cni0".into()), Some("eth0".into()));
        Passage {
            source: source.parse().unwrap(),
            destination: destination.parse().unwrap(),
            enters,
            leaves,
        }
    }

    #[test]
    fn our_own_rules_are_understood() {
        let options =
            FirewallOptions { masquerade: Masquerade::RandomPorts, ..FirewallOptions::default() };
        for (family, own, peer, outside) in [
            (Family::Ipv4, "10.244.7.2", "10.244.8.2", "192.0.2.1"),
            (Family::Ipv6, "fd00:10:244:7::2", "fd00:10:244:8::2", "2001:db8::1"),
        ] {
            let rules = Rules::new(&scope(), family, &options).masquerade;
            let first = |from: &str, to: &str| {
                let passage = passage(from, to);
                let fit = rules.iter().find(|rule| {
                    let read = read(&Expression::compile(family, rule), &passage);
                    assert_ne!(read.fits, Truth::Maybe);
                    read.fits == Truth::Yes
                });
                fit.map(|rule| matches!(rule.action, Action::Masquerade { .. }))
            };
            assert_eq!(first(own, peer), Some(false));
            assert_eq!(first(own, outside), Some(true));
            assert_eq!(first(outside, own), Some(false));
            assert_eq!(first(outside, peer), Some(true));
            assert_eq!(first(outside, outside), None);
        }
    }

    #[test]
    fn devices_marks_and_states_are_those_of_a_new_flow() {
        let fits = |expressions: &[Expression]| {
            read(expressions, &passage("10.244.7.2", "10.244.8.2")).fits
        };
        let compare = |value: &[u8]| Expression::Compare { negated: false, value: value.to_vec() };
        let enters = Expression::LoadDevice { leaves: false };
        let leaves = Expression::LoadDevice { leaves: true };
        assert_eq!(fits(&[enters.clone(), compare(b"cni0\0")]), Truth::Yes);
        assert_eq!(fits(&[enters.clone(), compare(b"cni")]), Truth::Yes, "a name that begins so");
        assert_eq!(fits(&[enters, compare(b"cni\0")]), Truth::No);
        assert_eq!(fits(&[leaves, compare(b"cni0\0")]), Truth::No);
        let established = Expression::And { mask: 6_u32.to_ne_bytes().to_vec() };
        let any = Expression::Compare { negated: true, value: vec![0; 4] };
        assert_eq!(fits(&[Expression::LoadState, established, any]), Truth::No);
        assert_eq!(fits(&[Expression::LoadFamily, compare(&[2])]), Truth::Yes);
        assert_eq!(fits(&[Expression::LoadMark, compare(&[0, 0x40, 0, 0])]), Truth::No);
        let protocol = Expression::LoadNetwork { offset: 9, length: 1 };
        assert_eq!(fits(&[protocol, compare(&[6])]), Truth::Maybe);
        assert_eq!(fits(&[Expression::Other("lookup".into())]), Truth::Maybe);
        let mark = [0x4000_u32.to_ne_bytes(), 0x4000_u32.to_ne_bytes(), [0; 4]].concat();
        assert_eq!(of_iptables("mark", &mark), Truth::No);
        assert_eq!(of_iptables("mark", &[0; 3]), Truth::Maybe);
        assert_eq!(of_iptables("conntrack", &[0; 164]), Truth::Maybe);
        assert_eq!(of_iptables("limit", &[0; 40]), Truth::Maybe);
    }

    proptest! {
        #[test]
        fn no_rule_panics(
            offset: u32, length: u32, value in prop::collection::vec(any::<u8>(), 0..40),
            name in prop::sample::select(vec!["conntrack", "mark", "state", "x"]),
        ) {
            let expressions = [
                Expression::LoadNetwork { offset, length },
                Expression::And { mask: value.clone() },
                Expression::Compare { negated: true, value: value.clone() },
                Expression::Match { name: name.into(), info: value },
            ];
            let _ = read(&expressions, &passage("10.244.7.2", "10.244.8.2"));
        }
    }
}
