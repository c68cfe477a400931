//! A plain forwarder, as flannel's proxy is: one thread, one packet for each call, no offload. It shares no code with the engine.

use std::{
    io,
    net::{Ipv4Addr, SocketAddr, UdpSocket},
    os::fd::AsFd,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread,
};

use flannel_netlink::{
    LinkChange, alter_link, link_by_name,
    state::{Address, Route},
};
use flannel_testbed::Host;
use ipnetwork::Ipv4Network;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use tun_rs::{DeviceBuilder, SyncDevice};

/// A running forwarder. It ends when it is dropped, and its device with it.
pub(crate) struct Plain {
    stops: Arc<AtomicBool>,
    thread: Option<thread::JoinHandle<()>>,
}

impl Plain {
    /// Starts one on `host` for the pods of `own`, with `peers` behind these addresses.
    pub(crate) async fn start(
        host: &Host,
        own: Ipv4Network,
        peers: Vec<(Ipv4Network, Ipv4Addr)>,
        underlay_mtu: u32,
    ) -> Self {
        let mtu = underlay_mtu - 28;
        let local = SocketAddr::from((host.ipv4().unwrap(), PORT));
        let opened = host.namespace().run(|| {
            let device =
                DeviceBuilder::new().name("flannel0").inherit_enable_state().build_sync()?;
            device.set_nonblocking(true)?;
            let socket = UdpSocket::bind(local)?;
            socket.set_nonblocking(true)?;
            io::Result::Ok((device, socket))
        });
        let (device, socket) = opened.unwrap().unwrap();
        let mut connection = host.connect().unwrap();
        let link = link_by_name(&mut connection, "flannel0").await.unwrap().unwrap().index;
        let change = LinkChange {
            mtu: Some(mtu),
            up: Some(true),
            no_link_local: true,
            ..LinkChange::default()
        };
        alter_link(&mut connection, link, &change).await.unwrap();
        let address = Address::new(link, Ipv4Network::from(own.network()).into());
        connection.apply_one(address.replace()).await.unwrap();
        let network = "10.244.0.0/16".parse().unwrap();
        connection.apply_one(Route::new(network, 3).direct(link).replace()).await.unwrap();
        let stops = Arc::new(AtomicBool::new(false));
        let seen = Arc::clone(&stops);
        let thread = thread::Builder::new()
            .name("plain".into())
            .spawn(move || forward(&device, &socket, &peers, mtu as usize, &seen))
            .unwrap();
        Self { stops, thread: Some(thread) }
    }
}

impl Drop for Plain {
    fn drop(&mut self) {
        self.stops.store(true, Ordering::Relaxed);
        let _ = self.thread.take().unwrap().join();
    }
}

fn forward(
    device: &SyncDevice,
    socket: &UdpSocket,
    peers: &[(Ipv4Network, Ipv4Addr)],
    mtu: usize,
    stops: &AtomicBool,
) {
    let mut buffer = vec![0; mtu];
    while !stops.load(Ordering::Relaxed) {
        let mut moved = false;
        if let Ok(len) = rustix::io::read(device, &mut buffer) {
            moved = true;
            let packet = &mut buffer[..len];
            if len >= 20 {
                let to = Ipv4Addr::new(packet[16], packet[17], packet[18], packet[19]);
                let peer = peers.iter().find(|(block, _)| block.contains(to));
                if let Some((_, peer)) = peer
                    && lower_ttl(packet)
                {
                    let _ = socket.send_to(packet, (*peer, PORT));
                }
            }
        }
        if let Ok((len, _)) = socket.recv_from(&mut buffer) {
            moved = true;
            let packet = &mut buffer[..len];
            if len >= 20 && lower_ttl(packet) {
                let _ = rustix::io::write(device, packet);
            }
        }
        if !moved {
            let mut fds = [
                PollFd::from_borrowed_fd(device.as_fd(), PollFlags::IN),
                PollFd::from_borrowed_fd(socket.as_fd(), PollFlags::IN),
            ];
            let _ = poll(&mut fds, Some(&Timespec { tv_sec: 0, tv_nsec: 100_000_000 }));
        }
    }
}

/// One hop; false if that was the last.
fn lower_ttl(packet: &mut [u8]) -> bool {
    packet[8] = packet[8].saturating_sub(1);
    let (sum, carry) = u16::from_be_bytes([packet[10], packet[11]]).overflowing_add(0x100);
    packet[10..12].copy_from_slice(&(sum + u16::from(carry)).to_be_bytes());
    packet[8] > 0
}

/// flannel's.
const PORT: u16 = 8285;
