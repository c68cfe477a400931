//! Kernel network state as data: what we want, what is there, the difference, and a batched
//! applier.
//!
//! Everything works in any network namespace: hold a [`Namespace`], open a [`Connection`] in it,
//! and use the functions of this crate on that connection. Nothing is global, and nothing needs
//! more than `CAP_NET_ADMIN` over the namespace.
//!
//! * [`state`]: addresses, routes, neighbours, forwarding entries, nexthop objects and devices as
//!   plain values, read from the kernel's messages and written as requests.
//! * [`Connection`]: many requests in one datagram, a result for each, the kernel's own words in
//!   every error, never a hang.
//! * [`diff()`]: the steps from one state to another, in an order that never leaves a route without
//!   what it needs.
//! * [`Table`]: one owner's objects, kept as they should be. It knows them by a
//!   [`Mark`](table::Mark), leaves everything else alone, and says who changed what.
//! * [`Monitor`]: the kernel's notifications.
//! * [`wireguard`]: keys, ports and peers of WireGuard devices.
//! * [`iface`]: which interface of the machine to use.
//!
//! # Examples
//!
//! ```no_run
//! use flannel_netlink::{Namespace, Table, state::Route, table::Mark};
//!
//! # async fn example() -> Result<(), Box<dyn std::error::Error>> {
//! let mark = Mark::new(90, ["10.244.0.0/16".parse()?]);
//! let mut table = Table::open(&Namespace::current()?, mark).await?;
//! table.want(Route::new("10.244.7.0/24".parse()?, 90).via_gateway("192.0.2.7".parse()?, 2));
//! loop {
//!     for failure in table.sync().await?.failures {
//!         eprintln!("{failure}: {}", failure.source);
//!     }
//!     for drift in table.drifted().await? {
//!         eprintln!("{drift}");
//!     }
//! }
//! # }
//! ```
#![forbid(unsafe_code)]

mod connection;
mod diff;
mod error;
mod ethtool;
mod generic;
pub mod iface;
mod link_setup;
mod list;
mod namespace;
mod packed_map;
mod rate_limit;
mod socket;
pub mod state;
mod subscription;
pub mod table;
mod watch;
mod wire;
pub mod wireguard;

pub use connection::{Connection, OpenError, Request};
pub use diff::{Op, diff};
pub use error::KernelError;
pub use ethtool::Features;
pub use link_setup::{
    Ensured, LinkChange, LinkSpec, LinkSpecKind, alter_link, delete_link, ensure_link,
    link_by_index, link_by_name, list_links,
};
pub use list::{list_addresses, list_forwarding, list_neighbours, list_nexthops, list_routes};
pub use namespace::{Namespace, NamespaceError};
pub use rate_limit::{LogLimit, RateLimit};
pub use socket::Protocol;
pub use subscription::Subscription;
pub use table::Table;
pub use watch::{Monitor, Notice, Subject, Topic};
pub use wire::{
    Attribute, Message, attributes, netfilter_header, push_attribute, push_nested, push_text,
    push_u32_be, shortened,
};
