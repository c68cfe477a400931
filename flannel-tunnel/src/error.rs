//! What is wrong with a packet.

use thiserror::Error;

/// Why bytes are not a packet that can be sent on.
#[derive(Clone, Copy, Debug, Eq, Error, Hash, Ord, PartialEq, PartialOrd)]
#[non_exhaustive]
pub enum PacketError {
    /// The kernel's description of a large packet does not fit the packet.
    #[error("the device describes a large packet that the packet is not")]
    BadOffload,
    /// The IP header is shorter than a header or longer than the packet.
    #[error("the IP header's length is not that of a header")]
    HeaderLength,
    /// There are bytes behind the packet's end.
    #[error("bytes follow the end of the packet")]
    Oversized,
    /// There are fewer bytes than its header says.
    #[error("the packet is shorter than its header says")]
    Truncated,
    /// It is neither IPv4 nor IPv6.
    #[error("the packet is neither IPv4 nor IPv6")]
    Version,
}
