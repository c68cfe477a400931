//! The smallest program that embeds a node.
#![forbid(unsafe_code)]

fn main() {}
