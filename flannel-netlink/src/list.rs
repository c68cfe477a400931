//! Listing objects, with what the kernel says about an empty or missing set read as empty.

use crate::{
    Connection, KernelError, Message, Request,
    state::{Address, AddressFilter, ForwardingEntry, IpFamily, Neighbour, Nexthop, Route},
};

/// The addresses of one device, or of all.
///
/// # Errors
///
/// What the kernel said.
///
/// # Cancel safety
///
/// Reads only.
pub async fn list_addresses(
    connection: &mut Connection,
    filter: AddressFilter,
) -> Result<Vec<Address>, KernelError> {
    list(connection, &Address::list(filter), Address::parse).await
}

/// The forwarding entries of the device with this index.
///
/// # Errors
///
/// What the kernel said.
///
/// # Cancel safety
///
/// Reads only.
pub async fn list_forwarding(
    connection: &mut Connection,
    link: u32,
) -> Result<Vec<ForwardingEntry>, KernelError> {
    list(connection, &ForwardingEntry::list(link), ForwardingEntry::parse).await
}

/// The IPv4 and IPv6 neighbours of the device with this index.
///
/// # Errors
///
/// What the kernel said.
///
/// # Cancel safety
///
/// Reads only.
pub async fn list_neighbours(
    connection: &mut Connection,
    link: u32,
) -> Result<Vec<Neighbour>, KernelError> {
    list(connection, &Neighbour::list(link), Neighbour::parse).await
}

/// All nexthop objects with a gateway. Empty on a kernel that has none.
///
/// # Errors
///
/// What the kernel said.
///
/// # Cancel safety
///
/// Reads only.
pub async fn list_nexthops(connection: &mut Connection) -> Result<Vec<Nexthop>, KernelError> {
    list(connection, &Nexthop::list(), Nexthop::parse).await
}

/// The routes of one table and family.
///
/// # Errors
///
/// What the kernel said.
///
/// # Cancel safety
///
/// Reads only.
pub async fn list_routes(
    connection: &mut Connection,
    table: u32,
    family: IpFamily,
) -> Result<Vec<Route>, KernelError> {
    list(connection, &Route::list(table, family), move |message| {
        Route::parse(message).filter(|route| route.table == table)
    })
    .await
}

async fn list<T>(
    connection: &mut Connection,
    request: &Request,
    parse: impl FnMut(&Message<'_>) -> Option<T>,
) -> Result<Vec<T>, KernelError> {
    match connection.dump(request, parse).await {
        // The device is gone, the table was never used, or the kernel has no such objects.
        Err(error) if error.not_found() || error.unsupported() => Ok(Vec::new()),
        result => result,
    }
}
