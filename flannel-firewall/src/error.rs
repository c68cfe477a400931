//! Why a firewall cannot be kept at all.

use std::error::Error;

use flannel_core::BackendError;

/// Why a [`Firewall`](crate::Firewall) cannot be opened, followed or removed. What concerns single rules is in its report.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum FirewallError {
    /// The kernel refuses what everything needs.
    #[error("cannot {operation}")]
    Kernel {
        /// What we wanted.
        operation: &'static str,
        /// The reason.
        source: Box<dyn Error + Send + Sync>,
    },
    /// Not all of it could be removed.
    #[error("cannot remove all rules: {what}")]
    Leftovers {
        /// What is left, and why.
        what: String,
    },
    /// The machine lacks what the rules are to be kept by.
    #[error("no firewall to keep rules in: {reason}")]
    Unsupported {
        /// What is missing, and what to do.
        reason: String,
    },
}

impl FirewallError {
    /// Whether waiting can help without anybody changing the configuration.
    pub const fn is_retryable(&self) -> bool {
        !matches!(self, Self::Unsupported { .. })
    }

    pub(crate) fn kernel(
        operation: &'static str,
    ) -> impl FnOnce(Box<dyn Error + Send + Sync>) -> Self {
        move |source| Self::Kernel { operation, source }
    }
}

impl From<FirewallError> for BackendError {
    fn from(error: FirewallError) -> Self {
        match error {
            FirewallError::Unsupported { reason } => {
                Self::Unsupported { backend: "firewall".into(), reason }
            }
            FirewallError::Kernel { operation, source } => {
                Self::Kernel { operation: operation.into(), source }
            }
            error @ FirewallError::Leftovers { .. } => {
                Self::Kernel { operation: "remove the firewall".into(), source: error.into() }
            }
        }
    }
}
