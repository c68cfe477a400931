//! The smallest program that embeds a node: `embed FOLDER NAME INTERFACE`.
//!
//! All programs that are given the same folder make up a network. Each gets a subnet of it and
//! routes to the subnets of all others, until it is ended; the routes stay.
#![forbid(unsafe_code)]

use std::{env::args, error::Error};

use flannel_backend::{UplinkFinder, UplinkOptions};
use flannel_backend_hostgw::HostGw;
use flannel_core::{NetworkConfig, Node};
use flannel_netlink::Namespace;
use flannel_store::{FileStore, LeaseOptions};

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), Box<dyn Error>> {
    let [folder, name, interface] = args()
        .skip(1)
        .collect::<Vec<_>>()
        .try_into()
        .map_err(|_| "usage: embed FOLDER NAME INTERFACE")?;

    let config: NetworkConfig =
        r#"{"Network": "10.244.0.0/16", "Backend": {"Type": "host-gw"}}"#.parse()?;
    FileStore::init(&folder, &config).await?;
    let store = FileStore::open(&folder, name.parse()?, LeaseOptions::default()).await?;

    let options = UplinkOptions { names: vec![interface], ..UplinkOptions::default() };
    let uplink = UplinkFinder::new(&Namespace::current()?, &config, &options)?;
    let node = Node::new(store, HostGw::new(&config, uplink));

    let mut handle = node.handle();
    let watch = async {
        while let Some(status) = handle.changed().await {
            if let (true, Some(lease)) = (status.is_ready(), status.lease) {
                println!("{name} has {} and {} peers", lease.subnet, status.peers.unwrap_or(0));
            }
        }
    };
    tokio::select! {
        ended = node.run() => match ended? {},
        () = watch => Err("the node ended".into()),
    }
}
