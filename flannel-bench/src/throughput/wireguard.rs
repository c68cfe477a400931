//! wireguard-go: a tunnel in user space that encrypts, with segmentation offload.

use std::{
    fs,
    io::{Read as _, Write as _},
    net::SocketAddr,
    os::unix::net::UnixStream,
    path::{Path, PathBuf},
    process,
    time::Duration,
};

use anyhow::{Context, Result, bail, ensure};
use flannel_netlink::{
    LinkChange, alter_link, link_by_name,
    state::{Object, Route},
};
use flannel_testbed::{Host, Process, wireguard_go};
use futures::future::{BoxFuture, FutureExt as _};
use tokio::time::{Instant, sleep};

use super::{
    forwarder,
    kernel::{MTU, STATIC, block, ip_header},
    paths::Running,
};
use crate::args::Family;

/// The processes of both hosts.
#[derive(Debug)]
struct Tunnels {
    processes: Vec<Process>,
    /// What they would remove if they were not killed.
    sockets: Vec<PathBuf>,
}

impl Drop for Tunnels {
    fn drop(&mut self) {
        self.processes.clear();
        self.sockets.iter().for_each(|socket| drop(fs::remove_file(socket)));
    }
}

/// It needs a TUN device, and the program.
pub(super) fn missing() -> Option<String> {
    let program = || match wireguard_go() {
        Some(_) => None,
        None => Some("there is no wireguard-go: run ./ci.sh wireguard_go".into()),
    };
    forwarder::missing().or_else(program)
}

/// What it puts around a packet, bytes: IP and UDP headers, its own header and tag.
pub(super) fn overhead(family: Family) -> u32 {
    ip_header(family) + 8 + 16 + 16
}

/// Starts a process for each of two hosts.
pub(super) fn start(hosts: &[Host], family: Family) -> BoxFuture<'_, Result<Running>> {
    async move {
        let (mut devices, mut processes, mut sockets) = (Vec::new(), Vec::new(), Vec::new());
        for (number, host) in hosts.iter().enumerate() {
            let device = format!("wgb{number}-{}", process::id());
            let socket = Path::new(SOCKETS).join(&device).with_extension("sock");
            sockets.push(socket.clone());
            processes.push(daemon(host, &device, &socket).await?);
            devices.push(device);
        }
        let running = Tunnels { processes, sockets };
        let [a, b] = hosts else { unreachable!("there are two hosts") };
        for (host, peer, own, other) in [(a, b, 0, 1_u8), (b, a, 1, 0)] {
            let (device, (private, _), (_, public)) = (&devices[own], KEYS[own], KEYS[usize::from(other)]);
            let endpoint = SocketAddr::new(peer.ip(), PORT);
            let settings = format!(
                "set=1\nprivate_key={private}\nlisten_port={PORT}\npublic_key={public}\nendpoint={endpoint}\nallowed_ip=0.0.0.0/0\nallowed_ip=::/0\n\n"
            );
            set(&running.sockets[own], &settings)?;
            let mut connection = host.connect()?;
            let found = link_by_name(&mut connection, device).await?;
            let index = found.with_context(|| format!("there is no {device}"))?.index;
            let mtu = Some(MTU - overhead(family));
            let change = LinkChange { up: Some(true), mtu, ..LinkChange::default() };
            alter_link(&mut connection, index, &change).await?;
            let mut route = Route::new(block(other, family)?, STATIC);
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
    let mut command = process::Command::new(wireguard_go().context("there is no wireguard-go")?);
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

/// Configures one: `set` of its cross-platform interface.
fn set(socket: &Path, settings: &str) -> Result<()> {
    let talk = || {
        let mut stream = UnixStream::connect(socket)?;
        stream.set_read_timeout(Some(PATIENCE))?;
        stream.write_all(settings.as_bytes())?;
        let mut answer = [0; 64];
        let len = stream.read(&mut answer)?;
        std::io::Result::Ok(String::from_utf8_lossy(&answer[..len]).into_owned())
    };
    let answer = talk().with_context(|| format!("cannot speak to {}", socket.display()))?;
    ensure!(answer.trim() == "errno=0", "wireguard-go refused its settings: {}", answer.trim());
    Ok(())
}

/// Where its processes can be spoken to, in every network namespace.
const SOCKETS: &str = "/var/run/wireguard";
const PORT: u16 = 51820;
/// Private and public keys of both hosts: those of RFC 7748, section 6.1.
const KEYS: [(&str, &str); 2] = [
    (
        "77076d0a7318a57d3c16c17251b26645df4c2f87ebc0992ab177fba51db92c2a",
        "8520f0098930a754748b7ddcb43ef75a0dbf3a0d26381af4eba4a98eaa9b4e6a",
    ),
    (
        "5dab087e624a8a4b79e17f8b83800ee66f3bb1292618b6fd1c2f8b27ff88e0eb",
        "de9edb7d7b7dc1b4d35b61c2ece435373f8343c85b78674dadfc7e146f882b4f",
    ),
];

/// What a start may take, on a loaded machine too.
const PATIENCE: Duration = Duration::from_secs(10);
const LOOK_AGAIN: Duration = Duration::from_millis(5);
