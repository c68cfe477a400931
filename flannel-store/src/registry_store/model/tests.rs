//! What is searched: where the code is optimised, all states of most sizes and the first of the largest, so that it takes a
//! few minutes; where it is not, the search ends early.

use super::{
    Bug, Leases,
    checker::{Counterexample, Explored, explore},
};

/// How many states are searched at most; `FLANNEL_MODEL_STATES` says otherwise.
fn limit() -> usize {
    let variable = std::env::var("FLANNEL_MODEL_STATES").ok().and_then(|text| text.parse().ok());
    variable.unwrap_or(if cfg!(debug_assertions) { 10_000 } else { 1_500_000 })
}

fn holds(model: &Leases) {
    let Leases { nodes, subnets, life, budget, calls, .. } = model;
    let size = format!(
        "{nodes} nodes, {subnets} subnets, {calls} calls at a time, {budget} disturbances, a TTL of {life} ticks"
    );
    match explore(model, limit()) {
        Ok(Explored { states, transitions, depth, complete }) => {
            let all = if complete { "all" } else { "the first" };
            println!(
                "{size}: {all} {states} states, {transitions} steps between them, {depth} deep"
            );
            assert!(complete || states >= limit(), "searched too little");
        }
        Err(Counterexample { violation, steps }) => {
            panic!("{size}: {violation}, after\n{}", steps.join("\n"));
        }
    }
}

fn fails(model: &Leases, expected: &str) {
    let Err(Counterexample { violation, steps }) = explore(model, 1_000_000) else {
        panic!("the bug was not found");
    };
    println!("{violation}, after\n{}", steps.join("\n"));
    assert!(violation.contains(expected), "{violation}");
}

#[test]
fn two_nodes_and_everything_that_can_be_late() {
    holds(&Leases { life: 2, delays: true, hints: true, ..Leases::new(2, 1, 1) });
    holds(&Leases { life: 2, hints: true, ..Leases::new(2, 1, 2) });
    holds(&Leases { life: 2, hints: true, ..Leases::new(2, 2, 1) });
}

#[test]
fn three_nodes_on_two_subnets() {
    holds(&Leases::new(3, 2, 1));
}

#[test]
fn four_nodes_on_three_subnets_two_calling_at_a_time() {
    holds(&Leases { calls: 2, ..Leases::new(4, 3, 0) });
}

#[test]
fn four_nodes_on_three_subnets_with_a_disturbance() {
    holds(&Leases { calls: 1, ..Leases::new(4, 3, 1) });
}

#[test]
fn records_that_lapse_and_are_found_again() {
    holds(&Leases { lapse: true, life: 2, hints: true, ..Leases::new(2, 1, 2) });
    holds(&Leases { lapse: true, calls: 1, ..Leases::new(4, 3, 1) });
}

#[test]
#[ignore = "takes many minutes and gigabytes: cargo test --release -p flannel-store --lib model -- --ignored --nocapture"]
fn four_nodes_on_three_subnets_two_calling_at_a_time_with_a_disturbance() {
    holds(&Leases { calls: 2, ..Leases::new(4, 3, 1) });
}

#[test]
fn nodes_with_three_configurations_beside_flanneld() {
    holds(&Leases::mixed(2, 1));
    holds(&Leases::mixed(3, 0));
    holds(&Leases { lapse: true, life: 2, ..Leases::mixed(2, 1) });
}

#[test]
fn nodes_with_three_configurations_where_keys_are_compared() {
    holds(&Leases { keyed: true, ..Leases::mixed(2, 1) });
    holds(&Leases { keyed: true, ..Leases::mixed(3, 0) });
}

#[test]
fn keys_without_addresses_are_found_out() {
    let bug = Some(Bug::KeysAlone);
    fails(&Leases { bug, ..Leases::mixed(2, 0) }, "two nodes trust leases");
    fails(&Leases { bug, lapse: true, life: 2, ..Leases::mixed(2, 0) }, "two nodes trust leases");
}

#[test]
fn a_store_that_does_not_compare_is_found_out() {
    let bug = Some(Bug::Unconditional);
    fails(&Leases { bug, ..Leases::new(2, 1, 0) }, "changed what was another's");
    fails(&Leases { bug, calls: 2, ..Leases::new(4, 3, 0) }, "changed what was another's");
}

#[test]
fn trust_from_the_answer_on_is_found_out() {
    let bug = Some(Bug::TrustFromTheAnswer);
    let wrong = "which is not its own";
    fails(&Leases { bug, delays: true, ..Leases::new(2, 1, 0) }, wrong);
    fails(&Leases { bug, delays: true, life: 2, ..Leases::new(2, 1, 0) }, wrong);
}

#[test]
fn a_clock_that_is_slower_than_agreed_is_found_out() {
    fails(&Leases { slow: 2, ..Leases::new(2, 1, 0) }, "which is not its own");
    fails(&Leases { slow: 2, life: 2, ..Leases::new(2, 1, 0) }, "which is not its own");
}
