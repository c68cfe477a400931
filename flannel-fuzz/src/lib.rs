//! What has to hold for every text and every packet that comes from outside: one function for each kind, which takes any bytes and
//! panics if the parser does, or if what it made of them is not what it says.
//!
//! Tests run them over what is in `seeds` and over millions of variants of those; the program `libfuzzer` runs them under libFuzzer.
//! Another kind is one more function, an entry in [`TARGETS`] and a folder of seeds.
#![forbid(unsafe_code)]

mod cni;
mod config;
mod file_entry;
mod key;
mod kube;
mod lease;
mod probe;
mod subnet_env;

pub use cni::cni;
pub use config::config;
pub use file_entry::file_entry;
pub use flannel_backend_udp::fuzzing::{from_device, from_peers};
pub use flannel_backend_wireguard::fuzzing::{messages as wireguard_messages, texts as wireguard};
pub use key::key;
pub use kube::kube;
pub use lease::lease;
pub use probe::probe;
pub use subnet_env::subnet_env;

/// One kind of text or packet.
#[derive(Clone, Copy, Debug)]
pub struct Target {
    /// Its name, which is that of its folder in `seeds`.
    pub name: &'static str,
    /// Panics if the parser does not do what it has to.
    pub check: fn(&[u8]),
}

/// All there are.
pub const TARGETS: [Target; 12] = [
    Target { name: "cni", check: cni },
    Target { name: "config", check: config },
    Target { name: "file_entry", check: file_entry },
    Target { name: "from_device", check: from_device },
    Target { name: "from_peers", check: from_peers },
    Target { name: "key", check: key },
    Target { name: "kube", check: kube },
    Target { name: "lease", check: lease },
    Target { name: "probe", check: probe },
    Target { name: "subnet_env", check: subnet_env },
    Target { name: "wireguard", check: wireguard },
    Target { name: "wireguard_messages", check: wireguard_messages },
];

/// The program in the README compiles. It is here because a crate that is published has no file from outside of it.
#[cfg(doctest)]
#[doc = include_str!("../../README.md")]
struct Readme;
