//! One round of questions: what is asked, and what came.

use super::{Checksum, Layer, Question};
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
    Glance,
    /// Whether anybody answers.
    Greet,
    /// Whether what should pass does.
    Check,
    /// How much passes.
    Search(Search),
}

/// One thing that is asked as often as needed.
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
    Hello(Layer),
    /// The same with its checksum left to others.
    Left(Layer),
    /// As large as something else.
    Sized,
}

impl Round {
    pub(super) fn new(phase: Phase, items: Vec<Item>) -> Self {
        Self { phase, attempts: 0, items, sent: Vec::new() }
    }

    pub(super) fn greet(small: u32, has_overlay: bool) -> Self {
        let overlay = has_overlay.then_some(Layer::Overlay);
        let layers = [Layer::Underlay].into_iter().chain(overlay);
        Self::new(Phase::Greet, layers.map(|it| Item::new(Role::Hello(it), small)).collect())
    }

    /// Whether an item is asked in this attempt: if it is open, or if others on its layer are and it shows whether anything passes.
    pub(super) fn is_due(&self, at: usize) -> bool {
        let item = &self.items[at];
        let others = || self.items.iter().any(|it| it.layer() == item.layer() && it.is_open());
        item.is_open() || matches!(item.role, Role::Hello(_)) && others()
    }

    /// How many greetings on a layer were answered.
    pub(super) fn hellos(&self, layer: Layer) -> u8 {
        self.items.iter().filter(|it| it.role == Role::Hello(layer)).map(|it| it.answers).sum()
    }
}

impl Phase {
    /// How often an item is asked before its loss counts.
    pub(super) fn attempts(self) -> u8 {
        match self {
            Self::Glance => 1,
            Self::Greet | Self::Check => 3,
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
            Role::Hello(layer) | Role::Left(layer) => layer,
            Role::Sized => Layer::Underlay,
        }
    }

    pub(super) fn question(&self, nonce: u64) -> Question {
        let checksum = match self.role {
            Role::Left(_) => Checksum::Left,
            Role::Hello(_) | Role::Sized => Checksum::Computed,
        };
        Question { layer: self.layer(), checksum, size: self.size, nonce }
    }
}
