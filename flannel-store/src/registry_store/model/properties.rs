//! What the checker asks: everything that can happen next, and what must not have happened.

use super::{
    Action, Bug, Leases,
    checker::{Model, fingerprint},
    world::{FLANNELD, Node, Phase, SUBNETS, Slot, Wire, World},
};

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
            config: (n % self.adapter.config_count()) as u8,
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
                if self.mixed && slot.stored.is_none() {
                    actions.push(Action::Intrude(at));
                }
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
                | Action::Intrude(_)
                | Action::Move(_)
                | Action::Release(_)
                | Action::Steal(_)
        );
        world.budget -= u8::from(costs);
        self.act(&mut world, action);
        if !self.delays {
            (0..self.nodes).for_each(|n| self.hurry(&mut world, n));
        }
        world.canonical(self.nodes, self.bug != Some(Bug::Unconditional), self.mixed)
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
            let shares = |other: &Node| {
                self.trusted(other).is_some_and(|other| {
                    let meddled = world.slots[other].meddled < self.life;
                    other == at || self.adapter.overlap(at, other) && !meddled
                })
            };
            if world.nodes[..n].iter().any(shares) {
                return Some(format!("two nodes trust leases with the addresses of subnet {at}"));
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
                // flanneld goes on.
                if let Some(stored) = slot.stored.as_mut().filter(|it| it.owner == FLANNELD) {
                    stored.age = 0;
                }
                slot.stored = slot.stored.filter(|stored| self.lapse || !self.is_over(stored));
            }
            world = world.canonical(self.nodes, true, self.mixed);
        }
        if self.mixed {
            return self.unsettled(&world);
        }
        let up = world.nodes[..self.nodes].iter().filter(|node| node.phase != Phase::Down).count();
        let served = world.nodes.iter().filter_map(|node| self.trusted(node)).count();
        (served < up.min(self.subnets))
            .then(|| format!("{served} of {up} nodes have a subnet long after all is well again"))
    }

    /// What is wrong with a world in which nothing has happened for long, where subnets overlap.
    fn unsettled(&self, world: &World) -> Option<String> {
        for (n, node) in world.nodes[..self.nodes].iter().enumerate() {
            let theirs = |at: usize| {
                let at_key = world.slots[at].stored.filter(|it| usize::from(it.owner) != n);
                at_key.is_some()
                    || self.overlapping(world, at).any(|(_, it)| usize::from(it.owner) != n)
            };
            match self.trusted(node) {
                Some(at) if theirs(at) => {
                    return Some(format!(
                        "node {n} stays in subnet {at}, which others have in part"
                    ));
                }
                None if node.phase != Phase::Down => {
                    let free = |at: &usize| self.adapter.admits(node.config, *at) && !theirs(*at);
                    if let Some(at) = (0..SUBNETS).find(free) {
                        return Some(format!("node {n} has no subnet, and {at} is free"));
                    }
                }
                _ => {}
            }
        }
        None
    }
}
