//! One round of probes: which probes are sent, and what came back.

use super::{Checksum, Layer, Probe};
use crate::search::Search;

#[derive(Clone, Debug)]
pub(super) struct Round {
    pub(super) phase: Phase,
    pub(super) attempts: u8,
    pub(super) items: Vec<Item>,
    /// The numbers of what was sent, with the places of its items.
    pub(super) sent: Vec<(u64, usize)>,
}

#[derive(Clone, Copy, Debug)]
pub(super) enum Phase {
    /// Whether what was known of the size still holds.
    Confirm,
    /// Whether anybody answers.
    Reach,
    /// Whether what should pass does.
    Check,
    /// How much passes.
    Search(Search),
}

/// One probe that is sent as often as needed.
#[derive(Clone, Debug)]
pub(super) struct Item {
    pub(super) role: Role,
    pub(super) size: u32,
    pub(super) answers: u8,
    /// The kernel does not even send it.
    pub(super) refused: bool,
}

#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Role {
    /// Small, and its checksum computed: what passes if anything does.
    Baseline(Layer),
    /// The same with its checksum left to others.
    Offloaded(Layer),
    /// As large as something else.
    Sized,
}

impl Round {
    pub(super) fn new(phase: Phase, items: Vec<Item>) -> Self {
        Self { phase, attempts: 0, items, sent: Vec::new() }
    }

    pub(super) fn reach(small: u32, has_overlay: bool) -> Self {
        let overlay = has_overlay.then_some(Layer::Overlay);
        let layers = [Layer::Underlay].into_iter().chain(overlay);
        Self::new(Phase::Reach, layers.map(|it| Item::new(Role::Baseline(it), small)).collect())
    }

    /// Whether an item is probed in this attempt: if it is open, or if others on its layer are and it shows whether anything passes.
    pub(super) fn is_due(&self, at: usize) -> bool {
        let item = &self.items[at];
        let others = || self.items.iter().any(|it| it.layer() == item.layer() && it.is_open());
        item.is_open() || matches!(item.role, Role::Baseline(_)) && others()
    }

    /// How many baseline probes on a layer were answered.
    pub(super) fn baseline_replies(&self, layer: Layer) -> u8 {
        self.items.iter().filter(|it| it.role == Role::Baseline(layer)).map(|it| it.answers).sum()
    }
}

impl Phase {
    /// How often an item is probed before its loss counts.
    pub(super) fn attempts(self) -> u8 {
        match self {
            Self::Confirm => 1,
            Self::Reach | Self::Check => 3,
            Self::Search(_) => 2,
        }
    }
}

impl Item {
    pub(super) fn new(role: Role, size: u32) -> Self {
        Self { role, size, answers: 0, refused: false }
    }

    pub(super) fn is_open(&self) -> bool {
        self.answers == 0 && !self.refused
    }

    pub(super) fn is_sized(&self, size: u32) -> bool {
        (self.role, self.size) == (Role::Sized, size)
    }

    pub(super) fn layer(&self) -> Layer {
        match self.role {
            Role::Baseline(layer) | Role::Offloaded(layer) => layer,
            Role::Sized => Layer::Underlay,
        }
    }

    pub(super) fn probe(&self, nonce: u64) -> Probe {
        let checksum = match self.role {
            Role::Offloaded(_) => Checksum::Offloaded,
            Role::Baseline(_) | Role::Sized => Checksum::Computed,
        };
        Probe { layer: self.layer(), checksum, size: self.size, nonce }
    }
}
