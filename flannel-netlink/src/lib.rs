//! Kernel network state as data: what we want, what is there, the difference, and a batched applier.
//!
//! Everything works in any network namespace: open a [`Namespace`], open a [`Connection`] in it, and use the
//! functions of this crate on that connection. Nothing is global.
#![forbid(unsafe_code)]

mod connection;
mod diff;
mod error;
mod link;
mod list;
mod namespace;

mod socket;
pub mod state;
mod watch;
mod wire;

pub use connection::{Connection, OpenError, Request};
pub use diff::{Op, diff};
pub use error::KernelError;
pub use link::{
    Ensured, LinkChange, LinkSpec, LinkSpecKind, alter_link, delete_link, ensure_link,
    link_by_index, link_by_name, list_links,
};
pub use list::{list_addresses, list_forwarding, list_neighbours, list_nexthops, list_routes};
pub use namespace::{Namespace, NamespaceError};
pub use watch::{Monitor, Notice, Subject};
pub use wire::{Attribute, Message, attributes};
