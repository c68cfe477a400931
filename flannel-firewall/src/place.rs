//! A network namespace to work in.

use flannel_netlink::{Namespace, NamespaceError};

/// Runs `work` inside of `namespace`. Our own is not entered, for that takes a capability which entering others needs and
/// staying does not.
pub(crate) fn inside<T: Send>(
    namespace: &Namespace,
    work: impl FnOnce() -> T + Send,
) -> Result<T, NamespaceError> {
    if Namespace::current().is_ok_and(|current| current == *namespace) {
        return Ok(work());
    }
    namespace.run(work)
}
