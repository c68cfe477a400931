//! Kernel network state as data: what we want, what is there, the difference, and a batched applier.
//!
//! Everything works in any network namespace: open a [`Namespace`], open a [`Connection`] in it, and use the
//! functions of this crate on that connection. Nothing is global.
#![forbid(unsafe_code)]

mod connection;
mod error;
mod namespace;
mod socket;
mod wire;

pub use connection::{Connection, OpenError, Request};
pub use error::KernelError;
pub use namespace::{Namespace, NamespaceError};
pub use wire::{Attribute, Message, attributes};
