//! Which probes are sent on one path to one peer, and what the replies mean. A plain state machine: time and randomness are elsewhere.

mod round;

use self::round::{Item, Phase, Role, Round};
use crate::{
    findings::{Checksums, PathMtu},
    search::Search,
    wire::HEADER,
};

/// One path to one peer: what is known of it, and the round of probes in progress.
#[derive(Clone, Debug)]
pub(crate) struct Path {
    /// IP and UDP in front of what is sent, bytes.
    headers: u32,
    /// The size of IP packets that should pass, bytes.
    needed: u32,
    has_overlay: bool,
    known: Known,
    underlay_losses: u8,
    overlay_losses: u8,
    round: Option<Box<Round>>,
}

/// What is known of a path.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub(crate) struct Known {
    pub(crate) mtu: PathMtu,
    pub(crate) underlay: Checksums,
    pub(crate) overlay: Checksums,
}

/// A datagram to send.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) struct Probe {
    pub(crate) layer: Layer,
    pub(crate) checksum: Checksum,
    /// As an IP packet, bytes.
    pub(crate) size: u32,
    pub(crate) nonce: u64,
}

/// On which network it is sent.
#[derive(Clone, Copy, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub(crate) enum Layer {
    /// From host to host as they are.
    Underlay,
    /// Inside of a tunnel.
    Overlay,
}

/// Who computes the checksum of UDP.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Checksum {
    /// Whoever sends it last, which may be the network card.
    Offloaded,
    /// The kernel, before anything else happens to it.
    Computed,
}

/// How closely a path is probed.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum RoundKind {
    /// Whether what is known of its size still holds. If not, it is probed in full, but for checksums.
    Confirm,
    /// Whether anybody answers, what size passes, and whether checksums do.
    Full,
}

/// What comes after an attempt.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Step {
    /// Another attempt.
    Continue,
    /// The round is over, and there should be another one soon to be sure.
    Recheck,
    /// The round is over.
    Done,
}

impl Path {
    pub(crate) fn new(headers: u32, needed: u32, has_overlay: bool) -> Self {
        let known = Known::default();
        let (underlay_losses, overlay_losses) = (0, 0);
        Self { headers, needed, has_overlay, known, underlay_losses, overlay_losses, round: None }
    }

    pub(crate) fn known(&self) -> Known {
        self.known
    }

    pub(crate) fn needed(&self) -> u32 {
        self.needed
    }

    /// Whether a round is in progress.
    pub(crate) fn is_probing(&self) -> bool {
        self.round.is_some()
    }

    /// Whether there is something to [confirm](RoundKind::Confirm): the size that passes is known.
    pub(crate) fn has_size(&self) -> bool {
        matches!(self.known.mtu, PathMtu::Enough | PathMtu::Less(_))
    }

    /// The probes of the next attempt, of a new round of this kind if none is in progress. `nonce` makes their numbers.
    pub(crate) fn next_probes(
        &mut self,
        kind: RoundKind,
        mut nonce: impl FnMut() -> u64,
    ) -> Vec<Probe> {
        let round = self.round.take().unwrap_or_else(|| Box::new(self.begin(kind)));
        let round = self.round.insert(round);
        round.attempts += 1;
        let places = (0..round.items.len()).filter(|at| round.is_due(*at));
        let probes: Vec<_> = places.map(|at| (at, nonce())).collect();
        round.sent.extend(probes.iter().map(|(at, nonce)| (*nonce, *at)));
        probes.into_iter().map(|(at, nonce)| round.items[at].probe(nonce)).collect()
    }

    /// Takes an answer; false if it answers no probe.
    pub(crate) fn answered(&mut self, nonce: u64, layer: Layer, size: u32) -> bool {
        let Some(round) = &mut self.round else { return false };
        let found = round.sent.iter().position(|(sent, at)| {
            let item = &round.items[*at];
            (*sent, item.layer(), item.size) == (nonce, layer, size)
        });
        let Some(found) = found else { return false };
        let (_, at) = round.sent.swap_remove(found);
        round.items[at].answers += 1;
        true
    }

    /// The kernel says that the probe is larger than what it may send.
    pub(crate) fn refused(&mut self, nonce: u64) {
        if let Some(round) = &mut self.round
            && let Some((_, at)) = round.sent.iter().find(|(sent, _)| *sent == nonce)
        {
            round.items[*at].refused = true;
        }
    }

    /// Whether there is nothing left to wait for.
    pub(crate) fn is_settled(&self) -> bool {
        self.round.as_ref().is_some_and(|round| !round.items.iter().any(Item::is_open))
    }

    /// The attempt is over: everything has come, or nothing more will.
    pub(crate) fn conclude(&mut self) -> Step {
        let Some(round) = self.round.take() else { return Step::Done };
        let open = round.items.iter().any(Item::is_open);
        if open && round.attempts < round.phase.attempts() {
            self.round = Some(round);
            return Step::Continue;
        }
        match round.phase {
            Phase::Confirm => self.confirmed(&round),
            Phase::Reach => self.reached(&round),
            Phase::Check => self.checked(&round),
            Phase::Search(search) => self.searched(&round, search),
        }
    }

    /// The size that should pass is another one.
    pub(crate) fn set_needed(&mut self, needed: u32) {
        (self.needed, self.known.mtu, self.round) = (needed, PathMtu::Unknown, None);
    }

    fn begin(&self, kind: RoundKind) -> Round {
        let sizes = self.sizes();
        match kind {
            RoundKind::Confirm if !sizes.is_empty() => Round::new(Phase::Confirm, sizes),
            RoundKind::Confirm | RoundKind::Full => {
                Round::reach(self.baseline_size(), self.has_overlay)
            }
        }
    }

    /// The sizes that say whether what is known of the size holds; none if nothing is.
    fn sizes(&self) -> Vec<Item> {
        let sizes = match self.known.mtu {
            PathMtu::Enough => vec![self.needed],
            PathMtu::Less(limit) => vec![self.needed, limit, limit + 1],
            _ => Vec::new(),
        };
        sizes.into_iter().map(|size| Item::new(Role::Sized, size)).collect()
    }

    /// The smallest probe as an IP packet, bytes.
    fn baseline_size(&self) -> u32 {
        self.headers + HEADER as u32
    }

    fn confirmed(&mut self, round: &Round) -> Step {
        let holds = match self.known.mtu {
            PathMtu::Less(limit) => {
                round.items.iter().all(|it| (it.size <= limit) == (it.answers > 0))
            }
            _ => round.items.iter().all(|it| it.answers > 0),
        };
        if holds {
            return Step::Done;
        }
        let baseline = Item::new(Role::Baseline(Layer::Underlay), self.baseline_size());
        let items = [baseline].into_iter().chain(self.sizes()).collect();
        self.round = Some(Box::new(Round::new(Phase::Check, items)));
        Step::Continue
    }

    fn reached(&mut self, round: &Round) -> Step {
        let [underlay, overlay] =
            [Layer::Underlay, Layer::Overlay].map(|it| round.baseline_replies(it) > 0);
        if !underlay {
            self.known.mtu = PathMtu::NoAnswer;
        }
        if !underlay && !overlay {
            return Step::Done;
        }
        let mut items = Vec::new();
        let small = self.baseline_size();
        for layer in [Layer::Underlay, Layer::Overlay] {
            if round.baseline_replies(layer) > 0 {
                items.push(Item::new(Role::Baseline(layer), small));
                items.push(Item::new(Role::Offloaded(layer), small));
            }
        }
        if underlay {
            let sizes = self.sizes();
            let unknown = sizes.is_empty().then(|| Item::new(Role::Sized, self.needed));
            items.extend(sizes.into_iter().chain(unknown));
        }
        self.round = Some(Box::new(Round::new(Phase::Check, items)));
        Step::Continue
    }

    fn checked(&mut self, round: &Round) -> Step {
        let mut recheck = false;
        let mut judge = |layer, losses: &mut u8, known: &mut Checksums| {
            let Some(left) = round.items.iter().find(|it| it.role == Role::Offloaded(layer)) else {
                return;
            };
            if left.answers > 0 {
                (*losses, *known) = (0, Checksums::Intact);
            } else if round.baseline_replies(layer) >= MIN_BASELINE_REPLIES {
                *losses = losses.saturating_add(1);
                // And once more after that, to see whether something was done about it.
                recheck |= *losses <= ROUNDS;
                if *losses >= ROUNDS {
                    *known = Checksums::Corrupted;
                }
            }
        };
        judge(Layer::Underlay, &mut self.underlay_losses, &mut self.known.underlay);
        judge(Layer::Overlay, &mut self.overlay_losses, &mut self.known.overlay);
        let after = if recheck { Step::Recheck } else { Step::Done };
        let passed = |size: u32| round.items.iter().any(|it| it.is_sized(size) && it.answers > 0);
        let refused = round.items.iter().any(|it| it.is_sized(self.needed) && it.refused);
        let baseline_replies = round.baseline_replies(Layer::Underlay);
        if baseline_replies == 0 {
            return after;
        }
        if passed(self.needed) {
            self.known.mtu = PathMtu::Enough;
            return after;
        }
        if baseline_replies < MIN_BASELINE_REPLIES && !refused {
            return after;
        }
        if let PathMtu::Less(limit) = self.known.mtu
            && passed(limit)
            && !passed(limit + 1)
        {
            return after;
        }
        self.search(Search { low: self.baseline_size(), high: self.needed })
    }

    fn searched(&mut self, round: &Round, search: Search) -> Step {
        if round.baseline_replies(Layer::Underlay) == 0 {
            // The peer has gone meanwhile, and what did not come says nothing.
            return Step::Done;
        }
        if round.items.iter().any(|it| it.is_sized(self.needed) && it.answers > 0) {
            // It was lost by chance.
            self.known.mtu = PathMtu::Enough;
            return Step::Done;
        }
        let sized = round.items.iter().filter(|it| it.role == Role::Sized);
        let outcomes: Vec<_> = sized.map(|it| (it.size, it.answers > 0)).collect();
        self.search(search.learn(&outcomes))
    }

    fn search(&mut self, search: Search) -> Step {
        let sizes = search.sizes();
        if sizes.is_empty() {
            self.known.mtu = PathMtu::Less(search.low);
            return Step::Done;
        }
        let baseline = Item::new(Role::Baseline(Layer::Underlay), self.baseline_size());
        let sizes = sizes.into_iter().chain([self.needed]);
        let sized = sizes.map(|size| Item::new(Role::Sized, size));
        let items = [baseline].into_iter().chain(sized).collect();
        self.round = Some(Box::new(Round::new(Phase::Search(search), items)));
        Step::Continue
    }
}

/// How many baseline probes must be answered for the loss of something else to count: most of those that were sent with it.
const MIN_BASELINE_REPLIES: u8 = 2;
/// In how many rounds, one after the other, checksums must be found corrupted.
const ROUNDS: u8 = 2;

#[cfg(test)]
mod path_tests;
