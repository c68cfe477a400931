//! The whole world in a few bytes.

pub(super) const NODES: usize = 4;
/// The keys that there are; three of a network of one length, or four that overlap.
pub(super) const SUBNETS: usize = 4;

/// An owner that is none of the nodes.
pub(super) const STRANGER: u8 = u8::MAX;

/// An owner that compares keys alone and writes no name, as flanneld does.
pub(super) const FLANNELD: u8 = u8::MAX - 1;

/// What a holder's own record is like, apart from its place: its revision and which text it has.
#[derive(Clone, Copy, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub(super) struct Own {
    pub(super) revision: u8,
    /// When its key came to be.
    pub(super) created: u8,
    pub(super) text: u8,
}

/// A record as one node sees it. Other nodes are all alike to it.
#[derive(Clone, Copy, Debug, Default, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub(super) enum Seen {
    #[default]
    Nothing,
    Own(Own, Lapsed),
    Theirs(Lapsed),
    /// Where leases may overlap: when the key came to be, and whether it has an owner.
    Overlapping {
        created: u8,
        named: bool,
        lapsed: Lapsed,
    },
}

#[derive(Clone, Copy, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub(super) struct Lapsed(pub(super) bool);

pub(super) type View = [Seen; SUBNETS];

#[derive(Clone, Copy, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub(super) enum Request {
    Create(u8, u8),
    Delete(u8, Own),
    List,
    Touch(u8, Own),
    Update(u8, Own, u8),
    /// After a create where the store compares keys alone: goes again if an older record overlaps.
    Verify(u8, Own),
}

#[derive(Clone, Copy, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub(super) enum Answer {
    Conflict(u8, Seen),
    /// Where the store compares keys alone; to be verified.
    Created(u8, Own),
    Deleted,
    Listed(View),
    Written(u8, Own),
}

/// What a holder wants.
#[derive(Clone, Copy, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub(super) enum LeaseOp {
    Publish(u8),
    Release,
    Renew,
}

#[derive(Clone, Copy, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub(super) struct Held {
    pub(super) subnet: u8,
    pub(super) own: Own,
    /// The texts as bits.
    pub(super) unanswered: u8,
    pub(super) challenged: bool,
    pub(super) overlapped: bool,
    pub(super) yields: bool,
}

#[derive(Clone, Copy, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub(super) enum Phase {
    Acquiring {
        view: View,
        races: u8,
    },
    Down,
    Holding(Held, Option<LeaseOp>),
    /// It wants a lease, and nothing is under way.
    Waiting,
}

/// What is between a node and the store.
#[derive(Clone, Copy, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub(super) enum Wire {
    Answer(Answer),
    Request(Request),
    Silent,
}

#[derive(Clone, Copy, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub(super) struct Node {
    pub(super) phase: Phase,
    pub(super) wire: Wire,
    /// A request that was given up, or its second copy, and may still arrive.
    pub(super) late: Option<Request>,
    /// Ticks since the call began that is under way.
    pub(super) call: u8,
    /// Ticks since the call began that took or renewed the lease last.
    pub(super) renewed: u8,
    pub(super) hint: Option<u8>,
    /// What it wants to publish.
    pub(super) text: u8,
    /// Which configuration it has read.
    pub(super) config: u8,
}

#[derive(Clone, Copy, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub(super) struct Stored {
    pub(super) owner: u8,
    pub(super) own: Own,
    /// Ticks since it was written or renewed.
    pub(super) age: u8,
}

#[derive(Clone, Copy, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub(super) struct Slot {
    pub(super) stored: Option<Stored>,
    /// Ticks since an operator wrote or removed something here.
    pub(super) meddled: u8,
}

#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
pub(super) struct World {
    pub(super) nodes: [Node; NODES],
    pub(super) slots: [Slot; SUBNETS],
    /// How many more things may go wrong.
    pub(super) budget: u8,
    /// Whether a node has changed what was another's.
    pub(super) overwrote: bool,
}

impl Request {
    fn own(&mut self) -> Option<(u8, &mut Own)> {
        match self {
            Self::Delete(at, own)
            | Self::Touch(at, own)
            | Self::Update(at, own, _)
            | Self::Verify(at, own) => Some((*at, own)),
            Self::Create(..) | Self::List => None,
        }
    }
}

/// Visits the revisions in what a node has seen of one subnet.
fn visit_seen(at: u8, seen: &mut Seen, visit: &mut impl FnMut(u8, &mut u8)) {
    match seen {
        Seen::Own(own, _) => visit_own(at, own, visit),
        Seen::Overlapping { created, .. } => visit(at, created),
        Seen::Nothing | Seen::Theirs(_) => {}
    }
}

fn visit_own(at: u8, own: &mut Own, visit: &mut impl FnMut(u8, &mut u8)) {
    visit(at, &mut own.revision);
    visit(at, &mut own.created);
}

fn visit_view(view: &mut View, visit: &mut impl FnMut(u8, &mut u8)) {
    (0..).zip(view).for_each(|(at, seen)| visit_seen(at, seen, visit));
}

fn visit_request(request: &mut Request, visit: &mut impl FnMut(u8, &mut u8)) {
    if let Some((at, own)) = request.own() {
        visit_own(at, own, visit);
    }
}

impl Node {
    /// Visits all revisions that the node or its messages know of, with the subnets.
    fn revisions(&mut self, visit: &mut impl FnMut(u8, &mut u8)) {
        match &mut self.phase {
            Phase::Acquiring { view, .. } => visit_view(view, visit),
            Phase::Holding(held, _) => visit_own(held.subnet, &mut held.own, visit),
            Phase::Down | Phase::Waiting => {}
        }
        match &mut self.wire {
            Wire::Answer(Answer::Conflict(at, seen)) => visit_seen(*at, seen, visit),
            Wire::Answer(Answer::Listed(view)) => visit_view(view, visit),
            Wire::Answer(Answer::Created(at, own) | Answer::Written(at, own)) => {
                visit_own(*at, own, visit)
            }
            Wire::Answer(Answer::Deleted) | Wire::Silent => {}
            Wire::Request(request) => visit_request(request, visit),
        }
        if let Some(late) = &mut self.late {
            visit_request(late, visit);
        }
    }
}

impl World {
    fn revisions(&mut self, mut visit: impl FnMut(u8, &mut u8)) {
        for node in &mut self.nodes {
            node.revisions(&mut visit);
        }
        for (at, slot) in (0..).zip(&mut self.slots) {
            if let Some(stored) = &mut slot.stored {
                visit_own(at, &mut stored.own, &mut visit);
            }
        }
    }

    /// A revision greater than all.
    pub(super) fn next_revision(&self) -> u8 {
        let mut last = 0;
        let mut world = *self;
        world.revisions(|_, revision| last = last.max(*revision));
        last + 1
    }

    /// The same world with the least names: revisions count from 1 without a gap, and nodes are in order. What no node can tell
    /// apart is one state then.
    pub(super) fn canonical(mut self, nodes: usize, fenced: bool, mixed: bool) -> Self {
        for n in 0..if fenced { nodes } else { 0 } {
            self.forget_hopeless(n);
        }
        // Which record is the older matters only to a node with several. Otherwise revisions are just names within a subnet.
        let apart = u8::from(!mixed && !self.has_somebody_several());
        let mut used = [0u128; SUBNETS];
        self.revisions(|at, revision| used[usize::from(at * apart)] |= 1 << *revision);
        self.revisions(|at, revision| {
            let lower = used[usize::from(at * apart)] & ((2u128 << *revision) - 1);
            *revision = lower.count_ones() as u8;
        });
        let owned = |world: &Self, n: usize| {
            world.slots.map(|slot| slot.stored.is_some_and(|stored| stored.owner == n as u8))
        };
        let mut order: Vec<usize> = (0..nodes).collect();
        order.sort_by_key(|n| (self.nodes[*n], owned(&self, *n)));
        let (before, mut names) = (self.nodes, [0; NODES]);
        for (new, old) in order.into_iter().enumerate() {
            self.nodes[new] = before[old];
            names[old] = new as u8;
        }
        for stored in self.slots.iter_mut().filter_map(|slot| slot.stored.as_mut()) {
            stored.owner = names.get(usize::from(stored.owner)).copied().unwrap_or(stored.owner);
        }
        self
    }

    /// Whether one node owns several records, or has seen such a world.
    fn has_somebody_several(&self) -> bool {
        let own = |view: &View| view.iter().filter(|seen| matches!(seen, Seen::Own(..))).count();
        let seen = self.nodes.iter().any(|node| {
            let acquiring = matches!(node.phase, Phase::Acquiring { view, .. } if own(&view) > 0);
            let listed = matches!(node.wire, Wire::Answer(Answer::Listed(view)) if own(&view) > 1);
            acquiring || listed
        });
        let owners: Vec<u8> =
            self.slots.iter().filter_map(|slot| Some(slot.stored?.owner)).collect();
        seen || (1..owners.len()).any(|n| owners[..n].contains(&owners[n]))
    }

    /// A late request for a revision that is gone will do nothing, whenever it arrives.
    fn forget_hopeless(&mut self, n: usize) {
        let hopeless = match self.nodes[n].late {
            Some(
                Request::Delete(at, own)
                | Request::Touch(at, own)
                | Request::Update(at, own, _)
                | Request::Verify(at, own),
            ) => self.slots[usize::from(at)].stored.is_none_or(|stored| stored.own != own),
            Some(Request::List) => true,
            Some(Request::Create(..)) | None => false,
        };
        if hopeless {
            self.nodes[n].late = None;
        }
    }
}
