//! iptables: its programs, what they print, and our rules in its words.
//!
//! The text of our rules is flannel's to the byte, so that a flanneld which takes over finds its rules. Rules live in chains of our own, which are ours as a whole. What is ours in the built-in chains are the jumps there, and the
//! rules that flannel wrote straight into them before 0.20: they are known by their comment. Nothing else is touched.

mod chain_diff;
mod program;
mod rule_sync;
mod rule_text;
mod save_output;

pub(crate) use chain_diff::{Change, diff};
pub use program::needs_net_raw;
pub use program::{Program, ProgramError, RunCounter, find_program};
pub(crate) use rule_sync::Iptables;
pub use rule_text::Words;
pub use save_output::{Chain, Listing, Table};

use crate::{
    names::Name,
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
    /// Whether rules that flannel wrote straight into the built-in chain before 0.20 go.
    pub(crate) removes_old: bool,
}

/// What we want in all tables of one family.
pub(crate) fn wanted(rules: Rules, name: &Name) -> [Wanted; 2] {
    let masquerade = Wanted {
        table: "nat",
        hook: "POSTROUTING",
        chain: name.chain("POSTRTG"),
        comment: "flanneld masq",
        rules: rules.masquerade,
        removes_old: true,
    };
    let forward = Wanted {
        table: "filter",
        hook: "FORWARD",
        chain: name.chain("FWD"),
        comment: "flanneld forward",
        rules: rules.forward,
        removes_old: true,
    };
    [masquerade, forward]
}

#[cfg(test)]
mod iptables_tests;
