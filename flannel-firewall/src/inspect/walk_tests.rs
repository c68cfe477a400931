use proptest::prelude::*;

use super::*;
use crate::inspect::Direction;

fn rule(fits: Ternary, step: Step) -> Rule {
    Rule { number: 1, fits, step }
}

fn chain(place: Option<(u32, i32)>, drops: bool, mut rules: Vec<Rule>) -> Chain {
    rules.iter_mut().zip(1..).for_each(|(rule, number)| rule.number = number);
    let place = place.map(|(hook, priority)| Place { hook, priority, translates: hook == 4 });
    Chain { place, drops, rules }
}

fn table(name: &str, chains: Vec<(&str, Chain)>) -> Table {
    let chains = chains.into_iter().map(|(name, chain)| (name.to_owned(), chain)).collect();
    Table { name: name.into(), chains }
}

fn found(tables: &[Table]) -> Vec<Finding> {
    let [from, to] =
        ["10.244.7.2", "10.244.8.2"].map(|ip| ip.parse::<ipnetwork::IpNetwork>().unwrap());
    findings(&PacketPath::new(Direction::Forwarded, from, to), tables)
}

fn said(tables: &[Table]) -> Vec<String> {
    found(tables).iter().map(ToString::to_string).collect()
}

#[test]
fn the_first_rule_that_fits_decides() {
    use Step::{Accept, Drop, Goto, Jump, Return};
    use Ternary::{False as No, True as Yes, Unknown as Maybe};
    let to = |name: &str| Jump(name.into());
    let forward = |rules| {
        let others = vec![
            ("drops", chain(None, false, vec![rule(Yes, Drop)])),
            ("accepts", chain(None, false, vec![rule(Yes, Accept)])),
            ("returns", chain(None, false, vec![rule(Yes, Return), rule(Yes, Drop)])),
            ("may-return", chain(None, false, vec![rule(Maybe, Return), rule(Yes, Drop)])),
            ("FORWARD", chain(Some((2, 0)), true, rules)),
        ];
        said(&[table("ip filter", others)])
    };
    let policy = "chain FORWARD of table ip filter drops these packets by its policy";
    let may_policy = "chain FORWARD of table ip filter may drop these packets by its policy";
    let dropped = "chain drops of table ip filter drops these packets by rule 1";
    let perhaps = "chain drops of table ip filter may drop these packets by rule 1";
    let after_return = "chain may-return of table ip filter may drop these packets by rule 2";
    assert_eq!(forward(vec![]), [policy]);
    assert_eq!(forward(vec![rule(Yes, Accept)]), [""; 0]);
    assert_eq!(forward(vec![rule(No, Accept), rule(No, Drop)]), [policy]);
    assert_eq!(forward(vec![rule(Maybe, Accept)]), [may_policy], "some may be accepted");
    assert_eq!(forward(vec![rule(Maybe, to("accepts"))]), [may_policy]);
    assert_eq!(forward(vec![rule(Yes, to("drops")), rule(Yes, Accept)]), [dropped]);
    assert_eq!(forward(vec![rule(Maybe, to("drops")), rule(Yes, Accept)]), [perhaps]);
    assert_eq!(forward(vec![rule(Yes, to("returns")), rule(Yes, to("accepts"))]), [""; 0]);
    assert_eq!(forward(vec![rule(Yes, Goto("returns".into())), rule(Yes, Accept)]), [policy]);
    assert_eq!(forward(vec![rule(Yes, to("nowhere")), rule(Yes, Accept)]), [""; 0]);
    assert_eq!(forward(vec![rule(Yes, to("may-return")), rule(Yes, Accept)]), [after_return]);
    assert_eq!(forward(vec![rule(Yes, to("may-return"))]), [after_return, policy]);
}

#[test]
fn chains_are_met_in_the_order_of_their_places() {
    let drops = |place| chain(Some(place), true, vec![]);
    let first = "chain a of table ip late drops these packets by its policy";
    let tables = [
        table("inet early", vec![("b", drops((2, 10)))]),
        table("ip late", vec![("a", drops((2, -5)))]),
    ];
    assert_eq!(said(&tables), [first]);
    let source =
        |priority| chain(Some((4, priority)), false, vec![rule(Ternary::True, Step::Masquerade)]);
    let twice =
        [table("ip one", vec![("a", source(100))]), table("ip two", vec![("b", source(90))])];
    assert_eq!(said(&twice), ["chain b of table ip two masquerades these packets by rule 1"]);
    let input = table("ip x", vec![("INPUT", drops((1, 0)))]);
    assert_eq!(said(std::slice::from_ref(&input)), [""; 0], "forwarded packets do not come by");
    let [from, to] =
        ["192.0.2.2", "192.0.2.1"].map(|ip| ip.parse::<ipnetwork::IpNetwork>().unwrap());
    assert_eq!(findings(&PacketPath::new(Direction::Received, from, to), &[input]).len(), 1);
}

#[test]
fn chains_that_lead_in_circles_end() {
    let circle = chain(Some((2, 0)), false, vec![rule(Ternary::True, Step::Jump("a".into())); 2]);
    assert_eq!(said(&[table("ip x", vec![("a", circle)])]), [""; 0]);
}

/// What becomes of a packet, if the rules that may fit do so as `chosen` says.
fn is_dropped(
    table: &Table,
    chain: &str,
    chosen: &mut impl FnMut(&str, usize) -> bool,
) -> Option<bool> {
    let chain_of = &table.chains[chain];
    for rule in &chain_of.rules {
        let fits = match rule.fits {
            Ternary::False => false,
            Ternary::Unknown => chosen(chain, rule.number),
            Ternary::True => true,
        };
        let decided = match &rule.step {
            _ if !fits => None,
            Step::Accept => Some(false),
            Step::Drop => Some(true),
            Step::Return => return None,
            Step::Goto(to) => return is_dropped(table, to, chosen),
            Step::Jump(to) => is_dropped(table, to, chosen),
            Step::Continue | Step::Masquerade => None,
        };
        if decided.is_some() {
            return decided;
        }
    }
    None
}

proptest! {
    /// Whichever of the uncertain conditions hold: what is certain to be dropped is dropped, and what nothing is said about passes.
    #[test]
    fn what_is_certain_is_true_whatever_the_unknown_is(
        base in prop::collection::vec((0..3usize, 0..6usize), 0..7),
        inner in prop::collection::vec((0..3usize, 0..4usize), 0..5),
        drops: bool, holds: u64,
    ) {
        let make = |steps: &[(usize, usize)]| -> Vec<Rule> {
            let steps = steps.iter().map(|(fits, step)| rule(
                [Ternary::Unknown, Ternary::False, Ternary::True][*fits],
                [
                    Step::Accept, Step::Drop, Step::Continue, Step::Return,
                    Step::Jump("inner".into()), Step::Goto("inner".into()),
                ][*step].clone(),
            ));
            steps.collect()
        };
        let chains = vec![
            ("base", chain(Some((2, 0)), drops, make(&base))),
            ("inner", chain(None, false, make(&inner))),
        ];
        let table = table("ip x", chains);
        let mut chosen = |chain: &str, number: usize| {
            holds >> (number + if chain == "base" { 0 } else { 20 }) & 1 == 1
        };
        let dropped = is_dropped(&table, "base", &mut chosen).unwrap_or(drops);
        let findings = found(&[table]);
        if findings.iter().any(|finding| finding.certain) {
            prop_assert!(dropped, "{:?}", findings);
        }
        if findings.is_empty() {
            prop_assert!(!dropped);
        }
    }
}
