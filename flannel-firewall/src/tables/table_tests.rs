use proptest::prelude::*;

use super::{table_diff::Step, *};
use crate::{
    options::{FirewallOptions, Masquerade},
    rules::testing,
};

/// Printed by nft 1.0.6.
const IPV4: &str = r#"table ip flannel-ipv4 {
	comment "rules for flannel-ipv4"

	chain forward {
		comment "chain to accept flannel traffic"
		type filter hook forward priority filter; policy accept;
		ip saddr 10.244.0.0/16 accept
		ip daddr 10.244.0.0/16 accept
	}

	chain postrtg {
		comment "chain to manage traffic masquerading by flannel"
		type nat hook postrouting priority srcnat; policy accept;
		meta mark & 0x00004000 == 0x00004000 return
		ip saddr 10.244.7.0/24 ip daddr 10.244.0.0/16 return
		ip saddr 10.244.0.0/16 ip daddr 10.244.7.0/24 return
		ip saddr != 10.244.0.0/16 ip daddr 10.244.7.0/24 return
		ip saddr 10.244.0.0/16 ip daddr != 224.0.0.0/4 masquerade fully-random
		ip saddr != 10.244.0.0/16 ip daddr 10.244.0.0/16 masquerade fully-random
	}
}
"#;

fn table(family: Family) -> DesiredTable {
    DesiredTable::new(family, testing::rules(family), &Name::default())
}

#[test]
fn the_text_is_what_nft_prints() {
    assert_eq!(table(Family::Ipv4).to_string(), IPV4);
    let ipv6 = IPV4
        .replace("ip saddr", "ip6 saddr")
        .replace("ip daddr", "ip6 daddr")
        .replace("table ip ", "table ip6 ")
        .replace("flannel-ipv4", "flannel-ipv6")
        .replace("10.244.0.0/16", "fd00:10:244::/48")
        .replace("10.244.7.0/24", "fd00:10:244:7::/64")
        .replace("224.0.0.0/4", "ff00::/8");
    assert_eq!(table(Family::Ipv6).to_string(), ipv6);
}

/// Printed by nft 1.0.6.
const BY_TUNNEL: &str = r#"		ip saddr 10.244.7.0/24 ip daddr 10.244.7.0/24 accept
		ip saddr 10.244.0.0/16 ip daddr 10.244.7.0/24 iifname != "flannel-wg*" drop
		ip daddr 10.244.7.0/24 accept
		ip daddr 10.244.0.0/16 oifname != "flannel-wg*" drop
		ip saddr 10.244.0.0/16 accept
		ip daddr 10.244.0.0/16 accept
"#;

#[test]
fn packets_between_nodes_go_by_the_tunnel_if_they_have_to() {
    let mut options = FirewallOptions::default();
    options.tunnels.insert(Family::Ipv4, "flannel-wg+".into());
    let of = |family| {
        let rules = Rules::new(&testing::scope(), family, &options);
        DesiredTable::new(family, rules, &Name::default()).to_string()
    };
    assert!(of(Family::Ipv4).contains(BY_TUNNEL), "{}", of(Family::Ipv4));
    assert!(!of(Family::Ipv6).contains("drop"));
    let page = concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/firewall.md");
    assert!(std::fs::read_to_string(page).unwrap().contains(BY_TUNNEL));
}

#[test]
fn the_documentation_shows_this_table() {
    let page = concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/firewall.md");
    assert!(std::fs::read_to_string(page).unwrap().contains(IPV4));
}

#[test]
fn prefixes_are_compared_as_nft_does() {
    // From `nft --debug=netlink` of 1.0.6.
    let compiled = |block: &str| {
        let source = Some(crate::rules::Match { block: block.parse().unwrap(), negated: false });
        let action = Action::Return;
        let rule = Rule { marked: false, source, destination: None, device: None, action };
        let mut expressions = table(Family::Ipv4).compile(&rule);
        expressions.pop();
        expressions
    };
    let load = |length| Expression::Payload { register: 1, base: 1, offset: 12, length };
    let is = |value: &[u8]| Expression::compare(false, value.into());
    assert_eq!(compiled("10.244.0.1/32"), [load(4), is(&[10, 244, 0, 1])]);
    assert_eq!(compiled("10.244.0.0/16"), [load(2), is(&[10, 244])]);
    let and = Expression::and(vec![255, 255, 128, 0]);
    assert_eq!(compiled("10.244.0.0/17"), [load(4), and, is(&[10, 244, 0, 0])]);
}

#[test]
fn what_differs_is_named() {
    let wanted = table(Family::Ipv4);
    let named = |alter: fn(&mut ObservedTable)| {
        let mut found = wanted.as_observed();
        alter(&mut found);
        let plan = diff(Some(&found), &wanted).unwrap();
        assert!(plan.added + plan.removed > 0);
        plan.differences
    };
    assert_eq!(diff(Some(&wanted.as_observed()), &wanted), None);
    assert_eq!(diff(None, &wanted).unwrap().differences, ["table ip flannel-ipv4 is not there"]);
    let gone = named(|found| drop(found.chains.get_mut("postrtg").unwrap().rules.remove(4)));
    assert_eq!(
        gone,
        [
            "missing in postrtg: ip saddr 10.244.0.0/16 ip daddr != 224.0.0.0/4 masquerade fully-random"
        ]
    );
    let swapped = named(|found| found.chains.get_mut("postrtg").unwrap().rules.swap(1, 2));
    assert_eq!(swapped, ["chain postrtg is altered, or has its rules in another order"]);
    let more = named(|found| {
        let rules = &mut found.chains.get_mut("forward").unwrap().rules;
        rules.insert(0, vec![Expression::Other("counter".into())]);
    });
    assert_eq!(more, ["1 surplus in forward"]);
    assert_eq!(named(|found| found.flags = 1), ["table flannel-ipv4 is altered"]);
    assert_eq!(named(|found| drop(found.chains.remove("forward"))), ["chain forward is not there"]);
}

fn founds() -> impl Strategy<Value = Option<ObservedTable>> {
    let rules = prop::collection::vec(0..12usize, 0..8);
    let chain = (rules, any::<bool>(), any::<bool>());
    let table = (chain.clone(), chain, 0..2u32, 0..4u32);
    prop::option::of(table).prop_map(|table| {
        let (forward, postrtg, flags, members) = table?;
        let goal = self::table(Family::Ipv4).as_observed();
        let mut found = ObservedTable { flags, members, ..ObservedTable::default() };
        let all: Vec<_> = goal.chains.values().flat_map(|chain| chain.rules.clone()).collect();
        for (name, (rules, drops, has)) in [("forward", forward), ("postrtg", postrtg)] {
            let other = || vec![Expression::Other("x".into())];
            let rule = |n| all.get(n).cloned().unwrap_or_else(other);
            let rules = rules.into_iter().map(rule).collect();
            let hook = has.then(|| goal.chains[name].hook.clone()).flatten();
            if has || drops {
                found.chains.insert(name.into(), ObservedChain { hook, drops, rules });
            }
        }
        Some(found)
    })
}

proptest! {
    #[test]
    fn the_difference_leads_to_the_goal_and_then_there_is_none(
        before in founds(), masquerade: bool, forward: bool,
    ) {
        let masquerade = if masquerade { Masquerade::RandomPorts } else { Masquerade::Off };
        let options = FirewallOptions { masquerade, forward, ..FirewallOptions::default() };
        let rules = Rules::new(&testing::scope(), Family::Ipv4, &options);
        let wanted = DesiredTable::new(Family::Ipv4, rules, &Name::default());
        let mut there = before.clone();
        if let Some(plan) = diff(before.as_ref(), &wanted) {
            prop_assert!(!plan.steps.is_empty());
            prop_assert!(!plan.differences.is_empty());
            for step in plan.steps {
                match step {
                    Step::Create => {
                        prop_assert!(there.is_none(), "created over another");
                        there = Some(wanted.as_observed());
                    }
                    Step::Delete => prop_assert!(there.take().is_some(), "deleted nothing"),
                }
            }
        }
        prop_assert_eq!(diff(there.as_ref(), &wanted), None);
        prop_assert_eq!(there.is_some(), !wanted.chains.is_empty());
    }

    #[test]
    fn the_source_of_a_rule_is_read_back(bits: u128, length in 0u8..=128, negated: bool) {
        let (family, block) = if length > 32 {
            (Family::Ipv6, IpNetwork::new(std::net::Ipv6Addr::from(bits).into(), length).unwrap())
        } else {
            let ip = std::net::Ipv4Addr::from(bits as u32);
            (Family::Ipv4, IpNetwork::new(ip.into(), length).unwrap())
        };
        let block = IpNetwork::new(block.network(), length).unwrap();
        let source = Some(crate::rules::Match { block, negated });
        let action = Action::Accept;
        let rule = Rule { marked: true, source, destination: None, device: None, action };
        let compiled = DesiredTable::new(family, Rules::default(), &Name::default()).compile(&rule);
        prop_assert_eq!(source_of(family, &compiled), Some(block));
        let any = Rule { source: None, ..rule };
        let compiled = DesiredTable::new(family, Rules::default(), &Name::default()).compile(&any);
        prop_assert_eq!(source_of(family, &compiled), None);
    }
}
