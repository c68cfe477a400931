//! Numbered packets and streams from pod to pod, and what became of them.

use std::{
    io::{Read, Write},
    net::{SocketAddr, TcpListener, TcpStream, UdpSocket},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread::{self, JoinHandle},
    time::Duration,
};

use flannel_testbed::Pod;
use socket2::SockRef;
use tokio::time::Instant;

/// Both kinds, both ways between two pods.
pub(crate) struct Traffic {
    stops: Arc<AtomicBool>,
    packets: [Packets; 2],
    streams: [Stream; 2],
}

impl Traffic {
    pub(crate) fn start(a: &Pod, b: &Pod) -> Self {
        let stops = Arc::new(AtomicBool::new(false));
        let ways = [(a, b), (b, a)];
        let packets = ways.map(|(from, to)| Packets::start(from, to, &stops));
        let streams = ways.map(|(from, to)| Stream::start(from, to, &stops));
        Self { stops, packets, streams }
    }

    /// All bytes of both streams have arrived as they were sent. Returns what became of the packets.
    pub(crate) fn finish(self) -> [Count; 2] {
        self.stops.store(true, Ordering::Relaxed);
        let packets = self.packets.map(Packets::finish);
        let bytes = self.streams.map(Stream::finish);
        println!("packets {packets:?}, bytes of TCP {bytes:?}");
        assert!(bytes.iter().all(|bytes| *bytes > 1 << 20), "{bytes:?}");
        assert!(packets.iter().all(|count| count.sent > 100), "{packets:?}");
        packets
    }
}

/// Numbered packets, some at once, so that they are joined on their way.
struct Packets {
    sender: JoinHandle<u64>,
    receiver: JoinHandle<Count>,
}

#[derive(Debug, Default)]
pub(crate) struct Count {
    pub(crate) sent: u64,
    pub(crate) received: u64,
    pub(crate) reordered: u64,
    longest_gap: Duration,
}

impl Packets {
    fn start(from: &Pod, to: &Pod, stops: &Arc<AtomicBool>) -> Self {
        let (sender, receiver) = (socket(from), socket(to));
        sender.connect(receiver.local_addr().unwrap()).unwrap();
        receiver.set_read_timeout(Some(Duration::from_secs(1))).unwrap();
        let (stops, stopped) = (Arc::clone(stops), Arc::clone(stops));
        let sender = thread::spawn(move || {
            let mut number = 0_u64;
            while !stops.load(Ordering::Relaxed) {
                for _ in 0..AT_ONCE {
                    let mut packet = [0x5a; 200];
                    packet[..8].copy_from_slice(&number.to_be_bytes());
                    sender.send(&packet).unwrap();
                    number += 1;
                }
                thread::sleep(PAUSE);
            }
            number
        });
        let receiver = thread::spawn(move || {
            let (mut count, mut next, mut last) = (Count::default(), 0, Instant::now());
            let mut packet = [0; 200];
            loop {
                let Ok(len) = receiver.recv(&mut packet) else {
                    if stopped.load(Ordering::Relaxed) {
                        return count;
                    }
                    continue;
                };
                assert!(len == packet.len() && packet[8..] == [0x5a; 192]);
                let number = u64::from_be_bytes(*packet.first_chunk().unwrap());
                count.received += 1;
                count.reordered += u64::from(number < next);
                next = next.max(number + 1);
                count.longest_gap = count.longest_gap.max(last.elapsed());
                last = Instant::now();
            }
        });
        Self { sender, receiver }
    }

    fn finish(self) -> Count {
        let sent = self.sender.join().unwrap();
        Count { sent, ..self.receiver.join().unwrap() }
    }
}

/// One TCP connection, whose bytes are looked at.
struct Stream {
    sender: JoinHandle<u64>,
    receiver: JoinHandle<u64>,
}

impl Stream {
    fn start(from: &Pod, to: &Pod, stops: &Arc<AtomicBool>) -> Self {
        let address = SocketAddr::from((to.ip(), 0));
        let listener = to.namespace().run(|| TcpListener::bind(address).unwrap()).unwrap();
        let address = listener.local_addr().unwrap();
        let mut sender = from.namespace().run(|| TcpStream::connect(address).unwrap()).unwrap();
        let (mut receiver, _) = listener.accept().unwrap();
        SockRef::from(&sender).set_linger(Some(Duration::from_secs(5))).unwrap();
        let stops = Arc::clone(stops);
        let data: Vec<u8> = (0..PATTERN * 256).map(|n| (n % PATTERN) as u8).collect();
        let sender = thread::spawn(move || {
            let mut sent = 0;
            while !stops.load(Ordering::Relaxed) {
                sender.write_all(&data).unwrap();
                sent += data.len() as u64;
                thread::sleep(PAUSE);
            }
            sent
        });
        let receiver = thread::spawn(move || {
            let (mut buffer, mut received) = (vec![0; 64 << 10], 0);
            loop {
                let len = receiver.read(&mut buffer).unwrap();
                if len == 0 {
                    return received;
                }
                let is_right = |(n, byte): (usize, &u8)| {
                    (received as usize + n) % PATTERN == usize::from(*byte)
                };
                assert!(buffer[..len].iter().enumerate().all(is_right), "after {received}");
                received += len as u64;
            }
        });
        Self { sender, receiver }
    }

    fn finish(self) -> u64 {
        let sent = self.sender.join().unwrap();
        assert_eq!(self.receiver.join().unwrap(), sent);
        sent
    }
}

pub(crate) fn socket(pod: &Pod) -> UdpSocket {
    let address = SocketAddr::from((pod.ip(), 0));
    let socket = pod.namespace().run(|| UdpSocket::bind(address).unwrap()).unwrap();
    // What a test does not read in time is nobody's loss.
    rustix::net::sockopt::set_socket_recv_buffer_size_force(&socket, 16 << 20).unwrap();
    socket
}

const AT_ONCE: u32 = 4;
const PAUSE: Duration = Duration::from_millis(2);
/// A prime number of bytes, which no segment is a multiple of.
const PATTERN: usize = 251;
