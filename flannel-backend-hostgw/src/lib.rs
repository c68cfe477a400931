//! Peers as next hops: plain routes between hosts on one link.
#![forbid(unsafe_code)]
