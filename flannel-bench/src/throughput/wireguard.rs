//! wireguard-go: a tunnel in user space that encrypts, with segmentation offload.

use std::{
    env, fs,
    path::{Path, PathBuf},
    process,
    time::Duration,
};

use anyhow::{Context, Result, bail, ensure};
use flannel_netlink::{
    LinkChange, alter_link, link_by_name,
    state::{Object, Route},
};
use flannel_testbed::{Host, Process};
use futures::future::{BoxFuture, FutureExt as _};
use tempfile::TempDir;
use tokio::{
    process::Command,
    time::{Instant, sleep},
};

use super::{
    forwarder,
    kernel::{MTU, STATIC, block, ip_header},
    paths::Running,
};
use crate::{args::Family, network::NETWORKS};

/// The processes of both hosts.
#[derive(Debug)]
struct Tunnels {
    processes: Vec<Process>,
    /// What they would remove if they were not killed.
    sockets: Vec<PathBuf>,
    _keys: TempDir,
}

impl Drop for Tunnels {
    fn drop(&mut self) {
        self.processes.clear();
        self.sockets.iter().for_each(|socket| drop(fs::remove_file(socket)));
    }
}

/// It needs a TUN device, and two programs.
pub(super) fn missing() -> Option<String> {
    let there = |name: &str| {
        let path = env::var_os("PATH").unwrap_or_default();
        env::split_paths(&path).any(|folder| folder.join(name).is_file())
    };
    let package = [("wireguard-go", "wireguard-go"), ("wg", "wireguard-tools")];
    let missing = package.iter().find(|(program, _)| !there(program));
    let missing = missing
        .map(|(program, package)| format!("there is no {program}: install Debian's {package}"));
    forwarder::missing().or(missing)
}

/// What it puts around a packet, bytes: IP and UDP headers, its own header and tag.
pub(super) fn overhead(family: Family) -> u32 {
    ip_header(family) + 8 + 16 + 16
}

/// Starts a process for each of two hosts.
pub(super) fn start(hosts: &[Host], family: Family) -> BoxFuture<'_, Result<Running>> {
    async move {
        let keys = tempfile::tempdir().context("cannot make a folder for keys")?;
        let (mut ends, mut processes, mut sockets) = (Vec::new(), Vec::new(), Vec::new());
        for (number, host) in hosts.iter().enumerate() {
            let device = format!("wgb{number}-{}", process::id());
            let socket = Path::new(SOCKETS).join(&device).with_extension("sock");
            sockets.push(socket.clone());
            processes.push(daemon(host, &device, &socket).await?);
            let private = keys.path().join(&device);
            fs::write(&private, wg(&["genkey"], None).await?).context("cannot write a key")?;
            let public = wg(&["pubkey"], Some(&private)).await?;
            ends.push((device, private, public));
        }
        let running = Tunnels { processes, sockets, _keys: keys };
        let [a, b] = hosts else { unreachable!("there are two hosts") };
        for (host, peer, own, other, far) in [(a, b, 0, 1, 1), (b, a, 1, 0, 0)] {
            let (device, private, _) = &ends[own];
            let private = private.to_str().context("a folder for keys has a plain name")?;
            let endpoint = std::net::SocketAddr::new(peer.ip(), PORT).to_string();
            let (port, public) = (PORT.to_string(), ends[other].2.trim());
            let mut args = vec!["set", device, "listen-port", &port, "private-key", private];
            args.extend(["peer", public, "endpoint", &endpoint, "allowed-ips", NETWORKS]);
            wg(&args, None).await?;
            let mut connection = host.connect()?;
            let found = link_by_name(&mut connection, device).await?;
            let index = found.with_context(|| format!("there is no {device}"))?.index;
            let mtu = Some(MTU - overhead(family));
            let change = LinkChange { up: Some(true), mtu, ..LinkChange::default() };
            alter_link(&mut connection, index, &change).await?;
            let mut route = Route::new(block(far, family)?, STATIC);
            route.link = Some(index);
            let added = connection.apply_one(Object::Route(route).replace()).await;
            added.with_context(|| format!("cannot add a route through {device}"))?;
        }
        Ok(Running::new(running))
    }
    .boxed()
}

/// Starts one, and waits until it can be configured.
async fn daemon(host: &Host, device: &str, socket: &Path) -> Result<Process> {
    #[expect(clippy::disallowed_methods, reason = "the program is what is compared with")]
    let mut command = process::Command::new("wireguard-go");
    command.args(["-f", device]).env("LOG_LEVEL", "error");
    let daemon = host.spawn(command)?;
    let deadline = Instant::now() + PATIENCE;
    while !socket.exists() {
        if Instant::now() > deadline {
            bail!("wireguard-go did not start:\n  {}", daemon.output().join("\n  "));
        }
        sleep(LOOK_AGAIN).await;
    }
    Ok(daemon)
}

/// Calls its tool, and returns what it prints.
async fn wg(args: &[&str], input: Option<&Path>) -> Result<String> {
    let mut command = Command::new("wg");
    if let Some(path) = input {
        let file = fs::File::open(path);
        command.stdin(file.with_context(|| format!("cannot read {}", path.display()))?);
    }
    let output = command.args(args).kill_on_drop(true).output().await;
    let output = output.context("cannot start wg")?;
    let said = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "wg {}: {}", args[0], said.trim());
    Ok(String::from_utf8_lossy(&output.stdout).into())
}

/// Where its processes can be spoken to, in every network namespace.
const SOCKETS: &str = "/var/run/wireguard";
const PORT: u16 = 51820;

/// What a start may take, on a loaded machine too.
const PATIENCE: Duration = Duration::from_secs(10);
const LOOK_AGAIN: Duration = Duration::from_millis(5);
