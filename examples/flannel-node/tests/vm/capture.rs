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

use flannel_testbed::{Testbed, probe::carries_probe};
use ipnetwork::IpNetwork;
use socket2::{Domain, Socket, Type};

/// Counts packets on the switch between the hosts until it is dropped.
pub(crate) struct Capture {
    counts: Arc<Counts>,
    thread: Option<JoinHandle<()>>,
}

#[derive(Default)]
struct Counts {
    /// Those in the clear.
    plain: AtomicU64,
    /// Those of them with an address of the pods' networks in their outer header, IPv4 and IPv6.
    of_pods: [AtomicU64; 2],
    /// Those with a probe of a pod in whatever they consist of otherwise.
    probes: AtomicU64,
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

    /// Whether it has seen packets of each family with addresses of pods, and with their probes.
    pub(crate) fn sees_all(&self) -> bool {
        let Counts { of_pods: [v4, v6], probes, .. } = &*self.counts;
        [v4, v6, probes].iter().all(|count| count.load(Relaxed) > 0)
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
        let has_probe = carries_probe(frame);
        self.probes.fetch_add(has_probe.into(), Relaxed);
        let header = ip_header(frame);
        let is_pods = |address: &IpAddr| pods.iter().any(|block| block.contains(*address));
        let of_pods = header.filter(|(addresses, ..)| addresses.iter().any(is_pods));
        if let Some(([source, _], ..)) = of_pods {
            self.of_pods[usize::from(source.is_ipv6())].fetch_add(1, Relaxed);
        }
        self.plain.fetch_add((has_probe || of_pods.is_some()).into(), Relaxed);
        let Some((_, protocol, payload)) = header else { return };
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

#[test]
fn a_probe_is_in_the_clear_in_whatever_it_is() {
    let counts = Counts::default();
    let pods = ["10.244.0.0/16".parse().unwrap()];
    // Ethernet, and IPv4 between hosts with UDP to vxlan's port.
    let mut frame = vec![0; 14 + 20 + 8 + 50];
    frame[12..15].copy_from_slice(&[8, 0, 0x45]);
    frame[23] = UDP;
    frame[26..34].copy_from_slice(&[192, 0, 2, 1, 192, 0, 2, 2]);
    frame[36..38].copy_from_slice(&8472_u16.to_be_bytes());
    counts.take_in(&frame, &pods);
    assert_eq!(counts.plain.load(Relaxed), 0);
    frame.extend(b"fltb\0\x01and so on");
    counts.take_in(&frame, &pods);
    assert_eq!((counts.plain.load(Relaxed), counts.probes.load(Relaxed)), (1, 1));
}
