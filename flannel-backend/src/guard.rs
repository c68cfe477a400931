//! Routes that refuse what no tunnel takes.

use flannel_core::BackendError;
use flannel_netlink::{
    Connection, Namespace, list_routes,
    state::{IpFamily, Route},
};
use ipnetwork::IpNetwork;

use crate::{PROTOCOLS, peer_table::LAST};

/// The route that counts where no other leads to `network`: senders are told that it cannot be reached, and a default route does not
/// carry their packets into the clear.
pub(crate) fn guard(network: IpNetwork, protocol: u8, table: u32) -> Route {
    let mut route = Route::new(network, protocol).unreachable();
    (route.table, route.metric) = (table, LAST);
    route
}

/// Has a route of this protocol in `table` refuse packets to each of `networks` that no other route takes. Writes nothing where it is
/// there, be it that of another backend of ours.
///
/// # Errors
///
/// [`BackendError::Kernel`] naming the first route that was refused; the others are there all the same.
///
/// # Cancel safety
///
/// Dropping it leaves some of the routes; another call writes the rest.
pub async fn ensure_guards(
    namespace: &Namespace,
    networks: &[IpNetwork],
    protocol: u8,
    table: u32,
) -> Result<(), BackendError> {
    let refused = |operation: String, source| BackendError::Kernel { operation, source };
    let unread = |source| refused("list routes".into(), source);
    let mut connection = Connection::open(namespace).map_err(|error| unread(error.into()))?;
    let mut result = Ok(());
    for network in networks {
        let family = if network.is_ipv4() { IpFamily::V4 } else { IpFamily::V6 };
        let routes = list_routes(&mut connection, table, family).await;
        let routes = routes.map_err(|error| unread(error.into()))?;
        let wanted = guard(*network, protocol, table);
        let is_there = |protocol: &u8| routes.contains(&Route { protocol: *protocol, ..wanted });
        if !PROTOCOLS.iter().chain([&protocol]).any(is_there) {
            let operation = || format!("write the unreachable route {network}");
            let written = connection.apply_one(wanted.replace()).await;
            let written = written.map_err(|error| refused(operation(), error.into()));
            result = result.and(written);
        }
    }
    result
}
