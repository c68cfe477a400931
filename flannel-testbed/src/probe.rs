//! Probes between endpoints with real packets, without external tools.
//!
//! Every host and pod of a testbed answers UDP probes on port 7 (the echo service of RFC 862). An answer carries the
//! source address that the other side saw, so that address translation on the way shows.

mod echo;
mod exchange;
mod flow;
mod packet;
mod ping;
mod reachability;
mod socket;
mod stream;
mod streams;
mod tally;
mod throughput;

pub(crate) use echo::serve;
pub use exchange::{Exchange, ExchangeError};
pub use flow::{Flow, flow};
pub use packet::carries_probe;
pub use ping::{Ping, PingError, Pong, ping};
pub use reachability::{Reachability, Unreachable, reachability};
pub use stream::{Stream, stream};
pub use streams::{Streams, streams, streams_both_ways};
pub use tally::StreamReport;
pub use throughput::{Throughput, ThroughputError, tcp_throughput};
