//! The lease protocol on an unreliable network, with everything that can happen in any order.
//!
//! Nodes run the real [`protocol`](super::protocol). Between them and the store, requests and answers are lost, delayed until
//! long after they were given up, and duplicated; nodes stop without a word and come back, change what they publish, and give
//! their subnet back; leases expire as early as they may, and operators remove and replace them. Time goes by in ticks, and the
//! nodes' clocks are as slow as they may be.
//!
//! In every state:
//!
//! * no two nodes trust leases that share an address, unless an operator meddled with it within the last TTL;
//! * whoever trusts its lease is the owner in the store, with the same exception;
//! * no node has changed what another had;
//! * if nothing went wrong from now on, everybody who wants a subnet would have one soon, as far as there are enough.

use flannel_core::trusted_for;

mod adapter;
mod checker;
mod properties;
mod transitions;
mod world;

use adapter::{Adapter, TTL};
use world::{FLANNELD, Lapsed, LeaseOp, Node, Phase, SUBNETS, Seen, Slot, Stored, View, World};

struct Leases {
    nodes: usize,
    subnets: usize,
    /// How many ticks a lease lasts. With one, everything that can happen within a TTL or after it still happens in any order.
    life: u8,
    /// How much may go wrong besides expiries and lost messages, which cost nothing.
    budget: u8,
    /// Whether records stay after their time, for their owner to find, as in a folder.
    lapse: bool,
    /// Whether answers, and requests that change nothing, take time of their own. What is new to the store then is what other nodes
    /// did meanwhile, and that they may as well do before the node's next request arrives. So everything that is wrong shows
    /// without, unless a node makes something of the time at which it has an answer.
    delays: bool,
    /// Whether nodes without a lease know which one they had. They then want that one first.
    hints: bool,
    /// How many nodes may call the store at the same time.
    calls: usize,
    /// Percent by which the nodes' clocks are slower than the store's.
    slow: u32,
    bug: Option<Bug>,
    adapter: Adapter,
    /// Whether keys may overlap: dual stack beside IPv4, and two lengths.
    mixed: bool,
    /// Whether the store compares keys alone, so that a node looks after it has written.
    keyed: bool,
}

/// What the model must notice.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Bug {
    /// Keys are exclusive, and addresses are not.
    KeysAlone,
    /// A lease is trusted from the answer on, not from the question.
    TrustFromTheAnswer,
    /// The store changes and renews records without comparing them.
    Unconditional,
}

#[derive(Clone, Copy, Debug)]
enum Action {
    Acquire(usize),
    Answer(usize),
    Arrive {
        node: usize,
        twice: bool,
    },
    ArriveUnheard(usize),
    ArriveLate(usize),
    Crash(usize),
    Delete(usize),
    Expire(usize),
    GiveUp {
        node: usize,
        late: bool,
    },
    /// flanneld takes a key that is free.
    Intrude(usize),
    Move(usize),
    Release(usize),
    Renew(usize),
    Start(usize),
    Steal(usize),
    Tick,
}

impl Leases {
    fn new(nodes: usize, subnets: usize, budget: u8) -> Self {
        let adapter = Adapter::new(false);
        Self {
            nodes,
            subnets,
            budget,
            lapse: false,
            delays: false,
            life: 1,
            hints: false,
            calls: nodes,
            slow: 1,
            bug: None,
            adapter,
            mixed: false,
            keyed: false,
        }
    }

    /// Nodes that have read three configurations, on four keys that overlap.
    fn mixed(nodes: usize, budget: u8) -> Self {
        Self { mixed: true, adapter: Adapter::new(true), ..Self::new(nodes, SUBNETS, budget) }
    }

    /// What overlaps `at` and counts.
    fn overlapping(&self, world: &World, at: usize) -> impl Iterator<Item = (usize, Stored)> {
        let live = |other: usize| {
            let stored = world.slots[other].stored?;
            (!(self.lapse && self.is_over(&stored))).then_some((other, stored))
        };
        (0..SUBNETS).filter(move |other| self.adapter.overlap(at, *other)).filter_map(live)
    }

    /// Whether a node whose last renewal began `ticks` ago trusts its lease.
    fn trusts(&self, ticks: u8) -> bool {
        let elapsed = TTL * u32::from(ticks) / u32::from(self.life) * (100 - self.slow) / 100;
        elapsed < trusted_for(TTL)
    }

    /// The subnet whose lease a node trusts.
    fn trusted(&self, node: &Node) -> Option<usize> {
        match node.phase {
            Phase::Holding(held, op) if op != Some(LeaseOp::Release) => {
                self.trusts(node.renewed).then_some(usize::from(held.subnet))
            }
            _ => None,
        }
    }

    fn is_over(&self, stored: &Stored) -> bool {
        stored.age >= self.life
    }

    fn view(&self, world: &World, n: usize) -> View {
        let mut view = [Seen::Nothing; SUBNETS];
        for (seen, slot) in view.iter_mut().zip(&world.slots) {
            *seen = self.seen(slot, n);
        }
        // What the model leaves out of the network is taken for good.
        view[self.subnets..].fill(Seen::Theirs(Lapsed(false)));
        view
    }

    fn seen(&self, slot: &Slot, n: usize) -> Seen {
        match slot.stored {
            None => Seen::Nothing,
            Some(stored) => {
                let lapsed = Lapsed(self.lapse && self.is_over(&stored));
                match usize::from(stored.owner) == n {
                    true => Seen::Own(stored.own, lapsed),
                    false if self.mixed => Seen::Overlapping {
                        created: stored.own.created,
                        named: stored.owner != FLANNELD,
                        lapsed,
                    },
                    false => Seen::Theirs(lapsed),
                }
            }
        }
    }
}

#[cfg(test)]
mod tests;
