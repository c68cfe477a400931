//! A forwarder in user space on flannel's udp wire, as plain as flannel's own: one thread, and a call for each packet.
//!
//! A datagram's payload is a bare IP packet. It finds no peers, because there is one, and counts no hops.

use std::{
    fs, io,
    net::{SocketAddr, UdpSocket},
    os::fd::AsFd,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread::{self, JoinHandle},
};

use anyhow::{Context, Result};
use flannel_netlink::{
    link_by_name,
    state::{Object, Route},
};
use flannel_testbed::Host;
use futures::future::{BoxFuture, FutureExt as _};
use nix::poll::{PollFd, PollFlags, poll};
use tun_rs::{DeviceBuilder, SyncDevice};

use super::{
    kernel::{MTU, STATIC, block, ip_header},
    paths::Running,
};
use crate::args::Family;

/// The threads of both hosts.
#[derive(Debug)]
struct Threads {
    done: Arc<AtomicBool>,
    threads: Vec<JoinHandle<()>>,
}

impl Drop for Threads {
    fn drop(&mut self) {
        self.done.store(true, Ordering::Relaxed);
        self.threads.drain(..).for_each(|thread| drop(thread.join()));
    }
}

/// Root of a user namespace is not enough.
pub(super) fn missing() -> Option<String> {
    let opened = fs::File::options().read(true).write(true).open(TUN);
    opened.err().map(|error| format!("needs {TUN}: {error}: run it as root"))
}

/// What it puts around a packet, bytes: IP and UDP headers.
pub(super) fn overhead(family: Family) -> u32 {
    ip_header(family) + 8
}

/// Starts a thread for each of two hosts.
pub(super) fn start(hosts: &[Host], family: Family) -> BoxFuture<'_, Result<Running>> {
    async move {
        let [a, b] = hosts else { unreachable!("there are two hosts") };
        let mut running = Threads { done: Arc::default(), threads: Vec::new() };
        for (host, peer, far) in [(a, b, 1), (b, a, 0)] {
            let open =
                || open(SocketAddr::new(host.ip(), PORT), SocketAddr::new(peer.ip(), PORT), family);
            let (tun, socket) = host.namespace().run(open)?.context("cannot open a TUN device")?;
            let mut connection = host.connect()?;
            let device = link_by_name(&mut connection, DEVICE).await?.context("it is there")?;
            let mut route = Route::new(block(far, family)?, STATIC);
            route.link = Some(device.index);
            connection
                .apply_one(Object::Route(route).replace())
                .await
                .context("cannot add a route")?;
            let done = Arc::clone(&running.done);
            let thread = thread::Builder::new().name("forwarder".into());
            running.threads.push(thread.spawn(move || forward(&tun, &socket, &done))?);
        }
        Ok(Running::new(running))
    }
    .boxed()
}

fn open(own: SocketAddr, peer: SocketAddr, family: Family) -> io::Result<(SyncDevice, UdpSocket)> {
    let mtu = u16::try_from(MTU - overhead(family)).unwrap_or(u16::MAX);
    let tun = DeviceBuilder::new().name(DEVICE).mtu(mtu).build_sync()?;
    tun.set_nonblocking(true)?;
    let socket = UdpSocket::bind(own)?;
    socket.connect(peer)?;
    socket.set_nonblocking(true)?;
    Ok((tun, socket))
}

/// Takes one packet from each side in turns until there is nothing left, and then waits.
fn forward(tun: &SyncDevice, socket: &UdpSocket, done: &AtomicBool) {
    let mut buffer = [0; 65536];
    while !done.load(Ordering::Relaxed) {
        let mut ready = [
            PollFd::new(tun.as_fd(), PollFlags::POLLIN),
            PollFd::new(socket.as_fd(), PollFlags::POLLIN),
        ];
        // An error is one of this call alone, such as a signal.
        let _ = poll(&mut ready, LOOK_AGAIN);
        loop {
            let from_tun = tun.recv(&mut buffer);
            // What cannot be sent is lost, as with flannel.
            if let Ok(length) = from_tun {
                drop(socket.send(&buffer[..length]));
            }
            let from_socket = socket.recv(&mut buffer);
            if let Ok(length) = from_socket {
                drop(tun.send(&buffer[..length]));
            }
            if from_tun.is_err() && from_socket.is_err() {
                break;
            }
        }
    }
}

const TUN: &str = "/dev/net/tun";
/// flannel's name for it.
const DEVICE: &str = "flannel0";
/// flannel's own.
const PORT: u16 = 8285;

/// How soon it ends when it is to, milliseconds.
const LOOK_AGAIN: u16 = 50;
