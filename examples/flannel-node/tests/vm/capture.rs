//! What travels between hosts.

use std::{
    io::{ErrorKind, Read},
    net::IpAddr,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering::Relaxed},
    },
    thread::{self, JoinHandle},
    time::Duration,
};

use flannel_testbed::Testbed;
use ipnetwork::IpNetwork;
use socket2::{Domain, Socket, Type};

/// Counts packets on the switch between the hosts until it is dropped.
pub(crate) struct Capture {
    counts: Arc<Counts>,
    thread: Option<JoinHandle<()>>,
}

#[derive(Default)]
struct Counts {
    /// Those with an address of the pods' networks in their outer header.
    plain: AtomicU64,
    /// Those of WireGuard's data, type 4 of its messages, in UDP.
    encrypted: AtomicU64,
    is_over: AtomicBool,
}

impl Capture {
    pub(crate) fn start(testbed: &Testbed, pods: Vec<IpNetwork>) -> Self {
        let open =
            || Socket::new(Domain::PACKET, Type::RAW, Some(i32::from(ETH_P_ALL.to_be()).into()));
        let mut socket = testbed.switch().run(open).unwrap().unwrap();
        socket.set_read_timeout(Some(Duration::from_millis(20))).unwrap();
        socket.set_recv_buffer_size(8 << 20).unwrap();
        let counts = Arc::<Counts>::default();
        let shared = Arc::clone(&counts);
        let thread = thread::spawn(move || {
            let mut frame = [0; 9000];
            while !shared.is_over.load(Relaxed) {
                match socket.read(&mut frame) {
                    Ok(length) => shared.take_in(&frame[..length], &pods),
                    Err(error) => assert_eq!(error.kind(), ErrorKind::WouldBlock, "{error}"),
                }
            }
        });
        Self { counts, thread: Some(thread) }
    }

    pub(crate) fn plain(&self) -> u64 {
        self.counts.plain.load(Relaxed)
    }

    pub(crate) fn encrypted(&self) -> u64 {
        self.counts.encrypted.load(Relaxed)
    }
}

impl Drop for Capture {
    fn drop(&mut self) {
        self.counts.is_over.store(true, Relaxed);
        let ended = self.thread.take().map(JoinHandle::join);
        assert!(thread::panicking() || matches!(ended, Some(Ok(()))), "the capture failed");
    }
}

impl Counts {
    fn take_in(&self, frame: &[u8], pods: &[IpNetwork]) {
        let Some((addresses, protocol, payload)) = ip_header(frame) else { return };
        if addresses.iter().any(|address| pods.iter().any(|block| block.contains(*address))) {
            self.plain.fetch_add(1, Relaxed);
        }
        if protocol == UDP && payload.get(8..12) == Some(&[4, 0, 0, 0]) {
            self.encrypted.fetch_add(1, Relaxed);
        }
    }
}

/// Source and destination, the protocol, and what follows.
fn ip_header(frame: &[u8]) -> Option<([IpAddr; 2], u8, &[u8])> {
    let kind = u16::from_be_bytes(*frame.get(12..)?.first_chunk()?);
    let packet = frame.get(14..)?;
    let v4 = |at: usize| Some(IpAddr::from(*packet.get(at..)?.first_chunk::<4>()?));
    let v6 = |at: usize| Some(IpAddr::from(*packet.get(at..)?.first_chunk::<16>()?));
    match kind {
        0x0800 => Some(([v4(12)?, v4(16)?], *packet.get(9)?, packet.get(20..)?)),
        0x86dd => Some(([v6(8)?, v6(24)?], *packet.get(6)?, packet.get(40..)?)),
        _ => None,
    }
}

/// `IPPROTO_UDP`
const UDP: u8 = 17;
/// linux/if_ether.h
const ETH_P_ALL: u16 = 3;
