//! Rules in nft's own words, as `nft list table` prints them and `nft -f` reads them.

use std::fmt::{self, Write};

use super::{DesiredChain, DesiredTable};
use crate::{
    nftables::Hook,
    rules::{Action, Family, KUBE_PROXY_MARK, Match, NotBy, Rule, Side},
};

/// One rule.
pub(crate) fn rule_text(family: Family, rule: &Rule) -> String {
    let mut text = String::new();
    if rule.marked {
        // Writing to a string cannot fail.
        let _ = write!(text, "meta mark & {KUBE_PROXY_MARK:#010x} == {KUBE_PROXY_MARK:#010x} ");
    }
    for (field, wanted) in [("saddr", rule.source), ("daddr", rule.destination)] {
        let Some(Match { block, negated }) = wanted else { continue };
        let not = if negated { "!= " } else { "" };
        let _ = write!(text, "{} {field} {not}", family.keyword());
        let longest = if block.is_ipv4() { 32 } else { 128 };
        let _ = match block.prefix() == longest {
            true => write!(text, "{} ", block.ip()),
            false => write!(text, "{block} "),
        };
    }
    if let Some(NotBy { side, device }) = &rule.device {
        let name = match side {
            Side::Enters => "iifname",
            Side::Leaves => "oifname",
        };
        let _ = match device.strip_suffix('+') {
            Some(beginning) => write!(text, "{name} != \"{beginning}*\" "),
            None => write!(text, "{name} != \"{device}\" "),
        };
    }
    text + match rule.action {
        Action::Accept => "accept",
        Action::Drop => "drop",
        Action::Masquerade { random_ports: false } => "masquerade",
        Action::Masquerade { random_ports: true } => "masquerade fully-random",
        Action::Return => "return",
    }
}

impl fmt::Display for DesiredTable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "table {} {} {{", self.family.keyword(), self.name)?;
        writeln!(f, "\tcomment \"{}\"", self.comment())?;
        for chain in &self.chains {
            let DesiredChain { name, comment, hook, rules } = chain;
            let (kind, at) = (&hook.kind, chain.place());
            writeln!(f, "\n\tchain {name} {{\n\t\tcomment \"{comment}\"")?;
            writeln!(f, "\t\ttype {kind} hook {at}; policy accept;")?;
            for rule in rules {
                writeln!(f, "\t\t{}", rule_text(self.family, rule))?;
            }
            writeln!(f, "\t}}")?;
        }
        writeln!(f, "}}")
    }
}

impl DesiredChain {
    fn place(&self) -> &'static str {
        match self.hook.number {
            Hook::FORWARD => "forward priority filter",
            _ => "postrouting priority srcnat",
        }
    }
}
