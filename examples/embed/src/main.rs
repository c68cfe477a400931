//! A program that embeds a node of a network that spans machines: `embed ETCD INTERFACE FOLDER`.
//!
//! All machines that run it with the same etcd make up a network over VXLAN. Each gets a subnet, forwards packets of the network,
//! repairs what somebody else changes, and answers /healthz, /readyz and /metrics on port 8080 until it is ended; what it has put
//! into the kernel stays.
#![forbid(unsafe_code)]

use std::{env::args, error::Error, path::PathBuf};

use flannel_daemon::{Daemon, DaemonOptions, EtcdConfig, StoreOptions, UplinkOptions};

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), Box<dyn Error>> {
    let [etcd, interface, folder] = args()
        .skip(1)
        .collect::<Vec<_>>()
        .try_into()
        .map_err(|_| "usage: embed ETCD INTERFACE FOLDER")?;
    let folder = PathBuf::from(folder);

    let options = DaemonOptions {
        store: StoreOptions::etcd(EtcdConfig { endpoints: vec![etcd], ..EtcdConfig::default() }),
        network: Some(r#"{"Network":"10.244.0.0/16","Backend":{"Type":"vxlan"}}"#.parse()?),
        uplink: UplinkOptions { names: vec![interface], ..UplinkOptions::default() },
        // The name of the node is kept there, and what CNI plugins read.
        state_dir: Some(folder.clone()),
        subnet_file: folder.join("subnet.env"),
        health: Some("0.0.0.0:8080".parse()?),
        ..DaemonOptions::default()
    };
    let daemon = Daemon::new(options)?;

    let handle = daemon.handle();
    let report = async {
        let mut node = handle.wait_for_node().await;
        while let Some(status) = node.changed().await {
            match status.lease {
                Some(lease) if handle.readiness().is_ready() => {
                    println!("{} with {} peers", lease.subnet, status.peers.unwrap_or(0));
                }
                _ => println!("{}", handle.readiness()),
            }
        }
        std::future::pending().await
    };
    Ok(daemon.run_until(report).await?)
}
