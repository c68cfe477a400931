//! The lease protocol on an unreliable network, with everything that can happen in any order.
//!
//! Nodes run the real [`protocol`](super::protocol). Between them and the store, requests and answers are lost, delayed until
//! long after they were given up, and duplicated; nodes stop without a word and come back, change what they publish, and give
//! their subnet back; leases expire as early as they may, and operators remove and replace them. Time goes by in ticks, and the
//! nodes' clocks are as slow as they may be.
//!
//! In every state:
//!
//! * no two nodes trust their lease of one subnet, unless an operator meddled with it within the last TTL;
//! * whoever trusts its lease is the owner in the store, with the same exception;
//! * no node has changed what another had;
//! * if nothing went wrong from now on, everybody who wants a subnet would have one soon, as far as there are enough.

use flannel_core::trusted_for;

mod bridge;
mod checker;
mod state;

use bridge::{Acquired, Bridge, TTL};
use checker::{Model, explore, fingerprint};
use state::{
    Answer, Held, Lapsed, Node, Own, Phase, Request, STRANGER, SUBNETS, Seen, Slot, Stored, View,
    Wire, Wish, World,
};

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
    bridge: Bridge,
}

/// What the model must notice.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Bug {
    /// A lease is trusted from the answer on, not from the question.
    TrustFromTheAnswer,
    /// The store changes and renews records without comparing them.
    Unconditional,
}

#[derive(Clone, Copy, Debug)]
enum Action {
    Acquire(usize),
    Answer(usize),
    Arrive { node: usize, twice: bool },
    ArriveUnheard(usize),
    ArriveLate(usize),
    Crash(usize),
    Delete(usize),
    Expire(usize),
    GiveUp { node: usize, late: bool },
    Move(usize),
    Release(usize),
    Renew(usize),
    Start(usize),
    Steal(usize),
    Tick,
}

impl Leases {
    fn new(nodes: usize, subnets: usize, budget: u8) -> Self {
        let bridge = Bridge::new();
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
            bridge,
        }
    }

    /// Whether a node whose last renewal began `ticks` ago trusts its lease.
    fn trusts(&self, ticks: u8) -> bool {
        let elapsed = TTL * u32::from(ticks) / u32::from(self.life) * (100 - self.slow) / 100;
        elapsed < trusted_for(TTL)
    }

    /// The subnet whose lease a node trusts.
    fn trusted(&self, node: &Node) -> Option<usize> {
        match node.phase {
            Phase::Holding(held, wish) if wish != Some(Wish::Release) => {
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
                    false => Seen::Theirs(lapsed),
                }
            }
        }
    }

    /// What the store does with a request of node `n`.
    fn carry_out(&self, world: &mut World, n: usize, request: Request) -> Answer {
        let revision = world.next_revision();
        let (at, was, new) = match request {
            Request::List => return Answer::Listed(self.view(world, n)),
            Request::Create(at, text) => (at, None, Some(Own { revision, text })),
            Request::Delete(at, own) => (at, Some(own), None),
            Request::Touch(at, own) => (at, Some(own), Some(own)),
            Request::Update(at, own, text) => (at, Some(own), Some(Own { revision, text })),
        };
        let slot = world.slots[usize::from(at)];
        let live = slot.stored.filter(|stored| !(self.lapse && self.is_over(stored)));
        let as_it_was = match was {
            None => live.is_none(),
            Some(own) => slot.stored.is_some_and(|stored| stored.own == own),
        };
        let unchecked = was.is_some() && self.bug == Some(Bug::Unconditional);
        if !as_it_was && !unchecked {
            return Answer::Conflict(at, self.seen(&slot, n));
        }
        world.overwrote |= live.is_some_and(|stored| usize::from(stored.owner) != n);
        world.slots[usize::from(at)].stored = new.map(|own| Stored { owner: n as u8, own, age: 0 });
        match new {
            None => Answer::Deleted,
            Some(own) => Answer::Written(at, own),
        }
    }

    /// What node `n` does with an answer.
    fn take(&self, node: &mut Node, answer: Answer) {
        node.wire = Wire::Silent;
        match node.phase {
            Phase::Acquiring { view, races } => {
                match self.bridge.acquired((view, races), node.hint, node.text, answer) {
                    Acquired::Ask { view, races, request } => {
                        node.phase = Phase::Acquiring { view, races };
                        node.wire = Wire::Request(request);
                    }
                    Acquired::Full => node.phase = Phase::Waiting,
                    Acquired::Held(held) => {
                        node.hint = self.hints.then_some(held.subnet);
                        self.hold(node, held);
                    }
                    Acquired::ListAnew => list(node),
                }
            }
            Phase::Holding(held, Some(wish)) => match self.bridge.answered(held, wish, answer) {
                _ if wish == Wish::Release && matches!(answer, Answer::Deleted) => {
                    node.phase = Phase::Down;
                }
                Some((held, true)) => self.hold(node, held),
                Some((held, false)) => self.ask(node, held, wish),
                None if wish == Wish::Release => node.phase = Phase::Down,
                None => node.phase = Phase::Waiting,
            },
            Phase::Down | Phase::Holding(_, None) | Phase::Waiting => {
                unreachable!("nothing was asked")
            }
        }
    }

    fn hold(&self, node: &mut Node, held: Held) {
        node.phase = Phase::Holding(held, None);
        node.renewed = match self.bug {
            Some(Bug::TrustFromTheAnswer) => 0,
            _ => node.call,
        };
        node.call = 0;
    }

    fn ask(&self, node: &mut Node, held: Held, wish: Wish) {
        let (held, request) = self.bridge.asked(held, wish);
        node.phase = Phase::Holding(held, Some(wish));
        node.wire = Wire::Request(request);
    }

    /// Does at once what would only delay node `n`.
    fn hurry(&self, world: &mut World, n: usize) {
        loop {
            match world.nodes[n].wire {
                Wire::Answer(_) => self.act(world, Action::Answer(n)),
                Wire::Request(Request::List) => {
                    self.act(world, Action::Arrive { node: n, twice: false });
                }
                Wire::Request(_) | Wire::Silent => return,
            }
        }
    }

    /// A node calls no more, and perhaps what it sent is still on its way.
    fn give_up(&self, node: &mut Node, late: bool) {
        if let (true, Wire::Request(request)) = (late, node.wire) {
            node.late = Some(request);
        }
        node.wire = Wire::Silent;
        node.call = 0;
        node.phase = match node.phase {
            Phase::Acquiring { .. } => Phase::Waiting,
            Phase::Holding(_, Some(Wish::Release)) => Phase::Down,
            Phase::Holding(held, _) => Phase::Holding(held, None),
            phase => phase,
        };
        forget(node);
    }

    fn act(&self, world: &mut World, action: Action) {
        match action {
            Action::Acquire(n) => list(&mut world.nodes[n]),
            Action::Answer(n) => {
                let Wire::Answer(answer) = world.nodes[n].wire else {
                    unreachable!("there is an answer")
                };
                self.take(&mut world.nodes[n], answer);
                forget(&mut world.nodes[n]);
            }
            Action::Arrive { node: n, twice } => {
                let Wire::Request(request) = world.nodes[n].wire else {
                    unreachable!("there is a request")
                };
                world.nodes[n].wire = Wire::Answer(self.carry_out(world, n, request));
                if twice {
                    world.nodes[n].late = Some(request);
                }
            }
            Action::ArriveUnheard(n) => {
                if let Wire::Request(request) = world.nodes[n].wire {
                    self.carry_out(world, n, request);
                }
                self.give_up(&mut world.nodes[n], false);
            }
            Action::ArriveLate(n) => {
                if let Some(request) = world.nodes[n].late.take() {
                    self.carry_out(world, n, request);
                }
            }
            Action::Crash(n) => {
                self.give_up(&mut world.nodes[n], true);
                world.nodes[n].phase = Phase::Down;
                forget(&mut world.nodes[n]);
            }
            Action::Delete(at) => {
                world.slots[at] = Slot { stored: None, meddled: 0 };
            }
            Action::Expire(at) => world.slots[at].stored = None,
            Action::GiveUp { node: n, late } => self.give_up(&mut world.nodes[n], late),
            Action::Move(n) => world.nodes[n].text ^= 1,
            Action::Release(n) => {
                let node = &mut world.nodes[n];
                if let Phase::Holding(held, _) = node.phase {
                    self.ask(node, held, Wish::Release);
                }
                node.renewed = 0;
            }
            Action::Renew(n) => {
                let node = &mut world.nodes[n];
                if let Phase::Holding(held, _) = node.phase {
                    let same = held.own.text == node.text;
                    let wish = if same { Wish::Renew } else { Wish::Publish(node.text) };
                    self.ask(node, held, wish);
                }
            }
            Action::Start(n) => world.nodes[n].phase = Phase::Waiting,
            Action::Steal(at) => {
                let own = Own { revision: world.next_revision(), text: 0 };
                let stored = Some(Stored { owner: STRANGER, own, age: 0 });
                world.slots[at] = Slot { stored, meddled: 0 };
            }
            Action::Tick => tick(world, self.life),
        }
    }
}

/// Begins to acquire or goes on with it.
fn list(node: &mut Node) {
    node.phase = Phase::Acquiring { view: [Seen::Nothing; SUBNETS], races: 0 };
    node.wire = Wire::Request(Request::List);
}

/// Sets to nought what does not matter.
fn forget(node: &mut Node) {
    if node.wire == Wire::Silent {
        node.call = 0;
    }
    if !matches!(node.phase, Phase::Holding(..)) {
        node.renewed = 0;
    }
}

fn tick(world: &mut World, life: u8) {
    let older = |age: &mut u8| *age = (*age + 1).min(life);
    for slot in &mut world.slots {
        older(&mut slot.meddled);
        slot.stored.iter_mut().for_each(|stored| older(&mut stored.age));
    }
    for node in &mut world.nodes {
        if node.wire != Wire::Silent {
            older(&mut node.call);
        }
        if matches!(node.phase, Phase::Holding(_, wish) if wish != Some(Wish::Release)) {
            older(&mut node.renewed);
        }
    }
}

impl Model for Leases {
    type State = World;
    type Action = Action;

    fn initial(&self) -> World {
        let node = |n| Node {
            phase: if n < self.nodes { Phase::Waiting } else { Phase::Down },
            wire: Wire::Silent,
            late: None,
            call: 0,
            renewed: 0,
            hint: None,
            text: 0,
        };
        World {
            nodes: std::array::from_fn(node),
            slots: [Slot { stored: None, meddled: self.life }; SUBNETS],
            budget: self.budget,
            overwrote: false,
        }
    }

    fn actions(&self, world: &World, actions: &mut Vec<Action>) {
        let wrong = world.budget > 0;
        let calls = world.nodes.iter().filter(|node| node.wire != Wire::Silent).count();
        let may_call = calls < self.calls;
        for n in 0..self.nodes {
            let node = &world.nodes[n];
            match node.wire {
                Wire::Request(_) => {
                    actions.push(Action::Arrive { node: n, twice: false });
                    actions.push(Action::GiveUp { node: n, late: false });
                    if !self.delays {
                        actions.push(Action::ArriveUnheard(n));
                    }
                    if wrong && node.late.is_none() {
                        actions.push(Action::Arrive { node: n, twice: true });
                        actions.push(Action::GiveUp { node: n, late: true });
                    }
                }
                Wire::Answer(_) => {
                    actions.push(Action::Answer(n));
                    actions.push(Action::GiveUp { node: n, late: false });
                }
                Wire::Silent => match node.phase {
                    Phase::Waiting if may_call => actions.push(Action::Acquire(n)),
                    Phase::Holding(..) if may_call => actions.push(Action::Renew(n)),
                    Phase::Holding(..) | Phase::Waiting => {}
                    Phase::Down => actions.push(Action::Start(n)),
                    Phase::Acquiring { .. } => unreachable!("it always waits for an answer"),
                },
            }
            if node.late.is_some() {
                actions.push(Action::ArriveLate(n));
            }
            if wrong && node.phase != Phase::Down {
                actions.push(Action::Crash(n));
                if matches!(node.phase, Phase::Holding(_, None)) {
                    actions.push(Action::Move(n));
                    if may_call {
                        actions.push(Action::Release(n));
                    }
                }
            }
        }
        for (at, slot) in world.slots[..self.subnets].iter().enumerate() {
            if !self.lapse && slot.stored.is_some_and(|stored| self.is_over(&stored)) {
                actions.push(Action::Expire(at));
            }
            if wrong {
                actions.push(Action::Steal(at));
                if slot.stored.is_some() {
                    actions.push(Action::Delete(at));
                }
            }
        }
        actions.push(Action::Tick);
    }

    fn after(&self, world: &World, action: Action) -> World {
        let mut world = *world;
        let costs = matches!(
            action,
            Action::Arrive { twice: true, .. }
                | Action::Crash(_)
                | Action::Delete(_)
                | Action::GiveUp { late: true, .. }
                | Action::Move(_)
                | Action::Release(_)
                | Action::Steal(_)
        );
        world.budget -= u8::from(costs);
        self.act(&mut world, action);
        if !self.delays {
            (0..self.nodes).for_each(|n| self.hurry(&mut world, n));
        }
        world.canonical(self.nodes, self.bug != Some(Bug::Unconditional))
    }

    fn violation(&self, world: &World) -> Option<String> {
        if world.overwrote {
            return Some("a node has changed what was another's".into());
        }
        for (n, node) in world.nodes.iter().enumerate() {
            let Some(at) = self.trusted(node) else { continue };
            let Slot { stored, meddled } = world.slots[at];
            if meddled < self.life {
                continue;
            }
            if world.nodes[..n].iter().any(|other| self.trusted(other) == Some(at)) {
                return Some(format!("two nodes trust their lease of subnet {at}"));
            }
            if stored.is_none_or(|stored| usize::from(stored.owner) != n) {
                return Some(format!(
                    "a node trusts its lease of subnet {at}, which is not its own"
                ));
            }
        }
        // Costly, and what is wrong shows in many states.
        if self.subnets * self.nodes > 4 && !fingerprint(world).is_multiple_of(16) {
            return None;
        }
        self.starving(world)
    }
}

impl Leases {
    /// Who has no subnet after some time in which nothing goes wrong.
    fn starving(&self, world: &World) -> Option<String> {
        let mut world = *world;
        for round in (0..2 * self.life + 3).rev() {
            // Nodes renew often enough within a TTL, also where it is a single tick.
            if round > 0 {
                self.act(&mut world, Action::Tick);
            }
            for n in 0..self.nodes {
                self.act(&mut world, Action::ArriveLate(n));
                match world.nodes[n].phase {
                    Phase::Holding(_, None) => self.act(&mut world, Action::Renew(n)),
                    Phase::Waiting => self.act(&mut world, Action::Acquire(n)),
                    _ => {}
                }
                for _ in 0..32 {
                    match world.nodes[n].wire {
                        Wire::Silent => break,
                        Wire::Request(_) => {
                            self.act(&mut world, Action::Arrive { node: n, twice: false });
                        }
                        Wire::Answer(_) => self.act(&mut world, Action::Answer(n)),
                    }
                }
            }
            for slot in &mut world.slots {
                slot.stored = slot.stored.filter(|stored| self.lapse || !self.is_over(stored));
            }
            world = world.canonical(self.nodes, true);
        }
        let up = world.nodes[..self.nodes].iter().filter(|node| node.phase != Phase::Down).count();
        let served = world.nodes.iter().filter_map(|node| self.trusted(node)).count();
        (served < up.min(self.subnets))
            .then(|| format!("{served} of {up} nodes have a subnet long after all is well again"))
    }
}

#[cfg(test)]
mod tests;
