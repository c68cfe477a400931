//! Rules as iptables writes them. The text is flannel's to the byte, so that a flanneld which takes over finds its rules.
//!
//! Rules live in chains of our own, which are ours as a whole. What is ours in the built-in chains are the jumps there, and the
//! rules that flannel wrote straight into them before 0.20: they are known by their comment. Nothing else is touched.

mod diff;
mod listing;
mod text;

pub(crate) use diff::{Change, diff};
pub(crate) use listing::Listing;
pub(crate) use text::Words;

use crate::{
    options::Name,
    rules::{Rule, Rules},
};

/// What we want in one table of one family.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(crate) struct Wanted {
    /// `nat` or `filter`.
    pub(crate) table: &'static str,
    /// The built-in chain that packets come from.
    pub(crate) hook: &'static str,
    /// Our chain.
    pub(crate) chain: String,
    /// What marks our rules.
    pub(crate) comment: &'static str,
    /// The rules of our chain; if there are none, the chain is not wanted either.
    pub(crate) rules: Vec<Rule>,
}

/// What we want in all tables of one family.
pub(crate) fn wanted(rules: Rules, name: &Name) -> [Wanted; 2] {
    let masquerade = Wanted {
        table: "nat",
        hook: "POSTROUTING",
        chain: name.chain("POSTRTG"),
        comment: "flanneld masq",
        rules: rules.masquerade,
    };
    let forward = Wanted {
        table: "filter",
        hook: "FORWARD",
        chain: name.chain("FWD"),
        comment: "flanneld forward",
        rules: rules.forward,
    };
    [masquerade, forward]
}

#[cfg(test)]
mod tests;
