//! A packet's way through tables, as a plain function.

use std::{collections::BTreeMap, net::IpAddr};

use super::{Effect, Obstacle};
use crate::rules::Family;

/// A packet that a host forwards.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Passage {
    /// Where it comes from.
    pub source: IpAddr,
    /// Where it goes, of the same family.
    pub destination: IpAddr,
    /// The device that it comes in on; `None` if that is not known.
    pub enters: Option<String>,
    /// The device that it leaves on; `None` if that is not known.
    pub leaves: Option<String>,
}

impl Passage {
    /// The packet's family.
    pub(crate) fn family(&self) -> Family {
        if self.source.is_ipv4() { Family::Ipv4 } else { Family::Ipv6 }
    }

    /// Whether the device on this side has the name, or one that begins with it.
    pub(crate) fn is_on(&self, leaves: bool, name: &str, is_prefix: bool) -> Truth {
        let device = if leaves { &self.leaves } else { &self.enters };
        match device {
            None => Truth::Maybe,
            Some(device) if is_prefix => Truth::from(device.starts_with(name)),
            Some(device) => Truth::from(device == name),
        }
    }
}

/// Whether a condition holds.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Truth {
    Maybe,
    No,
    Yes,
}

impl From<bool> for Truth {
    fn from(holds: bool) -> Self {
        if holds { Self::Yes } else { Self::No }
    }
}

impl Truth {
    pub(crate) fn and(self, other: Self) -> Self {
        match (self, other) {
            (Self::No, _) | (_, Self::No) => Self::No,
            (Self::Yes, Self::Yes) => Self::Yes,
            _ => Self::Maybe,
        }
    }

    pub(crate) fn not_if(self, negated: bool) -> Self {
        match self {
            Self::Maybe => Self::Maybe,
            known => Self::from((known == Self::Yes) != negated),
        }
    }
}

/// A table with all that a packet may meet in it.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub(crate) struct Table {
    /// For people: `ip filter`.
    pub(crate) name: String,
    pub(crate) chains: BTreeMap<String, Chain>,
}

#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub(crate) struct Chain {
    /// Where packets enter it from outside of the table.
    pub(crate) hook: Option<Hook>,
    /// Whether packets that no rule decides about are dropped.
    pub(crate) drops: bool,
    pub(crate) rules: Vec<Rule>,
}

/// A place that packets pass. They come in this order.
#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd)]
pub(crate) struct Hook {
    /// `NF_INET_*` of linux/netfilter.h.
    pub(crate) number: u32,
    pub(crate) priority: i32,
    /// Whether it is about addresses, and not about passing.
    pub(crate) translates: bool,
}

/// A rule as it is for this packet.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(crate) struct Rule {
    pub(crate) fits: Truth,
    pub(crate) step: Step,
}

/// What happens to a packet that a rule fits.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(crate) enum Step {
    Accept,
    Continue,
    Drop,
    Goto(String),
    Jump(String),
    Masquerade,
    Return,
}

/// What is in the way of a packet, in the order in which it is met.
pub(super) fn obstacles(tables: &[Table]) -> Vec<Obstacle> {
    let mut entries: Vec<_> = tables
        .iter()
        .flat_map(|table| table.chains.iter().map(move |(name, chain)| (table, name, chain)))
        .filter_map(|(table, name, chain)| Some((chain.hook?, table, name, chain)))
        .collect();
    entries.sort_by_key(|(hook, ..)| *hook);
    let mut found = Vec::new();
    let mut translated = [false; HOOKS];
    for (hook, table, name, chain) in entries {
        let Some(translated) = translated.get_mut(hook.number as usize) else { continue };
        // The first chain that says something about addresses decides.
        if hook.translates && *translated {
            continue;
        }
        let before = found.len();
        let mut walk = Walk { table, found: &mut found, certain: true };
        let end = walk.chain(name, chain, DEEPEST);
        if end == End::Passed && chain.drops {
            walk.note(Effect::Drops, name, "its policy".into(), true);
        }
        let decided = found[before..].iter().find(|obstacle| obstacle.certain);
        match decided.map(|obstacle| obstacle.effect) {
            Some(Effect::Drops) => return found,
            Some(Effect::Masquerades) => *translated = true,
            None => {}
        }
    }
    found
}

struct Walk<'a> {
    table: &'a Table,
    found: &'a mut Vec<Obstacle>,
    /// Whether the packet comes here in any case.
    certain: bool,
}

/// How a walk through one chain ended.
#[derive(Clone, Copy, Eq, PartialEq)]
enum End {
    /// Some rule decided.
    Decided,
    /// No rule did.
    Passed,
}

impl Walk<'_> {
    fn chain(&mut self, name: &str, chain: &Chain, depth: usize) -> End {
        if depth == 0 {
            return End::Passed;
        }
        for (at, rule) in chain.rules.iter().enumerate() {
            let certain = match rule.fits {
                Truth::No => continue,
                Truth::Maybe => false,
                Truth::Yes => true,
            };
            let rule_name = || format!("rule {}", at + 1);
            let end = match &rule.step {
                Step::Continue => End::Passed,
                Step::Accept => End::Decided,
                Step::Return if certain => return End::Passed,
                Step::Return => End::Passed,
                Step::Drop => self.note(Effect::Drops, name, rule_name(), certain),
                Step::Masquerade => self.note(Effect::Masquerades, name, rule_name(), certain),
                Step::Goto(to) | Step::Jump(to) => {
                    let outside = self.certain;
                    self.certain &= certain;
                    let target = self.table.chains.get(to);
                    let end = target.map_or(End::Passed, |chain| self.chain(to, chain, depth - 1));
                    self.certain = outside;
                    if certain && matches!(rule.step, Step::Goto(_)) {
                        return end;
                    }
                    end
                }
            };
            // What a rule that may not fit would have decided is open.
            if certain && end == End::Decided {
                return End::Decided;
            }
        }
        End::Passed
    }

    fn note(&mut self, effect: Effect, chain: &str, rule: String, certain: bool) -> End {
        let place = format!("chain {chain} of table {}", self.table.name);
        let certain = self.certain && certain;
        self.found.push(Obstacle { effect, certain, place, rule });
        End::Decided
    }
}

/// Prerouting, input, forward, output and postrouting.
const HOOKS: usize = 5;
/// How many chains may lead to each other: as many as the kernel allows.
const DEEPEST: usize = 16;

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn rule(fits: Truth, step: Step) -> Rule {
        Rule { fits, step }
    }

    fn chain(hook: Option<(u32, i32)>, drops: bool, rules: Vec<Rule>) -> Chain {
        let hook =
            hook.map(|(number, priority)| Hook { number, priority, translates: number == 4 });
        Chain { hook, drops, rules }
    }

    fn table(name: &str, chains: Vec<(&str, Chain)>) -> Table {
        let chains = chains.into_iter().map(|(name, chain)| (name.to_owned(), chain)).collect();
        Table { name: name.into(), chains }
    }

    fn told(tables: &[Table]) -> Vec<String> {
        obstacles(tables).iter().map(ToString::to_string).collect()
    }

    #[test]
    fn the_first_rule_that_fits_decides() {
        use Step::{Accept, Drop, Goto, Jump, Return};
        use Truth::{Maybe, No, Yes};
        let to = |name: &str| Jump(name.into());
        let forward = |rules| {
            let others = vec![
                ("drops", chain(None, false, vec![rule(Yes, Drop)])),
                ("accepts", chain(None, false, vec![rule(Yes, Accept)])),
                ("returns", chain(None, false, vec![rule(Yes, Return), rule(Yes, Drop)])),
                ("FORWARD", chain(Some((2, 0)), true, rules)),
            ];
            told(&[table("ip filter", others)])
        };
        let policy = "chain FORWARD of table ip filter drops these packets by its policy";
        let dropped = "chain drops of table ip filter drops these packets by rule 1";
        let perhaps = "chain drops of table ip filter may drop these packets by rule 1";
        assert_eq!(forward(vec![]), [policy]);
        assert_eq!(forward(vec![rule(Yes, Accept)]), [""; 0]);
        assert_eq!(forward(vec![rule(No, Accept), rule(No, Drop)]), [policy]);
        assert_eq!(forward(vec![rule(Maybe, Accept)]), [policy], "not all of them are accepted");
        assert_eq!(forward(vec![rule(Yes, to("drops")), rule(Yes, Accept)]), [dropped]);
        assert_eq!(forward(vec![rule(Maybe, to("drops")), rule(Yes, Accept)]), [perhaps]);
        assert_eq!(forward(vec![rule(Yes, to("returns")), rule(Yes, to("accepts"))]), [""; 0]);
        assert_eq!(forward(vec![rule(Yes, Goto("returns".into())), rule(Yes, Accept)]), [policy]);
        assert_eq!(forward(vec![rule(Yes, to("nowhere")), rule(Yes, Accept)]), [""; 0]);
    }

    #[test]
    fn chains_are_met_in_the_order_of_their_places() {
        let drops = |hook| chain(Some(hook), true, vec![]);
        let first = "chain a of table ip late drops these packets by its policy";
        let tables = [
            table("inet early", vec![("b", drops((2, 10)))]),
            table("ip late", vec![("a", drops((2, -5)))]),
        ];
        assert_eq!(told(&tables), [first]);
        let source =
            |priority| chain(Some((4, priority)), false, vec![rule(Truth::Yes, Step::Masquerade)]);
        let twice =
            [table("ip one", vec![("a", source(100))]), table("ip two", vec![("b", source(90))])];
        assert_eq!(told(&twice), ["chain b of table ip two masquerades these packets by rule 1"]);
    }

    #[test]
    fn chains_that_lead_in_circles_end() {
        let circle = chain(Some((2, 0)), false, vec![rule(Truth::Yes, Step::Jump("a".into())); 2]);
        assert_eq!(told(&[table("ip x", vec![("a", circle)])]), [""; 0]);
    }

    proptest! {
        #[test]
        fn what_is_certain_does_not_depend_on_what_is_not(steps in prop::collection::vec((0..3usize, 0..3usize), 0..8)) {
            let rules = steps.iter().map(|(fits, step)| rule(
                [Truth::Maybe, Truth::No, Truth::Yes][*fits],
                [Step::Accept, Step::Drop, Step::Continue][*step].clone(),
            ));
            let rules: Vec<_> = rules.collect();
            let known = rules.iter().filter(|rule| rule.fits == Truth::Yes).cloned().collect();
            let certain = |rules| {
                let all = obstacles(&[table("ip x", vec![("a", chain(Some((2, 0)), true, rules))])]);
                all.iter().filter(|it| it.certain).count()
            };
            prop_assert_eq!(certain(rules), certain(known));
        }
    }
}
