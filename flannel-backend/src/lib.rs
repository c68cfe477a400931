//! What backends that forward in the kernel share.
//!
//! A backend says with a plain function what one peer needs ([`PeerPlan`]); [`PeerTable`] keeps the
//! kernel equal to the plans of all peers, at the cost of those that changed, and says which peer a
//! refused operation belongs to.
#![forbid(unsafe_code)]

mod alloc;
mod connection;
mod drift_log;
pub mod filter;
mod guard;
mod leftovers;
mod mark;
mod paths;
mod peer_table;
mod placement;
mod table_options;
mod teardown;
#[cfg(feature = "testing")]
pub mod testing;
mod uplink;

pub use alloc::Alloc;
pub use connection::opened;
pub use guard::ensure_guards;
pub use leftovers::{remove_leftovers, vxlan_device};
pub use mark::{PROTOCOL, PROTOCOLS, SECOND_PROTOCOL, network_number, nexthop_ids, nexthop_ids_of};
pub use paths::{PathFacts, Paths, PathsWatch, route_mtu, smallest_mtu};
pub use peer_table::{NEXT_HOPS, PeerTable};
pub use placement::PeerPlan;
pub use table_options::{TableOptions, read_mtu, warn_of_unknown_options};
pub use teardown::{Removed, remove_all};
pub use uplink::{Uplink, UplinkFinder, UplinkOptions, UplinkOptionsError, UplinkWatch};
