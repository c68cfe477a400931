//! Which failures a node outlives.

use tokio::time::error::Elapsed;

use super::{NodeError, lease_keeper};
use crate::{backend::BackendError, fault::Faulty, store::StoreError};

/// What a loop that retries has to know of an error.
pub(super) trait Failure: Faulty + 'static {
    fn is_retryable(&self) -> bool;
    fn into_final(self) -> NodeError;
    fn late(operation: String, elapsed: Elapsed) -> Self;
}

impl Failure for StoreError {
    fn is_retryable(&self) -> bool {
        self.is_retryable()
    }

    fn into_final(self) -> NodeError {
        NodeError::Store(self)
    }

    fn late(operation: String, elapsed: Elapsed) -> Self {
        lease_keeper::late(operation, elapsed)
    }
}

impl Failure for BackendError {
    fn is_retryable(&self) -> bool {
        self.is_retryable()
    }

    fn into_final(self) -> NodeError {
        NodeError::Backend(self)
    }

    fn late(operation: String, elapsed: Elapsed) -> Self {
        Self::Kernel { operation, source: elapsed.into() }
    }
}
