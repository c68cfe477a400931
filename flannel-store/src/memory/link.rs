//! How one node is connected to a cluster in memory.

use std::time::Duration;

use flannel_core::NodeId;

/// How a node that is cut off notices.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Cut {
    /// Its calls and watches fail at once.
    Fail,
    /// Its calls and watches hang.
    Hang,
}

#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Link {
    pub(super) cut: Option<Cut>,
    /// For a call there and back.
    pub(super) delay: Duration,
}

/// The source of the error that a node gets which is cut off.
#[derive(Debug, thiserror::Error)]
#[error("{0} is cut off from the store")]
pub(super) struct CutOff(pub(super) NodeId);
