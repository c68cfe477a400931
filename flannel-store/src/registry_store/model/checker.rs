//! A breadth-first search through everything that can happen: a few lines, so that the tests need no framework.

use std::{
    collections::HashMap,
    fmt::Debug,
    hash::{BuildHasherDefault, DefaultHasher, Hash, Hasher},
};

/// What can happen, and what must not.
pub(super) trait Model {
    type State: Clone + Eq + Hash;
    type Action: Copy + Debug;

    fn initial(&self) -> Self::State;

    /// Everything that can happen next.
    fn actions(&self, state: &Self::State, actions: &mut Vec<Self::Action>);

    /// The state after `action`, or another one that differs from it in names only.
    fn after(&self, state: &Self::State, action: Self::Action) -> Self::State;

    /// What is wrong with `state`.
    fn violation(&self, state: &Self::State) -> Option<String>;
}

/// What was searched.
#[derive(Debug)]
pub(super) struct Explored {
    pub(super) states: usize,
    pub(super) transitions: u64,
    /// The most things that happened one after the other.
    pub(super) depth: usize,
    /// Whether these are all states there are.
    pub(super) complete: bool,
}

/// How it came to something that must not be: one line for each thing that happened.
#[derive(Debug)]
pub(super) struct Counterexample {
    pub(super) violation: String,
    pub(super) steps: Vec<String>,
}

/// Searches until everything was seen, or `states` states.
pub(super) fn explore<M: Model>(model: &M, states: usize) -> Result<Explored, Counterexample> {
    // States are remembered by a hash of 64 bits: among 10^8 states the chance that one hides another is 3 in 10,000.
    let mut parents = HashMap::<u64, u64, BuildHasherDefault<Identity>>::default();
    let initial = model.initial();
    parents.insert(fingerprint(&initial), 0);
    let (mut frontier, mut next, mut actions) = (vec![initial], Vec::new(), Vec::new());
    let mut explored = Explored { states: 1, transitions: 0, depth: 0, complete: false };
    while !frontier.is_empty() {
        for state in &frontier {
            actions.clear();
            model.actions(state, &mut actions);
            let parent = fingerprint(state);
            for action in &actions {
                explored.transitions += 1;
                let after = model.after(state, *action);
                let print = fingerprint(&after);
                if parents.contains_key(&print) {
                    continue;
                }
                parents.insert(print, parent);
                if let Some(violation) = model.violation(&after) {
                    let steps = steps(model, &parents, print);
                    return Err(Counterexample { violation, steps });
                }
                next.push(after);
            }
            explored.states = parents.len();
            if parents.len() >= states {
                return Ok(explored);
            }
        }
        explored.depth += usize::from(!next.is_empty());
        frontier.clear();
        std::mem::swap(&mut frontier, &mut next);
    }
    explored.complete = true;
    Ok(explored)
}

/// Goes the way to a state again.
fn steps<M: Model>(
    model: &M,
    parents: &HashMap<u64, u64, BuildHasherDefault<Identity>>,
    mut print: u64,
) -> Vec<String> {
    let mut way = Vec::new();
    while print != 0 {
        way.push(print);
        print = parents[&print];
    }
    let mut state = model.initial();
    let (mut steps, mut actions) = (Vec::new(), Vec::new());
    for print in way.into_iter().rev().skip(1) {
        actions.clear();
        model.actions(&state, &mut actions);
        let taken =
            actions.iter().find(|action| fingerprint(&model.after(&state, **action)) == print);
        let action = *taken.expect("the way was found before");
        steps.push(format!("{action:?}"));
        state = model.after(&state, action);
    }
    steps
}

pub(super) fn fingerprint(state: &impl Hash) -> u64 {
    let mut hasher = DefaultHasher::new();
    state.hash(&mut hasher);
    hasher.finish().max(1)
}

/// For keys that are hashes already.
#[derive(Default)]
struct Identity(u64);

impl Hasher for Identity {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write(&mut self, _: &[u8]) {
        unreachable!("only numbers are written")
    }

    fn write_u64(&mut self, number: u64) {
        self.0 = number;
    }
}
