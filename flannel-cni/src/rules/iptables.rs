//! Rules of a container in iptables, written by one run of `iptables-restore` for each family.
//!
//! The run is all or nothing, and begins with a look at what all containers share: if that is as it should be, the container's own
//! chain is made and led to; otherwise nothing is done, and what is shared is made first. So nothing has to be read before, and a
//! chain that another plugin makes at the same time is never emptied.

use std::fmt::Write;

use flannel_firewall::{
    Family,
    iptables::{Program, ProgramError, RunCounter},
};
use flannel_netlink::Namespace;

use super::iptables_chains::{Removal, remove_chains};
use crate::{
    protocol::{Code, Error},
    sandbox::chain,
};

/// A rule of table `nat` in the words of `iptables`.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(crate) struct Rule {
    pub(crate) chain: String,
    pub(crate) words: Vec<String>,
    /// Whether it comes before all others of its chain, rather than behind them.
    pub(crate) first: bool,
}

/// What one container has in one family.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(crate) struct Plan {
    /// Chains that all containers share.
    pub(crate) shared_chains: Vec<String>,
    /// The rules in them and to them.
    pub(crate) shared_rules: Vec<Rule>,
    /// The container's own chain.
    pub(crate) chain: String,
    /// The rules in it, and then those that lead to it.
    pub(crate) rules: Vec<Rule>,
    /// Where those that lead to it are.
    pub(crate) entry_chain: &'static str,
}

impl Rule {
    pub(crate) fn new(chain: &str, words: &[&str]) -> Self {
        let words = words.iter().map(|&word| word.to_owned()).collect();
        Self { chain: chain.to_owned(), words, first: false }
    }

    fn check(&self) -> String {
        self.line("-C")
    }

    fn add(&self) -> String {
        self.line(if self.first { "-I" } else { "-A" })
    }

    /// As `iptables-restore` reads it.
    fn line(&self, command: &str) -> String {
        let mut line = format!("{command} {}", self.chain);
        for word in &self.words {
            let plain = |it: char| it.is_ascii_alphanumeric() || "!-_.,:/=+[]".contains(it);
            // Writing to a string cannot fail.
            let _ = if !word.is_empty() && word.chars().all(plain) {
                write!(line, " {word}")
            } else {
                write!(line, " \"{}\"", word.replace('\\', "\\\\").replace('"', "\\\""))
            };
        }
        line
    }
}

impl Plan {
    /// Looks for what is shared, and makes the container's own.
    fn own(&self) -> Vec<String> {
        let checks = self.shared_rules.iter().map(Rule::check);
        let chain = [format!("-N {}", self.chain)];
        checks.chain(chain).chain(self.rules.iter().map(Rule::add)).collect()
    }

    /// Makes everything.
    fn all(&self) -> Vec<String> {
        let chains = self.shared_chains.iter().chain([&self.chain]);
        let rules = self.shared_rules.iter().chain(&self.rules);
        chains.map(|chain| format!("-N {chain}")).chain(rules.map(Rule::add)).collect()
    }

    /// Looks for everything.
    fn checks(&self) -> Vec<String> {
        self.shared_rules.iter().chain(&self.rules).map(Rule::check).collect()
    }
}

/// Makes the rules of a container in one family. If it has some already, they are made anew.
pub(crate) async fn add(host: &Namespace, family: Family, plan: &Plan) -> Result<(), Error> {
    let program = find(host, family).await?;
    if run(&program, &plan.own()).await.is_ok() || run(&program, &plan.all()).await.is_ok() {
        return Ok(());
    }
    remove_chains(host, family, &Removal::named(plan.entry_chain, &plan.chain)).await?;
    for chain in &plan.shared_chains {
        // It may be there.
        let _ = run(&program, &[format!("-N {chain}")]).await;
    }
    for rule in &plan.shared_rules {
        if run(&program, &[rule.check()]).await.is_err() {
            run(&program, &[rule.add()]).await.map_err(|error| refused(&error))?;
        }
    }
    run(&program, &plan.own()).await.map_err(|error| refused(&error))
}

/// Whether the rules of a container are there, with those that all share.
pub(crate) async fn check(host: &Namespace, family: Family, plan: &Plan) -> Result<(), Error> {
    let program = find(host, family).await?;
    run(&program, &plan.checks()).await.map_err(|error| {
        let message = format!("rules for chain {} are missing: {}", plan.chain, chain(&error));
        Error::new(Code::NotAsExpected, message)
    })
}

/// The program that keeps rules of a family.
pub(crate) async fn find(host: &Namespace, family: Family) -> Result<Program, Error> {
    let found = Program::find(host, &[], family, "", &RunCounter::default()).await;
    found.map_err(|error| refused(&error))?.ok_or_else(|| {
        let name = if family.is_ipv4() { "iptables" } else { "ip6tables" };
        Error::new(Code::Kernel, format!("failed to locate {name}"))
            .with_details("install it, or set the backend to \"nftables\"")
    })
}

/// Does all lines or none.
pub(super) async fn run(program: &Program, lines: &[String]) -> Result<(), ProgramError> {
    program.change(format!("*nat\n{}\nCOMMIT\n", lines.join("\n"))).await
}

pub(super) fn refused(error: &ProgramError) -> Error {
    Error::new(Code::Kernel, format!("cannot change rules of iptables: {}", chain(error)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_are_written_as_iptables_restore_reads_them() {
        let rule = Rule::new("A", &["!", "-d", "10.0.0.0/8", "--comment", "a \"b\" \\c", ""]);
        assert_eq!(rule.add(), r#"-A A ! -d 10.0.0.0/8 --comment "a \"b\" \\c" """#);
        assert_eq!(Rule { first: true, ..Rule::new("A", &["-j", "B"]) }.add(), "-I A -j B");
    }

    #[test]
    fn what_is_shared_is_looked_for_before_anything_is_made() {
        let plan = Plan {
            shared_chains: vec!["S".into()],
            shared_rules: vec![Rule::new("S", &["-j", "ACCEPT"])],
            chain: "C".into(),
            rules: vec![Rule::new("C", &["-j", "ACCEPT"]), Rule::new("S", &["-j", "C"])],
            entry_chain: "S",
        };
        let own = ["-C S -j ACCEPT", "-N C", "-A C -j ACCEPT", "-A S -j C"];
        let all = ["-N S", "-N C", "-A S -j ACCEPT", "-A C -j ACCEPT", "-A S -j C"];
        let checks = ["-C S -j ACCEPT", "-C C -j ACCEPT", "-C S -j C"];
        assert_eq!(plan.own(), own);
        assert_eq!(plan.all(), all);
        assert_eq!(plan.checks(), checks);
    }
}
