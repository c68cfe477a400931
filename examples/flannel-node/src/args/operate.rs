//! What operators do with a network's store.

use std::{
    net::{Ipv4Addr, Ipv6Addr},
    path::PathBuf,
};

use clap::Subcommand;
use flannel_core::Subnet;

use super::{StoreArgs, values};

/// What to do with leases.
#[derive(Debug, Subcommand)]
pub(crate) enum LeasesCommand {
    /// Print a line for each lease.
    List(StoreArgs),
    /// Print one lease in flannel's format.
    Show {
        /// The lease, such as 10.244.7.0-24.
        key: Subnet,
        #[command(flatten)]
        store: StoreArgs,
    },
    /// Keep a subnet for the node with a public address, for ever.
    Reserve {
        /// The subnet, such as 10.244.7.0-24.
        key: Subnet,
        /// The node's IPv4 address.
        #[arg(long, value_name = "IPV4", value_parser = values::ipv4, required_unless_present = "public_ipv6")]
        public_ip: Option<Ipv4Addr>,
        /// The node's IPv6 address.
        #[arg(long, value_name = "IPV6", value_parser = values::ipv6)]
        public_ipv6: Option<Ipv6Addr>,
        #[command(flatten)]
        store: StoreArgs,
    },
    /// Give a subnet back. A node that still runs takes it again, or another one.
    Release {
        /// The lease, such as 10.244.7.0-24.
        key: Subnet,
        /// Do not ask, even if that ends another program that holds the lease.
        #[arg(long)]
        yes: bool,
        #[command(flatten)]
        store: StoreArgs,
    },
}

/// What to do with a network's configuration.
#[derive(Debug, Subcommand)]
pub(crate) enum ConfigCommand {
    /// Say whether a text is a usable configuration, and what follows from it. Looks at no store.
    Check {
        /// flannel's JSON.
        json: String,
    },
    /// Print the configuration as it is stored.
    Get(StoreArgs),
    /// Store a configuration. Refused if leases exist that do not fit it.
    Set {
        /// flannel's JSON.
        json: String,
        /// Store it all the same; nodes whose leases do not fit take others when they start again.
        #[arg(long)]
        force: bool,
        #[command(flatten)]
        store: StoreArgs,
    },
    /// Give all nodes of a wireguard network new private keys while packets flow: they move to wireguard-2, and the next time back.
    RotateKey {
        /// A file with a new preshared key for the network, as wg genpsk prints it.
        #[arg(long, value_name = "FILE")]
        psk_file: Option<PathBuf>,
        #[command(flatten)]
        store: StoreArgs,
    },
}
