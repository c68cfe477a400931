//! What happens to the world: messages arrive or not, nodes stop and start, operators meddle, time goes by.

use super::{
    Action, Bug, Leases,
    adapter::Acquired,
    world::{
        Answer, FLANNELD, Held, LeaseOp, Node, Own, Phase, Request, STRANGER, SUBNETS, Seen, Slot,
        Stored, Wire, World,
    },
};

impl Leases {
    /// What the store does with a request of node `n`.
    fn carry_out(&self, world: &mut World, n: usize, request: Request) -> Answer {
        let revision = world.next_revision();
        let (at, was, new) = match request {
            Request::List => return Answer::Listed(self.view(world, n)),
            Request::Verify(at, own) => return self.verify(world, n, at, own),
            Request::Create(at, text) => {
                (at, None, Some(Own { revision, created: revision, text }))
            }
            Request::Delete(at, own) => (at, Some(own), None),
            Request::Touch(at, own) => (at, Some(own), Some(own)),
            Request::Update(at, own, text) => (at, Some(own), Some(Own { revision, text, ..own })),
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
        let is_new = live.is_none() && new.is_some();
        if is_new && !self.keyed && self.bug != Some(Bug::KeysAlone) {
            if let Some((other, _)) = self.overlapping(world, at.into()).next() {
                return Answer::Conflict(other as u8, self.seen(&world.slots[other], n));
            }
            // What has lapsed has lost its addresses.
            for other in (0..SUBNETS).filter(|other| self.adapter.overlap(at.into(), *other)) {
                world.slots[other].stored = None;
            }
        }
        world.overwrote |= live.is_some_and(|stored| usize::from(stored.owner) != n);
        world.slots[usize::from(at)].stored = new.map(|own| Stored { owner: n as u8, own, age: 0 });
        match new {
            None => Answer::Deleted,
            Some(own) if self.keyed && was.is_none() => Answer::Created(at, own),
            Some(own) => Answer::Written(at, own),
        }
    }

    /// What a node does after a create, where the store compares keys alone.
    fn verify(&self, world: &mut World, n: usize, at: u8, own: Own) -> Answer {
        let older = self
            .overlapping(world, at.into())
            .find(|(_, other)| other.own.created < own.created && usize::from(other.owner) != n);
        match older {
            None => Answer::Written(at, own),
            Some((other, _)) => {
                let slot = &mut world.slots[usize::from(at)];
                slot.stored = slot.stored.filter(|stored| stored.own != own);
                Answer::Conflict(other as u8, self.seen(&world.slots[other], n))
            }
        }
    }

    /// What node `n` does with an answer.
    fn take(&self, node: &mut Node, answer: Answer) {
        node.wire = Wire::Silent;
        if let (true, Answer::Created(at, own)) = (self.keyed, answer) {
            node.wire = Wire::Request(Request::Verify(at, own));
            return;
        }
        match node.phase {
            Phase::Acquiring { view, races } => {
                match self.adapter.acquired(
                    (view, races),
                    (node.hint, node.text, node.config),
                    answer,
                ) {
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
            Phase::Holding(held, Some(op)) => match self.adapter.answered(held, op, answer) {
                _ if op == LeaseOp::Release && matches!(answer, Answer::Deleted) => {
                    node.phase = Phase::Down;
                }
                Some((held, true)) => self.hold(node, held),
                Some((held, false)) => self.ask(node, held, op),
                None if op == LeaseOp::Release => node.phase = Phase::Down,
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

    fn ask(&self, node: &mut Node, held: Held, op: LeaseOp) {
        let (held, request) = self.adapter.asked(held, op);
        node.phase = Phase::Holding(held, Some(op));
        node.wire = Wire::Request(request);
    }

    /// Does at once what would only delay node `n`.
    pub(super) fn hurry(&self, world: &mut World, n: usize) {
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
            Phase::Holding(_, Some(LeaseOp::Release)) => Phase::Down,
            Phase::Holding(held, _) => Phase::Holding(held, None),
            phase => phase,
        };
        forget(node);
    }

    /// Somebody writes at a key whatever was there or overlaps.
    fn meddle(&self, world: &mut World, at: usize, owner: u8) {
        let revision = world.next_revision();
        let own = Own { revision, created: revision, text: 0 };
        world.slots[at].stored = Some(Stored { owner, own, age: 0 });
        for other in (0..SUBNETS).filter(|other| *other == at || self.adapter.overlap(at, *other)) {
            world.slots[other].meddled = 0;
        }
    }

    pub(super) fn act(&self, world: &mut World, action: Action) {
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
                    self.ask(node, held, LeaseOp::Release);
                }
                node.renewed = 0;
            }
            Action::Renew(n) => {
                // The watch shows it.
                let others = match world.nodes[n].phase {
                    Phase::Holding(held, _) => self
                        .overlapping(world, held.subnet.into())
                        .any(|(_, stored)| usize::from(stored.owner) != n),
                    _ => false,
                };
                let node = &mut world.nodes[n];
                if let Phase::Holding(mut held, _) = node.phase {
                    held.overlapped = others;
                    let same = held.own.text == node.text;
                    let op = if same { LeaseOp::Renew } else { LeaseOp::Publish(node.text) };
                    self.ask(node, held, op);
                }
            }
            Action::Start(n) => world.nodes[n].phase = Phase::Waiting,
            Action::Steal(at) => {
                self.meddle(world, at, STRANGER);
            }
            Action::Intrude(at) => self.meddle(world, at, FLANNELD),
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
        if matches!(node.phase, Phase::Holding(_, op) if op != Some(LeaseOp::Release)) {
            older(&mut node.renewed);
        }
    }
}
