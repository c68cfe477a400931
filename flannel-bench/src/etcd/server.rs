//! A real etcd, alone in its cluster.

use std::{net::SocketAddr, path::Path, process::Command, time::Duration};

use anyhow::{Context, Result, bail};
use flannel_testbed::{Host, Process};
use tokio::time::{Instant, sleep};

use super::Client;

/// A server that ends when this is dropped.
#[derive(Debug)]
pub(crate) struct Server {
    _process: Process,
    pub(crate) address: SocketAddr,
    pub(crate) client: Client,
}

impl Server {
    /// Starts one on a host, where all hosts on its link can reach it, and waits until it serves.
    pub(crate) async fn start(program: &Path, host: &Host, folder: &Path) -> Result<Self> {
        let address = SocketAddr::new(host.ip(), 2379);
        let (clients, peers) = (format!("http://{address}"), "http://127.0.0.1:2380");
        #[expect(clippy::disallowed_methods, reason = "the server is a part of the measurement")]
        let mut command = Command::new(program);
        command
            .arg("--data-dir")
            .arg(folder.join("etcd"))
            .args(["--listen-client-urls", &clients, "--advertise-client-urls", &clients])
            .args(["--listen-peer-urls", peers, "--initial-advertise-peer-urls", peers])
            .args(["--initial-cluster", &format!("default={peers}")])
            // It is elected by itself, and need not wait for others.
            .args(["--heartbeat-interval", "20", "--election-timeout", "200"])
            .args(["--logger", "zap", "--log-level", "error"]);
        let mut process = host.spawn(command).context(
            "cannot start etcd: install it (Debian's etcd-server), or measure with --store file",
        )?;
        let deadline = Instant::now() + PATIENCE;
        loop {
            let client = Client::connect(host.namespace(), address);
            let served = async { client.await?.read(" ", "!").await };
            match served.await {
                Ok(_) => break,
                Err(error) if Instant::now() > deadline => {
                    let said = process.output().join("\n  ");
                    bail!("etcd did not serve after {PATIENCE:?}: {error:#}:\n  {said}");
                }
                Err(_) => {}
            }
            tokio::select! {
                ended = process.wait() => {
                    let said = process.output().join("\n  ");
                    bail!("etcd ended with {} before it served:\n  {said}", ended?);
                }
                () = sleep(LOOK_AGAIN) => {}
            }
        }
        let client = Client::connect(host.namespace(), address).await?;
        Ok(Self { _process: process, address, client })
    }
}

/// What a start may take, on a loaded machine too.
const PATIENCE: Duration = Duration::from_secs(30);

const LOOK_AGAIN: Duration = Duration::from_millis(20);
