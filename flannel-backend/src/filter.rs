//! Filters with BPF programs of ours on network cards, for backends that carry packets by them.
//!
//! A filter is ours if it has our priority and a [`Label`]. It says to which network it belongs, and to which tunnel device it
//! gives packets.

mod label;
mod message;

use flannel_netlink::{Connection, KernelError};

pub use self::{
    label::{Label, NotOurs},
    message::{Direction, Filter, PRIORITY, create_clsact, delete, delete_clsact, list, replace},
};

/// The filters of the device `link`; none if there is nothing that they could hang on.
///
/// # Errors
///
/// What the kernel said.
///
/// # Cancel safety
///
/// Reads only.
pub async fn list_filters(
    connection: &mut Connection,
    link: u32,
    direction: Direction,
) -> Result<Vec<Filter>, KernelError> {
    match connection.dump(&list(link, direction), Filter::parse).await {
        Err(error) if is_without_place(&error) => Ok(Vec::new()),
        listed => listed,
    }
}

/// Removes the filter of ours with this handle from `link`, and with it the clsact qdisc if `made_qdisc` says
/// that it is of our making and nobody has a filter on it. Fine if they are gone.
///
/// # Errors
///
/// What the kernel said.
///
/// # Cancel safety
///
/// Dropping it may leave the qdisc.
pub async fn remove_filter(
    connection: &mut Connection,
    link: u32,
    direction: Direction,
    handle: u32,
    made_qdisc: bool,
) -> Result<(), KernelError> {
    accept_missing(connection.apply_one(delete(link, direction, handle)).await)?;
    if !made_qdisc {
        return Ok(());
    }
    for direction in [Direction::In, Direction::Out] {
        if !list_filters(connection, link, direction).await?.is_empty() {
            return Ok(());
        }
    }
    accept_missing(connection.apply_one(delete_clsact(link)).await)
}

fn accept_missing(result: Result<(), KernelError>) -> Result<(), KernelError> {
    match result {
        Err(error) if is_without_place(&error) => Ok(()),
        result => result,
    }
}

/// The kernel's words for filters where no qdisc is that could have some, and for filters where it knows none.
fn is_without_place(error: &KernelError) -> bool {
    error.not_found() || [EINVAL, EOPNOTSUPP].contains(&error.errno)
}

// asm-generic/errno.h
const EINVAL: i32 = 22;
const EOPNOTSUPP: i32 = 95;
