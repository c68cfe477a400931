//! What engines that carry packets themselves are made of: a TUN device, UDP sockets, and large packets through both.
//!
//! A TUN device with `IFF_VNET_HDR` hands over TCP and UDP of up to 64 KiB as one packet, and takes such packets. UDP sockets send many
//! datagrams for one call (`UDP_SEGMENT`) and receive many as one (`UDP_GRO`). Between the two, [`segment`] makes the packets of the
//! wire out of a large one, [`batch`] gathers what goes to one peer, and [`gro`] joins what came of one flow, which [`delivery`] writes. [`worker`] is what the
//! threads have in common, [`device`] keeps the TUN device as it should be, and [`handover`] passes it from one engine to the next.
//!
//! No function here blocks, but for those of [`worker`], [`handover::guard`] and sockets whose network card is behind.
#![deny(unsafe_code)]

pub mod batch;
pub mod checksum;
pub mod coalescing;
pub mod control;
pub mod delivery;
pub mod device;
pub mod error;
pub mod gro;
pub mod handover;
pub mod inbox;
pub mod path_mtus;
pub mod prefixes;
pub mod segment;
pub mod snapshot;
pub mod socket;
#[cfg(any(test, feature = "testing"))]
pub mod testing;
pub mod tun;
pub mod wire;
pub mod worker;
