//! A socket to look at devices with.

use flannel_core::BackendError;
use flannel_netlink::{Connection, Namespace};

/// The connection, opened in `namespace` if it is not yet.
///
/// # Errors
///
/// [`BackendError::Kernel`] if the kernel cannot be asked.
pub fn opened<'a>(
    connection: &'a mut Option<Connection>,
    namespace: &Namespace,
) -> Result<&'a mut Connection, BackendError> {
    match connection {
        Some(connection) => Ok(connection),
        None => {
            let opened = Connection::open(namespace).map_err(|error| BackendError::Kernel {
                operation: "look at devices".into(),
                source: error.into(),
            })?;
            Ok(connection.insert(opened))
        }
    }
}
