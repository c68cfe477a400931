//! An etcd server of the benchmark's own, and what is said to it besides what is measured.

mod client;
mod server;

pub(crate) use client::{Client, Put, Watch};
pub(crate) use server::Server;
