//! Several nodes of several networks in one process: `embed-many FOLDER NAMESPACE...`.
//!
//! In each network namespace, such as /run/netns/left, it runs a node of the network `blue` and one of the network `green`, whose
//! leases are in the folder. Packets of the networks share the machines' links and never meet.
#![forbid(unsafe_code)]

use std::{env::args_os, error::Error, future::pending, path::PathBuf};

use flannel_daemon::{Daemon, DaemonOptions, StoreOptions, UplinkOptions};
use flannel_netlink::Namespace;
use tokio::task::JoinSet;

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), Box<dyn Error>> {
    let mut paths = args_os().skip(1).map(PathBuf::from);
    let folder = paths.next().ok_or("usage: embed-many FOLDER NAMESPACE...")?;
    let mut nodes = JoinSet::new();
    for (number, path) in paths.enumerate() {
        for (network, config) in NETWORKS {
            let name = format!("{network}-{number}");
            let options = DaemonOptions {
                store: StoreOptions::file(folder.join(network)),
                network: Some(config.parse()?),
                node_id: Some(name.parse()?),
                uplink: UplinkOptions { names: vec!["eth0".into()], ..UplinkOptions::default() },
                subnet_file: folder.join(&name).join("subnet.env"),
                ..DaemonOptions::default()
            };
            let daemon = Daemon::new(options)?.in_namespace(Namespace::open(&path)?);
            let handle = daemon.handle();
            nodes.spawn(daemon.run_until(pending()));
            tokio::spawn(async move {
                let mut node = handle.wait_for_node().await;
                if let Some(status) = node.wait_for(|status| status.is_ready()).await
                    && let Some(lease) = status.lease
                {
                    println!("{name} has {}", lease.subnet);
                }
            });
        }
    }
    while let Some(ended) = nodes.join_next().await {
        ended??;
    }
    Ok(())
}

/// The networks, each with a VNI of its own.
const NETWORKS: [(&str, &str); 2] = [
    ("blue", r#"{"Network":"10.1.0.0/16","Backend":{"Type":"vxlan","VNI":1}}"#),
    ("green", r#"{"Network":"10.2.0.0/16","Backend":{"Type":"vxlan","VNI":2}}"#),
];
