//! Our rules in nftables: one table per family, which is ours as a whole.
//!
//! Tables and chains have flannel's names. The rules are those of iptables, which flannel's own nftables rules are not: there
//! `saddr != own daddr network return` keeps traffic from outside to pods of peers from being masqueraded, and a mark with
//! more than kube-proxy's bit is not recognised. A flanneld that takes over writes its own.

mod keep_tracking;
mod nft_text;
mod table_diff;

use flannel_netlink::KernelError;
use ipnetwork::IpNetwork;
pub(crate) use keep_tracking::keep_tracking;
use keep_tracking::left_by_reload;
use nft_text::rule_text;
use table_diff::{ObservedChain, ObservedTable, diff};

use crate::{
    names::{Name, Names},
    nftables::{
        ChainInfo, Client, Expression, Family as TableFamily, Hook, Verdict, uapi::RANDOM_FULLY,
    },
    outcome::Outcome,
    rules::{Action, Family, KUBE_PROXY_MARK, NotBy, Rule, Rules, Side},
};

/// What we want as table of one family.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(crate) struct DesiredTable {
    pub(crate) family: Family,
    pub(crate) name: String,
    pub(crate) chains: Vec<DesiredChain>,
    /// Whether kube-proxy's mark counts only without other bits, as in flannel's own tables.
    pub(crate) exact_mark: bool,
}

/// What we want as a chain.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(crate) struct DesiredChain {
    pub(crate) name: &'static str,
    pub(crate) comment: &'static str,
    pub(crate) hook: Hook,
    pub(crate) rules: Vec<Rule>,
}

impl DesiredTable {
    /// The table for `rules`. Without chains if there is nothing to keep: then the table is not wanted either.
    pub(crate) fn new(family: Family, rules: Rules, name: &Name) -> Self {
        let forward = DesiredChain {
            name: "forward",
            comment: "chain to accept flannel traffic",
            hook: Hook { kind: "filter".into(), number: Hook::FORWARD, priority: 0 },
            rules: rules.forward,
        };
        let postrouting = DesiredChain {
            name: "postrtg",
            comment: "chain to manage traffic masquerading by flannel",
            hook: Hook {
                kind: "nat".into(),
                number: Hook::POSTROUTING,
                priority: Hook::PRIORITY_SRCNAT,
            },
            rules: rules.masquerade,
        };
        let mut chains = vec![forward, postrouting];
        chains.retain(|chain| !chain.rules.is_empty());
        Self { family, name: name.table(family), chains, exact_mark: false }
    }

    /// flannel's.
    pub(crate) fn comment(&self) -> String {
        format!("rules for {}", self.name)
    }

    /// What nft makes of `rule`.
    pub(crate) fn compile(&self, rule: &Rule) -> Vec<Expression> {
        let mut expressions = Vec::new();
        if rule.marked {
            let mark = KUBE_PROXY_MARK.to_ne_bytes().to_vec();
            expressions
                .push(Expression::Meta { register: Expression::REGISTER, key: NFT_META_MARK });
            if !self.exact_mark {
                expressions.push(Expression::and(mark.clone()));
            }
            expressions.push(Expression::compare(false, mark));
        }
        let (source, destination) = (source_offset(self.family), destination_offset(self.family));
        for (offset, wanted) in [(source, rule.source), (destination, rule.destination)] {
            if let Some(wanted) = wanted {
                let compare = Expression::compare_address(offset, wanted.block, wanted.negated);
                expressions.extend(compare);
            }
        }
        if let Some(NotBy { side, device }) = &rule.device {
            let key = match side {
                Side::Enters => Expression::META_INPUT,
                Side::Leaves => Expression::META_OUTPUT,
            };
            let name = match device.strip_suffix('+') {
                Some(beginning) => beginning.as_bytes().to_vec(),
                None => {
                    let mut name = device.as_bytes().to_vec();
                    name.resize(DEVICE_NAME, 0);
                    name
                }
            };
            expressions.push(Expression::Meta { register: Expression::REGISTER, key });
            expressions.push(Expression::compare(true, name));
        }
        expressions.push(match rule.action {
            Action::Accept => Expression::ACCEPT,
            Action::Drop => Expression::Verdict(Verdict::Drop),
            Action::Masquerade { random_ports } => {
                Expression::Masquerade { flags: if random_ports { RANDOM_FULLY } else { 0 } }
            }
            Action::Return => Expression::Verdict(Verdict::Return),
        });
        expressions
    }
}

/// Brings our tables to what is wanted, each under the name that it has beside those of other networks. `exact_mark` is as in
/// [`DesiredTable`].
pub(crate) async fn sync(
    client: &mut Client,
    names: &mut Names,
    wanted: impl IntoIterator<Item = (Family, Rules)>,
    exact_mark: bool,
    outcome: &mut Outcome,
) {
    let chains = match client.chains().await {
        Ok(chains) => chains,
        Err(error) => return outcome.fault("list the chains of nftables", &error),
    };
    for (family, rules) in wanted {
        let standard = names.standard().table(family);
        let sources = match read_table(client, family, &standard, &chains).await {
            Ok(table) => table.map(|table| table.sources(family)).unwrap_or_default(),
            Err(error) => {
                outcome.fault(
                    format!("list table {} {standard} of nftables", family.keyword()),
                    &error,
                );
                continue;
            }
        };
        let placement = names.place(family, sources);
        // What is wanted is there before anything goes.
        if let Some(name) = placement.wanted {
            let wanted = DesiredTable { exact_mark, ..DesiredTable::new(family, rules, &name) };
            sync_table(client, wanted, &chains, outcome).await;
        }
        for name in placement.unwanted {
            let nothing = DesiredTable::new(family, Rules::default(), &name);
            sync_table(client, nothing, &chains, outcome).await;
        }
    }
    if let Err(error) = left_by_reload(client, names.standard(), &chains).await {
        outcome.fault("remove what a reload of all rules left", &error);
    }
}

/// Brings one table to what is wanted.
async fn sync_table(
    client: &mut Client,
    wanted: DesiredTable,
    chains: &[ChainInfo],
    outcome: &mut Outcome,
) {
    let (keyword, name) = (wanted.family.keyword(), &wanted.name);
    let found = match read_table(client, wanted.family, name, chains).await {
        Ok(found) => found,
        Err(error) => {
            return outcome.fault(format!("list table {keyword} {name} of nftables"), &error);
        }
    };
    outcome.report.read += found.as_ref().map_or(0, ObservedTable::count);
    let Some(plan) = diff(found.as_ref(), &wanted) else { return };
    match client.apply(&wanted.batch(&plan.steps)).await {
        Ok(()) => outcome.wrote(plan.added, plan.removed, plan.differences),
        Err(error) => outcome.fault(format!("write table {keyword} {name} of nftables"), &error),
    }
}

/// The table, if it is there. `chains` are those of all tables.
async fn read_table(
    client: &mut Client,
    family: Family,
    name: &str,
    chains: &[ChainInfo],
) -> Result<Option<ObservedTable>, KernelError> {
    let of = TableFamily::from(family);
    let Some(info) = client.table(of, name).await? else { return Ok(None) };
    let ours = chains.iter().filter(|chain| (chain.family, &*chain.table) == (of, name));
    let found = |chain: &ChainInfo| {
        let found =
            ObservedChain { hook: chain.hook.clone(), drops: chain.drops, rules: Vec::new() };
        (chain.name.clone(), found)
    };
    let mut table = ObservedTable {
        flags: info.flags,
        members: info.members,
        chains: ours.map(found).collect(),
    };
    for rule in client.rules(of, name).await? {
        table.chains.entry(rule.chain).or_default().rules.push(rule.expressions);
    }
    Ok(Some(table))
}

/// The block that a rule's packets have to come from, or must not come from.
pub(crate) fn source_of(family: Family, expressions: &[Expression]) -> Option<IpNetwork> {
    let offset = source_offset(family);
    let at = expressions.iter().position(|expression| {
        matches!(expression, Expression::Payload { base: Expression::NETWORK_HEADER, offset: at, .. } if *at == offset)
    })?;
    let (mask, value) = match expressions.get(at + 1..)? {
        [Expression::Compare { value, .. }, ..] => (vec![0xff; value.len()], value),
        [Expression::Bitwise { mask, .. }, Expression::Compare { value, .. }, ..] => {
            (mask.clone(), value)
        }
        _ => return None,
    };
    let prefix: u32 = mask.iter().map(|byte| byte.leading_ones()).sum();
    let prefix = u8::try_from(prefix).ok()?;
    if family.is_ipv4() {
        let mut octets = [0; 4];
        octets.get_mut(..value.len())?.copy_from_slice(value);
        IpNetwork::new(octets.into(), prefix).ok()
    } else {
        let mut octets = [0; 16];
        octets.get_mut(..value.len())?.copy_from_slice(value);
        IpNetwork::new(octets.into(), prefix).ok()
    }
}

impl Family {
    /// What nft calls it.
    pub(crate) fn keyword(self) -> &'static str {
        match self {
            Self::Ipv4 => "ip",
            Self::Ipv6 => "ip6",
        }
    }
}

impl From<Family> for TableFamily {
    fn from(family: Family) -> Self {
        match family {
            Family::Ipv4 => Self::IPV4,
            Family::Ipv6 => Self::IPV6,
        }
    }
}

/// Where in the network header the source address is.
pub(crate) const fn source_offset(family: Family) -> u32 {
    match family {
        Family::Ipv4 => 12,
        Family::Ipv6 => 8,
    }
}

/// Where in the network header the destination address is.
const fn destination_offset(family: Family) -> u32 {
    match family {
        Family::Ipv4 => 16,
        Family::Ipv6 => 24,
    }
}

/// `NFT_META_MARK` of linux/netfilter/nf_tables.h.
const NFT_META_MARK: u32 = 3;
/// `IFNAMSIZ` of linux/if.h.
const DEVICE_NAME: usize = 16;

#[cfg(test)]
mod table_tests;
