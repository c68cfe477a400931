//! The program itself on real hosts, with real packets.

#[path = "e2e/cluster.rs"]
mod cluster;
#[path = "e2e/nodes.rs"]
mod nodes;
#[path = "e2e/operators.rs"]
mod operators;
