use std::fmt;

use super::Drift;
use crate::{
    KernelError,
    state::{Key, Object, Route},
};

/// What one [`sync`](super::Table::sync) did.
#[derive(Clone, Debug, Default)]
#[non_exhaustive]
pub struct TableReport {
    /// Objects that were read from the kernel; 0 when the observed was good.
    pub read: usize,
    /// Objects that were not there and were added.
    pub added: usize,
    /// Objects that took the place of a different one.
    pub replaced: usize,
    /// Objects that were removed.
    pub removed: usize,
    /// Objects of others in the same tables and devices, as of the last listing.
    pub left_alone: usize,
    /// Objects that somebody keeps changing, and whose turn has not come again.
    pub postponed: usize,
    /// What others had changed, as far as [`drifted`](super::Table::drifted) had not reported it.
    pub drifts: Vec<Drift>,
    /// What could not be done.
    pub failures: Vec<Failure>,
    /// Routes that are there and that the kernel does not take, each with the route of somebody else that it takes instead: one with
    /// a lower metric to the same destination, or one to a part of the network that ours leads to.
    pub overridden: Vec<(Key, Route)>,
}

impl TableReport {
    /// How many requests changed something.
    pub const fn written(&self) -> usize {
        self.added + self.replaced + self.removed
    }
}

/// One object that could not be brought to what it should be.
#[derive(Clone, Debug, thiserror::Error)]
#[error("cannot {action} {object}")]
#[non_exhaustive]
pub struct Failure {
    /// What was tried.
    pub action: Action,
    /// With what.
    pub object: Object,
    /// The kernel's reason.
    pub source: KernelError,
}

impl Failure {
    /// The object's key.
    pub const fn key(&self) -> Key {
        self.object.key()
    }
}

/// What was tried with an object.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
#[non_exhaustive]
pub enum Action {
    /// To delete it.
    Delete,
    /// To create it or put it in the place of another.
    Replace,
}

impl fmt::Display for Action {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Delete => "delete",
            Self::Replace => "write",
        })
    }
}
